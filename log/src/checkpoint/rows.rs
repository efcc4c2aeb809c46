//! How rows lie in sled: several versions of a key beside each other, each checked by itself.
//!
//! | key in sled | value |
//! |---|---|
//! | `h` | header in its envelope |
//! | `r`, `u16` length of key (big-endian), key, `u64` generation (big-endian) | `u32` CRC-32 (little-endian) of key, tag and bytes; tag (1 row, 0 deleted); bytes |
//!
//! The row of a key is its newest version that is not newer than the header's generation.

use std::collections::BTreeMap;

use super::{BATCH_ROWS, CheckpointError, Header};
use crate::envelope;

pub(super) const HEADER_KEY: &[u8] = b"h";
const ROW: u8 = b'r';
const TAG_DELETED: u8 = 0;
const TAG_ROW: u8 = 1;

/// The key of one version of a row.
#[derive(Clone, Debug)]
pub(super) struct RowKey(Vec<u8>);

impl RowKey {
    pub(super) fn new(key: &[u8], generation: u64) -> Self {
        let mut bytes = prefix(key);
        bytes.extend_from_slice(&generation.to_be_bytes());
        Self(bytes)
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The caller's key and the generation.
    fn split(&self) -> Option<(&[u8], u64)> {
        let rest = self.0.strip_prefix(&[ROW])?;
        let (len, rest) = rest.split_first_chunk::<2>()?;
        let (key, generation) = rest.split_last_chunk::<8>()?;
        (key.len() == usize::from(u16::from_be_bytes(*len))).then(|| (key, u64::from_be_bytes(*generation)))
    }
}

fn prefix(key: &[u8]) -> Vec<u8> {
    let len = u16::try_from(key.len()).expect("keys are bounded when they come in");
    let mut bytes = Vec::with_capacity(key.len() + 11);
    bytes.push(ROW);
    bytes.extend_from_slice(&len.to_be_bytes());
    bytes.extend_from_slice(key);
    bytes
}

/// A version of a row: bytes, or the mark that there are none any more.
#[derive(Debug)]
pub(super) struct Row {
    bytes: Option<Vec<u8>>,
}

impl Row {
    pub(super) fn new(bytes: Option<&[u8]>) -> Self {
        let bytes = bytes.map(<[u8]>::to_vec);
        Self { bytes }
    }

    pub(super) const fn is_tombstone(&self) -> bool {
        self.bytes.is_none()
    }

    /// What a row adds to the sum of all; nothing when it is deleted.
    pub(super) fn hash(&self, key: &[u8]) -> Option<u64> {
        self.bytes.as_ref().map(|bytes| u64::from(checksum(key, TAG_ROW, bytes)))
    }

    pub(super) fn encode(&self, key: &[u8]) -> Vec<u8> {
        let (tag, bytes) = match &self.bytes {
            Some(bytes) => (TAG_ROW, bytes.as_slice()),
            None => (TAG_DELETED, [].as_slice()),
        };
        let mut value = checksum(key, tag, bytes).to_le_bytes().to_vec();
        value.push(tag);
        value.extend_from_slice(bytes);
        value
    }

    fn decode(key: &[u8], value: &[u8]) -> Option<Self> {
        let (stored, rest) = value.split_first_chunk::<4>()?;
        let (&tag, bytes) = rest.split_first()?;
        if checksum(key, tag, bytes) != u32::from_le_bytes(*stored) {
            return None;
        }
        match (tag, bytes) {
            (TAG_ROW, bytes) => Some(Self::new(Some(bytes))),
            (TAG_DELETED, []) => Some(Self::new(None)),
            _ => None,
        }
    }
}

fn checksum(key: &[u8], tag: u8, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(&[tag]);
    hasher.update(bytes);
    hasher.finalize()
}

/// The versions of one key, oldest first.
pub(super) fn versions<'a>(
    sled: &sled::Db,
    key: &'a [u8],
) -> impl Iterator<Item = Result<(RowKey, Row), CheckpointError>> + use<'a> {
    sled.scan_prefix(prefix(key)).map(move |item| {
        let (found, value) = item?;
        let row = Row::decode(key, &value).ok_or(CheckpointError::Row)?;
        Ok((RowKey(found.to_vec()), row))
    })
}

/// Removes versions, in this order, in small batches.
pub(super) fn remove(sled: &sled::Db, keys: &[RowKey]) -> Result<(), CheckpointError> {
    for some in keys.chunks(BATCH_ROWS) {
        let mut batch = sled::Batch::default();
        for key in some {
            batch.remove(key.as_bytes());
        }
        sled.apply_batch(batch)?;
    }
    Ok(())
}

/// All that a store holds.
#[derive(Debug, Default)]
pub(super) struct Content {
    pub(super) header: Option<Header>,
    pub(super) rows: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Versions that are not the row of their key: what a cut save left.
    pub(super) stale: Vec<RowKey>,
}

/// Reads and verifies all rows. The stale versions of a key come oldest first: a mark of deletion goes
/// after what it deletes.
pub(super) fn read(sled: &sled::Db) -> Result<Content, CheckpointError> {
    let header: Option<Header> = match sled.get(HEADER_KEY)? {
        Some(bytes) => Some(envelope::decode(&bytes).map_err(CheckpointError::Header)?),
        None => None,
    };
    let mut content = Content { header, ..Content::default() };
    // The newest version of the key that is being looked at, so far.
    let mut newest: Option<(RowKey, Row)> = None;
    for item in sled.iter() {
        let (found, value) = item?;
        if found == HEADER_KEY {
            continue;
        }
        let found = RowKey(found.to_vec());
        let (key, generation) = found.split().ok_or(CheckpointError::Row)?;
        if header.is_none_or(|header| generation > header.generation) {
            content.stale.push(found);
            continue;
        }
        let row = Row::decode(key, &value).ok_or(CheckpointError::Row)?;
        if let Some((older, older_row)) = newest.take() {
            if older.split().is_some_and(|(older, _)| older == key) {
                content.stale.push(older);
            } else {
                content.take(older, older_row);
            }
        }
        newest = Some((found, row));
    }
    if let Some((key, row)) = newest {
        content.take(key, row);
    }
    if let Some(header) = header {
        content.check(&header)?;
    }
    Ok(content)
}

impl Content {
    fn take(&mut self, found: RowKey, row: Row) {
        match (row.bytes, found.split()) {
            (Some(bytes), Some((key, _))) => {
                self.rows.insert(key.to_vec(), bytes);
            }
            (None, _) | (_, None) => self.stale.push(found),
        }
    }

    fn check(&self, header: &Header) -> Result<(), CheckpointError> {
        let found = self.rows.len() as u64;
        if found != header.rows {
            return Err(CheckpointError::Count { expected: header.rows, found });
        }
        let hashes = self.rows.iter().map(|(key, bytes)| u64::from(checksum(key, TAG_ROW, bytes)));
        if hashes.fold(0, u64::wrapping_add) == header.sum { Ok(()) } else { Err(CheckpointError::Sum) }
    }
}
