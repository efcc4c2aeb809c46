//! The network between simulated nodes: a [`PeerTransport`] that keeps the promises of the real one and no
//! more. Sessions come and go, calls are slow or lost with their session, cuts are one-way or both ways.
//!
//! What QUIC repairs below us (loss, duplication, reordering of packets) shows here as delay; what it cannot
//! repair ends the session, after `IDLE` without a way through.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use beamlog_log::SeededRandom;
use beamlog_net::peer::{
    BoxFuture, CallError, Introduction, Lane, PeerHandler, PeerId, PeerTransport, SendError, Session,
};
use beamlog_net::runtime::{Moment, now, sleep, spawn, timeout};
use bytes::Bytes;
use tokio::sync::{Notify, mpsc};

use crate::note;
use crate::random::{Salt, choices};
use crate::swarm::Faults;
use crate::trace::Trace;

/// A session that cannot get through for so long has ended.
const IDLE: Duration = Duration::from_millis(1_500);
/// How soon a connection is tried again.
const DIAL: Duration = Duration::from_millis(50);
/// How often something that is held back looks whether the way is free.
const LOOK: Duration = Duration::from_millis(5);
/// The shortest way of a message, in microseconds, and how much longer it usually is at most.
const WAY_MICROS: (u64, u64) = (50, 300);
/// Frames that may wait in one lane of a session.
const FRAMES_MAX: usize = 4096;

/// The network. Clones are the same one.
#[derive(Clone)]
pub struct Network {
    inner: Arc<Mutex<Inner>>,
    trace: Arc<Trace>,
}

struct Inner {
    random: SeededRandom,
    faults: Faults,
    nodes: BTreeMap<PeerId, Node>,
    /// Ways that are cut: from, to.
    cuts: BTreeSet<(PeerId, PeerId)>,
    paused: BTreeSet<PeerId>,
    sessions: BTreeMap<(PeerId, PeerId), Connection>,
    next_session: u64,
}

#[derive(Clone)]
struct Node {
    introduction: Introduction,
    handler: Arc<dyn PeerHandler>,
    claims: Claims,
    process: u64,
}

/// What a node says of itself at that moment.
type Claims = Arc<dyn Fn() -> Bytes + Send + Sync>;

impl Node {
    fn introduction(&self) -> Introduction {
        Introduction { claims: (self.claims)(), ..self.introduction.clone() }
    }
}

/// Both directions of a session; the key of the table is the pair in order.
struct Connection {
    number: u64,
    ending: Arc<Ending>,
    /// Frames by sender and lane.
    lanes: BTreeMap<(PeerId, Lane), mpsc::Sender<Bytes>>,
    stalled_since: Option<Moment>,
}

/// Whether a session is over. One list of waiters, woken in order: a `watch` channel would draw the order.
#[derive(Default)]
struct Ending {
    over: AtomicBool,
    waiters: Notify,
}

impl Ending {
    fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
        self.waiters.notify_waiters();
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    async fn wait(&self) {
        let mut woken = std::pin::pin!(self.waiters.notified());
        woken.as_mut().enable();
        if !self.is_over() {
            woken.await;
        }
    }
}

fn pair(a: PeerId, b: PeerId) -> (PeerId, PeerId) {
    if a < b { (a, b) } else { (b, a) }
}

