//! Streams as things that are created, changed, listed and deleted.

use beamlog_log::{Sequence, StreamId, Timestamp};
use bytes::Bytes;

use crate::api::error::ApiError;
use crate::api::request::{AccountInfo, Answer, Page, Response, StreamInfo};
use crate::engine::jobs::Job;
use crate::engine::record::Record;
use crate::engine::recovery::BrokenState;
use crate::engine::{Engine, Output, RowKey, Turn};
use crate::stream::body::StreamBody;
use crate::stream::state::Stream;
use crate::stream::{Features, Retention, StreamConfig, StreamState, validation};
use crate::subject;
use crate::wire::{Advisory, DeliveryStatus};

/// Items of one page, as nats-server pages them.
const NAMES_PER_PAGE: usize = 1024;
const STREAMS_PER_PAGE: usize = 256;
const SUBJECTS_PER_PAGE: usize = 100_000;
/// Deleted sequences one answer lists.
const DELETED_LISTED_MAX: usize = 1_000_000;
/// Who has a stream that is between two shards.
pub(super) const MOVES: &str = "another one soon: it moves";

impl Engine {
    pub(super) fn account_info(&self) -> Response {
        let counters = self.counters();
        Response::Account(AccountInfo {
            memory_bytes: 0,
            storage_bytes: counters.bytes,
            streams: counters.streams + self.reservations.streams().count() as u64,
            consumers: counters.consumers,
        })
    }

    pub(super) fn create_stream(&mut self, turn: &mut Turn<'_>, mut config: StreamConfig) -> Answer {
        if config.sealed {
            let text = "stream configuration for create can not be sealed";
            return Err(ApiError::StreamConfigInvalid(text.into()));
        }
        validation::validate(&mut config, self.limits.replicas)?;
        if let Some(id) = self.names.get(&config.name).copied() {
            let stream = self.streams.get_mut(&id).expect("a name belongs to a stream");
            if stream.body.config != config {
                return Err(ApiError::StreamNameInUse);
            }
            // The creation it repeats may not be durable yet.
            self.commit_wanted = true;
            return Ok(Response::Stream { info: Box::new(info(stream, turn)), created: false });
        }
        if self.reservations.get(&config.name).is_some() {
            return Err(self.reservations.in_use(&config.name));
        }
        // What arrives by that name may be the stream already, and wait to be opened.
        if self.copy_of(&config.name).is_some() {
            return Err(ApiError::StreamOffline { node: MOVES.to_owned() });
        }
        self.check_room()?;
        self.check_overlap(None, &config.name, &config.subjects)?;
        let id = StreamId(self.next_stream);
        let record = Record::StreamCreated { id, created: turn.now, config: Box::new(config) };
        record.push(turn.journal).map_err(|_too_large| ApiError::BadRequest)?;
        let Record::StreamCreated { config, .. } = record else { unreachable!("built above") };
        push_features(turn, id, &config);
        self.commit_wanted = true;
        self.apply_created(id, turn.now, *config, false);
        self.capture(id, &[]);
        let stream = self.streams.get_mut(&id).expect("it was just created");
        let name = stream.body.config.name.clone();
        let info = Box::new(info(stream, turn));
        self.outputs.push_back(Output::Advisory(Advisory::StreamCreated { stream: name }));
        Ok(Response::Stream { info, created: true })
    }

    /// Folds a new stream in.
    pub(super) fn apply_created(
        &mut self,
        id: StreamId,
        created: Timestamp,
        config: StreamConfig,
        recovering: bool,
    ) {
        let mut body = StreamBody::new(id, config, created);
        body.recovering = recovering;
        self.names.insert(body.key(), id);
        self.streams.insert(id, Stream::new(body));
        self.next_stream = self.next_stream.max(id.0 + 1);
    }

    /// Folds in what a stream's configuration has no place for.
    pub(super) fn apply_features(&mut self, id: StreamId, features: Features) -> Result<(), BrokenState> {
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        if features.apply(&mut stream.body.config) {
            Ok(())
        } else {
            Err(BrokenState::Features { stream: id })
        }
    }

    /// Whether there may be one more.
    pub(super) fn check_room(&self) -> Result<(), ApiError> {
        let streams = self.streams.len() + self.reservations.len();
        if streams >= self.limits.streams || self.next_stream > self.limits.shard.last_stream() {
            return Err(ApiError::MaxStreams);
        }
        Ok(())
    }

    /// Whether a stream of this name may have these subjects: no other one has any of them, in whatever shard.
    pub(super) fn check_overlap(
        &self,
        except: Option<StreamId>,
        name: &str,
        subjects: &[String],
    ) -> Result<(), ApiError> {
        // A copy that arrives takes nothing; who sends it has the subjects.
        let arrives = |stream: &&Stream| stream.body.moving.is_copy();
        let here = self.streams.values().filter(|stream| Some(stream.body.id) != except && !arrives(stream));
        let here = here.flat_map(|stream| &stream.body.config.subjects);
        let elsewhere = self.reservations.all().filter(|reservation| reservation.stream != name);
        let mut taken = here.chain(elsewhere.flat_map(|reservation| &reservation.subjects));
        let overlaps = |taken: &String| {
            subjects.iter().any(|wanted| subject::overlaps(wanted.as_bytes(), taken.as_bytes()))
        };
        if taken.any(overlaps) { Err(ApiError::SubjectOverlap) } else { Ok(()) }
    }

