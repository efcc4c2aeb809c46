//! The thread of tasks: takes messages from the interest index, lets the engine decide, makes what it decided
//! durable, and only then lets anything out. The only place of this crate with a thread and a clock.
//!
//! While one batch becomes durable the next gathers: the group commit of the router's log, once more.

mod inbox;
mod journal;
pub mod nodes;
mod stats;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use beamlog_router::api::error::ApiError;
use beamlog_router::api::request::{MessageSelector, Published, Request, Response};
use beamlog_router::headers::Builder;
use beamlog_router::interest::{Envelope, Interest, Offered, RouteCache, SubscriptionKey};
use beamlog_router::stream::StreamConfig;
use beamlog_router::{PublishTicket, Router, StreamPublish};
use bytes::Bytes;
use serde_json::Value;
use tracing::{error, info, warn};

use crate::engine::pool::Member;
use crate::engine::settings::{Settings, subjects};
use crate::engine::{Effect, Engine, Input, Message};
use crate::state::Bounds;
use crate::state::event::Event;
use crate::trace::{Span, Tracer};
use inbox::{ANSWERS, Ending, Inbox, InboxLimits, Incoming, NODES, REQUESTS, WORKERS};
use journal::Journal;
pub use journal::JournalError;
use nodes::Leading;
pub use nodes::{Outpost, Seen};
pub use stats::TasksStats;

/// The stream that keeps usage where no other stream does.
const USAGE_STREAM: &str = "BEAMLINE_USAGE";
/// Where workers that ack say so.
const ASSIGN_ACK: &str = "caf.exec.assign.v1.ack";
/// Usage on its way into its stream at a time.
const USAGE_MAX: usize = 1_000;
const STATS_EVERY: Duration = Duration::from_millis(200);
/// To those who asked while the log took nothing.
const NOT_STORED: &[u8] =
    br#"{"ok":false,"error":{"code":"internal","message":"the decision could not be stored"},"context":{}}"#;

/// Takes spans of what became durable. Called on the thread of tasks: must not block.
#[derive(Clone)]
pub struct SpanSink(pub Arc<dyn Fn(Vec<Span>) + Send + Sync>);

impl std::fmt::Debug for SpanSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SpanSink")
    }
}

/// Bounds and settings of tasks.
#[derive(Clone, Debug)]
pub struct ServiceOptions {
    pub settings: Settings,
    pub bounds: Bounds,
    /// Requests that may wait; more are answered by "no responders". Default 20,000.
    pub requests_max: usize,
    /// Bytes of these. Default 64 MiB.
    pub request_bytes_max: usize,
    /// Events after which the state is written whole and they are forgotten; at least four times what that
    /// took the last time. Default 64 MiB.
    pub snapshot_bytes: u64,
    /// Policies by tenant and id, put in place at the start where they differ.
    pub policies: Vec<(String, String, Value)>,
    /// Seeds the draws.
    pub seed: u64,
    /// In a cluster, the term in which this node leads it: workers of the other nodes are given jobs too.
    pub leads: Option<u64>,
    /// Who takes spans; `None` makes none.
    pub spans: Option<SpanSink>,
}

impl Default for ServiceOptions {
    fn default() -> Self {
        Self {
            settings: Settings::default(),
            bounds: Bounds::default(),
            requests_max: 20_000,
            request_bytes_max: 64 << 20,
            snapshot_bytes: 64 << 20,
            policies: Vec::new(),
            seed: 0,
            leads: None,
            spans: None,
        }
    }
}

/// Why tasks do not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("policy {tenant}/{id}: {problem}")]
    Policy { tenant: String, id: String, problem: String },
    #[error("starting the thread of tasks")]
    Thread(#[source] std::io::Error),
}

/// Running tasks. Dropping it stops them without waiting; [`Service::wait`] waits.
#[derive(Debug)]
pub struct Service {
    inbox: Arc<Inbox<Worker>>,
    interest: Arc<Interest>,
    keys: Mutex<Vec<SubscriptionKey>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    stats: Arc<Mutex<TasksStats>>,
}

