//! The router over the real log: on a simulated disk that crashes and fails, and on a real one.

#![expect(clippy::unwrap_used, reason = "tests")]

mod disk_errors;
mod handle;
mod model;
mod restart;
mod world;
