//! A blocking NATS connection that batches: publishes gather in one buffer until `flush`, and one read
//! may bring many messages. It answers PING by itself and understands nothing else than it must.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::time::Duration;

/// Reads that bring nothing for this long mean that the server is stuck.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const INPUT_BYTES: usize = 256 * 1024;
/// A control line longer than this is not a server we know.
const LINE_BYTES_MAX: usize = 64 * 1024;
const REQUEST_SID: u64 = 1;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("connecting to {address}")]
    Connect { address: SocketAddr, source: io::Error },
    #[error("reading from the server")]
    Read(#[source] io::Error),
    #[error("writing to the server")]
    Write(#[source] io::Error),
    #[error("the server closed the connection")]
    Closed,
    #[error("the server said {0}")]
    Refused(String),
    #[error("not understood: {0}")]
    Protocol(String),
}

/// One message as it came in. Borrowed from the connection's buffer.
#[derive(Clone, Copy, Debug)]
pub struct Delivered<'a> {
    pub subject: &'a [u8],
    pub sid: u64,
    pub reply: &'a [u8],
    /// The raw header block, or empty.
    pub headers: &'a [u8],
    pub payload: &'a [u8],
}

pub struct Connection {
    stream: TcpStream,
    input: Vec<u8>,
    start: usize,
    end: usize,
    output: Vec<u8>,
    requests: u64,
    pongs: u64,
    info: String,
    inbox: String,
    /// The read timeout that is set.
    idle: Duration,
}

/// Where the parts of the next operation are in the input.
enum Operation {
    Incomplete,
    Message {
        subject: Range<usize>,
        sid: u64,
        reply: Range<usize>,
        headers: Range<usize>,
        payload: Range<usize>,
        end: usize,
    },
    Ping {
        end: usize,
    },
    Pong {
        end: usize,
    },
    Info {
        line: Range<usize>,
        end: usize,
    },
    Refused {
        line: Range<usize>,
    },
    Ok {
        end: usize,
    },
}

impl Connection {
    /// Connects and waits until the server has answered a PING after the CONNECT.
    pub fn open(address: SocketAddr) -> Result<Self, ClientError> {
        let stream =
            TcpStream::connect(address).map_err(|source| ClientError::Connect { address, source })?;
        stream.set_nodelay(true).map_err(|source| ClientError::Connect { address, source })?;
        stream
            .set_read_timeout(Some(READ_TIMEOUT))
            .map_err(|source| ClientError::Connect { address, source })?;
        // The own port tells the connections of one machine apart, as their inboxes must be.
        let port = stream.local_addr().map_err(|source| ClientError::Connect { address, source })?.port();
        let mut connection = Self {
            stream,
            input: vec![0; INPUT_BYTES],
            start: 0,
            end: 0,
            output: Vec::with_capacity(INPUT_BYTES),
            requests: 0,
            pongs: 0,
            info: String::new(),
            inbox: format!("_I.{}", port),
            idle: READ_TIMEOUT,
        };
        while connection.info.is_empty() {
            connection.step()?;
        }
        connection.output.extend_from_slice(
            b"CONNECT {\"verbose\":false,\"pedantic\":false,\"lang\":\"beamlog-bench\",\"version\":\"0\",\
              \"protocol\":1,\"headers\":true,\"no_responders\":true,\"echo\":true}\r\n",
        );
        connection.ping()?;
        Ok(connection)
    }

    /// The INFO line the server opened with, as JSON text.
    #[must_use]
    pub fn info(&self) -> &str {
        &self.info
    }

    /// The prefix of reply subjects that only this connection uses.
    #[must_use]
    pub fn inbox(&self) -> &str {
        &self.inbox
    }

    /// A handle to break a blocking read from another thread.
    pub fn stream(&self) -> Result<TcpStream, ClientError> {
        self.stream.try_clone().map_err(ClientError::Read)
    }

