//! The tables of `docs/design/format.md`: what the end of the newest segment may be, and what the files may be,
//! each condition with each other.

use std::path::{Path, PathBuf};

use beamlog_log::{
    Disk, Index, Journal, Log, LogOptions, MessageRef, OpenError, OpenMode, Read, SegmentId, Sequence,
    SimDisk, StreamId, Tail, Timestamp,
};

use crate::world::{directory, new_disk, open};

const STREAM: StreamId = StreamId(1);

fn options() -> LogOptions {
    LogOptions { ballast_bytes: 0, ..LogOptions::for_simulation() }
}

fn segment(name: &str) -> PathBuf {
    directory().join(name)
}

fn commit(log: &mut Log, sequence: u64, payload: &[u8]) {
    log.push_message(&MessageRef {
        stream: STREAM,
        sequence: Sequence(sequence),
        timestamp: Timestamp(sequence),
        subject: b"subject",
        headers: b"",
        payload,
    });
    log.write().unwrap();
    log.sync().unwrap();
}

/// What became of F, the frame of index 4.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Frame {
    Whole,
    BodyBit,
    HeaderBit,
    FirstSectorMissing,
    MiddleSectorMissing,
    LastSectorMissing,
    /// Its last bytes, less than a sector.
    EndMissing,
    /// The end of its header and all of its body.
    OnlySomeOfHeader,
    Missing,
}

const FRAMES: [Frame; 9] = [
    Frame::Whole,
    Frame::BodyBit,
    Frame::HeaderBit,
    Frame::FirstSectorMissing,
    Frame::MiddleSectorMissing,
    Frame::LastSectorMissing,
    Frame::EndMissing,
    Frame::OnlySomeOfHeader,
    Frame::Missing,
];

/// What stands behind F.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Behind {
    Zeros,
    Frame,
    Seal,
    Garbage,
}

const BEHIND: [Behind; 4] = [Behind::Zeros, Behind::Frame, Behind::Seal, Behind::Garbage];

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Verdict {
    Clean,
    Whole,
    Torn,
    Suspect,
    Fenced,
}

/// The table.
fn verdict(frame: Frame, behind: Behind, seal_before: bool) -> Verdict {
    match (frame, behind) {
        (Frame::Whole, Behind::Zeros | Behind::Frame) => Verdict::Whole,
        (Frame::Whole, Behind::Seal) => Verdict::Clean,
        (Frame::Missing, Behind::Zeros) if seal_before => Verdict::Clean,
        (Frame::Missing, Behind::Zeros) => Verdict::Whole,
        (_, Behind::Frame | Behind::Seal) => Verdict::Fenced,
        (Frame::BodyBit | Frame::HeaderBit, Behind::Zeros | Behind::Garbage)
        | (Frame::Whole, Behind::Garbage) => Verdict::Suspect,
        (
            Frame::FirstSectorMissing
            | Frame::MiddleSectorMissing
            | Frame::LastSectorMissing
            | Frame::EndMissing
            | Frame::OnlySomeOfHeader,
            Behind::Zeros,
        ) => Verdict::Torn,
        // The length of F is known: what is behind it was not part of that write.
        (Frame::MiddleSectorMissing | Frame::LastSectorMissing | Frame::EndMissing, Behind::Garbage) => {
            Verdict::Suspect
        }
        // A torn write of several sectors: the first is missing.
        (Frame::FirstSectorMissing | Frame::Missing, Behind::Garbage) => Verdict::Torn,
        (Frame::OnlySomeOfHeader, Behind::Garbage) => Verdict::Suspect,
    }
}

/// A body without zeros, and one that has many.
fn bodies() -> [Vec<u8>; 2] {
    let dense = vec![0x5a; 1800];
    let mut holey = dense.clone();
    holey[100..800].fill(0);
    holey.extend([0; 40]);
    [dense, holey]
}

