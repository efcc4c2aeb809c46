//! What a stream is apart from its consumers: its messages as figures and sets, never their bytes.
//!
//! Every change is a record that the `apply_…` functions fold in, live and in replay alike. Invariants:
//! `first ≤ last + 1`; `deleted` lies strictly between `first` and `last`; without messages there are no
//! bytes, no subjects and `first = last + 1`.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use beamlog_log::{
    Damage, DamageReason, Journal, Message, MessageRef, Read, SegmentId, Sequence, StreamId, Timestamp,
};
use roaring::RoaringTreemap;

use crate::engine::record::Record;
use crate::stream::message_ids::{self, MessageIds};
use crate::stream::moving::{MovedId, Moving};
use crate::stream::origins::Origins;
use crate::stream::publish_headers::{PublishHeaders, TimeToLive};
use crate::stream::subjects::{SubjectHash, SubjectIndex};
use crate::stream::{StreamConfig, StreamView};

/// Bytes that nats-server's file store counts for a message: 22 of record header, 4 before a header
/// block, 8 of checksum. Clients size their limits by it.
pub(crate) fn stored_bytes(subject: usize, headers: usize, payload: usize) -> u64 {
    let headers = if headers == 0 { 0 } else { headers + 4 };
    (22 + subject + headers + payload + 8) as u64
}

/// Ranges of removed sequences in one record.
const REMOVAL_RANGES_MAX: usize = 16 << 10;

/// Removals of one frame, not yet in a record.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Removals {
    /// Neighbouring sequences, both ends included, in the order in which they went.
    pub(crate) ranges: Vec<(u64, u64)>,
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

#[derive(Debug)]
pub(crate) struct StreamBody {
    pub(crate) id: StreamId,
    pub(crate) config: StreamConfig,
    pub(crate) created: Timestamp,
    pub(crate) first: Sequence,
    pub(crate) last: Sequence,
    pub(crate) last_time: Timestamp,
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    pub(crate) deleted: RoaringTreemap,
    /// Id of the last message, empty if it had none.
    pub(crate) last_message_id: Vec<u8>,
    /// What links brought.
    pub(crate) origins: Origins,
    /// Derived from the messages.
    pub(crate) subjects: SubjectIndex,
    /// Derived from the messages.
    pub(crate) message_ids: MessageIds,
    /// Derived from the messages: when those with a time to live of their own end.
    pub(crate) ends: BTreeSet<(Timestamp, Sequence)>,
    pub(crate) removals: Removals,
    pub(crate) moving: Moving,
    /// Ids inside the window that no message of this shard had, in their order.
    pub(crate) moved_ids: Vec<MovedId>,
    /// Subjects up to here are not all known: a part of the log that names them cannot be read (DR14).
    hidden: Option<(Sequence, Damage)>,
    /// When the first message was stored, once somebody asked.
    first_known: Option<(Sequence, Timestamp)>,
    /// Replay is under way: what is derived from messages is built at its end.
    pub(crate) recovering: bool,
    /// Something of the checkpoint row changed since the last checkpoint.
    pub(crate) dirty: bool,
}

impl StreamBody {
    pub(crate) fn new(id: StreamId, config: StreamConfig, created: Timestamp) -> Self {
        let first = config.first_sequence.unwrap_or(Sequence(1)).max(Sequence(1));
        let subjects = SubjectIndex::new(config.max_messages_per_subject.is_some_and(|max| max > 1));
        Self {
            id,
            config,
            created,
            first,
            last: Sequence(first.0 - 1),
            last_time: Timestamp(0),
            messages: 0,
            bytes: 0,
            deleted: RoaringTreemap::new(),
            last_message_id: Vec::new(),
            origins: Origins::default(),
            subjects,
            message_ids: MessageIds::default(),
            ends: BTreeSet::new(),
            removals: Removals::default(),
            moving: Moving::No,
            moved_ids: Vec::new(),
            hidden: None,
            first_known: None,
            recovering: false,
            dirty: true,
        }
    }

