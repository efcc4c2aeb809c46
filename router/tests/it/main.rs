//! The router over the real log: on a simulated disk that crashes and fails, and on a real one.

#![expect(clippy::unwrap_used, reason = "tests")]
#![expect(clippy::wildcard_enum_match_arm, reason = "a test names what it looks for")]

mod beside;
mod cluster;
mod disk_errors;
mod handle;
mod idle;
mod model;
mod restart;
mod world;
