//! A second count of what is durable where, beside openraft's.
//!
//! openraft decides what is committed; before anything of it becomes visible here, these books must agree
//! (DR12): either a leader told this node so, or this node leads or led and a quorum of distinct voters has reported
//! that the entry is on their disks. The reports are the followers' own statements of their durable end; the
//! arithmetic shares nothing with openraft's. A difference stops the node: it would be an acknowledged message
//! that fewer nodes hold than was promised.
//!
//! They also remember what each peer once held of what is committed (DR13). A peer that comes back with less
//! has lost acknowledged messages: it is refused until it is replaced by a new node.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use beamlog_log::{EntryId, Index, Term};
use tokio::sync::Notify;

use super::{Membership, Shard, Vote};
use crate::runtime::{self, Moment};

/// Memberships that may govern entries which are not committed yet, and a few more.
const MEMBERSHIPS_KEPT: usize = 4;
/// Copies of its messages that an entry has before a witness takes it, if so many data nodes are in step.
const DATA_COPIES: usize = 2;
/// A node that came so near the end of the log this recently is in step. Heartbeats come five times as often.
const IN_STEP: Duration = Duration::from_millis(500);
const IN_STEP_ENTRIES: u64 = 64;

/// What openraft says is committed and these books do not.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("entry {} of term {} is said to be committed, but is durable only on {held}; the voters are {voters}", entry.index, entry.term)]
pub(crate) struct Discrepancy {
    pub(crate) entry: EntryId,
    pub(crate) held: String,
    pub(crate) voters: String,
}

/// What a follower's answer to an append says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Report {
    /// The term of the leader that asked.
    pub(crate) term: Term,
    /// Up to where the follower's log is the leader's, by the answer.
    pub(crate) matched: EntryId,
    /// The last entry on the follower's disk, by its own books.
    pub(crate) durable: EntryId,
}

/// Why a follower's report is refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum BadReport {
    #[error("it says that it took entries up to {matched} and has only {durable} on its disk")]
    NotDurable { matched: Index, durable: Index },
    #[error(
        "it has only entries up to {durable} and once held those up to {held}: it lost what it acknowledged"
    )]
    Regressed { durable: Index, held: Index },
    #[error("it says that it has entry {matched}, and {last} is the last one there is")]
    BeyondLast { matched: Index, last: Index },
}

pub(crate) struct Books {
    me: u64,
    shard: Arc<dyn Shard>,
    page: Mutex<Page>,
    short: Notify,
}

impl fmt::Debug for Books {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Books").field("me", &self.me).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Page {
    /// The last entry on our disk.
    durable: EntryId,
    /// The term in which this node leads.
    leads: Option<u64>,
    /// The term in which it led last, or leads.
    led: Option<u64>,
    /// Under that leadership: up to where each peer held our log on its disk.
    peers: BTreeMap<u64, EntryId>,
    /// The last index that a leader told us is committed.
    told: Index,
    /// The last index that is committed.
    committed: Index,
    /// Under any leadership: the last committed entry that each peer is known to have had on its disk.
    held: BTreeMap<u64, Index>,
    /// When each peer was near the end of our log; `None` if its process has ended since.
    in_step: BTreeMap<u64, Option<Moment>>,
    /// When this leadership began.
    since: Moment,
    /// Why peers are refused.
    refused: BTreeMap<u64, String>,
    /// By the index of their entries.
    memberships: BTreeMap<Index, (EntryId, Membership)>,
}

impl Books {
    pub(crate) fn new(me: u64, shard: Arc<dyn Shard>) -> Self {
        Self { me, shard, page: Mutex::default(), short: Notify::new() }
    }

    fn page(&self) -> MutexGuard<'_, Page> {
        self.page.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last entry on our disk.
    pub(crate) fn durable(&self) -> EntryId {
        self.page().durable
    }

    /// The term in which this node leads, elected and its vote saved.
    pub(crate) fn leads(&self) -> Option<Term> {
        self.page().leads.map(Term)
    }

