//! Watched subjects: a push consumer delivers only while somebody listens. The drivers of a node's shards each watch
//! their own, and are told of no others.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::index::Index;
use super::{OnChange, Watcher};
use crate::subject;

#[derive(Default)]
pub(super) struct Watched {
    /// How many pairs are watched, so that a subscription costs nothing while none are.
    count: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By subject and group.
    pairs: BTreeMap<(Vec<u8>, Vec<u8>), Pair>,
    tell: Vec<OnChange>,
}

struct Pair {
    /// How often each watches it.
    watchers: BTreeMap<Watcher, usize>,
    present: bool,
}

fn present(index: &Index, subject: &[u8], group: &[u8]) -> bool {
    index.has_interest(subject, (!group.is_empty()).then_some(group))
}

impl Watched {
    pub(super) fn on_change(&self, tell: OnChange) -> Watcher {
        let mut state = self.state();
        state.tell.push(tell);
        Watcher(state.tell.len() - 1)
    }

    pub(super) fn watch(&self, index: &Index, watcher: Watcher, subject: &[u8], group: &[u8]) -> bool {
        let mut state = self.state();
        // Counted before looking: a subscription that comes now either is seen here or sees the count.
        self.count.fetch_add(1, Ordering::SeqCst);
        let pair = state
            .pairs
            .entry((subject.to_vec(), group.to_vec()))
            .or_insert_with(|| Pair { watchers: BTreeMap::new(), present: present(index, subject, group) });
        *pair.watchers.entry(watcher).or_default() += 1;
        pair.present
    }

    pub(super) fn unwatch(&self, watcher: Watcher, subject: &[u8], group: &[u8]) {
        let mut state = self.state();
        let key = (subject.to_vec(), group.to_vec());
        let Some(pair) = state.pairs.get_mut(&key) else { return };
        let Some(count) = pair.watchers.get_mut(&watcher) else { return };
        *count -= 1;
        if *count == 0 {
            pair.watchers.remove(&watcher);
        }
        if pair.watchers.is_empty() {
            state.pairs.remove(&key);
        }
        self.count.fetch_sub(1, Ordering::SeqCst);
    }

    /// A subscription with this filter came or went.
    pub(super) fn changed(&self, index: &Index, filter: &[u8]) {
        if self.count.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut state = self.state();
        let State { pairs, tell } = &mut *state;
        let look = |subject: &[u8], group: &[u8], pair: &mut Pair| {
            let now = present(index, subject, group);
            if now != pair.present {
                pair.present = now;
                for tell in pair.watchers.keys().filter_map(|watcher| tell.get(watcher.0)) {
                    tell(subject, group, now);
                }
            }
        };
        if subject::is_literal(filter) {
            let from = (filter.to_vec(), Vec::new());
            let same = pairs.range_mut(from..).take_while(|((subject, _), _)| subject == filter);
            for ((subject, group), pair) in same {
                look(subject, group, pair);
            }
        } else {
            for ((subject, group), pair) in pairs.iter_mut() {
                if subject::matches(filter, subject) {
                    look(subject, group, pair);
                }
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
