//! What can go wrong with a log, one type per operation.

use std::{io, path::PathBuf};

use crate::{Damage, EntryFault, Index, SegmentId, ShardId};

/// A disk operation failed.
#[derive(Debug, thiserror::Error)]
#[error("{action} {}", path.display())]
pub struct DiskFailed {
    pub action: &'static str,
    pub path: PathBuf,
    #[source]
    pub source: io::Error,
}

/// Why a log does not open. Nothing was changed on disk, except that unreadable bytes may have been
/// copied to `quarantine/`.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Disk(#[from] DiskFailed),
    #[error("an option of the log is out of bounds: {0}")]
    Options(&'static str),
    /// The identity says that there was a log here. It returns only from a backup, or under a new
    /// identity.
    #[error("there is no log in {}, although there was one", directory.display())]
    Missing { directory: PathBuf },
    #[error("{} has format version {version}; this build reads version {known}", path.display())]
    UnknownVersion { path: PathBuf, version: u16, known: u16 },
    #[error("{} belongs to shard {found}, not {expected}", path.display())]
    ForeignShard { path: PathBuf, found: ShardId, expected: ShardId },
    /// The last frame is whole but fails its checksum: a torn write, or damage to something that was
    /// acknowledged. Only an operator may decide ([`crate::LogOptions::accept_tail_loss`]).
    #[error(
        "the last frame of segment {segment}, at byte {offset}, does not match its checksum: index {first} \
         may have been acknowledged and would be lost by cutting it"
    )]
    SuspectTail { segment: SegmentId, offset: u64, first: Index },
    /// The newest segment, which holds the state, cannot be read.
    #[error("the newest segment is corrupt")]
    Corrupt {
        #[source]
        damage: Damage,
        /// Where its bytes were copied.
        quarantined: Option<PathBuf>,
    },
}

/// Why a frame was not written. After any of these nothing of the frame may become visible.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("the log stopped after an earlier failure")]
    Poisoned,
    /// The newest segment is damaged in the middle: reads go on, writes do not.
    #[error("the log is fenced")]
    Fenced(#[source] Damage),
    /// Somebody else's entry is not one that can stand here. Nothing was written.
    #[error("an entry is refused")]
    Entry(#[from] EntryFault),
    #[error(transparent)]
    Disk(#[from] DiskFailed),
}

/// Why a sync does not count. The log is poisoned for good (DR2).
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    #[error("the log stopped after an earlier failure")]
    Poisoned,
    #[error(transparent)]
    Disk(#[from] DiskFailed),
}

/// Why entries were not cut.
#[derive(Debug, thiserror::Error)]
pub enum TruncateError {
    #[error("the log stopped after an earlier failure")]
    Poisoned,
    #[error("the log is fenced")]
    Fenced(#[source] Damage),
    /// The newest segment begins with the state after this index: it and what is before it were decided.
    #[error("everything up to index {base} was decided, and is not cut")]
    Decided { base: Index },
    /// What would stay cannot be read.
    #[error("what stays is damaged")]
    Damaged(#[source] Damage),
    #[error("the tail is not in doubt")]
    NoDoubt,
    #[error("an entry is refused")]
    Entry(#[from] EntryFault),
    #[error(transparent)]
    Disk(#[from] DiskFailed),
    /// The log is poisoned; the next start finds one tail or the other.
    #[error("the segment cannot be read after its tail was cut")]
    Reopen(#[source] Box<OpenError>),
}

impl From<SyncError> for TruncateError {
    fn from(error: SyncError) -> Self {
        match error {
            SyncError::Poisoned => Self::Poisoned,
            SyncError::Disk(failed) => Self::Disk(failed),
        }
    }
}

/// Why no new segment was begun.
#[derive(Debug, thiserror::Error)]
pub enum RollError {
    /// There is no space for a new segment. Nothing is lost and the log is not poisoned: what frees
    /// space may still be written to the open segment (DR16).
    #[error("no space for a new segment")]
    Full,
    #[error("the log stopped after an earlier failure")]
    Poisoned,
    #[error("the log is fenced")]
    Fenced(#[source] Damage),
    #[error(transparent)]
    Disk(#[from] DiskFailed),
}

/// Why upkeep stopped. It is tried again with the next call, unless the log is poisoned.
#[derive(Debug, thiserror::Error)]
pub enum MaintainError {
    #[error("the log stopped after an earlier failure")]
    Poisoned,
    #[error(transparent)]
    Disk(#[from] DiskFailed),
    #[error("a segment cannot be compacted")]
    Damaged(#[source] Damage),
}

/// Why a log was not closed cleanly. What was durable still is; the next start treats the stop as
/// unclean.
#[derive(Debug, thiserror::Error)]
pub enum CloseError {
    #[error("the log stopped after an earlier failure")]
    Poisoned,
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Sync(#[from] SyncError),
}
