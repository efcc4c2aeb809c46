//! The supervisor of one link: it keeps the sessions and runs the rules over them.
//!
//! A rule is a task that asks its [`RuleContext`] for a session, works until that is lost, and asks again.
//! It ends when the link stops. One that panics is begun anew.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use beamlog_router::Router;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{info, warn};

use super::connection::{self, ConnectError, Session};
use super::context::{Backoff, RuleContext};
use super::hub::{SharedHubs, Urgency};
use super::limit::Limit;
use super::rules::{CheckedLink, LinkKind, Rule};
use super::runtime::Shared;
use super::status::LinkState;
use super::{core, export, import, kv};

/// How long a link waits before it connects again: from the first to the longest, doubling, with jitter.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(10));

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

pub(super) struct Supervisor {
    pub(super) router: Router,
    pub(super) is_clustered: bool,
    pub(super) hubs: SharedHubs,
    pub(super) link: CheckedLink,
    pub(super) shared: Arc<Shared>,
    pub(super) stop: watch::Receiver<bool>,
    pub(super) resync: watch::Receiver<u64>,
}

impl Supervisor {
    pub(super) async fn run(self) {
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
