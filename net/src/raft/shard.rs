//! What replication asks of a shard: its log, its vote, its state. The driver of the router is the one answer
//! that serves; tests have others.

use beamlog_log::{EntryId, Index, Installation, LogEntry, LogFiles, ShardId, Shipment, Term};
use beamlog_router::replica::{ReplicaEntry, ReplicaError, ReplicaState, TimeSource};
use futures_util::future::BoxFuture;

/// Why a shard did not do what it was asked. Fatal to the node's part in it: never a shorter answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ShardError {
    #[error(transparent)]
    Replica(#[from] ReplicaError),
    #[error("the shard stopped without an answer")]
    Gone,
    #[error("{0}")]
    Other(String),
}

/// What becomes of an append.
pub(crate) type Appended = Box<dyn FnOnce(Result<EntryId, ShardError>) + Send>;

/// What replication knows of a shard when it starts.
pub(crate) type ShardState = ReplicaState;

/// One shard of this node. Calls are carried out in their order, those that only read too.
///
/// *Cancel safety*: dropping a future abandons the answer; what was asked is done all the same.
pub(crate) trait Shard: Send + Sync + 'static {
    fn id(&self) -> ShardId;

    /// A witness keeps none: it gives entries to nobody, needs no copies and never campaigns.
    fn keeps_messages(&self) -> bool {
        true
    }

    fn state(&self) -> BoxFuture<'static, Result<ShardState, ShardError>>;

    /// Entries behind the last one. `done` comes when they are durable, in the order of the calls.
    fn append(&self, entries: Vec<ReplicaEntry>, done: Appended);

    /// Durable on return.
    fn truncate_after(&self, after: Index) -> BoxFuture<'static, Result<(), ShardError>>;

    fn read(
        &self,
        from: Index,
        to: Index,
        max_bytes: usize,
    ) -> BoxFuture<'static, Result<Vec<LogEntry>, ShardError>>;

    /// Durable on return, and after every append before it.
    fn save_vote(&self, vote: Vec<u8>) -> BoxFuture<'static, Result<(), ShardError>>;

    fn vote(&self) -> Option<Vec<u8>>;

    /// Keeps what is known of peers, if the disk takes it: nothing depends on that.
    fn save_peers(&self, peers: Vec<u8>);

    /// What was kept of that when the shard was opened.
    fn peers(&self) -> Option<Vec<u8>>;

    /// Folds what is committed.
    fn committed(&self, up_to: Index) -> BoxFuture<'static, Result<EntryId, ShardError>>;

    fn become_leader(&self, term: Term);

    fn step_down(&self);

    /// Whose clock a leader goes by (DR17).
    fn keep_time(&self, by: TimeSource);

    /// Ends the doubt about the end of the log: with the entry that stands there, or by cutting it.
    fn settle_tail(&self, entry: Option<LogEntry>) -> BoxFuture<'static, Result<(), ShardError>>;

    fn refused(&self, proposal: u64);

    fn confirmed(&self, question: u64, leads: bool);

    /// The files of the log with what is committed, for a peer.
    fn ship(&self) -> BoxFuture<'static, Result<Shipment, ShardError>>;

    /// Begins to gather a copy of another node's files, or goes on with it.
    fn begin_install(&self, list: LogFiles) -> BoxFuture<'static, Result<Installation, ShardError>>;

    /// Puts a copy of another node's state, which was fetched and lies ready, in the place of this one. `done`
    /// is its last entry, all of it committed.
    fn install(&self, staged: Staged) -> BoxFuture<'static, Result<EntryId, ShardError>>;
}

/// A copy of another node's state that lies ready.
#[derive(Debug, Default)]
pub(crate) struct Staged {
    /// Its last entry; all of them are committed.
    pub(crate) last: EntryId,
    /// The membership that governs it, and the entry that it is in.
    pub(crate) membership: Option<(EntryId, Vec<u8>)>,
    /// Verified. None in the name of a state that is still to be fetched.
    pub(crate) installation: Option<Box<Installation>>,
}
