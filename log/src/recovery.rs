//! Opening a log: what every file is, what may be cut, what is fenced. The table is in
//! `docs/design/format.md`; `tail.rs` decides about bytes, this file about files.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use bytes::Bytes;

use crate::{
    Damage, DamageReason, Disk, DiskFailed, DiskFile, Index, Log, LogOptions, LogStats, OpenError, OpenMode,
    Opened, RecoveryReport, SegmentId, ShardId, Snapshot, SuspectTail, Tail, TailDoubt, Term, Timestamp,
    files::Files,
    format::{
        frame::{FRAME_HEADER_BYTES, FrameHeader, SNAPSHOT, SNAPSHOT_END},
        hash::ContentHash,
        record::{Kind, RecordSalt, Records, segments_of},
        segment::{
            EndFault, FOOTER_BYTES, FORMAT_VERSION, FRAMES_AT, Footer, SEGMENT_HEADER_BYTES, SegmentHeader,
            SegmentKey,
        },
    },
    index::{IndexCache, MemoryIndex},
    log::{Pending, write_footer},
    maintain::Upkeep,
    released::Releases,
    replica::History,
    rewrite::NewFile,
    segment::{OpenSegment, Sealed, SealedIndex, index_frame, load_directory},
    tail::{self, End, Scan},
};

/// What is read at once.
const CHUNK_BYTES: usize = 1 << 20;
pub(crate) const QUARANTINE: &str = "quarantine";

/// The bytes of a file, without the zeros at its end.
pub(crate) struct Image {
    pub(crate) bytes: Vec<u8>,
    pub(crate) file_bytes: u64,
}

impl Image {
    /// The bytes from the first frame to `end`, which may lie in the zeros that are not kept.
    pub(crate) fn frames_to(&mut self, end: u64) -> &[u8] {
        let from = usize::try_from(FRAMES_AT).expect("a few thousand");
        let end = usize::try_from(end).expect("a place in an image that is in memory").max(from);
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        &self.bytes[from..end]
    }
}

/// Reads a file whole, past the page cache if asked to. What was preallocated and never written is zeros
/// by the filesystem's own account, and is not read: a start would pay for a whole segment.
pub(crate) fn read_image(file: &dyn DiskFile, past_cache: bool) -> std::io::Result<Image> {
    let file_bytes = file.len()?;
    let mut bytes = Vec::new();
    let mut chunk = vec![0; CHUNK_BYTES.min(usize::try_from(file_bytes).unwrap_or(CHUNK_BYTES))];
    let mut at = 0;
    while at < file_bytes {
        let Some(written) = file.next_data(at)? else { break };
        at = written;
        let read =
            if past_cache { file.read_at_past_cache(&mut chunk, at)? } else { file.read_at(&mut chunk, at)? };
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(last) = last_written(&chunk[..read]) {
            let offset = usize::try_from(at).expect("a place in a file that is read into memory");
            bytes.resize(offset, 0);
            bytes.extend_from_slice(&chunk[..=last]);
        }
        at += read as u64;
    }
    Ok(Image { bytes, file_bytes })
}

/// The last byte that is not zero. Most of a preallocated file is, and every start looks at all of it: whole
/// blocks are compared before bytes are.
fn last_written(chunk: &[u8]) -> Option<usize> {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut end = chunk.len();
    for block in chunk.rchunks(ZEROS.len()) {
        if *block != ZEROS[..block.len()] {
            let start = end - block.len();
            return block.iter().rposition(|byte| *byte != 0).map(|at| start + at);
        }
        end -= block.len();
    }
    None
}

/// What stands in a shard's directory.
struct Inventory {
    /// The generations of each segment.
    segments: BTreeMap<SegmentId, BTreeSet<u32>>,
    indexes: Vec<SegmentKey>,
    /// Files that were not finished.
    unfinished: Vec<String>,
}

