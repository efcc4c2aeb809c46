//! Nodes whose transport is a queue in memory: what is sent lies there until a test delivers it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use beamlog_router::StreamId;
use beamlog_router::interest::{
    Envelope, Interest, Offered, RouteCache, Routed, Subscriber, SubscriptionKey,
};
use bytes::Bytes;

use super::*;
use crate::peer::{
    BoxFuture, CallError, Introduction, Lane, PeerHandler, PeerId, PeerTransport, Role, SendError, Session,
};
use std::sync::{Arc, Mutex};

type Queue = VecDeque<Bytes>;

/// Carries frames between all nodes, by sender and receiver.
#[derive(Default)]
struct Wires {
    queues: Mutex<BTreeMap<(u64, u64), Queue>>,
    sessions: Mutex<BTreeMap<(u64, u64), u64>>,
    resets: Mutex<Vec<(u64, Session)>>,
    full: AtomicBool,
}

/// One node's end of the wires.
struct Wire {
    me: u64,
    wires: Arc<Wires>,
}

impl PeerTransport for Wire {
    fn call(
        &self,
        peer: PeerId,
        _: Lane,
        _: Bytes,
        _: Duration,
    ) -> BoxFuture<'static, Result<Bytes, CallError>> {
        Box::pin(async move { Err(CallError::NotConnected(peer)) })
    }

    fn send(&self, to: Session, _: Lane, frame: Bytes) -> Result<(), SendError> {
        if self.session(to.peer) != Some(to) {
            return Err(SendError::Ended);
        }
        if self.wires.full.load(Ordering::Relaxed) {
            return Err(SendError::Full(frame));
        }
        self.wires.queues.lock().unwrap().entry((self.me, to.peer.0)).or_default().push_back(frame);
        Ok(())
    }

    fn reset(&self, session: Session, _: &str) {
        self.wires.resets.lock().unwrap().push((self.me, session));
    }

    fn session(&self, peer: PeerId) -> Option<Session> {
        let number = self.wires.sessions.lock().unwrap().get(&(self.me, peer.0)).copied()?;
        Some(Session { peer, number })
    }
}

/// What somebody subscribed got: subject, reply, payload.
type Got = (String, String, String);

/// Somebody with subscriptions at a node.
#[derive(Default)]
struct Client {
    got: Mutex<Vec<Got>>,
}

impl Subscriber for Client {
    fn offer(&self, _: u64, message: &Envelope<'_>) -> Offered {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        self.got.lock().unwrap().push((text(message.subject), text(message.reply), text(message.payload)));
        Offered::Taken
    }

    fn flush(&self) {}
}

impl Client {
    fn take(&self) -> Vec<Got> {
        std::mem::take(&mut self.got.lock().unwrap())
    }

    fn count(&self) -> usize {
        self.take().len()
    }
}

#[derive(Default)]
struct Gate {
    requests: Mutex<Vec<(u64, String)>>,
    captured: Mutex<Vec<(u64, String)>>,
}

impl StreamGate for Gate {
    fn request(&self, message: &MeshMessage<'_>) {
        let subject = String::from_utf8(message.subject.to_vec()).unwrap();
        self.requests.lock().unwrap().push((message.from.0, subject));
    }

    fn captured(&self, stream: StreamId, message: &MeshMessage<'_>) {
        let subject = String::from_utf8(message.subject.to_vec()).unwrap();
        self.captured.lock().unwrap().push((u64::from(stream.0), subject));
    }
}

struct Node {
    interest: Arc<Interest>,
    mesh: Mesh,
    gate: Arc<Gate>,
    cache: RouteCache,
}

struct World {
    wires: Arc<Wires>,
    nodes: Vec<Node>,
    numbers: u64,
}

impl World {
    /// Nodes 0, 1, …, not connected. Peer ids begin at 1.
    fn apart(count: u64) -> Self {
        let wires = Arc::new(Wires::default());
        let nodes = (1..=count).map(|me| {
            let (interest, gate) = (Arc::new(Interest::new()), Arc::new(Gate::default()));
            let mesh = Mesh::new(Arc::clone(&interest), Arc::clone(&gate) as Arc<dyn StreamGate>);
            mesh.attach(Arc::new(Wire { me, wires: Arc::clone(&wires) }));
            Node { interest, mesh, gate, cache: RouteCache::new() }
        });
        Self { nodes: nodes.collect(), wires, numbers: 0 }
    }

