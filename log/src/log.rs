//! The log of one shard: the frame being gathered, writing and syncing it, and beginning new segments.
//!
//! Invariants: `durable ≤ last`; at most one frame is written and not durable; after a failed write or
//! sync nothing is written any more (DR2); what is read was verified (DR15).

use std::{collections::BTreeMap, io, path::Path, sync::Arc};

use crate::{
    CloseError, Damage, Disk, DiskFailed, Index, LogOptions, LogStats, MessageRef, OpenError, RecoveryReport,
    RollError, RunSummary, SegmentId, Sequence, ShardId, Snapshot, StreamId, SyncError, TailDoubt, Term,
    Timestamp, WriteError,
    background::{self, Background, Done},
    files::Files,
    format::{
        frame::{self, FRAME_HEADER_BYTES, FrameHeader, SEAL, SNAPSHOT, SNAPSHOT_END},
        record::{self, Kind, MessageView, RecordSalt, WITH_MESSAGE_ID},
        segment::{FRAMES_AT, Footer, SegmentHeader, SegmentKey},
    },
    index::{IndexCache, MemoryIndex, RunTotals},
    is_out_of_space,
    maintain::Upkeep,
    recovery,
    released::Releases,
    replica::History,
    rewrite::{NewFile, Settled},
    segment::{OpenSegment, Sealed, SealedIndex},
};

/// The preallocated next segment.
pub(crate) const SPARE: &str = "spare.tmp";
/// Space that is given up when the disk is full.
pub(crate) const BALLAST: &str = "ballast";

/// An open log.
#[derive(Debug)]
pub struct Log {
    pub(crate) shard: ShardId,
    pub(crate) options: LogOptions,
    pub(crate) files: Files,
    pub(crate) cache: IndexCache,
    pub(crate) salt: RecordSalt,
    pub(crate) open: OpenSegment,
    pub(crate) sealed: BTreeMap<SegmentId, Sealed>,
    /// The runs of the sealed segments, by stream, in the order of their sequences.
    pub(crate) runs: BTreeMap<StreamId, Vec<RunSummary>>,
    pub(crate) pending: Pending,
    pub(crate) releases: Releases,
    pub(crate) upkeep: Upkeep,
    /// Started when the first segment is sealed.
    pub(crate) background: Option<Background>,
    /// What cannot be read of segments that should be there: what is not found may have been in one.
    pub(crate) losses: BTreeMap<SegmentId, Damage>,
    pub(crate) fence: Option<Damage>,
    pub(crate) poisoned: bool,
    pub(crate) term: Term,
    pub(crate) now: Timestamp,
    pub(crate) last_index: Index,
    /// Of the entry at the last index; 0 when there is none.
    pub(crate) last_term: Term,
    pub(crate) last_checksum: u32,
    pub(crate) durable_index: Index,
    /// Something was written after the last sync.
    pub(crate) unsynced: bool,
    pub(crate) counts: LogStats,
    pub(crate) history: History,
    pub(crate) doubt: Option<TailDoubt>,
}

/// What opening a log gives.
#[derive(Debug)]
pub struct Opened {
    pub log: Log,
    /// The state with which the newest segment begins; `None` for a log that never rolled.
    pub snapshot: Option<Snapshot>,
    pub report: RecoveryReport,
}

/// A new segment, durable and not yet in its place.
struct ReadySegment {
    file: Settled,
    header: SegmentHeader,
    frames: Vec<(FrameHeader, Vec<u8>)>,
    frames_from: u64,
}

/// The frame being gathered: room for its header, then its records.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) frame: Vec<u8>,
    pub(crate) records: u32,
    /// Once it was proposed its time is settled.
    pub(crate) timestamp: Option<Timestamp>,
}

impl Pending {
    pub(crate) fn new() -> Self {
        Self { frame: vec![0; FRAME_HEADER_BYTES], records: 0, timestamp: None }
    }

