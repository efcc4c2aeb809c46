//! The vote file: whatever it holds, a vote that was never saved is not given out, and a lost one is not forgotten.

use std::{path::Path, sync::Arc};

use beamlog_log::{Disk, OpenMode, ShardId, SimDisk, VoteError, VoteFile};

pub const WORDS: &[&[u8]] = &[b"BEAMVOT\0", &[1, 0, 1, 0], &[0xff; 8], &[0; 8], &[0, 4, 0, 0], &[1, 4, 0, 0]];

const SHARD: ShardId = ShardId(0);
const SLOT_BYTES: usize = 4096;
const FILE: &str = "/log/vote";

/// The first byte chooses which slots get a valid checksum, the second where the second slot begins in the input.
pub fn run(data: &[u8]) {
    let [mode, split, bytes @ ..] = data else { return };
    let (first, second) = bytes.split_at(usize::from(*split).min(bytes.len()));
    let mut file = Vec::new();
    for (number, content) in [first, second].into_iter().enumerate() {
        let mut slot = content[..content.len().min(SLOT_BYTES)].to_vec();
        slot.resize(SLOT_BYTES, 0);
        if mode >> number & 1 == 1 {
            let own = crc32fast::hash(&slot[..SLOT_BYTES - 4]);
            slot[SLOT_BYTES - 4..].copy_from_slice(&own.to_le_bytes());
        }
        file.extend_from_slice(&slot);
    }
    if mode & 4 == 4 {
        file.truncate(file.len() - bytes.len().min(file.len()));
    }
    let disk = SimDisk::new();
    disk.create_dir(Path::new("/log")).expect("a new disk");
    let written = disk.open(Path::new(FILE), OpenMode::CreateNew).expect("a new disk");
    written.write_at(&file, 0).expect("a new disk");
    written.sync_data().expect("a new disk");
    for directory in ["/", "/log"] {
        disk.sync_dir(Path::new(directory)).expect("a new disk");
    }
    let open = || VoteFile::open(Arc::new(disk.clone()), Path::new("/log"), SHARD, true);
    match open() {
        Ok((mut vote, said)) => {
            if let Some(said) = &said {
                let window = file.windows(said.len().max(1)).any(|window| window == said.as_slice());
                assert!(said.is_empty() || window, "a vote that nobody saved");
            }
            assert_eq!(open().expect("it was read before").1, said);
            match vote.save(b"another") {
                Ok(()) => assert_eq!(open().expect("it was saved").1.as_deref(), Some(&b"another"[..])),
                // It claims to be the last of all generations.
                Err(_) => assert_eq!(open().expect("it was read before").1, said),
            }
        }
        Err(VoteError::Amnesia { .. } | VoteError::UnknownVersion { .. } | VoteError::ForeignShard { .. }) => {
            assert_eq!(disk.files().get(Path::new(FILE)), Some(&file), "a refused file was changed");
        }
        Err(error) => panic!("{error}"),
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let slot = |generation: u64, vote: &[u8]| {
        let mut bytes = b"BEAMVOT\0\x01\0\x01\0\0\0\0\0".to_vec();
        bytes.extend_from_slice(&generation.to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(vote.len()).expect("short").to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(vote);
        bytes
    };
    let mut seeds = Vec::new();
    for (first, second) in [(3, 3), (3, 4), (u64::MAX, 1)] {
        let (first, second) = (slot(first, b"term 3"), slot(second, b"term 4"));
        let split = u8::try_from(first.len()).expect("short");
        for mode in [0, 1, 3, 7] {
            seeds.push([&[mode, split], first.as_slice(), second.as_slice()].concat());
        }
    }
    seeds
}