    pub(crate) fn view<'a>(
        &'a self,
        journal: &'a mut dyn Journal,
        has_interest: &'a dyn Fn(&[u8]) -> bool,
    ) -> StreamView<'a> {
        StreamView {
            id: self.id,
            first: self.first,
            last: self.last,
            messages: self.messages,
            deleted: &self.deleted,
            journal,
            last_by_subject: &self.subjects,
            has_interest,
        }
    }

    /// Whether the sequence has a living message.
    pub(crate) fn lives(&self, sequence: Sequence) -> bool {
        self.first <= sequence && sequence <= self.last && !self.deleted.contains(sequence.0)
    }

    /// The first living message at or after `from`.
    pub(crate) fn living_from(&self, from: Sequence) -> Option<Sequence> {
        let at = not_in(&self.deleted, from.max(self.first).0);
        (at <= self.last.0).then_some(Sequence(at))
    }

    /// Living messages before `at`.
    pub(crate) fn living_before(&self, at: Sequence) -> u64 {
        let end = at.0.min(self.last.0 + 1);
        if end <= self.first.0 {
            return 0;
        }
        (end - self.first.0) - self.deleted.range_cardinality(self.first.0..end)
    }

    /// Reads a message that lives by our books: not finding it is damage, not absence (DR14).
    pub(crate) fn read_living(
        &self,
        journal: &mut dyn Journal,
        sequence: Sequence,
    ) -> Result<Message, Damage> {
        match journal.read(self.id, sequence) {
            Read::Found(message) => Ok(message),
            Read::Absent => Err(missing()),
            Read::Unreadable(damage) => Err(damage),
        }
    }

    /// Folds a stored message in.
    pub(crate) fn apply_message(
        &mut self,
        message: &MessageRef<'_>,
        hash: SubjectHash,
        headers: &PublishHeaders<'_>,
    ) {
        assert_eq!(message.sequence, self.last.next(), "a stream has no gaps but recorded ones");
        if self.messages == 0 {
            self.first = message.sequence;
            self.deleted.clear();
        }
        self.last = message.sequence;
        self.last_time = message.timestamp;
        self.messages += 1;
        self.bytes += stored_bytes(message.subject.len(), message.headers.len(), message.payload.len());
        self.dirty = true;
        self.forget_moved_ids(message.timestamp);
        self.note_id(headers.message_id.unwrap_or_default());
        if let Some(origin) = headers.origin {
            self.origins.stored(origin);
        }
        if self.recovering {
            return;
        }
        self.subjects.stored(hash, message.subject, message.sequence);
        self.derive_from_headers(message, headers);
    }

    /// Remembers the id and the end of a message.
    pub(crate) fn derive_from_headers(&mut self, message: &MessageRef<'_>, headers: &PublishHeaders<'_>) {
        if let Some(id) = headers.message_id {
            let content = message_ids::content_checksum(message.subject, message.payload);
            self.message_ids.insert(id, message.sequence, message.timestamp, content);
        }
        if let Ok(Some(TimeToLive::Seconds(seconds))) = headers.time_to_live()
            && seconds > 0
            && self.config.allow_message_ttl
        {
            let end = message.timestamp.0.saturating_add(seconds.saturating_mul(1_000_000_000));
            self.ends.insert((Timestamp(end), message.sequence));
        }
    }

    pub(crate) fn note_id(&mut self, id: &[u8]) {
        self.last_message_id.clear();
        self.last_message_id.extend_from_slice(id);
    }

    /// Folds in a sequence that was given to a message nobody wanted.
    pub(crate) fn apply_skipped(&mut self, sequence: Sequence, at: Timestamp, message_id: &[u8]) {
        assert_eq!(sequence, self.last.next(), "a stream has no gaps but recorded ones");
        self.last = sequence;
        self.last_time = at;
        self.note_id(message_id);
        if self.messages == 0 {
            self.first = sequence.next();
        } else {
            self.deleted.insert(sequence.0);
        }
        self.dirty = true;
    }

    /// Folds in that the sequences up to `to` have no message and never had one.
    pub(crate) fn apply_skipped_to(&mut self, to: Sequence, at: Timestamp) {
        assert!(self.last < to, "sequences are skipped once");
        if self.messages > 0 {
            self.deleted.insert_range(self.last.0 + 1..=to.0);
            if to.0 - self.last.0 > 1 << 16 {
                self.deleted.optimize();
            }
        } else {
            self.first = to.next();
        }
        self.last = to;
        self.last_time = at;
        self.dirty = true;
    }

    /// Folds removed sequences in: figures and sets only.
    pub(crate) fn apply_removed(&mut self, range: RangeInclusive<u64>, messages: u64, bytes: u64) {
        let (start, end) = (*range.start(), (*range.end()).min(self.last.0));
        assert!(messages <= self.messages, "more messages removed than there are");
        self.messages -= messages;
        self.bytes -= bytes;
        self.dirty = true;
        if self.messages == 0 {
            assert_eq!(self.bytes, 0, "an empty stream has no bytes");
            self.first = self.last.next();
            self.deleted.clear();
            return;
        }
        if start > self.first.0 {
            self.deleted.insert_range(start..=end);
            return;
        }
        let first = not_in(&self.deleted, self.first.0.max(end + 1));
        self.deleted.remove_range(..first);
        self.first = Sequence(first);
    }

    /// Removes one living message: applies it, and notes it for the record of this frame.
    /// `subject` is `None` when the message could not be read.
    pub(crate) fn remove(
        &mut self,
        journal: &mut dyn Journal,
        sequence: Sequence,
        subject: Option<(SubjectHash, &[u8])>,
        bytes: u64,
    ) {
        assert!(self.lives(sequence), "a message is removed once");
        // The last one takes with it what messages that could not be measured have left behind.
        let bytes = if self.messages == 1 { self.bytes } else { bytes.min(self.bytes) };
        self.apply_removed(sequence.0..=sequence.0, 1, bytes);
        self.note_removed(sequence.0, sequence.0, 1, bytes);
        if self.removals.ranges.len() >= REMOVAL_RANGES_MAX {
            self.flush_removals(journal);
        }
        journal.release(self.id, sequence..=sequence);
        if let Some((hash, subject)) = subject {
            let id = self.id;
            let first = self.first;
            self.subjects.removed(hash, subject, sequence, &mut |from| {
                if from < first {
                    return Read::Absent;
                }
                journal.previous(id, from, &mut |candidate| candidate == subject)
            });
        }
        if self.messages == 0 {
            self.subjects.clear();
            self.ends.clear();
        }
    }

    /// Removes everything up to `end`, which has `messages` messages of `bytes` bytes; the caller sees to
    /// the subjects.
    pub(crate) fn remove_prefix(
        &mut self,
        journal: &mut dyn Journal,
        end: Sequence,
        messages: u64,
        bytes: u64,
    ) {
        let start = self.first;
        let bytes = if self.messages == messages { self.bytes } else { bytes.min(self.bytes) };
        self.apply_removed(start.0..=end.0, messages, bytes);
        self.note_removed(start.0, end.0, messages, bytes);
        journal.release(self.id, start..=end);
        if self.messages == 0 {
            self.subjects.clear();
            self.ends.clear();
        }
    }

    fn note_removed(&mut self, start: u64, end: u64, messages: u64, bytes: u64) {
        self.removals.messages += messages;
        self.removals.bytes += bytes;
        match self.removals.ranges.last_mut() {
            Some((_, last)) if *last + 1 == start => *last = end,
            Some((first, _)) if *first == end + 1 => *first = start,
            Some(_) | None => self.removals.ranges.push((start, end)),
        }
    }

    /// Puts the removals since the last time into a record.
    pub(crate) fn flush_removals(&mut self, journal: &mut dyn Journal) {
        if self.removals.ranges.is_empty() {
            return;
        }
        let Removals { ranges, messages, bytes } = std::mem::take(&mut self.removals);
        Record::Removed { stream: self.id, ranges, messages, bytes }
            .push(journal)
            .expect("a record of removals is flushed before it is large");
    }

    /// The oldest living message of a subject. Asks the log where the index does not know it.
    pub(crate) fn oldest_on(
        &self,
        journal: &mut dyn Journal,
        subject: &[u8],
        hash: SubjectHash,
    ) -> Result<Option<Sequence>, Damage> {
        if let Some(oldest) = self.subjects.oldest(hash, subject) {
            return Ok(Some(oldest));
        }
        let Some(found) = self.subjects.find(hash, subject) else { return Ok(None) };
        match journal.next(self.id, found.first_bound.max(self.first), &mut |candidate| candidate == subject)
        {
            Read::Found(oldest) => Ok(Some(oldest)),
            Read::Absent => Ok(None),
            Read::Unreadable(damage) => Err(damage),
        }
    }

    /// When the first message was stored; `None` when there is none or it cannot be read.
    pub(crate) fn first_time(&mut self, journal: &mut dyn Journal) -> Option<Timestamp> {
        if self.messages == 0 {
            return None;
        }
        if let Some((sequence, at)) = self.first_known
            && sequence == self.first
        {
            return Some(at);
        }
        match journal.entry(self.id, self.first) {
            Read::Found(entry) => {
                self.first_known = Some((self.first, entry.timestamp));
                Some(entry.timestamp)
            }
            Read::Absent | Read::Unreadable(_) => None,
        }
    }

    /// Says that the subjects of messages up to `last` are not all known.
    pub(crate) fn hide(&mut self, last: Sequence, damage: Damage) {
        if self.hidden.as_ref().is_none_or(|(hidden, _)| *hidden < last) {
            self.hidden = Some((last, damage));
        }
    }

    /// The last sequence of a filter, 0 when there is none. A damaged part of the log may hide a later
    /// one: that is no answer (DR14).
    pub(crate) fn last_on(&self, filter: &[u8]) -> Result<Sequence, Damage> {
        let mut last = Sequence(0);
        self.subjects.matching(filter, &mut |_, figures| last = last.max(figures.last));
        self.unless_hidden(last)
    }

    /// The last sequence on a subject, as [`Self::last_on`].
    pub(crate) fn last_on_subject(&self, hash: SubjectHash, subject: &[u8]) -> Result<Sequence, Damage> {
        self.unless_hidden(self.subjects.find(hash, subject).map_or(Sequence(0), |found| found.last))
    }

    fn unless_hidden(&self, last: Sequence) -> Result<Sequence, Damage> {
        match &self.hidden {
            Some((hidden, damage)) if last < *hidden && self.first <= *hidden => Err(damage.clone()),
            Some(_) | None => Ok(last),
        }
    }

    /// What is remembered of time: ids leave with their window.
    pub(crate) fn expire_ids(&mut self, now: Timestamp) {
        let window = self.config.duplicate_window_nanos.unwrap_or(0);
        self.message_ids.expire(Timestamp(now.0.saturating_sub(window)));
    }
}

/// The first number at or after `from` that is not in the set. Gaps may be of any length.
pub(crate) fn not_in(set: &RoaringTreemap, from: u64) -> u64 {
    let mut at = from;
    for _ in 0..32 {
        if !set.contains(at) {
            return at;
        }
        at += 1;
    }
    // Everything from `at` to before `at + known` is in it.
    let mut step = 64;
    while set.range_cardinality(at..at + step) == step {
        at += step;
        step = step.saturating_mul(2).min(1 << 62);
    }
    let (mut low, mut high) = (0, step);
    while low < high {
        let middle = low + (high - low) / 2;
        if set.range_cardinality(at..=at + middle) == middle + 1 {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    at + low
}

/// The damage of a message that the log should have and does not know.
pub(crate) fn missing() -> Damage {
    Damage { segment: SegmentId(0), offset: 0, reason: DamageReason::Misplaced }
}
