//! What clients say of deliveries.

use beamlog_log::{Sequence, Timestamp};
use bytes::Bytes;

use crate::api::request::{AckKind, AckTarget};
use crate::consumer::{AckPolicy, Consumer, ConsumerOutput, ConsumerRecord, state};
use crate::wire::Advisory;

impl Consumer {
    /// A client said something of a delivery. An answer to `reply` is emitted only for a delivery that
    /// was made, and the stream holds it until every record pushed so far is durable.
    pub fn ack(
        &mut self,
        now: Timestamp,
        target: &AckTarget,
        kind: AckKind,
        reply: Option<Bytes>,
        out: &mut Vec<ConsumerOutput>,
    ) {
        self.touch(now);
        let sequence = target.stream_sequence;
        // Nobody was sent a message this far on, and there is nothing to say of one that is not tracked.
        if !self.tracks_acks() || sequence.0 == 0 || sequence > self.state.delivered {
            if let (AckKind::AckNext(request), Some(reply)) = (kind, reply) {
                self.pull(now, reply, request, out);
            }
            return;
        }
        let next = match kind {
            AckKind::Ack => {
                self.sample(now, target, out);
                self.done(now, sequence, out);
                None
            }
            AckKind::AckNext(request) => {
                self.sample(now, target, out);
                self.done(now, sequence, out);
                Some(request)
            }
            AckKind::Terminate { reason } => {
                self.done(now, sequence, out);
                out.push(ConsumerOutput::Advisory(Advisory::MessageTerminated {
                    stream: self.stream.clone(),
                    consumer: self.config.name.clone(),
                    stream_sequence: sequence,
                    consumer_sequence: target.consumer_sequence,
                    deliveries: target.delivery_count,
                    reason,
                }));
                None
            }
            AckKind::Nak { delay_nanos } => {
                self.nak(now, target, delay_nanos, out);
                None
            }
            AckKind::InProgress => {
                if let Some(row) = self.state.pending.get(sequence)
                    && !row.is_queued()
                {
                    let due = state::due(&self.config, now, row.delivery_count);
                    self.state.pending.postpone(sequence, due);
                    self.state.delivered_at = now;
                }
                None
            }
        };
        let Some(reply) = reply else { return };
        match next {
            Some(request) => self.pull(now, reply, request, out),
            None => {
                // A confirmed ack is durable first, with the delivery it is for.
                self.flush(now, out);
                out.push(ConsumerOutput::AckReply { to: reply });
            }
        }
    }

    /// Tells of an ack, if it is its turn.
    fn sample(&mut self, now: Timestamp, target: &AckTarget, out: &mut Vec<ConsumerOutput>) {
        let (share, sum) = &mut self.sample;
        if *share == 0 || self.config.ack_policy != AckPolicy::Explicit {
            return;
        }
        let Some(row) = self.state.pending.get(target.stream_sequence) else { return };
        *sum += (*share).min(100);
        if *sum < 100 {
            return;
        }
        *sum -= 100;
        let waited = state::ack_wait_nanos(&self.config, row.delivery_count);
        let delivered_at = row.due.0.saturating_sub(waited);
        out.push(ConsumerOutput::Advisory(Advisory::AckSampled {
            stream: self.stream.clone(),
            consumer: self.config.name.clone(),
            stream_sequence: target.stream_sequence,
            consumer_sequence: target.consumer_sequence,
            deliveries: target.delivery_count,
            delay_nanos: now.0.saturating_sub(delivered_at),
        }));
    }

    fn done(&mut self, now: Timestamp, sequence: Sequence, out: &mut Vec<ConsumerOutput>) {
        self.state.acked_at = now;
        match self.config.ack_policy {
            AckPolicy::None => {}
            AckPolicy::Explicit => {
                if self.state.pending.contains(sequence) || self.state.exhausted.contains(sequence.0) {
                    self.state.done(sequence, sequence);
                    self.acked(now, sequence, sequence, out);
                    self.signal(sequence, out);
                }
            }
            AckPolicy::All => {
                let covered = self.state.covered(sequence);
                let Some(first) = covered.first().copied() else { return };
                self.state.done(first, sequence);
                self.acked(now, first, sequence, out);
                for covered in covered {
                    self.signal(covered, out);
                }
            }
        }
    }

    fn acked(&mut self, now: Timestamp, first: Sequence, last: Sequence, out: &mut Vec<ConsumerOutput>) {
        self.unlogged.acked(first, last);
        if self.unlogged.is_full() {
            self.flush(now, out);
        }
    }

    pub(super) fn signal(&self, sequence: Sequence, out: &mut Vec<ConsumerOutput>) {
        if self.signals_acks {
            out.push(ConsumerOutput::Acked { sequence });
        }
    }

    fn nak(
        &mut self,
        now: Timestamp,
        target: &AckTarget,
        delay_nanos: Option<u64>,
        out: &mut Vec<ConsumerOutput>,
    ) {
        let sequence = target.stream_sequence;
        if !self.state.pending.contains(sequence) {
            return;
        }
        out.push(ConsumerOutput::Advisory(Advisory::MessageNaked {
            stream: self.stream.clone(),
            consumer: self.config.name.clone(),
            stream_sequence: sequence,
            consumer_sequence: target.consumer_sequence,
            deliveries: target.delivery_count,
        }));
        match delay_nanos {
            None => {
                let mut exhausted = Vec::new();
                self.again(sequence, &mut exhausted, out);
                self.exhaust(now, exhausted, out);
            }
            Some(delay) => {
                let until = Timestamp(now.0.saturating_add(delay));
                self.state.pending.postpone(sequence, until);
                self.flush(now, out);
                out.push(ConsumerOutput::Record(ConsumerRecord::Deferred { sequence, until }));
            }
        }
    }

    /// Queues a message for redelivery, or gives it up when it was delivered as often as it may be.
    pub(super) fn again(
        &mut self,
        sequence: Sequence,
        exhausted: &mut Vec<Sequence>,
        out: &mut Vec<ConsumerOutput>,
    ) {
        let Some(row) = self.state.pending.get(sequence) else { return };
        let deliveries = row.delivery_count;
        if self.config.max_deliver.is_none_or(|max| deliveries < u64::from(max)) {
            self.state.pending.queue(sequence);
            return;
        }
        exhausted.push(sequence);
        out.push(ConsumerOutput::Advisory(Advisory::MaxDeliveries {
            stream: self.stream.clone(),
            consumer: self.config.name.clone(),
            stream_sequence: sequence,
            deliveries,
        }));
    }

    /// Gives messages up, in one record.
    pub(super) fn exhaust(
        &mut self,
        now: Timestamp,
        sequences: Vec<Sequence>,
        out: &mut Vec<ConsumerOutput>,
    ) {
        if sequences.is_empty() {
            return;
        }
        for sequence in &sequences {
            self.state.exhaust(*sequence);
        }
        self.flush(now, out);
        out.push(ConsumerOutput::Record(ConsumerRecord::Exhausted { sequences }));
    }
}
