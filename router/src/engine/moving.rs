//! A stream as it leaves a shard: it is read page by page while it serves, then frozen, and read to its end. What
//! becomes of the pages where it arrives is in [`super::arriving`].

use beamlog_log::{Sequence, StreamId};
use roaring::RoaringTreemap;

use crate::api::error::ApiError;
use crate::api::moving::{Dead, MoveAnswer, MovePage, MoveRequest, MovingHere, MovingState, Rest};
use crate::api::request::{Answer, Response};
use crate::consumer::{Consumer, ConsumerId};
use crate::engine::arrivals::{Arrival, Place};
use crate::engine::jobs::Job;
use crate::engine::record::Record;
use crate::engine::rows::{self, Row};
use crate::engine::{Engine, Output, Turn};
use crate::shards::ShardKind;
use crate::stream::Retention;
use crate::stream::batches::Batches;
use crate::stream::body::{StreamBody, stored_bytes};
use crate::stream::moving::{MovedId, Moving};
use crate::stream::state::Stream;
use crate::wire::DeliveryStatus;

/// What one answer carries. A single message may be more.
const PAGE_BYTES: usize = 512 << 10;
const PAGE_ITEMS: usize = 4096;
/// What is known of an item beside its bytes.
const ITEM_BYTES: usize = 64;
/// Sequences that one answer covers when it says which are gone: so many bits are half a megabyte.
pub(super) const DEAD_WINDOW: u64 = 1 << 22;

