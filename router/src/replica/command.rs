//! The lane of the driver's queue that goes before clients' commands. Not bounded here: the other side has
//! a few commands under way at a time, and drops none.

use std::collections::VecDeque;

use beamlog_log::{EntryId, Index, Installation, LogEntry, LogFiles, Shipment, Term};

use super::{Done, ReplicaEntry, ReplicaError, ReplicaState, TimeSource};

/// One command of replication.
pub(crate) enum ReplicaCommand {
    Append { entries: Vec<ReplicaEntry>, done: Done<Result<EntryId, ReplicaError>> },
    Truncate { after: Index, done: Done<Result<(), ReplicaError>> },
    Read { from: Index, to: Index, max_bytes: usize, done: Done<Result<Vec<LogEntry>, ReplicaError>> },
    Committed { up_to: Index, done: Done<Result<EntryId, ReplicaError>> },
    BecomeLeader { term: Term },
    StepDown,
    Refused { proposal: u64 },
    Confirmed { id: u64, leads: bool },
    KeepTime { by: TimeSource },
    SettleTail { entry: Option<Box<LogEntry>>, done: Done<Result<(), ReplicaError>> },
    Ship { done: Done<Result<Shipment, ReplicaError>> },
    BeginInstall { list: LogFiles, done: Done<Result<Installation, ReplicaError>> },
    Install { installation: Box<Installation>, done: Done<Result<EntryId, ReplicaError>> },
    State { done: Done<ReplicaState> },
    SaveVote { bytes: Vec<u8>, done: Done<Result<(), ReplicaError>> },
    SavePeers { bytes: Vec<u8> },
}

/// Commands in their order.
pub(crate) type Lane = VecDeque<ReplicaCommand>;

impl ReplicaCommand {
    /// Answers a command that nobody will carry out any more.
    pub(crate) fn refuse(self, error: &ReplicaError) {
        match self {
            Self::Append { done, .. } => done(Err(error.clone())),
            Self::Truncate { done, .. } | Self::SettleTail { done, .. } | Self::SaveVote { done, .. } => {
                done(Err(error.clone()));
            }
            Self::Read { done, .. } => done(Err(error.clone())),
            Self::Committed { done, .. } => done(Err(error.clone())),
            Self::Ship { done } => done(Err(error.clone())),
            Self::BeginInstall { done, .. } => done(Err(error.clone())),
            Self::Install { done, .. } => done(Err(error.clone())),
            // Whoever waits for a state sees its sender go.
            Self::State { done } => drop(done),
            Self::BecomeLeader { .. }
            | Self::StepDown
            | Self::Refused { .. }
            | Self::Confirmed { .. }
            | Self::KeepTime { .. }
            | Self::SavePeers { .. } => {}
        }
    }
}