    /// Up to where each peer is known to hold our log, while this node leads.
    pub(crate) fn peers(&self) -> BTreeMap<u64, EntryId> {
        self.page().peers.clone()
    }

    /// The shard said that everything up to here is on our disk.
    pub(crate) fn durable_here(&self, id: EntryId) {
        self.page().durable = id;
    }

    /// What is after `last` leaves our log.
    pub(crate) fn truncated(&self, last: EntryId) {
        let mut page = self.page();
        assert!(
            page.committed <= last.index,
            "entries up to {} are committed and the log is cut after {}",
            page.committed,
            last.index
        );
        if page.durable.index > last.index {
            page.durable = last;
        }
        page.memberships.retain(|index, _| *index <= last.index);
        // That they held what is cut says nothing of what will stand there.
        for held in page.peers.values_mut().filter(|held| held.index > last.index) {
            *held = last;
        }
    }

    /// Our log is now a copy that ends here, all of it committed.
    pub(crate) fn installed(&self, last: EntryId, membership: Option<(EntryId, Membership)>) {
        let mut page = self.page();
        page.durable = last;
        page.committed = page.committed.max(last.index);
        page.told = page.told.max(last.index);
        page.led = None;
        page.memberships.clear();
        page.memberships.extend(membership.map(|(id, membership)| (id.index, (id, membership))));
    }

    /// A membership is in our log.
    pub(crate) fn membership(&self, id: EntryId, membership: Membership) {
        let mut page = self.page();
        page.memberships.insert(id.index, (id, membership));
        // An old one that was read again goes at once.
        while page.memberships.len() > MEMBERSHIPS_KEPT {
            page.memberships.pop_first();
        }
    }

    /// The membership that governs an entry, and the entry that it is in.
    pub(crate) fn governing(&self, index: Index) -> Option<(EntryId, Membership)> {
        self.page().memberships.range(..=index).next_back().map(|(_, governing)| governing.clone())
    }

    /// A vote is about to be saved. A leadership that it ends, ends now.
    pub(crate) fn vote_changes(&self, vote: &Vote) {
        let mut page = self.page();
        let still = vote.leader_id().voted_for == self.me && page.leads == Some(vote.leader_id().term);
        if page.leads.is_some() && !still {
            page.leads = None;
            // Under the lock: commands to the shard go out in the order of these decisions.
            self.shard.step_down();
        }
    }

    /// A vote is on our disk. A leadership that it begins, begins now.
    pub(crate) fn vote_saved(&self, vote: &Vote) {
        let mut page = self.page();
        let leader = vote.leader_id();
        if vote.is_committed() && leader.voted_for == self.me && page.leads != Some(leader.term) {
            page.leads = Some(leader.term);
            page.led = page.leads;
            // What peers reported to an earlier leadership may have been cut since.
            page.peers.clear();
            page.in_step.clear();
            page.since = runtime::now();
            self.shard.become_leader(Term(leader.term));
        }
    }

    /// This node cannot reach a quorum: its driver serves nobody any more under this leadership.
    pub(crate) fn quorum_lost(&self) {
        let page = self.page();
        if page.leads.is_some() {
            self.shard.step_down();
        }
    }

    /// A leader says what is committed.
    pub(crate) fn told(&self, committed: Index) {
        let mut page = self.page();
        page.told = page.told.max(committed);
    }

    /// What a peer is known to have on its disk, in this term: an answer to what it is asked now cannot say less.
    pub(crate) fn known_of(&self, peer: u64, term: Term) -> Index {
        let page = self.page();
        let held = page.held.get(&peer).copied().unwrap_or_default();
        if page.leads == Some(term.0) {
            return held.max(page.peers.get(&peer).map_or(Index(0), |id| id.index));
        }
        held
    }

