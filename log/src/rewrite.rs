//! The one way in which a file comes into a shard's directory (DR10, DR11): written under a name that is
//! thrown away on open, synced, read back past the page cache, renamed, directory synced. Only then may
//! what it replaces go.

use crate::{DiskFailed, DiskFile, OpenMode, files::Files, format::hash::ContentHash};

/// What is read back at once.
const CHUNK_BYTES: usize = 1 << 20;

/// A file on its way.
#[derive(Debug)]
pub(crate) struct NewFile {
    name: String,
    file: Box<dyn DiskFile>,
    hash: ContentHash,
    end: u64,
}

impl NewFile {
    /// Begins a file; one left over under this name goes first.
    pub(crate) fn create(files: &Files, name: &str) -> Result<Self, DiskFailed> {
        let path = files.path(name);
        let disk = files.disk();
        if disk.exists(&path).map_err(|source| files.failed("looking for", name, source))? {
            disk.remove(&path).map_err(|source| files.failed("removing", name, source))?;
        }
        let file =
            disk.open(&path, OpenMode::CreateNew).map_err(|source| files.failed("creating", name, source))?;
        Ok(Self { name: name.to_owned(), file, hash: ContentHash::new(), end: 0 })
    }

    /// Where the next bytes will stand.
    pub(crate) const fn end(&self) -> u64 {
        self.end
    }

    /// Reserves space up to `len`.
    pub(crate) fn preallocate(&self, files: &Files, len: u64) -> Result<(), DiskFailed> {
        self.file.preallocate(len).map_err(|source| files.failed("preallocating", &self.name, source))
    }

    pub(crate) fn append(&mut self, files: &Files, bytes: &[u8]) -> Result<(), DiskFailed> {
        self.file.write_at(bytes, self.end).map_err(|source| files.failed("writing", &self.name, source))?;
        self.hash.update(bytes);
        self.end += bytes.len() as u64;
        Ok(())
    }

    /// Makes it durable under the name that is thrown away on open, and proves it.
    pub(crate) fn settle(self, files: &Files) -> Result<Settled, DiskFailed> {
        self.file.sync_data().map_err(|source| files.failed("syncing", &self.name, source))?;
        self.verify(files)?;
        Ok(Settled { name: self.name, file: self.file })
    }

    fn verify(&self, files: &Files) -> Result<(), DiskFailed> {
        let failed = |source| files.failed("reading back", &self.name, source);
        let mut hash = ContentHash::new();
        let mut at = 0;
        let mut chunk = vec![0; CHUNK_BYTES.min(usize::try_from(self.end).unwrap_or(CHUNK_BYTES))];
        while at < self.end {
            let left = usize::try_from(self.end - at).unwrap_or(usize::MAX).min(chunk.len());
            let read = self.file.read_at_past_cache(&mut chunk[..left], at).map_err(failed)?;
            if read == 0 {
                return Err(failed(std::io::ErrorKind::UnexpectedEof.into()));
            }
            hash.update(&chunk[..read]);
            at += read as u64;
        }
        if hash.value() == self.hash.value() {
            Ok(())
        } else {
            Err(failed(std::io::Error::new(
                std::io::ErrorKind::InvalidData,
                "the disk does not hold what was written",
            )))
        }
    }

    /// Gives it up.
    pub(crate) fn abandon(self, files: &Files) -> Result<(), DiskFailed> {
        files
            .disk()
            .remove(&files.path(&self.name))
            .map_err(|source| files.failed("removing", &self.name, source))
    }
}

/// A file whose bytes are durable and were read back.
#[derive(Debug)]
pub(crate) struct Settled {
    name: String,
    file: Box<dyn DiskFile>,
}

impl Settled {
    /// Makes it a file of the log: when this returns, it is there for good. When it fails, nobody knows
    /// whether it is there, and the caller must not go on as if it were not.
    ///
    /// Without the sync of the directory it is the planted bug of that name.
    pub(crate) fn install(
        self,
        files: &Files,
        name: &str,
        sync_directory: bool,
    ) -> Result<Box<dyn DiskFile>, DiskFailed> {
        files
            .disk()
            .rename(&files.path(&self.name), &files.path(name))
            .map_err(|source| files.failed("renaming to", name, source))?;
        if sync_directory {
            files.sync_directory()?;
        }
        Ok(self.file)
    }
}

/// Writes a file that can be made again from others: a power cut may leave anything under its name.
pub(crate) fn write_derived(files: &Files, name: &str, bytes: &[u8]) -> Result<(), DiskFailed> {
    let mut new = NewFile::create(files, &format!("{name}.tmp"))?;
    if let Err(failed) = new.append(files, bytes) {
        drop(new.abandon(files));
        return Err(failed);
    }
    files
        .disk()
        .rename(&files.path(&new.name), &files.path(name))
        .map_err(|source| files.failed("renaming to", name, source))
}
