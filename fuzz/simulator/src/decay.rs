//! What becomes of bytes on a disk that nobody writes: flipped bits, sectors that read as zeros, and sectors that hold what
//! was meant for another place.

use std::path::PathBuf;

use beamlog_log::SeededRandom;
use beamlog_log::sim_disk::{SECTOR_BYTES, SimDisk};

/// Lets a file decay. Says what happened.
pub fn rot(disk: &SimDisk, random: &mut SeededRandom) -> String {
    // A vote that decays is one that was never saved: no disk of a voter may do that, and one bad slot is all that is
    // survived (DR9).
    let files: Vec<PathBuf> = disk
        .files()
        .into_iter()
        .filter(|(path, bytes)| !bytes.is_empty() && path.extension().is_some_and(|kind| kind == "seg"))
        .map(|(path, _)| path)
        .collect();
    if files.is_empty() {
        return "there is nothing".to_owned();
    }
    let path = &files[random.index(files.len())];
    let (kind, from, to) = (random.below(3), random.next(), random.next());
    let mut what = String::new();
    let done = disk.alter(path, |bytes| {
        // Behind the last byte that was written there is nothing to lose.
        let written = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let sectors = written.div_ceil(SECTOR_BYTES).max(1);
        let place = |by: u64| usize::try_from(by % sectors as u64).unwrap_or(0) * SECTOR_BYTES;
        let (from, to) = (place(from), place(to));
        let end = (to + SECTOR_BYTES).min(bytes.len());
        match kind {
            0 => {
                let at = to + random.index(end - to);
                bytes[at] ^= 1 << random.below(8);
                what = format!("a bit of byte {at} of {written} is turned over");
            }
            1 => {
                bytes[to..end].fill(0);
                what = format!("the sector at {to} of {written} is empty");
            }
            _ => {
                let moved = bytes[from..(from + end - to).min(bytes.len())].to_vec();
                bytes[to..to + moved.len()].copy_from_slice(&moved);
                what = format!("the sector at {to} of {written} holds what belongs at {from}");
            }
        }
    });
    match done {
        Ok(()) => format!("{}: {what}", path.display()),
        Err(error) => format!("{}: {error}", path.display()),
    }
}
