//! Streams: ordered, retained messages captured by filters. Table of contents only.

pub(crate) mod batches;
pub(crate) mod body;
mod config;
pub(crate) mod message_ids;
pub(crate) mod moving;
pub(crate) mod origins;
pub(crate) mod publish_headers;
pub(crate) mod publishing;
pub(crate) mod state;
pub(crate) mod subjects;
pub(crate) mod transform;
pub(crate) mod validation;
mod view;

pub use batches::Abandoned;
pub(crate) use config::Features;
pub use config::{
    Compression, ConsumerLimits, Discard, Placement, Republish, Retention, Storage, StreamConfig,
    StreamState, SubjectMapping,
};
pub use origins::{ORIGIN_HEADER, OriginInfo, Provenance};
pub use state::ConsumerNames;
pub use transform::InvalidMapping;
pub use view::{LastBySubject, StreamView, SubjectFigures};
