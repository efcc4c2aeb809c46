//! Scenarios on a journal in memory: what a shard decides, without a disk, a thread or a clock.

#![expect(clippy::wildcard_enum_match_arm, reason = "a test names what it looks for")]

mod batches;
mod catalogue;
mod consuming;
mod expectations;
mod limits;
mod moving;
mod provenance;
mod purging;
mod reading;
mod recovering;
mod reserving;
mod time;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::ops::RangeInclusive;

use beamlog_log::{
    Damage, Entry, Journal, MemoryJournal, Message, MessageRef, Pushed, Read, RunSubject, RunSummary,
    SegmentId, Sequence, StreamId, Timestamp,
};
use bytes::Bytes;

use crate::api::error::{ApiError, PublishRefusal};
use crate::api::request::{Answer, MessageSelector, Published, Request, Response, StreamInfo};
use crate::driver::command::StreamPublish;
use crate::engine::recovery::Source;
use crate::engine::{Engine, EngineLimits, Input, Output, Recovering, Turn};
use crate::shards::ShardKind;
use crate::stream::StreamConfig;
use crate::stream::publish_headers::PublishHeaders;

const SECOND: u64 = 1_000_000_000;

fn limits() -> EngineLimits {
    EngineLimits {
        streams: 100,
        message_bytes: 1 << 20,
        batch_bytes: 1 << 20,
        replicas: 1,
        shard: ShardKind::Common,
    }
}

/// A journal in memory that can be told to lose the bytes of messages (DR14), and to recover from.
#[derive(Default)]
struct TestJournal {
    memory: MemoryJournal,
    unreadable: BTreeSet<(StreamId, Sequence)>,
}

fn damage() -> Damage {
    crate::stream::body::missing()
}

impl TestJournal {
    fn hidden<T>(&self, stream: StreamId, sequence: Sequence) -> Option<Read<T>> {
        self.unreadable.contains(&(stream, sequence)).then(|| Read::Unreadable(damage()))
    }

    fn messages(&self) -> impl Iterator<Item = &Message> {
        self.memory.pushed().iter().filter_map(|pushed| match pushed {
            Pushed::Message(message) => Some(message),
            Pushed::Control(_) => None,
        })
    }
}

impl Journal for TestJournal {
    fn push_message(&mut self, message: &MessageRef<'_>) {
        self.memory.push_message(message);
    }

    fn push_control(&mut self, body: &[u8]) {
        self.memory.push_control(body);
    }

    fn read(&mut self, stream: StreamId, sequence: Sequence) -> Read<Message> {
        self.hidden(stream, sequence).unwrap_or_else(|| self.memory.read(stream, sequence))
    }

    fn entry(&mut self, stream: StreamId, sequence: Sequence) -> Read<Entry> {
        self.hidden(stream, sequence).unwrap_or_else(|| self.memory.entry(stream, sequence))
    }

