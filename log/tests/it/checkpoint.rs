//! Checkpoints are whole or absent, and losing them is harmless.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use beamlog_log::{Checkpoint, CheckpointError, CheckpointStore, Index, OpenedCheckpoint, SeededRandom};
use tempfile::TempDir;

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

fn place() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    (directory, path)
}

fn open(path: &Path) -> OpenedCheckpoint {
    CheckpointStore::open(path).unwrap()
}

fn key(number: u32) -> Vec<u8> {
    format!("consumer/{number}").into_bytes()
}

fn rows(numbers: impl Iterator<Item = u32>, fill: u8) -> Rows {
    numbers.map(|number| (key(number), vec![fill; 1 + number as usize % 90])).collect()
}

#[test]
fn what_was_saved_is_found_again() {
    let (_directory, path) = place();
    let mut opened = open(&path);
    assert!(opened.checkpoint.is_none());
    let first = rows(0..300, 1);
    opened.store.save(Index(7), 0xabcd, first.clone(), []).unwrap();
    opened.store.close().unwrap();

    let mut opened = open(&path);
    let expected = Checkpoint { applied: Index(7), frame_checksum: 0xabcd, rows: first.clone() };
    assert_eq!(opened.checkpoint, Some(expected));
    // Rows are replaced, added and deleted; deleting what never was changes nothing.
    let changed = rows(250..400, 2);
    let deleted = (0..100).chain(5000..5100).map(key);
    opened.store.save(Index(9), 1, changed.clone(), deleted).unwrap();
    drop(opened);

    let mut expected = first;
    expected.retain(|name, _| !(0..100).map(key).any(|deleted| deleted == *name));
    expected.extend(changed);
    let opened = open(&path);
    let checkpoint = opened.checkpoint.unwrap();
    assert_eq!(checkpoint.applied, Index(9));
    assert_eq!(checkpoint.rows, expected);
    assert!(opened.damage.is_none());
}

#[test]
fn many_saves_agree_with_a_map() {
    let (_directory, path) = place();
    let mut random = SeededRandom::new(5);
    let mut model = Rows::new();
    let mut opened = open(&path);
    for round in 1..=60 {
        let puts: Rows = (0..random.index(150))
            .map(|_| (key(u32::try_from(random.below(200)).unwrap()), vec![round; random.index(50)]))
            .collect();
        let deletes: Vec<Vec<u8>> =
            (0..random.index(80)).map(|_| key(u32::try_from(random.below(200)).unwrap())).collect();
        for deleted in &deletes {
            model.remove(deleted);
        }
        model.extend(puts.clone());
        let applied = Index(u64::from(round));
        opened.store.save(applied, 3, puts, deletes).unwrap();
        if random.one_in(5) {
            drop(opened);
            opened = open(&path);
            let checkpoint = opened.checkpoint.take().unwrap();
            assert_eq!((checkpoint.applied, &checkpoint.rows), (applied, &model));
        }
    }
}

#[test]
fn a_deleted_directory_is_an_empty_store() {
    let (_directory, path) = place();
    let mut opened = open(&path);
    opened.store.save(Index(1), 2, rows(0..10, 1), []).unwrap();
    drop(opened);
    fs::remove_dir_all(&path).unwrap();
    let opened = open(&path);
    assert!(opened.checkpoint.is_none() && opened.damage.is_none());
}

/// The store's keys and values, as they lie in sled.
fn raw(path: &Path) -> sled::Db {
    // A store that was just closed may still be locked by sled's threads.
    if let Ok(file) = fs::File::open(path.join("db")) {
        file.lock().unwrap();
    }
    sled::Config::new().path(path).segment_size(64 << 10).open().unwrap()
}

/// A save that stopped after each of its writes to sled leaves the checkpoint before or after it.
#[test]
fn a_cut_save_leaves_the_old_or_the_new_checkpoint_whole() {
    let (old, new) = (rows(0..100, 1), rows(50..150, 2));
    let deleted: Vec<Vec<u8>> = (0..20).map(key).collect();
    let mut after = old.clone();
    after.retain(|name, _| !deleted.contains(name));
    after.extend(new.clone());

    let (_directory, path) = place();
    let mut opened = open(&path);
    opened.store.save(Index(1), 1, old.clone(), []).unwrap();
    drop(opened);
    let before: Vec<_> = raw(&path).iter().map(Result::unwrap).collect();
    let mut opened = open(&path);
    opened.store.save(Index(2), 2, new, deleted).unwrap();
    drop(opened);
    let done: Vec<_> = raw(&path).iter().map(Result::unwrap).collect();

    // The writes in their order: new versions, header, removals. Marks of deletion are gone at the end,
    // so they are made again here.
    let is_old = |name: &[u8]| before.iter().any(|(old, _)| old == name);
    let header = done.iter().find(|(name, _)| name == b"h").unwrap();
    let written: Vec<_> = done.iter().filter(|(name, _)| !is_old(name)).collect();
    let removed: Vec<_> =
        before.iter().filter(|(name, _)| !done.iter().any(|(left, _)| left == name)).collect();
    assert_eq!((written.len(), removed.len()), (100, 70));

    let mut seen = [0, 0];
    for cut in 0..=(written.len() + 1 + removed.len()) {
        if cut % 7 != 0 && !(95..110).contains(&cut) {
            continue;
        }
        let (_directory, path) = place();
        let sled = raw(&path);
        for (name, value) in &before {
            sled.insert(name, value).unwrap();
        }
        for (name, value) in written.iter().take(cut) {
            sled.insert(name, value).unwrap();
        }
        // Deleted rows have a newer version that says so, from before the header until after the removal.
        for name in (0..20_u32).map(key) {
            let len = u16::try_from(name.len()).unwrap().to_be_bytes();
            let versioned = [b"r", &len[..], &name, &2_u64.to_be_bytes()[..]].concat();
            let checksum = crc32fast::hash(&[&name[..], &[0]].concat());
            sled.insert(versioned, [&checksum.to_le_bytes()[..], &[0]].concat()).unwrap();
        }
        if cut > written.len() {
            sled.insert(&header.0, &header.1).unwrap();
        }
        for (name, _) in removed.iter().take(cut.saturating_sub(written.len() + 1)) {
            sled.remove(name).unwrap();
        }
        drop(sled);
        let opened = open(&path);
        assert!(opened.damage.is_none(), "cut {cut}: {:?}", opened.damage);
        let checkpoint = opened.checkpoint.unwrap();
        let expected = if cut > written.len() { &after } else { &old };
        assert_eq!(checkpoint.rows, *expected, "cut {cut}");
        seen[usize::from(cut > written.len())] += 1;
        drop(opened.store);
        // And the leftovers are gone.
        let left = raw(&path).len();
        assert_eq!(left, expected.len() + 1, "cut {cut}");
    }
    assert!(seen[0] > 5 && seen[1] > 5);
}

