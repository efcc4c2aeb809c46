//! Requests that outlive their requester, the cell and the node: stored before anybody is asked, asked again until
//! a cell has answered, answered once for each id.
//!
//! A request lies on `cbsd.request.{service}.{verb}.{id}`, its answer on `cbsd.answer.{id}`; both streams take the
//! first message of a subject only, so the same id is the same request for as long as they are kept. Cells do not
//! notice: whoever runs [`Durable::deliver`] asks them by ordinary requests. A cell that answered just before its
//! deliverer died is asked again, with the same id; what the requester is told does not change once it is stored.

mod deliverer;
mod jetstream;
mod routed;
mod store;

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::bus::Bus;
use crate::embedded::EmbeddedBus;
use crate::envelope::Envelope;
use crate::error::BusError;
use crate::nats::NatsBus;
pub use deliverer::Delivery;
use store::{Kept, Store};

/// How requests are kept.
#[derive(Clone, Copy, Debug)]
pub struct DurableOptions {
    /// How long requests and answers are kept, and an id is known. Default 7 days.
    pub kept_for: Duration,
    /// Bytes of the requests and of the answers; when full, new requests are refused. Default 1 GiB each.
    pub bytes_max: u64,
    /// Requests that one deliverer has on the way at a time. Default 4.
    pub at_once: u32,
    /// How long after a cell did not answer it is asked again the first time; twice that the next, at most 30 s.
    /// Default 100 ms.
    pub retry_first: Duration,
}

impl Default for DurableOptions {
    fn default() -> Self {
        Self {
            kept_for: Duration::from_secs(7 * 86_400),
            bytes_max: 1 << 30,
            at_once: 4,
            retry_first: Duration::from_millis(100),
        }
    }
}

/// Whether a request was new.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Submitted {
    Stored,
    /// The id is known: its answer is, or will be, that of the first one.
    Duplicate,
}

/// Stored requests over a bus.
#[derive(Clone)]
pub struct Durable {
    store: Arc<dyn Store>,
    bus: Arc<dyn Bus>,
    options: DurableOptions,
}

impl std::fmt::Debug for Durable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Durable").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Durable {
    /// In the log of the router in this process.
    ///
    /// # Errors
    /// The streams cannot be made, or are there with other settings.
    pub fn over_router(bus: Arc<EmbeddedBus>, options: DurableOptions) -> Result<Self, BusError> {
        let store = routed::Routed::open(bus.router().clone(), options)?;
        Ok(Self { store: Arc::new(store), bus, options })
    }

    /// In streams of the node, or of the NATS server with JetStream, that the bus is connected to.
    ///
    /// # Errors
    /// As [`Self::over_router`].
    pub fn over_nats(bus: Arc<NatsBus>, options: DurableOptions) -> Result<Self, BusError> {
        let store = jetstream::JetStream::open(Arc::clone(&bus), options)?;
        Ok(Self { store: Arc::new(store), bus, options })
    }

    /// Stores a request. When this returns it is durable, and will be asked until a cell answers.
    ///
    /// # Errors
    /// `BadRequest` when it is not what the envelope's schema allows; `Connection` when it is not known to be
    /// stored: submit it again, with the same id.
    pub fn submit(&self, envelope: &Envelope) -> Result<Submitted, BusError> {
        envelope.check().map_err(|problem| BusError::BadRequest(problem.to_string()))?;
        let subject = store::request_subject(&envelope.service, &envelope.verb, &envelope.id);
        let is_new = self.store.put_first(&subject, envelope.encode()?)?;
        Ok(if is_new { Submitted::Stored } else { Submitted::Duplicate })
    }

    /// The answer to a request that was submitted, by whomever and whenever; waits for it up to `timeout`.
    ///
    /// # Errors
    /// The answer's error, or `Timeout` when there is none yet.
    pub fn answer(&self, id: &str, timeout: Duration) -> Result<Value, BusError> {
        let subject = store::answer_subject(id)?;
        let until = Instant::now() + timeout;
        // First listen, then look: one of the two sees it.
        let mut watch = self.store.watch(&store::done_subject(id)?)?;
        loop {
            if let Some(raw) = self.store.last(Kept::Answers, &subject)? {
                return Envelope::parse(&raw)
                    .map_err(|problem| BusError::Serialization(problem.to_string()))?
                    .into_result();
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(BusError::Timeout);
            }
            // Told or not: the look that follows decides.
            watch.wait(left);
        }
    }

    /// [`Self::submit`], and then [`Self::answer`].
    ///
    /// # Errors
    /// As these. After `Timeout` the request goes on: ask for its answer, or send it again.
    pub fn request(&self, envelope: &Envelope, timeout: Duration) -> Result<Value, BusError> {
        self.submit(envelope)?;
        self.answer(&envelope.id, timeout)
    }

    /// Asks a stored request's cell once more, whether it was answered or not, and stores this answer in the place of
    /// the one before. For mending what a cell did wrong.
    ///
    /// # Errors
    /// `NotFound` when there is no such request; what the cell answers; that no cell answered.
    pub fn replay(&self, id: &str) -> Result<Value, BusError> {
        let subject = store::any_request_subject(id)?;
        let raw = self.store.last(Kept::Requests, &subject)?;
        let raw = raw.ok_or_else(|| BusError::NotFound(format!("no stored request has the id {id}")))?;
        let request =
            Envelope::parse(&raw).map_err(|problem| BusError::Serialization(problem.to_string()))?;
        let answer = self.bus.ask(&request)?;
        self.store.put(&store::answer_subject(id)?, answer.encode()?)?;
        self.store.tell(&store::done_subject(id)?);
        answer.into_result()
    }

    /// Asks the cells of stored requests, until what it returns is dropped. Several processes may do this; each
    /// request is with one of them at a time.
    ///
    /// # Errors
    /// What keeps it from starting.
    pub fn deliver(&self) -> Result<Delivery, BusError> {
        Delivery::start(&self.store, &self.bus, self.options)
    }
}
