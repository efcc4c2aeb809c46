//! The way of one message to its receivers, and what a caller remembers of it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use beamlog_log::StreamId;
use bytes::Bytes;

use super::index::{Marks, Matches, Target};
use super::{Envelope, Interest, Offered, PeerTarget, Subscriber};

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
    groups: Vec<Group>,
    groups_used: usize,
    capture: Option<StreamId>,
}

/// The members of a queue group that match one subject.
#[derive(Default)]
struct Group {
    name: Bytes,
    /// Those of this node first, then peers.
    members: Vec<Target>,
    /// How many are peers.
    peers: usize,
}

impl Matches for Collected {
    fn plain(&mut self, targets: &[Target]) {
        self.plain.extend_from_slice(targets);
    }

    // A group is one, under whatever filters its members subscribed.
    fn group(&mut self, name: &Bytes, members: &[Target]) {
        let known = self.groups.iter_mut().take(self.groups_used).find(|group| group.name == name);
        if let Some(group) = known {
            group.members.extend_from_slice(members);
            return;
        }
        match self.groups.get_mut(self.groups_used) {
            Some(free) => {
                free.name.clone_from(name);
                free.members.extend_from_slice(members);
            }
            None => self.groups.push(Group { name: name.clone(), members: members.to_vec(), peers: 0 }),
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
        for group in &mut self.groups {
            group.members.clear();
            group.peers = 0;
        }
        self.groups_used = 0;
        self.capture = None;
    }

    fn targets(&self) -> usize {
        self.plain.len() + self.groups.iter().map(|group| group.members.len()).sum::<usize>()
    }

    /// A peer stands for everybody who is there: it is a target once, and behind those of this node.
    fn put_peers_last(&mut self) {
        once_each_peer(&mut self.plain);
        for group in self.groups.iter_mut().take(self.groups_used) {
            group.peers = once_each_peer(&mut group.members);
        }
    }
}

/// Puts peers last, each with the largest of its weights. Returns how many there are.
fn once_each_peer(targets: &mut Vec<Target>) -> usize {
    if targets.iter().all(Target::is_local) {
        return 0;
    }
    let mut peers: Vec<Target> = Vec::new();
    targets.retain(|target| {
        if target.is_local() {
            return true;
        }
        match peers.iter_mut().find(|peer| Arc::ptr_eq(&peer.subscriber, &target.subscriber)) {
            Some(peer) => peer.weight = peer.weight.max(target.weight),
            None => peers.push(target.clone()),
        }
        false
    });
    let count = peers.len();
    targets.append(&mut peers);
    count
}

impl Group {
    /// The members in the order in which they are asked, the first drawn: of this node if there is one here,
    /// else a peer by its weight.
    fn drawn<'a>(&'a self, random: &mut u32) -> impl Iterator<Item = &'a Target> + use<'a> {
        let (here, peers) = self.members.split_at(self.members.len() - self.peers);
        let (before, from) = here.split_at(draw(random, here.len()));
        let first = if here.is_empty() { draw_weighted(random, peers) } else { 0 };
        let (peers_before, peers_from) = peers.split_at(first);
        from.iter().chain(before).chain(peers_from).chain(peers_before)
    }
}

