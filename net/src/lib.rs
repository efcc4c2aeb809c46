//! Nodes among themselves: QUIC with mutual TLS, replication, the mesh.
//!
//! * `peer`: what everything above a transport is written against; QUIC is one transport, the simulator another.
//! * `runtime`: where the tasks of replication run, on a node and in a simulator.

pub mod peer;
pub mod runtime;
