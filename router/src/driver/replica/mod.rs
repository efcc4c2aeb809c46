//! The driver of a shard that is replicated: what it does beside what every driver does. A driver that stands
//! alone has none of this.
//!
//! Invariants:
//! * One frame is under way at a time. From its proposal to its commit no client's command is handled and the
//!   engine is shown nothing, so the engine's state is that of the log up to this frame.
//! * Nothing of a frame is let out before its entry is committed *and* durable here (DR5, DR12).
//! * A state is folded from committed entries only; a leader's engine is the one exception, and it is thrown
//!   away with its leadership.
//!
//! * `copy`: files to and from other nodes. `follow`: appending, folding, rolling, reading. * `lead`: proposals, commits, reads that must be true now.
//! * `roles`: how one becomes the other.

mod copy;
mod follow;
mod lead;
mod roles;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use beamlog_log::{Damage, EntryId, Index, LogEntry, PeersFile, StreamId, Tail, Term, Timestamp, VoteFile};
use bytes::Bytes;

use crate::driver::Driver;
use crate::driver::release::Held;
use crate::engine::{EngineLimits, Recovering};
use crate::replica::{Kept, Lane, ReplicaCommand, ReplicaError, ReplicaState, Replicator, Role};
use crate::stats::Health;

/// Bytes of entries that wait in memory for their commit. What does not fit is read from the log.
const UNAPPLIED_BYTES_MAX: usize = 32 << 20;

/// What a replicated driver has beside its engine and log.
pub(super) struct Replicated {
    replicator: Arc<dyn Replicator>,
    role: Role,
    /// The state of one who does not lead. `None` while leading, and after damage.
    pub(super) folding: Option<Recovering>,
    /// Commands that were taken from the queue and not carried out yet.
    pub(super) lane: Lane,
    /// Since when the first of the lane waits for a roll.
    deferred: Option<Instant>,
    /// The last entry that is in the state.
    pub(super) applied: EntryId,
    unapplied: Unapplied,
    flight: Option<Flight>,
    next_proposal: u64,
    reads: Reads,
    /// What interest was told for the engine, to be taken back.
    announced: Announced,
    votes: VoteFile,
    peers: PeersFile,
    kept: Arc<Mutex<Kept>>,
    damaged: Option<Damage>,
    tail: Tail,
    limits: EngineLimits,
    /// The last term in which this driver was to lead.
    led: Term,
    /// Planted bugs; only a [`crate::Stepper`] sets them.
    #[cfg(feature = "planted-bugs")]
    forgets_ids: bool,
    #[cfg(feature = "planted-bugs")]
    forgets_watermarks: bool,
}

/// What [`super::open`] hands over.
pub(crate) struct ReplicatedParts {
    pub(crate) replicator: Arc<dyn Replicator>,
    pub(crate) folding: Recovering,
    pub(crate) applied: EntryId,
    pub(crate) votes: VoteFile,
    pub(crate) peers: PeersFile,
    pub(crate) kept: Arc<Mutex<Kept>>,
    pub(crate) damaged: Option<Damage>,
    pub(crate) tail: Tail,
    pub(crate) limits: EngineLimits,
}

/// The frame that was proposed.
struct Flight {
    proposal: u64,
    records: u32,
    bytes: usize,
    timestamp: Timestamp,
    begun: Instant,
    /// Its entry, once it is in the log here.
    entry: Option<EntryId>,
}

/// Answers that show what is true now, held until it is sure that this node still leads.
#[derive(Default)]
struct Reads {
    next_id: u64,
    asked: Option<u64>,
    /// Covered by what was asked.
    waiting: Vec<Held>,
    /// Decided after it was asked; for the next time.
    gathering: Vec<Held>,
}

/// Entries that were appended and are not committed, without holes up to the last one.
#[derive(Default)]
struct Unapplied {
    entries: VecDeque<LogEntry>,
    bytes: usize,
}

#[derive(Default)]
struct Announced {
    captures: BTreeMap<Bytes, StreamId>,
    watches: BTreeMap<(Bytes, Bytes), usize>,
}

impl Unapplied {
    fn push(&mut self, entry: LogEntry) {
        self.bytes += entry.body.len();
        self.entries.push_back(entry);
        if self.bytes > UNAPPLIED_BYTES_MAX {
            self.clear();
        }
    }

    /// The entry of this index, if it is here. Those before it are not wanted any more.
    fn take(&mut self, index: Index) -> Option<LogEntry> {
        while self.entries.front().is_some_and(|entry| entry.id.index <= index) {
            let entry = self.entries.pop_front()?;
            self.bytes -= entry.body.len();
            if entry.id.index == index {
                return Some(entry);
            }
        }
        None
    }

