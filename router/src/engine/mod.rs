//! The engine: all state machines of a shard, pure. It is told the time and the interest, pushes decided
//! records into the journal it is shown, and says what it wants done.
//!
//! One input, then `poll_output` until `None`, then the next input (asserted). Outputs may show what the
//! records of this frame say: the driver holds them until that frame is durable.

pub(crate) mod arrivals;
mod arriving;
mod batches;
mod catalogue;
mod consumers;
mod expiry;
mod jobs;
mod moving;
mod output;
mod publish;
mod reads;
pub(crate) mod record;
mod recovery;
pub(crate) mod reservations;
pub(crate) mod rows;
pub(crate) mod shards;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use beamlog_log::{EntryId, Journal, Sequence, StreamId, Timestamp};
use bytes::Bytes;
use foldhash::fast::FixedState;
use hashbrown::HashMap;

use crate::api::error::ApiError;
use crate::api::request::{Request, Response};
use crate::consumer::{ConsumerId, ConsumerOutput};
use crate::driver::command::{Acknowledgement, FlowControlReply, PublishRef, Pull};
use crate::engine::jobs::Job;
use crate::engine::reservations::Reservations;
use crate::engine::shards::ClusterShards;
use crate::shards::ShardKind;
use crate::stream::state::Stream;
use crate::wire::DeliveryStatus;

pub(crate) use output::{Counters, Output};
pub(crate) use recovery::{BrokenState, Recovering, Release};
pub(crate) use rows::RowKey;

/// Bounds of an engine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EngineLimits {
    pub(crate) streams: usize,
    pub(crate) message_bytes: usize,
    /// Of one atomic batch: it must fit a frame of the log behind what is gathered there.
    pub(crate) batch_bytes: usize,
    /// What a stream may ask for: 1 on a node that stands alone. In a cluster every voter has every stream.
    pub(crate) replicas: u8,
    /// Numbers of streams: those of two shards of one node never meet.
    pub(crate) shard: ShardKind,
}

/// What surrounds the engine while it handles one input.
pub(crate) struct Turn<'a> {
    pub(crate) now: Timestamp,
    pub(crate) journal: &'a mut dyn Journal,
    /// Whether anybody is subscribed to a subject now.
    pub(crate) has_interest: &'a dyn Fn(&[u8]) -> bool,
}

/// One thing that happened.
pub(crate) enum Input<'a> {
    Publish(PublishRef<'a>),
    /// The answer carries the token.
    Request {
        token: u64,
        request: Request,
    },
    Acknowledge(Acknowledgement),
    Pull(Pull),
    FlowControl(FlowControlReply),
    /// A watched subject gained or lost its subscribers.
    Interest {
        subject: Bytes,
        group: Bytes,
        present: bool,
    },
    /// A delivery found no receiver. Of several, the last first.
    Undeliverable {
        stream: StreamId,
        consumer: ConsumerId,
        to: Bytes,
        sequence: Sequence,
    },
    /// Do what is due: deadlines, jobs, deliveries of about this many messages.
    Work {
        budget: usize,
    },
    /// The frame is about to be written: log what was gathered.
    Flush,
    /// The node stops: tell those who wait.
    Shutdown,
    /// Another node leads: tell those who wait. The engine is not used after it.
    StepDown,
}

pub(crate) struct Engine {
    limits: EngineLimits,
    streams: HashMap<StreamId, Stream, FixedState>,
    names: BTreeMap<String, StreamId>,
    /// Names and subjects of streams in other shards.
    reservations: Reservations,
    /// The shards of the cluster beside this one.
    shards: ClusterShards,
    next_stream: u32,
    next_consumer: u32,
    /// The latest time seen.
    now: Timestamp,
    outputs: VecDeque<Output>,
    /// What consumers ask for, emptied before the next consumer is called.
    asked: Vec<ConsumerOutput>,
    ready: VecDeque<(StreamId, ConsumerId)>,
    /// Lazily kept: an entry may be stale, never late. `None` is the stream itself.
    deadlines: BTreeSet<(Timestamp, StreamId, Option<ConsumerId>)>,
    jobs: VecDeque<Job>,
    watchers: BTreeMap<(Bytes, Bytes), Vec<(StreamId, ConsumerId)>>,
    unflushed_streams: Vec<StreamId>,
    unflushed_consumers: Vec<(StreamId, ConsumerId)>,
    /// Rows that are gone since the last checkpoint.
    removed_rows: Vec<RowKey>,
    commit_wanted: bool,
    counters: Counters,
    /// Of atomic batches that gather, in all streams.
    batch_bytes: usize,
    /// The last record of replication and its entry: nothing to the engine, but it must outlive segments.
    replication: Option<(EntryId, Bytes)>,
}