impl Inventory {
    fn take(files: &Files) -> Result<Self, DiskFailed> {
        let directory = files.directory();
        let names = files.disk().list(directory).map_err(|source| DiskFailed {
            action: "listing",
            path: directory.to_owned(),
            source,
        })?;
        let mut inventory = Self { segments: BTreeMap::new(), indexes: Vec::new(), unfinished: Vec::new() };
        for name in names {
            match SegmentKey::parse(&name) {
                Some((key, true)) => {
                    inventory.segments.entry(key.segment).or_default().insert(key.generation);
                }
                Some((key, false)) => inventory.indexes.push(key),
                None if name.ends_with(".tmp") => inventory.unfinished.push(name),
                None => {}
            }
        }
        Ok(inventory)
    }

    /// The generation of a segment that counts: an installed file is whole, so the latest one.
    fn latest(&self, segment: SegmentId) -> Option<SegmentKey> {
        let generation = *self.segments.get(&segment)?.last()?;
        Some(SegmentKey { segment, generation })
    }
}

pub(crate) fn open(
    disk: Arc<dyn Disk>,
    directory: &Path,
    shard: ShardId,
    options: LogOptions,
) -> Result<Opened, OpenError> {
    options.check().map_err(OpenError::Options)?;
    let files = Files::new(disk, directory, options.read_cache_bytes);
    let inventory = Inventory::take(&files)?;
    let Some(newest) = inventory.segments.keys().next_back().and_then(|segment| inventory.latest(*segment))
    else {
        if options.must_exist {
            return Err(OpenError::Missing { directory: directory.to_owned() });
        }
        return begin(files, shard, options, &inventory);
    };
    let read = Newest::read(&files, newest, shard, &options)?;
    // From here on the log can be opened; what is not finished or not newest any more may go.
    remove_unfinished(&files, &inventory)?;
    let mut report = RecoveryReport {
        segments: 1,
        last_index: read.scan.order.last_index,
        frames: u64::from(read.scan.frames),
        tail: read.tail(&options),
        rewritten: false,
        finished_roll: false,
        indexes_rebuilt: 0,
        missing: Vec::new(),
        unexpected: Vec::new(),
        damaged: read.scan.gaps.clone(),
        quarantined: Vec::new(),
    };
    if let Tail::LossAccepted { .. } = report.tail {
        let behind = usize::try_from(read.scan.end).ok().and_then(|end| read.image.bytes.get(end..));
        report.quarantined.extend(quarantine(&files, newest, read.scan.end, behind.unwrap_or_default()));
    }
    let expected = read.expected_segments();
    let retired = read.records.retired.iter().copied().collect();
    let snapshot = read.snapshot();
    let fence = read.scan.gaps.first().cloned();
    let (last_index, last_checksum) = (read.scan.order.last_index, read.scan.order.last_checksum);
    let (term, now, last_term) = (read.term, read.now, read.scan.order.last_term);
    let doubt = matches!(report.tail, Tail::Suspect { .. }).then(|| read.doubt());
    // Nothing is written to a log in doubt before the doubt is settled.
    let fence = fence.or_else(|| doubt.as_ref().map(TailDoubt::damage));
    let as_it_is = match report.tail {
        Tail::Clean | Tail::Fenced | Tail::Suspect { .. } => true,
        // A log in which nothing was ever written is what it was when it was installed.
        Tail::Whole => read.scan.frames == 0,
        Tail::New | Tail::Torn { .. } | Tail::LossAccepted { .. } => false,
    };
    let (open, rewritten) = read.into_open(&files, as_it_is)?;
    report.rewritten = rewritten;
    let mut log = Log {
        shard,
        salt: RecordSalt::new(shard),
        cache: IndexCache::new(options.index_cache_bytes),
        files,
        open,
        sealed: BTreeMap::new(),
        runs: BTreeMap::new(),
        pending: Pending::new(),
        releases: Releases::default(),
        upkeep: Upkeep::default(),
        background: None,
        losses: BTreeMap::new(),
        fence,
        poisoned: false,
        term,
        now,
        last_index,
        last_term,
        last_checksum,
        durable_index: last_index,
        unsynced: false,
        counts: LogStats::default(),
        history: History::default(),
        doubt,
        options,
    };
    log.adopt_older(&inventory, &expected, &retired, &mut report)?;
    log.refresh_history();
    log.prepare_spare()?;
    report.segments = log.sealed.len() + 1;
    tracing::info!(
        shard = shard.0,
        segments = report.segments,
        index = report.last_index.0,
        frames = report.frames,
        tail = ?report.tail,
        rewritten = report.rewritten,
        finished_roll = report.finished_roll,
        indexes_rebuilt = report.indexes_rebuilt,
        missing = report.missing.len(),
        unexpected = report.unexpected.len(),
        damaged = report.damaged.len(),
        "opened the log"
    );
    Ok(Opened { log, snapshot, report })
}

