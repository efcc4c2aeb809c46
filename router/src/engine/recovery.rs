//! From rows and replayed records to an engine: the same fold as live, then what is derived from the
//! messages themselves.
//!
//! While records are replayed a stream knows figures and sets only. Its subjects, message ids and times to
//! live are built at the end, from the messages that live then: a message that was compacted away after
//! it died is not missed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::RangeInclusive;

use beamlog_log::envelope::{self, DecodeError};
use beamlog_log::{
    Damage, Entry, EntryId, Journal, Log, Message, MessageRef, Read, RunSubject, RunSummary, SegmentId,
    Sequence, StreamId, Timestamp,
};
use bytes::Bytes;
use roaring::RoaringTreemap;

use crate::consumer::ConsumerId;
use crate::engine::record::Record;
use crate::engine::rows::{Row, StreamRow};
use crate::engine::{Counters, Engine, EngineLimits, Turn, expiry};
use crate::stream::body::StreamBody;
use crate::stream::message_ids;
use crate::stream::origins::Seen;
use crate::stream::publish_headers::PublishHeaders;
use crate::stream::state::Stream;

/// State that cannot be what this engine wrote. Nothing is served from it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BrokenState {
    #[error("a record of the state cannot be decoded")]
    Undecodable(#[from] DecodeError),
    #[error("message {sequence} of stream {stream} does not follow {last}")]
    Gap { stream: StreamId, sequence: Sequence, last: Sequence },
    #[error("the deleted set of stream {stream} is not whole")]
    DeletedSet { stream: StreamId },
    #[error("what stream {stream} has of an origin is not whole")]
    Origins { stream: StreamId },
    #[error("more messages were removed from stream {stream} than it had")]
    Removals { stream: StreamId },
    #[error("stream {stream} has a feature that this program does not know")]
    Features { stream: StreamId },
}

/// A log as recovery reads it.
pub(crate) trait Source: Journal {
    /// The streams of which messages are stored.
    fn streams(&self) -> Vec<StreamId>;
    fn runs(&self, stream: StreamId) -> Vec<RunSummary>;
    fn run_subjects(&mut self, stream: StreamId, segment: SegmentId) -> Result<Vec<RunSubject>, Damage>;
    fn run_entries(&mut self, stream: StreamId, segment: SegmentId) -> Result<Vec<Entry>, Damage>;
    fn as_journal(&mut self) -> &mut dyn Journal;
}

impl Source for Log {
    fn streams(&self) -> Vec<StreamId> {
        Self::streams(self)
    }

    fn runs(&self, stream: StreamId) -> Vec<RunSummary> {
        Self::runs(self, stream)
    }

    fn run_subjects(&mut self, stream: StreamId, segment: SegmentId) -> Result<Vec<RunSubject>, Damage> {
        Self::run_subjects(self, stream, segment)
    }

    fn run_entries(&mut self, stream: StreamId, segment: SegmentId) -> Result<Vec<Entry>, Damage> {
        Self::run_entries(self, stream, segment)
    }

    fn as_journal(&mut self) -> &mut dyn Journal {
        self
    }
}

/// An id of a replayed message: kept even when the message is gone by now.
struct ReplayedId {
    id: Vec<u8>,
    sequence: Sequence,
    at: Timestamp,
    content: u32,
}

pub(crate) struct Recovering {
    engine: Engine,
    /// Pieces of deleted sets.
    deleted: BTreeMap<StreamId, (u32, Vec<u8>)>,
    /// Pieces of a set of an origin.
    origins: BTreeMap<StreamId, (u32, Vec<u8>)>,
    ids: BTreeMap<StreamId, VecDeque<ReplayedId>>,
    /// Set while a leader is followed: what dies is told the log as it goes.
    released: Option<Vec<Release>>,
}

/// Messages that a folded record removed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Release {
    Messages(StreamId, RangeInclusive<Sequence>),
    Stream(StreamId),
}