fn draw_weighted(random: &mut u32, peers: &[Target]) -> usize {
    let total = peers.iter().map(|peer| peer.weight as usize).sum();
    let mut left = draw(random, total);
    for (at, peer) in peers.iter().enumerate() {
        match left.checked_sub(peer.weight as usize) {
            Some(rest) => left = rest,
            None => return at,
        }
    }
    0
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

    /// Whom the next flush is for.
    pub(super) const fn touched(&mut self) -> &mut Vec<Arc<dyn Subscriber>> {
        &mut self.touched
    }

    /// Whom the next flush is for, and whether a receiver was congested.
    pub(super) const fn touched_and_congested(&mut self) -> (&mut Vec<Arc<dyn Subscriber>>, &mut bool) {
        (&mut self.touched, &mut self.congested)
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

impl Slot {
    fn forget_if_large(&mut self) {
        if self.matches.targets() > TARGETS_KEPT_MAX {
            *self = Self::default();
        }
    }
}

/// Whether the target took it.
pub(super) fn offer(
    target: &Target,
    routed_by: &[u8],
    message: &Envelope<'_>,
    touched: &mut Vec<Arc<dyn Subscriber>>,
    congested: &mut bool,
) -> bool {
    let offered = if target.is_local() {
        target.subscriber.offer(target.id, message)
    } else {
        target.subscriber.offer_to_peer(target.id, routed_by, message)
    };
    match offered {
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
    /// group. Nobody is flushed before [`RouteCache::flush`]. On a subject that is internal nobody hears it.
    pub fn route(&self, cache: &mut RouteCache, routed_by: &[u8], message: &Envelope<'_>) -> Routed {
        // A client has more ways to name a subject than PUB: replies, deliver subjects, republishing.
        if self.is_internal(routed_by) {
            return Routed { receivers: 0, capture: None };
        }
        self.route_as_node(cache, routed_by, message)
    }

    /// As [`Self::route`], for what the node itself has to say: on internal subjects too.
    pub fn route_as_node(&self, cache: &mut RouteCache, routed_by: &[u8], message: &Envelope<'_>) -> Routed {
        let at = self.look_up(cache, routed_by);
        let RouteCache { slots, touched, congested, draw: random, .. } = cache;
        let slot = &mut slots[at];
        let matches = &slot.matches;
        let mut receivers = 0;
        let mut offer = |target: &Target| offer(target, routed_by, message, touched, congested);
        for target in &matches.plain {
            receivers += usize::from(offer(target));
        }
        if matches.groups_used > 0 {
            self.begin_draws(random);
        }
        for group in matches.groups.iter().take(matches.groups_used) {
            receivers += usize::from(group.drawn(random).any(&mut offer));
        }
        let capture = matches.capture;
        slot.forget_if_large();
        Routed { receivers, capture }
    }

    /// Offers a message that came from a peer to those of this node for whom it is: it never goes to a peer
    /// again. As with [`Self::route`], a capture is for the caller.
    pub fn route_from_peer(
        &self,
        cache: &mut RouteCache,
        routed_by: &[u8],
        message: &Envelope<'_>,
        target: PeerTarget<'_>,
    ) -> Routed {
        let at = self.look_up(cache, routed_by);
        let RouteCache { slots, touched, congested, draw: random, .. } = cache;
        let slot = &mut slots[at];
        let matches = &slot.matches;
        let mut offer = |target: &Target| offer(target, routed_by, message, touched, congested);
        let routed = match target {
            PeerTarget::Plain => {
                let here = matches.plain.iter().filter(|target| target.is_local());
                Routed { receivers: here.filter(|target| offer(target)).count(), capture: matches.capture }
            }
            PeerTarget::Group(name) => {
                let group = matches.groups.iter().take(matches.groups_used).find(|group| group.name == name);
                self.begin_draws(random);
                let mut here = group.into_iter().flat_map(|group| group.drawn(random));
                let taken = here.by_ref().take_while(|target| target.is_local()).any(&mut offer);
                Routed { receivers: usize::from(taken), capture: None }
            }
        };
        slot.forget_if_large();
        routed
    }

    /// The slot in which a subject's targets are.
    fn look_up(&self, cache: &mut RouteCache, routed_by: &[u8]) -> usize {
        let hash = self.index.hash(routed_by);
        let at = cache.slot(hash);
        let RouteCache { slots, misses, .. } = cache;
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
            if self.index.has_peers() {
                slot.matches.put_peers_last();
            }
        }
        at
    }

    /// Each cache begins elsewhere: a connection may live for one message only, and thousands of them must not
    /// all choose the same member.
    fn begin_draws(&self, random: &mut u32) {
        if *random == 0 {
            let begun = self.draws.fetch_add(1, Ordering::Relaxed);
            *random = begun.wrapping_add(1).wrapping_mul(0x9e37_79b9) | 1;
        }
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
