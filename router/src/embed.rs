//! For programs that hold a router themselves and speak no protocol: subscriptions with a buffer, pulls
//! that block, acks by value.
//!
//! Works beside a protocol endpoint too, as long as its ack subjects end in the seven fields of
//! [`PlainWire::ack_subject`], as JetStream's do.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use beamlog_log::{Sequence, Timestamp};
use bytes::Bytes;

use crate::api::error::ApiError;
use crate::api::request::{AckKind, AckTarget, PublishOutcome, PullRequest};
use crate::driver::command::{Acknowledgement, Full, Pull};
use crate::interest::{Envelope, Interest, Offered, Subscriber, SubscriptionKey};
use crate::router::Router;
use crate::subject::{self, InvalidSubject};
use crate::wire::{Advisory, DeliveryRef, DeliveryStatus, Wire};

/// Spells results for a program that has no protocol: just enough to tell and to ack.
#[derive(Clone, Copy, Debug, Default)]
pub struct PlainWire;

impl Wire for PlainWire {
    fn publish_ack(&self, outcome: &PublishOutcome, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("{outcome:?}").as_bytes());
    }

    /// `ack.<stream>.<consumer>.<deliveries>.<stream sequence>.<consumer sequence>.<time>.<pending>`
    fn ack_subject(&self, delivery: &DeliveryRef<'_>, out: &mut Vec<u8>) {
        let DeliveryRef {
            stream,
            consumer,
            delivery_count,
            stream_sequence,
            consumer_sequence,
            timestamp,
            pending,
        } = delivery;
        let text = format!(
            "ack.{stream}.{consumer}.{delivery_count}.{stream_sequence}.{consumer_sequence}.{timestamp}.{pending}"
        );
        out.extend_from_slice(text.as_bytes());
    }

    fn flow_control_subject(&self, stream: &str, consumer: &str, token: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("flow.{stream}.{consumer}.{token}").as_bytes());
    }

    fn status(&self, status: &DeliveryStatus, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("{status:?}").as_bytes());
    }

    fn advisory(&self, _advisory: &Advisory, _now: Timestamp) -> Option<(String, Vec<u8>)> {
        None
    }
}

/// A message that a subscription got.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Received {
    pub subject: Bytes,
    /// Empty is none.
    pub reply: Bytes,
    /// The raw header block, or empty.
    pub headers: Bytes,
    pub payload: Bytes,
}

#[derive(Default)]
struct Buffer {
    messages: VecDeque<Received>,
    missed: u64,
}

/// The bounded buffer behind a subscription. A full one refuses: the sender never waits.
struct Inbox {
    messages_max: usize,
    buffer: Mutex<Buffer>,
    filled: Condvar,
}

impl Subscriber for Inbox {
    fn offer(&self, _subscription: u64, message: &Envelope<'_>) -> Offered {
        let mut buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        if buffer.messages.len() >= self.messages_max {
            buffer.missed += 1;
            return Offered::Refused;
        }
        buffer.messages.push_back(Received {
            subject: Bytes::copy_from_slice(message.subject),
            reply: Bytes::copy_from_slice(message.reply),
            headers: Bytes::copy_from_slice(message.headers),
            payload: Bytes::copy_from_slice(message.payload),
        });
        Offered::Taken
    }

    fn flush(&self) {
        self.filled.notify_all();
    }
}

/// A live subscription; ends when it is dropped.
pub struct EmbeddedSubscription {
    inbox: Arc<Inbox>,
    interest: Arc<Interest>,
    key: SubscriptionKey,
}

impl EmbeddedSubscription {
    /// The next message; waits for one up to `timeout`.
    #[must_use]
    pub fn next(&self, timeout: Duration) -> Option<Received> {
        let buffer = self.inbox.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut buffer, _) = self
            .inbox
            .filled
            .wait_timeout_while(buffer, timeout, |buffer| buffer.messages.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        buffer.messages.pop_front()
    }

    /// Messages that found the buffer full and are lost to this subscription.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.inbox.buffer.lock().unwrap_or_else(PoisonError::into_inner).missed
    }
}

impl Drop for EmbeddedSubscription {
    fn drop(&mut self) {
        self.interest.unsubscribe(&self.key);
    }
}

/// A message that a consumer delivered.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Delivered {
    pub subject: Bytes,
    pub headers: Bytes,
    pub payload: Bytes,
    /// What an ack names.
    pub target: AckTarget,
}

/// Reads one pull consumer, by blocking calls.
pub struct EmbeddedConsumer {
    router: Router,
    stream: String,
    consumer: String,
    subject: Bytes,
    subscription: EmbeddedSubscription,
}

/// Messages of one fetch.
const FETCH_MAX: u32 = 10_000;
/// Longer than any request: what was asked for has come or been refused by then.
const GRACE: Duration = Duration::from_secs(1);