/// The first segment of a new log.
fn begin(
    files: Files,
    shard: ShardId,
    options: LogOptions,
    inventory: &Inventory,
) -> Result<Opened, OpenError> {
    remove_unfinished(&files, inventory)?;
    let header = SegmentHeader {
        compacted: false,
        shard,
        segment: SegmentId(1),
        generation: 0,
        previous_checksum: 0,
        previous_segment: SegmentId(0),
        preallocated: FRAMES_AT + options.segment_bytes,
    };
    let file = copy(&files, header, &[], &options)?;
    let log = Log {
        shard,
        salt: RecordSalt::new(shard),
        cache: IndexCache::new(options.index_cache_bytes),
        files,
        open: OpenSegment::new(header, file, FRAMES_AT),
        sealed: BTreeMap::new(),
        runs: BTreeMap::new(),
        pending: Pending::new(),
        releases: Releases::default(),
        upkeep: Upkeep::default(),
        background: None,
        losses: BTreeMap::new(),
        fence: None,
        poisoned: false,
        term: Term(1),
        now: Timestamp(0),
        last_index: Index(0),
        last_term: Term(0),
        last_checksum: 0,
        durable_index: Index(0),
        unsynced: false,
        counts: LogStats::default(),
        history: History::default(),
        doubt: None,
        options,
    };
    let report = RecoveryReport {
        segments: 1,
        last_index: Index(0),
        frames: 0,
        tail: Tail::New,
        rewritten: false,
        finished_roll: false,
        indexes_rebuilt: 0,
        missing: Vec::new(),
        unexpected: Vec::new(),
        damaged: Vec::new(),
        quarantined: Vec::new(),
    };
    let mut opened = Opened { log, snapshot: None, report };
    opened.log.prepare_spare()?;
    tracing::info!(shard = shard.0, "began a new log");
    Ok(opened)
}

/// Files under a name that is thrown away hold nothing that was acknowledged.
fn remove_unfinished(files: &Files, inventory: &Inventory) -> Result<(), DiskFailed> {
    for name in &inventory.unfinished {
        files.disk().remove(&files.path(name)).map_err(|source| files.failed("removing", name, source))?;
    }
    Ok(())
}

/// Installs an open segment with this header and these bytes behind it.
fn copy(
    files: &Files,
    header: SegmentHeader,
    frames: &[u8],
    options: &LogOptions,
) -> Result<Box<dyn DiskFile>, DiskFailed> {
    let mut new = NewFile::create(files, "tail.tmp")?;
    let mut front = header.encode();
    front.resize(usize::try_from(FRAMES_AT).expect("a few thousand"), 0);
    new.append(files, &front)?;
    if !frames.is_empty() {
        new.append(files, frames)?;
    }
    new.preallocate(files, header.preallocated)?;
    new.settle(files)?.install(files, &header.key().file_name(), options.syncs_directory())
}

/// The newest segment, read past the page cache.
pub(crate) struct Newest {
    key: SegmentKey,
    header: SegmentHeader,
    image: Image,
    scan: Scan,
    index: MemoryIndex,
    term: Term,
    now: Timestamp,
    /// Where the frames behind the snapshot begin.
    frames_from: u64,
    records: Collected,
    marks: Vec<(Index, u64)>,
}

/// Records of the newest segment that the log itself needs.
#[derive(Default)]
struct Collected {
    snapshot: Vec<Bytes>,
    snapshot_ended: bool,
    manifest: Vec<SegmentId>,
    retired: Vec<SegmentId>,
}

