//! Cutting entries that were never decided, and a tail that cannot be read.
//!
//! The surviving frames are written to a new generation of the segment, as after an unclean stop; the rename is
//! the moment in which the tail changes. So a crash leaves the old tail or the new one, and never a mixture.
//! What is cut is copied first. What the log noted for itself behind the place (local frames) is no entry, and is
//! written again behind what stays.

use crate::{
    EntryId, Index, Log, LogEntry, TailDoubt, TruncateError,
    files::Files,
    format::{
        frame::{self, FRAME_HEADER_BYTES, FrameHeader, LOCAL},
        segment::{FRAMES_AT, SegmentHeader, SegmentKey},
    },
    recovery::{Newest, quarantine_as},
    rewrite::NewFile,
};

/// Copied at once.
const CHUNK_BYTES: u64 = 1 << 20;
/// Cut tails that are kept for somebody to look at.
const KEPT_MAX: usize = 16;

impl Log {
    /// Gives up what was gathered: it will never be written.
    pub fn discard_pending(&mut self) {
        if self.pending.records > 0 {
            self.open.index.remove_from(self.open.end, &self.pending.frame[FRAME_HEADER_BYTES..]);
            self.pending.clear(self.options.frame_bytes_max * 2);
        }
    }

    /// Forgets which messages are dead, for an engine that is built again and tells it again. Until it has, reads
    /// may find dead ones.
    pub fn forget_releases(&mut self) {
        self.releases.clear();
    }

    /// Removes the entries behind `index`, and what was gathered. Durable when this returns; after an error the
    /// log has either the old tail or the new one, and is poisoned if nobody knows which.
    ///
    /// The entries of the newest segment only: a segment is begun when everything before it was decided, and
    /// what was decided is not cut.
    pub fn truncate_after(&mut self, index: Index) -> Result<(), TruncateError> {
        if self.poisoned {
            return Err(TruncateError::Poisoned);
        }
        if let Some(damage) = &self.fence {
            return Err(TruncateError::Fenced(damage.clone()));
        }
        self.discard_pending();
        if index >= self.last_index {
            return self.sync().map(|_durable| ()).map_err(TruncateError::from);
        }
        let base = Index(self.open.header.segment.0 - 1);
        if index < base {
            return Err(TruncateError::Decided { base });
        }
        self.sync()?;
        let within = self.within(index.next()).map_err(TruncateError::Damaged)?;
        let place = self.place_of(within, index.next()).map_err(TruncateError::Damaged)?;
        let cut = self.read_to_end(place)?;
        let local = local_frames(&cut);
        quarantine_as(&self.files, &truncated_name(self.open.key()), &cut);
        self.thin_out_kept();
        self.replace_tail(place, local, None)
    }

    /// What of the tail cannot be read, if the log was opened so ([`crate::SuspectTail::Report`]).
    #[must_use]
    pub const fn doubt(&self) -> Option<&TailDoubt> {
        self.doubt.as_ref()
    }

    /// Cuts the tail in doubt, of which a copy is kept: nobody can have counted on it, or its loss is accepted
    /// (DR5). Durable when this returns, and the log takes writes again. Does nothing when there is no doubt.
    pub fn cut_suspect_tail(&mut self) -> Result<(), TruncateError> {
        self.settle_doubt(None)
    }

    /// Puts a peer's entry in the place of the tail in doubt (DR5), at once: no crash leaves the log with neither.
    pub fn replace_suspect_tail(&mut self, entry: &LogEntry) -> Result<(), TruncateError> {
        if self.doubt.is_none() {
            return Err(TruncateError::NoDoubt);
        }
        self.settle_doubt(Some(entry))
    }

    fn settle_doubt(&mut self, entry: Option<&LogEntry>) -> Result<(), TruncateError> {
        if self.poisoned {
            return Err(TruncateError::Poisoned);
        }
        let Some(doubt) = self.doubt.clone() else { return Ok(()) };
        self.discard_pending();
        if let Some(entry) = entry {
            self.check_entry(entry)?;
        }
        let cut = read_exactly(&self.files, &*self.open.file, self.open.key(), doubt.offset, doubt.bytes)?;
        crate::recovery::quarantine(&self.files, self.open.key(), doubt.offset, &cut);
        self.replace_tail(doubt.offset, Vec::new(), entry)?;
        self.doubt = None;
        Ok(())
    }

