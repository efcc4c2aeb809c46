//! Entries as replication sees them.

use beamlog_log::{
    EntryFault, EntryId, Index, Journal, LogEntry, LogOptions, Read, ReplayedRecord, Sequence, StreamId,
    Term, Timestamp, VoteError, VoteFile, WriteError,
};
use std::sync::Arc;

use crate::world::{SHARD, directory, new_disk, open, payload, push};

const STREAM: StreamId = StreamId(1);

fn id(index: u64, term: u64) -> EntryId {
    EntryId { index: Index(index), term: Term(term) }
}

#[test]
fn what_one_log_wrote_another_appends() {
    let (leader_disk, follower_disk) = (new_disk(), new_disk());
    let mut leader = open(&leader_disk, LogOptions::for_simulation()).unwrap().log;
    let mut follower = open(&follower_disk, LogOptions::for_simulation()).unwrap().log;
    assert_eq!(leader.last_id(), EntryId::default());
    for index in 1..=20 {
        leader.set_time(Timestamp(index * 10));
        push(&mut leader, STREAM, Sequence(index));
        leader.push_control(b"control");
        leader.push_replication(b"membership");
        let (records, body) = leader.pending_body().unwrap();
        let timestamp = leader.pending_time();
        // The time of what was proposed is settled.
        leader.set_time(Timestamp(index * 10 + 5));
        let entry = LogEntry { id: id(index, 1 + index / 8), timestamp, records, body };
        leader.write_at(entry.id).unwrap();
        leader.sync().unwrap();
        follower.append_entry(&entry).unwrap();
        follower.sync().unwrap();
        assert_eq!(follower.last_id(), entry.id);
    }
    for log in [&mut leader, &mut follower] {
        let entries = log.entries(Index(1), Index(100), usize::MAX).unwrap();
        assert_eq!(entries.len(), 20);
        assert_eq!(entries[19].id, id(20, 3));
        assert_eq!(entries[19].timestamp, Timestamp(200));
        assert_eq!(log.id_at(Index(8)).unwrap(), Some(id(8, 2)));
        assert_eq!(log.id_at(Index(0)).unwrap(), Some(EntryId::default()));
        assert_eq!(log.id_at(Index(21)).unwrap(), None);
        assert_eq!(log.entries(Index(3), Index(5), 0).unwrap().len(), 1);
    }
    assert_eq!(
        leader.entries(Index(1), Index(100), usize::MAX).unwrap(),
        follower.entries(Index(1), Index(100), usize::MAX).unwrap()
    );
    for sequence in (1..=20).map(Sequence) {
        let Read::Found(message) = follower.read(STREAM, sequence) else { panic!("{sequence}") };
        assert_eq!(message.payload, payload(STREAM, sequence));
    }
    drop(follower);
    let mut follower = open(&follower_disk, LogOptions::for_simulation()).unwrap().log;
    assert_eq!(follower.last_id(), id(20, 3));
    let memberships = follower.replay(Index(0)).filter(|replayed| {
        let Ok(replayed) = replayed else { panic!("damage") };
        replayed.record == ReplayedRecord::Replication("membership".into())
    });
    assert_eq!(memberships.count(), 20);
}

