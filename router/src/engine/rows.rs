//! The engine's state as rows: what a segment of the log begins with, and what a checkpoint holds.
//!
//! Rows say what cannot be told from the messages themselves. Subjects, message ids and times to live are
//! not in them: recovery derives those.

use std::collections::BTreeMap;

use beamlog_log::envelope::{self, Enveloped};
use beamlog_log::{Index, Sequence, StreamId, Term, Timestamp};
use roaring::RoaringTreemap;
use wincode::{SchemaRead, SchemaWrite};

use crate::consumer::{ConsumerId, ConsumerRecord, ConsumerSnapshot};
use crate::engine::Engine;
use crate::engine::arrivals::Arrival;
use crate::engine::reservations::Reservation;
use crate::engine::shards::ClusterShard;
use crate::stream::moving::{MovedId, Moving};
use crate::stream::state::{Slot, Stream};
use crate::stream::{Features, StreamConfig};

/// Bytes of a deleted set in one row, so that a row fits a record.
const DELETED_BYTES_PER_ROW: usize = 1 << 20;

/// Moved ids in one row: an id is at most as long as a header block.
const MOVED_IDS_PER_ROW: usize = 16;

/// What a row is about. The order is the order of restoration.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum RowKey {
    Shard,
    Stream(StreamId),
    Deleted(StreamId),
    Consumer(StreamId, ConsumerId),
    Origins(StreamId),
    Replication,
    Reservations,
    Shards,
}

impl RowKey {
    /// The key in a checkpoint: sorts as `RowKey` does.
    pub(crate) fn bytes(self) -> Vec<u8> {
        let (kind, stream, consumer) = match self {
            Self::Shard => (b'0', 0, 0),
            Self::Stream(stream) => (b'1', stream.0, 0),
            Self::Deleted(stream) => (b'2', stream.0, 0),
            Self::Consumer(stream, consumer) => (b'3', stream.0, consumer.0),
            Self::Origins(stream) => (b'4', stream.0, 0),
            Self::Replication => (b'5', 0, 0),
            Self::Reservations => (b'6', 0, 0),
            Self::Shards => (b'7', 0, 0),
        };
        let mut key = vec![kind];
        key.extend_from_slice(&stream.to_be_bytes());
        key.extend_from_slice(&consumer.to_be_bytes());
        key
    }
}

/// One part of the state. Variants are only ever added at the end.
#[derive(Clone, Debug, Eq, PartialEq, SchemaRead, SchemaWrite)]
pub(crate) enum Row {
    Shard {
        next_stream: u32,
        next_consumer: u32,
        now: Timestamp,
    },
    Stream(Box<StreamRow>),
    /// A piece of the stream's deleted set, a serialized roaring treemap.
    Deleted {
        stream: StreamId,
        part: u32,
        parts: u32,
        bytes: Vec<u8>,
    },
    Consumer {
        stream: StreamId,
        snapshot: Box<ConsumerSnapshot>,
    },
    /// What of a consumer did not fit its row.
    ConsumerRest {
        stream: StreamId,
        consumer: ConsumerId,
        record: ConsumerRecord,
    },
    /// A piece of what a stream has of one origin, a serialized roaring treemap.
    Origin {
        stream: StreamId,
        origin: String,
        epoch: u64,
        highest_time: Timestamp,
        part: u32,
        parts: u32,
        bytes: Vec<u8>,
    },
    /// The last record of replication, which only its writer understands, and its entry.
    Replication {
        index: Index,
        term: Term,
        bytes: Vec<u8>,
    },
    /// Follows the stream's row; absent when there are none.
    Features {
        stream: StreamId,
        features: Features,
    },
    /// A name and subjects that a stream of another shard has.
    Reserved(Box<Reservation>),
    /// A shard of the cluster beside this one.
    ShardListed(ClusterShard),
    /// Follows the stream's row; absent when it does not move.
    Moving {
        stream: StreamId,
        moving: Moving,
    },
    /// Follow the stream's row, in pieces.
    MovedIds {
        stream: StreamId,
        ids: Vec<MovedId>,
    },
    Arrival(Box<Arrival>),
}

#[derive(Clone, Debug, Eq, PartialEq, SchemaRead, SchemaWrite)]
pub(crate) struct StreamRow {
    pub(crate) id: StreamId,
    pub(crate) created: Timestamp,
    pub(crate) config: StreamConfig,
    pub(crate) first: Sequence,
    pub(crate) last: Sequence,
    pub(crate) last_time: Timestamp,
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    pub(crate) last_message_id: Vec<u8>,
}

