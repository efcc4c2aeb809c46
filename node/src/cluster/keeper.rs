//! What keeps a member going: it finds the others, asks to be taken in, and tells mesh and API who leads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use beamlog_net::cluster::{ChangeError, ClusterStatus, Member, Roll, Standing};
use beamlog_net::mesh::Mesh;
use beamlog_net::peer::{PeerId, PeerTransport};
use beamlog_net::transport::{PeerAddress, PeerSnapshot};
use beamlog_router::Router;
use beamlog_router::replica::Role;
use tracing::{info, warn};

use crate::cli::err_chain;
use crate::cluster::catalogue::Desk;
use crate::cluster::{ClusterApi, NodeCluster};

/// Between two attempts to be taken in, and two looks at who the members are.
const LOOK: Duration = Duration::from_millis(200);
/// An election takes less: who hears of no leader for so long may be one that the leader cannot reach.
const SILENCE: Duration = Duration::from_secs(2);
/// Between two rounds of questions while there is no leader.
const ASK: Duration = Duration::from_secs(1);

pub(super) fn keep(node: NodeCluster, join: Vec<String>) {
    tokio::spawn(find_members(node.clone()));
    if !join.is_empty() {
        tokio::spawn(be_taken_in(node, join));
    }
}

/// Keeps a connection with every member, and lets go of whom the cluster let go of.
async fn find_members(node: NodeCluster) {
    let mut known = BTreeMap::new();
    let mut silence = Silence::default();
    loop {
        let status = node.cluster.status();
        if status.state.standing == Standing::Stopped {
            return;
        }
        let told = silence.roll(&node, &status, &known).await;
        let mut members: BTreeMap<PeerId, Member> = match told {
            Some(roll) => roll.members.iter().cloned().collect(),
            None => status.members.into_iter().map(|one| (one.id, one.member)).collect(),
        };
        members.remove(&node.cluster.me());
        if members != known {
            give_names(&node, &known, &members);
            let address = |(id, member): (&PeerId, &Member)| PeerAddress {
                id: Some(*id),
                addresses: vec![member.address.clone()],
            };
            node.transport.set_peers(members.iter().map(address).collect());
            known = members;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// No leader is heard of. What peers say of the members is believed as to names and addresses only, until this node's own
/// log says as much.
#[derive(Default)]
struct Silence {
    since: Option<Instant>,
    asked: Option<Instant>,
    roll: Option<Roll>,
}

impl Silence {
    /// Who the members are by what peers say, if they know more than this node. `known`: whom it asks.
    async fn roll(
        &mut self,
        node: &NodeCluster,
        status: &ClusterStatus,
        known: &BTreeMap<PeerId, Member>,
    ) -> Option<&Roll> {
        self.roll.take_if(|roll| !roll.is_newer_than(status.members_by));
        let is_member =
            matches!(status.state.standing, Standing::Follower | Standing::Candidate | Standing::Learner);
        if status.state.leader.is_some() || !is_member {
            (self.since, self.asked) = (None, None);
            return self.roll.as_ref();
        }
        let is_due = |since: &Instant, wait| since.elapsed() >= wait;
        let since = self.since.get_or_insert_with(Instant::now);
        if is_due(since, SILENCE) && self.asked.is_none_or(|asked| is_due(&asked, ASK)) {
            for peer in known.keys().filter(|peer| node.transport.session(**peer).is_some()) {
                let newest = self.roll.as_ref().map_or(status.members_by, |roll| roll.by);
                match node.cluster.ask_members(*peer).await {
                    Some(roll) if roll.is_newer_than(newest) => {
                        info!(through = %peer, entry = %roll.by.index, "other nodes know of other members");
                        self.roll = Some(roll);
                    }
                    Some(_) | None => {}
                }
            }
            self.asked = Some(Instant::now());
        }
        self.roll.as_ref()
    }
}

/// A name belongs to the member that has it: who was removed has none any more, so that an emptied node can come back
/// under its own.
fn give_names(node: &NodeCluster, before: &BTreeMap<PeerId, Member>, now: &BTreeMap<PeerId, Member>) {
    let mut freed = BTreeSet::new();
    for (removed, Member { name, .. }) in before.iter().filter(|(id, _)| !now.contains_key(id)) {
        node.transport.forget(*removed);
        freed.insert(name);
    }
    for (id, Member { name, .. }) in now {
        let is_other = |peer: &PeerSnapshot| peer.id != *id && peer.name == *name;
        if let Some(other) = node.transport.peers().into_iter().find(is_other) {
            node.transport.forget(other.id);
            freed.insert(name);
        }
        if freed.contains(name) {
            info!(%name, member = %id, "the name is another node's now");
            // Not whoever of both comes first. It may be known by now, which is as good.
            node.transport.remember(*id, name).ok();
        }
    }
}

/// The mesh announces the API of a node that leads, and the API serves there only; and so with the catalogue.
pub(super) async fn tell_role(node: NodeCluster, router: Router, mesh: Mesh, api: Arc<ClusterApi>) {
    let mut role = node.cluster.role();
    let mut desk = None;
    loop {
        let now = *role.borrow_and_update();
        let leads = matches!(now, Role::Leader { .. });
        if leads {
            info!(name = node.member.name, "this node leads the cluster");
        }
        // The API first: what the mesh then brings here is served.
        api.set_leads(leads);
        mesh.set_leader(leads);
        desk = leads.then(|| desk.take().unwrap_or_else(|| Desk::open(&router, &node)));
        if role.changed().await.is_err() {
            return;
        }
    }
}

/// Asks one node after another until one takes this one in.
async fn be_taken_in(node: NodeCluster, join: Vec<String>) {
    let mut told = String::new();
    loop {
        for address in &join {
            match node.cluster.state().borrow().standing {
                Standing::Waiting | Standing::Learner => {}
                Standing::Follower
                | Standing::Candidate
                | Standing::Leader
                | Standing::Fenced { .. }
                | Standing::Stopped
                | Standing::Failed { .. } => return,
            }
            let problem = match node.transport.dial(address).await {
                Ok(session) => match node.cluster.join(session.peer, node.member.clone()).await {
                    Ok(()) | Err(ChangeError::Member(_)) => {
                        info!(through = address, "taken in by the cluster");
                        return;
                    }
                    Err(error) => error.to_string(),
                },
                // A session that is there already is as good.
                Err(error) => match known_peer(&node) {
                    Some(peer) => match node.cluster.join(peer, node.member.clone()).await {
                        Ok(()) | Err(ChangeError::Member(_)) => return,
                        Err(error) => error.to_string(),
                    },
                    None => err_chain(&error),
                },
            };
            if problem != told {
                warn!(through = address, reason = problem, "not taken in by the cluster yet");
                told = problem;
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn known_peer(node: &NodeCluster) -> Option<beamlog_net::peer::PeerId> {
    let peers = node.transport.peers();
    peers.into_iter().map(|peer| peer.id).find(|id| node.transport.session(*id).is_some())
}
