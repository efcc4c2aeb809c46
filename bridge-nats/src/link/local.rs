//! The node's own side of a stream link: requests, stores and one pull consumer, awaited.
//!
//! Invariant: what the consumer delivered comes out of it without a gap. Its deliveries are counted; one that
//! went elsewhere (no room for it, or an inbox that nobody reads any more) is an error, because an ack of a
//! later message would be one of it too. Who opens the consumer anew gets it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use beamlog_router::api::error::ApiError;
use beamlog_router::api::request::{
    AckKind, AckTarget, Answer, MessageSelector, PublishOutcome, PullRequest, Request, Response, StreamInfo,
};
use beamlog_router::consumer::{AckPolicy, ConsumerConfig, ConsumerInfo, DeliverPolicy};
use beamlog_router::interest::{Envelope, Interest, Offered, Subscriber, SubscriptionKey};
use beamlog_router::stream::Retention;
use beamlog_router::{Full, Message, Router, Sequence, StreamPublish, Timestamp};
use bytes::Bytes;
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::rules::StartFrom;
use super::trail::StreamKey;

pub(crate) async fn request(router: &Router, request: Request) -> Answer {
    let mut request = request;
    loop {
        match router.request(request) {
            Ok(ticket) => return ticket.await,
            Err(Full(back)) => {
                request = back;
                wait_for_room(router).await?;
            }
        }
    }
}

pub(crate) async fn store(router: &Router, publish: StreamPublish) -> PublishOutcome {
    let mut publish = publish;
    loop {
        match router.store(publish) {
            Ok(ticket) => return ticket.await,
            Err(Full(back)) => {
                publish = back;
                if wait_for_room(router).await.is_err() {
                    let result = Err(beamlog_router::api::error::PublishRefusal::LogFailed);
                    return PublishOutcome { stream: String::new(), result };
                }
            }
        }
    }
}

/// # Errors
/// There never will be room: the router is closed.
pub(crate) async fn wait_for_room(router: &Router) -> Result<(), ApiError> {
    match router.health() {
        beamlog_router::Health::Closed | beamlog_router::Health::LogFailed { .. } => Err(ApiError::LogFailed),
        beamlog_router::Health::Serving
        | beamlog_router::Health::InsufficientStorage
        | beamlog_router::Health::Damaged { .. } => {
            router.when_ready().await;
            Ok(())
        }
    }
}

pub(crate) async fn stream(router: &Router, name: &str) -> Result<StreamInfo, ApiError> {
    let ask =
        Request::StreamInfo { stream: name.into(), subjects_filter: None, offset: 0, deleted_details: false };
    let answer = request(router, ask).await?;
    if let Response::Stream { info, .. } = answer { Ok(*info) } else { Err(ApiError::BadRequest) }
}

pub(crate) fn key(info: &StreamInfo) -> StreamKey {
    StreamKey { name: info.config.name.clone(), epoch: info.created.0 }
}

/// A message that the consumer delivered.
#[derive(Clone, Debug)]
pub(crate) struct Delivered {
    pub(crate) sequence: u64,
    pub(crate) time: Timestamp,
    pub(crate) subject: Bytes,
    pub(crate) headers: Bytes,
    pub(crate) payload: Bytes,
}

enum Came {
    /// With the consumer's own count of its deliveries up to this one.
    Message(u64, Delivered),
    /// The request that was waiting has ended.
    Status,
}

/// Where deliveries go: a bounded channel.
struct Inbox {
    sender: mpsc::Sender<Came>,
}

impl Subscriber for Inbox {
    fn offer(&self, _subscription: u64, message: &Envelope<'_>) -> Offered {
        let came = match delivery(message) {
            Some((delivery, delivered)) => Came::Message(delivery, delivered),
            None => Came::Status,
        };
        match self.sender.try_send(came) {
            Ok(()) => Offered::Taken,
            Err(_full_or_closed) => Offered::Refused,
        }
    }

    fn flush(&self) {}
}

/// `$JS.ACK.<stream>.<consumer>.<deliveries>.<sequence>.<consumer sequence>.<time>.<pending>`
fn delivery(message: &Envelope<'_>) -> Option<(u64, Delivered)> {
    let ack = std::str::from_utf8(message.reply).ok()?;
    let mut fields = ack.rsplit('.').skip(1);
    let time = fields.next()?.parse().ok()?;
    let delivery = fields.next()?.parse().ok()?;
    let sequence = fields.next()?.parse().ok()?;
    let delivered = Delivered {
        sequence,
        time: Timestamp(time),
        subject: Bytes::copy_from_slice(message.subject),
        headers: Bytes::copy_from_slice(message.headers),
        payload: Bytes::copy_from_slice(message.payload),
    };
    Some((delivery, delivered))
}

/// A delivery of the consumer did not come here.
#[derive(Clone, Copy, Debug, Error)]
#[error("delivery {expected} did not come; what was delivered is read again")]
pub(crate) struct LostDelivery {
    expected: u64,
}

