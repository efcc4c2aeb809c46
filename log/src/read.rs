//! Reading messages: three outcomes (DR14), every byte verified (DR15).

use std::ops::RangeInclusive;

use bytes::Bytes;

use crate::{
    Damage, DamageReason, Entry, Journal, Log, Message, MessageRef, Read, RunSubject, RunSummary, SegmentId,
    Sequence, StreamId,
    format::{
        record::{Kind, MESSAGE_HEADER_BYTES, RecordView, message_of},
        segment::SegmentKey,
    },
    index::{Run, SideFault, Slot, find_next, find_previous, slot_of},
    log::{BEFORE_ALL, summary},
    segment::SealedIndex,
};

/// A search of one run, told what lives in it.
type Search<'a> =
    dyn FnMut(&mut dyn Run, &dyn Fn(Sequence) -> bool) -> Result<Option<Sequence>, SideFault> + 'a;

/// Where a message is.
struct Place {
    key: SegmentKey,
    /// What the segment's bytes end with, as far as they are written.
    end: u64,
    slot: Slot,
}

impl Log {
    /// Finds a message. `None`: there is none, and nothing is lost in which it could have been.
    fn locate(&mut self, stream: StreamId, sequence: Sequence) -> Result<Option<Place>, Damage> {
        if self.releases.has(stream, sequence) {
            return Ok(None);
        }
        if let Some(mut run) = self.open.index.run(stream)
            && run.slots().first().is_some_and(|first| first.sequence <= sequence)
        {
            let slot = slot_of(&mut run, sequence).expect("memory has no side file");
            let place = slot.map(|slot| Place { key: self.open.key(), end: self.open.end, slot });
            return self.or_lost(place);
        }
        let Some(segment) = self.sealed_run(stream, sequence) else { return self.or_lost(None) };
        let slot = self.search(stream, segment, &mut |run| slot_of(run, sequence))?;
        let place = slot.map(|slot| {
            let sealed = &self.sealed[&segment];
            Place { key: sealed.key, end: sealed.bytes, slot }
        });
        self.or_lost(place)
    }

    /// What was not found may have been in what is lost.
    fn or_lost(&mut self, place: Option<Place>) -> Result<Option<Place>, Damage> {
        match (&place, self.loss()) {
            (None, Some(damage)) => {
                self.counts.unreadable += 1;
                Err(damage)
            }
            (None, None) | (Some(_), _) => Ok(place),
        }
    }

    fn loss(&self) -> Option<Damage> {
        self.losses.values().next().or(self.fence.as_ref()).cloned()
    }

    /// The sealed segment in which a message is, if it is in one.
    fn sealed_run(&self, stream: StreamId, sequence: Sequence) -> Option<SegmentId> {
        let runs = self.runs.get(&stream)?;
        let place = runs.partition_point(|run| run.last < sequence);
        runs.get(place).filter(|run| run.first <= sequence).map(|run| run.segment)
    }

    /// Searches a run of a sealed segment; builds its side file again when that is unusable.
    pub(crate) fn search<T: Default>(
        &mut self,
        stream: StreamId,
        segment: SegmentId,
        f: &mut dyn FnMut(&mut dyn Run) -> Result<T, SideFault>,
    ) -> Result<T, Damage> {
        for _ in 0..2 {
            let sealed = &self.sealed[&segment];
            match sealed.index.search(&mut self.files, &mut self.cache, sealed.key, stream, f) {
                Ok(found) => return Ok(found.unwrap_or_default()),
                Err(SideFault) => self.rebuild_index(segment),
            }
        }
        // The side file was just written, and cannot be read: the segment cannot be served.
        let damage = Damage { segment, offset: 0, reason: DamageReason::Io };
        self.losses.insert(segment, damage.clone());
        Err(damage)
    }

    /// Indexes a sealed segment again from its frames. Runs that were known stay known, so that what is
    /// lost of them is unreadable and not absent.
    fn rebuild_index(&mut self, segment: SegmentId) {
        let (key, footer, compacted) = {
            let sealed = &self.sealed[&segment];
            (sealed.key, sealed.footer, sealed.compacted)
        };
        tracing::warn!(segment = segment.0, "building a side index again");
        self.files.forget(key);
        self.cache.forget(key);
        let header = self.read_header(key, compacted);
        let salvaged = self.salvage(key, header, footer);
        if let Some(damage) = &salvaged.damage {
            self.losses.insert(segment, damage.clone());
        }
        if let Some(sealed) = self.sealed.get_mut(&segment) {
            sealed.index = salvaged.index;
            sealed.damage = salvaged.damage;
        }
    }

