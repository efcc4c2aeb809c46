//! A transport in memory, with faults: what is sent can be lost, delayed, cut in one direction or both.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use beamlog_net::{
    peer::{
        BoxFuture, CallError, Introduction, Lane, PeerHandler, PeerId, PeerTransport, Role, SendError,
        Session,
    },
    runtime,
};
use bytes::Bytes;

/// All wires of a test.
#[derive(Clone, Default)]
pub(super) struct Wires {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    nodes: BTreeMap<PeerId, Node>,
    /// Nothing arrives from the first at the second.
    cut: BTreeSet<(PeerId, PeerId)>,
    /// The first takes the second's process for ended.
    mistaken: BTreeSet<(PeerId, PeerId)>,
    /// How often the first asked the second whether it would vote for it.
    pre_votes: BTreeMap<(PeerId, PeerId), u64>,
    /// Of a thousand messages so many are lost.
    lost: u64,
    /// Every message takes up to this long.
    delay: Duration,
}

#[derive(Clone)]
struct Node {
    handler: Arc<dyn PeerHandler>,
    claims: Arc<dyn Fn() -> Bytes + Send + Sync>,
    number: u64,
}

static NUMBERS: AtomicU64 = AtomicU64::new(1);

impl Wires {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// A node is there from now on.
    pub(super) fn plug(
        &self,
        id: PeerId,
        handler: Arc<dyn PeerHandler>,
        claims: Arc<dyn Fn() -> Bytes + Send + Sync>,
    ) {
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        self.lock().nodes.insert(id, Node { handler, claims, number });
    }

    /// A node is not there any more.
    pub(super) fn unplug(&self, id: PeerId) {
        self.lock().nodes.remove(&id);
    }

    /// Nothing arrives from `from` at `to`.
    pub(super) fn cut(&self, from: PeerId, to: PeerId) {
        self.lock().cut.insert((from, to));
    }

    /// `at` takes the process of `of` for ended.
    pub(super) fn mistake(&self, at: PeerId, of: PeerId) {
        self.lock().mistaken.insert((at, of));
    }

    /// How often `from` asked `to` whether it would vote for it.
    pub(super) fn pre_votes(&self, from: PeerId, to: PeerId) -> u64 {
        self.lock().pre_votes.get(&(from, to)).copied().unwrap_or_default()
    }

    /// A node hears and says nothing.
    pub(super) fn isolate(&self, id: PeerId) {
        let mut inner = self.lock();
        let others: Vec<PeerId> = inner.nodes.keys().copied().collect();
        for other in others {
            inner.cut.insert((id, other));
            inner.cut.insert((other, id));
        }
    }

    /// Everything arrives, at once.
    pub(super) fn heal(&self) {
        let mut inner = self.lock();
        inner.cut.clear();
        inner.lost = 0;
        inner.delay = Duration::ZERO;
    }

    /// Of a thousand messages so many are lost, and the others take up to `delay`.
    pub(super) fn worsen(&self, lost: u64, delay: Duration) {
        let mut inner = self.lock();
        inner.lost = lost;
        inner.delay = delay;
    }

    /// The transport of a node.
    pub(super) fn of(&self, id: PeerId) -> Arc<dyn PeerTransport> {
        Arc::new(Wire { wires: self.clone(), from: id })
    }

    /// Who listens, if a message of `from` gets there now, and how long it takes; `Err(true)` if it is lost.
    fn route(&self, from: PeerId, to: PeerId) -> Result<(Node, Duration), bool> {
        let inner = self.lock();
        if !inner.nodes.contains_key(&from) {
            return Err(false);
        }
        let node = inner.nodes.get(&to).cloned().ok_or(false)?;
        if inner.cut.contains(&(from, to)) || runtime::random() % 1000 < inner.lost {
            return Err(true);
        }
        let micros = u64::try_from(inner.delay.as_micros()).unwrap();
        let takes = if micros == 0 { 0 } else { runtime::random() % micros };
        Ok((node, Duration::from_micros(takes)))
    }

    /// Whether `to` lets `from` in.
    fn admits(&self, from: PeerId, to: &Node) -> Result<(), CallError> {
        let claims = self.lock().nodes.get(&from).map(|node| (Arc::clone(&node.claims), node.number));
        let Some((claims, number)) = claims else { return Err(CallError::NotConnected(from)) };
        let introduction = Introduction {
            cluster: "test".into(),
            name: format!("n{}", from.0),
            role: Role::Node,
            id: from,
            incarnation: number,
            advertise: String::new(),
            claims: claims(),
        };
        to.handler.admit(&introduction).map_err(CallError::Refused)
    }
}

struct Wire {
    wires: Wires,
    from: PeerId,
}

impl PeerTransport for Wire {
    fn call(
        &self,
        to: PeerId,
        lane: Lane,
        request: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Bytes, CallError>> {
        let (wires, from) = (self.wires.clone(), self.from);
        Box::pin(async move {
            if let [_version, 2, ..] = request[..] {
                *wires.lock().pre_votes.entry((from, to)).or_default() += 1;
            }
            let call = async {
                let (node, takes) = match wires.route(from, to) {
                    Ok(route) => route,
                    Err(false) => return Err(CallError::NotConnected(to)),
                    Err(true) => std::future::pending().await,
                };
                wires.admits(from, &node)?;
                runtime::sleep(takes).await;
                let answer = node.handler.call(from, lane, request).await;
                match wires.route(to, from) {
                    Ok((_, takes)) => runtime::sleep(takes).await,
                    Err(false) => return Err(CallError::Lost(to)),
                    Err(true) => std::future::pending().await,
                }
                answer.map_err(CallError::Refused)
            };
            runtime::timeout(timeout, call).await.unwrap_or(Err(CallError::TimedOut))
        })
    }

    fn send(&self, _to: Session, _lane: Lane, _frame: Bytes) -> Result<(), SendError> {
        Err(SendError::Ended)
    }

    fn reset(&self, _session: Session, _reason: &str) {}

    fn session(&self, peer: PeerId) -> Option<Session> {
        self.wires.lock().nodes.get(&peer).map(|node| Session { peer, number: node.number })
    }

    fn has_ended(&self, peer: PeerId) -> BoxFuture<'static, bool> {
        let inner = self.wires.lock();
        let ended = !inner.nodes.contains_key(&peer) || inner.mistaken.contains(&(self.from, peer));
        Box::pin(std::future::ready(ended))
    }
}
