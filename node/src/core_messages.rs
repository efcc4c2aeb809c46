//! Core messages and requests from within the process, as a client of this node would send them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use beamlog_router::interest::{Envelope, Interest, Offered, RouteCache, Subscriber, SubscriptionKey};
use beamlog_router::{Router, StreamPublish};
use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// Nobody answered: whoever should has no room, or is gone.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Unanswered;

/// Takes one answer.
struct Inbox(Mutex<Option<oneshot::Sender<Bytes>>>);

impl Subscriber for Inbox {
    fn offer(&self, _subscription: u64, message: &Envelope<'_>) -> Offered {
        let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(sender) = sender else { return Offered::Refused };
        match sender.send(Bytes::copy_from_slice(message.payload)) {
            Ok(()) => Offered::Taken,
            // Who asked has gone.
            Err(_) => Offered::Refused,
        }
    }

    fn flush(&self) {}
}

/// Ends the subscription of an inbox, also when nobody waits any more.
struct Subscription(Arc<Interest>, SubscriptionKey);

impl Drop for Subscription {
    fn drop(&mut self) {
        self.0.unsubscribe(&self.1);
    }
}

/// The payload of the first answer, at whichever node of a cluster it is given.
///
/// # Errors
/// There is none within that time, or nobody listens.
///
/// *Cancel safety*: when dropped, the request may be handled all the same.
pub(crate) async fn ask(
    router: &Router,
    subject: &str,
    headers: &[u8],
    payload: &[u8],
    within: Duration,
) -> Result<Bytes, Unanswered> {
    let message = |reply: &str| send(router, subject, reply.as_bytes(), headers, payload);
    ask_by(router, message, within).await
}

/// As [`ask`], with `send` to send the request with the reply subject that it is given; it says how many heard it.
///
/// # Errors
/// As [`ask`].
///
/// *Cancel safety*: as [`ask`].
pub(crate) async fn ask_by(
    router: &Router,
    send: impl FnOnce(&str) -> usize,
    within: Duration,
) -> Result<Bytes, Unanswered> {
    static INBOXES: AtomicU64 = AtomicU64::new(1);
    let number = INBOXES.fetch_add(1, Ordering::Relaxed);
    let reply = format!("_INBOX.beamlog.{}.{number}", router.node_id());
    let (sender, receiver) = oneshot::channel();
    let inbox = Arc::new(Inbox(Mutex::new(Some(sender))));
    let interest = router.interest();
    let key = interest.subscribe(reply.as_bytes(), None, inbox, 0).map_err(|_illegal| Unanswered)?;
    let _subscription = Subscription(Arc::clone(interest), key);
    if send(&reply) == 0 {
        return Err(Unanswered);
    }
    match timeout(within, receiver).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) | Err(_) => Err(Unanswered),
    }
}

/// To whoever is interested, and into a stream that captures it. Says how many heard it.
pub(crate) fn send(router: &Router, subject: &str, reply: &[u8], headers: &[u8], payload: &[u8]) -> usize {
    let message = Envelope { subject: subject.as_bytes(), reply, headers, payload, origin: 0 };
    let mut routes = RouteCache::new();
    let routed = router.interest().route(&mut routes, subject.as_bytes(), &message);
    routes.flush();
    if let Some(stream) = routed.capture {
        let copy = Bytes::copy_from_slice;
        let publish = StreamPublish {
            stream,
            subject: copy(subject.as_bytes()),
            // The answer is the router's, not the ack of the stream that looks on.
            reply: Bytes::new(),
            headers: copy(headers),
            payload: copy(payload),
        };
        if router.offer_publish(publish).is_err() {
            tracing::warn!(subject, "the stream that captures this subject has no room: it misses a message");
        }
    }
    routed.receivers
}