    /// Sends what is buffered and a PING, and waits for the PONG. Messages that come first are dropped,
    /// so this is for set-up and for connections that only publish.
    pub fn ping(&mut self) -> Result<(), ClientError> {
        self.output.extend_from_slice(b"PING\r\n");
        self.flush()?;
        let awaited = self.pongs + 1;
        while self.pongs < awaited {
            self.step()?;
        }
        Ok(())
    }

    /// Buffers a subscription.
    pub fn subscribe(&mut self, subject: &str, queue: Option<&str>, sid: u64) {
        self.output.extend_from_slice(b"SUB ");
        self.output.extend_from_slice(subject.as_bytes());
        if let Some(queue) = queue {
            self.output.push(b' ');
            self.output.extend_from_slice(queue.as_bytes());
        }
        self.output.push(b' ');
        push_number(&mut self.output, sid);
        self.output.extend_from_slice(b"\r\n");
    }

    /// Buffers a publish; `reply` may be empty.
    pub fn publish(&mut self, subject: &[u8], reply: &[u8], payload: &[u8]) {
        self.output.extend_from_slice(b"PUB ");
        self.output.extend_from_slice(subject);
        self.output.push(b' ');
        if !reply.is_empty() {
            self.output.extend_from_slice(reply);
            self.output.push(b' ');
        }
        push_number(&mut self.output, payload.len() as u64);
        self.output.extend_from_slice(b"\r\n");
        self.output.extend_from_slice(payload);
        self.output.extend_from_slice(b"\r\n");
    }

    /// Buffers a publish with a header block, which must be whole (`NATS/1.0\r\n…\r\n\r\n`).
    pub fn publish_with_headers(&mut self, subject: &[u8], reply: &[u8], headers: &[u8], payload: &[u8]) {
        self.output.extend_from_slice(b"HPUB ");
        self.output.extend_from_slice(subject);
        self.output.push(b' ');
        if !reply.is_empty() {
            self.output.extend_from_slice(reply);
            self.output.push(b' ');
        }
        push_number(&mut self.output, headers.len() as u64);
        self.output.push(b' ');
        push_number(&mut self.output, (headers.len() + payload.len()) as u64);
        self.output.extend_from_slice(b"\r\n");
        self.output.extend_from_slice(headers);
        self.output.extend_from_slice(payload);
        self.output.extend_from_slice(b"\r\n");
    }

