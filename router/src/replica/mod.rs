//! A shard that is replicated: what the driver and whoever agrees on entries (Raft, in another crate) say to
//! each other.
//!
//! One entry is one frame of the log is one batch of the driver. The driver stays the only owner of engine
//! and log. The other side sends it commands through [`Replica`], in a lane of their own that goes before
//! clients' commands, and is called back on the driver thread; the driver calls it through [`Replicator`].
//!
//! The life of an entry on the leader: the driver gathers a frame and proposes its body
//! ([`Replicator::propose`]); the entry gets its id elsewhere and comes back by [`Replica::append`], with the
//! proposal's number; the driver writes the frame under that id and syncs; [`Replica::committed`] lets out
//! what waited for it. One proposal is under way at a time: what comes meanwhile waits and shares the next.
//!
//! On a follower: [`Replica::append`] writes and syncs, [`Replica::committed`] folds into the state. Nothing
//! is folded before it is committed.
//!
//! What the caller promises (each is asserted, or answered with an error, where the driver can see it):
//! * Ids of entries ascend by one; terms never go back.
//! * `append` of an entry comes before `committed` of its index; `committed` never goes back.
//! * Nothing that was committed is truncated.
//! * An entry that carries a proposal's body has the proposal's term. A proposal that gets into the log
//!   under a later term was decided against another state: the caller makes it a blank entry, before it is
//!   appended anywhere.

mod command;
mod handle;

use std::path::PathBuf;

use beamlog_log::{Damage, EntryId, Index, LogEntry, Tail, TailDoubt, Term, Timestamp};
use bytes::Bytes;

pub(crate) use command::{Lane, ReplicaCommand};
pub(crate) use handle::Kept;
pub use handle::Replica;

/// Called once, on the driver thread, with what became of a command. Must not block.
pub type Done<T> = Box<dyn FnOnce(T) + Send>;

/// What a driver is in its shard.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Role {
    /// There are no others: what is durable here is committed.
    #[default]
    Alone,
    /// Stores and folds what a leader decided; serves nobody.
    Follower,
    /// Was told to lead, and waits until everything before its term, and one entry of its term, is committed.
    Elected { term: Term },
    /// Serves clients.
    Leader { term: Term },
}

/// Whose wall clock the time of a log follows (DR17).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TimeSource {
    /// This node is the only voter: its own.
    Own,
    /// What a quorum's clocks agree that it is now.
    Quorum(Timestamp),
    /// Too few are known, or they are too far apart.
    Nobody,
}

/// A frame that the leader's driver wants in the log.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Proposal {
    /// Never used again by this process.
    pub id: u64,
    /// The term in which it was decided. In no other may it become an entry.
    pub term: Term,
    pub timestamp: Timestamp,
    pub records: u32,
    /// The bytes of the records.
    pub body: Bytes,
}

/// An entry as it is appended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ReplicaEntry {
    pub entry: LogEntry,
    /// The proposal of this very node whose body it carries.
    pub proposal: Option<u64>,
}

/// Who carries the leader's entries to the others. Called on the driver thread; never blocks, and answers
/// through [`Replica`] only.
pub trait Replicator: Send + Sync {
    /// Answered by [`Replica::append`] and [`Replica::committed`], or by [`Replica::refused`].
    fn propose(&self, proposal: Proposal);

    /// Asks whether this node still leads *after* this call. Answered by [`Replica::confirmed`].
    fn confirm_leadership(&self, id: u64);

    /// The driver has changed its role: captures are announced or released, clients are served or not.
    fn role_changed(&self, role: Role);

    /// Something that this node must fold or serve cannot be read. Whoever leads hands over; the node wants
    /// repair and neither leads nor counts until then.
    fn damaged(&self, damage: &Damage);
}

/// Where a replicated log and its state stand.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ReplicaState {
    pub role: Role,
    /// The last entry, which is durable.
    pub last: EntryId,
    /// The entry before the oldest one that [`Replica::read`] can give.
    pub history_from: EntryId,
    /// The last entry that is folded into the state.
    pub applied: EntryId,
    /// The last record of replication that was folded in: its body, and its entry. Blank ones do not count.
    pub replication: Option<(EntryId, Bytes)>,
    /// How the log ended when it was opened.
    pub tail: Tail,
    /// The end of the log that cannot be read and may have counted. Until [`Replica::settle_tail`] nothing is
    /// appended, and this node may not vote (DR5).
    pub doubt: Option<TailDoubt>,
    pub damaged: Option<Damage>,
}

/// Why a command of replication was not carried out.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ReplicaError {
    /// The log stopped for good (DR2). Nothing is appended or folded any more.
    #[error("the log has failed: {reason}")]
    LogFailed { reason: String },
    #[error("the log cannot be read")]
    Damaged(#[source] Damage),
    /// An entry that is not the next one, or whose term is older than that of the one before.
    #[error("entry {} of term {} does not follow entry {} of term {}", found.index, found.term, last.index, last.term)]
    OutOfOrder { last: EntryId, found: EntryId },
    #[error("the records of entry {index} are malformed: {reason}")]
    Malformed { index: Index, reason: String },
    /// The entries wanted are older than the log's contiguous history, or were never there.
    #[error("entries from {from} are not here: the history goes from {} to {}", history_from.index, last.index)]
    NotHere { from: Index, history_from: EntryId, last: EntryId },
    #[error("what is committed, up to {committed}, is not truncated to {wanted}")]
    Committed { committed: Index, wanted: Index },
    /// See [`ReplicaState::doubt`].
    #[error("the end of the log is in doubt")]
    TailInDoubt,
    /// The state in the log says what cannot be.
    #[error("the state in the log does not hold together: {0}")]
    State(String),
    #[error("installing {}: {reason}", path.display())]
    Install { path: PathBuf, reason: String },
    #[error("the driver has stopped")]
    Closed,
}
