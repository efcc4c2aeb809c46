//! The data directory of a node: who may use it, whose it is, and where things lie in it.
//!
//! ```text
//! lock            held by the process that uses the directory
//! identity        whose store it is, in which format, and whether there is a log
//! shard-0000/     the log
//! state/          checkpoints of derived state (sled); may be deleted while the node is down
//! quarantine/     copies of bytes that could not be trusted
//! ```
//!
//! Empty is a claim that needs proof (DR8). A directory that has files but no identity is somebody
//! else's; an identity that says "there is a log" above a directory without one is a loss. Both refuse to
//! open, and nothing that is found is ever deleted.

mod identity;

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

pub use identity::{Identity, IdentityError, NodeId, STORE_FORMAT};

use crate::{Disk, DiskLock, OpenMode, ShardId, Timestamp, error::DiskFailed};

const LOCK: &str = "lock";
const IDENTITY: &str = "identity";
const IDENTITY_NEW: &str = "identity.new";
const STATE: &str = "state";
const QUARANTINE: &str = "quarantine";

/// Why a data directory cannot be used. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    #[error(transparent)]
    Disk(#[from] DiskFailed),
    #[error("data directory {} is in use by another process", path.display())]
    Locked { path: PathBuf },
    #[error(
        "{} is not a beamlog data directory: it has no identity file, but holds {found:?}",
        path.display()
    )]
    Foreign { path: PathBuf, found: String },
    #[error("{} cannot be trusted", path.display())]
    Identity {
        path: PathBuf,
        #[source]
        source: IdentityError,
    },
    #[error("there is no log in {}, although there was one", path.display())]
    LogMissing { path: PathBuf },
}

impl DirectoryError {
    /// What an operator can do about it.
    #[must_use]
    pub const fn remedy(&self) -> &'static str {
        match self {
            Self::Disk(_) => "check that the path exists, that this user may write there, and the disk",
            Self::Locked { .. } => "stop the other process, or choose another --data-dir",
            Self::Foreign { .. } => "choose an empty or a new directory with --data-dir",
            Self::Identity { source: IdentityError::Format { .. }, .. } => {
                "use the version of beamlog that wrote it, or a newer one"
            }
            Self::Identity { .. } => {
                "restore the identity file from a backup of this directory; the log beside it was not touched"
            }
            Self::LogMissing { .. } => {
                "restore the directory from a backup, or start with another, empty --data-dir as a new node"
            }
        }
    }
}

/// Who the node will be if this is its first start. The log has no clock and no randomness of its own.
#[derive(Clone, Copy, Debug)]
pub struct FirstStart {
    pub node: NodeId,
    pub created: Timestamp,
}

impl NodeId {
    /// A new one, from the system's random source.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; 16];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        Ok(Self(bytes))
    }
}

/// A data directory, locked for this process until dropped.
#[derive(Debug)]
pub struct DataDirectory {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    identity: Identity,
    _lock: Box<dyn DiskLock>,
}

impl DataDirectory {
    /// Opens the directory, or makes it, with `first` as its identity. Its parent must exist.
    ///
    /// Afterwards open the log with [`Self::has_log`] as its `must_exist`, then call
    /// [`Self::log_created`] before anything is acknowledged.
    pub fn open(disk: Arc<dyn Disk>, path: &Path, first: FirstStart) -> Result<Self, DirectoryError> {
        if !disk.exists(path).map_err(failed("looking for", path))? {
            create_dir(&*disk, path)?;
        }
        // Before the lock, which would be a file in somebody else's directory.
        refuse_foreign(&*disk, path)?;
        let lock = disk.lock(&path.join(LOCK)).map_err(|source| {
            if source.kind() == io::ErrorKind::WouldBlock {
                let path = path.to_path_buf();
                DirectoryError::Locked { path }
            } else {
                failed("locking", &path.join(LOCK))(source).into()
            }
        })?;
        let identity = match read_identity(&*disk, path)? {
            Some(identity) => identity,
            None => {
                refuse_foreign(&*disk, path)?;
                let identity = Identity { node: first.node, created: first.created, has_log: false };
                write_identity(&*disk, path, &identity)?;
                identity
            }
        };
        let directory = Self { disk, path: path.to_path_buf(), identity, _lock: lock };
        directory.prepare()?;
        Ok(directory)
    }

    /// Whose store lies at `path`, without a lock and without changing anything; `None` if none does.
    pub fn identity_of(disk: &dyn Disk, path: &Path) -> Result<Option<Identity>, DirectoryError> {
        read_identity(disk, path)
    }

