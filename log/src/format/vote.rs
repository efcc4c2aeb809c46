//! A slot of the vote file.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use crate::{
    ShardId,
    format::fields::{Fields, Filler},
};

/// A block of its own for each slot: writing one does not touch the other.
pub(crate) const SLOT_BYTES: usize = 4096;
/// Longest vote: what a slot has room for beside its header and its checksum.
pub const VOTE_BYTES_MAX: usize = SLOT_BYTES - HEADER_BYTES - 4;
const HEADER_BYTES: usize = 32;
/// More saves than anybody makes.
pub(crate) const GENERATION_MAX: u64 = u64::MAX / 2;
const MAGIC: [u8; 8] = *b"BEAMVOT\0";
const VERSION: u16 = 1;
/// Everything but the checksum.
const CHECKED: usize = SLOT_BYTES - 4;

/// One copy of the vote.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Slot {
    pub(crate) shard: ShardId,
    pub(crate) generation: u64,
    /// `None`: nothing was voted yet.
    pub(crate) body: Option<Vec<u8>>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum SlotFault {
    Bytes,
    Version(u16),
    Shard(ShardId),
}

impl Slot {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SLOT_BYTES);
        let body = self.body.as_deref().unwrap_or_default();
        Filler::new(&mut out)
            .bytes(&MAGIC)
            .u16(VERSION)
            .u16(u16::from(self.body.is_some()))
            .u32(self.shard.0)
            .u64(self.generation)
            .u32(u32::try_from(body.len()).expect("a vote is short"))
            .u32(0)
            .bytes(body);
        out.resize(CHECKED, 0);
        let own = crc32fast::hash(&out);
        Filler::new(&mut out).u32(own);
        out
    }

    pub(crate) fn decode(bytes: &[u8], shard: ShardId) -> Result<Self, SlotFault> {
        let slot = Self::decode_any(bytes)?;
        if slot.shard == shard { Ok(slot) } else { Err(SlotFault::Shard(slot.shard)) }
    }

    /// The slot of whatever shard.
    pub(crate) fn decode_any(bytes: &[u8]) -> Result<Self, SlotFault> {
        let slot: &[u8; SLOT_BYTES] = bytes.first_chunk().ok_or(SlotFault::Bytes)?;
        let (checked, own) = slot.split_at(CHECKED);
        if !slot.starts_with(&MAGIC) || crc32fast::hash(checked).to_le_bytes() != *own {
            return Err(SlotFault::Bytes);
        }
        let mut fields = Fields::new(checked);
        let decoded = (|| {
            fields.u64()?;
            let version = fields.u16()?;
            let some = fields.u16()?;
            let found = ShardId(fields.u32()?);
            let generation = fields.u64()?;
            let len = usize::try_from(fields.u32()?).ok()?;
            fields.u32()?;
            Some((version, some, found, generation, len))
        })();
        let (version, some, shard, generation, len) = decoded.ok_or(SlotFault::Bytes)?;
        if version != VERSION {
            return Err(SlotFault::Version(version));
        }
        if len > VOTE_BYTES_MAX || some > 1 || generation > GENERATION_MAX {
            return Err(SlotFault::Bytes);
        }
        let body = fields.take(len).ok_or(SlotFault::Bytes)?.to_vec();
        Ok(Self { shard, generation, body: (some == 1).then_some(body) })
    }
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "tests")]
mod tests {
    use super::*;

    fn slot() -> Slot {
        Slot { shard: ShardId(7), generation: 9, body: Some(b"term 3, node 5".to_vec()) }
    }

    #[test]
    fn a_slot_comes_back_and_every_flipped_bit_is_noticed() {
        for slot in [slot(), Slot { body: None, ..slot() }, Slot { body: Some(Vec::new()), ..slot() }] {
            assert_eq!(Slot::decode(&slot.encode(), ShardId(7)), Ok(slot));
        }
        let bytes = slot().encode();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Slot::decode(&flipped, ShardId(7)), Err(SlotFault::Bytes), "bit {bit}");
        }
        for cut in 0..bytes.len() {
            assert_eq!(Slot::decode(&bytes[..cut], ShardId(7)), Err(SlotFault::Bytes));
        }
    }

    #[test]
    fn golden_bytes() {
        let bytes = slot().encode();
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        // Zeros stand between.
        let golden = format!("{}\n{}\n", hex(&bytes[..64]), hex(&bytes[CHECKED..]));
        assert_eq!(golden, include_str!("golden/vote.hex"));
        assert!(bytes[64..CHECKED].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn another_shards_and_a_later_one_are_named() {
        assert_eq!(Slot::decode(&slot().encode(), ShardId(8)), Err(SlotFault::Shard(ShardId(7))));
        let mut bytes = slot().encode();
        bytes[8] = 2;
        bytes.truncate(CHECKED);
        let own = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&own.to_le_bytes());
        assert_eq!(Slot::decode(&bytes, ShardId(7)), Err(SlotFault::Version(2)));
    }
}
