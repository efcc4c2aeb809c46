//! Entries into the log, and from the log into the state.

use std::time::Duration;

use beamlog_log::{
    Damage, DamageReason, EntryId, Index, Journal, Log, LogEntry, ReplayedRecord, SegmentId, SyncError,
    TruncateError, WriteError,
};

use super::Replicated;
use crate::driver::Driver;
use crate::engine::{BrokenState, Recovering, Release};
use crate::replica::{ReplicaEntry, ReplicaError, Role};

/// How long an append waits for the commit that lets a segment end. Usually it is on its way. Without it the
/// segment grows beyond its size, which costs time and breaks nothing.
pub(super) const ROLL_PATIENCE: Duration = Duration::from_millis(20);
/// Bytes read from the log at once to be folded.
const FOLD_BYTES: usize = 4 << 20;

/// Why entries could not be folded.
pub(super) enum FoldError {
    Damage(Damage),
    Broken(BrokenState),
}

impl From<Damage> for FoldError {
    fn from(damage: Damage) -> Self {
        Self::Damage(damage)
    }
}

impl From<BrokenState> for FoldError {
    fn from(broken: BrokenState) -> Self {
        Self::Broken(broken)
    }
}

/// Folds an entry's records in, and tells the log what died.
pub(super) fn fold(recovering: &mut Recovering, log: &mut Log, entry: &LogEntry) -> Result<(), FoldError> {
    for replayed in entry.replay() {
        // What was read or appended was verified record by record.
        let replayed = replayed.map_err(malformed)?;
        match &replayed.record {
            ReplayedRecord::Message(message) => recovering.message(message)?,
            ReplayedRecord::Control(bytes) => recovering.control(bytes)?,
            ReplayedRecord::Replication(bytes) => recovering.replication(entry.id, bytes),
        }
    }
    recovering.at(entry.timestamp);
    for released in recovering.take_released() {
        match released {
            Release::Messages(stream, sequences) => log.release(stream, sequences),
            Release::Stream(stream) => log.release_stream(stream),
        }
    }
    Ok(())
}

fn malformed(reason: DamageReason) -> FoldError {
    FoldError::Damage(Damage { segment: SegmentId(0), offset: 0, reason })
}

impl Driver {
    pub(super) fn append_entries(&mut self, entries: Vec<ReplicaEntry>) -> Result<EntryId, ReplicaError> {
        let mut appended = Ok(());
        for entry in entries {
            appended = self.append_entry(entry);
            if appended.is_err() {
                break;
            }
        }
        self.sync_entries()?;
        appended.map(|()| self.log.last_id())
    }

    fn append_entry(&mut self, replicated: ReplicaEntry) -> Result<(), ReplicaError> {
        let ReplicaEntry { entry, proposal } = replicated;
        let last = self.log.last_id();
        if entry.id.index != last.index.next() || entry.id.term < last.term {
            return Err(ReplicaError::OutOfOrder { last, found: entry.id });
        }
        if let Role::Leader { term } = self.replica().role {
            if self.append_proposed(&entry, proposal, term)? {
                return Ok(());
            }
            if entry.id.term > term || proposal.is_some() || carries_decisions(&entry)? {
                // Somebody else decides now. Within a term nobody else does.
                assert!(
                    entry.id.term > term || proposal.is_some(),
                    "two leaders decide in term {term}: entry {} is not of this one",
                    entry.id.index
                );
                self.step_down();
            }
        }
        if self.log.doubt().is_some() {
            return Err(ReplicaError::TailInDoubt);
        }
        match self.log.append_entry(&entry) {
            Ok(()) => {
                // What others decided is never later than now (DR17).
                self.clock.raise(entry.timestamp);
                self.replica().unapplied.push(entry);
                Ok(())
            }
            Err(WriteError::Entry(fault)) => {
                Err(ReplicaError::Malformed { index: entry.id.index, reason: fault.to_string() })
            }
            Err(WriteError::Fenced(damage)) => {
                self.note_damage(&damage);
                Err(ReplicaError::Damaged(damage))
            }
            Err(error @ (WriteError::Poisoned | WriteError::Disk(_))) => Err(self.fail_replica(&error)),
        }
    }

