//! Frames of the mesh.

use beamlog_net::mesh::{Operation, Operations};
use bytes::BytesMut;

pub const WORDS: &[&[u8]] = &[&[0, 0], &[1, 0], &[0xff, 0xff], &[0, 0, 0, 0], b"\x03\x00a.>", b"$JS.API.", b"\x01\x01\x00"];

pub fn run(data: &[u8]) {
    let mut operations = Operations::new(data);
    let mut again = BytesMut::new();
    let mut read = Vec::new();
    while let Ok(Some(operation)) = operations.read() {
        // What was said with the length of one field can be said again.
        assert!(operation.encode(&mut again));
        read.push(operation);
    }
    assert!(again.len() <= data.len());
    let mut second = Operations::new(&again);
    for operation in read {
        assert_eq!(second.read(), Ok(Some(operation)));
    }
    assert_eq!(second.read(), Ok(None));
}

pub fn seeds() -> Vec<Vec<u8>> {
    let operations = [
        Operation::Begin { version: 1, epoch: 3 },
        Operation::Wanted { filter: b"a.*", group: b"" },
        Operation::Wanted { filter: b"a.>", group: b"workers" },
        Operation::NotWanted { filter: b"a.*", group: b"" },
        Operation::Message {
            group: b"",
            routed_by: b"a.b",
            subject: b"a.b",
            reply: b"_INBOX.x",
            headers: b"NATS/1.0\r\nA: b\r\n\r\n",
            payload: b"payload",
        },
        Operation::Message {
            group: b"workers",
            routed_by: b"deliver",
            subject: b"a.c",
            reply: b"",
            headers: b"",
            payload: b"",
        },
    ];
    let mut all = BytesMut::new();
    let mut seeds = Vec::new();
    for operation in operations {
        let mut one = BytesMut::new();
        assert!(operation.encode(&mut one) && operation.encode(&mut all), "short");
        seeds.push(one.to_vec());
    }
    seeds.push(all.to_vec());
    seeds
}
