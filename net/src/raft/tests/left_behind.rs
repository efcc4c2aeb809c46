//! A leader whose log loses entries that a peer was about to be sent.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use beamlog_log::{EntryId, Index, LogEntry, Term, Timestamp};
use beamlog_router::replica::Proposal;
use bytes::Bytes;
use openraft::Config;
use tokio::sync::watch;

use super::{
    Parts,
    direct::{DirectShard, SHARD},
};
use crate::{
    peer::{BoxFuture, CallError, Lane, PeerId, PeerTransport, SendError, Session},
    raft::{
        Data, Member, entry_id, log_id, raft_index,
        wire::{Answer, OfferState, Outcome, Request},
    },
};

const ME: u64 = 1;
const PEER: u64 = 2;

/// A peer that takes everything, unless it is told to wait.
struct Peer {
    answers: watch::Sender<bool>,
    /// The last entry that it was sent.
    sent: watch::Sender<Index>,
    /// Where a copy ends that it was offered.
    offered: watch::Sender<Option<Index>>,
}

impl Peer {
    async fn answer(&self, request: Bytes) -> Answer {
        match Request::decode(request).unwrap().1 {
            Request::Append(append) => {
                let last = append.entries.last().map_or(append.previous, |entry| entry.id);
                self.sent.send_replace(last.index);
                self.answers.subscribe().wait_for(|answers| *answers).await.unwrap();
                Answer::Append { outcome: Outcome::Taken, durable: last }
            }
            Request::Offer { state, .. } => {
                self.offered.send_replace(Some(state.last.index));
                Answer::Offer(OfferState::Fetching { done: 0, total: 1 })
            }
            Request::Vote { .. }
            | Request::PreVote { .. }
            | Request::Transfer { .. }
            | Request::Have { .. }
            | Request::Members
            | Request::Time
            | Request::Files
            | Request::Chunk { .. } => panic!("a learner is not asked that"),
        }
    }

    async fn was_sent(&self, index: Index) {
        self.sent.subscribe().wait_for(|sent| *sent >= index).await.unwrap();
    }
}

struct Wire(Arc<Peer>);

impl PeerTransport for Wire {
    fn call(
        &self,
        _peer: PeerId,
        _lane: Lane,
        request: Bytes,
        _timeout: Duration,
    ) -> BoxFuture<'static, Result<Bytes, CallError>> {
        let peer = Arc::clone(&self.0);
        Box::pin(async move { Ok(peer.answer(request).await.encode()) })
    }

    fn send(&self, _to: Session, _lane: Lane, _frame: Bytes) -> Result<(), SendError> {
        Ok(())
    }

    fn reset(&self, _session: Session, _reason: &str) {}

    fn session(&self, _peer: PeerId) -> Option<Session> {
        None
    }
}

async fn write(leader: &Parts, id: u64) -> EntryId {
    let body = LogEntry::replication_body(SHARD, b"");
    let proposal = Proposal { id, term: Term(1), timestamp: Timestamp(0), records: 1, body };
    let written = leader.raft.client_write(Data(proposal)).await.unwrap();
    entry_id(Some(&written.log_id))
}

/// Openraft purges nothing that a stream would send, and a stream that cannot read what it would send sends nothing: the
/// peer would wait for its entries for ever.
#[tokio::test]
async fn a_stream_without_entries_ends_and_the_peer_gets_a_copy() {
    let peer = Arc::new(Peer {
        answers: watch::Sender::new(true),
        sent: watch::Sender::new(Index(0)),
        offered: watch::Sender::new(None),
    });
    let shard = Arc::new(DirectShard::new());
    let transport: Arc<dyn PeerTransport> = Arc::new(Wire(Arc::clone(&peer)));
    let config = Config { enable_heartbeat: false, ..Config::default() };
    let leader = Parts::build(ME, Arc::clone(&shard), &transport, config, 0).await;
    leader.raft.initialize(BTreeMap::from([(ME, Member::default())])).await.unwrap();
    leader.raft.wait(None).current_leader(ME, "it leads alone").await.unwrap();
    // The beginning is left behind: it is of term 0, which never crosses a wire.
    let begun = log_id(write(&leader, 0).await).unwrap();
    leader.raft.trigger().snapshot().await.unwrap();
    leader.raft.wait(None).snapshot(begun, "it can be copied").await.unwrap();
    leader.raft.trigger().purge_log(begun.index).await.unwrap();
    leader.raft.wait(None).purged(Some(begun), "it is in files only").await.unwrap();
    leader.raft.add_learner(PEER, Member::default(), false).await.unwrap();
    let first = write(&leader, 1).await;
    peer.was_sent(first.index).await;
    // The next entry is on its way while those behind it are written, and left behind.
    peer.answers.send_replace(false);
    let under_way = write(&leader, 2).await;
    peer.was_sent(under_way.index).await;
    let gone = EntryId { index: Index(under_way.index.0 + 4), ..under_way };
    shard.leave_behind(gone);
    let mut last = under_way;
    for id in 3..8 {
        last = write(&leader, id).await;
    }
    peer.answers.send_replace(true);
    let offered = async {
        let mut offered = peer.offered.subscribe();
        let upto = raft_index(gone.index).unwrap();
        loop {
            // As a cluster's upkeep does.
            leader.raft.trigger().snapshot().await.unwrap();
            leader.raft.trigger().purge_log(upto).await.unwrap();
            let some = tokio::time::timeout(Duration::from_millis(20), offered.wait_for(Option::is_some));
            if let Ok(some) = some.await {
                return *some.unwrap();
            }
        }
    };
    let offered = tokio::time::timeout(Duration::from_secs(60), offered).await.expect("no copy is offered");
    assert_eq!(offered, Some(last.index));
}
