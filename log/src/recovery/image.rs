//! The bytes of a file as recovery looks at them.

use crate::{DiskFile, format::segment::FRAMES_AT};

/// What is read at once.
const CHUNK_BYTES: usize = 1 << 20;

/// The bytes of a file, without the zeros at its end.
pub(crate) struct Image {
    pub(crate) bytes: Vec<u8>,
    pub(crate) file_bytes: u64,
}

impl Image {
    /// The bytes from the first frame to `end`, which may lie in the zeros that are not kept.
    pub(crate) fn frames_to(&mut self, end: u64) -> &[u8] {
        let from = usize::try_from(FRAMES_AT).expect("a few thousand");
        let end = usize::try_from(end).expect("a place in an image that is in memory").max(from);
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        &self.bytes[from..end]
    }
}

/// Reads a file whole, past the page cache if asked to. What was preallocated and never written is zeros
/// by the filesystem's own account, and is not read: a start would pay for a whole segment.
pub(crate) fn read_image(file: &dyn DiskFile, past_cache: bool) -> std::io::Result<Image> {
    let file_bytes = file.len()?;
    let mut bytes = Vec::new();
    let mut chunk = vec![0; CHUNK_BYTES.min(usize::try_from(file_bytes).unwrap_or(CHUNK_BYTES))];
    let mut at = 0;
    while at < file_bytes {
        let Some(written) = file.next_data(at)? else { break };
        at = written;
        let read =
            if past_cache { file.read_at_past_cache(&mut chunk, at)? } else { file.read_at(&mut chunk, at)? };
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(last) = last_written(&chunk[..read]) {
            let offset = usize::try_from(at).expect("a place in a file that is read into memory");
            bytes.resize(offset, 0);
            bytes.extend_from_slice(&chunk[..=last]);
        }
        at += read as u64;
    }
    // The header is looked at where it stands, also when its checksum ends in zeros.
    let front = usize::try_from(file_bytes.min(FRAMES_AT)).expect("a few thousand");
    if bytes.len() < front {
        bytes.resize(front, 0);
    }
    Ok(Image { bytes, file_bytes })
}

/// The last byte that is not zero. Most of a preallocated file is, and every start looks at all of it: whole
/// blocks are compared before bytes are.
fn last_written(chunk: &[u8]) -> Option<usize> {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut end = chunk.len();
    for block in chunk.rchunks(ZEROS.len()) {
        if *block != ZEROS[..block.len()] {
            let start = end - block.len();
            return block.iter().rposition(|byte| *byte != 0).map(|at| start + at);
        }
        end -= block.len();
    }
    None
}
