//! Streams: ordered, retained messages captured by filters.

mod config;
mod view;

pub use config::{
    Compression, ConsumerLimits, Discard, Placement, Republish, Retention, Storage, StreamConfig,
    StreamState, SubjectMapping,
};
pub use view::{LastBySubject, StreamView, SubjectFigures};
