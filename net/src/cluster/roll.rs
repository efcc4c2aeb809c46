//! Who the members are, as peers know it, for a node that no leader reaches.
//!
//! Who the members are stands in the log, and the log comes from a leader. A node that was away while another one was replaced under
//! its name knows that name with the id that is gone, and so refuses the new one; if that one leads, the node would never hear
//! why. What peers say of the members is for names and addresses only: who votes, and how many are a quorum, is what the log says.

use std::time::Duration;

use beamlog_log::EntryId;

use super::{Cluster, Inner, Member, status};
use crate::{
    peer::{Lane, PeerId, Refusal},
    raft::{
        code, decode_membership, encode_membership,
        wire::{Answer, Request},
    },
};

/// How long a peer may take to say it.
const ANSWER: Duration = Duration::from_secs(1);

/// The members by an entry that is committed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Roll {
    /// The entry that says so.
    pub by: EntryId,
    pub members: Vec<(PeerId, Member)>,
}

impl Roll {
    /// Whether another entry about the members is older: one of an earlier term, or before this one in its term.
    #[must_use]
    pub fn is_newer_than(&self, other: EntryId) -> bool {
        (self.by.term, self.by.index) > (other.term, other.index)
    }
}

impl Cluster {
    /// Asks a peer who the members are. `None`: it cannot say, because a change is under way, or did not answer.
    ///
    /// *Cancel safety*: safe.
    pub async fn ask_members(&self, peer: PeerId) -> Option<Roll> {
        let request = Request::Members.encode(self.shard());
        let answer = self.inner.transport.call(peer, Lane::Vote, request, ANSWER).await.ok()?;
        let Ok(Answer::Members { membership_id, membership }) = Answer::decode(answer) else { return None };
        let membership = decode_membership(&membership).ok()?;
        let members = membership.nodes().map(|(id, member)| (PeerId(*id), member.clone())).collect();
        Some(Roll { by: membership_id, members })
    }
}

/// A peer asks.
pub(super) fn answer(inner: &Inner) -> Result<Answer, Refusal> {
    let refuse = |reason: String| Refusal { code: code::STOPPED, reason };
    let (membership_id, membership) = status::settled_membership(inner)
        .ok_or_else(|| refuse("who the members are is not certain here now".to_owned()))?;
    let membership = encode_membership(&membership).map_err(|error| refuse(error.to_string()))?;
    Ok(Answer::Members { membership_id, membership: membership.into() })
}
