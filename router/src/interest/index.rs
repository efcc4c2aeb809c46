//! The tables of subscriptions and captures.
//!
//! Invariants:
//! * A filter lives in exactly one place: literals in a map sharded by the whole filter, filters that
//!   begin with a literal token in a trie sharded by that token, the others in the one `open` trie.
//! * Inside a leaf, targets are in the order of their entry numbers (assigned under the shard's lock),
//!   so that removal is a binary search.
//! * After each change, and before the call returns, the generation slot of the filter is raised. The
//!   slots of a subject (see [`Marks`]) are read before its matches are collected, so a cached result
//!   with unchanged slots is complete.

use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use beamlog_log::StreamId;
use bytes::Bytes;
use foldhash::fast::RandomState;
use hashbrown::HashMap;

use super::Subscriber;
use crate::subject;

const SHARDS: usize = 64;
const GENERATIONS: usize = 1024;

/// A subscription as its owner holds it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SubscriptionKey {
    filter: Bytes,
    queue: Option<Bytes>,
    entry: u64,
}

impl SubscriptionKey {
    #[must_use]
    pub fn filter(&self) -> &[u8] {
        &self.filter
    }

    #[must_use]
    pub fn queue(&self) -> Option<&[u8]> {
        self.queue.as_deref()
    }
}

/// One subscription in a leaf.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) subscriber: Arc<dyn Subscriber>,
    pub(super) id: u64,
    entry: u64,
    /// 0 here; of a peer the weight of those for whom it stands.
    pub(super) weight: u32,
}

impl Target {
    pub(super) const fn is_local(&self) -> bool {
        self.weight == 0
    }

    pub(super) const fn entry(&self) -> u64 {
        self.entry
    }
}

struct Group {
    name: Bytes,
    members: Vec<Target>,
}

/// Everything that has one filter.
#[derive(Default)]
struct Leaf {
    plain: Vec<Target>,
    groups: Vec<Group>,
    capture: Option<StreamId>,
}

#[derive(Default)]
struct Node {
    /// Filters that end here.
    here: Leaf,
    /// Filters that end here with `>`.
    tail: Leaf,
    star: Option<Box<Self>>,
    literal: HashMap<Vec<u8>, Self, RandomState>,
}

/// What a subject's matches are collected into.
pub(super) trait Matches {
    fn plain(&mut self, targets: &[Target]);
    fn group(&mut self, name: &Bytes, members: &[Target]);
    fn capture(&mut self, stream: StreamId);
}

/// The generation slots that a subject's matches depend on.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Marks([u16; 3]);

type Literals = HashMap<Vec<u8>, Leaf, RandomState>;

pub(super) struct Index {
    hasher: RandomState,
    literal: Box<[RwLock<Literals>]>,
    rooted: Box<[RwLock<Node>]>,
    open: RwLock<Node>,
    /// How many filters `open` has, so that routing skips it while there are none.
    open_filters: AtomicUsize,
    /// Raised for filters without a literal first token.
    open_generation: AtomicU64,
    generations: Box<[AtomicU64]>,
    entries: AtomicU64,
    len: AtomicUsize,
    /// Subscriptions of peers, which `len` does not count.
    peers: AtomicUsize,
}

impl Leaf {
    fn is_empty(&self) -> bool {
        self.plain.is_empty() && self.groups.is_empty() && self.capture.is_none()
    }

    fn insert(&mut self, queue: Option<&Bytes>, target: Target) {
        let Some(name) = queue else {
            self.plain.push(target);
            return;
        };
        match self.groups.iter_mut().find(|group| group.name == name) {
            Some(group) => group.members.push(target),
            None => self.groups.push(Group { name: name.clone(), members: vec![target] }),
        }
    }

    fn remove(&mut self, queue: Option<&[u8]>, entry: u64) -> Option<Target> {
        let Some(name) = queue else { return remove_target(&mut self.plain, entry) };
        let at = self.groups.iter().position(|group| group.name == name)?;
        let group = self.groups.get_mut(at)?;
        let removed = remove_target(&mut group.members, entry);
        if group.members.is_empty() {
            self.groups.swap_remove(at);
        }
        removed
    }

