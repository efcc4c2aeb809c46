use super::*;

const PATH: &str = "/d/file";

/// A disk with the directory `/d` on the medium.
fn disk() -> SimDisk {
    let disk = SimDisk::new();
    disk.create_dir(Path::new("/d")).unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    disk
}

/// And in it a file whose name and first bytes are on the medium.
fn disk_with(bytes: &[u8]) -> (SimDisk, Box<dyn DiskFile>) {
    let disk = disk();
    let file = disk.open(Path::new(PATH), OpenMode::CreateNew).unwrap();
    file.write_at(bytes, 0).unwrap();
    file.sync_data().unwrap();
    disk.sync_dir(Path::new("/d")).unwrap();
    (disk, file)
}

fn content(disk: &SimDisk) -> Vec<u8> {
    let file = disk.open(Path::new(PATH), OpenMode::Read).unwrap();
    let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
    assert_eq!(file.read_at(&mut bytes, 0).unwrap(), bytes.len());
    bytes
}

fn past_cache(file: &dyn DiskFile) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    let count = file.read_at_past_cache(&mut bytes, 0).unwrap();
    bytes.truncate(count);
    bytes
}

fn names(disk: &SimDisk) -> Vec<String> {
    disk.list(Path::new("/d")).unwrap()
}

#[test]
fn synced_bytes_and_names_survive_every_crash() {
    for crash in Crash::sample(1) {
        let (disk, _file) = disk_with(&[7; 2000]);
        disk.crash(crash);
        assert_eq!(content(&disk), [7; 2000], "{crash:?}");
    }
}

#[test]
fn unsynced_bytes_are_read_and_may_be_lost() {
    let (disk, file) = disk_with(b"old");
    file.write_at(b"new and longer", 0).unwrap();
    assert_eq!(content(&disk), b"new and longer");
    disk.crash(Crash::LoseUnsynced);
    assert_eq!(content(&disk), b"old");
}

#[test]
fn unsynced_bytes_may_survive() {
    let (disk, file) = disk_with(b"old");
    file.write_at(b"new and longer", 0).unwrap();
    disk.crash(Crash::KeepUnsynced);
    assert_eq!(content(&disk), b"new and longer");
}

#[test]
fn a_synced_file_without_a_synced_name_is_lost() {
    let disk = disk();
    let file = disk.open(Path::new(PATH), OpenMode::CreateNew).unwrap();
    file.write_at(b"bytes", 0).unwrap();
    file.sync_data().unwrap();
    assert_eq!(names(&disk), ["file"]);
    disk.crash(Crash::LoseUnsynced);
    assert_eq!(names(&disk), [""; 0]);
}

#[test]
fn a_name_without_synced_bytes_is_an_empty_file() {
    let disk = disk();
    let file = disk.open(Path::new(PATH), OpenMode::CreateNew).unwrap();
    disk.sync_dir(Path::new("/d")).unwrap();
    file.write_at(b"bytes", 0).unwrap();
    disk.crash(Crash::LoseUnsynced);
    assert_eq!(content(&disk), b"");
}

#[test]
fn a_rename_is_undone_until_the_directory_is_synced() {
    let (disk, _file) = disk_with(b"old");
    let (new, old) = (Path::new("/d/new"), Path::new(PATH));
    let file = disk.open(new, OpenMode::CreateNew).unwrap();
    file.write_at(b"new", 0).unwrap();
    file.sync_data().unwrap();
    disk.sync_dir(Path::new("/d")).unwrap();
    disk.rename(new, old).unwrap();
    assert_eq!(content(&disk), b"new");

    let synced = disk.fork();
    disk.crash(Crash::LoseUnsynced);
    assert_eq!(names(&disk), ["file", "new"]);
    assert_eq!(content(&disk), b"old");

    synced.sync_dir(Path::new("/d")).unwrap();
    synced.crash(Crash::LoseUnsynced);
    assert_eq!(names(&synced), ["file"]);
    assert_eq!(content(&synced), b"new");
}