    pub(crate) fn clear(&mut self, keep_bytes: usize) {
        self.frame.resize(FRAME_HEADER_BYTES, 0);
        self.frame.shrink_to(keep_bytes);
        self.records = 0;
        self.timestamp = None;
    }
}

impl Log {
    /// Opens the log in `directory`, which must exist, or begins one there.
    ///
    /// What it finds damaged is reported, fenced and left as it is; a torn tail, which was never
    /// acknowledged, is cut.
    pub fn open(
        disk: Arc<dyn Disk>,
        directory: &Path,
        shard: ShardId,
        options: LogOptions,
    ) -> Result<Opened, OpenError> {
        recovery::open(disk, directory, shard, options)
    }

    /// Bytes gathered and not yet written.
    #[must_use]
    pub const fn pending_bytes(&self) -> usize {
        if self.pending.records == 0 { 0 } else { self.pending.frame.len() }
    }

    /// Records gathered and not yet written.
    #[must_use]
    pub const fn pending_records(&self) -> usize {
        self.pending.records as usize
    }

    /// The leader's clock, for the frame being gathered and the ones after it. Never goes back.
    pub fn set_time(&mut self, now: Timestamp) {
        self.now = self.now.max(now);
    }

    /// The leadership epoch, for the frame being gathered and the ones after it. 1 until told.
    pub fn set_term(&mut self, term: Term) {
        assert!(self.term <= term, "terms ascend");
        self.term = term;
    }

    pub(crate) fn push(&mut self, message: &MessageRef<'_>) {
        let flags = if !message.headers.is_empty() && record::has_message_id(message.headers) {
            WITH_MESSAGE_ID
        } else {
            0
        };
        let at = self.open.end + self.pending.frame.len() as u64;
        let len = record::put_message(&mut self.pending.frame, self.salt, message, flags);
        self.pending.records += 1;
        let view = MessageView {
            stream: message.stream,
            sequence: message.sequence,
            timestamp: message.timestamp,
            subject: message.subject,
            headers: message.headers,
            payload: message.payload,
        };
        self.open.index.push(&view, at, len, flags != 0);
    }

    pub(crate) fn push_other(&mut self, kind: Kind, body: &[u8]) {
        record::put_other(&mut self.pending.frame, self.salt, kind, body);
        self.pending.records += 1;
    }

    /// Writes what was gathered as one frame, with one positioned write. `None` if nothing was gathered.
    /// Nothing is durable before [`Self::sync`].
    ///
    /// A frame is written only when the one before it is durable, or a crash could leave a hole; so this
    /// syncs first if the caller did not. After an error the log is poisoned.
    pub fn write(&mut self) -> Result<Option<Index>, WriteError> {
        if self.pending.records == 0 {
            return Ok(None);
        }
        let index = self.last_index.next();
        let mut header = self.frame_header(self.open.header.segment, self.pending.records, 0, index);
        header.timestamp = self.pending.timestamp.unwrap_or(self.now);
        let mut frame = std::mem::take(&mut self.pending.frame);
        let place = self.open.end;
        let written = self.append(&mut frame, header);
        if written.is_ok() && frame.len() >= self.options.direct_bytes_min {
            // The system's cache does not have it, and consumers that keep up ask for it next.
            self.files.keep_latest(self.open.key(), place, &mut frame);
        }
        self.pending.frame = frame;
        let checksum = written?;
        self.pending.clear(self.options.frame_bytes_max * 2);
        self.last_index = index;
        self.last_term = header.term;
        self.last_checksum = checksum;
        #[cfg(any(test, feature = "planted-bugs"))]
        if self.options.planted_bug == Some(crate::options::PlantedBug::AckBeforeSync) {
            self.durable_index = index;
        }
        Ok(Some(index))
    }