    /// Whether anything of this very node wants it: a subscription of the group, or without one a plain
    /// subscription or a capture.
    fn is_local(&self, group: &[u8]) -> bool {
        if group.is_empty() {
            return self.capture.is_some() || self.plain.iter().any(Target::is_local);
        }
        let group = self.groups.iter().find(|have| have.name == group);
        group.is_some_and(|group| group.members.iter().any(Target::is_local))
    }

    /// Names what of this very node wants the filter: the empty group first, if it does.
    fn each_local(&self, filter: &[u8], each: &mut dyn FnMut(&[u8], &[u8])) {
        if self.is_local(b"") {
            each(filter, b"");
        }
        for group in self.groups.iter().filter(|group| group.members.iter().any(Target::is_local)) {
            each(filter, &group.name);
        }
    }

    fn collect(&self, into: &mut impl Matches) {
        if !self.plain.is_empty() {
            into.plain(&self.plain);
        }
        for group in &self.groups {
            into.group(&group.name, &group.members);
        }
        if let Some(stream) = self.capture {
            into.capture(stream);
        }
    }
}

fn remove_target(targets: &mut Vec<Target>, entry: u64) -> Option<Target> {
    let at = targets.binary_search_by_key(&entry, |target| target.entry).ok()?;
    let removed = targets.remove(at);
    if targets.len() < targets.capacity() / 4 {
        targets.shrink_to(targets.len() * 2);
    }
    Some(removed)
}

impl Node {
    fn is_empty(&self) -> bool {
        self.here.is_empty() && self.tail.is_empty() && self.star.is_none() && self.literal.is_empty()
    }

    /// The leaf for a filter's remaining tokens, made when it is not there.
    fn leaf<'n, 'f>(&'n mut self, mut rest: impl Iterator<Item = &'f [u8]>) -> &'n mut Leaf {
        match rest.next() {
            None => &mut self.here,
            Some(b">") => &mut self.tail,
            Some(b"*") => self.star.get_or_insert_default().leaf_dyn(&mut rest),
            Some(token) => self.literal.entry_ref(token).or_insert_with(Self::default).leaf_dyn(&mut rest),
        }
    }

    // `leaf` recurses through a trait object, or its type would grow with each level.
    fn leaf_dyn<'n>(&'n mut self, rest: &mut dyn Iterator<Item = &[u8]>) -> &'n mut Leaf {
        self.leaf(rest)
    }

    /// Changes the leaf of a filter, if there is one, and takes out what is empty then.
    fn change<'f, R>(
        &mut self,
        rest: &mut dyn Iterator<Item = &'f [u8]>,
        change: &mut dyn FnMut(&mut Leaf) -> R,
    ) -> Option<R> {
        match rest.next() {
            None => Some(change(&mut self.here)),
            Some(b">") => Some(change(&mut self.tail)),
            Some(b"*") => {
                let child = self.star.as_deref_mut()?;
                let done = child.change(rest, change);
                if child.is_empty() {
                    self.star = None;
                }
                done
            }
            Some(token) => {
                let child = self.literal.get_mut(token)?;
                let done = child.change(rest, change);
                if child.is_empty() {
                    self.literal.remove(token);
                }
                done
            }
        }
    }

    /// Visits all leaves below the filter that `path` spells.
    fn each_local(&self, path: &mut Vec<u8>, each: &mut dyn FnMut(&[u8], &[u8])) {
        self.here.each_local(path, each);
        let begin = path.len();
        let mut below = |token: &[u8], visit: &mut dyn FnMut(&mut Vec<u8>)| {
            if begin > 0 {
                path.push(b'.');
            }
            path.extend_from_slice(token);
            visit(path);
            path.truncate(begin);
        };
        below(b">", &mut |path| self.tail.each_local(path, each));
        if let Some(child) = &self.star {
            below(b"*", &mut |path| child.each_local(path, each));
        }
        for (token, child) in &self.literal {
            below(token, &mut |path| child.each_local(path, each));
        }
    }

    /// Collects all filters that match the rest of a subject: `None` is its end.
    fn collect(&self, rest: Option<&[u8]>, into: &mut impl Matches) {
        let Some(rest) = rest else {
            self.here.collect(into);
            return;
        };
        self.tail.collect(into);
        let (token, after) = first_token(rest);
        if let Some(child) = &self.star {
            child.collect(after, into);
        }
        if !self.literal.is_empty()
            && let Some(child) = self.literal.get(token)
        {
            child.collect(after, into);
        }
    }
}

