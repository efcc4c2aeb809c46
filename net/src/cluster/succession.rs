//! An election that begins as soon as the leader's process is known to have ended.
//!
//! Raft waits for the leader's lease and for a time by chance, more than a second. When a process was killed that
//! is known within two heartbeats ([`Vigil`]). A node that knows it asks the other voters whether they know it too
//! and would vote for it; only a quorum that says so begins an election, so that one node which cannot reach a
//! living leader disturbs nobody. Two that begin at once would split the votes: they go in the order of their ids.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use openraft::{ServerState, async_runtime::WatchReceiver};

use super::Inner;
use crate::{
    peer::{Lane, PeerId},
    raft::{
        Heard,
        wire::{Answer, Request, WireVote},
    },
    runtime,
};

/// Looks, until the cluster has ended.
pub(super) async fn watch(inner: Arc<Inner>) {
    // The leader whose end was answered with an attempt, and the attempts.
    let mut tried: Option<(Heard, u32)> = None;
    while !inner.ended() {
        runtime::sleep(inner.options.heartbeat / 2).await;
        let Some(voters) = may_begin(&inner) else { continue };
        let Some(gone) = inner.vigil.ended().await else { continue };
        if !voters.contains(&gone.leader) || term(&inner) != gone.term {
            // Removed, or another election has begun.
            continue;
        }
        let attempts = match tried {
            Some((of, attempts)) if of == gone => attempts,
            Some(_) | None => 0,
        };
        // After these, time decides as it does without this.
        if attempts >= ATTEMPTS_MAX {
            continue;
        }
        let before = voters.iter().filter(|id| **id != gone.leader && **id < inner.me.0).count();
        let turn = u32::try_from(before).unwrap_or(u32::MAX);
        runtime::sleep(inner.options.heartbeat.saturating_mul(turn)).await;
        // Another may have begun meanwhile, or been elected.
        if term(&inner) != gone.term
            || inner.vigil.has_yielded(inner.options.heartbeat * 2)
            || inner.vigil.ended().await != Some(gone)
        {
            continue;
        }
        tried = Some((gone, attempts + 1));
        if would_be_elected(&inner, gone).await && term(&inner) == gone.term {
            tracing::info!(
                term = gone.term + 1,
                was = %PeerId(gone.leader),
                "the leader's process has ended: this node stands for election"
            );
            if inner.raft.trigger().elect(false).await.is_err() {
                return;
            }
        }
    }
}

const ATTEMPTS_MAX: u32 = 8;

fn term(inner: &Inner) -> u64 {
    inner.raft.metrics().borrow_watched().current_term
}

/// The voters, if this node is one that may stand for election.
fn may_begin(inner: &Inner) -> Option<BTreeSet<u64>> {
    if !inner.shard.keeps_messages() || inner.fence_reason().is_some() {
        return None;
    }
    let metrics = inner.raft.metrics();
    let metrics = metrics.borrow_watched();
    let voters: BTreeSet<u64> = metrics.membership_config.membership().voter_ids().collect();
    (metrics.state == ServerState::Follower && voters.contains(&inner.me.0)).then_some(voters)
}

/// Whether a quorum of each configuration says that it would vote for this node.
async fn would_be_elected(inner: &Inner, gone: Heard) -> bool {
    let configurations: Vec<BTreeSet<u64>> =
        inner.raft.metrics().borrow_watched().membership_config.membership().get_joint_config().clone();
    let mut granted = BTreeSet::from([inner.me.0]);
    let is_quorum = |granted: &BTreeSet<u64>| {
        configurations.iter().all(|voters| voters.intersection(granted).count() * 2 > voters.len())
    };
    let voters: BTreeSet<u64> = configurations.iter().flatten().copied().collect();
    let vote = WireVote { term: gone.term + 1, node: inner.me.0, committed: false };
    let request = Request::PreVote { vote, last: inner.storage.last(), transfer: false };
    let request = request.encode(inner.handler.shard());
    let limit: Duration = inner.options.election.0;
    let mut asked: FuturesUnordered<_> = voters
        .into_iter()
        .filter(|voter| *voter != inner.me.0 && *voter != gone.leader)
        .map(|voter| {
            let call = inner.transport.call(PeerId(voter), Lane::Vote, request.clone(), limit);
            async move { (voter, call.await) }
        })
        .collect();
    while !is_quorum(&granted) {
        let Some((voter, answer)) = asked.next().await else { return false };
        let Ok(bytes) = answer else { continue };
        if let Ok(Answer::Vote { granted: true, .. }) = Answer::decode(bytes) {
            granted.insert(voter);
        }
    }
    true
}
