//! openraft's state machine over a shard: what is committed is folded by the driver, not here.
//!
//! A "snapshot" is a name only: the files of the shard as they lie, fetched by who needs them when they need
//! them (`catchup`). So building one costs nothing, and it may be newer when it is sent than when it was built.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use beamlog_log::{EntryId, Index};
use futures_util::{Stream, StreamExt};
use openraft::{
    RaftSnapshotBuilder,
    entry::RaftEntry,
    storage::{EntryResponder, RaftStateMachine, Snapshot, SnapshotMeta},
    type_config::alias::{SnapshotMetaOf, SnapshotOf},
};

use super::{
    Books, LogId, Shard, Staged, Storage, Types, control, entry_id, log_id, storage::StorageError,
    types::StoredMembership,
};

/// Entries folded with one word to the driver.
const APPLY_ENTRIES: usize = 256;

/// openraft's state machine. Clones share everything.
#[derive(Clone)]
pub(crate) struct Machine {
    shard: Arc<dyn Shard>,
    books: Arc<Books>,
    storage: Storage,
    state: Arc<Mutex<State>>,
}

#[derive(Clone, Default)]
struct State {
    applied: Option<LogId>,
    membership: StoredMembership,
    built: Option<SnapshotMetaOf<Types>>,
}

impl Machine {
    pub(crate) async fn open(
        shard: Arc<dyn Shard>,
        books: Arc<Books>,
        storage: Storage,
    ) -> Result<Self, StorageError> {
        let state = shard.state().await?;
        let membership = match &state.replication {
            Some((id, bytes)) => {
                let membership = control::membership_of(bytes)?;
                books.membership(*id, membership.clone());
                StoredMembership::new(log_id(*id), membership)
            }
            None => StoredMembership::default(),
        };
        // What this node folded before it stopped was committed then.
        books.told(state.applied.index);
        let state = State { applied: log_id(state.applied), membership, built: None };
        Ok(Self { shard, books, storage, state: Arc::new(Mutex::new(state)) })
    }

    fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The last entry that is folded into the state.
    pub(crate) fn applied(&self) -> EntryId {
        self.with(|state| entry_id(state.applied.as_ref()))
    }

    async fn fold(&mut self, last: LogId, membership: Option<StoredMembership>) -> Result<(), io::Error> {
        let id = entry_id(Some(&last));
        self.books.committed(id).map_err(io::Error::other)?;
        self.shard.committed(id.index).await.map_err(io::Error::other)?;
        self.with(|state| {
            state.applied = Some(last);
            if let Some(membership) = membership {
                state.membership = membership;
            }
        });
        Ok(())
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = Staged;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok(self.with(|state| (state.applied, state.membership.clone())))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + Send,
    {
        let mut last = None;
        let mut membership = None;
        let mut waiting = Vec::new();
        let mut count = 0;
        loop {
            let next = entries.next().await.transpose()?;
            let ends = next.is_none();
            if let Some((entry, responder)) = next {
                let id = entry.log_id();
                if let Some(change) = entry.get_membership() {
                    membership = Some(StoredMembership::new(Some(id), change));
                }
                waiting.extend(responder);
                last = Some(id);
                count += 1;
            }
            if (ends || count >= APPLY_ENTRIES)
                && let Some(last) = last.take()
            {
                self.fold(last, membership.take()).await?;
                waiting.drain(..).for_each(|responder| responder.send(()));
                count = 0;
            }
            if ends {
                return Ok(());
            }
        }
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<Types>,
        staged: Staged,
    ) -> Result<(), io::Error> {
        let told = entry_id(meta.last_log_id.as_ref());
        let membership = &meta.last_membership;
        let governing =
            membership.log_id().as_ref().map(|id| (entry_id(Some(id)), membership.membership().clone()));
        let encoded = match &governing {
            Some((id, membership)) => {
                Some((*id, control::encode_membership(membership).map_err(io::Error::other)?))
            }
            None => None,
        };
        let staged = Staged { membership: encoded, ..staged };
        let last = self.shard.install(staged).await.map_err(io::Error::other)?;
        if last != told {
            let reason = format!("the copied state ends at {last:?}, not at {told:?} as was said");
            return Err(io::Error::other(reason));
        }
        self.storage.restart_at(last);
        self.books.installed(last, governing);
        self.with(|state| {
            state.applied = meta.last_log_id;
            state.membership = meta.last_membership.clone();
            state.built = Some(meta.clone());
        });
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf<Types, Staged>>, io::Error> {
        Ok(self.with(|state| state.built.clone()).map(named))
    }
}

impl RaftSnapshotBuilder<Types> for Machine {
    type SnapshotData = Staged;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<Types, Staged>, io::Error> {
        let meta = self.with(|state| {
            let meta = SnapshotMeta { last_log_id: state.applied, last_membership: state.membership.clone() };
            state.built = Some(meta.clone());
            meta
        });
        Ok(named(meta))
    }
}

/// A state by its name; whoever needs it fetches it.
fn named(meta: SnapshotMetaOf<Types>) -> SnapshotOf<Types, Staged> {
    let last = entry_id(meta.last_log_id.as_ref());
    Snapshot { meta, snapshot: Staged { last, ..Staged::default() } }
}

/// The index of openraft's that names an entry of ours.
pub(crate) fn raft_index(index: Index) -> Option<u64> {
    index.0.checked_sub(1)
}
