//! What a stream decides about a publish, in nats-server's order: transform, expectations, duplicates,
//! roll-up, sizes, limits.

use std::borrow::Cow;

use beamlog_log::{Journal, Read, Sequence, Timestamp};

use crate::api::error::{BatchRefusal, PublishRefusal};
use crate::stream::body::{StreamBody, stored_bytes};
use crate::stream::message_ids::{self, IDS_MAX};
use crate::stream::origins::{Known, Provenance};
use crate::stream::publish_headers::{BatchHeaders, InvalidTtl, PublishHeaders, TimeToLive, Unsupported};
use crate::stream::subjects::SubjectHash;
use crate::stream::{Discard, transform};
use crate::{headers, subject};

/// Largest header block a stream takes.
const HEADERS_BYTES_MAX: usize = 65_535;

/// Sequences that may be missing between two messages that keep theirs: the set of those without a message
/// is held in memory. Before the first message there may be more.
const GAP_MAX: u64 = 1 << 24;

/// Which older messages a new one replaces.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Rollup {
    None,
    Subject,
    All,
}

/// A publish as it came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offer<'a> {
    pub(crate) subject: &'a [u8],
    pub(crate) headers: &'a [u8],
    pub(crate) payload: &'a [u8],
}

/// What was decided.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "it lives for one publish, on the stack")]
pub(crate) enum Verdict<'a> {
    Duplicate(Sequence),
    /// It is judged with the rest of its batch.
    OfBatch(BatchHeaders<'a>),
    Store {
        subject: Cow<'a, [u8]>,
        hash: SubjectHash,
        headers: PublishHeaders<'a>,
        rollup: Rollup,
        /// The message gets the sequence behind this one; what is missing before it is skipped.
        skip_to: Option<Sequence>,
    },
}

