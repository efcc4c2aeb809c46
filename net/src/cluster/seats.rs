//! The seats of several shards of one node, over one transport.
//!
//! What a node says of itself when it meets a peer is of the first shard: who is refused there has no session, and
//! so no part in the others. What it holds of the others its peers learn from its answers, each of which says where
//! its log ends: they are held against what it once had (DR13) before they count.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use beamlog_log::ShardId;
use bytes::Bytes;

use super::{
    Seat, change,
    seat::{Peers, not_yet},
};
use crate::{
    peer::{BoxFuture, Introduction, Lane, PeerHandler, PeerId, Refusal, Session},
    raft::{code, wire::Request},
};

/// The seats of a node: that of its first shard, and others that come and go while it runs. Clones are the same.
#[derive(Clone)]
pub struct Seats(Arc<Inner>);

struct Inner {
    first: Arc<Peers>,
    others: RwLock<BTreeMap<ShardId, Arc<Peers>>>,
}

impl fmt::Debug for Seats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seats").finish_non_exhaustive()
    }
}

impl Seats {
    /// Beginning with that of shard 0.
    #[must_use]
    pub fn new(first: &Seat) -> Self {
        Self(Arc::new(Inner { first: first.peers(), others: RwLock::default() }))
    }

    /// From now on peers find this shard here.
    pub fn add(&self, shard: ShardId, seat: &Seat) {
        self.0.others.write().unwrap_or_else(PoisonError::into_inner).insert(shard, seat.peers());
    }

    /// For the transport, in place of [`Seat::handler`].
    #[must_use]
    pub fn handler(&self) -> Arc<dyn PeerHandler> {
        Arc::clone(&self.0) as Arc<dyn PeerHandler>
    }
}

impl Inner {
    fn of(&self, shard: ShardId) -> Result<Arc<Peers>, Refusal> {
        if shard == ShardId(0) {
            return Ok(Arc::clone(&self.first));
        }
        let others = self.others.read().unwrap_or_else(PoisonError::into_inner);
        others.get(&shard).cloned().ok_or_else(|| not_yet(shard))
    }

    fn each(&self, tell: impl Fn(&Peers)) {
        tell(&self.first);
        // Not under the lock: what they do is theirs.
        let others: Vec<Arc<Peers>> =
            self.others.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        others.iter().for_each(|peers| tell(peers));
    }
}

impl PeerHandler for Inner {
    fn call(&self, from: PeerId, lane: Lane, request: Bytes) -> BoxFuture<'static, Result<Bytes, Refusal>> {
        let malformed = |reason: String| Refusal { code: code::MALFORMED, reason };
        let shard = match lane {
            Lane::Admin => Ok(change::shard_of(&request)),
            Lane::Vote | Lane::Append | Lane::CatchUp | Lane::Mesh => {
                Request::shard_of(&request).map_err(|error| malformed(error.to_string()))
            }
        };
        match shard.and_then(|shard| self.of(shard)) {
            Ok(peers) => peers.call(from, lane, request),
            Err(refusal) => Box::pin(std::future::ready(Err(refusal))),
        }
    }

    fn received(&self, from: Session, lane: Lane, frame: Bytes) {
        self.first.received(from, lane, frame);
    }

    fn admit(&self, peer: &Introduction) -> Result<(), Refusal> {
        self.first.admit(peer)
    }

    fn connected(&self, session: Session, peer: &Introduction) {
        self.each(|peers| peers.connected(session, peer));
    }

    fn disconnected(&self, session: Session) {
        self.each(|peers| peers.disconnected(session));
    }
}
