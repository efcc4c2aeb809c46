//! QUIC between nodes: one implementation of [`crate::peer::PeerTransport`].
//!
//! * `settings`: every setting of QUIC and TLS, and the limits of streams and queues. Asserted by a test.
//! * `frames`: how requests, answers and one-way frames lie in a stream. Pure.
//! * `outbound`: the bounded queue before a one-way stream.
//! * `session`: one connection, from the handshake to its end.
//! * `table`: who is connected, who is known, what was counted.
//! * `introduce`: the handshake on a connection, from both sides; which of two connections stays.
//! * `dial`: the address book, and keeping connections up.
//! * `ended`: whether a peer's process has ended, when nobody told.
//! * `tunnel`: streams between an edge and its hub that carry another protocol.
//! * `endpoint`: [`Transport`], which holds all of it.
//!
//! Invariants:
//! * A peer is in the table from before `connected` until after `disconnected`; a connection that takes
//!   its place waits for that.
//! * Nothing of a peer is read before its handshake is over, and nothing is stored of one that is refused.
//! * All tasks of a session belong to its `run`, which ends them before it says `disconnected`.

mod dial;
mod ended;
mod endpoint;
mod frames;
mod guesses;
mod introduce;
mod outbound;
mod session;
mod settings;
mod table;
mod tunnel;

pub use dial::{DialError, PeerAddress};
pub use endpoint::{BindError, Transport, TransportOptions};
pub use frames::{Frames, Violation, decode_answer};
pub use settings::{ConfigError, Kind, OUTBOUND_BYTES_MAX};
pub use table::{PeerSnapshot, SessionSnapshot};
pub use tunnel::{Tunnel, TunnelError, TunnelHandler, TunnelReader, TunnelWriter, Urgency};
