//! The state out of the log of tasks: the newest whole snapshot, and the events behind it.

use std::sync::atomic::{AtomicBool, Ordering};

use beamlog_router::api::error::ApiError;
use beamlog_router::api::request::{BatchSelector, Request, Response};
use beamlog_router::{Message, Router, Sequence};

use super::journal::{self, END, EVENT, JournalError, PART, STREAM, SnapshotEnd, is_ours};
use crate::state::event;
use crate::state::{Bounds, State};

/// Messages and bytes of one read. Others wait for the log meanwhile.
const READ_MESSAGES: u32 = 1_000;
const READ_BYTES: u64 = 1 << 20;

/// What is to be folded.
#[derive(Debug)]
pub(super) struct Fold<'a> {
    router: &'a Router,
    bounds: Bounds,
    through: u64,
    ended: Option<&'a AtomicBool>,
}

/// What came out.
#[derive(Debug)]
pub(super) struct Folded {
    pub(super) state: State,
    /// Of the snapshot that it began with, and of the events behind that.
    pub(super) snapshot_bytes: u64,
    pub(super) event_bytes: u64,
}

impl<'a> Fold<'a> {
    /// All there is.
    pub(super) fn new(router: &'a Router, bounds: Bounds) -> Self {
        Self { router, bounds, through: u64::MAX, ended: None }
    }

    /// Events up to this sequence. Ends early when `ended` is set.
    pub(super) fn up_to(self, through: u64, ended: &'a AtomicBool) -> Self {
        Self { through, ended: Some(ended), ..self }
    }

    pub(super) fn run(&self) -> Result<Folded, JournalError> {
        let mut folded = Folded { state: State::new(self.bounds), snapshot_bytes: 0, event_bytes: 0 };
        let mut from = 1;
        // Older ones are purged, so there are few.
        if let Some(end) = self.batch(END, 1)?.into_iter().rfind(is_ours) {
            from = self.snapshot(&end, &mut folded)? + 1;
        }
        loop {
            let messages = self.batch(EVENT, from)?;
            let Some(newest) = messages.last() else { break };
            from = newest.sequence.0 + 1;
            let due =
                messages.iter().filter(|message| is_ours(message) && message.sequence.0 <= self.through);
            for message in due {
                folded.event_bytes += message.payload.len() as u64;
                let events = event::decode(&message.payload)
                    .map_err(|source| JournalError::Event { sequence: message.sequence.0, source })?;
                events.iter().for_each(|event| folded.state.apply(event));
            }
            if from > self.through {
                break;
            }
        }
        Ok(folded)
    }

    /// Begins with a snapshot; up to where it has the events.
    fn snapshot(&self, end: &Message, folded: &mut Folded) -> Result<u64, JournalError> {
        let sequence = end.sequence.0;
        let unreadable = |source| JournalError::Snapshot { sequence, source };
        let end: SnapshotEnd = serde_json::from_slice(&end.payload).map_err(unreadable)?;
        let (mut raw, mut from, mut parts) = (Vec::new(), end.first, 0);
        while parts < end.parts {
            let messages = self.batch(PART, from)?;
            let Some(newest) = messages.last() else { return Err(JournalError::SnapshotPart { sequence }) };
            from = newest.sequence.0 + 1;
            let left = usize::try_from(end.parts - parts).unwrap_or(usize::MAX);
            for message in messages.iter().filter(|message| is_ours(message)).take(left) {
                raw.extend_from_slice(&message.payload);
                parts += 1;
            }
        }
        folded.snapshot_bytes = raw.len() as u64;
        folded.state = State::from_bytes(&raw, self.bounds).map_err(unreadable)?;
        Ok(end.through)
    }

    fn batch(&self, filter: &str, from: u64) -> Result<Vec<Message>, JournalError> {
        if self.ended.is_some_and(|ended| ended.load(Ordering::Relaxed)) {
            return Err(JournalError::Abandoned);
        }
        let selector =
            BatchSelector::Next { filter: filter.into(), from: Sequence(from.max(1)), from_time: None };
        let request = Request::DirectGetBatch {
            stream: STREAM.into(),
            selector,
            batch: READ_MESSAGES,
            max_bytes: Some(READ_BYTES),
        };
        match journal::ask(self.router, request) {
            Ok(Response::Batch { messages, .. }) => Ok(messages),
            Ok(_) => Err(JournalError::Answer),
            Err(JournalError::Stream(ApiError::NoMessage)) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}
