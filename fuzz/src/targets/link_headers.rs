//! The headers by which links know a message: where it has been, where it came from, which version of a key it is.
//! Any of them may be made up by whoever may publish there.

use beamlog_nats::link::outside;
use beamlog_router::headers;
use beamlog_router::stream::{ORIGIN_HEADER, Provenance};

/// Whoever claims a later time than this is not believed.
const STORED: u64 = 1_763_740_800_000_000_000;
const SKEW: u64 = 60_000_000_000;
/// Hops that are kept of what a message says, and the one that brought it.
const HOPS_MAX: usize = 10;

pub const WORDS: &[&[u8]] = &[
    b"NATS/1.0\r\n",
    b"\r\n",
    b"Beamlog-Hops: ",
    b"Beamlog-Origin: ",
    b"Beamlog-Origin-Time: ",
    b"Beamlog-Msg-Id: ",
    b"Beamlog-Path: ",
    b"Beamlog-Bucket: ",
    b"Nats-Msg-Id: ",
    b"S@17:5",
    b",",
    b"@",
    b":",
    b"18446744073709551615",
    b"1763740800000000000 0123456789abcdef",
    b"UP 17 3 99 keep after=2",
];

pub fn run(block: &[u8]) {
    let hops = outside::hops(block);
    assert!(hops.len() <= HOPS_MAX, "a way is bounded");
    let crossed = outside::there_and_back(block);
    assert!(headers::is_well_formed(&crossed), "{crossed:?}");
    let after = outside::hops(&crossed);
    assert!(after.contains(&("THERE".to_owned(), 18, 9)), "where it came from is not made up");
    // A name with a comma is no name of a stream.
    if hops.len() < HOPS_MAX - 2 && hops.iter().all(|(name, ..)| !name.contains(',')) {
        assert!(after.contains(&("HERE".to_owned(), 17, 7)), "{after:?}");
    }
    let origins = headers::iter(&crossed).filter(|(name, _)| name.eq_ignore_ascii_case(ORIGIN_HEADER.as_bytes()));
    assert_eq!(origins.count(), 1);

    if let Some(from) = headers::find(block, ORIGIN_HEADER.as_bytes()).and_then(Provenance::parse) {
        assert_eq!(Provenance::parse(from.to_header().as_bytes()), Some(from));
    }
    let (time, text) = outside::version(block, STORED);
    assert!(time <= STORED + SKEW, "{text} comes from the future");
    if let Some((_, is_on_it)) = outside::path(block) {
        assert!(is_on_it);
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    [
        "NATS/1.0\r\nBeamlog-Hops: FIRST@17:1,UP@17:3\r\nBeamlog-Origin-Time: 99\r\nBeamlog-Msg-Id: own\r\n\r\n",
        "NATS/1.0\r\nNats-Msg-Id: S@17:5\r\nBeamlog-Origin-Time: 99\r\n\r\n",
        "NATS/1.0\r\nBeamlog-Hops: A@1:1\r\nNats-Msg-Id: S@17:5\r\nBeamlog-Origin: UP 17 3 99\r\n\r\n",
        "NATS/1.0\r\nBeamlog-Origin: UP 17 3 99\r\nNats-Msg-Id: 4f2a\r\nUser: u\r\n\r\n",
        "NATS/1.0\r\nBeamlog-Origin: UP 17 3 99 keep after=2\r\n\r\n",
        "NATS/1.0\r\nBeamlog-Bucket: 1763740800000000000 0123456789abcdef\r\nKV-Operation: DEL\r\n\r\n",
        "NATS/1.0\r\nBeamlog-Bucket: 18446744073709551615 0123456789abcdef\r\n\r\n",
        "NATS/1.0\r\nBeamlog-Path: 0123456789abcdef,fedcba9876543210\r\n\r\n",
        "NATS/1.0\r\nBeamlog-Hops: S@1:1,S@1:1,S@1:1,S@1:1,S@1:1,S@1:1,S@1:1,S@1:1,S@1:1,S@1:1\r\n\r\n",
        "NATS/1.0\r\nNats-Rollup: all\r\nNats-Expected-Last-Sequence: 1\r\nBeamlog-Hops: @:\r\n\r\n",
        "",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
