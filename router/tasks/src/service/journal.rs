//! The event log of tasks: a stream of the router that only tasks write.
//!
//! * `$BEAMLINE.event`: one message a batch, of one event a line. Written with the sequence that must be the
//!   last before it, so a second writer is found out at once.
//! * `$BEAMLINE.snapshot`: the state in parts; `$BEAMLINE.snapshot.end` names the first part, how many there
//!   are, and counts only when it is there. What is older is purged then.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use beamlog_router::api::error::{ApiError, PublishRefusal};
use beamlog_router::api::request::{BatchSelector, PublishOutcome, Purge, Request, Response};
use beamlog_router::headers::Builder;
use beamlog_router::stream::StreamConfig;
use beamlog_router::{
    Health, Message, PublishTicket, Router, Sequence, StreamPublish, TicketFuture, headers,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::state::event::{self, Event, UnreadableEvents};
use crate::state::{Bounds, State};

pub(super) const STREAM: &str = "BEAMLINE";
const FILTER: &str = "$BEAMLINE.>";
const EVENT: &str = "$BEAMLINE.event";
const PART: &str = "$BEAMLINE.snapshot";
const END: &str = "$BEAMLINE.snapshot.end";
/// Every message carries it: a second writer is found out at once.
const EXPECTED: &str = "Nats-Expected-Last-Sequence";
/// Bytes of events in one message; well below what a message may be.
const BATCH_BYTES_MAX: usize = 512 << 10;
const PART_BYTES: usize = 256 << 10;
/// Messages and bytes of one read at the start.
const READ_MESSAGES: u32 = 1_000;
const READ_BYTES: u64 = 8 << 20;

/// Why the log of tasks cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("the stream {STREAM} of tasks")]
    Stream(#[source] ApiError),
    #[error("the stream {STREAM} answered something else")]
    Answer,
    #[error("an event at sequence {sequence} of the stream {STREAM}")]
    Event { sequence: u64, source: UnreadableEvents },
    #[error("the snapshot at sequence {sequence} of the stream {STREAM}")]
    Snapshot { sequence: u64, source: serde_json::Error },
    #[error("the snapshot at sequence {sequence} of the stream {STREAM} lacks a part")]
    SnapshotPart { sequence: u64 },
    #[error("events could not be written as text")]
    Encode(#[source] serde_json::Error),
    #[error("the stream {STREAM} took no events: {0}")]
    Refused(#[source] PublishRefusal),
    #[error("the router takes no more work")]
    Closed,
}

#[derive(Debug, Deserialize, Serialize)]
struct SnapshotEnd {
    first: u64,
    parts: u64,
    /// Events up to this sequence are in it.
    through: u64,
}

#[derive(Debug)]
pub(super) struct Journal {
    router: Router,
    /// The sequence of the last message that was handed over.
    last: u64,
    /// Bytes of events since the last snapshot, and of that.
    since_snapshot: u64,
    snapshot_bytes: u64,
}

impl Journal {
    /// Finds or makes the stream and folds what is in it.
    pub(super) fn open(router: &Router, bounds: Bounds) -> Result<(Self, State), JournalError> {
        let config = StreamConfig {
            name: STREAM.into(),
            description: "events of tasks; written by the node only".into(),
            subjects: vec![FILTER.into()],
            allow_direct: true,
            ..StreamConfig::default()
        };
        match ask(router, Request::CreateStream(Box::new(config))) {
            Ok(_) | Err(JournalError::Stream(ApiError::StreamNameInUse)) => {}
            Err(error) => return Err(error),
        }
        let mut journal = Self { router: router.clone(), last: 0, since_snapshot: 0, snapshot_bytes: 0 };
        let state = journal.read(bounds)?;
        Ok((journal, state))
    }

    /// Folds the newest whole snapshot and the events after it.
    pub(super) fn read(&mut self, bounds: Bounds) -> Result<State, JournalError> {
        let info = Request::StreamInfo {
            stream: STREAM.into(),
            subjects_filter: None,
            offset: 0,
            deleted_details: false,
        };
        let Response::Stream { info, .. } = ask(&self.router, info)? else {
            return Err(JournalError::Answer);
        };
        self.last = info.state.last_sequence.0;
        self.since_snapshot = 0;
        let (mut state, mut from) = match self.snapshot(bounds)? {
            Some((state, through)) => (state, through + 1),
            None => (State::new(bounds), 1),
        };
        loop {
            let messages = self.batch(EVENT, from)?;
            let Some(newest) = messages.last() else { break };
            from = newest.sequence.0 + 1;
            for message in messages.iter().filter(|message| is_ours(message)) {
                self.since_snapshot += message.payload.len() as u64;
                let events = event::decode(&message.payload)
                    .map_err(|source| JournalError::Event { sequence: message.sequence.0, source })?;
                events.iter().for_each(|event| state.apply(event));
            }
        }
        Ok(state)
    }

    fn batch(&self, filter: &str, from: u64) -> Result<Vec<Message>, JournalError> {
        let selector =
            BatchSelector::Next { filter: filter.into(), from: Sequence(from.max(1)), from_time: None };
        let request = Request::DirectGetBatch {
            stream: STREAM.into(),
            selector,
            batch: READ_MESSAGES,
            max_bytes: Some(READ_BYTES),
        };
        match ask(&self.router, request) {
            Ok(Response::Batch { messages, .. }) => Ok(messages),
            Ok(_) => Err(JournalError::Answer),
            Err(JournalError::Stream(ApiError::NoMessage)) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    fn snapshot(&mut self, bounds: Bounds) -> Result<Option<(State, u64)>, JournalError> {
        // Older ones are purged, so there are few.
        let Some(message) = self.batch(END, 1)?.into_iter().rfind(is_ours) else { return Ok(None) };
        let sequence = message.sequence.0;
        let unreadable = |source| JournalError::Snapshot { sequence, source };
        let end: SnapshotEnd = serde_json::from_slice(&message.payload).map_err(unreadable)?;
        let (mut raw, mut from, mut parts) = (Vec::new(), end.first, 0);
        while parts < end.parts {
            let messages = self.batch(PART, from)?;
            let Some(newest) = messages.last() else { return Err(JournalError::SnapshotPart { sequence }) };
            from = newest.sequence.0 + 1;
            for message in messages
                .iter()
                .filter(|message| is_ours(message))
                .take(usize::try_from(end.parts - parts).unwrap_or(usize::MAX))
            {
                raw.extend_from_slice(&message.payload);
                parts += 1;
            }
        }
        self.snapshot_bytes = raw.len() as u64;
        let state = State::from_bytes(&raw, bounds).map_err(unreadable)?;
        Ok(Some((state, end.through)))
    }

    /// Hands events to the log, behind what it was handed before. When [`Writing`] fails, nothing that was handed
    /// over later is stored, and the log must be read again.
    pub(super) fn submit(&mut self, events: &[Event]) -> Writing {
        let mut writing = Writing::default();
        let mut rest = events;
        while !rest.is_empty() {
            match self.submit_some(rest) {
                Ok((count, sequence, ticket)) => {
                    writing.messages.push_back((sequence, ticket.into_future()));
                    rest = &rest[count..];
                }
                Err(problem) => {
                    writing.problem = Some(problem);
                    break;
                }
            }
        }
        writing
    }

    /// As many as one message takes; how many these are.
    fn submit_some(&mut self, events: &[Event]) -> Result<(usize, u64, PublishTicket), JournalError> {
        // Every message fits; an event with a large payload goes alone.
        let mut raw = Vec::new();
        let mut count = 0;
        for event in events {
            let line = event::encode(std::slice::from_ref(event)).map_err(JournalError::Encode)?;
            if count > 0 && raw.len() + line.len() > BATCH_BYTES_MAX {
                break;
            }
            raw.extend_from_slice(&line);
            count += 1;
        }
        self.since_snapshot += raw.len() as u64;
        let (sequence, ticket) = self.hand_over(EVENT, raw)?;
        Ok((count, sequence, ticket))
    }

    /// Writes one message; durable on return.
    fn write(&mut self, subject: &'static str, payload: Vec<u8>) -> Result<(), JournalError> {
        let (sequence, ticket) = self.hand_over(subject, payload)?;
        stored_as(sequence, ticket.wait())
    }

    /// To the log's queue. It is stored under this sequence or not at all.
    fn hand_over(
        &mut self,
        subject: &'static str,
        payload: Vec<u8>,
    ) -> Result<(u64, PublishTicket), JournalError> {
        let headers = Builder::new().header(EXPECTED, self.last.to_string()).finish();
        let stream = self.router.interest().capture_of(subject.as_bytes());
        let stream = stream.ok_or(JournalError::Stream(ApiError::StreamNotFound))?;
        let mut publish = StreamPublish {
            stream,
            subject: subject.into(),
            reply: Bytes::new(),
            headers: headers.into(),
            payload: payload.into(),
        };
        loop {
            match self.router.store(publish) {
                Ok(ticket) => {
                    self.last += 1;
                    return Ok((self.last, ticket));
                }
                Err(full) => {
                    if is_over(&self.router) {
                        return Err(JournalError::Closed);
                    }
                    publish = full.0;
                    self.router.when_ready().wait();
                }
            }
        }
    }

    /// Whether enough was written since the last snapshot to be worth one.
    pub(super) fn wants_snapshot(&self, bytes_min: u64) -> bool {
        self.since_snapshot > bytes_min.max(self.snapshot_bytes.saturating_mul(4))
    }

    /// Writes the state, and forgets the events that made it.
    pub(super) fn write_snapshot(&mut self, state: &State) -> Result<(), JournalError> {
        let raw = state.to_bytes().map_err(JournalError::Encode)?;
        let (first, through) = (self.last + 1, self.last);
        let mut parts = 0;
        for part in raw.chunks(PART_BYTES) {
            self.write(PART, part.to_vec())?;
            parts += 1;
        }
        let end = SnapshotEnd { first, parts, through };
        self.write(END, serde_json::to_vec(&end).map_err(JournalError::Encode)?)?;
        self.since_snapshot = 0;
        self.snapshot_bytes = raw.len() as u64;
        let purge = Purge { before: Some(Sequence(first)), ..Purge::default() };
        ask(&self.router, Request::PurgeStream { stream: STREAM.into(), purge })?;
        Ok(())
    }
}

/// Events on their way into the log.
#[derive(Debug, Default)]
pub(super) struct Writing {
    messages: VecDeque<(u64, TicketFuture<PublishOutcome>)>,
    /// Why the rest was not handed over.
    problem: Option<JournalError>,
}

impl Writing {
    /// Whether the log was not handed all of it: it must not be handed anything then.
    pub(super) fn is_cut(&self) -> bool {
        self.problem.is_some()
    }

    /// Ready when all of them are durable, or one is not stored.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), JournalError>> {
        while let Some((sequence, ticket)) = self.messages.front_mut() {
            let outcome = ready!(Pin::new(ticket).poll(context));
            stored_as(*sequence, outcome)?;
            self.messages.pop_front();
        }
        Poll::Ready(self.problem.take().map_or(Ok(()), Err))
    }
}

/// The log has only one writer, so it is known beforehand under which sequence a message is stored.
fn stored_as(sequence: u64, outcome: PublishOutcome) -> Result<(), JournalError> {
    let published = outcome.result.map_err(JournalError::Refused)?;
    if published.sequence() != Some(Sequence(sequence)) {
        return Err(JournalError::Answer);
    }
    Ok(())
}

/// Asks the router and waits; a full queue is waited for.
pub(super) fn ask(router: &Router, request: Request) -> Result<Response, JournalError> {
    let mut request = request;
    loop {
        match router.request(request) {
            Ok(ticket) => return ticket.wait().map_err(JournalError::Stream),
            Err(full) => {
                if is_over(router) {
                    return Err(JournalError::Closed);
                }
                request = full.0;
                router.when_ready().wait();
            }
        }
    }
}

/// Whether the router will never take work again.
pub(super) fn is_over(router: &Router) -> bool {
    matches!(router.health(), Health::Closed | Health::LogFailed { .. })
}

/// Whether a message was written by tasks: what somebody publishes there by mistake is no event.
fn is_ours(message: &Message) -> bool {
    headers::find(&message.headers, EXPECTED.as_bytes()).is_some()
}

/// The number in a usage message.
pub(super) fn usage_number(block: &[u8]) -> Option<u64> {
    std::str::from_utf8(headers::find(block, b"x-beamlog-usage")?).ok()?.trim().parse().ok()
}
