//! A log of ours as a shard, without a driver. openraft's suite begins logs at other indexes than the first
//! and at term 0, which ours never has: here the entries before are filled in, and terms are one higher.

use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
};

use beamlog_log::{
    EntryId, Index, Installation, Log, LogEntry, LogFiles, LogOptions, ShardId, Shipment, SimDisk, Tail,
    Term, Timestamp, VoteFile,
};
use beamlog_router::replica::{ReplicaEntry, ReplicaError, Role, TimeSource};
use futures_util::future::{BoxFuture, ready};

use crate::raft::{Shard, ShardError, ShardState, Staged, shard::Appended};

pub(super) const SHARD: ShardId = ShardId(0);

pub(super) struct DirectShard {
    inner: Mutex<Inner>,
}

struct Inner {
    log: Log,
    vote: VoteFile,
    saved: Option<Vec<u8>>,
    applied: Index,
    /// Entries up to here are not read any more.
    left_behind: EntryId,
}

impl DirectShard {
    pub(super) fn new() -> Self {
        let disk = Arc::new(SimDisk::new());
        let root = Path::new("/");
        let opened = Log::open(disk.clone(), root, SHARD, LogOptions::for_simulation()).unwrap();
        let (vote, saved) = VoteFile::open(disk, root, SHARD, false).unwrap();
        let left_behind = EntryId::default();
        let inner = Inner { log: opened.log, vote, saved, applied: Index(0), left_behind };
        Self { inner: Mutex::new(inner) }
    }

    /// The segments with these entries are gone, as if their messages were dead.
    pub(super) fn leave_behind(&self, upto: EntryId) {
        self.lock().left_behind = upto;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }
}

fn other(error: impl std::fmt::Display) -> ShardError {
    ShardError::Other(error.to_string())
}

fn now<T: Send + 'static>(value: T) -> BoxFuture<'static, T> {
    Box::pin(ready(value))
}

impl Inner {
    fn append(&mut self, entries: Vec<ReplicaEntry>) -> Result<EntryId, ShardError> {
        let mut last = EntryId::default();
        for ReplicaEntry { mut entry, .. } in entries {
            last = entry.id;
            entry.id.term = Term(entry.id.term.0 + 1);
            while self.log.last_id().index.next() < entry.id.index {
                let index = self.log.last_id().index.next();
                let term = self.log.last_id().term.max(Term(1));
                let body = LogEntry::replication_body(SHARD, b"");
                let id = EntryId { index, term };
                let filler = LogEntry { id, timestamp: Timestamp(0), records: 1, body };
                self.log.append_entry(&filler).map_err(other)?;
                self.log.sync().map_err(other)?;
            }
            if self.log.needs_roll() {
                self.log.roll(&mut std::iter::empty()).map_err(other)?;
            }
            self.log.append_entry(&entry).map_err(other)?;
        }
        self.log.sync().map_err(other)?;
        Ok(last)
    }
}

impl Shard for DirectShard {
    fn id(&self) -> ShardId {
        SHARD
    }

    fn state(&self) -> BoxFuture<'static, Result<ShardState, ShardError>> {
        let inner = self.lock();
        let history_from =
            if inner.log.history_from().index.0 == 0 { EntryId::default() } else { inner.log.history_from() };
        now(Ok(ShardState {
            role: Role::Follower,
            last: if inner.log.last_id().index.0 == 0 { EntryId::default() } else { inner.log.last_id() },
            history_from,
            applied: EntryId::default(),
            replication: None,
            tail: Tail::Clean,
            doubt: None,
            damaged: None,
        }))
    }

    fn append(&self, entries: Vec<ReplicaEntry>, done: Appended) {
        let appended = self.lock().append(entries);
        done(appended);
    }

    fn truncate_after(&self, after: Index) -> BoxFuture<'static, Result<(), ShardError>> {
        let mut inner = self.lock();
        now(if after < inner.log.last_id().index {
            inner.log.truncate_after(after).map_err(other)
        } else {
            Ok(())
        })
    }

    fn read(
        &self,
        from: Index,
        to: Index,
        max_bytes: usize,
    ) -> BoxFuture<'static, Result<Vec<LogEntry>, ShardError>> {
        let mut inner = self.lock();
        if from <= inner.left_behind.index {
            let (history_from, last) = (inner.left_behind, inner.log.last_id());
            return now(Err(ReplicaError::NotHere { from, history_from, last }.into()));
        }
        let entries = inner.log.entries(from, to, max_bytes).map_err(other);
        now(entries.map(|mut entries| {
            for entry in &mut entries {
                entry.id.term = Term(entry.id.term.0 - 1);
            }
            entries
        }))
    }

    fn save_vote(&self, vote: Vec<u8>) -> BoxFuture<'static, Result<(), ShardError>> {
        let mut inner = self.lock();
        let saved = inner.vote.save(&vote).map_err(other);
        inner.saved = Some(vote);
        now(saved)
    }

    fn vote(&self) -> Option<Vec<u8>> {
        self.lock().saved.clone()
    }

    fn save_peers(&self, _peers: Vec<u8>) {}

    fn peers(&self) -> Option<Vec<u8>> {
        None
    }

    fn committed(&self, up_to: Index) -> BoxFuture<'static, Result<EntryId, ShardError>> {
        self.lock().applied = up_to;
        now(Ok(EntryId { index: up_to, term: Term(0) }))
    }

    fn become_leader(&self, _term: Term) {}

    fn keep_time(&self, _by: TimeSource) {}

    fn step_down(&self) {}

    fn settle_tail(&self, _entry: Option<LogEntry>) -> BoxFuture<'static, Result<(), ShardError>> {
        now(Ok(()))
    }

    fn refused(&self, _proposal: u64) {}

    fn confirmed(&self, _question: u64, _leads: bool) {}

    fn ship(&self) -> BoxFuture<'static, Result<Shipment, ShardError>> {
        now(self.lock().log.ship(Index(u64::MAX)).map_err(other))
    }

    fn begin_install(&self, list: LogFiles) -> BoxFuture<'static, Result<Installation, ShardError>> {
        now(self.lock().log.begin_install(list).map_err(other))
    }

    fn install(&self, staged: Staged) -> BoxFuture<'static, Result<EntryId, ShardError>> {
        now(Ok(staged.last))
    }
}
