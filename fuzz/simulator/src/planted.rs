//! Bugs put in on purpose: what a run does not find when they are there, it would not find when we make them. They
//! live here, in the world around the nodes, or behind the [`beamlog_router::Stepper`], which no product has.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use beamlog_log::sim_disk::SimDisk;
use beamlog_log::{Disk, DiskFile, DiskLock, OpenMode};

/// A bug.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum Planted {
    /// No node syncs its log before it says that it did.
    AckBeforeSync,
    /// One node does not: with three, each quorum that it is in is one copy short.
    QuorumOneShort,
    /// Votes are not synced.
    VoteNotSynced,
    /// Who leads is told of answers that never came, and commits with one copy less.
    AnswersMadeUp,
    /// So are the books that count beside.
    AnswersMadeUpAndBooked,
    /// Who becomes leader knows no message ids.
    IdsForgotten,
    /// What stands behind a hole in the log is cut when a node starts.
    HoleCut,
    /// How far a link came is not in the entries: who becomes leader does not know it.
    WatermarkBeside,
}

impl Planted {
    /// The disk that a node gets.
    pub fn disk(planted: Option<Self>, place: usize, disk: &SimDisk) -> Arc<dyn Disk> {
        let lies = match planted {
            Some(Self::AckBeforeSync) => Lies::Log,
            // Not the first, which leads at the beginning and hears of a quorum from another.
            Some(Self::QuorumOneShort) if place == 1 => Lies::Log,
            Some(Self::VoteNotSynced) => Lies::Vote,
            Some(
                Self::QuorumOneShort
                | Self::AnswersMadeUp
                | Self::AnswersMadeUpAndBooked
                | Self::IdsForgotten
                | Self::HoleCut
                | Self::WatermarkBeside,
            )
            | None => return Arc::new(disk.clone()),
        };
        Arc::new(Careless { disk: disk.clone(), lies })
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Lies {
    Log,
    Vote,
}

/// A disk of which some files are not synced by their sync.
#[derive(Debug)]
struct Careless {
    disk: SimDisk,
    lies: Lies,
}

#[derive(Debug)]
struct CarelessFile {
    file: Box<dyn DiskFile>,
    lies: bool,
    /// The next sync is one all the same.
    honest: AtomicBool,
}

impl Disk for Careless {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn DiskFile>> {
        // Files are made under another name at first: "vote.tmp".
        let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        let lies = name.starts_with("vote") == (self.lies == Lies::Vote);
        // What a new file begins with is synced: without it there is nothing that could be forgotten.
        let honest = AtomicBool::new(mode == OpenMode::CreateNew);
        Ok(Box::new(CarelessFile { file: self.disk.open(path, mode)?, lies, honest }))
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        self.disk.list(directory)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.disk.exists(path)
    }

    fn create_dir(&self, directory: &Path) -> io::Result<()> {
        self.disk.create_dir(directory)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }

    fn sync_dir(&self, directory: &Path) -> io::Result<()> {
        self.disk.sync_dir(directory)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn DiskLock>> {
        self.disk.lock(path)
    }
}

impl DiskFile for CarelessFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    fn read_at_past_cache(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at_past_cache(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_at(bytes, offset)
    }

    fn write_blocks_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()> {
        self.file.write_blocks_at(parts, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn preallocate(&self, len: u64) -> io::Result<()> {
        self.file.preallocate(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        let honest = self.honest.swap(false, Ordering::Relaxed);
        if self.lies && !honest { Ok(()) } else { self.file.sync_data() }
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.file.next_data(offset)
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
}
