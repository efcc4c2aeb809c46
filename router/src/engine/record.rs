//! What the engine writes into the log beside messages. A record says what was decided, with every fact
//! that its application needs: replay decides nothing and reads no message.
//!
//! Removals of a frame gather in one record behind the messages of that frame. The order inside a frame
//! does not show: a frame is in the log whole or not at all.

use beamlog_log::envelope::{self, EncodeError, Enveloped};
use beamlog_log::{Journal, Sequence, StreamId, Timestamp};
use wincode::{SchemaRead, SchemaWrite};

use crate::consumer::{ConsumerId, ConsumerRecord, ConsumerSnapshot};
use crate::engine::arrivals::Arrival;
use crate::engine::reservations::Reservation;
use crate::engine::shards::ClusterShard;
use crate::stream::moving::{MovedId, Moving};
use crate::stream::{Features, StreamConfig};

/// One decided change. Variants are only ever added at the end.
#[derive(Clone, Debug, Eq, PartialEq, SchemaRead, SchemaWrite)]
pub(crate) enum Record {
    StreamCreated {
        id: StreamId,
        created: Timestamp,
        config: Box<StreamConfig>,
    },
    StreamUpdated {
        id: StreamId,
        config: Box<StreamConfig>,
    },
    StreamDeleted {
        id: StreamId,
    },
    /// These sequences have no message any more. `ranges` may span sequences that had none.
    Removed {
        stream: StreamId,
        ranges: Vec<(u64, u64)>,
        messages: u64,
        bytes: u64,
    },
    /// A message that no consumer of a stream with interest retention wanted.
    Skipped {
        stream: StreamId,
        sequence: Sequence,
        at: Timestamp,
        message_id: Vec<u8>,
    },
    ConsumerCreated {
        stream: StreamId,
        snapshot: Box<ConsumerSnapshot>,
    },
    ConsumerDeleted {
        stream: StreamId,
        consumer: ConsumerId,
    },
    Consumer {
        stream: StreamId,
        consumer: ConsumerId,
        record: ConsumerRecord,
    },
    /// The sequences up to `to` have no message: an imported one keeps the sequence behind it.
    SkippedTo {
        stream: StreamId,
        to: Sequence,
        at: Timestamp,
    },
    /// Follows the stream's configuration, whose encoding has no place for them; absent when there are none.
    Features {
        stream: StreamId,
        features: Features,
    },
    /// A name and subjects that a stream of another shard has; or other subjects of one that has them already, or
    /// that it is to go.
    Reserved(Box<Reservation>),
    /// Nobody has them any more.
    Released {
        stream: String,
    },
    /// A shard of the cluster beside this one, or other nodes for it.
    ShardListed(ClusterShard),
    /// The stream begins to move, or has arrived, or stays. Its last message had this id.
    Moving {
        stream: StreamId,
        moving: Moving,
        last_message_id: Vec<u8>,
    },
    /// Ids that it had in the shard before, of messages that are gone.
    MovedIds {
        stream: StreamId,
        ids: Vec<MovedId>,
    },
    /// What it had there of an origin: a serialized roaring treemap.
    MovedOrigin {
        stream: StreamId,
        origin: String,
        epoch: u64,
        highest_time: Timestamp,
        sequences: Vec<u8>,
    },
    /// A stream is to go from one shard to another, or has gone.
    Arrival(Box<Arrival>),
    /// It does not move any more.
    ArrivalEnded {
        stream: String,
    },
}

impl Enveloped for Record {
    const KIND: u16 = 0x0201;
    const VERSION: u8 = 1;
}

impl Record {
    /// Adds it to the frame being gathered.
    pub(crate) fn push(&self, journal: &mut dyn Journal) -> Result<(), EncodeError> {
        journal.push_control(&envelope::encode(self)?);
        Ok(())
    }
}
