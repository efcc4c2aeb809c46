//! One session with a peer.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use beamlog_router::interest::{
    Envelope, Interest, Offered, RouteCache, Subscriber, SubscriberKind, SubscriptionKey,
};
use bytes::{Bytes, BytesMut};

use super::frame::Operation;
use crate::peer::{Lane, PeerTransport, SendError, Session};

/// Collected before it is handed to the transport, whether somebody flushes or not.
const BATCH_BYTES: usize = 64 << 10;
/// With this much waiting in the transport, whoever publishes should slow down.
const CONGESTED_BYTES: usize = 4 << 20;
/// What one peer may want.
const WANTED_MAX: usize = 1 << 20;
/// The subscription that stands for all plain ones of a peer; queue groups have the numbers behind it.
const PLAIN: u64 = 0;

/// What goes to a peer, and what it wants.
pub(super) struct Link {
    pub(super) session: Session,
    pub(super) name: String,
    transport: Arc<dyn PeerTransport>,
    outgoing: Mutex<Outgoing>,
    incoming: Mutex<Incoming>,
    counts: Counts,
    this: Weak<Self>,
}

#[derive(Debug, Default)]
struct Outgoing {
    batch: BytesMut,
    messages: u64,
    /// Somebody who put a message in has yet to flush.
    promised: bool,
    ended: bool,
    /// Queue groups of the peer, by the number under which they are subscribed here.
    groups: Vec<Bytes>,
}

/// What came from the peer.
#[derive(Default)]
pub(super) struct Incoming {
    pub(super) cache: RouteCache,
    wanted: HashMap<(Bytes, Bytes), SubscriptionKey>,
    group_numbers: HashMap<Bytes, u64>,
    pub(super) begun: bool,
}

#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU64,
    dropped: AtomicU64,
    received: AtomicU64,
}

/// What metrics tell of the mesh with one peer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LinkSnapshot {
    pub session: Session,
    pub name: String,
    pub messages_sent: u64,
    /// Not taken by the full queue to the peer, or too large for it.
    pub messages_dropped: u64,
    pub messages_received: u64,
    /// Filters and queue groups that the peer wants.
    pub wanted: usize,
}

/// Why the session must end.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum Unfit {
    #[error("a peer wants too much")]
    TooMany,
    #[error("a peer wants what is no filter")]
    Filter,
}