    fn connected(count: u64) -> Self {
        let mut world = Self::apart(count);
        for a in 0..world.nodes.len() {
            for b in 0..a {
                world.connect(a, b);
            }
        }
        world.settle();
        world
    }

    fn connect(&mut self, a: usize, b: usize) {
        for (from, to) in [(a, b), (b, a)] {
            self.numbers += 1;
            let (me, peer) = (from as u64 + 1, to as u64 + 1);
            self.wires.sessions.lock().unwrap().insert((me, peer), self.numbers);
            let introduction = Introduction {
                cluster: "c".to_owned(),
                name: format!("n{peer}"),
                role: Role::Node,
                id: PeerId(peer),
                incarnation: 0,
                advertise: String::new(),
                claims: Bytes::new(),
            };
            let session = Session { peer: PeerId(peer), number: self.numbers };
            self.nodes[from].mesh.connected(session, &introduction);
        }
    }

    fn cut(&mut self, a: usize, b: usize) {
        for (from, to) in [(a, b), (b, a)] {
            let (me, peer) = (from as u64 + 1, to as u64 + 1);
            let number = self.wires.sessions.lock().unwrap().remove(&(me, peer)).unwrap();
            self.wires.queues.lock().unwrap().remove(&(me, peer));
            self.nodes[from].mesh.disconnected(Session { peer: PeerId(peer), number });
        }
    }

    /// Delivers the next frame from one to the other, if there is one.
    fn deliver(&self, from: usize, to: usize) -> bool {
        let (sender, receiver) = (from as u64 + 1, to as u64 + 1);
        let next =
            self.wires.queues.lock().unwrap().get_mut(&(sender, receiver)).and_then(VecDeque::pop_front);
        let Some(frame) = next else { return false };
        let number = self.wires.sessions.lock().unwrap()[&(receiver, sender)];
        let session = Session { peer: PeerId(sender), number };
        self.nodes[to].mesh.received(session, Lane::Mesh, frame);
        true
    }

    /// Until nothing is under way.
    fn settle(&self) {
        let all = 0..self.nodes.len();
        while all.clone().any(|from| all.clone().any(|to| self.deliver(from, to))) {}
    }

    fn subscribe(&self, node: usize, filter: &str, group: &str) -> (Arc<Client>, SubscriptionKey) {
        let client = Arc::new(Client::default());
        let key = self.join(node, &client, filter, group);
        (client, key)
    }

    fn join(&self, node: usize, client: &Arc<Client>, filter: &str, group: &str) -> SubscriptionKey {
        let queue = (!group.is_empty()).then_some(group.as_bytes());
        let subscriber = Arc::clone(client) as Arc<dyn Subscriber>;
        self.nodes[node].interest.subscribe(filter.as_bytes(), queue, subscriber, 1).unwrap()
    }

    /// Publishes and flushes, and delivers nothing yet.
    fn publish(&mut self, node: usize, subject: &str, reply: &str, payload: &str) -> Routed {
        let envelope = Envelope {
            subject: subject.as_bytes(),
            reply: reply.as_bytes(),
            headers: b"",
            payload: payload.as_bytes(),
            origin: 0,
        };
        let Node { interest, cache, .. } = &mut self.nodes[node];
        let routed = interest.route(cache, subject.as_bytes(), &envelope);
        cache.flush();
        routed
    }

    fn resets(&self) -> usize {
        self.wires.resets.lock().unwrap().len()
    }
}

#[test]
fn what_is_wanted_elsewhere_is_sent_there_and_nowhere_else() {
    let mut world = World::connected(3);
    let (client, key) = world.subscribe(1, "a.*", "");
    world.settle();
    assert_eq!(world.publish(0, "a.b", "", "one").receivers, 1);
    world.settle();
    assert_eq!(client.take(), [("a.b".to_owned(), String::new(), "one".to_owned())]);
    assert_eq!(world.publish(0, "b", "", "").receivers, 0);
    world.nodes[1].interest.unsubscribe(&key);
    world.settle();
    // Nobody anywhere: the requester learns it at once.
    assert_eq!(world.publish(0, "a.b", "inbox", "two").receivers, 0);
}