    /// Writes a frame at the end of the open segment. Returns its checksum.
    pub(crate) fn append(&mut self, frame: &mut [u8], header: FrameHeader) -> Result<u32, WriteError> {
        if self.poisoned {
            return Err(WriteError::Poisoned);
        }
        if let Some(damage) = &self.fence {
            return Err(WriteError::Fenced(damage.clone()));
        }
        if self.unsynced {
            self.sync().map_err(|error| match error {
                SyncError::Poisoned => WriteError::Poisoned,
                SyncError::Disk(failed) => WriteError::Disk(failed),
            })?;
        }
        let checksum = frame::finish(frame, self.open.end, &header);
        if let Err(source) = self.open.write_frame(frame, self.options.direct_bytes_min) {
            self.poisoned = true;
            return Err(self.files.failed("writing", &self.open.key().file_name(), source).into());
        }
        self.unsynced = true;
        self.open.appended(&header, frame);
        self.counts.frames_written += 1;
        self.counts.records_written += u64::from(header.records);
        self.counts.bytes_written += frame.len() as u64;
        Ok(checksum)
    }

    /// A frame that takes no index repeats the term of the entry it stands behind.
    pub(crate) const fn frame_header(
        &self,
        segment: SegmentId,
        records: u32,
        flags: u8,
        index: Index,
    ) -> FrameHeader {
        FrameHeader {
            flags,
            sparse_pieces: 0,
            shard: self.shard,
            records,
            segment,
            index,
            term: if flags == 0 { self.term } else { self.last_term },
            timestamp: self.now,
            body_bytes: 0,
            previous: self.last_checksum,
            checksum: 0,
        }
    }

    /// Makes what was written durable and says up to where. After an error the log is poisoned for good:
    /// nobody knows what the disk holds, and asking again proves nothing (DR2).
    pub fn sync(&mut self) -> Result<Index, SyncError> {
        if self.poisoned {
            return Err(SyncError::Poisoned);
        }
        if self.unsynced {
            self.counts.syncs += 1;
            if let Err(source) = self.open.file.sync_data() {
                self.poisoned = true;
                return Err(self.files.failed("syncing", &self.open.key().file_name(), source).into());
            }
            self.unsynced = false;
        }
        self.durable_index = self.last_index;
        Ok(self.durable_index)
    }

    /// Proves that the last frame is whole (DR6): for an idle log whose records are all durable. Writes
    /// and syncs a seal frame, unless the last frame is one.
    ///
    /// The proof itself needs no sync. But the next frame may be written only when this one is durable,
    /// or a crash could leave a hole; so the sync is done now, while nobody waits for it.
    pub fn seal_tail(&mut self) -> Result<(), WriteError> {
        assert_eq!(self.pending.records, 0, "a seal follows what was gathered");
        if self.open.sealed || self.open.frames == 0 {
            return Ok(());
        }
        let mut frame = vec![0; FRAME_HEADER_BYTES];
        let header = self.frame_header(self.open.header.segment, 0, SEAL, self.last_index);
        self.append(&mut frame, header)?;
        self.sync().map(|_durable| ()).map_err(|error| match error {
            SyncError::Poisoned => WriteError::Poisoned,
            SyncError::Disk(failed) => WriteError::Disk(failed),
        })
    }

    /// Whether a full frame more might not fit, or a new snapshot would let much space go: call
    /// [`Self::roll`] once nothing is pending, before pushing more.
    #[must_use]
    pub const fn needs_roll(&self) -> bool {
        if self.open.ordinary == 0 {
            return false;
        }
        let used = self.open.end - self.open.frames_from;
        let wanted = used + self.pending.frame.len() as u64 + self.options.frame_bytes_max as u64;
        wanted > self.open.capacity() || self.upkeep.wants_roll(self.options.segment_bytes)
    }

    /// While the disk is full: whether [`Self::roll_for_space`] would let space go, or is needed to go on
    /// taking what frees space.
    #[must_use]
    pub const fn wants_relief(&self) -> bool {
        self.counts.full && self.open.ordinary > 0 && (self.upkeep.can_reclaim() || self.needs_roll())
    }

