//! Tests of the log through its public face, in one binary.
#![expect(clippy::unwrap_used, reason = "tests")]

mod checkpoint;
mod directory;
mod envelope;
mod life;
