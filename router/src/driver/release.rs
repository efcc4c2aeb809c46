//! What is held until it may be seen, and how it is let out: routed through interest, spelled by the wire.

use std::sync::Arc;

use beamlog_log::{Sequence, StreamId, Timestamp};
use bytes::Bytes;

use crate::api::error::{ApiError, PublishRefusal};
use crate::api::request::{Answer, PublishOutcome, Published};
use crate::consumer::{ConsumerId, Delivery};
use crate::driver::Driver;
use crate::driver::command::{Command, PublishReply, StreamPublish, Then};
use crate::engine::{Input, Output};
use crate::interest::Envelope;
use crate::stream::ConsumerNames;
use crate::wire::{Advisory, DeliveryRef, DeliveryStatus};

/// One thing that waits for the commit.
pub(super) enum Held {
    PublishAck { reply: Bytes, stream: StreamId, result: Result<Published, PublishRefusal> },
    Outcome { ticket: oneshot::Sender<PublishOutcome>, outcome: PublishOutcome },
    Answer { then: Then, answer: Answer },
    Deliver { stream: StreamId, consumer: ConsumerId, names: Arc<ConsumerNames>, delivery: Box<Delivery> },
    Status { names: Arc<ConsumerNames>, to: Bytes, token: Option<u64>, status: DeliveryStatus },
    AckReply { to: Bytes },
    Advisory(Advisory),
    Capture { filter: Bytes, stream: StreamId },
    Release { filter: Bytes, stream: StreamId },
    Watch { subject: Bytes, group: Bytes },
    Unwatch { subject: Bytes, group: Bytes },
    Republish { subject: Bytes, headers: Bytes, payload: Bytes },
}

/// A delivery that nobody took.
struct Refused {
    stream: StreamId,
    consumer: ConsumerId,
    to: Bytes,
    sequence: Sequence,
}

impl Driver {
    pub(super) fn hold_outcome(
        &mut self,
        reply: PublishReply,
        stream: StreamId,
        result: Result<Published, PublishRefusal>,
        acked: bool,
    ) {
        if let Err(PublishRefusal::Unreadable(damage)) = &result {
            self.note_damage(damage);
        }
        match reply {
            PublishReply::Ticket(ticket) => {
                let name = self.engine.stream_name(stream).unwrap_or_default().to_owned();
                self.held.push(Held::Outcome { ticket, outcome: PublishOutcome { stream: name, result } });
            }
            PublishReply::Wire(reply) => {
                if acked && !reply.is_empty() {
                    self.held.push(Held::PublishAck { reply, stream, result });
                }
            }
        }
    }

    pub(super) fn hold(&mut self, output: Output) {
        let held = match output {
            Output::Published { .. } => {
                // A marker that the engine stored on its own account has no publisher.
                return;
            }
            Output::Answer { token, answer } => {
                let then = self.asked.remove(&token).expect("an answer belongs to a request");
                if let Err(ApiError::Unreadable(damage)) = &answer {
                    self.note_damage(damage);
                }
                Held::Answer { then, answer }
            }
            Output::Deliver { stream, consumer, names, delivery } => {
                Held::Deliver { stream, consumer, names, delivery }
            }
            Output::Status { names, to, token, status } => Held::Status { names, to, token, status },
            Output::AckReply { to } => Held::AckReply { to },
            Output::Advisory(advisory) => Held::Advisory(advisory),
            Output::Capture { filter, stream } => Held::Capture { filter, stream },
            Output::Release { filter, stream } => Held::Release { filter, stream },
            Output::Watch { subject, group } => Held::Watch { subject, group },
            Output::Unwatch { subject, group } => Held::Unwatch { subject, group },
            Output::Republish { subject, headers, payload } => Held::Republish { subject, headers, payload },
            Output::Blocked { names, at, damage } => {
                self.note_damage(&damage);
                let ConsumerNames { stream, consumer } = &*names;
                tracing::error!(stream, consumer, sequence = at.0, err = %damage, "a consumer stands before damage");
                return;
            }
        };
        self.held.push(held);
    }

    /// Lets out what is held; everything it shows is durable.
    pub(super) fn release(&mut self) {
        let now = self.clock.now();
        let mut refused = Vec::new();
        let mut held = std::mem::take(&mut self.held);
        if let Some(replica) = self.replica.as_deref_mut() {
            held.iter().for_each(|one| replica.announce(one));
        }
        for one in held.drain(..) {
            self.let_out(now, one, &mut refused);
        }
        self.held = held;
        self.interest.flush_soon(&mut self.routes);
        // Of several, the last first: the consumer takes them back in the order it gave them.
        for Refused { stream, consumer, to, sequence } in refused.into_iter().rev() {
            self.input(Input::Undeliverable { stream, consumer, to, sequence });
        }
    }

    /// Lets out what was held apart and has no deliveries, whatever else is held.
    pub(super) fn release_these(&mut self, held: Vec<Held>) {
        let now = self.clock.now();
        let mut refused = Vec::new();
        for one in held {
            self.let_out(now, one, &mut refused);
        }
        assert!(refused.is_empty(), "deliveries are not held apart");
        self.routes.flush();
    }