    /// Says which publishes the stream takes, after it took those of `before`.
    pub(super) fn capture(&mut self, id: StreamId, before: &[String]) {
        let now = &self.streams[&id].body.config.subjects;
        for filter in before.iter().filter(|filter| !now.contains(filter)) {
            let filter = Bytes::copy_from_slice(filter.as_bytes());
            self.outputs.push_back(Output::Release { filter, stream: id });
        }
        for filter in now.iter().filter(|filter| !before.contains(filter)) {
            let filter = Bytes::copy_from_slice(filter.as_bytes());
            self.outputs.push_back(Output::Capture { filter, stream: id });
        }
    }

    /// All captures, for an interest index that is still empty.
    pub(crate) fn capture_all(&mut self) {
        let ids: Vec<StreamId> = self.names.values().copied().collect();
        for id in ids {
            if self.streams[&id].body.moving.is_moving() {
                continue;
            }
            self.capture(id, &[]);
        }
    }

    pub(super) fn update_stream(&mut self, turn: &mut Turn<'_>, mut config: StreamConfig) -> Answer {
        let id = self.stream_id(&config.name)?;
        let old = self.streams[&id].body.config.clone();
        validation::validate_update(&old, &mut config, self.limits.replicas)?;
        self.check_overlap(Some(id), &config.name, &config.subjects)?;
        self.commit_wanted = true;
        if config != old {
            let record = Record::StreamUpdated { id, config: Box::new(config) };
            record.push(turn.journal).map_err(|_too_large| ApiError::BadRequest)?;
            let Record::StreamUpdated { config, .. } = record else { unreachable!("built above") };
            push_features(turn, id, &config);
            self.apply_updated(id, *config);
            self.capture(id, &old.subjects);
            self.enforce_update(turn, id, &old);
            self.outputs.push_back(Output::Advisory(Advisory::StreamUpdated { stream: old.name }));
        }
        let stream = self.streams.get_mut(&id).expect("it was just updated");
        Ok(Response::Stream { info: Box::new(info(stream, turn)), created: false })
    }

