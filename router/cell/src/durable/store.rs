//! What durable requests need of streams.

use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

use crate::error::BusError;

pub(super) const REQUESTS: &str = "CBS_REQUESTS";
pub(super) const REQUEST_SUBJECTS: &str = "cbsd.request.*.*.*";
pub(super) const ANSWERS: &str = "CBS_ANSWERS";
pub(super) const ANSWER_SUBJECTS: &str = "cbsd.answer.*";
/// The consumer that deliverers share.
pub(super) const CONSUMER: &str = "deliver";
/// Longer than a bus waits for an answer.
pub(super) const ACK_WAIT: Duration = Duration::from_secs(60);
/// How long one call of a stream may take.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Refuses whatever is not the first message of its subject.
pub(super) const FIRST_ONLY: (&str, &str) = ("Nats-Expected-Last-Subject-Sequence", "0");

/// Which stream.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kept {
    Requests,
    Answers,
}

impl Kept {
    pub(super) fn stream(self) -> &'static str {
        match self {
            Self::Requests => REQUESTS,
            Self::Answers => ANSWERS,
        }
    }
}

pub(super) fn request_subject(service: &str, verb: &str, id: &str) -> String {
    format!("cbsd.request.{service}.{verb}.{id}")
}

pub(super) fn any_request_subject(id: &str) -> Result<String, BusError> {
    Ok(format!("cbsd.request.*.*.{}", token(id)?))
}

pub(super) fn answer_subject(id: &str) -> Result<String, BusError> {
    Ok(format!("cbsd.answer.{}", token(id)?))
}

/// Where it is said that there is an answer; stored nowhere.
pub(super) fn done_subject(id: &str) -> Result<String, BusError> {
    Ok(format!("cbsd.done.{}", token(id)?))
}

/// An id that stands in a subject: nothing that could be a wildcard, or two tokens.
fn token(id: &str) -> Result<&str, BusError> {
    match Uuid::try_parse(id) {
        Ok(_) if id.len() == 36 => Ok(id),
        Ok(_) | Err(_) => Err(BusError::BadRequest("the id of a stored request is a UUID".to_owned())),
    }
}

/// The two streams.
pub(super) trait Store: Send + Sync {
    /// Stores a message if it is the first of its subject, and says whether it is; durable when it returns.
    fn put_first(&self, subject: &str, payload: Vec<u8>) -> Result<bool, BusError>;

    fn put(&self, subject: &str, payload: Vec<u8>) -> Result<(), BusError>;

    /// The newest message of a subject.
    fn last(&self, kept: Kept, subject: &str) -> Result<Option<Bytes>, BusError>;

    /// Who looks on a subject that is not stored.
    fn watch(&self, subject: &str) -> Result<Box<dyn Watch>, BusError>;

    /// Tells those who look on.
    fn tell(&self, subject: &str);

    /// Reads requests; each goes to one of all readers.
    fn reader(&self) -> Result<Box<dyn Reader>, BusError>;
}

pub(super) trait Watch {
    /// Until somebody tells, or the time is over.
    fn wait(&mut self, timeout: Duration);
}

/// A stored request that waits for an answer.
pub(super) struct Open {
    pub(super) payload: Bytes,
    /// How often it was given out, this time included.
    pub(super) deliveries: u32,
    pub(super) settle: Box<dyn FnOnce(Settle) -> Result<(), BusError> + Send>,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Settle {
    Done,
    Later(Duration),
    /// Nobody could ever answer it.
    Never,
}

pub(super) trait Reader: Send {
    /// The next one; waits for it.
    fn next(&mut self, wait: Duration) -> Result<Option<Open>, BusError>;
}
