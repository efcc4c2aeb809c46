//! The engine of tasks: one input at a time, out come events (to be made durable) and effects (to be carried
//! out once they are). Pure: time is an argument, randomness a value that the caller seeded.
//!
//! Events are folded into the state as they are decided, so later inputs of the same batch see them; the
//! caller lets nothing out before they are durable, and begins anew from the log when they are refused.

mod admin;
mod control;
mod decide;
pub mod degraded;
mod dispatch;
mod extensions;
mod outcome;
pub mod pool;
pub mod settings;
mod signals;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use crate::codes::{Code, Refusal};
use crate::policy::bucket::Bucket;
use crate::policy::document::Policy;
use crate::random::Random;
use crate::state::State;
use crate::state::event::Event;
use crate::state::task::Phase;
use extensions::{Conversation, Health};
use outcome::Suspicion;
use pool::{Member, Pool};
use settings::{Settings, subjects};
pub use signals::{Counters, Signals};

/// A message that came in.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    pub subject: &'a [u8],
    /// Empty is none.
    pub reply: &'a [u8],
    pub headers: &'a [u8],
    pub payload: &'a [u8],
    /// The connection it came from; 0 is nobody.
    pub origin: u64,
}

#[derive(Clone, Debug)]
pub enum Input<'a> {
    Message(Message<'a>),
    /// Who is subscribed to an assignment subject now, and whether a stream captures it.
    Members {
        subject: Arc<str>,
        members: Vec<Member>,
        captured: bool,
    },
    /// The answer to an [`Effect::Ask`].
    Answer {
        token: u64,
        headers: &'a [u8],
        payload: &'a [u8],
    },
    /// Nobody heard an [`Effect::Ask`].
    Unheard {
        token: u64,
    },
    /// The subscription of an [`Effect::Offer`] did not take it.
    NotTaken {
        task: u64,
    },
    /// Whether the stream of an [`Effect::Keep`] stored it.
    Kept {
        task: u64,
        stored: bool,
    },
    /// Usage up to this number is stored.
    UsageStored {
        up_to: u64,
    },
    /// Time went by.
    Tick,
}

/// What is to be done once the events before it are durable.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    Publish {
        subject: Bytes,
        headers: Vec<u8>,
        payload: Vec<u8>,
    },
    /// A request; its answer comes back as [`Input::Answer`].
    Ask {
        token: u64,
        subject: String,
        payload: Vec<u8>,
    },
    /// To exactly this subscription.
    Offer {
        subject: Arc<str>,
        entry: u64,
        task: u64,
        headers: Vec<u8>,
        payload: Vec<u8>,
    },
    /// Into the stream that captures the subject, for workers that pull; the answer is [`Input::Kept`].
    Keep {
        subject: Arc<str>,
        task: u64,
        headers: Vec<u8>,
        payload: Vec<u8>,
    },
    /// Tell of the members of this subject from now on.
    Watch {
        subject: Arc<str>,
    },
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Timer {
    /// A queued task may be given out.
    Due(u64),
    /// A worker's time for a task is over; which delivery of it.
    AckWait(u64, u32),
    /// A task is of no use any more.
    Expiry(u64),
    /// Is a connection without subscriptions gone?
    Look(u64),
    /// An extension's time is over.
    Extension(u64),
    /// Somebody may be free by now.
    Wake,
}

/// Ready tasks of one subject: highest priority first, then oldest.
type Ready = BTreeSet<(u8, u64)>;

/// Assignment subjects that are watched at a time.
const SUBJECTS_MAX: usize = 1_000;

#[derive(Debug)]
pub struct Engine {
    state: State,
    settings: Settings,
    random: Random,
    built_in: Arc<Policy>,
    events: Vec<Event>,
    effects: Vec<Effect>,
    pool: Pool,
    ready: BTreeMap<Arc<str>, Ready>,
    timers: BTreeSet<(u64, Timer)>,
    /// Who had a task before, so that somebody else gets it next.
    had: BTreeMap<u64, Vec<u64>>,
    watched: BTreeSet<Arc<str>>,
    /// Tasks on their way into a stream.
    keeping: BTreeSet<u64>,
    /// Why the log takes no events now, if it does not: nothing that would be one is done meanwhile.
    unstored: Option<String>,
    conversations: BTreeMap<u64, Conversation>,
    next_token: u64,
    health: BTreeMap<String, Health>,
    buckets: BTreeMap<(String, String), Bucket>,
    /// Refused requests of each tenant in the present minute, by what was wrong with them.
    suspects: BTreeMap<(String, Suspicion), (u64, u32)>,
    signals: Signals,
    counters: Counters,
}

