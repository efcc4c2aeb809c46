//! Interest: who wants which subject now. Read-mostly, shared by all connections and the driver;
//! unstored messages go from here straight into subscribers' buffers.
//!
//! * `index`: the tables. Literal filters in sharded maps, wildcard filters in sharded tries; a
//!   subscription touches one shard, so thousands of short connections cost each other nothing.
//! * `route`: a caller's [`RouteCache`] and the way of one message to its receivers.
//! * `members`: the subscriptions of one subject, for who chooses among them itself.
//! * `watch`: telling the driver when somebody starts or stops to listen on a deliver subject.
//! * `named`: messages to one who is known by a name, past whoever looks on.
//! * `mesh`: telling the other nodes of a cluster what this one wants.

mod index;
mod members;
mod mesh;
mod named;
mod route;
#[cfg(test)]
mod tests;
mod watch;

use std::sync::atomic::AtomicU32;
use std::sync::{Arc, OnceLock};

pub use index::SubscriptionKey;
pub use members::{Member, OnMembers};
pub use mesh::{OnInterest, PeerTarget};
pub use named::NAMES;
pub use route::{RouteCache, Routed};

use crate::subject::InvalidSubject;

/// A message on its way to subscribers. Nothing is copied until a subscriber takes it.
#[derive(Clone, Copy, Debug)]
pub struct Envelope<'a> {
    /// The subject the receiver sees (not always the one it was routed by).
    pub subject: &'a [u8],
    /// Empty is none.
    pub reply: &'a [u8],
    /// The raw header block, or empty.
    pub headers: &'a [u8],
    pub payload: &'a [u8],
    /// The connection it came from, so that a session without echo can refuse it; 0 is nobody.
    pub origin: u64,
}

/// What a subscriber did with a message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Offered {
    /// It holds the message, and whoever offered it must flush.
    Taken,
    /// It holds the message; somebody who offered earlier has yet to flush, and will.
    Joined,
    /// It holds the message and will write it by itself, but its peer takes less than comes: whoever
    /// sends should send slower.
    Congested,
    /// It does not want this one (no echo), or its subscription has ended.
    Refused,
}

/// Who receives: a session of the endpoint, or an embedded subscription.
pub trait Subscriber: Send + Sync {
    /// Copies the message into its own bounded buffer. Never blocks and never calls back into interest.
    fn offer(&self, subscription: u64, message: &Envelope<'_>) -> Offered;

    /// As [`Self::offer`], for a peer: `routed_by` is the subject by which it was chosen, and by which the other
    /// node routes the message on. A delivery of a consumer shows another one.
    fn offer_to_peer(&self, subscription: u64, _routed_by: &[u8], message: &Envelope<'_>) -> Offered {
        self.offer(subscription, message)
    }

    /// The sender's batch ends here: write out what was taken.
    fn flush(&self);

    /// The connection whose subscriptions these are: the `origin` of what it sends. 0 is none.
    fn origin(&self) -> u64 {
        0
    }
}

/// Whose subscription it is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum SubscriberKind {
    /// Somebody at this node.
    #[default]
    Local,
    /// Another node of the cluster, for those who are there. It is never named to peers, gets a message once
    /// however many of its filters match (and once more for each queue group that chose it), and nothing that
    /// came from a peer. Of several peers in a queue group without a member here, one is drawn by `weight` (0
    /// counts as 1).
    Peer { weight: u32 },
}

/// Who watches subjects.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct Watcher(usize);

/// Is told of a watched subject: subject, group, whether there is interest now.
pub type OnChange = Box<dyn Fn(&[u8], &[u8], bool) + Send + Sync>;

/// Flushes these receivers soon, on another thread, and takes them out of the list.
pub type FlushSoon = Box<dyn Fn(&mut Vec<Arc<dyn Subscriber>>) + Send + Sync>;

/// Receivers of a batch that the driver flushes by itself. While it does the next batch grows: with sixteen
/// publishers there are a fifth fewer syncs than when the writes are left to another thread, and no hand-over.
const FLUSHED_AT_ONCE_MAX: usize = 32;

/// The interest index. One per node; share it by `Arc`.
pub struct Interest {
    index: index::Index,
    watched: watch::Watched,
    mesh: mesh::Mesh,
    observed: members::Observed,
    /// Where the next cache begins to draw members of queue groups.
    draws: AtomicU32,
    flusher: OnceLock<FlushSoon>,
    /// How subjects begin that only nodes speak on.
    internal: OnceLock<Vec<Vec<u8>>>,
}

impl std::fmt::Debug for Interest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Interest").finish_non_exhaustive()
    }
}

impl Default for Interest {
    fn default() -> Self {
        Self::new()
    }
}

impl Interest {
    #[must_use]
    pub fn new() -> Self {
        Self {
            index: index::Index::new(),
            watched: watch::Watched::default(),
            mesh: mesh::Mesh::default(),
            observed: members::Observed::default(),
            draws: AtomicU32::new(0),
            flusher: OnceLock::new(),
            internal: OnceLock::new(),
        }
    }