/// Why a consumer cannot be gone on with.
#[derive(Debug, Error)]
pub(crate) enum LocalError {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error(transparent)]
    Lost(#[from] LostDelivery),
}

/// A durable consumer of a stream here: the cursor of an export.
pub(crate) struct LocalConsumer {
    router: Router,
    interest: Arc<Interest>,
    subscription: SubscriptionKey,
    pub(crate) stream: StreamInfo,
    name: String,
    inbox: Bytes,
    receiver: mpsc::Receiver<Came>,
    /// Messages that were asked for and did not come yet.
    asked: usize,
    asked_at: Instant,
    policy: AckPolicy,
    /// Deliveries that came, or were made before this was opened.
    deliveries: u64,
}

/// Deliveries that wait in the channel.
const INBOX_MAX: usize = 1024;
/// Messages of one pull.
const PULL_MAX: usize = 256;
const PULL_EXPIRES: std::time::Duration = std::time::Duration::from_secs(30);
/// What is delivered is in our hands: it is only delivered again to one who forgot it.
const ACK_WAIT: std::time::Duration = std::time::Duration::from_secs(24 * 3600);
/// Deliveries without an ack.
pub(crate) const UNACKED_MAX: u32 = 4096;

impl Drop for LocalConsumer {
    fn drop(&mut self) {
        self.interest.unsubscribe(&self.subscription);
    }
}

impl LocalConsumer {
    /// Finds the consumer or makes it, and what it delivered that was not acked: whoever held that is gone.
    pub(crate) async fn open(
        router: &Router,
        stream: &str,
        name: &str,
        filter: Option<&str>,
        start: StartFrom,
    ) -> Result<(Self, Vec<Delivered>), ApiError> {
        static INBOXES: AtomicU64 = AtomicU64::new(1);
        let info = self::stream(router, stream).await?;
        // A stream that keeps messages until they are acked wants to hear of each.
        let policy = match info.config.retention {
            Retention::Limits => AckPolicy::All,
            Retention::Interest | Retention::WorkQueue => AckPolicy::Explicit,
        };
        let consumer = match consumer_info(router, stream, name).await {
            Ok(consumer) => consumer,
            Err(ApiError::ConsumerNotFound) => {
                let config = config(name, filter, start, policy);
                let create = Request::CreateConsumer {
                    stream: stream.into(),
                    config: Box::new(config),
                    action: beamlog_router::api::request::ConsumerAction::CreateOrUpdate,
                };
                let Response::Consumer(consumer) = request(router, create).await? else {
                    return Err(ApiError::BadRequest);
                };
                *consumer
            }
            Err(error) => return Err(error),
        };
        // In a cluster the inboxes of all nodes are in one space of subjects.
        let number = INBOXES.fetch_add(1, Ordering::Relaxed);
        let inbox: Bytes = format!("_LINK.{}.{number}", router.node_id()).into();
        let (sender, receiver) = mpsc::channel(INBOX_MAX);
        let interest = Arc::clone(router.interest());
        let subscription = interest
            .subscribe(&inbox, None, Arc::new(Inbox { sender }), 0)
            .map_err(|_invalid| ApiError::BadRequest)?;
        let opened = Self {
            router: router.clone(),
            interest,
            subscription,
            stream: info,
            name: name.into(),
            inbox,
            receiver,
            asked: 0,
            asked_at: Instant::now(),
            policy,
            deliveries: consumer.delivered.consumer,
        };
        let held = opened.unacked(&consumer, filter).await?;
        Ok((opened, held))
    }

