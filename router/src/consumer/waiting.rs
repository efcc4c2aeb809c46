//! The pull requests that wait for messages. Bounded by `max_waiting`; each message goes to the request
//! at the front, which then moves to the back, so that clients share.

use std::collections::VecDeque;

use beamlog_log::{Sequence, Timestamp};
use bytes::Bytes;

use crate::api::request::PullRequest;
use crate::consumer::ConsumerOutput;
use crate::wire::DeliveryStatus;

#[derive(Clone, Debug)]
struct Waiter {
    reply: Bytes,
    messages: u32,
    /// `None`: any number of bytes.
    bytes: Option<u64>,
    no_wait: bool,
    has_received: bool,
    expires: Option<Timestamp>,
    heartbeat_nanos: u64,
    next_heartbeat: Option<Timestamp>,
    /// The round of deliveries in which somebody was seen to listen.
    seen_in_round: u64,
}

impl Waiter {
    /// Ends when there is nothing more to deliver now.
    fn is_one_shot(&self) -> bool {
        self.no_wait && (self.expires.is_none() || self.has_received)
    }

    fn next_deadline(&self) -> Option<Timestamp> {
        earlier(self.expires, self.next_heartbeat)
    }

    fn timed_out(&self) -> DeliveryStatus {
        DeliveryStatus::RequestTimeout { messages: self.messages, bytes: self.bytes.unwrap_or(0) }
    }
}

pub(super) fn earlier(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (Some(only), None) | (None, Some(only)) => Some(only),
        (None, None) => None,
    }
}

/// Who takes a message.
#[derive(Debug)]
pub(super) struct Taker {
    pub(super) to: Bytes,
    /// Said after the message: the request has all its messages, and bytes to spare.
    pub(super) completed: Option<DeliveryStatus>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Waiting {
    queue: VecDeque<Waiter>,
    /// At or before the first deadline of a request.
    deadline: Option<Timestamp>,
    one_shots: usize,
    messages: u64,
}

pub(super) fn status(to: Bytes, status: DeliveryStatus) -> ConsumerOutput {
    ConsumerOutput::Status { to, token: None, status }
}

impl Waiting {
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Messages asked for, all requests together.
    pub(super) fn messages(&self) -> u64 {
        self.messages
    }

    /// Whether somebody is to be told that there is nothing more.
    pub(super) fn has_one_shots(&self) -> bool {
        self.one_shots > 0
    }

    pub(super) fn next_deadline(&self) -> Option<Timestamp> {
        self.deadline
    }

    pub(super) fn push(&mut self, now: Timestamp, reply: Bytes, request: &PullRequest) {
        let after = |nanos: u64| Timestamp(now.0.saturating_add(nanos));
        let heartbeat_nanos = request.idle_heartbeat_nanos.unwrap_or(0);
        let waiter = Waiter {
            reply,
            messages: request.batch.max(1),
            bytes: request.max_bytes.filter(|bytes| *bytes > 0),
            no_wait: request.no_wait,
            has_received: false,
            expires: request.expires_nanos.filter(|nanos| *nanos > 0).map(after),
            heartbeat_nanos,
            next_heartbeat: (heartbeat_nanos > 0).then(|| after(heartbeat_nanos)),
            seen_in_round: 0,
        };
        self.deadline = earlier(self.deadline, waiter.next_deadline());
        self.one_shots += usize::from(waiter.is_one_shot());
        self.messages += u64::from(waiter.messages);
        self.queue.push_back(waiter);
    }

    fn forget(&mut self, waiter: &Waiter) {
        self.one_shots -= usize::from(waiter.is_one_shot());
        self.messages -= u64::from(waiter.messages);
    }

    fn pop(&mut self) -> Option<Waiter> {
        let waiter = self.queue.pop_front()?;
        self.forget(&waiter);
        Some(waiter)
    }

    /// Gives a message of `bytes` to a request; the requests that cannot take it and have to end are told.
    pub(super) fn take(
        &mut self,
        now: Timestamp,
        bytes: u64,
        round: u64,
        has_interest: &dyn Fn(&[u8]) -> bool,
        out: &mut Vec<ConsumerOutput>,
    ) -> Option<Taker> {
        loop {
            let front = self.queue.front_mut()?;
            if front.expires.is_some_and(|expires| expires <= now) {
                let waiter = self.pop()?;
                out.push(status(waiter.reply.clone(), waiter.timed_out()));
                continue;
            }
            if front.bytes.is_some_and(|room| bytes > room) {
                let waiter = self.pop()?;
                out.push(status(
                    waiter.reply,
                    DeliveryStatus::MessageSizeExceedsMaxBytes {
                        messages: waiter.messages,
                        bytes: waiter.bytes.unwrap_or(0),
                    },
                ));
                continue;
            }
            if front.seen_in_round != round {
                if !has_interest(&front.reply) {
                    self.pop()?;
                    continue;
                }
                front.seen_in_round = round;
            }
            return self.deliver(now, bytes);
        }
    }

