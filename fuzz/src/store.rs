//! A small log on a simulated disk, with known messages, and a second reader of its format
//! (`docs/design/format.md`) that can make changed bytes valid again.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use beamlog_log::{
    Disk, Index, Journal, Log, LogOptions, MessageRef, Opened, Read, Sequence, ShardId, SimDisk, StreamId,
    Timestamp,
};

const DIRECTORY: &str = "/log";
const SHARD: ShardId = ShardId(0);
const STREAMS: u32 = 3;
/// Messages of each stream.
const MESSAGES: u64 = 60;
const FRAMES_AT: usize = 4096;
const FRAME_HEADER_BYTES: usize = 64;
const RECORD_HEADER_BYTES: usize = 12;

/// Two sealed segments, their side files, and an open one.
pub fn disk() -> SimDisk {
    static DISK: OnceLock<SimDisk> = OnceLock::new();
    DISK.get_or_init(write).fork()
}

/// The files of the store, in their order.
pub fn files() -> &'static [PathBuf] {
    static FILES: OnceLock<Vec<PathBuf>> = OnceLock::new();
    FILES.get_or_init(|| {
        disk()
            .files()
            .into_keys()
            .filter(|path| path.extension().is_some_and(|kind| kind == "seg" || kind == "idx"))
            .collect()
    })
}

/// The segment that is written to.
pub fn newest() -> &'static Path {
    files().iter().rfind(|path| path.extension().is_some_and(|kind| kind == "seg")).expect("it was written")
}

pub fn open(disk: &SimDisk) -> Result<Opened, beamlog_log::OpenError> {
    Log::open(Arc::new(disk.clone()), Path::new(DIRECTORY), SHARD, LogOptions::for_simulation())
}

fn write() -> SimDisk {
    let disk = SimDisk::new();
    disk.create_dir(Path::new(DIRECTORY)).expect("a new disk");
    disk.sync_dir(Path::new("/")).expect("a new disk");
    let mut log = open(&disk).expect("a new disk").log;
    for sequence in (1..=MESSAGES).map(Sequence) {
        for stream in (1..=STREAMS).map(StreamId) {
            log.push_message(&MessageRef {
                stream,
                sequence,
                timestamp: Timestamp(sequence.0),
                subject: subject(stream, sequence).as_bytes(),
                headers: if sequence.0.is_multiple_of(4) {
                    b"NATS/1.0\r\nNats-Msg-Id: 7\r\n\r\n"
                } else {
                    b""
                },
                payload: &payload(stream, sequence),
            });
        }
        if sequence.0.is_multiple_of(3) {
            log.push_control(b"control record");
            log.write().expect("the disk is well");
            log.sync().expect("the disk is well");
        }
        if sequence.0.is_multiple_of(24) {
            let rows = [b"first row".to_vec(), vec![7; 300]];
            log.roll(&mut rows.into_iter()).expect("the disk is well");
        }
    }
    log.write().expect("the disk is well");
    log.sync().expect("the disk is well");
    drop(log);
    disk
}

fn subject(stream: StreamId, sequence: Sequence) -> String {
    format!("s{stream}.{}", sequence.0 % 7)
}

fn payload(stream: StreamId, sequence: Sequence) -> Vec<u8> {
    let byte = sequence.0.to_le_bytes()[0] ^ stream.0.to_le_bytes()[0];
    vec![byte; usize::try_from(sequence.0 * 3).expect("small")]
}

