//! Becoming a leader, and ceasing to be one.

use beamlog_log::Term;

use super::Announced;
use super::follow::FoldError;
use crate::api::error::ApiError;
use crate::driver::Driver;
use crate::driver::command::{Command, PublishReply};
use crate::driver::failure::GiveUp;
use crate::driver::release::Held;
use crate::engine::{Engine, Input};
use crate::replica::Role;

impl Driver {
    pub(super) fn become_leader(&mut self, term: Term) {
        if let Some(damage) = self.replica().damaged.clone() {
            tracing::error!(err = %damage, term = term.0, "a damaged node does not lead");
            self.replica().replicator.damaged(&damage);
            return;
        }
        let replica = self.replica();
        if term <= replica.led {
            // A proposal of that time may still become an entry, and was decided against another state.
            tracing::error!(
                term = term.0,
                led = replica.led.0,
                "a term is led once: it takes a new election"
            );
            self.tell_role();
            return;
        }
        self.step_down();
        let replica = self.replica();
        replica.led = term;
        replica.role = Role::Elected { term };
        self.tell_role();
        self.promote_if_ready();
    }

    /// The state of one who was elected is whole once an entry of the term is in it: that and everything before
    /// is committed.
    pub(super) fn promote_if_ready(&mut self) {
        let last = self.log.last_index();
        let replica = self.replica();
        let Role::Elected { term } = replica.role else { return };
        if replica.applied.term != term || replica.applied.index != last {
            return;
        }
        #[cfg(feature = "planted-bugs")]
        let (forgets, beside) =
            (replica.forgets_ids.then(|| Engine::new(replica.limits)), replica.forgets_watermarks);
        let Some(folding) = replica.folding.take() else { return };
        #[cfg(feature = "planted-bugs")]
        let mut folding = folding;
        #[cfg(feature = "planted-bugs")]
        if let Some(blank) = forgets {
            folding.take_ids_of(&blank);
        }
        #[cfg(feature = "planted-bugs")]
        if beside {
            folding.forget_watermarks();
        }
        // What was decided by others is never later than now (DR17).
        self.clock.raise(self.log.pending_time().max(folding.now()));
        let now = self.clock.now();
        match folding.finish(&mut self.log, now) {
            Ok(engine) => self.engine = engine,
            Err(broken) => {
                self.fail(&broken);
                return;
            }
        }
        self.replica().unapplied.clear();
        self.replica().role = Role::Leader { term };
        tracing::info!(term = term.0, index = last.0, "leads");
        self.begin();
        self.tell_role();
    }

    /// This node does not lead: whoever waits is told, captures are released, the state is that of what is
    /// committed.
    pub(super) fn step_down(&mut self) {
        match self.replica().role {
            Role::Alone => unreachable!("a replicated driver is not alone"),
            Role::Follower => {}
            Role::Elected { .. } => {
                self.replica().role = Role::Follower;
                self.tell_role();
            }
            Role::Leader { term } => {
                self.withdraw(GiveUp::NotLeader, Input::StepDown);
                tracing::info!(term = term.0, index = self.log.last_index().0, "does not lead any more");
                self.rebuild();
                self.tell_role();
            }
        }
    }

    /// A leader is one no more: nothing of what it decided and was not committed is let out or kept.
    pub(in crate::driver) fn withdraw(&mut self, why: GiveUp, last_word: Input<'_>) {
        let replica = self.replica();
        replica.role = Role::Follower;
        replica.flight = None;
        let reads = replica.take_reads();
        let held = std::mem::take(&mut self.held);
        for held in held.into_iter().chain(reads) {
            self.give_up(held, why);
        }
        if self.failure.is_none() {
            self.input(last_word);
            for held in std::mem::take(&mut self.held) {
                // Only what is said to those who wait; what it would store is not.
                if matches!(held, Held::Status { .. }) {
                    self.release_these(vec![held]);
                }
            }
        }
        for (_, then) in std::mem::take(&mut self.asked) {
            then(Err(why.api_error()));
        }
        self.commands.retain(|command| !is_own(command));
        let Announced { captures, watches } = std::mem::take(&mut self.replica().announced);
        for (filter, stream) in captures {
            self.interest.release(&filter, stream);
        }
        for ((subject, group), count) in watches {
            for _ in 0..count {
                self.interest.unwatch(self.watcher, &subject, &group);
            }
        }
        self.log.discard_pending();
        self.unsynced.clear();
        self.lazy_commit = None;
        self.routes.flush();
    }

    /// Says what this driver is now, to whom it concerns.
    pub(in crate::driver) fn tell_role(&mut self) {
        self.count();
        let replica = self.replica();
        replica.replicator.role_changed(replica.role);
    }

    /// The engine is thrown away, with whatever it decided that is not committed.
    fn rebuild(&mut self) {
        let limits = self.replica().limits;
        let deposed = std::mem::replace(&mut self.engine, Engine::new(limits));
        self.log.forget_releases();
        // Message ids are those that the engine knew.
        match self.refold_with(false) {
            Ok(mut recovering) => {
                recovering.carry_counters(deposed.counters());
                recovering.take_ids_of(&deposed);
                self.replica().folding = Some(recovering);
            }
            Err(FoldError::Damage(damage)) => self.note_damage(&damage),
            Err(FoldError::Broken(broken)) => self.fail(&broken),
        }
    }

    /// What clients ask of a node that does not lead.
    pub(in crate::driver) fn refuse_not_leader(&mut self) {
        drop(self.shared.queue.take_interest());
        for command in std::mem::take(&mut self.commands) {
            match command {
                Command::Publish { publish, reply } => {
                    self.refuse_publish(publish.stream, reply, GiveUp::NotLeader);
                }
                Command::PublishAll(batch) => {
                    let (bytes, rows) = batch.into_rows();
                    for row in rows {
                        let reply = PublishReply::Wire(row.reply(&bytes));
                        self.refuse_publish(row.stream, reply, GiveUp::NotLeader);
                    }
                }
                Command::Request { then, .. } => then(Err(ApiError::NotLeader)),
                Command::Acknowledge(acknowledgement) => {
                    if let Some(to) = acknowledgement.reply {
                        self.give_up(Held::AckReply { to }, GiveUp::NotLeader);
                    }
                }
                Command::Pull(pull) => self.refuse_pull(pull.stream, pull.consumer, &pull.reply),
                Command::FlowControl(_) => {}
            }
        }
        self.routes.flush();
    }
}

/// Whether the driver put it in itself, for its engine: nobody waits for it.
fn is_own(command: &Command) -> bool {
    matches!(command, Command::Publish { reply: PublishReply::Wire(to), .. } if to.is_empty())
}
