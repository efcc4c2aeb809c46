//! Cells over every transport: a router in the process, a Beamlog node's NATS endpoint, a nats-server.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../../examples/greeter/cells/mod.rs"]
mod cells;
mod durable;
mod requests;
mod wire;
mod world;
