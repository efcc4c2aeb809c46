//! What a cell is, and what it has of the world.

use std::sync::Arc;

use serde_json::Value;

use crate::envelope::Envelope;
use crate::error::BusError;

/// Answers one request. It may block, and may ask the bus; the next request on its subject waits meanwhile.
pub type Handler = Arc<dyn Fn(Envelope) -> Result<Value, BusError> + Send + Sync>;

/// Carries requests to cells. Calls block; an asynchronous program makes them where blocking is allowed.
pub trait Bus: Send + Sync {
    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// The cell's error; `NotFound` when nobody serves the subject; `Timeout` when no answer came in time.
    fn request(&self, envelope: Envelope) -> Result<Value, BusError> {
        self.ask(&envelope)?.into_result()
    }

    /// As [`Self::request`], but tells a cell's answer (which may be an error) from what the bus itself says.
    ///
    /// # Errors
    /// No cell answered.
    fn ask(&self, envelope: &Envelope) -> Result<Envelope, BusError>;

    /// Serves a subject, in the queue group of its service, one request after another. A second call for the
    /// same subject puts another handler in place.
    ///
    /// # Errors
    /// The subject is illegal, or the bus cannot be reached.
    fn subscribe(&self, subject: &str, handler: Handler) -> Result<(), BusError>;
}

/// A part of a program that is reached by subjects only.
pub trait Cell: Send + Sync {
    fn id(&self) -> &str;

    /// What it serves, `cbs.{service}.{verb}` each.
    fn subjects(&self) -> Vec<String>;

    /// Subscribes to its subjects.
    ///
    /// # Errors
    /// What the bus says.
    fn register(&self, bus: &Arc<dyn Bus>) -> Result<(), BusError>;
}
