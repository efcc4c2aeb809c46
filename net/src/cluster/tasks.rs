//! What a cluster does by itself: carries its driver's words to Raft, watches who leads, keeps memory small.

use std::{sync::Arc, time::Duration};

use beamlog_log::Index;
use beamlog_router::replica::Proposal;
use openraft::{ServerState, async_runtime::WatchReceiver, impls::OneshotResponder};
use tokio::sync::mpsc;

use super::{Cluster, ClusterState, Inner, Standing, change, memory, seat::Word, status, succession, time};
use crate::{
    peer::PeerId,
    raft::{Data, raft_index},
    runtime::{self, Moment},
};

pub(super) fn start(cluster: &Cluster, inbox: mpsc::UnboundedReceiver<Word>) {
    drop(runtime::spawn(carry(Arc::clone(&cluster.inner), inbox)));
    drop(runtime::spawn(watch(Arc::clone(&cluster.inner))));
    drop(runtime::spawn(keep(Arc::clone(&cluster.inner))));
    drop(runtime::spawn(succession::watch(Arc::clone(&cluster.inner))));
    drop(runtime::spawn(time::keep(Arc::clone(&cluster.inner))));
    drop(runtime::spawn(memory::keep(Arc::clone(&cluster.inner))));
    drop(runtime::spawn(change::finish(Arc::clone(&cluster.inner))));
}

/// Carries the driver's words.
async fn carry(inner: Arc<Inner>, mut inbox: mpsc::UnboundedReceiver<Word>) {
    while let Some(word) = inbox.recv().await {
        if inner.ended() {
            return;
        }
        match word {
            Word::Propose(proposal) => propose(&inner, proposal).await,
            Word::Confirm(question) => {
                let inner = Arc::clone(&inner);
                drop(runtime::spawn(async move {
                    let leads = inner.confirm().await;
                    inner.shard.confirmed(question, leads);
                }));
            }
            Word::Damaged(damage) => inner.fence(format!("{damage}")).await,
        }
    }
}

/// In the order of the driver; the end of each is awaited beside.
async fn propose(inner: &Arc<Inner>, proposal: Proposal) {
    let id = proposal.id;
    if proposal.body.len() > crate::raft::BODY_BYTES_MAX {
        tracing::error!(bytes = proposal.body.len(), "a frame is larger than peers take; it is refused");
        inner.shard.refused(id);
        return;
    }
    let (responder, result) = OneshotResponder::new_pair();
    if inner.raft.client_write_ff(Data(proposal), Some(responder)).await.is_err() {
        inner.shard.refused(id);
        return;
    }
    let inner = Arc::clone(inner);
    drop(runtime::spawn(async move {
        match result.await {
            Ok(Ok(_committed)) => {}
            Ok(Err(_)) | Err(_) => inner.shard.refused(id),
        }
    }));
}

/// Publishes who leads and whether there is a quorum.
async fn watch(inner: Arc<Inner>) {
    let mut metrics = inner.raft.metrics();
    let mut had_quorum = true;
    // The term in which this node leads, and since when: before that it cannot have heard of a quorum.
    let mut leads = None;
    let mut handed_over: Option<Moment> = None;
    loop {
        let tick = runtime::sleep(inner.options.heartbeat);
        match futures_util::future::select(Box::pin(metrics.changed()), tick).await {
            futures_util::future::Either::Left((Err(_closed), _)) => {
                inner.failed("Raft ended".to_owned());
                return;
            }
            futures_util::future::Either::Left((Ok(()), _)) | futures_util::future::Either::Right(_) => {}
        }
        if inner.ended() {
            return;
        }
        let (state, failed) = look(&inner, &metrics, &mut leads);
        if let Some(reason) = failed {
            inner.failed(reason);
            return;
        }
        if state.standing == Standing::Leader && !state.quorum && had_quorum {
            tracing::warn!(term = state.term, "no quorum is reached: this node serves nobody");
            inner.books.quorum_lost();
            had_quorum = false;
        } else if state.standing == Standing::Leader && state.quorum && !had_quorum {
            // The driver gave this leadership up. Another node begins a new one. That changes what is watched here:
            // who asked at every change would ask for ever.
            let now = runtime::now();
            if handed_over.is_none_or(|at| now - at >= inner.options.election.0) {
                handed_over = Some(now);
                inner.hand_over().await;
            }
        } else if state.standing != Standing::Leader {
            had_quorum = true;
        }
        inner.state.send_if_modified(|current| {
            if *current == state {
                return false;
            }
            if current.leader != state.leader
                && let Some(leader) = state.leader
            {
                tracing::info!(term = state.term, %leader, "a leader was elected");
            }
            *current = state;
            true
        });
    }
}

