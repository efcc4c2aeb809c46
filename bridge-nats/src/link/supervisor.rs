//! The supervisor of one link: it keeps the sessions and runs the rules over them.
//!
//! A rule is a task that asks its [`RuleContext`] for a session, works until that is lost, and asks again.
//! It ends when the link stops. One that panics is begun anew.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use beamlog_router::Router;
use futures_util::future::select_all;
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

/// Where rules find their session: to NATS there is one, to a hub one for what goes there, one for what comes from
/// there and one for what somebody waits for, so that none stands behind another.
struct Sessions {
    first: watch::Sender<Option<Session>>,
    /// To a hub.
    others: Option<Others>,
}

struct Others {
    inward: watch::Sender<Option<Session>>,
    express: watch::Sender<Option<Session>>,
}

impl Sessions {
    fn new(kind: LinkKind) -> Self {
        let others = match kind {
            LinkKind::Nats => None,
            LinkKind::Beamlog => {
                Some(Others { inward: watch::Sender::new(None), express: watch::Sender::new(None) })
            }
        };
        Self { first: watch::Sender::new(None), others }
    }

    fn of(&self, rule: &Rule) -> &watch::Sender<Option<Session>> {
        let Some(others) = &self.others else { return &self.first };
        match rule {
            Rule::ExportStream(_) | Rule::ExportBucket(_) => &self.first,
            Rule::ImportStream(_) | Rule::ImportBucket(_) => &others.inward,
            Rule::ImportSubject(_) | Rule::ExportSubject(_) | Rule::Requests(_) => &others.express,
        }
    }

    /// In the order in which sessions are handed to [`Self::set`].
    fn urgencies(&self) -> &'static [Urgency] {
        match self.others {
            None => &[Urgency::Outward],
            Some(_) => &[Urgency::Outward, Urgency::Inward, Urgency::Express],
        }
    }

    /// None of them when the link is not connected.
    fn set(&self, sessions: &[Session]) {
        let others = self.others.iter().flat_map(|others| [&others.inward, &others.express]);
        for (at, sender) in std::iter::once(&self.first).chain(others).enumerate() {
            sender.send_replace(sessions.get(at).cloned());
        }
    }
}

/// Resolves when one of them is gone, with the cause.
async fn lost(sessions: &[Session]) -> String {
    let each = sessions.iter().map(|session| {
        Box::pin(async move {
            session.lost().await;
            session.cause()
        })
    });
    select_all(each).await.0
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
        let context = self.bare_context(&sessions.first, &limits[0]);
        tokio::select! {
            () = self.keep_connected(&sessions, &context) => {}
            () = context.stopping() => {}
        }
        // Rules finish what is in flight over the session that there is; whoever drains bounds it.
        while rules.join_next().await.is_some() {}
        sessions.set(&[]);
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

    /// All sessions, and the server of the first.
    async fn connect(&self, urgencies: &[Urgency]) -> Result<(Vec<Session>, String), ConnectError> {
        let mut connected = Vec::new();
        let mut servers = Vec::new();
        for urgency in urgencies {
            let (session, server) = connection::connect(&self.link.config, &self.hubs, *urgency).await?;
            connected.push(session);
            servers.push(server);
        }
        let first = servers.into_iter().next().ok_or(ConnectError::NoAddress)?;
        Ok((connected, first))
    }

    async fn keep_connected(&self, sessions: &Sessions, context: &RuleContext) {
        let link = self.link.config.name.as_str();
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        let mut connected_before = false;
        loop {
            let (connected, server) = match self.connect(sessions.urgencies()).await {
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
            sessions.set(&connected);
            let begun = Instant::now();
            let cause = lost(&connected).await;
            sessions.set(&[]);
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
