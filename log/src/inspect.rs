//! Looking at a store offline. Reads only: nothing here changes, creates or removes a file, so it may look at a
//! store that refuses to open, and at a copy of one.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    ops::ControlFlow,
    path::Path,
};

use bytes::Bytes;

use crate::{
    Damage, DamageReason, Disk, DiskFailed, Index, Message, OpenMode, SegmentId, Sequence, ShardId, StreamId,
    Term, Timestamp,
    format::{
        frame::{FrameHeader, SEAL},
        hash::ContentHash,
        record::{Kind, RecordSalt, Records, message_of, segments_of},
        segment::{EndFault, FOOTER_BYTES, FRAMES_AT, Footer, SegmentHeader, SegmentKey},
    },
    index::{self, MemoryIndex},
    recovery::{Image, read_image},
    replica::{INCOMING, VoteState, look_at_vote},
    segment::index_frame,
    tail::{self, End, Scan},
};

/// What a check of a shard's directory found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CheckReport {
    /// In the order of the log.
    pub segments: Vec<SegmentReport>,
    /// Segments that should be there and are not.
    pub missing: Vec<SegmentId>,
    /// Segment files that do not belong to the log.
    pub unexpected: Vec<String>,
    /// Files that were being written when the process stopped; the next start removes them. Those in `incoming/` are of
    /// a peer's log, which is still being fetched or takes the place of this one at the next start.
    pub unfinished: Vec<String>,
    pub vote: VoteState,
}

impl CheckReport {
    /// Nothing was found that would make a read fail or the log refuse to open.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.missing.is_empty()
            && self.vote != VoteState::Lost
            && self.segments.iter().all(SegmentReport::is_sound)
    }
}

/// One segment, read whole.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SegmentReport {
    pub segment: SegmentId,
    pub generation: u32,
    pub shard: Option<ShardId>,
    pub file_bytes: u64,
    pub state: SegmentState,
    pub frames: u64,
    pub records: u64,
    pub messages: u64,
    pub last_index: Index,
    pub damaged: Vec<Damage>,
    pub side_file: SideFile,
}

impl SegmentReport {
    /// Its bytes are what was written. A side file that is not usable is no damage: it is derived.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.damaged.is_empty() && self.state != SegmentState::OpenSuspect
    }
}

/// What kind of segment it is, by its end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SegmentState {
    Sealed,
    Compacted,
    /// The newest, ending in a seal frame: the stop was clean.
    OpenClean,
    /// The newest, ending in a whole frame.
    Open,
    /// The newest, with a write that was under way behind its last frame: the next start cuts it.
    OpenTorn,
    /// The newest, with a last frame that fails its checksum: the next start refuses to cut it unasked.
    OpenSuspect,
    /// Its two ends do not say.
    Unknown,
}

/// What a sealed segment's side index is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SideFile {
    /// The segment is not sealed.
    None,
    Good,
    /// Not there; the next start builds it.
    Missing,
    /// Damaged or another segment's; the next start builds it again.
    Unusable,
}

/// A record as it lies in its segment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Dumped {
    pub segment: SegmentId,
    pub generation: u32,
    /// Of the record, or of the frame for a seal.
    pub offset: u64,
    pub index: Index,
    pub term: Term,
    pub timestamp: Timestamp,
    pub record: DumpedRecord,
}

/// What a record is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum DumpedRecord {
    Message(Message),
    Control(Bytes),
    Replication(Bytes),
    Snapshot(Bytes),
    /// The older segments that existed when this one was begun.
    Manifest(Vec<SegmentId>),
    /// Segments that hold nothing living any more.
    Retired(Vec<SegmentId>),
    /// A seal frame.
    Seal,
    Unreadable(DamageReason),
}

/// What a store holds of one stream, dead messages that are still there included.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct StreamStats {
    pub messages: u64,
    pub bytes: u64,
    pub subjects: u64,
    pub first: Sequence,
    pub last: Sequence,
    pub segments: u64,
}

/// What a store holds.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct StoreStats {
    pub segments: u64,
    pub file_bytes: u64,
    pub frames: u64,
    pub records: u64,
    pub last_index: Index,
    pub streams: BTreeMap<StreamId, StreamStats>,
}

