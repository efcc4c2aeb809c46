//! Which message goes to whom next.

use beamlog_log::{Damage, Message, Read, Sequence, Timestamp};
use bytes::{BufMut, Bytes, BytesMut};

use crate::consumer::validate::ACK_PENDING_UNLIMITED;
use crate::consumer::waiting::status;
use crate::consumer::{Consumer, ConsumerOutput, Delivery};
use crate::stream::StreamView;
use crate::wire::DeliveryStatus;

/// How long to wait before a message that cannot be read is tried again.
const RETRY_NANOS: u64 = 1_000_000_000;
/// Gaps of an original stream below this are not replayed.
const REPLAY_GAP_NANOS_MIN: u64 = 1_000_000;

enum Candidate {
    First(Message),
    Again {
        message: Message,
        delivery_count: u64,
    },
    /// Acks have to come in first.
    PendingFull,
    EndOfStream,
    Unreadable(Sequence, Damage),
}

/// Why delivering stopped.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Stopped {
    Budget,
    /// Nobody takes more, or it is not the time.
    Waits,
    EndOfStream,
    Unreadable,
}

impl Consumer {
    /// Whether `deliver` has something to do now, as far as can be seen without reading.
    pub fn is_ready(&self, now: Timestamp, last: Sequence) -> bool {
        if self.pause_ends.is_some_and(|ends| ends > now) {
            return self.waiting.has_one_shots();
        }
        if self.held_until.is_some_and(|until| until > now) || !self.has_taker() {
            return false;
        }
        let undelivered = if self.filters.is_everything() {
            self.next <= last || !self.state.chosen.is_empty()
        } else {
            self.undelivered > 0 || self.uncounted
        };
        self.state.pending.next_queued().is_some()
            || (undelivered && !self.is_pending_full())
            || (!undelivered && self.waiting.has_one_shots())
    }

    fn has_taker(&self) -> bool {
        match &self.push {
            Some(push) => push.may_send(),
            None => !self.waiting.is_empty(),
        }
    }

    fn is_pending_full(&self) -> bool {
        self.config
            .max_ack_pending
            .is_some_and(|max| max != ACK_PENDING_UNLIMITED && self.state.pending.len() >= max as usize)
            && self.tracks_acks()
    }

    /// Delivers while it may, at most `budget` messages. Returns whether the budget ended it.
    pub fn deliver(
        &mut self,
        now: Timestamp,
        view: &mut StreamView<'_>,
        budget: usize,
        out: &mut Vec<ConsumerOutput>,
    ) -> bool {
        if self.pause_ends.is_some_and(|ends| ends > now) {
            self.waiting.end_one_shots(&DeliveryStatus::NoMessages, out);
            return false;
        }
        if self.held_until.is_some_and(|until| until > now) {
            return false;
        }
        self.round += 1;
        let mut left = budget;
        let stopped = loop {
            if !self.has_taker() {
                break Stopped::Waits;
            }
            if left == 0 {
                break Stopped::Budget;
            }
            match self.deliver_one(now, view, out) {
                Some(stopped) => break stopped,
                None => left -= 1,
            }
        };
        match stopped {
            Stopped::EndOfStream => self.waiting.end_one_shots(&DeliveryStatus::NoMessages, out),
            Stopped::Unreadable => self.waiting.end_one_shots(&DeliveryStatus::Unreadable, out),
            Stopped::Budget | Stopped::Waits => {}
        }
        stopped == Stopped::Budget
    }