impl Recovering {
    pub(crate) fn new(limits: EngineLimits) -> Self {
        Self {
            engine: Engine::new(limits),
            deleted: BTreeMap::new(),
            origins: BTreeMap::new(),
            ids: BTreeMap::new(),
            released: None,
        }
    }

    /// Takes in a row of the base.
    pub(crate) fn row(&mut self, bytes: &[u8]) -> Result<(), BrokenState> {
        let engine = &mut self.engine;
        match envelope::decode(bytes)? {
            Row::Shard { next_stream, next_consumer, now } => {
                engine.next_stream = engine.next_stream.max(next_stream);
                engine.next_consumer = engine.next_consumer.max(next_consumer);
                engine.now = engine.now.max(now);
            }
            Row::Stream(row) => {
                let StreamRow {
                    id,
                    created,
                    config,
                    first,
                    last,
                    last_time,
                    messages,
                    bytes,
                    last_message_id,
                } = *row;
                engine.apply_created(id, created, config, true);
                let body = &mut engine.streams.get_mut(&id).expect("it was just created").body;
                (body.first, body.last, body.last_time) = (first, last, last_time);
                (body.messages, body.bytes, body.last_message_id) = (messages, bytes, last_message_id);
            }
            Row::Deleted { stream, part, parts, bytes } => {
                let (next, gathered) = self.deleted.entry(stream).or_default();
                if *next != part {
                    return Err(BrokenState::DeletedSet { stream });
                }
                *next += 1;
                gathered.extend_from_slice(&bytes);
                if *next == parts {
                    let whole = RoaringTreemap::deserialize_from(&gathered[..])
                        .map_err(|_damaged| BrokenState::DeletedSet { stream })?;
                    self.deleted.remove(&stream);
                    if let Some(stream) = engine.streams.get_mut(&stream) {
                        stream.body.deleted = whole;
                    }
                }
            }
            Row::Origin { stream, origin, epoch, highest_time, part, parts, bytes } => {
                let (next, gathered) = self.origins.entry(stream).or_default();
                if *next != part {
                    return Err(BrokenState::Origins { stream });
                }
                *next += 1;
                gathered.extend_from_slice(&bytes);
                if *next == parts {
                    let sequences = RoaringTreemap::deserialize_from(&gathered[..])
                        .map_err(|_damaged| BrokenState::Origins { stream })?;
                    self.origins.remove(&stream);
                    if let Some(stream) = engine.streams.get_mut(&stream) {
                        let seen = Seen::new(sequences, highest_time);
                        stream.body.origins.seen.insert((origin, epoch), seen);
                    }
                }
            }
            Row::Consumer { stream, snapshot } => engine.restore_consumer(stream, *snapshot),
            Row::ConsumerRest { stream, consumer, record } => {
                self.apply_to_consumer(stream, consumer, &record);
            }
            Row::Features { stream, features } => engine.apply_features(stream, features)?,
            Row::Reserved(reservation) => engine.reservations.put(*reservation),
            Row::ShardListed(shard) => engine.shards.put(shard),
            Row::Moving { stream, moving } => engine.apply_moving(stream, moving),
            Row::MovedIds { stream, ids } => {
                if let Some(stream) = engine.streams.get_mut(&stream) {
                    stream.body.apply_moved_ids(ids);
                }
            }
            Row::Arrival(arrival) => engine.reservations.put_arrival(*arrival),
            Row::Replication { index, term, bytes } => {
                engine.note_replication(EntryId { index, term }, &bytes.into());
            }
        }
        Ok(())
    }

    fn apply_to_consumer(
        &mut self,
        stream: StreamId,
        consumer: ConsumerId,
        record: &crate::consumer::ConsumerRecord,
    ) {
        let slot = self.engine.streams.get_mut(&stream).and_then(|s| s.consumers.get_mut(&consumer));
        if let Some(slot) = slot {
            slot.consumer.apply(record);
            slot.dirty = true;
        }
    }

