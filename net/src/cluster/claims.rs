//! What a node claims of its log when it meets a peer: a peer that remembers better refuses it (DR13).
//!
//! `version 1 · shard 4 · index 8 · term 8`, little-endian. No bytes: nothing is claimed yet.

use beamlog_log::{EntryId, Index, ShardId, Term};
use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{peer::Refusal, raft::code};

const VERSION: u8 = 1;
const BYTES: usize = 21;

pub(super) fn encode(shard: ShardId, last: EntryId) -> Bytes {
    let mut out = BytesMut::with_capacity(BYTES);
    out.put_u8(VERSION);
    out.put_u32_le(shard.0);
    out.put_u64_le(last.index.0);
    out.put_u64_le(last.term.0);
    out.freeze()
}

/// The last entry that a peer claims to have of this shard; `None` if it claims nothing.
pub(super) fn decode(claims: &Bytes, shard: ShardId) -> Result<Option<EntryId>, Refusal> {
    let malformed = |reason: &str| Refusal { code: code::MALFORMED, reason: reason.to_owned() };
    if claims.is_empty() {
        return Ok(None);
    }
    let mut claims = claims.clone();
    if claims.remaining() != BYTES || claims.get_u8() != VERSION {
        return Err(malformed("its claims are not of this version"));
    }
    if ShardId(claims.get_u32_le()) != shard {
        return Err(malformed("its claims are about another shard"));
    }
    Ok(Some(EntryId { index: Index(claims.get_u64_le()), term: Term(claims.get_u64_le()) }))
}
