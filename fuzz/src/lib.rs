//! Fuzz targets: everything that reads bytes from outside, as functions of bytes.
//!
//! A target panics when a promise is broken, and on nothing else. Its corpus is
//! `corpus/<target>/`; `cargo run -p beamlog-fuzz` replays it and goes on with mutations, and the tests
//! of this crate replay it too. A target is a file in `src/targets/` and its line in `targets.rs`; a
//! test holds the two, and the corpora, together.

pub mod corpus;
pub mod mutate;
pub mod store;
pub mod targets;