#[test]
fn a_peer_that_connects_is_told_everything_and_forgotten_when_it_leaves() {
    let mut world = World::apart(2);
    let clients: Vec<_> = (0..5000).map(|n| world.subscribe(0, &format!("s.{n}.>"), "")).collect();
    world.connect(0, 1);
    world.settle();
    assert_eq!(world.nodes[1].mesh.snapshot()[0].wanted, 5000);
    assert_eq!(world.publish(1, "s.4711.x", "", "").receivers, 1);
    world.settle();
    assert_eq!(clients[4711].0.count(), 1);
    assert_eq!(world.nodes[1].interest.subscriptions(), 0, "peers are not counted");
    world.cut(0, 1);
    assert!(!world.nodes[1].interest.has_interest(b"s.1.x"));
    assert_eq!(world.publish(1, "s.4711.x", "", "").receivers, 0);
    // And told anew, with what changed meanwhile.
    world.nodes[0].interest.unsubscribe(&clients[1].1);
    world.connect(1, 0);
    world.settle();
    assert_eq!(world.nodes[1].mesh.snapshot()[0].wanted, 4999);
}

#[test]
fn everybody_gets_a_message_once_and_it_makes_one_hop() {
    let mut world = World::connected(3);
    // Two filters of one node, one of another: each node is sent the message once.
    let clients: Vec<Arc<Client>> = (0..3).map(|node| world.subscribe(node, "a.>", "").0).collect();
    world.join(1, &clients[1], "a.*", "");
    world.settle();
    world.publish(0, "a.b", "", "");
    world.settle();
    let counts: Vec<usize> = clients.iter().map(|client| client.count()).collect();
    assert_eq!(counts, [1, 2, 1]);
}

#[test]
fn of_a_queue_group_one_member_gets_each_message_wherever_it_is() {
    let mut world = World::connected(3);
    let (near, near_key) = world.subscribe(0, "work", "g");
    let far: Vec<Arc<Client>> =
        [1, 1, 2].into_iter().map(|node| world.subscribe(node, "work", "g").0).collect();
    let (other, _) = world.subscribe(2, "*", "other");
    let (plain, _) = world.subscribe(2, "work", "");
    world.settle();
    for _ in 0..50 {
        world.publish(0, "work", "", "");
    }
    world.settle();
    // Its own node first.
    assert_eq!(near.count(), 50);
    assert_eq!((other.count(), plain.count()), (50, 50));
    world.nodes[0].interest.unsubscribe(&near_key);
    for _ in 0..200 {
        world.publish(0, "work", "", "");
    }
    world.settle();
    let counts: Vec<usize> = far.iter().map(|client| client.count()).collect();
    assert_eq!(counts.iter().sum::<usize>(), 200);
    assert!(counts.iter().all(|count| *count > 10), "{counts:?}");
    assert_eq!((other.count(), plain.count()), (200, 200));
}

#[test]
fn an_inbox_is_known_before_the_request_that_names_it() {
    let mut world = World::connected(2);
    let (service, _) = world.subscribe(1, "service", "");
    world.settle();
    for n in 0..100 {
        let inbox = format!("_INBOX.{n}");
        let (client, key) = world.subscribe(0, &inbox, "");
        assert_eq!(world.publish(0, "service", &inbox, "?").receivers, 1);
        // Frame by frame: as soon as the request is there, its answer has a way back.
        while service.got.lock().unwrap().is_empty() {
            assert!(world.deliver(0, 1));
        }
        let (_, reply, _) = service.take().pop().unwrap();
        assert_eq!(world.publish(1, &reply, "", "!").receivers, 1);
        world.settle();
        assert_eq!(client.count(), 1);
        world.nodes[0].interest.unsubscribe(&key);
    }
}

