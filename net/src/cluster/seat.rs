//! The place that a cluster takes between a driver and a transport, both of which want to be told where to
//! turn before the cluster can exist.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use beamlog_log::{Damage, ShardId, Timestamp};
use beamlog_router::replica::{Proposal, Replicator, Role};
use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use super::{Cluster, Inner, change, claims, roll, tail};
use crate::{
    peer::{BoxFuture, Introduction, Lane, PeerHandler, PeerId, Refusal, Session},
    raft::{
        Shard, code, decode,
        wire::{Answer, Request},
    },
    runtime,
};

/// What a driver says to replication.
#[derive(Debug)]
pub(super) enum Word {
    Propose(Proposal),
    Confirm(u64),
    Damaged(Damage),
}

/// A place for one cluster. See [`Cluster`].
pub struct Seat {
    driver: Arc<Driver>,
    peers: Arc<Peers>,
    inbox: Option<mpsc::UnboundedReceiver<Word>>,
    clients: Arc<str>,
    role: watch::Receiver<Role>,
}

impl std::fmt::Debug for Seat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seat").finish_non_exhaustive()
    }
}

impl Default for Seat {
    fn default() -> Self {
        Self::new()
    }
}

impl Seat {
    #[must_use]
    pub fn new() -> Self {
        // Not bounded here: a driver has one frame and a few questions under way, and waits for each.
        let (words, inbox) = mpsc::unbounded_channel();
        let (role_sender, role) = watch::channel(Role::default());
        Self {
            driver: Arc::new(Driver { words, role: role_sender }),
            peers: Arc::new(Peers {
                cluster: OnceLock::new(),
                shard: OnceLock::new(),
                processes: Mutex::default(),
            }),
            inbox: Some(inbox),
            clients: "".into(),
            role,
        }
    }

    /// Tells the peers where clients reach this node, `host:port`. What is longer than an address can be is not
    /// told.
    #[must_use]
    pub fn with_clients_at(mut self, address: &str) -> Self {
        if address.len() <= claims::ADDRESS_BYTES_MAX {
            self.clients = address.into();
        }
        self
    }

    /// Where clients reach a peer that said this of itself.
    #[must_use]
    pub fn clients_of(claims: &Bytes) -> Option<String> {
        claims::address(claims)
    }

    /// For the router that is opened for this cluster.
    #[must_use]
    pub fn replicator(&self) -> Arc<dyn Replicator> {
        Arc::clone(&self.driver) as Arc<dyn Replicator>
    }

    /// For the transport: it serves the lanes [`Seat::LANES`]. Until the cluster has started it refuses.
    #[must_use]
    pub fn handler(&self) -> Arc<dyn PeerHandler> {
        Arc::clone(&self.peers) as Arc<dyn PeerHandler>
    }

    /// What this node says of itself when it meets a peer; for the transport, asked anew each time. Nothing
    /// before the cluster has started.
    #[must_use]
    pub fn claims(&self) -> Arc<dyn Fn() -> Bytes + Send + Sync> {
        let (peers, clients) = (Arc::clone(&self.peers), Arc::clone(&self.clients));
        Arc::new(move || match peers.cluster() {
            Ok(cluster) => claims::encode(cluster.handler.shard(), cluster.books.durable(), &clients),
            Err(_not_yet) => Bytes::new(),
        })
    }

    /// The lanes that a cluster serves. On `Admin` it serves requests whose first byte is
    /// [`Seat::ADMIN_MARK`] only; a node that has questions of its own there asks [`Seat::is_ours`] first.
    pub const LANES: &'static [Lane] = &[Lane::Vote, Lane::Append, Lane::CatchUp, Lane::Admin];

    /// The first byte of a cluster's requests on the lane `Admin`.
    pub const ADMIN_MARK: u8 = 0xbe;

    /// Whether a request on the lane `Admin` is for [`Self::handler`].
    #[must_use]
    pub fn is_ours(request: &[u8]) -> bool {
        request.first() == Some(&Self::ADMIN_MARK)
    }

    pub(super) fn peers(&self) -> Arc<Peers> {
        Arc::clone(&self.peers)
    }

    pub(super) fn take_inbox(&mut self) -> Option<mpsc::UnboundedReceiver<Word>> {
        self.inbox.take()
    }

