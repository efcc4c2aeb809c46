//! The driver of the router as a shard.

use beamlog_log::{EntryId, Index, Installation, LogEntry, LogFiles, ShardId, Shipment, Term};
use beamlog_router::replica::{Done, Replica, ReplicaEntry, ReplicaError, TimeSource};
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

use super::{Shard, ShardError, ShardState, Staged, shard::Appended};

/// A shard whose driver runs in this process.
pub(crate) struct ReplicaShard {
    id: ShardId,
    replica: Replica,
}

impl ReplicaShard {
    pub(crate) const fn new(id: ShardId, replica: Replica) -> Self {
        Self { id, replica }
    }
}

/// An answer that comes by a callback.
fn answer<T: Send + 'static>(ask: impl FnOnce(Done<T>)) -> BoxFuture<'static, Result<T, ShardError>> {
    let (sender, receiver) = oneshot::channel();
    // Whoever asked may not wait any more.
    ask(Box::new(move |answer| drop(sender.send(answer))));
    Box::pin(async move { receiver.await.map_err(|_gone| ShardError::Gone) })
}

fn flat<T: Send + 'static>(
    asked: BoxFuture<'static, Result<Result<T, ReplicaError>, ShardError>>,
) -> BoxFuture<'static, Result<T, ShardError>> {
    Box::pin(async move { Ok(asked.await??) })
}

impl Shard for ReplicaShard {
    fn id(&self) -> ShardId {
        self.id
    }

    fn state(&self) -> BoxFuture<'static, Result<ShardState, ShardError>> {
        answer(|done| self.replica.state(done))
    }

    fn append(&self, entries: Vec<ReplicaEntry>, done: Appended) {
        self.replica.append(entries, Box::new(move |appended| done(appended.map_err(ShardError::from))));
    }

    fn truncate_after(&self, after: Index) -> BoxFuture<'static, Result<(), ShardError>> {
        flat(answer(|done| self.replica.truncate_after(after, done)))
    }

    fn read(
        &self,
        from: Index,
        to: Index,
        max_bytes: usize,
    ) -> BoxFuture<'static, Result<Vec<LogEntry>, ShardError>> {
        flat(answer(|done| self.replica.read(from, to, max_bytes, done)))
    }

    fn save_vote(&self, vote: Vec<u8>) -> BoxFuture<'static, Result<(), ShardError>> {
        flat(answer(|done| self.replica.save_vote(vote, done)))
    }

    fn vote(&self) -> Option<Vec<u8>> {
        self.replica.vote()
    }

    fn save_peers(&self, peers: Vec<u8>) {
        self.replica.save_peers(peers);
    }

    fn peers(&self) -> Option<Vec<u8>> {
        self.replica.peers()
    }

    fn committed(&self, up_to: Index) -> BoxFuture<'static, Result<EntryId, ShardError>> {
        flat(answer(|done| self.replica.committed(up_to, done)))
    }

    fn become_leader(&self, term: Term) {
        self.replica.become_leader(term);
    }

    fn step_down(&self) {
        self.replica.step_down();
    }

    fn keep_time(&self, by: TimeSource) {
        self.replica.keep_time(by);
    }

    fn settle_tail(&self, entry: Option<LogEntry>) -> BoxFuture<'static, Result<(), ShardError>> {
        flat(answer(|done| self.replica.settle_tail(entry, done)))
    }

    fn refused(&self, proposal: u64) {
        self.replica.refused(proposal);
    }

    fn confirmed(&self, question: u64, leads: bool) {
        self.replica.confirmed(question, leads);
    }

    fn ship(&self) -> BoxFuture<'static, Result<Shipment, ShardError>> {
        flat(answer(|done| self.replica.ship(done)))
    }

    fn begin_install(&self, list: LogFiles) -> BoxFuture<'static, Result<Installation, ShardError>> {
        flat(answer(|done| self.replica.begin_install(list, done)))
    }

    fn install(&self, staged: Staged) -> BoxFuture<'static, Result<EntryId, ShardError>> {
        let Some(installation) = staged.installation else {
            let error = ShardError::Other("a copy is a name only, and was not fetched".to_owned());
            return Box::pin(async move { Err(error) });
        };
        let ends = installation.list().last;
        if ends != staged.last {
            let error = ShardError::Other(format!("a copy ends at {ends:?}, not at {:?}", staged.last));
            return Box::pin(async move { Err(error) });
        }
        flat(answer(|done| self.replica.install(installation, done)))
    }
}
