//! The links of a node: which there are, and a supervisor for each that keeps one session and runs the
//! rules over it. Links are added, removed, paused and resumed while the node runs.
//!
//! A rule is a task that asks its [`RuleContext`] for a session, works until that is lost, and asks again.
//! It ends when the link stops. One that panics is begun anew.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use beamlog_router::Router;
use thiserror::Error;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tracing::{info, warn};

use super::connection::{self, Session};
use super::diff::RuleDiff;
use super::limit::Limit;
use super::rules::{CheckedLink, LinkConfig, LinkKind, Rule, RuleError};
use super::status::{LinkState, LinkStatus, Meter};
use super::{core, diff, export, import, kv};

/// Links of one node.
const LINKS_MAX: usize = 64;
/// How long a link waits before it connects again: from the first to the longest, doubling, with jitter.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(10));

/// Why a link was not changed.
#[derive(Debug, Error)]
pub enum LinkError {
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Rules(Vec<RuleError>),
    #[error("there is a link named {0}")]
    Exists(String),
    #[error("there is no link named {0}")]
    Unknown(String),
    #[error("a node has at most {LINKS_MAX} links")]
    TooMany,
    #[error("link {0}: quic:// links are not for this runtime")]
    Kind(String),
}

/// The links of a node. Clones share them. All calls return at once, but [`Links::drain`].
#[derive(Clone)]
pub struct Links {
    inner: Arc<Inner>,
}

struct Inner {
    router: Router,
    links: Mutex<BTreeMap<String, Running>>,
}

struct Running {
    link: CheckedLink,
    shared: Arc<Shared>,
    task: Option<Task>,
}

struct Task {
    stop: watch::Sender<bool>,
    resync: watch::Sender<u64>,
    supervisor: JoinHandle<()>,
}

/// What a link shows, whoever runs it.
struct Shared {
    meters: Vec<Arc<Meter>>,
    reconnects: AtomicU64,
    words: Mutex<Words>,
}

struct Words {
    state: LinkState,
    server: Option<String>,
    last_error: Option<String>,
}

impl std::fmt::Debug for Links {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Links").field("links", &self.names()).finish_non_exhaustive()
    }
}

impl Links {
    /// No links yet. Needs a runtime when links are added.
    #[must_use]
    pub fn new(router: Router) -> Self {
        Self { inner: Arc::new(Inner { router, links: Mutex::default() }) }
    }

    /// Adds a link and starts it, unless it is configured as paused.
    ///
    /// # Errors
    /// Everything that is wrong with it; nothing was started then.
    pub fn add(&self, config: LinkConfig) -> Result<(), LinkError> {
        let link = config.check().map_err(LinkError::Rules)?;
        let name = link.config.name.clone();
        if link.kind != LinkKind::Nats {
            return Err(LinkError::Kind(name));
        }
        let mut links = self.links();
        if links.contains_key(&name) {
            return Err(LinkError::Exists(name));
        }
        if links.len() >= LINKS_MAX {
            return Err(LinkError::TooMany);
        }
        let shared = Arc::new(Shared {
            meters: link.rules.iter().map(|_| Arc::default()).collect(),
            reconnects: AtomicU64::new(0),
            words: Mutex::new(Words { state: LinkState::Paused, server: None, last_error: None }),
        });
        let paused = link.config.paused;
        let mut running = Running { link, shared, task: None };
        if !paused {
            running.start(&self.inner.router);
        }
        links.insert(name, running);
        Ok(())
    }

