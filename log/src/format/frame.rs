//! Frames: one batch of records, checked as a whole, tied to its shard, segment and predecessor (DR3).
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use crate::{
    Index, SegmentId, ShardId, Term, Timestamp,
    format::fields::{Fields, Filler},
};

pub(crate) const FRAME_HEADER_BYTES: usize = 64;
/// What a medium writes whole or not at all.
pub(crate) const SECTOR_BYTES: usize = 512;
pub(crate) const FRAME_MAGIC: [u8; 4] = *b"BFR1";
const VERSION: u8 = 1;
/// Bytes that the frame's checksum covers in the header, and the header's own.
const CHECKED: usize = 56;
const HEADER_CHECKED: usize = 60;

pub(crate) const SNAPSHOT: u8 = 1;
pub(crate) const SNAPSHOT_END: u8 = 2;
pub(crate) const SEAL: u8 = 4;
pub(crate) const ENDS_IN_ZERO: u8 = 8;
pub(crate) const COMPACTED: u8 = 16;

/// A frame's header, decoded; the checksums are not part of what a writer chooses.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct FrameHeader {
    pub(crate) flags: u8,
    /// Pieces of the body, cut at the sectors of the file, that are all zeros.
    pub(crate) zero_pieces: u16,
    pub(crate) shard: ShardId,
    pub(crate) records: u32,
    pub(crate) segment: SegmentId,
    pub(crate) index: Index,
    pub(crate) term: Term,
    pub(crate) timestamp: Timestamp,
    pub(crate) body_bytes: u32,
    /// Checksum of the ordinary frame before this one.
    pub(crate) previous: u32,
    pub(crate) checksum: u32,
}

/// Why bytes are not a frame's header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum HeaderFault {
    /// Too short, another magic, or a checksum that does not fit.
    Bytes,
    Version(u8),
}

impl FrameHeader {
    pub(crate) const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Neither snapshot nor seal nor compacted: takes an index of its own.
    pub(crate) const fn is_ordinary(&self) -> bool {
        self.flags & (SNAPSHOT | SEAL | COMPACTED) == 0
    }

    /// Header and body.
    pub(crate) const fn frame_bytes(&self) -> u64 {
        (self.body_bytes as u64).saturating_add(FRAME_HEADER_BYTES as u64)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, HeaderFault> {
        let header: &[u8; FRAME_HEADER_BYTES] = bytes.first_chunk().ok_or(HeaderFault::Bytes)?;
        let (checked, own) = header.split_at(HEADER_CHECKED);
        if !header.starts_with(&FRAME_MAGIC) || crc32fast::hash(checked).to_le_bytes() != *own {
            return Err(HeaderFault::Bytes);
        }
        let mut fields = Fields::new(checked);
        let decoded = (|| {
            fields.u32()?;
            let version = fields.u8()?;
            let flags = fields.u8()?;
            let zero_pieces = fields.u16()?;
            let header = Self {
                flags,
                zero_pieces,
                shard: ShardId(fields.u32()?),
                records: fields.u32()?,
                segment: SegmentId(fields.u64()?),
                index: Index(fields.u64()?),
                term: Term(fields.u64()?),
                timestamp: Timestamp(fields.u64()?),
                body_bytes: fields.u32()?,
                previous: fields.u32()?,
                checksum: fields.u32()?,
            };
            Some((version, header))
        })();
        match decoded {
            Some((VERSION, header)) => Ok(header),
            Some((version, _)) => Err(HeaderFault::Version(version)),
            None => Err(HeaderFault::Bytes),
        }
    }

    /// Whether this header and that body are what was checked when the frame was written.
    pub(crate) fn matches(&self, header: &[u8], body: &[u8]) -> bool {
        let Some(checked) = header.get(..CHECKED) else { return false };
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(checked);
        hasher.update(body);
        hasher.finalize() == self.checksum
    }
}

/// Fills in the header of `frame`, which is [`FRAME_HEADER_BYTES`] of room and then the body, and which
/// will stand at `offset`. Checksums, `body_bytes` and what is said of zeros are decided here.
/// Returns the frame's checksum.
pub(crate) fn finish(frame: &mut [u8], offset: u64, header: &FrameHeader) -> u32 {
    let (room, body) =
        frame.split_first_chunk_mut::<FRAME_HEADER_BYTES>().expect("a frame has room for its header");
    let mut out = Vec::with_capacity(FRAME_HEADER_BYTES);
    let flags = if ends_in_zero(body) { header.flags | ENDS_IN_ZERO } else { header.flags };
    let zero_pieces = zero_pieces(body, offset.saturating_add(FRAME_HEADER_BYTES as u64));
    Filler::new(&mut out)
        .bytes(&FRAME_MAGIC)
        .u8(VERSION)
        .u8(flags)
        .u16(zero_pieces)
        .u32(header.shard.0)
        .u32(header.records)
        .u64(header.segment.0)
        .u64(header.index.0)
        .u64(header.term.0)
        .u64(header.timestamp.0)
        .u32(u32::try_from(body.len()).expect("a frame is gathered below 4 GiB"))
        .u32(header.previous);
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&out);
    hasher.update(body);
    let checksum = hasher.finalize();
    Filler::new(&mut out).u32(checksum);
    let own = crc32fast::hash(&out);
    Filler::new(&mut out).u32(own);
    room.copy_from_slice(&out);
    checksum
}

