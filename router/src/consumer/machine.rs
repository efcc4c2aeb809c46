//! The consumer as its stream calls it: creation, figures, and the fold. What it does with messages is
//! in `deliver`, with acks in `ack`, with time in `timer`.

use beamlog_log::{Damage, Sequence, Timestamp};
use bytes::Bytes;

use crate::api::error::ApiError;
use crate::api::request::PullRequest;
use crate::consumer::filters::Filters;
use crate::consumer::push::Push;
use crate::consumer::state::State;
use crate::consumer::unlogged::Unlogged;
use crate::consumer::waiting::{Waiting, status};
use crate::consumer::{
    AckPolicy, ConsumerConfig, ConsumerId, ConsumerInfo, ConsumerOutput, ConsumerPosition, ConsumerRecord,
    ConsumerSnapshot, ReplayPolicy, start, validate,
};
use crate::stream::{StreamConfig, StreamView};
use crate::wire::{Advisory, DeliveryStatus};

/// One consumer: pure, owned by its stream.
///
/// What is decided is applied at once. Records that nobody waits for gather inside and come out at
/// [`Consumer::flush`], which the stream calls before a frame is written (and within 250 ms of
/// [`Consumer::has_unlogged`]). So between two flushes the log lags behind the live state by whole
/// deliveries and plain acks, never by an ack that was confirmed: that flushes.
///
/// Where a message cannot be read (DR14) a consumer stops: it delivers nothing past it, says so once by
/// [`ConsumerOutput::Blocked`], answers pull requests that end with an error of its own, and tries again
/// each second. A message that was delivered before and cannot be read for its redelivery stays
/// pending; others are not held up by it, since they are not behind it in any order that was promised.
#[derive(Clone, Debug)]
pub struct Consumer {
    pub(super) id: ConsumerId,
    pub(super) stream: String,
    pub(super) config: ConsumerConfig,
    pub(super) created: Timestamp,
    pub(super) filters: Filters,
    pub(super) state: State,
    pub(super) unlogged: Unlogged,
    /// The next message to look at. Everything before it was delivered or does not match.
    pub(super) next: Sequence,
    /// Messages that match and were not delivered.
    pub(super) undelivered: u64,
    /// They could not all be counted, because some cannot be read: there may be more.
    pub(super) uncounted: bool,
    pub(super) waiting: Waiting,
    pub(super) push: Option<Push>,
    pub(super) replay: Option<Replay>,
    /// Nothing is delivered before this: rate limit, replay, or a message that cannot be read.
    pub(super) held_until: Option<Timestamp>,
    /// What is next cannot be read.
    pub(super) blocked: bool,
    /// The damage that was told of.
    pub(super) reported: Option<Damage>,
    pub(super) pause_ends: Option<Timestamp>,
    pub(super) inactive_at: Option<Timestamp>,
    /// Counts calls of `deliver`.
    pub(super) round: u64,
    pub(super) signals_acks: bool,
    /// Share of acks to sample, in per cent, and what has added up of it.
    pub(super) sample: (u32, u32),
}

/// Replay policy "original", until the messages that were there at the start are delivered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Replay {
    pub(super) last: Sequence,
    /// Stored at, and sent at, of the message before.
    pub(super) before: Option<(Timestamp, Timestamp)>,
}

impl Consumer {
    /// Checks a requested configuration and fills in defaults. `others` are the other consumers of
    /// the stream. The name is set by then.
    pub fn validate(
        config: &mut ConsumerConfig,
        stream: &StreamConfig,
        others: &mut dyn Iterator<Item = &ConsumerConfig>,
    ) -> Result<(), ApiError> {
        validate::validate(config, stream, others)
    }

    /// Checks a requested change: as [`Consumer::validate`], and against what may change.
    pub fn validate_update(
        &self,
        config: &mut ConsumerConfig,
        stream: &StreamConfig,
        others: &mut dyn Iterator<Item = &ConsumerConfig>,
    ) -> Result<(), ApiError> {
        validate::validate(config, stream, others)?;
        let is_listened_to = self.push.as_ref().is_some_and(|push| push.is_active);
        validate::validate_update(&self.config, config, is_listened_to)
    }