    /// Stops a link and forgets it. What it did is kept: cursors and watermarks are in the log.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn remove(&self, name: &str) -> Result<(), LinkError> {
        let mut running = self.links().remove(name).ok_or_else(|| LinkError::Unknown(name.to_owned()))?;
        running.stop(LinkState::Stopped);
        Ok(())
    }

    /// Stops a link until it is resumed.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn pause(&self, name: &str) -> Result<(), LinkError> {
        self.with(name, |running, _| {
            running.stop(LinkState::Paused);
        })
    }

    /// Starts a link that was paused.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn resume(&self, name: &str) -> Result<(), LinkError> {
        self.with(name, |running, router| {
            if running.task.is_none() {
                running.start(router);
            }
        })
    }

    /// Has every rule of a link compare both sides anew and go on from what it finds.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn resync(&self, name: &str) -> Result<(), LinkError> {
        self.with(name, |running, _| {
            if let Some(task) = &running.task {
                task.resync.send_modify(|count| *count += 1);
            }
        })
    }

    /// Compares both sides of every rule that stores something. *Cancel safety*: may be dropped.
    ///
    /// # Errors
    /// There is none of this name.
    pub async fn diff(&self, name: &str) -> Result<Vec<RuleDiff>, LinkError> {
        let link = self.links().get(name).map(|running| running.link.clone());
        let link = link.ok_or_else(|| LinkError::Unknown(name.to_owned()))?;
        Ok(diff::compare(&self.inner.router, &link).await)
    }

    /// How all links are, by name.
    #[must_use]
    pub fn status(&self) -> Vec<LinkStatus> {
        self.links().values().map(Running::status).collect()
    }

    /// What a link was configured with.
    #[must_use]
    pub fn config(&self, name: &str) -> Option<LinkConfig> {
        self.links().get(name).map(|running| running.link.config.clone())
    }

    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.links().keys().cloned().collect()
    }

    /// Stops all links: what is in flight is finished within `grace`, then dropped. Nothing was acked that
    /// was not done, so what is dropped comes again.
    ///
    /// *Cancel safety*: links are told to stop at once; who cancels waits for nothing.
    pub async fn drain(&self, grace: Duration) {
        let deadline = Instant::now() + grace;
        let mut stopping = Vec::new();
        for running in self.links().values_mut() {
            stopping.extend(running.stop(LinkState::Stopped));
        }
        for mut supervisor in stopping {
            if tokio::time::timeout_at(deadline, &mut supervisor).await.is_err() {
                supervisor.abort();
            }
        }
    }

    fn with(&self, name: &str, change: impl FnOnce(&mut Running, &Router)) -> Result<(), LinkError> {
        let mut links = self.links();
        let running = links.get_mut(name).ok_or_else(|| LinkError::Unknown(name.to_owned()))?;
        change(running, &self.inner.router);
        Ok(())
    }

    fn links(&self) -> MutexGuard<'_, BTreeMap<String, Running>> {
        self.inner.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for running in self.links.get_mut().unwrap_or_else(PoisonError::into_inner).values_mut() {
            running.stop(LinkState::Stopped);
        }
    }
}

impl Running {
    fn start(&mut self, router: &Router) {
        let (stop, stopped) = watch::channel(false);
        let (resync, resynced) = watch::channel(0);
        self.shared.set(LinkState::Connecting, None);
        let supervisor = Supervisor {
            router: router.clone(),
            link: self.link.clone(),
            shared: Arc::clone(&self.shared),
            stop: stopped,
            resync: resynced,
        };
        self.task = Some(Task { stop, resync, supervisor: tokio::spawn(supervisor.run()) });
    }

    fn stop(&mut self, state: LinkState) -> Option<JoinHandle<()>> {
        self.shared.set(state, None);
        let task = self.task.take()?;
        task.stop.send_replace(true);
        Some(task.supervisor)
    }

    fn status(&self) -> LinkStatus {
        let words = self.shared.words();
        let rules: Vec<_> = self
            .link
            .rules
            .iter()
            .zip(&self.shared.meters)
            .map(|(rule, meter)| meter.status(rule.label(), &words.state))
            .collect();
        // A link is as well as its worst rule.
        let state = match &words.state {
            LinkState::Connected => rules
                .iter()
                .find_map(|rule| match &rule.state {
                    LinkState::Degraded { cause } => {
                        Some(LinkState::Degraded { cause: format!("{}: {cause}", rule.rule) })
                    }
                    LinkState::Connecting | LinkState::Connected | LinkState::Paused | LinkState::Stopped => {
                        None
                    }
                })
                .unwrap_or(LinkState::Connected),
            LinkState::Connecting | LinkState::Degraded { .. } | LinkState::Paused | LinkState::Stopped => {
                words.state.clone()
            }
        };
        LinkStatus {
            name: self.link.config.name.clone(),
            state,
            server: words.server.clone(),
            reconnects: self.shared.reconnects.load(Ordering::Relaxed),
            last_error: words.last_error.clone(),
            rules,
        }
    }
}

