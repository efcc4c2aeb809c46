//! Tasks: decide → assign → result → usage, as BeamLine's gateways and workers speak it, on the router's log.
//! Table of contents only.
#![forbid(unsafe_code)]

pub mod codes;
pub mod engine;
pub mod ids;
pub mod intake;
pub mod mask;
pub mod otlp;
pub mod policy;
pub mod proto;
pub mod random;
pub mod raw_json;
pub mod replies;
pub mod results;
pub mod service;
pub mod state;
pub mod trace;
