//! Atomic batches (ADR-50 of NATS): publishes that are stored together or not at all. They gather in memory and
//! are promised nothing; the last one says that they are all, and then they are judged and go into one frame.

use std::collections::{BTreeMap, BTreeSet};

use beamlog_log::{Journal, Timestamp};
use bytes::Bytes;

use crate::api::error::{BatchRefusal, PublishRefusal};
use crate::stream::Discard;
use crate::stream::body::{StreamBody, stored_bytes};
use crate::stream::publish_headers::{BatchHeaders, PublishHeaders};
use crate::stream::publishing::{Offer, Rollup, Verdict};
use crate::stream::subjects::SubjectHash;
use crate::subject;

/// Messages of one batch, as in nats-server.
const MESSAGES_MAX: usize = 1000;
/// Batches of one stream that gather at the same time, as in nats-server.
const OPEN_PER_STREAM_MAX: usize = 50;
/// Bytes of an id, as in nats-server.
const ID_BYTES_MAX: usize = 64;
/// A batch to which nothing is added for so long is given up, as in nats-server.
const IDLE_NANOS: u64 = 10_000_000_000;

/// What a record in the log has beside these three, and a few more.
const RECORD_BYTES: usize = 64;

/// A message that waits for the rest of its batch.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) subject: Bytes,
    pub(crate) headers: Bytes,
    pub(crate) payload: Bytes,
}

#[derive(Debug)]
struct Open {
    messages: Vec<Waiting>,
    bytes: usize,
    touched: Timestamp,
}

/// The batches of a stream that are not whole yet.
#[derive(Debug, Default)]
pub(crate) struct Batches {
    open: BTreeMap<Vec<u8>, Open>,
    /// Of all of them.
    bytes: usize,
}

/// What became of a message of a batch.
pub(crate) enum Gathered {
    Waits,
    /// These are all.
    Whole(Vec<Waiting>),
}

/// Why a batch that was gathering is none any more, in nats-server's words.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Abandoned {
    Incomplete,
    Large,
    Timeout,
}

/// A message was not taken, and with it maybe its batch.
pub(crate) struct Refused {
    pub(crate) refusal: BatchRefusal,
    pub(crate) abandoned: Option<Abandoned>,
}

impl From<BatchRefusal> for Refused {
    fn from(refusal: BatchRefusal) -> Self {
        Self { refusal, abandoned: None }
    }
}

/// What may gather, over all streams.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchRoom {
    /// Another batch may begin.
    pub(crate) another: bool,
    /// Bytes of one batch: it must fit a frame.
    pub(crate) batch_bytes: usize,
    /// Bytes of all, this stream's included.
    pub(crate) all_bytes: usize,
}

impl Batches {
    /// Batches that gather.
    pub(crate) fn count(&self) -> usize {
        self.open.len()
    }

    /// Bytes that wait.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// When the next one is given up.
    pub(crate) fn deadline(&self) -> Option<Timestamp> {
        self.open.values().map(|open| Timestamp(open.touched.0 + IDLE_NANOS)).min()
    }

    /// Gives up those to which nothing was added for too long; their ids.
    pub(crate) fn give_up_idle(&mut self, now: Timestamp) -> Vec<Vec<u8>> {
        let is_idle = |open: &Open| open.touched.0 + IDLE_NANOS <= now.0;
        let idle: Vec<_> = self.open.extract_if(.., |_, open| is_idle(open)).collect();
        self.bytes -= idle.iter().map(|(_, open)| open.bytes).sum::<usize>();
        idle.into_iter().map(|(id, _)| id).collect()
    }

    fn take(&mut self, id: &[u8]) -> Option<Open> {
        let open = self.open.remove(id)?;
        self.bytes -= open.bytes;
        Some(open)
    }

    /// Adds a message to its batch.
    pub(crate) fn add(
        &mut self,
        now: Timestamp,
        offer: &Offer<'_>,
        batch: &BatchHeaders<'_>,
        room: BatchRoom,
    ) -> Result<Gathered, Refused> {
        if batch.id.len() > ID_BYTES_MAX {
            return Err(BatchRefusal::InvalidId.into());
        }
        let Some(sequence) = batch.sequence else { return Err(BatchRefusal::MissingSequence.into()) };
        let commits = match batch.commit {
            None => false,
            Some(b"1" | b"eob") => true,
            Some(_) => {
                self.take(batch.id);
                return Err(BatchRefusal::InvalidCommit.into());
            }
        };
        // The end of a batch that is no message of it.
        let is_end_only = batch.commit == Some(b"eob");
        let open = self.take(batch.id);
        let gathered = open.as_ref().map_or(0, |open| open.messages.len());
        if sequence != gathered as u64 + 1 || (is_end_only && gathered == 0) {
            let abandoned = open.map(|_| Abandoned::Incomplete);
            return Err(Refused { refusal: BatchRefusal::Incomplete, abandoned });
        }
        if open.is_none() && !commits && (self.open.len() >= OPEN_PER_STREAM_MAX || !room.another) {
            return Err(BatchRefusal::TooManyOpen.into());
        }
        let mut whole = open.unwrap_or(Open { messages: Vec::new(), bytes: 0, touched: now });
        whole.touched = now;
        if !is_end_only {
            whole.bytes += offer.subject.len() + offer.headers.len() + offer.payload.len() + RECORD_BYTES;
            if whole.messages.len() >= MESSAGES_MAX || whole.bytes > room.batch_bytes {
                let refusal = BatchRefusal::TooLarge { messages: whole.messages.len() };
                return Err(Refused { refusal, abandoned: Some(Abandoned::Large) });
            }
            let copy = Bytes::copy_from_slice;
            whole.messages.push(Waiting {
                subject: copy(offer.subject),
                headers: copy(offer.headers),
                payload: copy(offer.payload),
            });
        }
        if commits {
            return Ok(Gathered::Whole(whole.messages));
        }
        if whole.bytes > room.all_bytes.saturating_sub(self.bytes) {
            return Err(Refused { refusal: BatchRefusal::TooManyOpen, abandoned: Some(Abandoned::Large) });
        }
        self.bytes += whole.bytes;
        self.open.insert(batch.id.to_vec(), whole);
        Ok(Gathered::Waits)
    }
}