/// The first token, and what follows its dot if it has one.
fn first_token(raw: &[u8]) -> (&[u8], Option<&[u8]>) {
    match raw.iter().position(|&byte| byte == b'.') {
        Some(dot) => {
            let (token, rest) = raw.split_at(dot);
            (token, rest.get(1..))
        }
        None => (raw, None),
    }
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    // Nothing in here panics half way through a change, so a poisoned table is whole.
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// Where a filter lives.
enum Place<'f> {
    Literal,
    Rooted { first: &'f [u8] },
    Open,
}

fn place(filter: &[u8]) -> Place<'_> {
    if subject::is_literal(filter) {
        return Place::Literal;
    }
    match first_token(filter).0 {
        b"*" | b">" => Place::Open,
        first => Place::Rooted { first },
    }
}

impl Index {
    pub(super) fn new() -> Self {
        Self {
            hasher: RandomState::default(),
            literal: (0..SHARDS).map(|_| RwLock::default()).collect(),
            rooted: (0..SHARDS).map(|_| RwLock::default()).collect(),
            open: RwLock::default(),
            open_filters: AtomicUsize::new(0),
            open_generation: AtomicU64::new(0),
            generations: (0..GENERATIONS).map(|_| AtomicU64::new(0)).collect(),
            entries: AtomicU64::new(0),
            len: AtomicUsize::new(0),
            peers: AtomicUsize::new(0),
        }
    }

