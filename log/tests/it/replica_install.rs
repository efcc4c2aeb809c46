//! A copy of a log takes the place of another one: fetched in pieces, interrupted anywhere, never half of it.

use std::{path::Path, sync::Arc};

use beamlog_log::{
    Disk, Index, InstallError, Installation, LogFiles, LogOptions, OpenMode, SeededRandom, Shipment, SimDisk,
    SuspectTail, inspect,
    sim_disk::{Crash, Failure, Fault, Operation, Repeat},
};

use crate::{
    replica_lives::{Model, Replica},
    world::{SHARD, directory, new_disk, open},
};

/// A node with sealed, compacted and removed segments.
fn rich(seed: u64) -> Replica {
    let mut replica = Replica::new(&new_disk(), &LogOptions::for_simulation()).unwrap();
    let mut random = SeededRandom::new(seed);
    replica.live(&mut random, 450).unwrap();
    replica.roll().unwrap();
    for _ in 0..3 {
        replica.append(&mut random).unwrap();
    }
    replica
}

/// A node that lived otherwise.
fn poor(disk: &SimDisk, seed: u64) -> Replica {
    let mut replica = Replica::new(disk, &LogOptions::for_simulation()).unwrap();
    replica.live(&mut SeededRandom::new(seed), 80).unwrap();
    replica
}

fn handle(disk: &SimDisk) -> Arc<dyn Disk> {
    Arc::new(disk.clone())
}

fn begin(disk: &SimDisk, list: &LogFiles) -> Result<Installation, InstallError> {
    Installation::begin(&handle(disk), directory(), SHARD, list.clone())
}

/// Fetches what is missing; says how many bytes that were.
fn fetch(installation: &mut Installation, shipment: &Shipment, piece: usize) -> Result<u64, InstallError> {
    let mut fetched = 0;
    while let Some(wanted) = installation.wanted() {
        let len = piece.min(usize::try_from(wanted.bytes).unwrap());
        let bytes = shipment.read(&wanted.name, wanted.offset, len).unwrap();
        installation.write_chunk(&wanted.name, wanted.offset, &bytes)?;
        fetched += bytes.len() as u64;
    }
    Ok(fetched)
}

/// What is opened there now holds this model.
fn check(disk: &SimDisk, model: &Model, decided: Index) -> Replica {
    let options = LogOptions::for_simulation();
    let opened = open(disk, options.clone()).unwrap();
    assert!(opened.report.damaged.is_empty() && opened.report.missing.is_empty(), "{:?}", opened.report);
    let mut replica = Replica {
        disk: disk.clone(),
        options,
        log: opened.log,
        scratch: open(&new_disk(), LogOptions::for_simulation()).unwrap().log,
        model: model.clone(),
        wanted: model.clone(),
        decided,
        term: model.last().term.0 + 1,
        time: 1_000_000,
    };
    replica.tell_floors();
    replica.check();
    replica
}

#[test]
fn a_copy_takes_the_place_of_another_log_and_goes_on() {
    for seed in 0..6 {
        let mut source = rich(seed);
        let shipment = source.log.ship(Index(u64::MAX)).unwrap();
        assert_eq!(shipment.files().last, source.model.last());
        let list = LogFiles::decode(&shipment.files().encode().unwrap()).unwrap();
        assert_eq!(&list, shipment.files());
        let disk = new_disk();
        let target = poor(&disk, seed + 100);
        let mut installation = begin(&disk, &list).unwrap();
        // The source goes on meanwhile, and nothing of what is shipped goes.
        let mut random = SeededRandom::new(seed);
        let model = source.model.clone();
        let decided = model.last().index;
        source.decided = decided;
        for _ in 0..4 {
            source.release(&mut random);
            for _ in 0..40 {
                source.append(&mut random).unwrap();
                source.log.maintain().unwrap();
            }
            source.roll().unwrap();
        }
        let piece = 1000 + random.index(30_000);
        assert_eq!(fetch(&mut installation, &shipment, piece).unwrap(), list.total_bytes());
        installation.verify().unwrap();
        installation.exchange(target.log).unwrap();
        let mut target = check(&disk, &model, decided);
        target.live(&mut random, 200).unwrap();
        target.check();
        target.reopen();
        target.check();
        let report = inspect::check(&disk, directory()).unwrap();
        assert!(report.is_sound() && report.unfinished.is_empty(), "{report:#?}");
        source.check();
    }
}