impl Service {
    /// Folds the log, and then answers requests.
    ///
    /// # Errors
    /// The log of tasks cannot be read, or a policy is none.
    pub fn start(router: &Router, options: ServiceOptions) -> Result<Self, StartError> {
        let limits = InboxLimits { requests_max: options.requests_max, bytes_max: options.request_bytes_max };
        let inbox = Arc::new(Inbox::new(limits));
        let stats = Arc::new(Mutex::new(TasksStats::default()));
        let interest = Arc::clone(router.interest());
        let mut worker = Worker::open(router, options, Arc::clone(&inbox), Arc::clone(&stats))?;
        worker.commit();
        // Only now: whoever hears us must be answered.
        let keys = subscribe(&interest, &inbox, &worker.answers);
        let thread = spawn(worker).map_err(StartError::Thread)?;
        Ok(Self { inbox, interest, keys: Mutex::new(keys), thread: Mutex::new(Some(thread)), stats })
    }

    /// Counters and sizes, at most a fraction of a second old.
    #[must_use]
    pub fn stats(&self) -> TasksStats {
        let mut stats = self.stats.lock().unwrap_or_else(PoisonError::into_inner).clone();
        stats.refused_full = self.inbox.refused();
        stats
    }

    /// Puts a policy in place, as from a file. Answers when it is durable.
    ///
    /// # Errors
    /// What is wrong with it, or that tasks have stopped.
    pub fn put_policy(&self, tenant: &str, id: &str, document: Value) -> Result<bool, String> {
        let (sender, receiver) = std::sync::mpsc::channel();
        let (tenant, id) = (tenant.to_owned(), id.to_owned());
        let job: inbox::Job<Worker> = Box::new(move |worker| {
            let now = worker.now();
            let answer = worker.engine.load_policy(now, &tenant, &id, &document);
            worker.commit();
            // Who asked may have gone.
            drop(sender.send(answer));
        });
        if !self.inbox.run(job) {
            return Err("tasks have stopped".to_owned());
        }
        receiver.recv().unwrap_or_else(|_| Err("tasks have stopped".to_owned()))
    }

    /// Takes no more requests; what was taken is finished, and the state written.
    pub fn close(&self) {
        self.unsubscribe();
        self.inbox.close();
    }

    /// Takes no more requests and forgets what waits: another node leads now, and goes on from the log. Whoever
    /// waits for an answer asks again, and gets the same if it was decided.
    pub fn stand_down(&self) {
        self.unsubscribe();
        self.inbox.abandon();
    }

    fn unsubscribe(&self) {
        for key in self.keys.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            self.interest.unsubscribe(&key);
        }
    }

    /// Waits until what was taken is finished. Somebody must have closed it.
    pub fn wait(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            error!("the thread of tasks panicked");
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.close();
    }
}

fn spawn(mut worker: Worker) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("beamlog-tasks".into()).spawn(move || worker.run())
}

fn subscribe(interest: &Arc<Interest>, inbox: &Arc<Inbox<Worker>>, answers: &str) -> Vec<SubscriptionKey> {
    let requests = [subjects::DECIDE, subjects::GET_DECISION, subjects::BACKPRESSURE];
    let families = [subjects::ADMIN, subjects::CONTROL, subjects::IDE].map(|family| format!("{family}>"));
    let workers = [subjects::RESULT]
        .into_iter()
        .chain(subjects::HEARTBEATS)
        .chain(subjects::WORKER_DEAD_LETTERS)
        .map(str::to_owned)
        .chain([ASSIGN_ACK.to_owned()]);
    let wanted = requests
        .map(|subject| (subject.to_owned(), REQUESTS))
        .into_iter()
        .chain(families.map(|family| (family, REQUESTS)))
        .chain(workers.map(|subject| (subject, WORKERS)))
        .chain([(format!("{answers}*"), ANSWERS), (nodes::words::LEADER.to_owned(), NODES)]);
    wanted
        .map(|(filter, id)| {
            interest
                .subscribe(filter.as_bytes(), None, Arc::clone(inbox) as _, id)
                .expect("constants of the contract are filters")
        })
        .collect()
}

