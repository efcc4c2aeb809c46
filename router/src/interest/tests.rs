//! Interest as callers see it, and against a matcher so simple that it is right.

mod mesh;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use beamlog_log::StreamId;

use super::*;
use crate::subject;

/// Remembers what it was offered.
#[derive(Default)]
struct Inbox {
    /// Subscription id and subject.
    got: Mutex<Vec<(u64, Vec<u8>)>>,
    flushes: Mutex<usize>,
    promised: Mutex<bool>,
    refuses: bool,
}

impl Subscriber for Inbox {
    fn offer(&self, subscription: u64, message: &Envelope<'_>) -> Offered {
        if self.refuses {
            return Offered::Refused;
        }
        self.got.lock().unwrap().push((subscription, message.subject.to_vec()));
        if std::mem::replace(&mut self.promised.lock().unwrap(), true) {
            Offered::Joined
        } else {
            Offered::Taken
        }
    }

    fn flush(&self) {
        *self.promised.lock().unwrap() = false;
        *self.flushes.lock().unwrap() += 1;
    }
}

impl Inbox {
    fn take(&self) -> Vec<u64> {
        self.got.lock().unwrap().drain(..).map(|(id, _)| id).collect()
    }
}

struct World {
    interest: Interest,
    inbox: Arc<Inbox>,
    cache: RouteCache,
}

impl World {
    fn new() -> Self {
        Self { interest: Interest::new(), inbox: Arc::default(), cache: RouteCache::new() }
    }

    fn subscribe(&self, filter: &str, queue: Option<&str>, id: u64) -> SubscriptionKey {
        let inbox = Arc::clone(&self.inbox) as Arc<dyn Subscriber>;
        self.interest.subscribe(filter.as_bytes(), queue.map(str::as_bytes), inbox, id).unwrap()
    }

    /// Routes, and returns the ids that got it.
    fn route(&mut self, subject: &str) -> Vec<u64> {
        let routed = self.routed(subject);
        let mut got = self.inbox.take();
        assert_eq!(got.len(), routed.receivers);
        got.sort_unstable();
        got
    }

    fn routed(&mut self, subject: &str) -> Routed {
        let envelope =
            Envelope { subject: subject.as_bytes(), reply: b"", headers: b"", payload: b"", origin: 0 };
        self.interest.route(&mut self.cache, subject.as_bytes(), &envelope)
    }
}

#[test]
fn a_cached_route_sees_every_change() {
    let mut world = World::new();
    assert!(world.route("a.b").is_empty());
    let literal = world.subscribe("a.b", None, 1);
    assert_eq!(world.route("a.b"), [1]);
    let star = world.subscribe("a.*", None, 2);
    assert_eq!(world.route("a.b"), [1, 2]);
    let deep = world.subscribe("a.b.>", None, 3);
    let first = world.subscribe("*.b", None, 4);
    let all = world.subscribe(">", None, 5);
    assert_eq!(world.route("a.b"), [1, 2, 4, 5]);
    assert_eq!(world.route("a.b.c"), [3, 5]);
    for key in [literal, star, first] {
        world.interest.unsubscribe(&key);
    }
    assert_eq!(world.route("a.b"), [5]);
    world.interest.unsubscribe(&all);
    world.interest.unsubscribe(&all);
    assert!(world.route("a.b").is_empty());
    assert_eq!(world.route("a.b.c"), [3]);
    world.interest.unsubscribe(&deep);
    assert_eq!(world.interest.subscriptions(), 0);
}

#[test]
fn one_of_a_group_gets_it_under_whatever_filter_it_joined() {
    let mut world = World::new();
    world.subscribe("a.b", Some("q"), 1);
    world.subscribe("a.*", Some("q"), 2);
    world.subscribe(">", Some("other"), 3);
    world.subscribe("a.b", None, 4);
    let mut members = BTreeSet::new();
    for _ in 0..200 {
        let got = world.route("a.b");
        assert_eq!(got.len(), 3);
        assert_eq!(got[1..], [3, 4]);
        members.insert(got[0]);
    }
    assert_eq!(members, BTreeSet::from([1, 2]), "work is spread");
}

#[test]
fn callers_that_route_once_do_not_all_choose_the_same_member() {
    let mut world = World::new();
    for id in 0..4 {
        world.subscribe("a", Some("q"), id);
    }
    let mut counts = [0; 4];
    for _ in 0..400 {
        world.cache = RouteCache::new();
        counts[usize::try_from(world.route("a")[0]).unwrap()] += 1;
    }
    assert!(counts.iter().all(|&count| count > 50), "{counts:?}");
}