impl StreamBody {
    /// Judges a publish; changes nothing but what is forgotten with time.
    pub(crate) fn judge<'a>(
        &mut self,
        now: Timestamp,
        journal: &mut dyn Journal,
        offer: &Offer<'a>,
        message_bytes_max: usize,
    ) -> Result<Verdict<'a>, PublishRefusal> {
        self.judge_as(now, journal, offer, message_bytes_max, false)
    }

    /// As [`Self::judge`], of a message whose batch is whole.
    pub(crate) fn judge_as<'a>(
        &mut self,
        now: Timestamp,
        journal: &mut dyn Journal,
        offer: &Offer<'a>,
        message_bytes_max: usize,
        batch_is_whole: bool,
    ) -> Result<Verdict<'a>, PublishRefusal> {
        if self.config.sealed {
            return Err(PublishRefusal::Sealed);
        }
        let subject = self.stored_subject(offer.subject);
        let hash = self.subjects.hash(&subject);
        let size = offer.headers.len() + offer.payload.len();
        if size > message_bytes_max || self.config.max_message_bytes.is_some_and(|max| size > max as usize) {
            return Err(PublishRefusal::TooLarge);
        }
        let mut rollup = Rollup::None;
        let mut skip_to = None;
        let mut parsed = PublishHeaders::default();
        if !offer.headers.is_empty() {
            if !headers::is_well_formed(offer.headers) {
                return Err(PublishRefusal::HeadersMalformed);
            }
            parsed = PublishHeaders::parse(offer.headers);
            // What a link brings was whole where it comes from.
            if let Some(batch) = parsed.batch().filter(|_| !batch_is_whole && parsed.origin.is_none()) {
                let allowed = self.config.allow_atomic;
                return if allowed {
                    Ok(Verdict::OfBatch(batch))
                } else {
                    Err(BatchRefusal::Disabled.into())
                };
            }
            if let Some(value) = parsed.origin {
                let from = Provenance::parse(value).ok_or(PublishRefusal::HeadersMalformed)?;
                match self.origins.judge(&from) {
                    Known::New => {}
                    // Where it was stored is not kept.
                    Known::Duplicate => return Ok(Verdict::Duplicate(Sequence(0))),
                    Known::OutOfOrder => {
                        return Err(PublishRefusal::WrongLastSequence { actual: self.last });
                    }
                    Known::TooManyOrigins => return Err(PublishRefusal::TooManyOrigins),
                }
                if from.keep_sequence {
                    let gap = from.sequence.0.saturating_sub(self.last.0);
                    if from.sequence <= self.last || (self.messages > 0 && gap > GAP_MAX) {
                        return Err(PublishRefusal::WrongLastSequence { actual: self.last });
                    }
                    skip_to = Some(Sequence(from.sequence.0 - 1)).filter(|to| *to > self.last);
                }
            }
            if let Some(sequence) = self.check_headers(now, offer, &subject, hash, &parsed)? {
                return Ok(Verdict::Duplicate(sequence));
            }
            rollup = self.rollup(&parsed)?;
            if offer.headers.len() > HEADERS_BYTES_MAX {
                return Err(PublishRefusal::HeadersTooLarge);
            }
        }
        if self.config.discard == Discard::New {
            let bytes = stored_bytes(subject.len(), offer.headers.len(), offer.payload.len());
            self.check_room(journal, &subject, hash, bytes, rollup)?;
        }
        Ok(Verdict::Store { subject, hash, headers: parsed, rollup, skip_to })
    }

    /// The subject under which a publish is stored.
    pub(crate) fn stored_subject<'a>(&self, subject: &'a [u8]) -> Cow<'a, [u8]> {
        let mapping = self.config.subject_transform.as_ref();
        mapping
            .and_then(|mapping| transform::apply(mapping, subject))
            .map_or(Cow::Borrowed(subject), Cow::Owned)
    }

    fn check_headers(
        &mut self,
        now: Timestamp,
        offer: &Offer<'_>,
        subject: &[u8],
        hash: SubjectHash,
        headers: &PublishHeaders<'_>,
    ) -> Result<Option<Sequence>, PublishRefusal> {
        if headers.expected_stream.is_some_and(|expected| expected != self.config.name.as_bytes()) {
            return Err(PublishRefusal::WrongStream);
        }
        match headers.unsupported {
            None => {}
            Some(Unsupported::Counter) => return Err(PublishRefusal::CountersDisabled),
            Some(Unsupported::Schedule) => return Err(PublishRefusal::SchedulesDisabled),
        }
        match headers.time_to_live() {
            Err(InvalidTtl) => return Err(PublishRefusal::TtlInvalid),
            Ok(Some(TimeToLive::Never | TimeToLive::Seconds(1..))) if !self.config.allow_message_ttl => {
                return Err(PublishRefusal::TtlDisabled);
            }
            Ok(_) => {}
        }
        match (headers.expected_last_on_subject, headers.expected_subject) {
            (Some(expected), of) => {
                let actual = match of {
                    None => self.last_on_subject(hash, subject),
                    Some(filter) if subject::check_filter(filter).is_ok() => self.last_on(filter),
                    Some(_) => Ok(Sequence(0)),
                }
                .map_err(PublishRefusal::Unreadable)?;
                if actual.0 != expected {
                    return Err(PublishRefusal::WrongLastSequence { actual });
                }
            }
            (None, Some(_)) => return Err(PublishRefusal::MissingExpectedSequence),
            (None, None) => {}
        }
        if headers.expected_last.is_some_and(|expected| expected != self.last.0) {
            return Err(PublishRefusal::WrongLastSequence { actual: self.last });
        }
        // Of an imported message the origin decides: an id is its publisher's word to another stream.
        if let Some(id) = headers.message_id.filter(|_| headers.origin.is_none()) {
            self.expire_ids(now);
            if let Some(known) = self.message_ids.find(id) {
                // DR19: an id that comes back with other bytes would lose them silently.
                if known.content != message_ids::content_checksum(subject, offer.payload) {
                    return Err(PublishRefusal::MessageIdReused { stored: known.sequence });
                }
                return Ok(Some(known.sequence));
            }
            if self.message_ids.len() >= IDS_MAX {
                return Err(PublishRefusal::TooManyRequests);
            }
        }
        if headers.expected_last_id.is_some_and(|expected| expected != self.last_message_id) {
            let actual = String::from_utf8_lossy(&self.last_message_id).into_owned();
            return Err(PublishRefusal::WrongLastMessageId { actual });
        }
        Ok(None)
    }

    fn rollup(&self, headers: &PublishHeaders<'_>) -> Result<Rollup, PublishRefusal> {
        let Some(value) = headers.rollup else { return Ok(Rollup::None) };
        if !self.config.allow_rollup_headers || self.config.deny_purge {
            return Err(PublishRefusal::RollupNotPermitted);
        }
        match value {
            b"sub" => Ok(Rollup::Subject),
            b"all" => Ok(Rollup::All),
            _ => Err(PublishRefusal::RollupInvalid { value: String::from_utf8_lossy(value).into_owned() }),
        }
    }

    /// Discard policy "new": whether the message may come in. One that replaces an older one of its
    /// subject needs no place of its own.
    fn check_room(
        &self,
        journal: &mut dyn Journal,
        subject: &[u8],
        hash: SubjectHash,
        bytes: u64,
        rollup: Rollup,
    ) -> Result<(), PublishRefusal> {
        let on_subject = self.subjects.find(hash, subject).map_or(0, |found| found.messages);
        let replaces = self.config.max_messages_per_subject.is_some_and(|max| on_subject >= max);
        if replaces && self.config.discard_new_per_subject && rollup == Rollup::None {
            return Err(PublishRefusal::MaxMessagesPerSubject);
        }
        if !replaces && self.config.max_messages.is_some_and(|max| self.messages >= max) {
            return Err(PublishRefusal::MaxMessages);
        }
        if self.config.max_bytes.is_some_and(|max| self.bytes + bytes > max) {
            let freed = if replaces { self.oldest_bytes(journal, subject, hash)? } else { 0 };
            if freed < bytes {
                return Err(PublishRefusal::MaxBytes);
            }
        }
        Ok(())
    }

    fn oldest_bytes(
        &self,
        journal: &mut dyn Journal,
        subject: &[u8],
        hash: SubjectHash,
    ) -> Result<u64, PublishRefusal> {
        let Some(oldest) = self.oldest_on(journal, subject, hash).map_err(PublishRefusal::Unreadable)? else {
            return Ok(0);
        };
        match journal.entry(self.id, oldest) {
            Read::Found(entry) => Ok(stored_bytes(
                entry.subject.len(),
                entry.headers_bytes as usize,
                entry.payload_bytes as usize,
            )),
            Read::Absent => Ok(0),
            Read::Unreadable(damage) => Err(PublishRefusal::Unreadable(damage)),
        }
    }
}
