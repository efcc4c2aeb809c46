//! What a caller may choose about a log, and the bounds of it.

/// Options of a [`crate::Log`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LogOptions {
    /// Size at which a segment is sealed. Default 64 MiB, at least 64 KiB, at most 1 GiB.
    pub segment_bytes: u64,
    /// Size of a frame the caller will not gather beyond. Default 4 MiB, at most a quarter of
    /// `segment_bytes`. A single message may be larger; its frame then is.
    pub frame_bytes_max: usize,
    /// Space kept in a file of its own and given up when the disk is full, so that the stores beside
    /// the log can go on writing what frees space (DR16). Default 8 MiB; 0 for none.
    pub ballast_bytes: u64,
    /// Memory for the indexes of sealed segments. Default 32 MiB; one page is always kept.
    pub index_cache_bytes: usize,
    /// Memory for read-ahead. Default 4 MiB; one block is always kept.
    pub read_cache_bytes: usize,
    /// A sealed segment is compacted when at least this share of it is dead. Default 60, 1 to 100.
    pub compact_dead_percent: u8,
    /// The operator's answer to [`crate::OpenError::SuspectTail`]: cut the last frame although it may
    /// have been acknowledged. Default no.
    pub accept_tail_loss: bool,
    /// The identity of the data directory says that there is a log: an empty directory is then a loss
    /// and not a first start (DR8). Default no.
    pub must_exist: bool,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            frame_bytes_max: 4 << 20,
            ballast_bytes: 8 << 20,
            index_cache_bytes: 32 << 20,
            read_cache_bytes: 4 << 20,
            compact_dead_percent: 60,
            accept_tail_loss: false,
            must_exist: false,
        }
    }
}

impl LogOptions {
    /// Everything small, so that rare paths become the common ones.
    #[must_use]
    pub fn for_simulation() -> Self {
        Self {
            segment_bytes: 64 << 10,
            frame_bytes_max: 8 << 10,
            ballast_bytes: 4 << 10,
            index_cache_bytes: 64 << 10,
            read_cache_bytes: 64 << 10,
            ..Self::default()
        }
    }
}
