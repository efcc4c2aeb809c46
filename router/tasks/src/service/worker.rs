//! What the thread of tasks owns, and its life: batches in, events made durable, and what follows from them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use beamlog_router::api::error::ApiError;
use beamlog_router::api::request::{MessageSelector, PublishOutcome, Request, Response};
use beamlog_router::interest::{self, Interest, RouteCache};
use beamlog_router::stream::StreamConfig;
use beamlog_router::{Health, Router, TicketFuture};
use tracing::{error, info, warn};

use super::held::{self, Held};
use super::inbox::{ANSWERS, Ending, Inbox, Incoming, NODES};
use super::journal::{self, Journal, JournalError};
use super::nodes::Leading;
use super::outgoing::Keeping;
use super::settling::{UNSETTLED_MAX, Unsettled};
use super::snapshot::Snapshots;
use super::stats::TasksStats;
use super::{Clock, ServiceOptions, StartError, chain, instant};
use crate::engine::degraded::Degraded;
use crate::engine::pool::Member;
use crate::engine::settings::subjects;
use crate::engine::{Engine, Input, Message};
use crate::trace::Tracer;

/// The stream that keeps usage where no other stream does.
const USAGE_STREAM: &str = "BEAMLINE_USAGE";
const STATS_EVERY: Duration = Duration::from_millis(200);
/// What the thread owns.
pub(crate) struct Worker {
    pub(super) router: Router,
    pub(super) interest: Arc<Interest>,
    pub(super) inbox: Arc<Inbox<Self>>,
    pub(super) engine: Engine,
    pub(super) journal: Journal,
    pub(super) options: ServiceOptions,
    pub(super) routes: RouteCache,
    /// Where answers of extensions go; their token follows.
    pub(super) answers: String,
    pub(super) members: BTreeMap<u64, interest::Member>,
    /// Usage that is being stored, oldest first.
    pub(super) storing: VecDeque<(u64, Vec<u8>, TicketFuture<PublishOutcome>)>,
    pub(super) stored_up_to: u64,
    /// Usage from this number on is not durable yet.
    pub(super) usage_below: u64,
    /// What was decided and is becoming durable, oldest first.
    pub(super) unsettled: VecDeque<Unsettled>,
    pub(super) snapshots: Snapshots,
    /// Of this thread, for tickets.
    pub(super) waker: Waker,
    /// Jobs on their way into streams, oldest first.
    pub(super) keeping: VecDeque<Keeping>,
    pub(super) clock: Clock,
    pub(super) stats: Arc<Mutex<TasksStats>>,
    pub(super) counted: Instant,
    /// The log took no events: nothing is let out until it does.
    pub(super) failed: Option<String>,
    /// The engine has decided what the log has not: it must begin anew before it is asked anything.
    pub(super) stale: bool,
    /// What workers said while the log took nothing.
    pub(super) held: Held,
    /// Of a cluster.
    pub(super) leading: Option<Leading>,
    /// The same on all nodes that fold this log: part of the message ids of usage.
    pub(super) tag: String,
    pub(super) tracer: Tracer,
}