    /// Writes the segment anew with what stands before `keep`, then these local frames, then this entry.
    fn replace_tail(
        &mut self,
        keep: u64,
        local: Vec<(FrameHeader, Vec<u8>)>,
        entry: Option<&LogEntry>,
    ) -> Result<(), TruncateError> {
        let old = self.open.key();
        let header = SegmentHeader { generation: old.generation + 1, ..self.open.header };
        let kept = self.order_at(keep)?;
        let mut new = NewFile::create(&self.files, "tail.tmp")?;
        let written = self.write_tail(&mut new, &header, keep, kept, local, entry);
        let settled = match written {
            Ok(()) => new.settle(&self.files)?,
            Err(error) => {
                new.abandon(&self.files)?;
                return Err(error);
            }
        };
        // From here on nobody knows which tail is there until it was looked at.
        self.poisoned = true;
        let key = header.key();
        drop(settled.install(&self.files, &key.file_name(), self.options.syncs_directory())?);
        let newest = Newest::read(&self.files, key, self.shard, &self.options)
            .map_err(|error| TruncateError::Reopen(Box::new(error)))?;
        let order = newest.order();
        self.open =
            newest.into_open_as_it_is(&self.files).map_err(|error| TruncateError::Reopen(Box::new(error)))?;
        self.files.forget(old);
        self.last_index = order.last_index;
        self.last_term = order.last_term;
        self.last_checksum = order.last_checksum;
        self.durable_index = order.last_index;
        self.unsynced = false;
        self.fence = None;
        if let Some(entry) = entry {
            self.set_time(entry.timestamp);
        }
        self.remove_file(&old.file_name())?;
        self.files.sync_directory()?;
        self.poisoned = false;
        self.refresh_history();
        Ok(())
    }

    fn write_tail(
        &self,
        new: &mut NewFile,
        header: &SegmentHeader,
        keep: u64,
        kept: (EntryId, u32),
        local: Vec<(FrameHeader, Vec<u8>)>,
        entry: Option<&LogEntry>,
    ) -> Result<(), TruncateError> {
        let files = &self.files;
        let mut front = header.encode();
        front.resize(usize::try_from(FRAMES_AT).expect("a few thousand"), 0);
        new.append(files, &front)?;
        let mut at = FRAMES_AT;
        while at < keep {
            let piece =
                read_exactly(files, &*self.open.file, self.open.key(), at, CHUNK_BYTES.min(keep - at))?;
            new.append(files, &piece)?;
            at += piece.len() as u64;
        }
        let frames = behind(new.end(), kept, local);
        if !frames.is_empty() {
            new.append(files, &frames)?;
        }
        if let Some(entry) = entry {
            let mut header = self.frame_header(header.segment, entry.records, 0, entry.id.index);
            header.term = entry.id.term;
            header.timestamp = entry.timestamp;
            header.previous = kept.1;
            let mut frame = vec![0; FRAME_HEADER_BYTES];
            frame.extend_from_slice(&entry.body);
            frame::finish(&mut frame, new.end(), &header);
            new.append(files, &frame)?;
        }
        new.preallocate(files, header.preallocated)?;
        Ok(())
    }

    /// The last entry before a place of the open segment, and its frame's checksum.
    fn order_at(&mut self, keep: u64) -> Result<(EntryId, u32), TruncateError> {
        let base = Index(self.open.header.segment.0 - 1);
        let mut last = EntryId { index: base, term: self.open.base_term };
        let mut checksum = self.open.header.previous_checksum;
        let mut at = self.open.frames_from;
        let key = self.open.key();
        while at < keep {
            let (header, _) = self.frame_in(key, at, keep).map_err(TruncateError::Damaged)?;
            if header.is_ordinary() {
                last = EntryId { index: header.index, term: header.term };
                checksum = header.checksum;
            }
            at += header.frame_bytes();
        }
        Ok((last, checksum))
    }

