//! Scrubbing: reading the sealed segments again and again, so that damage is found while another copy of what
//! it hit may still exist (DR15).
//!
//! Invariants: a step reads no more than it may; it changes nothing but `quarantine/`; a segment in which
//! damage was found is neither compacted nor removed by this log, so that nothing is concluded from it.

use crate::{
    Damage, DamageReason, Log, OpenMode, SegmentId,
    format::{
        frame::{FRAME_HEADER_BYTES, FrameHeader},
        hash::ContentHash,
        record::{RecordSalt, Records},
        segment::{FOOTER_BYTES, FRAMES_AT, Footer, SEGMENT_HEADER_BYTES, SegmentHeader, SegmentKey},
    },
    recovery::quarantine,
    segment::Sealed,
    tail::Order,
};

/// What one step of a scrub did.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Scrubbed {
    pub bytes: u64,
    /// A segment's first damage. The segment is not read further: the rest of it may be damaged too.
    pub damage: Option<Damage>,
    /// The last segment was read to its end; the next step begins with the first one again.
    pub finished: bool,
}

/// Where a scrub is. A restart forgets it.
#[derive(Debug, Default)]
pub(crate) struct Scrub {
    /// This pass is through with the segments up to this one.
    done: SegmentId,
    current: Option<Progress>,
}

/// A segment that is being read from its beginning to its end.
#[derive(Debug)]
struct Progress {
    key: SegmentKey,
    /// The place of what was read and not checked yet: the beginning of a frame that is not whole.
    at: u64,
    waiting: Vec<u8>,
    /// From the segment's header on.
    order: Option<Order>,
    hash: ContentHash,
    frames: u32,
    records: u64,
}

/// What a segment must turn out to be.
#[derive(Clone, Copy)]
struct Expected {
    compacted: bool,
    footer: Footer,
    salt: RecordSalt,
    /// Where the footer stands.
    end: u64,
    file_bytes: u64,
}

/// Damage at the beginning of what waits, and how much of that it makes doubtful.
struct Fault {
    reason: DamageReason,
    bytes: usize,
}

impl Log {
    /// Reads and verifies up to `budget_bytes` of the sealed segments past the page cache, where the last
    /// step ended; after the last segment begins with the first one. Keeps at most a frame in memory.
    ///
    /// Damage is counted, copied to `quarantine/` and told. Reads go on as before: each verifies what it
    /// serves, and the index, which has its own checksums, still says what is absent.
    pub fn scrub_step(&mut self, budget_bytes: usize) -> Scrubbed {
        let mut done = Scrubbed::default();
        let mut budget = budget_bytes;
        while budget > 0 && done.damage.is_none() && !done.finished {
            let Some(mut progress) = self.scrubbed_now() else { break };
            let Some(expected) = self.expected(progress.key) else { break };
            let (read, checked) = self.scrub_some(&mut progress, &expected, budget);
            budget = budget.saturating_sub(read);
            done.bytes += read as u64;
            match checked {
                Ok(false) => {
                    self.upkeep.scrub.current = Some(progress);
                    continue;
                }
                Ok(true) => {}
                Err(fault) => done.damage = Some(self.note_damage(&progress, &fault)),
            }
            self.upkeep.scrub.done = progress.key.segment;
            if self.next_to_scrub().is_none() {
                self.upkeep.scrub.done = SegmentId(0);
                self.counts.scrub_passes += 1;
                done.finished = true;
            }
        }
        self.counts.scrubbed_bytes += done.bytes;
        done
    }

    /// What a pass of [`Self::scrub_step`] reads.
    #[must_use]
    pub fn scrub_pass_bytes(&self) -> u64 {
        self.sealed.values().filter(|sealed| sealed.damage.is_none()).map(|sealed| sealed.bytes).sum()
    }

    /// The segment that is being read; another one if it was removed or compacted meanwhile.
    fn scrubbed_now(&mut self) -> Option<Progress> {
        let current =
            self.upkeep.scrub.current.take().filter(|progress| self.expected(progress.key).is_some());
        current.or_else(|| {
            // The segments behind the place may have gone.
            let next = self.next_to_scrub().or_else(|| {
                self.upkeep.scrub.done = SegmentId(0);
                self.next_to_scrub()
            });
            next.map(Progress::new)
        })
    }

    fn next_to_scrub(&self) -> Option<SegmentKey> {
        let behind = self.sealed.range(SegmentId(self.upkeep.scrub.done.0 + 1)..);
        behind.map(|(_, sealed)| sealed).find(|sealed| sealed.damage.is_none()).map(|sealed| sealed.key)
    }

    /// What a segment must be; `None` for one that is not there or known to be damaged.
    fn expected(&self, key: SegmentKey) -> Option<Expected> {
        let sealed = self.sealed.get(&key.segment)?;
        let Sealed { bytes, compacted, footer: Some(footer), damage: None, .. } = sealed else { return None };
        (sealed.key == key).then_some(Expected {
            compacted: *compacted,
            footer: *footer,
            salt: self.salt,
            end: bytes.saturating_sub(FOOTER_BYTES as u64),
            file_bytes: *bytes,
        })
    }

