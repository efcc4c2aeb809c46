//! The node: everything that `beamlog serve` is, as a library, and the commands of the binary.
//! Table of contents only.
#![forbid(unsafe_code)]

pub mod admin;
pub mod cli;
mod cluster;
pub mod config;
mod core_messages;
mod edges;
pub mod gateway;
mod grpc;
mod links;
pub mod logging;
mod node;
mod otlp;
mod tasks;
mod witness;

pub use cluster::{ClusterError, ClusterOptions, MarkError, ShardError};
pub use config::NodeOptions;
pub use edges::{HubError, HubOptions};
pub use grpc::GrpcOptions;
pub use links::ChangeError as LinkChangeError;
pub use node::{Node, StartError};
pub use otlp::Endpoint as SpanEndpoint;
pub use tasks::TasksError;
pub use witness::{WitnessNode, WitnessStartError};
