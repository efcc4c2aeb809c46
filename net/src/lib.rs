//! Nodes among themselves: QUIC with mutual TLS, replication, the mesh.
//!
//! * `peer`: what everything above a transport is written against; QUIC is one transport, the simulator another.

pub mod peer;
