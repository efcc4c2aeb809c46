//! The thread of tasks: takes messages from the interest index, lets the engine decide, makes what it decided
//! durable, and only then lets anything out. The only place of this crate with a thread and a clock.
//!
//! While one batch becomes durable the next is decided (`settling`).

mod fold;
mod held;
mod inbox;
mod journal;
pub mod nodes;
mod outgoing;
mod settling;
mod snapshot;
mod stats;
mod worker;

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use beamlog_router::Router;
use beamlog_router::interest::{Interest, SubscriptionKey};
use serde_json::Value;
use tracing::error;

use crate::engine::settings::{Settings, subjects};
use crate::state::Bounds;
use crate::trace::Span;
use inbox::{ANSWERS, Inbox, InboxLimits, NODES, REQUESTS, WORKERS};
pub use journal::JournalError;
pub use nodes::{Outpost, Seen};
pub use stats::TasksStats;
use worker::Worker;

/// Where workers that ack say so.
const ASSIGN_ACK: &str = "caf.exec.assign.v1.ack";

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

/// Milliseconds since 1970 that never step back.
#[derive(Default)]
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