    /// Folds a replayed message in.
    pub(crate) fn message(&mut self, message: &Message) -> Result<(), BrokenState> {
        // A stream that a later record deleted may have left messages.
        let Some(stream) = self.engine.streams.get_mut(&message.stream) else { return Ok(()) };
        let body = &mut stream.body;
        if message.sequence != body.last.next() {
            let (stream, sequence, last) = (message.stream, message.sequence, body.last);
            return Err(BrokenState::Gap { stream, sequence, last });
        }
        let headers = PublishHeaders::parse(&message.headers);
        if let Some(id) = headers.message_id {
            let seen = self.ids.entry(message.stream).or_default();
            seen.push_back(replayed_id(id, message));
            if self.released.is_some() {
                expire(seen, body, message.timestamp);
            }
        }
        let hash = body.subjects.hash(&message.subject);
        body.apply_message(&message_ref(message), hash, &headers);
        Ok(())
    }

    /// Folds a replayed control record in.
    pub(crate) fn control(&mut self, bytes: &[u8]) -> Result<(), BrokenState> {
        let engine = &mut self.engine;
        match envelope::decode(bytes)? {
            Record::StreamCreated { id, created, config } => engine.apply_created(id, created, *config, true),
            Record::StreamUpdated { id, config } => engine.apply_updated(id, *config),
            Record::Features { stream, features } => engine.apply_features(stream, features)?,
            Record::Reserved(reservation) => engine.reservations.put(*reservation),
            Record::ShardListed(shard) => engine.shards.put(shard),
            Record::Released { stream } => engine.reservations.remove(&stream),
            Record::Moving { stream: id, moving, last_message_id } => {
                engine.apply_moving(id, moving);
                if let Some(stream) = engine.streams.get_mut(&id) {
                    stream.body.note_id(&last_message_id);
                }
            }
            Record::MovedIds { stream, ids } => {
                if let Some(stream) = engine.streams.get_mut(&stream) {
                    stream.body.apply_moved_ids(ids);
                }
            }
            Record::MovedOrigin { stream: id, origin, epoch, highest_time, sequences } => {
                let sequences = RoaringTreemap::deserialize_from(&sequences[..])
                    .map_err(|_damaged| BrokenState::Origins { stream: id })?;
                if let Some(stream) = engine.streams.get_mut(&id) {
                    stream.body.origins.merge(origin, epoch, &sequences, highest_time);
                }
            }
            Record::Arrival(arrival) => engine.reservations.put_arrival(*arrival),
            Record::ArrivalEnded { stream } => engine.reservations.end_arrival(&stream),
            Record::StreamDeleted { id } => {
                engine.apply_deleted(id);
                self.ids.remove(&id);
                if let Some(released) = &mut self.released {
                    released.push(Release::Stream(id));
                }
            }
            Record::Removed { stream: id, ranges, messages, bytes } => {
                let Some(stream) = engine.streams.get_mut(&id) else { return Ok(()) };
                if messages > stream.body.messages || bytes > stream.body.bytes {
                    return Err(BrokenState::Removals { stream: id });
                }
                let (count, mut left) = (ranges.len(), Some((messages, bytes)));
                for (at, (first, last)) in ranges.into_iter().enumerate() {
                    if let Some(released) = &mut self.released {
                        released.push(Release::Messages(id, Sequence(first)..=Sequence(last)));
                    }
                    // The figures go with the last range: before it the stream may still have messages.
                    let figures = if at + 1 == count { left.take() } else { None };
                    let (messages, bytes) = figures.unwrap_or_default();
                    stream.body.apply_removed(first..=last, messages, bytes);
                }
            }
            Record::Skipped { stream: id, sequence, at, message_id } => {
                let Some(stream) = engine.streams.get_mut(&id) else { return Ok(()) };
                let last = stream.body.last;
                if sequence != last.next() {
                    return Err(BrokenState::Gap { stream: id, sequence, last });
                }
                stream.body.apply_skipped(sequence, at, &message_id);
            }
            Record::SkippedTo { stream: id, to, at } => {
                let Some(stream) = engine.streams.get_mut(&id) else { return Ok(()) };
                let last = stream.body.last;
                if to <= last {
                    return Err(BrokenState::Gap { stream: id, sequence: to, last });
                }
                stream.body.apply_skipped_to(to, at);
            }
            Record::ConsumerCreated { stream, snapshot } => engine.restore_consumer(stream, *snapshot),
            Record::ConsumerDeleted { stream, consumer } => {
                engine.apply_consumer_deleted(stream, consumer);
            }
            Record::Consumer { stream, consumer, record } => {
                self.apply_to_consumer(stream, consumer, &record)
            }
        }
        Ok(())
    }

