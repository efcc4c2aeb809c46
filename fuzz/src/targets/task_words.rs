//! What nodes of a cluster say to each other about tasks. Peers are not trusted with sizes; a client that may
//! publish there can say anything.

use beamlog_tasks::service::nodes::words::{self, MEMBERS_MAX, Word};

pub const WORDS: &[&[u8]] = &[
    b"{\"word\":\"leads\"",
    b"\"members\":[[1,2,true]]",
    b"\"term\":18446744073709551615",
    b"}\n",
    b"\xff\xff\xff\xff",
    b"\x01\0\0\0",
];

pub fn run(input: &[u8]) {
    let Ok(said) = words::decode(input) else { return };
    assert!(said.headers.len() + said.payload.len() < input.len());
    if let Word::Members { members, .. } = &said.word {
        assert!(members.len() <= MEMBERS_MAX);
    }
    let again = words::encode(&said.word, said.headers, said.payload);
    // A line that our own encoding makes too long was near the limit.
    if let Ok(read) = words::decode(&again) {
        assert_eq!(read, said);
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let node = || "6a2f".to_owned();
    let subject = || "caf.exec.assign.v1".to_owned();
    let leads = Word::Leads { term: 2, node: node(), subjects: vec![subject()], pressure: 0, queued: 3 };
    let members =
        Word::Members { term: 2, node: node(), subject: subject(), members: vec![(5, 1, false), (6, 1, true)] };
    let said = Word::Said { term: 2, node: node(), connection: 5, subject: "caf.exec.result.v1".into() };
    let job = Word::Job { term: 2, task: 9, entry: 5, subject: subject() };
    let not_taken = Word::NotTaken { term: 2, node: node(), task: 9, entry: 5 };
    vec![
        words::encode(&leads, b"", b""),
        words::encode(&members, b"", b""),
        words::encode(&said, b"", b"{\"status\":\"success\"}"),
        words::encode(&job, b"NATS/1.0\r\nversion: 1\r\n\r\n", b"{}"),
        words::encode(&not_taken, b"", b""),
        Vec::new(),
    ]
}
