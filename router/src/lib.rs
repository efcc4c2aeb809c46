//! The router: subjects and interest, streams, consumers, the pure engine, its driver thread and the
//! handle that an embedding program holds. No runtime, no sockets. Table of contents only.
#![forbid(unsafe_code)]

pub mod api;
pub mod consumer;
mod driver;
pub mod embed;
mod engine;
pub mod headers;
pub mod interest;
pub mod replica;
mod router;
mod shards;
mod stats;
pub mod stream;
pub mod subject;
pub mod timestamp;
pub mod wire;

// The words of the log that a user of the router needs.
pub use beamlog_log::{
    Damage, DamageReason, Disk, LogOptions, Message, RecoveryReport, SegmentId, Sequence, StdDisk, StreamId,
    Timestamp,
};
pub use driver::clock::Clocks;
pub use driver::command::{Acknowledgement, FlowControlReply, Full, PublishBatch, Pull, StreamPublish};
pub use driver::open::OpenError;
pub use driver::stepper::{Stepped, Stepper};
pub use router::{
    AnswerTicket, PublishError, PublishTicket, ReadyTicket, Router, RouterOptions, TicketFuture,
};
pub use shards::{SHARD_NUMBER_MAX, ShardKind};
pub use stats::{Health, RouterStats};
