//! The segments of an open log: the one that is written, and the sealed ones.

use std::sync::Arc;

use crate::{
    Damage, DiskFile, Index, StreamId, Term,
    disk::BLOCK_BYTES,
    files::Files,
    format::{
        frame::FrameHeader,
        hash::ContentHash,
        record::{Kind, Records, WITH_MESSAGE_ID},
        segment::{Footer, SegmentHeader, SegmentKey},
    },
    index::{
        IndexCache, MemoryIndex, Run, RunTotals, SIDE_HEADER_BYTES, SideDirectory, SideFault, SideRun,
        decode_directory, decode_header,
    },
};

/// Bytes between two marks of the open segment.
const MARK_EVERY: u64 = 256 * 1024;

/// Zeros written at once ahead of the frames. The first sync behind a write into blocks that are only
/// reserved has to put their change of state into the filesystem's journal, which costs as much again as the
/// sync (measured on ext4: 310 instead of 190 µs for 8 KiB); this way one sync in many pays for it.
const ZERO_AHEAD: u64 = 512 * 1024;

/// Larger frames pay for themselves: zeros ahead of them would double what is written.
const ZERO_AHEAD_FRAME_MAX: usize = 64 * 1024;

static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// The segment that is written.
#[derive(Debug)]
pub(crate) struct OpenSegment {
    pub(crate) header: SegmentHeader,
    pub(crate) file: Box<dyn DiskFile>,
    /// Where the next frame will stand.
    pub(crate) end: u64,
    /// Where the frames behind the snapshot begin.
    pub(crate) frames_from: u64,
    /// Of what stands from the first frame to `end`.
    pub(crate) hash: ContentHash,
    pub(crate) frames: u32,
    /// Frames that are the engine's.
    pub(crate) ordinary: u64,
    pub(crate) records: u64,
    /// The last frame is a seal.
    pub(crate) sealed: bool,
    /// Term of the last entry before this segment; 0 when there is none.
    pub(crate) base_term: Term,
    pub(crate) index: MemoryIndex,
    /// Up to here zeros were written ahead.
    zeroed_to: u64,
    /// What of the last block is written, and where it ends; the one is right only if the other is the end.
    tail: (u64, Vec<u8>),
    /// Now and then an index and the place of its frame, so that a replay need not begin at the front.
    marks: Vec<(Index, u64)>,
}

impl OpenSegment {
    /// Bytes of frames behind the snapshot for which there is space.
    pub(crate) const fn capacity(&self) -> u64 {
        self.header.preallocated.saturating_sub(self.frames_from)
    }

    /// A segment in which only a header stands.
    pub(crate) fn new(header: SegmentHeader, file: Box<dyn DiskFile>, frames_from: u64) -> Self {
        Self {
            header,
            file,
            end: frames_from,
            frames_from,
            hash: ContentHash::new(),
            frames: 0,
            ordinary: 0,
            records: 0,
            sealed: false,
            base_term: Term(0),
            index: MemoryIndex::default(),
            zeroed_to: 0,
            tail: (0, Vec::new()),
            marks: Vec::new(),
        }
    }

    pub(crate) const fn key(&self) -> SegmentKey {
        self.header.key()
    }

    /// Takes note of a frame that stands at `self.end`. Its messages are noted when they are pushed.
    pub(crate) fn appended(&mut self, header: &FrameHeader, frame: &[u8]) {
        if self.frames == 0 && !header.is_ordinary() {
            self.base_term = header.term;
        }
        if header.is_ordinary() {
            self.mark(header.index, self.end);
            self.ordinary += 1;
        }
        self.hash.update(frame);
        self.keep_tail(frame);
        self.end += frame.len() as u64;
        self.frames += 1;
        self.records += u64::from(header.records);
        self.sealed = header.has(crate::format::frame::SEAL);
    }

