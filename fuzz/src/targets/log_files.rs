//! A peer's list of the files of its log: it names nothing outside of its place, and nothing is put in the place of
//! the present log that is not a log.

use std::{path::Path, sync::Arc};

use beamlog_log::{Disk, EntryId, Index, Installation, LogFile, LogFiles, Log, LogOptions, ShardId, SimDisk, Term};

pub const WORDS: &[&[u8]] = &[
    b"00000000000000000001-000000.seg",
    b"../",
    b"/",
    b"vote",
    &[31, 0, 0, 0, 0, 0, 0, 0],
    &[0xff; 8],
    &[0, 16, 0, 0, 0, 0, 0, 0],
];

/// The list as it is, and as the body of a valid envelope.
pub fn run(data: &[u8]) {
    check(data);
    let mut bytes = vec![1, 1, 2, 0];
    bytes.extend_from_slice(&u32::try_from(data.len()).expect("short").to_le_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes);
    hasher.update(data);
    bytes.extend_from_slice(&hasher.finalize().to_le_bytes());
    bytes.extend_from_slice(data);
    check(&bytes);
}

fn check(bytes: &[u8]) {
    let Ok(list) = LogFiles::decode(bytes) else { return };
    assert_eq!(list.encode().expect("it was not too long before"), bytes);
    let disk = SimDisk::new();
    let directory = Path::new("/log");
    disk.create_dir(directory).expect("a new disk");
    disk.sync_dir(Path::new("/")).expect("a new disk");
    let handle: Arc<dyn Disk> = Arc::new(disk.clone());
    let open = || Log::open(Arc::clone(&handle), directory, list.shard, LogOptions::for_simulation());
    let log = open().expect("a new disk").log;
    let before = disk.list(directory).expect("it is there");
    let mut installation = Installation::begin(&handle, directory, list.shard, list.clone()).expect("a new disk");
    while let Some(wanted) = installation.wanted() {
        assert!(list.files.iter().any(|file| file.name == wanted.name));
        // Bytes that nobody has: refused when they are all there.
        let piece = vec![7; usize::try_from(wanted.bytes).expect("below 4 GiB").min(9000)];
        if installation.write_chunk(&wanted.name, wanted.offset, &piece).is_err() || wanted.bytes > 9000 {
            break;
        }
    }
    let names = disk.list(directory).expect("it is there");
    assert!(names.iter().all(|name| name == "incoming" || before.contains(name)), "{names:?}");
    drop(disk.list(Path::new("/")).expect("it is there"));
    assert!(installation.exchange(log).is_err(), "this was no log");
    open().expect("the present log is as it was");
}

pub fn seeds() -> Vec<Vec<u8>> {
    let file = |name: &str, bytes| LogFile { name: name.to_owned(), bytes, hash: 5 };
    let list = |files| LogFiles {
        shard: ShardId(0),
        last: EntryId { index: Index(7), term: Term(2) },
        files,
    };
    let (one, two) = ("00000000000000000001-000000.seg", "00000000000000000005-000003.seg");
    [
        list(vec![file(one, 4096)]),
        list(vec![file(one, 5000), file(two, 1 << 20)]),
        list(vec![file(two, 5000), file(one, 1 << 20)]),
        list(vec![file("../vote", 5000)]),
        list(vec![]),
    ]
    .iter()
    .flat_map(|list| {
        let bytes = list.encode().expect("short");
        [bytes[12..].to_vec(), bytes]
    })
    .collect()
}
