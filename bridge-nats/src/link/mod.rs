//! Links to NATS clusters that already run, and to Beamlog hubs: streams, core subjects, requests and buckets, both ways. A link
//! never takes the node down with it: what fails there degrades the link, and local work goes on.
//!
//! * `rules`: what a link is told to do; `status`: how it is.
//! * `runtime`: the handle; `supervisor`: one for each link; `context`: what a rule works with; `connection`: one
//!   session with a server.
//! * `hub`: sessions with a Beamlog hub, over a tunnel.
//! * `import`, `export`: streams. `core`: core subjects and requests. `kv`: buckets.
//!
//! A **session** is one connection and never survives it: nothing that was meant for a connection that is
//! gone is sent on the next one, where it could arrive behind what was asked meanwhile.

mod connection;
mod context;
mod core;
mod dead;
mod diff;
mod export;
mod headers;
pub mod hub;
mod import;
mod kv;
mod limit;
mod local;
pub mod mapping;
mod missing;
#[doc(hidden)]
pub mod outside;
pub mod rules;
mod runtime;
pub mod status;
mod supervisor;
mod trail;
mod window;

pub use diff::{RuleDiff, Side};
pub use runtime::{LinkError, Links};