    /// A new consumer at its start position. Log its [`Consumer::snapshot`] (and
    /// [`Consumer::snapshot_rest`]) as the creation record: replay calls [`Consumer::restore`] with it,
    /// so that the position is decided once. Tell it afterwards who listens, if it is a push consumer.
    pub fn create(
        id: ConsumerId,
        stream: &str,
        config: ConsumerConfig,
        created: Timestamp,
        view: &mut StreamView<'_>,
    ) -> Result<Self, ApiError> {
        let filters = Filters::new(&config.filter_subjects);
        let start = start::decide(&config, &filters, view).map_err(ApiError::Unreadable)?;
        let state = State::new(start.first, start.chosen);
        let mut consumer = Self::with_state(id, stream, config, created, state);
        consumer.undelivered = consumer.count(view).map_err(ApiError::Unreadable)?;
        consumer.begin(created, view.last);
        Ok(consumer)
    }

    fn with_state(
        id: ConsumerId,
        stream: &str,
        config: ConsumerConfig,
        created: Timestamp,
        state: State,
    ) -> Self {
        Self {
            id,
            stream: stream.to_owned(),
            filters: Filters::new(&config.filter_subjects),
            push: config.push.as_ref().map(Push::new),
            sample: (sample_share(&config), 0),
            config,
            created,
            next: state.next(),
            state,
            unlogged: Unlogged::default(),
            undelivered: 0,
            uncounted: false,
            waiting: Waiting::default(),
            replay: None,
            held_until: None,
            blocked: false,
            reported: None,
            pause_ends: None,
            inactive_at: None,
            round: 0,
            signals_acks: true,
        }
    }

    /// From a snapshot (or creation record). Call [`Consumer::recovered`] when replay is over.
    pub fn restore(stream: &str, snapshot: ConsumerSnapshot) -> Self {
        let state = State::restore(&snapshot);
        Self::with_state(snapshot.id, stream, snapshot.config, snapshot.created, state)
    }

    /// Replay is over and the stream is as it was: counts again, drops what is gone. Nobody listens yet.
    pub fn recovered(&mut self, now: Timestamp, view: &mut StreamView<'_>) {
        self.forget_gone(view);
        self.look_again(view);
        self.begin(now, view.last);
    }

    /// Volatile state, from the beginning.
    fn begin(&mut self, now: Timestamp, last: Sequence) {
        self.replay = (self.config.replay_policy == ReplayPolicy::Original && self.next <= last)
            .then_some(Replay { last, before: None });
        self.pause_ends = self.config.pause_until.filter(|until| *until > now);
        self.touch(now);
    }

    pub fn id(&self) -> ConsumerId {
        self.id
    }

    pub fn config(&self) -> &ConsumerConfig {
        &self.config
    }

    pub fn created(&self) -> Timestamp {
        self.created
    }

    /// Whether to emit [`ConsumerOutput::Acked`]; it does until told otherwise. A stream that keeps
    /// messages by its limits alone has no use for them.
    pub fn signal_acks(&mut self, wanted: bool) {
        self.signals_acks = wanted;
    }

    /// Takes a configuration that [`Consumer::validate_update`] passed, or one in which only
    /// `pause_until` changed; emits the record.
    pub fn update(
        &mut self,
        now: Timestamp,
        config: ConsumerConfig,
        view: &mut StreamView<'_>,
        out: &mut Vec<ConsumerOutput>,
    ) {
        self.flush(now, out);
        let old = std::mem::replace(&mut self.config, config);
        out.push(ConsumerOutput::Record(ConsumerRecord::Updated { config: Box::new(self.config.clone()) }));
        self.reconfigured();
        if old.filter_subjects != self.config.filter_subjects {
            self.recount(view);
        }
        if let (Some(before), Some(after)) = (&old.push, &self.config.push)
            && before.deliver_subject != after.deliver_subject
        {
            // Whatever the old subscribers were sent, the new ones have not seen.
            let all: Vec<_> = self.state.pending.iter().map(|(sequence, _)| sequence).collect();
            for sequence in all {
                self.state.pending.queue(sequence);
            }
        }
        if old.pause_until != self.config.pause_until {
            self.pause_ends = self.config.pause_until.filter(|until| *until > now);
            out.push(self.pause_advisory(self.pause_ends.is_some()));
        }
        self.touch(now);
    }

    /// What is derived from the configuration follows it.
    fn reconfigured(&mut self) {
        self.sample = (sample_share(&self.config), 0);
        self.filters = Filters::new(&self.config.filter_subjects);
        match (&mut self.push, &self.config.push) {
            (Some(push), Some(config)) if push.to == config.deliver_subject.as_bytes() => {
                push.set_rate(config.rate_limit_bits_per_second);
            }
            (push, config) => *push = config.as_ref().map(Push::new),
        }
    }

    pub(super) fn pause_advisory(&self, paused: bool) -> ConsumerOutput {
        ConsumerOutput::Advisory(Advisory::ConsumerPaused {
            stream: self.stream.clone(),
            consumer: self.config.name.clone(),
            paused,
            until: self.config.pause_until,
        })
    }