    /// Bytes waiting for `flush`.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.output.len()
    }

    pub fn flush(&mut self) -> Result<(), ClientError> {
        if !self.output.is_empty() {
            self.stream.write_all(&self.output).map_err(ClientError::Write)?;
            self.output.clear();
        }
        Ok(())
    }

    /// The next message, waiting for it.
    pub fn receive(&mut self) -> Result<Delivered<'_>, ClientError> {
        loop {
            if let Some(message) = self.advance()? {
                return Ok(self.delivered(message));
            }
            self.fill()?;
        }
    }

    /// The next message that was read already, without touching the socket.
    pub fn buffered_next(&mut self) -> Result<Option<Delivered<'_>>, ClientError> {
        match self.advance()? {
            Some(message) => Ok(Some(self.delivered(message))),
            None => Ok(None),
        }
    }

    /// As `buffered_next`, for a flood of messages that all have this control line and payload size: what
    /// fits is taken by comparing the line instead of parsing it. Gives the payload.
    pub fn buffered_next_like(
        &mut self,
        line: &[u8],
        payload_bytes: usize,
    ) -> Result<Option<&[u8]>, ClientError> {
        let body = self.start + line.len();
        let end = body + payload_bytes + 2;
        if end <= self.end && self.input[self.start..].starts_with(line) {
            self.start = end;
            return Ok(Some(&self.input[body..body + payload_bytes]));
        }
        Ok(self.buffered_next()?.map(|message| message.payload))
    }

    /// Sends bytes that hold whole operations, after what is buffered.
    pub fn send(&mut self, operations: &[u8]) -> Result<(), ClientError> {
        self.flush()?;
        self.stream.write_all(operations).map_err(ClientError::Write)
    }

    /// Waits until the socket brought something.
    pub fn fill(&mut self) -> Result<(), ClientError> {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        } else if self.start > self.input.len() / 2 || self.end == self.input.len() {
            self.input.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            if self.end == self.input.len() {
                self.input.resize(self.input.len() * 2, 0);
            }
        }
        let read = self.stream.read(&mut self.input[self.end..]).map_err(ClientError::Read)?;
        if read == 0 {
            return Err(ClientError::Closed);
        }
        self.end += read;
        Ok(())
    }

    /// As `fill`, but comes back after `idle` with nothing when nothing came.
    pub fn fill_or_idle(&mut self, idle: Duration) -> Result<(), ClientError> {
        if self.idle != idle {
            self.stream.set_read_timeout(Some(idle)).map_err(ClientError::Read)?;
            self.idle = idle;
        }
        match self.fill() {
            Err(ClientError::Read(error))
                if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) =>
            {
                Ok(())
            }
            outcome => outcome,
        }
    }

    /// A request and its answer's payload. For control traffic, one at a time; other messages that come
    /// in meanwhile are dropped.
    pub fn request(&mut self, subject: &str, payload: &[u8]) -> Result<Vec<u8>, ClientError> {
        self.requests += 1;
        if self.requests == 1 {
            self.subscribe(&format!("{}.q.*", self.inbox), None, REQUEST_SID);
        }
        let reply = format!("{}.q.{}", self.inbox, self.requests);
        self.publish(subject.as_bytes(), reply.as_bytes(), payload);
        self.flush()?;
        loop {
            let message = self.receive()?;
            if message.subject == reply.as_bytes() {
                if message.headers.starts_with(b"NATS/1.0 503") {
                    return Err(ClientError::Refused(format!("no responders on {subject}")));
                }
                return Ok(message.payload.to_vec());
            }
        }
    }

    /// Handles what is in the input up to one message, reading when there is nothing.
    fn step(&mut self) -> Result<(), ClientError> {
        let (info, pongs) = (self.info.len(), self.pongs);
        while self.advance()?.is_some() {}
        if info == self.info.len() && pongs == self.pongs {
            self.fill()?;
        }
        Ok(())
    }

    /// Consumes operations until a message is at hand.
    fn advance(&mut self) -> Result<Option<Operation>, ClientError> {
        loop {
            let operation = parse(&self.input[..self.end], self.start)?;
            match operation {
                Operation::Incomplete => return Ok(None),
                Operation::Message { end, .. } => {
                    self.start = end;
                    return Ok(Some(operation));
                }
                Operation::Ping { end } => {
                    self.start = end;
                    self.output.extend_from_slice(b"PONG\r\n");
                    self.flush()?;
                }
                Operation::Pong { end } => {
                    self.start = end;
                    self.pongs += 1;
                }
                Operation::Info { line, end } => {
                    self.info = String::from_utf8_lossy(&self.input[line]).into_owned();
                    self.start = end;
                }
                Operation::Ok { end } => self.start = end,
                Operation::Refused { line } => {
                    return Err(ClientError::Refused(
                        String::from_utf8_lossy(&self.input[line]).into_owned(),
                    ));
                }
            }
        }
    }

    fn delivered(&self, operation: Operation) -> Delivered<'_> {
        let Operation::Message { subject, sid, reply, headers, payload, .. } = operation else {
            unreachable!("advance returns only messages");
        };
        Delivered {
            subject: &self.input[subject],
            sid,
            reply: &self.input[reply],
            headers: &self.input[headers],
            payload: &self.input[payload],
        }
    }
}

fn push_number(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b"0123456789"[(value % 10) as usize];
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 18 {
        return None;
    }
    text.iter()
        .try_fold(0u64, |value, byte| byte.is_ascii_digit().then(|| value * 10 + u64::from(byte - b'0')))
}

