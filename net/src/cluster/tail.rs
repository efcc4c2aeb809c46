//! The end of a log that cannot be read and may have counted (DR5): before such a node votes or takes entries,
//! peers give what stood there, or enough of them say that it never counted.
//!
//! Enough is what leaves no quorum: with N voters of which Q are one, N − Q + 1 that have no such entry and a log
//! without doubt of their own. Then no quorum ever held it. Less than that is waited for.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use beamlog_log::{Index, LogEntry, Term};
use beamlog_router::replica::ReplicaEntry;
use tokio::sync::oneshot;

use crate::{
    peer::{Lane, PeerId, PeerTransport},
    raft::{
        Shard, ShardError, StorageError, last_membership,
        wire::{Answer, Have, Request},
    },
    runtime,
};

/// For one answer.
const ASK: Duration = Duration::from_secs(5);
/// Between two rounds of questions.
const AGAIN: Duration = Duration::from_millis(200);
/// Rounds between two lines in the log.
const QUIET_ROUNDS: u32 = 50;

/// What peers say of one index.
enum Verdict {
    Entry(Box<LogEntry>),
    Never,
    Open,
}

/// Returns when the end of the log is certain.
pub(super) async fn settle(
    shard: &Arc<dyn Shard>,
    me: PeerId,
    transport: &Arc<dyn PeerTransport>,
) -> Result<(), StorageError> {
    let state = shard.state().await?;
    let Some(doubt) = &state.doubt else { return Ok(()) };
    let voters: BTreeSet<u64> =
        last_membership(&**shard, &state).await?.map_or_else(BTreeSet::new, |membership| {
            // Of a change that was under way: whoever counts in any of its configurations.
            membership.voter_ids().collect()
        });
    tracing::warn!(first = %doubt.first, bytes = doubt.bytes, "the end of the log is in doubt; peers are asked");
    let mut index = doubt.first;
    let mut settled = false;
    let mut rounds = 0_u32;
    loop {
        let term = if settled { None } else { doubt.term };
        match ask(shard, me, transport, &voters, index, term).await {
            Verdict::Never => {
                if !settled {
                    shard.settle_tail(None).await?;
                }
                tracing::info!(first = %index, "no quorum ever held what is in doubt");
                return Ok(());
            }
            Verdict::Entry(entry) => {
                if settled {
                    append(shard, *entry).await?;
                } else {
                    shard.settle_tail(Some(*entry)).await?;
                    settled = true;
                }
                tracing::info!(%index, "an entry in doubt was given by a peer");
                index = index.next();
            }
            Verdict::Open => {
                if rounds.is_multiple_of(QUIET_ROUNDS) {
                    tracing::warn!(first = %index, "too few peers can say what stood at the end of the log");
                }
                rounds += 1;
                runtime::sleep(AGAIN).await;
            }
        }
    }
}

async fn ask(
    shard: &Arc<dyn Shard>,
    me: PeerId,
    transport: &Arc<dyn PeerTransport>,
    voters: &BTreeSet<u64>,
    index: Index,
    term: Option<Term>,
) -> Verdict {
    let quorum = voters.len() / 2 + 1;
    // So many others have one in common with every quorum of which this node was part.
    let enough = (voters.len() + 1).saturating_sub(quorum).max(1);
    let mut never = 0;
    let mut given: Vec<LogEntry> = Vec::new();
    for peer in voters.iter().filter(|voter| **voter != me.0) {
        let request = Request::Have { index }.encode(shard.id());
        let Ok(answer) = transport.call(PeerId(*peer), Lane::Append, request, ASK).await else { continue };
        match Answer::decode(answer) {
            Ok(Answer::Have(Have::Entry(entry))) if entry.id.index == index => given.push(entry),
            Ok(Answer::Have(Have::Never)) => never += 1,
            Ok(_) | Err(_) => {}
        }
    }
    // Were ours committed, one of these would be it, and none of a later term could be another.
    let definite = never + given.len();
    match given.into_iter().max_by_key(|entry| entry.id.term) {
        Some(entry) if Some(entry.id.term) == term || definite >= enough => Verdict::Entry(Box::new(entry)),
        None if definite >= enough => Verdict::Never,
        Some(_) | None => Verdict::Open,
    }
}

async fn append(shard: &Arc<dyn Shard>, entry: LogEntry) -> Result<(), ShardError> {
    let (sender, receiver) = oneshot::channel();
    shard.append(vec![ReplicaEntry { entry, proposal: None }], Box::new(move |done| drop(sender.send(done))));
    receiver.await.map_err(|_gone| ShardError::Gone)?.map(|_last| ())
}

/// What this node says of an index to a peer that is in doubt.
pub(super) async fn have(shard: &dyn Shard, index: Index) -> Result<Have, ShardError> {
    let state = shard.state().await?;
    let doubtful = state.doubt.as_ref().is_some_and(|doubt| index >= doubt.first);
    if doubtful || state.damaged.is_some() {
        return Ok(Have::Unknown);
    }
    if index > state.last.index {
        return Ok(Have::Never);
    }
    if index <= state.history_from.index || !shard.keeps_messages() {
        return Ok(Have::Unknown);
    }
    Ok(shard.read(index, index.next(), 0).await?.pop().map_or(Have::Unknown, Have::Entry))
}