    fn deliver(&mut self, now: Timestamp, bytes: u64) -> Option<Taker> {
        let alone = self.queue.len() == 1;
        let front = self.queue.front_mut()?;
        let was_one_shot = front.is_one_shot();
        self.messages -= 1;
        front.messages -= 1;
        front.has_received = true;
        if let Some(room) = &mut front.bytes {
            *room -= bytes;
            if *room == 0 {
                // Exactly filled: done, whatever it still asked for.
                self.messages -= u64::from(front.messages);
                front.messages = 0;
            }
        }
        self.one_shots += usize::from(front.is_one_shot());
        self.one_shots -= usize::from(was_one_shot);
        if front.messages > 0 {
            if front.heartbeat_nanos > 0 {
                front.next_heartbeat = Some(Timestamp(now.0.saturating_add(front.heartbeat_nanos)));
            }
            let to = front.reply.clone();
            if !alone {
                self.queue.rotate_left(1);
            }
            return Some(Taker { to, completed: None });
        }
        let waiter = self.pop()?;
        let completed = waiter
            .bytes
            .filter(|room| *room > 0)
            .map(|bytes| DeliveryStatus::BatchCompleted { messages: 0, bytes });
        Some(Taker { to: waiter.reply, completed })
    }

    /// Ends the requests whose time is over or whose client is gone, and sends heartbeats.
    /// `unreadable`: what they wait for is there and cannot be read, which is not a timeout.
    pub(super) fn sweep(
        &mut self,
        now: Timestamp,
        position: (u64, Sequence),
        unreadable: bool,
        has_interest: &dyn Fn(&[u8]) -> bool,
        out: &mut Vec<ConsumerOutput>,
    ) {
        self.deadline = None;
        for _ in 0..self.queue.len() {
            let Some(mut waiter) = self.queue.pop_front() else { return };
            if waiter.expires.is_some_and(|expires| expires <= now) {
                self.forget(&waiter);
                let why = if unreadable { DeliveryStatus::Unreadable } else { waiter.timed_out() };
                out.push(status(waiter.reply, why));
                continue;
            }
            if !has_interest(&waiter.reply) {
                self.forget(&waiter);
                continue;
            }
            if waiter.next_heartbeat.is_some_and(|due| due <= now) {
                waiter.next_heartbeat = Some(Timestamp(now.0.saturating_add(waiter.heartbeat_nanos)));
                let (last_consumer, last_stream) = position;
                let beat = DeliveryStatus::IdleHeartbeat { last_consumer, last_stream, stalled: None };
                out.push(status(waiter.reply.clone(), beat));
            }
            self.deadline = earlier(self.deadline, waiter.next_deadline());
            self.queue.push_back(waiter);
        }
    }

    /// There is nothing more to deliver now: tells those who do not wait.
    pub(super) fn end_one_shots(&mut self, why: &DeliveryStatus, out: &mut Vec<ConsumerOutput>) {
        if self.one_shots == 0 {
            return;
        }
        for _ in 0..self.queue.len() {
            let Some(waiter) = self.queue.pop_front() else { return };
            if waiter.is_one_shot() {
                self.forget(&waiter);
                out.push(status(waiter.reply, why.clone()));
            } else {
                self.queue.push_back(waiter);
            }
        }
    }

    /// Nobody listens on this reply subject any more.
    pub(super) fn drop_reply(&mut self, reply: &Bytes) {
        for _ in 0..self.queue.len() {
            let Some(waiter) = self.queue.pop_front() else { return };
            if waiter.reply == *reply {
                self.forget(&waiter);
            } else {
                self.queue.push_back(waiter);
            }
        }
    }

    /// Ends all of them.
    pub(super) fn close(&mut self, why: &DeliveryStatus, out: &mut Vec<ConsumerOutput>) {
        while let Some(waiter) = self.pop() {
            out.push(status(waiter.reply, why.clone()));
        }
        self.deadline = None;
    }
}