    fn let_out(&mut self, now: Timestamp, held: Held, refused: &mut Vec<Refused>) {
        match held {
            Held::PublishAck { reply, stream, result } => self.ack_publish(&reply, stream, result),
            // Who dropped its ticket does not want the outcome.
            Held::Outcome { ticket, outcome } => drop(ticket.send(outcome)),
            Held::Answer { then, answer } => then(answer),
            Held::Deliver { stream, consumer, names, delivery } => {
                if !self.deliver(&names, &delivery) {
                    let Delivery { to, message, .. } = *delivery;
                    refused.push(Refused { stream, consumer, to, sequence: message.sequence });
                }
            }
            Held::Status { names, to, token, status } => self.tell_status(&names, &to, token, &status),
            Held::AckReply { to } => {
                let envelope = Envelope { subject: &to, reply: b"", headers: b"", payload: b"", origin: 0 };
                self.interest.route(&mut self.routes, &to, &envelope);
            }
            Held::Advisory(advisory) => {
                if let Some((subject, body)) = self.wire.advisory(&advisory, now) {
                    self.send_and_capture(&subject.into(), &Bytes::new(), &body.into());
                }
            }
            Held::Republish { subject, headers, payload } => {
                self.send_and_capture(&subject, &headers, &payload)
            }
            Held::Capture { filter, stream } => {
                self.interest.capture(&filter, stream).expect("the engine checked the filter");
            }
            Held::Release { filter, stream } => self.interest.release(&filter, stream),
            Held::Watch { subject, group } => {
                let present = self.interest.watch(self.watcher, &subject, &group);
                self.shared.queue.interest_changed(&subject, &group, present);
            }
            Held::Unwatch { subject, group } => self.interest.unwatch(self.watcher, &subject, &group),
        }
    }

    pub(super) fn ack_publish(
        &mut self,
        reply: &Bytes,
        stream: StreamId,
        result: Result<Published, PublishRefusal>,
    ) {
        // The name is copied only when it changes: batches mostly go to one stream.
        let name = self.engine.stream_name(stream).unwrap_or_default();
        if self.outcome.stream != name {
            name.clone_into(&mut self.outcome.stream);
        }
        self.outcome.result = result;
        self.body.clear();
        self.wire.publish_ack(&self.outcome, &mut self.body);
        let envelope = Envelope { subject: reply, reply: b"", headers: b"", payload: &self.body, origin: 0 };
        self.interest.route(&mut self.routes, reply, &envelope);
    }

    /// Returns whether anybody took it.
    fn deliver(&mut self, names: &ConsumerNames, delivery: &Delivery) -> bool {
        let Delivery { to, message, delivery_count, consumer_sequence, pending } = delivery;
        self.subject.clear();
        self.wire.ack_subject(
            &DeliveryRef {
                stream: &names.stream,
                consumer: &names.consumer,
                delivery_count: *delivery_count,
                stream_sequence: message.sequence,
                consumer_sequence: *consumer_sequence,
                timestamp: message.timestamp,
                pending: *pending,
            },
            &mut self.subject,
        );
        let envelope = Envelope {
            subject: &message.subject,
            reply: &self.subject,
            headers: &message.headers,
            payload: &message.payload,
            origin: 0,
        };
        let routed = self.interest.route(&mut self.routes, to, &envelope);
        if let Some(stream) = routed.capture {
            self.store_again(stream, to, &message.headers, &message.payload);
        }
        routed.receivers > 0 || routed.capture.is_some()
    }

    pub(super) fn tell_status(
        &mut self,
        names: &ConsumerNames,
        to: &Bytes,
        token: Option<u64>,
        status: &DeliveryStatus,
    ) {
        self.subject.clear();
        let mut spelled = None;
        if let Some(token) = token {
            self.wire.flow_control_subject(&names.stream, &names.consumer, token, &mut self.subject);
            if let DeliveryStatus::IdleHeartbeat { last_consumer, last_stream, stalled: _ } = status {
                spelled = Some(DeliveryStatus::IdleHeartbeat {
                    last_consumer: *last_consumer,
                    last_stream: *last_stream,
                    stalled: Some(std::mem::take(&mut self.subject)),
                });
            }
        }
        self.body.clear();
        self.wire.status(spelled.as_ref().unwrap_or(status), &mut self.body);
        let envelope =
            Envelope { subject: to, reply: &self.subject, headers: &self.body, payload: b"", origin: 0 };
        self.interest.route(&mut self.routes, to, &envelope);
    }

    fn send_and_capture(&mut self, subject: &Bytes, headers: &Bytes, payload: &Bytes) {
        let envelope = Envelope { subject, reply: b"", headers, payload, origin: 0 };
        let routed = self.interest.route(&mut self.routes, subject, &envelope);
        if let Some(stream) = routed.capture {
            self.store_again(stream, subject, headers, payload);
        }
    }

    /// A pull that another node should have got.
    pub(super) fn refuse_pull(&mut self, stream: String, consumer: String, to: &Bytes) {
        let names = ConsumerNames { stream, consumer };
        self.tell_status(&names, to, None, &DeliveryStatus::LeadershipChange);
    }

    /// What the driver sends may be captured by a stream too: it is published with the next turn.
    fn store_again(&mut self, stream: StreamId, subject: &Bytes, headers: &Bytes, payload: &Bytes) {
        let publish = StreamPublish {
            stream,
            subject: subject.clone(),
            reply: Bytes::new(),
            headers: headers.clone(),
            payload: payload.clone(),
        };
        let reply = PublishReply::Wire(Bytes::new());
        let command = Command::Publish { publish, reply };
        match self.shared.other_of(stream) {
            None => self.commands.push_back(command),
            Some(other) => {
                if other.queue.push(command).is_err() {
                    let subject = String::from_utf8_lossy(subject);
                    tracing::warn!(%subject, "the stream that captures this subject has no room: it misses a message");
                }
            }
        }
    }
}
