//! The mesh: messages that are not stored, and who wants them, between the nodes of a cluster.
//!
//! Each node tells each peer what it wants (filters, queue groups, captures) in the same ordered stream in
//! which it sends messages. A peer that wants something is a subscriber in this node's interest, so that a
//! publish finds it as it finds everybody else. A message from a peer is delivered here and never sent on:
//! every node is connected with every other.
//!
//! * `frame`: the bytes. Pure.
//! * `link`: one session with a peer: what goes to it, what came from it.
//! * `node`: [`Mesh`], which is told of sessions, interest and leadership.
//!
//! Invariants:
//! * A change of interest is in the stream to each peer before the call that made it returns; so what its
//!   maker publishes next comes after it.
//! * Changes of interest are never dropped: a peer that cannot take one is disconnected, and begins anew with
//!   a snapshot. Messages may be, and are counted.
//! * What a peer wanted leaves this node's interest when its session ends.

mod frame;
mod link;
mod node;
#[cfg(test)]
mod tests;

pub use frame::{Malformed, Operation, Operations};
pub use link::LinkSnapshot;
pub use node::{LEADER_FILTERS, Mesh, MeshMessage, StreamGate, is_for_leader};
