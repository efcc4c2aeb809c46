//! What stands at the two ends of a segment file, and its name.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use crate::{
    Index, SegmentId, ShardId,
    format::fields::{Fields, Filler},
};

/// Where frames begin: the header has its own block, which is never written again.
pub(crate) const FRAMES_AT: u64 = 4096;
pub(crate) const SEGMENT_HEADER_BYTES: usize = 64;
pub(crate) const FOOTER_BYTES: usize = 64;
pub(crate) const FORMAT_VERSION: u16 = 1;
const HEADER_MAGIC: [u8; 8] = *b"BEAMSEG\0";
const FOOTER_MAGIC: [u8; 8] = *b"BEAMEND\0";
/// Bytes before the checksum, of both.
const CHECKED: usize = 60;

/// A file of the log: a segment in one of its generations.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct SegmentKey {
    pub(crate) segment: SegmentId,
    pub(crate) generation: u32,
}

impl SegmentKey {
    pub(crate) fn file_name(self) -> String {
        format!("{:020}-{:06}.seg", self.segment.0, self.generation)
    }

    pub(crate) fn index_name(self) -> String {
        format!("{:020}-{:06}.idx", self.segment.0, self.generation)
    }

    /// The key in a name, and whether it is a segment (or an index), if it is one of ours.
    pub(crate) fn parse(name: &str) -> Option<(Self, bool)> {
        let (stem, extension) = name.rsplit_once('.')?;
        let (segment, generation) = stem.split_once('-')?;
        let key = Self { segment: SegmentId(segment.parse().ok()?), generation: generation.parse().ok()? };
        match extension {
            "seg" if key.file_name() == name => Some((key, true)),
            "idx" if key.index_name() == name => Some((key, false)),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct SegmentHeader {
    pub(crate) compacted: bool,
    pub(crate) shard: ShardId,
    pub(crate) segment: SegmentId,
    pub(crate) generation: u32,
    /// Checksum of the last ordinary frame before this segment.
    pub(crate) previous_checksum: u32,
    pub(crate) previous_segment: SegmentId,
    /// Length of the file until it is sealed: a shorter one was cut by somebody else.
    pub(crate) preallocated: u64,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum EndFault {
    Bytes,
    Version(u16),
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SEGMENT_HEADER_BYTES);
        Filler::new(&mut out)
            .bytes(&HEADER_MAGIC)
            .u16(FORMAT_VERSION)
            .u16(u16::from(self.compacted))
            .u32(self.shard.0)
            .u64(self.segment.0)
            .u32(self.generation)
            .u32(self.previous_checksum)
            .u64(self.previous_segment.0)
            .u64(self.preallocated)
            .u64(0)
            .u32(0);
        put_checksum(&mut out);
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, EndFault> {
        let checked = checked(bytes, &HEADER_MAGIC)?;
        let mut fields = Fields::new(checked);
        let decoded = (|| {
            fields.u64()?;
            let version = fields.u16()?;
            let flags = fields.u16()?;
            let header = Self {
                compacted: flags & 1 != 0,
                shard: ShardId(fields.u32()?),
                segment: SegmentId(fields.u64()?),
                generation: fields.u32()?,
                previous_checksum: fields.u32()?,
                previous_segment: SegmentId(fields.u64()?),
                preallocated: fields.u64()?,
            };
            Some((version, header))
        })();
        match decoded {
            Some((FORMAT_VERSION, header)) => Ok(header),
            Some((version, _)) => Err(EndFault::Version(version)),
            None => Err(EndFault::Bytes),
        }
    }

    pub(crate) const fn key(&self) -> SegmentKey {
        SegmentKey { segment: self.segment, generation: self.generation }
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Footer {
    pub(crate) segment: SegmentId,
    pub(crate) last_index: Index,
    pub(crate) generation: u32,
    pub(crate) last_checksum: u32,
    pub(crate) frames: u32,
    pub(crate) shard: ShardId,
    pub(crate) records: u64,
    pub(crate) content_hash: u64,
}

impl Footer {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FOOTER_BYTES);
        Filler::new(&mut out)
            .bytes(&FOOTER_MAGIC)
            .u64(self.segment.0)
            .u64(self.last_index.0)
            .u32(self.generation)
            .u32(self.last_checksum)
            .u32(self.frames)
            .u32(self.shard.0)
            .u64(self.records)
            .u64(self.content_hash)
            .u32(0);
        put_checksum(&mut out);
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields::new(checked(bytes, &FOOTER_MAGIC).ok()?);
        fields.u64()?;
        Some(Self {
            segment: SegmentId(fields.u64()?),
            last_index: Index(fields.u64()?),
            generation: fields.u32()?,
            last_checksum: fields.u32()?,
            frames: fields.u32()?,
            shard: ShardId(fields.u32()?),
            records: fields.u64()?,
            content_hash: fields.u64()?,
        })
    }
}

fn put_checksum(out: &mut Vec<u8>) {
    let own = crc32fast::hash(out);
    Filler::new(out).u32(own);
}

/// The checked part of 64 bytes that begin with this magic and end with their checksum.
fn checked<'a>(bytes: &'a [u8], magic: &[u8; 8]) -> Result<&'a [u8], EndFault> {
    let bytes: &[u8; 64] = bytes.first_chunk().ok_or(EndFault::Bytes)?;
    let (checked, own) = bytes.split_at(CHECKED);
    if bytes.starts_with(magic) && crc32fast::hash(checked).to_le_bytes() == *own {
        Ok(checked)
    } else {
        Err(EndFault::Bytes)
    }
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "tests")]
mod tests {
    use super::*;

