//! The operating system's disk, by positioned reads and writes.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::Path,
    sync::{Mutex, OnceLock, PoisonError},
};

use super::{BLOCK_BYTES, Disk, DiskFile, DiskLock, OpenMode};

/// Alignment of `O_DIRECT` buffers, positions and lengths.
const DIRECT_ALIGNMENT: usize = BLOCK_BYTES;
/// One bounce buffer of a direct read.
const DIRECT_CHUNK: usize = 256 * 1024;

/// Real files. Files and directories it makes belong to their owner alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct StdDisk;

impl Disk for StdDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).mode(0o600);
        match mode {
            OpenMode::Read => &mut options,
            OpenMode::ReadWrite => options.write(true),
            OpenMode::CreateNew => options.write(true).create_new(true),
        };
        let file = options.open(path)?;
        Ok(Box::new(StdFile { file, mode, direct: OnceLock::new(), bounce: Mutex::default() }))
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(directory)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort_unstable();
        Ok(names)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        path.try_exists()
    }

    fn create_dir(&self, directory: &Path) -> io::Result<()> {
        fs::DirBuilder::new().mode(0o700).create(directory)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, directory: &Path) -> io::Result<()> {
        File::open(directory)?.sync_all()
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn DiskLock>> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Box::new(StdLock { _file: file })),
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

/// The lock belongs to the descriptor: the kernel lets go of it however the process ends.
#[derive(Debug)]
struct StdLock {
    _file: File,
}

impl DiskLock for StdLock {}

#[derive(Debug)]
struct StdFile {
    file: File,
    mode: OpenMode,
    /// A second descriptor with `O_DIRECT`, opened when first needed; `None` where that is impossible.
    direct: OnceLock<Option<File>>,
    /// Where what is written with `O_DIRECT` is laid out.
    bounce: Mutex<Vec<u8>>,
}

impl StdFile {
    fn direct(&self) -> Option<&File> {
        self.direct.get_or_init(|| open_direct(&self.file, self.mode)).as_ref()
    }
}

