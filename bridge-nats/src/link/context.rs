//! What a rule works with: the session there is, where it counts, and when it is to stop.

use std::sync::Arc;
use std::time::Duration;

use beamlog_router::Router;
use tokio::sync::watch;
use tracing::{info, warn};

use super::connection::{self, Session};
use super::limit::Limit;
use super::status::Meter;

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
    pub(super) sessions: watch::Receiver<Option<Session>>,
    pub(super) stop: watch::Receiver<bool>,
    pub(super) resync: watch::Receiver<u64>,
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
/// A cause, with what the server said if it denied something to this session.
pub(crate) fn explained(session: &Session, cause: String) -> String {
    let said = session.cause();
    if said.to_lowercase().contains("permissions violation") { format!("{cause} ({said})") } else { cause }
}
