//! A bus that looks at every request before it is sent, and before a handler gets it.

use std::sync::Arc;

use crate::bus::{Bus, Handler};
use crate::envelope::Envelope;
use crate::error::BusError;
use crate::schemas::Schemas;

/// Refuses requests that their envelope or their schema does not allow, by `BadRequest`.
pub struct CheckedBus {
    bus: Arc<dyn Bus>,
    schemas: Arc<Schemas>,
}

impl CheckedBus {
    #[must_use]
    pub fn new(bus: Arc<dyn Bus>, schemas: Arc<Schemas>) -> Self {
        Self { bus, schemas }
    }
}

impl Bus for CheckedBus {
    fn ask(&self, envelope: &Envelope) -> Result<Envelope, BusError> {
        self.schemas.check(envelope)?;
        self.bus.ask(envelope)
    }

    fn subscribe(&self, subject: &str, handler: Handler) -> Result<(), BusError> {
        let schemas = Arc::clone(&self.schemas);
        let checked = move |envelope: Envelope| {
            schemas.check(&envelope)?;
            handler(envelope)
        };
        self.bus.subscribe(subject, Arc::new(checked))
    }
}
