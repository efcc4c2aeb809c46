//! The log as replication sees it: entries by their index, somebody else's entries, cutting what was never
//! decided, the vote.
//!
//! One entry is one ordinary frame. Nothing here knows who elects or who agrees. Invariants: an entry is
//! written only at the index after the last one; its records are the same bytes on every node, and were checked
//! before they were written; everything that is given out was verified (DR15).

mod append;
mod entries;
mod files;
mod history;
mod install;
mod peers;
mod state;
mod truncate;
mod vote;

use crate::{DamageReason, Index, Sequence, StreamId, Term};

pub(crate) use files::Pin;
pub use files::{CHUNK_BYTES_MAX, LogFile, LogFiles, LogFilesError, ShipError, Shipment};
pub(crate) use history::History;
pub(crate) use install::{INCOMING, complete as complete_installation};
pub use install::{InstallError, Installation, Wanted};
pub use peers::PeersFile;
pub(crate) use vote::look as look_at_vote;
pub use vote::{VOTE_BYTES_MAX, VoteError, VoteFile, VoteState};

/// Longest body of an entry that is taken from somebody else. Leaves room for a frame of one large message.
pub(crate) const ENTRY_BYTES_MAX: usize = 256 << 20;

/// Why somebody else's entry is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum EntryFault {
    #[error("it has index {got}, and {expected} is next")]
    NotNext { expected: Index, got: Index },
    #[error("it is of term {got}, and the last entry of term {last}")]
    TermGoesBack { last: Term, got: Term },
    #[error("{bytes} bytes are more than an entry may have here")]
    TooLarge { bytes: usize },
    #[error("its record at byte {offset}: {reason}")]
    Record { offset: usize, reason: DamageReason },
    /// Manifests, snapshots and retired segments are each log's own.
    #[error("its record at byte {offset} is of a kind that no entry carries")]
    Kind { offset: usize },
    #[error("it says that it has {said} records, and has {found}")]
    Count { said: u32, found: u32 },
    #[error("message {sequence} of stream {stream} does not come after those that are there")]
    Sequence { stream: StreamId, sequence: Sequence },
    /// Messages of the same stream are being gathered. They can never be written behind it: give them up with
    /// [`crate::Log::discard_pending`] first.
    #[error("it and what is being gathered have messages of stream {stream}")]
    Pending { stream: StreamId },
}