/// Reads every byte of a shard's directory and says what is wrong with it.
pub fn check(disk: &dyn Disk, directory: &Path) -> Result<CheckReport, DiskFailed> {
    let listing = Listing::take(disk, directory)?;
    let newest = listing.segments.last_key_value().map(|(segment, _)| *segment);
    let mut report = CheckReport {
        segments: Vec::new(),
        missing: Vec::new(),
        unexpected: Vec::new(),
        unfinished: listing.unfinished,
        vote: look_at_vote(disk, directory)?,
    };
    let mut expected = BTreeSet::new();
    let mut before_newest = None;
    for (segment, generation) in &listing.segments {
        let key = SegmentKey { segment: *segment, generation: *generation };
        let mut messages = 0;
        let mut bad_records = Vec::new();
        let looked =
            look(disk, directory, key, Some(*segment) == newest, &mut |shard, frame, offset, body| {
                let salt = RecordSalt::new(shard);
                let mut at = offset + frame.frame_bytes() - body.len() as u64;
                for record in Records::new(body) {
                    let Ok(record) = record else { break };
                    if let Err(reason) = record.verify(salt) {
                        bad_records.push(Damage { segment: *segment, offset: at, reason });
                    }
                    match record.kind {
                        Kind::Message => messages += 1,
                        Kind::Manifest => expected = segments_of(record.body()).into_iter().collect(),
                        Kind::Retired => {
                            for retired in segments_of(record.body()) {
                                expected.remove(&retired);
                            }
                        }
                        Kind::Control | Kind::Snapshot | Kind::Replication => {}
                    }
                    at += record.bytes.len() as u64;
                }
            })?;
        let mut found = looked.report;
        found.messages = messages;
        found.damaged.extend(bad_records);
        if let (Some(header), true) = (looked.header, Some(*segment) == newest)
            && let Some((previous, checksum)) = before_newest
            && header.previous_segment == previous
            && header.previous_checksum != checksum
        {
            found.damaged.push(Damage { segment: *segment, offset: 0, reason: DamageReason::Chain });
        }
        before_newest = looked.last_checksum.map(|checksum| (*segment, checksum));
        report.segments.push(found);
    }
    report.missing =
        expected.iter().filter(|segment| !listing.segments.contains_key(segment)).copied().collect();
    report.unexpected = listing
        .segments
        .iter()
        .filter(|(segment, _)| Some(**segment) != newest && !expected.contains(segment))
        .map(|(segment, generation)| SegmentKey { segment: *segment, generation: *generation }.file_name())
        .chain(listing.superseded.iter().map(|key| key.file_name()))
        .collect();
    Ok(report)
}

/// Calls with every record in the order of the log, until told to stop.
pub fn dump(
    disk: &dyn Disk,
    directory: &Path,
    record: &mut dyn FnMut(Dumped) -> ControlFlow<()>,
) -> Result<(), DiskFailed> {
    let listing = Listing::take(disk, directory)?;
    let newest = listing.segments.last_key_value().map(|(segment, _)| *segment);
    let mut flow = ControlFlow::Continue(());
    for (segment, generation) in &listing.segments {
        let key = SegmentKey { segment: *segment, generation: *generation };
        look(disk, directory, key, Some(*segment) == newest, &mut |shard, frame, offset, body| {
            dump_frame(key, RecordSalt::new(shard), frame, offset, body, &mut |dumped| {
                if flow.is_continue() {
                    flow = record(dumped);
                }
            });
        })?;
        if flow.is_break() {
            break;
        }
    }
    Ok(())
}

fn dump_frame(
    key: SegmentKey,
    salt: RecordSalt,
    frame: &FrameHeader,
    offset: u64,
    body: &[u8],
    record: &mut dyn FnMut(Dumped),
) {
    let mut give = |offset, what| {
        record(Dumped {
            segment: key.segment,
            generation: key.generation,
            offset,
            index: frame.index,
            term: frame.term,
            timestamp: frame.timestamp,
            record: what,
        });
    };
    if frame.has(SEAL) {
        give(offset, DumpedRecord::Seal);
    }
    let mut at = offset + frame.frame_bytes() - body.len() as u64;
    for view in Records::new(body) {
        let view = match view {
            Ok(view) => view,
            Err(reason) => {
                give(at, DumpedRecord::Unreadable(reason));
                return;
            }
        };
        let body = || Bytes::copy_from_slice(view.body());
        let what = match (view.verify(salt), view.kind) {
            (Err(reason), _) => DumpedRecord::Unreadable(reason),
            (Ok(()), Kind::Message) => message_of(&Bytes::copy_from_slice(view.bytes))
                .map_or_else(DumpedRecord::Unreadable, DumpedRecord::Message),
            (Ok(()), Kind::Control) => DumpedRecord::Control(body()),
            (Ok(()), Kind::Replication) => DumpedRecord::Replication(body()),
            (Ok(()), Kind::Snapshot) => DumpedRecord::Snapshot(body()),
            (Ok(()), Kind::Manifest) => DumpedRecord::Manifest(segments_of(view.body())),
            (Ok(()), Kind::Retired) => DumpedRecord::Retired(segments_of(view.body())),
        };
        give(at, what);
        at += view.bytes.len() as u64;
    }
}