#[test]
fn a_publishers_messages_keep_their_order() {
    let mut world = World::connected(2);
    let (client, _) = world.subscribe(1, ">", "");
    world.settle();
    let payload = |n: usize| format!("{n:06}{}", "x".repeat(n * 37 % 3000));
    for n in 0..2000 {
        world.publish(0, &format!("s.{}", n % 3), "", &payload(n));
    }
    world.settle();
    let got: Vec<String> = client.take().into_iter().map(|(_, _, payload)| payload).collect();
    assert!(got.iter().enumerate().all(|(n, got)| *got == payload(n)));
    assert_eq!(got.len(), 2000);
}

#[test]
fn the_leader_is_found_and_what_it_is_sent_goes_to_its_gate() {
    let mut world = World::connected(3);
    world.nodes[2].mesh.set_leader(true);
    world.nodes[2].interest.capture(b"orders.>", StreamId(7)).unwrap();
    let (listener, listening) = world.subscribe(2, "$JS.>", "");
    world.settle();
    for subject in ["$JS.API.STREAM.LIST", "$JS.ACK.S.C.1.2.3.4.5", "$JS.FC.S.C.x", "orders.eu"] {
        assert_eq!(world.publish(0, subject, "inbox", "").receivers, 1, "{subject}");
    }
    world.settle();
    let gate = &world.nodes[2].gate;
    let requests: Vec<String> = gate.requests.lock().unwrap().drain(..).map(|(_, subject)| subject).collect();
    assert_eq!(requests, ["$JS.API.STREAM.LIST", "$JS.ACK.S.C.1.2.3.4.5", "$JS.FC.S.C.x"]);
    assert_eq!(std::mem::take(&mut *gate.captured.lock().unwrap()), [(7, "orders.eu".to_owned())]);
    // Requests can be listened to.
    assert_eq!(listener.count(), 1);
    world.nodes[2].interest.unsubscribe(&listening);

    world.nodes[2].mesh.set_leader(false);
    world.nodes[1].mesh.set_leader(true);
    world.nodes[2].interest.release(b"orders.>", StreamId(7));
    world.settle();
    assert_eq!(world.publish(0, "orders.eu", "", "").receivers, 0);
    world.publish(0, "$JS.API.INFO", "inbox", "");
    world.settle();
    let from = world.nodes[1].gate.requests.lock().unwrap().clone();
    assert_eq!(from, [(1, "$JS.API.INFO".to_owned())]);
    // Told to whoever comes later, too.
    world.cut(0, 1);
    world.connect(0, 1);
    world.settle();
    assert_eq!(world.publish(0, "$JS.ACK.x", "", "").receivers, 1);
}

#[test]
fn a_delivery_is_routed_by_one_subject_and_shows_another() {
    let mut world = World::connected(2);
    let (client, _) = world.subscribe(1, "deliver.to", "g");
    world.settle();
    let envelope = Envelope {
        subject: b"$JS.API.not.a.request",
        reply: b"$JS.ACK.S.C",
        headers: b"",
        payload: b"x",
        origin: 0,
    };
    let Node { interest, cache, .. } = &mut world.nodes[0];
    assert_eq!(interest.route(cache, b"deliver.to", &envelope).receivers, 1);
    cache.flush();
    world.settle();
    let expected = ("$JS.API.not.a.request".to_owned(), "$JS.ACK.S.C".to_owned(), "x".to_owned());
    assert_eq!(client.take(), [expected]);
    assert!(world.nodes[1].gate.requests.lock().unwrap().is_empty());
}

#[test]
fn a_full_peer_loses_messages_that_are_counted_and_never_interest() {
    let mut world = World::connected(2);
    let (client, _) = world.subscribe(1, "a", "");
    world.settle();
    world.wires.full.store(true, Ordering::Relaxed);
    for _ in 0..3 {
        world.publish(0, "a", "", "");
    }
    let snapshot = world.nodes[0].mesh.snapshot().remove(0);
    assert_eq!((snapshot.messages_sent, snapshot.messages_dropped), (0, 3));
    assert_eq!(world.resets(), 0);
    // A change that finds no room ends the session, and nothing more is put into it.
    world.subscribe(0, "b", "");
    assert_eq!(world.resets(), 1);
    world.wires.full.store(false, Ordering::Relaxed);
    assert_eq!(world.publish(0, "a", "", "").receivers, 0);
    world.cut(0, 1);
    world.connect(0, 1);
    world.settle();
    assert_eq!(world.publish(1, "b", "", "").receivers, 1);
    assert_eq!(world.publish(0, "a", "", "").receivers, 1);
    world.settle();
    assert_eq!(client.count(), 1);
}

