//! openraft's own suite over our log, and what stands between.

mod books;
mod copies;
mod direct;
mod left_behind;
mod suite;

use std::{sync::Arc, time::Duration};

use openraft::Config;

use self::direct::{DirectShard, SHARD};
use crate::{
    peer::PeerTransport,
    raft::{Books, Links, Machine, Raft, Shard, Storage, Timing},
};

/// Raft over a log of ours, without what a cluster does by itself.
struct Parts {
    raft: Raft,
    shard: Arc<dyn Shard>,
    books: Arc<Books>,
    storage: Storage,
    machine: Machine,
}

impl Parts {
    /// `recent_bytes` of entries are kept in memory.
    async fn build(
        me: u64,
        shard: Arc<DirectShard>,
        transport: &Arc<dyn PeerTransport>,
        config: Config,
        recent_bytes: usize,
    ) -> Self {
        let shard: Arc<dyn Shard> = shard;
        let books = Arc::new(Books::new(me, Arc::clone(&shard)));
        let storage = Storage::open(Arc::clone(&shard), Arc::clone(&books), recent_bytes).await.unwrap();
        let machine = Machine::open(Arc::clone(&shard), Arc::clone(&books), storage.clone()).await.unwrap();
        let wait = Duration::from_secs(5);
        let links = Links {
            me,
            shard: SHARD,
            transport: Arc::clone(transport),
            books: Arc::clone(&books),
            storage: storage.clone(),
            #[cfg(feature = "planted-bugs")]
            planted_bug: None,
            timing: Timing { append: wait, copy: wait, copy_poll: wait, copy_stalled: wait },
        };
        let config = Arc::new(config.validate().unwrap());
        let raft = Raft::build(me, config, links, storage.clone(), machine.clone()).await.unwrap();
        raft.run();
        Self { raft, shard, books, storage, machine }
    }
}
