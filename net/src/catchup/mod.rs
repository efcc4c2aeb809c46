//! Copies of a shard's state: files as they lie, fetched by a node whose log is too far behind.

use crate::{
    peer::{PeerId, Refusal},
    raft::{
        code,
        wire::{Answer, Request},
    },
};

/// Copies that are made of this node, and the one that it makes.
#[derive(Debug, Default)]
pub(crate) struct Copies;

impl Copies {
    pub(crate) async fn answer(&self, _from: PeerId, _request: Request) -> Result<Answer, Refusal> {
        Err(Refusal { code: code::FILES, reason: "copies are not made yet".to_owned() })
    }
}
