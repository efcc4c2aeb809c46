//! Consumers as the engine drives them: requests about them, events for them, and what they ask for.

use std::sync::Arc;

use beamlog_log::{Sequence, StreamId, Timestamp};
use bytes::Bytes;

use crate::api::error::ApiError;
use crate::api::request::{Answer, ConsumerAction, Response};
use crate::consumer::{Consumer, ConsumerConfig, ConsumerId, ConsumerInfo, ConsumerOutput, ConsumerSnapshot};
use crate::driver::command::{Acknowledgement, FlowControlReply, Pull};
use crate::engine::catalogue::{map_page, page};
use crate::engine::jobs::Job;
use crate::engine::record::Record;
use crate::engine::{Engine, Output, RowKey, Turn};
use crate::stream::state::{ConsumerNames, Slot, Stream};
use crate::stream::{Retention, StreamView};
use crate::wire::{Advisory, DeliveryStatus};

const NAMES_PER_PAGE: usize = 1024;
const CONSUMERS_PER_PAGE: usize = 256;
/// Messages one consumer may have before the next one has its turn.
const DELIVERIES_PER_CONSUMER: usize = 256;

impl Slot {
    pub(super) fn new(stream: &str, consumer: Consumer) -> Self {
        let names = ConsumerNames { stream: stream.into(), consumer: consumer.config().name.clone() };
        Self {
            consumer,
            names: Arc::new(names),
            armed: None,
            ready: false,
            unflushed: false,
            watched: None,
            dirty: true,
        }
    }
}

impl Engine {
    /// Calls a consumer with its stream in view, then does what it asks for.
    pub(super) fn with_consumer<R>(
        &mut self,
        turn: &mut Turn<'_>,
        id: StreamId,
        consumer: ConsumerId,
        call: impl FnOnce(&mut Consumer, Timestamp, &mut StreamView<'_>, &mut Vec<ConsumerOutput>) -> R,
    ) -> Option<R> {
        let stream = self.streams.get_mut(&id).filter(|stream| !stream.body.moving.is_moving())?;
        let (mut view, consumers) = stream.parts(turn.journal, turn.has_interest);
        let slot = consumers.get_mut(&consumer)?;
        let mut asked = std::mem::take(&mut self.asked);
        let returned = call(&mut slot.consumer, turn.now, &mut view, &mut asked);
        self.settle(turn, id, consumer, &mut asked);
        self.asked = asked;
        Some(returned)
    }

    /// Does what a consumer asked for, and brings the engine's tables about it up to date.
    fn settle(
        &mut self,
        turn: &mut Turn<'_>,
        id: StreamId,
        consumer: ConsumerId,
        asked: &mut Vec<ConsumerOutput>,
    ) {
        let mut expired = false;
        for ask in asked.drain(..) {
            expired |= matches!(ask, ConsumerOutput::Expired);
            self.carry_out(turn, id, consumer, ask);
        }
        self.after_change(turn, id);
        if expired {
            self.delete_consumer(turn, id, consumer);
            return;
        }
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let last = stream.body.last;
        let Some(slot) = stream.consumers.get_mut(&consumer) else { return };
        if !slot.ready && slot.consumer.is_ready(turn.now, last) {
            slot.ready = true;
            self.ready.push_back((id, consumer));
        }
        if !slot.unflushed && slot.consumer.has_unlogged() {
            slot.unflushed = true;
            self.unflushed_consumers.push((id, consumer));
        }
        if let Some(due) = slot.consumer.next_deadline()
            && slot.armed.is_none_or(|armed| due < armed)
        {
            if let Some(armed) = slot.armed.replace(due) {
                self.deadlines.remove(&(armed, id, Some(consumer)));
            }
            self.deadlines.insert((due, id, Some(consumer)));
        }
    }

    fn carry_out(&mut self, turn: &mut Turn<'_>, id: StreamId, consumer: ConsumerId, ask: ConsumerOutput) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        match ask {
            ConsumerOutput::Record(record) => {
                if let Some(slot) = stream.consumers.get_mut(&consumer) {
                    slot.dirty = true;
                }
                Record::Consumer { stream: id, consumer, record }
                    .push(turn.journal)
                    .expect("a consumer keeps its records small");
            }
            ConsumerOutput::Acked { sequence } => {
                self.counters.acks += 1;
                stream.acked(turn.journal, sequence);
            }
            ConsumerOutput::Deliver(delivery) => {
                self.counters.deliveries += 1;
                self.counters.redeliveries += u64::from(delivery.delivery_count > 1);
                let Some(slot) = stream.consumers.get(&consumer) else { return };
                let names = Arc::clone(&slot.names);
                let delivery = Box::new(delivery);
                self.outputs.push_back(Output::Deliver { stream: id, consumer, names, delivery });
            }
            ConsumerOutput::Status { to, token, status } => {
                let Some(slot) = stream.consumers.get(&consumer) else { return };
                let names = Arc::clone(&slot.names);
                self.outputs.push_back(Output::Status { names, to, token, status });
            }
            ConsumerOutput::AckReply { to } => {
                self.commit_wanted = true;
                self.outputs.push_back(Output::AckReply { to });
            }
            ConsumerOutput::Advisory(advisory) => self.outputs.push_back(Output::Advisory(advisory)),
            ConsumerOutput::Blocked { at, damage } => {
                self.counters.unreadable += 1;
                let Some(slot) = stream.consumers.get(&consumer) else { return };
                let names = Arc::clone(&slot.names);
                self.outputs.push_back(Output::Blocked { names, at, damage });
            }
            // The caller deletes it once everything else is done.
            ConsumerOutput::Expired => {}
        }
    }

