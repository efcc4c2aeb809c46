//! What a node says of itself when it meets a peer. Of its log: a peer that remembers better refuses it (DR13).
//! And where clients reach it, for the other nodes' clients to know.
//!
//! `version 1 · shard 4 · index 8 · term 8 · address`, little-endian; the address is the rest, `host:port` or
//! nothing. No bytes: nothing is claimed yet.

use beamlog_log::{EntryId, Index, ShardId, Term};
use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{peer::Refusal, raft::code};

const VERSION: u8 = 2;
const BYTES: usize = 21;
/// A DNS name of full length, a port, and room.
pub(super) const ADDRESS_BYTES_MAX: usize = 300;

/// `address` has at most [`ADDRESS_BYTES_MAX`] bytes.
pub(super) fn encode(shard: ShardId, last: EntryId, address: &str) -> Bytes {
    let mut out = BytesMut::with_capacity(BYTES + address.len());
    out.put_u8(VERSION);
    out.put_u32_le(shard.0);
    out.put_u64_le(last.index.0);
    out.put_u64_le(last.term.0);
    out.put_slice(address.as_bytes());
    out.freeze()
}

/// The last entry that a peer claims to have of this shard; `None` if it claims nothing.
pub(super) fn decode(claims: &Bytes, shard: ShardId) -> Result<Option<EntryId>, Refusal> {
    let malformed = |reason: &str| Refusal { code: code::MALFORMED, reason: reason.to_owned() };
    if claims.is_empty() {
        return Ok(None);
    }
    let mut claims = claims.clone();
    if !(BYTES..=BYTES + ADDRESS_BYTES_MAX).contains(&claims.remaining()) || claims.get_u8() != VERSION {
        return Err(malformed("its claims are not of this version"));
    }
    if ShardId(claims.get_u32_le()) != shard {
        return Err(malformed("its claims are about another shard"));
    }
    Ok(Some(EntryId { index: Index(claims.get_u64_le()), term: Term(claims.get_u64_le()) }))
}

/// Where clients reach a peer with these claims.
pub(super) fn address(claims: &Bytes) -> Option<String> {
    let is_ours = claims.first() == Some(&VERSION) && claims.len() <= BYTES + ADDRESS_BYTES_MAX;
    let address = claims.get(BYTES..).filter(|address| is_ours && !address.is_empty())?;
    std::str::from_utf8(address).ok().filter(|address| !address.contains(char::is_control)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARD: ShardId = ShardId(3);
    const LAST: EntryId = EntryId { index: Index(7), term: Term(2) };

    #[test]
    fn the_bytes_are_pinned() {
        let claims = encode(SHARD, LAST, "h:1");
        let expected = *b"\x02\x03\0\0\0\x07\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0h:1";
        assert_eq!(claims, Bytes::copy_from_slice(&expected));
        assert_eq!(decode(&claims, SHARD).unwrap(), Some(LAST));
        assert_eq!(address(&claims).as_deref(), Some("h:1"));
    }

    #[test]
    fn nothing_and_nonsense() {
        assert_eq!(decode(&Bytes::new(), SHARD).unwrap(), None);
        assert_eq!(address(&encode(SHARD, LAST, "")), None);
        assert_eq!(address(&encode(SHARD, LAST, "h\n:1")), None);
        decode(&encode(ShardId(4), LAST, ""), SHARD).unwrap_err();
        decode(&encode(SHARD, LAST, &"h".repeat(ADDRESS_BYTES_MAX + 1)), SHARD).unwrap_err();
        let claims = encode(SHARD, LAST, "");
        for cut in 1..claims.len() {
            decode(&claims.slice(..cut), SHARD).unwrap_err();
        }
    }
}
