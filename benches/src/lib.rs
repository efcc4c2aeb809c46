//! What the harness binary and the crash tests share. Table of contents only.
//!
//! The client here is blocking, speaks raw NATS and does as little as it can: it runs on the same two
//! cores as the server it measures.
#![forbid(unsafe_code)]

pub mod client;
pub mod contender;
pub mod device;
pub mod figures;
pub mod jetstream;
pub mod ledger;
pub mod process;
pub mod report;
pub mod rows;
pub mod trace;
pub mod trio;
