//! The NATS endpoint: client protocol, sessions, and the JetStream API over a router. Translation
//! only: the meaning is in `router`. Table of contents only.
#![forbid(unsafe_code)]

pub mod jetstream;
pub mod protocol;
