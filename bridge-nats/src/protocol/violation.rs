//! What ends a connection, and the words nats-server says to it first.

use thiserror::Error;

/// A reason to close a connection. [`Violation::text`] is what the client is told; for some, as with
/// nats-server, that is nothing.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum Violation {
    #[error("unknown protocol operation")]
    UnknownOperation,
    #[error("control line longer than allowed")]
    ControlLineTooLong,
    #[error("payload longer than allowed")]
    PayloadTooLarge,
    /// A known verb whose arguments make no sense, HPUB without headers support, a CONNECT that is no JSON.
    #[error("malformed arguments")]
    Malformed,
    /// The client said `-ERR`.
    #[error("the client reported an error")]
    ClientError,
    #[error("authorization violation")]
    Authorization,
    #[error("no CONNECT in time")]
    AuthenticationTimeout,
    #[error("protocol version not known")]
    InvalidClientProtocol,
    #[error("no_responders asked for without headers")]
    NoRespondersWithoutHeaders,
    #[error("TLS required")]
    TlsRequired,
    #[error("too many connections")]
    MaxConnections,
    #[error("no answer to pings")]
    Stale,
}

impl Violation {
    /// What stands between the quotes of `-ERR`.
    #[must_use]
    pub fn text(self) -> Option<&'static str> {
        match self {
            Self::UnknownOperation => Some("Unknown Protocol Operation"),
            Self::ControlLineTooLong => Some("maximum control line exceeded"),
            Self::PayloadTooLarge => Some("Maximum Payload Violation"),
            Self::Malformed | Self::ClientError => None,
            Self::Authorization => Some("Authorization Violation"),
            Self::AuthenticationTimeout => Some("Authentication Timeout"),
            Self::InvalidClientProtocol => Some("invalid client protocol"),
            Self::NoRespondersWithoutHeaders => Some("no responders requires headers support"),
            Self::TlsRequired => Some("Secure Connection - TLS Required"),
            Self::MaxConnections => Some("maximum connections exceeded"),
            Self::Stale => Some("Stale Connection"),
        }
    }
}