    fn next(
        &mut self,
        stream: StreamId,
        from: Sequence,
        wanted: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Read<Sequence> {
        let found = self.memory.next(stream, from, wanted);
        let hidden = self.unreadable.range((stream, from)..).next().copied();
        match (found, hidden) {
            (Read::Found(found), Some((of, hidden))) if of == stream && hidden <= found => {
                Read::Unreadable(damage())
            }
            (Read::Absent, Some((of, _))) if of == stream => Read::Unreadable(damage()),
            (found, _) => found,
        }
    }

    fn previous(
        &mut self,
        stream: StreamId,
        from: Sequence,
        wanted: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Read<Sequence> {
        self.memory.previous(stream, from, wanted)
    }

    fn release(&mut self, stream: StreamId, sequences: RangeInclusive<Sequence>) {
        self.memory.release(stream, sequences);
    }

    fn release_stream(&mut self, stream: StreamId) {
        self.memory.release_stream(stream);
    }
}

impl Source for TestJournal {
    fn streams(&self) -> Vec<StreamId> {
        let streams: BTreeSet<StreamId> = self.messages().map(|message| message.stream).collect();
        streams.into_iter().collect()
    }

    fn runs(&self, stream: StreamId) -> Vec<RunSummary> {
        let mut run: Option<RunSummary> = None;
        for message in self.messages().filter(|message| message.stream == stream) {
            let run = run.get_or_insert(RunSummary {
                stream,
                segment: SegmentId(1),
                first: message.sequence,
                last: message.sequence,
                count: 0,
                with_message_id: 0,
                newest: message.timestamp,
            });
            (run.last, run.newest) = (message.sequence, message.timestamp);
            run.count += 1;
            run.with_message_id += u32::from(PublishHeaders::parse(&message.headers).message_id.is_some());
        }
        run.into_iter().collect()
    }

    fn run_subjects(&mut self, stream: StreamId, segment: SegmentId) -> Result<Vec<RunSubject>, Damage> {
        let mut subjects: Vec<RunSubject> = Vec::new();
        for Entry { subject, sequence, .. } in self.run_entries(stream, segment)? {
            if let Some(known) = subjects.iter_mut().find(|known| known.subject == subject) {
                known.last = sequence;
                known.count += 1;
            } else {
                subjects.push(RunSubject { subject, first: sequence, last: sequence, count: 1, bytes: 0 });
            }
        }
        Ok(subjects)
    }

    fn run_entries(&mut self, stream: StreamId, _segment: SegmentId) -> Result<Vec<Entry>, Damage> {
        Ok(self
            .messages()
            .filter(|message| message.stream == stream)
            .map(|message| Entry {
                sequence: message.sequence,
                timestamp: message.timestamp,
                subject: message.subject.clone(),
                headers_bytes: u32::try_from(message.headers.len()).unwrap(),
                payload_bytes: u32::try_from(message.payload.len()).unwrap(),
            })
            .collect())
    }

    fn as_journal(&mut self) -> &mut dyn Journal {
        self
    }
}

/// A shard under test.
struct Shard {
    engine: Engine,
    journal: TestJournal,
    now: Timestamp,
    outputs: Vec<Output>,
}

impl Shard {
    fn new() -> Self {
        Self {
            engine: Engine::new(limits()),
            journal: TestJournal::default(),
            now: Timestamp(1_700_000_000 * SECOND),
            outputs: Vec::new(),
        }
    }

    /// With one stream.
    fn with(config: StreamConfig) -> Self {
        let mut shard = Self::new();
        shard.create(config).unwrap();
        shard
    }

    fn input(&mut self, input: Input<'_>) {
        self.now.0 += 1;
        let mut turn = Turn { now: self.now, journal: &mut self.journal, has_interest: &|_| true };
        self.engine.handle(&mut turn, input);
        while let Some(output) = self.engine.poll_output() {
            self.outputs.push(output);
        }
    }

    fn pass(&mut self, nanos: u64) {
        self.now.0 += nanos;
        self.work();
    }

    fn work(&mut self) {
        self.input(Input::Work { budget: 64 });
        while self.engine.has_work() {
            self.input(Input::Work { budget: 64 });
        }
    }

    fn publish_raw(
        &mut self,
        stream: &str,
        subject: &str,
        headers: &[(&str, &str)],
        payload: &str,
    ) -> Result<Published, PublishRefusal> {
        let mut block = Vec::new();
        if !headers.is_empty() {
            let mut builder = crate::headers::Builder::new();
            for (name, value) in headers {
                builder = builder.header(name, value);
            }
            block = builder.finish();
        }
        let publish = StreamPublish {
            stream: self.engine.names.get(stream).copied().unwrap_or(StreamId(0)),
            subject: Bytes::copy_from_slice(subject.as_bytes()),
            reply: Bytes::new(),
            headers: block.into(),
            payload: Bytes::copy_from_slice(payload.as_bytes()),
        };
        self.input(Input::Publish(publish.borrow()));
        let at = self.outputs.iter().rposition(|output| matches!(output, Output::Published { .. })).unwrap();
        let Output::Published { result, .. } = self.outputs.remove(at) else { unreachable!() };
        result
    }

    /// Publishes to stream "S".
    fn publish(&mut self, subject: &str, payload: &str) -> Result<Published, PublishRefusal> {
        self.publish_raw("S", subject, &[], payload)
    }

    fn publish_with(&mut self, subject: &str, headers: &[(&str, &str)]) -> Result<Published, PublishRefusal> {
        self.publish_raw("S", subject, headers, "payload")
    }

    fn request(&mut self, request: Request) -> Answer {
        self.input(Input::Request { token: 7, request });
        loop {
            let answered =
                self.outputs.iter().position(|output| matches!(output, Output::Answer { token: 7, .. }));
            if let Some(at) = answered {
                let Output::Answer { answer, .. } = self.outputs.remove(at) else { unreachable!() };
                return answer;
            }
            assert!(self.engine.has_work(), "an answer comes");
            self.input(Input::Work { budget: 64 });
        }
    }

    fn create(&mut self, config: StreamConfig) -> Result<bool, ApiError> {
        match self.request(Request::CreateStream(Box::new(config)))? {
            Response::Stream { created, .. } => Ok(created),
            other => panic!("{other:?}"),
        }
    }

    fn info(&mut self) -> StreamInfo {
        let request = Request::StreamInfo {
            stream: "S".into(),
            subjects_filter: Some(">".into()),
            offset: 0,
            deleted_details: true,
        };
        match self.request(request).unwrap() {
            Response::Stream { info, .. } => *info,
            other => panic!("{other:?}"),
        }
    }

    /// The sequences that live.
    fn living(&mut self) -> Vec<u64> {
        let body = &self.engine.stream("S").unwrap().body;
        (body.first.0..=body.last.0).filter(|at| body.lives(Sequence(*at))).collect()
    }

    fn get(&mut self, selector: MessageSelector) -> Result<Message, ApiError> {
        match self.request(Request::GetMessage { stream: "S".into(), selector })? {
            Response::Message(message) => Ok(message),
            other => panic!("{other:?}"),
        }
    }

    /// The shard as recovery makes it from everything that was pushed, or from a snapshot taken after
    /// `base` records and the rest.
    fn recovered(&mut self) -> Self {
        self.input(Input::Flush);
        let mut recovering = Recovering::new(limits());
        let mut journal = TestJournal { memory: self.journal.memory.clone(), ..TestJournal::default() };
        for pushed in self.journal.memory.pushed() {
            match pushed {
                Pushed::Message(message) => recovering.message(message).unwrap(),
                Pushed::Control(bytes) => recovering.control(bytes).unwrap(),
            }
        }
        let engine = recovering.finish(&mut journal, self.now).unwrap();
        let mut shard = Self { engine, journal, now: self.now, outputs: Vec::new() };
        shard.drain();
        shard
    }

    /// The shard as recovery makes it from the rows of now.
    fn restored(&mut self) -> Self {
        self.input(Input::Flush);
        let mut recovering = Recovering::new(limits());
        let mut journal = TestJournal { memory: self.journal.memory.clone(), ..TestJournal::default() };
        for row in self.engine.snapshot() {
            recovering.row(&row).unwrap();
        }
        let engine = recovering.finish(&mut journal, self.now).unwrap();
        let mut shard = Self { engine, journal, now: self.now, outputs: Vec::new() };
        shard.drain();
        shard
    }

    fn drain(&mut self) {
        while let Some(output) = self.engine.poll_output() {
            self.outputs.push(output);
        }
    }

    /// Everything that is the same in every copy of this state, as text.
    fn state(&mut self) -> String {
        self.input(Input::Flush);
        let mut text = String::new();
        for (name, id) in &self.engine.names {
            let stream = &self.engine.streams[id];
            let body = &stream.body;
            writeln!(text, "stream {name} {id} created {} {:?}", body.created, body.config).unwrap();
            writeln!(
                text,
                "  first {} last {} at {} messages {} bytes {} id {:?}",
                body.first, body.last, body.last_time, body.messages, body.bytes, body.last_message_id
            )
            .unwrap();
            for info in body.origins.infos() {
                let seen = &body.origins.seen[&(info.stream.clone(), info.epoch)];
                let sequences = seen.sequences.iter().collect::<Vec<_>>();
                writeln!(text, "  origin {info:?} {sequences:?}").unwrap();
            }
            writeln!(text, "  {:?} {:?}", body.moving, body.moved_ids).unwrap();
            writeln!(text, "  deleted {:?}", body.deleted.iter().collect::<Vec<_>>()).unwrap();
            let mut subjects = Vec::new();
            body.subjects.matching(b">", &mut |subject, figures| {
                subjects.push((Bytes::copy_from_slice(subject), figures.messages, figures.last));
            });
            subjects.sort();
            writeln!(text, "  subjects {subjects:?}").unwrap();
            let ends: Vec<_> = body.ends.iter().filter(|(_, sequence)| body.lives(*sequence)).collect();
            writeln!(text, "  ends {ends:?}").unwrap();
            for slot in stream.consumers.values() {
                let mut snapshot = slot.consumer.snapshot();
                // Told to users only, and logged with the batch in which they changed.
                (snapshot.delivered_at, snapshot.acked_at) = (Timestamp(0), Timestamp(0));
                // Positions before the first message all mean the first message.
                snapshot.delivered = snapshot.delivered.max(Sequence(body.first.0 - 1));
                for pending in &mut snapshot.pending {
                    pending.due = Timestamp(0);
                }
                writeln!(text, "  consumer {snapshot:?}").unwrap();
            }
        }
        for reservation in self.engine.reservations.all() {
            writeln!(text, "{reservation:?}").unwrap();
        }
        for arrival in self.engine.reservations.arrivals() {
            writeln!(text, "{arrival:?}").unwrap();
        }
        writeln!(text, "next {} {}", self.engine.next_stream, self.engine.next_consumer).unwrap();
        text
    }

    /// Live, replayed and restored are one state.
    fn check_recovery(&mut self) {
        let live = self.state();
        assert_eq!(self.recovered().state(), live, "replayed");
        assert_eq!(self.restored().state(), live, "restored");
    }
}

fn stream(name: &str) -> StreamConfig {
    StreamConfig { name: name.into(), ..StreamConfig::default() }
}

/// Stream "S" on `s.>`.
fn s() -> StreamConfig {
    StreamConfig { subjects: vec!["s.>".into()], ..stream("S") }
}

fn stored(sequence: u64) -> Result<Published, PublishRefusal> {
    Ok(Published::Stored(Sequence(sequence)))
}
