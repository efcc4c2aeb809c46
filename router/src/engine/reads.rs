//! Messages read by request: by sequence, by subject, by time, one or many.

use std::ops::Bound;

use beamlog_log::{Damage, Journal, Message, Read, Sequence, Timestamp};

use crate::api::error::ApiError;
use crate::api::request::{Answer, BatchSelector, MessageSelector, Response};
use crate::engine::{Engine, Turn};
use crate::stream::body::{StreamBody, missing};
use crate::subject;

/// Subjects one "last of each" answers; nats-server's limit.
const LAST_OF_EACH_MAX: usize = 1024;
/// Bytes one batch carries when its reader names no limit.
const BATCH_BYTES_DEFAULT: u64 = 64 << 20;
/// Messages one batch carries at most; the reader is told how many are left.
const BATCH_MESSAGES_MAX: usize = 8192;

impl StreamBody {
    /// The first living message at or after `from` on the filter (empty: everything).
    fn next_on(
        &self,
        journal: &mut dyn Journal,
        filter: &[u8],
        from: Sequence,
    ) -> Result<Option<Sequence>, Damage> {
        let mut from = from.max(self.first);
        if filter.is_empty() || filter == b">" {
            return Ok(self.living_from(from));
        }
        if subject::is_literal(filter) {
            let hash = self.subjects.hash(filter);
            let Some(found) = self.subjects.find(hash, filter) else { return Ok(None) };
            if found.last < from {
                return Ok(None);
            }
            if found.messages == 1 {
                return Ok(Some(found.last));
            }
            from = from.max(found.first_bound);
        }
        if from > self.last {
            return Ok(None);
        }
        match journal.next(self.id, from, &mut |name| subject::matches(filter, name)) {
            Read::Found(sequence) => Ok(Some(sequence)),
            Read::Absent => Ok(None),
            Read::Unreadable(damage) => Err(damage),
        }
    }

    fn time_of(&self, journal: &mut dyn Journal, sequence: Sequence) -> Result<Timestamp, Damage> {
        match journal.entry(self.id, sequence) {
            Read::Found(entry) => Ok(entry.timestamp),
            Read::Absent => Err(missing()),
            Read::Unreadable(damage) => Err(damage),
        }
    }

    /// The first living message stored at or after a time; `last + 1` when there is none.
    pub(crate) fn first_since(&self, journal: &mut dyn Journal, time: Timestamp) -> Result<Sequence, Damage> {
        let end = self.last.next();
        if self.messages == 0 || time > self.last_time {
            return Ok(end);
        }
        // Everything before `low` is older, everything at or after `high` is not.
        let (mut low, mut high) = (self.first, end);
        while low < high {
            let middle = Sequence(low.0 + (high.0 - low.0) / 2);
            match self.living_from(middle) {
                Some(probe) if probe < high => {
                    if self.time_of(journal, probe)? < time {
                        low = probe.next();
                    } else {
                        high = middle;
                    }
                }
                Some(_) | None => high = middle,
            }
        }
        Ok(self.living_from(low).unwrap_or(end))
    }

    /// How many living messages at or after `from` are on the filter.
    fn count_from(&self, journal: &mut dyn Journal, filter: &[u8], from: Sequence) -> Result<u64, Damage> {
        if filter.is_empty() || filter == b">" {
            return Ok(self.messages - self.living_before(from));
        }
        let (mut whole, mut partial) = (0, false);
        self.subjects.matching(filter, &mut |_, found| {
            if found.last >= from {
                if found.first_bound >= from || from <= self.first {
                    whole += found.messages;
                } else {
                    partial = true;
                }
            }
        });
        if !partial {
            return Ok(whole);
        }
        let (mut count, mut at) = (0, from);
        while let Some(found) = self.next_on(journal, filter, at)? {
            count += 1;
            at = found.next();
        }
        Ok(count)
    }

    fn select(&self, journal: &mut dyn Journal, selector: &MessageSelector) -> Answer {
        let found = match selector {
            MessageSelector::At(sequence) => self.lives(*sequence).then_some(*sequence),
            MessageSelector::LastOn(filter) => {
                check_filter(filter)?;
                let last = self.last_on(filter.as_bytes()).map_err(ApiError::Unreadable)?;
                Some(last).filter(|last| *last > Sequence(0))
            }
            MessageSelector::NextOn { filter, from } => {
                check_filter(filter)?;
                self.next_on(journal, filter.as_bytes(), *from).map_err(ApiError::Unreadable)?
            }
            MessageSelector::NextAfter { filter, time } => {
                check_filter(filter)?;
                let from = self.first_since(journal, *time).map_err(ApiError::Unreadable)?;
                self.next_on(journal, filter.as_bytes(), from).map_err(ApiError::Unreadable)?
            }
        };
        let sequence = found.ok_or(ApiError::NoMessage)?;
        self.read_living(journal, sequence).map(Response::Message).map_err(ApiError::Unreadable)
    }
}

fn check_filter(filter: &str) -> Result<(), ApiError> {
    if filter.is_empty() {
        return Ok(());
    }
    subject::check_filter(filter.as_bytes()).map_err(|_invalid| ApiError::BadRequest)
}

/// Messages on their way into one answer.
struct Batch {
    messages: Vec<Message>,
    bytes_left: u64,
    messages_left: usize,
}

impl Batch {
    fn new(batch: u32, max_bytes: Option<u64>) -> Self {
        Self {
            messages: Vec::new(),
            bytes_left: max_bytes.filter(|bytes| *bytes > 0).unwrap_or(BATCH_BYTES_DEFAULT),
            messages_left: (batch as usize).clamp(1, BATCH_MESSAGES_MAX),
        }
    }

