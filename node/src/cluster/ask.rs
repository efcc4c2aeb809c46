//! Asking the node that leads, over the mesh, as a client of this node would.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use beamlog_router::Router;
use beamlog_router::interest::{Envelope, Interest, Offered, RouteCache, Subscriber, SubscriptionKey};
use tokio::sync::oneshot;

/// Takes the first message, which is the answer.
#[derive(Debug)]
struct Inbox(Mutex<Option<oneshot::Sender<Vec<u8>>>>);

impl Subscriber for Inbox {
    fn offer(&self, _subscription: u64, message: &Envelope<'_>) -> Offered {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(answer) => {
                // Who asked may have given up.
                drop(answer.send(message.payload.to_vec()));
                Offered::Taken
            }
            None => Offered::Refused,
        }
    }

    fn flush(&self) {}
}

/// Ends the subscription, also when nobody waits any more.
struct Subscribed<'a>(&'a Interest, SubscriptionKey);

impl Drop for Subscribed<'_> {
    fn drop(&mut self) {
        self.0.unsubscribe(&self.1);
    }
}

/// Inboxes of this process so far.
static INBOXES: AtomicU64 = AtomicU64::new(0);

/// The payload of the first answer; `None` when nobody answers within that time.
pub(crate) async fn ask(router: &Router, subject: &str, payload: &[u8], within: Duration) -> Option<Vec<u8>> {
    let (sender, answer) = oneshot::channel();
    let count = INBOXES.fetch_add(1, Ordering::Relaxed);
    let inbox = format!("_INBOX.beamlog.{}.{count}", router.node_id());
    let subscriber = Arc::new(Inbox(Mutex::new(Some(sender))));
    let interest = router.interest();
    let _subscribed = Subscribed(interest, interest.subscribe(inbox.as_bytes(), None, subscriber, 1).ok()?);
    let mut cache = RouteCache::new();
    let envelope =
        Envelope { subject: subject.as_bytes(), reply: inbox.as_bytes(), headers: b"", payload, origin: 0 };
    let routed = interest.route(&mut cache, subject.as_bytes(), &envelope);
    cache.flush();
    if routed.receivers == 0 {
        return None;
    }
    tokio::time::timeout(within, answer).await.ok()?.ok()
}
