//! The links of a node: which there are, and a supervisor for each that keeps one session and runs the
//! rules over it. Links are added, removed, paused and resumed while the node runs.
//!
//! A rule is a task that asks its [`RuleContext`] for a session, works until that is lost, and asks again.
//! It ends when the link stops. One that panics is begun anew.
//!
//! Invariant: of one link at most one supervisor runs. One that is started again begins when the one before it
//! has finished what it had in flight: two would take each other's messages from the cursors that they share.
//!
//! In a cluster every node knows the links, and the one that leads runs them; at the others they stand by.

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

use super::connection::{self, ConnectError, Session};
use super::diff::RuleDiff;
use super::hub::{Hubs, SharedHubs, Urgency};
use super::limit::Limit;
use super::rules::{CheckedLink, LinkConfig, LinkKind, Rule, RuleError};
use super::status::{LinkState, LinkStatus, Meter};
use super::{core, diff, export, import, kv};

/// Links of one node.
const LINKS_MAX: usize = 64;
/// How long a supervisor may take to finish before the next one of its link begins without it.
const HANDOVER: Duration = Duration::from_secs(20);
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
    #[error("link {0}: there is nothing here that reaches Beamlog hubs by quic://")]
    Kind(String),
}

/// The links of a node. Clones share them. All calls return at once, but [`Links::drain`].
#[derive(Clone)]
pub struct Links {
    inner: Arc<Inner>,
}

struct Inner {
    router: Router,
    is_clustered: bool,
    hubs: SharedHubs,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    links: BTreeMap<String, Running>,
    /// Another node runs them.
    is_standby: bool,
    /// Nothing is started any more.
    is_drained: bool,
    /// Supervisors that were told to stop, by the name of their link.
    ending: BTreeMap<String, JoinHandle<()>>,
}

struct Running {
    link: CheckedLink,
    shared: Arc<Shared>,
    is_paused: bool,
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
        Self { inner: Arc::new(Inner { router, is_clustered: false, hubs: None, known: Mutex::default() }) }
    }

    /// The same for a node of a cluster: links stand by until [`Links::lead`] says that they run here.
    #[must_use]
    pub fn in_cluster(router: Router) -> Self {
        let known = Known { is_standby: true, ..Known::default() };
        Self { inner: Arc::new(Inner { router, is_clustered: true, hubs: None, known: Mutex::new(known) }) }
    }

    /// The same, with links to Beamlog hubs too. Before any link is added, and before this is cloned.
    #[must_use]
    pub fn reaching(mut self, hubs: Arc<dyn Hubs>) -> Self {
        if let Some(inner) = Arc::get_mut(&mut self.inner) {
            inner.hubs = Some(hubs);
        }
        self
    }

    /// Starts all links that are not paused, or has them all stand by.
    pub fn lead(&self, leads: bool) {
        let mut known = self.known();
        if known.is_standby != leads || known.is_drained {
            return;
        }
        known.is_standby = !leads;
        let Known { links, ending, .. } = &mut *known;
        for running in links.values_mut() {
            if leads {
                running.start(&self.inner, ending);
            } else {
                let state = if running.is_paused { LinkState::Paused } else { LinkState::Standby };
                running.stop(state, ending);
            }
        }
    }

    /// Adds a link and starts it, unless it is configured as paused.
    ///
    /// # Errors
    /// Everything that is wrong with it; nothing was started then.
    pub fn add(&self, config: LinkConfig) -> Result<(), LinkError> {
        let link = config.check().map_err(LinkError::Rules)?;
        let name = link.config.name.clone();
        if link.kind == LinkKind::Beamlog && self.inner.hubs.is_none() {
            return Err(LinkError::Kind(name));
        }
        let mut known = self.known();
        if known.links.contains_key(&name) {
            return Err(LinkError::Exists(name));
        }
        if known.links.len() >= LINKS_MAX {
            return Err(LinkError::TooMany);
        }
        let is_paused = link.config.paused;
        let state = if is_paused { LinkState::Paused } else { LinkState::Standby };
        let shared = Arc::new(Shared {
            meters: link.rules.iter().map(|_| Arc::default()).collect(),
            reconnects: AtomicU64::new(0),
            words: Mutex::new(Words { state, server: None, last_error: None }),
        });
        let mut running = Running { link, shared, is_paused, task: None };
        if !known.is_standby {
            running.start(&self.inner, &mut known.ending);
        }
        known.links.insert(name, running);
        Ok(())
    }

    /// Stops a link and forgets it. What it did is kept: cursors and watermarks are in the log.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn remove(&self, name: &str) -> Result<(), LinkError> {
        let mut known = self.known();
        let running = known.links.remove(name);
        let mut running = running.ok_or_else(|| LinkError::Unknown(name.to_owned()))?;
        running.stop(LinkState::Stopped, &mut known.ending);
        Ok(())
    }

    /// Stops a link until it is resumed.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn pause(&self, name: &str) -> Result<(), LinkError> {
        self.with(name, |running, known| {
            running.is_paused = true;
            running.stop(LinkState::Paused, known);
        })
    }

    /// Starts a link that was paused.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn resume(&self, name: &str) -> Result<(), LinkError> {
        let mut known = self.known();
        let Known { links, is_standby, ending, .. } = &mut *known;
        let running = links.get_mut(name).ok_or_else(|| LinkError::Unknown(name.to_owned()))?;
        running.is_paused = false;
        if *is_standby {
            running.shared.set(LinkState::Standby, None);
        } else {
            running.start(&self.inner, ending);
        }
        Ok(())
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
        let link = self.known().links.get(name).map(|running| running.link.clone());
        let link = link.ok_or_else(|| LinkError::Unknown(name.to_owned()))?;
        Ok(diff::compare(&self.inner.router, &link, &self.inner.hubs).await)
    }

    /// How all links are, by name.
    #[must_use]
    pub fn status(&self) -> Vec<LinkStatus> {
        self.known().links.values().map(Running::status).collect()
    }

    /// What a link was configured with.
    #[must_use]
    pub fn config(&self, name: &str) -> Option<LinkConfig> {
        self.known().links.get(name).map(|running| running.link.config.clone())
    }

    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.known().links.keys().cloned().collect()
    }

    /// Stops all links: what is in flight is finished within `grace`, then dropped. Nothing was acked that
    /// was not done, so what is dropped comes again.
    ///
    /// *Cancel safety*: links are told to stop at once; who cancels waits for nothing.
    pub async fn drain(&self, grace: Duration) {
        let deadline = Instant::now() + grace;
        let stopping = {
            let mut known = self.known();
            let Known { links, ending, is_standby, is_drained } = &mut *known;
            (*is_standby, *is_drained) = (true, true);
            for running in links.values_mut() {
                running.stop(LinkState::Stopped, ending);
            }
            std::mem::take(ending)
        };
        for mut supervisor in stopping.into_values() {
            if tokio::time::timeout_at(deadline, &mut supervisor).await.is_err() {
                supervisor.abort();
            }
        }
    }

    fn with(
        &self,
        name: &str,
        change: impl FnOnce(&mut Running, &mut BTreeMap<String, JoinHandle<()>>),
    ) -> Result<(), LinkError> {
        let mut known = self.known();
        let Known { links, ending, .. } = &mut *known;
        change(links.get_mut(name).ok_or_else(|| LinkError::Unknown(name.to_owned()))?, ending);
        Ok(())
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.inner.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let Known { links, ending, .. } = self.known.get_mut().unwrap_or_else(PoisonError::into_inner);
        for running in links.values_mut() {
            running.stop(LinkState::Stopped, ending);
        }
    }
}