    /// A message was stored.
    pub fn stored(&mut self, sequence: Sequence, subject: &[u8]) {
        if sequence >= self.next && self.filters.matches(subject) {
            self.undelivered += 1;
        }
    }

    /// A message was removed, by whatever command. If it was pending that is over.
    pub fn removed(&mut self, sequence: Sequence, subject: &[u8]) {
        let was_chosen = self.state.forget(sequence);
        if was_chosen || (sequence >= self.next && self.filters.matches(subject)) {
            self.undelivered = self.undelivered.saturating_sub(1);
        }
    }

    /// Many messages were removed: looks again.
    pub fn purged(&mut self, view: &mut StreamView<'_>) {
        let before_first = Sequence(view.first.0.saturating_sub(1));
        self.forget_gone(view);
        if self.state.skip(before_first) {
            self.unlogged.skipped(before_first);
        }
        self.look_again(view);
    }

    fn forget_gone(&mut self, view: &StreamView<'_>) {
        let gone: Vec<_> = {
            let pending = self.state.pending.iter().map(|(sequence, _)| sequence);
            let chosen = self.state.chosen.iter().map(Sequence);
            let exhausted = self.state.exhausted.iter().map(Sequence);
            pending
                .chain(chosen)
                .chain(exhausted)
                .filter(|sequence| start::is_gone(view, *sequence))
                .collect()
        };
        for sequence in gone {
            self.state.forget(sequence);
        }
    }

    fn look_again(&mut self, view: &mut StreamView<'_>) {
        self.next = self.next.max(self.state.next());
        self.recount(view);
    }

    fn recount(&mut self, view: &mut StreamView<'_>) {
        match self.count(view) {
            Ok(count) => {
                self.undelivered = count;
                self.uncounted = false;
            }
            Err(_damage) => self.uncounted = true,
        }
    }

    fn count(&self, view: &mut StreamView<'_>) -> Result<u64, Damage> {
        Ok(self.state.chosen.len() + start::count(&self.filters, self.next, view)?)
    }

    /// A pull request came; answers go to `reply`.
    pub fn pull(
        &mut self,
        now: Timestamp,
        reply: Bytes,
        request: PullRequest,
        out: &mut Vec<ConsumerOutput>,
    ) {
        if let Some(refusal) = self.refusal(now, &request, out) {
            if let Some(why) = refusal {
                out.push(status(reply, why));
            }
            return;
        }
        self.waiting.push(now, reply, &request);
    }

    /// `Some(None)` is a refusal without an answer.
    fn refusal(
        &mut self,
        now: Timestamp,
        request: &PullRequest,
        out: &mut Vec<ConsumerOutput>,
    ) -> Option<Option<DeliveryStatus>> {
        if self.push.is_some() {
            return Some(Some(DeliveryStatus::ConsumerIsPushBased));
        }
        let limits = self.config.pull.clone();
        let expires = request.expires_nanos.filter(|nanos| *nanos > 0);
        let heartbeat = request.idle_heartbeat_nanos.unwrap_or(0);
        if heartbeat > 0 && heartbeat.saturating_mul(2) > expires.unwrap_or(0) {
            return Some(Some(DeliveryStatus::BadRequest("heartbeat value too large".to_owned())));
        }
        if let Some(max) = limits.max_request_batch.filter(|max| request.batch > *max) {
            return Some(Some(DeliveryStatus::MaxRequestBatchExceeded { max }));
        }
        if let Some(max_nanos) = limits.max_request_expires_nanos
            && expires.is_some_and(|nanos| nanos > max_nanos)
        {
            return Some(Some(DeliveryStatus::MaxRequestExpiresExceeded { max_nanos }));
        }
        if let Some(max) = limits.max_request_max_bytes
            && request.max_bytes.is_some_and(|bytes| bytes > u64::from(max))
        {
            return Some(Some(DeliveryStatus::MaxRequestMaxBytesExceeded { max }));
        }
        self.touch(now);
        let room = limits.max_waiting.map_or(usize::MAX, |max| max as usize);
        if self.waiting.len() >= room {
            self.waiting.sweep(now, self.position(), self.blocked, &|_| true, out);
        }
        if request.no_wait {
            if self.waiting.next_deadline().is_some_and(|due| due <= now) {
                self.waiting.sweep(now, self.position(), self.blocked, &|_| true, out);
            }
            let available = self.undelivered + self.state.pending.queued() as u64;
            if available == 0 && expires.is_none() && !self.uncounted {
                return Some(Some(DeliveryStatus::NoMessages));
            }
            if available > 0 && available < self.waiting.messages() {
                return Some(Some(DeliveryStatus::RequestsPending));
            }
        }
        if self.waiting.len() >= room {
            // A client with heartbeats will miss them and ask again; an answer would make it ask at once.
            return Some((heartbeat == 0).then_some(DeliveryStatus::MaxWaitingExceeded));
        }
        None
    }

