//! gRPC over the tasks of a node: `beamline.flow.v1.Router` and `RouterAdmin` (contract section 1.12), health and
//! reflection. A shell over the subjects that tasks answer anyway, so that it serves at every node of a cluster.
//!
//! The messages are few and their fields are fixed: they are written down here, not generated, so that building
//! needs neither `protoc` nor a generator (docs/adr/0022).

mod messages;
mod policies;
mod server;

pub(crate) use server::Grpc;
pub use server::GrpcOptions;
