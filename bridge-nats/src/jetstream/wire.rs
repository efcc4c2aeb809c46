//! How the router's results are spelled for NATS clients: publish acks, reply subjects, status messages
//! and advisories (contract 1.1, 1.4, 1.6). Called on the driver thread, so the common ones are written
//! byte by byte.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use beamlog_router::Timestamp;
use beamlog_router::api::request::{PublishOutcome, Published};
use beamlog_router::headers::Builder;
use beamlog_router::stream::Abandoned;
use beamlog_router::wire::{Advisory, DeliveryRef, DeliveryStatus, Wire};

use super::answer::write_error;
use super::cluster_view::ClusterView;
use super::errors::ErrorBody;
use super::json::{Object, push_text};
use super::time;

/// The spelling of NATS.
#[derive(Debug)]
pub struct NatsWire {
    /// Begins the ids of advisories: different in each process.
    identity: u64,
    advisories: AtomicU64,
}

/// What happens to a cluster's streams and consumers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ClusterEvent {
    LeaderElected,
    QuorumLost,
}

impl Default for NatsWire {
    fn default() -> Self {
        Self::new()
    }
}

impl NatsWire {
    #[must_use]
    pub fn new() -> Self {
        Self { identity: RandomState::new().hash_one("advisory"), advisories: AtomicU64::new(0) }
    }

    /// What a cluster tells of a stream, or of a consumer of it: subject and body.
    #[must_use]
    pub fn cluster_advisory(
        &self,
        event: ClusterEvent,
        stream: &str,
        consumer: Option<&str>,
        view: &ClusterView,
        now: Timestamp,
    ) -> (String, Vec<u8>) {
        let (word, kind) = match event {
            ClusterEvent::LeaderElected => ("LEADER_ELECTED", "leader_elected"),
            ClusterEvent::QuorumLost => ("QUORUM_LOST", "quorum_lost"),
        };
        let (subject, of) = match consumer {
            None => (format!("$JS.EVENT.ADVISORY.STREAM.{word}.{stream}"), "stream"),
            Some(consumer) => (format!("$JS.EVENT.ADVISORY.CONSUMER.{word}.{stream}.{consumer}"), "consumer"),
        };
        let mut body = String::with_capacity(512);
        Object::write(&mut body, |object| {
            object.text("type", &format!("io.nats.jetstream.advisory.v1.{of}_{kind}"));
            object.text("id", &self.advisory_id());
            object.time("timestamp", now);
            object.text("stream", stream);
            if let Some(consumer) = consumer {
                object.text("consumer", consumer);
            }
            if event == ClusterEvent::LeaderElected {
                object.text("leader", view.leader.as_deref().unwrap_or_default());
            }
            view.write_replicas(object);
        });
        (subject, body.into_bytes())
    }

    /// 22 letters and digits, as nats-server's ids have.
    fn advisory_id(&self) -> String {
        let count = self.advisories.fetch_add(1, Ordering::Relaxed);
        let mut id = String::with_capacity(22);
        push_base62(&mut id, self.identity, 11);
        push_base62(&mut id, count, 11);
        id
    }
}

fn push_base62(out: &mut String, mut value: u64, digits: usize) {
    const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    for _ in 0..digits {
        let digit = usize::try_from(value % 62).unwrap_or(0);
        out.push(char::from(ALPHABET.get(digit).copied().unwrap_or(b'0')));
        value /= 62;
    }
}

