//! Nodes among themselves: QUIC with mutual TLS, replication, the mesh.
//!
//! * `certificates`: the authority of a cluster, who a certificate names, exchanging them at run time.
//! * `handshake`: the first words between two nodes, and why one is refused.
//! * `peer`: what everything above a transport is written against; QUIC is one transport, the simulator another.
//! * `transport`: QUIC.
//! * `edge`: an edge and its hub.
//! * `mesh`: messages that are not stored, and who wants them.
//! * `cluster`: a node's part in a cluster. `raft`: agreement on entries. `catchup`: copies of files.
//! * `runtime`: where the tasks of replication run, on a node and in a simulator.

mod catchup;
pub mod certificates;
pub mod cluster;
pub mod edge;
pub mod handshake;
pub mod mesh;
pub mod peer;
pub mod raft;
pub mod runtime;
pub mod transport;