impl Enveloped for Row {
    const KIND: u16 = 0x0202;
    const VERSION: u8 = 1;
}

pub(super) fn encode(row: &Row) -> Vec<u8> {
    envelope::encode(row).expect("rows are cut to fit a record")
}

/// The stream's row, and what its configuration has no place for.
pub(super) fn stream_rows(stream: &Stream) -> Vec<Row> {
    let body = &stream.body;
    let row = Row::Stream(Box::new(StreamRow {
        id: body.id,
        created: body.created,
        config: body.config.clone(),
        first: body.first,
        last: body.last,
        last_time: body.last_time,
        messages: body.messages,
        bytes: body.bytes,
        last_message_id: body.last_message_id.clone(),
    }));
    let features = Features::of(&body.config);
    let more = (!features.is_empty()).then_some(Row::Features { stream: body.id, features });
    let moving = body.moving;
    let moving = moving.is_moving().then_some(Row::Moving { stream: body.id, moving });
    let ids = body.moved_ids.chunks(MOVED_IDS_PER_ROW);
    let ids = ids.map(|ids| Row::MovedIds { stream: body.id, ids: ids.to_vec() });
    std::iter::once(row).chain(more).chain(moving).chain(ids).collect()
}

fn deleted_rows(stream: &Stream) -> Vec<Row> {
    if stream.body.deleted.is_empty() {
        return Vec::new();
    }
    let mut bytes = Vec::new();
    stream.body.deleted.serialize_into(&mut bytes).expect("a vector takes every write");
    let parts = u32::try_from(bytes.len().div_ceil(DELETED_BYTES_PER_ROW)).expect("a set fits memory");
    bytes
        .chunks(DELETED_BYTES_PER_ROW)
        .zip(0..)
        .map(|(piece, part)| Row::Deleted { stream: stream.body.id, part, parts, bytes: piece.to_vec() })
        .collect()
}

pub(super) fn origin_rows(stream: &Stream) -> Vec<Row> {
    let mut rows = Vec::new();
    for ((origin, epoch), seen) in &stream.body.origins.seen {
        let mut sequences = seen.sequences.clone();
        sequences.optimize();
        let mut bytes = Vec::new();
        sequences.serialize_into(&mut bytes).expect("a vector takes every write");
        let parts = u32::try_from(bytes.len().div_ceil(DELETED_BYTES_PER_ROW)).expect("a set fits memory");
        rows.extend(bytes.chunks(DELETED_BYTES_PER_ROW).zip(0..).map(|(piece, part)| Row::Origin {
            stream: stream.body.id,
            origin: origin.clone(),
            epoch: *epoch,
            highest_time: seen.highest_time,
            part,
            parts,
            bytes: piece.to_vec(),
        }));
    }
    rows
}

pub(super) fn consumer_rows(stream: StreamId, slot: &Slot) -> Vec<Row> {
    let consumer = slot.consumer.id();
    let mut rows = vec![Row::Consumer { stream, snapshot: Box::new(slot.consumer.snapshot()) }];
    rows.extend(slot.consumer.snapshot_rest().into_iter().map(|record| Row::ConsumerRest {
        stream,
        consumer,
        record,
    }));
    rows
}

/// Several rows as one value of a checkpoint: each behind its length.
fn value(rows: &[Row]) -> Vec<u8> {
    let mut value = Vec::new();
    for row in rows {
        let bytes = encode(row);
        let length = u32::try_from(bytes.len()).expect("rows are cut to fit a record");
        value.extend_from_slice(&length.to_le_bytes());
        value.extend_from_slice(&bytes);
    }
    value
}

/// The rows of a value of a checkpoint; `None` when it is cut.
pub(crate) fn split(mut value: &[u8]) -> Option<Vec<&[u8]>> {
    let mut rows = Vec::new();
    while let Some((length, rest)) = value.split_first_chunk::<4>() {
        let (row, rest) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
        rows.push(row);
        value = rest;
    }
    value.is_empty().then_some(rows)
}

/// What a checkpoint has to change.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) puts: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) deletes: Vec<Vec<u8>>,
}

/// A row with its set spelled in the one way that depends on nothing but what is in it. A set of more than one
/// row is left as it is.
fn canonical(row: Vec<u8>) -> Vec<u8> {
    let mut decoded: Row = match envelope::decode(&row) {
        Ok(decoded) => decoded,
        Err(_) => return row,
    };
    let (Row::Deleted { parts: 1, bytes, .. } | Row::Origin { parts: 1, bytes, .. }) = &mut decoded else {
        return row;
    };
    let Ok(set) = RoaringTreemap::deserialize_from(&bytes[..]) else { return row };
    let set: RoaringTreemap = set.iter().collect();
    bytes.clear();
    set.serialize_into(&mut *bytes).expect("a vector takes every write");
    encode(&decoded)
}

