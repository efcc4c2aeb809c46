//! Being asked by peers: what they say is decoded and checked whole before openraft sees it.

use std::sync::{Arc, Mutex, PoisonError};

use beamlog_log::{EntryId, ShardId};
use bytes::Bytes;
use openraft::{
    async_runtime::WatchReceiver,
    errors::{Fatal, RaftError},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest, VoteRequest,
        VoteResponse,
    },
};

use super::{
    Books, Machine, Raft, Shard, Storage, Types, Vigil, control, entry_id, log_id,
    network::{raft_vote, wire_vote},
    wire::{Answer, Append, Outcome, Request, TransferRefused, WireError, WireVote},
};
use crate::peer::{PeerId, Refusal};

/// Codes of refusals of this handler.
pub(crate) mod code {
    /// The bytes are not a request, or one that no honest node sends.
    pub(crate) const MALFORMED: u16 = 0x0301;
    /// Another shard.
    pub(crate) const SHARD: u16 = 0x0302;
    /// This node's part in the shard has stopped.
    pub(crate) const STOPPED: u16 = 0x0303;
    /// This node may not vote or take entries: it lost some, or does not know yet.
    pub(crate) const FENCED: u16 = 0x0304;
    /// Who asks is not whom the request is from.
    pub(crate) const IDENTITY: u16 = 0x0305;
    /// It lost what it acknowledged (DR13).
    pub(crate) const REGRESSED: u16 = 0x0307;
    /// Files cannot be given, or taken.
    pub(crate) const FILES: u16 = 0x0306;
}

/// Answers peers for one shard.
pub(crate) struct RaftHandler {
    shard: ShardId,
    me: u64,
    /// A witness does not.
    campaigns: bool,
    raft: Raft,
    books: Arc<Books>,
    storage: Storage,
    machine: Machine,
    vigil: Arc<Vigil>,
    /// Why it neither votes nor takes entries (DR5, DR13).
    fenced: Mutex<Option<String>>,
}

fn refuse(code: u16, reason: impl Into<String>) -> Refusal {
    Refusal { code, reason: reason.into() }
}

fn stopped(error: &Fatal<Types>) -> Refusal {
    refuse(code::STOPPED, error.to_string())
}

fn raft_stopped(error: &RaftError<Types>) -> Refusal {
    match error {
        RaftError::Fatal(fatal) => stopped(fatal),
        RaftError::APIError(never) => match *never {},
    }
}

/// What a peer's bytes ask for.
pub(crate) fn decode(shard: ShardId, bytes: Bytes) -> Result<Request, Refusal> {
    let (of, request) =
        Request::decode(bytes).map_err(|error: WireError| refuse(code::MALFORMED, error.to_string()))?;
    if of == shard { Ok(request) } else { Err(refuse(code::SHARD, format!("shard {of} is not here"))) }
}

impl RaftHandler {
    pub(crate) fn new(
        shard: &dyn Shard,
        me: u64,
        raft: Raft,
        books: Arc<Books>,
        storage: Storage,
        machine: Machine,
        vigil: Arc<Vigil>,
    ) -> Self {
        let (shard, campaigns) = (shard.id(), shard.keeps_messages());
        Self { shard, me, campaigns, raft, books, storage, machine, vigil, fenced: Mutex::default() }
    }

    pub(crate) const fn shard(&self) -> ShardId {
        self.shard
    }

    /// From now on this node neither votes nor takes entries.
    pub(crate) fn fence(&self, reason: String) {
        self.fenced.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
    }

