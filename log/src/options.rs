//! What a caller may choose about a log, and the bounds of it.

/// Options of a [`crate::Log`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LogOptions {
    /// Size at which a segment is sealed. Default 64 MiB, at least 64 KiB, at most 1 GiB.
    pub segment_bytes: u64,
    /// Size of a frame the caller will not gather beyond. Default 4 MiB, at most a quarter of
    /// `segment_bytes`. A single message may be larger; its frame then is.
    pub frame_bytes_max: usize,
    /// Space kept in a file of its own and given up when the disk is full: for the small segment that takes
    /// what frees space, and for the stores beside the log (DR16). Default 16 MiB, four times
    /// `frame_bytes_max`; 0 for none.
    pub ballast_bytes: u64,
    /// A frame of at least this size goes past the system's cache, which costs a copy and memory for what is
    /// rarely read from the file. Default 128 KiB; `usize::MAX` for none.
    pub direct_bytes_min: usize,
    /// Memory for the indexes of sealed segments. Default 32 MiB; one page is always kept.
    pub index_cache_bytes: usize,
    /// Memory for read-ahead. Default 4 MiB; one block is always kept.
    pub read_cache_bytes: usize,
    /// A sealed segment is compacted when at least this share of it is dead. Default 60, 1 to 100.
    pub compact_dead_percent: u8,
    /// Whether side files, which are derived, are written by a thread of their own. Default yes; no on disks
    /// that are simulated, so that a run can be repeated.
    pub background: bool,
    /// The operator's answer to [`crate::OpenError::SuspectTail`]: cut the last frame although it may
    /// have been acknowledged. Default no.
    pub accept_tail_loss: bool,
    /// What to do about a suspect tail that nobody accepted the loss of. Default: refuse to open.
    pub suspect_tail: SuspectTail,
    /// The identity of the data directory says that there is a log: an empty directory is then a loss
    /// and not a first start (DR8). Default no.
    pub must_exist: bool,
    /// A bug to behave like, so that the tests can show that they would find it.
    #[cfg(any(test, feature = "planted-bugs"))]
    pub planted_bug: Option<PlantedBug>,
}

/// What opening does about a last frame that fails its checksum and may have been acknowledged.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum SuspectTail {
    /// [`crate::OpenError::SuspectTail`]: only the operator can tell.
    #[default]
    Refuse,
    /// The log opens, is read up to there, and takes no writes until [`crate::Log::doubt`] is settled: others may
    /// have the entry (DR5).
    Report,
}

/// Mistakes that the tests must find.
#[cfg(any(test, feature = "planted-bugs"))]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PlantedBug {
    /// The durable index is that of the last frame written.
    AckBeforeSync,
    /// A new file's name is not made durable.
    DirectoryNotSynced,
    /// What stands behind a place that cannot be read is cut, as if that were where a write was torn.
    HoleCut,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            frame_bytes_max: 4 << 20,
            ballast_bytes: 16 << 20,
            direct_bytes_min: 128 << 10,
            index_cache_bytes: 32 << 20,
            read_cache_bytes: 4 << 20,
            compact_dead_percent: 60,
            background: true,
            accept_tail_loss: false,
            suspect_tail: SuspectTail::Refuse,
            must_exist: false,
            #[cfg(any(test, feature = "planted-bugs"))]
            planted_bug: None,
        }
    }
}

impl LogOptions {
    /// Everything small, so that rare paths become the common ones; no thread.
    #[must_use]
    pub fn for_simulation() -> Self {
        Self {
            segment_bytes: 64 << 10,
            frame_bytes_max: 8 << 10,
            ballast_bytes: 32 << 10,
            direct_bytes_min: 2 << 10,
            index_cache_bytes: 64 << 10,
            read_cache_bytes: 64 << 10,
            background: false,
            ..Self::default()
        }
    }

    /// Size of a segment that is begun on a full disk: for a few frames of acks and removals.
    pub(crate) const fn relief_bytes(&self) -> u64 {
        2 * self.frame_bytes_max as u64
    }

    /// Says which bound is not kept.
    pub(crate) const fn check(&self) -> Result<(), &'static str> {
        if self.segment_bytes < SEGMENT_BYTES_MIN || self.segment_bytes > SEGMENT_BYTES_MAX {
            return Err("segment_bytes is not between 64 KiB and 1 GiB");
        }
        if self.frame_bytes_max < FRAME_BYTES_MIN || self.frame_bytes_max as u64 > self.segment_bytes / 4 {
            return Err("frame_bytes_max is not between 1 KiB and a quarter of segment_bytes");
        }
        if self.compact_dead_percent == 0 || self.compact_dead_percent > 100 {
            return Err("compact_dead_percent is not between 1 and 100");
        }
        Ok(())
    }

    #[cfg(any(test, feature = "planted-bugs"))]
    pub(crate) fn syncs_directory(&self) -> bool {
        self.planted_bug != Some(PlantedBug::DirectoryNotSynced)
    }

    #[cfg(not(any(test, feature = "planted-bugs")))]
    #[expect(clippy::unused_self, reason = "the other build asks its options")]
    pub(crate) const fn syncs_directory(&self) -> bool {
        true
    }
}

const SEGMENT_BYTES_MIN: u64 = 64 << 10;
/// Places in a segment are 32 bits wide; this leaves room for frames of a single large message.
const SEGMENT_BYTES_MAX: u64 = 1 << 30;
const FRAME_BYTES_MIN: usize = 1 << 10;
