//! Peers as subscribers, and what they are told.

use super::*;

/// What was told: filter, group, present.
type Told = Arc<Mutex<Vec<(String, String, bool)>>>;

/// A peer: remembers by what subjects messages were routed to it.
#[derive(Default)]
struct Peer {
    got: Mutex<Vec<(u64, Vec<u8>)>>,
    refuses: bool,
}

impl Subscriber for Peer {
    fn offer(&self, _subscription: u64, _message: &Envelope<'_>) -> Offered {
        panic!("a peer is told by what it was routed");
    }

    fn offer_to_peer(&self, subscription: u64, routed_by: &[u8], _message: &Envelope<'_>) -> Offered {
        if self.refuses {
            return Offered::Refused;
        }
        self.got.lock().unwrap().push((subscription, routed_by.to_vec()));
        Offered::Taken
    }

    fn flush(&self) {}
}

impl Peer {
    fn join(self: &Arc<Self>, world: &World, filter: &str, queue: Option<&str>, id: u64) -> SubscriptionKey {
        self.join_with(world, filter, queue, id, 1)
    }

    fn join_with(
        self: &Arc<Self>,
        world: &World,
        filter: &str,
        queue: Option<&str>,
        id: u64,
        weight: u32,
    ) -> SubscriptionKey {
        let kind = SubscriberKind::Peer { weight };
        let peer = Arc::clone(self) as Arc<dyn Subscriber>;
        world.interest.subscribe_as(kind, filter.as_bytes(), queue.map(str::as_bytes), peer, id).unwrap()
    }

    fn take(&self) -> Vec<u64> {
        let mut ids: Vec<u64> = self.got.lock().unwrap().drain(..).map(|(id, _)| id).collect();
        ids.sort_unstable();
        ids
    }
}

fn listen(world: &World) -> Told {
    let told = Told::default();
    let sink = Arc::clone(&told);
    world.interest.on_interest(Box::new(move |filter, group, present| {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        sink.lock().unwrap().push((text(filter), text(group), present));
    }));
    told
}

fn take(told: &Told) -> Vec<String> {
    let spell = |(filter, group, present): (String, String, bool)| {
        format!("{}{filter}/{group}", if present { '+' } else { '-' })
    };
    told.lock().unwrap().drain(..).map(spell).collect()
}

fn from_peer(world: &mut World, subject: &str, target: PeerTarget<'_>) -> (Routed, Vec<u64>) {
    let subject = subject.as_bytes();
    let envelope = Envelope { subject: b"shown", reply: b"", headers: b"", payload: b"", origin: 0 };
    let routed = world.interest.route_from_peer(&mut world.cache, subject, &envelope, target);
    let mut got = world.inbox.take();
    got.sort_unstable();
    (routed, got)
}

#[test]
fn first_and_last_of_a_filter_and_group_are_told() {
    let world = World::new();
    let told = listen(&world);
    let one = world.subscribe("a.*", None, 1);
    let two = world.subscribe("a.*", None, 2);
    let member = world.subscribe("a.*", Some("g"), 3);
    assert_eq!(take(&told), ["+a.*/", "+a.*/g"]);
    world.interest.unsubscribe(&one);
    assert!(take(&told).is_empty());
    world.interest.capture(b"a.*", StreamId(1)).unwrap();
    world.interest.unsubscribe(&two);
    world.interest.unsubscribe(&two);
    assert!(take(&told).is_empty(), "the stream still wants it");
    world.interest.release(b"a.*", StreamId(1));
    world.interest.unsubscribe(&member);
    assert_eq!(take(&told), ["-a.*/", "-a.*/g"]);
}

#[test]
fn what_was_there_before_is_told_first_and_listed() {
    let world = World::new();
    let filters = ["b", "a.b", "a.>", "*.x", ">", "a.*.c"];
    for (filter, id) in filters.into_iter().zip(0..) {
        world.subscribe(filter, None, id);
    }
    world.subscribe("a.>", Some("g"), 9);
    let peer = Arc::new(Peer::default());
    peer.join(&world, "of.peer", None, 1);
    world.interest.capture(b"s.>", StreamId(1)).unwrap();
    let told = listen(&world);
    let expected = ["*.x/", ">/", "a.*.c/", "a.>/", "a.>/g", "a.b/", "b/", "s.>/"];
    assert_eq!(take(&told), expected.map(|wanted| format!("+{wanted}")));
    let listed: Vec<String> = world.interest.local_interest(|wanted| {
        wanted.map(|(filter, group)| String::from_utf8([filter, b"/", group].concat()).unwrap()).collect()
    });
    assert_eq!(listed, expected);
}

#[test]
fn peers_are_not_told_of_peers() {
    let world = World::new();
    let told = listen(&world);
    let peer = Arc::new(Peer::default());
    let key = peer.join(&world, "a", None, 1);
    let member = peer.join(&world, "a", Some("g"), 2);
    let here = world.subscribe("a", None, 3);
    world.interest.unsubscribe(&key);
    world.interest.unsubscribe(&member);
    world.interest.unsubscribe(&here);
    assert_eq!(take(&told), ["+a/", "-a/"]);
}

