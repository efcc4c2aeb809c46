//! The driver: the one thread that owns an engine and a log. The only place of this crate with a thread,
//! a clock and a disk.
//!
//! Invariant: nothing that an output shows leaves before the frame with its records is durable. So each
//! turn takes waiting commands, lets the engine push what they decide, writes and syncs once if somebody
//! waits for it, and only then releases the outputs.

pub(crate) mod checkpoint;
pub(crate) mod clock;
pub(crate) mod command;
mod failure;
mod idle;
pub(crate) mod open;
pub(crate) mod queue;
mod release;
mod replica;
pub(crate) mod stepper;

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use beamlog_log::{CloseError, DataDirectory, Log, RollError, Sequence, StreamId, Timestamp};
use hashbrown::HashMap;

use crate::api::error::{ApiError, PublishRefusal};
use crate::api::request::{PublishOutcome, Published, Request};
use crate::driver::checkpoint::Checkpoints;
use crate::driver::clock::Clock;
use crate::driver::command::{Command, PublishBatch, PublishRef, PublishReply, Then};
use crate::driver::failure::{Failure, GiveUp};
use crate::driver::idle::Idle;
use crate::driver::queue::Taken;
use crate::driver::release::Held;
use crate::driver::replica::Replicated;
pub(crate) use crate::driver::replica::ReplicatedParts;
use crate::engine::{Engine, Input, Output, Recovering, Turn};
use crate::interest::{Interest, RouteCache, Watcher};
use crate::replica::Role;
use crate::router::Shared;
use crate::stats::{Health, RouterStats};
use crate::wire::Wire;

/// How long a record that nobody waits for may stay unwritten.
const LAZY_COMMIT_NANOS: u64 = 250_000_000;
/// Messages delivered in one turn, so that a long replay does not hold up publishes.
const DELIVERIES_PER_TURN: usize = 1024;
/// How often a turn looks for more commands before it ends.
const REFILLS_MAX: usize = 4;
/// Upkeep of the log at least this often while there is traffic, and how often a full disk is looked at.
const MAINTAIN_EVERY: Duration = Duration::from_millis(500);
const STATS_EVERY: Duration = Duration::from_millis(100);

/// Sizes of a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchLimits {
    pub(crate) commands: usize,
    pub(crate) bytes: usize,
    /// Bytes gathered for a frame at which it is written before more is pushed.
    pub(crate) frame_bytes: usize,
}

/// Everything a driver owns.
pub(crate) struct Driver {
    shared: Arc<Shared>,
    engine: Engine,
    log: Log,
    checkpoints: Checkpoints,
    idle: Idle,
    clock: Clock,
    interest: Arc<Interest>,
    watcher: Watcher,
    wire: Arc<dyn Wire>,
    routes: RouteCache,
    limits: BatchLimits,
    commands: VecDeque<Command>,
    /// Outputs that wait for the commit of this turn, in order.
    held: Vec<Held>,
    /// Who waits for which answer.
    asked: HashMap<u64, Then, foldhash::fast::FixedState>,
    next_token: u64,
    /// When records that nobody waits for are written.
    lazy_commit: Option<Timestamp>,
    maintained: Instant,
    maintain_more: bool,
    counted: Instant,
    failure: Option<Failure>,
    /// The first message of each stream stored since the last sync; neighbours of one stream once.
    unsynced: Vec<(StreamId, Sequence)>,
    full: bool,
    commits: u64,
    sync_nanos: u64,
    quorum_nanos: u64,
    refused_full: u64,
    body: Vec<u8>,
    subject: Vec<u8>,
    outcome: PublishOutcome,
    /// What there is beside in a shard that is replicated; a driver that stands alone has none.
    replica: Option<Box<Replicated>>,
    /// Held to the end: its lock says that the directory is in use.
    directory: DataDirectory,
}

