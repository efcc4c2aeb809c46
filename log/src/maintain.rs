//! Upkeep: dead segments go, mostly dead ones are compacted, the next segment's file is kept ready.
//!
//! Only what was dead when the newest segment's snapshot was taken counts as dead here: the state with which
//! a replay begins must find every message that its records speak of. Only a record in the log removes a
//! segment (DR7): it is written and synced first, in a frame that takes no index, and then the file goes.

use crate::{
    Damage, DiskFailed, Index, Log, MaintainError, Maintained, SegmentId, Sequence, StreamId, WriteError,
    files::Files,
    format::{
        frame::{self, COMPACTED, FRAME_HEADER_BYTES, FrameHeader},
        hash::ContentHash,
        record::{self, Kind, RecordView, WITH_MESSAGE_ID},
        segment::{FRAMES_AT, Footer, SegmentHeader, SegmentKey},
    },
    index::MemoryIndex,
    is_out_of_space,
    read::verify,
    released::Releases,
    replica::Pin,
    rewrite::NewFile,
    scrub::Scrub,
    segment::Sealed,
};

/// Runs that one step looks at.
const RUNS_PER_STEP: usize = 4096;
/// Bytes that one step of a compaction copies.
const BYTES_PER_STEP: usize = 4 << 20;
/// A snapshot is worth taking when it lets this many segments' worth of bytes go.
const ROLL_FOR_SEGMENTS: u64 = 2;

/// The state of upkeep between its steps.
#[derive(Debug, Default)]
pub(crate) struct Upkeep {
    /// The file of the next segment, preallocated.
    pub(crate) spare: Option<NewFile>,
    /// Of a segment that could not be begun for want of space: what stands before its first frame.
    pub(crate) front_bytes: u64,
    /// What was dead when the newest segment began.
    stable: Releases,
    /// Segments whose end is durably noted, and whose files are still there.
    retiring: Vec<SegmentId>,
    compaction: Option<Compaction>,
    survey: Survey,
    pub(crate) scrub: Scrub,
}

/// Going through the sealed segments, a few at a time.
#[derive(Debug, Default)]
struct Survey {
    /// The segment looked at last.
    at: SegmentId,
    /// What [`Releases::changes`] said when this pass began.
    changes: u64,
    rolls: u64,
    /// What was kept for others when this pass began.
    kept: (Index, usize),
    /// The last pass went through to the end and found nothing to do.
    finished: bool,
    /// Bytes that a snapshot would let go, of this pass so far and of the last one.
    counted: u64,
    reclaimable: u64,
}

impl Upkeep {
    /// A segment began: what is dead now was dead when its snapshot was taken.
    pub(crate) fn rolled(&mut self, releases: &Releases) {
        self.stable = releases.clone();
        self.survey = Survey { rolls: self.survey.rolls + 1, ..Survey::default() };
    }

    pub(crate) const fn wants_roll(&self, segment_bytes: u64) -> bool {
        self.survey.reclaimable >= ROLL_FOR_SEGMENTS * segment_bytes
    }

    /// Whether a new snapshot would let any segment go.
    pub(crate) const fn can_reclaim(&self) -> bool {
        self.survey.reclaimable > 0
    }

    pub(crate) fn is_retired(&self, segment: SegmentId) -> bool {
        self.retiring.contains(&segment)
    }
}

/// What of a segment lives.
struct Living {
    messages: u64,
    bytes: u64,
}

impl Living {
    fn of(sealed: &Sealed, releases: &Releases) -> Self {
        let mut sum = Self { messages: 0, bytes: 0 };
        for totals in sealed.index.totals() {
            let living = releases.living(totals.stream, totals.first, totals.last).min(totals.count);
            sum.messages += living;
            let share = u128::from(totals.bytes) * u128::from(living) / u128::from(totals.count.max(1));
            sum.bytes += u64::try_from(share).unwrap_or(totals.bytes);
        }
        sum
    }