    /// Where an entry of the open segment, or what that begins with, ends; its name, and its frame's checksum.
    pub(super) fn end_of(&mut self, index: Index) -> Result<(u64, (EntryId, u32)), TruncateError> {
        let base = Index(self.open.header.segment.0 - 1);
        if index < base {
            return Err(TruncateError::Decided { base });
        }
        let within = self.within(index.next()).map_err(TruncateError::Damaged)?;
        let end = self.place_of(within, index.next()).map_err(TruncateError::Damaged)?;
        Ok((end, self.order_at(end)?))
    }

    /// What this log noted for itself in the open segment from `from` on, as it stands right behind the entry `last`
    /// that ends there.
    pub(super) fn notes_behind(&mut self, from: u64, last: (EntryId, u32)) -> Result<Vec<u8>, TruncateError> {
        let (key, end) = (self.open.key(), self.open.end);
        let mut notes = Vec::new();
        let mut at = from;
        while at < end {
            let (header, body) = self.frame_in(key, at, end).map_err(TruncateError::Damaged)?;
            if header.has(LOCAL) {
                let mut frame = vec![0; FRAME_HEADER_BYTES];
                frame.extend_from_slice(&body);
                notes.push((header, frame));
            }
            at += header.frame_bytes();
        }
        Ok(behind(from, last, notes))
    }

    /// Bytes of the open segment.
    pub(super) fn read_open(&self, from: u64, len: u64) -> Result<Vec<u8>, TruncateError> {
        read_exactly(&self.files, &*self.open.file, self.open.key(), from, len)
    }

    /// What stands in the open segment from this place on.
    fn read_to_end(&self, from: u64) -> Result<Vec<u8>, TruncateError> {
        read_exactly(&self.files, &*self.open.file, self.open.key(), from, self.open.end - from)
    }

    /// Removes the oldest copies of tails that were cut because others decided otherwise. Copies of damaged bytes
    /// stay.
    fn thin_out_kept(&self) {
        let directory = self.files.path(crate::recovery::QUARANTINE);
        let Ok(names) = self.files.disk().list(&directory) else { return };
        let kept: Vec<&String> = names.iter().filter(|name| name.starts_with(TRUNCATED)).collect();
        let too_many = kept.len().saturating_sub(KEPT_MAX);
        for name in &kept[..too_many] {
            if let Err(error) = self.files.disk().remove(&directory.join(name)) {
                tracing::warn!(name, err = %error, "an old copy of a cut tail stays");
            }
        }
    }
}

const TRUNCATED: &str = "truncated-";

fn truncated_name(key: SegmentKey) -> String {
    format!("{TRUNCATED}{:020}-{:06}.bytes", key.segment.0, key.generation)
}

/// Local frames as they stand from `at` on, behind the entry `last` whose frame has this checksum.
fn behind(at: u64, (last, checksum): (EntryId, u32), local: Vec<(FrameHeader, Vec<u8>)>) -> Vec<u8> {
    let mut frames = Vec::new();
    for (header, mut frame) in local {
        let header =
            FrameHeader { flags: LOCAL, index: last.index, term: last.term, previous: checksum, ..header };
        frame::finish(&mut frame, at + frames.len() as u64, &header);
        frames.append(&mut frame);
    }
    frames
}

/// The local frames among whole frames, with their bodies behind room for a header.
fn local_frames(mut frames: &[u8]) -> Vec<(FrameHeader, Vec<u8>)> {
    let mut local = Vec::new();
    while let Ok(header) = FrameHeader::decode(frames) {
        let len = usize::try_from(header.frame_bytes()).unwrap_or(usize::MAX);
        let Some((frame, rest)) = frames.split_at_checked(len) else { break };
        if header.has(LOCAL) {
            local.push((header, frame.to_vec()));
        }
        frames = rest;
    }
    local
}

fn read_exactly(
    files: &Files,
    file: &dyn crate::DiskFile,
    key: SegmentKey,
    from: u64,
    len: u64,
) -> Result<Vec<u8>, TruncateError> {
    let name = key.file_name();
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
    let read = file.read_at(&mut bytes, from).map_err(|source| files.failed("reading", &name, source))?;
    if read < bytes.len() {
        return Err(files.failed("reading", &name, std::io::ErrorKind::UnexpectedEof.into()).into());
    }
    Ok(bytes)
}
