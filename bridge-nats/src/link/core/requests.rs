//! Requests that are asked on one side and answered on the other. One answer for each request; where there
//! is nobody to answer, that is the answer; an answer that does not come in time does not come at all, as
//! for any request.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::{HeaderMap, Message, Request, RequestErrorKind};
use beamlog_router::headers::{self as block, Builder};
use beamlog_router::interest::{Envelope, Offered, Subscriber, SubscriptionKey};
use beamlog_router::{Router, subject};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::import::{Onward, onward};
use super::incoming::{Handed, Incoming, MESSAGE_BYTES_MAX, is_acceptable};
use super::outgoing::{Outgoing, Subscription, Wanted};
use super::path::{self, Waypoint};
use super::{BACKOFF, Ended, cluster_of, group_here, group_there, is_about_subscription, this_node};
use crate::link::connection::Session;
use crate::link::context::{Backoff, RuleContext};
use crate::link::rules::{Direction, RequestRule, Rule};
use crate::link::{headers, mapping};

/// Requests of one rule that wait for their answer. More wait in the buffer, and beyond that there is nobody
/// to answer.
const OUTSTANDING_MAX: usize = 1024;
const NO_RESPONDERS: u16 = 503;

pub(crate) async fn run_requests(mut context: RuleContext, rule: RequestRule) {
    let label = Rule::Requests(rule.clone()).label();
    let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
    while let Some(session) = context.session().await {
        let ended = match rule.direction {
            Direction::Out => outward(&context, &rule, &label, &session).await,
            Direction::In => inward(&context, &rule, &label, &session).await,
        };
        match ended {
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

/// Asked here, answered there.
async fn outward(context: &RuleContext, rule: &RequestRule, label: &str, session: &Session) -> Ended {
    let cluster = cluster_of(session).await;
    let node = this_node(context);
    let group = group_here("requests", cluster);
    let meter = Arc::clone(&context.meter);
    let subscribed =
        Subscription::new(&context.router, &rule.subject, &group, Wanted::Requests, cluster, meter);
    let mut subscription = match subscribed {
        Ok(subscription) => subscription,
        Err(error) => return Ended::Refused(error.to_string()),
    };
    let mut incoming = Incoming::new(context.router.clone());
    let mut asked: JoinSet<Answered> = JoinSet::new();
    context.running(label);
    let (lost, stopping) = (session.lost(), context.stopping());
    tokio::pin!(lost, stopping);
    loop {
        tokio::select! {
            request = subscription.next(), if asked.len() < OUTSTANDING_MAX => {
                let Some(request) = request else { return Ended::Lost };
                asked.spawn(ask(session.client.clone(), rule.clone(), request, node));
            }
            Some(answered) = asked.join_next() => {
                if let Ok(answered) = answered {
                    answer(context, &mut incoming, answered).await;
                }
            }
            () = &mut lost => {
                // Whether they were served nobody knows: who asked hears nothing.
                context.meter.dropped(asked.len() as u64 + subscription.abandon());
                return Ended::Lost;
            }
            () = &mut stopping => break,
        }
    }
    subscription.close();
    while let Some(request) = subscription.next().await {
        asked.spawn(ask(session.client.clone(), rule.clone(), request, node));
    }
    while let Some(answered) = asked.join_next().await {
        if let Ok(answered) = answered {
            answer(context, &mut incoming, answered).await;
        }
    }
    Ended::Stopping
}

/// Where an answer goes, and what it is.
struct Answered {
    reply: Bytes,
    bytes: usize,
    result: Result<(Bytes, Bytes), Silence>,
}

/// Why there is no answer.
enum Silence {
    NobodyThere,
    Failed(String),
}

async fn ask(client: async_nats::Client, rule: RequestRule, request: Outgoing, node: Waypoint) -> Answered {
    let bytes = request.bytes();
    let path = path::longer_of(&request.headers, node);
    let subject = mapping::apply(rule.mapping.as_ref(), &request.subject)
        .and_then(|subject| String::from_utf8(subject.into()).ok());
    let (Some(path), Some(subject)) = (path, subject) else {
        return Answered { reply: request.reply, bytes, result: Err(Silence::NobodyThere) };
    };
    let asking = Request::new()
        .headers(headers::outward(&request.headers, &[(path::PATH, &path)]))
        .payload(request.payload)
        .timeout(Some(Duration::from_millis(rule.timeout_ms)));
    let result = match client.send_request(subject, asking).await {
        Ok(message) => {
            let headers = match message.status {
                Some(status) => {
                    Builder::status(status.as_u16(), message.description.as_deref().unwrap_or_default())
                        .finish()
                }
                None => headers::inward(message.headers.as_ref(), &[]),
            };
            Ok((Bytes::from(headers), message.payload))
        }
        Err(error) if error.kind() == RequestErrorKind::NoResponders => Err(Silence::NobodyThere),
        Err(error) => Err(Silence::Failed(error.to_string())),
    };
    Answered { reply: request.reply, bytes, result }
}

/// Hands the answer to who asked here.
async fn answer(context: &RuleContext, incoming: &mut Incoming, answered: Answered) {
    let Answered { reply, bytes, result } = answered;
    let (headers, payload) = match result {
        Ok(answer) => {
            context.meter.transferred(1, bytes as u64);
            answer
        }
        Err(Silence::NobodyThere) => (Builder::status(NO_RESPONDERS, "").finish().into(), Bytes::new()),
        Err(Silence::Failed(cause)) => {
            context.meter.dropped(1);
            context.meter.error(cause);
            return;
        }
    };
    incoming.hand_in(reply, Bytes::new(), headers, payload).await;
    incoming.flush();
}

/// Asked there, answered here.
async fn inward(context: &RuleContext, rule: &RequestRule, label: &str, session: &Session) -> Ended {
    let group = rule.queue.clone().unwrap_or_else(|| group_there(context));
    let mut errors = session.errors();
    let subscribed = session.client.queue_subscribe(rule.subject.clone(), group).await;
    let mut subscription = match subscribed {
        Ok(subscription) => subscription,
        Err(error) => return Ended::Refused(error.to_string()),
    };
    let refused = |error: &str| is_about_subscription(error, &rule.subject);
    let (cluster, node) = (cluster_of(session).await, this_node(context));
    if let Some(cause) = errors.next(refused).now_or_never() {
        return Ended::Refused(cause);
    }
    let Some(replies) = Replies::new(context.router.clone()) else {
        return Ended::Refused("no subject for answers".to_owned());
    };
    let mut desk = Desk { context, rule, session, replies, incoming: Incoming::new(context.router.clone()) };
    let mut asked: JoinSet<Replied> = JoinSet::new();
    context.running(label);
    let (lost, stopping) = (session.lost(), context.stopping());
    tokio::pin!(lost, stopping);
    loop {
        tokio::select! {
            request = subscription.next(), if asked.len() < OUTSTANDING_MAX => {
                let Some(request) = request else { return Ended::Lost };
                if let Some(waiting) = desk.ask(request, node, cluster).await {
                    asked.spawn(waiting);
                }
                context.meter.dropped(session.take_dropped());
            }
            Some(replied) = asked.join_next() => {
                if let Ok(replied) = replied {
                    desk.pass_on(replied).await;
                }
            }
            cause = errors.next(refused) => return Ended::Refused(cause),
            () = &mut lost => {
                context.meter.dropped(asked.len() as u64);
                return Ended::Lost;
            }
            () = &mut stopping => break,
        }
    }
    if subscription.unsubscribe().await.is_ok() {
        while let Some(request) = subscription.next().await {
            if let Some(waiting) = desk.ask(request, node, cluster).await {
                asked.spawn(waiting);
            }
        }
    }
    while let Some(replied) = asked.join_next().await {
        if let Ok(replied) = replied {
            desk.pass_on(replied).await;
        }
    }
    // What was answered is on its way before the connection ends; when it is lost, so is the answer.
    drop(session.client.flush().await);
    Ended::Stopping
}

/// What came of a request, and who wants to know.
struct Replied {
    to: async_nats::Subject,
    number: u64,
    bytes: usize,
    reply: Option<Reply>,
}

struct Desk<'a> {
    context: &'a RuleContext,
    rule: &'a RequestRule,
    session: &'a Session,
    replies: Replies,
    incoming: Incoming,
}

impl Desk<'_> {
    /// Asks here; what is returned waits for the answer.
    async fn ask(
        &mut self,
        request: Message,
        node: Waypoint,
        cluster: Waypoint,
    ) -> Option<impl Future<Output = Replied> + Send + 'static> {
        let meter = &self.context.meter;
        let bytes = request.length;
        let mapped = mapping::apply(self.rule.mapping.as_ref(), request.subject.as_bytes());
        let is_fit = bytes <= MESSAGE_BYTES_MAX && is_acceptable(request.subject.as_bytes());
        let (Some(subject), Some(to), true) = (mapped, request.reply, is_fit) else {
            meter.dropped(1);
            return None;
        };
        let path = match onward(request.headers.as_ref(), node, cluster) {
            Onward::Path(path) => path,
            // It went round: whoever could answer was asked before.
            Onward::Seen | Onward::TooFar => {
                meter.duplicates(1);
                self.nobody(to).await;
                return None;
            }
        };
        let headers = headers::inward(request.headers.as_ref(), &[(path::PATH, &path)]);
        let (number, reply, answered) = self.replies.expect();
        let handed = self.incoming.hand_in(subject, reply, headers.into(), request.payload).await;
        self.incoming.flush();
        if handed == Handed::ToNobody {
            self.replies.forget(number);
            self.nobody(to).await;
            return None;
        }
        let timeout = Duration::from_millis(self.rule.timeout_ms);
        Some(async move {
            let reply = tokio::time::timeout(timeout, answered).await.ok().and_then(Result::ok);
            Replied { to, number, bytes, reply }
        })
    }

    async fn pass_on(&self, replied: Replied) {
        let Replied { to, number, bytes, reply } = replied;
        self.replies.forget(number);
        let meter = &self.context.meter;
        match reply {
            None => {
                meter.dropped(1);
                meter.error("a request was not answered in time");
            }
            Some(reply) if block::status(&reply.headers) == Some(NO_RESPONDERS) => self.nobody(to).await,
            Some(reply) => {
                let headers = headers::outward(&reply.headers, &[]);
                let sent = if headers.is_empty() {
                    self.session.client.publish(to, reply.payload).await
                } else {
                    self.session.client.publish_with_headers(to, headers, reply.payload).await
                };
                match sent {
                    Ok(()) => meter.transferred(1, bytes as u64),
                    Err(error) => {
                        meter.dropped(1);
                        meter.error(error.to_string());
                    }
                }
            }
        }
    }

    /// The client library cannot send a status: the answer says it by the headers of NATS services.
    async fn nobody(&self, to: async_nats::Subject) {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Service-Error", "No Responders");
        headers.insert("Nats-Service-Error-Code", "503");
        if let Err(error) = self.session.client.publish_with_headers(to, headers, Bytes::new()).await {
            self.context.meter.error(error.to_string());
        }
    }
}