    const HEADER: SegmentHeader = SegmentHeader {
        compacted: true,
        shard: ShardId(1),
        segment: SegmentId(2),
        generation: 3,
        previous_checksum: 4,
        previous_segment: SegmentId(1),
        preallocated: 5,
    };
    const FOOTER: Footer = Footer {
        segment: SegmentId(1),
        last_index: Index(2),
        generation: 3,
        last_checksum: 4,
        frames: 5,
        shard: ShardId(6),
        records: 7,
        content_hash: 8,
    };

    #[test]
    fn both_ends_come_back_and_every_flipped_bit_is_noticed() {
        assert_eq!(SegmentHeader::decode(&HEADER.encode()), Ok(HEADER));
        assert_eq!(Footer::decode(&FOOTER.encode()), Some(FOOTER));
        for bit in 0..512 {
            let flip = |mut bytes: Vec<u8>| {
                bytes[bit / 8] ^= 1 << (bit % 8);
                bytes
            };
            assert_eq!(SegmentHeader::decode(&flip(HEADER.encode())), Err(EndFault::Bytes), "bit {bit}");
            assert_eq!(Footer::decode(&flip(FOOTER.encode())), None, "bit {bit}");
        }
    }

    #[test]
    fn golden_bytes() {
        let hex = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let golden = format!("{}\n{}\n", hex(HEADER.encode()), hex(FOOTER.encode()));
        assert_eq!(golden, include_str!("golden/segment.hex"));
    }

    #[test]
    fn a_later_version_is_named() {
        let mut bytes = HEADER.encode();
        bytes[8] = 2;
        bytes.truncate(CHECKED);
        put_checksum(&mut bytes);
        assert_eq!(SegmentHeader::decode(&bytes), Err(EndFault::Version(2)));
    }

    #[test]
    fn names_come_back_and_others_are_not_ours() {
        let key = SegmentKey { segment: SegmentId(77), generation: 2 };
        assert_eq!(SegmentKey::parse(&key.file_name()), Some((key, true)));
        assert_eq!(SegmentKey::parse(&key.index_name()), Some((key, false)));
        for other in ["", "ballast", "77-2.seg", "00000000000000000077-000002.tmp", "spare.tmp"] {
            assert_eq!(SegmentKey::parse(other), None, "{other}");
        }
    }
}