    fn read_header(
        &mut self,
        key: SegmentKey,
        compacted: bool,
    ) -> Option<crate::format::segment::SegmentHeader> {
        let mut bytes = [0; crate::format::segment::SEGMENT_HEADER_BYTES];
        let read = self.files.read_segment(key, &mut bytes, 0).ok()?;
        crate::format::segment::SegmentHeader::decode(&bytes[..read]).ok().filter(|header| {
            header.key() == key && header.compacted == compacted && header.shard == self.shard
        })
    }

    /// The verified record of a message.
    fn record(&mut self, place: &Place, stream: StreamId) -> Result<Bytes, Damage> {
        let offset = u64::from(place.slot.offset);
        let damage = |reason| Damage { segment: place.key.segment, offset, reason };
        let is_open = place.key == self.open.key();
        let bytes = if is_open && offset >= self.open.end {
            let from = usize::try_from(offset - self.open.end).expect("a place in the frame being gathered");
            let len = place.slot.len as usize;
            self.pending.frame.get(from..from + len).ok_or_else(|| damage(DamageReason::Length))?
        } else {
            self.files.record(place.key, offset, place.slot.len, place.end)?
        };
        verify(bytes, self.salt, place.slot, stream).map_err(damage)?;
        self.counts.records_read += 1;
        Ok(Bytes::copy_from_slice(bytes))
    }

    fn find(&mut self, stream: StreamId, sequence: Sequence) -> Read<Message> {
        let place = match self.locate(stream, sequence) {
            Ok(Some(place)) => place,
            Ok(None) => return Read::Absent,
            Err(damage) => return Read::Unreadable(damage),
        };
        let offset = u64::from(place.slot.offset);
        let found = self.record(&place, stream).and_then(|record| {
            message_of(&record).map_err(|reason| Damage { segment: place.key.segment, offset, reason })
        });
        match found {
            Ok(message) => Read::Found(message),
            Err(damage) => {
                self.counts.unreadable += 1;
                tracing::error!(
                    stream = stream.0, sequence = sequence.0, segment = damage.segment.0, offset, err = %damage,
                    "a message is unreadable"
                );
                Read::Unreadable(damage)
            }
        }
    }

    fn find_entry(&mut self, stream: StreamId, sequence: Sequence) -> Result<Option<Entry>, Damage> {
        let Some(place) = self.locate(stream, sequence)? else { return Ok(None) };
        let subject = if place.key == self.open.key() {
            let run = self.open.index.run(stream).expect("a message was found in it");
            Bytes::copy_from_slice(run.subjects().name(place.slot.subject))
        } else {
            self.search(stream, place.key.segment, &mut |run| {
                let mut subject = Bytes::new();
                run.with_subject(place.slot.subject, &mut |name| subject = Bytes::copy_from_slice(name))?;
                Ok(subject)
            })?
        };
        Ok(Some(entry_of(&place.slot, subject)))
    }

