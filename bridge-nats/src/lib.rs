//! The NATS endpoint: client protocol, sessions, and the JetStream API over a router. Translation
//! only: the meaning is in `router`. Table of contents only.
#![forbid(unsafe_code)]

pub mod jetstream;
pub mod link;
pub mod protocol;
mod server;
mod session;
mod time;

pub use server::{
    API_LEVEL, Auth, ClusterInfo, Grant, GrantError, Guest, JetStream, Server, ServerOptions, ServerStats,
    StartError, TlsFilesError, TlsOptions, VERSION,
};
pub use session::{CloseReason, ConnectionSnapshot, SubscriptionSnapshot};
pub use time::{rfc3339, rfc3339_nanos};