/// Sums up what a store holds.
pub fn stats(disk: &dyn Disk, directory: &Path) -> Result<StoreStats, DiskFailed> {
    let listing = Listing::take(disk, directory)?;
    let newest = listing.segments.last_key_value().map(|(segment, _)| *segment);
    let mut stats = StoreStats::default();
    let mut subjects: BTreeMap<StreamId, BTreeSet<Bytes>> = BTreeMap::new();
    for (segment, generation) in &listing.segments {
        let key = SegmentKey { segment: *segment, generation: *generation };
        let mut index = MemoryIndex::default();
        let looked = look(disk, directory, key, Some(*segment) == newest, &mut |_, _, offset, body| {
            index_frame(&mut index, offset, body);
        })?;
        stats.segments += 1;
        stats.file_bytes += looked.report.file_bytes;
        stats.frames += looked.report.frames;
        stats.records += looked.report.records;
        stats.last_index = stats.last_index.max(looked.report.last_index);
        for run in index.runs() {
            let totals = run.totals();
            let stream = stats.streams.entry(totals.stream).or_default();
            if stream.messages == 0 {
                stream.first = totals.first;
            }
            stream.messages += totals.count;
            stream.bytes += totals.bytes;
            stream.last = totals.last;
            stream.segments += 1;
            let names = subjects.entry(totals.stream).or_default();
            for (name, _) in run.subjects().iter() {
                if !names.contains(name) {
                    names.insert(Bytes::copy_from_slice(name));
                }
            }
        }
    }
    for (stream, names) in subjects {
        if let Some(stream) = stats.streams.get_mut(&stream) {
            stream.subjects = names.len() as u64;
        }
    }
    Ok(stats)
}

/// The files of a directory, by what their names say.
struct Listing {
    /// The latest generation of each segment.
    segments: BTreeMap<SegmentId, u32>,
    superseded: Vec<SegmentKey>,
    unfinished: Vec<String>,
}

impl Listing {
    fn take(disk: &dyn Disk, directory: &Path) -> Result<Self, DiskFailed> {
        let failed = |source| DiskFailed { action: "listing", path: directory.to_owned(), source };
        let mut listing = Self { segments: BTreeMap::new(), superseded: Vec::new(), unfinished: Vec::new() };
        for name in disk.list(directory).map_err(failed)? {
            match SegmentKey::parse(&name) {
                Some((key, true)) => {
                    if let Some(before) = listing.segments.insert(key.segment, key.generation) {
                        let older = before.min(key.generation);
                        listing.segments.insert(key.segment, before.max(key.generation));
                        listing.superseded.push(SegmentKey { segment: key.segment, generation: older });
                    }
                }
                Some((_, false)) => {}
                None if name.ends_with(".tmp") && name != crate::log::SPARE => listing.unfinished.push(name),
                None if name == INCOMING => {
                    let names = disk.list(&directory.join(INCOMING)).map_err(failed)?;
                    listing.unfinished.extend(names.into_iter().map(|name| format!("{INCOMING}/{name}")));
                }
                None => {}
            }
        }
        Ok(listing)
    }
}

struct Looked {
    report: SegmentReport,
    header: Option<SegmentHeader>,
    last_checksum: Option<u32>,
}

/// Called with the shard, and each whole frame: its header, place and body.
type OnFrame<'a> = dyn FnMut(ShardId, &FrameHeader, u64, &[u8]) + 'a;