impl Waiting {
    pub(crate) fn offer(&self) -> Offer<'_> {
        Offer { subject: &self.subject, headers: &self.headers, payload: &self.payload }
    }
}

/// What the messages of a batch before this one will have done.
#[derive(Debug, Default)]
pub(crate) struct Before<'a> {
    messages: u64,
    bytes: u64,
    /// How many on each subject.
    subjects: BTreeMap<Vec<u8>, u64>,
    ids: BTreeSet<&'a [u8]>,
}

/// A message of a batch that may be stored if all the others may.
pub(crate) struct Judged<'a> {
    pub(crate) subject: std::borrow::Cow<'a, [u8]>,
    pub(crate) hash: SubjectHash,
    pub(crate) headers: PublishHeaders<'a>,
    pub(crate) rollup: Rollup,
}

impl StreamBody {
    /// Judges the next message of a whole batch.
    pub(crate) fn judge_of_batch<'a>(
        &mut self,
        now: Timestamp,
        journal: &mut dyn Journal,
        offer: &Offer<'a>,
        message_bytes_max: usize,
        before: &mut Before<'a>,
    ) -> Result<Judged<'a>, PublishRefusal> {
        let asked = PublishHeaders::parse(offer.headers);
        if asked.expected_last_id.is_some() {
            return Err(BatchRefusal::UnsupportedHeader { name: "Nats-Expected-Last-Msg-Id" }.into());
        }
        if asked.origin.is_some() {
            return Err(BatchRefusal::UnsupportedHeader { name: "Beamlog-Origin" }.into());
        }
        if before.messages > 0 && asked.expected_last.is_some() {
            return Err(BatchRefusal::WrongLastSequence.into());
        }
        if asked.message_id.is_some_and(|id| !before.ids.insert(id)) {
            return Err(BatchRefusal::DuplicateMessageId.into());
        }
        let stored_subject = self.stored_subject(offer.subject);
        let on_subject = before.subjects.get(&*stored_subject).copied().unwrap_or(0);
        if asked.expected_last_on_subject.is_some() {
            let is_written = match asked.expected_subject {
                None => on_subject > 0,
                Some(filter) => before.subjects.keys().any(|written| subject::matches(filter, written)),
            };
            if is_written {
                return Err(BatchRefusal::WrongLastSequence.into());
            }
        }
        let (subject, hash, headers, rollup) =
            match self.judge_as(now, journal, offer, message_bytes_max, true) {
                Ok(Verdict::Store { subject, hash, headers, rollup, .. }) => (subject, hash, headers, rollup),
                Ok(Verdict::Duplicate(_) | Verdict::OfBatch(_))
                | Err(PublishRefusal::MessageIdReused { .. }) => {
                    return Err(BatchRefusal::DuplicateMessageId.into());
                }
                Err(refusal) => return Err(refusal),
            };
        match rollup {
            Rollup::Subject if on_subject > 0 => return Err(BatchRefusal::Rollup { what: "sub" }.into()),
            Rollup::All if before.messages > 0 => return Err(BatchRefusal::Rollup { what: "all" }.into()),
            Rollup::None | Rollup::Subject | Rollup::All => {}
        }
        let bytes = stored_bytes(subject.len(), offer.headers.len(), offer.payload.len());
        if self.config.discard == Discard::New && before.messages > 0 {
            self.check_room_behind(before, &subject, hash, bytes)?;
        }
        before.messages += 1;
        before.bytes += bytes;
        *before.subjects.entry(subject.to_vec()).or_default() += 1;
        Ok(Judged { subject, hash, headers, rollup })
    }

    /// Discard policy "new": whether there is room behind the messages before this one. That they may replace older
    /// ones is not counted in.
    fn check_room_behind(
        &self,
        before: &Before<'_>,
        subject: &[u8],
        hash: SubjectHash,
        bytes: u64,
    ) -> Result<(), PublishRefusal> {
        let stored = self.subjects.find(hash, subject).map_or(0, |found| found.messages);
        let on_subject = stored + before.subjects.get(subject).copied().unwrap_or(0);
        let config = &self.config;
        let replaces = config.max_messages_per_subject.is_some_and(|max| on_subject >= max);
        if replaces && config.discard_new_per_subject {
            return Err(PublishRefusal::MaxMessagesPerSubject);
        }
        if !replaces && config.max_messages.is_some_and(|max| self.messages + before.messages >= max) {
            return Err(PublishRefusal::MaxMessages);
        }
        if !replaces && config.max_bytes.is_some_and(|max| self.bytes + before.bytes + bytes > max) {
            return Err(PublishRefusal::MaxBytes);
        }
        Ok(())
    }
}
