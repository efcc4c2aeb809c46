//! A stream in memory with one consumer on it, and a clock that moves when told.

use std::collections::{BTreeMap, BTreeSet};

use beamlog_log::{
    Damage, DamageReason, Entry, Journal, MemoryJournal, Message, MessageRef, Read, SegmentId, Sequence,
    StreamId, Timestamp,
};
use bytes::Bytes;
use roaring::RoaringTreemap;

use crate::api::error::ApiError;
use crate::api::request::{AckKind, AckTarget, PullRequest};
use crate::consumer::{
    AckPolicy, Consumer, ConsumerConfig, ConsumerId, ConsumerInfo, ConsumerOutput, ConsumerRecord,
    ConsumerSnapshot, Delivery, PushConfig,
};
use crate::stream::{LastBySubject, StreamConfig, StreamView, SubjectFigures};
use crate::wire::{Advisory, DeliveryStatus};

pub(super) const SECOND: u64 = 1_000_000_000;
const STREAM: StreamId = StreamId(1);

#[derive(Default)]
struct Figures(BTreeMap<Vec<u8>, BTreeSet<u64>>);

impl LastBySubject for Figures {
    fn figures(&self, subject: &[u8]) -> Option<SubjectFigures> {
        let living = self.0.get(subject)?;
        Some(SubjectFigures {
            messages: living.len() as u64,
            first_bound: Sequence(*living.first()?),
            last: Sequence(*living.last()?),
        })
    }

