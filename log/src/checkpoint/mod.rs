//! Checkpoints of derived state: rows under keys, as of an index of the log, in sled.
//!
//! A checkpoint only saves replay. It may lag, be lost or be deleted while the node is down; the log has
//! everything. So nothing here is believed: every row is checksummed, the header counts and sums all
//! rows, and it names the index and the checksum of the frame at that index, for the caller to compare
//! with the log ([`crate::Log::contains`]). What does not hold together is moved aside and reported, and
//! the caller replays.
//!
//! **Atomic without large batches** (sled's memory grows with their size): a save writes the changed rows
//! beside the old ones, under the next generation, in small batches; then one key, the header, moves to
//! that generation; then the replaced rows are removed. A cut anywhere leaves the old or the new
//! checkpoint whole.
//!
//! sled panics on some damage, so every call of it is guarded; its `flush` is not an fsync, which is why
//! `flush_every_ms` is on and why nothing durable is promised here.

mod rows;

use std::{
    collections::BTreeMap,
    fmt, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    Index,
    envelope::{self, Enveloped},
};
use rows::{Row, RowKey};

/// Keys in one batch.
const BATCH_ROWS: usize = 64;
/// sled's own cache; its real memory is some times that.
const CACHE_BYTES: u64 = 1 << 20;
/// sled's file granularity and write buffer; small, so that a small store opens fast.
const SLED_SEGMENT_BYTES: usize = 64 << 10;
const FLUSH_EVERY_MS: u64 = 1000;
/// How long to wait for the lock of a store that was just closed: a second in all.
const LOCK_TRIES_MAX: u32 = 200;
const LOCK_RETRY_WAIT: Duration = Duration::from_millis(5);
/// Damaged stores kept for somebody to look at.
const DAMAGED_MAX: u32 = 4;
/// Longest key of a row.
pub const KEY_BYTES_MAX: usize = 1024;

/// Rows as of an index of the log.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Checkpoint {
    /// The rows are the state after this index.
    pub applied: Index,
    /// Checksum of the frame at that index.
    pub frame_checksum: u32,
    pub rows: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A store, and what was in it.
#[derive(Debug)]
pub struct OpenedCheckpoint {
    pub store: CheckpointStore,
    /// The last whole checkpoint, if there is one.
    pub checkpoint: Option<Checkpoint>,
    /// Something was there that could not be trusted.
    pub damage: Option<CheckpointDamage>,
}

/// A store that was moved aside. Nothing is lost by it but time at this start.
#[derive(Debug)]
pub struct CheckpointDamage {
    pub moved_to: PathBuf,
    pub reason: CheckpointError,
}

/// Why a checkpoint could not be opened, read or saved. The log is not concerned.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("opening the checkpoint store {}", path.display())]
    Open { path: PathBuf, source: sled::Error },
    #[error("the checkpoint store failed")]
    Sled(#[from] sled::Error),
    #[error("the checkpoint store panicked: {message}")]
    Panicked { message: String },
    #[error("the checkpoint store stopped after an earlier failure")]
    Stopped,
    #[error("the checkpoint's header is damaged")]
    Header(#[source] envelope::DecodeError),
    #[error("a row of the checkpoint is damaged")]
    Row,
    #[error("the checkpoint should have {expected} rows and has {found}")]
    Count { expected: u64, found: u64 },
    #[error("the rows of the checkpoint do not belong together")]
    Sum,
    #[error("a key of a row has {bytes} bytes, more than {KEY_BYTES_MAX}")]
    Key { bytes: usize },
    #[error("moving the checkpoint store {} aside", path.display())]
    Move { path: PathBuf, source: io::Error },
}

#[derive(Clone, Copy, Debug, Default, wincode::SchemaRead, wincode::SchemaWrite)]
struct Header {
    generation: u64,
    applied: Index,
    frame_checksum: u32,
    rows: u64,
    /// Sum of the rows' hashes: the same in any order, and kept up to date by differences.
    sum: u64,
}

impl Enveloped for Header {
    const KIND: u16 = 1;
    const VERSION: u8 = 1;
}

/// Where checkpoints are saved. Owned by the driver; not for sharing.
pub struct CheckpointStore {
    path: PathBuf,
    sled: Option<sled::Db>,
    header: Header,
    /// Set by a failed call: sled is not touched again.
    stopped: bool,
}

impl fmt::Debug for CheckpointStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CheckpointStore")
            .field("path", &self.path)
            .field("header", &self.header)
            .field("stopped", &self.stopped)
            .finish_non_exhaustive()
    }
}

