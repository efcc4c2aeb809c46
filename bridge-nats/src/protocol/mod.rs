//! What a NATS client writes, read without copying. Pure: bytes in, commands or violations out.

mod parse;
mod violation;

pub use parse::{Command, Limits, Parsed, Publish, parse};
pub use violation::Violation;