    /// A leader will be followed, for who knows how long: the log is told what of it is dead now, and from here
    /// on [`Self::take_released`] says what dies. Ids of what is dead by now are looked up before, unless they
    /// are known from elsewhere ([`Self::take_ids_of`]): later nobody can read them.
    pub(crate) fn follow(&mut self, source: &mut dyn Source, look_up_ids: bool) {
        self.released = Some(Vec::new());
        if look_up_ids {
            for id in self.engine.names.values() {
                let seen = seen_ids(&self.engine.streams[id].body, source, self.engine.now);
                if !seen.is_empty() {
                    self.ids.insert(*id, seen);
                }
            }
        }
        release_unknown(&self.engine, source);
        for id in self.engine.names.values() {
            let body = &self.engine.streams[id].body;
            if body.first > Sequence(1) {
                source.release(*id, Sequence(1)..=Sequence(body.first.0 - 1));
            }
            let mut dead: Option<(u64, u64)> = None;
            for sequence in &body.deleted {
                dead = match dead {
                    Some((first, last)) if last + 1 == sequence => Some((first, sequence)),
                    before => {
                        if let Some((first, last)) = before {
                            source.release(*id, Sequence(first)..=Sequence(last));
                        }
                        Some((sequence, sequence))
                    }
                };
            }
            if let Some((first, last)) = dead {
                source.release(*id, Sequence(first)..=Sequence(last));
            }
        }
    }

    /// The ids that an engine knew, of messages that this state has. What the engine decided beyond it, this
    /// state never heard of.
    pub(crate) fn take_ids_of(&mut self, other: &Engine) {
        self.ids.clear();
        for id in self.engine.names.values() {
            let last = self.engine.streams[id].body.last;
            let Some(stream) = other.streams.get(id) else { continue };
            let seen: VecDeque<ReplayedId> = stream
                .body
                .message_ids
                .iter()
                .filter(|(_, sequence, ..)| *sequence <= last)
                .map(|(id, sequence, at, content)| ReplayedId { id: id.to_vec(), sequence, at, content })
                .collect();
            if !seen.is_empty() {
                self.ids.insert(*id, seen);
            }
        }
    }

    /// A planted bug: how far each origin came stands beside the entries, with who leads, and not in them.
    #[cfg(feature = "planted-bugs")]
    pub(crate) fn forget_watermarks(&mut self) {
        for stream in self.engine.streams.values_mut() {
            stream.body.origins = crate::stream::origins::Origins::default();
        }
    }

