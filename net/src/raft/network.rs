//! Asking peers what openraft wants to know. What they answer is checked before openraft sees it.

use std::{future::Future, sync::Arc, time::Duration};

use beamlog_log::{EntryId, Index, LogEntry, ShardId, Term};
use bytes::Bytes;
use openraft::{
    RPCTypes,
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable},
    network::{Backoff, RPCOption, RaftNetworkFactory, RaftNetworkV2},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderError,
        TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
    },
    type_config::alias::SnapshotOf,
    vote::RaftLeaderId,
};

use super::{
    Books, Report, Staged, Storage, Types, Vote, entry_id, log_id,
    types::{LeaderId, Member, Purpose},
    wire::{Answer, Append, CopyOf, OfferState, Outcome, Request, TransferRefused, WireVote},
};
use crate::{
    peer::{CallError, Lane, PeerId, PeerTransport},
    runtime,
};

type Failed = RPCError<Types>;

/// How often it is looked whether data nodes have what a witness is to take.
const COPIES_LOOK: Duration = Duration::from_millis(2);
/// After so many looks it is asked whether they live at all.
const ASK_EVERY: u32 = 40;

/// How long peers may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    /// For entries: they may be megabytes, and a disk syncs them. Heartbeats have openraft's shorter limit.
    pub(crate) append: Duration,
    /// For an answer about a copy.
    pub(crate) copy: Duration,
    /// Between two questions how far a copy is.
    pub(crate) copy_poll: Duration,
    /// A copy that does not advance for so long has failed.
    pub(crate) copy_stalled: Duration,
}

/// Makes clients of peers for openraft.
#[derive(Clone)]
pub(crate) struct Links {
    pub(crate) me: u64,
    pub(crate) shard: ShardId,
    pub(crate) transport: Arc<dyn PeerTransport>,
    pub(crate) books: Arc<Books>,
    pub(crate) storage: Storage,
    #[cfg(feature = "planted-bugs")]
    pub(crate) planted_bug: Option<crate::cluster::PlantedBug>,
    pub(crate) timing: Timing,
}

impl RaftNetworkFactory<Types> for Links {
    type Network = Link;

    async fn new_client(&mut self, target: u64, node: &Member) -> Link {
        Link { links: self.clone(), target, witness: node.witness }
    }
}

/// A client of one peer.
pub(crate) struct Link {
    links: Links,
    target: u64,
    /// It is told which entries there are, and not what they say.
    witness: bool,
}

/// A peer that answers what no honest one does.
#[derive(Debug, thiserror::Error)]
#[error("peer {peer:016x}: {reason}")]
struct Lie {
    peer: u64,
    reason: String,
}

/// A stream of entries that cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("what follows entry {previous} is in files only")]
struct InFilesOnly {
    previous: Index,
}

impl Link {
    async fn ask(
        &self,
        lane: Lane,
        request: &Request,
        limit: Duration,
        action: RPCTypes,
    ) -> Result<Answer, Failed> {
        let bytes: Bytes = request.encode(self.links.shard);
        let answer = self.links.transport.call(PeerId(self.target), lane, bytes, limit).await;
        let bytes = answer.map_err(|error| match error {
            CallError::TimedOut => {
                RPCError::Timeout(Timeout { action, id: self.links.me, target: self.target, timeout: limit })
            }
            CallError::Lost(_) => RPCError::Network(NetworkError::new(&error)),
            CallError::NotConnected(_)
            | CallError::TooLarge { .. }
            | CallError::OneWay(_)
            | CallError::Refused(_) => {
                if !matches!(error, CallError::NotConnected(_)) {
                    tracing::debug!(peer = %PeerId(self.target), ?lane, %error, "a request was refused");
                }
                RPCError::Unreachable(Unreachable::new(&error))
            }
        })?;
        Answer::decode(bytes).map_err(|error| self.lie(error.to_string()))
    }

    /// A witness takes an entry last: see [`Books::copies_awaited`].
    async fn data_copies(&self, index: Index) {
        let mut looks = 0_u32;
        loop {
            let awaited = self.links.books.copies_awaited(index, runtime::now());
            if awaited.is_empty() {
                return;
            }
            if looks % ASK_EVERY == ASK_EVERY - 1 {
                for peer in awaited.into_iter().filter(|peer| *peer != self.links.me) {
                    if self.links.transport.has_ended(PeerId(peer)).await {
                        self.links.books.is_down(peer);
                    }
                }
            }
            looks += 1;
            runtime::sleep(COPIES_LOOK).await;
        }
    }

    fn lie(&self, reason: String) -> Failed {
        let lie = Lie { peer: self.target, reason };
        tracing::warn!(error = %lie, "an answer was refused");
        RPCError::Unreachable(Unreachable::new(&lie))
    }

    fn unexpected(&self) -> Failed {
        self.lie("it answered something else than it was asked".to_owned())
    }