#[test]
fn the_one_who_is_told_ends_with_the_truth_under_contention() {
    let world = World::new();
    let told = listen(&world);
    std::thread::scope(|scope| {
        for id in 0..4 {
            let world = &world;
            scope.spawn(move || {
                for _ in 0..500 {
                    let key = world.subscribe("a", Some("g"), id);
                    world.interest.unsubscribe(&key);
                }
            });
        }
    });
    let told = take(&told);
    for (at, change) in told.iter().enumerate() {
        assert_eq!(change, if at % 2 == 0 { "+a/g" } else { "-a/g" });
    }
    assert_eq!(told.len() % 2, 0);
}

#[test]
fn a_peer_gets_a_message_once_and_once_for_each_group_that_chose_it() {
    let mut world = World::new();
    let peer = Arc::new(Peer::default());
    peer.join(&world, "a.b", None, 1);
    peer.join(&world, "a.*", None, 1);
    peer.join(&world, ">", None, 1);
    peer.join(&world, "a.b", Some("g"), 2);
    peer.join(&world, "a.*", Some("g"), 2);
    peer.join(&world, "a.>", Some("h"), 3);
    world.subscribe("a.b", None, 10);
    let routed = world.routed("a.b");
    assert_eq!((routed.receivers, world.inbox.take(), peer.take()), (4, vec![10], vec![1, 2, 3]));
}

#[test]
fn a_member_of_the_group_that_is_here_goes_before_peers() {
    let mut world = World::new();
    let peer = Arc::new(Peer::default());
    peer.join(&world, "a", Some("g"), 1);
    let here = world.subscribe("a", Some("g"), 2);
    for _ in 0..20 {
        assert_eq!(world.route("a"), [2]);
    }
    assert!(peer.take().is_empty());
    world.interest.unsubscribe(&here);
    assert_eq!(world.routed("a").receivers, 1);
    assert_eq!(peer.take(), [1]);
    // One who is here and refuses passes it on.
    let full = Arc::new(Inbox { refuses: true, ..Inbox::default() });
    world.interest.subscribe(b"a", Some(b"g"), full, 3).unwrap();
    assert_eq!(world.routed("a").receivers, 1);
    assert_eq!(peer.take(), [1]);
}

#[test]
fn peers_share_a_group_by_their_weight() {
    let mut world = World::new();
    let (light, heavy) = (Arc::new(Peer::default()), Arc::new(Peer::default()));
    light.join_with(&world, "a", Some("g"), 1, 1);
    heavy.join_with(&world, "a", Some("g"), 1, 3);
    for _ in 0..4000 {
        assert_eq!(world.routed("a").receivers, 1);
    }
    let (light, heavy) = (light.take().len(), heavy.take().len());
    assert_eq!(light + heavy, 4000);
    assert!((800..1200).contains(&light), "{light} of 4000");
}

#[test]
fn a_peer_that_refuses_passes_the_groups_message_on() {
    let mut world = World::new();
    let gone = Arc::new(Peer { refuses: true, ..Peer::default() });
    let there = Arc::new(Peer::default());
    gone.join_with(&world, "a", Some("g"), 1, 1000);
    there.join(&world, "a", Some("g"), 1);
    for _ in 0..10 {
        assert_eq!(world.routed("a").receivers, 1);
    }
    assert_eq!(there.take().len(), 10);
}

#[test]
fn what_comes_from_a_peer_stays_here() {
    let mut world = World::new();
    let other = Arc::new(Peer::default());
    other.join(&world, "a", None, 1);
    other.join(&world, "a", Some("g"), 2);
    other.join(&world, "a", Some("h"), 2);
    world.subscribe("a", None, 10);
    world.subscribe("*", None, 11);
    world.subscribe("a", Some("g"), 12);
    world.interest.capture(b"a", StreamId(7)).unwrap();

    let plain = from_peer(&mut world, "a", PeerTarget::Plain);
    assert_eq!(plain, (Routed { receivers: 2, capture: Some(StreamId(7)) }, vec![10, 11]));
    let group = from_peer(&mut world, "a", PeerTarget::Group(b"g"));
    assert_eq!(group, (Routed { receivers: 1, capture: None }, vec![12]));
    let nobody = (Routed::default(), Vec::new());
    assert_eq!(from_peer(&mut world, "a", PeerTarget::Group(b"h")), nobody);
    assert_eq!(from_peer(&mut world, "a", PeerTarget::Group(b"unknown")), nobody);
    assert!(other.take().is_empty());
}

#[test]
fn peers_count_as_interest_but_not_as_subscriptions() {
    let world = World::new();
    let peer = Arc::new(Peer::default());
    assert!(!world.interest.watch(super::super::Watcher::default(), b"deliver", b""));
    let key = peer.join(&world, "deliver", None, 1);
    assert!(world.interest.has_interest(b"deliver"));
    assert_eq!(world.interest.subscriptions(), 0);
    world.interest.unsubscribe(&key);
    assert!(!world.interest.has_interest(b"deliver"));
}