/// What [`open`] hands to a new driver.
pub(crate) struct Parts {
    pub(crate) shared: Arc<Shared>,
    pub(crate) engine: Engine,
    pub(crate) log: Log,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) idle: Idle,
    pub(crate) clock: Clock,
    pub(crate) interest: Arc<Interest>,
    pub(crate) watcher: Watcher,
    pub(crate) wire: Arc<dyn Wire>,
    pub(crate) limits: BatchLimits,
    pub(crate) replica: Option<ReplicatedParts>,
    pub(crate) directory: DataDirectory,
}

/// DR22: half an applied state machine is not caught. Whoever supervises the process starts it anew.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("the driver panicked: the process stops");
            std::process::abort();
        }
    }
}

impl Driver {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts {
            shared,
            engine,
            log,
            checkpoints,
            idle,
            clock,
            interest,
            watcher,
            wire,
            limits,
            replica,
            directory,
        } = parts;
        let now = clock.instant();
        Self {
            shared,
            engine,
            checkpoints,
            log,
            idle,
            clock,
            interest,
            watcher,
            wire,
            routes: RouteCache::new(),
            limits,
            commands: VecDeque::new(),
            held: Vec::new(),
            asked: HashMap::default(),
            next_token: 1,
            lazy_commit: None,
            maintained: now,
            maintain_more: true,
            counted: now,
            failure: None,
            unsynced: Vec::new(),
            full: false,
            commits: 0,
            sync_nanos: 0,
            quorum_nanos: 0,
            refused_full: 0,
            body: Vec::new(),
            subject: Vec::new(),
            outcome: PublishOutcome { stream: String::new(), result: Err(PublishRefusal::StreamNotFound) },
            replica: replica.map(|parts| Box::new(Replicated::new(parts))),
            directory,
        }
    }

    /// The thread's life: until every handle is gone or one of them closes.
    pub(crate) fn run(mut self) -> Result<(), CloseError> {
        let _abort = AbortOnPanic;
        loop {
            let timeout = self.timeout();
            if self.step(timeout) == Taken::Closed {
                return self.close();
            }
        }
    }

    /// Waits up to `timeout` for something to do, and does it.
    fn step(&mut self, timeout: Option<Duration>) -> Taken {
        let mut commands = std::mem::take(&mut self.commands);
        let taken = match self.replica.as_deref_mut() {
            None => self.shared.queue.take(&mut commands, self.limits.commands, self.limits.bytes, timeout),
            Some(replica) => {
                // While a frame is under way clients' commands gather for the next one.
                let clients = (!replica.in_flight()).then_some((
                    &mut commands,
                    self.limits.commands,
                    self.limits.bytes,
                ));
                self.shared.queue.take_replicated(&mut replica.lane, clients, timeout)
            }
        };
        self.commands = commands;
        if taken == Taken::Closed {
            return taken;
        }
        if self.replica.is_some() {
            self.obey();
        }
        match self.replica.as_deref().map(|replica| (replica.leads(), replica.in_flight())) {
            None | Some((true, false)) => self.turn(),
            Some((true, true)) => {}
            Some((false, _)) if self.failure.is_some() => self.refuse_all(),
            Some((false, _)) => self.refuse_not_leader(),
        }
        if self.commands.is_empty() && taken == Taken::TimedOut {
            self.idle();
        }
        self.upkeep();
        taken
    }

    /// For a driver that is stepped: whether a step would find something; if not, `waker` is told of what comes.
    fn poll_work(&self, waker: &Waker) -> Poll<()> {
        self.shared.queue.poll_waiting(!self.in_flight(), waker)
    }

    fn in_flight(&self) -> bool {
        self.replica.as_deref().is_some_and(Replicated::in_flight)
    }

    /// How long the driver may sleep.
    fn timeout(&mut self) -> Option<Duration> {
        let stale = self.is_stale().then_some(STATS_EVERY);
        if self.in_flight() {
            // Only replication ends this.
            return stale;
        }
        if !self.commands.is_empty() {
            return Some(Duration::ZERO);
        }
        if self.failure.is_some() {
            // Nothing of the rest is done any more, however long it has been due.
            return stale;
        }
        if self.engine_has_work() || self.maintain_more {
            return Some(Duration::ZERO);
        }
        let now = self.clock.now();
        let engine = self.engine.next_deadline().into_iter().chain(self.lazy_commit).map(|due| {
            // Time may run at half speed for a while: look again in time.
            self.clock.until(due.max(now))
        });
        let full = self.full.then_some(MAINTAIN_EVERY);
        let checkpoint = self.checkpoints.due_in(self.clock.instant(), self.log.last_index());
        let rest = [full, checkpoint, stale, self.idle_due_in(), self.replica_due_in()];
        engine.chain(rest.into_iter().flatten()).min()
    }

    fn engine_has_work(&self) -> bool {
        self.failure.is_none() && self.engine.has_work()
    }

    /// Takes what came while the commands before it were carried out: it shares their sync.
    fn refill(&self, commands: &mut VecDeque<Command>) -> bool {
        if self.replica.is_some() || self.failure.is_some() {
            return false;
        }
        let BatchLimits { commands: commands_max, bytes, .. } = self.limits;
        self.shared.queue.take(commands, commands_max, bytes, Some(Duration::ZERO)) == Taken::Commands
            && !commands.is_empty()
    }

    /// One batch: commands, what is due, deliveries, commit, release.
    fn turn(&mut self) {
        if self.failure.is_some() {
            self.refuse_all();
            return;
        }
        for ((subject, group), present) in self.shared.queue.take_interest() {
            self.input(Input::Interest { subject, group, present });
        }
        let mut commands = std::mem::take(&mut self.commands);
        let mut refills = 0;
        loop {
            let Some(command) = commands.pop_front() else {
                refills += 1;
                if refills <= REFILLS_MAX && self.refill(&mut commands) {
                    continue;
                }
                break;
            };
            if self.failure.is_some() {
                self.refuse(command);
                continue;
            }
            if self.log.pending_bytes() >= self.limits.frame_bytes {
                self.commit();
                if self.in_flight() {
                    commands.push_front(command);
                    break;
                }
            }
            self.command(command);
            if self.in_flight() {
                break;
            }
        }
        if self.in_flight() {
            // What of the last one did not fit goes first.
            self.commands.append(&mut commands);
            return;
        }
        // What releases put in for the next turn stays behind what was just emptied.
        commands.append(&mut self.commands);
        self.commands = commands;
        if self.engine_has_work() || self.engine_is_due() {
            self.input(Input::Work { budget: DELIVERIES_PER_TURN });
        }
        self.end_turn();
    }

    fn engine_is_due(&mut self) -> bool {
        let now = self.clock.now();
        self.failure.is_none() && self.engine.next_deadline().is_some_and(|due| due <= now)
    }

    /// Commits if somebody waits for it, or if records have waited long enough; releases what is held.
    fn end_turn(&mut self) {
        if self.failure.is_some() {
            return;
        }
        let now = self.clock.now();
        let wanted = self.engine.take_commit_wanted();
        let overdue = self.lazy_commit.is_some_and(|due| due <= now);
        let large = self.log.pending_bytes() >= self.limits.frame_bytes;
        if wanted || overdue || large {
            self.commit();
        } else {
            if self.engine.has_unlogged() || self.log.pending_records() > 0 {
                self.lazy_commit.get_or_insert(Timestamp(now.0 + LAZY_COMMIT_NANOS));
            }
            if self.replica.is_some() {
                self.release_unwritten();
            } else {
                self.release();
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Publish { publish, reply } => {
                let now = self.clock.now();
                self.publish(now, publish.borrow(), reply);
            }
            Command::PublishAll(batch) => self.publish_all(batch),
            Command::Request { request, then } => {
                if self.full && needs_space(&request) {
                    self.held.push(Held::Answer { then, answer: Err(ApiError::InsufficientStorage) });
                    return;
                }
                let token = self.next_token;
                self.next_token += 1;
                self.asked.insert(token, then);
                self.input(Input::Request { token, request: *request });
            }
            Command::Acknowledge(acknowledgement) => self.input(Input::Acknowledge(*acknowledgement)),
            Command::Pull(pull) => self.input(Input::Pull(*pull)),
            Command::FlowControl(reply) => self.input(Input::FlowControl(*reply)),
        }
    }

    /// What one read of a client brought has one time.
    fn publish_all(&mut self, batch: PublishBatch) {
        let (bytes, rows) = batch.into_rows();
        let mut now = self.clock.now();
        let mut rows = rows.into_iter();
        while let Some(row) = rows.next() {
            if self.log.pending_bytes() >= self.limits.frame_bytes {
                self.commit();
                if self.in_flight() {
                    let left = std::iter::once(row).chain(rows).map(|row| row.publish(&bytes));
                    self.commands.extend(left.map(Command::of_wire));
                    return;
                }
                now = self.clock.now();
            }
            let reply = PublishReply::Wire(row.reply(&bytes));
            if self.failure.is_some() {
                self.refuse_publish(row.stream, reply, GiveUp::LogFailed);
            } else {
                self.publish(now, row.of(&bytes), reply);
            }
        }
    }

    fn publish(&mut self, now: Timestamp, publish: PublishRef<'_>, reply: PublishReply) {
        if self.full {
            self.refused_full += 1;
            self.hold_outcome(reply, publish.stream, Err(PublishRefusal::InsufficientStorage), true);
            return;
        }
        let interest = &self.interest;
        let has_interest = |subject: &[u8]| interest.has_interest(subject);
        self.log.set_time(now);
        let mut turn = Turn { now, journal: &mut self.log, has_interest: &has_interest };
        self.engine.handle(&mut turn, Input::Publish(publish));
        let mut reply = Some(reply);
        while let Some(output) = self.engine.poll_output() {
            if let Output::Published { stream, result, acked } = output {
                if let Ok(Published::Stored(sequence) | Published::Batch { last: sequence, .. }) = &result
                    && self.unsynced.last().is_none_or(|(last, _)| *last != stream)
                {
                    self.unsynced.push((stream, *sequence));
                }
                let reply = reply.take().expect("a publish has one outcome");
                self.hold_outcome(reply, stream, result, acked);
            } else {
                self.hold(output);
            }
        }
    }

    /// Shows the engine one input and holds what it wants done.
    fn input(&mut self, input: Input<'_>) {
        let interest = Arc::clone(&self.interest);
        let has_interest = |subject: &[u8]| interest.has_interest(subject);
        let now = self.clock.now();
        self.log.set_time(now);
        let mut turn = Turn { now, journal: &mut self.log, has_interest: &has_interest };
        self.engine.handle(&mut turn, input);
        while let Some(output) = self.engine.poll_output() {
            self.hold(output);
        }
    }

    /// Makes everything pushed so far durable, and then lets out what is held. In a shard that is replicated it
    /// sends it off, and that happens when it is committed.
    fn commit(&mut self) {
        if self.replica.is_some() {
            self.propose();
        } else if self.write_and_sync() {
            self.release();
            self.roll_if_needed();
        }
    }

    /// Durable before visible: one write, one sync. Returns whether the log still works.
    fn write_and_sync(&mut self) -> bool {
        self.input(Input::Flush);
        self.lazy_commit = None;
        if self.log.pending_records() == 0 && self.log.durable_index() == self.log.last_index() {
            return true;
        }
        if let Err(error) = self.log.write() {
            self.fail(&error);
            return false;
        }
        let begun = self.clock.instant();
        match self.log.sync() {
            Ok(durable) => assert_eq!(durable, self.log.last_index(), "a sync covers what was written"),
            Err(error) => {
                self.fail(&error);
                return false;
            }
        }
        let took = self.clock.instant().saturating_duration_since(begun);
        self.unsynced.clear();
        self.sync_nanos += u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.commits += 1;
        self.idle.written(self.clock.instant());
        true
    }

    /// Begins a new segment when the open one might not take another frame.
    fn roll_if_needed(&mut self) {
        let wanted = if self.full { self.log.wants_relief() } else { self.log.needs_roll() };
        if self.failure.is_none() && wanted && self.may_roll() {
            self.roll();
        }
    }

    fn roll(&mut self) {
        if self.replica.is_none() && !self.write_and_sync() {
            return;
        }
        let folding = self.replica.as_deref().and_then(|replica| replica.folding.as_ref());
        let state = folding.map_or(&self.engine, Recovering::engine);
        let rolled = if self.full {
            self.log.roll_for_space(&mut state.snapshot())
        } else {
            self.log.roll(&mut state.snapshot())
        };
        if let Some(replica) = self.replica.as_deref_mut() {
            self.engine.forget_changes();
            replica.folding.iter_mut().for_each(Recovering::expire_ids);
        }
        match rolled {
            Ok(()) => {
                // Without a place for the segment after this one, this one is for what frees space (DR16).
                self.set_full(self.log.is_full());
                self.maintain_more = true;
                self.checkpoints.wish();
                self.idle.written(self.clock.instant());
            }
            Err(RollError::Full) => self.set_full(true),
            Err(error @ (RollError::Poisoned | RollError::Fenced(_) | RollError::Disk(_))) => {
                self.fail(&error)
            }
        }
    }

    fn set_full(&mut self, full: bool) {
        if self.full == full {
            return;
        }
        self.full = full;
        if full {
            tracing::error!("no space for the log: publishes are refused until there is some");
        } else {
            tracing::info!("there is space for the log again");
        }
        self.tell_health();
    }

    /// Says what this driver can do, as long as its log has not failed.
    fn tell_health(&self) {
        if self.failure.is_some() {
            return;
        }
        let damage = self.replica.as_deref().and_then(Replicated::damaged);
        let health = match damage {
            Some(damage) => Health::Damaged { reason: damage.to_string() },
            None if self.full => Health::InsufficientStorage,
            None => Health::Serving,
        };
        *self.shared.health.lock().unwrap_or_else(PoisonError::into_inner) = health;
    }

    /// Nothing waits.
    fn idle(&mut self) {
        if self.failure.is_none() {
            self.maintain();
            self.prove_tail();
            self.scrub();
        }
    }

    /// What is done now and then whether or not there is traffic.
    fn upkeep(&mut self) {
        let now = self.clock.instant();
        if self.failure.is_none() {
            if now.saturating_duration_since(self.maintained) >= MAINTAIN_EVERY
                && (self.full || self.maintain_more)
            {
                self.maintain();
            }
            if self.checkpoints.is_due(now, self.log.last_index()) && self.write_and_sync() {
                self.release();
                self.checkpoints.save(&mut self.engine, &self.log, now);
            }
            self.scrub_if_late(now);
        }
        if now.saturating_duration_since(self.counted) >= STATS_EVERY {
            self.count();
        }
    }

    /// One bounded step of the log's upkeep; it may push, so it is committed lazily.
    fn maintain(&mut self) {
        self.maintained = self.clock.instant();
        if self.log.pending_records() > 0 || self.engine.has_unlogged() || self.in_flight() {
            // Between frames only; the next commit comes soon.
            return;
        }
        match self.log.maintain() {
            Ok(done) => self.maintain_more = done.more,
            // On a full disk nothing is written that would show it later.
            Err(error) if self.log.is_poisoned() => return self.fail(&error),
            Err(error) => {
                self.maintain_more = false;
                tracing::warn!(err = %error, "upkeep of the log stopped");
            }
        }
        if self.log.pending_records() > 0 {
            let now = self.clock.now();
            self.lazy_commit.get_or_insert(Timestamp(now.0 + LAZY_COMMIT_NANOS));
        }
        self.set_full(self.log.is_full());
        if self.log.pending_records() == 0 {
            self.roll_if_needed();
        }
    }

    fn is_stale(&self) -> bool {
        self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner).last_index != self.log.last_index()
    }

    /// Brings the figures that handles read up to date.
    fn count(&mut self) {
        self.counted = self.clock.instant();
        let folding = self.replica.as_deref().and_then(|replica| replica.folding.as_ref());
        let counters = folding.map_or(&self.engine, Recovering::engine).counters();
        let log = self.log.stats();
        let stats = RouterStats {
            stored_messages: counters.stored_messages,
            stored_bytes: counters.stored_bytes,
            duplicates: counters.duplicates,
            message_ids_reused: counters.message_ids_reused,
            refused_publishes: counters.refused_publishes + self.refused_full,
            requests: counters.requests,
            acks: counters.acks,
            deliveries: counters.deliveries,
            redeliveries: counters.redeliveries,
            commits: self.commits,
            sync_nanos: self.sync_nanos,
            quorum_nanos: self.quorum_nanos,
            role: self.replica.as_deref().map_or(Role::Alone, Replicated::role),
            applied_index: self
                .replica
                .as_deref()
                .map_or(self.log.last_index(), |replica| replica.applied.index),
            streams: counters.streams,
            consumers: counters.consumers,
            messages: counters.messages,
            bytes: counters.bytes,
            queued_commands: 0,
            last_index: self.log.last_index(),
            durable_index: self.log.durable_index(),
            checkpoint_index: self.checkpoints.index(),
            unreadable: counters.unreadable,
            segments: log.segments,
            log_bytes: log.segment_bytes,
            scrubbed_bytes: log.scrubbed_bytes,
            scrub_passes: log.scrub_passes,
            scrub_damage: log.scrub_damage,
        };
        self.idle.scrub_pass_is(self.log.scrub_pass_bytes());
        *self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner) = stats;
    }

    /// The last turn: everything taken in is done, those who wait are told, the log is sealed.
    fn close(mut self) -> Result<(), CloseError> {
        if self.replica.is_some() {
            // What was not committed by now is for the others to decide.
            self.refuse_lane();
            if self.replica.as_deref().is_some_and(Replicated::leads) {
                self.withdraw(GiveUp::NotLeader, Input::Shutdown);
            }
            let (commands, bytes) = (usize::MAX, usize::MAX);
            self.shared.queue.take(&mut self.commands, commands, bytes, Some(Duration::ZERO));
            self.refuse_not_leader();
        } else if self.failure.is_none() {
            self.input(Input::Shutdown);
            if self.write_and_sync() {
                self.release();
                self.checkpoints.save(&mut self.engine, &self.log, self.clock.instant());
            }
        }
        *self.shared.health.lock().unwrap_or_else(PoisonError::into_inner) = Health::Closed;
        self.count();
        let Self { log, checkpoints, directory, .. } = self;
        let closed = log.close();
        checkpoints.close();
        // Only now may another process have the directory.
        drop(directory);
        closed
    }
}

/// Whether a request adds to what the log must hold.
fn needs_space(request: &Request) -> bool {
    match request {
        Request::CreateStream(_)
        | Request::CreateConsumer { .. }
        | Request::Reserve(_)
        | Request::PutShard(_)
        | Request::Arrive(_) => true,
        Request::AccountInfo
        | Request::UpdateStream(_)
        | Request::DeleteStream { .. }
        | Request::StreamInfo { .. }
        | Request::StreamNames { .. }
        | Request::StreamList { .. }
        | Request::PurgeStream { .. }
        | Request::GetMessage { .. }
        | Request::DirectGet { .. }
        | Request::DirectGetBatch { .. }
        | Request::DeleteMessage { .. }
        | Request::ConsumerInfo { .. }
        | Request::ConsumerNames { .. }
        | Request::ConsumerList { .. }
        | Request::DeleteConsumer { .. }
        | Request::PauseConsumer { .. }
        | Request::Release { .. }
        | Request::Shards
        | Request::Rearrange(_)
        | Request::Move(_)
        | Request::MovingHere
        | Request::Reservations => false,
    }
}
