//! When the engine's rows go to the checkpoint store. It only saves replay: a store that fails is left
//! alone, and the log has everything.

use std::time::{Duration, Instant};

use beamlog_log::{CheckpointStore, Index, Log};

use crate::engine::Engine;

/// How long changes may stay out of the checkpoint.
const SAVE_EVERY: Duration = Duration::from_secs(30);

pub(crate) struct Checkpoints {
    store: Option<CheckpointStore>,
    saved: Index,
    saved_at: Instant,
    /// Keys of an old checkpoint that was not used.
    stale: Vec<Vec<u8>>,
    /// A new segment has begun: what was replayed so far need not be any more.
    wished: bool,
}

impl Checkpoints {
    pub(super) fn new(
        store: Option<CheckpointStore>,
        saved: Index,
        stale: Vec<Vec<u8>>,
        now: Instant,
    ) -> Self {
        Self { store, saved, saved_at: now, stale, wished: false }
    }

    /// The index of the last one.
    pub(super) fn index(&self) -> Index {
        self.saved
    }

    pub(super) fn wish(&mut self) {
        self.wished = true;
    }

    pub(super) fn is_due(&self, now: Instant, last: Index) -> bool {
        self.due_in(now, last).is_some_and(|left| left.is_zero())
    }

    /// How long until the next one; `None` when nothing changed.
    pub(super) fn due_in(&self, now: Instant, last: Index) -> Option<Duration> {
        if self.store.is_none() || last == self.saved {
            return None;
        }
        if self.wished {
            return Some(Duration::ZERO);
        }
        Some(SAVE_EVERY.saturating_sub(now.saturating_duration_since(self.saved_at)))
    }

    /// Saves what changed. Everything in the log is applied, and nothing is gathered.
    pub(super) fn save(&mut self, engine: &mut Engine, log: &Log, now: Instant) {
        let Some(store) = &mut self.store else { return };
        let index = log.last_index();
        if index == self.saved {
            return;
        }
        let mut changes = engine.take_changes();
        changes.deletes.append(&mut self.stale);
        self.wished = false;
        self.saved_at = now;
        match store.save(index, log.checksum_at_last(), changes.puts, changes.deletes) {
            Ok(()) => self.saved = index,
            Err(error) => {
                tracing::warn!(err = %error, "no more checkpoints: the next start replays the log");
                self.store = None;
            }
        }
    }

    /// The state is another one now. What is there is of the old one; the next start sees that it does not go
    /// with the log, and begins anew.
    pub(super) fn give_up(&mut self) {
        if let Some(store) = self.store.take()
            && let Err(error) = store.close()
        {
            tracing::warn!(err = %error, "closing the checkpoint store");
        }
    }

    pub(super) fn close(self) {
        if let Some(store) = self.store
            && let Err(error) = store.close()
        {
            tracing::warn!(err = %error, "closing the checkpoint store");
        }
    }
}
