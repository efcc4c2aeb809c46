//! One message for a cell, whatever carried it: read, handle, answer.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tracing::{error, warn};

use crate::bus::Handler;
use crate::envelope::Envelope;
use crate::error::BusError;

/// The answer to a message, or `None` when there can be none: what is no envelope has no id to answer to,
/// and is not answered, as everywhere in CBS.
#[must_use]
pub fn answer(subject: &str, raw: &[u8], handler: &Handler) -> Option<Vec<u8>> {
    let envelope = match Envelope::parse(raw) {
        Ok(envelope) => envelope,
        Err(problem) => {
            // Never what it says: payloads are not logged.
            warn!(subject, bytes = raw.len(), err = %problem, "a request that is no envelope was dropped");
            return None;
        }
    };
    let request = envelope.clone();
    // A panic is one request's, not the subject's: the next one is served.
    let result = catch_unwind(AssertUnwindSafe(|| handler(request))).unwrap_or_else(|_| {
        error!(subject, "a handler panicked");
        Err(BusError::Internal("the handler panicked".to_owned()))
    });
    let answer = envelope.answer(result);
    answer.encode().map_err(|problem| error!(subject, err = %problem, "an answer was not sent")).ok()
}

/// What came to the inbox of a request.
pub enum Reply {
    /// Nobody serves the subject.
    NoSubscribers,
    /// A stream stored the request; the cell has yet to answer.
    Stored,
    Answer(Result<Box<Envelope>, BusError>),
}

/// Reads it. `status` is the status of a message that has one.
#[must_use]
pub fn reply(status: Option<u16>, raw: &[u8]) -> Reply {
    if status == Some(503) && raw.is_empty() {
        return Reply::NoSubscribers;
    }
    match Envelope::parse(raw) {
        Ok(envelope) => Reply::Answer(Ok(Box::new(envelope))),
        Err(_) if is_publish_ack(raw) => Reply::Stored,
        Err(problem) => {
            Reply::Answer(Err(BusError::Serialization(format!("Failed to deserialize response: {problem}"))))
        }
    }
}

fn is_publish_ack(raw: &[u8]) -> bool {
    let fields: Option<serde_json::Map<String, serde_json::Value>> = serde_json::from_slice(raw).ok();
    fields.is_some_and(|fields| fields.contains_key("stream") && fields.contains_key("seq"))
}
