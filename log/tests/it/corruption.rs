//! Damage: every bit, every length, every sector. What is read afterwards is right or refused, never wrong and
//! never "there is no such message"; and nothing is removed.

use std::path::{Path, PathBuf};

use beamlog_log::{
    Disk, Journal, Log, LogOptions, OpenError, OpenMode, Opened, Read, Sequence, SimDisk, StreamId, Tail,
    inspect,
};

use crate::world::{directory, new_disk, open, payload, push, subject};

const STREAM: StreamId = StreamId(1);
/// Messages in the sealed segment, and in all.
const SEALED: u64 = 12;
const ALL: u64 = 20;

/// A small sealed segment and an open one, synced.
fn store(clean: bool) -> SimDisk {
    let disk = new_disk();
    let mut log = open(&disk, options()).unwrap().log;
    for sequence in 1..=ALL {
        push(&mut log, STREAM, Sequence(sequence));
        if sequence % 4 == 0 {
            log.push_control(&sequence.to_le_bytes());
            log.write().unwrap();
            log.sync().unwrap();
        }
        if sequence == SEALED {
            log.roll(&mut [b"state".to_vec()].into_iter()).unwrap();
        }
    }
    if clean {
        log.close().unwrap();
    }
    disk
}

fn options() -> LogOptions {
    LogOptions { ballast_bytes: 0, ..LogOptions::for_simulation() }
}

fn sealed_path() -> PathBuf {
    directory().join("00000000000000000001-000000.seg")
}

fn side_path() -> PathBuf {
    directory().join("00000000000000000001-000000.idx")
}

fn open_path() -> PathBuf {
    directory().join("00000000000000000004-000000.seg")
}

/// Every bit of a file of this length; of the zeros behind the segment's header some.
fn bits(len: usize) -> impl Iterator<Item = u64> {
    let bit = |byte: usize| byte as u64 * 8;
    (0..bit(64)).chain((bit(64)..bit(4096)).step_by(61)).chain(bit(4096)..bit(len))
}

fn bytes_of(disk: &SimDisk, path: &Path) -> Vec<u8> {
    let file = disk.open(path, OpenMode::Read).unwrap();
    let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
    assert_eq!(file.read_at(&mut bytes, 0).unwrap(), bytes.len());
    bytes
}

/// What opening and reading a damaged store may come to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Outcome {
    AllRead,
    RefusedReads,
    /// Messages at the end are called absent.
    Cut,
    Suspect,
    Corrupt,
}

/// Reads every message in every way.
fn read_all(log: &mut Log) -> Outcome {
    let mut refused = 0;
    let mut last = ALL;
    for sequence in (1..=ALL).map(Sequence) {
        match log.read(STREAM, sequence) {
            Read::Found(message) => {
                assert_eq!(message.payload, payload(STREAM, sequence));
                assert_eq!(message.subject, subject(STREAM, sequence).as_bytes());
                assert_eq!(last, ALL, "{sequence} is there, one before it is called absent");
            }
            Read::Unreadable(_) => refused += 1,
            Read::Absent => last = last.min(sequence.0 - 1),
        }
    }
    let mut from = Sequence(1);
    loop {
        match log.next(STREAM, from, &mut |_| true) {
            Read::Found(found) => assert_eq!(found, from, "a search passed over a message"),
            Read::Unreadable(_) => {
                assert!(refused > 0);
                break;
            }
            Read::Absent => {
                assert_eq!(from.0, last + 1);
                break;
            }
        }
        from = from.next();
    }
    match (refused, last) {
        (0, ALL) => Outcome::AllRead,
        (0, _) => Outcome::Cut,
        _ => Outcome::RefusedReads,
    }
}

fn judge(opened: Result<Opened, OpenError>) -> Outcome {
    match opened {
        Ok(mut opened) => read_all(&mut opened.log),
        Err(OpenError::SuspectTail { .. }) => Outcome::Suspect,
        Err(OpenError::Corrupt { .. }) => Outcome::Corrupt,
        Err(error) => panic!("{error}"),
    }
}

