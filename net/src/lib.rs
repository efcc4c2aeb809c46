//! Nodes among themselves: QUIC with mutual TLS, replication, the mesh.
//!
//! * `peer`: what everything above a transport is written against; QUIC is one transport, the simulator another.
//! * `cluster`: a node's part in a cluster. `raft`: agreement on entries. `catchup`: copies of files.
//! * `runtime`: where the tasks of replication run, on a node and in a simulator.

mod catchup;
pub mod cluster;
pub mod peer;
pub mod raft;
pub mod runtime;
