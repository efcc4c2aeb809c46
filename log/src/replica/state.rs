//! What a replica needs to build its state anew while the log stays open, and entries of replication's own.

use bytes::Bytes;

use crate::{
    Damage, DamageReason, EntryId, Index, Log, LogEntry, Replayed, ShardId, Snapshot, Timestamp,
    format::{
        frame::SNAPSHOT,
        record::{self, Kind, RecordSalt, Records},
        segment::FRAMES_AT,
    },
    replay::Current,
};

impl LogEntry {
    /// An entry of one record of replication: what [`Log::push_replication`] would have gathered.
    #[must_use]
    pub fn of_replication(shard: ShardId, id: EntryId, timestamp: Timestamp, bytes: &[u8]) -> Self {
        let mut body = Vec::new();
        record::put_other(&mut body, RecordSalt::new(shard), Kind::Replication, bytes);
        Self { id, timestamp, records: 1, body: body.into() }
    }

    /// Its records in their order, as a replay gives them; up to the first that is damaged.
    pub fn replay(&self) -> impl Iterator<Item = Result<Replayed, DamageReason>> + use<> {
        let mut current = Current {
            index: self.id.index,
            term: self.id.term,
            timestamp: self.timestamp,
            body: self.body.clone(),
            at: 0,
        };
        let mut failed = false;
        std::iter::from_fn(move || {
            if failed {
                return None;
            }
            let next = current.next().transpose();
            failed = matches!(next, Some(Err(_)));
            next
        })
    }
}

impl Log {
    /// The state with which the newest segment begins, read again and verified; `None` for a log that never
    /// rolled.
    pub fn base(&mut self) -> Result<Option<Snapshot>, Damage> {
        let (mut at, end) = (FRAMES_AT, self.open.frames_from);
        let mut records: Vec<Bytes> = Vec::new();
        while at < end {
            let (header, body) = self.frame_in(self.open.key(), at, end)?;
            let damage = |reason| Damage { segment: self.open.header.segment, offset: at, reason };
            if !header.has(SNAPSHOT) {
                return Err(damage(DamageReason::Chain));
            }
            for record in Records::new(&body) {
                let record = record.map_err(damage)?;
                if record.kind == Kind::Snapshot {
                    records.push(body.slice_ref(record.body()));
                }
            }
            at += header.frame_bytes();
        }
        let index = Index(self.open.header.segment.0 - 1);
        Ok((self.open.frames_from > FRAMES_AT).then_some(Snapshot { index, records }))
    }
}
