//! An entry that a peer says is the next one: refused without a trace, or there for good.

use beamlog_log::{EntryId, Index, Journal, LogEntry, MessageRef, Sequence, StreamId, Term, Timestamp};

use crate::store;

pub const WORDS: &[&[u8]] =
    &[&[12, 0, 0, 0, 2], &[12, 0, 0, 0, 6], &[0; 4], &[0xff; 8], &[1, 0, 0, 0], &[40, 0, 0, 0, 1, 1, 5, 0]];

const OWN: StreamId = StreamId(77);

/// The first byte: odd for valid checksums of the records; 2 while something is being gathered. The second: how
/// many records too many it says it has, and what is wrong with its name. Then its body.
pub fn run(data: &[u8]) {
    let [mode, name, body @ ..] = data else { return };
    let mut body = body[..body.len().min(16 << 10)].to_vec();
    let count = if mode & 1 == 1 { store::forge_records(&mut body) } else { store::count_records(&body) };
    let disk = store::disk();
    let mut log = store::open(&disk).expect("the store is well").log;
    if mode & 2 == 2 {
        push(&mut log, OWN, Sequence(1));
    }
    let last = log.last_id();
    let entry = LogEntry {
        id: EntryId {
            index: Index((last.index.0 + 1).wrapping_add(u64::from(name >> 6)).wrapping_sub(u64::from(name >> 5 & 1))),
            term: Term((last.term.0).wrapping_add(u64::from(name & 3)).wrapping_sub(u64::from(name >> 4 & 1))),
        },
        timestamp: Timestamp(u64::from(*name)),
        records: count + u32::from(name >> 2 & 3),
        body: body.into(),
    };
    let changes = disk.changes();
    if log.append_entry(&entry).is_err() {
        assert_eq!(disk.changes(), changes, "a refused entry left something behind");
        assert_eq!(log.last_id(), last);
    } else {
        log.sync().expect("the disk is well");
        assert_eq!(log.last_id(), entry.id);
        let given = log.entries(entry.id.index, entry.id.index.next(), 0).expect("it was just written");
        assert_eq!(given.as_slice(), std::slice::from_ref(&entry));
    }
    let last = log.last_id();
    if mode & 2 == 2 {
        log.write_at(EntryId { index: last.index.next(), term: last.term }).expect("the disk is well");
        log.sync().expect("the disk is well");
        assert!(matches!(log.read(OWN, Sequence(1)), beamlog_log::Read::Found(_)));
        log.truncate_after(last.index).expect("what was gathered may go again");
    }
    drop(log);
    let opened = store::open(&disk).expect("the store is well");
    assert_eq!(opened.log.last_id(), last, "another log came back");
    store::use_everything(opened, true);
}

fn push(log: &mut beamlog_log::Log, stream: StreamId, sequence: Sequence) {
    log.push_message(&MessageRef {
        stream,
        sequence,
        timestamp: Timestamp(1),
        subject: b"own",
        headers: b"",
        payload: b"own",
    });
}

pub fn seeds() -> Vec<Vec<u8>> {
    let disk = store::disk();
    let mut log = store::open(&disk).expect("the store is well").log;
    let mut bodies = vec![Vec::new()];
    for stream in [StreamId(1), StreamId(9), OWN] {
        push(&mut log, stream, Sequence(61));
        push(&mut log, stream, Sequence(62));
        log.push_control(b"control");
        log.push_replication(b"membership");
        let (_, body) = log.pending_body().expect("something was pushed");
        bodies.push(body.to_vec());
        log.discard_pending();
    }
    let mut seeds = Vec::new();
    for body in bodies {
        for mode in 0..4 {
            seeds.push([&[mode, 0], body.as_slice()].concat());
        }
    }
    seeds
}