/// A store whose newest segment ends as told.
fn store(frame: Frame, behind: Behind, seal_before: bool, body: &[u8]) -> SimDisk {
    let disk = new_disk();
    let mut log = open(&disk, options()).unwrap().log;
    for sequence in 1..=3 {
        commit(&mut log, sequence, b"before");
    }
    if seal_before {
        log.seal_tail().unwrap();
    }
    let path = segment("00000000000000000001-000000.seg");
    let from = end_of(&disk, &path);
    commit(&mut log, 4, body);
    let to = end_of(&disk, &path).max(from + 64 + 43 + body.len());
    match behind {
        Behind::Frame => commit(&mut log, 5, b"behind"),
        Behind::Seal => log.seal_tail().unwrap(),
        Behind::Zeros | Behind::Garbage => {}
    }
    drop(log);
    disk.alter(&path, |bytes| {
        if behind == Behind::Garbage {
            bytes[to..to + 900].fill(0xab);
        }
        let sector = |at: usize| at / 512 * 512;
        match frame {
            Frame::Whole => {}
            Frame::BodyBit => bytes[to - 900] ^= 4,
            Frame::HeaderBit => bytes[from + 20] ^= 1,
            Frame::FirstSectorMissing => bytes[from..sector(from) + 512].fill(0),
            Frame::MiddleSectorMissing => {
                let middle = sector(from) + 1024;
                bytes[middle..middle + 512].fill(0);
            }
            Frame::LastSectorMissing => bytes[sector(to - 1)..to].fill(0),
            Frame::EndMissing => bytes[to - 60..to].fill(0),
            Frame::OnlySomeOfHeader => bytes[from + 40..to].fill(0),
            Frame::Missing => bytes[from..to].fill(0),
        }
    })
    .unwrap();
    disk
}

/// Where the last frame of a segment ends.
fn end_of(disk: &SimDisk, path: &Path) -> usize {
    let file = disk.open(path, OpenMode::Read).unwrap();
    let mut at = 4096;
    loop {
        let mut header = [0; 64];
        file.read_at(&mut header, at).unwrap();
        if !header.starts_with(b"BFR1") {
            return usize::try_from(at).unwrap();
        }
        at += 64 + u64::from(u32::from_le_bytes(*header[48..].first_chunk::<4>().unwrap()));
    }
}

fn found(disk: &SimDisk, options: LogOptions) -> (Verdict, Index) {
    match open(disk, options) {
        Err(OpenError::SuspectTail { first, .. }) => (Verdict::Suspect, Index(first.0 - 1)),
        Err(error) => panic!("{error}"),
        Ok(mut opened) => {
            for sequence in 1..=3 {
                assert!(matches!(opened.log.read(STREAM, Sequence(sequence)), Read::Found(_)));
            }
            let verdict = match opened.report.tail {
                Tail::Clean => Verdict::Clean,
                Tail::Whole | Tail::LossAccepted { .. } => Verdict::Whole,
                Tail::Torn { .. } => Verdict::Torn,
                Tail::Fenced => Verdict::Fenced,
                Tail::New | Tail::Suspect { .. } => panic!("it is neither new nor opened in doubt"),
            };
            if verdict == Verdict::Fenced {
                // What is damaged is not absent, what is not is served, and nothing is written any more.
                assert!(matches!(opened.log.read(STREAM, Sequence(4)), Read::Unreadable(_)));
                assert!(opened.log.replay(Index(0)).last().unwrap().is_err());
                opened.log.push_control(b"x");
                assert!(opened.log.write().is_err());
            }
            (verdict, opened.report.last_index)
        }
    }
}

#[test]
fn the_tail_table() {
    for body in bodies() {
        for frame in FRAMES {
            for behind in BEHIND {
                for seal_before in [false, true] {
                    let case = format!(
                        "{frame:?}, behind it {behind:?}, seal before {seal_before}, {} bytes",
                        body.len()
                    );
                    let disk = store(frame, behind, seal_before, &body);
                    let expected = verdict(frame, behind, seal_before);
                    // In a body that ends in zeros, zeros at its end are no sign of anything.
                    let no_sign =
                        body.ends_with(&[0]) && frame == Frame::EndMissing && behind == Behind::Zeros;
                    let expected = if no_sign { Verdict::Suspect } else { expected };
                    let whole = if frame == Frame::Whole { Index(4) } else { Index(3) };
                    let last = if behind == Behind::Frame { Index(5) } else { whole };
                    let last =
                        if expected == Verdict::Fenced && behind == Behind::Seal { Index(4) } else { last };
                    assert_eq!(found(&disk, options()), (expected, last), "{case}");
                    // The seal is then the last frame again.
                    let seal_is_last = seal_before && frame != Frame::Whole;
                    let after = if seal_is_last { Verdict::Clean } else { Verdict::Whole };
                    match expected {
                        Verdict::Suspect => {
                            assert_eq!(found(&disk, options()), (expected, last), "{case}, asked again");
                            let accepting = LogOptions { accept_tail_loss: true, ..options() };
                            assert_eq!(found(&disk, accepting), (Verdict::Whole, last), "{case}, accepted");
                            assert_eq!(found(&disk, options()), (after, last), "{case}, after that");
                        }
                        // What was recovered is recovered again (A8).
                        Verdict::Torn => {
                            assert_eq!(found(&disk, options()), (after, last), "{case}")
                        }
                        Verdict::Clean | Verdict::Whole | Verdict::Fenced => {
                            assert_eq!(found(&disk, options()), (expected, last), "{case}");
                        }
                    }
                }
            }
        }
    }
}