impl Newest {
    pub(crate) fn read(
        files: &Files,
        key: SegmentKey,
        shard: ShardId,
        options: &LogOptions,
    ) -> Result<Self, OpenError> {
        let name = key.file_name();
        let file = files
            .disk()
            .open(&files.path(&name), OpenMode::Read)
            .map_err(|source| files.failed("opening", &name, source))?;
        let image = read_image(&*file, true).map_err(|source| files.failed("reading", &name, source))?;
        let corrupt = |offset, reason| OpenError::Corrupt {
            damage: Damage { segment: key.segment, offset, reason },
            quarantined: quarantine(files, key, 0, &image.bytes),
        };
        let header = SegmentHeader::decode(&image.bytes).map_err(|fault| match fault {
            EndFault::Version(version) => {
                OpenError::UnknownVersion { path: files.path(&name), version, known: FORMAT_VERSION }
            }
            EndFault::Bytes => corrupt(0, DamageReason::Checksum),
        })?;
        if header.shard != shard {
            return Err(OpenError::ForeignShard {
                path: files.path(&name),
                found: header.shard,
                expected: shard,
            });
        }
        if header.key() != key || header.compacted {
            return Err(corrupt(0, DamageReason::Misplaced));
        }
        if image.file_bytes < header.preallocated {
            // Sealed, so there was a newer segment; or cut short.
            let reason = if footer_of(&image, key, shard).is_some() {
                DamageReason::Missing
            } else {
                DamageReason::Length
            };
            return Err(corrupt(image.file_bytes, reason));
        }
        let mut index = MemoryIndex::default();
        let mut collected = Collected::default();
        let mut frames_from = FRAMES_AT;
        let mut marks = Vec::new();
        let (mut term, mut now) = (Term(1), Timestamp(0));
        let mut misplaced = None;
        let scan = tail::scan(&image.bytes, &header, &mut |frame, offset, body| {
            if frame.has(SNAPSHOT) {
                frames_from = offset + frame.frame_bytes();
                collected.snapshot_ended = frame.has(SNAPSHOT_END);
            }
            if frame.is_ordinary() {
                marks.push((frame.index, offset));
            }
            term = term.max(frame.term);
            now = now.max(frame.timestamp);
            collected.take(body);
            if !index_frame(&mut index, offset, body) {
                misplaced.get_or_insert(offset);
            }
        });
        if let Some(offset) = misplaced {
            return Err(corrupt(offset, DamageReason::Misplaced));
        }
        let begins_with_state = header.previous_segment == SegmentId(0) || collected.snapshot_ended;
        match scan.ending {
            End::Version(version) => {
                return Err(OpenError::UnknownVersion {
                    path: files.path(&name),
                    version: u16::from(version),
                    known: FORMAT_VERSION,
                });
            }
            // Damage before the end of the snapshot: there is no state.
            End::Here | End::Torn | End::Suspect if !begins_with_state => {
                return Err(corrupt(scan.end, DamageReason::Checksum));
            }
            End::Suspect if !options.accept_tail_loss && options.suspect_tail == SuspectTail::Refuse => {
                return Err(OpenError::SuspectTail {
                    segment: key.segment,
                    offset: scan.end,
                    first: scan.order.last_index.next(),
                });
            }
            End::Here | End::Torn | End::Suspect => {}
        }
        if let Some(damage) = scan.gaps.iter().find(|gap| gap.offset < frames_from) {
            return Err(corrupt(damage.offset, damage.reason));
        }
        Ok(Self { key, header, image, scan, index, term, now, frames_from, records: collected, marks })
    }

    fn tail(&self, options: &LogOptions) -> Tail {
        let bytes = (self.image.bytes.len() as u64).saturating_sub(self.scan.end);
        if !self.scan.gaps.is_empty() {
            return Tail::Fenced;
        }
        match self.scan.ending {
            End::Here if self.scan.sealed => Tail::Clean,
            End::Here | End::Version(_) => Tail::Whole,
            End::Torn => Tail::Torn { bytes },
            End::Suspect if options.accept_tail_loss => Tail::LossAccepted { bytes },
            End::Suspect => Tail::Suspect { bytes },
        }
    }

