//! Cells of CBS (Cell Body System): small parts of a program that know each other only by subjects
//! `cbs.{service}.{verb}`. The same cells run over an embedded router or over a NATS URL. Table of contents only.
#![forbid(unsafe_code)]

pub mod answering;
mod application;
mod body;
mod bus;
mod checked;
pub mod durable;
mod embedded;
mod envelope;
mod error;
mod nats;
mod schemas;
pub mod subjects;

pub use application::{App, AppCell, AppError, BodyPlan, PlannedCell};
pub use body::{Body, BodyError, Registry};
pub use bus::{Bus, Cell, Handler};
pub use checked::CheckedBus;
pub use embedded::{EmbeddedBus, EmbeddedLimits};
pub use envelope::{Envelope, EnvelopeError, ErrorDetails};
pub use error::BusError;
pub use nats::{NatsBus, NatsBusOptions};
pub use schemas::{SchemaError, Schemas};
