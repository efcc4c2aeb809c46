//! The log of one shard.

use std::{ops::RangeInclusive, path::Path, sync::Arc};

use crate::{
    CloseError, Damage, Disk, Entry, Index, Journal, LogOptions, LogStats, MaintainError, Maintained,
    Message, MessageRef, OpenError, Read, RecoveryReport, Replayed, RollError, RunSubject, RunSummary,
    SegmentId, Sequence, ShardId, Snapshot, StreamId, SyncError, Term, Timestamp, WriteError,
};

/// An open log.
#[derive(Debug)]
pub struct Log {
    disk: Arc<dyn Disk>,
}

/// What opening a log gives.
#[derive(Debug)]
pub struct Opened {
    pub log: Log,
    /// The state with which the newest segment begins; `None` for a log that never rolled.
    pub snapshot: Option<Snapshot>,
    pub report: RecoveryReport,
}

/// Records in their order, after some index.
#[derive(Debug)]
pub struct Replay<'a> {
    log: &'a mut Log,
}

impl Iterator for Replay<'_> {
    type Item = Result<Replayed, Damage>;

    fn next(&mut self) -> Option<Self::Item> {
        unimplemented!("lands next: {:?}", self.log)
    }
}

#[expect(clippy::needless_pass_by_value, unused_variables, reason = "bodies land next")]
impl Log {
    /// Opens the log in `directory`, which must exist, or begins one there.
    pub fn open(
        disk: Arc<dyn Disk>,
        directory: &Path,
        shard: ShardId,
        options: LogOptions,
    ) -> Result<Opened, OpenError> {
        unimplemented!("lands next")
    }

    /// Bytes gathered and not yet written.
    #[must_use]
    pub fn pending_bytes(&self) -> usize {
        unimplemented!("lands next: {:?}", self.disk)
    }

    /// Records gathered and not yet written.
    #[must_use]
    pub fn pending_records(&self) -> usize {
        unimplemented!("lands next")
    }

    /// The leader's clock, for the frame being gathered and the ones after it.
    pub fn set_time(&mut self, now: Timestamp) {
        unimplemented!("lands next")
    }

    /// The leadership epoch, for the frame being gathered and the ones after it. 1 until told.
    pub fn set_term(&mut self, term: Term) {
        unimplemented!("lands next")
    }

    /// Writes what was gathered as one frame, with one positioned write. `None` if nothing was gathered.
    /// Nothing is durable before [`Self::sync`].
    pub fn write(&mut self) -> Result<Option<Index>, WriteError> {
        unimplemented!("lands next")
    }

    /// Makes what was written durable and says up to where.
    pub fn sync(&mut self) -> Result<Index, SyncError> {
        unimplemented!("lands next")
    }

    /// Whether a full frame more might not fit, or a new snapshot would let much space go: call
    /// [`Self::roll`] once nothing is pending, before pushing more.
    #[must_use]
    pub fn needs_roll(&self) -> bool {
        unimplemented!("lands next")
    }

    /// Begins a new segment with these records, the engine's state as it is now. Nothing may be pending.
    /// Everything is durable afterwards.
    pub fn roll(&mut self, snapshot: &mut dyn Iterator<Item = Vec<u8>>) -> Result<(), RollError> {
        unimplemented!("lands next")
    }

    /// No space for the next segment: refuse what needs space, go on with what frees it (DR16). Ends by
    /// itself, with a call of [`Self::maintain`], when there is space again.
    #[must_use]
    pub fn is_full(&self) -> bool {
        unimplemented!("lands next")
    }

    /// Damage in the middle of the newest segment, because of which nothing is written any more.
    #[must_use]
    pub fn fence(&self) -> Option<&Damage> {
        unimplemented!("lands next")
    }

    /// The last index written.
    #[must_use]
    pub fn last_index(&self) -> Index {
        unimplemented!("lands next")
    }

    /// The last index synced.
    #[must_use]
    pub fn durable_index(&self) -> Index {
        unimplemented!("lands next")
    }

    /// The checksum of the frame at the last index.
    #[must_use]
    pub fn checksum_at_last(&self) -> u32 {
        unimplemented!("lands next")
    }

    /// One bounded step of upkeep: removes dead segments, compacts one mostly dead one, prepares the next
    /// segment. What it removes is decided by a record in the log first, so call it between frames; it may
    /// push.
    pub fn maintain(&mut self) -> Result<Maintained, MaintainError> {
        unimplemented!("lands next")
    }

    /// Writes what is pending, and a seal frame, and syncs.
    pub fn close(self) -> Result<(), CloseError> {
        unimplemented!("lands next")
    }

    /// Counters and gauges.
    #[must_use]
    pub fn stats(&self) -> LogStats {
        unimplemented!("lands next")
    }

    /// The records after `after`, which must not lie before the newest segment's snapshot.
    pub fn replay(&mut self, after: Index) -> Replay<'_> {
        unimplemented!("lands next")
    }

    /// Whether the frame at `index` has this checksum: verifies a checkpoint. `false` too when the frame
    /// lies before the newest segment's snapshot.
    pub fn contains(&mut self, index: Index, checksum: u32) -> bool {
        unimplemented!("lands next")
    }

    /// The runs of a stream in the order of their sequences, the open segment's (whole) last.
    #[must_use]
    pub fn runs(&self, stream: StreamId) -> Vec<RunSummary> {
        unimplemented!("lands next")
    }

    /// The subjects of a run. In the open segment these include messages after any checkpoint.
    pub fn run_subjects(&mut self, stream: StreamId, segment: SegmentId) -> Result<Vec<RunSubject>, Damage> {
        unimplemented!("lands next")
    }

    /// The messages of a run, released ones that are still there included.
    pub fn run_entries(&mut self, stream: StreamId, segment: SegmentId) -> Result<Vec<Entry>, Damage> {
        unimplemented!("lands next")
    }
}

#[expect(unused_variables, reason = "bodies land next")]
impl Journal for Log {
    fn push_message(&mut self, message: &MessageRef<'_>) {
        unimplemented!("lands next")
    }

    fn push_control(&mut self, body: &[u8]) {
        unimplemented!("lands next")
    }

    fn read(&mut self, stream: StreamId, sequence: Sequence) -> Read<Message> {
        unimplemented!("lands next")
    }

    fn entry(&mut self, stream: StreamId, sequence: Sequence) -> Read<Entry> {
        unimplemented!("lands next")
    }

    fn next(
        &mut self,
        stream: StreamId,
        from: Sequence,
        wanted: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Read<Sequence> {
        unimplemented!("lands next")
    }

    fn previous(
        &mut self,
        stream: StreamId,
        from: Sequence,
        wanted: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Read<Sequence> {
        unimplemented!("lands next")
    }

    fn release(&mut self, stream: StreamId, sequences: RangeInclusive<Sequence>) {
        unimplemented!("lands next")
    }

    fn release_stream(&mut self, stream: StreamId) {
        unimplemented!("lands next")
    }
}