    async fn unacked(
        &self,
        consumer: &ConsumerInfo,
        filter: Option<&str>,
    ) -> Result<Vec<Delivered>, ApiError> {
        let (floor, delivered) = (consumer.ack_floor.stream, consumer.delivered.stream);
        let mut held = Vec::new();
        let mut from = floor.next();
        while from <= delivered {
            let selector = MessageSelector::NextOn { filter: filter.unwrap_or_default().into(), from };
            let ask = Request::GetMessage { stream: self.stream.config.name.clone(), selector };
            match request(&self.router, ask).await {
                Ok(Response::Message(message)) if message.sequence <= delivered => {
                    from = message.sequence.next();
                    held.push(of_message(message));
                }
                Ok(_) | Err(ApiError::NoMessage | ApiError::SequenceNotFound(_)) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(held)
    }

    /// Asks for messages, so that up to `room` may come.
    pub(crate) async fn ask(&mut self, room: usize) -> Result<(), ApiError> {
        // Every request has ended by then, whether or not its status got through.
        if self.asked_at.elapsed() > PULL_EXPIRES + PULL_EXPIRES / 8 {
            self.asked = 0;
        }
        let wanted = room.min(INBOX_MAX / 2).saturating_sub(self.asked);
        if wanted < room.clamp(1, PULL_MAX / 2) {
            return Ok(());
        }
        let wanted = wanted.min(PULL_MAX);
        let request = PullRequest {
            batch: u32::try_from(wanted).unwrap_or(1),
            expires_nanos: u64::try_from(PULL_EXPIRES.as_nanos()).ok(),
            ..PullRequest::default()
        };
        let name = &self.stream.config.name;
        while self.router.pull(name.clone(), self.name.clone(), request.clone(), self.inbox.clone()).is_err()
        {
            wait_for_room(&self.router).await?;
        }
        self.asked += wanted;
        self.asked_at = Instant::now();
        Ok(())
    }

    /// The next message. *Cancel safety*: may be dropped.
    pub(crate) async fn next(&mut self) -> Result<Delivered, LostDelivery> {
        loop {
            match self.receiver.recv().await {
                Some(Came::Message(delivery, delivered)) => return self.count(delivery, delivered),
                // Requests end together with what they asked for, all but one at most.
                Some(Came::Status) => self.asked = 0,
                None => std::future::pending().await,
            }
        }
    }

    /// The next message, if it is here.
    pub(crate) fn try_next(&mut self) -> Option<Result<Delivered, LostDelivery>> {
        loop {
            match self.receiver.try_recv() {
                Ok(Came::Message(delivery, delivered)) => return Some(self.count(delivery, delivered)),
                Ok(Came::Status) => self.asked = 0,
                Err(_) => return None,
            }
        }
    }

    fn count(&mut self, delivery: u64, delivered: Delivered) -> Result<Delivered, LostDelivery> {
        self.asked = self.asked.saturating_sub(1);
        let expected = self.deliveries + 1;
        if delivery != expected {
            return Err(LostDelivery { expected });
        }
        self.deliveries = delivery;
        Ok(delivered)
    }

    /// Moves the cursor: `done` ascend, and everything up to the last of them is done.
    pub(crate) async fn ack(&self, done: &[u64]) -> Result<(), ApiError> {
        let of_all = done.last().map(std::slice::from_ref).unwrap_or_default();
        let told = if self.policy == AckPolicy::All { of_all } else { done };
        for sequence in told {
            let target = AckTarget {
                stream: self.stream.config.name.clone(),
                consumer: self.name.clone(),
                delivery_count: 1,
                stream_sequence: Sequence(*sequence),
                consumer_sequence: 0,
            };
            while self.router.ack(target.clone(), AckKind::Ack, None).is_err() {
                wait_for_room(&self.router).await?;
            }
        }
        Ok(())
    }

    /// How many messages are behind what was delivered.
    pub(crate) async fn pending(&self) -> Result<u64, LocalError> {
        let info = self::stream(&self.router, &self.stream.config.name).await?;
        if info.created != self.stream.created {
            // Made anew: this consumer went with the one before.
            return Err(ApiError::ConsumerNotFound.into());
        }
        let consumer = consumer_info(&self.router, &self.stream.config.name, &self.name).await?;
        // What was delivered before this answer waits in the channel by now, or went elsewhere.
        let here = self.deliveries + self.receiver.len() as u64;
        if consumer.delivered.consumer > here {
            return Err(LostDelivery { expected: here + 1 }.into());
        }
        Ok(consumer.pending)
    }
}

async fn consumer_info(router: &Router, stream: &str, consumer: &str) -> Result<ConsumerInfo, ApiError> {
    let ask = Request::ConsumerInfo { stream: stream.into(), consumer: consumer.into() };
    let answer = request(router, ask).await?;
    if let Response::Consumer(consumer) = answer { Ok(*consumer) } else { Err(ApiError::BadRequest) }
}

fn config(name: &str, filter: Option<&str>, start: StartFrom, policy: AckPolicy) -> ConsumerConfig {
    ConsumerConfig {
        name: name.into(),
        durable: true,
        description: "cursor of a link".into(),
        deliver_policy: match start {
            StartFrom::All => DeliverPolicy::All,
            StartFrom::New => DeliverPolicy::New,
            StartFrom::Sequence(sequence) => DeliverPolicy::ByStartSequence(Sequence(sequence.max(1))),
            StartFrom::Time(time) => DeliverPolicy::ByStartTime(Timestamp(time)),
        },
        ack_policy: policy,
        ack_wait_nanos: u64::try_from(ACK_WAIT.as_nanos()).ok(),
        max_ack_pending: Some(UNACKED_MAX),
        filter_subjects: filter.map(Into::into).into_iter().collect(),
        ..ConsumerConfig::default()
    }
}

fn of_message(message: Message) -> Delivered {
    Delivered {
        sequence: message.sequence.0,
        time: message.timestamp,
        subject: message.subject,
        headers: message.headers,
        payload: message.payload,
    }
}

/// A name for a durable consumer that is this rule's: of the link, and what tells its rules apart.
pub(crate) fn consumer_name(parts: &[&str]) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in parts.join("\u{0}").bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    let link: String = parts.first().copied().unwrap_or_default().chars().take(64).collect();
    format!("beamlog-link-{link}-{hash:016x}")
}
