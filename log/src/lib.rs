//! The log of a shard: segments of frames, group commit, recovery, and the store of derived state.
//!
//! Synchronous, without a runtime. Table of contents only; `docs/design/format.md` has the bytes.
#![forbid(unsafe_code)]

mod disk;
pub mod envelope;
mod ids;
mod journal;
mod random;

pub use disk::{Disk, DiskFile, DiskLock, OpenMode, StdDisk, is_out_of_space};
pub use ids::{Index, SegmentId, Sequence, ShardId, StreamId, Term, Timestamp};
pub use journal::{Damage, DamageReason, Entry, Journal, Message, MessageRef, Read};
pub use random::SeededRandom;
