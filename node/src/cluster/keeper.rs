//! What keeps a member going: it finds the others, asks to be taken in, and tells mesh and API who leads.

use std::sync::Arc;
use std::time::Duration;

use beamlog_net::cluster::{ChangeError, Standing};
use beamlog_net::mesh::Mesh;
use beamlog_net::peer::PeerTransport;
use beamlog_net::transport::PeerAddress;
use beamlog_router::replica::Role;
use tracing::{info, warn};

use crate::cli::err_chain;
use crate::cluster::{ClusterApi, NodeCluster};

/// Between two attempts to be taken in, and two looks at who the members are.
const LOOK: Duration = Duration::from_millis(200);

pub(super) fn keep(node: NodeCluster, join: Vec<String>) {
    tokio::spawn(find_members(node.clone()));
    if !join.is_empty() {
        tokio::spawn(be_taken_in(node, join));
    }
}

/// Keeps a connection with every member.
async fn find_members(node: NodeCluster) {
    let mut known = Vec::new();
    loop {
        let status = node.cluster.status();
        if status.state.standing == Standing::Stopped {
            return;
        }
        let members: Vec<PeerAddress> = status
            .members
            .iter()
            .filter(|member| member.id != node.cluster.me())
            .map(|member| PeerAddress { id: Some(member.id), addresses: vec![member.member.address.clone()] })
            .collect();
        if members != known {
            known.clone_from(&members);
            node.transport.set_peers(members);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The mesh announces the API of a node that leads, and the API serves there only.
pub(super) async fn tell_role(node: NodeCluster, mesh: Mesh, api: Arc<ClusterApi>) {
    let mut role = node.cluster.role();
    loop {
        let now = *role.borrow_and_update();
        let leads = matches!(now, Role::Leader { .. });
        if leads {
            info!(name = node.member.name, "this node leads the cluster");
        }
        // The API first: what the mesh then brings here is served.
        api.set_leads(leads);
        mesh.set_leader(leads);
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
