//! openraft's suite for log storages and state machines.

use std::sync::Arc;

use beamlog_log::Index;
use openraft::{
    AsyncRuntime,
    testing::log::{StoreBuilder, Suite},
};

use super::direct::DirectShard;
use crate::{
    raft::{Books, Machine, Shard, Storage, Types},
    runtime::Runtime,
};

/// Entries kept in memory: with none, all are read from the log.
struct Builder {
    recent_bytes: usize,
}

impl StoreBuilder<Types, Storage, Machine> for Builder {
    async fn build(&self) -> Result<((), Storage, Machine), openraft::StorageError<Types>> {
        let shard: Arc<dyn Shard> = Arc::new(DirectShard::new());
        let books = Arc::new(Books::new(0, Arc::clone(&shard)));
        // The suite folds entries without a leader that committed them.
        books.told(Index(u64::MAX));
        let storage = Storage::open(Arc::clone(&shard), Arc::clone(&books), self.recent_bytes).await.unwrap();
        let machine = Machine::open(shard, books, storage.clone()).await.unwrap();
        Ok(((), storage, machine))
    }
}

#[test]
fn openraft_accepts_the_log_from_memory() {
    Runtime::new(1).block_on(Suite::test_all(Builder { recent_bytes: 16 << 20 })).unwrap();
}

#[test]
fn openraft_accepts_the_log_from_disk() {
    Runtime::new(1).block_on(Suite::test_all(Builder { recent_bytes: 0 })).unwrap();
}
