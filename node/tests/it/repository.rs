//! The files of this repository, as the tests that judge them see them.

use std::fs;
use std::path::{Path, PathBuf};

/// What git ignores, and git itself.
const NOT_OURS: [&str; 4] = [".git", "target", ".venv", "beamlog-data"];

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// All files, with their path from the root.
pub(crate) fn files() -> Vec<PathBuf> {
    let root = root();
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            if NOT_OURS.iter().any(|name| entry.file_name() == *name) {
                continue;
            }
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else {
                found.push(entry.path().strip_prefix(&root).unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

/// The files whose name ends so, with their text.
pub(crate) fn texts(ending: &str) -> Vec<(PathBuf, String)> {
    let root = root();
    let ends = |path: &PathBuf| path.to_string_lossy().ends_with(ending);
    files()
        .into_iter()
        .filter(ends)
        .map(|path| {
            let text = fs::read_to_string(root.join(&path)).unwrap();
            (path, text)
        })
        .collect()
}
