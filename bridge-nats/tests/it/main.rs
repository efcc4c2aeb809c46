//! The endpoint against real clients, real sockets, and a real nats-server.
#![expect(clippy::unwrap_used, reason = "tests")]

mod consumers;
mod core;
mod differential;
mod habits;
mod jetstream_answers;
mod jetstream_clients;
mod jetstream_python;
mod jetstream_servers;
mod limits;
mod link_access;
mod link_clusters;
mod link_core;
mod link_handover;
mod link_kv;
mod link_servers;
mod link_streams;
mod link_world;
mod node;
mod raw;
mod secured;
mod stored;