impl Engine {
    pub(crate) fn new(limits: EngineLimits) -> Self {
        Self {
            limits,
            streams: HashMap::default(),
            names: BTreeMap::new(),
            reservations: Reservations::default(),
            shards: ClusterShards::default(),
            next_stream: limits.shard.first_stream(),
            next_consumer: 1,
            now: Timestamp(0),
            outputs: VecDeque::new(),
            asked: Vec::new(),
            ready: VecDeque::new(),
            deadlines: BTreeSet::new(),
            jobs: VecDeque::new(),
            watchers: BTreeMap::new(),
            unflushed_streams: Vec::new(),
            unflushed_consumers: Vec::new(),
            removed_rows: Vec::new(),
            commit_wanted: false,
            counters: Counters::default(),
            batch_bytes: 0,
            replication: None,
        }
    }

    /// Handles one input. The outputs of the one before were all taken.
    pub(crate) fn handle(&mut self, turn: &mut Turn<'_>, input: Input<'_>) {
        assert!(self.outputs.is_empty(), "outputs are taken before the next input");
        assert!(turn.now >= self.now, "time does not go back");
        self.now = turn.now;
        match input {
            Input::Publish(publish) => self.publish(turn, &publish),
            Input::Request { token, request } => self.request(turn, token, request),
            Input::Acknowledge(acknowledgement) => self.acknowledge(turn, acknowledgement),
            Input::Pull(pull) => self.pull(turn, pull),
            Input::FlowControl(reply) => self.flow_control(turn, &reply),
            Input::Interest { subject, group, present } => {
                self.interest_changed(turn, &subject, &group, present);
            }
            Input::Undeliverable { stream, consumer, to, sequence } => {
                self.undeliverable(turn, stream, consumer, &to, sequence);
            }
            Input::Work { budget } => self.work(turn, budget),
            Input::Flush => self.flush(turn),
            Input::Shutdown => self.close_all(turn, &DeliveryStatus::ServerShutdown),
            Input::StepDown => self.close_all(turn, &DeliveryStatus::LeadershipChange),
        }
    }

    /// The next thing to do outside.
    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Whether, since this was last asked, something was decided whose outputs must not be seen before it
    /// is durable.
    pub(crate) fn take_commit_wanted(&mut self) -> bool {
        std::mem::take(&mut self.commit_wanted)
    }

    /// Whether a `Work` input would find something to do at once.
    pub(crate) fn has_work(&self) -> bool {
        !self.ready.is_empty()
            || !self.jobs.is_empty()
            || self.deadlines.first().is_some_and(|(due, ..)| *due <= self.now)
    }

    /// Whether something is gathered that `Flush` would put into the log.
    pub(crate) fn has_unlogged(&self) -> bool {
        !self.unflushed_streams.is_empty() || !self.unflushed_consumers.is_empty()
    }

