//! What an engine needs of a log, and the messages that cross that seam.
//!
//! The engine pushes records into the frame that is being gathered; nothing is durable, and nothing
//! may become visible outside, until the log was written and synced by the driver. Reads see pushed
//! records at once, so that limits can remove a message of the same frame.

use std::ops::RangeInclusive;

use bytes::Bytes;

use crate::{Sequence, StreamId, Timestamp};

/// A message on its way into the log. Slices are copied once, into the frame.
#[derive(Clone, Copy, Debug)]
pub struct MessageRef<'a> {
    pub stream: StreamId,
    pub sequence: Sequence,
    pub timestamp: Timestamp,
    pub subject: &'a [u8],
    /// The raw header block, or empty.
    pub headers: &'a [u8],
    pub payload: &'a [u8],
}

/// A message out of the log: verified, and sharing one buffer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Message {
    pub stream: StreamId,
    pub sequence: Sequence,
    pub timestamp: Timestamp,
    pub subject: Bytes,
    /// The raw header block, or empty.
    pub headers: Bytes,
    pub payload: Bytes,
}

/// What is known of a message without its payload.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    pub sequence: Sequence,
    pub timestamp: Timestamp,
    pub subject: Bytes,
    pub headers_bytes: u32,
    pub payload_bytes: u32,
}

/// The three outcomes of a read (DR14): unreadable is never absent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Read<T> {
    Found(T),
    /// There is no such message: it was removed by a committed command, or never was.
    Absent,
    /// There is one and its bytes cannot be trusted or fetched.
    Unreadable(Damage),
}

/// Where bytes are that cannot be served.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("segment {segment} at byte {offset} is unreadable: {reason}")]
pub struct Damage {
    pub segment: crate::SegmentId,
    pub offset: u64,
    pub reason: DamageReason,
}

/// Why bytes cannot be served.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DamageReason {
    #[error("checksum does not match")]
    Checksum,
    #[error("a length is out of bounds")]
    Length,
    #[error("it is another record than the index says")]
    Misplaced,
    #[error("the disk failed to read it")]
    Io,
    #[error("the frame does not follow the one before it")]
    Chain,
    #[error("the segment is not there")]
    Missing,
}

/// The engine's view of a log. `Log` is the real one; tests use a list in memory.
pub trait Journal {
    /// Adds a message to the frame being gathered.
    fn push_message(&mut self, message: &MessageRef<'_>);

    /// Adds a control record (an encoded command, see [`crate::envelope`]) to the frame being gathered.
    fn push_control(&mut self, body: &[u8]);

    /// Reads a message whole.
    fn read(&mut self, stream: StreamId, sequence: Sequence) -> Read<Message>;

    /// Reads what is known of a message without its payload.
    fn entry(&mut self, stream: StreamId, sequence: Sequence) -> Read<Entry>;

    /// The first message at or after `from` that was not released and whose subject `wanted` accepts.
    /// `wanted` must answer the same for the same subject during one call.
    fn next(
        &mut self,
        stream: StreamId,
        from: Sequence,
        wanted: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Read<Sequence>;

    /// The last message at or before `from` that was not released and whose subject `wanted` accepts.
    fn previous(
        &mut self,
        stream: StreamId,
        from: Sequence,
        wanted: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Read<Sequence>;

    /// Says that these messages are dead: a pushed record removed them. Their bytes may go.
    fn release(&mut self, stream: StreamId, sequences: RangeInclusive<Sequence>);

    /// Says that a stream and all its messages are dead.
    fn release_stream(&mut self, stream: StreamId);
}
