//! Who votes in a shard follows the list of shards and the members of the cluster: its leader makes one change after
//! another until they agree.

use std::time::Duration;

use beamlog_net::cluster::{Change, ChangeError, Member};
use beamlog_net::peer::PeerId;
use beamlog_router::api::catalogue::ListedMember;
use beamlog_router::api::request::ClusterShard;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::cluster::NodeCluster;

/// A node that does not come so far in this time is tried again: others may be ready.
const STEP: Duration = Duration::from_secs(10);

/// A member of the shard now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Have {
    id: PeerId,
    votes: bool,
}

/// What makes the shard more as it is wanted; `None` when it is so, or nothing can be done now.
fn next(
    shard: &ClusterShard,
    members: &[ListedMember],
    have: &[Have],
    me: PeerId,
    is_connected: impl Fn(PeerId) -> bool,
) -> Option<Change> {
    if members.is_empty() {
        return None;
    }
    let wanted: Vec<&ListedMember> =
        members.iter().filter(|member| shard.nodes.contains(&member.name)).collect();
    let votes = |id: PeerId| have.iter().any(|one| one.id == id && one.votes);
    let missing = || wanted.iter().filter(|one| !votes(PeerId(one.peer)));
    // This node goes last: it makes the changes.
    let surplus = |votes: bool| {
        let is_surplus =
            |one: &&Have| one.votes == votes && !wanted.iter().any(|wanted| PeerId(wanted.peer) == one.id);
        have.iter().filter(is_surplus).min_by_key(|one| one.id == me).map(|one| one.id)
    };
    if let Some(missing) = missing().find(|one| is_connected(PeerId(one.peer))) {
        let new = PeerId(missing.peer);
        let ListedMember { name, address, .. } = (*missing).clone();
        let member = Member { name, address, witness: false };
        return Some(match surplus(true) {
            Some(old) => Change::Replace { old, new, member },
            None => Change::Add { id: new, member },
        });
    }
    // One that is still in the cluster votes until somebody has come in its place.
    let waits = missing().next().is_some();
    let goes = |id: &PeerId| !waits || !members.iter().any(|member| PeerId(member.peer) == *id);
    surplus(true).filter(goes).or_else(|| surplus(false)).map(|id| Change::Remove { id })
}

/// Makes the next change, if this node leads the shard.
pub(super) async fn follow(node: &NodeCluster, shard: &ClusterShard, members: &[ListedMember]) {
    use beamlog_net::cluster::MemberRole;
    use beamlog_net::peer::PeerTransport as _;

    if !node.leads() {
        return;
    }
    let status = node.cluster.status();
    let have: Vec<Have> = status
        .members
        .iter()
        .map(|member| Have { id: member.id, votes: member.role == MemberRole::Voter })
        .collect();
    let me = node.cluster.me();
    let is_connected = |id: PeerId| id == me || node.transport.session(id).is_some();
    let Some(change) = next(shard, members, &have, me, is_connected) else { return };
    let number = shard.number;
    match timeout(STEP, node.cluster.change(change.clone())).await {
        Ok(Ok(())) => info!(shard = number, ?change, "the members of a shard changed"),
        // What was begun goes on with the next attempt.
        Err(_elapsed) => {}
        Ok(Err(ChangeError::NoLeader | ChangeError::UnderWay | ChangeError::Unknown(_))) => {}
        Ok(Err(error)) => {
            warn!(shard = number, ?change, err = %error, "the members of a shard did not change")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `n1=1` is a node of the cluster and its id; a shard's member is an id, with `?` when it does not vote.
    fn check(nodes: &[&str], cluster: &[(&str, u64)], have: &[(u64, bool)], away: &[u64], wanted: &str) {
        let shard = ClusterShard {
            number: 1,
            nodes: nodes.iter().map(|name| (*name).to_owned()).collect(),
            founder: 1,
        };
        let members: Vec<ListedMember> = cluster
            .iter()
            .map(|(name, peer)| ListedMember {
                peer: *peer,
                name: (*name).to_owned(),
                address: String::new(),
            })
            .collect();
        let have: Vec<Have> =
            have.iter().map(|(id, votes)| Have { id: PeerId(*id), votes: *votes }).collect();
        let is_connected = |id: PeerId| !away.contains(&id.0);
        let said = match next(&shard, &members, &have, PeerId(1), is_connected) {
            None => "nothing".to_owned(),
            Some(Change::Add { id, member }) => format!("add {} {}", id.0, member.name),
            Some(Change::Remove { id }) => format!("remove {}", id.0),
            Some(Change::Replace { old, new, member }) => format!("{} for {} {}", old.0, new.0, member.name),
            Some(Change::Transfer { .. }) => "transfer".to_owned(),
        };
        assert_eq!(said, wanted, "{nodes:?} {cluster:?} {have:?} {away:?}");
    }

    #[test]
    fn a_shard_becomes_what_is_listed() {
        let three = &["n1", "n2", "n3"];
        let cluster = &[("n1", 1), ("n2", 2), ("n3", 3), ("n4", 4)];
        check(three, cluster, &[(1, true)], &[], "add 2 n2");
        check(three, cluster, &[(1, true)], &[2], "add 3 n3");
        check(three, cluster, &[(1, true), (2, false)], &[], "add 2 n2");
        check(three, cluster, &[(1, true), (2, true), (3, true)], &[], "nothing");
        check(three, cluster, &[(1, true), (2, true), (3, true)], &[2, 3], "nothing");
        // Another list.
        check(&["n1", "n2", "n4"], cluster, &[(1, true), (2, true), (3, true)], &[], "3 for 4 n4");
        check(&["n2", "n3", "n4"], cluster, &[(1, true), (2, true), (3, true)], &[], "1 for 4 n4");
        check(&["n2", "n3", "n4"], cluster, &[(1, true), (2, true), (3, true)], &[4], "nothing");
        check(&["n2", "n3"], cluster, &[(1, true), (2, true), (3, true)], &[], "remove 1");
        check(&["n1"], cluster, &[(1, true), (2, true), (3, false)], &[], "remove 2");
        check(&["n1", "n2"], cluster, &[(1, true), (2, true), (3, false)], &[], "remove 3");
    }

    #[test]
    fn who_leaves_the_cluster_leaves_the_shard_and_who_takes_its_name_takes_its_place() {
        let three = &["n1", "n2", "n3"];
        let have = &[(1, true), (2, true), (3, true)];
        check(three, &[("n1", 1), ("n2", 2)], have, &[], "remove 3");
        check(three, &[("n1", 1), ("n2", 2), ("n3", 9)], have, &[], "3 for 9 n3");
        check(three, &[("n1", 1), ("n2", 2), ("n3", 9)], have, &[9], "remove 3");
        // Nothing is known: nothing is done.
        check(three, &[], have, &[], "nothing");
    }
}