impl Shared {
    fn words(&self) -> MutexGuard<'_, Words> {
        self.words.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, state: LinkState, server: Option<String>) {
        let mut words = self.words();
        if let LinkState::Degraded { cause } = &state {
            words.last_error = Some(cause.clone());
        }
        (words.state, words.server) = (state, server);
    }
}

/// What a rule works with.
#[derive(Clone)]
pub(crate) struct RuleContext {
    pub(crate) router: Router,
    /// The name of the link.
    pub(crate) link: Arc<str>,
    pub(crate) meter: Arc<Meter>,
    /// Of the rule's direction: who stores something lets its bytes pass here first.
    pub(crate) limit: Arc<Limit>,
    sessions: watch::Receiver<Option<Session>>,
    stop: watch::Receiver<bool>,
    resync: watch::Receiver<u64>,
}

impl RuleContext {
    /// The session there is now, or the next one; `None` when the link stops: finish and return.
    /// *Cancel safety*: may be dropped.
    pub(crate) async fn session(&mut self) -> Option<Session> {
        loop {
            if self.is_stopping() {
                return None;
            }
            let now = self.sessions.borrow_and_update().clone();
            if let Some(session) = now.filter(|session| !session.is_lost()) {
                return Some(session);
            }
            let mut stop = self.stop.clone();
            tokio::select! {
                changed = self.sessions.changed() => changed.ok()?,
                _ = stop.wait_for(|stop| *stop) => return None,
            }
        }
    }

    /// The rule works; said in the log when it did not before.
    pub(crate) fn running(&self, rule: &str) {
        if self.meter.running() {
            info!(link = %self.link, rule, "a rule of a link works again");
        }
    }

    /// The rule cannot work now and keeps trying; said in the log when the cause is new.
    pub(crate) fn degraded(&self, rule: &str, cause: String) {
        if self.meter.degraded(cause.as_str()) {
            warn!(link = %self.link, rule, cause, "a rule of a link cannot work; it keeps trying");
        }
    }

    pub(crate) fn is_stopping(&self) -> bool {
        *self.stop.borrow() || self.stop.has_changed().is_err()
    }

    /// Resolves when the link is to stop. *Cancel safety*: may be dropped.
    pub(crate) async fn stopping(&self) {
        let mut stop = self.stop.clone();
        // A sender that is gone means the same.
        drop(stop.wait_for(|stop| *stop).await.map(drop));
    }

    /// Resolves when somebody asks that both sides be compared anew. *Cancel safety*: may be dropped.
    pub(crate) async fn resync_wanted(&mut self) {
        if self.resync.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits before something is tried again; `false` when the link stops.
    pub(crate) async fn wait(&self, duration: Duration) -> bool {
        tokio::select! {
            () = tokio::time::sleep(duration) => true,
            () = self.stopping() => false,
        }
    }
}

/// Waits that double, with jitter, until something works.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
    first: Duration,
    longest: Duration,
}

impl Backoff {
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        Self { next: first, first, longest }
    }

    /// The time to wait now: between half of it and all of it, so that many do not come at once.
    pub(crate) fn next(&mut self) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(self.longest);
        let half = whole / 2;
        half + half.mul_f64(connection::random_fraction())
    }

    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }
}

struct Supervisor {
    router: Router,
    link: CheckedLink,
    shared: Arc<Shared>,
    stop: watch::Receiver<bool>,
    resync: watch::Receiver<u64>,
}

