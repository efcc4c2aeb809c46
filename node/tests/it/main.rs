//! The integration tests of the node, and the tests that hold the repository's own rules.
#![expect(clippy::unwrap_used, reason = "tests")]

mod configuration;
mod edges;
mod references;
mod repository;
mod tidy;
