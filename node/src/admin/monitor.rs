//! What the admin pages are made from: handles to the parts of the node, and how often each page was asked.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use beamlog_nats::jetstream::Api;
use beamlog_nats::{Server, rfc3339};
use beamlog_net::edge::Hub;
use beamlog_router::{Health, Router};

use crate::cluster::{NodeCluster, Served};
use crate::config::NodeOptions;
use crate::links::NodeLinks;
use crate::tasks::Serving;

#[derive(Debug)]
pub(crate) struct Monitor {
    pub(super) router: Router,
    pub(super) server: Arc<Server>,
    pub(super) api: Api,
    pub(super) links: Arc<NodeLinks>,
    pub(super) cluster: Option<NodeCluster>,
    pub(super) served: Option<Served>,
    pub(super) hub: Option<Hub>,
    pub(super) options: NodeOptions,
    pub(super) started: SystemTime,
    pub(super) tasks: Option<Arc<Serving>>,
    draining: AtomicBool,
    requests: Mutex<BTreeMap<&'static str, u64>>,
}

impl Monitor {
    #[expect(clippy::too_many_arguments, reason = "the parts of a node, put together in one place")]
    pub(crate) fn new(
        router: Router,
        server: Arc<Server>,
        api: Api,
        links: Arc<NodeLinks>,
        cluster: Option<NodeCluster>,
        hub: Option<Hub>,
        options: NodeOptions,
        started: SystemTime,
        (tasks, served): (Option<Arc<Serving>>, Option<Served>),
    ) -> Self {
        let draining = AtomicBool::new(false);
        let requests = Mutex::default();
        Self { router, server, api, links, cluster, served, hub, options, started, tasks, draining, requests }
    }

    pub(crate) fn set_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Counts a request of a page.
    pub(super) fn count(&self, path: &'static str) {
        *self.requests.lock().unwrap_or_else(PoisonError::into_inner).entry(path).or_default() += 1;
    }

    pub(super) fn requests(&self) -> BTreeMap<&'static str, u64> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The routers of this node: that of the cluster or of the node alone, and those of its other shards.
    pub(super) fn routers(&self) -> impl Iterator<Item = Router> {
        let others = self.served.as_ref().map(Served::routers).unwrap_or_default();
        std::iter::once(self.router.clone()).chain(others)
    }

    /// The worst of them.
    pub(super) fn health(&self) -> Health {
        let severity = |health: &Health| match health {
            Health::Serving => 0,
            Health::InsufficientStorage => 1,
            Health::Damaged { .. } => 2,
            Health::LogFailed { .. } => 3,
            Health::Closed => 4,
        };
        self.routers().map(|router| router.health()).max_by_key(severity).unwrap_or(Health::Serving)
    }

    pub(super) fn uptime(&self) -> Duration {
        self.started.elapsed().unwrap_or_default()
    }
}

/// A time as monitoring shows it.
pub(super) fn shown(time: SystemTime) -> String {
    let since_1970 = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    rfc3339(u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX))
}

/// An uptime as nats-server writes it: `3s`, `2m3s`, `1h2m3s`, `4d1h2m3s`.
pub(super) fn uptime_text(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    let rest = seconds % 60;
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{rest}s"),
        (0, 0, _) => format!("{minutes}m{rest}s"),
        (0, ..) => format!("{hours}h{minutes}m{rest}s"),
        _ => format!("{days}d{hours}h{minutes}m{rest}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uptimes_begin_with_their_largest_unit() {
        let check = |seconds, text| assert_eq!(uptime_text(Duration::from_secs(seconds)), text);
        check(0, "0s");
        check(59, "59s");
        check(61, "1m1s");
        check(3_600, "1h0m0s");
        check(90_061, "1d1h1m1s");
    }
}
