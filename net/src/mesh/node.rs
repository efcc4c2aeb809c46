//! [`Mesh`]: told of sessions, of what this node wants, and of leadership.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use beamlog_router::StreamId;
use beamlog_router::interest::{Envelope, Interest, NAMES, PeerTarget};
use bytes::Bytes;
use tracing::warn;

use super::frame::{Operation, Operations, VERSION};
use super::link::{Incoming, Link, LinkSnapshot};
use crate::peer::{
    BoxFuture, Introduction, Lane, NOT_SERVED, PeerHandler, PeerId, PeerTransport, Refusal, Role, Session,
};

/// What the leader wants, beside the captures of its streams.
pub const LEADER_FILTERS: [&[u8]; 3] = [b"$JS.API.>", b"$JS.ACK.>", b"$JS.FC.>"];
const LEADER_PREFIXES: [&[u8]; 3] = [b"$JS.API.", b"$JS.ACK.", b"$JS.FC."];

/// A message of a peer that is for the streams of this node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MeshMessage<'a> {
    pub from: PeerId,
    pub subject: &'a [u8],
    /// Empty is none.
    pub reply: &'a [u8],
    /// The raw header block, or empty.
    pub headers: &'a [u8],
    pub payload: &'a [u8],
}

/// Streams behind the mesh: where the leader takes what peers sent. Called in the order in which a peer
/// sent, on the transport's tasks; must not block, and bounds what it keeps.
pub trait StreamGate: Send + Sync {
    /// A publish to one of [`LEADER_FILTERS`].
    fn request(&self, message: &MeshMessage<'_>);

    /// A publish that a stream captures.
    fn captured(&self, stream: StreamId, message: &MeshMessage<'_>);
}

/// Whether a subject is one of those that only the leader answers.
#[must_use]
pub fn is_for_leader(subject: &[u8]) -> bool {
    LEADER_PREFIXES.iter().any(|prefix| subject.starts_with(prefix))
}

/// This node's part of the mesh. One for each cluster; clones are the same.
#[derive(Clone)]
pub struct Mesh(Arc<Shared>);

struct Shared {
    interest: Arc<Interest>,
    gate: Arc<dyn StreamGate>,
    transport: OnceLock<Arc<dyn PeerTransport>>,
    peers: Mutex<Peers>,
}

#[derive(Default)]
struct Peers {
    links: BTreeMap<PeerId, Arc<Link>>,
    leader: bool,
}

impl std::fmt::Debug for Mesh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mesh").finish_non_exhaustive()
    }
}

impl Mesh {
    /// From now on the mesh is told what this node wants.
    #[must_use]
    pub fn new(interest: Arc<Interest>, gate: Arc<dyn StreamGate>) -> Self {
        let peers = Mutex::default();
        let shared = Arc::new(Shared { interest, gate, transport: OnceLock::new(), peers });
        // Weak: the interest outlives a node that leaves its cluster.
        let told = Arc::downgrade(&shared);
        shared.interest.on_interest(Box::new(move |filter, group, wanted| {
            if let Some(shared) = told.upgrade() {
                shared.changed(filter, group, wanted);
            }
        }));
        Self(shared)
    }

    /// Says by what peers are reached: once, before the transport is started with this as its handler.
    pub fn attach(&self, transport: Arc<dyn PeerTransport>) {
        // The first stays.
        drop(self.0.transport.set(transport));
    }

    /// Whether this node answers for the streams of the cluster: peers are told, behind everything that was said
    /// before.
    pub fn set_leader(&self, leader: bool) {
        // No change is told meanwhile, and no peer added.
        self.0.interest.local_interest(|_| {
            let mut peers = self.0.peers();
            if peers.leader == leader {
                return;
            }
            peers.leader = leader;
            for link in peers.links.values() {
                link.tell(&mut LEADER_FILTERS.iter().map(|filter| wanted(filter, b"", leader)));
            }
        });
    }

    #[must_use]
    pub fn snapshot(&self) -> Vec<LinkSnapshot> {
        let links: Vec<Arc<Link>> = self.0.peers().links.values().cloned().collect();
        links.iter().map(|link| link.snapshot()).collect()
    }
}

fn wanted<'a>(filter: &'a [u8], group: &'a [u8], wanted: bool) -> Operation<'a> {
    if wanted { Operation::Wanted { filter, group } } else { Operation::NotWanted { filter, group } }
}

