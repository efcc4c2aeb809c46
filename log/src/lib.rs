//! The log of a shard: segments of frames, group commit, recovery, and the store of derived state.
//!
//! Synchronous, without a runtime. Table of contents only; `docs/design/format.md` has the bytes.
#![forbid(unsafe_code)]

mod ids;
mod journal;

pub use ids::{Index, SegmentId, Sequence, ShardId, StreamId, Term, Timestamp};
pub use journal::{Damage, DamageReason, Entry, Journal, Message, MessageRef, Read};
