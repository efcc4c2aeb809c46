//! The identity file: whatever it holds, opening the directory deletes and changes nothing it refuses.

use std::{path::Path, sync::Arc};

use beamlog_log::{DataDirectory, Disk, FirstStart, NodeId, OpenMode, SimDisk, Timestamp};

pub const WORDS: &[&[u8]] =
    &[b"beamlog store 1\n", b"node ", b"created ", b"log yes\n", b"log no\n", b"crc32 ", b"\n", b"2", b"-1", b"+"];

const FILE: &str = "/data/identity";

/// The input as the file, and as its lines above a valid checksum.
pub fn run(data: &[u8]) {
    check(data);
    let mut sealed = data.to_vec();
    sealed.extend_from_slice(format!("crc32 {:08x}\n", crc32fast::hash(data)).as_bytes());
    check(&sealed);
}

fn check(bytes: &[u8]) {
    let disk = SimDisk::new();
    let put = |path: &Path, bytes: &[u8]| -> std::io::Result<()> {
        let file = disk.open(path, OpenMode::CreateNew)?;
        file.write_at(bytes, 0)?;
        file.sync_data()
    };
    for directory in ["/data", "/data/shard-0000"] {
        disk.create_dir(Path::new(directory)).expect("a new disk");
    }
    put(Path::new("/data/shard-0000/segment"), b"frames").expect("a new disk");
    put(Path::new(FILE), bytes).expect("a new disk");
    for directory in ["/", "/data", "/data/shard-0000"] {
        disk.sync_dir(Path::new(directory)).expect("a new disk");
    }

    let first = FirstStart { node: NodeId([1; 16]), created: Timestamp(1) };
    let opened = DataDirectory::open(Arc::new(disk.clone()), Path::new("/data"), first);
    assert_eq!(disk.files().get(Path::new(FILE)).map(Vec::as_slice), Some(bytes));
    assert_eq!(disk.list(Path::new("/data/shard-0000")).expect("it is there"), ["segment"]);
    if let Ok(mut directory) = opened {
        let node = directory.identity().node;
        assert!(bytes.starts_with(b"beamlog store 1\n"));
        assert!(String::from_utf8_lossy(bytes).to_lowercase().contains(&node.to_string()));
        directory.log_created().expect("the disk is well");
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let lines = [
        "beamlog store 1\nnode 000102030405060708090a0b0c0d0eff\ncreated 17\nlog yes\n",
        "beamlog store 1\nnode ffffffffffffffffffffffffffffffff\ncreated 0\nlog no\n",
        "beamlog store 2\nfuture\n",
    ];
    let sealed = lines.map(|text| format!("{text}crc32 {:08x}\n", crc32fast::hash(text.as_bytes())));
    lines.map(str::to_owned).into_iter().chain(sealed).map(String::into_bytes).collect()
}