/// Three segments, each with ten messages: two sealed, one open.
fn three_segments() -> SimDisk {
    let disk = new_disk();
    let mut log = open(&disk, options()).unwrap().log;
    for sequence in 1..=30 {
        commit(&mut log, sequence, b"payload");
        if sequence % 10 == 0 && sequence < 30 {
            log.roll(&mut std::iter::once(b"state".to_vec())).unwrap();
        }
    }
    log.close().unwrap();
    disk
}

/// One thing that may be so of the files, what the report says of it, and which messages stay readable.
struct FileCase {
    name: &'static str,
    change: fn(&SimDisk),
    check: fn(&beamlog_log::RecoveryReport) -> bool,
    readable: fn(u64) -> bool,
}

fn cut_footer(disk: &SimDisk, name: &str) {
    disk.alter(&segment(name), |bytes| bytes.truncate(bytes.len() - 64)).unwrap();
}

fn copy(disk: &SimDisk, from: &str, to: &str) {
    let file = disk.open(&segment(from), OpenMode::Read).unwrap();
    let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
    file.read_at(&mut bytes, 0).unwrap();
    disk.open(&segment(to), OpenMode::CreateNew).unwrap().write_at(&bytes, 0).unwrap();
}

const FIRST: &str = "00000000000000000001-000000";
const SECOND: &str = "00000000000000000011-000000";

#[test]
fn the_table_of_files() {
    let cases = [
        FileCase {
            name: "as it was closed",
            change: |_| {},
            check: |report| report.damaged.is_empty() && report.tail == Tail::Clean && !report.rewritten,
            readable: |_| true,
        },
        FileCase {
            name: "a roll that did not seal",
            change: |disk| cut_footer(disk, &format!("{SECOND}.seg")),
            check: |report| report.finished_roll && report.damaged.is_empty(),
            readable: |_| true,
        },
        FileCase {
            name: "an older segment without its footer",
            change: |disk| cut_footer(disk, &format!("{FIRST}.seg")),
            check: |report| !report.finished_roll && report.damaged.len() == 1,
            readable: |_| true,
        },
        FileCase {
            name: "a segment that was sealed by a roll and then cut",
            change: |disk| {
                disk.alter(&segment(&format!("{SECOND}.seg")), |bytes| bytes.truncate(bytes.len() - 200))
                    .unwrap();
                disk.remove(&segment(&format!("{SECOND}.idx"))).unwrap();
            },
            check: |report| !report.finished_roll && report.damaged.len() == 1,
            readable: |sequence| sequence <= 18 || sequence > 20,
        },
        FileCase {
            name: "a side file missing",
            change: |disk| disk.remove(&segment(&format!("{FIRST}.idx"))).unwrap(),
            check: |report| report.indexes_rebuilt == 1 && report.damaged.is_empty(),
            readable: |_| true,
        },
        FileCase {
            name: "a segment missing",
            change: |disk| disk.remove(&segment(&format!("{FIRST}.seg"))).unwrap(),
            check: |report| report.missing == [SegmentId(1)] && report.damaged.len() == 1,
            readable: |sequence| sequence > 10,
        },
        FileCase {
            name: "an unfinished file",
            change: |disk| copy(disk, &format!("{FIRST}.seg"), "compacted.tmp"),
            check: |report| report.damaged.is_empty() && report.unexpected.is_empty(),
            readable: |_| true,
        },
        FileCase {
            name: "a segment that nobody knows",
            change: |disk| copy(disk, &format!("{FIRST}.seg"), "00000000000000000005-000000.seg"),
            check: |report| {
                report.unexpected == ["00000000000000000005-000000.seg"] && report.damaged.is_empty()
            },
            readable: |_| true,
        },
        FileCase {
            name: "a segment under another's name",
            change: |disk| {
                disk.remove(&segment(&format!("{SECOND}.seg"))).unwrap();
                copy(disk, &format!("{FIRST}.seg"), &format!("{SECOND}.seg"));
            },
            check: |report| report.damaged.len() == 1,
            readable: |sequence| sequence <= 10 || sequence > 20,
        },
    ];
    for case in cases {
        let disk = three_segments();
        (case.change)(&disk);
        for attempt in 0..2 {
            let mut opened = open(&disk, options()).unwrap();
            if attempt == 0 {
                assert!((case.check)(&opened.report), "{}: {:#?}", case.name, opened.report);
            }
            assert_eq!(opened.report.last_index, Index(30), "{}", case.name);
            for sequence in 1..=30 {
                match opened.log.read(STREAM, Sequence(sequence)) {
                    Read::Found(message) => {
                        assert_eq!(message.payload, "payload");
                        assert_eq!(message.sequence, Sequence(sequence));
                    }
                    Read::Unreadable(_) => assert!(!(case.readable)(sequence), "{}: {sequence}", case.name),
                    Read::Absent => panic!("{}: {sequence} is called absent", case.name),
                }
            }
            opened.log.close().unwrap();
        }
    }
}