struct Reply {
    headers: Bytes,
    payload: Bytes,
}

/// One subscription for all answers: the last token of its subjects is the number of the request.
struct Replies {
    router: Router,
    key: SubscriptionKey,
    prefix: String,
    next: u64,
    waiting: Arc<Waiting>,
}

#[derive(Default)]
struct Waiting(Mutex<HashMap<u64, oneshot::Sender<Reply>>>);

impl Subscriber for Waiting {
    fn offer(&self, _subscription: u64, message: &Envelope<'_>) -> Offered {
        let number = subject::tokens(message.subject).last();
        let number: Option<u64> =
            number.and_then(|token| std::str::from_utf8(token).ok()).and_then(|token| token.parse().ok());
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sender) = number.and_then(|number| waiting.remove(&number)) else { return Offered::Refused };
        let reply = Reply {
            headers: Bytes::copy_from_slice(message.headers),
            payload: Bytes::copy_from_slice(message.payload),
        };
        match sender.send(reply) {
            Ok(()) => Offered::Taken,
            // It came too late.
            Err(_) => Offered::Refused,
        }
    }

    fn flush(&self) {}
}

impl Replies {
    fn new(router: Router) -> Option<Self> {
        static PREFIXES: AtomicU64 = AtomicU64::new(1);
        let prefix = format!("_LINK.{}.{}", router.node_id(), PREFIXES.fetch_add(1, Ordering::Relaxed));
        let waiting = Arc::new(Waiting::default());
        let subscriber: Arc<dyn Subscriber> = Arc::clone(&waiting) as Arc<dyn Subscriber>;
        let key = router.interest().subscribe(format!("{prefix}.*").as_bytes(), None, subscriber, 0).ok()?;
        Some(Self { router, key, prefix, next: 0, waiting })
    }

    /// A number, the subject to answer to, and the answer.
    fn expect(&mut self) -> (u64, Bytes, oneshot::Receiver<Reply>) {
        self.next += 1;
        let (sender, receiver) = oneshot::channel();
        self.waiting.0.lock().unwrap_or_else(PoisonError::into_inner).insert(self.next, sender);
        (self.next, format!("{}.{}", self.prefix, self.next).into(), receiver)
    }

    fn forget(&self, number: u64) {
        self.waiting.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
    }
}

impl Drop for Replies {
    fn drop(&mut self) {
        self.router.interest().unsubscribe(&self.key);
    }
}