    /// Makes everything appended durable.
    pub(super) fn sync_entries(&mut self) -> Result<(), ReplicaError> {
        if self.log.durable_index() == self.log.last_index() {
            return Ok(());
        }
        let begun = self.clock.instant();
        match self.log.sync() {
            Ok(durable) => assert_eq!(durable, self.log.last_index(), "a sync covers what was written"),
            Err(error @ (SyncError::Poisoned | SyncError::Disk(_))) => return Err(self.fail_replica(&error)),
        }
        let now = self.clock.instant();
        let took = now.saturating_duration_since(begun);
        self.sync_nanos += u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.commits += 1;
        self.idle.written(now);
        Ok(())
    }

    pub(super) fn fail_replica(&mut self, error: &dyn std::error::Error) -> ReplicaError {
        self.fail(error);
        self.failed().expect("the log has just failed")
    }

    pub(super) fn read_entries(
        &mut self,
        from: Index,
        to: Index,
        max_bytes: usize,
    ) -> Result<Vec<LogEntry>, ReplicaError> {
        let (history_from, last) = (self.log.history_from(), self.log.last_id());
        if from <= history_from.index || from > last.index.next() {
            return Err(ReplicaError::NotHere { from, history_from, last });
        }
        self.log.entries(from, to, max_bytes).map_err(|damage| {
            self.note_damage(&damage);
            ReplicaError::Damaged(damage)
        })
    }

    /// Entries up to `up_to` are decided for good.
    pub(super) fn committed(&mut self, up_to: Index) -> Result<EntryId, ReplicaError> {
        assert!(up_to <= self.log.durable_index(), "entry {up_to} is committed and not durable here");
        if up_to > self.replica().applied.index {
            let folded = if self.replica().leads() { self.land(up_to) } else { self.fold_up_to(up_to) };
            if let Err(error) = folded {
                return Err(match error {
                    FoldError::Damage(damage) => {
                        self.replica().folding = None;
                        self.note_damage(&damage);
                        ReplicaError::Damaged(damage)
                    }
                    FoldError::Broken(broken) => self.fail_replica(&broken),
                });
            }
            self.promote_if_ready();
            self.roll_if_needed();
        }
        Ok(self.replica().applied)
    }

    fn fold_up_to(&mut self, up_to: Index) -> Result<(), FoldError> {
        let Self { replica, log, .. } = self;
        let Replicated { folding, unapplied, applied, damaged, .. } =
            replica.as_deref_mut().expect("asked by replication");
        let Some(recovering) = folding else {
            return Err(FoldError::Damage(damaged.clone().unwrap_or_else(crate::stream::body::missing)));
        };
        while applied.index < up_to {
            let next = applied.index.next();
            if let Some(entry) = unapplied.take(next) {
                fold(recovering, log, &entry)?;
                *applied = entry.id;
                continue;
            }
            for entry in log.entries(next, up_to.next(), FOLD_BYTES)? {
                fold(recovering, log, &entry)?;
                *applied = entry.id;
            }
        }
        Ok(())
    }

    /// A state of its own from the newest segment's beginning and the entries up to `applied`.
    pub(super) fn refold(&mut self) -> Result<Recovering, FoldError> {
        self.refold_with(true)
    }

    /// As [`Self::refold`]; message ids from before the segment are looked up, or known from elsewhere.
    pub(super) fn refold_with(&mut self, look_up_ids: bool) -> Result<Recovering, FoldError> {
        let applied = self.replica().applied.index;
        let mut recovering = Recovering::new(self.replica().limits);
        let base = self.log.base()?;
        let mut at = base.as_ref().map_or(Index(0), |base| base.index);
        for row in base.iter().flat_map(|base| &base.records) {
            recovering.row(row)?;
        }
        recovering.follow(&mut self.log, look_up_ids);
        assert!(at <= applied, "a segment begins with what is committed");
        while at < applied {
            for entry in self.log.entries(at.next(), applied.next(), FOLD_BYTES)? {
                fold(&mut recovering, &mut self.log, &entry)?;
                at = entry.id.index;
            }
        }
        Ok(recovering)
    }