    /// Begins a new segment with these records, the engine's state as it is now. Nothing may be pending.
    /// Everything is durable afterwards. Does nothing when nothing was written since the last roll.
    ///
    /// [`RollError::Full`] changes nothing: the open segment goes on, and takes what frees space.
    pub fn roll(&mut self, snapshot: &mut dyn Iterator<Item = Vec<u8>>) -> Result<(), RollError> {
        self.roll_into(self.options.segment_bytes, snapshot)
    }

    /// As [`Self::roll`] on a full disk (DR16): into a small segment, in the space of the ballast. What was
    /// removed since the last snapshot is dead by the new one, and its segments can go; without this a store
    /// that filled its disk could never be emptied.
    pub fn roll_for_space(&mut self, snapshot: &mut dyn Iterator<Item = Vec<u8>>) -> Result<(), RollError> {
        self.roll_into(self.options.relief_bytes(), snapshot)
    }

    fn roll_into(
        &mut self,
        capacity: u64,
        snapshot: &mut dyn Iterator<Item = Vec<u8>>,
    ) -> Result<(), RollError> {
        assert_eq!(self.pending.records, 0, "a roll follows what was gathered");
        if self.poisoned {
            return Err(RollError::Poisoned);
        }
        if let Some(damage) = &self.fence {
            return Err(RollError::Fenced(damage.clone()));
        }
        if self.open.ordinary == 0 {
            return Ok(());
        }
        // One at a time: whoever fills segments faster than they are indexed waits here.
        self.take_side_file(true);
        self.sync().map_err(|error| match error {
            SyncError::Poisoned => RollError::Poisoned,
            SyncError::Disk(failed) => RollError::Disk(failed),
        })?;
        let (spare, capacity) = if self.prepare_spare()? {
            (self.upkeep.spare.take().expect("it was just prepared"), self.options.segment_bytes)
        } else if capacity < self.options.segment_bytes {
            match self.new_spare(capacity) {
                Ok(small) => (small, capacity),
                Err(failed) if is_out_of_space(&failed.source) => return Err(RollError::Full),
                Err(failed) => return Err(failed.into()),
            }
        } else {
            return Err(RollError::Full);
        };
        let header = SegmentHeader {
            compacted: false,
            shard: self.shard,
            segment: SegmentId(self.last_index.0 + 1),
            generation: 0,
            previous_checksum: self.last_checksum,
            previous_segment: self.open.header.segment,
            // Known when the snapshot is.
            preallocated: 0,
        };
        let ready = match self.begin(spare, header, capacity, snapshot) {
            Ok(ready) => {
                self.upkeep.front_bytes = 0;
                ready
            }
            Err(failed) if is_out_of_space(&failed.source) => {
                self.is_full_now();
                return Err(RollError::Full);
            }
            Err(failed) => return Err(failed.into()),
        };
        let next = match self.install(ready) {
            Ok(next) => next,
            // The new segment may be there or not: what is appended to the old one now could be lost.
            Err(failed) => {
                self.poisoned = true;
                return Err(failed.into());
            }
        };
        let old = std::mem::replace(&mut self.open, next);
        for (index, at) in old.marks() {
            self.history.mark(old.key(), index, at);
        }
        self.seal(old)?;
        self.refresh_history();
        self.upkeep.rolled(&self.releases);
        self.counts.rolls += 1;
        self.prepare_spare()?;
        Ok(())
    }

    /// Writes a segment with this header and these records.
    fn begin(
        &mut self,
        mut new: NewFile,
        header: SegmentHeader,
        capacity: u64,
        snapshot: &mut dyn Iterator<Item = Vec<u8>>,
    ) -> Result<ReadySegment, DiskFailed> {
        let mut frames = self.snapshot_frames(&header, snapshot);
        let frames_from = frames.iter().fold(FRAMES_AT, |at, (_, frame)| at + frame.len() as u64);
        self.upkeep.front_bytes = frames_from;
        let files = &self.files;
        let header = SegmentHeader { preallocated: frames_from + capacity, ..header };
        let mut front = header.encode();
        front.resize(usize::try_from(FRAMES_AT).expect("a few thousand"), 0);
        new.append(files, &front)?;
        for (frame_header, frame) in &mut frames {
            frame::finish(frame, new.end(), frame_header);
            new.append(files, frame)?;
        }
        new.preallocate(files, header.preallocated)?;
        Ok(ReadySegment { file: new.settle(files)?, header, frames, frames_from })
    }