    fn find_from(
        &mut self,
        stream: StreamId,
        from: Sequence,
        wanted: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<Option<Sequence>, Damage> {
        let from = self.releases.of(stream).map_or(from, |released| from.max(released.living_from()));
        let segments: Vec<SegmentId> = self.runs.get(&stream).map_or_else(Vec::new, |runs| {
            let place = runs.partition_point(|run| run.last < from);
            runs[place..].iter().map(|run| run.segment).collect()
        });
        let mut found = None;
        for segment in segments {
            found =
                self.find_in(stream, Some(segment), &mut |run, lives| find_next(run, from, lives, wanted))?;
            if found.is_some() {
                break;
            }
        }
        if found.is_none() {
            found = self.find_in(stream, None, &mut |run, lives| find_next(run, from, lives, wanted))?;
        }
        let until = found.unwrap_or_else(|| self.last_known(stream).next());
        self.refuse_hole(stream, from, until)?;
        match (&self.fence, found) {
            // The damaged part of the newest segment may have held more.
            (Some(damage), None) => Err(damage.clone()),
            (Some(_) | None, found) => Ok(found),
        }
    }

    fn find_until(
        &mut self,
        stream: StreamId,
        from: Sequence,
        wanted: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<Option<Sequence>, Damage> {
        let from = from.min(self.last_known(stream));
        let mut found =
            self.find_in(stream, None, &mut |run, lives| find_previous(run, from, lives, wanted))?;
        if found.is_none() {
            let segments: Vec<SegmentId> = self.runs.get(&stream).map_or_else(Vec::new, |runs| {
                let place = runs.partition_point(|run| run.first <= from);
                runs[..place].iter().rev().map(|run| run.segment).collect()
            });
            for segment in segments {
                found = self.find_in(stream, Some(segment), &mut |run, lives| {
                    find_previous(run, from, lives, wanted)
                })?;
                if found.is_some() {
                    break;
                }
            }
        }
        let after = found.unwrap_or(BEFORE_ALL).next();
        self.refuse_hole(stream, after, from.next())?;
        Ok(found)
    }

    /// Searches one run with what lives in it; of the open segment for `None`.
    fn find_in(
        &mut self,
        stream: StreamId,
        segment: Option<SegmentId>,
        f: &mut Search<'_>,
    ) -> Result<Option<Sequence>, Damage> {
        let Some(segment) = segment else {
            let Some(mut run) = self.open.index.run(stream) else { return Ok(None) };
            let released = self.releases.of(stream);
            let lives = |sequence| released.is_none_or(|released| !released.has(sequence));
            return Ok(f(&mut run, &lives).expect("memory has no side file"));
        };
        // Taken out, so that the search may have the rest of the log.
        let releases = std::mem::take(&mut self.releases);
        let released = releases.of(stream);
        let lives = |sequence| released.is_none_or(|released| !released.has(sequence));
        let found = self.search(stream, segment, &mut |run| f(run, &lives));
        self.releases = releases;
        found
    }

    fn last_known(&self, stream: StreamId) -> Sequence {
        let open = self.open.index.run(stream).and_then(|run| run.slots().last()).map(|slot| slot.sequence);
        open.or_else(|| self.runs.get(&stream)?.last().map(|run| run.last)).unwrap_or(BEFORE_ALL)
    }

    /// When something is lost, a sequence that is neither here nor released may be what is lost: then a
    /// search must not pass over it.
    fn refuse_hole(&mut self, stream: StreamId, from: Sequence, until: Sequence) -> Result<(), Damage> {
        if self.loss().is_none() {
            return Ok(());
        }
        let mut sequence = from.max(BEFORE_ALL.next());
        while sequence < until {
            if !self.releases.has(stream, sequence) {
                // Not found answers with the loss.
                self.locate(stream, sequence)?;
            }
            sequence = sequence.next();
        }
        Ok(())
    }

    /// The streams of which messages are stored. One that the engine does not know was deleted: release it.
    #[must_use]
    pub fn streams(&self) -> Vec<StreamId> {
        let mut streams: Vec<StreamId> = self.runs.keys().copied().collect();
        streams.extend(self.open.index.runs().iter().map(crate::index::MemoryRun::stream));
        streams.sort_unstable();
        streams.dedup();
        streams
    }

    /// The runs of a stream in the order of their sequences, the open segment's (whole) last.
    #[must_use]
    pub fn runs(&self, stream: StreamId) -> Vec<RunSummary> {
        let mut runs = self.runs.get(&stream).cloned().unwrap_or_default();
        let open = self.open.index.run(stream).map(|run| summary(self.open.header.segment, &run.totals()));
        runs.extend(open);
        runs
    }

    /// The subjects of a run. In the open segment these include messages after any checkpoint.
    pub fn run_subjects(&mut self, stream: StreamId, segment: SegmentId) -> Result<Vec<RunSubject>, Damage> {
        self.in_run(stream, segment, &mut |run| {
            let mut subjects = Vec::with_capacity(run.subject_count()?);
            run.for_subjects(&mut |name, totals| {
                subjects.push(RunSubject {
                    subject: Bytes::copy_from_slice(name),
                    first: totals.first,
                    last: totals.last,
                    count: totals.count,
                    bytes: totals.bytes,
                });
            })?;
            Ok(subjects)
        })
    }

    /// The messages of a run, released ones that are still there included.
    pub fn run_entries(&mut self, stream: StreamId, segment: SegmentId) -> Result<Vec<Entry>, Damage> {
        self.in_run(stream, segment, &mut |run| {
            let mut names = Vec::with_capacity(run.subject_count()?);
            run.for_subjects(&mut |name, _| names.push(Bytes::copy_from_slice(name)))?;
            let mut entries = Vec::with_capacity(run.count());
            for place in 0..run.count() {
                let slot = run.slot(place)?;
                let subject = names.get(slot.subject as usize).ok_or(SideFault)?.clone();
                entries.push(entry_of(&slot, subject));
            }
            Ok(entries)
        })
    }

    fn in_run<T: Default>(
        &mut self,
        stream: StreamId,
        segment: SegmentId,
        f: &mut dyn FnMut(&mut dyn Run) -> Result<T, SideFault>,
    ) -> Result<T, Damage> {
        if segment == self.open.header.segment {
            return Ok(self
                .open
                .index
                .run(stream)
                .map_or_else(T::default, |mut run| f(&mut run).expect("memory has no side file")));
        }
        match self.sealed.get(&segment) {
            // An index of damaged frames does not have everything.
            Some(sealed) => match (&sealed.damage, &sealed.index) {
                (Some(damage), SealedIndex::Memory(_)) => Err(damage.clone()),
                (Some(_), SealedIndex::Side(_) | SealedIndex::Unwritten(_)) | (None, _) => {
                    self.search(stream, segment, f)
                }
            },
            None => Ok(T::default()),
        }
    }
}

fn entry_of(slot: &Slot, subject: Bytes) -> Entry {
    let payload = (slot.len as usize)
        .saturating_sub(MESSAGE_HEADER_BYTES + subject.len() + slot.headers_bytes as usize);
    Entry {
        sequence: slot.sequence,
        timestamp: slot.timestamp,
        subject,
        headers_bytes: slot.headers_bytes,
        payload_bytes: u32::try_from(payload).expect("less than a length of 32 bits"),
    }
}

/// Whether these bytes are the record that the index says they are.
pub(crate) fn verify(
    bytes: &[u8],
    salt: crate::format::record::RecordSalt,
    slot: Slot,
    stream: StreamId,
) -> Result<(), DamageReason> {
    let record = RecordView::first(bytes)?;
    if record.bytes.len() != bytes.len() {
        return Err(DamageReason::Length);
    }
    record.verify(salt)?;
    let message = record.message()?;
    if record.kind == Kind::Message && message.stream == stream && message.sequence == slot.sequence {
        Ok(())
    } else {
        Err(DamageReason::Misplaced)
    }
}

impl Journal for Log {
    fn push_message(&mut self, message: &MessageRef<'_>) {
        self.push(message);
    }

    fn push_control(&mut self, body: &[u8]) {
        self.push_other(Kind::Control, body);
    }

    fn read(&mut self, stream: StreamId, sequence: Sequence) -> Read<Message> {
        self.find(stream, sequence)
    }

    fn entry(&mut self, stream: StreamId, sequence: Sequence) -> Read<Entry> {
        found(self.find_entry(stream, sequence))
    }

    fn next(
        &mut self,
        stream: StreamId,
        from: Sequence,
        wanted: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Read<Sequence> {
        found(self.find_from(stream, from, wanted))
    }

    fn previous(
        &mut self,
        stream: StreamId,
        from: Sequence,
        wanted: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Read<Sequence> {
        found(self.find_until(stream, from, wanted))
    }

    fn release(&mut self, stream: StreamId, sequences: RangeInclusive<Sequence>) {
        self.releases.release(stream, sequences);
    }

    fn release_stream(&mut self, stream: StreamId) {
        self.releases.release_stream(stream);
    }
}

fn found<T>(answer: Result<Option<T>, Damage>) -> Read<T> {
    match answer {
        Ok(Some(found)) => Read::Found(found),
        Ok(None) => Read::Absent,
        Err(damage) => Read::Unreadable(damage),
    }
}
