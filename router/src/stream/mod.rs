//! Streams: ordered, retained messages captured by filters.

mod config;

pub use config::{
    Compression, ConsumerLimits, Discard, Placement, Republish, Retention, Storage, StreamConfig,
    StreamState, SubjectMapping,
};