    pub(super) fn hash(&self, raw: &[u8]) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(raw);
        hasher.finish()
    }

    pub(super) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Whether some subscriptions are peers'.
    pub(super) fn has_peers(&self) -> bool {
        self.peers.load(Ordering::Relaxed) > 0
    }

    /// Whether this very node wants what the filter matches, in this group; empty is none.
    pub(super) fn is_local(&self, filter: &[u8], group: &[u8]) -> bool {
        self.change(filter, &mut |leaf| leaf.is_local(group)).unwrap_or(false)
    }

    /// Names every filter and group that this very node wants, in any order.
    pub(super) fn each_local(&self, each: &mut dyn FnMut(&[u8], &[u8])) {
        for shard in &self.literal {
            for (filter, leaf) in &*read(shard) {
                leaf.each_local(filter, each);
            }
        }
        for shard in &self.rooted {
            read(shard).each_local(&mut Vec::new(), each);
        }
        read(&self.open).each_local(&mut Vec::new(), each);
    }

    const fn count(&self, weight: u32) -> &AtomicUsize {
        if weight == 0 { &self.len } else { &self.peers }
    }

    /// `weight` is 0 for a subscription of this very node.
    pub(super) fn insert(
        &self,
        filter: &[u8],
        queue: Option<&[u8]>,
        subscriber: Arc<dyn Subscriber>,
        id: u64,
        weight: u32,
    ) -> SubscriptionKey {
        let queue = queue.map(Bytes::copy_from_slice);
        let mut entry = 0;
        self.with_leaf(filter, |leaf| {
            // Under the lock, or a leaf would not be in order.
            entry = self.entries.fetch_add(1, Ordering::Relaxed);
            let subscriber = Arc::clone(&subscriber);
            leaf.insert(queue.as_ref(), Target { subscriber, id, entry, weight });
        });
        self.count(weight).fetch_add(1, Ordering::Relaxed);
        self.raise(filter);
        SubscriptionKey { filter: Bytes::copy_from_slice(filter), queue, entry }
    }

    pub(super) fn remove(&self, key: &SubscriptionKey) {
        let removed = self.change(&key.filter, &mut |leaf| leaf.remove(key.queue.as_deref(), key.entry));
        if let Some(target) = removed.flatten() {
            self.count(target.weight).fetch_sub(1, Ordering::Relaxed);
            self.raise(&key.filter);
        }
    }

    pub(super) fn capture(&self, filter: &[u8], stream: Option<StreamId>) {
        match stream {
            Some(_) => self.with_leaf(filter, |leaf| leaf.capture = stream),
            None => {
                self.change(filter, &mut |leaf| leaf.capture = None);
            }
        }
        self.raise(filter);
    }

    pub(super) fn captured_by(&self, filter: &[u8]) -> Option<StreamId> {
        self.change(filter, &mut |leaf| leaf.capture).flatten()
    }

    /// Runs `change` on the leaf of a filter, made when it is not there.
    fn with_leaf(&self, filter: &[u8], change: impl FnOnce(&mut Leaf)) {
        match place(filter) {
            Place::Literal => {
                change(write(self.literal_shard(self.hash(filter))).entry_ref(filter).or_default());
            }
            Place::Rooted { first } => {
                change(write(self.rooted_shard(first)).leaf(subject::tokens(filter)));
            }
            Place::Open => {
                let mut open = write(&self.open);
                let leaf = open.leaf(subject::tokens(filter));
                let was_empty = leaf.is_empty();
                change(leaf);
                if was_empty && !leaf.is_empty() {
                    self.open_filters.fetch_add(1, Ordering::Release);
                }
            }
        }
    }

    /// Runs `change` on the leaf of a filter, if there is one, and tidies up behind it.
    fn change<R>(&self, filter: &[u8], change: &mut dyn FnMut(&mut Leaf) -> R) -> Option<R> {
        match place(filter) {
            Place::Literal => {
                let mut shard = write(self.literal_shard(self.hash(filter)));
                let leaf = shard.get_mut(filter)?;
                let done = change(leaf);
                if leaf.is_empty() {
                    shard.remove(filter);
                }
                Some(done)
            }
            Place::Rooted { first } => {
                write(self.rooted_shard(first)).change(&mut subject::tokens(filter), change)
            }
            Place::Open => {
                let mut ended = false;
                let done = write(&self.open).change(&mut subject::tokens(filter), &mut |leaf| {
                    let was_empty = leaf.is_empty();
                    let done = change(leaf);
                    ended = !was_empty && leaf.is_empty();
                    done
                });
                if ended {
                    self.open_filters.fetch_sub(1, Ordering::Release);
                }
                done
            }
        }
    }

    /// Collects whatever a subject matches.
    pub(super) fn collect(&self, raw: &[u8], into: &mut impl Matches) {
        self.collect_hashed(raw, self.hash(raw), into);
    }

    pub(super) fn collect_hashed(&self, raw: &[u8], hash: u64, into: &mut impl Matches) {
        if let Some(leaf) = read(self.literal_shard(hash)).get(raw) {
            leaf.collect(into);
        }
        // A subject with an empty token matches no wildcard; nats-server lets such publishes pass.
        if subject::tokens(raw).any(<[u8]>::is_empty) {
            return;
        }
        let (first, _) = first_token(raw);
        {
            let node = read(self.rooted_shard(first));
            if !node.literal.is_empty() {
                node.collect(Some(raw), into);
            }
        }
        if self.open_filters.load(Ordering::Acquire) > 0 {
            read(&self.open).collect(Some(raw), into);
        }
    }

    /// Whether a plain subscription, of a peer or not, has this very literal filter.
    pub(super) fn has_named(&self, filter: &[u8]) -> bool {
        read(self.literal_shard(self.hash(filter))).get(filter).is_some_and(|leaf| !leaf.plain.is_empty())
    }

    /// The plain subscriptions, peers' too, with this very literal filter.
    pub(super) fn named(&self, filter: &[u8]) -> Vec<Target> {
        read(self.literal_shard(self.hash(filter)))
            .get(filter)
            .map(|leaf| leaf.plain.clone())
            .unwrap_or_default()
    }

    /// Shows the subscriptions of this node with this very filter, and their queue groups.
    pub(super) fn each_exact(&self, filter: &[u8], each: &mut dyn FnMut(Option<&Bytes>, &Target)) {
        self.change(filter, &mut |leaf| {
            leaf.plain.iter().filter(|target| target.is_local()).for_each(|target| each(None, target));
            for group in &leaf.groups {
                let local = group.members.iter().filter(|target| target.is_local());
                local.for_each(|target| each(Some(&group.name), target));
            }
        });
    }

    /// Whether a subscription (of this group, when one is named) matches the subject.
    pub(super) fn has_interest(&self, raw: &[u8], group: Option<&[u8]>) -> bool {
        struct Any<'g> {
            group: Option<&'g [u8]>,
            found: bool,
        }
        impl Matches for Any<'_> {
            fn plain(&mut self, _: &[Target]) {
                self.found |= self.group.is_none();
            }
            fn group(&mut self, name: &Bytes, _: &[Target]) {
                self.found |= self.group.is_none_or(|group| group == name);
            }
            fn capture(&mut self, _: StreamId) {}
        }
        let mut any = Any { group, found: false };
        self.collect(raw, &mut any);
        any.found
    }

    fn literal_shard(&self, hash: u64) -> &RwLock<Literals> {
        &self.literal[slot(hash, SHARDS)]
    }

    fn rooted_shard(&self, first: &[u8]) -> &RwLock<Node> {
        &self.rooted[slot(self.hash(first), SHARDS)]
    }

    /// Makes results that this filter may concern stale.
    fn raise(&self, filter: &[u8]) {
        let generation = match place(filter) {
            Place::Literal => &self.generations[slot(self.hash(filter), GENERATIONS)],
            Place::Rooted { first } => {
                // By two tokens where both are literal: short-lived `_INBOX.<unique>.*` must not make
                // all that begins with `_INBOX` stale.
                let rest = filter.get(first.len() + 1..).unwrap_or_default();
                let key = match first_token(rest).0 {
                    b"*" | b">" => first,
                    second => filter.get(..first.len() + 1 + second.len()).unwrap_or(first),
                };
                &self.generations[slot(self.hash(key), GENERATIONS)]
            }
            Place::Open => &self.open_generation,
        };
        generation.fetch_add(1, Ordering::Release);
    }

    /// The slots a subject depends on.
    pub(super) fn marks(&self, raw: &[u8], hash: u64) -> Marks {
        let (first, rest) = first_token(raw);
        let by_first = self.hash(first);
        let by_two = match rest {
            Some(rest) => {
                let second = first_token(rest).0;
                self.hash(raw.get(..first.len() + 1 + second.len()).unwrap_or(raw))
            }
            None => by_first,
        };
        Marks([hash, by_first, by_two].map(mark))
    }

    /// Changes whenever one of the slots does: all of them only grow.
    pub(super) fn version(&self, marks: Marks) -> u64 {
        marks.0.iter().fold(self.open_generation.load(Ordering::Acquire), |sum, &mark| {
            sum.wrapping_add(self.generations[usize::from(mark)].load(Ordering::Acquire))
        })
    }
}

/// The upper bits choose: the lower ones place a key inside its map.
fn slot(hash: u64, slots: usize) -> usize {
    debug_assert!(slots.is_power_of_two() && slots <= 1 << 16);
    usize::from(top_bits(hash)) & (slots - 1)
}

fn mark(hash: u64) -> u16 {
    let slots = u16::try_from(GENERATIONS).expect("a small constant");
    top_bits(hash) & (slots - 1)
}

fn top_bits(hash: u64) -> u16 {
    let bytes = hash.to_be_bytes();
    u16::from_be_bytes([bytes[2], bytes[3]])
}