    /// Removes entries that were never committed.
    pub(super) fn truncate_after(&mut self, after: Index) -> Result<(), ReplicaError> {
        let committed = self.replica().applied.index;
        if after < committed {
            return Err(ReplicaError::Committed { committed, wanted: after });
        }
        if after >= self.log.last_index() {
            return Ok(());
        }
        if self.log.doubt().is_some() {
            return Err(ReplicaError::TailInDoubt);
        }
        self.step_down();
        self.replica().unapplied.truncate_after(after);
        match self.log.truncate_after(after) {
            Ok(()) => Ok(()),
            Err(error) => Err(self.fail_replica(&error)),
        }
    }

    /// Ends the doubt about the end of the log.
    pub(super) fn settle_tail(&mut self, entry: Option<&LogEntry>) -> Result<(), ReplicaError> {
        if self.log.doubt().is_none() {
            return Ok(());
        }
        let settled = match entry {
            Some(entry) => self.log.replace_suspect_tail(entry),
            None => self.log.cut_suspect_tail(),
        };
        match settled {
            Ok(()) => Ok(()),
            Err(TruncateError::Entry(fault)) => {
                let index = entry.map_or(self.log.last_index(), |entry| entry.id.index);
                Err(ReplicaError::Malformed { index, reason: fault.to_string() })
            }
            Err(TruncateError::Damaged(damage)) => {
                self.note_damage(&damage);
                Err(ReplicaError::Damaged(damage))
            }
            Err(error) => Err(self.fail_replica(&error)),
        }
    }

    /// Whether the state is that of the whole log, so that a segment may begin with it.
    pub(in crate::driver) fn may_roll(&self) -> bool {
        let Some(replica) = self.replica.as_deref() else { return true };
        let gathers = self.log.pending_records() > 0 || self.engine.has_unlogged();
        let has_state = replica.leads() || replica.folding.is_some();
        has_state && !replica.in_flight() && !gathers && replica.applied.index == self.log.last_index()
    }

    /// Whether the open segment is full. Ends it if that is possible now.
    pub(super) fn must_roll_first(&mut self) -> bool {
        if self.failure.is_some() || self.replica().leads() || !self.log.needs_roll() {
            return false;
        }
        self.roll_if_needed();
        self.failure.is_none() && self.log.needs_roll()
    }

    /// A command behind an append that waits for a roll which may be carried out before it: a commit of what is
    /// there lets the segment end, and a vote concerns no entry.
    pub(super) fn take_ahead(
        &mut self,
        lane: &mut crate::replica::Lane,
    ) -> Option<crate::replica::ReplicaCommand> {
        use crate::replica::ReplicaCommand as Command;
        let last = self.log.last_index();
        let at = lane.iter().position(|command| match command {
            Command::Committed { up_to, .. } => *up_to <= last,
            Command::SaveVote { .. } | Command::SavePeers { .. } => true,
            Command::Append { .. }
            | Command::Truncate { .. }
            | Command::Read { .. }
            | Command::BecomeLeader { .. }
            | Command::StepDown
            | Command::Refused { .. }
            | Command::Confirmed { .. }
            | Command::KeepTime { .. }
            | Command::SettleTail { .. }
            | Command::Ship { .. }
            | Command::BeginInstall { .. }
            | Command::Install { .. }
            | Command::State { .. } => false,
        })?;
        lane.remove(at)
    }

    /// Whether an append goes on waiting for a roll.
    pub(super) fn still_waits(&mut self) -> bool {
        if self.full {
            // Nowhere to write: it waits for space, which upkeep looks for now and then, and not for its time to be
            // over; replication finds this node slow (DR16).
            self.replica().deferred = None;
            return true;
        }
        let now = self.clock.instant();
        let since = *self.replica().deferred.get_or_insert(now);
        now.saturating_duration_since(since) < ROLL_PATIENCE
    }
}

/// Whether an entry has records of an engine.
fn carries_decisions(entry: &LogEntry) -> Result<bool, ReplicaError> {
    for replayed in entry.replay() {
        match replayed {
            Ok(replayed) => match replayed.record {
                ReplayedRecord::Message(_) | ReplayedRecord::Control(_) => return Ok(true),
                ReplayedRecord::Replication(_) => {}
            },
            Err(reason) => {
                let (index, reason) = (entry.id.index, reason.to_string());
                return Err(ReplicaError::Malformed { index, reason });
            }
        }
    }
    Ok(false)
}
