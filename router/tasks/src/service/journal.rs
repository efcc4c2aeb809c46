//! The event log of tasks: a stream of the router that only tasks write.
//!
//! * `$BEAMLINE.event`: one message a batch, of one event a line. Written with the sequence that must be the
//!   last before it, so a second writer is found out at once.
//! * `$BEAMLINE.snapshot`: the state in parts; `$BEAMLINE.snapshot.end` names the first part, how many there
//!   are, and up to where it has the events; it counts only when that is there. What is older is purged then.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use beamlog_router::api::error::{ApiError, PublishRefusal};
use beamlog_router::api::request::{PublishOutcome, Purge, Request, Response};
use beamlog_router::headers::Builder;
use beamlog_router::stream::StreamConfig;
use beamlog_router::{
    Health, Message, PublishTicket, Router, Sequence, StreamPublish, TicketFuture, headers,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::fold::Fold;
use crate::state::event::{self, Event, UnreadableEvents};
use crate::state::{Bounds, State};

pub(super) const STREAM: &str = "BEAMLINE";
const FILTER: &str = "$BEAMLINE.>";
pub(super) const EVENT: &str = "$BEAMLINE.event";
pub(super) const PART: &str = "$BEAMLINE.snapshot";
pub(super) const END: &str = "$BEAMLINE.snapshot.end";
/// Every message carries it: a second writer is found out at once.
const EXPECTED: &str = "Nats-Expected-Last-Sequence";
/// Bytes of events in one message; well below what a message may be.
const BATCH_BYTES_MAX: usize = 512 << 10;
pub(super) const PART_BYTES: usize = 256 << 10;

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
    #[error("nobody wants it any more")]
    Abandoned,
}

/// A snapshot is whole when this is there.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct SnapshotEnd {
    /// The sequence of its first part; events may lie between its parts.
    pub(super) first: u64,
    pub(super) parts: u64,
    /// Events up to this sequence are in it.
    pub(super) through: u64,
}

impl SnapshotEnd {
    pub(super) fn encode(&self) -> Result<Vec<u8>, JournalError> {
        serde_json::to_vec(self).map_err(JournalError::Encode)
    }
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
        let folded = Fold::new(&self.router, bounds).run()?;
        (self.since_snapshot, self.snapshot_bytes) = (folded.event_bytes, folded.snapshot_bytes);
        Ok(folded.state)
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
    pub(super) fn hand_over(
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

    /// The sequence of the last message that was handed over.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Bytes of events since the last snapshot.
    pub(super) fn since_snapshot(&self) -> u64 {
        self.since_snapshot
    }

    /// A snapshot of this size is there; these bytes of events are behind it.
    pub(super) fn has_snapshot(&mut self, bytes: u64, since: u64) {
        (self.snapshot_bytes, self.since_snapshot) = (bytes, since);
    }

    /// Writes the state as it is, and forgets the events that made it. Nothing else is written meanwhile.
    pub(super) fn write_snapshot(&mut self, state: &State) -> Result<(), JournalError> {
        let raw = state.to_bytes().map_err(JournalError::Encode)?;
        let mut end = SnapshotEnd { first: self.last + 1, parts: 0, through: self.last };
        for part in raw.chunks(PART_BYTES) {
            self.write(PART, part.to_vec())?;
            end.parts += 1;
        }
        self.write(END, end.encode()?)?;
        self.has_snapshot(raw.len() as u64, 0);
        forget(&self.router, end.through)
    }
}

/// Forgets what a snapshot has taken the place of.
pub(super) fn forget(router: &Router, through: u64) -> Result<(), JournalError> {
    let purge = Purge { before: Some(Sequence(through + 1)), ..Purge::default() };
    ask(router, Request::PurgeStream { stream: STREAM.into(), purge }).map(drop)
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
pub(super) fn stored_as(sequence: u64, outcome: PublishOutcome) -> Result<(), JournalError> {
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
pub(super) fn is_ours(message: &Message) -> bool {
    headers::find(&message.headers, EXPECTED.as_bytes()).is_some()
}

/// The number in a usage message.
pub(super) fn usage_number(block: &[u8]) -> Option<u64> {
    std::str::from_utf8(headers::find(block, b"x-beamlog-usage")?).ok()?.trim().parse().ok()
}