    fn find_consumer(&self, stream: &str, consumer: &str) -> Result<(StreamId, ConsumerId), ApiError> {
        let id = self.stream_id(stream)?;
        let consumer = self.streams[&id].by_name.get(consumer).copied().ok_or(ApiError::ConsumerNotFound)?;
        Ok((id, consumer))
    }

    pub(super) fn create_consumer(
        &mut self,
        turn: &mut Turn<'_>,
        stream: &str,
        mut config: ConsumerConfig,
        action: ConsumerAction,
    ) -> Answer {
        let id = self.stream_id(stream)?;
        if config.name.is_empty() {
            config.name = generated_name(self.next_consumer, turn.now);
        }
        let existing = self.streams[&id].by_name.get(&config.name).copied();
        match (existing, action) {
            (None, ConsumerAction::Update) => Err(ApiError::ConsumerDoesNotExist),
            (None, ConsumerAction::Create | ConsumerAction::CreateOrUpdate) => {
                self.add_consumer(turn, id, config)
            }
            (Some(consumer), action) => self.change_consumer(turn, id, consumer, config, action),
        }
    }

    fn add_consumer(&mut self, turn: &mut Turn<'_>, id: StreamId, mut config: ConsumerConfig) -> Answer {
        let stream = self.streams.get_mut(&id).expect("the caller found it");
        if stream.body.config.max_consumers.is_some_and(|max| stream.consumers.len() >= max as usize) {
            return Err(ApiError::MaxConsumers);
        }
        {
            let mut others = stream.consumers.values().map(|slot| slot.consumer.config());
            Consumer::validate(&mut config, &stream.body.config, &mut others)?;
        }
        let consumer = ConsumerId(self.next_consumer);
        let name = stream.body.config.name.clone();
        let (mut view, _) = stream.parts(turn.journal, turn.has_interest);
        let created = Consumer::create(consumer, &name, config, turn.now, &mut view)?;
        let snapshot = Box::new(created.snapshot());
        Record::ConsumerCreated { stream: id, snapshot }
            .push(turn.journal)
            .map_err(|_too_large| ApiError::BadRequest)?;
        for record in created.snapshot_rest() {
            Record::Consumer { stream: id, consumer, record }
                .push(turn.journal)
                .expect("a consumer keeps its records small");
        }
        self.commit_wanted = true;
        let consumer_name = created.config().name.clone();
        self.apply_consumer(id, created);
        self.watch(id, consumer);
        self.with_consumer(turn, id, consumer, |_, _, _, _| ());
        self.outputs
            .push_back(Output::Advisory(Advisory::ConsumerCreated { stream: name, consumer: consumer_name }));
        Ok(Response::Consumer(Box::new(self.info_of(turn, id, consumer))))
    }

