//! The way of one message to its receivers, and what a caller remembers of it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use beamlog_log::StreamId;
use bytes::Bytes;

use super::index::{Marks, Matches, Target};
use super::{Envelope, Interest, Offered, Subscriber};

/// Slots at first: most connections publish to a few subjects, and thousands of them only once.
const SLOTS_MIN: usize = 8;
const SLOTS_MAX: usize = 256;
/// A result with more targets than this is not kept: the cache is bounded by slots × targets.
const TARGETS_KEPT_MAX: usize = 1024;

/// What became of a routed message.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Routed {
    /// Subscriptions that took it.
    pub receivers: usize,
    /// The stream that stores it. The caller hands it over.
    pub capture: Option<StreamId>,
}

/// What one caller (a connection, the driver) remembers between messages: where recent subjects went,
/// and whom it has yet to flush. Bounded; flushes what is left when dropped.
#[derive(Default)]
pub struct RouteCache {
    slots: Vec<Slot>,
    /// Misses since the cache last grew.
    misses: usize,
    touched: Vec<Arc<dyn Subscriber>>,
    congested: bool,
    draw: u32,
}

/// Where one subject goes. Its parts are reused, so that a changing set of subjects does not allocate.
#[derive(Default)]
struct Slot {
    subject: Vec<u8>,
    hash: u64,
    marks: Marks,
    version: u64,
    matches: Collected,
}

#[derive(Default)]
struct Collected {
    plain: Vec<Target>,
    /// The first `groups_used` are this subject's.
    groups: Vec<(Bytes, Vec<Target>)>,
    groups_used: usize,
    capture: Option<StreamId>,
}

impl Matches for Collected {
    fn plain(&mut self, targets: &[Target]) {
        self.plain.extend_from_slice(targets);
    }

    // A group is one, under whatever filters its members subscribed.
    fn group(&mut self, name: &Bytes, members: &[Target]) {
        if let Some((_, all)) = self.groups.iter_mut().take(self.groups_used).find(|(have, _)| have == name) {
            all.extend_from_slice(members);
            return;
        }
        match self.groups.get_mut(self.groups_used) {
            Some((free, all)) => {
                free.clone_from(name);
                all.extend_from_slice(members);
            }
            None => self.groups.push((name.clone(), members.to_vec())),
        }
        self.groups_used += 1;
    }

    fn capture(&mut self, stream: StreamId) {
        self.capture = Some(stream);
    }
}

impl Collected {
    fn clear(&mut self) {
        self.plain.clear();
        for (_, members) in &mut self.groups {
            members.clear();
        }
        self.groups_used = 0;
        self.capture = None;
    }

    fn targets(&self) -> usize {
        self.plain.len() + self.groups.iter().map(|(_, members)| members.len()).sum::<usize>()
    }
}

impl std::fmt::Debug for RouteCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RouteCache").field("slots", &self.slots.len()).finish_non_exhaustive()
    }
}

impl Drop for RouteCache {
    fn drop(&mut self) {
        self.flush();
    }
}

impl RouteCache {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The batch ends: every subscriber that took something since the last time is flushed once.
    pub fn flush(&mut self) {
        for subscriber in self.touched.drain(..) {
            subscriber.flush();
        }
        if self.touched.capacity() > TARGETS_KEPT_MAX {
            self.touched = Vec::new();
        }
    }

    /// Whether a receiver was congested since this was last asked.
    pub fn take_congested(&mut self) -> bool {
        std::mem::take(&mut self.congested)
    }

    /// Forgets where subjects went, and with it the subscribers that have left.
    pub fn forget(&mut self) {
        self.slots = Vec::new();
        self.misses = 0;
    }

    /// The slot in which the subject is, or will be.
    fn slot(&mut self, hash: u64) -> usize {
        if self.slots.is_empty() || (self.misses > self.slots.len() * 2 && self.slots.len() < SLOTS_MAX) {
            let wanted = (self.slots.len() * 4).clamp(SLOTS_MIN, SLOTS_MAX);
            self.slots.clear();
            self.slots.resize_with(wanted, Slot::default);
            self.misses = 0;
        }
        // The lower bits: the upper ones chose the shard.
        usize::from(u16::from_le_bytes([hash.to_le_bytes()[0], hash.to_le_bytes()[1]]))
            & (self.slots.len() - 1)
    }
}

/// Xorshift: a fair spread over a queue group is all that is asked of it. 0 is a state that has not begun.
fn draw(state: &mut u32, count: usize) -> usize {
    let mut next = *state;
    next ^= next << 13;
    next ^= next >> 17;
    next ^= next << 5;
    *state = next;
    usize::try_from(next).unwrap_or_default() % count.max(1)
}

impl Interest {
    /// Offers a message to everybody who wants `routed_by`: all plain subscriptions, and one of each queue
    /// group. Nobody is flushed before [`RouteCache::flush`].
    pub fn route(&self, cache: &mut RouteCache, routed_by: &[u8], message: &Envelope<'_>) -> Routed {
        let hash = self.index.hash(routed_by);
        let at = cache.slot(hash);
        let RouteCache { slots, misses, touched, congested, draw: random } = cache;
        let slot = &mut slots[at];
        if slot.hash != hash || slot.subject != routed_by || self.index.version(slot.marks) != slot.version {
            *misses += 1;
            slot.subject.clear();
            slot.subject.extend_from_slice(routed_by);
            slot.hash = hash;
            slot.marks = self.index.marks(routed_by, hash);
            // Before collecting: a change in between makes the result stale, not wrong for good.
            slot.version = self.index.version(slot.marks);
            slot.matches.clear();
            self.index.collect_hashed(routed_by, hash, &mut slot.matches);
        }
        let matches = &slot.matches;
        let mut receivers = 0;
        let mut offer = |target: &Target| match target.subscriber.offer(target.id, message) {
            Offered::Taken => {
                touched.push(Arc::clone(&target.subscriber));
                true
            }
            Offered::Joined => true,
            Offered::Congested => {
                *congested = true;
                true
            }
            Offered::Refused => false,
        };
        for target in &matches.plain {
            receivers += usize::from(offer(target));
        }
        if *random == 0 && matches.groups_used > 0 {
            // Each cache begins elsewhere: a connection may live for one message only, and thousands of them
            // must not all choose the same member.
            let begun = self.draws.fetch_add(1, Ordering::Relaxed);
            *random = begun.wrapping_add(1).wrapping_mul(0x9e37_79b9) | 1;
        }
        for (_, members) in matches.groups.iter().take(matches.groups_used) {
            let first = draw(random, members.len());
            let (before, from) = members.split_at(first);
            receivers += usize::from(from.iter().chain(before).any(&mut offer));
        }
        let capture = matches.capture;
        if slot.matches.targets() > TARGETS_KEPT_MAX {
            *slot = Slot::default();
        }
        Routed { receivers, capture }
    }

    /// The id of a plain subscription of this very subscriber that matches the subject, if there is one.
    #[must_use]
    pub fn plain_subscription(&self, subject: &[u8], subscriber: &Arc<dyn Subscriber>) -> Option<u64> {
        let mut matches = Collected::default();
        self.index.collect(subject, &mut matches);
        matches
            .plain
            .iter()
            .find(|target| Arc::ptr_eq(&target.subscriber, subscriber))
            .map(|target| target.id)
    }
}
