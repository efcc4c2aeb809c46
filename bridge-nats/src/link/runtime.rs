//! The links of a node: which there are, and a supervisor for each. Links are added, removed, paused and resumed
//! while the node runs.
//!
//! Invariant: of one link at most one supervisor runs. One that is started again begins when the one before it
//! has finished what it had in flight: two would take each other's messages from the cursors that they share.
//!
//! In a cluster every node knows the links, and the one that leads runs them; at the others they stand by.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use beamlog_router::Router;
use thiserror::Error;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::diff::{self, RuleDiff};
use super::hub::{Hubs, SharedHubs};
use super::rules::{CheckedLink, LinkConfig, LinkKind, RuleError};
use super::status::{LinkState, LinkStatus, Meter};
use super::supervisor::Supervisor;

/// Links of one node.
const LINKS_MAX: usize = 64;
/// How long a supervisor may take to finish before the next one of its link begins without it.
const HANDOVER: Duration = Duration::from_secs(20);

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
pub(super) struct Shared {
    pub(super) meters: Vec<Arc<Meter>>,
    pub(super) reconnects: AtomicU64,
    words: Mutex<Words>,
}

pub(super) struct Words {
    state: LinkState,
    server: Option<String>,
    pub(super) last_error: Option<String>,
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
    pub(super) fn words(&self) -> MutexGuard<'_, Words> {
        self.words.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set(&self, state: LinkState, server: Option<String>) {
        let mut words = self.words();
        if let LinkState::Degraded { cause } = &state {
            words.last_error = Some(cause.clone());
        }
        (words.state, words.server) = (state, server);
    }
}
/// Waits until a supervisor that was told to stop has finished. *Cancel safety*: when dropped, it goes on.
async fn finished(mut before: JoinHandle<()>) {
    if tokio::time::timeout(HANDOVER, &mut before).await.is_err() {
        before.abort();
        drop(before.await);
    }
}
