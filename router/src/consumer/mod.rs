//! Consumers: durable reading positions and their delivery state.

mod config;

pub use config::{
    AckPolicy, ConsumerConfig, ConsumerInfo, ConsumerPosition, DeliverPolicy, PullLimits, PushConfig,
    ReplayPolicy,
};
