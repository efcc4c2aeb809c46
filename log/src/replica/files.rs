//! The log as files, for a peer whose log is too far behind: what there is, and reading it.
//!
//! Invariant: while a [`Shipment`] lives, its files stay what they are. Sealed ones are neither removed nor written
//! anew; what is appended to the open one stands behind the part that is shipped. Only cutting entries takes the
//! open one away, and then reading it fails.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, Weak},
};

use bytes::Bytes;

use crate::{
    Damage, Disk, DiskFailed, EntryId, Index, Log, OpenMode, ShardId, SyncError, Term, TruncateError,
    envelope::{self, DecodeError, EncodeError, Enveloped},
    format::{
        hash::ContentHash,
        segment::{FOOTER_BYTES, FRAMES_AT, SegmentKey},
    },
};

/// Longest piece that is read at once.
pub const CHUNK_BYTES_MAX: usize = 4 << 20;
/// Places in a segment are 32 bits wide.
const FILE_BYTES_MAX: u64 = u32::MAX as u64;

/// One file of a log.
#[derive(Clone, Debug, Eq, PartialEq, wincode::SchemaRead, wincode::SchemaWrite)]
pub struct LogFile {
    pub name: String,
    /// How much of it belongs to the log.
    pub bytes: u64,
    /// XXH64, seed 0, of its frames.
    pub hash: u64,
}

/// All files of a log at one moment, in the order of the log. The last one was open then.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LogFiles {
    pub shard: ShardId,
    /// The last entry in them.
    pub last: EntryId,
    pub files: Vec<LogFile>,
}

/// As it is encoded.
#[derive(wincode::SchemaRead, wincode::SchemaWrite)]
struct FilesRecord {
    shard: ShardId,
    last_index: Index,
    last_term: Term,
    files: Vec<LogFile>,
}

impl Enveloped for FilesRecord {
    const KIND: u16 = 2;
    const VERSION: u8 = 1;
}

/// Why bytes are not a list of a log's files.
#[derive(Debug, thiserror::Error)]
pub enum LogFilesError {
    #[error("the list of files is not well-formed")]
    Decode(#[from] DecodeError),
    #[error("there are no files in the list")]
    Empty,
    #[error("{name:?} is not the name of a segment that comes after those before it")]
    Name { name: String },
    #[error("{name} cannot have {bytes} bytes")]
    Bytes { name: String, bytes: u64 },
}

impl LogFiles {
    /// Fails when the log has more segments than a list can name.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        envelope::encode(&FilesRecord {
            shard: self.shard,
            last_index: self.last.index,
            last_term: self.last.term,
            files: self.files.clone(),
        })
    }

    /// The list in these bytes; every name in it is one of a segment, and their order is that of a log.
    pub fn decode(bytes: &[u8]) -> Result<Self, LogFilesError> {
        let FilesRecord { shard, last_index, last_term, files } = envelope::decode(bytes)?;
        let mut before = None;
        for file in &files {
            let name = || file.name.clone();
            let (key, _) = SegmentKey::parse(&file.name)
                .filter(|(_, is_segment)| *is_segment)
                .ok_or_else(|| LogFilesError::Name { name: name() })?;
            if before.is_some_and(|before| before >= key.segment) || key.segment.0 == 0 {
                return Err(LogFilesError::Name { name: name() });
            }
            if file.bytes < FRAMES_AT || file.bytes > FILE_BYTES_MAX {
                return Err(LogFilesError::Bytes { name: name(), bytes: file.bytes });
            }
            before = Some(key.segment);
        }
        if files.is_empty() {
            return Err(LogFilesError::Empty);
        }
        Ok(Self { shard, last: EntryId { index: last_index, term: last_term }, files })
    }

    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.bytes))
    }

    /// Whether a file of this list is the open one.
    pub(crate) fn is_open(&self, place: usize) -> bool {
        place + 1 == self.files.len()
    }

    /// Where the frames of a file end.
    pub(crate) fn frames_end(&self, place: usize) -> u64 {
        let bytes = self.files[place].bytes;
        if self.is_open(place) { bytes } else { bytes.saturating_sub(FOOTER_BYTES as u64) }
    }
}

/// Files that upkeep leaves alone.
pub(crate) type Pin = BTreeSet<SegmentKey>;

