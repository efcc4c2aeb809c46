//! Opening a log: what every file is, what may be cut, what is fenced. The table is in
//! `docs/design/format.md`; `tail.rs` decides about bytes, this file about files.

mod image;
mod newest;
mod older;
mod quarantine;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use crate::{
    Disk, DiskFailed, DiskFile, Index, Log, LogOptions, LogStats, OpenError, Opened, RecoveryReport,
    SegmentId, ShardId, Tail, TailDoubt, Term, Timestamp,
    files::Files,
    format::{
        record::RecordSalt,
        segment::{FRAMES_AT, SegmentHeader, SegmentKey},
    },
    index::IndexCache,
    log::Pending,
    maintain::Upkeep,
    released::Releases,
    replica::{History, complete_installation},
    rewrite::NewFile,
    segment::OpenSegment,
};

pub(crate) use image::{Image, read_image};
pub(crate) use newest::Newest;
pub(crate) use quarantine::{QUARANTINE, quarantine, quarantine_as};

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
    // A copy of a peer's log that was verified takes the place of this one, whatever this one is.
    complete_installation(&files)?;
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