    const fn is_worth_compacting(&self, sealed: &Sealed, dead_percent: u8) -> bool {
        let dead = sealed.bytes.saturating_sub(FRAMES_AT).saturating_sub(self.bytes);
        self.messages > 0 && dead * 100 >= sealed.bytes * dead_percent as u64
    }
}

/// A segment on its way to its next generation.
#[derive(Debug)]
struct Compaction {
    source: SegmentKey,
    new: NewFile,
    header: SegmentHeader,
    index: MemoryIndex,
    hash: ContentHash,
    /// The streams whose runs are still to be copied, the next one last.
    streams: Vec<StreamId>,
    /// The first sequence of the next stream that was not looked at.
    from: Sequence,
    frame: Vec<u8>,
    frame_records: u32,
    frames: u32,
    records: u64,
}

impl Log {
    /// One bounded step of upkeep: removes dead segments, compacts mostly dead ones, prepares the next
    /// segment. Call it between frames, and again at once while [`Maintained::more`].
    pub fn maintain(&mut self) -> Result<Maintained, MaintainError> {
        if self.poisoned {
            return Err(MaintainError::Poisoned);
        }
        let mut done = Maintained::default();
        if self.fence.is_some() {
            return Ok(done);
        }
        self.take_side_file(false);
        self.unlink_retired(&mut done)?;
        self.prepare_spare()?;
        if self.upkeep.compaction.is_some() {
            self.compact_step(&mut done)?;
            done.more = true;
            return Ok(done);
        }
        self.survey(&mut done)?;
        Ok(done)
    }

    /// Removes the files of segments whose end is durable.
    fn unlink_retired(&mut self, done: &mut Maintained) -> Result<(), DiskFailed> {
        if self.upkeep.retiring.is_empty() {
            return Ok(());
        }
        for segment in std::mem::take(&mut self.upkeep.retiring) {
            let Some(sealed) = self.take_sealed(segment) else { continue };
            self.remove_file(&sealed.key.file_name())?;
            self.remove_file(&sealed.key.index_name())?;
            done.removed.push(segment);
            done.freed_bytes += sealed.bytes;
            self.counts.segments_removed += 1;
        }
        self.refresh_history();
        self.files.sync_directory()
    }

    /// Looks for dead and mostly dead segments.
    fn survey(&mut self, done: &mut Maintained) -> Result<(), MaintainError> {
        let changes = self.releases.changes();
        let survey = &mut self.upkeep.survey;
        let kept = self.history.kept();
        if survey.finished && survey.changes == changes && survey.kept == kept {
            return Ok(());
        }
        if survey.finished || survey.at == SegmentId(0) {
            *survey = Survey {
                changes,
                kept,
                rolls: survey.rolls,
                reclaimable: survey.reclaimable,
                ..Survey::default()
            };
        }
        let mut budget = RUNS_PER_STEP;
        let mut dead = Vec::new();
        let mut compact = None;
        let upkeep = &mut self.upkeep;
        let history = &self.history;
        let mut went_through = true;
        for (segment, sealed) in self.sealed.range(SegmentId(upkeep.survey.at.0 + 1)..) {
            if budget == 0 || compact.is_some() {
                went_through = false;
                break;
            }
            budget = budget.saturating_sub(sealed.index.runs().max(1));
            upkeep.survey.at = *segment;
            // What a damaged segment held is not known: nothing may be concluded from what is.
            let kept = sealed.footer.is_some_and(|footer| history.keeps(sealed.key, footer.last_index));
            if sealed.damage.is_some() || kept || upkeep.is_retired(*segment) {
                continue;
            }
            let stable = Living::of(sealed, &upkeep.stable);
            if stable.messages == 0 {
                dead.push(*segment);
            } else if stable.is_worth_compacting(sealed, self.options.compact_dead_percent) {
                compact = Some(sealed.key);
            } else {
                let now = Living::of(sealed, &self.releases);
                if now.messages == 0 || now.is_worth_compacting(sealed, self.options.compact_dead_percent) {
                    upkeep.survey.counted += sealed.bytes.saturating_sub(now.bytes);
                }
            }
        }
        if went_through {
            upkeep.survey.finished = true;
            upkeep.survey.reclaimable = upkeep.survey.counted;
        }
        done.more = !went_through || compact.is_some();
        if !dead.is_empty() {
            let body = record::segment_list(dead.iter().copied());
            // A fact about this log's files: no entry, and durable before they go (DR7).
            self.append_local(Kind::Retired, &body).map_err(|error| match error {
                WriteError::Fenced(damage) => MaintainError::Damaged(damage),
                WriteError::Disk(failed) => MaintainError::Disk(failed),
                WriteError::Poisoned | WriteError::Entry(_) => MaintainError::Poisoned,
            })?;
            self.upkeep.retiring.extend(dead);
            done.more = true;
        }
        if let Some(key) = compact {
            match self.begin_compaction(key) {
                Ok(compaction) => self.upkeep.compaction = Some(compaction),
                // There is no space to make space this way: retiring goes on.
                Err(failed) if is_out_of_space(&failed.source) => {}
                Err(failed) => return Err(failed.into()),
            }
        }
        Ok(())
    }

