//! How secrets lie on disk: mode 0600 in directories of mode 0700, whole or not at all, also after a
//! power cut. A key that others can read is refused.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Certificate and key of a node, in one file, so that no moment has one without the other.
pub const IDENTITY_FILE: &str = "node.pem";
/// The authorities that are believed; two while one replaces the other.
pub const ROOTS_FILE: &str = "roots.pem";
pub const REVOKED_FILE: &str = "revoked";
/// The token of an edge that has no certificate.
pub const TOKEN_FILE: &str = "token";
/// What a hub knows of the tokens of its edges.
pub const TOKENS_FILE: &str = "tokens";
/// Certificate and key of the authority. Not needed where nodes run.
pub const AUTHORITY_FILE: &str = "ca.pem";

/// A file of certificates or revocations is never larger.
const FILE_BYTES_MAX: u64 = 4 << 20;
const OTHERS: u32 = 0o077;
const OTHERS_WRITE: u32 = 0o022;

#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("reading {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("writing {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("{path} has more than {FILE_BYTES_MAX} bytes")]
    TooLarge { path: PathBuf },
    #[error("{path} has mode {mode:04o}: others can read the key; make it 0600")]
    Exposed { path: PathBuf, mode: u32 },
    #[error("{path} has mode {mode:04o}: others can replace what is in it; make it 0700")]
    ExposedDirectory { path: PathBuf, mode: u32 },
}

/// Reads a small file.
///
/// # Errors
/// It cannot be read, or is larger than such files are.
pub fn read_bounded(path: &Path) -> Result<Vec<u8>, FileError> {
    let failed = |source| FileError::Read { path: path.to_owned(), source };
    read_from(File::open(path).map_err(failed)?, path)
}

/// Reads a file that nobody but its owner may read.
///
/// # Errors
/// As [`read_bounded`], and when its mode is wider than 0600.
pub fn read_secret(path: &Path) -> Result<Vec<u8>, FileError> {
    let failed = |source| FileError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    // Of the open file: the name may mean another one by now.
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
    if mode & OTHERS != 0 {
        return Err(FileError::Exposed { path: path.to_owned(), mode });
    }
    read_from(file, path)
}

fn read_from(file: File, path: &Path) -> Result<Vec<u8>, FileError> {
    let mut bytes = Vec::new();
    let read = file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|source| FileError::Read { path: path.to_owned(), source })?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(FileError::TooLarge { path: path.to_owned() });
    }
    Ok(bytes)
}

/// Puts a file in place of what was there, readable by its owner only. Durable on return; a crash leaves the old or
/// the new content. Makes the directory (0700) when it is missing.
///
/// # Errors
/// The old content is still there; or others may write to the directory.
pub fn write_atomically(path: &Path, content: &[u8]) -> Result<(), FileError> {
    let failed = |source| FileError::Write { path: path.to_owned(), source };
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    make_directory(directory).map_err(failed)?;
    let mode = fs::metadata(directory).map_err(failed)?.permissions().mode() & 0o7777;
    if mode & OTHERS_WRITE != 0 {
        return Err(FileError::ExposedDirectory { path: directory.to_owned(), mode });
    }
    let name = path.file_name().ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{:016x}", fastrand::u64(..)));
    let temporary = directory.join(temporary);
    let written = write_new(&temporary, content)
        .and_then(|()| fs::rename(&temporary, path))
        .and_then(|()| File::open(directory)?.sync_all());
    if written.is_err() {
        // Nothing depends on it; what went wrong first is what is told.
        drop(fs::remove_file(&temporary));
    }
    written.map_err(failed)
}

fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

fn make_directory(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    // Its own name must survive too.
    match directory.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

/// What changes when a file is replaced or written to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Stamp {
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

impl Stamp {
    /// `None` when there is no such file, or it cannot be looked at.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok()?;
        Some(Self { inode: found.ino(), bytes: found.len(), modified: (found.mtime(), found.mtime_nsec()) })
    }
}
