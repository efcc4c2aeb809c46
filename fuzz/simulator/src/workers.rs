//! Consumers of a work queue: they pull, ack some of what comes, and remember which acks were confirmed. A message whose
//! ack was confirmed is never delivered again by whoever leads in that term or a later one; a deposed leader may, once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use beamlog_log::{SeededRandom, Sequence, Term};
use beamlog_net::runtime::{Moment, now, sleep, timeout};
use beamlog_router::Router;
use beamlog_router::api::request::{AckKind, AckTarget, PullRequest};
use beamlog_router::interest::{Envelope, Offered, Subscriber};
use bytes::Bytes;
use tokio::sync::Notify;

use crate::clients::{Nodes, Seen, id_of};
use crate::note;
use crate::oracle::Violation;
use crate::trace::Trace;

/// For the answer to a pull, and to an ack.
const PATIENCE: Duration = Duration::from_millis(800);
const BATCH: u32 = 5;

/// What one got, when, and from which node.
#[derive(Clone, Debug)]
struct Came {
    reply: Bytes,
    headers: Bytes,
    payload: Bytes,
    at: Moment,
    /// In which term the node that it came from said it led.
    term: Option<Term>,
}

/// Where deliveries arrive. The simulator has one thread: what comes is stamped as it is sent.
struct Inbox {
    place: usize,
    nodes: Arc<dyn Nodes>,
    came: Mutex<VecDeque<Came>>,
    filled: Notify,
}

impl Subscriber for Inbox {
    fn offer(&self, _subscription: u64, message: &Envelope<'_>) -> Offered {
        let came = Came {
            reply: Bytes::copy_from_slice(message.reply),
            headers: Bytes::copy_from_slice(message.headers),
            payload: Bytes::copy_from_slice(message.payload),
            at: now(),
            term: self.nodes.leads(self.place),
        };
        self.came.lock().unwrap_or_else(PoisonError::into_inner).push_back(came);
        self.filled.notify_one();
        Offered::Taken
    }

    fn flush(&self) {}
}

impl Inbox {
    async fn next(&self) -> Came {
        loop {
            let came = self.came.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            match came {
                Some(came) => return came,
                None => self.filled.notified().await,
            }
        }
    }
}

/// What all workers of a run know.
#[derive(Debug, Default)]
struct Ledger {
    /// By sequence: when and in which term the ack was confirmed.
    confirmed: BTreeMap<u64, (Moment, Option<Term>)>,
    /// An ack was sent and nobody knows what became of it.
    perhaps: BTreeSet<u64>,
    /// By sequence: the message.
    delivered: BTreeMap<u64, u64>,
    deliveries: u64,
}

/// What workers share.
pub struct Workers {
    pub stream: &'static str,
    pub consumer: &'static str,
    nodes: Arc<dyn Nodes>,
    trace: Arc<Trace>,
    violations: Arc<Seen>,
    ledger: Mutex<Ledger>,
    inboxes: AtomicU64,
    busy: AtomicUsize,
}

