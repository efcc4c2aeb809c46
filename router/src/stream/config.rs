//! What a user may ask of a stream. Names and defaults are JetStream's (contract table 1.4); absent
//! limits are `None`, never -1: the endpoint translates.

use std::collections::BTreeMap;

use beamlog_log::{Sequence, Timestamp};
use wincode::{SchemaRead, SchemaWrite};

/// When messages leave a stream.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, SchemaRead, SchemaWrite)]
pub enum Retention {
    /// By the limits only.
    #[default]
    Limits,
    /// When every consumer that wants a message has acked it.
    Interest,
    /// When the one consumer of its subject has acked it.
    WorkQueue,
}

/// What a full stream does with a new message.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, SchemaRead, SchemaWrite)]
pub enum Discard {
    #[default]
    Old,
    New,
}

/// Where the client asked the messages to be. Both live in the log; `Memory` is kept and shown
/// because clients compare it, and promises no less.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, SchemaRead, SchemaWrite)]
pub enum Storage {
    #[default]
    File,
    Memory,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, SchemaRead, SchemaWrite)]
pub enum Compression {
    #[default]
    None,
    S2,
}

/// Copies each stored message to another subject (unstored), or rewrites the subject on the way in.
#[derive(Clone, Debug, Default, Eq, PartialEq, SchemaRead, SchemaWrite)]
pub struct SubjectMapping {
    pub source: String,
    pub destination: String,
}

#[derive(Clone, Debug, Default, Eq, PartialEq, SchemaRead, SchemaWrite)]
pub struct Republish {
    pub source: String,
    pub destination: String,
    pub headers_only: bool,
}

#[derive(Clone, Debug, Default, Eq, PartialEq, SchemaRead, SchemaWrite)]
pub struct ConsumerLimits {
    pub inactive_threshold_nanos: Option<u64>,
    pub max_ack_pending: Option<u32>,
}

/// Where to begin in another stream (for mirrors and sources, which arrive with links).
#[derive(Clone, Debug, Default, Eq, PartialEq, SchemaRead, SchemaWrite)]
pub struct Placement {
    pub cluster: String,
    pub tags: Vec<String>,
}

/// Configuration of a stream. `Default` is a stream named "" that keeps everything.
#[derive(Clone, Debug, Default, Eq, PartialEq, SchemaRead, SchemaWrite)]
pub struct StreamConfig {
    pub name: String,
    pub description: String,
    /// Filters it captures; empty means "its own name".
    pub subjects: Vec<String>,
    pub retention: Retention,
    pub max_consumers: Option<u32>,
    pub max_messages: Option<u64>,
    pub max_bytes: Option<u64>,
    pub max_age_nanos: Option<u64>,
    pub max_messages_per_subject: Option<u64>,
    /// Largest headers + payload, in bytes.
    pub max_message_bytes: Option<u32>,
    pub discard: Discard,
    pub discard_new_per_subject: bool,
    pub storage: Storage,
    /// 0: not said; a stream that exists has at least one.
    pub replicas: u8,
    pub no_ack: bool,
    /// Deduplication window; `None` before the engine has put in the default (2 min or max_age).
    pub duplicate_window_nanos: Option<u64>,
    pub placement: Option<Placement>,
    pub compression: Compression,
    pub first_sequence: Option<Sequence>,
    pub subject_transform: Option<SubjectMapping>,
    pub republish: Option<Republish>,
    pub sealed: bool,
    pub deny_delete: bool,
    pub deny_purge: bool,
    pub allow_rollup_headers: bool,
    pub allow_direct: bool,
    pub mirror_direct: bool,
    pub allow_message_ttl: bool,
    pub subject_delete_marker_ttl_nanos: Option<u64>,
    pub consumer_limits: ConsumerLimits,
    pub metadata: BTreeMap<String, String>,
    /// Publishes may be stored together or not at all (ADR-50 of NATS).
    ///
    /// It came after the first encoding of a configuration, and is told in a record of its own.
    #[wincode(skip)]
    pub allow_atomic: bool,
}

/// What a configuration says that its encoding has no place for. A bit each, given out once.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, SchemaRead, SchemaWrite)]
pub(crate) struct Features(u32);

impl Features {
    const ALLOW_ATOMIC: u32 = 1;

    pub(crate) const fn of(config: &StreamConfig) -> Self {
        Self(if config.allow_atomic { Self::ALLOW_ATOMIC } else { 0 })
    }

    pub(crate) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Says them of a configuration; false when there is one that this program does not know.
    #[must_use]
    pub(crate) const fn apply(self, config: &mut StreamConfig) -> bool {
        config.allow_atomic = self.0 & Self::ALLOW_ATOMIC != 0;
        self.0 & !Self::ALLOW_ATOMIC == 0
    }
}

/// The figures of a stream.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct StreamState {
    pub messages: u64,
    pub bytes: u64,
    pub first_sequence: Sequence,
    /// 0 when there is none.
    pub first_timestamp: Timestamp,
    pub last_sequence: Sequence,
    pub last_timestamp: Timestamp,
    pub subjects_count: u64,
    pub deleted_count: u64,
    pub consumers_count: u32,
}