    fn deliver_one(
        &mut self,
        now: Timestamp,
        view: &mut StreamView<'_>,
        out: &mut Vec<ConsumerOutput>,
    ) -> Option<Stopped> {
        let (message, delivery_count) = match self.candidate(now, view, out) {
            Candidate::First(message) => (message, 1),
            Candidate::Again { message, delivery_count } => (message, delivery_count),
            Candidate::PendingFull => return Some(Stopped::Waits),
            Candidate::EndOfStream => {
                self.next = self.next.max(view.last.next());
                self.undelivered = 0;
                self.uncounted = false;
                self.replay = None;
                return Some(Stopped::EndOfStream);
            }
            Candidate::Unreadable(at, damage) => {
                self.block(now, at, damage, out);
                return Some(Stopped::Unreadable);
            }
        };
        self.blocked = false;
        let is_first = delivery_count == 1;
        let sequence = message.sequence;
        let stored_at = message.timestamp;
        let pending = if is_first { self.undelivered.saturating_sub(1) } else { self.undelivered };
        let message = if self.config.headers_only { without_payload(message) } else { message };
        let bytes = self.wire_bytes(&message, delivery_count, pending);
        if let Some(until) = self.not_before(now, stored_at, bytes)
            && until > now
        {
            self.held_until = Some(until);
            return Some(Stopped::Waits);
        }
        let (to, after) = match &mut self.push {
            Some(push) => {
                let question = push.sent(now, bytes).map(|token| ConsumerOutput::Status {
                    to: push.to.clone(),
                    token: Some(token),
                    status: DeliveryStatus::FlowControl,
                });
                (push.to.clone(), question)
            }
            None => {
                let taker = self.waiting.take(now, bytes, self.round, view.has_interest, out);
                let Some(taker) = taker else { return Some(Stopped::Waits) };
                let after = taker.completed.map(|completed| status(taker.to.clone(), completed));
                (taker.to, after)
            }
        };
        self.delivered(now, sequence, delivery_count);
        if let Some(replay) = &mut self.replay {
            replay.before = Some((stored_at, now));
            if sequence >= replay.last {
                self.replay = None;
            }
        }
        out.push(ConsumerOutput::Deliver(Delivery {
            to,
            message,
            delivery_count,
            consumer_sequence: self.state.consumer_sequence,
            pending,
        }));
        out.extend(after);
        if !self.tracks_acks() {
            self.signal(sequence, out);
        }
        if self.unlogged.is_full() {
            self.flush(now, out);
        }
        None
    }

    fn delivered(&mut self, now: Timestamp, sequence: Sequence, delivery_count: u64) {
        let consumer = self.state.consumer_sequence + 1;
        if delivery_count == 1 {
            self.state.deliver(&self.config, now, sequence, consumer);
            self.unlogged.delivered(sequence, consumer);
            self.next = self.next.max(sequence.next());
            self.undelivered = self.undelivered.saturating_sub(1);
        } else {
            self.state.consumer_sequence = consumer;
            self.state.redeliver(&self.config, now, sequence, delivery_count);
            self.unlogged.redelivered(sequence, delivery_count);
        }
        if self.push.is_none() {
            self.touch(now);
        }
    }

    /// The message to deliver next: what is to be delivered again goes before what is new.
    fn candidate(
        &mut self,
        now: Timestamp,
        view: &mut StreamView<'_>,
        out: &mut Vec<ConsumerOutput>,
    ) -> Candidate {
        while let Some(sequence) = self.state.pending.next_queued() {
            match view.journal.read(view.id, sequence) {
                Read::Found(message) => {
                    let count = self.state.pending.get(sequence).map_or(1, |row| row.delivery_count);
                    return Candidate::Again { message, delivery_count: count + 1 };
                }
                Read::Absent => {
                    self.state.forget(sequence);
                }
                Read::Unreadable(damage) => {
                    // It stays pending, and does not hold up the others: nothing is skipped by that.
                    let later = Timestamp(now.0.saturating_add(RETRY_NANOS));
                    self.state.pending.postpone(sequence, later);
                    self.report(sequence, damage, out);
                }
            }
        }
        if self.is_pending_full() {
            return Candidate::PendingFull;
        }
        while let Some(chosen) = self.state.chosen.min().map(Sequence) {
            match view.journal.read(view.id, chosen) {
                Read::Found(message) => return Candidate::First(message),
                Read::Absent => {
                    self.state.forget(chosen);
                    self.undelivered = self.undelivered.saturating_sub(1);
                }
                Read::Unreadable(damage) => return Candidate::Unreadable(chosen, damage),
            }
        }
        self.next_match(view)
    }