    /// Folds a new consumer in.
    pub(super) fn apply_consumer(&mut self, id: StreamId, consumer: Consumer) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let consumer_id = consumer.id();
        self.next_consumer = self.next_consumer.max(consumer_id.0 + 1);
        stream.by_name.insert(consumer.config().name.clone(), consumer_id);
        stream.consumers.insert(consumer_id, Slot::new(&stream.body.config.name, consumer));
    }

    /// Folds a logged consumer in.
    pub(super) fn restore_consumer(&mut self, id: StreamId, snapshot: ConsumerSnapshot) {
        let Some(stream) = self.streams.get(&id) else { return };
        let consumer = Consumer::restore(&stream.body.config.name, snapshot);
        self.apply_consumer(id, consumer);
    }

    fn change_consumer(
        &mut self,
        turn: &mut Turn<'_>,
        id: StreamId,
        consumer: ConsumerId,
        mut config: ConsumerConfig,
        action: ConsumerAction,
    ) -> Answer {
        let stream = self.streams.get_mut(&id).expect("the caller found it");
        let slot = stream.consumers.get(&consumer).expect("the caller found it");
        {
            let mut others = stream
                .consumers
                .iter()
                .filter(|(other, _)| **other != consumer)
                .map(|(_, slot)| slot.consumer.config());
            let valid = slot.consumer.validate_update(&mut config, &stream.body.config, &mut others);
            // What may not be changed is there already, for who wants to create it.
            valid.map_err(|error| match (error, action) {
                (ApiError::ConsumerCreateFailed(_), ConsumerAction::Create) => ApiError::ConsumerExists,
                (error, _) => error,
            })?;
        }
        // The creation or change it repeats may not be durable yet.
        self.commit_wanted = true;
        if *slot.consumer.config() != config {
            if action == ConsumerAction::Create {
                return Err(ApiError::ConsumerExists);
            }
            self.unwatch(id, consumer);
            self.with_consumer(turn, id, consumer, |consumer, now, view, out| {
                consumer.update(now, config, view, out);
            });
            self.watch(id, consumer);
        }
        Ok(Response::Consumer(Box::new(self.info_of(turn, id, consumer))))
    }

    /// Asks to be told of interest in a push consumer's deliver subject.
    pub(super) fn watch(&mut self, id: StreamId, consumer: ConsumerId) {
        let Some(slot) = self.streams.get_mut(&id).and_then(|stream| stream.consumers.get_mut(&consumer))
        else {
            return;
        };
        let Some(push) = &slot.consumer.config().push else { return };
        let subject = Bytes::copy_from_slice(push.deliver_subject.as_bytes());
        let group = Bytes::copy_from_slice(push.deliver_group.as_bytes());
        slot.watched = Some((subject.clone(), group.clone()));
        self.watchers.entry((subject.clone(), group.clone())).or_default().push((id, consumer));
        self.outputs.push_back(Output::Watch { subject, group });
    }

    fn unwatch(&mut self, id: StreamId, consumer: ConsumerId) {
        let Some(slot) = self.streams.get_mut(&id).and_then(|stream| stream.consumers.get_mut(&consumer))
        else {
            return;
        };
        let Some(key) = slot.watched.take() else { return };
        if let Some(watchers) = self.watchers.get_mut(&key) {
            watchers.retain(|watcher| *watcher != (id, consumer));
            if watchers.is_empty() {
                self.watchers.remove(&key);
            }
        }
        let (subject, group) = key;
        self.outputs.push_back(Output::Unwatch { subject, group });
    }

    pub(super) fn interest_changed(
        &mut self,
        turn: &mut Turn<'_>,
        subject: &Bytes,
        group: &Bytes,
        present: bool,
    ) {
        let watchers = self.watchers.get(&(subject.clone(), group.clone())).cloned().unwrap_or_default();
        for (id, consumer) in watchers {
            self.with_consumer(turn, id, consumer, |consumer, now, _, out| {
                consumer.interest_changed(now, present, out);
            });
        }
    }

    fn info_of(&mut self, turn: &mut Turn<'_>, id: StreamId, consumer: ConsumerId) -> ConsumerInfo {
        let has_interest = turn.has_interest;
        self.with_consumer(turn, id, consumer, |consumer, now, _, out| consumer.info(now, has_interest, out))
            .expect("the caller found it")
    }

    pub(super) fn consumer_info(&mut self, turn: &mut Turn<'_>, stream: &str, consumer: &str) -> Answer {
        let (id, consumer) = self.find_consumer(stream, consumer)?;
        Ok(Response::Consumer(Box::new(self.info_of(turn, id, consumer))))
    }

    pub(super) fn consumer_names(&self, stream: &str, offset: usize) -> Answer {
        let id = self.stream_id(stream)?;
        let names: Vec<&String> = self.streams[&id].by_name.keys().collect();
        Ok(Response::Names(map_page(page(names, offset, NAMES_PER_PAGE), Clone::clone)))
    }

    pub(super) fn consumer_list(&mut self, turn: &mut Turn<'_>, stream: &str, offset: usize) -> Answer {
        let id = self.stream_id(stream)?;
        let ids: Vec<ConsumerId> = self.streams[&id].by_name.values().copied().collect();
        let ids = page(ids, offset, CONSUMERS_PER_PAGE);
        Ok(Response::Consumers(map_page(ids, |consumer| self.info_of(turn, id, consumer))))
    }

    pub(super) fn delete_consumer_by_name(
        &mut self,
        turn: &mut Turn<'_>,
        stream: &str,
        consumer: &str,
    ) -> Answer {
        let (id, consumer) = self.find_consumer(stream, consumer)?;
        self.commit_wanted = true;
        self.delete_consumer(turn, id, consumer);
        Ok(Response::Deleted)
    }

    fn delete_consumer(&mut self, turn: &mut Turn<'_>, id: StreamId, consumer: ConsumerId) {
        Record::ConsumerDeleted { stream: id, consumer }
            .push(turn.journal)
            .expect("the record is a few bytes");
        self.close_consumer(turn, id, consumer, &DeliveryStatus::ConsumerDeleted);
        let Some(slot) = self.apply_consumer_deleted(id, consumer) else { return };
        let stream = &self.streams[&id];
        if stream.body.config.retention == Retention::Interest && stream.body.messages > 0 {
            self.jobs.push_back(Job::DropUnwanted { stream: id, from: Sequence(0) });
        }
        let ConsumerNames { stream, consumer } = (*slot.names).clone();
        self.outputs.push_back(Output::Advisory(Advisory::ConsumerDeleted { stream, consumer }));
    }

    /// Folds the end of a consumer in.
    pub(super) fn apply_consumer_deleted(&mut self, id: StreamId, consumer: ConsumerId) -> Option<Slot> {
        let stream = self.streams.get_mut(&id)?;
        let slot = stream.consumers.remove(&consumer)?;
        stream.by_name.remove(&slot.consumer.config().name);
        self.removed_rows.push(RowKey::Consumer(id, consumer));
        Some(slot)
    }

    /// Tells those who wait for a consumer that it goes away.
    pub(super) fn close_consumer(
        &mut self,
        turn: &mut Turn<'_>,
        id: StreamId,
        consumer: ConsumerId,
        why: &DeliveryStatus,
    ) {
        self.unwatch(id, consumer);
        let Some(slot) = self.streams.get_mut(&id).and_then(|stream| stream.consumers.get_mut(&consumer))
        else {
            return;
        };
        let mut asked = std::mem::take(&mut self.asked);
        slot.consumer.close(why, &mut asked);
        for ask in asked.drain(..) {
            self.carry_out(turn, id, consumer, ask);
        }
        self.asked = asked;
    }

    pub(super) fn pause_consumer(
        &mut self,
        turn: &mut Turn<'_>,
        stream: &str,
        consumer: &str,
        until: Option<Timestamp>,
    ) -> Answer {
        let (id, consumer) = self.find_consumer(stream, consumer)?;
        self.commit_wanted = true;
        self.with_consumer(turn, id, consumer, |consumer, now, view, out| {
            let mut config = consumer.config().clone();
            config.pause_until = until.filter(|until| *until > now);
            if *consumer.config() != config {
                consumer.update(now, config, view, out);
            }
        });
        let remaining_nanos = until.map_or(0, |until| until.0.saturating_sub(turn.now.0));
        Ok(Response::Paused { until, remaining_nanos })
    }

    pub(super) fn acknowledge(&mut self, turn: &mut Turn<'_>, acknowledgement: Acknowledgement) {
        let Acknowledgement { target, kind, reply } = acknowledgement;
        let Ok((id, consumer)) = self.find_consumer(&target.stream, &target.consumer) else {
            if let Some(to) = reply {
                let (stream, consumer) = (target.stream, target.consumer);
                let names = Arc::new(ConsumerNames { stream, consumer });
                let status = DeliveryStatus::NobodyToAck;
                self.outputs.push_back(Output::Status { names, to, token: None, status });
            }
            return;
        };
        self.with_consumer(turn, id, consumer, |consumer, now, _, out| {
            consumer.ack(now, &target, kind, reply, out);
        });
    }

    pub(super) fn pull(&mut self, turn: &mut Turn<'_>, pull: Pull) {
        let Pull { stream, consumer, request, reply } = pull;
        let Ok((id, consumer)) = self.find_consumer(&stream, &consumer) else {
            let names = Arc::new(ConsumerNames { stream: stream.clone(), consumer: consumer.clone() });
            let moves = self.names.get(&stream).is_some_and(|id| self.streams[id].body.moving.is_moving());
            let status = if moves {
                // Whoever has it soon is asked again.
                DeliveryStatus::LeadershipChange
            } else {
                DeliveryStatus::NoConsumer { stream, consumer }
            };
            self.outputs.push_back(Output::Status { names, to: reply, token: None, status });
            return;
        };
        self.with_consumer(turn, id, consumer, |consumer, now, _, out| {
            consumer.pull(now, reply, request, out);
        });
    }

    pub(super) fn flow_control(&mut self, turn: &mut Turn<'_>, reply: &FlowControlReply) {
        let Ok((id, consumer)) = self.find_consumer(&reply.stream, &reply.consumer) else { return };
        self.with_consumer(turn, id, consumer, |consumer, now, _, out| {
            consumer.flow_control_reply(now, reply.token, out);
        });
    }

    pub(super) fn undeliverable(
        &mut self,
        turn: &mut Turn<'_>,
        id: StreamId,
        consumer: ConsumerId,
        to: &Bytes,
        sequence: Sequence,
    ) {
        self.with_consumer(turn, id, consumer, |consumer, now, _, out| {
            consumer.undeliverable(now, to, sequence, out);
        });
    }

    pub(super) fn pass_consumer_deadline(
        &mut self,
        turn: &mut Turn<'_>,
        id: StreamId,
        consumer: ConsumerId,
        due: Timestamp,
    ) {
        let Some(slot) = self.streams.get_mut(&id).and_then(|stream| stream.consumers.get_mut(&consumer))
        else {
            return;
        };
        if slot.armed != Some(due) {
            return;
        }
        slot.armed = None;
        if slot.consumer.next_deadline().is_some_and(|next| next <= turn.now) {
            self.with_consumer(turn, id, consumer, |consumer, now, view, out| {
                consumer.timeout(now, view, out);
            });
        } else {
            self.with_consumer(turn, id, consumer, |_, _, _, _| ());
        }
    }

    /// Lets consumers deliver about `budget` messages, a share at a time.
    pub(super) fn deliver(&mut self, turn: &mut Turn<'_>, budget: usize) {
        let mut left = budget;
        while left > 0
            && let Some((id, consumer)) = self.ready.pop_front()
        {
            let share = left.min(DELIVERIES_PER_CONSUMER);
            let before = self.counters.deliveries;
            let Some(slot) = self.streams.get_mut(&id).and_then(|stream| stream.consumers.get_mut(&consumer))
            else {
                continue;
            };
            // `settle` puts it back when it is still ready.
            slot.ready = false;
            let stream = self.streams.get_mut(&id).expect("it has the consumer");
            if stream.body.moving.is_moving() {
                continue;
            }
            let (mut view, consumers) = stream.parts(turn.journal, turn.has_interest);
            let slot = consumers.get_mut(&consumer).expect("it was just found");
            let mut asked = std::mem::take(&mut self.asked);
            let budget_ended = slot.consumer.deliver(turn.now, &mut view, share, &mut asked);
            self.settle(turn, id, consumer, &mut asked);
            self.asked = asked;
            let delivered = usize::try_from(self.counters.deliveries - before).unwrap_or(usize::MAX);
            // A consumer that looked through messages and found none to deliver has used its share too.
            left = left.saturating_sub(if budget_ended { share } else { delivered.max(1) });
            if !budget_ended {
                self.not_ready(id, consumer);
            }
        }
    }

    /// It said that it can do no more now: a readiness it still claims waits for the next event.
    fn not_ready(&mut self, id: StreamId, consumer: ConsumerId) {
        if let Some(slot) = self.streams.get_mut(&id).and_then(|stream| stream.consumers.get_mut(&consumer))
            && slot.ready
            && self.ready.back() == Some(&(id, consumer))
        {
            slot.ready = false;
            self.ready.pop_back();
        }
    }

    pub(super) fn flush_consumers(&mut self, turn: &mut Turn<'_>) {
        for (id, consumer) in std::mem::take(&mut self.unflushed_consumers) {
            let Some(slot) = self.streams.get_mut(&id).and_then(|stream| stream.consumers.get_mut(&consumer))
            else {
                continue;
            };
            slot.unflushed = false;
            self.with_consumer(turn, id, consumer, |consumer, now, _, out| consumer.flush(now, out));
        }
    }

    /// Nobody is served here any more: tells those who wait why.
    pub(super) fn close_all(&mut self, turn: &mut Turn<'_>, why: &DeliveryStatus) {
        let all: Vec<(StreamId, ConsumerId)> = self
            .names
            .values()
            .flat_map(|id| self.streams[id].consumers.keys().map(|consumer| (*id, *consumer)))
            .collect();
        for (id, consumer) in all {
            self.close_consumer(turn, id, consumer, why);
        }
    }
}

/// A name for a consumer whose creator gave none: unlike any other of this shard.
fn generated_name(number: u32, now: Timestamp) -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut rest = (u128::from(now.0) << 32) | u128::from(number);
    let mut name = String::with_capacity(20);
    while rest > 0 {
        let digit = usize::try_from(rest % 36).expect("below 36");
        name.push(char::from(DIGITS[digit]));
        rest /= 36;
    }
    name
}

impl Stream {
    /// The consumers' slots that changed since the last checkpoint.
    pub(super) fn dirty_consumers(&self) -> impl Iterator<Item = (&ConsumerId, &Slot)> {
        self.consumers.iter().filter(|(_, slot)| slot.dirty)
    }
}