impl CheckpointStore {
    /// Opens the store in `directory` or makes it, and reads what is there. A store that is damaged is
    /// moved to `<directory>.damaged-<n>` and begun anew. An error means that there can be no store at
    /// all (permission, space, a lock); the log works without.
    pub fn open(directory: &Path) -> Result<OpenedCheckpoint, CheckpointError> {
        match Self::open_trusting(directory) {
            Ok((store, checkpoint)) => Ok(OpenedCheckpoint { store, checkpoint, damage: None }),
            Err(reason) if is_damage(&reason) => {
                let moved_to = move_aside(directory)?;
                let (store, checkpoint) = Self::open_trusting(directory)?;
                Ok(OpenedCheckpoint {
                    store,
                    checkpoint,
                    damage: Some(CheckpointDamage { moved_to, reason }),
                })
            }
            Err(error) => Err(error),
        }
    }

    fn open_trusting(directory: &Path) -> Result<(Self, Option<Checkpoint>), CheckpointError> {
        let config = sled::Config::new()
            .path(directory)
            .cache_capacity(CACHE_BYTES)
            .segment_size(SLED_SEGMENT_BYTES)
            .flush_every_ms(Some(FLUSH_EVERY_MS));
        let opened = open_unlocked(&config, directory)?;
        let mut store = Self {
            path: directory.to_path_buf(),
            sled: Some(opened),
            header: Header::default(),
            stopped: false,
        };
        let checkpoint = store.load()?;
        Ok((store, checkpoint))
    }

    fn sled(&self) -> Result<&sled::Db, CheckpointError> {
        match &self.sled {
            Some(sled) if !self.stopped => Ok(sled),
            Some(_) | None => Err(CheckpointError::Stopped),
        }
    }

    /// Reads and verifies everything, and removes what a cut save left behind.
    fn load(&mut self) -> Result<Option<Checkpoint>, CheckpointError> {
        let sled = self.sled()?;
        let content = guarded(|| rows::read(sled))?;
        guarded(|| rows::remove(sled, &content.stale))?;
        self.header = content.header.unwrap_or_default();
        Ok(content.header.map(|header| Checkpoint {
            applied: header.applied,
            frame_checksum: header.frame_checksum,
            rows: content.rows,
        }))
    }

    /// Saves what changed since the last save: the state after `applied`, where the frame has this
    /// checksum. A key that is put and deleted is put.
    ///
    /// Takes effect as a whole or not at all; durable some time later. After an error the store stops.
    pub fn save(
        &mut self,
        applied: Index,
        frame_checksum: u32,
        puts: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>,
        deletes: impl IntoIterator<Item = Vec<u8>>,
    ) -> Result<(), CheckpointError> {
        let mut changes: BTreeMap<Vec<u8>, Option<Vec<u8>>> =
            deletes.into_iter().map(|key| (key, None)).collect();
        changes.extend(puts.into_iter().map(|(key, value)| (key, Some(value))));
        if let Some(key) = changes.keys().find(|key| key.len() > KEY_BYTES_MAX) {
            return Err(CheckpointError::Key { bytes: key.len() });
        }
        let sled = self.sled()?;
        let header =
            Header { generation: self.header.generation + 1, applied, frame_checksum, ..self.header };
        match guarded(|| save_rows(sled, header, &changes)) {
            Ok(header) => {
                self.header = header;
                Ok(())
            }
            Err(error) => {
                self.stopped = true;
                Err(error)
            }
        }
    }

    /// The caller found that the checkpoint does not fit the log: moves the store aside and begins anew.
    pub fn discard(&mut self) -> Result<PathBuf, CheckpointError> {
        // Dropped first: it writes into its directory until then.
        let sled = self.sled.take();
        guarded(|| {
            drop(sled);
            Ok(())
        })?;
        let moved_to = move_aside(&self.path)?;
        let (store, _) = Self::open_trusting(&self.path)?;
        *self = store;
        Ok(moved_to)
    }

    /// Gives what was saved to the disk. Not needed for correctness; for a clean stop.
    pub fn close(mut self) -> Result<(), CheckpointError> {
        if self.stopped {
            return Err(CheckpointError::Stopped);
        }
        let sled = self.sled.take();
        guarded(|| {
            if let Some(sled) = &sled {
                sled.flush()?;
            }
            drop(sled);
            Ok(())
        })
    }
}

impl Drop for CheckpointStore {
    fn drop(&mut self) {
        let sled = self.sled.take();
        // Its last flush may panic on damage; a destructor must not.
        drop(guarded(|| {
            drop(sled);
            Ok(())
        }));
    }
}