    fn vote_request(rpc: &VoteRequest<Types>) -> (WireVote, EntryId, bool) {
        (wire_vote(&rpc.vote), entry_id(rpc.last_log_id.as_ref()), rpc.leadership_transfer)
    }

    fn voted(&self, asked: &Vote, answer: Answer) -> Result<VoteResponse<Types>, Failed> {
        let Answer::Vote { vote, last, granted } = answer else { return Err(self.unexpected()) };
        if let Some(held) = self.links.books.regressed(self.target, last.index) {
            return Err(self
                .lie(format!("it ends at entry {} and once held committed ones up to {held}", last.index)));
        }
        if granted && (vote.term, vote.node) != (asked.leader_id().term, asked.leader_id().voted_for) {
            return Err(self.lie("it grants a vote that it was not asked for".to_owned()));
        }
        Ok(VoteResponse { vote: raft_vote(vote), vote_granted: granted, last_log_id: log_id(last) })
    }
}

pub(crate) fn wire_vote(vote: &Vote) -> WireVote {
    WireVote { term: vote.leader_id().term, node: vote.leader_id().voted_for, committed: vote.is_committed() }
}

pub(crate) fn raft_vote(vote: WireVote) -> Vote {
    Vote { leader_id: LeaderId::new(vote.term, vote.node), committed: vote.committed }
}

