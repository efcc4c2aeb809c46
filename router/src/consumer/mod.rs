//! Consumers: durable reading positions and their delivery state. Table of contents only.

mod ack;
mod config;
mod deliver;
mod filters;
mod machine;
mod output;
mod pending;
mod push;
mod record;
mod start;
mod state;
#[cfg(test)]
mod tests;
mod timer;
mod unlogged;
mod validate;
mod waiting;

pub use config::{
    AckPolicy, ConsumerConfig, ConsumerInfo, ConsumerPosition, DeliverPolicy, PullLimits, PushConfig,
    ReplayPolicy,
};
pub use machine::Consumer;
pub use output::{ConsumerOutput, Delivery};
pub use record::{
    ConsumerId, ConsumerRecord, ConsumerSnapshot, DeliveryRun, PendingRow, Redelivery, SequenceRun,
};