    /// Adds a message. The one that reaches the limit of bytes is the last.
    fn add(&mut self, message: Message) {
        let bytes = (message.subject.len() + message.headers.len() + message.payload.len()) as u64;
        self.bytes_left = self.bytes_left.saturating_sub(bytes);
        self.messages_left -= 1;
        self.messages.push(message);
    }

    fn has_room(&self) -> bool {
        self.bytes_left > 0 && self.messages_left > 0
    }
}

impl Engine {
    pub(super) fn get_message(
        &mut self,
        turn: &mut Turn<'_>,
        stream: &str,
        selector: &MessageSelector,
    ) -> Answer {
        let body = &self.stream(stream)?.body;
        let answer = body.select(turn.journal, selector);
        self.count_unreadable(&answer);
        answer
    }

    /// A stream that does not allow direct get is not there for it, as in nats-server.
    pub(super) fn direct_get(
        &mut self,
        turn: &mut Turn<'_>,
        stream: &str,
        selector: &MessageSelector,
    ) -> Answer {
        if !self.stream(stream)?.body.config.allow_direct {
            return Err(ApiError::StreamNotFound);
        }
        self.get_message(turn, stream, selector)
    }

    fn count_unreadable(&mut self, answer: &Answer) {
        if matches!(answer, Err(ApiError::Unreadable(_))) {
            self.counters.unreadable += 1;
        }
    }

    pub(super) fn direct_get_batch(
        &mut self,
        turn: &mut Turn<'_>,
        stream: &str,
        selector: &BatchSelector,
        batch: u32,
        max_bytes: Option<u64>,
    ) -> Answer {
        let body = &self.stream(stream)?.body;
        if !body.config.allow_direct {
            return Err(ApiError::StreamNotFound);
        }
        let journal = &mut *turn.journal;
        let answer = match selector {
            BatchSelector::Next { filter, from, from_time } => {
                batch_next(body, journal, filter, *from, *from_time, Batch::new(batch, max_bytes))
            }
            BatchSelector::LastOfEach { filters, up_to, up_to_time } => {
                let batch = Batch::new(if batch == 0 { u32::MAX } else { batch }, max_bytes);
                batch_last(body, journal, filters, *up_to, *up_to_time, batch)
            }
        };
        self.count_unreadable(&answer);
        answer
    }
}

fn batch_next(
    body: &StreamBody,
    journal: &mut dyn Journal,
    filter: &str,
    from: Sequence,
    from_time: Option<Timestamp>,
    mut batch: Batch,
) -> Answer {
    check_filter(filter)?;
    let filter = filter.as_bytes();
    let mut at = match from_time {
        Some(time) => body.first_since(journal, time).map_err(ApiError::Unreadable)?,
        None => from,
    };
    let matching = body.count_from(journal, filter, at).map_err(ApiError::Unreadable)?;
    let mut last_sequence = Sequence(0);
    while batch.has_room()
        && let Some(sequence) = body.next_on(journal, filter, at).map_err(ApiError::Unreadable)?
    {
        batch.add(body.read_living(journal, sequence).map_err(ApiError::Unreadable)?);
        last_sequence = sequence;
        at = sequence.next();
    }
    if batch.messages.is_empty() {
        return Err(ApiError::NoMessage);
    }
    let pending = matching - batch.messages.len() as u64;
    Ok(Response::Batch { messages: batch.messages, pending, last_sequence, up_to: None })
}

fn batch_last(
    body: &StreamBody,
    journal: &mut dyn Journal,
    filters: &[String],
    up_to: Bound<Sequence>,
    up_to_time: Option<Timestamp>,
    mut batch: Batch,
) -> Answer {
    for filter in filters {
        check_filter(filter)?;
    }
    let mut up_to = match up_to {
        Bound::Included(last) => last.min(body.last),
        Bound::Excluded(end) => Sequence(end.0.saturating_sub(1)).min(body.last),
        Bound::Unbounded => body.last,
    };
    if let Some(time) = up_to_time {
        let since = body.first_since(journal, time).map_err(ApiError::Unreadable)?;
        if since <= body.first {
            return Err(ApiError::NoMessage);
        }
        up_to = up_to.min(Sequence(since.0 - 1));
    }
    let mut chosen = Vec::new();
    let mut older = Vec::new();
    for filter in filters {
        body.subjects.matching(filter.as_bytes(), &mut |name, found| {
            if found.last <= up_to {
                chosen.push(found.last);
            } else if found.first_bound <= up_to {
                older.push(name.to_vec());
            }
        });
    }
    if chosen.len() + older.len() > filters.len().saturating_mul(LAST_OF_EACH_MAX) {
        return Err(ApiError::TooManyRequests);
    }
    for name in older {
        match journal.previous(body.id, up_to, &mut |candidate| candidate == name) {
            Read::Found(sequence) => chosen.push(sequence),
            Read::Absent => {}
            Read::Unreadable(damage) => return Err(ApiError::Unreadable(damage)),
        }
    }
    // Filters may overlap.
    chosen.sort_unstable();
    chosen.dedup();
    if chosen.len() > LAST_OF_EACH_MAX {
        return Err(ApiError::TooManyRequests);
    }
    let mut last_sequence = Sequence(0);
    for sequence in &chosen {
        if !batch.has_room() {
            break;
        }
        batch.add(body.read_living(journal, *sequence).map_err(ApiError::Unreadable)?);
        last_sequence = *sequence;
    }
    if batch.messages.is_empty() {
        return Err(ApiError::NoMessage);
    }
    let pending = (chosen.len() - batch.messages.len()) as u64;
    Ok(Response::Batch { messages: batch.messages, pending, last_sequence, up_to: Some(up_to) })
}
