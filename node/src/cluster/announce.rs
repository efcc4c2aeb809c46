//! What a cluster tells clients of itself: in stream info, in INFO, and by advisories.

use std::future::IntoFuture as _;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use beamlog_nats::jetstream::{ClusterEvent, ClusterView, MoveView, NatsWire, ReplicaView};
use beamlog_nats::{ClusterInfo, Server};
use beamlog_net::cluster::{Seat, Standing};
use beamlog_router::api::request::{Arrival, Place, Request, Response};
use beamlog_router::{Router, Timestamp};
use serde_json::{Value, json};
use tracing::debug;

use crate::cluster::NodeCluster;
use crate::core_messages;

/// Between two looks at who is there.
const LOOK: Duration = Duration::from_millis(500);
/// Between two looks at which streams there are, while nothing happens.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// A router that has no quorum answers when it has one again.
const PATIENCE: Duration = Duration::from_secs(2);
/// Entries that a member may be behind and still count as current.
const CURRENT_LAG_MAX: u64 = 1000;

/// A place as people call it.
pub(super) fn name_of(place: &Place) -> String {
    match place {
        Place::Common => "all".to_owned(),
        Place::Node { node, .. } => node.clone(),
        Place::Shard(number) => format!("shard {number}"),
    }
}

impl NodeCluster {
    /// The cluster as this node sees it; who leads knows most.
    pub(crate) fn view(&self) -> ClusterView {
        let status = self.cluster.status();
        let replicas = status
            .members
            .iter()
            .filter(|member| !member.leads && !member.member.witness)
            .map(|member| ReplicaView {
                name: member.member.name.clone(),
                peer: member.id.to_string(),
                current: member.connected && member.lag.is_none_or(|lag| lag <= CURRENT_LAG_MAX),
                offline: !member.connected,
                active: member.heard,
                lag: member.lag.unwrap_or(0),
            })
            .collect();
        ClusterView {
            name: self.certificates.current().identity.cluster.clone(),
            group: format!("shard-{}", self.cluster.shard()),
            leader: status
                .members
                .iter()
                .find(|member| member.leads)
                .map(|member| member.member.name.clone()),
            replicas,
            moves: self.moves_seen(),
        }
    }

    /// Streams on their way, as far as this node has heard.
    pub(super) fn moves_seen(&self) -> Vec<MoveView> {
        let moves = self.moves.heard.borrow();
        let moves = moves.iter().filter(|arrival| !arrival.exchanged);
        moves
            .map(|Arrival { stream, from, to, .. }| MoveView {
                stream: stream.clone(),
                from: name_of(from),
                to: name_of(to),
            })
            .collect()
    }

    pub(crate) fn leads(&self) -> bool {
        self.cluster.state().borrow().standing == Standing::Leader
    }

    /// What `/varz` shows of it, in nats-server's fields.
    pub(crate) fn settings(&self) -> Value {
        let ClusterInfo { name, connect_urls } = self.client_info();
        let address = self.transport.local_address();
        json!({
            "name": name,
            "addr": address.ip().to_string(),
            "cluster_port": address.port(),
            "urls": connect_urls,
        })
    }

    fn client_info(&self) -> ClusterInfo {
        let sessions = self.transport.peers().into_iter().filter_map(|peer| peer.session);
        let mut connect_urls: Vec<String> =
            sessions.filter_map(|session| Seat::clients_of(&session.claims)).collect();
        connect_urls.extend(self.clients.clone());
        connect_urls.sort();
        connect_urls.dedup();
        ClusterInfo { name: self.certificates.current().identity.cluster.clone(), connect_urls }
    }
}

/// Keeps clients told, until the node stops.
pub(crate) fn announce(node: &NodeCluster, server: &Arc<Server>, router: &Router) {
    tokio::spawn(tell_clients(node.clone(), Arc::downgrade(server)));
    tokio::spawn(tell_events(node.clone(), router.clone()));
}

/// Where else clients may go.
async fn tell_clients(node: NodeCluster, server: Weak<Server>) {
    loop {
        if node.cluster.status().state.standing == Standing::Stopped {
            return;
        }
        let Some(server) = server.upgrade() else { return };
        server.set_cluster(node.client_info());
        drop(server);
        tokio::time::sleep(LOOK).await;
    }
}

/// Advisories of a new leader, and of one that has lost its quorum. What is there is looked at while there is a
/// quorum: afterwards nobody can say.
pub(super) async fn tell_events(node: NodeCluster, router: Router) {
    let wire = NatsWire::new();
    let mut states = node.cluster.state();
    let mut streams = Vec::new();
    let (mut led, mut quorum) = (false, true);
    loop {
        let state = states.borrow_and_update().clone();
        let leads = state.standing == Standing::Leader;
        let mut again = LOOK_AGAIN;
        if leads && state.quorum {
            // A driver that has just been told that it leads may not serve yet.
            match names(&router, |offset| Request::StreamNames { subject: None, offset }).await {
                Some(found) => {
                    streams = found;
                    if !led {
                        tell(&node, &router, &wire, ClusterEvent::LeaderElected, &streams);
                        tell_consumers(&node, &router, &wire, &streams).await;
                    }
                    led = true;
                }
                None => again = LOOK,
            }
        } else if !leads {
            led = false;
        } else if led && quorum {
            tell(&node, &router, &wire, ClusterEvent::QuorumLost, &streams);
        }
        quorum = state.quorum;
        if state.standing == Standing::Stopped {
            return;
        }
        // Of a leader, what is there is looked at again now and then.
        match tokio::time::timeout(again, states.changed()).await {
            Ok(Ok(())) | Err(_) => {}
            Ok(Err(_)) => return,
        }
    }
}

fn tell(node: &NodeCluster, router: &Router, wire: &NatsWire, event: ClusterEvent, streams: &[String]) {
    let view = node.view();
    for stream in streams {
        send(router, wire.cluster_advisory(event, stream, None, &view, wall_clock()));
    }
    debug!(?event, streams = streams.len(), "told");
}

async fn tell_consumers(node: &NodeCluster, router: &Router, wire: &NatsWire, streams: &[String]) {
    let view = node.view();
    for stream in streams {
        let of_stream = |offset| Request::ConsumerNames { stream: stream.clone(), offset };
        // A stream that has gone meanwhile has none.
        for consumer in names(router, of_stream).await.unwrap_or_default() {
            let event = ClusterEvent::LeaderElected;
            send(router, wire.cluster_advisory(event, stream, Some(&consumer), &view, wall_clock()));
        }
    }
}

fn send(router: &Router, (subject, body): (String, Vec<u8>)) {
    core_messages::send(router, &subject, b"", b"", &body);
}

/// All pages of a list of names; `None` when the router does not answer.
async fn names(router: &Router, page_at: impl Fn(usize) -> Request) -> Option<Vec<String>> {
    let mut found = Vec::new();
    loop {
        let ticket = router.request(page_at(found.len())).ok()?;
        let answer = tokio::time::timeout(PATIENCE, ticket.into_future()).await;
        let Ok(Ok(Response::Names(page))) = answer else { return None };
        let is_last = page.items.is_empty() || found.len() + page.items.len() >= page.total;
        found.extend(page.items);
        if is_last {
            return Some(found);
        }
    }
}

fn wall_clock() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}