#[test]
fn what_is_there_already_is_not_fetched_again() {
    let mut source = rich(2);
    let disk = new_disk();
    let target = poor(&disk, 3);
    let shipment = source.log.ship(Index(u64::MAX)).unwrap();
    let list = shipment.files();
    let mut installation = begin(&disk, list).unwrap();
    // Half of it, and a restart.
    let mut fetched = 0;
    while fetched < list.total_bytes() / 2 {
        let wanted = installation.wanted().unwrap();
        let bytes = shipment.read(&wanted.name, wanted.offset, 5000).unwrap();
        installation.write_chunk(&wanted.name, wanted.offset, &bytes).unwrap();
        fetched += bytes.len() as u64;
    }
    drop(installation);
    let mut installation = begin(&disk, list).unwrap();
    assert_eq!(installation.missing_bytes(), list.total_bytes() - fetched);
    fetch(&mut installation, &shipment, 5000).unwrap();
    installation.exchange(target.log).unwrap();
    let target = check(&disk, &source.model, source.model.last().index);
    // The same again: only the segment that is open there comes over the wire.
    source.append(&mut SeededRandom::new(1)).unwrap();
    let shipment = source.log.ship(Index(u64::MAX)).unwrap();
    let mut installation = begin(&disk, shipment.files()).unwrap();
    let open_file = shipment.files().files.last().unwrap();
    assert_eq!(installation.missing_bytes(), open_file.bytes);
    fetch(&mut installation, &shipment, 5000).unwrap();
    installation.exchange(target.log).unwrap();
    check(&disk, &source.model, source.model.last().index);
}