impl Running {
    /// Starts it behind what was started before, unless it runs or is paused.
    fn start(&mut self, inner: &Inner, ending: &mut BTreeMap<String, JoinHandle<()>>) {
        if self.task.is_some() || self.is_paused {
            return;
        }
        let (stop, stopped) = watch::channel(false);
        let (resync, resynced) = watch::channel(0);
        self.shared.set(LinkState::Connecting, None);
        let supervisor = Supervisor {
            router: inner.router.clone(),
            is_clustered: inner.is_clustered,
            hubs: inner.hubs.clone(),
            link: self.link.clone(),
            shared: Arc::clone(&self.shared),
            stop: stopped,
            resync: resynced,
        };
        let before = ending.remove(&self.link.config.name);
        let supervisor = tokio::spawn(async move {
            if let Some(before) = before {
                finished(before).await;
            }
            supervisor.run().await;
        });
        self.task = Some(Task { stop, resync, supervisor });
    }

    /// Tells it to stop; what it finishes first is kept under its name.
    fn stop(&mut self, state: LinkState, ending: &mut BTreeMap<String, JoinHandle<()>>) {
        self.shared.set(state, None);
        if let Some(task) = self.task.take() {
            task.stop.send_replace(true);
            ending.retain(|_, supervisor| !supervisor.is_finished());
            // One that was to begin behind another waits for that one.
            ending.insert(self.link.config.name.clone(), task.supervisor);
        }
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
                    LinkState::Connecting
                    | LinkState::Connected
                    | LinkState::Standby
                    | LinkState::Paused
                    | LinkState::Stopped => None,
                })
                .unwrap_or(LinkState::Connected),
            LinkState::Connecting
            | LinkState::Degraded { .. }
            | LinkState::Standby
            | LinkState::Paused
            | LinkState::Stopped => words.state.clone(),
        };
        LinkStatus {
            name: self.link.config.name.clone(),
            kind: self.link.kind,
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

/// A cause, with what the server said if it denied something to this session.
pub(crate) fn explained(session: &Session, cause: String) -> String {
    let said = session.cause();
    if said.to_lowercase().contains("permissions violation") { format!("{cause} ({said})") } else { cause }
}

/// Waits until a supervisor that was told to stop has finished. *Cancel safety*: when dropped, it goes on.
async fn finished(mut before: JoinHandle<()>) {
    if tokio::time::timeout(HANDOVER, &mut before).await.is_err() {
        before.abort();
        drop(before.await);
    }
}

/// What a rule works with.
#[derive(Clone)]
pub(crate) struct RuleContext {
    pub(crate) router: Router,
    /// Other nodes may run the link after this one: what it leaves there is not this node's.
    pub(crate) is_clustered: bool,
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

/// The sessions of one connection of the link.
#[derive(Clone)]
struct Both {
    bulk: Session,
    /// Of a hub only.
    express: Option<Session>,
}

impl Both {
    /// Resolves when either is gone, with the cause.
    async fn lost(&self) -> String {
        let express = async {
            match &self.express {
                Some(session) => session.lost().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.bulk.lost() => self.bulk.cause(),
            () = express => self.express.as_ref().unwrap_or(&self.bulk).cause(),
        }
    }
}

/// Where rules find their session.
struct Sessions {
    bulk: watch::Sender<Option<Session>>,
    express: Option<watch::Sender<Option<Session>>>,
}

impl Sessions {
    fn new(kind: LinkKind) -> Self {
        let express = match kind {
            LinkKind::Nats => None,
            LinkKind::Beamlog => Some(watch::Sender::new(None)),
        };
        Self { bulk: watch::Sender::new(None), express }
    }

    fn of(&self, rule: &Rule) -> &watch::Sender<Option<Session>> {
        let waits = match rule {
            Rule::ImportSubject(_) | Rule::ExportSubject(_) | Rule::Requests(_) => true,
            Rule::ImportStream(_) | Rule::ExportStream(_) | Rule::ImportBucket(_) | Rule::ExportBucket(_) => {
                false
            }
        };
        self.express.as_ref().filter(|_| waits).unwrap_or(&self.bulk)
    }

    fn set(&self, both: Option<Both>) {
        let (bulk, express) = both.map_or((None, None), |both| (Some(both.bulk), both.express));
        self.bulk.send_replace(bulk);
        if let Some(sessions) = &self.express {
            sessions.send_replace(express);
        }
    }
}

struct Supervisor {
    router: Router,
    is_clustered: bool,
    hubs: SharedHubs,
    link: CheckedLink,
    shared: Arc<Shared>,
    stop: watch::Receiver<bool>,
    resync: watch::Receiver<u64>,
}

impl Supervisor {
    async fn run(self) {
        let sessions = Sessions::new(self.link.kind);
        let mut rules = JoinSet::new();
        let rate = self.link.config.bytes_per_second;
        let limits = [Arc::new(Limit::new(rate)), Arc::new(Limit::new(rate))];
        for (at, rule) in self.link.rules.iter().enumerate() {
            let limit = &limits[usize::from(rule.is_inward())];
            let sessions = sessions.of(rule);
            rules.spawn(supervise_rule(self.context(at, sessions, limit), rule.clone()));
        }
        let context = self.bare_context(&sessions.bulk, &limits[0]);
        tokio::select! {
            () = self.keep_connected(&sessions, &context) => {}
            () = context.stopping() => {}
        }
        // Rules finish what is in flight over the session that there is; whoever drains bounds it.
        while rules.join_next().await.is_some() {}
        sessions.set(None);
    }

    fn bare_context(&self, sessions: &watch::Sender<Option<Session>>, limit: &Arc<Limit>) -> RuleContext {
        RuleContext {
            router: self.router.clone(),
            is_clustered: self.is_clustered,
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

    /// To a hub there are two sessions, so that what somebody waits for does not wait behind what is stored.
    async fn connect(&self) -> Result<(Both, String), ConnectError> {
        let connect = |urgency| connection::connect(&self.link.config, &self.hubs, urgency);
        let (bulk, server) = connect(Urgency::Bulk).await?;
        let express = match self.link.kind {
            LinkKind::Nats => None,
            LinkKind::Beamlog => Some(connect(Urgency::Express).await?.0),
        };
        Ok((Both { bulk, express }, server))
    }

    async fn keep_connected(&self, sessions: &Sessions, context: &RuleContext) {
        let link = self.link.config.name.as_str();
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        let mut connected_before = false;
        loop {
            let (both, server) = match self.connect().await {
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
            sessions.set(Some(both.clone()));
            let begun = Instant::now();
            let cause = both.lost().await;
            sessions.set(None);
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