impl Engine {
    /// An engine over a state that was folded from the log. `seed` decides its draws; a store that is new
    /// gets the key of its ids from it.
    #[must_use]
    pub fn new(state: State, settings: Settings, seed: u64, now: u64) -> Self {
        let (_, built_in) = Policy::built_in();
        let mut engine = Self {
            state,
            settings,
            random: Random::seeded(seed),
            built_in: Arc::new(built_in),
            events: Vec::new(),
            effects: Vec::new(),
            pool: Pool::default(),
            ready: BTreeMap::new(),
            timers: BTreeSet::new(),
            had: BTreeMap::new(),
            watched: BTreeSet::new(),
            keeping: BTreeSet::new(),
            unstored: None,
            conversations: BTreeMap::new(),
            next_token: 1,
            health: BTreeMap::new(),
            buckets: BTreeMap::new(),
            suspects: BTreeMap::new(),
            signals: Signals::default(),
            counters: Counters::default(),
        };
        if engine.state.key.is_none() {
            let (k0, k1) = (engine.random.next_u64(), engine.random.next_u64());
            engine.record(Event::Begun { k0, k1 });
        }
        engine.resume(now);
        engine
    }

    /// Takes over from an engine that decided what could not be stored: what is counted and known of others is no part
    /// of the log. Who waited for an extension then is told to ask again.
    pub fn remember(&mut self, before: Self) {
        let Self { counters, signals, health, buckets, suspects, conversations, .. } = before;
        let refusal = Refusal::new(Code::Internal, "the decision could not be stored");
        for asker in conversations.values().flat_map(Conversation::askers) {
            self.answer_refusal(asker, &refusal);
        }
        (self.counters, self.signals) = (counters, signals);
        (self.health, self.buckets, self.suspects) = (health, buckets, suspects);
    }

    /// In-flight sets and timers are nobody's but the running node's: made anew from the state.
    fn resume(&mut self, now: u64) {
        let subject = Arc::clone(&self.settings.assignment_subject);
        self.watch(&subject);
        type Open = (u64, Arc<str>, Phase, u64, u32, Option<u64>);
        let open: Vec<Open> = self
            .state
            .open_tasks()
            .map(|task| {
                let spec = &task.spec;
                let wait = spec.ack_wait_millis;
                (
                    task.number,
                    Arc::clone(&spec.subject),
                    task.phase.clone(),
                    wait,
                    task.deliveries,
                    spec.expires_at,
                )
            })
            .collect();
        for (number, subject, phase, ack_wait, deliveries, expires_at) in open {
            self.watch(&subject);
            match phase {
                Phase::Queued { due } => {
                    self.timers.insert((due, Timer::Due(number)));
                }
                Phase::Assigned { at, .. } => {
                    // Whoever has it may still be at it, and connect again to say so.
                    let due = (at + ack_wait).max(now + self.settings.restart_millis);
                    self.timers.insert((due, Timer::AckWait(number, deliveries)));
                }
                Phase::Ended { .. } => {}
            }
            if let Some(at) = expires_at {
                self.timers.insert((at, Timer::Expiry(number)));
            }
        }
    }

    /// One input. Afterwards [`Engine::take`] has what it led to.
    pub fn handle(&mut self, now: u64, input: Input<'_>) {
        match input {
            Input::Message(message) => self.message(now, &message),
            Input::Members { subject, members, captured } => {
                let changes = self.pool.members(&subject, &members, captured, now, &self.settings);
                for change in changes {
                    self.changed(now, change);
                }
                self.dispatch(now, &subject);
            }
            Input::Answer { token, headers, payload } => self.answered(now, token, headers, payload),
            Input::Unheard { token } => self.unheard(now, token),
            Input::NotTaken { task } => self.not_taken(now, task),
            Input::Kept { task, stored } => self.kept(now, task, stored),
            Input::UsageStored { up_to } => {
                if up_to > self.state.usage_stored {
                    self.record(Event::UsageStored { up_to });
                }
            }
            Input::Tick => {}
        }
        self.run_timers(now);
    }

