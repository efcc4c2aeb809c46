//! The router: subjects and interest, streams, consumers, the pure engine, its driver thread and the
//! handle that an embedding program holds. No runtime, no sockets. Table of contents only.
#![forbid(unsafe_code)]

pub mod api;
pub mod consumer;
pub mod interest;
pub mod stream;
pub mod wire;
