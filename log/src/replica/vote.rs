//! The vote of a replica: whom it follows, which must never be forgotten (DR9).
//!
//! Two copies in two slots of one file. A save writes one and syncs, then the other and syncs; so whatever is
//! damaged after it returned, one copy has what it said. `docs/design/format.md` has the bytes.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    Disk, DiskFailed, DiskFile, OpenMode, ShardId,
    files::Files,
    format::vote::{GENERATION_MAX, SLOT_BYTES, Slot, SlotFault},
    rewrite::NewFile,
};

pub use crate::format::vote::VOTE_BYTES_MAX;

const NAME: &str = "vote";
const SLOTS: [u64; 2] = [0, SLOT_BYTES as u64];

/// The file, open for saving.
#[derive(Debug)]
pub struct VoteFile {
    name: &'static str,
    files: Files,
    shard: ShardId,
    file: Box<dyn DiskFile>,
    generation: u64,
    poisoned: bool,
}

/// Why a vote cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum VoteError {
    /// The node forgot what it promised: it may not take part as the one it was (DR9).
    #[error("what this node voted cannot be read from {}", path.display())]
    Amnesia { path: PathBuf },
    #[error("{} has format version {version}, which this build does not read", path.display())]
    UnknownVersion { path: PathBuf, version: u16 },
    #[error("{} belongs to shard {found}, not {expected}", path.display())]
    ForeignShard { path: PathBuf, found: ShardId, expected: ShardId },
    #[error("a vote has {bytes} bytes, more than {VOTE_BYTES_MAX}")]
    TooLarge { bytes: usize },
    #[error("votes are not kept any more after an earlier failure")]
    Poisoned,
    #[error(transparent)]
    Disk(#[from] DiskFailed),
}

impl VoteFile {
    /// Opens the vote file of the shard's directory and says what was saved last; `None` when nothing was.
    ///
    /// A file that is not there is begun, unless the node `must` have one because it was a member before. One
    /// damaged copy is used from the other and written again.
    pub fn open(
        disk: Arc<dyn Disk>,
        directory: &Path,
        shard: ShardId,
        must_exist: bool,
    ) -> Result<(Self, Option<Vec<u8>>), VoteError> {
        Self::open_named(NAME, Files::new(disk, directory, 0), shard, must_exist)
    }

    /// The same with something else in a file of another name.
    pub(super) fn open_named(
        name: &'static str,
        files: Files,
        shard: ShardId,
        must_exist: bool,
    ) -> Result<(Self, Option<Vec<u8>>), VoteError> {
        let path = files.path(name);
        let exists =
            files.disk().exists(&path).map_err(|source| files.failed("looking for", name, source))?;
        if !exists {
            return if must_exist {
                Err(VoteError::Amnesia { path })
            } else {
                Self::begin(name, files, shard)
            };
        }
        let file = files
            .disk()
            .open(&path, OpenMode::ReadWrite)
            .map_err(|source| files.failed("opening", name, source))?;
        let mut slots = Vec::new();
        for at in SLOTS {
            slots.push(read_slot(&*file, at, shard).map_err(|source| files.failed("reading", name, source))?);
        }
        let mut newest: Option<&Slot> = None;
        for slot in &slots {
            match slot {
                Ok(slot) if newest.is_none_or(|newest| newest.generation < slot.generation) => {
                    newest = Some(slot)
                }
                Ok(_) | Err(SlotFault::Bytes) => {}
                Err(SlotFault::Version(version)) => {
                    return Err(VoteError::UnknownVersion { path, version: *version });
                }
                Err(SlotFault::Shard(found)) => {
                    return Err(VoteError::ForeignShard { path, found: *found, expected: shard });
                }
            }
        }
        let Some(newest) = newest.cloned() else { return Err(VoteError::Amnesia { path }) };
        let mut vote = Self { name, files, shard, file, generation: newest.generation, poisoned: false };
        let bad: Vec<u64> = SLOTS
            .into_iter()
            .zip(&slots)
            .filter(|(_, slot)| slot.as_ref() != Ok(&newest))
            .map(|(at, _)| at)
            .collect();
        if !bad.is_empty() {
            tracing::warn!(path = %vote.files.path(name).display(), "one of two copies was damaged or old; it is written again");
            // The other copy is not touched: it is the only one.
            vote.write(&newest, &bad)?;
        }
        Ok((vote, newest.body))
    }

