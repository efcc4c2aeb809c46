//! Who does not get in, and what is left of that: nothing but a count and a line.

use std::net::UdpSocket;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use beamlog_net::certificates::{REVOKED_FILE, write_atomically};
use beamlog_net::handshake::{Hello, Message, Reason, VERSION_HIGHEST, VERSION_LOWEST};
use beamlog_net::peer::{Lane, PeerId, PeerTransport, Refusal, Role};
use beamlog_net::transport::DialError;
use bytes::Bytes;
use quinn::{ClientConfig, Connection, Endpoint};

use crate::support::{CALL, DAY, Site, TestNode, options, patiently};

fn hello() -> Hello {
    Hello {
        version_lowest: VERSION_LOWEST,
        version_highest: VERSION_HIGHEST,
        id: PeerId(66),
        incarnation: 1,
        dial: 1,
        role: Role::Node,
        cluster: "c1".to_owned(),
        name: "stranger".to_owned(),
        advertise: String::new(),
        claims: Bytes::new(),
    }
}

/// Somebody with a certificate of the cluster and a mind of its own.
struct Stranger {
    connection: Connection,
    _endpoint: Endpoint,
}

impl Stranger {
    async fn connect(site: &Site, to: &TestNode, protocol: &[u8]) -> Result<Self, quinn::ConnectionError> {
        let tls = site.certificates("stranger", Role::Node).current().tls(protocol).unwrap();
        Self::connect_with(tls.client.as_ref().clone(), to).await
    }

    async fn connect_with(tls: rustls::ClientConfig, to: &TestNode) -> Result<Self, quinn::ConnectionError> {
        let quic = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
        let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let config = ClientConfig::new(Arc::new(quic));
        let connection =
            endpoint.connect_with(config, to.transport.local_address(), "beamlog").unwrap().await?;
        Ok(Self { connection, _endpoint: endpoint })
    }

    /// Sends first words, and reads the reason for which the connection closes.
    async fn says(&self, words: &[u8]) -> Option<Reason> {
        if let Ok((mut send, _recv)) = self.connection.open_bi().await {
            // It may be closed before all is written.
            drop(send.write_all(words).await);
            drop(send.finish());
            return self.closed().await;
        }
        self.closed().await
    }

    async fn closed(&self) -> Option<Reason> {
        let closed = patiently("the connection to close", self.connection.closed()).await;
        let quinn::ConnectionError::ApplicationClosed(close) = closed else { return None };
        Reason::of_code(close.error_code.into_inner())
    }

