//! How a cluster stands, as one node sees it.

use std::time::Duration;

use beamlog_log::{EntryId, Index, Term};
use beamlog_router::replica::Role;
use openraft::{RaftMetrics, ServerState, async_runtime::WatchReceiver};

use super::{Inner, Member};
use crate::{
    peer::PeerId,
    raft::{Membership, Types, entry_id},
    runtime::{self, Moment},
};

/// A node's own standing.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Standing {
    /// It knows of no membership yet: it waits to be added.
    #[default]
    Waiting,
    /// Takes entries, does not vote.
    Learner,
    Follower,
    /// Asks for votes.
    Candidate,
    Leader,
    /// It lost what it acknowledged, or cannot tell: it neither votes nor leads.
    Fenced {
        reason: String,
    },
    Stopped,
    /// By an error; the process should end.
    Failed {
        reason: String,
    },
}

/// What changes rarely and matters at once.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ClusterState {
    pub standing: Standing,
    pub term: u64,
    pub leader: Option<PeerId>,
    /// Of a leader: whether it reaches a quorum. Of another node: whether it hears of a leader.
    pub quorum: bool,
}

/// What a member is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum MemberRole {
    Voter,
    /// Takes entries, does not vote.
    Learner,
}

/// One member.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MemberStatus {
    pub id: PeerId,
    pub member: Member,
    pub role: MemberRole,
    pub leads: bool,
    /// There is a session with it; of this node itself: true.
    pub connected: bool,
    /// The last entry that it is known to hold on its disk. Only a leader knows that of others.
    pub durable: Option<Index>,
    /// Entries that it is behind the leader.
    pub lag: Option<u64>,
    /// How long ago it was heard of. Only a leader knows.
    pub heard: Option<Duration>,
    /// Why it is not let in, or a leader does not take its word: it lost what it held, and must be replaced by a new node.
    pub refused: Option<String>,
}

/// A cluster as one node sees it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ClusterStatus {
    pub me: PeerId,
    pub state: ClusterState,
    /// What the driver is.
    pub role: Role,
    pub members: Vec<MemberStatus>,
    /// The entry that says who they are.
    pub members_by: EntryId,
    /// A change of members is under way: what `members` says can still be undone. Of a node that has just started also
    /// when it does not know yet that it cannot.
    pub changing: bool,
    pub last: EntryId,
    pub durable: EntryId,
    pub committed: Index,
    pub applied: Index,
}

pub(super) fn of(inner: &Inner) -> ClusterStatus {
    let metrics = inner.raft.metrics().borrow_watched().clone();
    let now = runtime::now();
    let membership = metrics.membership_config.membership();
    let last = inner.storage.last();
    let durable = inner.books.durable();
    let leads = metrics.state == ServerState::Leader;
    let peers = inner.books.peers();
    let voters: Vec<u64> = membership.voter_ids().collect();
    let committed = entry_id(metrics.local_committed.as_ref()).index;
    let applied = inner.machine.applied().index;
    let members_by = entry_id(metrics.membership_config.log_id().as_ref());
    let members = membership
        .nodes()
        .map(|(id, member)| {
            let mine = *id == inner.me.0;
            let held = if mine {
                Some(durable.index)
            } else if leads {
                Some(peers.get(id).map_or(Index(0), |id| id.index))
            } else {
                None
            };
            let heard = metrics.heartbeat.as_ref().and_then(|all| all.get(id).copied().flatten());
            MemberStatus {
                id: PeerId(*id),
                member: member.clone(),
                role: if voters.contains(id) { MemberRole::Voter } else { MemberRole::Learner },
                leads: metrics.current_leader == Some(*id),
                connected: mine || inner.transport.session(PeerId(*id)).is_some(),
                durable: held,
                lag: if leads { held.map(|held| last.index.0.saturating_sub(held.0)) } else { None },
                heard: heard.map(|at| now - at.into_inner()),
                refused: inner.books.refused(*id),
            }
        })
        .collect();
    ClusterStatus {
        me: inner.me,
        state: inner.state.borrow().clone(),
        role: *inner.role.borrow(),
        members,
        members_by,
        changing: !is_settled(&metrics, applied),
        last,
        durable,
        committed,
        applied,
    }
}

/// Who the members are, and the entry that says so, unless that can still be undone or a change is under way.
pub(super) fn settled_membership(inner: &Inner) -> Option<(EntryId, Membership)> {
    let metrics = inner.raft.metrics();
    let metrics = metrics.borrow_watched();
    let by = entry_id(metrics.membership_config.log_id().as_ref());
    let is_certain = by.index.0 > 0 && is_settled(&metrics, inner.machine.applied().index);
    is_certain.then(|| (by, metrics.membership_config.membership().clone()))
}

/// A membership counts from where it stands in the log, and may be cut from there again; and a change has two steps.
fn is_settled(metrics: &RaftMetrics<Types>, applied: Index) -> bool {
    let by = entry_id(metrics.membership_config.log_id().as_ref());
    let committed = entry_id(metrics.local_committed.as_ref()).index;
    metrics.membership_config.membership().get_joint_config().len() <= 1 && by.index <= committed.max(applied)
}

/// When this leader last heard of a quorum, if it has; `None` if it does not lead.
pub(super) fn quorum_acked(inner: &Inner) -> Option<Option<Moment>> {
    let metrics = inner.raft.metrics();
    let metrics = metrics.borrow_watched();
    (metrics.state == ServerState::Leader).then(|| metrics.last_quorum_acked.map(|at| at.into_inner()))
}

/// The term of a state, as the rest of the node counts it.
impl ClusterState {
    #[must_use]
    pub const fn term(&self) -> Term {
        Term(self.term)
    }
}
