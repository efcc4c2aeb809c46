//! The JetStream API over a router: requests in JSON, their answers, acks and pulls by subject, and
//! how the router's results are spelled for clients. Translation only: the meaning is in `router`.
//!
//! `call` reads a request (pure), `api` hands it to the router, `answer` and `wire` write what comes
//! back. Table of contents only.

mod ack;
mod answer;
mod api;
mod call;
mod cluster_view;
mod consumer_config;
mod errors;
mod from_peers;
mod json;
mod monitor;
mod named;
mod request;
mod stream_config;
mod time;
mod version;
mod wire;

pub use answer::{Form, Reply};
pub use api::{Api, ApiStats, Placed};
pub use call::{Call, parse_request};
pub use cluster_view::{ClusterView, MoveView, ReplicaView};
pub use errors::{MESSAGE_ID_REUSED, UNREADABLE};
pub use from_peers::{FromPeers, FromPeersStats};
pub use monitor::{consumer_detail, stream_detail, stream_listed};
pub use named::stream_named;
pub use request::{ApiRequest, Handled, is_api_subject};
pub(crate) use time::parse as parse_time;
pub use wire::{ClusterEvent, NatsWire};
