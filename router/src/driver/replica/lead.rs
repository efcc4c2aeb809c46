//! A leader's frames on their way to commitment, and reads that must show what is true now.

use beamlog_log::{EntryId, Index, LogEntry, ReplayedRecord, Term, WriteError};

use super::follow::FoldError;
use super::{Flight, Replicated};
use crate::driver::Driver;
use crate::driver::failure::GiveUp;
use crate::driver::release::Held;
use crate::engine::Input;
use crate::replica::{Proposal, ReplicaError, Role};

impl Driver {
    /// Sends off what was gathered. What is held waits for its commit; without anything gathered it shows what
    /// is committed already.
    pub(in crate::driver) fn propose(&mut self) {
        self.input(Input::Flush);
        self.lazy_commit = None;
        let timestamp = self.log.pending_time();
        let Some((records, body)) = self.log.pending_body() else {
            self.release_unwritten();
            return;
        };
        let begun = self.clock.instant();
        let replica = self.replica();
        let Role::Leader { term } = replica.role else { unreachable!("only a leader's engine gathers") };
        assert!(replica.flight.is_none(), "one frame is under way at a time");
        let id = replica.next_proposal;
        replica.next_proposal += 1;
        replica.flight =
            Some(Flight { proposal: id, records, bytes: body.len(), timestamp, begun, entry: None });
        replica.replicator.propose(Proposal { id, term, timestamp, records, body });
    }

    /// Writes the frame that is under way, if this entry is it.
    pub(super) fn append_proposed(
        &mut self,
        entry: &LogEntry,
        proposal: Option<u64>,
        term: Term,
    ) -> Result<bool, ReplicaError> {
        let Some(flight) = &mut self.replica().flight else { return Ok(false) };
        if proposal != Some(flight.proposal) || entry.id.term != term || flight.entry.is_some() {
            return Ok(false);
        }
        let proposed = (flight.records, flight.bytes, flight.timestamp);
        assert_eq!((entry.records, entry.body.len(), entry.timestamp), proposed, "it is what was proposed");
        flight.entry = Some(entry.id);
        match self.log.write_at(entry.id) {
            Ok(()) => Ok(true),
            Err(WriteError::Fenced(damage)) => {
                self.note_damage(&damage);
                Err(ReplicaError::Damaged(damage))
            }
            Err(error @ (WriteError::Poisoned | WriteError::Disk(_) | WriteError::Entry(_))) => {
                Err(self.fail_replica(&error))
            }
        }
    }

    /// Entries up to `up_to` are committed while this node leads: its own frame, and what replication says.
    pub(super) fn land(&mut self, up_to: Index) -> Result<(), FoldError> {
        let mut landed = false;
        while self.replica().applied.index < up_to {
            let next = self.replica().applied.index.next();
            let own = self.replica().flight.as_ref().and_then(|flight| flight.entry);
            let id = match own {
                Some(own) if own.index == next => {
                    landed = true;
                    own
                }
                Some(_) | None => self.land_foreign(next)?,
            };
            self.replica().applied = id;
        }
        if landed {
            let flight = self.replica().flight.take().expect("it has just landed");
            let entry = flight.entry.expect("it has just landed");
            assert!(entry.index <= self.log.durable_index(), "what is let out is durable here");
            let took = self.clock.instant().saturating_duration_since(flight.begun);
            self.quorum_nanos += u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
            self.unsynced.clear();
            // Before anything is let out: what that makes of the engine is not in the log yet.
            self.roll_if_needed();
            self.release();
        }
        Ok(())
    }

    /// An entry that the engine did not decide: replication's own.
    fn land_foreign(&mut self, index: Index) -> Result<EntryId, FoldError> {
        let entry = match self.replica().unapplied.take(index) {
            Some(entry) => entry,
            None => {
                let read = self.log.entries(index, index.next(), 0)?;
                read.into_iter().next().ok_or_else(crate::stream::body::missing)?
            }
        };
        for replayed in entry.replay().map_while(Result::ok) {
            match replayed.record {
                ReplayedRecord::Replication(bytes) => self.engine.note_replication(entry.id, &bytes),
                ReplayedRecord::Message(_) | ReplayedRecord::Control(_) => {
                    unreachable!("a leader does not append what it did not decide")
                }
            }
        }
        Ok(entry.id)
    }

    /// Lets out what is held although nothing was logged. What only says how things are waits until it is sure
    /// that this node still leads.
    pub(in crate::driver) fn release_unwritten(&mut self) {
        let held = std::mem::take(&mut self.held);
        let (mut reads, others): (Vec<Held>, Vec<Held>) = held.into_iter().partition(is_read);
        self.held = others;
        self.release();
        if !reads.is_empty() {
            self.replica().reads.gathering.append(&mut reads);
            self.replica().confirm_reads();
        }
    }

    /// An answer to the question whether this node leads.
    pub(super) fn confirmed(&mut self, id: u64, leads: bool) {
        let reads = &mut self.replica().reads;
        if reads.asked != Some(id) {
            return;
        }
        reads.asked = None;
        let waiting = std::mem::take(&mut reads.waiting);
        if leads {
            self.release_these(waiting);
            self.replica().confirm_reads();
        } else {
            for held in waiting {
                self.give_up(held, GiveUp::NotLeader);
            }
            self.step_down();
        }
    }
}

impl Replicated {
    /// Asks once for all reads that wait, if nothing is asked now.
    fn confirm_reads(&mut self) {
        let reads = &mut self.reads;
        if reads.asked.is_some() || reads.gathering.is_empty() {
            return;
        }
        reads.next_id += 1;
        let id = reads.next_id;
        reads.asked = Some(id);
        std::mem::swap(&mut reads.waiting, &mut reads.gathering);
        self.replicator.confirm_leadership(id);
    }

    /// All reads that wait, which nobody confirms any more.
    pub(super) fn take_reads(&mut self) -> Vec<Held> {
        self.reads.asked = None;
        let mut all = std::mem::take(&mut self.reads.waiting);
        all.append(&mut self.reads.gathering);
        all
    }
}

/// Whether it says how things are to somebody who may rely on it.
fn is_read(held: &Held) -> bool {
    match held {
        Held::PublishAck { .. } | Held::Outcome { .. } | Held::Answer { .. } | Held::AckReply { .. } => true,
        Held::Deliver { .. }
        | Held::Status { .. }
        | Held::Advisory(_)
        | Held::Capture { .. }
        | Held::Release { .. }
        | Held::Watch { .. }
        | Held::Unwatch { .. }
        | Held::Republish { .. } => false,
    }
}
