//! What a NATS client writes: total over all bytes, and the same however the bytes arrive.

use beamlog_nats::protocol::{Limits, Parsed, Violation, parse};

pub const WORDS: &[&[u8]] = &[
    b"PUB ",
    b"HPUB ",
    b"SUB ",
    b"UNSUB ",
    b"CONNECT ",
    b"PING",
    b"PONG",
    b"INFO ",
    b"+OK",
    b"-ERR",
    b"\r\n",
    b"\n",
    b"\r",
    b" ",
    b"\t",
    b"  ",
    b" 0\r\n\r\n",
    b" 2\r\nhi\r\n",
    b" 12 14\r\nNATS/1.0\r\n\r\nhi\r\n",
    b"-1",
    b"999999999",
    b"2147483648",
    b"99999999999999999999",
    b"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
];

/// The first byte chooses the limits.
pub fn run(data: &[u8]) {
    let Some((&choice, mut input)) = data.split_first() else { return };
    let limits = Limits { control_line_max: 64, payload_max: 32, headers: choice & 1 == 0 };
    loop {
        let whole = parse(input, &limits);
        pieces(input, &limits, &whole);
        match whole {
            Ok(Parsed::Command(_, rest)) => {
                assert!(rest.len() < input.len() && input.ends_with(rest), "a command consumes");
                input = rest;
            }
            Ok(Parsed::Incomplete { missing }) => {
                // The longest thing that may be waited for: a whole payload and its end.
                assert!((1..=limits.payload_max + 2).contains(&missing), "{missing}");
                return;
            }
            Err(_) => return,
        }
    }
}

/// A shorter input either waits for more or says already what the whole one says.
fn pieces(input: &[u8], limits: &Limits, whole: &Result<Parsed<'_>, Violation>) {
    for cut in 0..input.len().min(256) {
        let piece = &input[..cut];
        match (parse(piece, limits), whole) {
            (Ok(Parsed::Incomplete { missing }), _) => assert!(missing > 0),
            (Ok(Parsed::Command(early, rest)), Ok(Parsed::Command(late, behind))) => {
                assert_eq!(early, *late);
                assert_eq!(piece.len() - rest.len(), input.len() - behind.len());
            }
            (Err(early), Err(late)) => assert_eq!(early, *late),
            (early, late) => panic!("{early:?} became {late:?} in {:?}", String::from_utf8_lossy(input)),
        }
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    [
        "0CONNECT {\"verbose\":false,\"headers\":true}\r\nPING\r\nSUB a.* 1\r\nPUB a.b 2\r\nhi\r\nUNSUB 1 5\r\n",
        "0HPUB a r 12 14\r\nNATS/1.0\r\n\r\nhi\r\n",
        "1HPUB a 12 14\r\nNATS/1.0\r\n\r\nhi\r\n",
        "0SUB subject group 0\r\nPONG\r\n+OK\r\nINFO {}\r\n",
        "0sub  a   1 \npub\ta\t0\r\n\r\nping\n",
        "0PUB a reply 33\r\n",
        "0PUB a 2\r\nhiXX",
        "0-ERR 'Stale Connection'\r\n",
        "0UNSUB 1 x\r\nUNSUB a b c\r\n",
        "0GET / HTTP/1.1\r\n\r\n",
    ]
    .map(|seed| seed.as_bytes().to_vec())
    .to_vec()
}