    /// A peer answered an append, and says what is on its disk. A peer that holds less than it did must not be seen by
    /// openraft, which would take its own books for wrong (FAULTS 7.3).
    ///
    /// `held` is [`Self::known_of`] when it was asked: answers overtake each other, and an older one says less.
    pub(crate) fn answered(&self, peer: u64, held: Index, durable: EntryId) -> Result<(), BadReport> {
        let mut page = self.page();
        if durable.index < held {
            let bad = BadReport::Regressed { durable: durable.index, held };
            page.refused.insert(peer, bad.to_string());
            return Err(bad);
        }
        page.refused.remove(&peer);
        Ok(())
    }

    /// Why a peer is refused.
    pub(crate) fn refused(&self, peer: u64) -> Option<String> {
        self.page().refused.get(&peer).cloned()
    }

    /// A peer took what it was sent. `last` is the last entry of our log.
    pub(crate) fn reported(&self, peer: u64, report: Report, last: Index) -> Result<(), BadReport> {
        let Report { term, matched, durable } = report;
        let mut page = self.page();
        if matched.index > last {
            return Err(BadReport::BeyondLast { matched: matched.index, last });
        }
        if durable.index < matched.index {
            return Err(BadReport::NotDurable { matched: matched.index, durable: durable.index });
        }
        if page.leads != Some(term.0) {
            return Ok(());
        }
        let known = page.peers.entry(peer).or_default();
        let advances = known.index < matched.index;
        if advances {
            *known = matched;
        }
        // One that hears of us and stores nothing is not in step.
        if matched.index == last || (advances && matched.index.0 + IN_STEP_ENTRIES >= last.0) {
            page.in_step.insert(peer, Some(runtime::now()));
        }
        page.note_held();
        Ok(())
    }

    /// openraft says that everything up to here is committed. Nothing of it may become visible if this is an
    /// error.
    pub(crate) fn committed(&self, entry: EntryId) -> Result<(), Discrepancy> {
        let mut page = self.page();
        if page.told < entry.index && !page.has_quorum(self.me, entry) {
            return Err(page.discrepancy(self.me, entry));
        }
        page.committed = page.committed.max(entry.index);
        page.note_held();
        Ok(())
    }

    /// Before a witness may take an entry of this leader: the data nodes that are waited for, because the entry is not
    /// yet on [`DATA_COPIES`] disks *with its messages*, or on those of all data nodes that are in step (DR20). Nobody: it
    /// may.
    ///
    /// So a witness is never ahead of every data node that works, and is never needed for what both of two could
    /// have.
    pub(crate) fn copies_awaited(&self, index: Index, now: Moment) -> Vec<u64> {
        let page = self.page();
        let Some((_, (_, membership))) = page.memberships.iter().next_back() else { return Vec::new() };
        let keeps = |node: &u64| membership.get_node(node).is_some_and(|member| !member.witness);
        let (have, lack): (Vec<u64>, Vec<u64>) =
            membership.voter_ids().filter(keeps).partition(|node| page.holds(self.me, *node, index));
        if page.leads.is_none() || have.len() >= DATA_COPIES {
            return Vec::new();
        }
        lack.into_iter().filter(|node| *node == self.me || page.is_in_step(*node, now)).collect()
    }

    /// A peer's process is known to have ended: it is not waited for.
    pub(crate) fn is_down(&self, peer: u64) {
        self.page().in_step.insert(peer, None);
    }

    /// What each peer is known to have held of what is committed, to be told to the others.
    pub(crate) fn held(&self) -> BTreeMap<u64, Index> {
        self.page().held.clone()
    }

    /// The leader says what peers held.
    pub(crate) fn told_held(&self, held: &[(u64, Index)]) {
        let mut page = self.page();
        for (peer, index) in held {
            if *peer != self.me && (page.held.len() < 64 || page.held.contains_key(peer)) {
                let known = page.held.entry(*peer).or_default();
                *known = (*known).max(*index);
            }
        }
    }

