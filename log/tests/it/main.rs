//! Tests of the log through its public face, in one binary.
#![expect(clippy::unwrap_used, reason = "tests")]

mod checkpoint;
mod corruption;
mod crash;
mod directory;
mod envelope;
mod io_errors;
mod life;
mod model;
mod recovery;
mod replica;
mod replica_install;
mod replica_lives;
mod scrub;
mod world;
