//! The little of the JetStream API that the harness and the ledger speak, and publishing with a window.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{ClientError, Connection};
use crate::figures::Latencies;

const ACK_SID: u64 = 2;

#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("{subject} answered {answer}")]
    Refused { subject: String, answer: String },
}

/// Asks the API and gives back the answer unless it is an error.
pub fn ask(connection: &mut Connection, subject: &str, body: &Value) -> Result<Value, ApiError> {
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let answer = connection.request(subject, &body)?;
    let refused = || ApiError::Refused {
        subject: subject.to_owned(),
        answer: String::from_utf8_lossy(&answer).into_owned(),
    };
    let value: Value = serde_json::from_slice(&answer).map_err(|_malformed| refused())?;
    if value.get("error").is_some() {
        return Err(refused());
    }
    Ok(value)
}

/// Creates a file stream with limits retention; extra fields of the configuration may be given.
pub fn create_stream(
    connection: &mut Connection,
    name: &str,
    subject: &str,
    extra: &Value,
) -> Result<(), ApiError> {
    let mut config = json!({
        "name": name, "subjects": [subject], "storage": "file", "retention": "limits", "num_replicas": 1,
    });
    merge(&mut config, extra);
    ask(connection, &format!("$JS.API.STREAM.CREATE.{name}"), &config)?;
    Ok(())
}

/// Creates a consumer; `config` is the whole configuration. Gives its name.
pub fn create_consumer(
    connection: &mut Connection,
    stream: &str,
    config: &Value,
) -> Result<String, ApiError> {
    let subject = match config.get("durable_name").and_then(Value::as_str) {
        Some(durable) => format!("$JS.API.CONSUMER.DURABLE.CREATE.{stream}.{durable}"),
        None => format!("$JS.API.CONSUMER.CREATE.{stream}"),
    };
    let answer = ask(connection, &subject, &json!({ "stream_name": stream, "config": config }))?;
    Ok(answer.get("name").and_then(Value::as_str).unwrap_or_default().to_owned())
}

pub fn stream_info(connection: &mut Connection, stream: &str) -> Result<Value, ApiError> {
    ask(connection, &format!("$JS.API.STREAM.INFO.{stream}"), &Value::Null)
}

pub fn consumer_info(connection: &mut Connection, stream: &str, consumer: &str) -> Result<Value, ApiError> {
    ask(connection, &format!("$JS.API.CONSUMER.INFO.{stream}.{consumer}"), &Value::Null)
}

fn merge(into: &mut Value, from: &Value) {
    if let (Some(into), Some(from)) = (into.as_object_mut(), from.as_object()) {
        for (key, value) in from {
            into.insert(key.clone(), value.clone());
        }
    }
}

/// When a windowed publisher stops.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    Elapsed(Duration),
    Acked(u64),
}

/// What a windowed publisher saw.
#[derive(Default)]
pub struct Published {
    pub acked: u64,
    pub latencies: Latencies,
    pub elapsed: Duration,
}

/// Publishes with up to `in_flight` unacked messages, the next one as soon as an ack came, and waits for
/// the last ack. An answer that is not an ack is an error.
pub fn publish_windowed(
    connection: &mut Connection,
    subject: &str,
    message_bytes: usize,
    in_flight: usize,
    until: Until,
) -> Result<Published, ApiError> {
    let payload = vec![b'x'; message_bytes];
    let inbox = format!("{}.", connection.inbox());
    let replies: Vec<Vec<u8>> = (0..in_flight).map(|slot| format!("{inbox}{slot}").into_bytes()).collect();
    connection.subscribe(&format!("{inbox}*"), None, ACK_SID);
    connection.ping()?;

    let mut published = Published::default();
    let start = Instant::now();
    let mut sent_at = vec![start; in_flight];
    let mut sent = 0u64;
    for reply in &replies {
        if may_send(until, sent, Duration::ZERO) {
            connection.publish(subject.as_bytes(), reply, &payload);
            sent += 1;
        }
    }
    connection.flush()?;
    while published.acked < sent {
        connection.fill()?;
        let now = Instant::now();
        while let Some(message) = connection.buffered_next()? {
            let slot = message.subject.strip_prefix(inbox.as_bytes()).and_then(slot_number);
            let Some(slot) = slot.filter(|slot| *slot < in_flight) else { continue };
            if !is_publish_ack(message.payload) {
                return Err(ApiError::Refused {
                    subject: subject.to_owned(),
                    answer: String::from_utf8_lossy(message.payload).into_owned(),
                });
            }
            published.acked += 1;
            published.latencies.record(now - sent_at[slot]);
            if may_send(until, sent, now - start) {
                connection.publish(subject.as_bytes(), &replies[slot], &payload);
                sent_at[slot] = now;
                sent += 1;
            }
        }
        connection.flush()?;
    }
    published.elapsed = start.elapsed();
    Ok(published)
}

fn may_send(until: Until, sent: u64, elapsed: Duration) -> bool {
    match until {
        Until::Elapsed(bound) => elapsed < bound,
        Until::Acked(bound) => sent < bound,
    }
}

fn slot_number(text: &[u8]) -> Option<usize> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Whether a payload is `{"stream":…,"seq":n…}` without an error.
#[must_use]
pub fn is_publish_ack(payload: &[u8]) -> bool {
    let has = |needle: &[u8]| memchr::memmem::find(payload, needle).is_some();
    has(b"\"seq\":") && !has(b"\"error\":")
}