/// The page cache holds a frame whose sync failed; the disk does not (DR2).
#[test]
fn what_only_the_page_cache_holds_is_not_recovered() {
    use beamlog_log::sim_disk::{Failure, Fault, Operation, Repeat};
    let disk = new_disk();
    let mut log = open(&disk, options()).unwrap().log;
    commit(&mut log, 1, b"durable");
    let sync = Some(Operation::SyncData);
    disk.fail(Fault { operation: sync, nth: 1, failure: Failure::Io, repeat: Repeat::Once });
    log.push_control(b"never acknowledged");
    log.write().unwrap();
    assert!(log.sync().is_err());
    assert!(log.sync().is_err(), "a failed sync is final");
    log.push_control(b"x");
    assert!(log.write().is_err());
    drop(log);
    let mut opened = open(&disk, options()).unwrap();
    assert_eq!(opened.report.last_index, Index(1));
    assert!(opened.report.rewritten);
    assert!(matches!(opened.log.read(STREAM, Sequence(1)), Read::Found(_)));
}

/// A full disk is a state that passes (DR16).
#[test]
fn a_full_disk_is_noticed_a_segment_ahead_and_passes() {
    let disk = new_disk();
    let options = LogOptions::for_simulation();
    let mut log = open(&disk, options.clone()).unwrap().log;
    let mut sequence = 0;
    // Room for the open segment and the next one, and no more.
    disk.limit_space(disk.used_space() + 10_000);
    while !log.is_full() {
        sequence += 1;
        commit(&mut log, sequence, &[9; 900]);
        if log.needs_roll() {
            log.roll(&mut std::iter::empty()).unwrap();
        }
    }
    // A whole segment is left for what frees space.
    for _ in 0..50 {
        sequence += 1;
        commit(&mut log, sequence, &[9; 200]);
    }
    assert!(!log.needs_roll());
    log.maintain().unwrap();
    assert!(log.is_full());
    while !log.needs_roll() {
        sequence += 1;
        commit(&mut log, sequence, &[9; 900]);
    }
    assert!(matches!(log.roll(&mut std::iter::empty()), Err(beamlog_log::RollError::Full)));
    assert!(matches!(log.read(STREAM, Sequence(1)), Read::Found(_)));
    commit(&mut log, sequence + 1, b"still written");
    disk.heal();
    log.maintain().unwrap();
    assert!(!log.is_full());
    log.roll(&mut std::iter::empty()).unwrap();
    log.close().unwrap();
    let mut log = open(&disk, options).unwrap().log;
    for sequence in 1..=sequence + 1 {
        assert!(matches!(log.read(STREAM, Sequence(sequence)), Read::Found(_)), "{sequence}");
    }
}