#[test]
fn a_removal_is_undone_until_the_directory_is_synced() {
    let (disk, _file) = disk_with(b"kept");
    disk.remove(Path::new(PATH)).unwrap();
    assert!(!disk.exists(Path::new(PATH)).unwrap());
    disk.crash(Crash::LoseUnsynced);
    assert_eq!(content(&disk), b"kept");
}

#[test]
fn a_prefix_keeps_earlier_changes_whole_and_tears_one() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..400 {
        let (disk, file) = disk_with(&[0; 30]);
        file.write_at(&[1; 10], 0).unwrap();
        file.write_at(&[2; 10], 10).unwrap();
        file.write_at(&[3; 10], 20).unwrap();
        disk.crash(Crash::KeepPrefix { seed });
        let bytes = content(&disk);
        let kept = bytes.iter().take_while(|byte| **byte != 0).count();
        assert!(bytes[kept..].iter().all(|byte| *byte == 0), "{bytes:?}");
        seen.insert(kept);
    }
    assert_eq!(seen.len(), 31, "every length is found: {seen:?}");
}

#[test]
fn sectors_survive_whole_in_any_subset_and_any_state() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..400 {
        let (disk, file) = disk_with(&[0; 2 * SECTOR_BYTES]);
        file.write_at(&[1; 2 * SECTOR_BYTES], 0).unwrap();
        file.write_at(&[2; SECTOR_BYTES], 0).unwrap();
        disk.crash(Crash::Scatter { seed });
        let bytes = content(&disk);
        let (first, second) = bytes.split_at(SECTOR_BYTES);
        assert!(first.iter().all(|byte| *byte == first[0]));
        assert!(second.iter().all(|byte| *byte == second[0]));
        seen.insert((first[0], second[0]));
    }
    let expected = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)];
    assert_eq!(seen, expected.into());
}

#[test]
fn a_scattered_name_and_length_survive_or_not() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..200 {
        let (disk, file) = disk_with(b"");
        file.preallocate(1024).unwrap();
        drop(disk.open(Path::new("/d/other"), OpenMode::CreateNew).unwrap());
        disk.crash(Crash::Scatter { seed });
        seen.insert((content(&disk).len(), names(&disk).len()));
    }
    assert_eq!(seen, [(0, 1), (0, 2), (1024, 1), (1024, 2)].into());
}

#[test]
fn a_mask_chooses_the_sectors() {
    let (disk, file) = disk_with(&[0; 4 * SECTOR_BYTES]);
    file.write_at(&[1; 3 * SECTOR_BYTES], SECTOR_BYTES as u64).unwrap();
    assert_eq!(disk.unsynced_sectors(), 3);
    for mask in 0..8_u64 {
        let disk = disk.fork();
        disk.crash(Crash::Sectors { mask });
        let bytes = content(&disk);
        let kept = (1..4).map(|sector| u64::from(bytes[sector * SECTOR_BYTES]) << (sector - 1));
        assert_eq!(kept.sum::<u64>(), mask);
    }
}

#[test]
fn a_size_may_survive_without_its_bytes() {
    let (disk, file) = disk_with(b"old");
    file.write_at(b"bytes", 3).unwrap();
    disk.crash(Crash::ZeroExtend);
    assert_eq!(content(&disk), b"old\0\0\0\0\0");
}

#[test]
fn the_last_write_may_be_torn() {
    let (disk, file) = disk_with(b"");
    file.write_at(b"first", 0).unwrap();
    file.write_at(b"second", 5).unwrap();
    disk.crash(Crash::TearLast { bytes: 2 });
    assert_eq!(content(&disk), b"firstse");
}

