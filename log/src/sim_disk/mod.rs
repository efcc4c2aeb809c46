//! A disk in memory that does what real disks do on bad days, and tells what was asked of it.
//!
//! The model is POSIX at its weakest. Every file has the bytes that reads see and the bytes on the
//! medium; between them lies a list of changes that a sync moves over. Names are kept the same way:
//! a created, renamed or removed name is on the medium after [`Disk::sync_dir`] of its directory, and
//! not because the file was synced. A power cut ([`SimDisk::crash`]) decides by [`Crash`] what becomes of
//! the changes: whole sectors survive or not, in any order and in any of the states they had.
//!
//! A failed sync behaves as ext4 and XFS do (FAULTS, measured): the changes are dropped from the list
//! but not from the cache. Reading shows the new bytes, also after opening again; the next sync says
//! `Ok`; the medium keeps the old ones, which only [`DiskFile::read_at_past_cache`] shows.
//!
//! Everything is decided by calls and seeds; two runs with the same ones are the same.

mod crash;
mod fault;
mod file;
mod tree;

use std::{
    collections::BTreeMap,
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

pub use crash::Crash;
pub use fault::{Event, Failure, Fault, Operation, Repeat};
pub use file::SECTOR_BYTES;

use crate::{Disk, DiskFile, DiskLock, OpenMode};
use tree::{NodeId, State};

/// The simulated disk. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

impl SimDisk {
    /// An empty disk with a root directory.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no operation panics half-way")
    }

    /// Another disk with the same content, cached and on the medium, and without faults, locks or trace.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self { state: Arc::new(Mutex::new(self.state().fork())) }
    }

    /// Lets operations fail as described. Faults add up; the first that fits decides.
    pub fn fail(&self, fault: Fault) {
        self.state().faults.add(fault);
    }

    /// Removes all faults and gives the space back.
    pub fn heal(&self) {
        let mut state = self.state();
        state.faults.clear();
        state.space_bytes_max = None;
    }

    /// Limits the space of all files together; `StorageFull` beyond it.
    pub fn limit_space(&self, bytes: u64) {
        self.state().space_bytes_max = Some(bytes);
    }

    /// The space that files have now.
    #[must_use]
    pub fn used_space(&self) -> u64 {
        self.state().used_space()
    }

    /// Lets reads of this part of a file fail with `EIO`, as a latent sector error does.
    pub fn break_range(&self, path: &Path, range: Range<u64>) -> io::Result<()> {
        self.state().file_mut(path)?.broken.push(range);
        Ok(())
    }

    /// Turns the machine off just before the `nth` changing operation from now (from 1): that one and all
    /// later operations fail, until [`Self::crash`] turns it on again.
    pub fn power_off_at(&self, nth: u64) {
        self.state().faults.power_off_at(nth);
    }

    /// Whether [`Self::power_off_at`] has struck.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.state().faults.is_off()
    }

    /// A power cut and the restart after it. Open files and held locks of before are gone; faults stay.
    pub fn crash(&self, crash: Crash) {
        self.state().crash(crash);
    }

    /// How many sectors hold changes that are not on the medium: the width of [`Crash::Sectors`].
    #[must_use]
    pub fn unsynced_sectors(&self) -> usize {
        self.state().unsynced_sectors()
    }

    /// How often this operation was asked for.
    #[must_use]
    pub fn count(&self, operation: Operation) -> u64 {
        self.state().faults.count(operation)
    }

    /// How many changing operations were asked for: the range of [`Self::power_off_at`].
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.state().faults.changes()
    }

    /// Starts to remember operations for [`Self::trace`].
    pub fn start_trace(&self) {
        self.state().faults.start_trace();
    }

    /// Puts a mark of the test between the operations.
    pub fn mark(&self, label: &str) {
        self.state().faults.mark(label);
    }

    /// What was asked of the disk since [`Self::start_trace`], in order.
    #[must_use]
    pub fn trace(&self) -> Vec<Event> {
        self.state().faults.trace().to_vec()
    }

    /// Changes the bytes of a file behind everybody's back, on the medium and in the cache, as an offline
    /// edit does. Unsynced changes of the file are settled first.
    pub fn alter(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let mut state = self.state();
        let file = state.file_mut(path)?;
        file.settle();
        change(&mut file.medium);
        file.cached.clone_from(&file.medium);
        Ok(())
    }

    /// Changes the bytes on the medium while the cache keeps believing in the old ones.
    pub fn alter_medium(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        change(&mut self.state().file_mut(path)?.medium);
        Ok(())
    }

    /// [`Self::alter`]: turns one bit over, counted from the start of the file.
    pub fn flip_bit(&self, path: &Path, bit: u64) -> io::Result<()> {
        let mut inside = false;
        self.alter(path, |bytes| {
            let at = usize::try_from(bit / 8).unwrap_or(usize::MAX);
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << (bit % 8);
                inside = true;
            }
        })?;
        if inside { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }

    /// The files on the medium by path: what a power cut that loses everything unsynced would leave.
    #[must_use]
    pub fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        self.state().files_on_medium()
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.state();
        let node = match mode {
            OpenMode::Read | OpenMode::ReadWrite => state.open(path)?,
            OpenMode::CreateNew => state.create(path)?,
        };
        Ok(Box::new(SimFile {
            disk: self.clone(),
            node,
            path: path.to_path_buf(),
            boot: state.boot,
            writable: mode != OpenMode::Read,
        }))
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        self.state().list(directory)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.state().exists(path)
    }

    fn create_dir(&self, directory: &Path) -> io::Result<()> {
        self.state().create_dir(directory)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.state().rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.state().remove(path)
    }

    fn sync_dir(&self, directory: &Path) -> io::Result<()> {
        self.state().sync_dir(directory)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn DiskLock>> {
        let mut state = self.state();
        let node = state.lock(path)?;
        Ok(Box::new(SimLock { disk: self.clone(), node, boot: state.boot }))
    }
}

/// An open file of the simulated disk; of no use after a crash.
#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    node: NodeId,
    path: PathBuf,
    boot: u64,
    writable: bool,
}

impl SimFile {
    fn state(&self, writes: bool) -> io::Result<MutexGuard<'_, State>> {
        if writes && !self.writable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let state = self.disk.state();
        if state.boot != self.boot {
            return Err(io::Error::other("opened before the power cut"));
        }
        Ok(state)
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.state(false)?.read(self.node, &self.path, buffer, offset)
    }

    fn read_at_past_cache(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.state(false)?.read_past_cache(self.node, &self.path, buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.state(true)?.write(self.node, &self.path, bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.state(true)?.set_len(self.node, &self.path, len)
    }

    fn preallocate(&self, len: u64) -> io::Result<()> {
        self.state(true)?.preallocate(self.node, &self.path, len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.state(false)?.sync_data(self.node, &self.path)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.state(false)?.next_data(self.node, &self.path, offset)
    }

    fn len(&self) -> io::Result<u64> {
        self.state(false)?.len(self.node, &self.path)
    }
}

#[derive(Debug)]
struct SimLock {
    disk: SimDisk,
    node: NodeId,
    boot: u64,
}

impl DiskLock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.disk.state().unlock(self.node, self.boot);
    }
}

#[cfg(test)]
mod tests;