    /// Folds a new configuration in.
    pub(super) fn apply_updated(&mut self, id: StreamId, config: StreamConfig) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let body = &mut stream.body;
        body.subjects.set_ordered(config.max_messages_per_subject.is_some_and(|max| max > 1));
        body.config = config;
        body.dirty = true;
    }

    /// What a changed configuration makes of the messages that are there.
    fn enforce_update(&mut self, turn: &mut Turn<'_>, id: StreamId, old: &StreamConfig) {
        let stream = &self.streams[&id];
        let new = &stream.body.config;
        if new.max_messages != old.max_messages || new.max_bytes != old.max_bytes {
            self.jobs.push_back(Job::Trim { stream: id });
        }
        if new.max_messages_per_subject != old.max_messages_per_subject
            && let Some(max) = new.max_messages_per_subject
        {
            let mut subjects = Vec::new();
            stream.body.subjects.matching(b">", &mut |subject, figures| {
                if figures.messages > max {
                    subjects.push(Bytes::copy_from_slice(subject));
                }
            });
            self.jobs.push_back(Job::TrimSubjects { stream: id, subjects });
        }
        if new.retention == Retention::Interest && old.retention != Retention::Interest {
            self.jobs.push_back(Job::DropUnwanted { stream: id, from: Sequence(0) });
        }
        if new.max_age_nanos != old.max_age_nanos {
            self.rearm_stream(turn, id);
        }
    }

    pub(super) fn delete_stream(&mut self, turn: &mut Turn<'_>, name: &str) -> Answer {
        if self.reservations.get(name).is_some() {
            return self.delete_elsewhere(turn, name);
        }
        let id = self.stream_id(name)?;
        // Before it goes: the copy that was to be made of it is not missed.
        self.end_arrival(turn, name);
        Record::StreamDeleted { id }.push(turn.journal).expect("the record is a few bytes");
        self.commit_wanted = true;
        let consumers: Vec<_> = self.streams[&id].consumers.keys().copied().collect();
        for consumer in consumers {
            self.close_consumer(turn, id, consumer, &DeliveryStatus::ConsumerDeleted);
        }
        let stream = self.apply_deleted(id).expect("the name belongs to it");
        turn.journal.release_stream(id);
        for filter in stream.body.config.subjects {
            self.outputs.push_back(Output::Release { filter: filter.into(), stream: id });
        }
        self.drop_jobs(id);
        self.outputs.push_back(Output::Advisory(Advisory::StreamDeleted { stream: name.into() }));
        Ok(Response::Deleted)
    }

    /// Folds the end of a stream in.
    pub(super) fn apply_deleted(&mut self, id: StreamId) -> Option<Stream> {
        let stream = self.streams.remove(&id)?;
        self.batch_bytes -= stream.batches.bytes();
        self.names.remove(&stream.body.key());
        self.removed_rows.push(RowKey::Stream(id));
        self.removed_rows.extend(stream.consumers.keys().map(|consumer| RowKey::Consumer(id, *consumer)));
        Some(stream)
    }

    pub(super) fn stream_info(
        &mut self,
        turn: &mut Turn<'_>,
        name: &str,
        subjects_filter: Option<&str>,
        offset: usize,
        deleted_details: bool,
    ) -> Answer {
        let stream = self.stream(name)?;
        let mut info = info(stream, turn);
        if let Some(filter) = subjects_filter {
            if !filter.is_empty() && subject::check_filter(filter.as_bytes()).is_err() {
                return Err(ApiError::BadRequest);
            }
            let mut items = Vec::new();
            stream.body.subjects.matching(filter.as_bytes(), &mut |subject, figures| {
                items.push((String::from_utf8_lossy(subject).into_owned(), figures.messages));
            });
            items.sort_unstable();
            info.subjects = Some(page(items, offset, SUBJECTS_PER_PAGE));
        }
        if deleted_details {
            info.deleted = Some(stream.body.deleted.iter().take(DELETED_LISTED_MAX).map(Sequence).collect());
        }
        Ok(Response::Stream { info: Box::new(info), created: false })
    }

    fn selected(&self, filter: Option<&str>) -> Vec<StreamId> {
        let selects = |stream: &Stream| match filter.filter(|filter| !filter.is_empty()) {
            None => true,
            Some(filter) => stream
                .body
                .config
                .subjects
                .iter()
                .any(|subject| subject::overlaps(subject.as_bytes(), filter.as_bytes())),
        };
        let is_known = |stream: &Stream| !stream.body.moving.is_copy();
        let ids = self.names.values().copied();
        ids.filter(|id| is_known(&self.streams[id]) && selects(&self.streams[id])).collect()
    }

    pub(super) fn stream_names(&self, filter: Option<&str>, offset: usize) -> Response {
        let here = self.selected(filter).into_iter().map(|id| &self.streams[&id].body.config.name);
        let elsewhere = self.reservations.streams().filter(|reservation| reservation.matches(filter));
        let mut names: Vec<String> =
            here.chain(elsewhere.map(|reservation| &reservation.stream)).cloned().collect();
        names.sort_unstable();
        Response::Names(page(names, offset, NAMES_PER_PAGE))
    }

    pub(super) fn stream_list(
        &mut self,
        turn: &mut Turn<'_>,
        filter: Option<&str>,
        offset: usize,
    ) -> Response {
        let ids = page(self.selected(filter), offset, STREAMS_PER_PAGE);
        Response::Streams(map_page(ids, |id| {
            info(self.streams.get_mut(&id).expect("it was just selected"), turn)
        }))
    }
}

/// The part of a list from `offset` on.
pub(super) fn page<T>(items: Vec<T>, offset: usize, limit: usize) -> Page<T> {
    let total = items.len();
    // A page behind the end begins at the end, as nats-server says it.
    let offset = offset.min(total);
    let items = items.into_iter().skip(offset).take(limit).collect();
    Page { total, offset, limit, items }
}

pub(super) fn map_page<T, U>(page: Page<T>, each: impl FnMut(T) -> U) -> Page<U> {
    let Page { total, offset, limit, items } = page;
    Page { total, offset, limit, items: items.into_iter().map(each).collect() }
}

pub(super) fn push_features(turn: &mut Turn<'_>, stream: StreamId, config: &StreamConfig) {
    let features = Features::of(config);
    if !features.is_empty() {
        Record::Features { stream, features }.push(turn.journal).expect("the record is a few bytes");
    }
}

fn info(stream: &mut Stream, turn: &mut Turn<'_>) -> StreamInfo {
    let first_timestamp = stream.body.first_time(turn.journal).unwrap_or_default();
    let body = &stream.body;
    // A stream that never had a message has no first one.
    let first_sequence = if body.messages == 0 && body.last == Sequence(0) { body.last } else { body.first };
    StreamInfo {
        id: body.id,
        config: body.config.clone(),
        created: body.created,
        state: StreamState {
            messages: body.messages,
            bytes: body.bytes,
            first_sequence,
            first_timestamp,
            last_sequence: body.last,
            last_timestamp: body.last_time,
            subjects_count: crate::stream::LastBySubject::len(&body.subjects) as u64,
            deleted_count: body.deleted.len(),
            consumers_count: u32::try_from(stream.consumers.len()).unwrap_or(u32::MAX),
        },
        subjects: None,
        deleted: None,
        origins: body.origins.infos(),
        now: turn.now,
    }
}
