//! The data directory refuses what is not proved to be ours, and loses nothing while it is made.

use std::{path::Path, sync::Arc};

use beamlog_log::{
    DataDirectory, DirectoryError, Disk, FirstStart, IdentityError, NodeId, OpenMode, ShardId, SimDisk,
    StdDisk, Timestamp,
    sim_disk::{Crash, Failure, Fault, Repeat},
};

const DATA: &str = "/data";

fn first(node: u8) -> FirstStart {
    FirstStart { node: NodeId([node; 16]), created: Timestamp(1) }
}

fn open(disk: &SimDisk) -> Result<DataDirectory, DirectoryError> {
    DataDirectory::open(Arc::new(disk.clone()), Path::new(DATA), first(1))
}

fn put(disk: &SimDisk, path: &str, bytes: &[u8]) {
    let path = Path::new(path);
    let file = disk.open(path, OpenMode::CreateNew).unwrap();
    file.write_at(bytes, 0).unwrap();
    file.sync_data().unwrap();
    disk.sync_dir(path.parent().unwrap()).unwrap();
}

/// A directory in which a log was created, as the router does it.
fn with_log() -> SimDisk {
    let disk = SimDisk::new();
    let mut directory = open(&disk).unwrap();
    assert!(!directory.has_log());
    put(&disk, "/data/shard-0000/segment", b"frames");
    directory.log_created().unwrap();
    drop(directory);
    disk
}

#[test]
fn a_new_directory_keeps_its_identity() {
    let disk = SimDisk::new();
    let directory = open(&disk).unwrap();
    assert_eq!(directory.identity().node, NodeId([1; 16]));
    let shard = directory.shard_directory(ShardId(0));
    assert_eq!(shard, Path::new("/data/shard-0000"));
    assert!(disk.exists(&shard).unwrap());
    drop(directory);
    disk.crash(Crash::LoseUnsynced);
    let again = DataDirectory::open(Arc::new(disk), Path::new(DATA), first(2)).unwrap();
    assert_eq!(again.identity().node, NodeId([1; 16]), "not the second one");
    assert!(!again.has_log(), "a log was never created");
}

#[test]
fn a_second_user_is_refused_until_the_first_is_gone() {
    let disk = SimDisk::new();
    let held = open(&disk).unwrap();
    assert!(matches!(open(&disk), Err(DirectoryError::Locked { .. })));
    drop(held);
    open(&disk).unwrap();
}

#[test]
fn a_directory_with_files_and_no_identity_is_not_ours_and_stays_as_it_is() {
    let disk = SimDisk::new();
    disk.create_dir(Path::new(DATA)).unwrap();
    put(&disk, "/data/photo.jpg", b"x");
    match open(&disk) {
        Err(DirectoryError::Foreign { found, .. }) => assert_eq!(found, "photo.jpg"),
        other => panic!("{other:?}"),
    }
    assert_eq!(disk.list(Path::new(DATA)).unwrap(), ["photo.jpg"]);
}

#[test]
fn a_lost_log_is_not_an_empty_one() {
    let disk = with_log();
    assert!(open(&disk).unwrap().has_log());
    disk.remove(Path::new("/data/shard-0000/segment")).unwrap();
    assert!(matches!(open(&disk), Err(DirectoryError::LogMissing { .. })));
    disk.rename(Path::new("/data/shard-0000"), Path::new("/data/elsewhere")).unwrap();
    assert!(matches!(open(&disk), Err(DirectoryError::LogMissing { .. })));
}

