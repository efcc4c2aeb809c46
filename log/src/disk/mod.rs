//! Where the log keeps its bytes: the only thing the log needs of the world.
//!
//! Two implementations: [`StdDisk`] is the operating system's, [`crate::SimDisk`] is one in memory
//! that forgets, tears, reorders and fails as real ones do. The words of the contract are those of
//! POSIX at its weakest:
//!
//! * Bytes written are durable only after [`DiskFile::sync_data`] returned `Ok`.
//! * A name (created, renamed, removed) is durable only after [`Disk::sync_dir`] of its directory.
//! * After a failed sync nothing is known about the bytes written since the last good one, and asking
//!   again, or reading them back, proves nothing (DR2): only [`DiskFile::read_at_past_cache`] tells.
//!
//! Errors are plain [`io::Error`]; the caller knows which path and position to add.

mod std_disk;

use std::{fmt, io, path::Path};

pub use std_disk::StdDisk;

/// Alignment of what is written past the system's cache: the largest logical block in use.
pub(crate) const BLOCK_BYTES: usize = 4096;

/// How a file is opened.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OpenMode {
    /// An existing file, not to be changed.
    Read,
    /// An existing file.
    ReadWrite,
    /// A file that must not exist yet.
    CreateNew,
}

/// Directories and names.
pub trait Disk: fmt::Debug + Send + Sync {
    /// Opens or creates a file. `NotFound` and `AlreadyExists` mean what they say.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn DiskFile>>;

    /// The names in a directory, sorted.
    fn list(&self, directory: &Path) -> io::Result<Vec<String>>;

    /// Whether there is a file or directory of this name. "Cannot look" is an error, never `false`.
    fn exists(&self, path: &Path) -> io::Result<bool>;

    /// Creates one directory; its parent must exist.
    fn create_dir(&self, directory: &Path) -> io::Result<()>;

    /// Gives a file or directory another name, replacing a file of that name. Atomic, and durable only
    /// after `sync_dir` of both directories.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in a directory durable.
    fn sync_dir(&self, directory: &Path) -> io::Result<()>;

    /// Takes the lock that `path` stands for, creating the file if need be, and keeps it until the guard
    /// is dropped or the process ends. `WouldBlock` when somebody else holds it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn DiskLock>>;
}

/// Holding it is holding the lock.
pub trait DiskLock: fmt::Debug + Send + Sync {}

/// An open file, read and written at positions.
pub trait DiskFile: fmt::Debug + Send + Sync {
    /// Reads until the buffer is full or the file ends; says how much was read.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// As [`Self::read_at`], but what the medium holds, whatever the system's cache believes.
    ///
    /// Slow; for recovery. Unsynced bytes of this or another process may be pushed to the medium first.
    fn read_at_past_cache(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes everything or fails; after a failure any part may have been written.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// As [`Self::write_at`] of these parts behind each other, past the system's cache where that is possible:
    /// for much that is not read from the file soon. Offset and length are multiples of 4096.
    fn write_blocks_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()> {
        self.write_at(&parts.concat(), offset)
    }

    /// Cuts or extends (with zeros) the file.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes the file at least `len` bytes long with the space for them reserved; what was not written
    /// reads as zeros. `StorageFull` when there is no space.
    fn preallocate(&self, len: u64) -> io::Result<()>;

    /// Makes the bytes and the length durable. After an error nothing more may be acknowledged.
    fn sync_data(&self) -> io::Result<()>;

    /// Where the next bytes at or after `offset` are that were ever written, `None` when up to the end
    /// nothing was: what lies between reads as zeros. An offset too small is right, one too large is not.
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>>;

    /// The length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// Whether an error says that space ran out (disk, quota or file size limit): an expected state that
/// passes (DR16), unlike every other failure of a write.
#[must_use]
pub fn is_out_of_space(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}