impl Network {
    /// A network in which everything gets through until told otherwise.
    #[must_use]
    pub fn new(seed: u64, faults: Faults, trace: Arc<Trace>) -> Self {
        let inner = Inner {
            random: choices(seed, Salt::Network, 0),
            faults,
            nodes: BTreeMap::new(),
            cuts: BTreeSet::new(),
            paused: BTreeSet::new(),
            sessions: BTreeMap::new(),
            next_session: 1,
        };
        let network = Self { inner: Arc::new(Mutex::new(inner)), trace };
        drop(spawn(network.clone().dial()));
        network
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A process appears under its introduction. `process` tells it from the ones before it.
    pub fn attach(
        &self,
        introduction: Introduction,
        handler: Arc<dyn PeerHandler>,
        claims: Claims,
        process: u64,
    ) -> Endpoint {
        let id = introduction.id;
        self.lock().nodes.insert(id, Node { introduction, handler, claims, process });
        Endpoint { network: self.clone(), own: id, process }
    }

    /// A process is gone: its sessions end, and nobody hears from it again.
    pub fn detach(&self, id: PeerId) {
        self.lock().nodes.remove(&id);
        self.end_sessions(|(a, b)| a == id || b == id, "the process is gone");
    }

    /// Cuts the way from one node to another.
    pub fn cut(&self, from: PeerId, to: PeerId) {
        self.lock().cuts.insert((from, to));
    }

    /// Nothing gets in or out of a node that stands still.
    pub fn pause(&self, id: PeerId, paused: bool) {
        let mut inner = self.lock();
        if paused {
            inner.paused.insert(id)
        } else {
            inner.paused.remove(&id)
        };
    }

    /// No way is cut any more; who stands still does.
    pub fn heal_ways(&self) {
        self.lock().cuts.clear();
    }

    /// Everything gets through again.
    pub fn heal(&self) {
        let mut inner = self.lock();
        inner.cuts.clear();
        inner.paused.clear();
    }

    /// No more loss and delay.
    pub fn calm(&self) {
        let mut inner = self.lock();
        inner.faults.loss_one_in = 0;
        inner.faults.delay_max = Duration::from_millis(1);
    }

    fn delay(&self) -> Duration {
        let inner = &mut *self.lock();
        let mut way = WAY_MICROS.0 + inner.random.below(WAY_MICROS.1);
        let longest = u64::try_from(inner.faults.delay_max.as_micros()).unwrap_or(u64::MAX);
        if inner.random.one_in(8) {
            way += inner.random.below(longest + 1);
        }
        // A lost packet comes again after a probe time-out.
        if inner.faults.loss_one_in > 0 && inner.random.one_in(inner.faults.loss_one_in) {
            way += 20_000 + inner.random.below(100_000);
        }
        Duration::from_micros(way)
    }

    fn is_open(&self, from: PeerId, to: PeerId) -> bool {
        let inner = self.lock();
        !inner.cuts.contains(&(from, to)) && !inner.paused.contains(&from) && !inner.paused.contains(&to)
    }

    fn handler(&self, id: PeerId) -> Option<Arc<dyn PeerHandler>> {
        self.lock().nodes.get(&id).map(|node| Arc::clone(&node.handler))
    }

    /// Waits until something that left `from` arrives at `to`.
    async fn travel(&self, from: PeerId, to: PeerId) {
        sleep(self.delay()).await;
        while !self.is_open(from, to) {
            sleep(LOOK).await;
        }
    }

    fn session(&self, a: PeerId, b: PeerId) -> Option<(u64, Arc<Ending>)> {
        let inner = self.lock();
        inner.sessions.get(&pair(a, b)).map(|session| (session.number, Arc::clone(&session.ending)))
    }

    fn end_sessions(&self, which: impl Fn((PeerId, PeerId)) -> bool, why: &str) {
        let ended: Vec<((PeerId, PeerId), u64)> = {
            let mut inner = self.lock();
            let keys: Vec<(PeerId, PeerId)> =
                inner.sessions.keys().copied().filter(|key| which(*key)).collect();
            keys.into_iter()
                .filter_map(|key| {
                    let session = inner.sessions.remove(&key)?;
                    session.ending.end();
                    Some((key, session.number))
                })
                .collect()
        };
        for ((a, b), number) in ended {
            note!(self.trace, "session {number} of {a} and {b} ends: {why}");
            for (own, peer) in [(a, b), (b, a)] {
                if let Some(handler) = self.handler(own) {
                    handler.disconnected(Session { peer, number });
                }
            }
        }
    }

    /// Makes sessions where there can be one, and ends those that do not get through.
    async fn dial(self) {
        loop {
            sleep(DIAL).await;
            let at = now();
            let pairs: Vec<(PeerId, PeerId)> = {
                let inner = self.lock();
                let ids: Vec<PeerId> = inner.nodes.keys().copied().collect();
                ids.iter()
                    .enumerate()
                    .flat_map(|(at, a)| ids[at + 1..].iter().map(move |b| (*a, *b)))
                    .collect()
            };
            for (a, b) in pairs {
                let open = self.is_open(a, b) && self.is_open(b, a);
                let has_session = self.lock().sessions.contains_key(&(a, b));
                if has_session {
                    self.watch_stall(a, b, open, at);
                } else if open {
                    self.connect(a, b);
                }
            }
        }
    }

    fn watch_stall(&self, a: PeerId, b: PeerId, open: bool, at: Moment) {
        let stalled = {
            let mut inner = self.lock();
            let Some(session) = inner.sessions.get_mut(&(a, b)) else { return };
            if open {
                session.stalled_since = None;
            }
            let since = if open { at } else { *session.stalled_since.get_or_insert(at) };
            at - since >= IDLE
        };
        if stalled {
            self.end_sessions(|key| key == (a, b), "nothing gets through");
        }
    }

    fn connect(&self, a: PeerId, b: PeerId) {
        let (Some(one), Some(other)) = ({
            let inner = self.lock();
            (inner.nodes.get(&a).cloned(), inner.nodes.get(&b).cloned())
        }) else {
            return;
        };
        let (of_one, of_other) = (one.introduction(), other.introduction());
        let admitted = one.handler.admit(&of_other).and_then(|()| other.handler.admit(&of_one));
        if let Err(refusal) = admitted {
            note!(self.trace, "no session of {a} and {b}: {refusal}");
            return;
        }
        let number = {
            let mut inner = self.lock();
            let number = inner.next_session;
            inner.next_session += 1;
            let mut lanes = BTreeMap::new();
            let ending = Arc::new(Ending::default());
            for (from, to) in [(a, b), (b, a)] {
                for lane in Lane::ALL {
                    let (sender, receiver) = mpsc::channel(FRAMES_MAX);
                    lanes.insert((from, lane), sender);
                    let pump = self.clone().pump(from, to, number, lane, receiver, Arc::clone(&ending));
                    drop(spawn(pump));
                }
            }
            inner.sessions.insert((a, b), Connection { number, ending, lanes, stalled_since: None });
            number
        };
        note!(self.trace, "session {number} of {a} and {b}");
        one.handler.connected(Session { peer: b, number }, &of_other);
        other.handler.connected(Session { peer: a, number }, &of_one);
    }

    /// Carries the frames of one lane in one direction, in their order.
    async fn pump(
        self,
        from: PeerId,
        to: PeerId,
        number: u64,
        lane: Lane,
        mut frames: mpsc::Receiver<Bytes>,
        ending: Arc<Ending>,
    ) {
        while let Some(frame) = frames.recv().await {
            self.travel(from, to).await;
            if ending.is_over() {
                return;
            }
            if let Some(handler) = self.handler(to) {
                handler.received(Session { peer: from, number }, lane, frame);
            }
        }
    }
}

/// What a node holds of the network.
#[derive(Clone)]
pub struct Endpoint {
    network: Network,
    own: PeerId,
    process: u64,
}

impl Endpoint {
    /// A process that died still runs its last tasks; the network does not know it any more.
    fn is_alive(&self) -> bool {
        self.network.lock().nodes.get(&self.own).is_some_and(|node| node.process == self.process)
    }
}

impl PeerTransport for Endpoint {
    fn call(
        &self,
        peer: PeerId,
        lane: Lane,
        request: Bytes,
        patience: Duration,
    ) -> BoxFuture<'static, Result<Bytes, CallError>> {
        if request.len() > lane.bytes_max() {
            let bytes = request.len();
            return Box::pin(async move { Err(CallError::TooLarge { bytes }) });
        }
        let (network, own) = (self.network.clone(), self.own);
        let session = if self.is_alive() { network.session(own, peer) } else { None };
        Box::pin(async move {
            let Some((_, ending)) = session else { return Err(CallError::NotConnected(peer)) };
            let there_and_back = async {
                network.travel(own, peer).await;
                let handler = network.handler(peer).ok_or(CallError::Lost(peer))?;
                let answer = handler.call(own, lane, request).await;
                network.travel(peer, own).await;
                answer.map_err(CallError::from)
            };
            let either = async {
                tokio::select! {
                    biased;
                    answer = there_and_back => answer,
                    () = ending.wait() => Err(CallError::Lost(peer)),
                }
            };
            timeout(patience, either).await.unwrap_or(Err(CallError::TimedOut))
        })
    }

