//! Consumers: durable reading positions and their delivery state. Table of contents only.

mod config;
mod machine;
mod output;
mod record;

pub use config::{
    AckPolicy, ConsumerConfig, ConsumerInfo, ConsumerPosition, DeliverPolicy, PullLimits, PushConfig,
    ReplayPolicy,
};
pub use machine::Consumer;
pub use output::{ConsumerOutput, Delivery};
pub use record::{
    ConsumerId, ConsumerRecord, ConsumerSnapshot, DeliveryRun, PendingRow, Redelivery, SequenceRun,
};