#[test]
fn a_changed_bit_is_noticed_and_the_file_wanted_again() {
    let mut source = rich(4);
    let shipment = source.log.ship(Index(u64::MAX)).unwrap();
    let disk = new_disk();
    let target = poor(&disk, 5);
    let mut installation = begin(&disk, shipment.files()).unwrap();
    let mut random = SeededRandom::new(4);
    for file in &shipment.files().files {
        let mut bytes = shipment.read(&file.name, 0, usize::MAX).unwrap().to_vec();
        let bit = 4096 * 8 + random.index((bytes.len() - 4096) * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        let wanted = installation.wanted().unwrap();
        assert_eq!((&wanted.name, wanted.offset), (&file.name, 0));
        let refused = installation.write_chunk(&file.name, 0, &bytes);
        assert!(matches!(refused, Err(InstallError::Foreign { .. })), "{refused:?}");
        assert_eq!(installation.wanted(), Some(wanted));
        bytes[bit / 8] ^= 1 << (bit % 8);
        installation.write_chunk(&file.name, 0, &bytes).unwrap();
    }
    assert!(matches!(
        installation.write_chunk("00000000000000000001-000000.seg.tmp", 0, b"x"),
        Err(InstallError::Unknown { .. })
    ));
    installation.exchange(target.log).unwrap();
    check(&disk, &source.model, source.model.last().index);
}

#[test]
fn a_copy_that_is_no_log_leaves_the_present_one_alone() {
    let mut source = rich(6);
    let shipment = source.log.ship(Index(u64::MAX)).unwrap();
    let disk = new_disk();
    let mut target = poor(&disk, 7);
    // A segment in the middle is not announced.
    let mut list = shipment.files().clone();
    assert!(list.files.len() > 3);
    list.files.remove(1);
    let mut installation = begin(&disk, &list).unwrap();
    fetch(&mut installation, &shipment, 50_000).unwrap();
    assert!(matches!(installation.verify(), Err(InstallError::Unsound(_))));
    target.check();
    assert_eq!(installation.missing_bytes(), list.total_bytes());
    installation.abandon().unwrap();
    target.reopen();
    target.check();
    // Another shard's.
    list.shard = beamlog_log::ShardId(99);
    assert!(matches!(begin(&disk, &list), Err(InstallError::ForeignShard { .. })));
}

/// Fetching and exchanging; `None` when the disk failed on the way. Says whether the exchange was certain.
fn install(disk: &SimDisk, target: Replica, shipment: &Shipment) -> Result<(), InstallError> {
    let mut installation = begin(disk, shipment.files())?;
    fetch(&mut installation, shipment, 40_000)?;
    installation.exchange(target.log)
}

/// What is there is the old log or the new one, whole; and the copy can still be made.
fn settle(disk: &SimDisk, old: &Model, old_decided: Index, source: &Replica, shipment: &Shipment) -> bool {
    let options = LogOptions { suspect_tail: SuspectTail::Report, ..LogOptions::for_simulation() };
    let last = open(disk, options).unwrap().log.last_id();
    let new = last == source.model.last();
    assert!(new || last == old.last(), "{last:?}");
    let target = if new {
        check(disk, &source.model, source.model.last().index)
    } else {
        check(disk, old, old_decided)
    };
    install(disk, target, shipment).unwrap();
    check(disk, &source.model, source.model.last().index);
    new
}

#[test]
fn a_cut_before_every_change_of_an_exchange_leaves_one_log_or_the_other() {
    let mut source = rich(8);
    let shipment = source.log.ship(Index(u64::MAX)).unwrap();
    let base = new_disk();
    let target = poor(&base, 9);
    let (old, old_decided) = (target.model.clone(), target.decided);
    drop(target);
    let (mut states, mut exchanged) = (0, 0);
    for cut in 1.. {
        let disk = base.fork();
        let target = check(&disk, &old, old_decided);
        disk.power_off_at(cut);
        if install(&disk, target, &shipment).is_ok() {
            break;
        }
        for crash in Crash::sample(cut).into_iter().skip(usize::try_from(cut % 5).unwrap()).step_by(5) {
            let after = disk.fork();
            after.crash(crash);
            // Another cut while the exchange is finished by the start.
            let again = after.fork();
            again.power_off_at(1 + cut % 9);
            drop(open(&again, LogOptions::for_simulation()));
            again.crash(Crash::Scatter { seed: cut });
            for disk in [after, again] {
                states += 1;
                exchanged += u64::from(settle(&disk, &old, old_decided, &source, &shipment));
            }
        }
    }
    assert!(states > 300 && exchanged > 30, "{states} {exchanged}");
}

#[test]
fn every_operation_of_an_exchange_fails_and_one_log_or_the_other_is_there() {
    let mut source = rich(10);
    let shipment = source.log.ship(Index(u64::MAX)).unwrap();
    let base = new_disk();
    let target = poor(&base, 11);
    let (old, old_decided) = (target.model.clone(), target.decided);
    drop(target);
    let mut runs = 0;
    for operation in Operation::ALL {
        for nth in 1.. {
            let disk = base.fork();
            let target = check(&disk, &old, old_decided);
            let before = disk.count(operation);
            disk.fail(Fault { operation: Some(operation), nth, failure: Failure::Io, repeat: Repeat::Once });
            drop(install(&disk, target, &shipment));
            if disk.count(operation) - before < nth {
                break;
            }
            runs += 1;
            disk.heal();
            settle(&disk.fork(), &old, old_decided, &source, &shipment);
            disk.crash(Crash::LoseUnsynced);
            settle(&disk, &old, old_decided, &source, &shipment);
        }
    }
    assert!(runs > 100, "{runs}");
}

#[test]
fn files_that_are_read_by_others_stay_until_they_were_read() {
    let mut source = rich(12);
    let shipment = source.log.ship(Index(u64::MAX)).unwrap();
    let lasts = source.model.lasts();
    for (stream, last) in lasts {
        source.model.floors.insert(stream, last);
        source.wanted.floors.insert(stream, last);
    }
    source.tell_floors();
    source.decided = source.model.last().index;
    source.roll().unwrap();
    for _ in 0..40 {
        source.log.maintain().unwrap();
    }
    let is_there = |name: &str| source.disk.exists(&directory().join(name)).unwrap();
    assert!(shipment.files().files.iter().all(|file| is_there(&file.name)));
    let names: Vec<String> = shipment.files().files.iter().map(|file| file.name.clone()).collect();
    drop(shipment);
    for _ in 0..40 {
        source.log.maintain().unwrap();
    }
    let is_there = |name: &str| source.disk.exists(&directory().join(name)).unwrap();
    assert!(names.iter().all(|name| !is_there(name)));
    source.check();
    let path: &Path = &directory().join(&names[0]);
    assert!(source.disk.open(path, OpenMode::Read).is_err());
}

/// On the system's disk, with frames large enough to go past its page cache.
#[test]
fn entries_are_cut_and_a_copy_is_made_on_the_systems_disk() {
    use beamlog_log::{
        EntryId, Journal, Log, LogEntry, MessageRef, Sequence, StdDisk, StreamId, Term, Timestamp,
    };

    let disk: Arc<dyn Disk> = Arc::new(StdDisk);
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let options = LogOptions {
        segment_bytes: 8 << 20,
        frame_bytes_max: 2 << 20,
        ballast_bytes: 0,
        ..LogOptions::default()
    };
    let open = |path: &Path| Log::open(Arc::clone(&disk), path, SHARD, options.clone()).unwrap().log;
    let mut log = open(one.path());
    let mut entries: Vec<LogEntry> = Vec::new();
    for index in 1..=14 {
        // As in a segment of messages of all sizes.
        for (number, len) in [10, 900, 700_000].into_iter().enumerate() {
            log.push_message(&MessageRef {
                stream: StreamId(1),
                sequence: Sequence(index * 3 - 2 + number as u64),
                timestamp: Timestamp(index),
                subject: b"large",
                headers: b"",
                payload: &vec![u8::try_from(index).unwrap(); len],
            });
        }
        let (records, body) = log.pending_body().unwrap();
        let id = EntryId { index: Index(index), term: Term(1) };
        entries.push(LogEntry { id, timestamp: log.pending_time(), records, body });
        log.write_at(id).unwrap();
        log.sync().unwrap();
        if index == 6 {
            log.roll(&mut [b"state".to_vec()].into_iter()).unwrap();
        }
    }
    log.truncate_after(Index(11)).unwrap();
    entries.truncate(11);
    let check = |log: &mut Log, entries: &[LogEntry]| {
        assert_eq!(log.last_id(), entries.last().unwrap().id);
        assert_eq!(log.entries(Index(1), Index(99), usize::MAX).unwrap(), entries);
        let last = Sequence(entries.len() as u64 * 3);
        assert!(matches!(log.read(StreamId(1), last), beamlog_log::Read::Found(_)));
        assert_eq!(log.read(StreamId(1), last.next()), beamlog_log::Read::Absent);
    };
    check(&mut log, &entries);
    drop(log);
    let mut log = open(one.path());
    check(&mut log, &entries);
    let shipment = log.ship(Index(u64::MAX)).unwrap();
    let present = open(other.path());
    let mut installation = Installation::begin(&disk, other.path(), SHARD, shipment.files().clone()).unwrap();
    fetch(&mut installation, &shipment, 1 << 20).unwrap();
    installation.exchange(present).unwrap();
    check(&mut open(other.path()), &entries);
    // And again, with what is there.
    let present = open(other.path());
    let mut installation = Installation::begin(&disk, other.path(), SHARD, shipment.files().clone()).unwrap();
    assert!(installation.missing_bytes() < shipment.files().total_bytes());
    fetch(&mut installation, &shipment, 1 << 20).unwrap();
    installation.exchange(present).unwrap();
    check(&mut open(other.path()), &entries);
}

/// What is not decided when files are given is not in them: a peer that gets them may be the one whose vote is missing.
#[test]
fn a_copy_ends_with_what_is_decided() {
    for seed in 0..6 {
        let mut source = rich(seed);
        let decided = source.model.last();
        let model = source.model.clone();
        source.decided = decided.index;
        let mut random = SeededRandom::new(seed);
        for undecided in 1..4 {
            source.append(&mut random).unwrap();
            assert_eq!(source.log.last_id().index.0, decided.index.0 + undecided);
            let shipment = source.log.ship(decided.index).unwrap();
            assert_eq!(shipment.files().last, decided);
            let disk = new_disk();
            let target = poor(&disk, seed + 100);
            let mut installation = begin(&disk, shipment.files()).unwrap();
            fetch(&mut installation, &shipment, 4096).unwrap();
            installation.verify().unwrap();
            installation.exchange(target.log).unwrap();
            check(&disk, &model, decided.index);
        }
    }
}

/// That a segment is retired is noted behind what is not decided, and its file goes: the note is in the copy too.
#[test]
fn a_copy_knows_of_segments_that_went_behind_what_is_decided() {
    for seed in 0..6 {
        let mut source = rich(seed);
        for (stream, last) in source.model.lasts() {
            source.model.floors.insert(stream, last);
            source.wanted.floors.insert(stream, last);
        }
        source.tell_floors();
        source.decided = source.model.last().index;
        source.roll().unwrap();
        let (model, decided) = (source.model.clone(), source.model.last());
        let mut random = SeededRandom::new(seed);
        for _ in 0..2 {
            source.append(&mut random).unwrap();
        }
        let mut removed = 0;
        for _ in 0..40 {
            removed += source.log.maintain().unwrap().removed.len();
        }
        assert!(removed > 0, "no segment went");
        source.append(&mut random).unwrap();
        let shipment = source.log.ship(decided.index).unwrap();
        assert_eq!(shipment.files().last, decided);
        for piece in [usize::MAX, 300, 4096] {
            let disk = new_disk();
            let target = poor(&disk, seed + 100);
            let mut installation = begin(&disk, shipment.files()).unwrap();
            fetch(&mut installation, &shipment, piece).unwrap();
            installation.verify().unwrap();
            installation.exchange(target.log).unwrap();
            check(&disk, &model, decided.index).reopen();
        }
    }
}
