//! Writes to many sockets on behalf of the driver.
//!
//! When a sync ends, acks and deliveries for many connections leave at once. The driver puts them into the
//! connections' buffers; if it also wrote them, its next batch would wait for one system call per
//! connection. So it hands the connections over and one task writes, while the next sync runs. When the
//! task is behind, a connection's next acks join those that wait: the busier the machine, the fewer writes.
//!
//! Invariant: who is handed over is flushed, also when the task has ended.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use beamlog_router::interest::{Interest, Subscriber};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// Flushes between two chances for other tasks.
const TURN: usize = 64;

#[derive(Default)]
struct Flusher {
    waiting: Mutex<Waiting>,
    wake: Notify,
}

#[derive(Default)]
struct Waiting {
    receivers: Vec<Arc<dyn Subscriber>>,
    ended: bool,
}

/// Begins to flush for `interest`, unless another endpoint does already.
pub(super) fn start(interest: &Interest) -> AbortHandle {
    let flusher = Arc::new(Flusher::default());
    let task = tokio::spawn(run(Arc::clone(&flusher)));
    interest.flush_by(Box::new(move |receivers| flusher.add(receivers)));
    task.abort_handle()
}

async fn run(flusher: Arc<Flusher>) {
    let end = End(flusher);
    let mut receivers = Vec::new();
    loop {
        end.0.wake.notified().await;
        while end.0.take(&mut receivers) {
            receivers.drain(..).for_each(|receiver| receiver.flush());
            tokio::task::yield_now().await;
        }
    }
}

impl Flusher {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, receivers: &mut Vec<Arc<dyn Subscriber>>) {
        let mut waiting = self.lock();
        if waiting.ended {
            drop(waiting);
            receivers.drain(..).for_each(|receiver| receiver.flush());
            return;
        }
        waiting.receivers.append(receivers);
        drop(waiting);
        self.wake.notify_one();
    }

    /// Takes some of those that wait. `false` when there are none.
    fn take(&self, into: &mut Vec<Arc<dyn Subscriber>>) -> bool {
        let mut waiting = self.lock();
        let count = waiting.receivers.len().min(TURN);
        into.extend(waiting.receivers.drain(..count));
        count > 0
    }
}

/// However the task ends: from here on who hands over flushes by itself.
struct End(Arc<Flusher>);

impl Drop for End {
    fn drop(&mut self) {
        let mut waiting = self.0.lock();
        waiting.ended = true;
        let left = std::mem::take(&mut waiting.receivers);
        drop(waiting);
        left.iter().for_each(|receiver| receiver.flush());
    }
}
