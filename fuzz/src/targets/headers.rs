//! Header blocks of messages, as clients send them.

use beamlog_router::headers::{self, Builder};

pub const WORDS: &[&[u8]] = &[
    b"NATS/1.0",
    b"\r\n",
    b"\r\n\r\n",
    b": ",
    b"Nats-Msg-Id: ",
    b"Nats-Rollup: all\r\n",
    b" 503",
    b"\r",
    b"\n",
    b" ",
    b":",
];

pub fn run(block: &[u8]) {
    let whole = headers::is_well_formed(block);
    let found: Vec<(&[u8], &[u8])> = headers::iter(block).collect();
    for (name, value) in &found {
        assert!(headers::find_ignore_case(block, name).is_some());
        let first = headers::find(block, name).expect("it was listed");
        assert_eq!(first, found.iter().find(|(other, _)| other == name).map_or(*value, |(_, value)| *value));
    }
    let status = headers::status(block);
    assert!(status.is_none_or(|status| status < 1000), "three digits");

    assert_eq!(headers::without(block, |_| false), block, "nothing unwanted");
    let emptied = headers::without(block, |_| true);
    assert!(emptied.len() <= block.len());
    if whole {
        assert_eq!(headers::iter(&emptied).count(), 0, "everything unwanted");
        assert!(headers::is_well_formed(&emptied));
    }

    let longer = Builder::append_to(block).header("Fuzz-Added", "a\r\nvalue").finish();
    assert!(headers::is_well_formed(&longer), "{longer:?}");
    let last = headers::iter(&longer).last();
    assert_eq!(last, Some((&b"Fuzz-Added"[..], &b"a  value"[..])));
    if whole {
        assert_eq!(headers::iter(&longer).count(), found.len() + 1);
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    [
        "NATS/1.0\r\n\r\n",
        "NATS/1.0\r\nNats-Msg-Id: 4f2a\r\n\r\n",
        "NATS/1.0 503\r\n\r\n",
        "NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 5\r\nNats-Last-Stream: 7\r\n\r\n",
        "NATS/1.0\r\na:1\r\nA:  2 \r\na:3\r\nempty:\r\n\r\n",
        "NATS/1.0\r\nNats-Expected-Last-Subject-Sequence: 18446744073709551615\r\nNats-Rollup: sub\r\n\r\n",
        "NATS/1.0\r\nno colon\r\n\r\n",
        "NATS/1.0\r\n: no name\r\n\r\n",
        "NATS/1.0\nline feeds only\n\n",
        "",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
