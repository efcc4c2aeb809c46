//! The handle by which replication commands a driver.

use std::sync::{Arc, Mutex, PoisonError};

use beamlog_log::{EntryId, Index, Installation, LogEntry, LogFiles, Shipment, Term};

use super::{Done, ReplicaCommand, ReplicaEntry, ReplicaError, ReplicaState, TimeSource};
use crate::router::Shared;

/// What a replica has on its disk beside its log.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// The last vote that is durable.
    pub(crate) vote: Option<Vec<u8>>,
    /// What was known of peers when the store was opened.
    pub(crate) peers: Option<Vec<u8>>,
}

/// Commands for the driver of a replicated shard. Cheap to clone. Every call returns at once; `done` is called
/// on the driver thread when the command was carried out, in the order of the calls, and must not block. When
/// the driver has stopped, `done` says so on the caller's thread.
#[derive(Clone)]
pub struct Replica {
    shared: Arc<Shared>,
    kept: Arc<Mutex<Kept>>,
}

impl std::fmt::Debug for Replica {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replica").finish_non_exhaustive()
    }
}

impl Replica {
    pub(crate) fn new(shared: Arc<Shared>, kept: Arc<Mutex<Kept>>) -> Self {
        Self { shared, kept }
    }

    fn send(&self, command: ReplicaCommand) {
        if let Err(command) = self.shared.queue.push_replica(command) {
            command.refuse(&ReplicaError::Closed);
        }
    }

    /// Stores entries behind the last one. `done` gets the id of the last of them once all are durable.
    ///
    /// An entry that says it is a proposal of this node is the frame that the driver gathered, and what waits
    /// for it is let out when it is committed. An entry of a later term than the one in which this driver
    /// leads ends its leadership first.
    pub fn append(&self, entries: Vec<ReplicaEntry>, done: Done<Result<EntryId, ReplicaError>>) {
        self.send(ReplicaCommand::Append { entries, done });
    }

    /// Removes the entries after `after`, durably. Ends a leadership. Committed entries are not removed.
    pub fn truncate_after(&self, after: Index, done: Done<Result<(), ReplicaError>>) {
        self.send(ReplicaCommand::Truncate { after, done });
    }

    /// Reads entries `from..to` from the log, verified: at least one if there is one, and about `max_bytes` in
    /// all.
    pub fn read(
        &self,
        from: Index,
        to: Index,
        max_bytes: usize,
        done: Done<Result<Vec<LogEntry>, ReplicaError>>,
    ) {
        self.send(ReplicaCommand::Read { from, to, max_bytes, done });
    }

    /// Entries up to `up_to` are committed: a follower folds them, the leader lets out what waited. `done` gets
    /// the last entry that is folded.
    pub fn committed(&self, up_to: Index, done: Done<Result<EntryId, ReplicaError>>) {
        self.send(ReplicaCommand::Committed { up_to, done });
    }

    /// This node was elected. The driver leads once an entry of that term is committed, and with it everything
    /// before; it says so by [`super::Replicator::role_changed`]. A damaged one does not lead, and nobody twice in
    /// one term: after [`Self::step_down`] it takes another election.
    pub fn become_leader(&self, term: Term) {
        self.send(ReplicaCommand::BecomeLeader { term });
    }

    /// This node does not lead (any more). Whoever waits is told; what was gathered is dropped.
    pub fn step_down(&self) {
        self.send(ReplicaCommand::StepDown);
    }

    /// The proposal was not taken and never will be. As [`Self::step_down`], if it is the one under way.
    pub fn refused(&self, proposal: u64) {
        self.send(ReplicaCommand::Refused { proposal });
    }

    /// Answers [`super::Replicator::confirm_leadership`]: whether this node led when it was asked, or later.
    pub fn confirmed(&self, id: u64, leads: bool) {
        self.send(ReplicaCommand::Confirmed { id, leads });
    }

    /// Whose clock this driver goes by while it leads. Until it is told it goes by none: time goes on from the log's
    /// as the monotonic clock says.
    pub fn keep_time(&self, by: TimeSource) {
        self.send(ReplicaCommand::KeepTime { by });
    }

    /// Ends the doubt about the end of the log: with the entry that a peer has in its place, or with nothing when
    /// the others declared that nobody counted on it (DR5). `done` at once when there is no doubt.
    pub fn settle_tail(&self, entry: Option<LogEntry>, done: Done<Result<(), ReplicaError>>) {
        self.send(ReplicaCommand::SettleTail { entry: entry.map(Box::new), done });
    }

    /// The files of the log with what is committed, for a node that is far behind.
    pub fn ship(&self, done: Done<Result<Shipment, ReplicaError>>) {
        self.send(ReplicaCommand::Ship { done });
    }

    /// Begins to gather another node's files, or goes on with it.
    pub fn begin_install(&self, list: LogFiles, done: Done<Result<Installation, ReplicaError>>) {
        self.send(ReplicaCommand::BeginInstall { list, done });
    }

    /// Puts a gathered and verified copy in the place of the log, and its state in the place of this one. Ends a
    /// leadership. `done` gets the last entry of the copy, all of which is committed.
    pub fn install(&self, installation: Box<Installation>, done: Done<Result<EntryId, ReplicaError>>) {
        self.send(ReplicaCommand::Install { installation, done });
    }

    /// Where log and state stand, after all commands before this one.
    pub fn state(&self, done: Done<ReplicaState>) {
        self.send(ReplicaCommand::State { done });
    }

    /// Makes a vote durable (DR9). It goes ahead of entries.
    pub fn save_vote(&self, bytes: Vec<u8>, done: Done<Result<(), ReplicaError>>) {
        self.send(ReplicaCommand::SaveVote { bytes, done });
    }

    /// The last vote that is durable; `None` in a store that never voted.
    #[must_use]
    pub fn vote(&self) -> Option<Vec<u8>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).vote.clone()
    }

    /// Keeps what is known of peers (DR13), if the disk takes it: nothing depends on that.
    pub fn save_peers(&self, bytes: Vec<u8>) {
        self.send(ReplicaCommand::SavePeers { bytes });
    }

    /// What was kept of that when the store was opened.
    #[must_use]
    pub fn peers(&self) -> Option<Vec<u8>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).peers.clone()
    }
}
