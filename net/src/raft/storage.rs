//! openraft's log over a shard of ours.
//!
//! Invariants: what `append` returned for can be read at once; openraft is told that an entry is on disk only
//! after the shard said so, in order (FAULTS 7.4); votes and entries reach the shard in the order in which
//! openraft gave them; a read that fails is an error, never a shorter answer. The last entries are kept in
//! memory, so that replication does not wait for the driver; their bytes are bounded.

use std::{
    collections::{BTreeSet, VecDeque},
    fmt::Debug,
    io,
    ops::{Bound, RangeBounds},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use beamlog_log::{EntryId, Index, Timestamp};
use beamlog_router::replica::{ReplicaEntry, ReplicaError};
use openraft::{
    LogState, RaftLogReader,
    entry::RaftEntry,
    storage::{IOFlushed, RaftLogStorage},
};

use super::{
    Books, LogId, Shard, ShardError, Types, Vote,
    control::{self, ControlError},
    entry_id, log_id,
    types::Entry,
};

/// Bytes of entries in one answer to replication. One entry may be longer.
const READ_BYTES: usize = 4 << 20;
/// Entries in one answer to replication.
const READ_ENTRIES: u64 = 1024;

/// openraft's log. Clones share everything.
#[derive(Clone)]
pub(crate) struct Storage {
    inner: Arc<Inner>,
}

struct Inner {
    shard: Arc<dyn Shard>,
    books: Arc<Books>,
    /// Bytes of entries that are kept in memory.
    budget: usize,
    recent: Mutex<Recent>,
    vote: Mutex<Option<Vote>>,
}

/// The end of the log.
struct Recent {
    /// Without holes, up to the last.
    entries: VecDeque<Entry>,
    bytes: usize,
    /// The last entry that openraft may not ask for any more; 0 if it may ask for all.
    purged: EntryId,
    /// When there is none in memory.
    last: EntryId,
    /// Of the last entry.
    now: Timestamp,
    /// Where reads began that were answered with nothing, although entries stood there once.
    short: BTreeSet<Index>,
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::other(error)
}

impl Storage {
    /// The storage of a shard that was just opened.
    pub(crate) async fn open(
        shard: Arc<dyn Shard>,
        books: Arc<Books>,
        budget: usize,
    ) -> Result<Self, StorageError> {
        let state = shard.state().await?;
        let vote = shard.vote().map(|bytes| control::decode_vote(&bytes)).transpose()?;
        // The last entry says what time it is; without it (all history is compacted) the driver's own clock,
        // which never goes back, is what the next frame gets.
        let last = if state.last.index > state.history_from.index {
            shard.read(state.last.index, state.last.index.next(), 0).await?.pop()
        } else {
            None
        };
        let recent = Recent {
            entries: VecDeque::new(),
            bytes: 0,
            purged: state.history_from,
            last: state.last,
            now: last.map(|entry| entry.timestamp).unwrap_or_default(),
            short: BTreeSet::new(),
        };
        books.durable_here(state.last);
        let inner = Inner { shard, books, budget, recent: Mutex::new(recent), vote: Mutex::new(vote) };
        Ok(Self { inner: Arc::new(inner) })
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.inner.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The vote that is on the disk.
    pub(crate) fn vote(&self) -> Option<Vote> {
        *self.inner.vote.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last entry, durable or not.
    pub(crate) fn last(&self) -> EntryId {
        self.recent().last()
    }

    /// The last entry that is not asked for any more.
    pub(crate) fn purged(&self) -> Index {
        self.recent().purged.index
    }

    /// The entry at an index; `None` if that is not known any more.
    pub(crate) async fn id_at(&self, index: Index) -> Result<Option<EntryId>, io::Error> {
        {
            let recent = self.recent();
            if index == recent.purged.index {
                return Ok(Some(recent.purged));
            }
            if index < recent.purged.index || index > recent.last().index {
                return Ok(None);
            }
        }
        match self.read(index, index.next(), None).await {
            Ok(entries) => Ok(entries.first().map(|entry| entry_id(Some(&entry.log_id)))),
            Err(ReadError::Shard(ShardError::Replica(ReplicaError::NotHere { .. }))) => Ok(None),
            Err(error) => Err(other(error)),
        }
    }

    /// Whether a read of what follows `previous` was answered with nothing because that is not here any more. Says so
    /// once for each such read.
    pub(crate) fn take_short_read(&self, previous: Index) -> bool {
        self.recent().short.remove(&previous.next())
    }

    /// The shard's state is now another node's copy, which ends here.
    pub(crate) fn restart_at(&self, last: EntryId) {
        let mut recent = self.recent();
        recent.entries.clear();
        recent.bytes = 0;
        recent.purged = last;
        recent.last = last;
    }

    /// Entries `from..to` in our indexes, all of them or about `max_bytes`.
    async fn read(
        &self,
        mut from: Index,
        to: Index,
        max_bytes: Option<usize>,
    ) -> Result<Vec<Entry>, ReadError> {
        let mut found = Vec::new();
        let mut bytes = 0_usize;
        while from < to {
            let before = found.len();
            let older = {
                let recent = self.recent();
                match recent.copy(from, to, max_bytes.map(|max| max.saturating_sub(bytes))) {
                    Copied::Entries(entries) => {
                        found.extend(entries);
                        None
                    }
                    Copied::Older(until) => Some(until.min(to)),
                }
            };
            if let Some(until) = older {
                let entries = self.inner.shard.read(from, until, READ_BYTES).await?;
                for entry in entries {
                    let entry = control::entry_of(entry)?;
                    // openraft reads what is not folded when it starts: so the books learn of it too.
                    if let Some(membership) = entry.get_membership() {
                        self.inner.books.membership(entry_id(Some(&entry.log_id)), membership);
                    }
                    found.push(entry);
                }
            }
            let new = found.get(before..).unwrap_or_default();
            let Some(last) = new.last() else { break };
            from = Index(last.log_id.index + 2);
            bytes += new.iter().map(weight).sum::<usize>();
            if max_bytes.is_some_and(|max| bytes >= max) {
                break;
            }
        }
        Ok(found)
    }
}

fn weight(entry: &Entry) -> usize {
    size_of::<Entry>() + entry.payload.frame.as_ref().map_or(0, |frame| frame.body.len())
}

enum Copied {
    Entries(Vec<Entry>),
    /// They are not in memory; from this index on they are.
    Older(Index),
}

impl Recent {
    fn last(&self) -> EntryId {
        self.entries.back().map_or(self.last, |entry| entry_id(Some(&entry.log_id)))
    }

    fn copy(&self, from: Index, to: Index, max_bytes: Option<usize>) -> Copied {
        let Some(first) = self.entries.front() else {
            return if from > self.last.index {
                Copied::Entries(Vec::new())
            } else {
                Copied::Older(self.last.index.next())
            };
        };
        let first = Index(first.log_id.index + 1);
        if from < first {
            return Copied::Older(first);
        }
        let skip = usize::try_from(from.0 - first.0).unwrap_or(usize::MAX);
        let wanted = usize::try_from(to.0 - from.0).unwrap_or(usize::MAX);
        let mut entries = Vec::new();
        let mut bytes = 0_usize;
        for entry in self.entries.iter().skip(skip).take(wanted) {
            bytes = bytes.saturating_add(weight(entry));
            if !entries.is_empty() && max_bytes.is_some_and(|max| bytes > max) {
                break;
            }
            entries.push(entry.clone());
        }
        Copied::Entries(entries)
    }

    fn push(&mut self, entry: Entry) {
        self.bytes += weight(&entry);
        self.entries.push_back(entry);
    }

    /// Forgets the oldest entries until the rest fits. `durable` and what is before it can be read again.
    fn shrink(&mut self, budget: usize, durable: Index) {
        while self.bytes > budget
            && let Some(first) = self.entries.front()
            && Index(first.log_id.index + 1) <= durable
        {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.bytes -= weight(&entry);
            if self.entries.is_empty() {
                self.last = entry_id(Some(&entry.log_id));
            }
        }
    }
}

/// Why a storage cannot be begun.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error(transparent)]
    Shard(#[from] ShardError),
    #[error("what this node voted cannot be understood")]
    Vote(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl From<ControlError> for StorageError {
    fn from(error: ControlError) -> Self {
        Self::Vote(Box::new(error))
    }
}

#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error(transparent)]
    Shard(#[from] ShardError),
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// A range of openraft's indexes in ours: from, to (exclusive).
fn ours(range: &impl RangeBounds<u64>) -> (Index, Index) {
    let from = match range.start_bound() {
        Bound::Included(from) => from.saturating_add(1),
        Bound::Excluded(before) => before.saturating_add(2),
        Bound::Unbounded => 1,
    };
    let to = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(2),
        Bound::Excluded(end) => end.saturating_add(1),
        Bound::Unbounded => u64::MAX,
    };
    (Index(from), Index(to))
}

impl RaftLogReader<Types> for Storage {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (from, to) = ours(&range);
        let (from, to) = {
            let recent = self.recent();
            (from.max(recent.purged.index.next()), to.min(recent.last().index.next()))
        };
        self.read(from, to, None).await.map_err(other)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.vote())
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        let (from, to) = ours(&(start..end.min(start.saturating_add(READ_ENTRIES))));
        match self.read(from, to, Some(READ_BYTES)).await {
            Ok(entries) => Ok(entries),
            // Its segment was left behind after openraft was told what there is. That is known, not damaged:
            // openraft sends nothing, is told (`Upkeep`), and sends a copy of the files instead.
            Err(ReadError::Shard(ShardError::Replica(ReplicaError::NotHere { .. }))) => {
                self.recent().short.insert(from);
                self.inner.books.history_is_short();
                Ok(Vec::new())
            }
            Err(error) => Err(other(error)),
        }
    }
}

impl RaftLogStorage<Types> for Storage {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let recent = self.recent();
        Ok(LogState {
            last_purged_log_id: log_id(recent.purged),
            last_log_id: log_id(recent.last().max(recent.purged)),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let bytes = control::encode_vote(vote).map_err(other)?;
        // Whoever follows another does not lead while its vote is on the way to the disk.
        self.inner.books.vote_changes(vote);
        self.inner.shard.save_vote(bytes).await.map_err(other)?;
        *self.inner.vote.lock().unwrap_or_else(PoisonError::into_inner) = Some(*vote);
        self.inner.books.vote_saved(vote);
        Ok(())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let mut given = Vec::new();
        let mut refused = Vec::new();
        {
            let mut recent = self.recent();
            for mut entry in entries {
                let proposal = entry.payload.proposal;
                control::give_frame(&mut entry, self.inner.shard.id(), recent.now).map_err(other)?;
                if entry.payload.proposal.is_none() {
                    refused.extend(proposal.map(|(id, _)| id));
                }
                if let Some(membership) = entry.get_membership() {
                    self.inner.books.membership(entry_id(Some(&entry.log_id)), membership);
                }
                let frame = entry
                    .payload
                    .frame
                    .as_ref()
                    .ok_or_else(|| io::Error::other("an entry without a frame"))?;
                recent.now = recent.now.max(frame.timestamp);
                given.push(ReplicaEntry {
                    entry: beamlog_log::LogEntry {
                        id: entry_id(Some(&entry.log_id)),
                        timestamp: frame.timestamp,
                        records: frame.records,
                        body: frame.body.clone(),
                    },
                    proposal: entry.payload.proposal.map(|(id, _)| id),
                });
                recent.push(entry);
            }
            recent.shrink(self.inner.budget, self.inner.books.durable().index);
        }
        for id in refused {
            self.inner.shard.refused(id);
        }
        let wanted = given.last().map(|entry| entry.entry.id);
        let books = Arc::clone(&self.inner.books);
        self.inner.shard.append(
            given,
            Box::new(move |done| {
                let done = match done {
                    Ok(durable) if wanted.is_none_or(|wanted| wanted == durable) => {
                        books.durable_here(durable);
                        Ok(())
                    }
                    Ok(durable) => {
                        Err(io::Error::other(format!("the shard synced up to {durable:?}, not {wanted:?}")))
                    }
                    Err(error) => Err(other(error)),
                };
                callback.io_completed(done);
            }),
        );
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let last = entry_id(last.as_ref());
        {
            let mut recent = self.recent();
            let before = recent.last();
            while let Some(entry) = recent.entries.back()
                && Index(entry.log_id.index + 1) > last.index
            {
                let gone = recent.entries.pop_back().map_or(0, |entry| weight(&entry));
                recent.bytes -= gone;
            }
            if recent.entries.is_empty() {
                recent.last = before.min(last);
            }
        }
        self.inner.books.truncated(last);
        self.inner.shard.truncate_after(last.index).await.map_err(other)
    }

    /// Destroys nothing: segments go when their messages are dead. What is behind `upto` is not asked for any
    /// more, and its memory goes.
    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        let upto = entry_id(Some(&upto));
        let mut recent = self.recent();
        if upto.index <= recent.purged.index {
            return Ok(());
        }
        while let Some(entry) = recent.entries.front()
            && Index(entry.log_id.index + 1) <= upto.index
        {
            recent.forget_first();
        }
        recent.purged = upto;
        recent.short = recent.short.split_off(&upto.index.next());
        if recent.entries.is_empty() && recent.last.index < upto.index {
            recent.last = upto;
        }
        Ok(())
    }
}