    /// The frames with which a segment begins: the manifest and these records. Their headers have room only.
    fn snapshot_frames(
        &self,
        header: &SegmentHeader,
        snapshot: &mut dyn Iterator<Item = Vec<u8>>,
    ) -> Vec<(FrameHeader, Vec<u8>)> {
        let mut frames = Vec::new();
        let mut pending = Pending::new();
        let older = self.sealed.keys().copied().chain([self.open.header.segment]);
        let manifest = record::segment_list(older.filter(|segment| !self.upkeep.is_retired(*segment)));
        record::put_other(&mut pending.frame, self.salt, Kind::Manifest, &manifest);
        pending.records += 1;
        for body in snapshot {
            if pending.frame.len() + body.len() > self.options.frame_bytes_max {
                let full = std::mem::replace(&mut pending, Pending::new());
                frames.push((
                    self.frame_header(header.segment, full.records, SNAPSHOT, self.last_index),
                    full.frame,
                ));
            }
            record::put_other(&mut pending.frame, self.salt, Kind::Snapshot, &body);
            pending.records += 1;
        }
        let flags = SNAPSHOT | SNAPSHOT_END;
        frames.push((
            self.frame_header(header.segment, pending.records, flags, self.last_index),
            pending.frame,
        ));
        frames
    }

    /// Puts a segment in its place.
    fn install(&self, ready: ReadySegment) -> Result<OpenSegment, DiskFailed> {
        let header = ready.header;
        let file =
            ready.file.install(&self.files, &header.key().file_name(), self.options.syncs_directory())?;
        let mut open = OpenSegment::new(header, file, FRAMES_AT);
        for (header, frame) in &ready.frames {
            open.appended(header, frame);
        }
        open.frames_from = ready.frames_from;
        Ok(open)
    }

    /// Ends a segment that has a successor: footer, length, side file. Every byte of it that matters is
    /// durable, so recovery can do this too.
    fn seal(&mut self, old: OpenSegment) -> Result<(), RollError> {
        let key = old.key();
        let footer = old.footer(self.last_index, self.last_checksum);
        let bytes = match write_footer(&self.files, &*old.file, key, &footer, old.end) {
            Ok(bytes) => bytes,
            Err(failed) => {
                self.poisoned = true;
                return Err(failed.into());
            }
        };
        self.files.forget(key);
        let index = self.write_side_file_later(key, &footer, old.index);
        let sealed = Sealed { key, bytes, compacted: false, footer: Some(footer), index, damage: None };
        self.add_sealed(sealed);
        Ok(())
    }

    /// Writes the side file of a segment and keeps its directory only. When it cannot be written (it is
    /// derived) the index stays in memory.
    pub(crate) fn write_side_file(
        &mut self,
        key: SegmentKey,
        footer: &Footer,
        index: MemoryIndex,
    ) -> SealedIndex {
        background::write_side_file(&mut self.files, self.shard, key, footer, &index)
            .map_or_else(|| SealedIndex::Unwritten(Arc::new(index)), SealedIndex::Side)
    }

