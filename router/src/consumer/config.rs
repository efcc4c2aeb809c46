//! What a user may ask of a consumer. Names and defaults are JetStream's (contract table 1.5).

use std::collections::BTreeMap;

use beamlog_log::{Sequence, Timestamp};
use wincode::{SchemaRead, SchemaWrite};

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, SchemaRead, SchemaWrite)]
pub enum DeliverPolicy {
    #[default]
    All,
    Last,
    New,
    ByStartSequence(Sequence),
    ByStartTime(Timestamp),
    LastPerSubject,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, SchemaRead, SchemaWrite)]
pub enum AckPolicy {
    #[default]
    None,
    /// An ack covers everything before it.
    All,
    Explicit,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, SchemaRead, SchemaWrite)]
pub enum ReplayPolicy {
    #[default]
    Instant,
    /// With the gaps between messages that they had when they were stored.
    Original,
}

/// What only a push consumer has. `None` in [`ConsumerConfig::push`] is a pull consumer.
#[derive(Clone, Debug, Default, Eq, PartialEq, SchemaRead, SchemaWrite)]
pub struct PushConfig {
    pub deliver_subject: String,
    /// Queue group of the subscribers that may receive; empty is none.
    pub deliver_group: String,
    pub flow_control: bool,
    pub idle_heartbeat_nanos: Option<u64>,
    pub rate_limit_bits_per_second: Option<u64>,
}

/// What only a pull consumer has.
#[derive(Clone, Debug, Default, Eq, PartialEq, SchemaRead, SchemaWrite)]
pub struct PullLimits {
    pub max_waiting: Option<u32>,
    pub max_request_batch: Option<u32>,
    pub max_request_expires_nanos: Option<u64>,
    pub max_request_max_bytes: Option<u32>,
}

#[derive(Clone, Debug, Default, Eq, PartialEq, SchemaRead, SchemaWrite)]
pub struct ConsumerConfig {
    /// Empty in a request for an ephemeral consumer without a name: the engine is given one.
    pub name: String,
    pub durable: bool,
    pub description: String,
    pub deliver_policy: DeliverPolicy,
    pub ack_policy: AckPolicy,
    /// `None`: the default, 30 s.
    pub ack_wait_nanos: Option<u64>,
    pub max_deliver: Option<u32>,
    pub backoff_nanos: Vec<u64>,
    /// Disjoint; empty means everything.
    pub filter_subjects: Vec<String>,
    /// The client sent `filter_subjects` (an array), and gets that shape back.
    pub filters_as_list: bool,
    pub replay_policy: ReplayPolicy,
    /// Share of acks that are sampled, in per cent, 0 to 100, as text the client sent ("100%").
    pub sample_frequency: String,
    /// `None`: the default, 1000 (unlimited for ack policy none). `u32::MAX`: asked for no limit.
    pub max_ack_pending: Option<u32>,
    pub headers_only: bool,
    pub push: Option<PushConfig>,
    pub pull: PullLimits,
    pub inactive_threshold_nanos: Option<u64>,
    pub replicas: u8,
    pub memory_storage: bool,
    pub direct: bool,
    pub pause_until: Option<Timestamp>,
    pub metadata: BTreeMap<String, String>,
}

/// A pair of positions: how many deliveries, and up to which message.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, SchemaRead, SchemaWrite)]
pub struct ConsumerPosition {
    /// Consumer sequence: counts deliveries, redeliveries too.
    pub consumer: u64,
    pub stream: Sequence,
    /// When it last moved; 0 never.
    pub last_active: Timestamp,
}

/// What a user sees of a consumer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ConsumerInfo {
    pub stream: String,
    pub config: ConsumerConfig,
    pub created: Timestamp,
    pub delivered: ConsumerPosition,
    pub ack_floor: ConsumerPosition,
    pub ack_pending: u64,
    pub redelivered: u64,
    pub waiting: u64,
    pub pending: u64,
    pub push_bound: bool,
    /// Time left, when paused.
    pub paused_for_nanos: Option<u64>,
}
