//! The reply subject of a message that a cluster delivers to a link: it says which message it is.

use beamlog_nats::link::outside;

pub const WORDS: &[&[u8]] =
    &[b"$JS.ACK.", b"S.C.1.", b".", b"18446744073709551615", b"0", b"hub.ACCOUNT.", b"1763740800000000000", b"-1"];

pub fn run(bytes: &[u8]) {
    let Ok(reply) = std::str::from_utf8(bytes) else { return };
    let Some((sequence, delivery, time)) = outside::position(reply) else { return };
    assert!(sequence > 0, "no stream has a message 0");
    let short = format!("$JS.ACK.S.C.1.{sequence}.{delivery}.{time}.0");
    let long = format!("$JS.ACK.d.a.S.C.1.{sequence}.{delivery}.{time}.0");
    for same in [short, long.clone(), format!("{long}.token")] {
        assert_eq!(outside::position(&same), Some((sequence, delivery, time)));
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    [
        "$JS.ACK.ORDERS.beamlog-link-core-0123456789abcdef.1.41.41.1763740800000000000.0",
        "$JS.ACK.hub.AbCdEf.ORDERS.C.2.18446744073709551615.7.1763740800000000000.12",
        "$JS.ACK._.AbCdEf.ORDERS.C.1.3.3.1763740800000000000.0.token",
        "$JS.ACK.S.C.1.0.1.1.0",
        "$JS.ACK.S.C.1.5.5.5",
        "_INBOX.abc",
        "",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
