//! What is meant for the other side: a subscription here whose bounded buffer a rule sends from.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use beamlog_router::Router;
use beamlog_router::interest::{Envelope, Offered, Subscriber, SubscriptionKey};
use beamlog_router::subject::InvalidSubject;
use bytes::Bytes;
use tokio::sync::mpsc;

use super::path::{self, Waypoint};
use crate::link::status::Meter;

/// Messages that wait for one rule.
const MESSAGES_MAX: usize = 8192;
/// Their bytes.
const BYTES_MAX: usize = 16 << 20;

/// A message of this side.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) subject: Bytes,
    pub(super) reply: Bytes,
    pub(super) headers: Bytes,
    pub(super) payload: Bytes,
}

impl Outgoing {
    pub(super) fn bytes(&self) -> usize {
        self.subject.len() + self.reply.len() + self.headers.len() + self.payload.len()
    }
}

/// Which messages a rule takes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Wanted {
    Messages,
    /// Only with a reply subject.
    Requests,
}

struct Inbox {
    sender: mpsc::Sender<Outgoing>,
    bytes: Arc<AtomicUsize>,
    meter: Arc<Meter>,
    /// Whatever came from there does not go back.
    cluster: Waypoint,
    wanted: Wanted,
}

impl Subscriber for Inbox {
    fn offer(&self, _subscription: u64, message: &Envelope<'_>) -> Offered {
        if is_of_system(message.subject)
            || (self.wanted == Wanted::Requests && message.reply.is_empty())
            || path::has_been(message.headers, self.cluster)
        {
            return Offered::Refused;
        }
        let outgoing = Outgoing {
            subject: Bytes::copy_from_slice(message.subject),
            reply: Bytes::copy_from_slice(message.reply),
            headers: Bytes::copy_from_slice(message.headers),
            payload: Bytes::copy_from_slice(message.payload),
        };
        let bytes = outgoing.bytes();
        if self.bytes.load(Ordering::Relaxed).saturating_add(bytes) > BYTES_MAX {
            self.meter.dropped(1);
            return Offered::Refused;
        }
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if self.sender.try_send(outgoing).is_err() {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            // Closed: the rule is ending, and somebody else may want it.
            if !self.sender.is_closed() {
                self.meter.dropped(1);
            }
            return Offered::Refused;
        }
        Offered::Taken
    }

    // Who receives is woken by the message itself.
    fn flush(&self) {}
}

/// A live subscription; ends when it is dropped.
pub(super) struct Subscription {
    router: Router,
    key: Option<SubscriptionKey>,
    receiver: mpsc::Receiver<Outgoing>,
    bytes: Arc<AtomicUsize>,
}

impl Subscription {
    /// Of all rules of this node that send to one cluster, one gets each message: they share a queue group.
    pub(super) fn new(
        router: &Router,
        filter: &str,
        group: &str,
        wanted: Wanted,
        cluster: Waypoint,
        meter: Arc<Meter>,
    ) -> Result<Self, InvalidSubject> {
        let (sender, receiver) = mpsc::channel(MESSAGES_MAX);
        let bytes = Arc::new(AtomicUsize::new(0));
        let inbox = Arc::new(Inbox { sender, bytes: Arc::clone(&bytes), meter, cluster, wanted });
        let key = router.interest().subscribe(filter.as_bytes(), Some(group.as_bytes()), inbox, 0)?;
        Ok(Self { router: router.clone(), key: Some(key), receiver, bytes })
    }

    /// The next message; `None` after [`Self::close`], when all were taken. *Cancel safety*: may be dropped.
    pub(super) async fn next(&mut self) -> Option<Outgoing> {
        let message = self.receiver.recv().await?;
        self.bytes.fetch_sub(message.bytes(), Ordering::Relaxed);
        Some(message)
    }

    /// Takes no more; what is in the buffer can still be taken.
    pub(super) fn close(&mut self) {
        if let Some(key) = self.key.take() {
            self.router.interest().unsubscribe(&key);
        }
        self.receiver.close();
    }

    /// Closes, and says how many messages nobody will take any more.
    pub(super) fn abandon(mut self) -> u64 {
        self.close();
        self.receiver.len() as u64
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.close();
    }
}

/// Subjects that are each side's own: never carried, whatever a wildcard says.
pub(super) fn is_of_system(subject: &[u8]) -> bool {
    subject.starts_with(b"$") || subject.starts_with(b"_INBOX.") || subject.starts_with(b"_LINK.")
}
