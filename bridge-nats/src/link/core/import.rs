//! Messages from there to here.

use async_nats::Message;
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};

use super::incoming::{Incoming, MESSAGE_BYTES_MAX, is_acceptable};
use super::path::{self, Waypoint};
use super::{BACKOFF, BATCH_MAX, Ended, cluster_of, group_there, is_about_subscription, this_node};
use crate::link::connection::Session;
use crate::link::context::{Backoff, RuleContext};
use crate::link::rules::{Rule, SubjectRule};
use crate::link::{headers, mapping};

pub(crate) async fn run_import(mut context: RuleContext, rule: SubjectRule) {
    let label = Rule::ImportSubject(rule.clone()).label();
    let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
    while let Some(session) = context.session().await {
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
    let group = rule.queue.clone().unwrap_or_else(|| group_there(context));
    let mut errors = session.errors();
    let subscribed = session.client.queue_subscribe(rule.subject.clone(), group).await;
    let mut subscription = match subscribed {
        Ok(subscription) => subscription,
        Err(error) => return Ended::Refused(error.to_string()),
    };
    let refused = |error: &str| is_about_subscription(error, &rule.subject);
    let mut hands = Hands {
        context,
        rule,
        incoming: Incoming::new(context.router.clone()),
        node: this_node(context),
        cluster: cluster_of(session).await,
    };
    if let Some(cause) = errors.next(refused).now_or_never() {
        return Ended::Refused(cause);
    }
    context.running(label);
    let (lost, stopping) = (session.lost(), context.stopping());
    tokio::pin!(lost, stopping);
    loop {
        let message = tokio::select! {
            message = subscription.next() => message,
            () = &mut lost => return Ended::Lost,
            cause = errors.next(refused) => return Ended::Refused(cause),
            () = &mut stopping => break,
        };
        let Some(message) = message else { return Ended::Lost };
        hands.take(message).await;
        for _ in 1..BATCH_MAX {
            let Some(Some(message)) = subscription.next().now_or_never() else { break };
            hands.take(message).await;
        }
        hands.incoming.flush();
        context.meter.dropped(session.take_dropped());
    }
    // What has come is handed in; what comes from now on is somebody else's.
    if subscription.unsubscribe().await.is_ok() {
        while let Some(message) = subscription.next().await {
            hands.take(message).await;
        }
    }
    hands.incoming.flush();
    Ended::Stopping
}

struct Hands<'a> {
    context: &'a RuleContext,
    rule: &'a SubjectRule,
    incoming: Incoming,
    node: Waypoint,
    cluster: Waypoint,
}

impl Hands<'_> {
    async fn take(&mut self, message: Message) {
        let meter = &self.context.meter;
        let bytes = message.length;
        let mapped = mapping::apply(self.rule.mapping.as_ref(), message.subject.as_bytes());
        let Some(subject) =
            mapped.filter(|_| bytes <= MESSAGE_BYTES_MAX && is_acceptable(message.subject.as_bytes()))
        else {
            meter.dropped(1);
            return;
        };
        match onward(message.headers.as_ref(), self.node, self.cluster) {
            Onward::Seen => meter.duplicates(1),
            Onward::TooFar => meter.dropped(1),
            Onward::Path(path) => {
                let headers = headers::inward(message.headers.as_ref(), &[(path::PATH, &path)]);
                // A reply subject means something only there: requests have rules of their own.
                self.incoming.hand_in(subject, Bytes::new(), headers.into(), message.payload).await;
                meter.transferred(1, bytes as u64);
            }
        }
    }
}

/// What the path of a message from there says.
pub(super) enum Onward {
    /// This node has sent it itself.
    Seen,
    TooFar,
    /// The path that it has here.
    Path(String),
}

pub(super) fn onward(headers: Option<&async_nats::HeaderMap>, node: Waypoint, cluster: Waypoint) -> Onward {
    let path = headers.and_then(|headers| headers.get(path::PATH)).map(|value| value.as_str().as_bytes());
    if path.is_some_and(|path| path::is_in(path, node)) {
        return Onward::Seen;
    }
    path::longer(path, cluster).map_or(Onward::TooFar, Onward::Path)
}
