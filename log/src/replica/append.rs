//! Writing entries: what was gathered here under the name that replication gave it, and somebody else's.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::{
    EntryFault, EntryId, Log, LogEntry, Sequence, StreamId, Term, Timestamp, WriteError,
    format::{
        frame::FRAME_HEADER_BYTES,
        record::{Kind, Records},
    },
    replica::ENTRY_BYTES_MAX,
    segment::index_frame,
};

impl Log {
    /// The last entry written.
    #[must_use]
    pub const fn last_id(&self) -> EntryId {
        EntryId { index: self.last_index, term: self.last_term }
    }

    /// What was gathered, to be proposed: how many records, and their bytes. It stays pending, and its time is
    /// settled: [`Self::set_time`] is for the frame after it. `None` if nothing was gathered.
    pub fn pending_body(&mut self) -> Option<(u32, Bytes)> {
        if self.pending.records == 0 {
            return None;
        }
        self.pending.timestamp.get_or_insert(self.now);
        let body = self.pending.frame.get(FRAME_HEADER_BYTES..).unwrap_or_default();
        Some((self.pending.records, Bytes::copy_from_slice(body)))
    }

    /// The time of the frame that is being gathered: an entry's time is the same on every node.
    #[must_use]
    pub fn pending_time(&self) -> Timestamp {
        self.pending.timestamp.unwrap_or(self.now)
    }

    /// Writes what was gathered as the entry of this name; something must have been. Nothing is durable before
    /// [`Self::sync`]. After an error of the disk the log is poisoned.
    ///
    /// The name must be that of the next entry: replication and the log would not mean the same one otherwise.
    pub fn write_at(&mut self, id: EntryId) -> Result<(), WriteError> {
        assert_eq!(id.index, self.last_index.next(), "entries have no holes between them");
        assert!(self.last_term <= id.term, "terms ascend");
        assert_ne!(self.pending.records, 0, "what was proposed is still pending");
        self.set_entry_term(id.term);
        let written = self.write()?;
        assert_eq!(written, Some(id.index), "an entry was written");
        Ok(())
    }

    /// Adds a record of replication itself (membership, the first entry of a leader) to the frame being gathered.
    pub fn push_replication(&mut self, bytes: &[u8]) {
        self.push_other(Kind::Replication, bytes);
    }

    /// Writes somebody else's entry behind the last one. Everything about it is checked before a byte is
    /// written. Nothing is durable before [`Self::sync`]; as with [`Self::write`], a frame that was not synced
    /// yet is synced first. After an error of the disk the log is poisoned.
    ///
    /// What is being gathered stays pending, for the index after this one.
    pub fn append_entry(&mut self, entry: &LogEntry) -> Result<(), WriteError> {
        self.check_entry(entry)?;
        let mut frame = vec![0; FRAME_HEADER_BYTES];
        frame.extend_from_slice(&entry.body);
        let mut header = self.frame_header(self.open.header.segment, entry.records, 0, entry.id.index);
        header.term = entry.id.term;
        header.timestamp = entry.timestamp;
        let place = self.open.end;
        let checksum = self.append(&mut frame, header)?;
        self.relocate_pending(place, frame.len() as u64);
        assert!(index_frame(&mut self.open.index, place, &entry.body), "its sequences were checked");
        self.set_entry_term(entry.id.term);
        self.set_time(entry.timestamp);
        self.last_index = entry.id.index;
        self.last_term = entry.id.term;
        self.last_checksum = checksum;
        Ok(())
    }

    /// The term of the frames from now on.
    fn set_entry_term(&mut self, term: Term) {
        self.term = term;
    }

    /// What was gathered will stand `by` bytes further back.
    pub(crate) fn relocate_pending(&mut self, from: u64, by: u64) {
        if self.pending.records > 0 {
            self.open.index.move_back(from, by);
        }
    }

    pub(crate) fn check_entry(&self, entry: &LogEntry) -> Result<(), EntryFault> {
        let expected = self.last_index.next();
        if entry.id.index != expected {
            return Err(EntryFault::NotNext { expected, got: entry.id.index });
        }
        if entry.id.term < self.last_term || entry.id.term == Term(0) {
            return Err(EntryFault::TermGoesBack { last: self.last_term, got: entry.id.term });
        }
        let bytes = entry.body.len();
        // Places in a segment are 32 bits wide.
        let end = self.open.end + (self.pending.frame.len() + FRAME_HEADER_BYTES + bytes) as u64;
        if bytes > ENTRY_BYTES_MAX || end > u64::from(u32::MAX) {
            return Err(EntryFault::TooLarge { bytes });
        }
        let mut last: BTreeMap<StreamId, Sequence> = BTreeMap::new();
        let (mut offset, mut found) = (0, 0_u32);
        for record in Records::new(&entry.body) {
            let fault = |reason| EntryFault::Record { offset, reason };
            let record = record.map_err(fault)?;
            record.verify(self.salt).map_err(fault)?;
            match record.kind {
                Kind::Message => {
                    let message = record.message().map_err(fault)?;
                    let (stream, sequence) = (message.stream, message.sequence);
                    let before = last.get(&stream).copied().unwrap_or_else(|| self.last_sequence(stream));
                    if sequence <= before || sequence == Sequence(u64::MAX) {
                        return Err(EntryFault::Sequence { stream, sequence });
                    }
                    last.insert(stream, sequence);
                }
                Kind::Control | Kind::Replication => {}
                Kind::Snapshot | Kind::Manifest | Kind::Retired => return Err(EntryFault::Kind { offset }),
            }
            offset += record.bytes.len();
            found = found.saturating_add(1);
        }
        if found != entry.records {
            return Err(EntryFault::Count { said: entry.records, found });
        }
        match last.keys().find(|stream| self.has_pending(**stream)) {
            Some(stream) => Err(EntryFault::Pending { stream: *stream }),
            None => Ok(()),
        }
    }

    /// The last sequence that this log has of a stream, what is being gathered included.
    fn last_sequence(&self, stream: StreamId) -> Sequence {
        let open = self.open.index.run(stream).and_then(|run| run.slots().last()).map(|slot| slot.sequence);
        let sealed = || self.runs.get(&stream).and_then(|runs| runs.last()).map(|run| run.last);
        open.or_else(sealed).unwrap_or_default()
    }

    /// Whether messages of a stream are being gathered.
    fn has_pending(&self, stream: StreamId) -> bool {
        let last = self.open.index.run(stream).and_then(|run| run.slots().last());
        last.is_some_and(|slot| u64::from(slot.offset) >= self.open.end)
    }
}