impl Engine {
    pub(super) fn apply_moving(&mut self, id: StreamId, moving: Moving) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let before = stream.body.key();
        stream.body.moving = moving;
        stream.body.dirty = true;
        let key = stream.body.key();
        if self.names.get(&before) == Some(&id) {
            self.names.remove(&before);
        }
        self.names.insert(key, id);
    }

    /// The stream of this name, in this state of its move.
    pub(super) fn moving_stream(&self, stream: &str, moving: Moving) -> Result<StreamId, ApiError> {
        let found = self.streams.values().map(|stream| &stream.body);
        let mut found = found.filter(|body| body.config.name == stream && body.moving == moving);
        found.next().map(|body| body.id).ok_or(ApiError::StreamNotFound)
    }

    /// The copy that is here of a stream of this name.
    pub(super) fn copy_of(&self, stream: &str) -> Option<StreamId> {
        let mut found = self.streams.values().map(|stream| &stream.body);
        found.find(|body| body.config.name == stream && body.moving.is_copy()).map(|body| body.id)
    }

    pub(super) fn set_moving(
        &mut self,
        turn: &mut Turn<'_>,
        id: StreamId,
        moving: Moving,
        last_message_id: Vec<u8>,
    ) {
        let record = Record::Moving { stream: id, moving, last_message_id };
        record.push(turn.journal).expect("an id is smaller than a record");
        let Record::Moving { last_message_id, .. } = record else { unreachable!("built above") };
        self.apply_moving(id, moving);
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.body.note_id(&last_message_id);
        }
        self.commit_wanted = true;
    }

    /// What is asked of a stream that leaves.
    pub(super) fn move_stream(&mut self, turn: &mut Turn<'_>, wanted: MoveRequest) -> Answer {
        // What is told is in the log: the copy has nothing that another leader would not know of.
        self.commit_wanted = true;
        // By its name: frozen or not.
        let named = |engine: &Self, stream: &str| {
            let id = engine.names.get(stream).copied();
            id.ok_or_else(|| engine.reservations.missing(stream))
        };
        let answer = match wanted {
            MoveRequest::Page { stream, after } => {
                let id = named(self, &stream)?;
                MoveAnswer::Page(page(&self.streams[&id].body, turn, after)?)
            }
            MoveRequest::Dead { stream, from } => {
                let id = named(self, &stream)?;
                MoveAnswer::Dead(dead(&self.streams[&id].body, from))
            }
            MoveRequest::Rest { stream, from } => {
                let id = named(self, &stream)?;
                MoveAnswer::Rest(rest(&self.streams[&id], from))
            }
            MoveRequest::Freeze { stream, id } => {
                let stream = named(self, &stream)?;
                self.freeze(turn, stream, id)?;
                MoveAnswer::Done
            }
            MoveRequest::Thaw { stream, id } => {
                if let Ok(stream) = self.moving_stream(&stream, Moving::Leaving(id)) {
                    self.thaw(turn, stream);
                }
                MoveAnswer::Done
            }
            MoveRequest::Drop { stream, id } => {
                for moving in [Moving::Leaving(id), Moving::Arriving(id), Moving::Arrived(id)] {
                    if let Ok(stream) = self.moving_stream(&stream, moving) {
                        self.drop_copy(turn, stream);
                    }
                }
                MoveAnswer::Done
            }
        };
        Ok(Response::Moving(Box::new(answer)))
    }

    /// From here on the stream does not change: who waits for it is told, and publishes find no stream.
    fn freeze(&mut self, turn: &mut Turn<'_>, id: StreamId, number: u64) -> Result<(), ApiError> {
        match self.streams[&id].body.moving {
            Moving::No => {}
            Moving::Leaving(have) if have == number => return Ok(()),
            Moving::Leaving(_) | Moving::Arriving(_) | Moving::Arrived(_) => {
                return Err(ApiError::StreamNotFound);
            }
        }
        // Where moves are decided, one that was given up is known: a late word of it does nothing. Elsewhere who
        // compares with the catalogue finds it.
        let name = &self.streams[&id].body.config.name;
        let is_going = |arrival: Arrival| arrival.from == Place::Common && !arrival.exchanged;
        if self.limits.shard == ShardKind::Common && !self.arrival(name, number).is_some_and(is_going) {
            return Err(ApiError::StreamNotFound);
        }
        if self.has_jobs(id) {
            return Err(ApiError::TooManyRequests);
        }
        // What was decided is logged first.
        let consumers: Vec<ConsumerId> = self.streams[&id].consumers.keys().copied().collect();
        for consumer in &consumers {
            self.with_consumer(turn, id, *consumer, |consumer, now, _, out| consumer.flush(now, out));
        }
        for consumer in &consumers {
            self.close_consumer(turn, id, *consumer, &DeliveryStatus::LeadershipChange);
        }
        let stream = self.streams.get_mut(&id).expect("the caller found it");
        stream.body.flush_removals(turn.journal);
        // What is not whole was promised nothing.
        self.batch_bytes -= stream.batches.bytes();
        stream.batches = Batches::default();
        let (subjects, last) = (stream.body.config.subjects.clone(), stream.body.last_message_id.clone());
        self.set_moving(turn, id, Moving::Leaving(number), last);
        for filter in subjects {
            self.outputs.push_back(Output::Release { filter: filter.into(), stream: id });
        }
        Ok(())
    }

    /// It is a stream like any other, for the first time or again.
    pub(super) fn thaw(&mut self, turn: &mut Turn<'_>, id: StreamId) {
        let last_message_id = self.streams[&id].body.last_message_id.clone();
        self.set_moving(turn, id, Moving::No, last_message_id);
        let stream = self.streams.get_mut(&id).expect("the caller found it");
        stream.original = None;
        let name = stream.body.config.name.clone();
        for slot in stream.consumers.values_mut() {
            // As after a restart: nobody waits, and nothing is on its way.
            let mut consumer = Consumer::restore(&name, slot.consumer.snapshot());
            for record in slot.consumer.snapshot_rest() {
                consumer.apply(&record);
            }
            slot.consumer = consumer;
            (slot.ready, slot.armed) = (false, None);
        }
        self.resume(turn, id);
        self.capture(id, &[]);
        let retention = self.streams[&id].body.config.retention;
        if retention == Retention::Interest {
            self.jobs.push_back(Job::DropUnwanted { stream: id, from: Sequence(0) });
        }
    }

    /// Nobody sees it go.
    pub(super) fn drop_copy(&mut self, turn: &mut Turn<'_>, id: StreamId) {
        Record::StreamDeleted { id }.push(turn.journal).expect("the record is a few bytes");
        self.apply_deleted(id);
        turn.journal.release_stream(id);
        self.drop_jobs(id);
        self.commit_wanted = true;
    }

    /// The streams that are on their way from or to this shard.
    pub(super) fn moving_here(&self) -> Vec<MovingHere> {
        let streams = self.names.values().map(|id| &self.streams[id].body);
        streams
            .filter_map(|body| {
                let (id, state) = match body.moving {
                    Moving::No => return None,
                    Moving::Leaving(id) => (id, MovingState::Leaving),
                    Moving::Arriving(id) => (id, MovingState::Arriving),
                    Moving::Arrived(id) => (id, MovingState::Arrived),
                };
                let (stream, subjects) = (body.config.name.clone(), body.config.subjects.clone());
                Some(MovingHere { stream, subjects, id, state })
            })
            .collect()
    }
}