    /// When `Work` is wanted next, if nothing else happens.
    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        self.deadlines.first().map(|(due, ..)| *due)
    }

    pub(crate) fn stream_name(&self, stream: StreamId) -> Option<&str> {
        self.streams.get(&stream).map(|stream| stream.body.config.name.as_str())
    }

    /// Goes on counting where another one stopped.
    pub(crate) fn carry_counters(&mut self, counters: Counters) {
        self.counters = counters;
    }

    /// Folds a record of replication in. Blank ones say nothing.
    pub(crate) fn note_replication(&mut self, id: EntryId, bytes: &Bytes) {
        if !bytes.is_empty() {
            self.replication = Some((id, bytes.clone()));
        }
    }

    pub(crate) fn replication(&self) -> Option<&(EntryId, Bytes)> {
        self.replication.as_ref()
    }

    /// There is no checkpoint that wants to know what changed.
    pub(crate) fn forget_changes(&mut self) {
        self.removed_rows.clear();
    }

    pub(crate) fn counters(&self) -> Counters {
        let mut counters = self.counters;
        counters.streams = self.streams.len() as u64;
        counters.consumers = self.streams.values().map(|stream| stream.consumers.len() as u64).sum();
        counters.messages = self.streams.values().map(|stream| stream.body.messages).sum();
        counters.bytes = self.streams.values().map(|stream| stream.body.bytes).sum();
        counters
    }

    fn request(&mut self, turn: &mut Turn<'_>, token: u64, request: Request) {
        self.counters.requests += 1;
        // Answered later, when the last message has gone.
        if let Request::PurgeStream { stream, purge } = request {
            self.purge(turn, token, &stream, purge);
            return;
        }
        let answer = match request {
            Request::AccountInfo => Ok(self.account_info()),
            Request::CreateStream(config) => self.create_stream(turn, *config),
            Request::UpdateStream(config) => self.update_stream(turn, *config),
            Request::DeleteStream { stream } => self.delete_stream(turn, &stream),
            Request::StreamInfo { stream, subjects_filter, offset, deleted_details } => {
                self.stream_info(turn, &stream, subjects_filter.as_deref(), offset, deleted_details)
            }
            Request::Reserve(reservation) => self.reserve(turn, *reservation),
            Request::Release { stream, store, term } => Ok(self.release(turn, &stream, &store, term)),
            Request::Reservations => Ok(Response::Reservations(self.reservations.all().cloned().collect())),
            Request::PutShard(shard) => self.put_shard(turn, shard),
            Request::Shards => Ok(Response::Shards(self.shard_list())),
            Request::Rearrange(wanted) => self.rearrange(turn, *wanted),
            Request::Move(wanted) => self.move_stream(turn, *wanted),
            Request::Arrive(wanted) => self.arrive(turn, *wanted),
            Request::MovingHere => Ok(Response::MovingHere(self.moving_here())),
            Request::StreamNames { subject, offset } => Ok(self.stream_names(subject.as_deref(), offset)),
            Request::StreamList { subject, offset } => Ok(self.stream_list(turn, subject.as_deref(), offset)),
            Request::PurgeStream { .. } => unreachable!("handled above"),
            Request::GetMessage { stream, selector } => self.get_message(turn, &stream, &selector),
            Request::DirectGet { stream, selector } => self.direct_get(turn, &stream, &selector),
            Request::DirectGetBatch { stream, selector, batch, max_bytes } => {
                self.direct_get_batch(turn, &stream, &selector, batch, max_bytes)
            }
            Request::DeleteMessage { stream, sequence, erase: _ } => {
                self.delete_message(turn, &stream, sequence)
            }
            Request::CreateConsumer { stream, config, action } => {
                self.create_consumer(turn, &stream, *config, action)
            }
            Request::ConsumerInfo { stream, consumer } => self.consumer_info(turn, &stream, &consumer),
            Request::ConsumerNames { stream, offset } => self.consumer_names(&stream, offset),
            Request::ConsumerList { stream, offset } => self.consumer_list(turn, &stream, offset),
            Request::DeleteConsumer { stream, consumer } => {
                self.delete_consumer_by_name(turn, &stream, &consumer)
            }
            Request::PauseConsumer { stream, consumer, until } => {
                self.pause_consumer(turn, &stream, &consumer, until)
            }
        };
        self.outputs.push_back(Output::Answer { token, answer });
    }

    fn stream_id(&self, name: &str) -> Result<StreamId, ApiError> {
        let id = self.names.get(name).copied().ok_or_else(|| self.reservations.missing(name))?;
        if self.streams[&id].body.moving.is_moving() {
            return Err(ApiError::StreamOffline { node: catalogue::MOVES.to_owned() });
        }
        Ok(id)
    }

    fn stream(&mut self, name: &str) -> Result<&mut Stream, ApiError> {
        let id = self.stream_id(name)?;
        Ok(self.streams.get_mut(&id).expect("a name belongs to a stream"))
    }

    /// Notes that a stream has removals to log, and brings its deadline up to date.
    fn after_change(&mut self, turn: &mut Turn<'_>, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if !stream.body.removals.ranges.is_empty() && !stream.unflushed {
            stream.unflushed = true;
            self.unflushed_streams.push(id);
        }
        if stream.armed.is_none()
            && let Some(due) = expiry::stream_deadline(stream, turn.journal)
        {
            stream.armed = Some(due);
            self.deadlines.insert((due, id, None));
        }
    }

    fn work(&mut self, turn: &mut Turn<'_>, budget: usize) {
        self.pass_deadlines(turn);
        self.step_job(turn, budget);
        self.deliver(turn, budget);
    }

    fn flush(&mut self, turn: &mut Turn<'_>) {
        for id in std::mem::take(&mut self.unflushed_streams) {
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.unflushed = false;
                stream.body.flush_removals(turn.journal);
            }
        }
        self.flush_consumers(turn);
        // What consumers logged may have let messages go.
        for id in std::mem::take(&mut self.unflushed_streams) {
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.unflushed = false;
                stream.body.flush_removals(turn.journal);
            }
        }
    }
}
