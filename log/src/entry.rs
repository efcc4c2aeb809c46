//! Entries: the log as replication sees it. One entry is one ordinary frame; a node's own headers, seals
//! and segment boundaries are not in it.

use bytes::Bytes;

use crate::{
    Index, ShardId, Term, Timestamp,
    format::{
        frame::FRAME_HEADER_BYTES,
        record::{self, Kind, RecordSalt, Records},
    },
};

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

impl LogEntry {
    /// The body of an entry that has one record, of replication itself: what [`crate::Log::push_replication`]
    /// gathers.
    #[must_use]
    pub fn replication_body(shard: ShardId, bytes: &[u8]) -> Bytes {
        let mut out = Vec::new();
        record::put_other(&mut out, RecordSalt::new(shard), Kind::Replication, bytes);
        out.into()
    }

    /// Bytes of the frame that it takes.
    #[must_use]
    pub const fn frame_bytes(&self) -> u64 {
        (FRAME_HEADER_BYTES + self.body.len()) as u64
    }

    /// What its record of replication itself says; `None` if it has none. Such a record stands alone in its
    /// entry.
    #[must_use]
    pub fn replication(&self) -> Option<&[u8]> {
        let mut records = Records::new(&self.body);
        let first = records.next()?.ok()?;
        (first.kind == Kind::Replication && records.next().is_none()).then(|| first.body())
    }
}