/// Appends a decimal number without a detour over a string.
fn push_decimal(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// Appends a JSON string. Names of streams hardly ever need an escape.
fn push_json_text(out: &mut Vec<u8>, text: &str) {
    let plain = |byte: &u8| !matches!(byte, 0..0x20 | b'"' | b'\\' | b'<' | b'>' | b'&');
    if text.as_bytes().iter().all(plain) {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    } else {
        let mut escaped = String::new();
        push_text(&mut escaped, text);
        out.extend_from_slice(escaped.as_bytes());
    }
}

impl Wire for NatsWire {
    fn publish_ack(&self, outcome: &PublishOutcome, out: &mut Vec<u8>) {
        let (sequence, duplicate, batch) = match &outcome.result {
            Ok(Published::Stored(sequence)) => (*sequence, false, None),
            Ok(Published::Duplicate(sequence)) => (*sequence, true, None),
            Ok(Published::Batch { last, id, messages }) => (*last, false, Some((id, *messages))),
            // An empty message: it came, and nothing is promised.
            Ok(Published::Waiting) => return,
            Err(refusal) => {
                let mut text = String::new();
                Object::write(&mut text, |object| {
                    write_error(&ErrorBody::from(refusal), object);
                    object.text("stream", &outcome.stream);
                    object.number("seq", 0);
                });
                out.extend_from_slice(text.as_bytes());
                return;
            }
        };
        out.extend_from_slice(b"{\"stream\":");
        push_json_text(out, &outcome.stream);
        out.extend_from_slice(b",\"seq\":");
        push_decimal(out, sequence.0);
        if let Some((id, messages)) = batch {
            out.extend_from_slice(b",\"batch\":");
            push_json_text(out, &String::from_utf8_lossy(id));
            out.extend_from_slice(b",\"count\":");
            push_decimal(out, messages as u64);
        }
        out.extend_from_slice(if duplicate { b",\"duplicate\": true}" } else { b"}" });
    }

    fn ack_subject(&self, delivery: &DeliveryRef<'_>, out: &mut Vec<u8>) {
        out.extend_from_slice(b"$JS.ACK.");
        out.extend_from_slice(delivery.stream.as_bytes());
        out.push(b'.');
        out.extend_from_slice(delivery.consumer.as_bytes());
        for number in [
            delivery.delivery_count,
            delivery.stream_sequence.0,
            delivery.consumer_sequence,
            delivery.timestamp.0,
            delivery.pending,
        ] {
            out.push(b'.');
            push_decimal(out, number);
        }
    }

    fn flow_control_subject(&self, stream: &str, consumer: &str, token: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(b"$JS.FC.");
        out.extend_from_slice(stream.as_bytes());
        out.push(b'.');
        out.extend_from_slice(consumer.as_bytes());
        out.push(b'.');
        push_decimal(out, token);
    }

    fn status(&self, status: &DeliveryStatus, out: &mut Vec<u8>) {
        let short_of = |text: &str, code: u16, messages: u32, bytes: u64| {
            Builder::status(code, text)
                .header("Nats-Pending-Messages", messages.to_string())
                .header("Nats-Pending-Bytes", bytes.to_string())
        };
        let block = match status {
            DeliveryStatus::IdleHeartbeat { last_consumer, last_stream, stalled } => {
                let block = Builder::status(100, "Idle Heartbeat")
                    .header("Nats-Last-Consumer", last_consumer.to_string())
                    .header("Nats-Last-Stream", last_stream.to_string());
                match stalled {
                    Some(subject) => block.header("Nats-Consumer-Stalled", subject),
                    None => block,
                }
            }
            DeliveryStatus::FlowControl => Builder::status(100, "FlowControl Request"),
            DeliveryStatus::NoMessages => Builder::status(404, "No Messages"),
            DeliveryStatus::RequestTimeout { messages, bytes } => {
                short_of("Request Timeout", 408, *messages, *bytes)
            }
            DeliveryStatus::RequestsPending => Builder::status(408, "Requests Pending"),
            DeliveryStatus::MessageSizeExceedsMaxBytes { messages, bytes } => {
                short_of("Message Size Exceeds MaxBytes", 409, *messages, *bytes)
            }
            DeliveryStatus::BatchCompleted { messages, bytes } => {
                short_of("Batch Completed", 409, *messages, *bytes)
            }
            // As if nobody listened there, which is what nats-server's clients are told.
            DeliveryStatus::NoConsumer { stream, consumer } => Builder::status(503, "")
                .header("Nats-Subject", format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}")),
            DeliveryStatus::NobodyToAck => Builder::status(503, ""),
            DeliveryStatus::ConsumerDeleted => Builder::status(409, "Consumer Deleted"),
            DeliveryStatus::ConsumerIsPushBased => Builder::status(409, "Consumer is push based"),
            DeliveryStatus::ServerShutdown => Builder::status(409, "Server Shutdown"),
            DeliveryStatus::LeadershipChange => Builder::status(409, "Leadership Change"),
            DeliveryStatus::MaxWaitingExceeded => Builder::status(409, "Exceeded MaxWaiting"),
            DeliveryStatus::MaxRequestBatchExceeded { max } => {
                Builder::status(409, &format!("Exceeded MaxRequestBatch of {max}"))
            }
            DeliveryStatus::MaxRequestExpiresExceeded { max_nanos } => {
                let limit = time::duration(*max_nanos);
                Builder::status(409, &format!("Exceeded MaxRequestExpires of {limit}"))
            }
            DeliveryStatus::MaxRequestMaxBytesExceeded { max } => {
                Builder::status(409, &format!("Exceeded MaxRequestMaxBytes of {max}"))
            }
            DeliveryStatus::BadRequest(reason) => Builder::status(400, &format!("Bad Request - {reason}")),
            DeliveryStatus::Unreadable => Builder::status(500, "Message Unreadable"),
        };
        out.extend_from_slice(&block.finish());
    }

    fn advisory(&self, advisory: &Advisory, now: Timestamp) -> Option<(String, Vec<u8>)> {
        let (subject, kind) = match advisory {
            Advisory::StreamCreated { stream } => (format!("STREAM.CREATED.{stream}"), "stream_action"),
            Advisory::StreamUpdated { stream } => (format!("STREAM.UPDATED.{stream}"), "stream_action"),
            Advisory::StreamDeleted { stream } => (format!("STREAM.DELETED.{stream}"), "stream_action"),
            Advisory::BatchAbandoned { stream, .. } => {
                (format!("STREAM.BATCH_ABANDONED.{stream}"), "stream_batch_abandoned")
            }
            Advisory::ConsumerCreated { stream, consumer } => {
                (format!("CONSUMER.CREATED.{stream}.{consumer}"), "consumer_action")
            }
            Advisory::ConsumerDeleted { stream, consumer } => {
                (format!("CONSUMER.DELETED.{stream}.{consumer}"), "consumer_action")
            }
            Advisory::ConsumerPaused { stream, consumer, .. } => {
                (format!("CONSUMER.PAUSE.{stream}.{consumer}"), "consumer_pause")
            }
            Advisory::MaxDeliveries { stream, consumer, .. } => {
                (format!("CONSUMER.MAX_DELIVERIES.{stream}.{consumer}"), "max_deliver")
            }
            Advisory::MessageNaked { stream, consumer, .. } => {
                (format!("CONSUMER.MSG_NAKED.{stream}.{consumer}"), "nak")
            }
            Advisory::MessageTerminated { stream, consumer, .. } => {
                (format!("CONSUMER.MSG_TERMINATED.{stream}.{consumer}"), "terminated")
            }
            Advisory::AckSampled { stream, consumer, .. } => {
                (format!("CONSUMER.ACK.{stream}.{consumer}"), "consumer_ack")
            }
        };
        let (event, family) = match advisory {
            Advisory::AckSampled { .. } => ("METRIC", "metric"),
            Advisory::StreamCreated { .. }
            | Advisory::StreamUpdated { .. }
            | Advisory::StreamDeleted { .. }
            | Advisory::BatchAbandoned { .. }
            | Advisory::ConsumerCreated { .. }
            | Advisory::ConsumerDeleted { .. }
            | Advisory::ConsumerPaused { .. }
            | Advisory::MaxDeliveries { .. }
            | Advisory::MessageNaked { .. }
            | Advisory::MessageTerminated { .. } => ("ADVISORY", "advisory"),
        };
        let mut body = String::with_capacity(256);
        Object::write(&mut body, |object| {
            object.text("type", &format!("io.nats.jetstream.{family}.v1.{kind}"));
            object.text("id", &self.advisory_id());
            object.time("timestamp", now);
            write_advisory(advisory, object);
        });
        Some((format!("$JS.EVENT.{event}.{subject}"), body.into_bytes()))
    }
}

fn write_advisory(advisory: &Advisory, object: &mut Object<'_>) {
    if let Advisory::BatchAbandoned { stream, batch, reason } = advisory {
        object.text("stream", stream);
        object.text("batch", batch);
        object.text(
            "reason",
            match reason {
                Abandoned::Incomplete => "incomplete",
                Abandoned::Large => "large",
                Abandoned::Timeout => "timeout",
            },
        );
        return;
    }
    let mut of_stream = |stream: &str, action| {
        object.text("stream", stream);
        object.text("action", action);
    };
    let (stream, consumer) = match advisory {
        Advisory::StreamCreated { stream } => return of_stream(stream, "create"),
        Advisory::StreamUpdated { stream } => return of_stream(stream, "modify"),
        Advisory::StreamDeleted { stream } => return of_stream(stream, "delete"),
        Advisory::ConsumerCreated { stream, consumer }
        | Advisory::ConsumerDeleted { stream, consumer }
        | Advisory::ConsumerPaused { stream, consumer, .. }
        | Advisory::MaxDeliveries { stream, consumer, .. }
        | Advisory::MessageNaked { stream, consumer, .. }
        | Advisory::MessageTerminated { stream, consumer, .. }
        | Advisory::AckSampled { stream, consumer, .. } => (stream, consumer),
        Advisory::BatchAbandoned { .. } => return,
    };
    object.text("stream", stream);
    object.text("consumer", consumer);
    match advisory {
        Advisory::ConsumerCreated { .. } => object.text("action", "create"),
        Advisory::ConsumerDeleted { .. } => object.text("action", "delete"),
        Advisory::ConsumerPaused { paused, until, .. } => {
            object.boolean("paused", *paused);
            object.time("pause_until", until.unwrap_or(Timestamp(0)));
        }
        Advisory::MaxDeliveries { stream_sequence, deliveries, .. } => {
            object.number("stream_seq", stream_sequence.0);
            object.number("deliveries", *deliveries);
        }
        Advisory::MessageNaked { stream_sequence, consumer_sequence, deliveries, .. } => {
            object.number("consumer_seq", *consumer_sequence);
            object.number("stream_seq", stream_sequence.0);
            object.number("deliveries", *deliveries);
        }
        Advisory::AckSampled { stream_sequence, consumer_sequence, deliveries, delay_nanos, .. } => {
            object.number("consumer_seq", *consumer_sequence);
            object.number("stream_seq", stream_sequence.0);
            object.number("ack_time", *delay_nanos);
            object.number("deliveries", *deliveries);
        }
        Advisory::MessageTerminated { stream_sequence, consumer_sequence, deliveries, reason, .. } => {
            object.number("consumer_seq", *consumer_sequence);
            object.number("stream_seq", stream_sequence.0);
            object.number("deliveries", *deliveries);
            object.text_unless_empty("reason", reason);
        }
        // Said above.
        Advisory::StreamCreated { .. }
        | Advisory::StreamUpdated { .. }
        | Advisory::StreamDeleted { .. }
        | Advisory::BatchAbandoned { .. } => {}
    }
}

#[cfg(test)]
mod tests {
    use beamlog_router::Sequence;
    use beamlog_router::api::error::PublishRefusal;
    use serde_json::{Value, json};

    use super::*;

    fn ack(stream: &str, result: Result<Published, PublishRefusal>) -> String {
        let mut out = Vec::new();
        NatsWire::new().publish_ack(&PublishOutcome { stream: stream.to_owned(), result }, &mut out);
        String::from_utf8(out).unwrap()
    }

    fn status(status: &DeliveryStatus) -> String {
        let mut out = Vec::new();
        NatsWire::new().status(status, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn publish_acks_are_those_of_nats_server_byte_by_byte() {
        assert_eq!(ack("A", Ok(Published::Stored(Sequence(1)))), r#"{"stream":"A","seq":1}"#);
        assert_eq!(
            ack("A", Ok(Published::Stored(Sequence(u64::MAX)))),
            r#"{"stream":"A","seq":18446744073709551615}"#
        );
        assert_eq!(
            ack("A", Ok(Published::Duplicate(Sequence(50)))),
            r#"{"stream":"A","seq":50,"duplicate": true}"#
        );
        assert_eq!(
            ack("A", Err(PublishRefusal::WrongLastSequence { actual: Sequence(4) })),
            r#"{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 4"},"stream":"A","seq":0}"#
        );
        let odd: Value =
            serde_json::from_str(&ack("a\"\\\u{1}é", Ok(Published::Stored(Sequence(1))))).unwrap();
        assert_eq!(odd["stream"], "a\"\\\u{1}é");
    }

    #[test]
    fn reply_subjects_are_read_back_as_what_they_say() {
        let delivery = DeliveryRef {
            stream: "S",
            consumer: "c",
            delivery_count: 2,
            stream_sequence: Sequence(3),
            consumer_sequence: 4,
            timestamp: Timestamp(5),
            pending: 0,
        };
        let mut out = Vec::new();
        NatsWire::new().ack_subject(&delivery, &mut out);
        assert_eq!(out, b"$JS.ACK.S.c.2.3.4.5.0");
        let target = super::super::ack::target(std::str::from_utf8(&out).unwrap()).unwrap();
        assert_eq!(
            (target.delivery_count, target.stream_sequence, target.consumer_sequence),
            (2, Sequence(3), 4)
        );
        let mut out = Vec::new();
        NatsWire::new().flow_control_subject("S", "c", 77, &mut out);
        assert_eq!(out, b"$JS.FC.S.c.77");
    }

    #[test]
    fn statuses_are_those_of_the_contract() {
        for (what, written) in [
            (
                DeliveryStatus::IdleHeartbeat { last_consumer: 1, last_stream: Sequence(2), stalled: None },
                "NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 1\r\nNats-Last-Stream: 2\r\n\r\n",
            ),
            (
                DeliveryStatus::IdleHeartbeat {
                    last_consumer: 1,
                    last_stream: Sequence(2),
                    stalled: Some(b"$JS.FC.S.c.1".to_vec()),
                },
                "NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 1\r\nNats-Last-Stream: 2\r\n\
                 Nats-Consumer-Stalled: $JS.FC.S.c.1\r\n\r\n",
            ),
            (DeliveryStatus::FlowControl, "NATS/1.0 100 FlowControl Request\r\n\r\n"),
            (DeliveryStatus::NoMessages, "NATS/1.0 404 No Messages\r\n\r\n"),
            (
                DeliveryStatus::RequestTimeout { messages: 3, bytes: 0 },
                "NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 3\r\nNats-Pending-Bytes: 0\r\n\r\n",
            ),
            (DeliveryStatus::RequestsPending, "NATS/1.0 408 Requests Pending\r\n\r\n"),
            (
                DeliveryStatus::MessageSizeExceedsMaxBytes { messages: 1, bytes: 2 },
                "NATS/1.0 409 Message Size Exceeds MaxBytes\r\nNats-Pending-Messages: 1\r\nNats-Pending-Bytes: 2\r\n\r\n",
            ),
            (
                DeliveryStatus::NoConsumer { stream: "S".to_owned(), consumer: "c".to_owned() },
                "NATS/1.0 503\r\nNats-Subject: $JS.API.CONSUMER.MSG.NEXT.S.c\r\n\r\n",
            ),
            (DeliveryStatus::ConsumerDeleted, "NATS/1.0 409 Consumer Deleted\r\n\r\n"),
            (DeliveryStatus::LeadershipChange, "NATS/1.0 409 Leadership Change\r\n\r\n"),
            (DeliveryStatus::ConsumerIsPushBased, "NATS/1.0 409 Consumer is push based\r\n\r\n"),
            (
                DeliveryStatus::MaxRequestExpiresExceeded { max_nanos: 1_000_000_000 },
                "NATS/1.0 409 Exceeded MaxRequestExpires of 1s\r\n\r\n",
            ),
            (DeliveryStatus::BadRequest("x".to_owned()), "NATS/1.0 400 Bad Request - x\r\n\r\n"),
        ] {
            assert_eq!(status(&what), written);
        }
    }

    #[test]
    fn advisories_have_a_subject_a_type_and_an_id_of_their_own() {
        let wire = NatsWire::new();
        let (stream, consumer) = ("S".to_owned(), "c".to_owned());
        let told = |advisory: &Advisory| {
            let (subject, body) = wire.advisory(advisory, Timestamp(1)).unwrap();
            (subject, serde_json::from_slice::<Value>(&body).unwrap())
        };
        let (subject, first) = told(&Advisory::StreamCreated { stream: stream.clone() });
        assert_eq!(subject, "$JS.EVENT.ADVISORY.STREAM.CREATED.S");
        assert_eq!(first["type"], "io.nats.jetstream.advisory.v1.stream_action");
        assert_eq!((&first["action"], &first["stream"]), (&json!("create"), &json!("S")));
        let terminated = Advisory::MessageTerminated {
            stream,
            consumer,
            stream_sequence: Sequence(1),
            consumer_sequence: 2,
            deliveries: 3,
            reason: "bad".to_owned(),
        };
        let (subject, second) = told(&terminated);
        assert_eq!(subject, "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.S.c");
        assert_eq!(
            (&second["stream_seq"], &second["consumer_seq"], &second["deliveries"], &second["reason"]),
            (&json!(1), &json!(2), &json!(3), &json!("bad"))
        );
        assert_ne!(first["id"], second["id"]);
        assert_eq!(first["id"].as_str().unwrap().len(), 22);
    }

    #[test]
    fn a_sampled_ack_is_a_metric() {
        let sampled = Advisory::AckSampled {
            stream: "S".to_owned(),
            consumer: "c".to_owned(),
            stream_sequence: Sequence(1),
            consumer_sequence: 2,
            deliveries: 3,
            delay_nanos: 4,
        };
        let (subject, body) = NatsWire::new().advisory(&sampled, Timestamp(1)).unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(subject, "$JS.EVENT.METRIC.CONSUMER.ACK.S.c");
        assert_eq!(body["type"], "io.nats.jetstream.metric.v1.consumer_ack");
        assert_eq!((&body["ack_time"], &body["deliveries"]), (&json!(4), &json!(3)));
    }
}