#[test]
fn a_changed_missing_or_foreign_row_is_damage_and_is_moved_aside() {
    type Harm = fn(&sled::Db);
    let harms: [Harm; 5] = [
        |sled| {
            let (name, mut value) = sled.get_gt(b"r").unwrap().unwrap();
            value[5] ^= 1;
            sled.insert(name, value).unwrap();
        },
        |sled| {
            let (name, _) = sled.get_gt(b"r").unwrap().unwrap();
            sled.remove(name).unwrap();
        },
        |sled| drop(sled.insert(b"x", b"y").unwrap()),
        |sled| drop(sled.insert(b"h", b"y").unwrap()),
        |sled| {
            // Another row's valid bytes under this key.
            let (name, _) = sled.get_gt(b"r").unwrap().unwrap();
            let (_, other) = sled.get_gt(&name).unwrap().unwrap();
            sled.insert(name, other).unwrap();
        },
    ];
    for (number, harm) in harms.into_iter().enumerate() {
        let (_directory, path) = place();
        let mut opened = open(&path);
        opened.store.save(Index(1), 2, rows(0..10, 1), []).unwrap();
        drop(opened);
        let sled = raw(&path);
        harm(&sled);
        drop(sled);
        let mut opened = open(&path);
        assert!(opened.checkpoint.is_none());
        let damage = opened.damage.unwrap_or_else(|| panic!("harm {number} was not noticed"));
        assert!(damage.moved_to.is_dir());
        opened.store.save(Index(2), 2, rows(0..3, 1), []).unwrap();
        drop(opened.store);
        assert_eq!(open(&path).checkpoint.unwrap().rows, rows(0..3, 1));
    }
}

#[test]
fn flipped_bytes_in_the_files_never_give_other_rows() {
    let (_directory, original) = place();
    let mut opened = open(&original);
    let expected = rows(0..60, 1);
    opened.store.save(Index(1), 2, expected.clone(), []).unwrap();
    opened.store.close().unwrap();
    let files: Vec<PathBuf> = fs::read_dir(&original)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .collect();
    let mut random = SeededRandom::new(8);
    let mut lost = 0;
    for round in 0..120 {
        let (_directory, path) = place();
        fs::create_dir(&path).unwrap();
        let mut copied: Vec<(PathBuf, Vec<u8>)> = files
            .iter()
            .map(|file| (path.join(file.file_name().unwrap()), fs::read(file).unwrap()))
            .collect();
        let harmed = random.index(copied.len());
        let bytes = &mut copied[harmed].1;
        if round % 6 == 0 {
            bytes.truncate(random.index(bytes.len()));
        } else {
            let at = random.index(bytes.len());
            bytes[at] ^= 1 << random.below(8);
        }
        for (name, bytes) in copied {
            fs::write(name, bytes).unwrap();
        }
        match CheckpointStore::open(&path) {
            Ok(opened) => match opened.checkpoint {
                Some(checkpoint) => assert_eq!(checkpoint.rows, expected, "round {round}"),
                None => lost += 1,
            },
            Err(error) => panic!("round {round}: {error:?}"),
        }
    }
    assert!(lost > 0, "the test must also do harm");
}

#[test]
fn a_checkpoint_that_does_not_fit_is_discarded_and_kept_aside() {
    let (_directory, path) = place();
    let mut opened = open(&path);
    let mut last = PathBuf::new();
    for round in 0..6 {
        opened.store.save(Index(round), 2, rows(0..10, 1), []).unwrap();
        last = opened.store.discard().unwrap();
        assert!(last.is_dir());
    }
    assert!(last.ends_with("state.damaged-4"), "bounded: {last:?}");
    opened.store.save(Index(9), 2, rows(0..1, 1), []).unwrap();
}

#[test]
fn a_key_over_the_limit_is_refused_and_nothing_is_saved() {
    let (_directory, path) = place();
    let mut opened = open(&path);
    let long = vec![b'k'; 2000];
    let refused = opened.store.save(Index(1), 1, [(long, vec![])], []);
    assert!(matches!(refused, Err(CheckpointError::Key { bytes: 2000 })));
    opened.store.save(Index(2), 1, [(vec![], vec![1])], []).unwrap();
    drop(opened);
    let rows = open(&path).checkpoint.unwrap().rows;
    assert_eq!(rows, Rows::from([(vec![], vec![1])]));
}

#[test]
fn a_store_that_cannot_be_made_is_an_error_and_nothing_is_moved() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, b"not a directory").unwrap();
    CheckpointStore::open(&file.join("state")).unwrap_err();
    assert_eq!(fs::read(&file).unwrap(), b"not a directory");
}