/// Where the last frame of the open segment begins (of those with records, if asked for), and where it ends.
fn last_frame(bytes: &[u8], with_records: bool) -> (usize, usize) {
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let (mut last, mut at) = (4096, 4096);
    while at < end {
        let body = u32::from_le_bytes(*bytes[at + 48..].first_chunk::<4>().unwrap()) as usize;
        if body > 0 || !with_records {
            last = at;
        }
        at += 64 + body;
    }
    (last, at)
}

#[test]
fn every_bit_of_a_sealed_segment() {
    let store = store(true);
    let sound = bytes_of(&store, &sealed_path());
    let (mut served_all, mut refused) = (0, 0);
    for bit in bits(sound.len()) {
        let disk = store.fork();
        disk.flip_bit(&sealed_path(), bit).unwrap();
        assert!(!inspect::check(&disk, directory()).unwrap().is_sound(), "bit {bit} is not detected");
        let damaged = bytes_of(&disk, &sealed_path());
        if bit % 2 == 1 {
            // Without its side file the segment is read whole on opening.
            disk.remove(&side_path()).unwrap();
        }
        match judge(open(&disk, options())) {
            Outcome::AllRead => served_all += 1,
            Outcome::RefusedReads => refused += 1,
            other @ (Outcome::Cut | Outcome::Suspect | Outcome::Corrupt) => panic!("bit {bit}: {other:?}"),
        }
        let after = bytes_of(&disk, &sealed_path());
        // Only a footer can be told again from what the next segment says.
        assert!(after == damaged || after == sound, "bit {bit}: what is damaged is left as it is");
    }
    // A flip in a message refuses it; one in a control record or in the zeros does not.
    assert!(refused > 5000 && served_all > 500, "{refused} refused, {served_all} served");
}

#[test]
fn every_bit_of_the_open_segment() {
    for clean in [false, true] {
        let store = store(clean);
        let report = inspect::check(&store, directory()).unwrap();
        assert!(report.is_sound());
        let (last_frame, end) = last_frame(&bytes_of(&store, &open_path()), false);
        for bit in bits(end) {
            let disk = store.fork();
            disk.flip_bit(&open_path(), bit).unwrap();
            let place = usize::try_from(bit / 8).unwrap();
            let opened = open(&disk, options());
            let tail = opened.as_ref().ok().map(|opened| opened.report.tail);
            match judge(opened) {
                // The zeros behind the header are nothing.
                Outcome::AllRead => assert!((64..4096).contains(&place), "bit {bit}"),
                Outcome::Suspect => assert!(place >= last_frame, "bit {bit}"),
                Outcome::Corrupt => assert!(place < last_frame, "bit {bit}"),
                Outcome::RefusedReads => {
                    assert_eq!(tail, Some(Tail::Fenced), "bit {bit}");
                    assert!(place < last_frame, "bit {bit}");
                }
                Outcome::Cut => panic!("bit {bit} cut a frame"),
            }
        }
    }
}

#[test]
fn every_length_of_both_segments() {
    let store = store(true);
    for path in [sealed_path(), open_path()] {
        let len = bytes_of(&store, &path).len();
        let data = bytes_of(&store, &path).iter().rposition(|byte| *byte != 0).unwrap() + 1;
        let lengths = (0..data.min(len)).chain((data..len).step_by(97));
        for cut in lengths {
            let disk = store.fork();
            disk.alter(&path, |bytes| bytes.truncate(cut)).unwrap();
            assert!(!inspect::check(&disk, directory()).unwrap().is_sound(), "{path:?} cut to {cut}");
            let outcome = judge(open(&disk, options()));
            if path == open_path() {
                assert_eq!(outcome, Outcome::Corrupt, "cut to {cut}");
            } else {
                assert_ne!(outcome, Outcome::Cut, "cut to {cut}");
            }
        }
    }
}