    /// Writes a frame at `self.end`. A large one goes past the system's cache, in whole blocks: what stands in its
    /// first block is written again as it is, what follows in its last one is zeros as before. A sector is
    /// written whole or not at all, so nothing that is durable can be lost by that; through the cache the
    /// system does the same.
    pub(crate) fn write_frame(&mut self, frame: &[u8], direct_bytes_min: usize) -> std::io::Result<()> {
        let lead = usize::try_from(self.end % BLOCK_BYTES as u64).expect("less than a block");
        let begin = self.end - lead as u64;
        let blocks = (lead + frame.len()).next_multiple_of(BLOCK_BYTES);
        // Behind the reserved part nothing is written but frames: the file must not grow by this.
        if frame.len() < direct_bytes_min || begin + blocks as u64 > self.header.preallocated {
            self.zero_ahead(frame.len())?;
            return self.file.write_at(frame, self.end);
        }
        if self.tail.0 != self.end {
            self.tail.1.resize(lead, 0);
            if self.file.read_at(&mut self.tail.1, begin)? != lead {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            self.tail.0 = self.end;
        }
        let behind = blocks - lead - frame.len();
        self.file.write_blocks_at(&[&self.tail.1, frame, &ZEROS[..behind]], begin)?;
        self.zeroed_to = self.zeroed_to.max(begin + blocks as u64);
        Ok(())
    }

    /// Notes what the last block holds once this frame stands at `self.end`.
    fn keep_tail(&mut self, frame: &[u8]) {
        let end = self.end + frame.len() as u64;
        let wanted = usize::try_from(end % BLOCK_BYTES as u64).expect("less than a block");
        let (known_to, tail) = &mut self.tail;
        if let Some(from) = frame.len().checked_sub(wanted) {
            tail.clear();
            tail.extend_from_slice(&frame[from..]);
        } else if *known_to == self.end {
            tail.extend_from_slice(frame);
        } else {
            // It is read when it is needed.
            return;
        }
        *known_to = end;
    }

    /// Before a small frame is written at `self.end`: makes sure that it goes into blocks that were written.
    /// What is there reads as zeros before and after, so a crash in between changes nothing.
    fn zero_ahead(&mut self, frame_bytes: usize) -> std::io::Result<()> {
        let frame_end = self.end + frame_bytes as u64;
        if frame_bytes > ZERO_AHEAD_FRAME_MAX || frame_end <= self.zeroed_to {
            return Ok(());
        }
        // Behind the reserved part nothing is zeroed: the file must not grow by this.
        let mut at = self.zeroed_to.max(self.end);
        let to = (frame_end + ZERO_AHEAD).min(self.header.preallocated);
        while at < to {
            let count = (to - at).min(ZEROS.len() as u64);
            self.file.write_at(&ZEROS[..usize::try_from(count).expect("at most a piece")], at)?;
            at += count;
        }
        self.zeroed_to = to.max(self.zeroed_to);
        Ok(())
    }

    pub(crate) fn mark(&mut self, index: Index, at: u64) {
        if self.marks.last().is_none_or(|(_, before)| at >= before + MARK_EVERY) {
            self.marks.push((index, at));
        }
    }

    pub(crate) fn marks(&self) -> impl Iterator<Item = (Index, u64)> {
        self.marks.iter().copied()
    }

    /// A place at or before the frame of `index`, at the beginning of a frame.
    pub(crate) fn place_before(&self, index: Index) -> u64 {
        let behind = self.marks.partition_point(|(mark, _)| *mark <= index);
        behind.checked_sub(1).map_or(self.frames_from, |place| self.marks[place].1)
    }

    /// What to write behind the last frame when the segment is sealed.
    pub(crate) fn footer(&self, last_index: Index, last_checksum: u32) -> Footer {
        Footer {
            segment: self.header.segment,
            last_index,
            generation: self.header.generation,
            last_checksum,
            frames: self.frames,
            shard: self.header.shard,
            records: self.records,
            content_hash: self.hash.value(),
        }
    }
}

/// A segment that is not written any more.
#[derive(Debug)]
pub(crate) struct Sealed {
    pub(crate) key: SegmentKey,
    /// Of the file.
    pub(crate) bytes: u64,
    pub(crate) compacted: bool,
    pub(crate) footer: Option<Footer>,
    pub(crate) index: SealedIndex,
    /// Not everything that it held is known: what is not found in it may have been there.
    pub(crate) damage: Option<Damage>,
}

/// Where the index of a sealed segment is.
#[derive(Debug)]
pub(crate) enum SealedIndex {
    Side(SideDirectory),
    /// Of a segment that may not be whole.
    Memory(MemoryIndex),
    /// As it was when the segment was sealed: its side file is on its way, or could not be written.
    Unwritten(Arc<MemoryIndex>),
}

impl SealedIndex {
    pub(crate) fn totals(&self) -> Vec<RunTotals> {
        match self {
            Self::Side(directory) => directory.runs.iter().map(|row| row.totals).collect(),
            Self::Memory(index) => memory_totals(index),
            Self::Unwritten(index) => memory_totals(index),
        }
    }

