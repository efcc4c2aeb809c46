//! The log of a shard: segments of frames, group commit, recovery, and the store of derived state.
//!
//! Synchronous, without a runtime. Table of contents only; `docs/design/format.md` has the bytes.
#![forbid(unsafe_code)]

mod background;
pub mod checkpoint;
mod directory;
mod disk;
mod entry;
pub mod envelope;
mod error;
mod files;
mod format;
mod ids;
mod index;
pub mod inspect;
mod journal;
mod local;
mod log;
mod maintain;
mod memory;
mod options;
mod random;
mod read;
mod recovery;
mod released;
mod replay;
mod replica;
mod report;
mod rewrite;
mod scrub;
mod segment;
pub mod sim_disk;
mod tail;

pub use checkpoint::{Checkpoint, CheckpointError, CheckpointStore, OpenedCheckpoint};
pub use directory::{
    DataDirectory, DirectoryError, FirstStart, Identity, IdentityError, NodeId, STORE_FORMAT,
};
pub use disk::{Disk, DiskFile, DiskLock, OpenMode, StdDisk, is_out_of_space};
pub use entry::{EntryId, LogEntry};
pub use error::{
    CloseError, DiskFailed, MaintainError, OpenError, RollError, SyncError, TruncateError, WriteError,
};
pub use ids::{Index, SegmentId, Sequence, ShardId, StreamId, Term, Timestamp};
pub use journal::{Damage, DamageReason, Entry, Journal, Message, MessageRef, Read};
pub use log::{Log, Opened};
pub use memory::{MemoryJournal, Pushed};
#[cfg(any(test, feature = "planted-bugs"))]
pub use options::PlantedBug;
pub use options::{LogOptions, SuspectTail};
pub use random::SeededRandom;
pub use replay::{Replay, ReplayCursor};
pub use replica::{
    CHUNK_BYTES_MAX, EntryFault, InstallError, Installation, LogFile, LogFiles, LogFilesError, PeersFile,
    ShipError, Shipment, VOTE_BYTES_MAX, VoteError, VoteFile, VoteState, Wanted,
};
pub use report::{
    LogStats, Maintained, RecoveryReport, Replayed, ReplayedRecord, RunSubject, RunSummary, Snapshot, Tail,
    TailDoubt,
};
pub use scrub::Scrubbed;
pub use sim_disk::SimDisk;
