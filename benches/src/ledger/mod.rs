//! What clients were promised, written down outside the server, and the audit of a server against it.
//!
//! A ledger knows every publish ack and every confirmed consumer ack that a client *read*. What was sent
//! and not acked is unknown: it may be stored or not, but once at most. Publishers go on after the last
//! acked message of theirs, so what was unknown is sent again under the same message id.
//!
//! * [`record`]: the file and its memory.
//! * [`mod@load`]: publishers and consumers that fill it.
//! * [`mod@audit`]: reading the server's streams and comparing.

pub mod audit;
pub mod load;
pub mod message;
pub mod record;

pub use audit::{Verdict, audit};
pub use load::{Load, Loaded, drain, load};
pub use record::{Ledger, Shape};

use crate::client::ClientError;
use crate::jetstream::ApiError;

#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("ledger {path}")]
    File { path: std::path::PathBuf, source: std::io::Error },
    #[error("ledger {path}, line {line}: {text:?} is no entry")]
    Malformed { path: std::path::PathBuf, line: usize, text: String },
    #[error("ledger {path} is about {found}, not about {wanted}")]
    OtherShape { path: std::path::PathBuf, found: String, wanted: String },
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error("a load thread panicked")]
    Panicked,
}
