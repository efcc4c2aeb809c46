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
pub(crate) const SPARSE_END: u8 = 8;
/// How long the end is that [`SPARSE_END`] speaks of.
pub(crate) const END_BYTES: usize = 8;
pub(crate) const COMPACTED: u8 = 16;
/// What this log noted for itself; no other copy of the log has it.
pub(crate) const LOCAL: u8 = 32;

/// A frame's header, decoded; the checksums are not part of what a writer chooses.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct FrameHeader {
    pub(crate) flags: u8,
    /// Pieces of the body, cut at the sectors of the file, that have no more than one bit set.
    pub(crate) sparse_pieces: u16,
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

    /// Neither snapshot nor seal nor compacted nor local: takes an index of its own.
    pub(crate) const fn is_ordinary(&self) -> bool {
        self.flags & (SNAPSHOT | SEAL | COMPACTED | LOCAL) == 0
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
            let sparse_pieces = fields.u16()?;
            let header = Self {
                flags,
                sparse_pieces,
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
    let flags = if end_bits(body) <= 1 { header.flags | SPARSE_END } else { header.flags };
    let sparse_pieces = count_pieces(body, offset.saturating_add(FRAME_HEADER_BYTES as u64), 1);
    Filler::new(&mut out)
        .bytes(&FRAME_MAGIC)
        .u8(VERSION)
        .u8(flags)
        .u16(sparse_pieces)
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

/// How many bits are set in the last bytes of a body; two or more when it is too short to tell.
fn end_bits(body: &[u8]) -> u32 {
    body.last_chunk::<END_BYTES>().map_or(2, |end| u64::from_le_bytes(*end).count_ones())
}

/// Into how many of the pieces, cut at the multiples of [`SECTOR_BYTES`] of the file, a body that stands at
/// `offset` has no more than `bits_max` bits set.
fn count_pieces(body: &[u8], offset: u64, bits_max: u32) -> u16 {
    let past = usize::try_from(offset.rem_euclid(SECTOR_BYTES as u64)).expect("less than a sector");
    let first = SECTOR_BYTES.saturating_sub(past).min(body.len());
    let (head, rest) = body.split_at(first);
    let few = |piece: &[u8]| !piece.is_empty() && has_few_bits(piece, bits_max);
    let count = rest.chunks(SECTOR_BYTES).filter(|piece| few(piece)).count();
    u16::try_from(count.saturating_add(usize::from(few(head)))).unwrap_or(u16::MAX)
}

fn has_few_bits(piece: &[u8], bits_max: u32) -> bool {
    let mut left = bits_max;
    let (words, bytes) = piece.as_chunks::<8>();
    let bits = words.iter().map(|word| u64::from_le_bytes(*word).count_ones());
    for count in bits.chain(bytes.iter().map(|byte| byte.count_ones())) {
        let Some(rest) = left.checked_sub(count) else { return false };
        left = rest;
    }
    true
}

impl FrameHeader {
    /// Whether a body that is not the one of this header, which stands at `offset`, is one of which a part was
    /// never written: it has zeros where the right one has not, more than a changed bit can make.
    pub(crate) fn shows_missing_part(&self, body: &[u8], offset: u64) -> bool {
        (end_bits(body) == 0 && !self.has(SPARSE_END)) || count_pieces(body, offset, 0) > self.sparse_pieces
    }
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "tests")]
mod tests {
    use super::*;

    fn header() -> FrameHeader {
        FrameHeader {
            flags: 0,
            sparse_pieces: 0,
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
    fn a_local_frame_takes_no_index() {
        let mut frame = [vec![0; FRAME_HEADER_BYTES], b"body".to_vec()].concat();
        finish(&mut frame, 4096, &FrameHeader { flags: LOCAL, ..header() });
        assert!(!FrameHeader::decode(&frame).unwrap().is_ordinary());
        let hex: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, include_str!("golden/local_frame.hex").trim());
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
    fn pieces_are_cut_at_sectors_of_the_file() {
        let mut body = vec![1; 2000];
        assert_eq!(count_pieces(&body, 100, 1), 0);
        body[412..412 + 512].fill(0);
        assert_eq!(count_pieces(&body, 100, 0), 1);
        assert_eq!(count_pieces(&body, 101, 0), 0);
        body[500] = 64;
        assert_eq!(count_pieces(&body, 100, 0), 0);
        assert_eq!(count_pieces(&body, 100, 1), 1);
        assert_eq!(count_pieces(&[], 5, 1), 0);
        assert_eq!(count_pieces(&[0; 1024], 512, 0), 2);
    }

    #[test]
    fn no_single_flipped_bit_looks_like_a_missing_part() {
        for body in [vec![0; 700], vec![1; 700], [vec![0; 600], vec![9; 90], vec![0; 9], vec![1]].concat()] {
            let (mut frame, _) = frame(&body);
            let header = FrameHeader::decode(&frame).unwrap();
            for bit in FRAME_HEADER_BYTES * 8..frame.len() * 8 {
                frame[bit / 8] ^= 1 << (bit % 8);
                assert!(!header.shows_missing_part(&frame[FRAME_HEADER_BYTES..], 4160), "bit {bit}");
                frame[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }
}
