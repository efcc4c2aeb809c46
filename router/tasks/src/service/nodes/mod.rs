//! Tasks in a cluster: the node that leads runs the engine; every node, the leader too, has an [`Outpost`],
//! which knows the workers that are connected there.
//!
//! * `words`: what they say to each other, over the mesh. Pure.
//! * `roster`: the leader's list of workers elsewhere. Pure.
//! * `outpost`: the thread at each node.
//! * `leading`: what the thread of tasks does beside its work when it leads a cluster.
//!
//! Nothing of this is stored: a leader that is new asks all outposts, and what workers said lately is said to
//! it again. A word that is lost costs time, never a job: assignments are durable, and given out again.

mod leading;
mod outpost;
mod roster;
pub mod words;

pub(super) use leading::Leading;
pub use outpost::{Outpost, Seen};
