//! The files of one shard's directory: names, a bounded number of open ones, and read-ahead.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{Damage, DamageReason, Disk, DiskFailed, DiskFile, OpenMode, format::segment::SegmentKey};

/// Files kept open for reading.
const OPEN_FILES_MAX: usize = 64;
/// One read-ahead.
const BLOCK_BYTES: usize = 256 * 1024;
/// A frame larger than this is read again from the disk.
const LATEST_BYTES_MAX: usize = 1 << 20;
/// How far behind the end of an earlier read one may begin and still look like its continuation.
const CONTINUATION_BYTES: u64 = 64 * 1024;
/// Ends of earlier reads that are remembered, one for each reader that goes through in order.
const READERS: usize = 8;

/// A directory, read through.
#[derive(Debug)]
pub(crate) struct Files {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    open: Vec<OpenFile>,
    blocks: Vec<Block>,
    blocks_max: usize,
    /// The frame that was written last, if it went past the system's cache.
    latest: Option<Block>,
    ends: [(Option<SegmentKey>, u64); READERS],
    next_end: usize,
    clock: u64,
    pub(crate) block_hits: u64,
}

#[derive(Debug)]
struct OpenFile {
    key: SegmentKey,
    is_index: bool,
    used: u64,
    file: Box<dyn DiskFile>,
}

#[derive(Debug)]
struct Block {
    key: SegmentKey,
    at: u64,
    bytes: Vec<u8>,
    used: u64,
}

impl Block {
    fn end(&self) -> u64 {
        self.at + self.bytes.len() as u64
    }
}

impl Files {
    pub(crate) fn new(disk: Arc<dyn Disk>, directory: &Path, read_cache_bytes: usize) -> Self {
        Self {
            disk,
            directory: directory.to_owned(),
            open: Vec::new(),
            blocks: Vec::new(),
            latest: None,
            blocks_max: (read_cache_bytes / BLOCK_BYTES).max(1),
            ends: [(None, 0); READERS],
            next_end: 0,
            clock: 0,
            block_hits: 0,
        }
    }

    pub(crate) fn disk(&self) -> &dyn Disk {
        &*self.disk
    }

    pub(crate) const fn shared_disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    pub(crate) fn disk_handle(&self) -> Arc<dyn Disk> {
        Arc::clone(&self.disk)
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Adds the facts to an error of an operation on one of the files.
    pub(crate) fn failed(&self, action: &'static str, name: &str, source: io::Error) -> DiskFailed {
        DiskFailed { action, path: self.path(name), source }
    }

    pub(crate) fn sync_directory(&self) -> Result<(), DiskFailed> {
        self.disk.sync_dir(&self.directory).map_err(|source| DiskFailed {
            action: "syncing the directory",
            path: self.directory.clone(),
            source,
        })
    }

    /// Closes what is open of a segment and forgets what was read of it.
    pub(crate) fn forget(&mut self, key: SegmentKey) {
        self.open.retain(|open| open.key != key);
        self.blocks.retain(|block| block.key != key);
        self.latest = self.latest.take().filter(|block| block.key != key);
    }

    /// Keeps a frame that stands at this place, unless it is large, and gives back memory for another one.
    pub(crate) fn keep_latest(&mut self, key: SegmentKey, at: u64, frame: &mut Vec<u8>) {
        let mut bytes = self.latest.take().map_or_else(Vec::new, |latest| latest.bytes);
        if frame.len() <= LATEST_BYTES_MAX {
            std::mem::swap(&mut bytes, frame);
            self.latest = Some(Block { key, at, bytes, used: 0 });
        }
    }

    /// Reads from a side file.
    pub(crate) fn read_index(&mut self, key: SegmentKey, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        self.file(key, true)?.read_at(buffer, at)
    }

    /// Reads from a segment, without read-ahead.
    pub(crate) fn read_segment(&mut self, key: SegmentKey, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        self.file(key, false)?.read_at(buffer, at)
    }

    fn file(&mut self, key: SegmentKey, is_index: bool) -> io::Result<&dyn DiskFile> {
        self.clock += 1;
        let known = self.open.iter().position(|open| open.key == key && open.is_index == is_index);
        let place = match known {
            Some(place) => place,
            None => {
                let name = if is_index { key.index_name() } else { key.file_name() };
                let file = self.disk.open(&self.path(&name), OpenMode::Read)?;
                if self.open.len() >= OPEN_FILES_MAX
                    && let Some(oldest) = (0..self.open.len()).min_by_key(|place| self.open[*place].used)
                {
                    self.open.swap_remove(oldest);
                }
                self.open.push(OpenFile { key, is_index, used: 0, file });
                self.open.len() - 1
            }
        };
        self.open[place].used = self.clock;
        Ok(&*self.open[place].file)
    }

    /// `len` bytes of a segment at `at`. Who reads on where an earlier read ended gets read-ahead, up to
    /// `end`, behind which the segment has no bytes yet.
    pub(crate) fn record(&mut self, key: SegmentKey, at: u64, len: u32, end: u64) -> Result<&[u8], Damage> {
        let damage = |reason| Damage { segment: key.segment, offset: at, reason };
        let wanted = usize::try_from(len).map_err(|_too_long| damage(DamageReason::Length))?;
        let until = at.checked_add(u64::from(len)).ok_or_else(|| damage(DamageReason::Length))?;
        if until > end {
            return Err(damage(DamageReason::Length));
        }
        let holds = |block: &Block| block.key == key && block.at <= at && until <= block.end();
        if self.latest.as_ref().is_some_and(holds) {
            self.block_hits += 1;
            return Ok(piece(self.latest.as_ref().expect("it was just looked at"), at, wanted));
        }
        self.clock += 1;
        let clock = self.clock;
        if let Some(place) = self.blocks.iter().position(holds) {
            self.block_hits += 1;
            let block = &mut self.blocks[place];
            block.used = clock;
            return Ok(piece(block, at, wanted));
        }
        let continues = self
            .ends
            .iter()
            .position(|(known, before)| *known == Some(key) && before.abs_diff(at) < CONTINUATION_BYTES);
        let ahead = if continues.is_some() {
            let left = usize::try_from(end - at).unwrap_or(usize::MAX);
            BLOCK_BYTES.min(left).max(wanted)
        } else {
            wanted
        };
        // The oldest block's memory is used again.
        let mut bytes = if self.blocks.len() >= self.blocks_max {
            let oldest = (0..self.blocks.len()).min_by_key(|place| self.blocks[*place].used);
            oldest.map_or_else(Vec::new, |place| self.blocks.swap_remove(place).bytes)
        } else {
            Vec::new()
        };
        bytes.resize(ahead, 0);
        let read = self.read_segment(key, &mut bytes, at).map_err(|_io| damage(DamageReason::Io))?;
        if read < wanted {
            return Err(damage(DamageReason::Length));
        }
        bytes.truncate(read);
        let place = continues.unwrap_or_else(|| {
            self.next_end = (self.next_end + 1) % READERS;
            self.next_end
        });
        self.ends[place] = (Some(key), at + bytes.len() as u64);
        self.blocks.push(Block { key, at, bytes, used: clock });
        let block = self.blocks.last().expect("it was just pushed");
        Ok(piece(block, at, wanted))
    }
}

fn piece(block: &Block, at: u64, len: usize) -> &[u8] {
    let from = usize::try_from(at - block.at).expect("a place inside a block");
    &block.bytes[from..from + len]
}