impl Supervisor {
    async fn run(self) {
        let (sessions, _) = watch::channel(None);
        let mut rules = JoinSet::new();
        let rate = self.link.config.bytes_per_second;
        let limits = [Arc::new(Limit::new(rate)), Arc::new(Limit::new(rate))];
        for (at, rule) in self.link.rules.iter().enumerate() {
            let limit = &limits[usize::from(rule.is_inward())];
            rules.spawn(supervise_rule(self.context(at, &sessions, limit), rule.clone()));
        }
        let context = self.bare_context(&sessions, &limits[0]);
        tokio::select! {
            () = self.keep_connected(&sessions, &context) => {}
            () = context.stopping() => {}
        }
        // Rules finish what is in flight over the session that there is; whoever drains bounds it.
        while rules.join_next().await.is_some() {}
        sessions.send_replace(None);
    }

    fn bare_context(&self, sessions: &watch::Sender<Option<Session>>, limit: &Arc<Limit>) -> RuleContext {
        RuleContext {
            router: self.router.clone(),
            link: self.link.config.name.as_str().into(),
            meter: Arc::default(),
            limit: Arc::clone(limit),
            sessions: sessions.subscribe(),
            stop: self.stop.clone(),
            resync: self.resync.clone(),
        }
    }

    fn context(
        &self,
        rule: usize,
        sessions: &watch::Sender<Option<Session>>,
        limit: &Arc<Limit>,
    ) -> RuleContext {
        RuleContext { meter: Arc::clone(&self.shared.meters[rule]), ..self.bare_context(sessions, limit) }
    }

    async fn keep_connected(&self, sessions: &watch::Sender<Option<Session>>, context: &RuleContext) {
        let link = self.link.config.name.as_str();
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        let mut connected_before = false;
        loop {
            let (session, server) = match connection::connect(&self.link.config).await {
                Ok(connected) => connected,
                Err(error) => {
                    let cause = error.to_string();
                    let known = self.shared.words().last_error.as_deref() == Some(cause.as_str());
                    // Said once, not at every attempt.
                    if !known {
                        warn!(link, cause, "a link cannot connect; it keeps trying");
                    }
                    self.shared.set(LinkState::Degraded { cause }, None);
                    if !context.wait(backoff.next()).await {
                        return;
                    }
                    continue;
                }
            };
            if connected_before {
                self.shared.reconnects.fetch_add(1, Ordering::Relaxed);
            }
            connected_before = true;
            info!(link, server, "a link is connected");
            self.shared.set(LinkState::Connected, Some(server));
            sessions.send_replace(Some(session.clone()));
            let begun = Instant::now();
            session.lost().await;
            sessions.send_replace(None);
            let cause = session.cause();
            warn!(link, cause, "a link lost its connection");
            self.shared.set(LinkState::Degraded { cause }, None);
            // A server that lets us in and throws us out again is not asked in a circle.
            if begun.elapsed() > BACKOFF.1 {
                backoff.reset();
            }
            if !context.wait(backoff.next()).await {
                return;
            }
        }
    }
}

async fn supervise_rule(context: RuleContext, rule: Rule) {
    let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
    loop {
        let running = tokio::spawn(run_rule(context.clone(), rule.clone()));
        let abort = AbortOnDrop(running.abort_handle());
        let ended = running.await;
        drop(abort);
        match ended {
            Ok(()) => return,
            Err(error) => {
                // Only a bug gets here; the others go on.
                warn!(link = %context.link, rule = rule.label(), err = %error, "a rule of a link failed");
                context.meter.degraded("internal error; begun anew");
            }
        }
        if !context.wait(backoff.next()).await {
            return;
        }
    }
}

/// A rule does not outlive its supervisor.
struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn run_rule(context: RuleContext, rule: Rule) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
    match rule {
        Rule::ImportStream(rule) => Box::pin(import::run(context, rule)),
        Rule::ExportStream(rule) => Box::pin(export::run(context, rule)),
        Rule::ImportSubject(rule) => Box::pin(core::run_import(context, rule)),
        Rule::ExportSubject(rule) => Box::pin(core::run_export(context, rule)),
        Rule::Requests(rule) => Box::pin(core::run_requests(context, rule)),
        Rule::ImportBucket(rule) => Box::pin(kv::run_import(context, rule)),
        Rule::ExportBucket(rule) => Box::pin(kv::run_export(context, rule)),
    }
}
