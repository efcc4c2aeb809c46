//! The shell around sessions: listener, sockets, TLS, timers, and what monitoring wants to know.
//!
//! * `options`: what a server is started with.
//! * `listen`: accepting, the table of connections, draining.
//! * `guest`: clients that come by another way, and what they may do.
//! * `serve`: the task that reads one connection.
//! * `socket`: writing, plain or TLS, without waiting.
//! * `flusher`: writing to many sockets while the driver goes on.
//! * `keeper`: one timer for all connections: pings, stale connections, authentication in time.
//! * `info`: the INFO line.

mod flusher;
mod guest;
mod info;
mod jetstream;
mod keeper;
mod listen;
mod options;
mod serve;
mod socket;

pub use guest::{Grant, GrantError, Guest};
pub use info::{API_LEVEL, ClusterInfo, VERSION};
pub use jetstream::JetStream;
pub use listen::{Server, ServerStats, StartError};
pub use options::{Auth, ServerOptions, TlsFilesError, TlsOptions};

pub(crate) use info::fresh_server_id;
pub(crate) use listen::Context;
pub(crate) use socket::Socket;
