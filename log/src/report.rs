//! What a log tells about itself: what recovery found, what upkeep did, and the counters.

use std::path::PathBuf;

use bytes::Bytes;

use crate::{Damage, DamageReason, Index, Message, SegmentId, Sequence, StreamId, Term, Timestamp};

/// The state with which the newest segment begins.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Snapshot {
    /// The state is as after this index.
    pub index: Index,
    /// The records as they were given to [`crate::Log::roll`], in their order.
    pub records: Vec<Bytes>,
}

/// How the newest segment ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Tail {
    /// There was no log before.
    New,
    /// A seal frame: the last stop was clean, or came when the log was idle.
    Clean,
    /// No seal frame and nothing behind the last frame.
    Whole,
    /// A write was under way: never acknowledged, cut.
    Torn { bytes: u64 },
    /// The operator accepted the loss of a suspect last frame.
    LossAccepted { bytes: u64 },
    /// The last frame fails its checksum and may have been acknowledged. Nothing was cut and nothing is written
    /// until [`crate::Log::doubt`] is settled.
    Suspect { bytes: u64 },
    /// Damage in the middle: nothing was cut, the log is fenced.
    Fenced,
}

/// What of the tail cannot be read, and may have been acknowledged (DR4).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TailDoubt {
    pub segment: SegmentId,
    pub offset: u64,
    pub bytes: u64,
    /// The first entry in doubt.
    pub first: Index,
    /// Its term, where the frame's header can be trusted.
    pub term: Option<Term>,
    /// No entry behind the first one is in doubt.
    pub is_one: bool,
}

impl TailDoubt {
    pub(crate) const fn damage(&self) -> Damage {
        Damage { segment: self.segment, offset: self.offset, reason: DamageReason::Checksum }
    }
}

/// What recovery found and did. Logged as one line, whatever it says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RecoveryReport {
    pub segments: usize,
    pub last_index: Index,
    /// Frames of the newest segment that were read.
    pub frames: u64,
    pub tail: Tail,
    /// The newest segment was read past the page cache and written anew (DR2).
    pub rewritten: bool,
    /// A roll had not sealed the segment before the newest one; now it is.
    pub finished_roll: bool,
    /// Side files that were missing or unusable and were built again.
    pub indexes_rebuilt: u32,
    /// Segments that should be there and are not. What they held is unreadable, not absent.
    pub missing: Vec<SegmentId>,
    /// Files that do not belong to this log. They are left alone.
    pub unexpected: Vec<String>,
    pub damaged: Vec<Damage>,
    pub quarantined: Vec<PathBuf>,
}

/// The messages of one stream in one segment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RunSummary {
    pub stream: StreamId,
    pub segment: SegmentId,
    pub first: Sequence,
    pub last: Sequence,
    /// Messages in the run, released ones that are still there included.
    pub count: u64,
    /// How many of them carry a `Nats-Msg-Id` header.
    pub with_message_id: u32,
    pub newest: Timestamp,
}

/// One subject of a run.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RunSubject {
    pub subject: Bytes,
    pub first: Sequence,
    pub last: Sequence,
    pub count: u64,
    /// Sum of subject, headers and payload lengths.
    pub bytes: u64,
}

/// A record that is applied again.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Replayed {
    pub index: Index,
    pub term: Term,
    /// The leader's clock when the frame was gathered.
    pub timestamp: Timestamp,
    pub record: ReplayedRecord,
}

/// What was pushed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ReplayedRecord {
    Message(Message),
    Control(Bytes),
    /// What [`crate::Log::push_replication`] was given; nothing for an engine.
    Replication(Bytes),
}

/// What one step of upkeep did.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Maintained {
    /// Segments whose files were removed.
    pub removed: Vec<SegmentId>,
    /// A segment that was written anew with its living messages only.
    pub compacted: Option<SegmentId>,
    /// Bytes the disk got back.
    pub freed_bytes: u64,
    /// There is more to do at once.
    pub more: bool,
}

/// Counters and gauges.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct LogStats {
    pub segments: u64,
    pub segment_bytes: u64,
    pub last_index: Index,
    pub durable_index: Index,
    pub frames_written: u64,
    pub records_written: u64,
    pub bytes_written: u64,
    pub syncs: u64,
    pub rolls: u64,
    pub segments_removed: u64,
    pub segments_compacted: u64,
    pub records_read: u64,
    pub read_cache_hits: u64,
    pub index_cache_bytes: u64,
    /// Reads that found damage.
    pub unreadable: u64,
    pub damaged_segments: u64,
    /// Bytes of sealed segments that a scrub read and verified, or found damaged.
    pub scrubbed_bytes: u64,
    pub scrub_passes: u64,
    /// Segments in which a scrub found damage.
    pub scrub_damage: u64,
    /// No space for the next segment (DR16).
    pub full: bool,
    pub poisoned: bool,
}
