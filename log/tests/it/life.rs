//! The plain life of a log: push, write, sync, read, roll, close, open again.

use std::{path::Path, sync::Arc};

use beamlog_log::{
    Disk, Index, Journal, Log, LogOptions, MessageRef, Opened, Read, ReplayedRecord, Sequence, ShardId,
    SimDisk, StdDisk, StreamId, Tail, Timestamp,
};

const SHARD: ShardId = ShardId(3);
const ORDERS: StreamId = StreamId(1);
const BILLS: StreamId = StreamId(2);

fn open(disk: &Arc<dyn Disk>, directory: &Path, background: bool) -> Opened {
    let options = LogOptions { background, ..LogOptions::for_simulation() };
    Log::open(Arc::clone(disk), directory, SHARD, options).unwrap()
}

fn push(log: &mut Log, stream: StreamId, sequence: u64, subject: &str, payload: &[u8]) {
    log.push_message(&MessageRef {
        stream,
        sequence: Sequence(sequence),
        timestamp: Timestamp(sequence * 1000),
        subject: subject.as_bytes(),
        headers: b"",
        payload,
    });
}

fn commit(log: &mut Log) -> Index {
    log.write().unwrap();
    log.sync().unwrap()
}

fn payload_of(read: Read<beamlog_log::Message>) -> Vec<u8> {
    match read {
        Read::Found(message) => message.payload.to_vec(),
        Read::Absent => panic!("absent"),
        Read::Unreadable(damage) => panic!("{damage}"),
    }
}

fn a_life(disk: &Arc<dyn Disk>, directory: &Path, background: bool) {
    let opened = open(disk, directory, background);
    assert_eq!(opened.report.tail, Tail::New);
    let mut log = opened.log;
    log.set_time(Timestamp(5));
    push(&mut log, ORDERS, 1, "orders.eu", b"one");
    push(&mut log, BILLS, 1, "bills.eu", b"bill");
    log.push_control(b"control");
    assert_eq!(log.pending_records(), 3);
    assert_eq!(payload_of(log.read(ORDERS, Sequence(1))), b"one");
    assert_eq!(commit(&mut log), Index(1));
    assert_eq!(payload_of(log.read(ORDERS, Sequence(1))), b"one");
    assert_eq!(log.read(ORDERS, Sequence(2)), Read::Absent);
    for sequence in 2..=3000 {
        push(
            &mut log,
            ORDERS,
            sequence,
            &format!("orders.{}", sequence % 7),
            format!("payload {sequence}").as_bytes(),
        );
        if sequence % 10 == 0 {
            commit(&mut log);
            if log.needs_roll() {
                log.roll(&mut [format!("state at {sequence}").into_bytes()].into_iter()).unwrap();
            }
        }
    }
    commit(&mut log);
    assert!(log.stats().segments >= 3, "{:?}", log.stats());
    check(&mut log);
    log.close().unwrap();

    let mut opened = open(disk, directory, background);
    assert_eq!(opened.report.tail, Tail::Clean);
    assert!(!opened.report.rewritten);
    assert_eq!(opened.report.indexes_rebuilt, 0, "a log that was closed has its side files");
    check(&mut opened.log);
    let snapshot = opened.snapshot.unwrap();
    assert!(snapshot.records[0].starts_with(b"state at "));
    let replayed: Vec<u64> = opened
        .log
        .replay(snapshot.index)
        .map(|replayed| match replayed.unwrap().record {
            ReplayedRecord::Message(message) => message.sequence.0,
            ReplayedRecord::Control(_) | ReplayedRecord::Replication(_) => 0,
        })
        .collect();
    assert_eq!(*replayed.last().unwrap(), 3000);
    assert!(replayed.windows(2).all(|pair| pair[0] + 1 == pair[1]));
    let (index, checksum) = (opened.log.last_index(), opened.log.checksum_at_last());
    push(&mut opened.log, ORDERS, 3001, "orders.eu", b"after");
    commit(&mut opened.log);
    assert!(opened.log.contains(index, checksum));
    assert!(!opened.log.contains(index, checksum ^ 1));
    drop(opened.log);

    let mut opened = open(disk, directory, background);
    assert_eq!(opened.report.tail, Tail::Whole);
    assert!(opened.report.rewritten);
    assert!(opened.log.contains(index, checksum));
    assert_eq!(payload_of(opened.log.read(ORDERS, Sequence(3001))), b"after");
    check(&mut opened.log);
}

