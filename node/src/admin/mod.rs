//! The admin HTTP server: health, metrics, and monitoring with nats-server's paths and fields.
//! Read-only, but for links and the cluster. Table of contents only.

mod certificates;
mod cluster;
mod connz;
mod health;
mod jsz;
mod links;
pub mod metrics;
mod monitor;
mod process;
mod query;
mod server;
mod varz;
mod witness;

pub(crate) use monitor::Monitor;
pub(crate) use server::Admin;
pub(crate) use witness::WitnessAdmin;
