//! Opening a log whose files were changed, with their checksums as they fall and with valid ones.

use std::path::Path;

use beamlog_log::Disk;

use crate::store;

pub const WORDS: &[&[u8]] =
    &[b"BFR1", b"BEAMSEG\0", b"BEAMEND\0", b"BEAMIDX\0", &[0; 12], &[1, 4, 0, 16, 0, 0xff], &[0xff; 12]];

/// Bytes of one change: what, which file, where (4), how much, value.
const CHANGE_BYTES: usize = 8;
const CHANGES_MAX: usize = 16;

/// The first byte chooses forged checksums (odd) or not; then changes.
pub fn run(data: &[u8]) {
    let Some((&mode, changes)) = data.split_first() else { return };
    let forged = mode & 1 == 1;
    let disk = store::disk();
    for change in changes.chunks_exact(CHANGE_BYTES).take(CHANGES_MAX) {
        apply(&disk, change);
    }
    if forged {
        for path in store::files().iter().filter(|path| path.extension().is_some_and(|kind| kind == "seg")) {
            // A removed file stays removed.
            disk.alter(path, |bytes| store::forge(bytes)).ok();
        }
    }
    disk.sync_dir(Path::new("/log")).expect("it is there");
    let before = disk.files();
    let Ok(opened) = store::open(&disk) else {
        // Refused: nothing that was there is gone (DR7).
        for (path, bytes) in before.iter().filter(|(path, _)| path.extension().is_some_and(|kind| kind == "seg")) {
            assert!(disk.files().get(path) == Some(bytes), "{} was changed by refusing", path.display());
        }
        return;
    };
    store::use_everything(opened, forged);
}

fn apply(disk: &beamlog_log::SimDisk, change: &[u8]) {
    let [what, file, a, b, c, d, len, value] = *change else { return };
    let files = store::files();
    let path: &Path = &files[usize::from(file) % files.len()];
    let len = usize::from(len);
    // A file that an earlier change removed is not there any more.
    let done = match what % 8 {
        0 => disk.remove(path),
        1 => disk.rename(path, &files[usize::from(value) % files.len()]),
        what => disk.alter(path, |bytes| {
            let places = bytes.len().max(1);
            let at = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(0) % places;
            let end = (at + len).min(bytes.len());
            match what {
                2 => bytes.truncate(at),
                3 => bytes[at..end].fill(0),
                4 => {
                    // A sector from another place of the file.
                    let (from, to) = (at / 512 * 512, len * 512 % places);
                    let sector = bytes[from..(from + 512).min(bytes.len())].to_vec();
                    for (target, byte) in bytes[to..].iter_mut().zip(sector) {
                        *target = byte;
                    }
                }
                5 => bytes.extend(std::iter::repeat_n(value, len)),
                6 => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = value;
                    }
                }
                _ => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= 1 << (value % 8);
                    }
                }
            }
        }),
    };
    done.ok();
}

pub fn seeds() -> Vec<Vec<u8>> {
    let change = |what: u8, file: u8, at: u32, len: u8, value: u8| {
        let [a, b, c, d] = at.to_le_bytes();
        vec![what, file, a, b, c, d, len, value]
    };
    let mut seeds = vec![vec![0], vec![1]];
    for mode in [0, 1] {
        for file in 0..5 {
            for (what, at, len, value) in
                [(0, 0, 0, 0), (2, 5000, 0, 0), (3, 4096, 200, 0), (6, 4144, 0, 9), (7, 20, 0, 3), (4, 4608, 9, 0)]
            {
                seeds.push([vec![mode], change(what, file, at, len, value)].concat());
            }
        }
    }
    seeds
}
