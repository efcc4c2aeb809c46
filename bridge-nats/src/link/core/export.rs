//! Messages from here to there.

use std::sync::Arc;
use std::time::Duration;

use beamlog_router::interest::{Envelope, Offered, Subscriber};
use futures_util::FutureExt;
use tokio::time::Instant;

use super::outgoing::{Outgoing, Subscription, Wanted, is_of_system};
use super::path::{self, Waypoint};
use super::{BACKOFF, BATCH_MAX, Ended, cluster_of, group_here, is_about_publish, this_node};
use crate::link::connection::Session;
use crate::link::context::{Backoff, RuleContext};
use crate::link::rules::{Rule, SubjectRule};
use crate::link::status::Meter;
use crate::link::{headers, mapping};

/// A server that may not be published to says so for each message; without a word for this long it may be.
const QUIET: Duration = Duration::from_secs(5);

pub(crate) async fn run_export(mut context: RuleContext, rule: SubjectRule) {
    let label = Rule::ExportSubject(rule.clone()).label();
    let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
    loop {
        let missed = Missed::begin(&context, &rule);
        let Some(session) = context.session().await else { return };
        drop(missed);
        match over(&context, &rule, &label, &session).await {
            Ended::Stopping => return,
            Ended::Lost => backoff.reset(),
            Ended::Refused(cause) => {
                context.degraded(&label, cause);
                if !context.wait(backoff.next()).await {
                    return;
                }
            }
        }
    }
}

async fn over(context: &RuleContext, rule: &SubjectRule, label: &str, session: &Session) -> Ended {
    let cluster = cluster_of(session).await;
    let group = rule.queue.clone().unwrap_or_else(|| group_here("export", cluster));
    let meter = Arc::clone(&context.meter);
    let subscribed =
        Subscription::new(&context.router, &rule.subject, &group, Wanted::Messages, cluster, meter);
    let mut subscription = match subscribed {
        Ok(subscription) => subscription,
        Err(error) => return Ended::Refused(error.to_string()),
    };
    let image =
        rule.mapping.as_ref().map_or_else(|| rule.subject.clone(), |m| mapping::image(&m.destination));
    let mut sender = Sender { context, rule, session, node: this_node(context), sent: 0, bytes: 0 };
    let mut errors = session.errors();
    let mut quiet_at: Option<Instant> = None;
    context.running(label);
    let (lost, stopping) = (session.lost(), context.stopping());
    tokio::pin!(lost, stopping);
    loop {
        tokio::select! {
            message = subscription.next() => {
                let Some(message) = message else { return Ended::Lost };
                let sending = async {
                    sender.send(message).await?;
                    for _ in 1..BATCH_MAX {
                        let Some(Some(message)) = subscription.next().now_or_never() else { break };
                        sender.send(message).await?;
                    }
                    sender.settle().await
                };
                // A server that takes nothing must not keep us from seeing that it is gone.
                let sent = tokio::select! {
                    sent = sending => sent,
                    () = &mut lost => None,
                };
                if sent.is_none() {
                    context.meter.dropped(sender.sent + subscription.abandon());
                    return Ended::Lost;
                }
            }
            () = &mut lost => {
                context.meter.dropped(subscription.abandon());
                return Ended::Lost;
            }
            cause = errors.next(|error| is_about_publish(error, &image)) => {
                context.meter.dropped(1);
                context.degraded(label, cause);
                quiet_at = Some(Instant::now() + QUIET);
            }
            () = until(quiet_at) => {
                quiet_at = None;
                context.running(label);
            }
            () = &mut stopping => break,
        }
    }
    subscription.close();
    while let Some(message) = subscription.next().await {
        if sender.send(message).await.is_none() {
            return Ended::Lost;
        }
    }
    match sender.settle().await {
        Some(()) => Ended::Stopping,
        None => Ended::Lost,
    }
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

struct Sender<'a> {
    context: &'a RuleContext,
    rule: &'a SubjectRule,
    session: &'a Session,
    node: Waypoint,
    /// Handed to the connection and not known to be written.
    sent: u64,
    bytes: u64,
}

impl Sender<'_> {
    /// `None`: the connection is gone.
    async fn send(&mut self, message: Outgoing) -> Option<()> {
        let client = &self.session.client;
        let path = path::longer_of(&message.headers, self.node);
        let subject = mapping::apply(self.rule.mapping.as_ref(), &message.subject)
            .and_then(|subject| String::from_utf8(subject.into()).ok());
        let (Some(path), Some(subject)) = (path, subject) else {
            self.context.meter.dropped(1);
            return Some(());
        };
        let bytes = message.bytes();
        if bytes > client.max_payload() {
            self.context.meter.dropped(1);
            self.context.meter.error(format!("a message of {bytes} bytes is larger than the server takes"));
            return Some(());
        }
        let headers = headers::outward(&message.headers, &[(path::PATH, &path)]);
        client.publish_with_headers(subject, headers, message.payload).await.ok()?;
        self.sent += 1;
        self.bytes += bytes as u64;
        Some(())
    }

    /// Everything that was sent is on its way.
    async fn settle(&mut self) -> Option<()> {
        self.session.client.flush().await.ok()?;
        self.context.meter.transferred(std::mem::take(&mut self.sent), std::mem::take(&mut self.bytes));
        Some(())
    }
}

/// Counts what cannot be carried while there is no connection; takes nothing.
struct Missed {
    context: RuleContext,
    key: Option<beamlog_router::interest::SubscriptionKey>,
}

struct Counter(Arc<Meter>);

impl Subscriber for Counter {
    fn offer(&self, _subscription: u64, message: &Envelope<'_>) -> Offered {
        if !is_of_system(message.subject) {
            self.0.dropped(1);
        }
        Offered::Refused
    }

    fn flush(&self) {}
}

impl Missed {
    fn begin(context: &RuleContext, rule: &SubjectRule) -> Self {
        let counter = Arc::new(Counter(Arc::clone(&context.meter)));
        let key = context.router.interest().subscribe(rule.subject.as_bytes(), None, counter, 0).ok();
        Self { context: context.clone(), key }
    }
}

impl Drop for Missed {
    fn drop(&mut self) {
        if let Some(key) = &self.key {
            self.context.router.interest().unsubscribe(key);
        }
    }
}
