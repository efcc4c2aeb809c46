//! Corpora on disk: one directory per target, one file per input, named by its checksum.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The directory of all corpora.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

/// The inputs of a target, in the order of their names.
pub fn load(target: &str) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut inputs = Vec::new();
    for entry in fs::read_dir(root().join(target))? {
        let path = entry?.path();
        let bytes = fs::read(&path)?;
        inputs.push((path, bytes));
    }
    inputs.sort();
    Ok(inputs)
}

/// Adds an input, if it is not there; says where it is. `kind` is `seed` or `crash`.
pub fn save(target: &str, kind: &str, bytes: &[u8]) -> io::Result<PathBuf> {
    let directory = root().join(target);
    fs::create_dir_all(&directory)?;
    let path = directory.join(format!("{kind}-{:08x}", crc32fast::hash(bytes)));
    fs::write(&path, bytes)?;
    Ok(path)
}