    fn for_each(&self, each: &mut dyn FnMut(&[u8], SubjectFigures)) {
        for subject in self.0.keys() {
            if let Some(figures) = self.figures(subject) {
                each(subject, figures);
            }
        }
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

/// A journal of which some messages cannot be read.
#[derive(Default)]
struct Damaged {
    inner: MemoryJournal,
    unreadable: BTreeSet<Sequence>,
}

fn damage(sequence: Sequence) -> Damage {
    Damage { segment: SegmentId(1), offset: sequence.0, reason: DamageReason::Checksum }
}

impl Journal for Damaged {
    fn push_message(&mut self, message: &MessageRef<'_>) {
        self.inner.push_message(message);
    }

    fn push_control(&mut self, body: &[u8]) {
        self.inner.push_control(body);
    }

    fn read(&mut self, stream: StreamId, sequence: Sequence) -> Read<Message> {
        if self.unreadable.contains(&sequence) {
            return Read::Unreadable(damage(sequence));
        }
        self.inner.read(stream, sequence)
    }

    fn entry(&mut self, stream: StreamId, sequence: Sequence) -> Read<Entry> {
        if self.unreadable.contains(&sequence) {
            return Read::Unreadable(damage(sequence));
        }
        self.inner.entry(stream, sequence)
    }

    fn next(
        &mut self,
        stream: StreamId,
        from: Sequence,
        wanted: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Read<Sequence> {
        let found = self.inner.next(stream, from, wanted);
        let last = match &found {
            Read::Found(sequence) => *sequence,
            Read::Absent | Read::Unreadable(_) => Sequence(u64::MAX),
        };
        match self.unreadable.range(from..=last).next() {
            Some(at) => Read::Unreadable(damage(*at)),
            None => found,
        }
    }

    fn previous(
        &mut self,
        stream: StreamId,
        from: Sequence,
        wanted: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Read<Sequence> {
        self.inner.previous(stream, from, wanted)
    }

    fn release(&mut self, stream: StreamId, sequences: std::ops::RangeInclusive<Sequence>) {
        self.inner.release(stream, sequences);
    }

    fn release_stream(&mut self, stream: StreamId) {
        self.inner.release_stream(stream);
    }
}

/// What came out, in short.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Said {
    /// To whom, which message, which delivery of it.
    Message(String, u64, u64),
    Status(String, DeliveryStatus),
    Acked(u64),
    AckReply(String),
    Advisory(Advisory),
    Blocked(u64),
    Expired,
}

pub(super) struct Scene {
    journal: Damaged,
    figures: Figures,
    first: Sequence,
    last: Sequence,
    messages: u64,
    deleted: RoaringTreemap,
    /// Reply subjects that nobody listens on.
    pub(super) deaf: BTreeSet<Vec<u8>>,
    pub(super) now: Timestamp,
    consumer: Option<Consumer>,
    /// The log of the consumer: where it began, and its records since.
    snapshot: Option<ConsumerSnapshot>,
    pub(super) records: Vec<ConsumerRecord>,
    pub(super) deliveries: Vec<Delivery>,
}

pub(super) fn explicit() -> ConsumerConfig {
    ConsumerConfig {
        name: "worker".to_owned(),
        durable: true,
        ack_policy: AckPolicy::Explicit,
        ..ConsumerConfig::default()
    }
}

pub(super) fn push_to(subject: &str) -> PushConfig {
    PushConfig { deliver_subject: subject.to_owned(), ..PushConfig::default() }
}

pub(super) fn batch(batch: u32) -> PullRequest {
    PullRequest { batch, ..PullRequest::default() }
}

pub(super) fn no_wait(batch: u32) -> PullRequest {
    PullRequest { batch, no_wait: true, ..PullRequest::default() }
}

pub(super) fn expires(batch: u32, nanos: u64) -> PullRequest {
    PullRequest { batch, expires_nanos: Some(nanos), ..PullRequest::default() }
}

impl Scene {
    /// A stream with these messages, a second apart, and no consumer.
    pub(super) fn stream(subjects: &[&str]) -> Self {
        let mut scene = Self {
            journal: Damaged::default(),
            figures: Figures::default(),
            first: Sequence(1),
            last: Sequence(0),
            messages: 0,
            deleted: RoaringTreemap::new(),
            deaf: BTreeSet::new(),
            now: Timestamp(1_000 * SECOND),
            consumer: None,
            snapshot: None,
            records: Vec::new(),
            deliveries: Vec::new(),
        };
        for subject in subjects {
            scene.store(subject, b"0123456789");
            scene.now.0 += SECOND;
        }
        scene
    }

    /// With a consumer, made as a stream makes it.
    pub(super) fn with(subjects: &[&str], config: ConsumerConfig) -> Self {
        let mut scene = Self::stream(subjects);
        scene.create(config);
        scene
    }

    pub(super) fn create(&mut self, config: ConsumerConfig) {
        self.try_create(config).unwrap();
    }

    pub(super) fn try_create(&mut self, mut config: ConsumerConfig) -> Result<(), ApiError> {
        let stream = StreamConfig { name: "S".to_owned(), ..StreamConfig::default() };
        Consumer::validate(&mut config, &stream, &mut std::iter::empty())?;
        let now = self.now;
        let consumer = self.view(|view, _| Consumer::create(ConsumerId(7), "S", config, now, view))?;
        self.snapshot = Some(through_bytes(&consumer.snapshot()));
        self.records = consumer.snapshot_rest();
        self.consumer = Some(consumer);
        Ok(())
    }

    fn view<T>(&mut self, with: impl FnOnce(&mut StreamView<'_>, &mut Option<Consumer>) -> T) -> T {
        let deaf = &self.deaf;
        let mut view = StreamView {
            id: STREAM,
            first: self.first,
            last: self.last,
            messages: self.messages,
            deleted: &self.deleted,
            journal: &mut self.journal,
            last_by_subject: &self.figures,
            has_interest: &|subject| !deaf.contains(subject),
        };
        with(&mut view, &mut self.consumer)
    }

    fn act<T>(
        &mut self,
        with: impl FnOnce(&mut Consumer, &mut StreamView<'_>, &mut Vec<ConsumerOutput>) -> T,
    ) -> (T, Vec<Said>) {
        let mut out = Vec::new();
        let result = self.view(|view, consumer| with(consumer.as_mut().unwrap(), view, &mut out));
        (result, self.take(out))
    }

    fn take(&mut self, out: Vec<ConsumerOutput>) -> Vec<Said> {
        let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
        let mut said = Vec::new();
        for output in out {
            match output {
                ConsumerOutput::Record(record) => self.records.push(through_bytes(&record)),
                ConsumerOutput::Acked { sequence } => said.push(Said::Acked(sequence.0)),
                ConsumerOutput::Deliver(delivery) => {
                    let message = delivery.message.sequence.0;
                    said.push(Said::Message(text(&delivery.to), message, delivery.delivery_count));
                    self.deliveries.push(delivery);
                }
                ConsumerOutput::Status { to, status, .. } => said.push(Said::Status(text(&to), status)),
                ConsumerOutput::AckReply { to } => said.push(Said::AckReply(text(&to))),
                ConsumerOutput::Advisory(advisory) => said.push(Said::Advisory(advisory)),
                ConsumerOutput::Blocked { at, .. } => said.push(Said::Blocked(at.0)),
                ConsumerOutput::Expired => said.push(Said::Expired),
            }
        }
        said
    }

    pub(super) fn consumer(&mut self) -> &mut Consumer {
        self.consumer.as_mut().unwrap()
    }

    pub(super) fn store(&mut self, subject: &str, payload: &[u8]) -> u64 {
        self.store_with_headers(subject, b"", payload)
    }

    pub(super) fn store_with_headers(&mut self, subject: &str, headers: &[u8], payload: &[u8]) -> u64 {
        self.last = self.last.next();
        let (sequence, timestamp) = (self.last, self.now);
        let subject = subject.as_bytes();
        self.journal.push_message(&MessageRef {
            stream: STREAM,
            sequence,
            timestamp,
            subject,
            headers,
            payload,
        });
        self.figures.0.entry(subject.to_vec()).or_default().insert(sequence.0);
        self.messages += 1;
        if let Some(consumer) = &mut self.consumer {
            consumer.stored(sequence, subject);
        }
        sequence.0
    }

    /// Removes a message as a stream does, and says so to the consumer.
    pub(super) fn remove(&mut self, sequence: u64) {
        self.remove_quietly(sequence, true);
    }

    fn remove_quietly(&mut self, sequence: u64, tell: bool) {
        let sequence = Sequence(sequence);
        let Read::Found(message) = self.journal.inner.read(STREAM, sequence) else { return };
        self.journal.release(STREAM, sequence..=sequence);
        let living = self.figures.0.get_mut(&message.subject[..]).unwrap();
        living.remove(&sequence.0);
        if living.is_empty() {
            self.figures.0.remove(&message.subject[..]);
        }
        self.messages -= 1;
        self.deleted.insert(sequence.0);
        while self.first <= self.last && self.deleted.remove(self.first.0) {
            self.first = self.first.next();
        }
        if tell {
            self.consumer().removed(sequence, &message.subject);
        }
    }

    pub(super) fn purge(&mut self, up_to: u64) {
        for sequence in self.first.0..=up_to {
            self.remove_quietly(sequence, false);
        }
        self.act(|consumer, view, _| consumer.purged(view));
    }

    pub(super) fn make_unreadable(&mut self, sequence: u64, unreadable: bool) {
        if unreadable {
            self.journal.unreadable.insert(Sequence(sequence));
        } else {
            self.journal.unreadable.remove(&Sequence(sequence));
        }
    }

    /// Delivers what can be delivered.
    pub(super) fn deliver(&mut self) -> Vec<Said> {
        let (now, last) = (self.now, self.last);
        let (_, said) =
            self.act(
                |consumer, view, out| {
                    while consumer.is_ready(now, last) && consumer.deliver(now, view, 7, out) {}
                },
            );
        said
    }

    pub(super) fn pull(&mut self, reply: &str, request: PullRequest) -> Vec<Said> {
        let (now, reply) = (self.now, Bytes::copy_from_slice(reply.as_bytes()));
        let (_, mut said) = self.act(|consumer, _, out| consumer.pull(now, reply, request, out));
        said.extend(self.deliver());
        said
    }

    /// The sequences that a pull without waiting gets; its end is not repeated.
    pub(super) fn fetch(&mut self, messages: u32) -> Vec<u64> {
        sequences(&self.pull("inbox", no_wait(messages)))
    }

    /// Says something of the last delivery of a message.
    pub(super) fn say(&mut self, sequence: u64, kind: AckKind, reply: Option<&str>) -> Vec<Said> {
        let last = self.deliveries.iter().rev().find(|delivery| delivery.message.sequence.0 == sequence);
        let target = AckTarget {
            stream: "S".to_owned(),
            consumer: "worker".to_owned(),
            delivery_count: last.map_or(1, |delivery| delivery.delivery_count),
            stream_sequence: Sequence(sequence),
            consumer_sequence: last.map_or(1, |delivery| delivery.consumer_sequence),
        };
        let (now, reply) = (self.now, reply.map(|reply| Bytes::copy_from_slice(reply.as_bytes())));
        let (_, mut said) = self.act(|consumer, _, out| consumer.ack(now, &target, kind, reply, out));
        said.extend(self.deliver());
        said
    }

    pub(super) fn ack(&mut self, sequence: u64) -> Vec<Said> {
        self.say(sequence, AckKind::Ack, None)
    }

    /// Time passes, and each deadline on the way is met.
    pub(super) fn pass(&mut self, nanos: u64) -> Vec<Said> {
        let until = Timestamp(self.now.0 + nanos);
        let mut said = Vec::new();
        let mut rounds = 0;
        while let Some(due) = self.consumer().next_deadline()
            && due <= until
        {
            self.now = self.now.max(due);
            let now = self.now;
            let (_, more) = self.act(|consumer, view, out| consumer.timeout(now, view, out));
            said.extend(more);
            said.extend(self.deliver());
            rounds += 1;
            assert!(rounds < 10_000, "a deadline that does not move: {:?}", self.consumer().next_deadline());
        }
        self.now = until;
        said
    }

    pub(super) fn interest(&mut self, present: bool) -> Vec<Said> {
        let now = self.now;
        let (_, mut said) = self.act(|consumer, _, out| consumer.interest_changed(now, present, out));
        said.extend(self.deliver());
        said
    }

    /// The token of the last flow-control question among outputs of a delivery round.
    pub(super) fn deliver_for_token(&mut self) -> (Vec<u64>, Option<u64>) {
        let (now, last) = (self.now, self.last);
        let mut out = Vec::new();
        self.view(|view, consumer| {
            let consumer = consumer.as_mut().unwrap();
            while consumer.is_ready(now, last) && consumer.deliver(now, view, 1000, &mut out) {}
        });
        let token = out.iter().rev().find_map(|output| match output {
            ConsumerOutput::Status { token, status: DeliveryStatus::FlowControl, .. } => *token,
            ConsumerOutput::Status { .. }
            | ConsumerOutput::Record(_)
            | ConsumerOutput::Acked { .. }
            | ConsumerOutput::Deliver(_)
            | ConsumerOutput::AckReply { .. }
            | ConsumerOutput::Advisory(_)
            | ConsumerOutput::Blocked { .. }
            | ConsumerOutput::Expired => None,
        });
        (sequences(&self.take(out)), token)
    }

    pub(super) fn flow_control(&mut self, token: u64) {
        let now = self.now;
        self.act(|consumer, _, out| consumer.flow_control_reply(now, token, out));
    }

    pub(super) fn undeliverable(&mut self, to: &str, sequence: u64) {
        let (now, to) = (self.now, Bytes::copy_from_slice(to.as_bytes()));
        self.act(|consumer, _, out| consumer.undeliverable(now, &to, Sequence(sequence), out));
    }

    pub(super) fn update(&mut self, config: ConsumerConfig) -> Vec<Said> {
        let now = self.now;
        let (_, mut said) = self.act(|consumer, view, out| consumer.update(now, config, view, out));
        said.extend(self.deliver());
        said
    }

    pub(super) fn close(&mut self) -> Vec<Said> {
        self.act(|consumer, _, out| consumer.close(&DeliveryStatus::ConsumerDeleted, out)).1
    }

    pub(super) fn flush(&mut self) {
        let now = self.now;
        self.act(|consumer, _, out| consumer.flush(now, out));
    }

    pub(super) fn info(&mut self) -> ConsumerInfo {
        let now = self.now;
        self.act(|consumer, view, out| consumer.info(now, view.has_interest, out)).0
    }

    /// Messages that are pending or were never delivered.
    pub(super) fn open(&mut self) -> BTreeSet<u64> {
        let living: Vec<_> = (self.first.0..=self.last.0).collect();
        let state = &self.consumer.as_ref().unwrap().state;
        let filters = &self.consumer.as_ref().unwrap().filters;
        let next = self.consumer.as_ref().unwrap().next;
        let mut open = BTreeSet::new();
        for sequence in living {
            if let Read::Found(message) = self.journal.inner.read(STREAM, Sequence(sequence))
                && filters.matches(&message.subject)
                && (Sequence(sequence) >= next || state.pending.contains(Sequence(sequence)))
            {
                open.insert(sequence);
            }
        }
        open
    }

    pub(super) fn is_given_up(&self, sequence: u64) -> bool {
        self.consumer.as_ref().unwrap().state.exhausted.contains(sequence)
    }

    /// `((delivered consumer, stream), (floor consumer, stream), pending acks, undelivered)`.
    pub(super) fn figures(&mut self) -> ((u64, u64), (u64, u64), u64, u64) {
        let info = self.info();
        (
            (info.delivered.consumer, info.delivered.stream.0),
            (info.ack_floor.consumer, info.ack_floor.stream.0),
            info.ack_pending,
            info.pending,
        )
    }

    /// The consumer as its records so far make it: what a restart at this moment finds.
    pub(super) fn folded(&mut self) -> Consumer {
        let mut consumer = Consumer::restore("S", self.snapshot.clone().unwrap());
        for record in &self.records {
            consumer.apply(record);
        }
        let now = self.now;
        self.view(|view, _| consumer.recovered(now, view));
        consumer
    }

    /// The process dies, with whatever no record tells of, and comes back.
    pub(super) fn restart(&mut self) {
        let consumer = self.folded();
        self.consumer = Some(consumer);
    }

    /// A new segment of the log begins with a snapshot of the consumer.
    pub(super) fn roll(&mut self) {
        self.flush();
        let consumer = self.consumer.as_ref().unwrap();
        self.snapshot = Some(through_bytes(&consumer.snapshot()));
        self.records = consumer.snapshot_rest();
    }
}

/// Encodes and decodes, as the log does.
fn through_bytes<T>(value: &T) -> T
where
    T: wincode::SchemaWrite<wincode::config::DefaultConfig, Src = T>,
    T: for<'de> wincode::SchemaRead<'de, wincode::config::DefaultConfig, Dst = T>,
{
    wincode::deserialize(&wincode::serialize(value).unwrap()).unwrap()
}

/// Which messages were delivered.
pub(super) fn sequences(said: &[Said]) -> Vec<u64> {
    said.iter()
        .filter_map(|said| match said {
            Said::Message(_, sequence, _) => Some(*sequence),
            Said::Status(..)
            | Said::Acked(_)
            | Said::AckReply(_)
            | Said::Advisory(_)
            | Said::Blocked(_)
            | Said::Expired => None,
        })
        .collect()
}
