//! The copy of a stream that arrives in a shard, with its sequences, times, ids inside the window and consumers. Each
//! step makes records of this shard's log, and may come twice.

use std::collections::BTreeMap;

use beamlog_log::envelope;
use beamlog_log::{MessageRef, Sequence, StreamId, Timestamp};
use roaring::RoaringTreemap;

use crate::api::error::ApiError;
use crate::api::moving::{Arrive, Dead, MovePage};
use crate::api::request::{Answer, Response};
use crate::consumer::ConsumerId;
use crate::engine::catalogue::push_features;
use crate::engine::moving::DEAD_WINDOW;
use crate::engine::record::Record;
use crate::engine::rows::{Row, StreamRow};
use crate::engine::{Engine, Turn};
use crate::stream::body::StreamBody;
use crate::stream::moving::Moving;
use crate::stream::publish_headers::PublishHeaders;
use crate::stream::state::Original;

/// Messages that one turn removes.
const REMOVALS_PER_TURN: usize = 4096;

fn not_whole() -> ApiError {
    ApiError::StreamUpdateInvalid("the copy is not what the stream is".to_owned())
}

impl Engine {
    pub(super) fn arrive(&mut self, turn: &mut Turn<'_>, wanted: Arrive) -> Answer {
        self.commit_wanted = true;
        let arriving = |engine: &Self, stream: &str, id| engine.moving_stream(stream, Moving::Arriving(id));
        let (id, again) = match wanted {
            Arrive::Begin { stream, id, rows } => match self.moving_stream(&stream, Moving::Arrived(id)) {
                Ok(whole) => (whole, true),
                Err(_) => (self.begin_copy(turn, &stream, id, &rows)?, false),
            },
            Arrive::Take { stream, id, after, page } => {
                let id = arriving(self, &stream, id)?;
                self.take_page(turn, id, after, page)?;
                (id, false)
            }
            Arrive::Trim { stream, id, dead } => {
                let id = arriving(self, &stream, id)?;
                (id, self.trim_copy(turn, id, &dead)?)
            }
            Arrive::Rest { stream, id, rows } => {
                let id = arriving(self, &stream, id)?;
                for row in rows {
                    let row = envelope::decode(&row).map_err(|_broken| ApiError::BadRequest)?;
                    self.take_row(turn, id, row)?;
                }
                (id, false)
            }
            Arrive::Check { stream, id: number } => {
                if let Ok(id) = self.moving_stream(&stream, Moving::Arrived(number)) {
                    return Ok(Response::Arriving { last: self.streams[&id].body.last, again: false });
                }
                let id = arriving(self, &stream, number)?;
                let last_message_id = self.check_copy(turn, id)?;
                self.set_moving(turn, id, Moving::Arrived(number), last_message_id);
                (id, false)
            }
            Arrive::Open { stream, id } => {
                let id = self.moving_stream(&stream, Moving::Arrived(id))?;
                self.open(turn, id)?;
                (id, false)
            }
        };
        Ok(Response::Arriving { last: self.streams[&id].body.last, again })
    }

    fn begin_copy(
        &mut self,
        turn: &mut Turn<'_>,
        name: &str,
        id: u64,
        rows: &[Vec<u8>],
    ) -> Result<StreamId, ApiError> {
        if let Ok(id) = self.moving_stream(name, Moving::Arriving(id)) {
            return Ok(id);
        }
        // One that is here by that name goes first.
        if self.names.contains_key(name) {
            return Err(ApiError::StreamNameInUse);
        }
        if let Some(old) = self.copy_of(name) {
            // Whoever led when a move was given up may be late: what it asks for does nothing to the one after that.
            if self.streams[&old].body.moving.number().is_some_and(|number| number > id) {
                return Err(ApiError::StreamNotFound);
            }
            self.drop_copy(turn, old);
        }
        self.check_room()?;
        let (mut row, mut features) = (None, None);
        for bytes in rows.iter().take(2) {
            match envelope::decode(bytes).map_err(|_broken| ApiError::BadRequest)? {
                Row::Stream(stream) => row = Some(stream),
                Row::Features { features: found, .. } => features = Some(found),
                Row::Shard { .. }
                | Row::Deleted { .. }
                | Row::Consumer { .. }
                | Row::ConsumerRest { .. }
                | Row::Origin { .. }
                | Row::Replication { .. }
                | Row::Reserved(_)
                | Row::ShardListed(_)
                | Row::Moving { .. }
                | Row::MovedIds { .. }
                | Row::Arrival(_) => {}
            }
        }
        let StreamRow { mut config, created, .. } = *row.ok_or(ApiError::BadRequest)?;
        if config.name != name || features.is_some_and(|features| !features.apply(&mut config)) {
            return Err(ApiError::BadRequest);
        }
        let stream = StreamId(self.next_stream);
        let record = Record::StreamCreated { id: stream, created, config: Box::new(config) };
        record.push(turn.journal).map_err(|_too_large| ApiError::BadRequest)?;
        let Record::StreamCreated { config, .. } = record else { unreachable!("built above") };
        push_features(turn, stream, &config);
        self.apply_created(stream, created, *config, false);
        self.set_moving(turn, stream, Moving::Arriving(id), Vec::new());
        Ok(stream)
    }