    pub(crate) fn fence_reason(&self) -> Option<String> {
        self.fenced.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Answers what Raft itself asks; `None` for requests about copies.
    pub(crate) async fn answer(&self, from: PeerId, request: Request) -> Result<Option<Answer>, Refusal> {
        let fenced = || match self.fence_reason() {
            Some(reason) => Err(refuse(code::FENCED, format!("this node is fenced: {reason}"))),
            None => Ok(()),
        };
        let speaks = |node: u64| {
            if node == from.0 { Ok(()) } else { Err(refuse(code::IDENTITY, "a node speaks for itself only")) }
        };
        let candidate = |node: u64, last: EntryId| match self.books.regressed(node, last.index) {
            None => speaks(node),
            Some(held) => {
                let end = last.index;
                let reason =
                    format!("its log ends at entry {end} and it once held committed ones up to {held}");
                Err(refuse(code::REGRESSED, reason))
            }
        };
        match request {
            Request::Vote { vote, last, transfer } => {
                fenced()?;
                candidate(vote.node, last)?;
                let asked = raft_vote(vote);
                // The lease is that of a leader who lives.
                let leaderless = transfer || self.is_leaderless_before(vote).await;
                let rpc =
                    VoteRequest { vote: asked, last_log_id: log_id(last), leadership_transfer: leaderless };
                let answer = self.raft.vote(rpc).await.map_err(|error| raft_stopped(&error))?;
                Ok(Some(voted(&answer)))
            }
            Request::PreVote { vote, last, transfer } => {
                fenced()?;
                candidate(vote.node, last)?;
                if self.is_leaderless_before(vote).await {
                    return Ok(Some(self.would_vote(last)));
                }
                let asked = raft_vote(vote);
                let rpc =
                    VoteRequest { vote: asked, last_log_id: log_id(last), leadership_transfer: transfer };
                let answer = self.raft.pre_vote(rpc).await.map_err(|error| raft_stopped(&error))?;
                Ok(Some(voted(&answer)))
            }
            Request::Append(append) => {
                fenced()?;
                speaks(append.vote.node)?;
                self.append(append).await.map(Some)
            }
            Request::Transfer { from: vote, to, last } => {
                fenced()?;
                if to == self.me && !self.campaigns {
                    return Err(refuse(code::FENCED, "a witness does not lead"));
                }
                speaks(vote.node)?;
                let request = TransferLeaderRequest::new(raft_vote(vote), to, log_id(last));
                let answer =
                    self.raft.handle_transfer_leader(request).await.map_err(|error| stopped(&error))?;
                Ok(Some(Answer::Transfer(answer.map_err(|refused| match refused {
                    TransferLeaderError::VoteChanged { expected, actual } => TransferRefused::VoteChanged {
                        expected: wire_vote(&expected),
                        actual: wire_vote(&actual),
                    },
                    TransferLeaderError::LogNotFlushed { expected, actual } => TransferRefused::NotFlushed {
                        expected: entry_id(expected.as_ref()),
                        actual: entry_id(actual.as_ref()),
                    },
                }))))
            }
            Request::Offer { .. }
            | Request::Files
            | Request::Chunk { .. }
            | Request::Have { .. }
            | Request::Members
            | Request::Time => Ok(None),
        }
    }

    /// Whether this is about the election after a leader whose process has ended, as far as this node itself knows.
    async fn is_leaderless_before(&self, vote: WireVote) -> bool {
        let term = |raft: &Raft| raft.metrics().borrow_watched().current_term;
        match self.vigil.ended().await {
            Some(gone) => vote.term == gone.term + 1 && term(&self.raft) == gone.term,
            None => false,
        }
    }

    /// As openraft answers when there is no lease.
    fn would_vote(&self, candidates: EntryId) -> Answer {
        let last = self.storage.last();
        let granted = log_id(candidates) >= log_id(last);
        if granted {
            self.vigil.yielded();
        }
        let vote = wire_vote(&self.raft.metrics().borrow_watched().vote);
        Answer::Vote { vote, last, granted }
    }

    async fn append(&self, append: Append) -> Result<Answer, Refusal> {
        let Append { vote, previous, commit, held, entries } = append;
        self.contradicts(previous, entries.iter().map(|entry| entry.id)).await?;
        let last = entries.last().map_or(previous, |entry| entry.id);
        let mut taken = Vec::with_capacity(entries.len());
        for entry in entries {
            let index = entry.id.index;
            let entry = control::entry_of(entry)
                .map_err(|error| refuse(code::MALFORMED, format!("entry {index}: {error}")))?;
            taken.push(entry);
        }
        let leader = raft_vote(vote);
        let rpc = AppendEntriesRequest {
            vote: leader,
            prev_log_id: log_id(previous),
            entries: taken,
            leader_commit: log_id(commit),
        };
        // Before openraft can act on it. What is committed is so for ever, whoever says it; openraft folds only
        // what of it is in our log.
        self.books.told(commit.index);
        self.books.told_held(&held);
        let answer = self.raft.append_entries(rpc).await.map_err(|error| raft_stopped(&error))?;
        if !matches!(answer, AppendEntriesResponse::HigherVote(_)) {
            self.vigil.heard(vote.node, vote.term);
        }
        let outcome = match answer {
            AppendEntriesResponse::Success => Outcome::Taken,
            AppendEntriesResponse::PartialSuccess(id) => Outcome::Partly(entry_id(id.as_ref())),
            AppendEntriesResponse::Conflict => Outcome::Conflict,
            AppendEntriesResponse::HigherVote(vote) => Outcome::HigherVote(wire_vote(&vote)),
        };
        let durable = self.books.durable();
        if outcome == Outcome::Taken && durable.index < last.index {
            // Another leader has cut it since, or openraft answered before the entries were synced. Either way
            // this node does not hold them.
            let reason = format!("entries up to {} are synced here, not {}", durable.index, last.index);
            return Err(refuse(code::STOPPED, reason));
        }
        Ok(Answer::Append { outcome, durable })
    }

    /// Refuses a leader whose log is another one where ours is committed: openraft would have to cut it.
    async fn contradicts(
        &self,
        previous: EntryId,
        entries: impl Iterator<Item = EntryId> + Send,
    ) -> Result<(), Refusal> {
        let applied = self.machine.applied();
        for id in std::iter::once(previous).chain(entries) {
            if id.index.0 == 0 || id.index > applied.index {
                continue;
            }
            let ours = if id.index == applied.index {
                Some(applied)
            } else {
                self.storage
                    .id_at(id.index)
                    .await
                    .map_err(|error| refuse(code::STOPPED, error.to_string()))?
            };
            if let Some(ours) = ours.filter(|ours| *ours != id) {
                let reason =
                    format!("entry {} is committed here with term {}, not {}", id.index, ours.term, id.term);
                tracing::error!(%reason, "a leader contradicts what is committed");
                return Err(refuse(code::MALFORMED, reason));
            }
        }
        Ok(())
    }
}

fn voted(answer: &VoteResponse<Types>) -> Answer {
    Answer::Vote {
        vote: wire_vote(&answer.vote),
        last: entry_id(answer.last_log_id.as_ref()),
        granted: answer.vote_granted,
    }
}