fn look(
    inner: &Inner,
    metrics: &openraft::type_config::alias::WatchReceiverOf<
        crate::raft::Types,
        openraft::RaftMetrics<crate::raft::Types>,
    >,
    leads: &mut Option<(u64, Moment)>,
) -> (ClusterState, Option<String>) {
    let metrics = metrics.borrow_watched();
    let failed = metrics.running_state.as_ref().err().map(ToString::to_string);
    let membership = metrics.membership_config.membership();
    let voters: Vec<u64> = membership.voter_ids().collect();
    let standing = match metrics.state {
        _ if inner.fence_reason().is_some() => {
            Standing::Fenced { reason: inner.fence_reason().unwrap_or_default() }
        }
        ServerState::Leader => Standing::Leader,
        ServerState::Candidate => Standing::Candidate,
        ServerState::Follower => Standing::Follower,
        ServerState::Learner if voters.is_empty() => Standing::Waiting,
        ServerState::Learner => Standing::Learner,
        ServerState::Shutdown => Standing::Stopped,
    };
    let alone = voters == [inner.me.0];
    let leader = metrics.current_leader.map(PeerId);
    let term = metrics.current_term;
    drop(metrics);
    let now = runtime::now();
    let quorum = match status::quorum_acked(inner) {
        Some(acked) => {
            let (of, since) = *leads.get_or_insert((term, now));
            let since = if of == term { since } else { now };
            *leads = Some((term, since));
            alone || now - acked.unwrap_or(since).max(since) < inner.options.election.1
        }
        None => {
            *leads = None;
            leader.is_some()
        }
    };
    (ClusterState { standing, term, leader, quorum }, failed)
}

/// How often memory is looked at.
const UPKEEP: Duration = Duration::from_millis(500);

/// Tells openraft what the log does not have any more, so that it sends copies to who needs that.
async fn keep(inner: Arc<Inner>) {
    loop {
        let tick = runtime::sleep(UPKEEP);
        drop(futures_util::future::select(Box::pin(inner.books.short_history()), tick).await);
        if inner.ended() {
            return;
        }
        inner.copies.forget_idle();
        let Ok(state) = inner.shard.state().await else { return };
        let upto = state.history_from.index.min(inner.machine.applied().index);
        let Some(upto) = raft_index(upto).filter(|_| upto > inner.storage.purged()) else { continue };
        // In this order: only what is in a snapshot may be left behind.
        if inner.raft.trigger().snapshot().await.is_err() {
            return;
        }
        if inner.raft.trigger().purge_log(upto).await.is_err() {
            return;
        }
    }
}

impl Inner {
    pub(super) fn ended(&self) -> bool {
        matches!(self.state.borrow().standing, Standing::Stopped | Standing::Failed { .. })
    }

    pub(super) fn failed(&self, reason: String) {
        let stopped = self.state.borrow().standing == Standing::Stopped;
        if !stopped {
            tracing::error!(%reason, "this node's part in the cluster has failed");
            self.shard.step_down();
            self.state.send_modify(|state| state.standing = Standing::Failed { reason });
        }
    }

    /// Neither votes nor leads nor counts any more.
    pub(super) async fn fence(&self, reason: String) {
        tracing::error!(%reason, "this node is fenced: it neither votes nor leads until it is repaired");
        self.handler.fence(reason);
        self.raft.runtime_config().elect(false);
        if self.books.leads().is_some() {
            self.hand_over().await;
        }
    }

    /// Asks the voter that holds most to lead.
    async fn hand_over(&self) {
        if let Some(successor) = self.successor() {
            // Raft has stopped if it does not take it.
            drop(self.raft.trigger().transfer_leader(successor).await);
        }
    }

    pub(super) fn fence_reason(&self) -> Option<String> {
        self.handler.fence_reason()
    }

    /// The voter that holds most of the log, this node left out.
    pub(super) fn successor(&self) -> Option<u64> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let peers = self.books.peers();
        membership
            .voter_ids()
            .filter(|id| *id != self.me.0)
            .filter(|id| membership.get_node(id).is_some_and(|member| !member.witness))
            .max_by_key(|id| peers.get(id).map_or(Index(0), |id| id.index))
    }
}
