//! Going through the newest segment again, after the state it begins with or after a checkpoint.

use bytes::Bytes;

use crate::{
    Damage, DamageReason, Index, Log, Replayed, ReplayedRecord, Term, Timestamp,
    format::{
        frame::FrameHeader,
        record::{Kind, Records, message_of},
    },
};

/// Where a replay is. It borrows nothing, so that who applies records may read from the log meanwhile.
#[derive(Debug)]
pub struct ReplayCursor {
    after: Index,
    /// Place of the next frame.
    at: u64,
    /// The replay ends here: what is pushed later is not replayed.
    end: u64,
    current: Option<Current>,
    failed: bool,
}

/// The frame whose records are being given out.
#[derive(Debug)]
pub(crate) struct Current {
    pub(crate) index: Index,
    pub(crate) term: Term,
    pub(crate) timestamp: Timestamp,
    pub(crate) body: Bytes,
    pub(crate) at: usize,
}

/// Records in their order, after some index.
#[derive(Debug)]
pub struct Replay<'a> {
    log: &'a mut Log,
    cursor: ReplayCursor,
}

impl Iterator for Replay<'_> {
    type Item = Result<Replayed, Damage>;

    fn next(&mut self) -> Option<Self::Item> {
        self.log.replay_next(&mut self.cursor)
    }
}

impl Log {
    /// The records after `after`. A frame of nothing but the log's own records gives none. What lies before the newest segment's snapshot is not given again.
    /// Ends with the first damage.
    pub fn replay(&mut self, after: Index) -> Replay<'_> {
        let cursor = self.replay_from(after);
        Replay { log: self, cursor }
    }

    /// As [`Self::replay`], but the log stays free between the records: call [`Self::replay_next`].
    #[must_use]
    pub fn replay_from(&self, after: Index) -> ReplayCursor {
        ReplayCursor {
            after,
            at: self.open.place_before(after),
            end: self.open.end,
            current: None,
            failed: false,
        }
    }

    /// The next record of a replay.
    pub fn replay_next(&mut self, cursor: &mut ReplayCursor) -> Option<Result<Replayed, Damage>> {
        if cursor.failed {
            return None;
        }
        match self.replay_step(cursor) {
            Ok(replayed) => replayed.map(Ok),
            Err(damage) => {
                cursor.failed = true;
                self.counts.unreadable += 1;
                Some(Err(damage))
            }
        }
    }

    fn replay_step(&mut self, cursor: &mut ReplayCursor) -> Result<Option<Replayed>, Damage> {
        loop {
            if let Some(current) = &mut cursor.current {
                if let Some(replayed) =
                    current.next().map_err(|reason| self.open_damage(cursor.at, reason))?
                {
                    return Ok(Some(replayed));
                }
                cursor.current = None;
            }
            if cursor.at >= cursor.end {
                return Ok(None);
            }
            // Damage in the middle of the segment is known from its opening.
            if let Some(fence) = &self.fence
                && fence.offset <= cursor.at
            {
                return Err(fence.clone());
            }
            let (header, body) = self.frame(cursor.at, cursor.end)?;
            cursor.at += header.frame_bytes();
            if header.is_ordinary() && header.index > cursor.after {
                cursor.current = Some(Current {
                    index: header.index,
                    term: header.term,
                    timestamp: header.timestamp,
                    body,
                    at: 0,
                });
            }
        }
    }

    fn open_damage(&self, offset: u64, reason: DamageReason) -> Damage {
        Damage { segment: self.open.header.segment, offset, reason }
    }

    /// The frame of the newest segment at this place, verified.
    fn frame(&mut self, at: u64, end: u64) -> Result<(FrameHeader, Bytes), Damage> {
        self.frame_in(self.open.key(), at, end)
    }

    /// Whether the frame at `index` has this checksum: verifies a checkpoint. `false` too when the frame
    /// lies before the newest segment's snapshot.
    pub fn contains(&mut self, index: Index, checksum: u32) -> bool {
        let base = self.open.header.segment.0 - 1;
        if index.0 == base {
            return checksum == self.open.header.previous_checksum;
        }
        if index == self.last_index {
            return checksum == self.last_checksum;
        }
        if index.0 < base || index > self.last_index {
            return false;
        }
        let (mut at, end) = (self.open.place_before(index), self.open.end);
        while at < end {
            let Ok((header, _)) = self.frame(at, end) else { return false };
            if header.is_ordinary() && header.index >= index {
                return header.index == index && header.checksum == checksum;
            }
            at += header.frame_bytes();
        }
        false
    }
}

impl Current {
    pub(crate) fn next(&mut self) -> Result<Option<Replayed>, DamageReason> {
        loop {
            let rest = self.body.slice(self.at..);
            let Some(record) = Records::new(&rest).next().transpose()? else { return Ok(None) };
            self.at += record.bytes.len();
            let bytes = rest.slice_ref(record.bytes);
            let record = match record.kind {
                Kind::Message => ReplayedRecord::Message(message_of(&bytes)?),
                Kind::Control => ReplayedRecord::Control(rest.slice_ref(record.body())),
                Kind::Replication => ReplayedRecord::Replication(rest.slice_ref(record.body())),
                // The log's own.
                Kind::Snapshot | Kind::Manifest | Kind::Retired => continue,
            };
            return Ok(Some(Replayed {
                index: self.index,
                term: self.term,
                timestamp: self.timestamp,
                record,
            }));
        }
    }
}
