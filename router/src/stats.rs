//! Figures and condition of a router, as plain values.

use beamlog_log::Index;

use crate::replica::Role;

/// Counters since the start, and the sizes of now.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RouterStats {
    /// Publishes that were stored.
    pub stored_messages: u64,
    pub stored_bytes: u64,
    /// Publishes whose id had been seen in the window.
    pub duplicates: u64,
    /// Publishes refused because their id belonged to other content (DR19). Somebody should look.
    pub message_ids_reused: u64,
    /// Publishes refused for any reason, the two above not counted.
    pub refused_publishes: u64,
    pub requests: u64,
    pub acks: u64,
    pub deliveries: u64,
    pub redeliveries: u64,
    pub commits: u64,
    /// Nanoseconds spent in syncs.
    pub sync_nanos: u64,
    /// Nanoseconds in which a frame was on its way from its proposal to its commit.
    pub quorum_nanos: u64,
    pub role: Role,
    /// The last entry that the state has.
    pub applied_index: Index,
    pub streams: u64,
    pub consumers: u64,
    pub messages: u64,
    pub bytes: u64,
    pub queued_commands: u64,
    pub last_index: Index,
    pub durable_index: Index,
    pub checkpoint_index: Index,
    /// Reads that met bytes which cannot be trusted (DR14).
    pub unreadable: u64,
    pub segments: u64,
    pub log_bytes: u64,
    /// Bytes of the log that were read again in search of damage, and how often all of them were (DR15).
    pub scrubbed_bytes: u64,
    pub scrub_passes: u64,
    /// Segments in which that search found damage.
    pub scrub_damage: u64,
}

/// What a router can do now.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Health {
    #[default]
    Serving,
    /// The disk is full: publishes are refused, everything else goes on, and space cures it (DR16).
    InsufficientStorage,
    /// A write or sync failed: nothing more is stored by this process (DR2). What was durable is served.
    LogFailed { reason: String },
    /// Something of this node's copy cannot be read: others of the cluster must serve, and repair it (DR15).
    Damaged { reason: String },
    /// Closed by its owner.
    Closed,
}
