//! The requests a protocol endpoint (or an embedding program) makes of the engine, and the answers.

use std::ops::Bound;

use beamlog_log::{Message, Sequence, StreamId, Timestamp};
use bytes::Bytes;

use crate::api::error::{ApiError, PublishRefusal};
use crate::api::moving::{Arrive, MoveAnswer, MoveRequest, MovingHere};
use crate::consumer::{ConsumerConfig, ConsumerInfo};
pub use crate::engine::arrivals::{Arrival, Place, Rearrange};
pub use crate::engine::reservations::Reservation;
pub use crate::engine::shards::{ClusterShard, ListedShard, ShardList};
use crate::stream::{OriginInfo, StreamConfig, StreamState};

/// Whether a consumer request may create, must create, or must find.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum ConsumerAction {
    #[default]
    CreateOrUpdate,
    Create,
    Update,
}

/// Which message a `GetMessage` wants.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum MessageSelector {
    At(Sequence),
    LastOn(String),
    /// First at or after `from` on a subject that the filter matches; an empty filter is everything.
    NextOn {
        filter: String,
        from: Sequence,
    },
    /// First at or after the time, on the filter (empty: everything).
    NextAfter {
        filter: String,
        time: Timestamp,
    },
}

/// Batched direct get (ADR-31).
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum BatchSelector {
    /// Up to `batch` messages from `from` on, on the filter (empty: everything).
    Next { filter: String, from: Sequence, from_time: Option<Timestamp> },
    /// The last message of each subject the filters match, as of the bound.
    LastOfEach { filters: Vec<String>, up_to: Bound<Sequence>, up_to_time: Option<Timestamp> },
}

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Purge {
    /// Only messages on this filter; empty is all.
    pub filter: String,
    /// Only messages before this sequence.
    pub before: Option<Sequence>,
    /// Leave this many.
    pub keep: Option<u64>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Request {
    AccountInfo,
    CreateStream(Box<StreamConfig>),
    UpdateStream(Box<StreamConfig>),
    DeleteStream {
        stream: String,
    },
    /// `subjects_filter` asks for counts by subject, from `offset` on; `deleted_details` for the list.
    StreamInfo {
        stream: String,
        subjects_filter: Option<String>,
        offset: usize,
        deleted_details: bool,
    },
    /// Reserves a name and subjects for a stream of another shard, or other subjects for one that has a
    /// reservation of the same store. The answer is the reservation that is in force.
    Reserve(Box<Reservation>),
    /// Ends a reservation of this store, if there is one.
    Release {
        stream: String,
        store: String,
        /// As [`Reservation::term`].
        term: u64,
    },
    /// All reservations, also those of streams that are to go.
    Reservations,
    /// Lists a new shard of the cluster, or gives one other nodes. The answer is the list.
    PutShard(ClusterShard),
    /// The shards of the cluster beside the first.
    Shards,
    /// A stream is to go to another shard, or not: the catalogue says which has it.
    Rearrange(Box<Rearrange>),
    /// Of a stream that goes.
    Move(Box<MoveRequest>),
    /// Of the copy that is made here.
    Arrive(Box<Arrive>),
    /// All streams that are on their way from or to this shard.
    MovingHere,
    StreamNames {
        subject: Option<String>,
        offset: usize,
    },
    StreamList {
        subject: Option<String>,
        offset: usize,
    },
    PurgeStream {
        stream: String,
        purge: Purge,
    },
    GetMessage {
        stream: String,
        selector: MessageSelector,
    },
    /// As `GetMessage`, answered raw, only where the stream allows direct get.
    DirectGet {
        stream: String,
        selector: MessageSelector,
    },
    DirectGetBatch {
        stream: String,
        selector: BatchSelector,
        /// 0: as many as there are, which the engine bounds.
        batch: u32,
        max_bytes: Option<u64>,
    },
    DeleteMessage {
        stream: String,
        sequence: Sequence,
        erase: bool,
    },
    CreateConsumer {
        stream: String,
        config: Box<ConsumerConfig>,
        action: ConsumerAction,
    },
    ConsumerInfo {
        stream: String,
        consumer: String,
    },
    ConsumerNames {
        stream: String,
        offset: usize,
    },
    ConsumerList {
        stream: String,
        offset: usize,
    },
    DeleteConsumer {
        stream: String,
        consumer: String,
    },
    /// `None` resumes.
    PauseConsumer {
        stream: String,
        consumer: String,
        until: Option<Timestamp>,
    },
}

/// One page of a list.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Page<T> {
    pub total: usize,
    pub offset: usize,
    pub limit: usize,
    pub items: Vec<T>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StreamInfo {
    pub id: StreamId,
    pub config: StreamConfig,
    pub created: Timestamp,
    pub state: StreamState,
    /// Messages by subject, when asked for; `total` in the page counts all that match.
    pub subjects: Option<Page<(String, u64)>>,
    pub deleted: Option<Vec<Sequence>>,
    /// What links brought, by origin.
    pub origins: Vec<OriginInfo>,
    pub now: Timestamp,
}

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct AccountInfo {
    pub memory_bytes: u64,
    pub storage_bytes: u64,
    pub streams: u64,
    pub consumers: u64,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Response {
    Account(AccountInfo),
    Stream {
        info: Box<StreamInfo>,
        created: bool,
    },
    Reserved(Box<Reservation>),
    Reservations(Vec<Reservation>),
    Shards(ShardList),
    /// Streams that move.
    Arrivals(Vec<Arrival>),
    Moving(Box<MoveAnswer>),
    MovingHere(Vec<MovingHere>),
    /// How far the copy is; whether the same is to be asked again, because there is more to do.
    Arriving {
        last: Sequence,
        again: bool,
    },
    Names(Page<String>),
    Streams(Page<StreamInfo>),
    Deleted,
    Purged {
        count: u64,
    },
    Message(Message),
    /// Direct get: messages in order, how many more match, and the last sequence considered.
    Batch {
        messages: Vec<Message>,
        pending: u64,
        last_sequence: Sequence,
        up_to: Option<Sequence>,
    },
    Consumer(Box<ConsumerInfo>),
    Consumers(Page<ConsumerInfo>),
    Paused {
        until: Option<Timestamp>,
        remaining_nanos: u64,
    },
}

pub type Answer = Result<Response, ApiError>;

/// What became of a publish to a stream.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Published {
    Stored(Sequence),
    /// The id was seen inside the window; this is where it was stored.
    Duplicate(Sequence),
    /// A message of an atomic batch that is not whole yet: it waits in memory and is promised nothing. Only a
    /// publish with the headers of a batch, and without an origin, is told so.
    Waiting,
    /// An atomic batch was stored as a whole, its last message there.
    Batch {
        last: Sequence,
        id: Bytes,
        messages: usize,
    },
}

impl Published {
    /// Where it lies, also when it did before; `None` while it waits.
    #[must_use]
    pub const fn sequence(&self) -> Option<Sequence> {
        match self {
            Self::Stored(sequence) | Self::Duplicate(sequence) | Self::Batch { last: sequence, .. } => {
                Some(*sequence)
            }
            Self::Waiting => None,
        }
    }
}

/// What a publisher is told, once it is durable. `stream` names the stream that answered.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PublishOutcome {
    pub stream: String,
    pub result: Result<Published, PublishRefusal>,
}

/// A pull request (contract table 1.5, ADR-13).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PullRequest {
    /// At least 1.
    pub batch: u32,
    pub max_bytes: Option<u64>,
    pub no_wait: bool,
    pub expires_nanos: Option<u64>,
    pub idle_heartbeat_nanos: Option<u64>,
}

/// What a client says of a delivery.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AckKind {
    Ack,
    /// Later, please; after the delay if there is one.
    Nak {
        delay_nanos: Option<u64>,
    },
    InProgress,
    /// Never again.
    Terminate {
        reason: String,
    },
    /// Ack, and pull again to the reply subject of the ack.
    AckNext(PullRequest),
}

/// Which delivery is meant: the fields of a `$JS.ACK` subject.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AckTarget {
    pub stream: String,
    pub consumer: String,
    pub delivery_count: u64,
    pub stream_sequence: Sequence,
    pub consumer_sequence: u64,
}