impl Engine {
    fn shard_row(&self) -> Row {
        Row::Shard { next_stream: self.next_stream, next_consumer: self.next_consumer, now: self.now }
    }

    fn reservation_rows(&self) -> impl Iterator<Item = Row> {
        let reserved = self.reservations.all();
        let reserved = reserved.map(|reservation| Row::Reserved(Box::new(reservation.clone())));
        reserved.chain(self.reservations.arrivals().map(|arrival| Row::Arrival(Box::new(arrival.clone()))))
    }

    fn listed_rows(&self) -> impl Iterator<Item = Row> {
        self.shards.all().map(|shard| Row::ShardListed(shard.clone()))
    }

    fn replication_row(&self) -> Option<Row> {
        let (id, bytes) = self.replication()?;
        Some(Row::Replication { index: id.index, term: id.term, bytes: bytes.to_vec() })
    }

    /// The state as records for the beginning of a segment. Nothing is gathered any more (`Flush`).
    pub(crate) fn snapshot(&self) -> impl Iterator<Item = Vec<u8>> {
        assert!(!self.has_unlogged(), "a snapshot is taken of what is logged");
        let streams = self.names.values().flat_map(|id| {
            let stream = &self.streams[id];
            let consumers = stream.consumers.values().flat_map(|slot| consumer_rows(*id, slot));
            let rows = stream_rows(stream).into_iter().chain(deleted_rows(stream));
            rows.chain(origin_rows(stream)).chain(consumers)
        });
        let rows = std::iter::once(self.shard_row()).chain(streams).chain(self.replication_row());
        rows.chain(self.reservation_rows()).chain(self.listed_rows()).map(|row| encode(&row))
    }

    /// The state as [`Self::snapshot`] tells it, but for the time at which it is.
    pub(crate) fn timeless_rows(&self) -> Vec<Vec<u8>> {
        let shard = Row::Shard {
            next_stream: self.next_stream,
            next_consumer: self.next_consumer,
            now: Timestamp(0),
        };
        std::iter::once(encode(&shard)).chain(self.snapshot().skip(1).map(canonical)).collect()
    }

    /// The rows that changed since this was last asked. Nothing is gathered any more (`Flush`).
    pub(crate) fn take_changes(&mut self) -> Changes {
        assert!(!self.has_unlogged(), "a checkpoint is taken of what is logged");
        let mut changes = Changes::default();
        for key in std::mem::take(&mut self.removed_rows) {
            changes.deletes.push(key.bytes());
            if let RowKey::Stream(id) = key {
                changes.deletes.push(RowKey::Deleted(id).bytes());
                changes.deletes.push(RowKey::Origins(id).bytes());
            }
        }
        for (id, stream) in &mut self.streams {
            let mut clean = Vec::new();
            for (consumer, slot) in stream.dirty_consumers() {
                let key = RowKey::Consumer(*id, *consumer).bytes();
                changes.puts.insert(key, value(&consumer_rows(*id, slot)));
                clean.push(*consumer);
            }
            for consumer in clean {
                stream.consumers.get_mut(&consumer).expect("it was just visited").dirty = false;
            }
            if std::mem::take(&mut stream.body.origins.dirty) {
                changes.puts.insert(RowKey::Origins(*id).bytes(), value(&origin_rows(stream)));
            }
            if std::mem::take(&mut stream.body.dirty) {
                changes.puts.insert(RowKey::Stream(*id).bytes(), value(&stream_rows(stream)));
                let deleted = deleted_rows(stream);
                let key = RowKey::Deleted(*id).bytes();
                if deleted.is_empty() {
                    changes.deletes.push(key);
                } else {
                    changes.puts.insert(key, value(&deleted));
                }
            }
        }
        if let Some(row) = self.replication_row() {
            changes.puts.insert(RowKey::Replication.bytes(), value(&[row]));
        }
        if self.reservations.take_dirty() {
            let rows: Vec<Row> = self.reservation_rows().collect();
            changes.puts.insert(RowKey::Reservations.bytes(), value(&rows));
        }
        if self.shards.take_dirty() {
            let rows: Vec<Row> = self.listed_rows().collect();
            changes.puts.insert(RowKey::Shards.bytes(), value(&rows));
        }
        changes.puts.insert(RowKey::Shard.bytes(), value(&[self.shard_row()]));
        changes
    }
}
