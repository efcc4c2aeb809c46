//! Giving entries out again, by their index.

use crate::{Damage, DamageReason, EntryId, Index, Log, LogEntry};

impl Log {
    /// The entry before the oldest one that [`Self::entries`] can give.
    #[must_use]
    pub const fn history_from(&self) -> EntryId {
        EntryId { index: Index(self.open.header.segment.0 - 1), term: self.open.base_term }
    }

    /// The entries from `from` up to, but not including, `to_exclusive`: without holes, verified, and about
    /// `max_bytes` of them, but at least one if there is one. Shorter than asked for the sake of `max_bytes` or
    /// because the log ends there, and never because of damage.
    ///
    /// What lies at or before [`Self::history_from`] is damage of the kind [`DamageReason::Missing`].
    pub fn entries(
        &mut self,
        from: Index,
        to_exclusive: Index,
        max_bytes: usize,
    ) -> Result<Vec<LogEntry>, Damage> {
        let mut entries = Vec::new();
        let until = to_exclusive.min(self.last_index.next());
        if from >= until {
            return Ok(entries);
        }
        if from <= self.history_from().index {
            return Err(Damage {
                segment: self.open.header.segment,
                offset: 0,
                reason: DamageReason::Missing,
            });
        }
        let (mut at, end) = (self.open.place_before(from), self.open.end);
        let (mut expected, mut bytes) = (from, 0_usize);
        while expected < until {
            let (header, body) = self.open_frame(at, end)?;
            at += header.frame_bytes();
            if !header.is_ordinary() || header.index < from {
                continue;
            }
            if header.index != expected {
                let reason = DamageReason::Chain;
                return Err(Damage { segment: self.open.header.segment, offset: at, reason });
            }
            bytes = bytes.saturating_add(body.len());
            if !entries.is_empty() && bytes > max_bytes {
                break;
            }
            entries.push(LogEntry {
                id: EntryId { index: header.index, term: header.term },
                timestamp: header.timestamp,
                records: header.records,
                body,
            });
            expected = expected.next();
        }
        Ok(entries)
    }

    /// The name of the entry at an index. `None` for one that is not there: behind the last one, or before
    /// [`Self::history_from`], which itself is known.
    pub fn id_at(&mut self, index: Index) -> Result<Option<EntryId>, Damage> {
        let history_from = self.history_from();
        if index == history_from.index {
            return Ok(Some(history_from));
        }
        if index == self.last_index {
            return Ok(Some(self.last_id()));
        }
        if index < history_from.index || index > self.last_index {
            return Ok(None);
        }
        Ok(self.entries(index, index.next(), 0)?.first().map(|entry| entry.id))
    }

    fn open_frame(
        &mut self,
        at: u64,
        end: u64,
    ) -> Result<(crate::format::frame::FrameHeader, bytes::Bytes), Damage> {
        // Damage in the middle of the segment is known from its opening.
        if let Some(fence) = &self.fence
            && fence.offset <= at
        {
            return Err(fence.clone());
        }
        self.frame(at, end).inspect_err(|_damage| self.counts.unreadable += 1)
    }
}