    /// The older segments that should be there.
    fn expected_segments(&self) -> BTreeSet<SegmentId> {
        let mut expected: BTreeSet<SegmentId> = self.records.manifest.iter().copied().collect();
        for retired in &self.records.retired {
            expected.remove(retired);
        }
        expected
    }

    fn snapshot(&self) -> Option<Snapshot> {
        self.records.snapshot_ended.then(|| Snapshot {
            index: Index(self.header.segment.0 - 1),
            records: self.records.snapshot.clone(),
        })
    }

    /// What the next frame must say of itself.
    pub(crate) const fn order(&self) -> tail::Order {
        self.scan.order
    }

    /// What is known of a tail that was opened in doubt.
    fn doubt(&self) -> TailDoubt {
        let behind = usize::try_from(self.scan.end).ok().and_then(|end| self.image.bytes.get(end..));
        let behind = behind.unwrap_or_default();
        let named = FrameHeader::decode(behind).ok().filter(|header| self.scan.order.accepts(header));
        let is_last = |header: &FrameHeader| {
            let len = usize::try_from(header.frame_bytes()).unwrap_or(usize::MAX);
            behind.get(len..).unwrap_or_default().iter().all(|byte| *byte == 0)
        };
        TailDoubt {
            segment: self.key.segment,
            offset: self.scan.end,
            bytes: behind.len() as u64,
            first: self.scan.order.last_index.next(),
            term: named.map(|header| header.term),
            is_one: named.is_some_and(|header| is_last(&header)),
        }
    }

    /// Goes on with this segment in its file, which was written and read back just now.
    pub(crate) fn into_open_as_it_is(self, files: &Files) -> Result<OpenSegment, OpenError> {
        Ok(self.into_open(files, true)?.0)
    }

    /// Goes on with this segment: as it is, or in a new generation. Says which.
    fn into_open(mut self, files: &Files, as_it_is: bool) -> Result<(OpenSegment, bool), OpenError> {
        let frames = self.image.frames_to(self.scan.end);
        let name = self.key.file_name();
        let (header, file) = if as_it_is {
            let file = files
                .disk()
                .open(&files.path(&name), OpenMode::ReadWrite)
                .map_err(|source| files.failed("opening", &name, source))?;
            (self.header, file)
        } else {
            // The page cache may hold bytes that the disk does not, and a later sync would not write them
            // (DR2): what the disk holds is written again, elsewhere.
            let header = SegmentHeader { generation: self.header.generation + 1, ..self.header };
            let mut new = NewFile::create(files, "tail.tmp")?;
            let mut front = header.encode();
            front.resize(usize::try_from(FRAMES_AT).expect("a few thousand"), 0);
            new.append(files, &front)?;
            new.append(files, frames)?;
            new.preallocate(files, header.preallocated)?;
            let file = new.settle(files)?.install(files, &header.key().file_name(), true)?;
            (header, file)
        };
        let mut hash = ContentHash::new();
        hash.update(frames);
        let mut open = OpenSegment::new(header, file, self.frames_from);
        open.end = self.scan.end;
        open.hash = hash;
        open.frames = self.scan.frames;
        open.ordinary = self.scan.ordinary;
        open.records = self.scan.records;
        open.sealed = self.scan.sealed;
        open.base_term = self.scan.base_term;
        open.index = self.index;
        for (index, at) in self.marks {
            open.mark(index, at);
        }
        Ok((open, !as_it_is))
    }
}

impl Collected {
    fn take(&mut self, body: &[u8]) {
        for record in Records::new(body).map_while(Result::ok) {
            match record.kind {
                Kind::Message | Kind::Control | Kind::Replication => {}
                Kind::Snapshot => self.snapshot.push(Bytes::copy_from_slice(record.body())),
                Kind::Manifest => self.manifest = segments_of(record.body()),
                Kind::Retired => self.retired.extend(segments_of(record.body())),
            }
        }
    }
}

/// The footer at the end of a file, if one of this segment stands there.
fn footer_of(image: &Image, key: SegmentKey, shard: ShardId) -> Option<Footer> {
    let at = usize::try_from(image.file_bytes).ok()?.checked_sub(FOOTER_BYTES)?;
    let mut bytes = image.bytes.get(at..)?.to_vec();
    bytes.resize(FOOTER_BYTES, 0);
    Footer::decode(&bytes).filter(|footer| {
        footer.segment == key.segment && footer.generation == key.generation && footer.shard == shard
    })
}

