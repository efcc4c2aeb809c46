//! Letting out what is durable: messages, questions to extensions, jobs to workers, usage into its stream.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use beamlog_router::api::request::{PublishOutcome, Published};
use beamlog_router::headers::Builder;
use beamlog_router::interest::Envelope;
use beamlog_router::{StreamPublish, TicketFuture};
use bytes::Bytes;
use tracing::warn;

use super::journal;
use super::worker::Worker;
use crate::engine::settings::subjects;
use crate::engine::{Effect, Input};

/// Usage on its way into its stream at a time.
const USAGE_MAX: usize = 1_000;

/// A job on its way into the stream from which workers pull it.
pub(super) struct Keeping {
    task: u64,
    subject: Arc<str>,
    headers: Vec<u8>,
    payload: Vec<u8>,
    ticket: TicketFuture<PublishOutcome>,
}

impl Worker {
    pub(super) fn carry_out(&mut self, effects: Vec<Effect>) {
        let now = self.now();
        for effect in effects {
            match effect {
                Effect::Publish { subject, headers, payload } => {
                    self.route(&subject, b"", &headers, &payload);
                }
                Effect::Ask { token, subject, payload } => {
                    let reply = format!("{}{token}", self.answers);
                    if self.route(subject.as_bytes(), reply.as_bytes(), b"", &payload) == 0 {
                        self.engine.handle(now, Input::Unheard { token });
                    }
                }
                Effect::Offer { subject, entry, task, headers, payload } => {
                    self.offer(now, &subject, entry, task, &headers, &payload);
                }
                Effect::Keep { subject, task, headers, payload } => {
                    self.keep(now, task, subject, headers, payload);
                }
                Effect::Watch { subject } => {
                    let inbox = Arc::clone(&self.inbox);
                    self.interest
                        .observe(subject.as_bytes(), Arc::new(move |subject| inbox.changed(subject)));
                    self.tell_members(now, &subject);
                    if let Some(leading) = &mut self.leading {
                        leading.tell_soon();
                    }
                }
            }
        }
        self.routes.flush();
    }

    /// To other nodes; how many heard it.
    pub(super) fn say(&mut self, subject: &[u8], payload: &[u8]) -> usize {
        let envelope = Envelope { subject, reply: b"", headers: b"", payload, origin: 0 };
        self.interest.route_as_node(&mut self.routes, subject, &envelope).receivers
    }

    /// Publishes; what a stream captures is stored too. Says how many heard it or keep it.
    pub(super) fn route(&mut self, subject: &[u8], reply: &[u8], headers: &[u8], payload: &[u8]) -> usize {
        let envelope = Envelope { subject, reply, headers, payload, origin: 0 };
        let routed = self.interest.route(&mut self.routes, subject, &envelope);
        let Some(stream) = routed.capture else { return routed.receivers };
        let copy = Bytes::copy_from_slice;
        let mut publish = StreamPublish {
            stream,
            subject: copy(subject),
            reply: copy(reply),
            headers: copy(headers),
            payload: copy(payload),
        };
        while let Err(full) = self.router.offer_publish(publish) {
            publish = full.0;
            if journal::is_over(&self.router) {
                break;
            }
            self.router.when_ready().wait();
        }
        routed.receivers + 1
    }

    pub(super) fn offer(
        &mut self,
        now: u64,
        subject: &str,
        entry: u64,
        task: u64,
        headers: &[u8],
        payload: &[u8],
    ) {
        if let Some(taken) = self.offer_far(subject, entry, task, headers, payload) {
            if !taken {
                self.engine.handle(now, Input::NotTaken { task });
            }
            return;
        }
        let envelope = Envelope { subject: subject.as_bytes(), reply: b"", headers, payload, origin: 0 };
        let taken = self.members.get(&entry).is_some_and(|member| member.give(&envelope));
        if !taken {
            self.members.remove(&entry);
            self.engine.handle(now, Input::NotTaken { task });
        }
    }