/// Parses the operation at `start` of `input`.
fn parse(input: &[u8], start: usize) -> Result<Operation, ClientError> {
    let rest = &input[start..];
    let Some(line_end) = memchr::memchr(b'\n', rest) else {
        if rest.len() > LINE_BYTES_MAX {
            return Err(ClientError::Protocol("a control line without an end".into()));
        }
        return Ok(Operation::Incomplete);
    };
    let end = start + line_end + 1;
    let line = rest[..line_end].strip_suffix(b"\r").unwrap_or(&rest[..line_end]);
    let unknown = || ClientError::Protocol(String::from_utf8_lossy(line).into_owned());
    match line {
        [b'M', b'S', b'G', b' ', ..] => message(input, start, 4, line, end, false).ok_or_else(unknown)?,
        [b'H', b'M', b'S', b'G', b' ', ..] => {
            message(input, start, 5, line, end, true).ok_or_else(unknown)?
        }
        b"PING" => Ok(Operation::Ping { end }),
        b"PONG" => Ok(Operation::Pong { end }),
        b"+OK" => Ok(Operation::Ok { end }),
        [b'I', b'N', b'F', b'O', b' ', ..] => {
            Ok(Operation::Info { line: start + 5..start + line.len(), end })
        }
        [b'-', b'E', b'R', b'R', b' ', ..] => Ok(Operation::Refused { line: start + 5..start + line.len() }),
        _ => Err(unknown()),
    }
}

/// `MSG <subject> <sid> [reply] <bytes>` or `HMSG <subject> <sid> [reply] <header bytes> <bytes>`.
fn message(
    input: &[u8],
    start: usize,
    skip: usize,
    line: &[u8],
    body: usize,
    with_headers: bool,
) -> Option<Result<Operation, ClientError>> {
    let mut fields: [Range<usize>; 5] = Default::default();
    let mut count = 0;
    let mut at = skip;
    while at < line.len() {
        let length = memchr::memchr(b' ', &line[at..]).unwrap_or(line.len() - at);
        if length > 0 {
            *fields.get_mut(count)? = start + at..start + at + length;
            count += 1;
        }
        at += length + 1;
    }
    let sizes = if with_headers { 2 } else { 1 };
    let has_reply = match count.checked_sub(2 + sizes)? {
        0 => false,
        1 => true,
        _ => return None,
    };
    let total = usize::try_from(number(&input[fields[count - 1].clone()])?).ok()?;
    let headers =
        if with_headers { usize::try_from(number(&input[fields[count - 2].clone()])?).ok()? } else { 0 };
    if headers > total {
        return None;
    }
    let end = body + total + 2;
    if input.len() < end {
        return Some(Ok(Operation::Incomplete));
    }
    Some(Ok(Operation::Message {
        subject: fields[0].clone(),
        sid: number(&input[fields[1].clone()])?,
        reply: if has_reply { fields[2].clone() } else { 0..0 },
        headers: body..body + headers,
        payload: body + headers..body + total,
        end,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(input: &[u8], subject: &[u8], reply: &[u8], headers: &[u8], payload: &[u8]) {
        let Operation::Message { subject: s, reply: r, headers: h, payload: p, end, .. } =
            parse(input, 0).unwrap()
        else {
            panic!("no message in {input:?}");
        };
        assert_eq!((&input[s], &input[r], &input[h], &input[p]), (subject, reply, headers, payload));
        assert_eq!(end, input.len());
    }

    #[test]
    fn messages_come_apart() {
        check(b"MSG a.b 1 5\r\nhello\r\n", b"a.b", b"", b"", b"hello");
        check(b"MSG a.b 1 r.1 0\r\n\r\n", b"a.b", b"r.1", b"", b"");
        check(b"HMSG a 9 r 12 14\r\nNATS/1.0\r\n\r\nhi\r\n", b"a", b"r", b"NATS/1.0\r\n\r\n", b"hi");
    }

    #[test]
    fn a_part_of_a_message_waits_for_the_rest() {
        let whole = b"HMSG a 9 r 12 14\r\nNATS/1.0\r\n\r\nhi\r\n";
        for length in 0..whole.len() {
            assert!(matches!(parse(&whole[..length], 0), Ok(Operation::Incomplete)), "{length}");
        }
    }
}
