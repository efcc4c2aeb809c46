//! The end of a log that cannot be read and may have counted (DR5): before such a node votes or takes entries,
//! peers give what stood there, or enough of them say that it never counted.
//!
//! Enough is what leaves no quorum: with N voters of which Q are one, N − Q + 1 that have no such entry and a log
//! without doubt of their own. Then no quorum ever held it. Less than that is waited for.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use beamlog_log::{EntryId, Index, LogEntry, Term};
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
    Entry(LogEntry),
    Never,
    Open,
}

/// The same, from their answers alone.
#[derive(Debug, Eq, PartialEq)]
enum Judged {
    /// What stood here.
    Ours(LogEntry),
    /// What stood here if that was committed, and if it stands behind the same entry as with us.
    Perhaps(PeerId, LogEntry),
    Never,
    Open,
}

/// What is asked for.
struct Question<'a> {
    shard: &'a dyn Shard,
    me: PeerId,
    transport: &'a dyn PeerTransport,
    voters: &'a BTreeSet<u64>,
    /// The last entry that is not in doubt.
    before: EntryId,
    /// That of the entry behind it, if its header could be read.
    term: Option<Term>,
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
    let mut question = Question {
        shard: &**shard,
        me,
        transport: &**transport,
        voters: &voters,
        before: state.last,
        term: doubt.term,
    };
    let mut settled = false;
    let mut left = doubt.bytes;
    let mut rounds = 0_u32;
    loop {
        match question.ask().await {
            Verdict::Never => {
                if !settled {
                    shard.settle_tail(None).await?;
                }
                tracing::info!(first = %question.index(), "no quorum ever held what is in doubt");
                return Ok(());
            }
            Verdict::Entry(entry) => {
                let index = question.index();
                left = left.saturating_sub(entry.frame_bytes());
                (question.before, question.term) = (entry.id, None);
                if settled {
                    append(shard, entry).await?;
                } else {
                    shard.settle_tail(Some(entry)).await?;
                    settled = true;
                }
                tracing::info!(%index, "an entry in doubt was given by a peer");
                // What does not fit in what is in doubt never was here. It comes later, as to every follower: who
                // asked for all that the others have would not come to an end while they store more.
                if doubt.is_one || left == 0 {
                    return Ok(());
                }
            }
            Verdict::Open => {
                if rounds.is_multiple_of(QUIET_ROUNDS) {
                    tracing::warn!(first = %question.index(), "too few peers can say what stood at the end of the log");
                }
                rounds += 1;
                runtime::sleep(AGAIN).await;
            }
        }
    }
}

impl Question<'_> {
    const fn index(&self) -> Index {
        self.before.index.next()
    }

    async fn ask(&self) -> Verdict {
        let quorum = self.voters.len() / 2 + 1;
        // So many others have one in common with every quorum of which this node was part.
        let enough = (self.voters.len() + 1).saturating_sub(quorum).max(1);
        let mut never = 0;
        let mut given: Vec<(PeerId, LogEntry)> = Vec::new();
        for peer in self.voters.iter().copied().map(PeerId).filter(|peer| *peer != self.me) {
            match self.have(peer, self.index()).await {
                Some(Have::Entry(entry)) => given.push((peer, entry)),
                Some(Have::Never) => never += 1,
                Some(Have::Unknown) | None => {}
            }
        }
        match judge(given, never, enough, self.term) {
            Judged::Ours(entry) => Verdict::Entry(entry),
            Judged::Perhaps(_, entry) if self.before.index == Index(0) => Verdict::Entry(entry),
            Judged::Perhaps(peer, entry) => match self.have(peer, self.before.index).await {
                Some(Have::Entry(before)) if before.id == self.before => Verdict::Entry(entry),
                // Behind another entry stands another one; and no quorum can have held ours.
                Some(Have::Entry(_) | Have::Never) => Verdict::Never,
                Some(Have::Unknown) | None => Verdict::Open,
            },
            Judged::Never => Verdict::Never,
            Judged::Open => Verdict::Open,
        }
    }

    async fn have(&self, peer: PeerId, index: Index) -> Option<Have> {
        let request = Request::Have { index }.encode(self.shard.id());
        let answer = self.transport.call(peer, Lane::Append, request, ASK).await.ok()?;
        match Answer::decode(answer) {
            Ok(Answer::Have(Have::Entry(entry))) if entry.id.index != index => None,
            Ok(Answer::Have(have)) => Some(have),
            Ok(_) | Err(_) => None,
        }
    }
}

/// `given` are the entries that others have, `never` counts those who have none, `term` is that of what is in doubt.
fn judge(given: Vec<(PeerId, LogEntry)>, never: usize, enough: usize, term: Option<Term>) -> Judged {
    let definite = never + given.len();
    let ours = |entry: &LogEntry| Some(entry.id.term) == term;
    if let Some((_, entry)) = given.iter().find(|(_, entry)| ours(entry)) {
        return Judged::Ours(entry.clone());
    }
    if definite < enough {
        return Judged::Open;
    }
    // Were ours committed, one of these would be it, and none of a later term could be another.
    let newest = given.into_iter().max_by_key(|(_, entry)| entry.id.term);
    match newest.filter(|_| term.is_none()) {
        Some((peer, entry)) => Judged::Perhaps(peer, entry),
        // It may stand behind others than ours: what they have comes as to every follower.
        None => Judged::Never,
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

#[cfg(test)]
mod tests {
    use beamlog_log::{ShardId, Timestamp};

    use super::*;

    fn entry(term: u64) -> LogEntry {
        LogEntry {
            id: EntryId { index: Index(7), term: Term(term) },
            timestamp: Timestamp(0),
            records: 1,
            body: LogEntry::replication_body(ShardId(0), b""),
        }
    }

    const ONE: PeerId = PeerId(1);
    const OTHER: PeerId = PeerId(2);

    #[test]
    fn the_same_term_at_the_same_index_is_the_same_entry() {
        let given = vec![(ONE, entry(3)), (OTHER, entry(4))];
        assert_eq!(judge(given, 0, 2, Some(Term(3))), Judged::Ours(entry(3)));
        assert_eq!(judge(vec![(ONE, entry(3))], 0, 2, Some(Term(3))), Judged::Ours(entry(3)));
    }

    #[test]
    fn an_entry_of_another_term_is_not_put_behind_what_may_be_another_history() {
        assert_eq!(judge(vec![(ONE, entry(4))], 1, 2, Some(Term(3))), Judged::Never);
        assert_eq!(judge(vec![(ONE, entry(4))], 0, 2, Some(Term(3))), Judged::Open);
    }

    #[test]
    fn of_an_unknown_term_the_newest_may_be_ours() {
        let given = vec![(ONE, entry(3)), (OTHER, entry(4))];
        assert_eq!(judge(given, 0, 2, None), Judged::Perhaps(OTHER, entry(4)));
        assert_eq!(judge(vec![(ONE, entry(3))], 0, 2, None), Judged::Open);
    }

    #[test]
    fn enough_that_never_had_it_are_enough() {
        assert_eq!(judge(Vec::new(), 2, 2, None), Judged::Never);
        assert_eq!(judge(Vec::new(), 1, 2, Some(Term(3))), Judged::Open);
    }
}
