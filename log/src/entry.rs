//! Entries: the log as replication sees it. One entry is one ordinary frame; a node's own headers, seals
//! and segment boundaries are not in it.

use bytes::Bytes;

use crate::{Index, Term, Timestamp};

/// Which entry: two logs that have an entry with the same id have the same entries up to it.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct EntryId {
    pub index: Index,
    pub term: Term,
}

/// A frame on its way to or from another node.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LogEntry {
    pub id: EntryId,
    /// The leader's clock when the frame was gathered.
    pub timestamp: Timestamp,
    pub records: u32,
    /// The bytes of the records, as they lie in the frame.
    pub body: Bytes,
}