impl RaftNetworkV2<Types> for Link {
    type SnapshotData = Staged;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, Failed> {
        let previous = entry_id(rpc.prev_log_id.as_ref());
        // A stream that openraft once began sends nothing for ever when its entries are gone: as long as it lasts
        // openraft purges nothing that the stream would send, and gives no copy. So the stream ends. (It may be a
        // heartbeat that fails here instead; the stream reads again.)
        if rpc.entries.is_empty() && self.links.storage.take_short_read(previous.index) {
            return Err(RPCError::Network(NetworkError::new(&InFilesOnly { previous: previous.index })));
        }
        let mut entries = Vec::with_capacity(rpc.entries.len());
        for entry in rpc.entries {
            let id = entry_id(Some(&entry.log_id));
            let Some(frame) = entry.payload.frame else {
                return Err(self.lie(format!("our own entry {} has no frame", id.index)));
            };
            let (timestamp, records, body) = (frame.timestamp, frame.records, frame.body);
            if self.witness && entry.payload.purpose == Purpose::Frame {
                let body = LogEntry::replication_body(self.links.shard, &[]);
                entries.push(LogEntry { id, timestamp, records: 1, body });
            } else {
                entries.push(LogEntry { id, timestamp, records, body });
            }
        }
        let last = entries.last().map_or(previous, |entry| entry.id);
        if self.witness && !entries.is_empty() {
            self.data_copies(last.index).await;
        }
        let (lane, limit) = if entries.is_empty() {
            (Lane::Vote, option.soft_ttl())
        } else {
            (Lane::Append, option.soft_ttl().max(self.links.timing.append))
        };
        let terms: Vec<EntryId> = entries.iter().map(|entry| entry.id).collect();
        let request = Request::Append(Append {
            vote: wire_vote(&rpc.vote),
            previous,
            commit: entry_id(rpc.leader_commit.as_ref()),
            held: self.links.books.held().into_iter().collect(),
            entries,
        });
        let term = Term(rpc.vote.leader_id().term);
        let held = self.links.books.known_of(self.target, term);
        let answer = self.ask(lane, &request, limit, RPCTypes::AppendEntries).await;
        #[cfg(feature = "planted-bugs")]
        if let Some(bug) = self.links.planted_bug
            && answer.is_err()
            && !terms.is_empty()
        {
            if bug == crate::cluster::PlantedBug::AnswersMadeUpAndBooked {
                let report = Report { term, matched: last, durable: last };
                drop(self.links.books.reported(self.target, report, self.links.storage.last().index));
            }
            return Ok(AppendEntriesResponse::Success);
        }
        let Answer::Append { outcome, durable } = answer? else {
            return Err(self.unexpected());
        };
        self.links.books.answered(self.target, held, durable).map_err(|bad| self.lie(bad.to_string()))?;
        let matched = match outcome {
            Outcome::Taken => last,
            Outcome::Partly(id) => {
                // It may name nothing but what it was sent, or the entry before that.
                if id != previous && !terms.contains(&id) {
                    return Err(self.lie(format!(
                        "it took entry {} of term {}, which it was not sent",
                        id.index, id.term
                    )));
                }
                id
            }
            Outcome::Conflict => {
                if previous.index.0 == 0 {
                    return Err(self.lie("it refuses the beginning of the log".to_owned()));
                }
                return Ok(AppendEntriesResponse::Conflict);
            }
            Outcome::HigherVote(vote) => {
                let ours = rpc.vote.leader_id().term;
                if vote.term < ours {
                    return Err(self.lie(format!("its vote of term {} is not higher than {ours}", vote.term)));
                }
                return Ok(AppendEntriesResponse::HigherVote(raft_vote(vote)));
            }
        };
        let report = Report { term, matched, durable };
        let books = &self.links.books;
        books
            .reported(self.target, report, self.links.storage.last().index)
            .map_err(|bad| self.lie(bad.to_string()))?;
        Ok(match outcome {
            Outcome::Partly(id) => AppendEntriesResponse::PartialSuccess(log_id(id)),
            Outcome::Taken | Outcome::Conflict | Outcome::HigherVote(_) => AppendEntriesResponse::Success,
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, Failed> {
        let (vote, last, transfer) = Self::vote_request(&rpc);
        let request = Request::Vote { vote, last, transfer };
        let answer = self.ask(Lane::Vote, &request, option.soft_ttl(), RPCTypes::Vote).await?;
        self.voted(&rpc.vote, answer)
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, Failed> {
        let (vote, last, transfer) = Self::vote_request(&rpc);
        let request = Request::PreVote { vote, last, transfer };
        let answer = self.ask(Lane::Vote, &request, option.soft_ttl(), RPCTypes::Vote).await?;
        let Answer::Vote { vote, last, granted } = answer else { return Err(self.unexpected()) };
        if let Some(held) = self.links.books.regressed(self.target, last.index) {
            return Err(self
                .lie(format!("it ends at entry {} and once held committed ones up to {held}", last.index)));
        }
        Ok(VoteResponse { vote: raft_vote(vote), vote_granted: granted, last_log_id: log_id(last) })
    }

    /// Tells the peer that it needs a copy, and asks until it has one. The peer fetches it by itself, on a lane
    /// of its own; a copy is as long as it must be, but it must advance.
    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<Types, Staged>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let offered = entry_id(snapshot.meta.last_log_id.as_ref());
        let request = Request::Offer { vote: wire_vote(&vote), state: CopyOf { last: offered } };
        let timing = self.links.timing;
        let copied = async {
            let mut seen = None;
            let mut advanced = runtime::now();
            loop {
                let answer =
                    self.ask(Lane::CatchUp, &request, timing.copy, RPCTypes::InstallSnapshot).await?;
                let Answer::Offer(answer) = answer else { return Err(self.unexpected()) };
                match answer {
                    OfferState::Installed { last, .. } if last.index < offered.index => {
                        return Err(self.lie(format!(
                            "it says that a copy up to entry {} is installed, and ends at {}",
                            offered.index, last.index
                        )));
                    }
                    // openraft takes every vote that is not higher for a copy that was made.
                    OfferState::HigherVote(higher) if higher.term <= vote.leader_id().term => {
                        return Err(self.lie(format!("its vote of term {} is not higher", higher.term)));
                    }
                    OfferState::Installed { vote, last: _ } | OfferState::HigherVote(vote) => {
                        return Ok(SnapshotResponse::new(raft_vote(vote)));
                    }
                    OfferState::Failed { reason } => {
                        let lie = Lie { peer: self.target, reason };
                        return Err(RPCError::Unreachable(Unreachable::new(&lie)));
                    }
                    OfferState::Fetching { done, .. } => {
                        if seen != Some(done) {
                            seen = Some(done);
                            advanced = runtime::now();
                        } else if runtime::now() - advanced > timing.copy_stalled {
                            return Err(RPCError::Timeout(Timeout {
                                action: RPCTypes::InstallSnapshot,
                                id: self.links.me,
                                target: self.target,
                                timeout: timing.copy_stalled,
                            }));
                        }
                    }
                }
                runtime::sleep(timing.copy_poll).await;
            }
        };
        let cancel = Box::pin(cancel);
        match futures_util::future::select(cancel, Box::pin(copied)).await {
            futures_util::future::Either::Left((closed, _)) => Err(StreamingError::Closed(closed)),
            futures_util::future::Either::Right((copied, _)) => copied.map_err(|error| match error {
                RPCError::Timeout(error) => StreamingError::Timeout(error),
                RPCError::Unreachable(error) => StreamingError::Unreachable(error),
                RPCError::Network(error) => StreamingError::Network(error),
                RPCError::RemoteError(never) => match never.source {},
            }),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, Failed> {
        let wire = Request::Transfer {
            from: wire_vote(request.from_leader()),
            to: *request.to_node_id(),
            last: entry_id(request.last_log_id()),
        };
        let answer = self.ask(Lane::Vote, &wire, option.soft_ttl(), RPCTypes::TransferLeader).await?;
        let Answer::Transfer(answer) = answer else { return Err(self.unexpected()) };
        Ok(answer.map_err(|refused| match refused {
            TransferRefused::VoteChanged { expected, actual } => {
                TransferLeaderError::VoteChanged { expected: raft_vote(expected), actual: raft_vote(actual) }
            }
            TransferRefused::NotFlushed { expected, actual } => {
                TransferLeaderError::LogNotFlushed { expected: log_id(expected), actual: log_id(actual) }
            }
        }))
    }

    fn backoff(&self) -> Option<Backoff> {
        None
    }
}
