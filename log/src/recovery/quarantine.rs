//! Copies of bytes that cannot be read.

use crate::{OpenMode, files::Files, format::segment::SegmentKey};

pub(crate) const QUARANTINE: &str = "quarantine";

/// Keeps a copy of bytes that cannot be read. A copy that cannot be made changes nothing: the bytes stay
/// where they are, or the loss was accepted.
pub(crate) fn quarantine(
    files: &Files,
    key: SegmentKey,
    offset: u64,
    bytes: &[u8],
) -> Option<std::path::PathBuf> {
    quarantine_as(files, &format!("{:020}-{:06}-{offset}.bytes", key.segment.0, key.generation), bytes)
}

/// As [`quarantine`], under another name.
pub(crate) fn quarantine_as(files: &Files, name: &str, bytes: &[u8]) -> Option<std::path::PathBuf> {
    let directory = files.path(QUARANTINE);
    let path = directory.join(name);
    let kept = (|| {
        if !files.disk().exists(&directory)? {
            files.disk().create_dir(&directory)?;
            files.disk().sync_dir(files.directory())?;
        }
        if files.disk().exists(&path)? {
            return Ok(());
        }
        let file = files.disk().open(&path, OpenMode::CreateNew)?;
        file.write_at(bytes, 0)?;
        file.sync_data()?;
        files.disk().sync_dir(&directory)
    })();
    match kept {
        Ok(()) => Some(path),
        Err(error) => {
            tracing::error!(name, err = %error, "bytes were not copied before they went");
            None
        }
    }
}