    /// As [`Self::write_side_file`], but in the background where that is allowed: until
    /// [`Self::take_side_file`] the index is served from memory.
    fn write_side_file_later(&mut self, key: SegmentKey, footer: &Footer, index: MemoryIndex) -> SealedIndex {
        if self.options.background && self.background.is_none() {
            let disk = Arc::clone(self.files.shared_disk());
            match Background::start(disk, self.files.directory(), self.shard) {
                Ok(background) => self.background = Some(background),
                Err(error) => tracing::warn!(err = %error, "no thread for side files"),
            }
        }
        let Some(background) = &mut self.background else { return self.write_side_file(key, footer, index) };
        let index = Arc::new(index);
        if !background.write(key, *footer, Arc::clone(&index)) {
            tracing::error!(segment = key.segment.0, "no side index: the thread that writes them has died");
            self.background = None;
        }
        SealedIndex::Unwritten(index)
    }

    /// Uses the side file that was written in the background, if there is one; waits for it if that is asked.
    pub(crate) fn take_side_file(&mut self, wait: bool) {
        let done = self.background.as_mut().and_then(|background| background.finished(wait));
        if let Some(Done { key, directory: Some(directory) }) = done
            && let Some(sealed) = self.sealed.get_mut(&key.segment)
        {
            assert!(sealed.key == key, "a segment goes only when its side file is written");
            sealed.index = SealedIndex::Side(directory);
        }
    }

    pub(crate) fn add_sealed(&mut self, sealed: Sealed) {
        let segment = sealed.key.segment;
        if let Some(damage) = &sealed.damage {
            self.losses.insert(segment, damage.clone());
        }
        for totals in sealed.index.totals() {
            let runs = self.runs.entry(totals.stream).or_default();
            let place = runs.partition_point(|run| run.segment < segment);
            runs.insert(place, summary(segment, &totals));
        }
        let replaced = self.sealed.insert(segment, sealed);
        assert!(replaced.is_none(), "a segment is added once");
    }

    /// Forgets a segment, but not what is lost with it.
    pub(crate) fn take_sealed(&mut self, segment: SegmentId) -> Option<Sealed> {
        // Or its side file would come when the segment has gone.
        let under_way = self.background.as_ref().and_then(Background::under_way);
        if under_way.is_some_and(|key| key.segment == segment) {
            self.take_side_file(true);
        }
        let sealed = self.sealed.remove(&segment)?;
        self.files.forget(sealed.key);
        self.cache.forget(sealed.key);
        for totals in sealed.index.totals() {
            if let Some(runs) = self.runs.get_mut(&totals.stream) {
                runs.retain(|run| run.segment != segment);
                if runs.is_empty() {
                    self.runs.remove(&totals.stream);
                }
            }
        }
        Some(sealed)
    }

    /// Has the next segment's file ready. `false`: there is no space, which is not a failure (DR16). The space
    /// of the ballast is for what frees space: a disk is full until there is room for both.
    pub(crate) fn prepare_spare(&mut self) -> Result<bool, DiskFailed> {
        if self.upkeep.spare.is_some() {
            return Ok(true);
        }
        match self.keep_ballast().and_then(|()| self.new_spare(self.options.segment_bytes)) {
            Ok(spare) => {
                self.upkeep.spare = Some(spare);
                self.counts.full = false;
                Ok(true)
            }
            Err(failed) if is_out_of_space(&failed.source) => {
                self.is_full_now();
                Ok(false)
            }
            Err(failed) => Err(failed),
        }
    }

    /// The file of a segment that can take this many bytes behind a snapshot like the last one: a disk with room for
    /// less is full, and is not taken for one that has room each time it is looked at.
    fn new_spare(&self, capacity: u64) -> Result<NewFile, DiskFailed> {
        let front = self.open.frames_from.max(self.upkeep.front_bytes);
        let new = NewFile::create(&self.files, SPARE)?;
        match new.preallocate(&self.files, front + capacity) {
            Ok(()) => Ok(new),
            Err(failed) => {
                drop(new.abandon(&self.files));
                Err(failed)
            }
        }
    }