    fn message(&mut self, now: u64, message: &Message<'_>) {
        let subject = message.subject;
        let is = |name: &str| subject == name.as_bytes();
        if is(subjects::DECIDE) {
            self.decide(now, message);
        } else if is(subjects::RESULT) {
            self.result(now, message);
        } else if subjects::HEARTBEATS.iter().any(|name| is(name)) {
            self.heartbeat(now, message);
        } else if is(subjects::GET_DECISION) {
            self.get_decision(now, message);
        } else if is(subjects::BACKPRESSURE) {
            self.tell_backpressure(now, message);
        } else if subjects::WORKER_DEAD_LETTERS.iter().any(|name| is(name)) {
            self.worker_dead_letter(now, message);
        } else if let Some(name) = subject.strip_prefix(subjects::ADMIN.as_bytes()) {
            self.admin(now, name, message);
        } else if let Some(command) = subject
            .strip_prefix(subjects::CONTROL.as_bytes())
            .or_else(|| subject.strip_prefix(subjects::IDE.as_bytes()))
        {
            self.control(now, command, message);
        } else if subject.ends_with(b".ack") {
            self.ack(now, message);
        }
    }

    fn run_timers(&mut self, now: u64) {
        if self.unstored.is_some() {
            // What would be an event waits for the log; who waits for an extension is answered all the same.
            let due = self.timers.iter().take_while(|(at, _)| *at <= now);
            let due: Vec<_> =
                due.filter(|(_, timer)| matches!(timer, Timer::Extension(_))).copied().collect();
            for key in due {
                self.timers.remove(&key);
                if let (_, Timer::Extension(token)) = key {
                    self.extension_timed_out(now, token);
                }
            }
            return;
        }
        let mut wake = false;
        while let Some((at, timer)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, timer));
            match timer {
                Timer::Due(task) => self.due(now, task),
                Timer::AckWait(task, delivery) => self.ack_wait_over(now, task, delivery),
                Timer::Expiry(task) => self.expired(now, task),
                Timer::Look(connection) => {
                    let change = self.pool.look_at(connection, now, &self.settings);
                    self.changed(now, change);
                }
                Timer::Extension(token) => self.extension_timed_out(now, token),
                Timer::Wake => wake = true,
            }
        }
        if wake {
            self.dispatch_all(now);
        }
    }

    /// When time alone will lead to something.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// What was decided since the last time: to be made durable, then to be done.
    pub fn take(&mut self) -> (Vec<Event>, Vec<Effect>) {
        (std::mem::take(&mut self.events), std::mem::take(&mut self.effects))
    }

    /// Whether there is something to take.
    #[must_use]
    pub fn has_more(&self) -> bool {
        !self.events.is_empty() || !self.effects.is_empty()
    }

    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    #[must_use]
    pub fn workers(&self) -> Vec<pool::WorkerView> {
        self.pool.views()
    }

    /// Assignment subjects whose members are told.
    pub fn watched(&self) -> impl Iterator<Item = &Arc<str>> {
        self.watched.iter()
    }

    #[must_use]
    pub fn watches(&self, subject: &str) -> bool {
        self.watched.contains(subject)
    }

    /// The subscription that a task was given on, while it is open there.
    #[must_use]
    pub fn given_on(&self, task: u64) -> Option<u64> {
        self.pool.given_on(task, self.holder(task)?)
    }

    /// Tasks that only wait for a worker.
    #[must_use]
    pub fn ready_count(&self) -> usize {
        self.ready.values().map(BTreeSet::len).sum()
    }

    /// Requests that wait for extensions.
    fn asking(&self) -> usize {
        self.conversations.len()
    }

    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    fn record(&mut self, event: Event) {
        self.state.apply(&event);
        self.events.push(event);
    }

    /// Answers where an answer is wanted.
    fn reply(&mut self, message: &Message<'_>, payload: Vec<u8>) {
        if !message.reply.is_empty() {
            self.publish(Bytes::copy_from_slice(message.reply), Vec::new(), payload);
        }
    }

    fn publish(&mut self, subject: impl Into<Bytes>, headers: Vec<u8>, payload: Vec<u8>) {
        self.effects.push(Effect::Publish { subject: subject.into(), headers, payload });
    }

    /// Whether the subject's members are known, or are being asked for.
    fn watch(&mut self, subject: &Arc<str>) -> bool {
        if self.watched.contains(subject) {
            return true;
        }
        if self.watched.len() >= SUBJECTS_MAX {
            return false;
        }
        self.watched.insert(Arc::clone(subject));
        self.effects.push(Effect::Watch { subject: Arc::clone(subject) });
        true
    }
}

#[cfg(test)]
mod tests;