/// Uses a log in every way that reads. What it serves must be what was written, unless `forged`.
pub fn use_everything(mut opened: Opened, forged: bool) {
    let base = opened.snapshot.as_ref().map_or(Index(0), |snapshot| snapshot.index);
    let log = &mut opened.log;
    let replayed = log.replay(base).count();
    assert!(replayed < 1_000_000);
    for stream in log.streams() {
        for run in log.runs(stream) {
            // Damage is an answer.
            drop(log.run_subjects(stream, run.segment));
            drop(log.run_entries(stream, run.segment));
        }
    }
    for stream in (1..=STREAMS).map(StreamId) {
        for sequence in (1..=MESSAGES).map(Sequence) {
            if let Read::Found(message) = log.read(stream, sequence) {
                assert_eq!((message.stream, message.sequence), (stream, sequence));
                if !forged {
                    assert_eq!(message.payload, payload(stream, sequence), "other bytes were served");
                    assert_eq!(message.subject, subject(stream, sequence).as_bytes());
                }
            }
            if let Read::Found(entry) = log.entry(stream, sequence) {
                assert_eq!(entry.sequence, sequence);
            }
        }
        let mut from = Sequence(1);
        while let Read::Found(found) = log.next(stream, from, &mut |subject| subject.ends_with(b"3")) {
            assert!(found >= from, "going on leads back");
            from = found.next();
        }
    }
    let sequence = log.runs(StreamId(99)).last().map_or(Sequence(1), |run| Sequence(run.last.0 + 1));
    let written = MessageRef {
        stream: StreamId(99),
        sequence,
        timestamp: Timestamp(1),
        subject: b"new",
        headers: b"",
        payload: b"new",
    };
    log.push_message(&written);
    if log.write().is_ok() && log.sync().is_ok() {
        assert!(matches!(log.read(StreamId(99), sequence), Read::Found(_)), "what was synced is there");
        // Both may find damage.
        drop(log.maintain());
        drop(opened.log.close());
    }
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let four = bytes.get(at..)?.first_chunk::<4>()?;
    usize::try_from(u32::from_le_bytes(*four)).ok()
}

fn put(bytes: &mut [u8], at: usize, value: u32) {
    if let Some(four) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut::<4>) {
        *four = value.to_le_bytes();
    }
}

/// Makes the checksums of a segment's frames and records valid, as far as its lengths lead.
pub fn forge(segment: &mut [u8]) {
    if let Some(header) = segment.get(..60) {
        let checksum = crc32fast::hash(header);
        put(segment, 60, checksum);
    }
    let mut at = FRAMES_AT;
    let mut previous = None;
    while segment.get(at..).is_some_and(|rest| rest.starts_with(b"BFR1")) {
        let body_bytes = number(segment, at + 48).unwrap_or(0);
        let Some(end) = at.checked_add(FRAME_HEADER_BYTES + body_bytes).filter(|end| *end <= segment.len())
        else {
            return;
        };
        forge_frame(&mut segment[at..end], previous);
        // Snapshot, seal, compacted and local frames are not part of the chain.
        if segment[at + 5] & 0b11_0101 == 0 {
            previous = number(segment, at + 56);
        }
        at = end;
    }
}

/// Makes the checksums of records valid, as far as their lengths lead. Says how many there are.
pub fn forge_records(body: &mut [u8]) -> u32 {
    let (mut at, mut count) = (0, 0);
    while let Some(len) = number(body, at + 4) {
        let Some(end) = at.checked_add(len).filter(|end| len >= RECORD_HEADER_BYTES && *end <= body.len())
        else {
            break;
        };
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&SHARD.0.to_le_bytes());
        hasher.update(&body[at + 4..end]);
        put(body, at, hasher.finalize());
        at = end;
        count += 1;
    }
    count
}

/// How many records there are, as far as their lengths lead.
pub fn count_records(body: &[u8]) -> u32 {
    forge_records(&mut body.to_vec())
}

/// Makes one frame valid: header, records, and its tie to the frame before it, if that is known.
pub fn forge_frame(frame: &mut [u8], previous: Option<usize>) {
    forge_records(&mut frame[FRAME_HEADER_BYTES..]);
    if let Some(previous) = previous.and_then(|previous| u32::try_from(previous).ok()) {
        put(frame, 52, previous);
    }
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&frame[..56]);
    hasher.update(&frame[FRAME_HEADER_BYTES..]);
    put(frame, 56, hasher.finalize());
    let own = crc32fast::hash(&frame[..60]);
    put(frame, 60, own);
}

/// Where the last valid frame of a segment ends, and the header of the last ordinary one.
pub fn last_frame(segment: &[u8]) -> (usize, [u8; FRAME_HEADER_BYTES]) {
    let mut at = FRAMES_AT;
    let mut last = [0; FRAME_HEADER_BYTES];
    while let Some(header) = segment.get(at..).and_then(<[u8]>::first_chunk::<FRAME_HEADER_BYTES>) {
        if !header.starts_with(b"BFR1") {
            break;
        }
        if header[5] & 0b11_0101 == 0 {
            last = *header;
        }
        at += FRAME_HEADER_BYTES + number(header, 48).unwrap_or(0);
    }
    (at, last)
}
