//! Giving entries out again, by their index.

use bytes::Bytes;

use crate::{
    Damage, DamageReason, EntryId, Index, Log, LogEntry,
    format::{
        frame::{FRAME_HEADER_BYTES, FrameHeader},
        segment::{FOOTER_BYTES, SegmentKey},
    },
};

/// A segment in which an entry is.
#[derive(Clone, Copy)]
pub(crate) struct Within {
    key: SegmentKey,
    /// Behind its last frame.
    end: u64,
    is_open: bool,
}

impl Log {
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
        let until = to_exclusive.min(self.last_index.next());
        let mut entries = Vec::new();
        let mut next = from;
        let mut left = max_bytes;
        while next < until {
            let within = self.within(next)?;
            let mut at = self.place_of(within, next)?;
            while next < until && at < within.end {
                let (header, body) = self.frame_in(within.key, at, within.end).inspect_err(|_damage| {
                    self.counts.unreadable += 1;
                })?;
                let place = at;
                at += header.frame_bytes();
                if !header.is_ordinary() {
                    continue;
                }
                if header.index != next {
                    return Err(Damage {
                        segment: within.key.segment,
                        offset: place,
                        reason: DamageReason::Chain,
                    });
                }
                if !entries.is_empty() && body.len() > left {
                    return Ok(entries);
                }
                left = left.saturating_sub(body.len());
                next = next.next();
                entries.push(LogEntry {
                    id: EntryId { index: header.index, term: header.term },
                    timestamp: header.timestamp,
                    records: header.records,
                    body,
                });
            }
        }
        Ok(entries)
    }

    /// The name of the entry at an index. `None` for one that is not there: behind the last one, or before
    /// [`Self::history_from`], which itself is known.
    pub fn id_at(&mut self, index: Index) -> Result<Option<EntryId>, Damage> {
        let history_from = self.history_from();
        if index == self.last_index {
            return Ok(Some(self.last_id()));
        }
        if index == history_from.index {
            return Ok(Some(history_from));
        }
        if index < history_from.index || index > self.last_index {
            return Ok(None);
        }
        let within = self.within(index)?;
        let at = self.place_of(within, index)?;
        let header = self.header_in(within, at)?;
        Ok(Some(EntryId { index, term: header.term }))
    }

    /// The segment of an entry that this log has.
    pub(crate) fn within(&self, index: Index) -> Result<Within, Damage> {
        if index.0 >= self.open.header.segment.0 {
            return Ok(Within { key: self.open.key(), end: self.open.end, is_open: true });
        }
        let sealed = self.sealed.range(..=crate::SegmentId(index.0)).next_back().map(|(_, sealed)| sealed);
        let within = sealed.filter(|sealed| !sealed.compacted).and_then(|sealed| {
            let has = sealed.footer.is_some_and(|footer| footer.last_index >= index);
            let end = sealed.bytes.checked_sub(FOOTER_BYTES as u64)?;
            has.then_some(Within { key: sealed.key, end, is_open: false })
        });
        within.filter(|_| index > self.history_from().index).ok_or_else(|| Damage {
            segment: sealed.map_or(self.open.header.segment, |sealed| sealed.key.segment),
            offset: 0,
            reason: DamageReason::Missing,
        })
    }

    /// Where the frame of an entry stands that is in this segment.
    pub(crate) fn place_of(&mut self, within: Within, index: Index) -> Result<u64, Damage> {
        let mut at = if within.is_open {
            self.open.place_before(index)
        } else {
            self.history.place_before(within.key, index)
        };
        while at < within.end {
            let header = self.header_in(within, at)?;
            if header.is_ordinary() {
                if !within.is_open {
                    self.history.mark(within.key, header.index, at);
                }
                if header.index == index {
                    return Ok(at);
                }
            }
            at += header.frame_bytes();
        }
        self.counts.unreadable += 1;
        Err(Damage { segment: within.key.segment, offset: at, reason: DamageReason::Chain })
    }

    /// The header of a frame, verified by its own checksum.
    fn header_in(&mut self, within: Within, at: u64) -> Result<FrameHeader, Damage> {
        // Damage in the middle of the segment is known from its opening.
        if let Some(fence) = &self.fence
            && within.is_open
            && fence.offset <= at
        {
            return Err(fence.clone());
        }
        let damage = |reason| Damage { segment: within.key.segment, offset: at, reason };
        let head_bytes = u32::try_from(FRAME_HEADER_BYTES).expect("64");
        let shard = self.shard;
        let header = self
            .files
            .record(within.key, at, head_bytes, within.end)
            .and_then(|head| FrameHeader::decode(head).map_err(|_fault| damage(DamageReason::Checksum)))
            .and_then(|header| {
                let ours = header.shard == shard && header.segment == within.key.segment;
                if ours { Ok(header) } else { Err(damage(DamageReason::Misplaced)) }
            });
        header.inspect_err(|_damage| self.counts.unreadable += 1)
    }

    /// The frame of a segment at this place, verified.
    pub(crate) fn frame_in(
        &mut self,
        key: SegmentKey,
        at: u64,
        end: u64,
    ) -> Result<(FrameHeader, Bytes), Damage> {
        let damage = |reason| Damage { segment: key.segment, offset: at, reason };
        let head_bytes = u32::try_from(FRAME_HEADER_BYTES).expect("64");
        let head: [u8; FRAME_HEADER_BYTES] = {
            let head = self.files.record(key, at, head_bytes, end)?;
            *head.first_chunk().expect("that many bytes were asked for")
        };
        let header = FrameHeader::decode(&head).map_err(|_fault| damage(DamageReason::Checksum))?;
        if header.shard != self.shard || header.segment != key.segment {
            return Err(damage(DamageReason::Misplaced));
        }
        let body = self.files.record(key, at + FRAME_HEADER_BYTES as u64, header.body_bytes, end)?;
        if !header.matches(&head, body) {
            return Err(damage(DamageReason::Checksum));
        }
        Ok((header, Bytes::copy_from_slice(body)))
    }
}