impl Workers {
    #[must_use]
    pub fn new(
        stream: &'static str,
        consumer: &'static str,
        nodes: Arc<dyn Nodes>,
        trace: Arc<Trace>,
        violations: Arc<Seen>,
    ) -> Self {
        let (inboxes, busy) = (AtomicU64::new(1), AtomicUsize::new(0));
        Self { stream, consumer, nodes, trace, violations, ledger: Mutex::default(), inboxes, busy }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many messages were delivered, those that came again counted again.
    #[must_use]
    pub fn deliveries(&self) -> u64 {
        self.ledger().deliveries
    }

    /// The messages that were delivered, by sequence.
    #[must_use]
    pub fn delivered(&self) -> BTreeMap<u64, u64> {
        self.ledger().delivered.clone()
    }

    /// Whose ack was confirmed, and whose may have been taken.
    #[must_use]
    pub fn acked(&self) -> (BTreeSet<u64>, BTreeSet<u64>) {
        let ledger = self.ledger();
        (ledger.confirmed.keys().copied().collect(), ledger.perhaps.clone())
    }

    /// Whether all have stopped.
    #[must_use]
    pub fn are_idle(&self) -> bool {
        self.busy.load(Ordering::Relaxed) == 0
    }

    /// Works until told to stop.
    pub async fn work(self: Arc<Self>, mut random: SeededRandom, go_on: Arc<AtomicBool>) {
        self.busy.fetch_add(1, Ordering::Relaxed);
        while go_on.load(Ordering::Relaxed) {
            let place = random.index(self.nodes.count());
            let leads = self.nodes.leads(place).is_some();
            match self.nodes.router(place).filter(|_| leads || random.one_in(8)) {
                Some(router) => {
                    self.pull(place, &router, &mut random, false).await;
                }
                None => sleep(Duration::from_millis(20)).await,
            }
        }
        self.busy.fetch_sub(1, Ordering::Relaxed);
    }

    /// Acks everything that still comes. Whether something came.
    pub async fn drain(&self, place: usize, router: &Router, random: &mut SeededRandom) -> bool {
        self.pull(place, router, random, true).await
    }

    async fn pull(&self, place: usize, router: &Router, random: &mut SeededRandom, all: bool) -> bool {
        let (subject, inbox, key) = self.subscribe(place, router);
        let expires = u64::try_from((PATIENCE / 2).as_nanos()).unwrap_or(0);
        let request = PullRequest { batch: BATCH, expires_nanos: Some(expires), ..PullRequest::default() };
        let mut got = false;
        if router.pull(self.stream.to_owned(), self.consumer.to_owned(), request, subject).is_ok() {
            for _ in 0..BATCH {
                let Ok(came) = timeout(PATIENCE, inbox.next()).await else { break };
                // Without a subject to ack to it is a status: the request has ended.
                if came.reply.is_empty() {
                    break;
                }
                got = true;
                self.handle(place, router, &came, random, all).await;
            }
        }
        router.interest().unsubscribe(&key);
        got
    }

    fn subscribe(
        &self,
        place: usize,
        router: &Router,
    ) -> (Bytes, Arc<Inbox>, beamlog_router::interest::SubscriptionKey) {
        let subject = Bytes::from(format!("_INBOX.{}", self.inboxes.fetch_add(1, Ordering::Relaxed)));
        let nodes = Arc::clone(&self.nodes);
        let inbox = Arc::new(Inbox { place, nodes, came: Mutex::default(), filled: Notify::new() });
        let subscriber = Arc::clone(&inbox) as Arc<dyn Subscriber>;
        let key = router.interest().subscribe(&subject, None, subscriber, 0).expect("an inbox is a subject");
        (subject, inbox, key)
    }

    async fn handle(&self, place: usize, router: &Router, came: &Came, random: &mut SeededRandom, all: bool) {
        let Some(target) = target(&came.reply) else {
            let text = format!("a delivery with the ack subject {:?}", came.reply);
            self.violations.note(Violation::Other(text));
            return;
        };
        let sequence = target.stream_sequence.0;
        self.look(sequence, came);
        let kind = match random.below(10) {
            _ if all => AckKind::Ack,
            0 => AckKind::Nak { delay_nanos: None },
            // It is forgotten, and comes again.
            1 => return,
            _ => AckKind::Ack,
        };
        let acks = kind == AckKind::Ack;
        let (reply, inbox, key) = self.subscribe(place, router);
        if acks {
            self.ledger().perhaps.insert(sequence);
        }
        if router.ack(target, kind, Some(reply)).is_ok()
            && acks
            && let Ok(word) = timeout(PATIENCE, inbox.next()).await
            && word.headers.is_empty()
            && word.payload.is_empty()
        {
            note!(self.trace, "the ack of {sequence} is confirmed by n{place}");
            self.ledger().confirmed.entry(sequence).or_insert((word.at, word.term));
        }
        router.interest().unsubscribe(&key);
    }

    /// Compares what came with what is known.
    fn look(&self, sequence: u64, came: &Came) {
        let mut ledger = self.ledger();
        ledger.deliveries += 1;
        if let Some((at, term)) = ledger.confirmed.get(&sequence)
            && let (Some(confirmed), Some(sent)) = (term, came.term)
            && (sent > *confirmed || (sent == *confirmed && came.at > *at))
        {
            let text = format!(
                "message {sequence} is delivered at {:?} in term {sent}; its ack was confirmed at {:?} in term {confirmed}",
                came.at.0, at.0
            );
            self.violations.note(Violation::Other(text));
        }
        let Some(id) = id_of(&came.payload) else {
            let payload = String::from_utf8_lossy(&came.payload).into_owned();
            self.violations.note(Violation::Invented { sequence, payload });
            return;
        };
        note!(self.trace, "work {sequence} is {id}");
        if let Some(before) = ledger.delivered.insert(sequence, id).filter(|before| *before != id) {
            let text = format!("sequence {sequence} was delivered as {before} and as {id}");
            self.violations.note(Violation::Other(text));
        }
    }
}

/// `ack.<stream>.<consumer>.<deliveries>.<stream sequence>.<consumer sequence>.<time>.<pending>`
fn target(subject: &[u8]) -> Option<AckTarget> {
    let text = std::str::from_utf8(subject).ok()?;
    let tokens: Vec<&str> = text.split('.').collect();
    let [_, stream, consumer, deliveries, sequence, consumer_sequence, _, _] = tokens[..] else {
        return None;
    };
    Some(AckTarget {
        stream: stream.to_owned(),
        consumer: consumer.to_owned(),
        delivery_count: deliveries.parse().ok()?,
        stream_sequence: Sequence(sequence.parse().ok()?),
        consumer_sequence: consumer_sequence.parse().ok()?,
    })
}