    /// The log's directory exists, and has files if it ever had.
    fn prepare(&self) -> Result<(), DirectoryError> {
        let log = self.shard_directory(ShardId(0));
        let exists = self.disk.exists(&log).map_err(failed("looking for", &log))?;
        let missing = || DirectoryError::LogMissing { path: log.clone() };
        if self.identity.has_log {
            if !exists {
                return Err(missing());
            }
            let names = self.disk.list(&log).map_err(failed("listing", &log))?;
            if names.is_empty() {
                return Err(missing());
            }
        } else if !exists {
            create_dir(&*self.disk, &log)?;
        }
        Ok(())
    }

    /// Whose store it is.
    #[must_use]
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Whether a log was created here before: then it must be found.
    #[must_use]
    pub const fn has_log(&self) -> bool {
        self.identity.has_log
    }

    /// Notes, durably, that the log exists now. Call it after the log was opened and before the first
    /// acknowledgement; from then on an empty directory is a loss.
    pub fn log_created(&mut self) -> Result<(), DirectoryError> {
        if !self.identity.has_log {
            let identity = Identity { has_log: true, ..self.identity };
            write_identity(&*self.disk, &self.path, &identity)?;
            self.identity = identity;
        }
        Ok(())
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The disk it is on.
    #[must_use]
    pub fn disk(&self) -> Arc<dyn Disk> {
        Arc::clone(&self.disk)
    }

    /// Where the log of a shard is. It exists for shard 0.
    #[must_use]
    pub fn shard_directory(&self, shard: ShardId) -> PathBuf {
        self.path.join(format!("shard-{shard:0>4}"))
    }

    /// Where checkpoints are kept ([`crate::CheckpointStore`] makes it).
    #[must_use]
    pub fn state_directory(&self) -> PathBuf {
        self.path.join(STATE)
    }

    /// Where copies of damaged bytes are kept (who needs it makes it).
    #[must_use]
    pub fn quarantine_directory(&self) -> PathBuf {
        self.path.join(QUARANTINE)
    }
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> DiskFailed + 'a {
    move |source| DiskFailed { action, path: path.to_path_buf(), source }
}

/// Creates a directory whose name survives a power cut.
fn create_dir(disk: &dyn Disk, path: &Path) -> Result<(), DiskFailed> {
    disk.create_dir(path).map_err(failed("creating", path))?;
    let parent = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Ok(()),
    };
    disk.sync_dir(parent).map_err(failed("syncing", parent))
}

/// A directory with files and without an identity is not ours. A first start that was cut short leaves
/// only what is named here.
fn refuse_foreign(disk: &dyn Disk, path: &Path) -> Result<(), DirectoryError> {
    let names = disk.list(path).map_err(failed("listing", path))?;
    if names.iter().any(|name| name == IDENTITY) {
        return Ok(());
    }
    match names.into_iter().find(|name| name != LOCK && name != IDENTITY_NEW) {
        None => Ok(()),
        Some(found) => Err(DirectoryError::Foreign { path: path.to_path_buf(), found }),
    }
}

fn read_identity(disk: &dyn Disk, directory: &Path) -> Result<Option<Identity>, DirectoryError> {
    let path = directory.join(IDENTITY);
    let file = match disk.open(&path, OpenMode::Read) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed("opening", &path)(source).into()),
    };
    let mut bytes = vec![0; identity::BYTES_MAX + 1];
    let count = file.read_at(&mut bytes, 0).map_err(failed("reading", &path))?;
    Identity::decode(&bytes[..count]).map(Some).map_err(|source| DirectoryError::Identity { path, source })
}

/// Writes the new bytes beside the old, makes them durable, and only then gives them the name (DR11).
fn write_identity(disk: &dyn Disk, directory: &Path, identity: &Identity) -> Result<(), DirectoryError> {
    let (new, path) = (directory.join(IDENTITY_NEW), directory.join(IDENTITY));
    if disk.exists(&new).map_err(failed("looking for", &new))? {
        disk.remove(&new).map_err(failed("removing", &new))?;
    }
    let file = disk.open(&new, OpenMode::CreateNew).map_err(failed("creating", &new))?;
    file.write_at(&identity.encode(), 0).map_err(failed("writing", &new))?;
    file.sync_data().map_err(failed("syncing", &new))?;
    disk.rename(&new, &path).map_err(failed("renaming", &new))?;
    disk.sync_dir(directory).map_err(failed("syncing", directory))?;
    Ok(())
}