    /// Reads on and checks what is whole. How much was read, and whether the segment is at its end.
    fn scrub_some(
        &self,
        progress: &mut Progress,
        expected: &Expected,
        budget: usize,
    ) -> (usize, Result<bool, Fault>) {
        let known = progress.waiting.len();
        let from = progress.at + known as u64;
        let left = usize::try_from(expected.file_bytes.saturating_sub(from)).unwrap_or(usize::MAX);
        progress.waiting.resize(known + budget.min(left), 0);
        let path = self.files.path(&progress.key.file_name());
        let read = self
            .files
            .disk()
            .open(&path, OpenMode::Read)
            .and_then(|file| file.read_at_past_cache(&mut progress.waiting[known..], from));
        progress.waiting.truncate(known + read.as_ref().map_or(0, |read| *read));
        match read {
            Ok(0) => (0, Err(Fault { reason: DamageReason::Length, bytes: known })),
            Ok(read) => (read, progress.check(expected)),
            Err(source) => {
                tracing::error!(path = %path.display(), err = %source, "a segment cannot be read");
                (0, Err(Fault { reason: DamageReason::Io, bytes: known }))
            }
        }
    }

    fn note_damage(&mut self, progress: &Progress, fault: &Fault) -> Damage {
        let segment = progress.key.segment;
        let damage = Damage { segment, offset: progress.at, reason: fault.reason };
        tracing::error!(segment = segment.0, offset = damage.offset, err = %damage, "a scrub found damage");
        let bytes = &progress.waiting[..fault.bytes.min(progress.waiting.len())];
        if !bytes.is_empty() {
            // A copy that cannot be made was told, and changes nothing.
            drop(quarantine(&self.files, progress.key, progress.at, bytes));
        }
        self.counts.unreadable += 1;
        self.counts.scrub_damage += 1;
        if let Some(sealed) = self.sealed.get_mut(&segment) {
            sealed.damage = Some(damage.clone());
        }
        damage
    }
}

impl Progress {
    const fn new(key: SegmentKey) -> Self {
        Self { key, at: 0, waiting: Vec::new(), order: None, hash: ContentHash::new(), frames: 0, records: 0 }
    }

    /// Checks and lets go of what is whole. `true` at the end of the segment.
    fn check(&mut self, expected: &Expected) -> Result<bool, Fault> {
        let waiting = std::mem::take(&mut self.waiting);
        let mut rest = waiting.as_slice();
        let checked = loop {
            match self.check_next(rest, expected) {
                Ok(0) => break Ok(self.at == expected.file_bytes),
                Ok(used) => {
                    self.at += used as u64;
                    rest = &rest[used..];
                }
                Err(fault) => break Err(fault),
            }
        };
        self.waiting = rest.to_vec();
        checked
    }

    /// How long what stands at the beginning of these bytes is; 0 when it is not whole yet.
    fn check_next(&mut self, rest: &[u8], expected: &Expected) -> Result<usize, Fault> {
        let fault = |reason| Fault { reason, bytes: rest.len() };
        if self.at >= expected.file_bytes {
            return Ok(0);
        }
        if self.at == expected.end {
            let Some(footer) = rest.get(..FOOTER_BYTES) else { return Ok(0) };
            let is_whole = Footer::decode(footer) == Some(expected.footer)
                && self.frames == expected.footer.frames
                && self.records == expected.footer.records
                && self.hash.value() == expected.footer.content_hash;
            return if is_whole { Ok(FOOTER_BYTES) } else { Err(fault(DamageReason::Checksum)) };
        }
        let Some(order) = &mut self.order else {
            // Behind the header nothing is written up to the first frame.
            let front = usize::try_from(FRAMES_AT).expect("a few thousand");
            let Some(front) = rest.get(..front) else { return Ok(0) };
            let header = SegmentHeader::decode(&front[..SEGMENT_HEADER_BYTES])
                .map_err(|_fault| fault(DamageReason::Checksum))?;
            let is_ours = header.key() == self.key
                && header.compacted == expected.compacted
                && header.shard == expected.footer.shard;
            if !is_ours {
                return Err(fault(DamageReason::Misplaced));
            }
            self.order = Some(Order::of(&header));
            return Ok(front.len());
        };
        let Some(head) = rest.get(..FRAME_HEADER_BYTES) else { return Ok(0) };
        let header = FrameHeader::decode(head).map_err(|_fault| fault(DamageReason::Checksum))?;
        if header.frame_bytes() > expected.end.saturating_sub(self.at) {
            return Err(fault(DamageReason::Length));
        }
        let len = usize::try_from(header.frame_bytes()).expect("less than a segment");
        let Some(frame) = rest.get(..len) else { return Ok(0) };
        let body = &frame[FRAME_HEADER_BYTES..];
        let fault = |reason| Fault { reason, bytes: len };
        if !header.matches(head, body) {
            return Err(fault(DamageReason::Checksum));
        }
        if !order.accepts(&header) {
            return Err(fault(DamageReason::Chain));
        }
        let mut records = 0;
        for record in Records::new(body) {
            record.and_then(|record| record.verify(expected.salt)).map_err(fault)?;
            records += 1;
        }
        if records != u64::from(header.records) {
            return Err(fault(DamageReason::Length));
        }
        order.follow(&header);
        self.hash.update(frame);
        self.frames = self.frames.saturating_add(1);
        self.records += records;
        Ok(len)
    }
}