#[test]
fn after_a_failed_sync_only_a_read_past_the_cache_tells_the_truth() {
    let (disk, file) = disk_with(b"old");
    file.write_at(b"new", 0).unwrap();
    disk.fail(Fault {
        operation: Some(Operation::SyncData),
        nth: 1,
        failure: Failure::Io,
        repeat: Repeat::Once,
    });
    assert_eq!(file.sync_data().unwrap_err().raw_os_error(), Some(5));
    drop(file);
    let file = disk.open(Path::new(PATH), OpenMode::ReadWrite).unwrap();
    assert_eq!(content(&disk), b"new");
    file.sync_data().unwrap();
    assert_eq!(past_cache(file.as_ref()), b"old");
    // What is written from now on can be made durable.
    file.write_at(b"x", 0).unwrap();
    assert_eq!(past_cache(file.as_ref()), b"xld");
    file.sync_data().unwrap();
    disk.crash(Crash::KeepUnsynced);
    assert_eq!(content(&disk), b"xld");
}

#[test]
fn a_sync_may_fail_half_way() {
    let (disk, file) = disk_with(&[0; 4 * SECTOR_BYTES]);
    file.write_at(&[1; 4 * SECTOR_BYTES], 0).unwrap();
    disk.fail(Fault {
        operation: Some(Operation::SyncData),
        nth: 1,
        failure: Failure::PartialIo,
        repeat: Repeat::Once,
    });
    file.sync_data().unwrap_err();
    disk.crash(Crash::KeepUnsynced);
    let firsts: Vec<u8> = content(&disk).chunks(SECTOR_BYTES).map(|sector| sector[0]).collect();
    assert_eq!(firsts, [1, 0, 1, 0]);
}

#[test]
fn the_nth_operation_fails_once_or_for_ever() {
    for (repeat, expected) in
        [(Repeat::Once, [true, false, true, true]), (Repeat::Forever, [true, false, false, false])]
    {
        let (disk, file) = disk_with(b"");
        disk.fail(Fault { operation: Some(Operation::Write), nth: 2, failure: Failure::NoSpace, repeat });
        let results: Vec<bool> = (0..4).map(|_| file.write_at(b"x", 0).is_ok()).collect();
        assert_eq!(results, expected);
        disk.heal();
        file.write_at(b"x", 0).unwrap();
    }
}

#[test]
fn every_operation_can_fail() {
    for operation in Operation::ALL {
        let (disk, file) = disk_with(b"bytes");
        disk.fail(Fault {
            operation: Some(operation),
            nth: 1,
            failure: Failure::Io,
            repeat: Repeat::Forever,
        });
        let (path, other, directory) = (Path::new(PATH), Path::new("/d/other"), Path::new("/d"));
        let result = match operation {
            Operation::Open => disk.open(path, OpenMode::Read).map(drop),
            Operation::Create => disk.open(other, OpenMode::CreateNew).map(drop),
            Operation::List => disk.list(directory).map(drop),
            Operation::Exists => disk.exists(path).map(drop),
            Operation::CreateDir => disk.create_dir(other),
            Operation::Rename => disk.rename(path, other),
            Operation::Remove => disk.remove(path),
            Operation::SyncDir => disk.sync_dir(directory),
            Operation::Lock => disk.lock(other).map(drop),
            Operation::Read => file.read_at(&mut [0], 0).map(drop),
            Operation::ReadPastCache => file.read_at_past_cache(&mut [0], 0).map(drop),
            Operation::Write => file.write_at(b"x", 0),
            Operation::SetLen => file.set_len(0),
            Operation::Preallocate => file.preallocate(10),
            Operation::SyncData => file.sync_data(),
            Operation::Len => file.len().map(drop),
        };
        assert_eq!(result.unwrap_err().raw_os_error(), Some(5), "{operation:?}");
        disk.heal();
        assert_eq!(content(&disk), b"bytes", "{operation:?} changed something");
    }
}

#[test]
fn a_short_write_leaves_half_and_says_why() {
    for (failure, out_of_space) in [(Failure::PartialIo, false), (Failure::PartialNoSpace, true)] {
        let (disk, file) = disk_with(b"");
        disk.fail(Fault { operation: None, nth: 1, failure, repeat: Repeat::Once });
        let error = file.write_at(b"abcdef", 0).unwrap_err();
        assert_eq!(crate::is_out_of_space(&error), out_of_space);
        assert_eq!(content(&disk), b"abc");
    }
}