/// Keeps a copy of bytes that cannot be read. A copy that cannot be made changes nothing: the bytes stay
/// where they are, or the loss was accepted.
pub(crate) fn quarantine(
    files: &Files,
    key: SegmentKey,
    offset: u64,
    bytes: &[u8],
) -> Option<std::path::PathBuf> {
    quarantine_as(files, &format!("{:020}-{:06}-{offset}.bytes", key.segment.0, key.generation), bytes)
}

/// As [`quarantine`], under another name.
pub(crate) fn quarantine_as(files: &Files, name: &str, bytes: &[u8]) -> Option<std::path::PathBuf> {
    let directory = files.path(QUARANTINE);
    let path = directory.join(name);
    let kept = (|| {
        if !files.disk().exists(&directory)? {
            files.disk().create_dir(&directory)?;
            files.disk().sync_dir(files.directory())?;
        }
        if files.disk().exists(&path)? {
            return Ok(());
        }
        let file = files.disk().open(&path, OpenMode::CreateNew)?;
        file.write_at(bytes, 0)?;
        file.sync_data()?;
        files.disk().sync_dir(&directory)
    })();
    match kept {
        Ok(()) => Some(path),
        Err(error) => {
            tracing::error!(name, err = %error, "bytes were not copied before they went");
            None
        }
    }
}

impl Log {
    /// Takes in the segments before the newest one.
    fn adopt_older(
        &mut self,
        inventory: &Inventory,
        expected: &BTreeSet<SegmentId>,
        retired: &BTreeSet<SegmentId>,
        report: &mut RecoveryReport,
    ) -> Result<(), OpenError> {
        let newest = self.open.header.segment;
        let mut superseded = Vec::new();
        for (segment, generations) in &inventory.segments {
            let latest = if *segment == newest {
                self.open.key()
            } else {
                inventory.latest(*segment).expect("a segment of the inventory has a generation")
            };
            for generation in generations {
                let key = SegmentKey { segment: *segment, generation: *generation };
                if key != latest {
                    superseded.push(key);
                }
            }
            if *segment == newest {
                continue;
            }
            if retired.contains(segment) {
                // The record that says so is durable; only the unlinking was not.
                superseded.push(latest);
                continue;
            }
            if !expected.contains(segment) {
                report.unexpected.push(latest.file_name());
                continue;
            }
            let sealed = self.adopt(latest, report)?;
            if let Some(damage) = &sealed.damage {
                report.damaged.push(damage.clone());
            }
            self.add_sealed(sealed);
        }
        for segment in expected {
            if !inventory.segments.contains_key(segment) {
                report.missing.push(*segment);
                let damage = Damage { segment: *segment, offset: 0, reason: DamageReason::Missing };
                self.losses.insert(*segment, damage.clone());
                report.damaged.push(damage);
            }
        }
        // Another generation with the same living messages is installed and synced.
        for key in &superseded {
            self.remove_file(&key.file_name())?;
        }
        for key in &inventory.indexes {
            if self.sealed.get(&key.segment).is_none_or(|sealed| sealed.key != *key) {
                self.remove_file(&key.index_name())?;
            }
        }
        if !superseded.is_empty() {
            self.files.sync_directory()?;
        }
        Ok(())
    }

