//! Nodes that replicate each other, in one process.
#![expect(clippy::unwrap_used, reason = "tests")]

mod copies;
mod replicate;
mod wires;
mod world;
