//! What a replica knows that its peers held, kept so that it is known after all of them were down (DR13).
//!
//! In the form of the vote file. Unlike a vote it may be forgotten: a node that forgot refuses nobody whom it should let in. So
//! nothing here keeps a node from starting or serving.

use std::{path::Path, sync::Arc};

use super::vote::{VoteError, VoteFile};
use crate::{Disk, ShardId, files::Files};

const NAME: &str = "peers";

/// The file, open for saving unless it could not be opened or saved.
#[derive(Debug)]
pub struct PeersFile(Option<VoteFile>);

impl PeersFile {
    /// Opens the file in the shard's directory, and says what was saved last. One that is not there is begun; so is one that
    /// cannot be read, in its place.
    pub fn open(disk: &Arc<dyn Disk>, directory: &Path, shard: ShardId) -> (Self, Option<Vec<u8>>) {
        let files = || Files::new(Arc::clone(disk), directory, 0);
        let open = || VoteFile::open_named(NAME, files(), shard, false);
        let opened = match open() {
            Err(VoteError::Amnesia { path }) => {
                tracing::warn!(path = %path.display(), "what peers held cannot be read; it is forgotten");
                let removed = disk.remove(&path);
                removed
                    .map_err(|source| files().failed("removing", NAME, source).into())
                    .and_then(|()| open())
            }
            opened => opened,
        };
        match opened {
            Ok((file, saved)) => (Self(Some(file)), saved),
            Err(error) => {
                is_not_kept(&error);
                (Self(None), None)
            }
        }
    }

    /// Durable when this returns, if it can be kept.
    pub fn save(&mut self, bytes: &[u8]) {
        if let Some(Err(error)) = self.0.as_mut().map(|file| file.save(bytes)) {
            is_not_kept(&error);
            self.0 = None;
        }
    }
}

fn is_not_kept(error: &VoteError) {
    tracing::warn!(err = %error, "what peers held is not kept until the next start");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        SimDisk,
        sim_disk::{Crash, Failure, Fault, Operation, Repeat},
    };

    const SHARD: ShardId = ShardId(3);

    fn open(disk: &SimDisk) -> (PeersFile, Option<Vec<u8>>) {
        let disk: Arc<dyn Disk> = Arc::new(disk.clone());
        PeersFile::open(&disk, Path::new("/"), SHARD)
    }

    #[test]
    fn it_survives_a_power_cut_and_its_damage_is_only_forgotten() {
        let disk = SimDisk::new();
        let (mut file, saved) = open(&disk);
        assert_eq!(saved, None);
        file.save(b"one");
        file.save(b"two");
        disk.crash(Crash::LoseUnsynced);
        assert_eq!(open(&disk).1.as_deref(), Some(&b"two"[..]));
        for bit in [700, 8 * 4096 + 700] {
            disk.flip_bit(Path::new("/peers"), bit).unwrap();
        }
        let (mut file, saved) = open(&disk);
        assert_eq!(saved, None);
        file.save(b"three");
        assert_eq!(open(&disk).1.as_deref(), Some(&b"three"[..]));
    }

    #[test]
    fn a_disk_that_does_not_take_it_does_no_harm() {
        let disk = SimDisk::new();
        let fails =
            Fault { operation: Some(Operation::Write), nth: 1, failure: Failure::Io, repeat: Repeat::Once };
        disk.fail(fails);
        let (mut file, saved) = open(&disk);
        assert_eq!(saved, None);
        file.save(b"one");
        let (mut file, saved) = open(&disk);
        assert_eq!(saved, None);
        file.save(b"one");
        disk.fail(fails);
        file.save(b"two");
        file.save(b"three");
        assert_ne!(open(&disk).1.as_deref(), Some(&b"three"[..]));
    }
}
