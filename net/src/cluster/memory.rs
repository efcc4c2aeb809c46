//! What peers were seen to hold, kept on the disk, so that one that lost it is also found out after all nodes were down
//! (DR13).
//!
//! It may be older than what is known, and is then less: it never accuses somebody who lost nothing. Nothing waits for it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use beamlog_log::Index;

use super::Inner;
use crate::{
    peer::PeerId,
    raft::{Books, Shard, decode_held, encode_held},
    runtime,
};

/// Between two looks. What a peer held that has gone since is kept then.
const LOOK: Duration = Duration::from_millis(500);
/// What those that are there hold changes all the time: it is kept this seldom.
const SELDOM: Duration = Duration::from_secs(30);

/// At the start.
pub(super) fn recall(shard: &dyn Shard, books: &Books) {
    match shard.peers().map(|bytes| decode_held(&bytes)) {
        None => {}
        Some(Ok(held)) => books.told_held(&held.into_iter().collect::<Vec<_>>()),
        Some(Err(error)) => tracing::warn!(err = %error, "what peers held cannot be read; it is forgotten"),
    }
}

/// Until the cluster has ended.
pub(super) async fn keep(inner: Arc<Inner>) {
    let mut kept = BTreeMap::new();
    let mut at = runtime::now();
    while !inner.ended() {
        runtime::sleep(LOOK).await;
        let held = inner.books.held_of_members();
        if held == kept {
            continue;
        }
        let has_gone = |peer: &u64| inner.transport.session(PeerId(*peer)).is_none();
        let is_final = held.iter().any(|(peer, index)| kept.get(peer) != Some(index) && has_gone(peer));
        if is_final || runtime::now() - at >= SELDOM {
            save(&inner, &held);
            (kept, at) = (held, runtime::now());
        }
    }
}

/// At the end.
pub(super) fn keep_now(inner: &Inner) {
    save(inner, &inner.books.held_of_members());
}

fn save(inner: &Inner, held: &BTreeMap<u64, Index>) {
    match encode_held(held) {
        Ok(bytes) => inner.shard.save_peers(bytes),
        Err(error) => tracing::error!(err = %error, "what peers held cannot be written"),
    }
}
