//! What this node wants, for the other nodes of its cluster: every filter, and queue group of a filter, that
//! somebody here subscribed to or a stream here captures.
//!
//! Invariant: after each change, and before the call that made it returns, whoever is told knows what the
//! index holds. So changes are looked up again under one lock, not carried through it. Costs one load while
//! nobody is told.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Interest;
use super::index::Index;

/// Is told of a filter and a queue group (empty is none): whether this node wants it now.
pub type OnInterest = Box<dyn Fn(&[u8], &[u8], bool) + Send + Sync>;

/// For whom a message from a peer is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PeerTarget<'a> {
    /// For plain subscriptions, and the stream that captures it.
    Plain,
    /// For one member of this queue group.
    Group(&'a [u8]),
}

#[derive(Default)]
pub(super) struct Mesh {
    told: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Filters and groups of which it was said that they are wanted.
    wanted: BTreeSet<(Vec<u8>, Vec<u8>)>,
    tell: Option<OnInterest>,
}

impl Mesh {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something of this filter and group came or went.
    pub(super) fn changed(&self, index: &Index, filter: &[u8], group: &[u8]) {
        if self.told.load(Ordering::SeqCst) {
            self.state().look(index, filter, group);
        }
    }
}

impl State {
    fn look(&mut self, index: &Index, filter: &[u8], group: &[u8]) {
        let present = index.is_local(filter, group);
        let key = (filter.to_vec(), group.to_vec());
        let changed = if present { self.wanted.insert(key) } else { self.wanted.remove(&key) };
        if changed && let Some(tell) = &self.tell {
            tell(filter, group, present);
        }
    }
}

impl Interest {
    /// Sets who is told what this node wants, subscriptions of peers not counted: everything there is now,
    /// during this call, and then every first and last of a filter and queue group, and every capture. Calls
    /// come in the order of the changes, on the thread that makes them, before it goes on; the callee must not
    /// block and must not call back into interest.
    pub fn on_interest(&self, tell: OnInterest) {
        let mut state = self.mesh.state();
        // Said before looking: a change that comes now either is seen here or waits for the lock.
        self.mesh.told.store(true, Ordering::SeqCst);
        state.tell = Some(tell);
        state.wanted.clear();
        let mut found = Vec::new();
        self.index.each_local(&mut |filter, group| found.push((filter.to_vec(), group.to_vec())));
        // In an order that does not depend on hashes.
        found.sort_unstable();
        for (filter, group) in found {
            state.look(&self.index, &filter, &group);
        }
    }

    /// Shows what this node wants, as it was told last: filters and queue groups (empty is none), in order. No
    /// change is told while `with` runs, so that a peer which is added there misses none and hears none twice.
    /// The same holds for `with` as for the one who is told.
    pub fn local_interest<R>(&self, with: impl FnOnce(&mut dyn Iterator<Item = (&[u8], &[u8])>) -> R) -> R {
        let state = self.mesh.state();
        let mut wanted = state.wanted.iter().map(|(filter, group)| (&filter[..], &group[..]));
        with(&mut wanted)
    }
}