    fn next_match(&self, view: &mut StreamView<'_>) -> Candidate {
        let mut from = self.next.max(view.first);
        while from <= view.last {
            // Mostly the next message is the next one: reading it saves looking for it.
            let is_likely = self.filters.is_everything() || self.next == self.state.delivered.next();
            if is_likely && from == self.next {
                match view.journal.read(view.id, from) {
                    Read::Found(message) if self.filters.matches(&message.subject) => {
                        return Candidate::First(message);
                    }
                    Read::Found(_) | Read::Absent => {}
                    Read::Unreadable(damage) => return Candidate::Unreadable(from, damage),
                }
                from = from.next();
            }
            let found = view.journal.next(view.id, from, &mut |subject| self.filters.matches(subject));
            match found {
                Read::Found(sequence) => match view.journal.read(view.id, sequence) {
                    Read::Found(message) => return Candidate::First(message),
                    Read::Absent => from = sequence.next(),
                    Read::Unreadable(damage) => return Candidate::Unreadable(sequence, damage),
                },
                Read::Absent => break,
                Read::Unreadable(damage) => return Candidate::Unreadable(from, damage),
            }
        }
        Candidate::EndOfStream
    }

    fn block(&mut self, now: Timestamp, at: Sequence, damage: Damage, out: &mut Vec<ConsumerOutput>) {
        self.held_until = Some(Timestamp(now.0.saturating_add(RETRY_NANOS)));
        self.blocked = true;
        self.report(at, damage, out);
    }

    fn report(&mut self, at: Sequence, damage: Damage, out: &mut Vec<ConsumerOutput>) {
        if self.reported.as_ref() != Some(&damage) {
            self.reported = Some(damage.clone());
            out.push(ConsumerOutput::Blocked { at, damage });
        }
    }

    /// When a message may leave: its place in an original rhythm, and the rate limit.
    fn not_before(&self, now: Timestamp, stored_at: Timestamp, bytes: u64) -> Option<Timestamp> {
        let rhythm = self.replay.and_then(|replay| replay.before).and_then(|(stored_before, sent_before)| {
            let gap = stored_at.0.saturating_sub(stored_before.0);
            (gap > REPLAY_GAP_NANOS_MIN).then(|| Timestamp(sent_before.0.saturating_add(gap)))
        });
        let rate = self.push.as_ref().map(|push| push.allowed_at(now, bytes));
        rhythm.max(rate)
    }

    /// What the delivery counts against byte limits: subject, headers and payload, and the reply subject
    /// as a NATS client sees it (`$JS.ACK.` and seven more tokens), because clients count it too.
    fn wire_bytes(&self, message: &Message, delivery_count: u64, pending: u64) -> u64 {
        let digits = |n: u64| u64::from(n.checked_ilog10().unwrap_or(0)) + 1;
        let reply = "$JS.ACK.".len() + self.stream.len() + self.config.name.len() + 6;
        let numbers = digits(delivery_count)
            + digits(message.sequence.0)
            + digits(self.state.consumer_sequence + 1)
            + digits(message.timestamp.0)
            + digits(pending);
        let body = message.subject.len() + message.headers.len() + message.payload.len();
        (reply + body) as u64 + numbers
    }
}

/// Headers only: the size of the payload instead of the payload.
fn without_payload(mut message: Message) -> Message {
    const FIRST_LINE: &[u8] = b"NATS/1.0\r\n";
    let size = format!("Nats-Msg-Size: {}\r\n\r\n", message.payload.len());
    let mut headers = BytesMut::with_capacity(message.headers.len().max(FIRST_LINE.len()) + size.len());
    match message.headers.strip_suffix(b"\r\n") {
        Some(lines) => headers.put_slice(lines),
        None => headers.put_slice(FIRST_LINE),
    }
    headers.put_slice(size.as_bytes());
    message.headers = headers.freeze();
    message.payload = Bytes::new();
    message
}
