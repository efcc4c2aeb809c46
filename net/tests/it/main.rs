//! Nodes with real sockets on loopback, and nodes that replicate each other in one process.
#![expect(clippy::unwrap_used, reason = "tests")]

mod certificates;
mod copies;
mod edges;
mod mesh;
mod refused;
mod replicate;
mod sessions;
mod shards;
mod succession;
mod support;
mod tokens;
mod wires;
mod witness;
mod world;