    fn begin_compaction(&mut self, source: SegmentKey) -> Result<Compaction, DiskFailed> {
        let sealed = &self.sealed[&source.segment];
        let footer = sealed.footer.expect("a segment without damage has its footer");
        let header = SegmentHeader {
            compacted: true,
            shard: self.shard,
            segment: source.segment,
            generation: source.generation + 1,
            // The order of a compacted segment begins with what it ends with.
            previous_checksum: footer.last_checksum,
            previous_segment: SegmentId(0),
            preallocated: 0,
        };
        let mut streams: Vec<StreamId> = sealed.index.totals().iter().map(|totals| totals.stream).collect();
        streams.sort_unstable_by(|a, b| b.cmp(a));
        let mut new = NewFile::create(&self.files, "compacted.tmp")?;
        let mut front = header.encode();
        front.resize(usize::try_from(FRAMES_AT).expect("a few thousand"), 0);
        new.append(&self.files, &front)?;
        Ok(Compaction {
            source,
            new,
            header,
            index: MemoryIndex::default(),
            hash: ContentHash::new(),
            streams,
            from: Sequence(0),
            frame: vec![0; FRAME_HEADER_BYTES],
            frame_records: 0,
            frames: 0,
            records: 0,
        })
    }

    /// Gives up writing a segment anew that must stay as it is.
    pub(crate) fn stop_compaction(&mut self, pin: &Pin) -> Result<(), DiskFailed> {
        let pinned = |compaction: &mut Compaction| pin.contains(&compaction.source);
        match self.upkeep.compaction.take_if(pinned) {
            Some(compaction) => compaction.new.abandon(&self.files),
            None => Ok(()),
        }
    }

    /// Copies some more living messages; ends with the new generation in place.
    fn compact_step(&mut self, done: &mut Maintained) -> Result<(), MaintainError> {
        let Some(mut compaction) = self.upkeep.compaction.take() else { return Ok(()) };
        match self.copy_some(&mut compaction) {
            Ok(false) => self.upkeep.compaction = Some(compaction),
            Ok(true) => self.finish_compaction(compaction, done)?,
            Err(MaintainError::Disk(failed)) if is_out_of_space(&failed.source) => {
                compaction.new.abandon(&self.files)?;
            }
            Err(error) => {
                compaction.new.abandon(&self.files)?;
                return Err(error);
            }
        }
        Ok(())
    }