    pub(super) fn role(&self) -> watch::Receiver<Role> {
        self.role.clone()
    }

    /// What this node's log has can be asked from now on.
    pub(super) fn before(&self, shard: &Arc<dyn Shard>) {
        // A seat is taken once.
        self.peers.shard.set(Arc::downgrade(shard)).ok();
    }

    pub(super) fn sit(&self, cluster: &Cluster) {
        // It was just made sure that this seat is free.
        self.peers.cluster.set(Arc::downgrade(&cluster.inner)).ok();
    }
}

struct Driver {
    words: mpsc::UnboundedSender<Word>,
    role: watch::Sender<Role>,
}

impl Driver {
    /// After the end of the cluster nobody listens; the process is on its way out, or the driver is.
    fn say(&self, word: Word) {
        self.words.send(word).ok();
    }
}

impl Replicator for Driver {
    fn propose(&self, proposal: Proposal) {
        self.say(Word::Propose(proposal));
    }

    fn confirm_leadership(&self, id: u64) {
        self.say(Word::Confirm(id));
    }

    fn role_changed(&self, role: Role) {
        self.role.send_replace(role);
    }

    fn damaged(&self, damage: &Damage) {
        self.say(Word::Damaged(damage.clone()));
    }
}

pub(super) struct Peers {
    cluster: OnceLock<Weak<Inner>>,
    /// What peers may ask of before the cluster has started.
    shard: OnceLock<Weak<dyn Shard>>,
    /// As what process each peer was met last. As many as a transport lets in.
    processes: Mutex<BTreeMap<PeerId, u64>>,
}

impl Peers {
    fn cluster(&self) -> Result<Arc<Inner>, Refusal> {
        self.cluster.get().and_then(Weak::upgrade).ok_or_else(not_begun)
    }
}

/// Of a shard that this node has no part in, or not yet.
pub(super) fn not_yet(shard: ShardId) -> Refusal {
    Refusal { code: code::SHARD, reason: format!("this node has no part in shard {shard} now") }
}

fn not_begun() -> Refusal {
    Refusal { code: code::STOPPED, reason: "this node does not take part now".to_owned() }
}

impl PeerHandler for Peers {
    fn call(&self, from: PeerId, lane: Lane, request: Bytes) -> BoxFuture<'static, Result<Bytes, Refusal>> {
        let cluster = self.cluster();
        let shard = self.shard.get().and_then(Weak::upgrade);
        Box::pin(async move {
            if lane == Lane::Admin {
                return change::asked(&cluster?, from, request).await;
            }
            let Some(shard) = shard else { return Err(not_begun()) };
            let request = decode(shard.id(), request)?;
            if let Request::Have { index } = request {
                let have = tail::have(&*shard, index).await;
                let have =
                    have.map_err(|error| Refusal { code: code::STOPPED, reason: error.to_string() })?;
                return Ok(Answer::Have(have).encode());
            }
            if let Request::Time = request {
                return Ok(Answer::Time(Timestamp(runtime::wall())).encode());
            }
            let cluster = cluster?;
            if let Request::Members = request {
                return roll::answer(&cluster).map(|answer| answer.encode());
            }
            match cluster.handler.answer(from, request.clone()).await? {
                Some(answer) => Ok(answer.encode()),
                None => Ok(cluster.copies.answer(from, request).await?.encode()),
            }
        })
    }

    fn received(&self, from: Session, lane: Lane, _frame: Bytes) {
        tracing::debug!(peer = %from.peer, ?lane, "a frame on a lane of calls was dropped");
    }

    fn admit(&self, peer: &Introduction) -> Result<(), Refusal> {
        match self.cluster() {
            Ok(cluster) => cluster.admit(peer),
            // Its part has not begun: who calls then is asked again by its requests.
            Err(_not_yet) => Ok(()),
        }
    }

    fn connected(&self, session: Session, peer: &Introduction) {
        let before = self
            .processes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(session.peer, peer.incarnation);
        if let Ok(cluster) = self.cluster() {
            if before.is_some_and(|before| before != peer.incarnation) {
                cluster.vigil.succeeded(session.peer);
            }
            cluster.connected(session.peer);
        }
    }

    fn disconnected(&self, _session: Session) {}
}