impl Link {
    pub(super) fn new(session: Session, name: &str, transport: Arc<dyn PeerTransport>) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            session,
            name: name.to_owned(),
            transport,
            outgoing: Mutex::default(),
            incoming: Mutex::default(),
            counts: Counts::default(),
            this: Weak::clone(this),
        })
    }

    /// Says something about interest, behind all messages that were taken. A peer that cannot take it is
    /// disconnected.
    pub(super) fn tell(&self, operations: &mut dyn Iterator<Item = Operation<'_>>) {
        let mut outgoing = self.outgoing();
        self.send(&mut outgoing);
        let mut said = BytesMut::new();
        for operation in operations {
            // Filters are shorter than a control line, which is shorter than what can be said.
            if !operation.encode(&mut said) {
                continue;
            }
            if said.len() >= BATCH_BYTES {
                self.tell_now(&mut outgoing, &mut said);
            }
        }
        self.tell_now(&mut outgoing, &mut said);
    }

    fn tell_now(&self, outgoing: &mut Outgoing, said: &mut BytesMut) {
        if said.is_empty() || outgoing.ended {
            return;
        }
        if self.transport.send(self.session, Lane::Mesh, said.split().freeze()).is_err() {
            // It would not know what we want. With a new session it is told everything.
            outgoing.ended = true;
            self.transport.reset(self.session, "the peer does not take changes of interest");
        }
    }

    /// Hands over what was collected. Under the lock, so that batches keep their order.
    fn send(&self, outgoing: &mut Outgoing) {
        outgoing.promised = false;
        if outgoing.batch.is_empty() {
            return;
        }
        let messages = std::mem::take(&mut outgoing.messages);
        let batch = outgoing.batch.split().freeze();
        let counter = match self.transport.send(self.session, Lane::Mesh, batch) {
            Ok(()) => &self.counts.sent,
            Err(
                SendError::Full(_) | SendError::Ended | SendError::TooLarge { .. } | SendError::NotOneWay(_),
            ) => &self.counts.dropped,
        };
        counter.fetch_add(messages, Ordering::Relaxed);
    }

    /// The peer wants something, or no longer.
    pub(super) fn wants(
        &self,
        interest: &Interest,
        incoming: &mut Incoming,
        filter: &[u8],
        group: &[u8],
        wanted: bool,
    ) -> Result<(), Unfit> {
        let key = (Bytes::copy_from_slice(filter), Bytes::copy_from_slice(group));
        if !wanted {
            if let Some(key) = incoming.wanted.remove(&key) {
                interest.unsubscribe(&key);
            }
            return Ok(());
        }
        if incoming.wanted.contains_key(&key) {
            return Ok(());
        }
        if incoming.wanted.len() >= WANTED_MAX {
            return Err(Unfit::TooMany);
        }
        let number = if group.is_empty() { PLAIN } else { self.number(incoming, &key.1) };
        let Some(this) = self.this.upgrade() else { return Ok(()) };
        let queue = (!group.is_empty()).then_some(group);
        let kind = SubscriberKind::Peer { weight: 1 };
        let subscribed = interest.subscribe_as(kind, filter, queue, this, number);
        incoming.wanted.insert(key, subscribed.map_err(|_error| Unfit::Filter)?);
        Ok(())
    }

    fn number(&self, incoming: &mut Incoming, group: &Bytes) -> u64 {
        if let Some(number) = incoming.group_numbers.get(group) {
            return *number;
        }
        let mut outgoing = self.outgoing();
        outgoing.groups.push(group.clone());
        let number = outgoing.groups.len() as u64;
        incoming.group_numbers.insert(group.clone(), number);
        number
    }

    pub(super) fn incoming(&self) -> MutexGuard<'_, Incoming> {
        self.incoming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn received(&self) {
        self.counts.received.fetch_add(1, Ordering::Relaxed);
    }

    /// Nothing is taken any more, and nothing is wanted.
    pub(super) fn end(&self, interest: &Interest) {
        {
            let mut outgoing = self.outgoing();
            outgoing.ended = true;
            outgoing.batch = BytesMut::new();
        }
        let wanted = std::mem::take(&mut self.incoming().wanted);
        for key in wanted.values() {
            interest.unsubscribe(key);
        }
    }

    pub(super) fn snapshot(&self) -> LinkSnapshot {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        LinkSnapshot {
            session: self.session,
            name: self.name.clone(),
            messages_sent: count(&self.counts.sent),
            messages_dropped: count(&self.counts.dropped),
            messages_received: count(&self.counts.received),
            wanted: self.incoming().wanted.len(),
        }
    }

    fn outgoing(&self) -> MutexGuard<'_, Outgoing> {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subscriber for Link {
    fn offer(&self, subscription: u64, message: &Envelope<'_>) -> Offered {
        self.offer_to_peer(subscription, message.subject, message)
    }

    fn offer_to_peer(&self, subscription: u64, routed_by: &[u8], message: &Envelope<'_>) -> Offered {
        let mut outgoing = self.outgoing();
        if outgoing.ended {
            return Offered::Refused;
        }
        let group = match subscription {
            PLAIN => Bytes::new(),
            number => match usize::try_from(number - 1).ok().and_then(|at| outgoing.groups.get(at)) {
                Some(group) => group.clone(),
                None => return Offered::Refused,
            },
        };
        let size = message.headers.len() + message.payload.len();
        let before = outgoing.batch.len();
        let operation = Operation::Message {
            group: &group,
            routed_by,
            subject: message.subject,
            reply: message.reply,
            headers: message.headers,
            payload: message.payload,
        };
        // Together with what is there it may be more than a frame: then that goes first.
        if before > 0 && before + size + BATCH_BYTES > Lane::Mesh.bytes_max() {
            let promised = outgoing.promised;
            self.send(&mut outgoing);
            outgoing.promised = promised;
        }
        if size + BATCH_BYTES > Lane::Mesh.bytes_max() || !operation.encode(&mut outgoing.batch) {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
            return Offered::Refused;
        }
        outgoing.messages += 1;
        let large = outgoing.batch.len() >= BATCH_BYTES;
        if large && self.transport.waiting(self.session, Lane::Mesh) >= CONGESTED_BYTES {
            self.send(&mut outgoing);
            return Offered::Congested;
        }
        let promised = outgoing.promised;
        if large {
            self.send(&mut outgoing);
        }
        outgoing.promised = true;
        if promised { Offered::Joined } else { Offered::Taken }
    }

    fn flush(&self) {
        self.send(&mut self.outgoing());
    }
}