    fn truncate_after(&mut self, index: Index) {
        while self.entries.back().is_some_and(|entry| entry.id.index > index) {
            if let Some(entry) = self.entries.pop_back() {
                self.bytes -= entry.body.len();
            }
        }
    }

    fn clear(&mut self) {
        self.entries.clear();
        self.bytes = 0;
    }
}

impl Replicated {
    pub(crate) fn new(parts: ReplicatedParts) -> Self {
        let ReplicatedParts { replicator, folding, applied, votes, peers, kept, damaged, tail, limits } =
            parts;
        Self {
            replicator,
            role: Role::Follower,
            folding: Some(folding),
            lane: Lane::new(),
            deferred: None,
            applied,
            unapplied: Unapplied::default(),
            flight: None,
            next_proposal: 1,
            reads: Reads::default(),
            announced: Announced::default(),
            votes,
            peers,
            kept,
            damaged,
            tail,
            limits,
            led: Term(0),
            #[cfg(feature = "planted-bugs")]
            forgets_ids: false,
            #[cfg(feature = "planted-bugs")]
            forgets_watermarks: false,
        }
    }

    pub(super) const fn role(&self) -> Role {
        self.role
    }

    pub(super) const fn in_flight(&self) -> bool {
        self.flight.is_some()
    }

    pub(super) const fn leads(&self) -> bool {
        matches!(self.role, Role::Leader { .. })
    }

    pub(super) const fn damaged(&self) -> Option<&Damage> {
        self.damaged.as_ref()
    }

    /// Notes what interest is told, so that it can be taken back.
    pub(super) fn announce(&mut self, held: &Held) {
        let Announced { captures, watches } = &mut self.announced;
        match held {
            Held::Capture { filter, stream } => {
                captures.insert(filter.clone(), *stream);
            }
            Held::Release { filter, stream } => {
                if captures.get(filter) == Some(stream) {
                    captures.remove(filter);
                }
            }
            Held::Watch { subject, group } => {
                *watches.entry((subject.clone(), group.clone())).or_default() += 1;
            }
            Held::Unwatch { subject, group } => {
                let key = (subject.clone(), group.clone());
                if let Some(count) = watches.get_mut(&key) {
                    *count -= 1;
                    if *count == 0 {
                        watches.remove(&key);
                    }
                }
            }
            Held::PublishAck { .. }
            | Held::Outcome { .. }
            | Held::Answer { .. }
            | Held::Deliver { .. }
            | Held::Status { .. }
            | Held::AckReply { .. }
            | Held::Advisory(_)
            | Held::Republish { .. } => {}
        }
    }
}

impl Driver {
    /// What makes this driver one of several. Only called where it is known to be.
    fn replica(&mut self) -> &mut Replicated {
        self.replica.as_deref_mut().expect("only a replicated driver has commands of replication")
    }

    /// Carries out what replication wants, in its order. What must wait for a roll stays in the lane, and what
    /// is behind it too, but for what ends the wait.
    pub(super) fn obey(&mut self) {
        let mut lane = std::mem::take(&mut self.replica().lane);
        while let Some(command) = lane.pop_front() {
            let is_append = matches!(command, ReplicaCommand::Append { .. });
            if is_append && self.must_roll_first() {
                if let Some(ahead) = self.take_ahead(&mut lane) {
                    lane.push_front(command);
                    self.carry_out(ahead);
                    continue;
                }
                if self.still_waits() {
                    lane.push_front(command);
                    break;
                }
            }
            if is_append {
                self.replica().deferred = None;
            }
            self.carry_out(command);
        }
        self.replica().lane = lane;
        self.routes.flush();
    }

