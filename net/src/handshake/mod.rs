//! The first words between two nodes, after TLS and before anything else: who is this, and do we speak
//! the same protocol.
//!
//! * `message`: the bytes. Pure; docs/design/transport.md has the table.
//! * `judge`: what is refused, and why. Pure.
//! * `refusals`: counting refusals, and logging each cause once in a while.

mod judge;
mod message;
mod refusals;

pub use judge::{Ours, Reason, agree, judge};
pub(crate) use message::HEADER_BYTES;
pub use message::{CLAIMS_BYTES_MAX, Hello, MESSAGE_BYTES_MAX, Malformed, Message};
pub use refusals::{RefusalCount, Refusals};

/// The protocol of this program; what it can speak is from the lowest to the highest.
pub const VERSION_LOWEST: u16 = 1;
pub const VERSION_HIGHEST: u16 = 1;

/// What TLS agrees on: how the handshake itself is spoken. Nodes among themselves, and edges with a hub.
pub const PROTOCOL_NODE: &[u8] = b"beamlog-node/1";
pub const PROTOCOL_EDGE: &[u8] = b"beamlog-edge/1";