    fn take_page(
        &mut self,
        turn: &mut Turn<'_>,
        id: StreamId,
        after: Sequence,
        page: MovePage,
    ) -> Result<(), ApiError> {
        let body = &mut self.streams.get_mut(&id).expect("the caller found it").body;
        // One that came twice, or too early.
        if body.last != after {
            return Ok(());
        }
        let MovePage { up_to, last_time, messages, ids, .. } = page;
        let mut ids = ids.into_iter().peekable();
        let mut moved = Vec::new();
        for message in &messages {
            if message.sequence <= body.last || message.sequence > up_to {
                return Err(ApiError::BadRequest);
            }
            while let Some(seen) = ids.next_if(|seen| seen.sequence < message.sequence) {
                moved.push(seen.clone());
                body.message_ids.insert(&seen.id, seen.sequence, seen.at, seen.content);
            }
            let before = Sequence(message.sequence.0 - 1);
            if before > body.last {
                skip(turn, body, before, message.timestamp);
            }
            let message = MessageRef {
                stream: id,
                sequence: message.sequence,
                timestamp: message.timestamp,
                subject: &message.subject,
                headers: &message.headers,
                payload: &message.payload,
            };
            let hash = body.subjects.hash(message.subject);
            let headers = PublishHeaders::parse(message.headers);
            turn.journal.push_message(&message);
            body.apply_message(&message, hash, &headers);
        }
        for seen in ids {
            body.message_ids.insert(&seen.id, seen.sequence, seen.at, seen.content);
            moved.push(seen);
        }
        if up_to > body.last {
            skip(turn, body, up_to, last_time);
        }
        if !moved.is_empty() {
            let record = Record::MovedIds { stream: id, ids: moved };
            record.push(turn.journal).map_err(|_too_large| ApiError::BadRequest)?;
            let Record::MovedIds { ids, .. } = record else { unreachable!("built above") };
            body.apply_moved_ids(ids);
        }
        Ok(())
    }

    /// Removes what is gone in the original; says whether there is more.
    fn trim_copy(&mut self, turn: &mut Turn<'_>, id: StreamId, dead: &Dead) -> Result<bool, ApiError> {
        let set = RoaringTreemap::deserialize_from(&dead.set[..]).map_err(|_broken| ApiError::BadRequest)?;
        if set.len() > DEAD_WINDOW {
            return Err(ApiError::BadRequest);
        }
        let stream = self.streams.get_mut(&id).expect("the caller found it");
        let mut left = REMOVALS_PER_TURN;
        while left > 0 && stream.body.messages > 0 && stream.body.first < dead.first {
            stream.remove(turn.journal, stream.body.first);
            left -= 1;
        }
        for sequence in set {
            if left == 0 {
                break;
            }
            if stream.body.lives(Sequence(sequence)) {
                stream.remove(turn.journal, Sequence(sequence));
                left -= 1;
            }
        }
        self.after_change(turn, id);
        Ok(left == 0)
    }