    fn carry_out(&mut self, command: ReplicaCommand) {
        if let Some(failed) = self.failed() {
            command.refuse(&failed);
            return;
        }
        match command {
            ReplicaCommand::Append { entries, done } => {
                let appended = self.append_entries(entries);
                done(appended);
            }
            ReplicaCommand::Truncate { after, done } => {
                let truncated = self.truncate_after(after);
                done(truncated);
            }
            ReplicaCommand::Read { from, to, max_bytes, done } => {
                let read = self.read_entries(from, to, max_bytes);
                done(read);
            }
            ReplicaCommand::Committed { up_to, done } => {
                let applied = self.committed(up_to);
                done(applied);
            }
            ReplicaCommand::BecomeLeader { term } => self.become_leader(term),
            ReplicaCommand::StepDown => self.step_down(),
            ReplicaCommand::Refused { proposal } => {
                if self.replica().flight.as_ref().is_some_and(|flight| flight.proposal == proposal) {
                    self.step_down();
                }
            }
            ReplicaCommand::Confirmed { id, leads } => self.confirmed(id, leads),
            ReplicaCommand::KeepTime { by } => self.clock.keep_by(by),
            ReplicaCommand::SettleTail { entry, done } => {
                let settled = self.settle_tail(entry.as_deref());
                done(settled);
            }
            ReplicaCommand::Ship { done } => {
                let shipped = self.ship();
                done(shipped);
            }
            ReplicaCommand::BeginInstall { list, done } => {
                let begun = self.begin_install(list);
                done(begun);
            }
            ReplicaCommand::Install { installation, done } => {
                let installed = self.install(*installation);
                done(installed);
            }
            ReplicaCommand::State { done } => done(self.replica_state()),
            ReplicaCommand::SaveVote { bytes, done } => {
                let saved = self.save_vote(bytes);
                done(saved);
            }
            ReplicaCommand::SavePeers { bytes } => self.replica().peers.save(&bytes),
        }
    }

    /// Why nothing is carried out any more.
    fn failed(&self) -> Option<ReplicaError> {
        self.failure.as_ref()?;
        let health = self.shared.health.lock().unwrap_or_else(PoisonError::into_inner);
        let reason = match &*health {
            Health::LogFailed { reason } => reason.clone(),
            Health::Serving | Health::InsufficientStorage | Health::Damaged { .. } | Health::Closed => {
                "the log has failed".to_owned()
            }
        };
        Some(ReplicaError::LogFailed { reason })
    }

    fn save_vote(&mut self, bytes: Vec<u8>) -> Result<(), ReplicaError> {
        let replica = self.replica();
        match replica.votes.save(&bytes) {
            Ok(()) => {
                replica.kept.lock().unwrap_or_else(PoisonError::into_inner).vote = Some(bytes);
                Ok(())
            }
            // Nobody knows what is on the disk: this node votes no more, and so takes part no more (DR2, DR9).
            Err(error) => {
                self.fail(&error);
                Err(self.failed().expect("the log has just failed"))
            }
        }
    }

    fn replica_state(&mut self) -> ReplicaState {
        let (last, history_from) = (self.log.last_id(), self.log.history_from());
        let replication = match &self.replica().folding {
            Some(folding) => folding.engine().replication().cloned(),
            None => self.engine.replication().cloned(),
        };
        let doubt = self.log.doubt().cloned();
        let replica = self.replica();
        ReplicaState {
            role: replica.role,
            last,
            history_from,
            applied: replica.applied,
            replication,
            tail: replica.tail,
            doubt,
            damaged: replica.damaged.clone(),
        }
    }

    /// Something that this node must fold or serve cannot be read.
    pub(super) fn note_damage(&mut self, damage: &Damage) {
        let Some(replica) = self.replica.as_deref_mut() else { return };
        if replica.damaged.is_some() {
            return;
        }
        tracing::error!(err = %damage, "this node's copy is damaged and wants repair");
        replica.damaged = Some(damage.clone());
        replica.replicator.damaged(damage);
        self.tell_health();
    }

    /// Until when a replicated driver may sleep on its own account.
    pub(super) fn replica_due_in(&self) -> Option<Duration> {
        let deferred = self.replica.as_deref()?.deferred?;
        let now = self.clock.instant();
        Some((deferred + follow::ROLL_PATIENCE).saturating_duration_since(now))
    }

    /// The state as rows, but for the time at which it is. `None` while an engine holds what is not committed.
    pub(in crate::driver) fn state_rows(&self) -> Option<(Index, Vec<Vec<u8>>)> {
        let replica = self.replica.as_deref()?;
        let engine = match &replica.folding {
            Some(folding) => folding.engine(),
            None if replica.leads() && !replica.in_flight() && !self.engine.has_unlogged() => &self.engine,
            None => return None,
        };
        (self.log.pending_records() == 0).then(|| (replica.applied.index, engine.timeless_rows()))
    }

    #[cfg(feature = "planted-bugs")]
    pub(in crate::driver) fn forget_ids_when_leading(&mut self) {
        self.replica().forgets_ids = true;
    }

    #[cfg(feature = "planted-bugs")]
    pub(in crate::driver) fn forget_watermarks_when_leading(&mut self) {
        self.replica().forgets_watermarks = true;
    }

    /// The driver stops: nobody is answered after it.
    pub(super) fn refuse_lane(&mut self) {
        for command in std::mem::take(&mut self.replica().lane) {
            command.refuse(&ReplicaError::Closed);
        }
    }
}
