//! A publish from its command to its record.

use beamlog_log::{MessageRef, Sequence, StreamId};
use bytes::Bytes;

use crate::api::error::PublishRefusal;
use crate::api::request::Published;
use crate::driver::command::PublishRef;
use crate::engine::jobs::Job;
use crate::engine::record::Record;
use crate::engine::{Engine, Output, Turn};
use crate::headers;
use crate::stream::body::stored_bytes;
use crate::stream::message_ids;
use crate::stream::publish_headers::PublishHeaders;
use crate::stream::publishing::{Offer, Rollup, Verdict};
use crate::stream::state::Stream;
use crate::stream::subjects::SubjectHash;
use crate::stream::{Retention, transform, validation};
use crate::timestamp;

/// Messages that one publish may push out; a job does the rest.
const REMOVALS_PER_PUBLISH_MAX: usize = 1024;

/// A message that was admitted.
pub(super) struct Admitted<'a> {
    pub(super) subject: &'a [u8],
    pub(super) hash: SubjectHash,
    pub(super) block: &'a [u8],
    pub(super) headers: &'a PublishHeaders<'a>,
    pub(super) payload: &'a [u8],
    pub(super) rollup: Rollup,
}

impl Engine {
    pub(super) fn publish(&mut self, turn: &mut Turn<'_>, publish: &PublishRef<'_>) {
        let id = publish.stream;
        let stream = self.streams.get_mut(&id).filter(|stream| !stream.body.moving.is_moving());
        let Some(stream) = stream else {
            self.counters.refused_publishes += 1;
            let result = Err(PublishRefusal::StreamNotFound);
            self.outputs.push_back(Output::Published { stream: id, result, acked: true });
            return;
        };
        let acked = !stream.body.config.no_ack;
        let offer = Offer { subject: publish.subject, headers: publish.headers, payload: publish.payload };
        let result = match stream.body.judge(turn.now, turn.journal, &offer, self.limits.message_bytes) {
            Ok(Verdict::Store { subject, hash, headers, rollup, skip_to }) => {
                if let Some(to) = skip_to {
                    Record::SkippedTo { stream: id, to, at: turn.now }
                        .push(turn.journal)
                        .expect("three numbers are smaller than a record");
                    stream.body.apply_skipped_to(to, turn.now);
                }
                let admitted = Admitted {
                    subject: &subject,
                    hash,
                    block: publish.headers,
                    headers: &headers,
                    payload: publish.payload,
                    rollup,
                };
                Ok(Published::Stored(self.store(turn, id, &admitted)))
            }
            Ok(Verdict::Duplicate(sequence)) => {
                // The original may be in the frame that is being gathered.
                self.commit_wanted = true;
                self.counters.duplicates += 1;
                Ok(Published::Duplicate(sequence))
            }
            Ok(Verdict::OfBatch(batch)) => self.publish_of_batch(turn, publish, &batch),
            Err(refusal) => Err(refusal),
        };
        if let Err(refusal) = &result {
            self.count_refusal(refusal);
        }
        self.outputs.push_back(Output::Published { stream: id, result, acked });
    }

    fn count_refusal(&mut self, refusal: &PublishRefusal) {
        match refusal {
            PublishRefusal::MessageIdReused { .. } => self.counters.message_ids_reused += 1,
            PublishRefusal::Unreadable(_) => self.counters.unreadable += 1,
            PublishRefusal::WrongStream
            | PublishRefusal::WrongLastSequence { .. }
            | PublishRefusal::WrongLastMessageId { .. }
            | PublishRefusal::MissingExpectedSequence
            | PublishRefusal::TooLarge
            | PublishRefusal::HeadersTooLarge
            | PublishRefusal::MaxMessages
            | PublishRefusal::MaxBytes
            | PublishRefusal::MaxMessagesPerSubject
            | PublishRefusal::Sealed
            | PublishRefusal::RollupNotPermitted
            | PublishRefusal::RollupInvalid { .. }
            | PublishRefusal::TtlDisabled
            | PublishRefusal::Batch(_)
            | PublishRefusal::CountersDisabled
            | PublishRefusal::SchedulesDisabled
            | PublishRefusal::TtlInvalid
            | PublishRefusal::HeadersMalformed
            | PublishRefusal::InsufficientStorage
            | PublishRefusal::LogFailed
            | PublishRefusal::NotLeader
            | PublishRefusal::TooManyRequests
            | PublishRefusal::TooManyOrigins
            | PublishRefusal::StreamNotFound => self.counters.refused_publishes += 1,
        }
    }