    fn take_row(&mut self, turn: &mut Turn<'_>, id: StreamId, row: Row) -> Result<(), ApiError> {
        let stream = self.streams.get_mut(&id).expect("the caller found it");
        match row {
            Row::Stream(row) => {
                stream.original = Some(Box::new(Original { row: *row, consumers: BTreeMap::new() }));
            }
            Row::Features { features, .. } => {
                let original = stream.original.as_mut().ok_or(ApiError::BadRequest)?;
                if !features.apply(&mut original.row.config) {
                    return Err(ApiError::BadRequest);
                }
            }
            Row::Origin { parts: 2.., .. } => {
                let text = "the stream has more of an origin than can be moved";
                return Err(ApiError::StreamUpdateInvalid(text.to_owned()));
            }
            Row::Origin { origin, epoch, highest_time, bytes: sequences, .. } => {
                let set = RoaringTreemap::deserialize_from(&sequences[..]);
                let set = set.map_err(|_broken| ApiError::BadRequest)?;
                let name = origin.clone();
                let record = Record::MovedOrigin { stream: id, origin, epoch, highest_time, sequences };
                record.push(turn.journal).map_err(|_too_large| ApiError::BadRequest)?;
                stream.body.origins.merge(name, epoch, &set, highest_time);
            }
            Row::Consumer { snapshot, .. } => {
                let original = stream.original.as_mut().ok_or(ApiError::BadRequest)?;
                let number = ConsumerId(self.next_consumer);
                original.consumers.insert(snapshot.id, number);
                if let Some(before) = stream.by_name.get(&snapshot.config.name).copied() {
                    let record = Record::ConsumerDeleted { stream: id, consumer: before };
                    record.push(turn.journal).expect("the record is a few bytes");
                    self.apply_consumer_deleted(id, before);
                }
                let mut snapshot = snapshot;
                snapshot.id = number;
                let record = Record::ConsumerCreated { stream: id, snapshot };
                record.push(turn.journal).map_err(|_too_large| ApiError::BadRequest)?;
                let Record::ConsumerCreated { snapshot, .. } = record else { unreachable!("built above") };
                self.restore_consumer(id, *snapshot);
            }
            Row::ConsumerRest { consumer, record, .. } => {
                let original = stream.original.as_ref().ok_or(ApiError::BadRequest)?;
                let consumer = *original.consumers.get(&consumer).ok_or(ApiError::BadRequest)?;
                let slot = stream.consumers.get_mut(&consumer).ok_or(ApiError::BadRequest)?;
                slot.consumer.apply(&record);
                slot.dirty = true;
                let record = Record::Consumer { stream: id, consumer, record };
                record.push(turn.journal).map_err(|_too_large| ApiError::BadRequest)?;
            }
            Row::Shard { .. }
            | Row::Deleted { .. }
            | Row::Replication { .. }
            | Row::Reserved(_)
            | Row::ShardListed(_)
            | Row::Moving { .. }
            | Row::MovedIds { .. }
            | Row::Arrival(_) => return Err(ApiError::BadRequest),
        }
        Ok(())
    }

    /// The copy is what the stream is, or nothing comes of it.
    fn check_copy(&mut self, turn: &mut Turn<'_>, id: StreamId) -> Result<Vec<u8>, ApiError> {
        let stream = self.streams.get_mut(&id).expect("the caller found it");
        let original = stream.original.as_ref().ok_or_else(not_whole)?;
        let (row, body) = (&original.row, &stream.body);
        let there = (row.messages, row.bytes, row.first, row.last, original.consumers.len());
        let here = (body.messages, body.bytes, body.first, body.last, stream.consumers.len());
        if there != here {
            tracing::warn!(?there, ?here, stream = row.config.name, "a copy of a stream is not what it is");
            return Err(not_whole());
        }
        let StreamRow { config, last_message_id, .. } = row.clone();
        if config != body.config {
            let record = Record::StreamUpdated { id, config: Box::new(config) };
            record.push(turn.journal).map_err(|_too_large| ApiError::BadRequest)?;
            let Record::StreamUpdated { config, .. } = record else { unreachable!("built above") };
            push_features(turn, id, &config);
            self.apply_updated(id, *config);
        }
        Ok(last_message_id)
    }

    /// The copy becomes the stream.
    pub(super) fn open(&mut self, turn: &mut Turn<'_>, id: StreamId) -> Result<(), ApiError> {
        let name = &self.streams[&id].body.config.name;
        if self.names.contains_key(name) {
            return Err(ApiError::StreamNameInUse);
        }
        self.thaw(turn, id);
        Ok(())
    }
}

fn skip(turn: &mut Turn<'_>, body: &mut StreamBody, to: Sequence, at: Timestamp) {
    let record = Record::SkippedTo { stream: body.id, to, at };
    record.push(turn.journal).expect("three numbers are smaller than a record");
    body.apply_skipped_to(to, at);
}
