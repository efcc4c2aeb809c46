//! Copies of a shard's state: the files of the log as they lie, fetched by a node whose log is too far behind.
//!
//! The leader offers; the node asks for the list of files and then for their bytes, on a lane of its own, and
//! puts the whole in the place of its log when every byte was verified. A copy that was interrupted goes on
//! where it stopped, with another leader too: what is there and right is kept. One copy is made at a time; its
//! bytes in memory are one chunk.

mod fetch;
mod give;

use std::sync::{Arc, Mutex, PoisonError};

use crate::{
    peer::{PeerId, PeerTransport, Refusal},
    raft::{
        Books, Machine, Raft, Shard, Storage, code,
        wire::{Answer, CopyOf, OfferState, Request, WireVote},
        wire_vote,
    },
    runtime,
};

/// Copies that others make of this node, and the one that it makes.
pub(crate) struct Copies {
    raft: Raft,
    shard: Arc<dyn Shard>,
    books: Arc<Books>,
    storage: Storage,
    machine: Machine,
    transport: Arc<dyn PeerTransport>,
    limits: CopyLimits,
    given: give::Given,
    /// The copy that this node makes. One that is made is no news: [`Machine::applied`] says it.
    made: Mutex<Option<Making>>,
}

/// A copy that this node makes.
#[derive(Clone, Debug)]
enum Making {
    Going {
        offered: Offered,
        done: u64,
        total: u64,
    },
    /// Until who offers was told.
    Failed {
        reason: String,
    },
}

/// Who offered it last. A leader may follow another meanwhile: what is in a copy is committed, whoever gives it.
#[derive(Clone, Copy, Debug)]
struct Offered {
    from: PeerId,
    vote: WireVote,
}

/// How patient a copy is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CopyLimits {
    /// For one answer.
    pub(crate) answer: std::time::Duration,
    /// Answers in a row that may fail.
    pub(crate) failures: u32,
    /// Bytes in one answer.
    pub(crate) chunk: u32,
}

impl Copies {
    pub(crate) fn new(
        raft: Raft,
        shard: Arc<dyn Shard>,
        books: Arc<Books>,
        storage: Storage,
        machine: Machine,
        transport: Arc<dyn PeerTransport>,
        limits: CopyLimits,
    ) -> Self {
        Self {
            raft,
            shard,
            books,
            storage,
            machine,
            transport,
            limits,
            given: give::Given::default(),
            made: Mutex::default(),
        }
    }

    /// Answers what peers ask about copies.
    pub(crate) async fn answer(self: &Arc<Self>, from: PeerId, request: Request) -> Result<Answer, Refusal> {
        match request {
            Request::Offer { vote, state } if vote.node == from.0 => {
                Ok(Answer::Offer(self.offered(from, vote, &state)))
            }
            Request::Files => self.given.list(from, &*self.shard, &self.books).await,
            Request::Chunk { file, offset, bytes } => self.given.chunk(from, file, offset, bytes).await,
            Request::Offer { .. }
            | Request::Have { .. }
            | Request::Members
            | Request::Time
            | Request::Vote { .. }
            | Request::PreVote { .. }
            | Request::Append(_)
            | Request::Transfer { .. } => {
                Err(Refusal { code: code::IDENTITY, reason: "a node speaks for itself only".to_owned() })
            }
        }
    }

    /// Files that nobody has asked for lately need not stay.
    pub(crate) fn forget_idle(&self) {
        self.given.forget_idle(runtime::now());
    }

    fn offered(self: &Arc<Self>, from: PeerId, vote: WireVote, state: &CopyOf) -> OfferState {
        if let Some(ours) = self.storage.vote().map(|ours| wire_vote(&ours))
            && (ours.term > vote.term || (ours.term == vote.term && ours.committed && ours.node != vote.node))
        {
            return OfferState::HigherVote(ours);
        }
        let offered = Offered { from, vote };
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        match made.take() {
            Some(Making::Failed { reason }) => OfferState::Failed { reason },
            Some(Making::Going { offered: before, done, total }) => {
                let offered = if vote.term >= before.vote.term { offered } else { before };
                *made = Some(Making::Going { offered, done, total });
                OfferState::Fetching { done, total }
            }
            None if self.machine.applied().index >= state.last.index => {
                OfferState::Installed { vote, last: self.machine.applied() }
            }
            None => {
                *made = Some(Making::Going { offered, done: 0, total: 0 });
                drop(made);
                drop(runtime::spawn(Arc::clone(self).make()));
                OfferState::Fetching { done: 0, total: 0 }
            }
        }
    }

    /// Who offers the copy that this node makes.
    fn offer(&self) -> Option<Offered> {
        match &*self.made.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(Making::Going { offered, .. }) => Some(*offered),
            Some(Making::Failed { .. }) | None => None,
        }
    }

    fn fetched(&self, bytes: u64, of: u64) {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Making::Going { done, total, .. }) = &mut *made {
            (*done, *total) = (bytes, of);
        }
    }

    /// Nothing is made any more.
    fn ended(&self, failed: Option<String>) {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        *made = failed.map(|reason| Making::Failed { reason });
    }
}