impl Worker {
    pub(super) fn open(
        router: &Router,
        options: ServiceOptions,
        inbox: Arc<Inbox<Self>>,
        stats: Arc<Mutex<TasksStats>>,
    ) -> Result<Self, StartError> {
        let began = instant();
        let (journal, state) = Journal::open(router, options.bounds)?;
        let mut clock = Clock::default();
        let now = clock.now();
        let (open_tasks, decisions) = (state.open_count(), state.decisions.len());
        let mut engine = Engine::new(state, options.settings.clone(), options.seed, now);
        for (tenant, id, document) in &options.policies {
            engine.load_policy(now, tenant, id, document).map_err(|problem| StartError::Policy {
                tenant: tenant.clone(),
                id: id.clone(),
                problem,
            })?;
        }
        let interest = Arc::clone(router.interest());
        if options.settings.usage && interest.capture_of(subjects::USAGE.as_bytes()).is_none() {
            let config = StreamConfig {
                name: USAGE_STREAM.into(),
                description: "usage, once for each assignment".into(),
                subjects: vec![subjects::USAGE.into()],
                max_bytes: Some(1 << 30),
                allow_direct: true,
                ..StreamConfig::default()
            };
            match journal::ask(router, Request::CreateStream(Box::new(config))) {
                Ok(_) | Err(JournalError::Stream(ApiError::StreamNameInUse)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // One that was stored and not noted must not be stored twice, however long ago it was.
        let newest = Request::GetMessage {
            stream: USAGE_STREAM.into(),
            selector: MessageSelector::LastOn(subjects::USAGE.into()),
        };
        if let Ok(Response::Message(message)) = journal::ask(router, newest)
            && let Some(up_to) = journal::usage_number(&message.headers)
        {
            engine.handle(now, Input::UsageStored { up_to });
        }
        let stored_up_to = engine.state().usage_stored;
        info!(
            open_tasks,
            decisions,
            dead_letters = engine.state().dead.len(),
            millis = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            "tasks are restored"
        );
        let tag = engine.state().id_key().tag();
        let tracer = Tracer::new(engine.state());
        let leading = options.leads.map(|term| Leading::new(term, router.node_id().to_string()));
        Ok(Self {
            answers: format!("_INBOX.beamlog-tasks.{}.", router.node_id()),
            router: router.clone(),
            interest,
            journal,
            options,
            routes: RouteCache::new(),
            members: BTreeMap::new(),
            storing: VecDeque::new(),
            stored_up_to,
            usage_below: engine.state().next_usage,
            unsettled: VecDeque::new(),
            snapshots: Snapshots::default(),
            waker: Waker::from(Arc::clone(&inbox)),
            inbox,
            engine,
            clock,
            stats,
            counted: began,
            failed: None,
            stale: false,
            held: Held::default(),
            keeping: VecDeque::new(),
            leading,
            tag,
            tracer,
        })
    }

    pub(super) fn now(&mut self) -> u64 {
        self.clock.now()
    }

    /// The thread's life.
    pub(super) fn run(&mut self) {
        self.count();
        loop {
            let timeout = self.timeout();
            let taken = self.inbox.take(timeout);
            if taken.ending == Some(Ending::Abandon) {
                self.snapshots.abandon();
                self.unobserve();
                return;
            }
            // An end wants to know where it stands, and a log that has no room is asked step by step.
            let is_plain = taken.ending.is_none()
                && !self.engine.is_unstored()
                && self.held.is_empty()
                && self.failed.is_none();
            self.settle(if is_plain { UNSETTLED_MAX - 1 } else { 0 });
            self.collect_usage();
            self.collect_kept();
            if self.stale {
                self.begin_anew();
            }
            if !self.stale {
                for job in taken.jobs {
                    job(self);
                    if self.stale {
                        break;
                    }
                }
            }
            if self.stale {
                self.tell_unstored(taken.messages.iter());
                self.held.take_from(taken.messages, false);
                self.count();
                if taken.ending.is_some() {
                    self.unobserve();
                    return;
                }
                continue;
            }
            let now = self.now();
            self.look_for_room(now);
            for subject in taken.changed {
                self.tell_members(now, &String::from_utf8_lossy(&subject).into());
            }
            let is_unstored = self.engine.is_unstored();
            let again = if is_unstored { Vec::new() } else { self.held.again() };
            let mut messages = taken.messages;
            if is_unstored {
                let (of_workers, others) = messages.into_iter().partition(held::is_of_worker);
                self.held.take_from(of_workers, false);
                messages = others;
            }
            for message in again.iter().map(|(message, _)| message).chain(&messages) {
                self.incoming(now, message);
            }
            self.lead(now);
            self.engine.handle(now, Input::Tick);
            self.conclude(messages, again, if is_plain { UNSETTLED_MAX } else { 0 });
            if self.counted.elapsed() >= STATS_EVERY || taken.ending.is_some() {
                self.count();
            }
            if taken.ending.is_some() {
                self.finish();
                return;
            }
        }
    }

    pub(super) fn timeout(&mut self) -> Option<Duration> {
        if self.failed.is_some() || self.engine.is_unstored() {
            return Some(Duration::from_millis(500));
        }
        if !self.held.is_empty() {
            return Some(Duration::ZERO);
        }
        let now = self.now();
        let stale = STATS_EVERY.saturating_sub(self.counted.elapsed());
        let due = self.engine.next_deadline().map(|at| Duration::from_millis(at.saturating_sub(now)));
        // Figures that nobody changes need no refreshing; once a second is enough for ages.
        due.into_iter().chain([stale.max(Duration::from_millis(50)).max(Duration::from_secs(1))]).min()
    }

    pub(super) fn incoming(&mut self, now: u64, message: &Incoming) {
        if message.subscription == NODES {
            self.heard(now, message);
            return;
        }
        if message.subscription == ANSWERS {
            let token = message.subject.strip_prefix(self.answers.as_bytes());
            if let Some(token) = token.and_then(|token| std::str::from_utf8(token).ok()?.parse().ok()) {
                let (headers, payload) = (&message.headers, &message.payload);
                self.engine.handle(now, Input::Answer { token, headers, payload });
            }
            return;
        }
        let message = Message {
            subject: &message.subject,
            reply: &message.reply,
            headers: &message.headers,
            payload: &message.payload,
            origin: message.origin,
        };
        self.engine.handle(now, Input::Message(message));
    }

    pub(super) fn tell_members(&mut self, now: u64, subject: &Arc<str>) {
        let captured = self.interest.capture_of(subject.as_bytes()).is_some();
        let found = self.interest.members(subject.as_bytes());
        let mut members = Vec::with_capacity(found.len());
        for member in found {
            let connection = member.subscriber.origin();
            // Only connections: what an embedded program subscribes looks on.
            if connection == 0 {
                continue;
            }
            members.push(Member { entry: member.entry, connection, in_group: member.queue.is_some() });
            self.members.insert(member.entry, member);
        }
        if let Some(leading) = &self.leading {
            members.extend(leading.members(subject));
        }
        self.engine.handle(now, Input::Members { subject: Arc::clone(subject), members, captured });
    }

    pub(super) fn snapshot(&mut self) {
        let began = instant();
        if let Err(problem) = self.journal.write_snapshot(self.engine.state()) {
            warn!(err = %problem, "the state of tasks was not written; its events are kept");
        } else {
            let millis = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            info!(millis, "the state of tasks is written");
        }
    }

    /// Why the log takes nothing for longer than one batch, if it does not.
    fn no_room(&self) -> Option<String> {
        match self.router.health() {
            Health::InsufficientStorage => Some("the disk is full".to_owned()),
            Health::LogFailed { reason } => Some(format!("the log has failed: {reason}")),
            Health::Serving | Health::Damaged { .. } | Health::Closed => None,
        }
    }

    /// The log may take events again: then all goes on as if it had been so all the time.
    fn look_for_room(&mut self, now: u64) {
        if self.engine.is_unstored() && self.no_room().is_none() {
            self.engine.set_unstored(now, None);
            self.failed = None;
            self.store_usage();
            info!(held = self.held.len(), "tasks are stored again");
        }
    }

    /// An engine over what is durable.
    pub(super) fn begin_anew(&mut self) {
        match self.journal.read(self.options.bounds) {
            Ok(state) => {
                let now = self.now();
                let seed = self.options.seed ^ now;
                let next = Engine::new(state, self.options.settings.clone(), seed, now);
                let before = std::mem::replace(&mut self.engine, next);
                self.engine.remember(before);
                self.stored_up_to = self.engine.state().usage_stored;
                self.usage_below = self.engine.state().next_usage;
                self.tracer = Tracer::new(self.engine.state());
                self.stale = false;
                self.engine.set_unstored(now, self.no_room());
                // What a new engine wants to know first needs no log.
                let (_, effects) = self.engine.take();
                self.carry_out(effects);
            }
            // A node that has lost its leadership is told soon.
            Err(_) if self.inbox.is_abandoned() => {}
            Err(problem) => error!(err = %chain(&problem), "the log of tasks cannot be read"),
        }
    }

    pub(super) fn count(&mut self) {
        self.counted = instant();
        // Subscriptions that ended are forgotten now and then.
        if self.members.len() > 10_000 {
            self.members.clear();
            let subjects: Vec<Arc<str>> = self.engine.watched().cloned().collect();
            let now = self.now();
            for subject in subjects {
                self.tell_members(now, &subject);
            }
        }
        let now = self.now();
        self.engine.look_at_pressure(now);
        let mut stats = TasksStats::of(&self.engine, self.failed.clone());
        stats.degraded = self.engine.degraded(now);
        if let Some(cause) = stats.failed.as_ref().filter(|_| !self.engine.is_unstored()) {
            stats.degraded.insert(0, Degraded::of_log(cause.clone()));
        }
        (stats.held, stats.held_dropped) = (self.held.len() as u64, self.held.dropped());
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner) = stats;
    }

    /// The end: everything that was taken in is done.
    pub(super) fn finish(&mut self) {
        self.snapshots.abandon();
        self.commit();
        loop {
            self.collect_usage();
            self.collect_kept();
            if self.storing.is_empty() && self.keeping.is_empty() {
                break;
            }
            self.inbox.wait_woken();
        }
        self.commit();
        if self.failed.is_none() {
            self.snapshot();
        }
        self.unobserve();
    }

    pub(super) fn unobserve(&self) {
        let subjects: Vec<Arc<str>> = self.engine.watched().cloned().collect();
        for subject in subjects {
            self.interest.unobserve(subject.as_bytes());
        }
    }
}