/// A store that filled its disk can be emptied through the store itself (DR16): the space for the snapshot
/// by which the removed is dead comes out of the ballast.
#[test]
fn a_full_disk_is_emptied_by_removing_what_is_stored() {
    let disk = new_disk();
    let options = LogOptions::for_simulation();
    let mut log = open(&disk, options.clone()).unwrap().log;
    disk.limit_space(disk.used_space() + 200_000);
    let mut sequence = 0;
    let mut fill = |log: &mut Log, until: &dyn Fn(&Log) -> bool| {
        while !until(log) {
            sequence += 1;
            commit(log, sequence, &[9; 900]);
            if log.needs_roll() && !log.is_full() {
                log.roll(&mut std::iter::empty()).unwrap();
            }
        }
        sequence
    };
    // To the end of the last segment, too.
    fill(&mut log, &Log::is_full);
    let last = fill(&mut log, &|log| log.is_full() && log.needs_roll());
    log.release(STREAM, Sequence(1)..=Sequence(last));
    let mut steps = 0;
    while log.is_full() {
        steps += 1;
        assert!(steps < 100, "no space came back");
        log.maintain().unwrap();
        log.write().unwrap();
        log.sync().unwrap();
        if log.wants_relief() {
            log.roll_for_space(&mut std::iter::empty()).unwrap();
        }
    }
    for sequence in last + 1..last + 200 {
        commit(&mut log, sequence, &[7; 900]);
        if log.needs_roll() {
            log.roll(&mut std::iter::empty()).unwrap();
        }
    }
    log.close().unwrap();
    let mut log = open(&disk, options).unwrap().log;
    for sequence in last + 1..last + 200 {
        assert!(matches!(log.read(STREAM, Sequence(sequence)), Read::Found(_)), "{sequence}");
    }
}

/// The ballast's space is for what frees space (DR16): giving it up makes no room for publishes, however
/// large it was.
#[test]
fn a_ballast_that_is_given_up_does_not_end_a_full_disk() {
    let disk = new_disk();
    let options = LogOptions { ballast_bytes: 128 << 10, ..LogOptions::for_simulation() };
    let mut log = open(&disk, options).unwrap().log;
    disk.limit_space(disk.used_space() + 10_000);
    let mut sequence = 0;
    while !log.is_full() {
        sequence += 1;
        commit(&mut log, sequence, &[9; 900]);
        if log.needs_roll() {
            log.roll(&mut std::iter::empty()).unwrap();
        }
    }
    for _ in 0..5 {
        log.maintain().unwrap();
        assert!(log.is_full());
    }
    disk.heal();
    log.maintain().unwrap();
    assert!(!log.is_full());
}

/// The ballast and the next segment fit, but not with the snapshot that it would begin with.
#[test]
fn a_disk_without_room_for_a_snapshot_is_full_and_can_be_relieved() {
    let disk = new_disk();
    let mut log = open(&disk, LogOptions::for_simulation()).unwrap().log;
    let mut sequence = 0;
    while !log.needs_roll() {
        sequence += 1;
        commit(&mut log, sequence, &[9; 900]);
    }
    log.maintain().unwrap();
    assert!(!log.is_full());
    disk.limit_space(disk.used_space() + 1_000);
    let snapshot = || std::iter::once(vec![1; 4_000]);
    assert!(matches!(log.roll(&mut snapshot()), Err(beamlog_log::RollError::Full)));
    log.maintain().unwrap();
    assert!(log.is_full());
    assert!(log.wants_relief());
    log.roll_for_space(&mut snapshot()).unwrap();
    assert!(log.is_full() && !log.needs_roll());
    disk.heal();
    log.maintain().unwrap();
    assert!(!log.is_full());
}

/// The checksum of a header ends in a zero byte now and then, and an empty log has nothing behind it.
#[test]
fn an_empty_log_opens_whatever_its_header_ends_in() {
    for shard in (0..600).map(beamlog_log::ShardId) {
        let disk = new_disk();
        for _ in 0..2 {
            beamlog_log::Log::open(
                std::sync::Arc::new(disk.clone()),
                crate::world::directory(),
                shard,
                LogOptions::for_simulation(),
            )
            .unwrap();
        }
    }
}
