//! Agreement on the entries of a shard: openraft, and what stands between it and the rest.
//!
//! * `types`: what openraft calls things here; our indexes are one above its.
//! * `control`: membership, votes and first entries of leaders as bytes.
//! * `shard`: what is asked of a log and its state; the driver's `Replica` is one answer.
//! * `storage`: openraft's log over it. `machine`: openraft's state machine over it.
//! * `books`: the second, independent count of what is durable where (DR12, DR13).
//! * `vigil`: whether the leader's process is known to have ended.
//! * `wire`: what nodes say to each other, in bytes. `network`: asking. `handler`: being asked.

mod books;
mod control;
mod handler;
mod machine;
mod network;
mod replica;
mod shard;
mod storage;
mod types;
mod vigil;
pub mod wire;

#[cfg(test)]
mod tests;

pub(crate) use books::{Books, Report};
pub(crate) use control::{
    begin_membership, decode_held, decode_membership, encode_held, encode_membership, last_membership,
};
pub(crate) use handler::{RaftHandler, code, decode};
pub(crate) use machine::{Machine, raft_index};
pub(crate) use network::{Links, Timing, raft_vote, wire_vote};
pub(crate) use replica::ReplicaShard;
pub use shard::ShardError;
pub(crate) use shard::{Appended, Shard, ShardState, Staged};
pub(crate) use storage::Storage;
pub use storage::StorageError;
pub use types::Member;
pub(crate) use types::{Data, LogId, Membership, Raft, Types, Vote, entry_id, log_id};
pub(crate) use vigil::{Heard, Vigil};

/// Longest body of an entry that peers take: the lane of appends, less what openraft says about it.
pub(crate) const BODY_BYTES_MAX: usize = 16 << 20;