/// Whether a body ends in a zero, as one does whose end was never written.
pub(crate) fn ends_in_zero(body: &[u8]) -> bool {
    body.last() == Some(&0)
}

/// How many of the pieces, into which the multiples of [`SECTOR_BYTES`] of the file cut a body that stands at
/// `offset`, are all zeros. A body of which sectors were never written has more than its header says.
pub(crate) fn zero_pieces(body: &[u8], offset: u64) -> u16 {
    let past = usize::try_from(offset.rem_euclid(SECTOR_BYTES as u64)).expect("less than a sector");
    let first = SECTOR_BYTES.saturating_sub(past).min(body.len());
    let (head, rest) = body.split_at(first);
    let count = rest.chunks(SECTOR_BYTES).filter(|piece| is_zero(piece)).count();
    u16::try_from(count.saturating_add(usize::from(is_zero(head)))).unwrap_or(u16::MAX)
}

/// Whether there are bytes and all are zero.
fn is_zero(bytes: &[u8]) -> bool {
    // The last byte first: it is seldom zero in a piece that is not.
    bytes.last() == Some(&0) && bytes.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "tests")]
mod tests {
    use super::*;

    fn header() -> FrameHeader {
        FrameHeader {
            flags: 0,
            zero_pieces: 0,
            shard: ShardId(7),
            records: 1,
            segment: SegmentId(3),
            index: Index(5),
            term: Term(1),
            timestamp: Timestamp(9),
            body_bytes: 0,
            previous: 11,
            checksum: 0,
        }
    }

    fn frame(body: &[u8]) -> (Vec<u8>, u32) {
        let mut frame = vec![0; FRAME_HEADER_BYTES];
        frame.extend_from_slice(body);
        let checksum = finish(&mut frame, 4096, &header());
        (frame, checksum)
    }

    #[test]
    fn what_was_finished_decodes() {
        let (frame, checksum) = frame(b"body");
        let decoded = FrameHeader::decode(&frame).unwrap();
        assert_eq!(decoded, FrameHeader { body_bytes: 4, checksum, ..header() });
        assert!(decoded.matches(&frame[..FRAME_HEADER_BYTES], b"body"));
        assert!(!decoded.matches(&frame[..FRAME_HEADER_BYTES], b"bodz"));
    }

    #[test]
    fn golden_bytes() {
        let (frame, _) = frame(b"body");
        let hex: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, include_str!("golden/frame.hex").trim());
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let (frame, _) = frame(b"some body");
        for bit in 0..frame.len() * 8 {
            let mut flipped = frame.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let (head, body) = flipped.split_at(FRAME_HEADER_BYTES);
            let noticed = FrameHeader::decode(head).map_or(true, |header| !header.matches(head, body));
            assert!(noticed, "bit {bit}");
        }
    }

    #[test]
    fn zero_pieces_are_cut_at_sectors_of_the_file() {
        let mut body = vec![1; 2000];
        assert_eq!(zero_pieces(&body, 100), 0);
        body[412..412 + 512].fill(0);
        assert_eq!(zero_pieces(&body, 100), 1);
        assert_eq!(zero_pieces(&body, 101), 0);
        assert_eq!(zero_pieces(&[], 5), 0);
        assert_eq!(zero_pieces(&[1, 0], 511), 1);
        assert_eq!(zero_pieces(&[0; 1024], 512), 2);
    }
}
