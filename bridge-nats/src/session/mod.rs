//! One client's conversation: what it asked for, what it subscribed to, and what waits to be sent to it.
//!
//! * `connect`: the options of CONNECT.
//! * `encode`: the lines a server writes.
//! * `subscriptions`: sids, limits and counts of one client.
//! * `connection`: the shared end of a connection, where senders put messages and who writes them.
//! * `interpret`: commands in, effects out; the only caller is the task that reads the socket.

mod connect;
mod connection;
mod encode;
mod interpret;
mod subscriptions;

pub(crate) use connect::ConnectOptions;
pub use connection::{CloseReason, ConnectionSnapshot};
pub(crate) use connection::{Connection, Output};
pub(crate) use interpret::{Blocked, Interpreter, Progress};
pub use subscriptions::SubscriptionSnapshot;