/// Opens sled, and waits for a store that this process closed a moment ago: sled lets go of its lock on
/// a thread of its own.
fn open_unlocked(config: &sled::Config, directory: &Path) -> Result<sled::Db, CheckpointError> {
    let mut tries = 0;
    loop {
        let opened = guarded(|| {
            config.open().map_err(|source| CheckpointError::Open { path: directory.to_path_buf(), source })
        });
        match opened {
            // This is how sled reports a lock that is held.
            Err(CheckpointError::Open { source: sled::Error::Io(error), .. })
                if error.kind() == io::ErrorKind::Other && tries < LOCK_TRIES_MAX =>
            {
                tries += 1;
                #[expect(clippy::disallowed_methods, reason = "sled has nothing to wait on")]
                std::thread::sleep(LOCK_RETRY_WAIT);
            }
            result => return result,
        }
    }
}

fn save_rows(
    sled: &sled::Db,
    mut header: Header,
    changes: &BTreeMap<Vec<u8>, Option<Vec<u8>>>,
) -> Result<Header, CheckpointError> {
    let mut replaced = Vec::new();
    let mut batch = sled::Batch::default();
    let mut batched = 0;
    for (key, value) in changes {
        let mut existed = false;
        for old in rows::versions(sled, key) {
            let (old_key, old_row) = old?;
            existed = true;
            if let Some(hash) = old_row.hash(key) {
                header.rows -= 1;
                header.sum = header.sum.wrapping_sub(hash);
            }
            replaced.push(old_key);
        }
        let row = Row::new(value.as_deref());
        if let Some(hash) = row.hash(key) {
            header.rows += 1;
            header.sum = header.sum.wrapping_add(hash);
        } else if !existed {
            continue; // nothing to delete
        }
        let new = RowKey::new(key, header.generation);
        if row.is_tombstone() {
            replaced.push(new.clone());
        }
        batch.insert(new.as_bytes(), row.encode(key));
        batched += 1;
        if batched == BATCH_ROWS {
            sled.apply_batch(std::mem::take(&mut batch))?;
            batched = 0;
        }
    }
    sled.apply_batch(batch)?;
    let bytes = envelope::encode(&header).expect("a header is small and always encodes");
    sled.insert(rows::HEADER_KEY, bytes)?;
    rows::remove(sled, &replaced)?;
    Ok(header)
}

/// Whether the store itself is bad, so that it must be begun anew. A lock, a missing permission or a
/// full disk is not.
fn is_damage(error: &CheckpointError) -> bool {
    match error {
        CheckpointError::Open { source, .. } | CheckpointError::Sled(source) => match source {
            sled::Error::Io(error) => matches!(
                error.kind(),
                io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput
            ),
            sled::Error::Corruption { .. }
            | sled::Error::Unsupported(_)
            | sled::Error::ReportableBug(_)
            | sled::Error::CollectionNotFound(_) => true,
        },
        CheckpointError::Panicked { .. }
        | CheckpointError::Header(_)
        | CheckpointError::Row
        | CheckpointError::Count { .. }
        | CheckpointError::Sum => true,
        CheckpointError::Stopped | CheckpointError::Key { .. } | CheckpointError::Move { .. } => false,
    }
}

/// Renames the store's directory to the first free `.damaged-<n>`. When all are taken the last is
/// replaced: copies of derived state are not worth an ever fuller disk.
fn move_aside(directory: &Path) -> Result<PathBuf, CheckpointError> {
    let failed = |source| CheckpointError::Move { path: directory.to_path_buf(), source };
    let name = |number: u32| {
        let mut name = directory.as_os_str().to_owned();
        name.push(format!(".damaged-{number}"));
        PathBuf::from(name)
    };
    let mut target = name(DAMAGED_MAX);
    for number in 1..DAMAGED_MAX {
        if !name(number).try_exists().map_err(failed)? {
            target = name(number);
            break;
        }
    }
    if target.try_exists().map_err(failed)? {
        std::fs::remove_dir_all(&target).map_err(failed)?;
    }
    std::fs::rename(directory, &target).map_err(failed)?;
    Ok(target)
}

/// Runs sled's code and turns its panics into errors. Whatever it was doing is not used any more then.
fn guarded<T>(body: impl FnOnce() -> Result<T, CheckpointError>) -> Result<T, CheckpointError> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let message = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message")
            .to_owned();
        Err(CheckpointError::Panicked { message })
    })
}