    /// Keeps subjects that begin so for words of nodes: [`Self::route`] takes nobody's message there,
    /// whichever way it comes; [`Self::route_as_node`] does. The first call counts.
    pub fn keep_internal(&self, prefixes: &[&str]) {
        let prefixes = prefixes.iter().map(|prefix| prefix.as_bytes().to_vec()).collect();
        // Set once, when the node starts.
        drop(self.internal.set(prefixes));
    }

    /// Whether only nodes speak on it: it was kept for them, or is one of their names.
    #[must_use]
    pub fn is_internal(&self, subject: &[u8]) -> bool {
        let kept = || {
            let prefixes = self.internal.get();
            prefixes.is_some_and(|prefixes| prefixes.iter().any(|prefix| subject.starts_with(prefix)))
        };
        match subject.first() {
            Some(b'_') => subject.starts_with(NAMES),
            Some(b'$') => kept(),
            Some(_) | None => false,
        }
    }

    /// Sets who flushes the receivers of the driver's batches, so that the driver need not. The first one
    /// stays.
    pub fn flush_by(&self, flusher: FlushSoon) {
        // Of several endpoints one does it for all.
        drop(self.flusher.set(flusher));
    }

    /// As [`RouteCache::flush`], but many receivers are left to the flusher.
    pub(crate) fn flush_soon(&self, cache: &mut RouteCache) {
        match self.flusher.get() {
            Some(flusher) if cache.touched().len() > FLUSHED_AT_ONCE_MAX => flusher(cache.touched()),
            Some(_) | None => cache.flush(),
        }
    }

    /// Adds a subscription: messages that `filter` matches are offered to `subscriber` with `id`. Of the
    /// subscriptions with the same `queue` one gets each message. Every message routed after the return
    /// sees it.
    ///
    /// # Errors
    /// The filter is illegal.
    pub fn subscribe(
        &self,
        filter: &[u8],
        queue: Option<&[u8]>,
        subscriber: Arc<dyn Subscriber>,
        id: u64,
    ) -> Result<SubscriptionKey, InvalidSubject> {
        self.subscribe_as(SubscriberKind::Local, filter, queue, subscriber, id)
    }

    /// As [`Self::subscribe`], for somebody of this kind.
    ///
    /// # Errors
    /// The filter is illegal.
    pub fn subscribe_as(
        &self,
        kind: SubscriberKind,
        filter: &[u8],
        queue: Option<&[u8]>,
        subscriber: Arc<dyn Subscriber>,
        id: u64,
    ) -> Result<SubscriptionKey, InvalidSubject> {
        crate::subject::check_filter(filter)?;
        let weight = match kind {
            SubscriberKind::Local => 0,
            SubscriberKind::Peer { weight } => weight.max(1),
        };
        let key = self.index.insert(filter, queue, subscriber, id, weight);
        self.watched.changed(&self.index, filter);
        self.mesh.changed(&self.index, filter, queue.unwrap_or_default());
        self.observed.changed(filter);
        Ok(key)
    }

    /// Takes a subscription out. A message being routed meanwhile may still be offered.
    pub fn unsubscribe(&self, key: &SubscriptionKey) {
        self.index.remove(key);
        self.watched.changed(&self.index, key.filter());
        self.mesh.changed(&self.index, key.filter(), key.queue().unwrap_or_default());
        self.observed.changed(key.filter());
    }

    /// Whether anybody, alone or in a queue group, is subscribed to this subject.
    #[must_use]
    pub fn has_interest(&self, subject: &[u8]) -> bool {
        self.index.has_interest(subject, None)
    }

    /// Subscriptions there are now, peers' not counted.
    #[must_use]
    pub fn subscriptions(&self) -> usize {
        self.index.len()
    }

    /// Publishes that `filter` matches belong to `stream`. The caller sees to it that the filters of two
    /// streams never overlap.
    ///
    /// # Errors
    /// The filter is illegal.
    pub fn capture(&self, filter: &[u8], stream: beamlog_log::StreamId) -> Result<(), InvalidSubject> {
        crate::subject::check_filter(filter)?;
        self.index.capture(filter, Some(stream));
        self.mesh.changed(&self.index, filter, b"");
        Ok(())
    }

    /// Ends a capture. A filter that another stream took meanwhile stays with it.
    pub fn release(&self, filter: &[u8], stream: beamlog_log::StreamId) {
        if self.index.captured_by(filter) == Some(stream) {
            self.index.capture(filter, None);
            self.mesh.changed(&self.index, filter, b"");
        }
    }

    /// Asks that the watcher be told when interest in `subject` begins or ends: of anybody when
    /// `group` is empty, else of members of that queue group. Returns whether there is interest now.
    /// Watching the same pair again counts; each `watch` wants its `unwatch`.
    pub fn watch(&self, watcher: Watcher, subject: &[u8], group: &[u8]) -> bool {
        self.watched.watch(&self.index, watcher, subject, group)
    }

    pub fn unwatch(&self, watcher: Watcher, subject: &[u8], group: &[u8]) {
        self.watched.unwatch(watcher, subject, group);
    }

    /// Adds a watcher, and says who is told of what it watches: subject, group, whether there is interest now. Calls come in
    /// the order of the changes, on the thread that subscribes or unsubscribes; the callee must not block
    /// and must not call back into interest.
    pub fn on_change(&self, tell: OnChange) -> Watcher {
        self.watched.on_change(tell)
    }
}