/// Reads a segment whole.
fn look(
    disk: &dyn Disk,
    directory: &Path,
    key: SegmentKey,
    is_newest: bool,
    on_frame: &mut OnFrame<'_>,
) -> Result<Looked, DiskFailed> {
    let path = directory.join(key.file_name());
    let mut report = SegmentReport {
        segment: key.segment,
        generation: key.generation,
        shard: None,
        file_bytes: 0,
        state: SegmentState::Unknown,
        frames: 0,
        records: 0,
        messages: 0,
        last_index: Index(key.segment.0.saturating_sub(1)),
        damaged: Vec::new(),
        side_file: SideFile::None,
    };
    let damage = |offset, reason| Damage { segment: key.segment, offset, reason };
    let file =
        disk.open(&path, OpenMode::Read).map_err(|source| DiskFailed { action: "opening", path, source })?;
    let mut image = match read_image(&*file, false) {
        Ok(image) => image,
        Err(_unreadable) => {
            report.damaged.push(damage(0, DamageReason::Io));
            return Ok(Looked { report, header: None, last_checksum: None });
        }
    };
    report.file_bytes = image.file_bytes;
    let header = match SegmentHeader::decode(&image.bytes) {
        Ok(header) => header,
        Err(EndFault::Bytes | EndFault::Version(_)) => {
            report.damaged.push(damage(0, DamageReason::Checksum));
            return Ok(Looked { report, header: None, last_checksum: None });
        }
    };
    report.shard = Some(header.shard);
    if header.key() != key {
        report.damaged.push(damage(0, DamageReason::Misplaced));
    }
    let zeros = image.bytes.get(crate::format::segment::SEGMENT_HEADER_BYTES..).unwrap_or_default();
    let front =
        usize::try_from(FRAMES_AT).expect("a few thousand") - crate::format::segment::SEGMENT_HEADER_BYTES;
    if zeros.iter().take(front).any(|byte| *byte != 0) {
        report
            .damaged
            .push(damage(crate::format::segment::SEGMENT_HEADER_BYTES as u64, DamageReason::Checksum));
    }
    let footer = footer_of(&image);
    let end = image.file_bytes.saturating_sub(FOOTER_BYTES as u64);
    if footer.is_some() {
        image.bytes.truncate(usize::try_from(end).unwrap_or(usize::MAX));
    }
    let mut index = MemoryIndex::default();
    let mut ascends = true;
    let scan = tail::scan(&image.bytes, &header, &mut |frame, offset, body| {
        ascends &= index_frame(&mut index, offset, body);
        on_frame(header.shard, frame, offset, body);
    });
    report.frames = u64::from(scan.frames);
    report.records = scan.records;
    report.last_index = footer.map_or(scan.order.last_index, |footer| footer.last_index);
    report.damaged.extend(scan.gaps.iter().cloned());
    if !ascends {
        report.damaged.push(damage(FRAMES_AT, DamageReason::Chain));
    }
    report.state = match footer {
        Some(footer) => {
            if !footer_fits(&footer, key, &header, &scan, &image, end) {
                report.damaged.push(damage(scan.end, DamageReason::Checksum));
            }
            report.side_file = side_file(disk, directory, key, &footer, &index);
            if header.compacted { SegmentState::Compacted } else { SegmentState::Sealed }
        }
        None if !is_newest => {
            report.damaged.push(damage(end, DamageReason::Checksum));
            SegmentState::Unknown
        }
        None => {
            if image.file_bytes < header.preallocated {
                report.damaged.push(damage(image.file_bytes, DamageReason::Length));
            }
            match scan.ending {
                End::Here if scan.sealed => SegmentState::OpenClean,
                End::Here => SegmentState::Open,
                End::Torn => SegmentState::OpenTorn,
                End::Suspect | End::Version(_) => SegmentState::OpenSuspect,
            }
        }
    };
    Ok(Looked { report, header: Some(header), last_checksum: Some(scan.order.last_checksum) })
}

fn footer_of(image: &Image) -> Option<Footer> {
    let at = usize::try_from(image.file_bytes).ok()?.checked_sub(FOOTER_BYTES)?;
    let mut bytes = image.bytes.get(at..)?.to_vec();
    bytes.resize(FOOTER_BYTES, 0);
    Footer::decode(&bytes)
}

fn footer_fits(
    footer: &Footer,
    key: SegmentKey,
    header: &SegmentHeader,
    scan: &Scan,
    image: &Image,
    end: u64,
) -> bool {
    let frames_at = usize::try_from(FRAMES_AT).expect("a few thousand");
    let mut hash = ContentHash::new();
    hash.update(image.bytes.get(frames_at..).unwrap_or_default());
    // Zeros at the end that the image does not have.
    let missing = usize::try_from(end).unwrap_or(usize::MAX).saturating_sub(image.bytes.len().max(frames_at));
    hash.update(&vec![0; missing]);
    let order_fits = header.compacted
        || (footer.last_index == scan.order.last_index && footer.last_checksum == scan.order.last_checksum);
    footer.segment == key.segment
        && footer.generation == key.generation
        && footer.shard == header.shard
        && scan.end == end
        && scan.frames == footer.frames
        && scan.records == footer.records
        && order_fits
        && hash.value() == footer.content_hash
}

fn side_file(
    disk: &dyn Disk,
    directory: &Path,
    key: SegmentKey,
    footer: &Footer,
    index: &MemoryIndex,
) -> SideFile {
    let read = disk.open(&directory.join(key.index_name()), OpenMode::Read).and_then(|file| {
        let mut bytes = vec![0; usize::try_from(file.len()?).unwrap_or(0)];
        let read = file.read_at(&mut bytes, 0)?;
        bytes.truncate(read);
        Ok(bytes)
    });
    match read {
        Ok(bytes) if bytes == index::encode(index, footer.shard, key, footer.content_hash) => SideFile::Good,
        Err(error) if error.kind() == io::ErrorKind::NotFound => SideFile::Missing,
        Ok(_) | Err(_) => SideFile::Unusable,
    }
}