fn check(log: &mut Log) {
    assert_eq!(payload_of(log.read(BILLS, Sequence(1))), b"bill");
    for sequence in 2..=3000 {
        assert_eq!(
            payload_of(log.read(ORDERS, Sequence(sequence))),
            format!("payload {sequence}").as_bytes()
        );
    }
    assert_eq!(
        log.next(ORDERS, Sequence(10), &mut |subject| subject == b"orders.1"),
        Read::Found(Sequence(15))
    );
    assert_eq!(
        log.previous(ORDERS, Sequence(2500), &mut |subject| subject == b"orders.eu"),
        Read::Found(Sequence(1))
    );
    assert_eq!(log.previous(BILLS, Sequence(u64::MAX), &mut |_| true), Read::Found(Sequence(1)));
    let runs = log.runs(ORDERS);
    let mut sequence = 0;
    for run in &runs {
        let entries = log.run_entries(ORDERS, run.segment).unwrap();
        assert_eq!(entries.len() as u64, run.count);
        for entry in entries {
            sequence += 1;
            assert_eq!(entry.sequence, Sequence(sequence));
        }
        let subjects = log.run_subjects(ORDERS, run.segment).unwrap();
        assert_eq!(subjects.iter().map(|subject| subject.count).sum::<u64>(), run.count);
    }
    assert!(sequence >= 3000);
}

#[test]
fn in_memory() {
    let disk = SimDisk::new();
    disk.create_dir(Path::new("/log")).unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    let disk: Arc<dyn Disk> = Arc::new(disk);
    a_life(&disk, Path::new("/log"), false);
}

#[test]
fn on_a_real_disk() {
    let directory = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(StdDisk);
    a_life(&disk, directory.path(), false);
}

#[test]
fn with_side_files_written_in_the_background() {
    let directory = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(StdDisk);
    a_life(&disk, directory.path(), true);
}

#[test]
fn dead_segments_go_and_mostly_dead_ones_shrink() {
    let directory = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(StdDisk);
    let mut log = open(&disk, directory.path(), true).log;
    let mut sequence = 0;
    while log.stats().rolls < 6 {
        for _ in 0..10 {
            sequence += 1;
            push(&mut log, ORDERS, sequence, "orders", &[7; 100]);
        }
        commit(&mut log);
        if log.needs_roll() {
            log.roll(&mut [Vec::new()].into_iter()).unwrap();
        }
    }
    let runs = log.runs(ORDERS);
    // The first segment dies, and of the second every message but each tenth.
    log.release(ORDERS, Sequence(1)..=runs[0].last);
    for dead in runs[1].first.0..=runs[1].last.0 {
        if dead % 10 != 0 {
            log.release(ORDERS, Sequence(dead)..=Sequence(dead));
        }
    }
    push(&mut log, ORDERS, sequence + 1, "orders", b"x");
    commit(&mut log);
    while log.maintain().unwrap().more {}
    assert_eq!(log.stats().segments_removed, 0, "the state of the newest segment still speaks of them");
    log.roll(&mut [Vec::new()].into_iter()).unwrap();
    let mut compacted = Vec::new();
    for _ in 0..10 {
        let done = log.maintain().unwrap();
        compacted.extend(done.compacted);
        commit(&mut log);
    }
    assert_eq!(log.stats().segments_removed, 1);
    assert_eq!(compacted, [runs[1].segment]);
    let check = |log: &mut Log| {
        for dead in 1..=runs[0].last.0 {
            assert_eq!(log.read(ORDERS, Sequence(dead)), Read::Absent);
        }
        for living in (runs[1].first.0..=runs[1].last.0).filter(|number| number % 10 == 0) {
            assert_eq!(payload_of(log.read(ORDERS, Sequence(living))), [7; 100]);
        }
        assert_eq!(payload_of(log.read(ORDERS, Sequence(sequence))), [7; 100]);
        let run = log.runs(ORDERS)[0];
        assert!(run.count < 60, "{run:?}");
    };
    check(&mut log);
    log.close().unwrap();
    let mut opened = open(&disk, directory.path(), true);
    assert!(opened.report.damaged.is_empty() && opened.report.unexpected.is_empty(), "{:?}", opened.report);
    check(&mut opened.log);
}
