//! What keeps a member going: it finds the others, asks to be taken in, and tells mesh and API who leads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use beamlog_net::cluster::{ChangeError, Standing};
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

pub(super) fn keep(node: NodeCluster, join: Vec<String>) {
    tokio::spawn(find_members(node.clone()));
    if !join.is_empty() {
        tokio::spawn(be_taken_in(node, join));
    }
}

/// Keeps a connection with every member, and lets go of whom the cluster let go of.
async fn find_members(node: NodeCluster) {
    let mut known = Vec::new();
    let mut names = BTreeMap::new();
    loop {
        let status = node.cluster.status();
        if status.state.standing == Standing::Stopped {
            return;
        }
        let others = || status.members.iter().filter(|member| member.id != node.cluster.me());
        let members: Vec<PeerAddress> = others()
            .map(|member| PeerAddress { id: Some(member.id), addresses: vec![member.member.address.clone()] })
            .collect();
        if members != known {
            let now = others().map(|member| (member.id, member.member.name.clone())).collect();
            give_names(&node, &names, &now);
            names = now;
            known.clone_from(&members);
            node.transport.set_peers(members);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// A name belongs to the member that has it: who was removed has none any more, so that an emptied node can come back
/// under its own.
fn give_names(node: &NodeCluster, before: &BTreeMap<PeerId, String>, now: &BTreeMap<PeerId, String>) {
    for removed in before.keys().filter(|id| !now.contains_key(id)) {
        node.transport.forget(*removed);
    }
    for (id, name) in now {
        let is_other = |peer: &PeerSnapshot| peer.id != *id && peer.name == *name;
        if let Some(other) = node.transport.peers().into_iter().find(is_other) {
            info!(name, member = %id, former = %other.id, "the name is another node's now");
            node.transport.forget(other.id);
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
