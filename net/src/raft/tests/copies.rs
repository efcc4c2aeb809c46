//! A copy that is under way while another node becomes leader.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use beamlog_log::{EntryId, Index, LogEntry, Shipment, Term, Timestamp};
use beamlog_router::replica::ReplicaEntry;
use bytes::Bytes;
use openraft::{Config, raft::AppendEntriesRequest};
use tokio::sync::Notify;

use super::{
    Parts,
    direct::{DirectShard, SHARD},
};
use crate::{
    catchup::{Copies, CopyLimits},
    peer::{BoxFuture, CallError, Lane, PeerId, PeerTransport, Refusal, SendError, Session},
    raft::{
        Machine, Member, Membership, Raft, Shard, encode_membership, raft_vote,
        wire::{Answer, CopyOf, OfferState, Request, WireVote},
    },
};

const ME: u64 = 2;
const OLD: WireVote = WireVote { term: 4, node: 1, committed: true };
const NEW: WireVote = WireVote { term: 5, node: 3, committed: true };

/// Leaders that give the same files. The old one gives no bytes before it is let.
struct Leaders {
    shipment: Shipment,
    asked: Notify,
    let_go: Notify,
}

impl Leaders {
    fn new() -> Self {
        let source = DirectShard::new();
        let entries = (1..=9).map(|index| {
            let id = EntryId { index: Index(index), term: Term(0) };
            let body = LogEntry::replication_body(SHARD, b"");
            let entry = LogEntry { id, timestamp: Timestamp(0), records: 1, body };
            ReplicaEntry { entry, proposal: None }
        });
        source.append(entries.collect(), Box::new(|done| assert!(done.is_ok())));
        let shipment = futures_util::FutureExt::now_or_never(source.ship()).unwrap().unwrap();
        Self { shipment, asked: Notify::new(), let_go: Notify::new() }
    }

    fn last(&self) -> EntryId {
        self.shipment.files().last
    }

    async fn answer(&self, peer: PeerId, request: Bytes) -> Answer {
        let request = Request::decode(request).unwrap().1;
        let Request::Chunk { file, offset, bytes } = request else {
            assert_eq!(request, Request::Files);
            let nodes = BTreeMap::from([(ME, Member::default())]);
            let membership = Membership::new(vec![BTreeSet::from([ME])], nodes).unwrap();
            return Answer::Files {
                membership_id: EntryId { index: Index(1), term: Term(1) },
                membership: encode_membership(&membership).unwrap().into(),
                list: self.shipment.files().encode().unwrap().into(),
            };
        };
        if peer.0 == OLD.node {
            self.asked.notify_one();
            self.let_go.notified().await;
        }
        Answer::Chunk(self.shipment.read(&file, offset, usize::try_from(bytes).unwrap()).unwrap())
    }
}

struct Wire(Arc<Leaders>);

impl PeerTransport for Wire {
    fn call(
        &self,
        peer: PeerId,
        _lane: Lane,
        request: Bytes,
        _timeout: Duration,
    ) -> BoxFuture<'static, Result<Bytes, CallError>> {
        let leaders = Arc::clone(&self.0);
        Box::pin(async move { Ok(leaders.answer(peer, request).await.encode()) })
    }

    fn send(&self, _to: Session, _lane: Lane, _frame: Bytes) -> Result<(), SendError> {
        Ok(())
    }

    fn reset(&self, _session: Session, _reason: &str) {}

    fn session(&self, _peer: PeerId) -> Option<Session> {
        None
    }
}

/// A node without an entry.
struct Node {
    raft: Raft,
    machine: Machine,
    copies: Arc<Copies>,
}

impl Node {
    async fn start(leaders: &Arc<Leaders>) -> Self {
        let transport: Arc<dyn PeerTransport> = Arc::new(Wire(Arc::clone(leaders)));
        let config = Config { enable_elect: false, ..Config::default() };
        let parts = Parts::build(ME, Arc::new(DirectShard::new()), &transport, config, 1 << 20).await;
        let Parts { raft, shard, books, storage, machine } = parts;
        let limits = CopyLimits { answer: Duration::from_secs(5), failures: 3, chunk: 1 << 20 };
        let copies = Copies::new(raft.clone(), shard, books, storage, machine.clone(), transport, limits);
        Self { raft, machine, copies: Arc::new(copies) }
    }

    async fn offered(&self, by: WireVote, last: EntryId) -> OfferState {
        let request = Request::Offer { vote: by, state: CopyOf { last } };
        match self.copies.answer(PeerId(by.node), request).await {
            Ok(Answer::Offer(state)) => state,
            Ok(other) => panic!("{other:?}"),
            Err(Refusal { reason, .. }) => panic!("{reason}"),
        }
    }

    async fn hears_of(&self, leader: WireVote) {
        let heartbeat = AppendEntriesRequest {
            vote: raft_vote(leader),
            prev_log_id: None,
            entries: Vec::new(),
            leader_commit: None,
        };
        self.raft.append_entries(heartbeat).await.unwrap();
    }
}

/// Openraft installs nothing by the word of who does not lead any more. To say that it did is to say that entries are
/// here that are not: the new leader would send what comes behind them, and be refused, for ever.
#[tokio::test]
async fn a_copy_is_there_when_its_node_says_so() {
    for offers_early in [false, true] {
        let leaders = Arc::new(Leaders::new());
        let node = Node::start(&leaders).await;
        let last = leaders.last();
        assert!(matches!(node.offered(OLD, last).await, OfferState::Fetching { .. }));
        leaders.asked.notified().await;
        node.hears_of(NEW).await;
        if offers_early {
            assert!(matches!(node.offered(NEW, last).await, OfferState::Fetching { .. }));
        }
        leaders.let_go.notify_one();
        loop {
            match node.offered(NEW, last).await {
                OfferState::Installed { last: said, .. } => {
                    assert_eq!((said, node.machine.applied()), (last, last));
                    break;
                }
                OfferState::Fetching { .. } => tokio::task::yield_now().await,
                OfferState::Failed { reason } => assert!(reason.contains("lead any more"), "{reason}"),
                OfferState::HigherVote(vote) => panic!("{vote:?}"),
            }
        }
    }
}

/// Whoever offers more than the last copy had is not told of that one.
#[tokio::test]
async fn a_copy_that_is_made_says_nothing_of_later_entries() {
    let leaders = Arc::new(Leaders::new());
    let node = Node::start(&leaders).await;
    let last = leaders.last();
    assert!(matches!(node.offered(NEW, last).await, OfferState::Fetching { .. }));
    while node.machine.applied() != last {
        tokio::task::yield_now().await;
    }
    let later = EntryId { index: last.index.next(), ..last };
    loop {
        match node.offered(NEW, later).await {
            OfferState::Fetching { .. } => tokio::task::yield_now().await,
            OfferState::Failed { reason } => {
                assert!(reason.contains("older than the state here"), "{reason}");
                break;
            }
            said @ (OfferState::Installed { .. } | OfferState::HigherVote(_)) => panic!("{said:?}"),
        }
    }
}