#[test]
fn a_damaged_identity_refuses_and_deletes_nothing() {
    let disk = with_log();
    let before = disk.files();
    let identity = Path::new("/data/identity");
    for bit in 0..before[identity].len() as u64 * 8 {
        let damaged = disk.fork();
        damaged.flip_bit(identity, bit).unwrap();
        let there = damaged.files();
        assert!(matches!(
            open(&damaged),
            Err(DirectoryError::Identity { source: IdentityError::Checksum, .. })
        ));
        damaged.crash(Crash::KeepUnsynced);
        assert_eq!(damaged.files(), there);
    }
    let emptied = disk.fork();
    emptied.alter(identity, Vec::clear).unwrap();
    assert!(matches!(open(&emptied), Err(DirectoryError::Identity { .. })));
    let removed = disk.fork();
    removed.remove(identity).unwrap();
    assert!(matches!(open(&removed), Err(DirectoryError::Foreign { .. })));
    let unreadable = disk.fork();
    unreadable.break_range(identity, 0..1).unwrap();
    assert!(matches!(open(&unreadable), Err(DirectoryError::Disk(_))));
}

#[test]
fn a_store_of_a_newer_format_is_refused_by_name() {
    let disk = with_log();
    disk.alter(Path::new("/data/identity"), |bytes| {
        let text = b"beamlog store 9\nfuture\n";
        *bytes = text.to_vec();
        bytes.extend_from_slice(format!("crc32 {:08x}\n", crc32fast::hash(text)).as_bytes());
    })
    .unwrap();
    let error = open(&disk).unwrap_err();
    assert!(matches!(error, DirectoryError::Identity { source: IdentityError::Format { version: 9 }, .. }));
    assert!(error.remedy().contains("version"));
}

/// A first start and its end, as the router does it; `None` when the disk did not let it.
fn life(disk: &SimDisk) -> Option<()> {
    let mut directory = open(disk).ok()?;
    let path = directory.shard_directory(ShardId(0)).join("segment");
    if !disk.exists(&path).ok()? {
        let file = disk.open(&path, OpenMode::CreateNew).ok()?;
        file.write_at(b"frames", 0).ok()?;
        file.sync_data().ok()?;
        disk.sync_dir(path.parent()?).ok()?;
    }
    directory.log_created().ok()
}

#[test]
fn a_power_cut_at_any_moment_of_the_first_start_leaves_a_directory_that_opens() {
    let whole = SimDisk::new();
    life(&whole).unwrap();
    let changes = whole.changes();
    assert!(changes > 10);
    for nth in 1..=changes + 1 {
        for crash in Crash::sample(nth) {
            let disk = SimDisk::new();
            disk.power_off_at(nth);
            let acknowledged = life(&disk).is_some();
            assert_eq!(acknowledged, nth > changes);
            disk.crash(crash);
            match open(&disk) {
                Ok(directory) => assert!(directory.has_log() || !acknowledged),
                Err(error) => panic!("cut at change {nth}, {crash:?}: {error}"),
            }
            life(&disk).unwrap();
        }
    }
}

#[test]
fn any_failing_operation_of_the_first_start_is_an_error_and_no_harm() {
    for repeat in [Repeat::Once, Repeat::Forever] {
        for failure in [Failure::Io, Failure::PartialNoSpace] {
            for nth in 1.. {
                let disk = SimDisk::new();
                disk.fail(Fault { operation: None, nth, failure, repeat });
                let reached = disk.changes();
                assert_eq!(reached, 0);
                let done = life(&disk).is_some();
                let all = disk.changes() < nth;
                assert_eq!(done, all, "a failed operation was ignored");
                disk.heal();
                disk.crash(Crash::LoseUnsynced);
                life(&disk).unwrap();
                if all {
                    break;
                }
            }
        }
    }
}

#[test]
fn it_works_on_a_real_disk() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("data");
    let disk = Arc::new(StdDisk);
    let node = NodeId::random().unwrap();
    assert_ne!(node, NodeId::random().unwrap());
    let start = FirstStart { node, created: Timestamp(5) };
    let directory = DataDirectory::open(disk.clone(), &path, start).unwrap();
    let refused = DataDirectory::open(disk.clone(), &path, start).unwrap_err();
    assert!(matches!(refused, DirectoryError::Locked { .. }));
    drop(directory);
    let again = DataDirectory::open(disk, &path, first(9)).unwrap();
    assert_eq!(again.identity().node, node);
    assert_eq!(again.identity().created, Timestamp(5));
}