fn page(body: &StreamBody, turn: &mut Turn<'_>, after: Sequence) -> Result<MovePage, ApiError> {
    let mut page = MovePage { last: body.last, last_time: body.last_time, ..MovePage::default() };
    let mut gone =
        body.message_ids.behind(after).filter(|(_, sequence, ..)| !body.lives(*sequence)).peekable();
    let (mut at, mut bytes) = (after.next(), 0);
    page.up_to = body.last.max(after);
    if after >= body.last {
        return Ok(page);
    }
    loop {
        let living = body.living_from(at);
        let id = gone.peek().map(|(_, sequence, ..)| *sequence);
        let Some(next) = living.into_iter().chain(id).min() else { break };
        if bytes >= PAGE_BYTES || page.messages.len() + page.ids.len() >= PAGE_ITEMS {
            page.up_to = Sequence(next.0 - 1);
            break;
        }
        if id == Some(next) {
            let (id, sequence, at, content) = gone.next().expect("it was just looked at");
            bytes += id.len() + ITEM_BYTES;
            page.ids.push(MovedId { id: id.to_vec(), sequence, at, content });
        } else {
            let message = body.read_living(turn.journal, next).map_err(ApiError::Unreadable)?;
            let (subject, headers, payload) =
                (message.subject.len(), message.headers.len(), message.payload.len());
            let size = usize::try_from(stored_bytes(subject, headers, payload)).unwrap_or(usize::MAX);
            if bytes > 0 && bytes.saturating_add(size) > 2 * PAGE_BYTES {
                page.up_to = Sequence(next.0 - 1);
                break;
            }
            bytes = bytes.saturating_add(size).saturating_add(ITEM_BYTES);
            page.messages.push(message);
        }
        at = next.next();
    }
    Ok(page)
}

fn dead(body: &StreamBody, from: Sequence) -> Dead {
    let from = from.max(body.first);
    let end = Sequence(from.0.saturating_add(DEAD_WINDOW));
    let mut set = RoaringTreemap::new();
    set.insert_range(from.0..end.0);
    set &= &body.deleted;
    let mut bytes = Vec::new();
    set.serialize_into(&mut bytes).expect("a vector takes every write");
    // The next that is gone, wherever it is.
    let next = body.deleted.select(body.deleted.rank(end.0 - 1)).map(Sequence);
    Dead { first: body.first, set: bytes, next: next.filter(|next| *next <= body.last) }
}

/// Rows of a stream but for its messages, as a snapshot has them.
fn rest(stream: &Stream, from: u32) -> Rest {
    let config = rows::stream_rows(stream)
        .into_iter()
        .take_while(|row| matches!(row, Row::Stream(_) | Row::Features { .. }));
    let consumers = stream.consumers.values().flat_map(|slot| rows::consumer_rows(stream.body.id, slot));
    let all = config.chain(rows::origin_rows(stream)).chain(consumers);
    let (mut rest, mut bytes) = (Rest::default(), 0);
    for (row, at) in all.zip(0..).skip_while(|(_, at)| *at < from) {
        if bytes >= PAGE_BYTES {
            rest.next = Some(at);
            break;
        }
        let row = rows::encode(&row);
        bytes += row.len() + ITEM_BYTES;
        rest.rows.push(row);
    }
    rest
}