    pub(crate) fn remove_file(&self, name: &str) -> Result<(), DiskFailed> {
        match self.files.disk().remove(&self.files.path(name)) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(self.files.failed("removing", name, source)),
        }
    }

    /// A sealed segment. Damage is no error here: the rest is served.
    fn adopt(&mut self, key: SegmentKey, report: &mut RecoveryReport) -> Result<Sealed, OpenError> {
        let name = key.file_name();
        let ends = match self.read_ends(key) {
            Ok(ends) => ends,
            Err(source) => {
                tracing::error!(segment = key.segment.0, err = %source, "a segment cannot be read");
                let damage = Damage { segment: key.segment, offset: 0, reason: DamageReason::Io };
                return Ok(Sealed {
                    key,
                    bytes: 0,
                    compacted: false,
                    footer: None,
                    index: SealedIndex::Memory(MemoryIndex::default()),
                    damage: Some(damage),
                });
            }
        };
        let (bytes, header, footer) = match ends {
            (_, Err(EndFault::Version(version)), _) => {
                return Err(OpenError::UnknownVersion {
                    path: self.files.path(&name),
                    version,
                    known: FORMAT_VERSION,
                });
            }
            (_, Ok(header), _) if header.shard != self.shard => {
                return Err(OpenError::ForeignShard {
                    path: self.files.path(&name),
                    found: header.shard,
                    expected: self.shard,
                });
            }
            (bytes, header, footer) => (bytes, header.ok().filter(|header| header.key() == key), footer),
        };
        if let (Some(header), Some(footer)) = (&header, footer) {
            if let Some(directory) = load_directory(&mut self.files, key, &footer) {
                return Ok(Sealed {
                    key,
                    bytes,
                    compacted: header.compacted,
                    footer: Some(footer),
                    index: SealedIndex::Side(directory),
                    damage: None,
                });
            }
            report.indexes_rebuilt += 1;
            return Ok(self.salvage(key, Some(*header), Some(footer)));
        }
        if let (Some(header), None) = (&header, footer)
            && key.segment == self.open.header.previous_segment
            && let Some(sealed) = self.finish_roll(key, header)?
        {
            report.finished_roll = true;
            return Ok(sealed);
        }
        Ok(self.salvage(key, header, footer))
    }

    /// Length, header and footer of a segment.
    fn read_ends(
        &mut self,
        key: SegmentKey,
    ) -> std::io::Result<(u64, Result<SegmentHeader, EndFault>, Option<Footer>)> {
        let file = self.files.disk().open(&self.files.path(&key.file_name()), OpenMode::Read)?;
        let bytes = file.len()?;
        let mut header = [0; SEGMENT_HEADER_BYTES];
        let read = file.read_at(&mut header, 0)?;
        let header = SegmentHeader::decode(&header[..read]);
        let mut footer = [0; FOOTER_BYTES];
        let footer = match bytes.checked_sub(FOOTER_BYTES as u64) {
            Some(at) if file.read_at(&mut footer, at)? == FOOTER_BYTES => Footer::decode(&footer),
            Some(_) | None => None,
        };
        let footer = footer.filter(|footer| {
            footer.segment == key.segment && footer.generation == key.generation && footer.shard == self.shard
        });
        Ok((bytes, header, footer))
    }

    /// Seals the segment before the newest one, if it holds what the newest one's header says.
    fn finish_roll(&mut self, key: SegmentKey, header: &SegmentHeader) -> Result<Option<Sealed>, OpenError> {
        let name = key.file_name();
        let open = |mode| {
            self.files
                .disk()
                .open(&self.files.path(&name), mode)
                .map_err(|source| self.files.failed("opening", &name, source))
        };
        let Ok(mut image) = read_image(&*open(OpenMode::Read)?, true) else { return Ok(None) };
        let mut index = MemoryIndex::default();
        let mut in_order = true;
        let scan = tail::scan(&image.bytes, header, &mut |_, offset, body| {
            in_order &= index_frame(&mut index, offset, body);
        });
        let whole = in_order
            && scan.gaps.is_empty()
            && scan.order.last_index.0 + 1 == self.open.header.segment.0
            && scan.order.last_checksum == self.open.header.previous_checksum;
        if !whole {
            return Ok(None);
        }
        let footer = Footer {
            segment: key.segment,
            last_index: scan.order.last_index,
            generation: key.generation,
            last_checksum: scan.order.last_checksum,
            frames: scan.frames,
            shard: self.shard,
            records: scan.records,
            content_hash: ContentHash::of(image.frames_to(scan.end)),
        };
        let bytes = write_footer(&self.files, &*open(OpenMode::ReadWrite)?, key, &footer, scan.end)?;
        let index = self.write_side_file(key, &footer, index);
        Ok(Some(Sealed { key, bytes, compacted: false, footer: Some(footer), index, damage: None }))
    }

    /// Reads a sealed segment whole to index it anew. What is damaged is noted and left as it is.
    pub(crate) fn salvage(
        &mut self,
        key: SegmentKey,
        header: Option<SegmentHeader>,
        footer: Option<Footer>,
    ) -> Sealed {
        let name = key.file_name();
        let lost = |reason, offset| Damage { segment: key.segment, offset, reason };
        let image = self
            .files
            .disk()
            .open(&self.files.path(&name), OpenMode::Read)
            .and_then(|file| read_image(&*file, false));
        let Ok(mut image) = image else {
            return Sealed {
                key,
                bytes: 0,
                compacted: header.is_some_and(|header| header.compacted),
                footer,
                index: SealedIndex::Memory(MemoryIndex::default()),
                damage: Some(lost(DamageReason::Io, 0)),
            };
        };
        let file_bytes = image.file_bytes;
        let mut damage = header.is_none().then(|| lost(DamageReason::Checksum, 0));
        let compacted = header.map_or_else(|| holds_compacted(&image.bytes), |header| header.compacted);
        // Without its header a segment's frames still say whose they are; the order before them is not known.
        let header = header.unwrap_or(SegmentHeader {
            compacted,
            shard: self.shard,
            segment: key.segment,
            generation: key.generation,
            previous_checksum: first_previous(&image.bytes),
            previous_segment: SegmentId(0),
            preallocated: 0,
        });
        let end = file_bytes.saturating_sub(FOOTER_BYTES as u64);
        if footer.is_some() {
            image.bytes.truncate(usize::try_from(end).unwrap_or(usize::MAX));
        }
        let mut index = MemoryIndex::default();
        let mut last = BTreeMap::new();
        let mut misplaced = None;
        let scan = tail::scan(&image.bytes, &header, &mut |_, offset, body| {
            if !index_frame_once(&mut index, &mut last, offset, body) {
                misplaced.get_or_insert(offset);
            }
        });
        damage = damage.or_else(|| scan.gaps.first().cloned()).or(match footer {
            None => Some(lost(DamageReason::Checksum, end)),
            Some(footer)
                if scan.end != end
                    || scan.frames != footer.frames
                    || scan.records != footer.records
                    || ContentHash::of(image.frames_to(scan.end)) != footer.content_hash =>
            {
                Some(lost(DamageReason::Checksum, scan.end))
            }
            Some(_) => misplaced.map(|offset| lost(DamageReason::Misplaced, offset)),
        });
        let index = match (&damage, footer) {
            (None, Some(footer)) => self.write_side_file(key, &footer, index),
            (Some(damage), _) => {
                tracing::error!(segment = key.segment.0, offset = damage.offset, err = %damage, "a segment is damaged");
                SealedIndex::Memory(index)
            }
            (None, None) => SealedIndex::Memory(index),
        };
        Sealed { key, bytes: file_bytes, compacted, footer, index, damage }
    }
}

/// As [`index_frame`], for frames of which one may be missing or stand twice; such a one is left out whole.
fn index_frame_once(
    index: &mut MemoryIndex,
    last: &mut BTreeMap<crate::StreamId, crate::Sequence>,
    offset: u64,
    body: &[u8],
) -> bool {
    let ascends = Records::new(body).map_while(Result::ok).filter(|record| record.kind == Kind::Message).all(
        |record| {
            record.message().is_ok_and(|message| {
                let before = last.insert(message.stream, message.sequence);
                before.is_none_or(|before| before < message.sequence)
            })
        },
    );
    ascends && index_frame(index, offset, body)
}

/// The checksum before the first frame, if a frame's header stands where the first one should.
fn first_previous(image: &[u8]) -> u32 {
    first_header(image).map_or(0, |header| header.previous)
}

fn holds_compacted(image: &[u8]) -> bool {
    first_header(image).is_some_and(|header| header.has(crate::format::frame::COMPACTED))
}

fn first_header(image: &[u8]) -> Option<FrameHeader> {
    let at = usize::try_from(FRAMES_AT).expect("a few thousand");
    FrameHeader::decode(image.get(at..at + FRAME_HEADER_BYTES)?).ok()
}