    /// `true` when there is nothing more to copy.
    fn copy_some(&mut self, compaction: &mut Compaction) -> Result<bool, MaintainError> {
        let mut budget = BYTES_PER_STEP;
        while let Some(stream) = compaction.streams.last().copied() {
            if budget == 0 {
                return Ok(false);
            }
            let from = compaction.from;
            let slots = self
                .search(stream, compaction.source.segment, &mut |run| {
                    let first = run.place_from(from)?;
                    let until = run.count().min(first + RUNS_PER_STEP);
                    (first..until).map(|place| run.slot(place)).collect::<Result<Vec<_>, _>>()
                })
                .map_err(MaintainError::Damaged)?;
            let Some(last) = slots.last() else {
                compaction.streams.pop();
                compaction.from = Sequence(0);
                continue;
            };
            compaction.from = last.sequence.next();
            let end = self.sealed[&compaction.source.segment].bytes;
            for slot in slots.iter().filter(|slot| !self.upkeep.stable.has(stream, slot.sequence)) {
                let damage = |reason| {
                    MaintainError::Damaged(Damage {
                        segment: compaction.source.segment,
                        offset: u64::from(slot.offset),
                        reason,
                    })
                };
                let bytes = self
                    .files
                    .record(compaction.source, u64::from(slot.offset), slot.len, end)
                    .map_err(MaintainError::Damaged)?;
                verify(bytes, self.salt, *slot, stream).map_err(damage)?;
                let record = RecordView::first(bytes).map_err(damage)?;
                let message = record.message().map_err(damage)?;
                let at = compaction.new.end() + compaction.frame.len() as u64;
                compaction.index.push(&message, at, slot.len, record.flags & WITH_MESSAGE_ID != 0);
                compaction.frame.extend_from_slice(bytes);
                compaction.frame_records += 1;
                budget = budget.saturating_sub(bytes.len());
                if compaction.frame.len() >= self.options.frame_bytes_max {
                    let footer = self.sealed[&compaction.source.segment].footer;
                    let footer = footer.expect("a segment without damage has its footer");
                    compaction.put_frame(&self.files, &footer, self.term, self.now)?;
                }
            }
        }
        let footer =
            self.sealed[&compaction.source.segment].footer.expect("a segment without damage has its footer");
        if compaction.frame_records > 0 {
            compaction.put_frame(&self.files, &footer, self.term, self.now)?;
        }
        Ok(true)
    }

    fn finish_compaction(
        &mut self,
        mut compaction: Compaction,
        done: &mut Maintained,
    ) -> Result<(), MaintainError> {
        let source = compaction.source;
        let old_footer =
            self.sealed[&source.segment].footer.expect("a segment without damage has its footer");
        let key = compaction.header.key();
        let footer = Footer {
            generation: key.generation,
            frames: compaction.frames,
            records: compaction.records,
            content_hash: compaction.hash.value(),
            ..old_footer
        };
        compaction.new.append(&self.files, &footer.encode())?;
        let bytes = compaction.new.end();
        let installed = compaction.new.settle(&self.files)?.install(
            &self.files,
            &key.file_name(),
            self.options.syncs_directory(),
        );
        if let Err(failed) = installed {
            self.poisoned = true;
            return Err(failed.into());
        }
        let index = self.write_side_file(key, &footer, compaction.index);
        let old = self.take_sealed(source.segment).expect("a segment is not removed while it is compacted");
        self.add_sealed(Sealed { key, bytes, compacted: true, footer: Some(footer), index, damage: None });
        self.remove_file(&source.file_name())?;
        self.remove_file(&source.index_name())?;
        self.files.sync_directory()?;
        self.refresh_history();
        done.compacted = Some(source.segment);
        done.freed_bytes += old.bytes.saturating_sub(bytes);
        self.counts.segments_compacted += 1;
        Ok(())
    }
}

impl Compaction {
    fn put_frame(
        &mut self,
        files: &Files,
        footer: &Footer,
        term: crate::Term,
        timestamp: crate::Timestamp,
    ) -> Result<(), DiskFailed> {
        let header = FrameHeader {
            flags: COMPACTED,
            sparse_pieces: 0,
            shard: self.header.shard,
            records: self.frame_records,
            segment: self.header.segment,
            index: footer.last_index,
            term,
            timestamp,
            body_bytes: 0,
            previous: footer.last_checksum,
            checksum: 0,
        };
        frame::finish(&mut self.frame, self.new.end(), &header);
        self.new.append(files, &self.frame)?;
        self.hash.update(&self.frame);
        self.frames += 1;
        self.records += u64::from(self.frame_records);
        self.frame_records = 0;
        self.frame.clear();
        self.frame.resize(FRAME_HEADER_BYTES, 0);
        Ok(())
    }
}
