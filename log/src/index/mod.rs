//! Where messages are: per segment and stream, a *run* of slots in the order of their sequences.
//!
//! The open segment's index is in memory; a sealed one has a side file whose pages are loaded when they
//! are asked for, and kept within a bound.

mod cache;
mod memory;
mod search;
mod side;

pub(crate) use cache::{IndexCache, SideRun};
pub(crate) use memory::{MemoryIndex, MemoryRun};
pub(crate) use search::{Run, SideFault, find_next, find_previous, slot_of};
pub(crate) use side::{SIDE_HEADER_BYTES, SideDirectory, decode_directory, decode_header, encode};

use crate::{Sequence, StreamId, Timestamp};

/// Slots of a page of a side file.
pub(crate) const PAGE_SLOTS: usize = 512;

/// Where one message is, and what is known of it without reading it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Slot {
    pub(crate) sequence: Sequence,
    pub(crate) timestamp: Timestamp,
    /// Place of the record in the segment.
    pub(crate) offset: u32,
    /// Length of the record.
    pub(crate) len: u32,
    /// The subject's place in the run's table.
    pub(crate) subject: u32,
    pub(crate) headers_bytes: u32,
}

/// What a run sums up to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct RunTotals {
    pub(crate) stream: StreamId,
    pub(crate) first: Sequence,
    pub(crate) last: Sequence,
    pub(crate) count: u64,
    pub(crate) with_message_id: u32,
    /// Bytes of its records.
    pub(crate) bytes: u64,
    pub(crate) newest: Timestamp,
}

/// What one subject of a run sums up to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct SubjectTotals {
    pub(crate) first: Sequence,
    pub(crate) last: Sequence,
    pub(crate) count: u64,
    pub(crate) bytes: u64,
}