/// What the thread owns.
pub(crate) struct Worker {
    router: Router,
    interest: Arc<Interest>,
    inbox: Arc<Inbox<Self>>,
    engine: Engine,
    journal: Journal,
    options: ServiceOptions,
    routes: RouteCache,
    /// Where answers of extensions go; their token follows.
    answers: String,
    members: std::collections::BTreeMap<u64, beamlog_router::interest::Member>,
    /// Usage that is being stored, oldest first.
    storing: VecDeque<(u64, Vec<u8>, PublishTicket)>,
    stored_up_to: u64,
    clock: Clock,
    stats: Arc<Mutex<TasksStats>>,
    counted: Instant,
    /// The log took no events: nothing is let out until it does.
    failed: Option<String>,
    /// The engine has decided what the log has not: it must begin anew before it is asked anything.
    stale: bool,
    /// Of a cluster.
    leading: Option<Leading>,
    /// The same on all nodes that fold this log: part of the message ids of usage.
    tag: String,
    tracer: Tracer,
}

/// Milliseconds since 1970 that never step back.
struct Clock {
    last: u64,
}

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "the one clock of this crate")]
    fn now(&mut self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last = self.last.max(u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        self.last
    }
}

#[expect(clippy::disallowed_methods, reason = "the one clock of this crate")]
fn instant() -> Instant {
    Instant::now()
}