#[test]
fn a_frame_that_is_none_ends_the_session() {
    let mut begun = bytes::BytesMut::new();
    Operation::Begin { version: 1, epoch: 1 }.encode(&mut begun);
    let mut bad_filter = bytes::BytesMut::new();
    Operation::Wanted { filter: b"a..b", group: b"" }.encode(&mut bad_filter);
    let mut later = bytes::BytesMut::new();
    Operation::Begin { version: 2, epoch: 1 }.encode(&mut later);
    for frame in [&b"\xff"[..], &bad_filter, &begun, &later] {
        let world = World::connected(2);
        let session = Session { peer: PeerId(1), number: world.wires.sessions.lock().unwrap()[&(2, 1)] };
        world.nodes[1].mesh.received(session, Lane::Mesh, Bytes::copy_from_slice(frame));
        assert_eq!(world.resets(), 1, "{frame:?}");
    }
    // One that does not begin.
    let world = World::apart(2);
    let mut wanted = bytes::BytesMut::new();
    Operation::Wanted { filter: b"a", group: b"" }.encode(&mut wanted);
    let session = Session { peer: PeerId(1), number: 9 };
    let introduction = Introduction {
        cluster: "c".to_owned(),
        name: "n1".to_owned(),
        role: Role::Node,
        id: PeerId(1),
        incarnation: 0,
        advertise: String::new(),
        claims: Bytes::new(),
    };
    world.nodes[1].mesh.connected(session, &introduction);
    let before = world.resets();
    world.nodes[1].mesh.received(session, Lane::Mesh, wanted.freeze());
    assert_eq!(world.resets(), before + 1);
}

/// Random lives: whatever came, went and was cut, once all is quiet everybody who wants a message gets it once.
#[test]
fn after_any_history_interest_is_right() {
    for seed in 0..200 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut world = World::connected(3);
        let mut held: Vec<(usize, &str, &str, Arc<Client>, SubscriptionKey)> = Vec::new();
        let filters = ["a", "a.b", "a.*", "*.b", ">", "a.>"];
        for _ in 0..random.usize(1..60) {
            match random.u8(0..10) {
                0..4 => {
                    let (node, filter) = (random.usize(0..3), filters[random.usize(0..filters.len())]);
                    let group = ["", "g", "h"][random.usize(0..3)];
                    let (client, key) = world.subscribe(node, filter, group);
                    held.push((node, filter, group, client, key));
                }
                4..6 if !held.is_empty() => {
                    let (node, _, _, _, key) = held.swap_remove(random.usize(0..held.len()));
                    world.nodes[node].interest.unsubscribe(&key);
                }
                6 => {
                    let (a, b) = [(0, 1), (1, 2), (2, 0)][random.usize(0..3)];
                    world.cut(a, b);
                    world.connect(a, b);
                }
                7 => {
                    world.publish(random.usize(0..3), "a.b", "", "noise");
                }
                _ => {
                    let (from, to) = (random.usize(0..3), random.usize(0..3));
                    world.deliver(from, to);
                }
            }
        }
        world.settle();
        for (_, _, _, client, _) in &held {
            client.take();
        }
        assert_eq!(world.resets(), 0);
        for subject in ["a", "a.b", "c"] {
            world.publish(random.usize(0..3), subject, "", "");
            world.settle();
            let matching =
                |filter: &str| beamlog_router::subject::matches(filter.as_bytes(), subject.as_bytes());
            let mut by_group: BTreeMap<&str, usize> = BTreeMap::new();
            for (_, filter, group, client, _) in &held {
                let got = client.count();
                if group.is_empty() {
                    assert_eq!(got, usize::from(matching(filter)), "seed {seed}: {filter} of {subject}");
                } else if matching(filter) {
                    *by_group.entry(group).or_default() += got;
                } else {
                    assert_eq!(got, 0, "seed {seed}");
                }
            }
            for (group, got) in by_group {
                assert_eq!(got, 1, "seed {seed}: group {group} of {subject}");
            }
        }
    }
}