impl DiskFile for StdFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        fill(&self.file, buffer, offset)
    }

    fn read_at_past_cache(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        if let Some(direct) = self.direct() {
            match read_direct(direct, buffer, offset) {
                // Opened but not able to: some filesystems say so only now.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
                result => return result,
            }
        }
        drop_cache(&self.file, offset, buffer.len())?;
        fill(&self.file, buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn write_blocks_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()> {
        // What a panic left in it is written over.
        let mut space = self.bounce.lock().unwrap_or_else(PoisonError::into_inner);
        let len = parts.iter().map(|part| part.len()).sum::<usize>();
        if space.len() < len + DIRECT_ALIGNMENT {
            space.resize(len + DIRECT_ALIGNMENT, 0);
        }
        let skip = space.as_ptr().align_offset(DIRECT_ALIGNMENT);
        let bounce = &mut space[skip..skip + len];
        let mut at = 0;
        for part in parts {
            bounce[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        let done = match self.direct() {
            Some(direct) => write_direct(direct, bounce, offset)?,
            None => 0,
        };
        self.file.write_all_at(&bounce[done..], offset + done as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn preallocate(&self, len: u64) -> io::Result<()> {
        allocate(&self.file, len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    // Preallocated extents that were never written count as holes; a filesystem that keeps no account of
    // holes answers with the offset itself.
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        match rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Data(offset)) {
            Ok(at) => Ok(Some(at)),
            Err(rustix::io::Errno::NXIO) => Ok(None),
            Err(rustix::io::Errno::INVAL) => Ok((offset < self.len()?).then_some(offset)),
            Err(error) => Err(error.into()),
        }
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Reads with `O_DIRECT` through an aligned buffer.
fn read_direct(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut space = vec![0; DIRECT_CHUNK + DIRECT_ALIGNMENT];
    let skip = space.as_ptr().align_offset(DIRECT_ALIGNMENT);
    let bounce = &mut space[skip..skip + DIRECT_CHUNK];
    let mut done = 0;
    while done < buffer.len() {
        let position = offset + done as u64;
        let aligned = position - position % DIRECT_ALIGNMENT as u64;
        let count = match file.read_at(bounce, aligned) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        // Less than one alignment, so it fits.
        let lead = usize::try_from(position - aligned).expect("less than the alignment");
        let Some(found) = bounce[..count].get(lead..).filter(|found| !found.is_empty()) else {
            break;
        };
        let take = found.len().min(buffer.len() - done);
        buffer[done..done + take].copy_from_slice(&found[..take]);
        done += take;
        if count < DIRECT_CHUNK && count % DIRECT_ALIGNMENT != 0 {
            break; // the end of the file
        }
    }
    Ok(done)
}

/// Writes with `O_DIRECT` from an aligned buffer. Returns how much was written: less than all where the
/// filesystem cannot do it, or not any more.
fn write_direct(file: &File, bytes: &[u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < bytes.len() && done % DIRECT_ALIGNMENT == 0 {
        match file.write_at(&bytes[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Opened but not able to: some filesystems say so only now.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => break,
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

#[cfg(target_os = "linux")]
fn open_direct(file: &File, mode: OpenMode) -> Option<File> {
    use std::os::fd::AsRawFd;

    // By descriptor, not by name: the file may have been renamed since.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).ok()?;
    let writes = match mode {
        OpenMode::Read => false,
        OpenMode::ReadWrite | OpenMode::CreateNew => true,
    };
    OpenOptions::new().read(true).write(writes).custom_flags(flags).open(path).ok()
}

#[cfg(not(target_os = "linux"))]
fn open_direct(_: &File, _: OpenMode) -> Option<File> {
    None
}

#[cfg(target_os = "linux")]
fn drop_cache(file: &File, offset: u64, len: usize) -> io::Result<()> {
    rustix::fs::fadvise(file, offset, std::num::NonZeroU64::new(len as u64), rustix::fs::Advice::DontNeed)?;
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn drop_cache(_: &File, _: u64, _: usize) -> io::Result<()> {
    Ok(())
}

#[cfg(target_os = "linux")]
fn allocate(file: &File, len: u64) -> io::Result<()> {
    loop {
        match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, len) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::OPNOTSUPP) => return write_zeros(file, len),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn allocate(file: &File, len: u64) -> io::Result<()> {
    write_zeros(file, len)
}

/// Where the filesystem cannot reserve space, writing is the only way to have it.
fn write_zeros(file: &File, len: u64) -> io::Result<()> {
    let zeros = [0; 64 * 1024];
    let mut position = file.metadata()?.len();
    while position < len {
        let count = usize::try_from(len - position).map_or(zeros.len(), |left| left.min(zeros.len()));
        file.write_all_at(&zeros[..count], position)?;
        position += count as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_with_and_without_the_cache() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let file = StdDisk.open(&path, OpenMode::CreateNew).unwrap();
        let bytes: Vec<u8> = (0..600_000_u32).map(|n| (n * 7 / 3).to_le_bytes()[0]).collect();
        file.write_at(&bytes, 5).unwrap();
        file.sync_data().unwrap();
        assert_eq!(file.len().unwrap(), 600_005);
        for (offset, len) in [(5_u32, 600_000), (5000, 10), (4096, 4096), (300_001, 500_000)] {
            let mut cached = vec![1; len];
            let mut direct = vec![2; len];
            let count = file.read_at(&mut cached, u64::from(offset)).unwrap();
            assert_eq!(file.read_at_past_cache(&mut direct, u64::from(offset)).unwrap(), count);
            assert_eq!(count, len.min(600_005 - offset as usize));
            assert!(cached[..count] == direct[..count]);
        }
        assert_eq!(file.read_at_past_cache(&mut [0; 9], 600_005).unwrap(), 0);
        assert_eq!(file.read_at_past_cache(&mut [0; 9], 700_000).unwrap(), 0);
    }

    #[test]
    fn blocks_written_past_the_cache_are_read_with_and_without_it() {
        let directory = tempfile::tempdir().unwrap();
        let file = StdDisk.open(&directory.path().join("file"), OpenMode::CreateNew).unwrap();
        file.preallocate(1 << 20).unwrap();
        let bytes: Vec<u8> = (0..300_000_u32).map(|n| (n * 7 / 3).to_le_bytes()[0]).collect();
        // Small and large ones in turn, each time from within the block in which the one before ended.
        let mut end = 0;
        for len in [5000, 100_000, 17, 300_000, 4096, 1] {
            let part = &bytes[..len];
            if len < 5000 {
                file.write_at(part, end as u64).unwrap();
            } else {
                let lead = end % BLOCK_BYTES;
                let mut before = vec![0; lead];
                file.read_at(&mut before, (end - lead) as u64).unwrap();
                let behind = vec![0; (lead + len).next_multiple_of(BLOCK_BYTES) - lead - len];
                file.write_blocks_at(&[&before, part, &behind], (end - lead) as u64).unwrap();
            }
            file.sync_data().unwrap();
            end += len;
        }
        let (mut cached, mut direct) = (vec![1; end], vec![2; end]);
        assert_eq!(file.read_at(&mut cached, 0).unwrap(), end);
        assert_eq!(file.read_at_past_cache(&mut direct, 0).unwrap(), end);
        assert!(cached == direct);
        let expected: Vec<u8> =
            [5000, 100_000, 17, 300_000, 4096, 1].iter().flat_map(|len| &bytes[..*len]).copied().collect();
        assert!(cached == expected);
    }

    #[test]
    fn reserved_space_reads_as_zeros_and_keeps_what_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let file = StdDisk.open(&directory.path().join("file"), OpenMode::CreateNew).unwrap();
        file.write_at(b"kept", 0).unwrap();
        file.preallocate(10_000).unwrap();
        let mut bytes = vec![1; 20_000];
        assert_eq!(file.read_at(&mut bytes, 0).unwrap(), 10_000);
        assert_eq!(&bytes[..4], b"kept");
        assert!(bytes[4..10_000].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn data_is_found_behind_reserved_space_and_never_missed() {
        let directory = tempfile::tempdir().unwrap();
        let file = StdDisk.open(&directory.path().join("file"), OpenMode::CreateNew).unwrap();
        file.preallocate(1 << 20).unwrap();
        file.write_at(b"far", 700_000).unwrap();
        // Before the sync and after it; a filesystem without an account of holes may answer with less.
        for _ in 0..2 {
            assert!(file.next_data(0).unwrap().unwrap() <= 700_000);
            assert_eq!(file.next_data(700_001).unwrap(), Some(700_001));
            assert_eq!(file.next_data(1 << 20).unwrap(), None);
            file.sync_data().unwrap();
        }
    }

    #[test]
    fn modes_refuse_what_they_must() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let missing = StdDisk.open(&path, OpenMode::ReadWrite).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        StdDisk.open(&path, OpenMode::CreateNew).unwrap();
        let again = StdDisk.open(&path, OpenMode::CreateNew).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        let read_only = StdDisk.open(&path, OpenMode::Read).unwrap();
        assert!(read_only.write_at(b"x", 0).is_err());
        assert_eq!(StdDisk.list(directory.path()).unwrap(), ["file"]);
    }

    #[test]
    fn a_lock_is_held_once_and_freed_by_its_guard() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let held = StdDisk.lock(&path).unwrap();
        let refused = StdDisk.lock(&path).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        drop(held);
        StdDisk.lock(&path).unwrap();
    }
}
