//! BeamLine's gateway, built in: its REST routes over the tasks of this node, so that the program beside it is
//! optional.
//!
//! * `server`: the routes, and what happens to every request before its route: rate limits, counting.
//! * `decide`, `passed_on`, `messages`, `registry`, `figures`: the routes by subject.
//! * `dto`: what a request for a decision must have, and what of it goes on; pure.
//! * `limits`: fixed windows by tenant.
//! * `problem`: errors as the gateway spells them.
//! * `openapi.json`: the document that it serves.

mod decide;
pub mod dto;
mod figures;
mod limits;
mod messages;
mod passed_on;
mod problem;
mod registry;
mod server;

pub use limits::GatewayLimits;
pub(crate) use server::Gateway;
pub use server::GatewayOptions;
