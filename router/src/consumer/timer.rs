//! What happens because time passed, or because somebody came or went.

use beamlog_log::{Sequence, Timestamp};
use bytes::Bytes;

use crate::consumer::waiting::earlier;
use crate::consumer::{Consumer, ConsumerOutput};
use crate::stream::StreamView;
use crate::wire::DeliveryStatus;

impl Consumer {
    /// When `timeout` wants to be called.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        [
            self.state.pending.next_due(),
            self.waiting.next_deadline(),
            self.push.as_ref().and_then(|push| push.next_heartbeat()),
            self.held_until,
            self.pause_ends,
            self.inactive_at,
        ]
        .into_iter()
        .fold(None, earlier)
    }

    /// Time has passed: redeliveries, expired requests, heartbeats, inactivity. Call `deliver` after.
    pub fn timeout(&mut self, now: Timestamp, view: &mut StreamView<'_>, out: &mut Vec<ConsumerOutput>) {
        if self.held_until.is_some_and(|until| until <= now) {
            self.held_until = None;
        }
        if self.pause_ends.is_some_and(|ends| ends <= now) {
            self.pause_ends = None;
            out.push(self.pause_advisory(false));
        }
        self.redeliver_overdue(now, out);
        if self.waiting.next_deadline().is_some_and(|due| due <= now) {
            self.waiting.sweep(now, self.position(), self.blocked, view.has_interest, out);
        }
        self.heartbeat(now, out);
        if self.inactive_at.is_some_and(|at| at <= now) {
            self.check_activity(now, view, out);
        }
    }

    fn redeliver_overdue(&mut self, now: Timestamp, out: &mut Vec<ConsumerOutput>) {
        if self.state.pending.next_due().is_none_or(|due| due > now) {
            return;
        }
        let mut exhausted = Vec::new();
        for sequence in self.state.pending.overdue(now) {
            self.again(sequence, &mut exhausted, out);
        }
        self.exhaust(now, exhausted, out);
    }

    fn heartbeat(&mut self, now: Timestamp, out: &mut Vec<ConsumerOutput>) {
        let (last_consumer, last_stream) = self.position();
        let Some(push) = &mut self.push else { return };
        if push.next_heartbeat().is_none_or(|due| due > now) {
            return;
        }
        push.beat(now);
        out.push(ConsumerOutput::Status {
            to: push.to.clone(),
            token: push.asked(),
            status: DeliveryStatus::IdleHeartbeat { last_consumer, last_stream, stalled: None },
        });
    }

    /// Somebody used the consumer: what makes it expire begins anew.
    pub(super) fn touch(&mut self, now: Timestamp) {
        let after = |nanos: u64| Timestamp(now.0.saturating_add(nanos));
        self.inactive_at = self.config.inactive_threshold_nanos.map(after);
    }

    fn check_activity(&mut self, now: Timestamp, view: &StreamView<'_>, out: &mut Vec<ConsumerOutput>) {
        let Some(threshold) = self.config.inactive_threshold_nanos else { return };
        let is_active = match &self.push {
            Some(push) => push.is_active,
            None => {
                if !self.waiting.is_empty() {
                    self.waiting.sweep(now, self.position(), self.blocked, view.has_interest, out);
                }
                !self.waiting.is_empty()
            }
        };
        self.touch(now);
        if is_active {
            return;
        }
        // A client may be at work on what it was given, without a word until its ack wait ends.
        if self.push.is_none()
            && let Some(due) = self.state.pending.last_due()
            && due > now
        {
            self.inactive_at = Some(Timestamp(due.0.saturating_add(threshold)));
            return;
        }
        out.push(ConsumerOutput::Expired);
    }

    /// Subscribers of the deliver subject came or went (push).
    pub fn interest_changed(&mut self, now: Timestamp, present: bool, _out: &mut Vec<ConsumerOutput>) {
        let Some(push) = &mut self.push else { return };
        if push.is_active != present {
            push.is_active = present;
            push.beat(now);
            self.touch(now);
        }
    }

    /// A client answered the flow-control message with this token (push).
    pub fn flow_control_reply(&mut self, now: Timestamp, token: u64, _out: &mut Vec<ConsumerOutput>) {
        if self.push.as_mut().is_some_and(|push| push.answered(token)) {
            self.touch(now);
        }
    }

    /// A delivery to `to` found no receiver. It is made again as soon as somebody takes it; without
    /// acks there is nothing to make it again by.
    pub fn undeliverable(
        &mut self,
        _now: Timestamp,
        to: &Bytes,
        sequence: Sequence,
        _out: &mut Vec<ConsumerOutput>,
    ) {
        self.state.pending.take_back(sequence);
        match &mut self.push {
            Some(push) => push.is_active = false,
            None => self.waiting.drop_reply(to),
        }
    }
}