    /// The same of those that are members: what is worth knowing after a restart.
    pub(crate) fn held_of_members(&self) -> BTreeMap<u64, Index> {
        let page = self.page();
        let mut held = page.held.clone();
        let is_member =
            |peer: &u64| page.memberships.values().any(|(_, membership)| membership.get_node(peer).is_some());
        if !page.memberships.is_empty() {
            held.retain(|peer, _| is_member(peer));
        }
        held
    }

    /// What a peer once held, if its log now ends before that.
    pub(crate) fn regressed(&self, peer: u64, last: Index) -> Option<Index> {
        self.page().held.get(&peer).copied().filter(|held| last < *held)
    }

    /// A peer has no session with this node: it lost what it held.
    pub(crate) fn refuse(&self, peer: u64, reason: String) {
        self.page().refused.insert(peer, reason);
    }

    /// A peer has what it is known to have held.
    pub(crate) fn admitted(&self, peer: u64) {
        self.page().refused.remove(&peer);
    }

    /// A peer is not a member any more.
    pub(crate) fn forget(&self, peer: u64) {
        let mut page = self.page();
        page.held.remove(&peer);
        page.refused.remove(&peer);
        page.in_step.remove(&peer);
        page.peers.remove(&peer);
    }

    /// Replication asked for entries that are only in files now.
    pub(crate) fn history_is_short(&self) {
        self.short.notify_one();
    }

    /// Waits for that.
    pub(crate) async fn short_history(&self) {
        self.short.notified().await;
    }
}

impl Page {
    fn note_held(&mut self) {
        // What a later leader commits need not be what they held of ours.
        if self.leads.is_none() {
            return;
        }
        for (peer, id) in &self.peers {
            let held = self.held.entry(*peer).or_default();
            *held = (*held).max(id.index.min(self.committed));
        }
    }

    /// A leader that has just begun takes everybody for in step, for as long.
    fn is_in_step(&self, peer: u64, now: Moment) -> bool {
        let at = self.in_step.get(&peer).copied().unwrap_or(Some(self.since));
        !self.refused.contains_key(&peer) && at.is_some_and(|at| now - at.max(self.since) < IN_STEP)
    }

    fn holds(&self, me: u64, node: u64, index: Index) -> bool {
        if node == me {
            self.durable.index >= index
        } else {
            self.peers.get(&node).is_some_and(|id| id.index >= index)
        }
    }

    /// Whether a quorum holds the entry, by the membership that governs it or by a later one: openraft counts
    /// by the last one in its log, and may have counted before that was appended.
    ///
    /// A leadership may have ended since: what a quorum held under it stays committed, and openraft tells of a
    /// commit and of a vote in two tasks. An entry of a later term was not counted by it.
    fn has_quorum(&self, me: u64, entry: EntryId) -> bool {
        if self.led.is_none_or(|led| entry.term.0 > led) {
            return false;
        }
        let index = entry.index;
        let governing = self.memberships.range(..=index).next_back();
        let later = self.memberships.range(index.next()..);
        governing.into_iter().chain(later).any(|(_, (_, membership))| {
            let configs = membership.get_joint_config();
            !configs.is_empty()
                && configs.iter().all(|config| {
                    let held = config.iter().filter(|node| self.holds(me, **node, index)).count();
                    held * 2 > config.len()
                })
        })
    }

    fn discrepancy(&self, me: u64, entry: EntryId) -> Discrepancy {
        let name = |node: &u64| format!("{node:016x}");
        let voters = self.memberships.values().next_back();
        let configs = voters.map(|(_, membership)| membership.get_joint_config().clone()).unwrap_or_default();
        let mut nodes: Vec<u64> = self.peers.keys().copied().chain([me]).collect();
        nodes.retain(|node| self.holds(me, *node, entry.index));
        Discrepancy {
            entry,
            held: nodes.iter().map(name).collect::<Vec<_>>().join(", "),
            voters: configs
                .iter()
                .map(|config| config.iter().map(name).collect::<Vec<_>>().join(", "))
                .collect::<Vec<_>>()
                .join(" and "),
        }
    }
}