#[test]
fn somebody_elses_entry_is_checked_before_a_byte_is_written() {
    let (leader_disk, disk) = (new_disk(), new_disk());
    let mut leader = open(&leader_disk, LogOptions::for_simulation()).unwrap().log;
    push(&mut leader, STREAM, Sequence(1));
    push(&mut leader, STREAM, Sequence(2));
    let (records, body) = leader.pending_body().unwrap();
    let good = LogEntry { id: id(1, 1), timestamp: Timestamp(1), records, body };
    let mut log = open(&disk, LogOptions::for_simulation()).unwrap().log;
    let changes = disk.changes();
    let refused = |log: &mut beamlog_log::Log, entry: &LogEntry| match log.append_entry(entry) {
        Err(WriteError::Entry(fault)) => fault,
        other => panic!("{other:?}"),
    };
    for bit in 0..good.body.len() * 8 {
        let mut body = good.body.to_vec();
        body[bit / 8] ^= 1 << (bit % 8);
        refused(&mut log, &LogEntry { body: body.into(), ..good.clone() });
    }
    for cut in 0..good.body.len() {
        refused(&mut log, &LogEntry { body: good.body.slice(..cut), ..good.clone() });
    }
    assert_eq!(
        refused(&mut log, &LogEntry { id: id(2, 1), ..good.clone() }),
        EntryFault::NotNext { expected: Index(1), got: Index(2) }
    );
    assert_eq!(disk.changes(), changes);
    log.append_entry(&good).unwrap();
    log.sync().unwrap();
    assert_eq!(
        refused(&mut log, &LogEntry { id: id(2, 0), ..good.clone() }),
        EntryFault::TermGoesBack { last: Term(1), got: Term(0) }
    );
    assert_eq!(
        refused(&mut log, &LogEntry { id: id(2, 1), ..good }),
        EntryFault::Sequence { stream: STREAM, sequence: Sequence(1) }
    );
}

#[test]
fn what_is_gathered_stays_pending_behind_somebody_elses_entry() {
    let disk = new_disk();
    let mut log = open(&disk, LogOptions::for_simulation()).unwrap().log;
    for sequence in (1..=5).map(Sequence) {
        push(&mut log, STREAM, sequence);
    }
    let mut other = open(&new_disk(), LogOptions::for_simulation()).unwrap().log;
    push(&mut other, StreamId(2), Sequence(1));
    other.push_replication(b"first of a leader");
    let (records, body) = other.pending_body().unwrap();
    log.append_entry(&LogEntry { id: id(1, 4), timestamp: Timestamp(9), records, body }).unwrap();
    assert!(matches!(log.read(STREAM, Sequence(5)), Read::Found(_)));
    let (records, body) = log.pending_body().unwrap();
    let fault = log.append_entry(&LogEntry { id: id(2, 4), timestamp: Timestamp(9), records, body });
    assert!(matches!(fault, Err(WriteError::Entry(EntryFault::Sequence { .. }))), "{fault:?}");
    log.write_at(id(2, 4)).unwrap();
    log.sync().unwrap();
    for _ in 0..2 {
        for sequence in (1..=5).map(Sequence) {
            let Read::Found(message) = log.read(STREAM, sequence) else { panic!("{sequence}") };
            assert_eq!(message.payload, payload(STREAM, sequence));
        }
        assert!(matches!(log.read(StreamId(2), Sequence(1)), Read::Found(_)));
        log = open(&disk, LogOptions::for_simulation()).unwrap().log;
    }
}

#[test]
fn a_vote_is_there_after_a_restart_and_its_loss_is_noticed() {
    let disk = new_disk();
    let open = |must_exist| VoteFile::open(Arc::new(disk.clone()), directory(), SHARD, must_exist);
    assert!(matches!(open(true), Err(VoteError::Amnesia { .. })));
    let (mut file, vote) = open(false).unwrap();
    assert_eq!(vote, None);
    file.save(b"term 1").unwrap();
    file.save(b"term 2").unwrap();
    let path = directory().join("vote");
    for bit in 0..8 * 8192 {
        disk.flip_bit(&path, bit).unwrap();
        let (_, vote) = open(true).unwrap();
        assert_eq!(vote.as_deref(), Some(&b"term 2"[..]), "bit {bit}");
    }
    disk.flip_bit(&path, 700).unwrap();
    disk.flip_bit(&path, 8 * 4096 + 700).unwrap();
    assert!(matches!(open(true), Err(VoteError::Amnesia { .. })));
    assert!(matches!(open(false), Err(VoteError::Amnesia { .. })));
}
