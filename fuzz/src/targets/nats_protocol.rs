//! The parser of client lines, fed whole and in pieces.

use beamlog_nats::protocol::{Command, Limits, Parsed, parse};

pub const WORDS: &[&[u8]] = &[
    b"PUB ", b"HPUB ", b"SUB ", b"UNSUB ", b"CONNECT ", b"PING\r\n", b"PONG\r\n", b"INFO {}\r\n", b"+OK\r\n", b"-ERR 'x'\r\n",
    b"\r\n", b"\n", b"\t", b" ", b"0", b"18446744073709551616", b"-1", b"NATS/1.0\r\n\r\n", b"> ", b"a.b ", b"pub ",
];

const LIMITS: Limits = Limits { control_line_max: 256, payload_max: 1024, headers: true };

pub fn run(data: &[u8]) {
    for headers in [true, false] {
        let limits = Limits { headers, ..LIMITS };
        let mut rest = data;
        let mut commands = 0;
        loop {
            match parse(rest, &limits) {
                Ok(Parsed::Command(command, left)) => {
                    assert!(left.len() < rest.len(), "a command of no bytes");
                    assert!(rest.ends_with(left));
                    check(&command, rest.len() - left.len());
                    pieces(rest, rest.len() - left.len(), &limits, &command);
                    rest = left;
                    commands += 1;
                    assert!(commands <= data.len());
                }
                Ok(Parsed::Incomplete { missing }) => {
                    assert!(missing > 0, "nothing is missing and there is no command");
                    // What is waited for is bounded: a line, or headers and payload.
                    let bound = limits.control_line_max + limits.payload_max + 64;
                    assert!(rest.len() <= bound, "{} bytes are kept", rest.len());
                    assert!(missing <= bound, "{missing} bytes are awaited");
                    break;
                }
                Err(violation) => {
                    // It stays one, whatever follows.
                    let longer = [rest, b"PING\r\n"].concat();
                    assert_eq!(parse(&longer, &limits).err(), Some(violation));
                    break;
                }
            }
        }
    }
}

fn check(command: &Command<'_>, bytes: usize) {
    match command {
        Command::Publish(publish) => {
            assert!(publish.headers.len() + publish.payload.len() <= LIMITS.payload_max);
            assert!(publish.subject.len() + publish.reply.len() <= bytes);
        }
        Command::Subscribe { filter, sid, .. } => assert!(!filter.is_empty() && !sid.is_empty()),
        Command::Unsubscribe { sid, .. } => assert!(!sid.is_empty()),
        Command::Connect(_) | Command::Ping | Command::Pong | Command::Ignored => {}
    }
}

/// However a command arrives, it is not read before its end, and then it is the same.
fn pieces(input: &[u8], len: usize, limits: &Limits, whole: &Command<'_>) {
    for cut in (0..len).step_by(1 + len / 16) {
        match parse(&input[..cut], limits) {
            Ok(Parsed::Incomplete { missing }) => assert!(cut + missing <= len, "asks for more than there is"),
            Ok(Parsed::Command(command, _)) => panic!("{command:?} was read from a part of {whole:?}"),
            Err(violation) => panic!("{violation:?} in a part of {whole:?}"),
        }
    }
    match parse(&input[..len], limits) {
        Ok(Parsed::Command(command, [])) => assert_eq!(command, *whole),
        other => panic!("{other:?} instead of {whole:?}"),
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    [
        "CONNECT {\"verbose\":false,\"headers\":true}\r\nPING\r\nPUB a.b 5\r\nhello\r\n",
        "pub\ta\tinbox.1\t0\r\n\r\nSUB a.* 1\r\nSUB a.> workers 2\r\nUNSUB 1\r\nUNSUB 2 5\r\n",
        "HPUB a 12 17\r\nNATS/1.0\r\n\r\nhello\r\n",
        "HPUB a reply 33 33\r\nNATS/1.0\r\nNats-Msg-Id: abcd\r\n\r\n\r\n",
        "PUB a 2000\r\n",
        "PUB a 99999999999999999999\r\n",
        "PUB a -1\r\n",
        "PUB a 3\r\nhelloPING\r\n",
        "+OK\r\nPONG\r\nINFO {}\r\n-ERR 'x'\r\n",
        "PING\nPONG\n",
        "SUB a..b 1\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        "\u{16}\u{3}\u{1}",
        "",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
