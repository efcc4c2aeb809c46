//! A voter that keeps no messages (DR20): of each entry it stores which one it is, and of memberships all.
//!
//! That is enough to vote as Raft demands: a candidate whose log ends before what the witness took is refused, so
//! a data node that was away cannot be elected past an entry that only the witness and a lost node had. It never
//! campaigns, and it gives entries to nobody.
//!
//! Ids of entries ascend by one within a term, so the log of a witness is a few numbers. They are kept as votes are: two
//! copies, each written and synced before the next, durable before anybody is told.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
};

use beamlog_log::{
    DataDirectory, DirectoryError, Disk, DiskFailed, EntryId, FirstStart, Index, Installation, LogEntry,
    LogFiles, NodeId, PeersFile, ShardId, Shipment, Tail, Term, Timestamp, VoteError, VoteFile,
    envelope::{self, DecodeError, EncodeError, Enveloped},
};
use beamlog_router::replica::{ReplicaEntry, ReplicaError, Role, TimeSource};
use bytes::Bytes;
use futures_util::future::{BoxFuture, ready};
use tokio::sync::oneshot;

use crate::raft::{Appended, Shard, ShardError, ShardState, Staged};

/// Beginnings of terms that are kept; older ones are not asked for.
const RUNS_KEPT: usize = 8;