    /// What died since this was last asked.
    pub(crate) fn take_released(&mut self) -> Vec<Release> {
        self.released.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// The leader's clock when the records now folded in were gathered.
    pub(crate) fn at(&mut self, time: Timestamp) {
        self.engine.now = self.engine.now.max(time);
        if self.released.is_some() {
            self.engine.forget_changes();
        }
    }

    /// Ids leave with their window.
    pub(crate) fn expire_ids(&mut self) {
        let (engine, now) = (&self.engine, self.engine.now);
        self.ids.retain(|id, seen| {
            let Some(stream) = engine.streams.get(id) else { return false };
            expire(seen, &stream.body, now);
            !seen.is_empty()
        });
    }

    /// Folds a record of replication in.
    pub(crate) fn replication(&mut self, id: EntryId, bytes: &Bytes) {
        self.engine.note_replication(id, bytes);
    }

    /// The state so far, which may be read only.
    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(crate) fn carry_counters(&mut self, counters: Counters) {
        self.engine.carry_counters(counters);
    }

    /// The rows taken in so far are in the checkpoint store.
    pub(crate) fn mark_saved(&mut self) {
        self.engine.reservations.take_dirty();
        self.engine.shards.take_dirty();
        for stream in self.engine.streams.values_mut() {
            stream.body.dirty = false;
            stream.body.origins.dirty = false;
            for slot in stream.consumers.values_mut() {
                slot.dirty = false;
            }
        }
    }

    /// The latest time the base knows of.
    pub(crate) fn now(&self) -> Timestamp {
        self.engine.now
    }

    /// Derives the rest and hands the engine over. Its outputs say whom to capture and to watch.
    pub(crate) fn finish(mut self, source: &mut dyn Source, now: Timestamp) -> Result<Engine, BrokenState> {
        if let Some((stream, _)) = self.deleted.first_key_value() {
            return Err(BrokenState::DeletedSet { stream: *stream });
        }
        if let Some((stream, _)) = self.origins.first_key_value() {
            return Err(BrokenState::Origins { stream: *stream });
        }
        let mut engine = self.engine;
        engine.now = engine.now.max(now);
        let ids: Vec<StreamId> = engine.names.values().copied().collect();
        release_unknown(&engine, source);
        for id in &ids {
            let stream = engine.streams.get_mut(id).expect("a name belongs to a stream");
            let replayed = self.ids.remove(id).unwrap_or_default();
            // Who followed knows all ids there are.
            derive(stream, source, engine.now, replayed, self.released.is_none());
        }
        let has_interest = |_: &[u8]| true;
        for id in ids {
            let mut turn =
                Turn { now: engine.now, journal: source.as_journal(), has_interest: &has_interest };
            engine.resume(&mut turn, id);
        }
        engine.capture_all();
        Ok(engine)
    }
}

impl Engine {
    /// Consumers count again, and deadlines and watches are set.
    pub(super) fn resume(&mut self, turn: &mut Turn<'_>, id: StreamId) {
        let stream = self.streams.get_mut(&id).expect("a name belongs to a stream");
        if stream.body.moving.is_moving() {
            return;
        }
        if let Some(due) = expiry::stream_deadline(stream, turn.journal) {
            stream.armed = Some(due);
            self.deadlines.insert((due, id, None));
        }
        let consumers: Vec<ConsumerId> = stream.consumers.keys().copied().collect();
        for consumer in consumers {
            self.with_consumer(turn, id, consumer, |consumer, now, view, _| consumer.recovered(now, view));
            self.watch(id, consumer);
        }
    }
}

fn message_ref(message: &Message) -> MessageRef<'_> {
    MessageRef {
        stream: message.stream,
        sequence: message.sequence,
        timestamp: message.timestamp,
        subject: &message.subject,
        headers: &message.headers,
        payload: &message.payload,
    }
}

/// Of a stream that was deleted before the newest segment began, only the log still knows. Those with later ids
/// are not created yet, as far as the state goes.
fn release_unknown(engine: &Engine, source: &mut dyn Source) {
    let known: BTreeSet<StreamId> = engine.names.values().copied().collect();
    for stored in source.streams() {
        if !known.contains(&stored) && stored.0 < engine.next_stream {
            source.release_stream(stored);
        }
    }
}

fn replayed_id(id: &[u8], message: &Message) -> ReplayedId {
    ReplayedId {
        id: id.to_vec(),
        sequence: message.sequence,
        at: message.timestamp,
        content: message_ids::content_checksum(&message.subject, &message.payload),
    }
}

fn horizon(body: &StreamBody, now: Timestamp) -> Timestamp {
    Timestamp(now.0.saturating_sub(body.config.duplicate_window_nanos.unwrap_or(0)))
}

fn expire(seen: &mut VecDeque<ReplayedId>, body: &StreamBody, now: Timestamp) {
    let horizon = horizon(body, now);
    while seen.front().is_some_and(|oldest| oldest.at < horizon) {
        seen.pop_front();
    }
}