    fn is_full_now(&mut self) {
        if !self.counts.full {
            tracing::warn!("no space for the next segment");
        }
        self.counts.full = true;
        let ballast = self.files.path(BALLAST);
        match self.files.disk().remove(&ballast) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(err = %error, "the ballast cannot be given up"),
        }
    }

    fn keep_ballast(&self) -> Result<(), DiskFailed> {
        let path = self.files.path(BALLAST);
        let failed = |source| self.files.failed("keeping", BALLAST, source);
        if self.options.ballast_bytes == 0 || self.files.disk().exists(&path).map_err(failed)? {
            return Ok(());
        }
        let file = self.files.disk().open(&path, crate::OpenMode::CreateNew).map_err(failed)?;
        if let Err(source) = file.preallocate(self.options.ballast_bytes) {
            drop(file);
            drop(self.files.disk().remove(&path));
            return Err(failed(source));
        }
        Ok(())
    }

    /// No space for the next segment: refuse what needs space, go on with what frees it (DR16). Ends by
    /// itself, with a call of [`Self::maintain`], when there is space again.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.counts.full
    }

    /// An earlier failure stopped it for good (DR2).
    #[must_use]
    pub const fn is_poisoned(&self) -> bool {
        self.poisoned
    }

    /// Damage in the middle of the newest segment, because of which nothing is written any more.
    #[must_use]
    pub const fn fence(&self) -> Option<&Damage> {
        self.fence.as_ref()
    }

    /// The last index written.
    #[must_use]
    pub const fn last_index(&self) -> Index {
        self.last_index
    }

    /// The last index synced.
    #[must_use]
    pub const fn durable_index(&self) -> Index {
        self.durable_index
    }

    /// The checksum of the frame at the last index.
    #[must_use]
    pub const fn checksum_at_last(&self) -> u32 {
        self.last_checksum
    }

    /// Writes what is pending, and a seal frame, and syncs. A fenced log is left as it is.
    pub fn close(mut self) -> Result<(), CloseError> {
        if self.poisoned {
            return Err(CloseError::Poisoned);
        }
        self.write()?;
        self.sync()?;
        if self.fence.is_none() {
            self.seal_tail()?;
        }
        // So that the next start finds it.
        self.take_side_file(true);
        Ok(())
    }

    fn damaged_segments(&self) -> u64 {
        let scrubbed = self
            .sealed
            .iter()
            .filter(|(segment, sealed)| sealed.damage.is_some() && !self.losses.contains_key(*segment));
        (self.losses.len() + scrubbed.count() + usize::from(self.fence.is_some())) as u64
    }

    /// Counters and gauges.
    #[must_use]
    pub fn stats(&self) -> LogStats {
        LogStats {
            segments: self.sealed.len() as u64 + 1,
            segment_bytes: self.sealed.values().map(|sealed| sealed.bytes).sum::<u64>() + self.open.end,
            last_index: self.last_index,
            durable_index: self.durable_index,
            read_cache_hits: self.files.block_hits,
            index_cache_bytes: self.cache.bytes() as u64,
            damaged_segments: self.damaged_segments(),
            poisoned: self.poisoned,
            ..self.counts.clone()
        }
    }
}

/// Writes the footer behind the last frame and cuts the file there. Returns the file's length.
pub(crate) fn write_footer(
    files: &Files,
    file: &dyn crate::DiskFile,
    key: SegmentKey,
    footer: &Footer,
    end: u64,
) -> Result<u64, DiskFailed> {
    let failed = |source| files.failed("sealing", &key.file_name(), source);
    let footer = footer.encode();
    let bytes = end + footer.len() as u64;
    file.write_at(&footer, end).map_err(failed)?;
    file.set_len(bytes).map_err(failed)?;
    file.sync_data().map_err(failed)?;
    Ok(bytes)
}

pub(crate) const fn summary(segment: SegmentId, totals: &RunTotals) -> RunSummary {
    RunSummary {
        stream: totals.stream,
        segment,
        first: totals.first,
        last: totals.last,
        count: totals.count,
        with_message_id: totals.with_message_id,
        newest: totals.newest,
    }
}

/// Sequence 0 stands before every message.
pub(crate) const BEFORE_ALL: Sequence = Sequence(0);