#[test]
fn a_member_that_refuses_passes_it_on() {
    let mut world = World::new();
    let refusing = Arc::new(Inbox { refuses: true, ..Inbox::default() });
    for id in 0..10 {
        world.interest.subscribe(b"a", Some(b"q"), Arc::clone(&refusing) as Arc<dyn Subscriber>, id).unwrap();
    }
    assert_eq!(world.routed("a").receivers, 0);
    world.subscribe("a", Some("q"), 99);
    for _ in 0..50 {
        assert_eq!(world.route("a"), [99]);
    }
}

#[test]
fn receivers_are_flushed_once_per_batch_and_on_drop() {
    let mut world = World::new();
    world.subscribe("a", None, 1);
    world.subscribe("b", None, 2);
    for _ in 0..5 {
        world.route("a");
        world.route("b");
    }
    assert_eq!(*world.inbox.flushes.lock().unwrap(), 0);
    world.cache.flush();
    world.cache.flush();
    assert_eq!(*world.inbox.flushes.lock().unwrap(), 1);
    world.route("a");
    drop(std::mem::take(&mut world.cache));
    assert_eq!(*world.inbox.flushes.lock().unwrap(), 2);
}

#[test]
fn captures_are_found_with_the_receivers() {
    let mut world = World::new();
    world.interest.capture(b"orders.>", StreamId(7)).unwrap();
    world.interest.capture(b"bills", StreamId(8)).unwrap();
    assert_eq!(world.routed("orders.eu"), Routed { receivers: 0, capture: Some(StreamId(7)) });
    assert_eq!(world.routed("bills").capture, Some(StreamId(8)));
    assert_eq!(world.routed("orders").capture, None);
    assert!(!world.interest.has_interest(b"bills"), "a stream does not listen");
    world.interest.release(b"orders.>", StreamId(8));
    assert_eq!(world.routed("orders.eu").capture, Some(StreamId(7)), "released by its owner only");
    world.interest.release(b"orders.>", StreamId(7));
    assert_eq!(world.routed("orders.eu").capture, None);
}

#[test]
fn illegal_filters_are_refused_and_illegal_subjects_match_literally() {
    let mut world = World::new();
    let inbox = Arc::clone(&world.inbox) as Arc<dyn Subscriber>;
    assert!(world.interest.subscribe(b"a..b", None, inbox, 1).is_err());
    world.subscribe(">", None, 1);
    world.subscribe("a.*", None, 2);
    world.subscribe("*.*.b", None, 3);
    for subject in ["a..b", ".a", "a.", ".", ""] {
        assert!(world.route(subject).is_empty(), "{subject:?}");
    }
    assert_eq!(world.route("a.*"), [1, 2]);
}

#[test]
fn a_watched_subject_is_told_of_at_its_first_and_last_subscription() {
    let world = World::new();
    let told: Arc<Mutex<Vec<(String, String, bool)>>> = Arc::default();
    let log = Arc::clone(&told);
    let watcher = world.interest.on_change(Box::new(move |subject, group, present| {
        let text = |raw: &[u8]| String::from_utf8(raw.to_vec()).unwrap();
        log.lock().unwrap().push((text(subject), text(group), present));
    }));
    // What another one watches is told to that one alone.
    let another = world.interest.on_change(Box::new(|_, group, _| assert_eq!(group, b"theirs")));
    assert!(!world.interest.watch(another, b"deliver.me", b"theirs"));
    let take = || std::mem::take(&mut *told.lock().unwrap());
    assert!(!world.interest.watch(watcher, b"deliver.me", b""));
    assert!(!world.interest.watch(watcher, b"deliver.me", b"g"));
    let one = world.subscribe("deliver.me", None, 1);
    assert_eq!(take(), [("deliver.me".into(), String::new(), true)]);
    let two = world.subscribe("deliver.*", None, 2);
    world.interest.unsubscribe(&one);
    assert_eq!(take(), []);
    let member = world.subscribe("deliver.me", Some("g"), 3);
    assert_eq!(take(), [("deliver.me".into(), "g".into(), true)]);
    world.interest.unsubscribe(&two);
    assert_eq!(take(), [], "a member of a group listens too");
    world.interest.unsubscribe(&member);
    assert_eq!(
        take(),
        [("deliver.me".into(), String::new(), false), ("deliver.me".into(), "g".into(), false)]
    );
    world.interest.unwatch(watcher, b"deliver.me", b"");
    world.interest.unwatch(watcher, b"deliver.me", b"g");
    world.subscribe("deliver.me", None, 4);
    assert_eq!(take(), []);
    assert!(world.interest.watch(watcher, b"deliver.me", b""));
}

