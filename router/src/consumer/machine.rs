//! The consumer's methods as its stream calls them.

use beamlog_log::{Sequence, Timestamp};
use bytes::Bytes;

use crate::api::error::ApiError;
use crate::api::request::{AckKind, AckTarget, PullRequest};
use crate::consumer::{
    ConsumerConfig, ConsumerId, ConsumerInfo, ConsumerOutput, ConsumerRecord, ConsumerSnapshot,
};
use crate::stream::{StreamConfig, StreamView};

/// One consumer: pure, owned by its stream.
///
/// Records that nobody waits for gather inside and come out at [`Consumer::flush`], which the stream
/// calls before the frame is written (and within 250 ms of `has_unlogged`).
#[derive(Debug)]
pub struct Consumer {
    id: ConsumerId,
    config: ConsumerConfig,
}

impl Consumer {
    /// Checks a requested configuration and fills in defaults. `others` are the other consumers of
    /// the stream. The name is set by then.
    pub fn validate(
        _config: &mut ConsumerConfig,
        _stream: &StreamConfig,
        _others: &mut dyn Iterator<Item = &ConsumerConfig>,
    ) -> Result<(), ApiError> {
        unimplemented!()
    }

    /// A new consumer at its start position. Log its [`Consumer::snapshot`] as the creation record:
    /// replay calls [`Consumer::restore`] with it, so that the position is decided once.
    pub fn create(
        _id: ConsumerId,
        _stream: &str,
        _config: ConsumerConfig,
        _created: Timestamp,
        _view: &mut StreamView<'_>,
    ) -> Result<Self, ApiError> {
        unimplemented!()
    }

    /// From a snapshot (or creation record). Call [`Consumer::recovered`] when replay is over.
    pub fn restore(_stream: &str, _snapshot: ConsumerSnapshot) -> Result<Self, ApiError> {
        unimplemented!()
    }

    /// Replay is over and the stream is as it was: counts again, drops what is gone.
    pub fn recovered(&mut self, _now: Timestamp, _view: &mut StreamView<'_>) {
        unimplemented!()
    }

    pub fn id(&self) -> ConsumerId {
        self.id
    }

    pub fn config(&self) -> &ConsumerConfig {
        &self.config
    }

    /// Checks a requested change against what may change, and fills in defaults.
    pub fn validate_update(
        &self,
        _config: &mut ConsumerConfig,
        _stream: &StreamConfig,
        _others: &mut dyn Iterator<Item = &ConsumerConfig>,
    ) -> Result<(), ApiError> {
        unimplemented!()
    }

    /// Takes a configuration that [`Consumer::validate_update`] passed; emits the record.
    pub fn update(
        &mut self,
        _now: Timestamp,
        _config: ConsumerConfig,
        _view: &mut StreamView<'_>,
        _out: &mut Vec<ConsumerOutput>,
    ) {
        unimplemented!()
    }

    /// Whether to emit [`ConsumerOutput::Acked`]; it does until told otherwise. A stream that keeps
    /// messages by its limits alone has no use for them.
    pub fn signal_acks(&mut self, _wanted: bool) {
        unimplemented!()
    }

    /// A message was stored.
    pub fn stored(&mut self, _sequence: Sequence, _subject: &[u8]) {
        unimplemented!()
    }

    /// A message was removed, by whatever command.
    pub fn removed(&mut self, _sequence: Sequence, _subject: &[u8]) {
        unimplemented!()
    }

    /// Many messages were removed: looks again.
    pub fn purged(&mut self, _view: &mut StreamView<'_>) {
        unimplemented!()
    }

    /// A pull request came; answers go to `reply`.
    pub fn pull(
        &mut self,
        _now: Timestamp,
        _reply: Bytes,
        _request: PullRequest,
        _out: &mut Vec<ConsumerOutput>,
    ) {
        unimplemented!()
    }

    /// A client said something of a delivery.
    pub fn ack(
        &mut self,
        _now: Timestamp,
        _target: &AckTarget,
        _kind: AckKind,
        _reply: Option<Bytes>,
        _out: &mut Vec<ConsumerOutput>,
    ) {
        unimplemented!()
    }

    /// Subscribers of the deliver subject came or went (push).
    pub fn interest_changed(&mut self, _now: Timestamp, _present: bool, _out: &mut Vec<ConsumerOutput>) {
        unimplemented!()
    }

    /// A client answered the flow-control message with this token (push).
    pub fn flow_control_reply(&mut self, _now: Timestamp, _token: u64, _out: &mut Vec<ConsumerOutput>) {
        unimplemented!()
    }

    /// A delivery to `to` found no receiver: it is taken back. Report failed deliveries of a batch
    /// last first.
    pub fn undeliverable(
        &mut self,
        _now: Timestamp,
        _to: &Bytes,
        _sequence: Sequence,
        _out: &mut Vec<ConsumerOutput>,
    ) {
        unimplemented!()
    }

    /// Whether `deliver` has something to do now, as far as can be seen without reading.
    pub fn is_ready(&self, _now: Timestamp, _last: Sequence) -> bool {
        unimplemented!()
    }

    /// Delivers while it may, at most `budget` messages. Returns whether the budget ended it.
    pub fn deliver(
        &mut self,
        _now: Timestamp,
        _view: &mut StreamView<'_>,
        _budget: usize,
        _out: &mut Vec<ConsumerOutput>,
    ) -> bool {
        unimplemented!()
    }

    /// When `timeout` wants to be called.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        unimplemented!()
    }

    /// Time has passed: redeliveries, expired requests, heartbeats, inactivity. Call `deliver` after.
    pub fn timeout(&mut self, _now: Timestamp, _view: &mut StreamView<'_>, _out: &mut Vec<ConsumerOutput>) {
        unimplemented!()
    }

    /// Whether there are deliveries or acks that no record tells of yet.
    pub fn has_unlogged(&self) -> bool {
        unimplemented!()
    }

    /// Emits the records of what happened since the last flush.
    pub fn flush(&mut self, _now: Timestamp, _out: &mut Vec<ConsumerOutput>) {
        unimplemented!()
    }

    /// Folds a logged record in (replay).
    pub fn apply(&mut self, _record: &ConsumerRecord) {
        unimplemented!()
    }

    /// The state that the records so far make. Call [`Consumer::flush`] before it.
    pub fn snapshot(&self) -> ConsumerSnapshot {
        unimplemented!()
    }

    /// What of the state does not fit one frame: records to store right after the snapshot and to
    /// apply after [`Consumer::restore`]. Mostly none.
    pub fn snapshot_rest(&self) -> Vec<ConsumerRecord> {
        unimplemented!()
    }

    /// The figures; drops pull requests that have ended.
    pub fn info(&mut self, _now: Timestamp, _has_interest: &dyn Fn(&[u8]) -> bool) -> ConsumerInfo {
        unimplemented!()
    }

    /// Retention by interest: whether this message is still needed here.
    pub fn wants(&self, _sequence: Sequence, _subject: &[u8]) -> bool {
        unimplemented!()
    }

    /// The consumer is going away (deleted, or the server stops): tells those who wait.
    pub fn close(&mut self, _shutdown: bool, _out: &mut Vec<ConsumerOutput>) {
        unimplemented!()
    }
}