    /// Deliveries made, and the last message delivered.
    pub(super) fn position(&self) -> (u64, Sequence) {
        (self.state.consumer_sequence, self.state.delivered)
    }

    /// Whether there are deliveries or acks that no record tells of yet.
    pub fn has_unlogged(&self) -> bool {
        !self.unlogged.is_empty()
    }

    /// Emits the records of what happened since the last flush.
    pub fn flush(&mut self, now: Timestamp, out: &mut Vec<ConsumerOutput>) {
        let first = out.len();
        self.unlogged.take(now, self.state.consumer_sequence, out);
        // What users are told of the last activity is what a replay would tell them.
        for output in &out[first..] {
            if let ConsumerOutput::Record(ConsumerRecord::Progress { at, .. }) = output {
                self.state.delivered_at = *at;
            } else if let ConsumerOutput::Record(ConsumerRecord::Acked { at, .. }) = output {
                self.state.acked_at = *at;
            }
        }
    }

    /// Folds a logged record in (replay).
    pub fn apply(&mut self, record: &ConsumerRecord) {
        if let ConsumerRecord::Updated { config } = record {
            self.config = (**config).clone();
            self.reconfigured();
        }
        self.state.apply(&self.config, record);
        self.next = self.next.max(self.state.next());
    }

    /// The state that the records so far make. Call [`Consumer::flush`] before it.
    pub fn snapshot(&self) -> ConsumerSnapshot {
        self.state.snapshot(self.id, self.config.clone(), self.created)
    }

    /// What of the state does not fit one record: to be stored right after the snapshot and applied
    /// after [`Consumer::restore`]. Mostly none.
    pub fn snapshot_rest(&self) -> Vec<ConsumerRecord> {
        self.state.snapshot_rest()
    }

    /// The figures; drops pull requests that have ended.
    pub fn info(
        &mut self,
        now: Timestamp,
        has_interest: &dyn Fn(&[u8]) -> bool,
        out: &mut Vec<ConsumerOutput>,
    ) -> ConsumerInfo {
        if !self.waiting.is_empty() {
            self.waiting.sweep(now, self.position(), self.blocked, has_interest, out);
        }
        let (floor_consumer, floor_stream) = self.state.floor();
        let redelivered = if self.config.max_deliver == Some(1) {
            0
        } else {
            self.state.pending.redelivered() as u64 + self.state.exhausted.len()
        };
        ConsumerInfo {
            stream: self.stream.clone(),
            config: self.config.clone(),
            created: self.created,
            delivered: ConsumerPosition {
                consumer: self.state.consumer_sequence,
                stream: self.state.delivered,
                last_active: self.state.delivered_at,
            },
            ack_floor: ConsumerPosition {
                consumer: floor_consumer,
                stream: floor_stream,
                last_active: self.state.acked_at,
            },
            ack_pending: self.state.pending.len() as u64,
            redelivered,
            waiting: self.waiting.len() as u64,
            pending: self.undelivered,
            push_bound: self.push.as_ref().is_some_and(|push| push.is_active),
            paused_for_nanos: self.pause_ends.filter(|ends| *ends > now).map(|ends| ends.0 - now.0),
        }
    }

    /// Retention by interest: whether this message is still needed here.
    pub fn wants(&self, sequence: Sequence, subject: &[u8]) -> bool {
        if !self.filters.matches(subject) {
            return false;
        }
        // Acked by nobody and given up: it stays until somebody acks or removes it.
        sequence >= self.next
            || self.state.chosen.contains(sequence.0)
            || self.state.pending.contains(sequence)
            || self.state.exhausted.contains(sequence.0)
    }

    /// The consumer is going away: tells those who wait why.
    pub fn close(&mut self, why: &DeliveryStatus, out: &mut Vec<ConsumerOutput>) {
        self.waiting.close(why, out);
    }

    pub(super) fn tracks_acks(&self) -> bool {
        self.config.ack_policy != AckPolicy::None
    }
}

/// "30%" and "30" are 30; what is no number was refused before.
fn sample_share(config: &ConsumerConfig) -> u32 {
    config.sample_frequency.trim_end_matches('%').parse().unwrap_or(0)
}
