//! Three nodes in a mesh, over QUIC.

use std::sync::{Arc, Mutex};

use beamlog_net::mesh::{Mesh, MeshMessage, StreamGate};
use beamlog_net::peer::{ByLane, Lane, PeerHandler, PeerId, PeerTransport, Role};
use beamlog_net::transport::{PeerAddress, Transport};
use beamlog_router::StreamId;
use beamlog_router::interest::{Envelope, Interest, Offered, RouteCache, Subscriber};
use tokio::sync::mpsc;

use crate::support::{Site, options, patiently, wait_for};

/// A message: subject, reply, payload.
type Message = (Vec<u8>, Vec<u8>, Vec<u8>);

/// Somebody at a node.
struct Client(mpsc::UnboundedSender<Message>);

impl Subscriber for Client {
    fn offer(&self, _: u64, message: &Envelope<'_>) -> Offered {
        let parts = (message.subject.to_vec(), message.reply.to_vec(), message.payload.to_vec());
        // A test that has seen enough listens no more.
        drop(self.0.send(parts));
        Offered::Taken
    }

    fn flush(&self) {}
}

#[derive(Default)]
struct Gate(Mutex<Vec<(PeerId, Vec<u8>)>>);

impl StreamGate for Gate {
    fn request(&self, message: &MeshMessage<'_>) {
        self.0.lock().unwrap().push((message.from, message.subject.to_vec()));
    }

    fn captured(&self, _: StreamId, message: &MeshMessage<'_>) {
        self.0.lock().unwrap().push((message.from, message.subject.to_vec()));
    }
}

struct Node {
    id: PeerId,
    interest: Arc<Interest>,
    mesh: Mesh,
    gate: Arc<Gate>,
    transport: Transport,
}

impl Node {
    fn start(site: &Site, id: u64) -> Self {
        let transport =
            Transport::bind(options(id), site.certificates(&format!("n{id}"), Role::Node)).unwrap();
        let (interest, gate) = (Arc::new(Interest::new()), Arc::new(Gate::default()));
        let mesh = Mesh::new(Arc::clone(&interest), Arc::clone(&gate) as Arc<dyn StreamGate>);
        mesh.attach(Arc::new(transport.clone()));
        let handlers: Vec<(&'static [Lane], Arc<dyn PeerHandler>)> =
            vec![(&[Lane::Mesh], Arc::new(mesh.clone()))];
        transport.start(Arc::new(ByLane::new(handlers)));
        Self { id: PeerId(id), interest, mesh, gate, transport }
    }

    fn subscribe(&self, filter: &str, queue: Option<&str>) -> mpsc::UnboundedReceiver<Message> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let client = Arc::new(Client(sender));
        self.interest.subscribe(filter.as_bytes(), queue.map(str::as_bytes), client, 1).unwrap();
        receiver
    }

    fn publish(&self, subject: &[u8], reply: &[u8], payload: &[u8]) -> usize {
        let envelope = Envelope { subject, reply, headers: b"", payload, origin: 0 };
        self.interest.route(&mut RouteCache::new(), subject, &envelope).receivers
    }
}

async fn three(site: &Site) -> [Node; 3] {
    let nodes = [1, 2, 3].map(|id| Node::start(site, id));
    let all: Vec<PeerAddress> = nodes
        .iter()
        .map(|node| PeerAddress {
            id: Some(node.id),
            addresses: vec![node.transport.local_address().to_string()],
        })
        .collect();
    for node in &nodes {
        node.transport.set_peers(all.clone());
    }
    wait_for("a full mesh", || nodes.iter().all(|node| node.mesh.snapshot().len() == 2)).await;
    nodes
}

async fn next(inbox: &mut mpsc::UnboundedReceiver<Message>) -> Message {
    patiently("a message", inbox.recv()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_groups_and_the_leader_are_reached_from_everywhere() {
    let site = Site::new("c1");
    let nodes = three(&site).await;
    // A service on one, asked by another, with a new inbox for each request: no answer is lost.
    let mut service = nodes[1].subscribe("service.*", Some("workers"));
    let mut second = nodes[2].subscribe("service.*", Some("workers"));
    wait_for("the service to be known", || nodes[0].interest.has_interest(b"service.x")).await;
    wait_for("both to be known", || nodes[0].mesh.snapshot().iter().all(|link| link.wanted == 1)).await;
    for n in 0..500 {
        let inbox = format!("_INBOX.{n}");
        let mut answers = nodes[0].subscribe(&inbox, None);
        assert_eq!(nodes[0].publish(b"service.x", inbox.as_bytes(), b"?"), 1);
        let (answering, (_, reply, _)) = tokio::select! {
            got = next(&mut service) => (&nodes[1], got),
            got = next(&mut second) => (&nodes[2], got),
        };
        assert_eq!(answering.publish(&reply, b"", b"!"), 1, "the way back is known");
        assert_eq!(next(&mut answers).await.2, b"!");
    }
    assert!(service.try_recv().is_err() && second.try_recv().is_err(), "one member for each");
    // Nobody listens: the publisher knows it at once.
    assert_eq!(nodes[0].publish(b"nobody", b"_INBOX.x", b""), 0);
    // The leader.
    nodes[2].mesh.set_leader(true);
    nodes[2].interest.capture(b"orders.>", StreamId(1)).unwrap();
    wait_for("the leader to be known", || {
        nodes[..2].iter().all(|node| {
            node.interest.has_interest(b"orders.x") && node.interest.has_interest(b"$JS.API.INFO")
        })
    })
    .await;
    nodes[0].publish(b"$JS.API.INFO", b"_INBOX.a", b"");
    nodes[1].publish(b"orders.eu", b"_INBOX.b", b"");
    wait_for("both at the gate", || nodes[2].gate.0.lock().unwrap().len() == 2).await;
    let mut at_gate = nodes[2].gate.0.lock().unwrap().clone();
    at_gate.sort();
    assert_eq!(at_gate, [(PeerId(1), b"$JS.API.INFO".to_vec()), (PeerId(2), b"orders.eu".to_vec())]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interest_comes_and_goes_with_its_node_and_order_is_kept() {
    let site = Site::new("c1");
    let [one, two, three] = three(&site).await;
    let mut inbox = two.subscribe("numbers", None);
    wait_for("the subscription", || one.interest.has_interest(b"numbers")).await;
    let mut cache = RouteCache::new();
    for n in 0_u32..20_000 {
        let payload = n.to_le_bytes();
        let envelope =
            Envelope { subject: b"numbers", reply: b"", headers: b"", payload: &payload, origin: 0 };
        assert_eq!(one.interest.route(&mut cache, b"numbers", &envelope).receivers, 1);
        if n % 100 == 99 {
            cache.flush();
        }
    }
    for n in 0_u32..20_000 {
        assert_eq!(next(&mut inbox).await.2, n.to_le_bytes());
    }
    two.transport.close().await;
    wait_for("the interest to go", || {
        !one.interest.has_interest(b"numbers") && !three.interest.has_interest(b"numbers")
    })
    .await;
    // A session that is cut in the middle comes back with everything.
    let _again = three.subscribe("other", None);
    wait_for("the other", || one.interest.has_interest(b"other")).await;
    one.transport.reset(one.transport.session(three.id).unwrap(), "to see");
    wait_for("a new session", || {
        one.mesh.snapshot().iter().any(|link| link.session.number > 2 && link.wanted == 1)
    })
    .await;
}