impl Router {
    /// Subscribes with a buffer of this many messages.
    ///
    /// # Errors
    /// The filter is illegal.
    pub fn subscribe(
        &self,
        filter: &str,
        messages_max: usize,
    ) -> Result<EmbeddedSubscription, InvalidSubject> {
        let inbox = Arc::new(Inbox { messages_max, buffer: Mutex::default(), filled: Condvar::new() });
        let subscriber = Arc::clone(&inbox);
        let interest = Arc::clone(self.interest());
        let key = interest.subscribe(filter.as_bytes(), None, subscriber, 0)?;
        Ok(EmbeddedSubscription { inbox, interest, key })
    }

    /// Reads a pull consumer that exists.
    ///
    /// # Errors
    /// None in practice: the subject it subscribes to is its own.
    pub fn consume(&self, stream: &str, consumer: &str) -> Result<EmbeddedConsumer, InvalidSubject> {
        static INBOXES: AtomicU64 = AtomicU64::new(1);
        let subject = format!("_EMBEDDED.{}", INBOXES.fetch_add(1, Ordering::Relaxed));
        // A status may come with every fetch.
        let subscription = self.subscribe(&subject, FETCH_MAX as usize + 16)?;
        Ok(EmbeddedConsumer {
            router: self.clone(),
            stream: stream.into(),
            consumer: consumer.into(),
            subject: subject.into(),
            subscription,
        })
    }

    /// Acks a delivery and waits until the ack is durable.
    ///
    /// # Errors
    /// There is no room, or no word came in time: the message may be delivered again.
    pub fn ack_and_wait(&self, delivered: &Delivered, timeout: Duration) -> Result<(), AckError> {
        static REPLIES: AtomicU64 = AtomicU64::new(1);
        let reply = format!("_EMBEDDED.ack.{}", REPLIES.fetch_add(1, Ordering::Relaxed));
        let subscription = self.subscribe(&reply, 1)?;
        self.ack(delivered.target.clone(), AckKind::Ack, Some(reply.into()))?;
        subscription.next(timeout).map(drop).ok_or(AckError::NoAnswer)
    }
}

/// Why it is not known that an ack is durable.
#[derive(Debug, thiserror::Error)]
pub enum AckError {
    #[error(transparent)]
    Subject(#[from] InvalidSubject),
    #[error(transparent)]
    Full(#[from] Full<Acknowledgement>),
    #[error("the ack was not confirmed in time")]
    NoAnswer,
}

/// Why a fetch gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("a fetch is of 1 to {FETCH_MAX} messages")]
    Batch,
    #[error(transparent)]
    Full(#[from] Full<Pull>),
    #[error("a delivery came with an ack subject that this crate cannot read")]
    AckSubject,
    #[error(transparent)]
    Api(#[from] ApiError),
}

impl EmbeddedConsumer {
    /// Up to `batch` messages; fewer when no more come within `wait`.
    ///
    /// # Errors
    /// The request could not be made, or its answer not be read.
    pub fn fetch(&self, batch: u32, wait: Duration) -> Result<Vec<Delivered>, FetchError> {
        if batch == 0 || batch > FETCH_MAX {
            return Err(FetchError::Batch);
        }
        let expires = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
        let request = PullRequest { batch, expires_nanos: Some(expires.max(1)), ..PullRequest::default() };
        self.router.pull(self.stream.clone(), self.consumer.clone(), request, self.subject.clone())?;
        let mut delivered = Vec::new();
        while delivered.len() < batch as usize
            && let Some(received) = self.subscription.next(wait + GRACE)
        {
            // A message without a subject to ack to is a status: the request has ended.
            if received.reply.is_empty() {
                break;
            }
            let target = ack_target(&received.reply).ok_or(FetchError::AckSubject)?;
            let Received { subject, headers, payload, .. } = received;
            delivered.push(Delivered { subject, headers, payload, target });
        }
        Ok(delivered)
    }
}

/// Reads the fields of an ack subject from its end.
fn ack_target(raw: &[u8]) -> Option<AckTarget> {
    let text = std::str::from_utf8(raw).ok()?;
    let tokens: Vec<&str> =
        subject::tokens(text.as_bytes()).map(std::str::from_utf8).collect::<Result<_, _>>().ok()?;
    let [.., stream, consumer, delivery_count, stream_sequence, consumer_sequence, _time, _pending] =
        tokens[..]
    else {
        return None;
    };
    Some(AckTarget {
        stream: stream.into(),
        consumer: consumer.into(),
        delivery_count: delivery_count.parse().ok()?,
        stream_sequence: Sequence(stream_sequence.parse().ok()?),
        consumer_sequence: consumer_sequence.parse().ok()?,
    })
}