    pub(crate) fn runs(&self) -> usize {
        match self {
            Self::Side(directory) => directory.runs.len(),
            Self::Memory(index) => index.runs().len(),
            Self::Unwritten(index) => index.runs().len(),
        }
    }

    /// Searches a stream's run. `None` when the segment has none.
    pub(crate) fn search<T>(
        &self,
        files: &mut Files,
        cache: &mut IndexCache,
        key: SegmentKey,
        stream: StreamId,
        f: &mut dyn FnMut(&mut dyn Run) -> Result<T, SideFault>,
    ) -> Result<Option<T>, SideFault> {
        match self {
            Self::Side(directory) => directory
                .place(stream)
                .map(|place| f(&mut SideRun::new(files, cache, key, place, &directory.runs[place])))
                .transpose(),
            Self::Memory(index) => index.run(stream).map(|mut run| f(&mut run)).transpose(),
            Self::Unwritten(index) => index.run(stream).map(|mut run| f(&mut run)).transpose(),
        }
    }
}

fn memory_totals(index: &MemoryIndex) -> Vec<RunTotals> {
    index.runs().iter().map(crate::index::MemoryRun::totals).collect()
}

/// Notes the messages of a frame that stands at `offset`, up to one that does not continue its stream;
/// says whether there was none such.
pub(crate) fn index_frame(index: &mut MemoryIndex, offset: u64, body: &[u8]) -> bool {
    let mut at = offset + crate::format::frame::FRAME_HEADER_BYTES as u64;
    for record in Records::new(body) {
        let Ok(record) = record else { return false };
        let len = record.bytes.len() as u64;
        match record.kind {
            Kind::Message => {
                // The frame was checked, so its records are what somebody wrote with care.
                if let Ok(message) = record.message() {
                    if !index.accepts(message.stream, message.sequence) {
                        return false;
                    }
                    let len = u32::try_from(len).expect("the length was a u32");
                    index.push(&message, at, len, record.flags & WITH_MESSAGE_ID != 0);
                }
            }
            Kind::Control | Kind::Snapshot | Kind::Manifest | Kind::Retired | Kind::Replication => {}
        }
        at += len;
    }
    true
}

/// The directory of a segment's side file, if there is one that belongs to it.
pub(crate) fn load_directory(files: &mut Files, key: SegmentKey, footer: &Footer) -> Option<SideDirectory> {
    let path = files.path(&key.index_name());
    let file = files.disk().open(&path, crate::OpenMode::Read).ok()?;
    let file_bytes = file.len().ok()?;
    let mut header = [0; SIDE_HEADER_BYTES];
    if file.read_at(&mut header, 0).ok()? != SIDE_HEADER_BYTES {
        return None;
    }
    let header = decode_header(&header, footer.shard, key, footer.content_hash, file_bytes)?;
    let mut directory = vec![0; header.directory_bytes as usize];
    if file.read_at(&mut directory, SIDE_HEADER_BYTES as u64).ok()? != directory.len() {
        return None;
    }
    decode_directory(header, &directory)
}