impl Shared {
    fn peers(&self) -> MutexGuard<'_, Peers> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self, filter: &[u8], group: &[u8], present: bool) {
        for link in self.peers().links.values() {
            link.tell(&mut std::iter::once(wanted(filter, group, present)));
        }
    }

    fn link(&self, session: Session) -> Option<Arc<Link>> {
        self.peers().links.get(&session.peer).filter(|link| link.session == session).cloned()
    }

    /// Executes the operations of one frame. What is wrong with it ends the session.
    fn execute(&self, link: &Arc<Link>, frame: &[u8]) -> Result<(), String> {
        let mut incoming = link.incoming();
        let mut operations = Operations::new(frame);
        while let Some(operation) = operations.read().map_err(|error| error.to_string())? {
            match operation {
                Operation::Begin { version, .. } => {
                    if incoming.begun || version != VERSION {
                        return Err(format!("a beginning of version {version} where none may be"));
                    }
                    incoming.begun = true;
                }
                _ if !incoming.begun => return Err("it did not begin".to_owned()),
                Operation::Wanted { filter, group } => link
                    .wants(&self.interest, &mut incoming, filter, group, true)
                    .map_err(|error| error.to_string())?,
                Operation::NotWanted { filter, group } => link
                    .wants(&self.interest, &mut incoming, filter, group, false)
                    .map_err(|error| error.to_string())?,
                Operation::Message { group, routed_by, subject, reply, headers, payload } => {
                    link.received();
                    let message = MeshMessage { from: link.session.peer, subject, reply, headers, payload };
                    self.deliver(&mut incoming, group, routed_by, &message);
                }
            }
        }
        incoming.cache.flush();
        Ok(())
    }

    fn deliver(&self, incoming: &mut Incoming, group: &[u8], routed_by: &[u8], message: &MeshMessage<'_>) {
        let MeshMessage { subject, reply, headers, payload, .. } = *message;
        let envelope = Envelope { subject, reply, headers, payload, origin: 0 };
        if routed_by.starts_with(NAMES) && group.is_empty() {
            self.interest.send_to_here(&mut incoming.cache, routed_by, &envelope);
            return;
        }
        let target = if group.is_empty() { PeerTarget::Plain } else { PeerTarget::Group(group) };
        let for_leader = group.is_empty() && subject == routed_by && is_for_leader(subject);
        if for_leader {
            self.gate.request(message);
        }
        // Requests can be listened to; acks are too many to look for listeners each time.
        if for_leader && !subject.starts_with(LEADER_PREFIXES[0]) {
            return;
        }
        let routed = self.interest.route_from_peer(&mut incoming.cache, routed_by, &envelope, target);
        if let Some(stream) = routed.capture
            && !for_leader
        {
            self.gate.captured(stream, message);
        }
    }
}

impl PeerHandler for Mesh {
    fn call(&self, _: PeerId, lane: Lane, _: Bytes) -> BoxFuture<'static, Result<Bytes, Refusal>> {
        let reason = format!("lane {lane:?} is not served here");
        Box::pin(std::future::ready(Err(Refusal { code: NOT_SERVED, reason })))
    }

    fn received(&self, from: Session, lane: Lane, frame: Bytes) {
        let Some(link) = self.0.link(from).filter(|_| lane == Lane::Mesh) else { return };
        if let Err(error) = self.0.execute(&link, &frame) {
            warn!(peer = %link.name, err = %error, "a peer broke the protocol of the mesh");
            if let Some(transport) = self.0.transport.get() {
                transport.reset(from, &error);
            }
        }
    }

    fn admit(&self, _: &Introduction) -> Result<(), Refusal> {
        Ok(())
    }

    fn connected(&self, session: Session, peer: &Introduction) {
        let Some(transport) = self.0.transport.get() else { return };
        match peer.role {
            Role::Node => {}
            // It has no clients. An edge has its rules, and no part in the mesh.
            Role::Witness | Role::Edge => return,
        }
        let link = Link::new(session, &peer.name, Arc::clone(transport));
        // Told whole, and added, with no change in between.
        self.0.interest.local_interest(|local| {
            let mut peers = self.0.peers();
            let leader: &[&[u8]] = if peers.leader { &LEADER_FILTERS } else { &[] };
            let begin = Operation::Begin { version: VERSION, epoch: session.number };
            let leader = leader.iter().map(|filter| wanted(filter, b"", true));
            let local = local.map(|(filter, group)| wanted(filter, group, true));
            link.tell(&mut std::iter::once(begin).chain(leader).chain(local));
            peers.links.insert(session.peer, link);
        });
    }

    fn disconnected(&self, session: Session) {
        let link = {
            let mut peers = self.0.peers();
            match peers.links.get(&session.peer) {
                Some(link) if link.session == session => peers.links.remove(&session.peer),
                Some(_) | None => None,
            }
        };
        // Without the lock: this calls interest.
        if let Some(link) = link {
            link.end(&self.0.interest);
        }
    }
}
