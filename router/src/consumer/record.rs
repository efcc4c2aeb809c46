//! What of a consumer is in the log. Live state and recovered state are the same fold over these
//! records, so nothing here may depend on a clock or on who is listening.

use beamlog_log::{Sequence, Timestamp};
use wincode::{SchemaRead, SchemaWrite};

use crate::consumer::ConsumerConfig;

/// A consumer inside its shard. Assigned once, never reused, not shown to users.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, SchemaRead, SchemaWrite)]
pub struct ConsumerId(pub u32);

/// Neighbouring first deliveries: message `stream + i` was delivery `consumer + i`, for `i < count`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, SchemaRead, SchemaWrite)]
pub struct DeliveryRun {
    pub stream: Sequence,
    pub consumer: u64,
    pub count: u32,
}

/// A delivery that was not the first of its message.
#[derive(Clone, Copy, Debug, Eq, PartialEq, SchemaRead, SchemaWrite)]
pub struct Redelivery {
    pub stream: Sequence,
    /// How often the message has been delivered now.
    pub delivery_count: u64,
}

/// Neighbouring sequences, both ends included.
#[derive(Clone, Copy, Debug, Eq, PartialEq, SchemaRead, SchemaWrite)]
pub struct SequenceRun {
    pub first: Sequence,
    pub last: Sequence,
}

/// One logged decision about a consumer. Applying one twice changes nothing.
#[derive(Clone, Debug, Eq, PartialEq, SchemaRead, SchemaWrite)]
pub enum ConsumerRecord {
    /// These deliveries were made, up to `at`; the ack wait of each runs from there.
    Progress { at: Timestamp, runs: Vec<DeliveryRun>, redelivered: Vec<Redelivery>, consumer_sequence: u64 },
    /// These messages are done: acked, terminated, or covered by an ack of a later one.
    Acked { at: Timestamp, runs: Vec<SequenceRun> },
    /// These messages reached the delivery limit: delivered no more, and still unacked.
    Exhausted { sequences: Vec<Sequence> },
    /// A client asked for this message again, not before `until`.
    Deferred { sequence: Sequence, until: Timestamp },
    /// A purge took everything up to here: there is nothing more to deliver of it.
    Skipped { to: Sequence },
    /// The configuration was changed.
    Updated { config: Box<ConsumerConfig> },
    /// More of a snapshot: what did not fit its first row.
    More { pending: Vec<PendingRow>, exhausted: Vec<SequenceRun>, chosen: Vec<SequenceRun> },
}

/// A pending message in a snapshot.
#[derive(Clone, Copy, Debug, Eq, PartialEq, SchemaRead, SchemaWrite)]
pub struct PendingRow {
    pub stream: Sequence,
    pub consumer: u64,
    pub delivery_count: u64,
    /// When it is due for redelivery.
    pub due: Timestamp,
}

/// A consumer: what its creation logs, and what a segment's snapshot frame carries, together with the
/// [`ConsumerRecord::More`] that follow it. The ack floor is not in it: it is what lies below the first
/// pending message.
#[derive(Clone, Debug, Eq, PartialEq, SchemaRead, SchemaWrite)]
pub struct ConsumerSnapshot {
    pub id: ConsumerId,
    pub config: ConsumerConfig,
    pub created: Timestamp,
    /// Deliveries made, and when the last was.
    pub consumer_sequence: u64,
    pub delivered_at: Timestamp,
    /// The last message delivered, or the one before the start.
    pub delivered: Sequence,
    /// Where reading goes on once what was chosen at creation is delivered.
    pub resume: Sequence,
    pub acked_at: Timestamp,
    pub pending: Vec<PendingRow>,
    /// Messages past the delivery limit.
    pub exhausted: Vec<SequenceRun>,
    /// Deliver policy "last per subject": what is still to be delivered of the choice made at creation.
    pub chosen: Vec<SequenceRun>,
}