    /// Stores what was admitted, and does what follows from it.
    pub(super) fn store(&mut self, turn: &mut Turn<'_>, id: StreamId, admitted: &Admitted<'_>) -> Sequence {
        self.commit_wanted = true;
        let stream = self.streams.get_mut(&id).expect("the publish was judged by this stream");
        let sequence = stream.body.last.next();
        if stream.body.config.retention == Retention::Interest
            && !stream.is_wanted(sequence, admitted.subject)
        {
            self.skip(turn, id, admitted);
            return sequence;
        }
        let message = MessageRef {
            stream: id,
            sequence,
            timestamp: turn.now,
            subject: admitted.subject,
            headers: admitted.block,
            payload: admitted.payload,
        };
        let republished = republish(stream, &message, admitted.hash);
        turn.journal.push_message(&message);
        stream.body.apply_message(&message, admitted.hash, admitted.headers);
        self.counters.stored_messages += 1;
        let bytes = stored_bytes(admitted.subject.len(), admitted.block.len(), admitted.payload.len());
        self.counters.stored_bytes += bytes;

        for (consumer, slot) in &mut stream.consumers {
            slot.consumer.stored(sequence, admitted.subject);
            if !slot.ready && slot.consumer.is_ready(turn.now, sequence) {
                slot.ready = true;
                self.ready.push_back((id, *consumer));
            }
        }

        match admitted.rollup {
            Rollup::None => {}
            Rollup::All => stream.remove_all_before_last(turn.journal, admitted.subject, bytes),
            Rollup::Subject => {
                let left = stream.remove_older_on(
                    turn.journal,
                    admitted.subject,
                    admitted.hash,
                    sequence,
                    REMOVALS_PER_PUBLISH_MAX,
                );
                if left == Ok(true) {
                    let subject = Bytes::copy_from_slice(admitted.subject);
                    self.jobs.push_back(Job::RollUp { stream: id, subject, before: sequence });
                }
            }
        }
        stream.enforce_subject_limit(turn.journal, admitted.subject, admitted.hash);
        if !stream.enforce_limits(turn.journal, REMOVALS_PER_PUBLISH_MAX) {
            self.jobs.push_back(Job::Trim { stream: id });
        }
        if admitted.headers.ttl.is_some() {
            self.rearm_stream(turn, id);
        }
        self.after_change(turn, id);
        self.outputs.extend(republished);
        sequence
    }

    /// Retention by interest, and nobody is interested: the message gets its sequence and is not stored.
    fn skip(&mut self, turn: &mut Turn<'_>, id: StreamId, admitted: &Admitted<'_>) {
        let stream = self.streams.get_mut(&id).expect("the publish was judged by this stream");
        let body = &mut stream.body;
        let sequence = body.last.next();
        let message_id = admitted.headers.message_id.unwrap_or_default();
        Record::Skipped { stream: id, sequence, at: turn.now, message_id: message_id.to_vec() }
            .push(turn.journal)
            .expect("a header block is smaller than a record");
        body.apply_skipped(sequence, turn.now, message_id);
        if let Some(id) = admitted.headers.message_id {
            let content = message_ids::content_checksum(admitted.subject, admitted.payload);
            body.message_ids.insert(id, sequence, turn.now, content);
        }
    }
}

/// The copy that a stream publishes of what it stores.
fn republish(stream: &Stream, message: &MessageRef<'_>, hash: SubjectHash) -> Option<Output> {
    let republish = stream.body.config.republish.as_ref()?;
    let subject = transform::apply(&validation::republish_mapping(republish), message.subject)?;
    let before = stream.body.subjects.find(hash, message.subject).map_or(0, |found| found.last.0);
    let mut block = headers::Builder::append_to(message.headers)
        .header("Nats-Stream", &stream.body.config.name)
        .header("Nats-Subject", message.subject)
        .header("Nats-Sequence", message.sequence.to_string())
        .header("Nats-Time-Stamp", timestamp::rfc3339(message.timestamp))
        .header("Nats-Last-Sequence", before.to_string());
    let mut payload = Bytes::new();
    if republish.headers_only {
        block = block.header("Nats-Msg-Size", message.payload.len().to_string());
    } else {
        payload = Bytes::copy_from_slice(message.payload);
    }
    Some(Output::Republish { subject: subject.into(), headers: block.finish().into(), payload })
}