#[test]
fn the_deepest_filter_a_control_line_can_carry_is_just_a_filter() {
    let mut world = World::new();
    let deep = vec!["*"; 2048].join(".");
    let key = world.subscribe(&deep, None, 1);
    let subject = vec!["a"; 2048].join(".");
    assert_eq!(world.route(&subject), [1]);
    world.interest.unsubscribe(&key);
    assert!(world.route(&subject).is_empty());
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % bound
    }

    fn name(&mut self, tokens: &[&str]) -> String {
        let count = 1 + self.below(4);
        (0..count).map(|_| tokens[self.below(tokens.len())]).collect::<Vec<_>>().join(".")
    }
}

/// Random subscriptions come and go; every route must find exactly what a scan over all of them finds.
#[test]
fn random_histories_agree_with_a_scan() {
    for seed in 0..20 {
        let mut random = Random(seed);
        let mut world = World::new();
        let mut living: BTreeMap<u64, (SubscriptionKey, String, Option<String>)> = BTreeMap::new();
        for step in 0..3_000_u64 {
            match random.below(10) {
                0..=2 => {
                    let filter = random.name(&["a", "b", "c", "d", "*", "*", ">"]);
                    if subject::check_filter(filter.as_bytes()).is_err() {
                        continue;
                    }
                    let queue = (random.below(3) == 0).then(|| ["p", "q"][random.below(2)].to_owned());
                    let key = world.subscribe(&filter, queue.as_deref(), step);
                    living.insert(step, (key, filter, queue));
                }
                3..=4 => {
                    let Some(id) = living.keys().nth(random.below(living.len().max(1))).copied() else {
                        continue;
                    };
                    let (key, ..) = living.remove(&id).unwrap();
                    world.interest.unsubscribe(&key);
                }
                _ => {
                    let name = random.name(&["a", "b", "c", "d"]);
                    let mut plain = BTreeSet::new();
                    let mut groups: BTreeMap<&str, BTreeSet<u64>> = BTreeMap::new();
                    for (&id, (_, filter, queue)) in &living {
                        if subject::matches(filter.as_bytes(), name.as_bytes()) {
                            match queue {
                                None => plain.insert(id),
                                Some(group) => groups.entry(group).or_default().insert(id),
                            };
                        }
                    }
                    assert_eq!(
                        world.interest.has_interest(name.as_bytes()),
                        !plain.is_empty() || !groups.is_empty()
                    );
                    let got: BTreeSet<u64> = world.route(&name).into_iter().collect();
                    assert!(
                        got.is_superset(&plain),
                        "seed {seed} step {step} {name}: {got:?} lacks of {plain:?}"
                    );
                    let chosen: Vec<u64> = got.difference(&plain).copied().collect();
                    assert_eq!(chosen.len(), groups.len(), "one of each group, seed {seed} step {step}");
                    for members in groups.values() {
                        assert_eq!(chosen.iter().filter(|id| members.contains(id)).count(), 1);
                    }
                    assert_eq!(world.interest.subscriptions(), living.len());
                }
            }
        }
        for (key, ..) in living.values() {
            world.interest.unsubscribe(key);
        }
        assert_eq!(world.interest.subscriptions(), 0);
        assert!(world.route("a.b").is_empty());
    }
}

/// Subscriptions come and go on one thread while another routes: after each return the route is exact.
#[test]
fn a_subscription_is_in_force_when_subscribe_returns() {
    let interest = Arc::new(Interest::new());
    let (sent, receive) = std::sync::mpsc::channel::<Option<u64>>();
    let (done, wait) = std::sync::mpsc::channel::<usize>();
    let routing = {
        let interest = Arc::clone(&interest);
        move || {
            let mut cache = RouteCache::new();
            let envelope = Envelope { subject: b"a.b", reply: b"", headers: b"", payload: b"", origin: 0 };
            while let Ok(Some(_)) = receive.recv() {
                done.send(interest.route(&mut cache, b"a.b", &envelope).receivers).unwrap();
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(routing);
        let inbox: Arc<Inbox> = Arc::default();
        for round in 0..2_000_u64 {
            let filter = [&b"a.b"[..], b"a.*", b">", b"a.>"][usize::try_from(round % 4).unwrap()];
            let key =
                interest.subscribe(filter, None, Arc::clone(&inbox) as Arc<dyn Subscriber>, round).unwrap();
            sent.send(Some(round)).unwrap();
            assert_eq!(wait.recv().unwrap(), 1);
            interest.unsubscribe(&key);
            sent.send(Some(round)).unwrap();
            assert_eq!(wait.recv().unwrap(), 0);
        }
        sent.send(None).unwrap();
    });
}