    /// Through the handshake, as anybody.
    async fn introduce(&self) {
        let (mut send, mut recv) = self.connection.open_bi().await.unwrap();
        send.write_all(&Message::Hello(hello()).encode()).await.unwrap();
        let mut header = [0; 5];
        recv.read_exact(&mut header).await.unwrap();
        let (kind, length) = Message::header(header).unwrap();
        let mut body = vec![0; length];
        recv.read_exact(&mut body).await.unwrap();
        assert!(matches!(Message::decode(kind, &body), Ok(Message::Welcome(_))));
        send.write_all(&Message::Confirm { version: VERSION_HIGHEST }.encode()).await.unwrap();
        send.finish().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_of_others_of_the_past_and_revoked_ones_do_not_get_in() {
    let site = Site::new("c1");
    let one = site.node("n1", 1);
    let dial = async |other: &Site, name: &str, prepare: &dyn Fn(&std::path::Path)| {
        let directory = other.path(name);
        other.write(&directory, name, Role::Node, 30 * DAY);
        prepare(&directory);
        let files = beamlog_net::certificates::CertificateFiles::in_directory(&directory);
        let certificates = beamlog_net::certificates::Certificates::load(files).unwrap();
        let node = TestNode::start(options(2), certificates);
        let dialled = node.transport.dial(&one.address()).await;
        assert!(dialled.is_err(), "{name} got in");
        // Neither is one believed that is dialled.
        assert!(one.transport.dial(&node.address()).await.is_err(), "{name} was believed");
        assert!(node.saw_nobody());
    };
    // Another authority, of another cluster or of one with the same name. It trusts ours: only we can refuse.
    for cluster in ["c2", "c1"] {
        let mut other = Site::new(cluster);
        other.roots.push_str(&site.roots);
        dial(&other, "foreign", &|_| ()).await;
    }
    let past = SystemTime::now() - 10 * DAY;
    dial(&site, "expired", &|directory| site.write_as_of(directory, "expired", Role::Node, past, DAY)).await;
    let future = SystemTime::now() + 10 * DAY;
    dial(&site, "early", &|directory| site.write_as_of(directory, "early", Role::Node, future, DAY)).await;
    write_atomically(&site.path("n1").join(REVOKED_FILE), b"name stolen\n").unwrap();
    dial(&site, "stolen", &|_| ()).await;
    one.refused(Reason::Tls).await;
    assert!(one.saw_nobody());
    // Somebody else is welcome all the same.
    let two = site.node("n2", 2);
    two.transport.dial(&one.address()).await.unwrap();
}

/// Has no certificate.
#[derive(Debug)]
struct Nobody;

impl rustls::client::ResolvesClientCert for Nobody {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_certificate_no_entry() {
    let site = Site::new("c1");
    let one = site.node("n1", 1);
    let tls = site.certificates("stranger", Role::Node).current().tls(b"beamlog-node/1").unwrap();
    let mut anonymous = tls.client.as_ref().clone();
    anonymous.client_auth_cert_resolver = Arc::new(Nobody);
    let stranger = Stranger::connect_with(anonymous, &one).await;
    if let Ok(stranger) = stranger {
        assert_eq!(stranger.says(&Message::Hello(hello()).encode()).await, None, "TLS ends it, not we");
    }
    one.refused(Reason::Tls).await;
    assert!(one.saw_nobody());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_protocol_is_refused_by_tls_and_another_version_with_its_reason() {
    let site = Site::new("c1");
    let one = site.node("n1", 1);
    for protocol in [&b"h3"[..], b"beamlog-node/2", b"beamlog-edge/1"] {
        assert!(Stranger::connect(&site, &one, protocol).await.is_err());
    }
    for (lowest, highest, reason) in
        [(0, 0, Reason::TooOld), (VERSION_HIGHEST + 1, VERSION_HIGHEST + 2, Reason::TooNew)]
    {
        let stranger = Stranger::connect(&site, &one, b"beamlog-node/1").await.unwrap();
        let words = Hello { version_lowest: lowest, version_highest: highest, ..hello() };
        assert_eq!(stranger.says(&Message::Hello(words).encode()).await, Some(reason));
        one.refused(reason).await;
    }
    assert!(one.saw_nobody());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn words_that_do_not_fit_are_refused_with_their_reason() {
    let site = Site::new("c1");
    let one = site.node("n1", 1);
    let words = |change: &dyn Fn(&mut Hello)| {
        let mut hello = hello();
        change(&mut hello);
        Message::Hello(hello).encode().to_vec()
    };
    let cases: [(Vec<u8>, Reason); 10] = [
        (words(&|hello| hello.cluster = "c2".to_owned()), Reason::WrongCluster),
        (words(&|hello| hello.name = "n2".to_owned()), Reason::NotItsCertificate),
        (words(&|hello| hello.role = Role::Edge), Reason::NotItsCertificate),
        (words(&|hello| hello.id = PeerId(1)), Reason::IdTaken),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), Reason::Malformed),
        (vec![1, 0xff, 0xff, 0xff, 0xff], Reason::Malformed),
        (vec![9, 0, 0, 0, 0], Reason::Malformed),
        (Message::Confirm { version: 1 }.encode().to_vec(), Reason::Malformed),
        (Message::Welcome(hello()).encode().to_vec(), Reason::Malformed),
        ([words(&|_| ()), vec![3, 2, 0, 0, 0, 9, 9]].concat(), Reason::Malformed),
    ];
    for (bytes, reason) in cases {
        let stranger = Stranger::connect(&site, &one, b"beamlog-node/1").await.unwrap();
        assert_eq!(stranger.says(&bytes).await, Some(reason), "{bytes:?}");
    }
    assert!(one.saw_nobody());
    // Whoever says nothing is not waited for.
    let stranger = Stranger::connect(&site, &one, b"beamlog-node/1").await.unwrap();
    assert_eq!(stranger.closed().await, Some(Reason::Slow));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_and_ids_that_belong_to_others_are_refused() {
    let site = Site::new("c1");
    let one = site.node("n1", 1);
    one.transport.remember(PeerId(2), "n2").unwrap();
    // A wiped node: the name it had, a new id.
    let wiped = site.node("n2", 22);
    let refused = wiped.transport.dial(&one.address()).await.unwrap_err();
    assert!(matches!(refused, DialError::RefusedByPeer { reason: Reason::NameTaken, .. }), "{refused}");
    // A copied store under another name.
    let copied = site.node("n3", 2);
    let refused = copied.transport.dial(&one.address()).await.unwrap_err();
    assert!(matches!(refused, DialError::RefusedByPeer { reason: Reason::IdTaken, .. }), "{refused}");
    // Our own certificate elsewhere, with another store.
    let twin = TestNode::start(options(11), site.certificates("n1", Role::Node));
    let refused = twin.transport.dial(&one.address()).await.unwrap_err();
    assert!(matches!(refused, DialError::RefusedByPeer { reason: Reason::NameTaken, .. }), "{refused}");
    assert!(one.handler.seen().connected.is_empty());
    // Once the old one is removed, the name is free.
    one.transport.forget(PeerId(2));
    wiped.transport.dial(&one.address()).await.unwrap();
    one.connected_with(wiped.id).await;
    // And a removed one goes at once.
    one.transport.forget(wiped.id);
    one.handler.until(|seen| (seen.disconnected.len() == 1).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cluster_has_the_last_word_on_both_sides() {
    let site = Site::new("c1");
    let (one, two) = (site.node("n1", 1), site.node("n2", 2));
    let no = Refusal { code: 13, reason: "its log went back".to_owned() };
    one.handler.refuse(Some(no.clone()));
    let refused = two.transport.dial(&one.address()).await.unwrap_err();
    assert!(
        matches!(&refused, DialError::RefusedByPeer { reason: Reason::NotAdmitted, detail, .. } if detail.contains("went back")),
        "{refused}"
    );
    let refused = one.transport.dial(&two.address()).await.unwrap_err();
    assert!(matches!(refused, DialError::Refused { reason: Reason::NotAdmitted, .. }), "{refused}");
    assert!(one.saw_nobody());
    one.handler.refuse(None);
    two.transport.dial(&one.address()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_expected_peer_and_no_other() {
    let site = Site::new("c1");
    let (one, two) = (site.node("n1", 1), site.node("n2", 2));
    let wrong = beamlog_net::transport::PeerAddress { id: Some(PeerId(3)), addresses: vec![two.address()] };
    one.transport.set_peers(vec![wrong]);
    one.refused(Reason::Unexpected).await;
    assert!(one.saw_nobody());
    assert!(two.handler.seen().connected.len() == two.handler.seen().disconnected.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_breaks_the_protocol_is_disconnected() {
    let site = Site::new("c1");
    let one = site.node("n1", 1);
    let oversized = |lane: u8, max: usize| {
        let mut bytes = vec![lane];
        bytes.extend_from_slice(&u32::try_from(max + 1).unwrap().to_le_bytes());
        bytes
    };
    let calls: [Vec<u8>; 4] = [
        oversized(1, Lane::Vote.bytes_max()),
        oversized(2, Lane::Append.bytes_max()),
        vec![0],
        vec![3, 0, 0, 0, 0],
    ];
    for bytes in calls {
        let stranger = Stranger::connect(&site, &one, b"beamlog-node/1").await.unwrap();
        stranger.introduce().await;
        let (mut send, _recv) = stranger.connection.open_bi().await.unwrap();
        send.write_all(&bytes).await.unwrap();
        assert_eq!(stranger.closed().await, Some(Reason::Violation), "{bytes:?}");
        wait_until_gone(&one).await;
    }
    for streams in [vec![oversized(3, Lane::Mesh.bytes_max())], vec![vec![2]], vec![vec![3], vec![3]]] {
        let stranger = Stranger::connect(&site, &one, b"beamlog-node/1").await.unwrap();
        stranger.introduce().await;
        let mut open = Vec::new();
        for bytes in &streams {
            let mut send = stranger.connection.open_uni().await.unwrap();
            send.write_all(bytes).await.unwrap();
            open.push(send);
        }
        assert_eq!(stranger.closed().await, Some(Reason::Violation), "{streams:?}");
        wait_until_gone(&one).await;
    }
    assert_eq!(one.handler.seen().frames.len(), 0);
}

async fn wait_until_gone(node: &TestNode) {
    node.handler.until(|seen| (seen.connected.len() == seen.disconnected.len()).then_some(())).await;
    crate::support::wait_for("the table to be empty", || node.transport.session(PeerId(66)).is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_that_are_no_quic_or_were_heard_before_change_nothing() {
    let site = Site::new("c1");
    let (one, two) = (site.node("n1", 1), site.node("n2", 2));
    // Everything the dialling side sends passes here and is sent again later.
    let relay = UdpSocket::bind("127.0.0.1:0").unwrap();
    relay.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let (relay_address, target) = (relay.local_addr().unwrap(), one.transport.local_address());
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopping = Arc::clone(&stop);
    let relaying = std::thread::spawn(move || {
        let mut client = None;
        let mut heard: Vec<Vec<u8>> = Vec::new();
        let mut buffer = [0; 65_536];
        while !stopping.load(std::sync::atomic::Ordering::Acquire) {
            let Ok((length, from)) = relay.recv_from(&mut buffer) else { continue };
            if from == target {
                relay.send_to(&buffer[..length], client.unwrap()).unwrap();
            } else {
                client = Some(from);
                heard.push(buffer[..length].to_vec());
                relay.send_to(&buffer[..length], target).unwrap();
            }
        }
        for packet in &heard {
            relay.send_to(packet, target).unwrap();
        }
        heard.len()
    });
    let session = two.transport.dial(&relay_address.to_string()).await.unwrap();
    for n in 0_u32..10 {
        two.transport.send(session, Lane::Mesh, Bytes::copy_from_slice(&n.to_le_bytes())).unwrap();
    }
    one.handler.until(|seen| (seen.frames.len() == 10).then_some(())).await;
    stop.store(true, std::sync::atomic::Ordering::Release);
    assert!(tokio::task::spawn_blocking(|| relaying.join().unwrap()).await.unwrap() > 3);
    // And what never was QUIC: from one byte to a whole datagram.
    let garbage = UdpSocket::bind("127.0.0.1:0").unwrap();
    for n in 0..2000_usize {
        let bytes: Vec<u8> = (0..=n % 1400).map(|_| fastrand::u8(..)).collect();
        garbage.send_to(&bytes, target).unwrap();
    }
    garbage.send_to(b"CONNECT {}\r\nPING\r\n", target).unwrap();
    // Somebody else is served as ever, and nothing came twice.
    let three = site.node("n3", 3);
    three.transport.dial(&one.address()).await.unwrap();
    assert_eq!(three.echo(one.id, Lane::Vote, b"fine").await, "fine");
    let seen = one.handler.seen();
    assert_eq!(seen.frames.len(), 10);
    assert_eq!(seen.connected.iter().filter(|session| session.peer == two.id).count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_half_open_connections_leaves_room_for_peers() {
    let site = Site::new("c1");
    let one = site.node("n1", 1);
    let mut strangers = Vec::new();
    for _ in 0..100 {
        strangers.push(Stranger::connect(&site, &one, b"beamlog-node/1").await.unwrap());
    }
    // They are through TLS and say nothing. A peer still gets in, by proving its address.
    let two = site.node("n2", 2);
    two.transport.dial(&one.address()).await.unwrap();
    let answer = two.transport.call(one.id, Lane::Vote, Bytes::from_static(b"in"), CALL).await;
    assert_eq!(answer, Ok(Bytes::from_static(b"in")));
}
