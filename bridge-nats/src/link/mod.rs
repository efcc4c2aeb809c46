//! Links to NATS clusters that already run: streams, core subjects, requests and buckets, both ways. A link
//! never takes the node down with it: what fails there degrades the link, and local work goes on.
//!
//! * `rules`: what a link is told to do; `status`: how it is.
//! * `runtime`: the handle, and one supervisor for each link; `connection`: one session with a server.
//! * `import`, `export`: streams. `core`: core subjects and requests. `kv`: buckets.
//!
//! A **session** is one connection and never survives it: nothing that was meant for a connection that is
//! gone is sent on the next one, where it could arrive behind what was asked meanwhile.
#![allow(dead_code, reason = "the rules that use it are being written")]

mod connection;
mod core;
mod diff;
mod export;
mod headers;
mod import;
mod kv;
mod limit;
pub mod mapping;
pub mod rules;
mod runtime;
pub mod status;

pub use diff::{RuleDiff, Side};
pub use runtime::{LinkError, Links};