/// Why a witness does not open.
#[derive(Debug, thiserror::Error)]
pub enum WitnessError {
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error("what this witness voted, or which entries it took")]
    Kept(#[from] VoteError),
    #[error("which entries this witness took cannot be understood")]
    Decode(#[from] DecodeError),
    #[error(transparent)]
    Disk(#[from] DiskFailed),
    #[error("no random bytes for an identity")]
    Random(#[source] std::io::Error),
    #[error("starting the thread of the witness")]
    Thread(#[source] std::io::Error),
}

/// The store of a witness, open.
pub struct Witness {
    directory: DataDirectory,
    shard: Arc<WitnessShard>,
}

impl std::fmt::Debug for Witness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Witness").finish_non_exhaustive()
    }
}

impl Witness {
    /// Opens the store of a witness of this shard, or begins one.
    pub fn open(
        path: &Path,
        disk: Arc<dyn Disk>,
        shard: ShardId,
        now: Timestamp,
    ) -> Result<Self, WitnessError> {
        let node = NodeId::random().map_err(WitnessError::Random)?;
        let mut directory = DataDirectory::open(Arc::clone(&disk), path, FirstStart { node, created: now })?;
        let place = directory.shard_directory(shard);
        let was = directory.has_log();
        let (votes, vote) = VoteFile::open(Arc::clone(&disk), &place, shard, was)?;
        let taken = place.join("taken");
        make(&*disk, &taken)?;
        let (peers, known) = PeersFile::open(&disk, &place, shard);
        let (file, bytes) = VoteFile::open(disk, &taken, shard, was)?;
        // From here on an empty directory is a loss.
        directory.log_created()?;
        let record = match bytes {
            Some(bytes) => envelope::decode(&bytes)?,
            None => TakenRecord::default(),
        };
        let kept = Kept { shard, votes, vote, peers, file, taken: record };
        Ok(Self { directory, shard: Arc::new(WitnessShard::new(shard, kept, known)?) })
    }

    /// Who this node is.
    #[must_use]
    pub fn node_id(&self) -> NodeId {
        self.directory.identity().node
    }

    pub(super) fn shard(&self) -> Arc<dyn Shard> {
        Arc::clone(&self.shard) as Arc<dyn Shard>
    }
}

fn make(disk: &dyn Disk, directory: &Path) -> Result<(), DiskFailed> {
    let failed = |action, path: PathBuf| move |source| DiskFailed { action, path, source };
    let exists = disk.exists(directory).map_err(failed("looking for", directory.to_owned()))?;
    if !exists {
        disk.create_dir(directory).map_err(failed("creating", directory.to_owned()))?;
        if let Some(parent) = directory.parent() {
            disk.sync_dir(parent).map_err(failed("syncing", parent.to_owned()))?;
        }
    }
    Ok(())
}

/// Which entries a witness took.
#[derive(Clone, Debug, Default, wincode::SchemaRead, wincode::SchemaWrite)]
struct TakenRecord {
    /// The entry before the first one that is known.
    from: (u64, u64),
    /// Where terms begin: index, term.
    runs: Vec<(u64, u64)>,
    last: u64,
    /// Of what is decided.
    applied: u64,
    /// Index, term, and what the entry says.
    memberships: Vec<(u64, u64, Vec<u8>)>,
}

impl Enveloped for TakenRecord {
    const KIND: u16 = 0x0304;
    const VERSION: u8 = 1;
}

impl TakenRecord {
    fn id_at(&self, index: u64) -> Option<EntryId> {
        let id = |index, term| EntryId { index: Index(index), term: Term(term) };
        if index == self.from.0 {
            return Some(id(self.from.0, self.from.1));
        }
        if index < self.from.0 || index > self.last {
            return None;
        }
        let (_, term) = self.runs.iter().rev().find(|(begins, _)| *begins <= index)?;
        Some(id(index, *term))
    }

    fn last(&self) -> EntryId {
        self.id_at(self.last).unwrap_or_default()
    }

    fn take(&mut self, entry: &LogEntry) -> Result<(), ReplicaError> {
        let last = self.last();
        let id = entry.id;
        if id.index != last.index.next() || id.term < last.term || id.term.0 == 0 {
            return Err(ReplicaError::OutOfOrder { last, found: id });
        }
        if id.term != last.term || self.runs.is_empty() {
            self.runs.push((id.index.0, id.term.0));
        }
        self.last = id.index.0;
        if let Some(bytes) = entry.replication().filter(|bytes| !bytes.is_empty()) {
            self.memberships.push((id.index.0, id.term.0, bytes.to_vec()));
        }
        Ok(())
    }

    /// Forgets what is decided and not asked for: it is written whole each time.
    fn shorten(&mut self) {
        while self.runs.len() > RUNS_KEPT
            && let [_, (next, _), ..] = self.runs[..]
            && next - 1 <= self.applied
            && let Some(id) = self.id_at(next - 1)
        {
            self.from = (id.index.0, id.term.0);
            self.runs.remove(0);
        }
        // A membership is proposed when the one before it is committed: of those that are not known to be applied, only the
        // last one can be cut, and the one before is what then holds.
        let applied = self.memberships.iter().rposition(|(index, ..)| *index <= self.applied);
        let last_two = self.memberships.len().saturating_sub(2);
        let mut at = 0;
        self.memberships.retain(|_| {
            let keep = at >= last_two || Some(at) == applied;
            at += 1;
            keep
        });
    }

    fn truncate_after(&mut self, after: u64) {
        if self.last > after {
            self.last = after.max(self.from.0);
            self.runs.retain(|(begins, _)| *begins <= after);
            self.memberships.retain(|(index, ..)| *index <= after);
        }
    }

    fn entry(&self, shard: ShardId, index: u64) -> Option<LogEntry> {
        let id = self.id_at(index)?;
        let membership = self.memberships.iter().find(|(at, ..)| *at == index);
        let bytes = membership.map_or(&[][..], |(_, _, bytes)| bytes);
        let body = LogEntry::replication_body(shard, bytes);
        Some(LogEntry { id, timestamp: Timestamp(0), records: 1, body })
    }
}

/// What a witness has on its disk.
struct Kept {
    shard: ShardId,
    votes: VoteFile,
    vote: Option<Vec<u8>>,
    peers: PeersFile,
    file: VoteFile,
    taken: TakenRecord,
}

impl Kept {
    /// Durable on return. After an error nothing is taken any more: the files see to that.
    fn save(&mut self, taken: TakenRecord) -> Result<(), ShardError> {
        let bytes =
            envelope::encode(&taken).map_err(|error: EncodeError| ShardError::Other(error.to_string()))?;
        self.file.save(&bytes).map_err(|error| ShardError::Other(error.to_string()))?;
        self.taken = taken;
        Ok(())
    }

    fn append(&mut self, entries: &[ReplicaEntry]) -> Result<EntryId, ShardError> {
        let mut taken = self.taken.clone();
        for entry in entries {
            taken.take(&entry.entry)?;
        }
        taken.shorten();
        self.save(taken)?;
        Ok(self.taken.last())
    }

    fn truncate_after(&mut self, after: Index) -> Result<(), ShardError> {
        if after.0 < self.taken.applied {
            let committed = Index(self.taken.applied);
            return Err(ReplicaError::Committed { committed, wanted: after }.into());
        }
        let mut taken = self.taken.clone();
        taken.truncate_after(after.0);
        self.save(taken)
    }

    fn read(&self, from: Index, to: Index) -> Result<Vec<LogEntry>, ShardError> {
        let (first, last) = (Index(self.taken.from.0), self.taken.last());
        if from <= first || from > last.index.next() {
            let history_from = self.taken.id_at(first.0).unwrap_or_default();
            return Err(ReplicaError::NotHere { from, history_from, last }.into());
        }
        Ok((from.0..to.0.min(last.index.0 + 1))
            .map_while(|index| self.taken.entry(self.shard, index))
            .take(1024)
            .collect())
    }

    fn state(&self) -> ShardState {
        let applied = self.taken.id_at(self.taken.applied).unwrap_or_default();
        let membership = self.taken.memberships.iter().rev().find(|(index, ..)| *index <= applied.index.0);
        ShardState {
            role: Role::Follower,
            last: self.taken.last(),
            history_from: self.taken.id_at(self.taken.from.0).unwrap_or_default(),
            applied,
            replication: membership.map(|(index, term, bytes)| {
                (EntryId { index: Index(*index), term: Term(*term) }, Bytes::copy_from_slice(bytes))
            }),
            tail: Tail::Clean,
            doubt: None,
            damaged: None,
        }
    }

    /// All before is decided, and this node has it of others' words only: it needs no more.
    fn jump(&mut self, staged: Staged) -> Result<EntryId, ShardError> {
        let Staged { last, membership, .. } = staged;
        let memberships = membership.into_iter().map(|(id, bytes)| (id.index.0, id.term.0, bytes)).collect();
        let from = (last.index.0, last.term.0);
        self.save(TakenRecord {
            from,
            runs: Vec::new(),
            last: last.index.0,
            applied: last.index.0,
            memberships,
        })?;
        Ok(last)
    }
}

type Job = Box<dyn FnOnce(&mut Kept) + Send>;

/// A witness's shard: its disk is waited for on a thread of its own, in the order of what was asked.
struct WitnessShard {
    id: ShardId,
    kept: Arc<Mutex<Kept>>,
    /// What was known of peers when the store was opened.
    known: Option<Vec<u8>>,
    jobs: mpsc::Sender<Job>,
}

impl WitnessShard {
    fn new(id: ShardId, kept: Kept, known: Option<Vec<u8>>) -> Result<Self, WitnessError> {
        let kept = Arc::new(Mutex::new(kept));
        let (jobs, inbox) = mpsc::channel::<Job>();
        let shared = Arc::clone(&kept);
        std::thread::Builder::new()
            .name("beamlog-witness".into())
            .spawn(move || {
                for job in inbox {
                    job(&mut shared.lock().unwrap_or_else(PoisonError::into_inner));
                }
            })
            .map_err(WitnessError::Thread)?;
        Ok(Self { id, kept, known, jobs })
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn later<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Kept) -> Result<T, ShardError> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, ShardError>> {
        let (sender, receiver) = oneshot::channel();
        // Without the thread nobody answers, and the receiver says so.
        self.jobs.send(Box::new(move |kept| drop(sender.send(work(kept))))).ok();
        Box::pin(async move { receiver.await.map_err(|_gone| ShardError::Gone)? })
    }
}

fn nothing_of_that<T: Send + 'static>() -> BoxFuture<'static, Result<T, ShardError>> {
    Box::pin(ready(Err(ShardError::Other("a witness keeps no messages".to_owned()))))
}

impl Shard for WitnessShard {
    fn id(&self) -> ShardId {
        self.id
    }

    fn keeps_messages(&self) -> bool {
        false
    }

    fn state(&self) -> BoxFuture<'static, Result<ShardState, ShardError>> {
        self.later(|kept| Ok(kept.state()))
    }

    fn append(&self, entries: Vec<ReplicaEntry>, done: Appended) {
        self.jobs.send(Box::new(move |kept| done(kept.append(&entries)))).ok();
    }

    fn truncate_after(&self, after: Index) -> BoxFuture<'static, Result<(), ShardError>> {
        self.later(move |kept| kept.truncate_after(after))
    }

    fn read(
        &self,
        from: Index,
        to: Index,
        _max_bytes: usize,
    ) -> BoxFuture<'static, Result<Vec<LogEntry>, ShardError>> {
        self.later(move |kept| kept.read(from, to))
    }

    fn save_vote(&self, vote: Vec<u8>) -> BoxFuture<'static, Result<(), ShardError>> {
        self.later(move |kept| {
            kept.votes.save(&vote).map_err(|error| ShardError::Other(error.to_string()))?;
            kept.vote = Some(vote);
            Ok(())
        })
    }

    fn vote(&self) -> Option<Vec<u8>> {
        self.lock().vote.clone()
    }

    fn save_peers(&self, peers: Vec<u8>) {
        // Without the thread nothing is kept any more.
        self.jobs.send(Box::new(move |kept| kept.peers.save(&peers))).ok();
    }

    fn peers(&self) -> Option<Vec<u8>> {
        self.known.clone()
    }

    fn committed(&self, up_to: Index) -> BoxFuture<'static, Result<EntryId, ShardError>> {
        self.later(move |kept| {
            // On the disk with the next entry: what is decided stays so.
            kept.taken.applied = kept.taken.applied.max(up_to.0);
            Ok(kept.taken.id_at(up_to.0).unwrap_or_default())
        })
    }

    fn become_leader(&self, term: Term) {
        tracing::error!(%term, "a witness was elected, which it never asks for");
    }

    fn step_down(&self) {}

    /// It leads never, and gives no entry a time.
    fn keep_time(&self, _by: TimeSource) {}

    fn settle_tail(&self, _entry: Option<LogEntry>) -> BoxFuture<'static, Result<(), ShardError>> {
        Box::pin(ready(Ok(())))
    }

    fn refused(&self, _proposal: u64) {}

    fn confirmed(&self, _question: u64, _leads: bool) {}

    fn ship(&self) -> BoxFuture<'static, Result<Shipment, ShardError>> {
        nothing_of_that()
    }

    fn begin_install(&self, _list: LogFiles) -> BoxFuture<'static, Result<Installation, ShardError>> {
        nothing_of_that()
    }

    fn install(&self, staged: Staged) -> BoxFuture<'static, Result<EntryId, ShardError>> {
        self.later(move |kept| kept.jump(staged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARD: ShardId = ShardId(0);

    fn entry(index: u64, membership: &[u8]) -> LogEntry {
        let id = EntryId { index: Index(index), term: Term(1) };
        let body = LogEntry::replication_body(SHARD, membership);
        LogEntry { id, timestamp: Timestamp(0), records: 1, body }
    }

    #[test]
    fn a_long_history_of_memberships_fits_and_those_that_may_hold_are_kept() {
        let mut taken = TakenRecord::default();
        let kept =
            |taken: &TakenRecord| taken.memberships.iter().map(|(index, ..)| *index).collect::<Vec<_>>();
        // Every fifth entry is one, and nothing is known to be committed: a witness that begins with an empty store.
        for index in 1..=200 {
            let membership = if index % 5 == 0 { vec![7; 600] } else { Vec::new() };
            taken.take(&entry(index, &membership)).unwrap();
        }
        taken.shorten();
        assert_eq!(kept(&taken), [195, 200]);
        let bytes = envelope::encode(&taken).unwrap();
        assert!(bytes.len() <= beamlog_log::VOTE_BYTES_MAX, "{} bytes", bytes.len());
        // The one that is applied stays beside the last two.
        taken.applied = 197;
        for index in 201..=210 {
            let membership = if index % 5 == 0 { vec![7; 600] } else { Vec::new() };
            taken.take(&entry(index, &membership)).unwrap();
        }
        taken.shorten();
        assert_eq!(kept(&taken), [195, 205, 210]);
        // The last may be cut; the one before holds then.
        taken.truncate_after(209);
        assert_eq!(kept(&taken), [195, 205]);
    }
}
