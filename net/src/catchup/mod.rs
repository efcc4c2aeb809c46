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
    /// The copy that this node makes.
    made: Mutex<Option<OfferState>>,
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
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        match made.take() {
            // Told once; what comes of it the leader decides.
            Some(
                done @ (OfferState::Installed { .. } | OfferState::Failed { .. } | OfferState::HigherVote(_)),
            ) => done,
            Some(going @ OfferState::Fetching { .. }) => {
                *made = Some(going.clone());
                going
            }
            None if self.machine.applied().index >= state.last.index => {
                OfferState::Installed { vote, last: self.machine.applied() }
            }
            None => {
                let begun = OfferState::Fetching { done: 0, total: 0 };
                *made = Some(begun.clone());
                drop(made);
                let copies = Arc::clone(self);
                drop(runtime::spawn(async move { copies.make(from, vote).await }));
                begun
            }
        }
    }

    fn say(&self, state: OfferState) {
        *self.made.lock().unwrap_or_else(PoisonError::into_inner) = Some(state);
    }
}