    fn send(&self, to: Session, lane: Lane, frame: Bytes) -> Result<(), SendError> {
        if frame.len() > lane.bytes_max() {
            return Err(SendError::TooLarge { bytes: frame.len() });
        }
        if !self.is_alive() {
            return Err(SendError::Ended);
        }
        let inner = self.network.lock();
        let session =
            inner.sessions.get(&pair(self.own, to.peer)).filter(|session| session.number == to.number);
        let Some(session) = session else { return Err(SendError::Ended) };
        match session.lanes[&(self.own, lane)].try_send(frame) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Full(frame)) => Err(SendError::Full(frame)),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(SendError::Ended),
        }
    }

    fn reset(&self, session: Session, reason: &str) {
        if self.network.session(self.own, session.peer).is_some_and(|(number, _)| number == session.number) {
            let key = pair(self.own, session.peer);
            self.network.end_sessions(|other| other == key, reason);
        }
    }

    /// Its address answers that nobody listens, if that comes through.
    fn has_ended(&self, peer: PeerId) -> BoxFuture<'static, bool> {
        let (network, own) = (self.network.clone(), self.own);
        Box::pin(async move {
            let asked = async {
                network.travel(own, peer).await;
                let nobody = network.handler(peer).is_none();
                network.travel(peer, own).await;
                nobody
            };
            timeout(IDLE / 5, asked).await.unwrap_or(false)
        })
    }

    fn session(&self, peer: PeerId) -> Option<Session> {
        let (number, _) = self.is_alive().then(|| self.network.session(self.own, peer))??;
        Some(Session { peer, number })
    }
}