/// Why a log is not given to others.
#[derive(Debug, thiserror::Error)]
pub enum ShipError {
    #[error("the log stopped after an earlier failure")]
    Poisoned,
    /// Damage is not spread.
    #[error("the log is damaged")]
    Damaged(#[source] Damage),
    #[error("there is no file {name:?} in what is shipped")]
    Unknown { name: String },
    #[error("{name} has no {len} bytes at {offset}")]
    Range { name: String, offset: u64, len: usize },
    #[error("the open segment begins with entry {base}, which is not decided")]
    Undecided { base: Index },
    #[error(transparent)]
    Disk(#[from] DiskFailed),
}

/// A log's files at one moment, for reading. Needs neither the log nor its thread.
#[derive(Debug)]
pub struct Shipment {
    files: LogFiles,
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    notes: Notes,
    _pin: Arc<Pin>,
}

/// What is shipped of the open segment behind the entries: what the log noted for itself further on.
#[derive(Debug, Default)]
struct Notes {
    /// Where it stands in what is shipped.
    at: u64,
    frames: Bytes,
}

impl Shipment {
    #[must_use]
    pub const fn files(&self) -> &LogFiles {
        &self.files
    }

    /// Up to `len` bytes of a file, and no more than [`CHUNK_BYTES_MAX`]. Whoever gets them verifies the file as
    /// a whole ([`crate::Installation`]).
    pub fn read(&self, name: &str, offset: u64, len: usize) -> Result<Bytes, ShipError> {
        let file = self.files.files.iter().find(|file| file.name == name);
        let Some(file) = file else { return Err(ShipError::Unknown { name: name.to_owned() }) };
        let range = || ShipError::Range { name: name.to_owned(), offset, len };
        let left = file.bytes.checked_sub(offset).ok_or_else(range)?;
        let mut len = len.min(CHUNK_BYTES_MAX).min(usize::try_from(left).unwrap_or(usize::MAX));
        let is_open = self.files.files.last().is_some_and(|open| open.name == name);
        if is_open && !self.notes.frames.is_empty() {
            match offset.checked_sub(self.notes.at) {
                Some(past) => {
                    let from = usize::try_from(past).map_err(|_too_far| range())?;
                    return Ok(self.notes.frames.slice(from..from + len));
                }
                // The rest is asked for next.
                None => len = len.min(usize::try_from(self.notes.at - offset).unwrap_or(usize::MAX)),
            }
        }
        let path = self.directory.join(name);
        let mut bytes = vec![0; len];
        let read = self
            .disk
            .open(&path, OpenMode::Read)
            .and_then(|file| file.read_at(&mut bytes, offset))
            .map_err(|source| DiskFailed { action: "reading", path, source })?;
        if read < len {
            return Err(range());
        }
        Ok(bytes.into())
    }
}

impl Log {
    /// The log's files as they are now, for a peer, up to the entry `decided`. Everything written is synced first.
    ///
    /// Every entry in them counts for who gets them: what is behind `decided` is left out. The smaller the open
    /// segment, the less has to be fetched again when it is asked for again: best right after a roll.
    pub fn ship(&mut self, decided: Index) -> Result<Shipment, ShipError> {
        let damage = self.fence.iter().chain(self.losses.values()).next();
        if let Some(damage) =
            damage.or_else(|| self.sealed.values().find_map(|sealed| sealed.damage.as_ref()))
        {
            return Err(ShipError::Damaged(damage.clone()));
        }
        self.sync().map_err(|error| match error {
            SyncError::Poisoned => ShipError::Poisoned,
            SyncError::Disk(failed) => ShipError::Disk(failed),
        })?;
        let mut pin = Pin::new();
        let mut files = Vec::new();
        for (segment, sealed) in &self.sealed {
            if self.upkeep.is_retired(*segment) {
                continue;
            }
            let footer = sealed.footer.expect("a segment without damage has its footer");
            pin.insert(sealed.key);
            files.push(LogFile {
                name: sealed.key.file_name(),
                bytes: sealed.bytes,
                hash: footer.content_hash,
            });
        }
        pin.insert(self.open.key());
        let (open, last, notes) = self.open_up_to(decided)?;
        files.push(open);
        self.stop_compaction(&pin)?;
        let pin = Arc::new(pin);
        self.history.pin(Arc::downgrade(&pin));
        Ok(Shipment {
            files: LogFiles { shard: self.shard, last, files },
            disk: self.files.disk_handle(),
            directory: self.files.directory().to_owned(),
            notes,
            _pin: pin,
        })
    }
}

impl Log {
    /// The open segment up to an entry, and that entry. A segment begins with what is decided, so it is in there.
    ///
    /// What the log noted for itself behind that entry goes with it: without the note that a segment is retired, the
    /// copy is a log that lacks one.
    fn open_up_to(&mut self, decided: Index) -> Result<(LogFile, EntryId, Notes), ShipError> {
        let name = self.open.key().file_name();
        if decided >= self.last_index {
            let file = LogFile { name, bytes: self.open.end, hash: self.open.hash.value() };
            return Ok((file, self.last_id(), Notes::default()));
        }
        let (end, last) = self.end_of(decided).map_err(ship_error)?;
        let mut hash = ContentHash::new();
        let mut at = FRAMES_AT;
        while at < end {
            let piece = self.read_open(at, (end - at).min(1 << 20)).map_err(ship_error)?;
            hash.update(&piece);
            at += piece.len() as u64;
        }
        let frames: Bytes = self.notes_behind(end, last).map_err(ship_error)?.into();
        hash.update(&frames);
        let bytes = end + frames.len() as u64;
        Ok((LogFile { name, bytes, hash: hash.value() }, last.0, Notes { at: end, frames }))
    }
}

fn ship_error(error: TruncateError) -> ShipError {
    match error {
        TruncateError::Damaged(damage) | TruncateError::Fenced(damage) => ShipError::Damaged(damage),
        TruncateError::Disk(failed) => ShipError::Disk(failed),
        TruncateError::Decided { base } => ShipError::Undecided { base },
        TruncateError::Poisoned
        | TruncateError::NoDoubt
        | TruncateError::Entry(_)
        | TruncateError::Reopen(_) => ShipError::Poisoned,
    }
}

/// What must stay as it is for the sake of others.
#[derive(Debug, Default)]
pub(crate) struct Pins(Vec<Weak<Pin>>);

impl Pins {
    pub(crate) fn add(&mut self, pin: Weak<Pin>) {
        self.0.retain(|pin| pin.strong_count() > 0);
        self.0.push(pin);
    }

    pub(crate) fn has(&self, key: SegmentKey) -> bool {
        self.0.iter().filter_map(Weak::upgrade).any(|pin| pin.contains(&key))
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.0.iter().filter(|pin| pin.strong_count() > 0).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list() -> LogFiles {
        let file = |name: &str, bytes, hash| LogFile { name: name.to_owned(), bytes, hash };
        LogFiles {
            shard: ShardId(3),
            last: EntryId { index: Index(9), term: Term(2) },
            files: vec![
                file("00000000000000000001-000000.seg", 5000, 7),
                file("00000000000000000005-000002.seg", 4096, 8),
            ],
        }
    }

    #[test]
    fn golden_bytes() {
        let hex: String = list().encode().unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, include_str!("golden/log_files.hex").trim());
    }

    #[test]
    fn a_list_comes_back_and_names_nothing_but_segments_in_their_order() {
        assert_eq!(LogFiles::decode(&list().encode().unwrap()).unwrap(), list());
        let changed = |change: fn(&mut LogFiles)| {
            let mut list = list();
            change(&mut list);
            LogFiles::decode(&list.encode().unwrap())
        };
        for name in ["../vote", "vote", "00000000000000000001-000000.idx", "00000000000000000000-000000.seg"]
        {
            let mut list = list();
            list.files[0].name = name.to_owned();
            let refused = LogFiles::decode(&list.encode().unwrap());
            assert!(matches!(refused, Err(LogFilesError::Name { .. })), "{name}");
        }
        assert!(matches!(changed(|list| list.files.reverse()), Err(LogFilesError::Name { .. })));
        assert!(matches!(changed(|list| list.files.clear()), Err(LogFilesError::Empty)));
        assert!(matches!(changed(|list| list.files[1].bytes = 4095), Err(LogFilesError::Bytes { .. })));
        assert!(matches!(changed(|list| list.files[1].bytes = 1 << 32), Err(LogFilesError::Bytes { .. })));
    }

    #[test]
    fn every_flipped_bit_of_a_list_is_noticed() {
        let bytes = list().encode().unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(LogFiles::decode(&flipped).is_err(), "bit {bit}");
        }
    }
}
