//! Which stores of shards this node has begun. A shard's folder that is lost would be begun anew under the name of one
//! that has voted and acknowledged; so each has a mark in the folder of the node, with the identity of its store
//! (DR8, DR9), which is durable before the node takes part.
//!
//! The mark of shard 1 is the file `shard-1.store`: the identity, a space, and `founds` or `joins`.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use beamlog_log::{DataDirectory, DirectoryError, NodeId, StdDisk};
use beamlog_router::SHARD_NUMBER_MAX;

/// Why the store of a shard is not used.
#[derive(Debug, thiserror::Error)]
pub enum MarkError {
    #[error("reading {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("writing {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{} says nothing that this version understands", path.display())]
    Malformed { path: PathBuf },
    #[error(transparent)]
    Store(#[from] DirectoryError),
    #[error("the store of shard {number} that was in {} is not there", path.display())]
    Lost { number: u8, path: PathBuf },
}

/// What is marked of a shard.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Mark {
    store: String,
    /// Whether this node is the one that begins the shard.
    pub(super) founds: bool,
}

pub(super) fn folder(data_dir: &Path, number: u8) -> PathBuf {
    data_dir.join(format!("shard-{number}"))
}

fn file(data_dir: &Path, number: u8) -> PathBuf {
    data_dir.join(format!("shard-{number}.store"))
}

impl Mark {
    pub(super) fn of(store: NodeId, founds: bool) -> Self {
        Self { store: store.to_string(), founds }
    }

    fn parse(text: &str) -> Option<Self> {
        let (store, how) = text.strip_suffix('\n')?.split_once(' ')?;
        let founds = match how {
            "founds" => true,
            "joins" => false,
            _ => return None,
        };
        let is_identity = store.len() == 32 && store.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_identity.then(|| Self { store: store.to_owned(), founds })
    }

    /// What is marked of a shard here, if the store is the one that was marked; `None` when nothing was.
    pub(super) fn check(data_dir: &Path, number: u8) -> Result<Option<Self>, MarkError> {
        let path = file(data_dir, number);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(MarkError::Read { path, source }),
        };
        let mark = Self::parse(&text).ok_or(MarkError::Malformed { path })?;
        let path = folder(data_dir, number);
        match DataDirectory::identity_of(&StdDisk, &path)? {
            Some(identity) if identity.node.to_string() == mark.store => Ok(Some(mark)),
            Some(_) | None => Err(MarkError::Lost { number, path }),
        }
    }

    /// On return it is on stable storage.
    pub(super) fn write(&self, data_dir: &Path, number: u8) -> Result<(), MarkError> {
        let path = file(data_dir, number);
        let temporary = path.with_extension("store.new");
        let how = if self.founds { "founds" } else { "joins" };
        let write = || -> io::Result<()> {
            let mut file = fs::File::create(&temporary)?;
            writeln!(file, "{} {how}", self.store)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            fs::File::open(data_dir)?.sync_all()
        };
        write().map_err(|source| MarkError::Write { path: path.clone(), source })
    }
}

/// The shards that this node has begun to take part in.
pub(super) fn all(data_dir: &Path) -> Result<Vec<(u8, Mark)>, MarkError> {
    let mut found = Vec::new();
    for number in 1..=SHARD_NUMBER_MAX {
        found.extend(Mark::check(data_dir, number)?.map(|mark| (number, mark)));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use beamlog_log::{FirstStart, Timestamp};

    use super::*;

    const STORE: NodeId = NodeId([7; 16]);

    fn store(data_dir: &Path, number: u8, node: NodeId) {
        let first = FirstStart { node, created: Timestamp(1) };
        DataDirectory::open(std::sync::Arc::new(StdDisk), &folder(data_dir, number), first).unwrap();
    }

    #[test]
    fn what_is_marked_is_found() {
        let data = tempfile::tempdir().unwrap();
        assert_eq!(all(data.path()).unwrap(), []);
        for (number, founds) in [(1, true), (126, false)] {
            store(data.path(), number, STORE);
            Mark::of(STORE, founds).write(data.path(), number).unwrap();
        }
        assert_eq!(all(data.path()).unwrap(), [(1, Mark::of(STORE, true)), (126, Mark::of(STORE, false))]);
    }

    #[test]
    fn a_store_that_is_lost_or_another_one_is_refused() {
        let data = tempfile::tempdir().unwrap();
        Mark::of(STORE, true).write(data.path(), 1).unwrap();
        assert!(matches!(Mark::check(data.path(), 1), Err(MarkError::Lost { number: 1, .. })));
        store(data.path(), 1, NodeId([8; 16]));
        assert!(matches!(Mark::check(data.path(), 1), Err(MarkError::Lost { number: 1, .. })));
    }

    #[test]
    fn a_mark_that_is_cut_or_of_another_kind_is_refused() {
        let whole = format!("{STORE} joins\n");
        assert_eq!(Mark::parse(&whole), Some(Mark::of(STORE, false)));
        for cut in 0..whole.len() {
            assert_eq!(Mark::parse(&whole[..cut]), None);
        }
        assert_eq!(Mark::parse(&format!("{STORE} leads\n")), None);
    }
}
