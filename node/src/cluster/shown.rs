//! A cluster as its admin page shows it, and what is asked of it there.

use beamlog_net::cluster::{Change, ChangeError, ClusterStatus, MemberRole, Standing};
use beamlog_net::peer::PeerId;
use serde_json::{Value, json};

use crate::cluster::announce::name_of;
use crate::cluster::{NodeCluster, Served};

/// Entries behind which a member is called out.
const LAG_MAX: u64 = 10_000;

/// A change that an operator asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Asked {
    Add,
    Remove,
    Transfer,
    /// A new shard, or other nodes for one.
    Shard,
}

impl Asked {
    pub(crate) fn parse(word: &str) -> Option<Self> {
        match word {
            "add" => Some(Self::Add),
            "remove" => Some(Self::Remove),
            "transfer" => Some(Self::Transfer),
            "shard" => Some(Self::Shard),
            _ => None,
        }
    }
}

/// The page; `served` is what of its streams is in other shards than the first.
pub(crate) fn status(node: &NodeCluster, served: Option<&Served>) -> Value {
    let status = node.cluster.status();
    let mut problems = problems(&status);
    let held = served.map(|served| served.held.streams()).unwrap_or_default();
    let (shards, of_shards) = served.map(|served| served.shards.page()).unwrap_or_default();
    problems.extend(of_shards);
    let moving: Vec<Value> = node
        .moves
        .heard
        .borrow()
        .iter()
        .map(|arrival| {
            json!({
                "stream": arrival.stream,
                "from": name_of(&arrival.from),
                "to": name_of(&arrival.to),
                // Behind the exchange only the copy of who had it is to go.
                "exchanged": arrival.exchanged,
                // Where it is copied to.
                "copied": node.moves.copied(&arrival.stream),
            })
        })
        .collect();
    let members: Vec<Value> = status
        .members
        .iter()
        .map(|member| {
            json!({
                "name": member.member.name,
                "id": member.id.to_string(),
                "address": member.member.address,
                "role": match (member.role, member.member.witness) {
                    (MemberRole::Voter, false) => "voter",
                    (MemberRole::Voter, true) => "witness",
                    (MemberRole::Learner, _) => "learner",
                },
                "leader": member.leads,
                "connected": member.connected,
                "durable": member.durable.map(|index| index.0),
                "lag": member.lag,
                "refused": member.refused,
                "heard_ms": member.heard.map(|heard| u64::try_from(heard.as_millis()).unwrap_or(u64::MAX)),
            })
        })
        .collect();
    json!({
        "cluster": node.certificates.current().identity.cluster,
        "name": node.member.name,
        "id": status.me.to_string(),
        "standing": standing(&status.state.standing),
        "term": status.state.term,
        "leader": status.members.iter().find(|member| member.leads).map(|member| member.member.name.clone()),
        "quorum": status.state.quorum,
        "changing": status.changing,
        "last": status.last.index.0,
        "durable": status.durable.index.0,
        "committed": status.committed.0,
        "applied": status.applied.0,
        "healthy": problems.is_empty(),
        "problems": problems,
        "members": members,
        "held": held,
        "moving": moving,
        "shards": shards,
    })
}

/// The names of those who vote, in order.
pub(super) fn voters(status: &ClusterStatus) -> Vec<String> {
    let voters = status.members.iter().filter(|member| member.role == MemberRole::Voter);
    let mut names: Vec<String> = voters.map(|member| member.member.name.clone()).collect();
    names.sort();
    names
}

pub(super) fn standing(standing: &Standing) -> String {
    match standing {
        Standing::Waiting => "waiting".to_owned(),
        Standing::Learner => "learner".to_owned(),
        Standing::Follower => "follower".to_owned(),
        Standing::Candidate => "candidate".to_owned(),
        Standing::Leader => "leader".to_owned(),
        Standing::Fenced { reason } => format!("fenced: {reason}"),
        Standing::Stopped => "stopped".to_owned(),
        Standing::Failed { reason } => format!("failed: {reason}"),
    }
}

/// Everything that is not as it should be, as this node sees it.
pub(crate) fn problems(status: &ClusterStatus) -> Vec<String> {
    let mut problems = Vec::new();
    match &status.state.standing {
        Standing::Waiting => problems.push("this node waits to be taken in".to_owned()),
        Standing::Fenced { reason } => problems.push(format!("this node is fenced: {reason}")),
        Standing::Failed { reason } => problems.push(format!("this node has failed: {reason}")),
        Standing::Stopped => problems.push("this node has stopped taking part".to_owned()),
        Standing::Learner | Standing::Follower | Standing::Candidate | Standing::Leader => {}
    }
    if !status.members.iter().any(|member| member.leads) {
        problems.push("there is no leader".to_owned());
    } else if !status.state.quorum {
        problems.push("the quorum is lost: nothing is acknowledged".to_owned());
    }
    if status.changing {
        problems.push("a change of the members is under way".to_owned());
    }
    for member in &status.members {
        let name = &member.member.name;
        if let Some(reason) = &member.refused {
            problems.push(format!("{name} is refused: {reason}"));
        } else if !member.connected {
            problems.push(format!("{name} is not connected"));
        } else if member.role == MemberRole::Learner {
            problems.push(format!("{name} does not vote yet"));
        }
        if let Some(lag) = member.lag.filter(|lag| *lag > LAG_MAX) {
            problems.push(format!("{name} is {lag} entries behind"));
        }
    }
    problems
}

/// Makes a change.
///
/// # Errors
/// The node named is not known, or the change was refused; what was said of it.
pub(crate) async fn change(node: &NodeCluster, asked: Asked, named: Option<&str>) -> Result<(), String> {
    let status = node.cluster.status();
    let of_members = |name: &str| {
        status
            .members
            .iter()
            .find(|member| member.member.name == name || member.id.to_string() == name)
            .map(|member| member.id)
            .ok_or_else(|| format!("no member is called {name}"))
    };
    let needed = || named.ok_or_else(|| "name a node".to_owned());
    let change = match asked {
        Asked::Add => {
            let (id, member) = waiting(node, needed()?)?;
            Change::Add { id, member }
        }
        Asked::Remove => Change::Remove { id: of_members(needed()?)? },
        Asked::Transfer => Change::Transfer { to: named.map(of_members).transpose()? },
        Asked::Shard => return Err("a shard is not a change of members".to_owned()),
    };
    node.cluster.change(change).await.map_err(|error: ChangeError| error.to_string())
}

/// A peer that is connected and no member.
fn waiting(node: &NodeCluster, name: &str) -> Result<(PeerId, beamlog_net::cluster::Member), String> {
    let peers = node.transport.peers().into_iter();
    peers
        .filter(|peer| peer.name == name || peer.id.to_string() == name)
        .find_map(|peer| {
            let session = peer.session?;
            let witness = session.role == beamlog_net::peer::Role::Witness;
            let member =
                beamlog_net::cluster::Member { name: peer.name, address: session.advertise, witness };
            Some((peer.id, member))
        })
        .ok_or_else(|| format!("no node called {name} is connected; start it with --cluster-join first"))
}