#[test]
fn every_sector_zeroed_filled_or_swapped() {
    let store = store(true);
    for path in [sealed_path(), open_path()] {
        let bytes = bytes_of(&store, &path);
        let data = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        let sectors: Vec<usize> = (0..data).step_by(512).collect();
        let other = if path == sealed_path() { open_path() } else { sealed_path() };
        let other = bytes_of(&store, &other);
        let changes = sectors.iter().flat_map(|sector| {
            let range = *sector..(sector + 512).min(bytes.len());
            let mut changed = vec![(*sector, vec![0; range.len()]), (*sector, vec![0xff; range.len()])];
            for from in &sectors {
                changed.push((*sector, bytes[*from..(from + range.len()).min(bytes.len())].to_vec()));
            }
            // The same sector of another segment: a misdirected write.
            changed.push((*sector, other[range.start.min(other.len())..range.end.min(other.len())].to_vec()));
            changed
        });
        for (sector, content) in changes {
            if bytes[sector..].starts_with(&content) {
                continue;
            }
            let disk = store.fork();
            disk.alter(&path, |bytes| bytes[sector..sector + content.len()].copy_from_slice(&content))
                .unwrap();
            let is_sound = inspect::check(&disk, directory()).unwrap().is_sound();
            if is_sound || judge(open(&disk, options())) == Outcome::Cut {
                // Zeros where the last frame and the seal behind it end are what a torn write looks like.
                let (last_record, _) = last_frame(&bytes, true);
                assert!(path == open_path() && sector + 512 > last_record, "{path:?} at {sector}");
                assert!(content.ends_with(&[0; 16]), "{path:?} at {sector}");
            }
        }
    }
}

#[test]
fn every_bit_of_a_side_file() {
    let store = store(true);
    let bits = bytes_of(&store, &side_path()).len() as u64 * 8;
    for bit in 0..bits {
        let disk = store.fork();
        disk.flip_bit(&side_path(), bit).unwrap();
        let mut opened = open(&disk, options()).unwrap();
        assert_eq!(read_all(&mut opened.log), Outcome::AllRead, "bit {bit}");
        let subjects = opened.log.run_subjects(STREAM, beamlog_log::SegmentId(1)).unwrap();
        assert_eq!(subjects.iter().map(|subject| subject.count).sum::<u64>(), SEALED, "bit {bit}");
        let report = inspect::check(&disk, directory()).unwrap();
        assert_eq!(report.segments[0].side_file, inspect::SideFile::Good, "bit {bit} is repaired");
    }
}

#[test]
fn a_missing_segment_is_unreadable_and_not_absent() {
    let disk = store(true);
    disk.remove(&sealed_path()).unwrap();
    let report = inspect::check(&disk, directory()).unwrap();
    assert_eq!(report.missing, [beamlog_log::SegmentId(1)]);
    let mut opened = open(&disk, options()).unwrap();
    assert_eq!(opened.report.missing, [beamlog_log::SegmentId(1)]);
    assert_eq!(read_all(&mut opened.log), Outcome::RefusedReads);
    // What was written after it is served, and writing goes on.
    push(&mut opened.log, STREAM, Sequence(ALL + 1));
    opened.log.write().unwrap();
    opened.log.sync().unwrap();
    assert!(matches!(opened.log.read(STREAM, Sequence(ALL + 1)), Read::Found(_)));
}

#[test]
fn a_missing_newest_segment_refuses() {
    let disk = store(true);
    disk.remove(&open_path()).unwrap();
    assert_eq!(judge(open(&disk, options())), Outcome::Corrupt);
}

#[test]
fn an_empty_directory_refuses_where_there_was_a_log() {
    let disk = new_disk();
    let options = LogOptions { must_exist: true, ..options() };
    assert!(matches!(open(&disk, options), Err(OpenError::Missing { .. })));
}

#[test]
fn another_shards_segments_refuse() {
    let disk = store(true);
    let opened = Log::open(std::sync::Arc::new(disk), directory(), beamlog_log::ShardId(9), options());
    assert!(matches!(opened, Err(OpenError::ForeignShard { .. })));
}

#[test]
fn accepted_loss_is_kept_in_quarantine() {
    let disk = store(false);
    let bytes = bytes_of(&disk, &open_path());
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    disk.flip_bit(&open_path(), end as u64 * 8).unwrap();
    assert!(matches!(open(&disk, options()), Err(OpenError::SuspectTail { .. })));
    let opened = open(&disk, LogOptions { accept_tail_loss: true, ..options() }).unwrap();
    assert!(matches!(opened.report.tail, Tail::LossAccepted { .. }));
    let [kept] = &opened.report.quarantined[..] else { panic!("{:?}", opened.report) };
    let kept = bytes_of(&disk, kept);
    assert_eq!(kept[1..kept.len() - 1], bytes[end + 1 - kept.len()..=end][1..kept.len() - 1]);
}
