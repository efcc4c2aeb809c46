//! The lines a server writes. No formatting machinery: this runs once per delivered message.

use beamlog_router::interest::Envelope;

pub(super) const OK: &[u8] = b"+OK\r\n";
pub(super) const PING: &[u8] = b"PING\r\n";
pub(super) const PONG: &[u8] = b"PONG\r\n";

/// Appends `MSG` or, for clients that know headers and messages that have some, `HMSG`. Returns the
/// bytes of message in it.
pub(super) fn message(buffer: &mut Vec<u8>, sid: &[u8], message: &Envelope<'_>, with_headers: bool) -> usize {
    let headers: &[u8] = if with_headers { message.headers } else { b"" };
    let size = headers.len() + message.payload.len();
    // One growth at most: "HMSG ", four blanks, two numbers, three line ends are below 64.
    buffer.reserve(message.subject.len() + sid.len() + message.reply.len() + size + 64);
    buffer.extend_from_slice(if headers.is_empty() { b"MSG " } else { b"HMSG " });
    buffer.extend_from_slice(message.subject);
    buffer.push(b' ');
    buffer.extend_from_slice(sid);
    buffer.push(b' ');
    if !message.reply.is_empty() {
        buffer.extend_from_slice(message.reply);
        buffer.push(b' ');
    }
    if !headers.is_empty() {
        number(buffer, headers.len());
        buffer.push(b' ');
    }
    number(buffer, size);
    buffer.extend_from_slice(b"\r\n");
    buffer.extend_from_slice(headers);
    buffer.extend_from_slice(message.payload);
    buffer.extend_from_slice(b"\r\n");
    size
}

/// Appends `-ERR '<text>'`.
pub(super) fn error(buffer: &mut Vec<u8>, text: &str) {
    buffer.extend_from_slice(b"-ERR '");
    buffer.extend_from_slice(text.as_bytes());
    buffer.extend_from_slice(b"'\r\n");
}

fn number(buffer: &mut Vec<u8>, mut value: usize) {
    let mut digits = [0_u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(value % 10).unwrap_or_default();
        value /= 10;
        if value == 0 {
            break;
        }
    }
    buffer.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(reply: &str, headers: &str, payload: &str, with_headers: bool, expected: &str) {
        let mut buffer = Vec::new();
        let envelope = Envelope {
            subject: b"a.b",
            reply: reply.as_bytes(),
            headers: headers.as_bytes(),
            payload: payload.as_bytes(),
            origin: 0,
        };
        let size = message(&mut buffer, b"7", &envelope, with_headers);
        assert_eq!(String::from_utf8(buffer).unwrap(), expected);
        assert_eq!(size, payload.len() + if with_headers { headers.len() } else { 0 });
    }

    #[test]
    fn messages_are_written_as_nats_server_writes_them() {
        check("", "", "", true, "MSG a.b 7 0\r\n\r\n");
        check("r", "", "0123456789", true, "MSG a.b 7 r 10\r\n0123456789\r\n");
        check("", "NATS/1.0\r\n\r\n", "hi", true, "HMSG a.b 7 12 14\r\nNATS/1.0\r\n\r\nhi\r\n");
        check("r", "NATS/1.0\r\n\r\n", "hi", true, "HMSG a.b 7 r 12 14\r\nNATS/1.0\r\n\r\nhi\r\n");
    }

    #[test]
    fn a_client_without_headers_gets_the_payload_alone() {
        check("r", "NATS/1.0\r\n\r\n", "hi", false, "MSG a.b 7 r 2\r\nhi\r\n");
    }
}