/// The ids of a stream's messages inside the window, as far as the log still has them.
fn seen_ids(body: &StreamBody, source: &mut dyn Source, now: Timestamp) -> VecDeque<ReplayedId> {
    let horizon = horizon(body, now);
    let mut seen = VecDeque::new();
    for run in source.runs(body.id) {
        if run.with_message_id == 0 || run.newest < horizon || run.first > body.last {
            continue;
        }
        // Damage hides ids as it hides messages; whoever serves them says so.
        let Ok(entries) = source.run_entries(body.id, run.segment) else { continue };
        for entry in entries {
            let wanted = entry.headers_bytes > 0 && entry.timestamp >= horizon && entry.sequence <= body.last;
            if wanted
                && let Read::Found(message) = source.read(body.id, entry.sequence)
                && let Some(id) = PublishHeaders::parse(&message.headers).message_id
            {
                seen.push_back(replayed_id(id, &message));
            }
        }
    }
    seen
}

/// Builds what follows from the living messages, and tells the log which of its messages are dead.
fn derive(
    stream: &mut Stream,
    source: &mut dyn Source,
    now: Timestamp,
    replayed: VecDeque<ReplayedId>,
    look_up_ids: bool,
) {
    let body = &mut stream.body;
    body.recovering = false;
    let horizon = horizon(body, now);
    let replayed_from = replayed.front().map_or(Sequence(u64::MAX), |first| first.sequence);
    for run in source.runs(body.id) {
        let living = body.living_before(run.last.next()) - body.living_before(run.first);
        let has_ids =
            look_up_ids && run.with_message_id > 0 && run.newest >= horizon && run.first < replayed_from;
        if living == 0 && !has_ids {
            source.release(body.id, run.first..=run.last);
            continue;
        }
        let wants_entries = living != run.count
            || body.config.max_messages_per_subject.is_some_and(|max| max > 1)
            || body.config.allow_message_ttl;
        if !wants_entries && !has_ids {
            match source.run_subjects(body.id, run.segment) {
                Ok(subjects) => {
                    for RunSubject { subject, first, last, count, .. } in subjects {
                        let hash = body.subjects.hash(&subject);
                        body.subjects.insert(hash, &subject, first, last, count);
                    }
                }
                Err(damage) => body.hide(run.last, damage),
            }
            continue;
        }
        match source.run_entries(body.id, run.segment) {
            Ok(entries) => {
                derive_from_entries(body, source, &entries, has_ids.then_some((horizon, replayed_from)))
            }
            Err(damage) => body.hide(run.last, damage),
        }
    }
    for ReplayedId { id, sequence, at, content } in replayed {
        if at >= horizon {
            body.message_ids.insert(&id, sequence, at, content);
        }
    }
    body.derive_moved_ids(horizon);
}

fn derive_from_entries(
    body: &mut StreamBody,
    source: &mut dyn Source,
    entries: &[Entry],
    ids: Option<(Timestamp, Sequence)>,
) {
    let mut dead: Option<(Sequence, Sequence)> = None;
    for entry in entries {
        let lives = body.lives(entry.sequence);
        if lives {
            let hash = body.subjects.hash(&entry.subject);
            body.subjects.stored(hash, &entry.subject, entry.sequence);
        }
        let wants_id = ids.is_some_and(|(horizon, end)| entry.timestamp >= horizon && entry.sequence < end);
        let wants_end = lives && body.config.allow_message_ttl;
        if entry.headers_bytes > 0
            && (wants_id || wants_end)
            && let Read::Found(message) = source.read(body.id, entry.sequence)
        {
            let mut headers = PublishHeaders::parse(&message.headers);
            if !wants_id {
                headers.message_id = None;
            }
            if !wants_end {
                headers.ttl = None;
            }
            body.derive_from_headers(&message_ref(&message), &headers);
        }
        dead = match dead {
            Some((first, _)) if !lives => Some((first, entry.sequence)),
            None if !lives => Some((entry.sequence, entry.sequence)),
            Some((first, last)) => {
                source.release(body.id, first..=last);
                None
            }
            None => None,
        };
    }
    if let Some((first, last)) = dead {
        source.release(body.id, first..=last);
    }
}
