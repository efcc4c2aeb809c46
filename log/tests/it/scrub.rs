//! Scrubbing: damage in a sealed segment is found before anybody reads it, and nothing is removed (DR15).

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use beamlog_log::{
    DamageReason, Journal, Log, LogOptions, Read, Scrubbed, SeededRandom, SegmentId, Sequence, SimDisk,
    StreamId,
};

use crate::world::{World, directory, new_disk, open, push};

const STREAM: StreamId = StreamId(1);
const PER_SEGMENT: u64 = 6;

fn options() -> LogOptions {
    LogOptions { ballast_bytes: 0, ..LogOptions::for_simulation() }
}

/// Two sealed segments of a few frames, and an open one.
fn store() -> (SimDisk, Log) {
    let disk = new_disk();
    let mut log = open(&disk, options()).unwrap().log;
    for sequence in 1..=3 * PER_SEGMENT {
        push(&mut log, STREAM, Sequence(sequence));
        if sequence % 2 == 0 {
            log.write().unwrap();
            log.sync().unwrap();
        }
        if sequence % PER_SEGMENT == 0 && sequence < 3 * PER_SEGMENT {
            log.roll(&mut [b"state".to_vec()].into_iter()).unwrap();
        }
    }
    (disk, log)
}

fn first_segment() -> PathBuf {
    directory().join("00000000000000000001-000000.seg")
}

/// Steps up to the first damage or the end of the pass.
fn pass(log: &mut Log, budget: usize) -> Scrubbed {
    let mut sum = Scrubbed::default();
    for _ in 0..100_000 {
        let step = log.scrub_step(budget);
        assert!(step.bytes <= budget as u64, "{} bytes in a step of {budget}", step.bytes);
        sum.bytes += step.bytes;
        sum.damage = step.damage;
        sum.finished = step.finished;
        if sum.finished || sum.damage.is_some() {
            return sum;
        }
    }
    panic!("a pass ends");
}

fn segments(disk: &SimDisk) -> BTreeMap<PathBuf, Vec<u8>> {
    let is_segment = |path: &Path| path.extension().is_some_and(|extension| extension == "seg");
    disk.files().into_iter().filter(|(path, _)| is_segment(path)).collect()
}

fn quarantined(disk: &SimDisk) -> usize {
    disk.files().keys().filter(|path| path.starts_with(directory().join("quarantine"))).count()
}

fn bits_of(disk: &SimDisk, path: &Path) -> impl Iterator<Item = u64> + use<> {
    let bits = disk.files()[path].len() as u64 * 8;
    (0..64 * 8).chain(4096 * 8..bits).step_by(13)
}

#[test]
fn every_flipped_bit_is_found_within_a_pass_and_nothing_is_removed() {
    let (disk, log) = store();
    let bits: Vec<u64> = bits_of(&disk, &first_segment()).collect();
    drop(log);
    for bit in bits {
        let disk = disk.fork();
        let mut log = open(&disk, options()).unwrap().log;
        disk.flip_bit(&first_segment(), bit).unwrap();
        let before = segments(&disk);
        let found = pass(&mut log, 700);
        let damage = found.damage.unwrap_or_else(|| panic!("bit {bit} is not found"));
        assert_eq!(damage.segment, SegmentId(1));
        assert!(damage.offset <= bit / 8, "bit {bit}: {damage}");
        assert!(segments(&disk) == before, "bit {bit}: a segment changed");
        assert_eq!(quarantined(&disk), 1, "bit {bit}");
        let stats = log.stats();
        assert_eq!((stats.scrub_damage, stats.damaged_segments, stats.unreadable), (1, 1, 1));
        // It is told once, and the rest is read on.
        assert_eq!(pass(&mut log, 700).damage, None);
        assert_eq!(pass(&mut log, 700).damage, None);
        assert_eq!(log.stats().scrub_damage, 1);
        for sequence in (1..=3 * PER_SEGMENT).map(Sequence) {
            match log.read(STREAM, sequence) {
                Read::Found(_) => {}
                Read::Unreadable(_) => assert!(sequence.0 <= PER_SEGMENT),
                Read::Absent => panic!("bit {bit}: {sequence} is called absent"),
            }
        }
        assert_eq!(log.read(STREAM, Sequence(3 * PER_SEGMENT + 1)), Read::Absent);
    }
}

#[test]
fn what_the_page_cache_hides_is_found() {
    let (disk, mut log) = store();
    disk.alter_medium(&first_segment(), |bytes| bytes[4200] ^= 1).unwrap();
    assert!(matches!(log.read(STREAM, Sequence(1)), Read::Found(_)));
    let damage = pass(&mut log, 4096).damage.unwrap();
    assert_eq!((damage.segment, damage.offset), (SegmentId(1), 4096));
    assert_eq!(damage.reason, DamageReason::Checksum);
}

#[test]
fn a_segment_that_is_shorter_or_cannot_be_read_is_found() {
    let (disk, mut log) = store();
    disk.alter(&first_segment(), |bytes| bytes.truncate(4300)).unwrap();
    assert_eq!(pass(&mut log, 4096).damage.unwrap().reason, DamageReason::Length);
    let (disk, mut log) = store();
    disk.break_range(&first_segment(), 4096..8192).unwrap();
    assert_eq!(pass(&mut log, 4096).damage.unwrap().reason, DamageReason::Io);
}

#[test]
fn a_whole_log_is_read_once_in_each_pass() {
    let (disk, mut log) = store();
    let before = disk.files();
    for budget in [61, 4096, 5000, 1 << 20] {
        let read = pass(&mut log, budget);
        assert_eq!(read, Scrubbed { bytes: log.scrub_pass_bytes(), damage: None, finished: true });
    }
    let stats = log.stats();
    assert_eq!((stats.scrub_passes, stats.scrubbed_bytes), (4, 4 * log.scrub_pass_bytes()));
    assert_eq!((stats.scrub_damage, stats.damaged_segments), (0, 0));
    assert!(disk.files() == before);
}

#[test]
fn without_sealed_segments_nothing_is_read() {
    let disk = new_disk();
    let mut log = open(&disk, options()).unwrap().log;
    push(&mut log, STREAM, Sequence(1));
    log.write().unwrap();
    assert_eq!(log.scrub_pass_bytes(), 0);
    assert_eq!(log.scrub_step(1 << 20), Scrubbed::default());
}

#[test]
fn segments_that_come_go_and_are_compacted_meanwhile_are_no_damage() {
    let mut changed = 0;
    for seed in 0..8 {
        let mut random = SeededRandom::new(seed);
        let mut world = World::new(&new_disk(), &options()).unwrap();
        for _ in 0..300 {
            world.live(&mut random, 3).unwrap();
            let step = world.log.scrub_step(1 + random.index(20_000));
            assert_eq!(step.damage, None, "seed {seed}");
        }
        let stats = world.log.stats();
        assert!(stats.scrub_passes > 0, "seed {seed}: {stats:?}");
        changed += stats.segments_removed.min(1) + stats.segments_compacted.min(1);
        world.check_reads();
    }
    assert!(changed > 8, "segments go and are compacted: {changed}");
}