    /// A file that says that nothing was voted.
    fn begin(name: &'static str, files: Files, shard: ShardId) -> Result<(Self, Option<Vec<u8>>), VoteError> {
        let slot = Slot { shard, generation: 1, body: None }.encode();
        let mut new = NewFile::create(&files, &format!("{name}.tmp"))?;
        new.append(&files, &slot)?;
        new.append(&files, &slot)?;
        let file = new.settle(&files)?.install(&files, name, true)?;
        Ok((Self { name, files, shard, file, generation: 1, poisoned: false }, None))
    }

    /// Keeps a vote: durable when this returns. After an error nothing is known of what the disk holds, nothing
    /// may be answered that rests on this vote, and no other is kept (DR2).
    pub fn save(&mut self, vote: &[u8]) -> Result<(), VoteError> {
        if vote.len() > VOTE_BYTES_MAX {
            return Err(VoteError::TooLarge { bytes: vote.len() });
        }
        // No file of ours comes near the last generation; one that says so was made by somebody else.
        if self.poisoned || self.generation >= GENERATION_MAX {
            return Err(VoteError::Poisoned);
        }
        self.generation += 1;
        let slot = Slot { shard: self.shard, generation: self.generation, body: Some(vote.to_vec()) };
        self.write(&slot, &SLOTS)
    }

    /// The second copy is touched only when the first is durable: at any moment one of them is whole.
    fn write(&mut self, slot: &Slot, places: &[u64]) -> Result<(), VoteError> {
        let slot = slot.encode();
        for at in places {
            if let Err(source) = self.file.write_at(&slot, *at).and_then(|()| self.file.sync_data()) {
                self.poisoned = true;
                return Err(self.files.failed("saving", self.name, source).into());
            }
        }
        Ok(())
    }
}

/// The copies of a shard's vote, looked at and left as they are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum VoteState {
    /// There is no vote file: the shard was never replicated.
    None,
    Whole,
    /// A copy is damaged or old; the next start writes it again.
    OneCopy,
    /// Neither copy can be read: the node forgot what it promised, and does not start.
    Lost,
}

/// Looks at the vote file of a shard's directory.
pub(crate) fn look(disk: &dyn Disk, directory: &Path) -> Result<VoteState, DiskFailed> {
    let path = directory.join(NAME);
    let failed = |action| {
        let path = path.clone();
        move |source| DiskFailed { action, path, source }
    };
    if !disk.exists(&path).map_err(failed("looking for"))? {
        return Ok(VoteState::None);
    }
    let file = disk.open(&path, OpenMode::Read).map_err(failed("opening"))?;
    let mut slots = Vec::new();
    for at in SLOTS {
        let mut bytes = vec![0; SLOT_BYTES];
        let read = file.read_at(&mut bytes, at).unwrap_or(0);
        slots.push(Slot::decode_any(bytes.get(..read).unwrap_or_default()).ok());
    }
    Ok(match slots.as_slice() {
        [None, None] => VoteState::Lost,
        [one, other] if one == other => VoteState::Whole,
        _ => VoteState::OneCopy,
    })
}

/// What the medium holds, whatever the system's cache believes.
fn read_slot(file: &dyn DiskFile, at: u64, shard: ShardId) -> std::io::Result<Result<Slot, SlotFault>> {
    let mut bytes = vec![0; SLOT_BYTES];
    // A sector that cannot be read is one damaged copy.
    let read = match file.read_at_past_cache(&mut bytes, at) {
        Ok(read) => read,
        Err(error) if error.raw_os_error() == Some(EIO) => 0,
        Err(error) => return Err(error),
    };
    Ok(Slot::decode(bytes.get(..read).unwrap_or_default(), shard))
}

/// What a medium says of a sector that it cannot read.
const EIO: i32 = 5;