impl Worker {
    fn open(
        router: &Router,
        options: ServiceOptions,
        inbox: Arc<Inbox<Self>>,
        stats: Arc<Mutex<TasksStats>>,
    ) -> Result<Self, StartError> {
        let began = instant();
        let (journal, state) = Journal::open(router, options.bounds)?;
        let mut clock = Clock { last: 0 };
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
            inbox,
            engine,
            journal,
            options,
            routes: RouteCache::new(),
            members: std::collections::BTreeMap::new(),
            storing: VecDeque::new(),
            stored_up_to,
            clock,
            stats,
            counted: began,
            failed: None,
            stale: false,
            leading,
            tag,
            tracer,
        })
    }

    fn now(&mut self) -> u64 {
        self.clock.now()
    }

    /// The thread's life.
    fn run(&mut self) {
        self.count();
        loop {
            let timeout = self.timeout();
            let taken = self.inbox.take(timeout);
            if taken.ending == Some(Ending::Abandon) {
                self.unobserve();
                return;
            }
            let now = self.now();
            if self.stale {
                self.begin_anew();
            }
            if self.stale {
                for message in taken.messages.iter().filter(|message| message.subscription == REQUESTS) {
                    self.route(&message.reply, b"", b"", NOT_STORED);
                }
                self.routes.flush();
                if taken.ending.is_some() {
                    self.unobserve();
                    return;
                }
                continue;
            }
            for subject in taken.changed {
                self.tell_members(now, &String::from_utf8_lossy(&subject).into());
            }
            for message in &taken.messages {
                self.incoming(now, message);
            }
            for job in taken.jobs {
                job(self);
            }
            self.lead(now);
            self.engine.handle(now, Input::Tick);
            self.commit();
            let now = self.now();
            for message in taken.messages.iter().filter(|message| message.subscription == REQUESTS) {
                let micros = u64::try_from(message.at.elapsed().as_micros()).unwrap_or(u64::MAX);
                self.engine.answered_after(now, micros);
            }
            if self.counted.elapsed() >= STATS_EVERY || taken.ending.is_some() {
                self.count();
            }
            if taken.ending.is_some() {
                self.finish();
                return;
            }
        }
    }

    fn timeout(&mut self) -> Option<Duration> {
        if !self.storing.is_empty() {
            return Some(Duration::ZERO);
        }
        if self.failed.is_some() {
            return Some(Duration::from_millis(500));
        }
        let now = self.now();
        let stale = STATS_EVERY.saturating_sub(self.counted.elapsed());
        let due = self.engine.next_deadline().map(|at| Duration::from_millis(at.saturating_sub(now)));
        // Figures that nobody changes need no refreshing; once a second is enough for ages.
        due.into_iter().chain([stale.max(Duration::from_millis(50)).max(Duration::from_secs(1))]).min()
    }

    fn incoming(&mut self, now: u64, message: &Incoming) {
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

    fn tell_members(&mut self, now: u64, subject: &Arc<str>) {
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

    /// Makes what was decided durable, and then lets it out; until nothing follows from that any more.
    fn commit(&mut self) {
        // What was put in before has been synced with the last batch, or is being synced now.
        self.collect_usage();
        loop {
            let (events, effects) = self.engine.take();
            if events.is_empty() && effects.is_empty() {
                break;
            }
            if !events.is_empty()
                && let Err(problem) = self.journal.append(&events)
            {
                self.give_up(&problem, &effects);
                return;
            }
            if self.failed.take().is_some() {
                info!("tasks are stored again");
            }
            self.trace(&events);
            self.carry_out(effects);
            self.store_usage();
        }
        if self.journal.wants_snapshot(self.options.snapshot_bytes) {
            self.snapshot();
        }
    }

    /// What is durable now is told to who takes spans.
    fn trace(&mut self, events: &[Event]) {
        let Some(SpanSink(take)) = &self.options.spans else { return };
        let state = self.engine.state();
        let begun = events.iter().filter(|event| event.begins_task()).count() as u64;
        let mut spans = Vec::new();
        self.tracer.see(events, state, state.next_task - begun, &mut spans);
        if !spans.is_empty() {
            take(spans);
        }
    }

    fn snapshot(&mut self) {
        let began = instant();
        if let Err(problem) = self.journal.write_snapshot(self.engine.state()) {
            warn!(err = %problem, "the state of tasks was not written; its events are kept");
        } else {
            let millis = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            info!(millis, "the state of tasks is written");
        }
    }

    /// The log took no events: those who wait are told, and the engine begins anew from what is durable.
    fn give_up(&mut self, problem: &JournalError, effects: &[Effect]) {
        let text = chain(problem);
        warn!(err = %text, "tasks are not stored: nothing is decided until they are");
        self.failed = Some(text);
        for effect in effects {
            // Only to those who asked: everything else did not happen.
            if let Effect::Publish { subject, .. } = effect
                && subject.starts_with(b"_INBOX.")
            {
                self.route(subject, b"", b"", NOT_STORED);
            }
        }
        self.routes.flush();
        self.storing.clear();
        self.stale = true;
        self.begin_anew();
    }

    /// An engine over what is durable.
    fn begin_anew(&mut self) {
        match self.journal.read(self.options.bounds) {
            Ok(state) => {
                let now = self.now();
                let seed = self.options.seed ^ now;
                self.engine = Engine::new(state, self.options.settings.clone(), seed, now);
                self.stored_up_to = self.engine.state().usage_stored;
                self.tracer = Tracer::new(self.engine.state());
                self.stale = false;
                // What a new engine wants to know first needs no log.
                let (_, effects) = self.engine.take();
                self.carry_out(effects);
            }
            // A node that has lost its leadership is told soon.
            Err(_) if self.inbox.is_abandoned() => {}
            Err(problem) => error!(err = %chain(&problem), "the log of tasks cannot be read"),
        }
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        let now = self.now();
        for effect in effects {
            match effect {
                Effect::Publish { subject, headers, payload } => {
                    self.route(&subject, b"", &headers, &payload);
                }
                Effect::Ask { token, subject, payload } => {
                    let reply = format!("{}{token}", self.answers);
                    if self.route(subject.as_bytes(), reply.as_bytes(), b"", &payload) == 0 {
                        self.engine.handle(now, Input::Unheard { token });
                    }
                }
                Effect::Offer { subject, entry, task, headers, payload } => {
                    self.offer(now, &subject, entry, task, &headers, &payload);
                }
                Effect::Watch { subject } => {
                    let inbox = Arc::clone(&self.inbox);
                    self.interest
                        .observe(subject.as_bytes(), Arc::new(move |subject| inbox.changed(subject)));
                    self.tell_members(now, &subject);
                    if let Some(leading) = &mut self.leading {
                        leading.tell_soon();
                    }
                }
            }
        }
        self.routes.flush();
    }

    /// Publishes; what a stream captures is stored too. Says how many heard it or keep it.
    fn route(&mut self, subject: &[u8], reply: &[u8], headers: &[u8], payload: &[u8]) -> usize {
        let envelope = Envelope { subject, reply, headers, payload, origin: 0 };
        let routed = self.interest.route(&mut self.routes, subject, &envelope);
        let Some(stream) = routed.capture else { return routed.receivers };
        let copy = Bytes::copy_from_slice;
        let mut publish = StreamPublish {
            stream,
            subject: copy(subject),
            reply: copy(reply),
            headers: copy(headers),
            payload: copy(payload),
        };
        while let Err(full) = self.router.offer_publish(publish) {
            publish = full.0;
            if journal::is_over(&self.router) {
                break;
            }
            self.router.when_ready().wait();
        }
        routed.receivers + 1
    }

    fn offer(&mut self, now: u64, subject: &str, entry: u64, task: u64, headers: &[u8], payload: &[u8]) {
        if let Some(taken) = self.offer_far(subject, entry, task, headers, payload) {
            if !taken {
                self.engine.handle(now, Input::NotTaken { task });
            }
            return;
        }
        let envelope = Envelope { subject: subject.as_bytes(), reply: b"", headers, payload, origin: 0 };
        let taken = self.members.get(&entry).is_some_and(|member| {
            let offered = member.subscriber.offer(member.id, &envelope);
            match offered {
                Offered::Taken | Offered::Joined => {
                    member.subscriber.flush();
                    true
                }
                Offered::Congested => true,
                Offered::Refused => false,
            }
        });
        if !taken {
            self.members.remove(&entry);
            self.engine.handle(now, Input::NotTaken { task });
        }
    }

    /// Puts usage that is due into its stream; nobody waits for it here.
    fn store_usage(&mut self) {
        let room = USAGE_MAX.saturating_sub(self.storing.len());
        let from = self.storing.back().map_or(self.stored_up_to, |(number, ..)| *number);
        for (number, body) in self.engine.usage_after(from, room) {
            let headers = Builder::new()
                .header("Nats-Msg-Id", format!("usage-{number}-{}", self.tag))
                .header("x-beamlog-usage", number.to_string())
                .finish();
            let Some(stream) = self.interest.capture_of(subjects::USAGE.as_bytes()) else { return };
            let publish = StreamPublish {
                stream,
                subject: subjects::USAGE.into(),
                reply: Bytes::new(),
                headers: headers.into(),
                payload: body.clone().into(),
            };
            match self.router.store(publish) {
                Ok(ticket) => self.storing.push_back((number, body, ticket)),
                // It stays in the state, and is tried again with the next batch.
                Err(_) => break,
            }
        }
    }

    /// Those that were put in before the last commit are stored by now: the log is one queue.
    fn collect_usage(&mut self) {
        let mut up_to = None;
        while let Some((number, body, ticket)) = self.storing.pop_front() {
            match ticket.wait().result {
                Ok(Published::Stored(_)) => {
                    self.route_uncaptured(subjects::USAGE.as_bytes(), &body);
                    up_to = Some(number);
                }
                Ok(Published::Duplicate(_) | Published::Waiting | Published::Batch { .. }) => {
                    up_to = Some(number);
                }
                Err(refusal) => {
                    warn!(err = %refusal, "usage was not stored; it will be tried again");
                    self.storing.clear();
                    break;
                }
            }
        }
        if let Some(up_to) = up_to {
            self.routes.flush();
            self.stored_up_to = up_to;
            let now = self.now();
            self.engine.handle(now, Input::UsageStored { up_to });
        }
    }

    fn route_uncaptured(&mut self, subject: &[u8], payload: &[u8]) {
        let envelope = Envelope { subject, reply: b"", headers: b"", payload, origin: 0 };
        self.interest.route(&mut self.routes, subject, &envelope);
    }

    fn count(&mut self) {
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
        let stats = TasksStats::of(&self.engine, self.failed.clone());
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner) = stats;
    }

    /// The end: everything that was taken in is done.
    fn finish(&mut self) {
        self.collect_usage();
        self.commit();
        if self.failed.is_none() {
            self.snapshot();
        }
        self.unobserve();
    }

    fn unobserve(&self) {
        let subjects: Vec<Arc<str>> = self.engine.watched().cloned().collect();
        for subject in subjects {
            self.interest.unobserve(subject.as_bytes());
        }
    }
}

/// An error and what caused it, in one line.
fn chain(problem: &dyn std::error::Error) -> String {
    let mut text = problem.to_string();
    let mut source = problem.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