    fn keep(&mut self, now: u64, task: u64, subject: Arc<str>, headers: Vec<u8>, payload: Vec<u8>) {
        let stream = self.interest.capture_of(subject.as_bytes());
        let stored = stream.and_then(|stream| {
            let publish = StreamPublish {
                stream,
                subject: Bytes::copy_from_slice(subject.as_bytes()),
                reply: Bytes::new(),
                headers: Bytes::copy_from_slice(&headers),
                payload: Bytes::copy_from_slice(&payload),
            };
            self.router.store(publish).ok()
        });
        match stored {
            Some(ticket) => {
                let ticket = ticket.into_future();
                self.keeping.push_back(Keeping { task, subject, headers, payload, ticket });
            }
            // The stream went, or the router is full.
            None => self.engine.handle(now, Input::Kept { task, stored: false }),
        }
    }

    /// Jobs that are in their streams by now.
    pub(super) fn collect_kept(&mut self) {
        let now = self.now();
        while let Some(first) = self.keeping.front_mut() {
            let Poll::Ready(outcome) =
                Pin::new(&mut first.ticket).poll(&mut Context::from_waker(&self.waker))
            else {
                break;
            };
            let Some(Keeping { task, subject, headers, payload, .. }) = self.keeping.pop_front() else {
                break;
            };
            let stored = match outcome.result {
                Ok(Published::Stored(_)) => {
                    // Those who look on hear it too, once it is there.
                    let subject = subject.as_bytes();
                    let (headers, payload) = (&headers[..], &payload[..]);
                    let envelope = Envelope { subject, reply: b"", headers, payload, origin: 0 };
                    // A worker that subscribed meanwhile would do it a second time.
                    if self.interest.members(subject).is_empty() {
                        self.interest.route(&mut self.routes, subject, &envelope);
                    }
                    true
                }
                Ok(Published::Duplicate(_) | Published::Waiting | Published::Batch { .. }) => true,
                Err(refusal) => {
                    warn!(err = %refusal, subject = &*subject, "a job was not stored for workers that pull; it will be tried again");
                    false
                }
            };
            self.engine.handle(now, Input::Kept { task, stored });
        }
        self.routes.flush();
    }

    /// Puts usage that is due into its stream; nobody waits for it here.
    pub(super) fn store_usage(&mut self) {
        if self.engine.is_unstored() {
            return;
        }
        let room = USAGE_MAX.saturating_sub(self.storing.len());
        let from = self.storing.back().map_or(self.stored_up_to, |(number, ..)| *number);
        for (number, body) in self.engine.usage_between(from, self.usage_below, room) {
            let headers = Builder::new()
                .header("Nats-Msg-Id", format!("usage-{number}-{}", self.tag))
                .header("x-beamlog-usage", number.to_string())
                .finish();
            let Some(stream) = self.interest.capture_of(subjects::USAGE.as_bytes()) else { return };
            let publish = StreamPublish {
                stream,
                subject: subjects::USAGE.into(),
                reply: Bytes::new(),
                headers: headers.into(),
                payload: body.clone().into(),
            };
            match self.router.store(publish) {
                Ok(ticket) => self.storing.push_back((number, body, ticket.into_future())),
                // It stays in the state, and is tried again with the next batch.
                Err(_) => break,
            }
        }
    }

    /// Usage that is in its stream by now.
    pub(super) fn collect_usage(&mut self) {
        let mut up_to = None;
        while let Some((_, _, ticket)) = self.storing.front_mut() {
            let Poll::Ready(outcome) = Pin::new(ticket).poll(&mut Context::from_waker(&self.waker)) else {
                break;
            };
            let Some((number, body, _)) = self.storing.pop_front() else { break };
            match outcome.result {
                Ok(Published::Stored(_)) => {
                    self.route_uncaptured(subjects::USAGE.as_bytes(), &body);
                    up_to = Some(number);
                }
                Ok(Published::Duplicate(_) | Published::Waiting | Published::Batch { .. }) => {
                    up_to = Some(number);
                }
                Err(refusal) => {
                    warn!(err = %refusal, "usage was not stored; it will be tried again");
                    self.storing.clear();
                    break;
                }
            }
        }
        if let Some(up_to) = up_to {
            self.routes.flush();
            self.stored_up_to = up_to;
            let now = self.now();
            self.engine.handle(now, Input::UsageStored { up_to });
        }
    }

    pub(super) fn route_uncaptured(&mut self, subject: &[u8], payload: &[u8]) {
        let envelope = Envelope { subject, reply: b"", headers: b"", payload, origin: 0 };
        self.interest.route(&mut self.routes, subject, &envelope);
    }
}