#[test]
fn a_full_disk_takes_what_fits_and_overwrites_what_is_reserved() {
    let (disk, file) = disk_with(b"");
    disk.limit_space(100);
    file.preallocate(101).unwrap_err();
    file.preallocate(90).unwrap();
    assert_eq!(disk.used_space(), 90);
    file.write_at(&[1; 90], 0).unwrap();
    assert!(crate::is_out_of_space(&file.write_at(&[2; 20], 85).unwrap_err()));
    assert_eq!(content(&disk).len(), 100);
    disk.heal();
    file.write_at(&[2; 20], 85).unwrap();
    disk.limit_space(105);
    disk.remove(Path::new(PATH)).unwrap();
    assert_eq!(disk.used_space(), 0);
}

#[test]
fn the_machine_goes_off_before_the_nth_change_and_stays_off() {
    let (disk, file) = disk_with(b"");
    disk.power_off_at(2);
    file.write_at(b"a", 0).unwrap();
    assert!(!disk.is_off());
    file.write_at(b"b", 1).unwrap_err();
    assert!(disk.is_off());
    file.read_at(&mut [0], 0).unwrap_err();
    disk.open(Path::new(PATH), OpenMode::Read).unwrap_err();
    disk.crash(Crash::KeepUnsynced);
    assert_eq!(content(&disk), b"a");
    let error = file.write_at(b"c", 0).unwrap_err();
    assert_eq!(error.to_string(), "opened before the power cut");
}

#[test]
fn a_lock_is_held_once_until_dropped_or_crashed() {
    let disk = disk();
    let path = Path::new("/d/lock");
    let held = disk.lock(path).unwrap();
    let refused = disk.lock(path).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
    drop(held);
    let held = disk.lock(path).unwrap();
    disk.crash(Crash::KeepUnsynced);
    let again = disk.lock(path).unwrap();
    drop(held); // of the old boot: frees nothing
    disk.lock(path).unwrap_err();
    drop(again);
}

#[test]
fn the_trace_proves_write_then_sync_then_mark() {
    let (disk, file) = disk_with(b"");
    disk.start_trace();
    file.write_at(b"abc", 4).unwrap();
    file.sync_data().unwrap();
    disk.mark("ack");
    let did =
        |operation, offset, len| Event::Did { operation, path: PATH.into(), offset, len, succeeded: true };
    assert_eq!(
        disk.trace(),
        [did(Operation::Write, 4, 3), did(Operation::SyncData, 0, 0), Event::Mark("ack".into())]
    );
    assert_eq!(disk.count(Operation::Write), 2);
}

#[test]
fn altered_bytes_are_on_the_medium_and_may_hide_behind_the_cache() {
    let (disk, file) = disk_with(b"abc");
    disk.flip_bit(Path::new(PATH), 8).unwrap();
    assert_eq!(content(&disk), b"acc");
    disk.alter_medium(Path::new(PATH), |bytes| bytes.truncate(1)).unwrap();
    assert_eq!(content(&disk), b"acc");
    assert_eq!(past_cache(file.as_ref()), b"a");
    disk.flip_bit(Path::new(PATH), 8 * 3).unwrap_err();
    disk.break_range(Path::new(PATH), 1..2).unwrap();
    file.read_at(&mut [0], 0).unwrap();
    file.read_at(&mut [0; 2], 0).unwrap_err();
}

#[test]
fn a_fork_goes_its_own_way() {
    let (disk, file) = disk_with(b"one");
    let other = disk.fork();
    file.write_at(b"two", 0).unwrap();
    assert_eq!(content(&other), b"one");
    assert_eq!(content(&disk), b"two");
    assert_eq!(disk.files()[Path::new(PATH)], b"one");
}
