//! An edge and its hub: tunnels, who gets in, and what happens when either is another one than before.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use beamlog_net::edge::{Edge, Hub, in_words};
use beamlog_net::handshake::{Hello, Message, PROTOCOL_EDGE, Reason, VERSION_HIGHEST, VERSION_LOWEST};
use beamlog_net::peer::{BoxFuture, Introduction, PeerId, Role};
use beamlog_net::transport::{BindError, Tunnel, TunnelHandler, TunnelReader, TunnelWriter, Urgency};
use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{Site, patiently, wait_for};

/// Says the edge's name, then everything back.
#[derive(Default)]
pub(crate) struct Echo {
    open: Arc<AtomicUsize>,
}

struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl TunnelHandler for Echo {
    fn serve(&self, peer: &Introduction, _: SocketAddr, tunnel: Tunnel) -> BoxFuture<'static, ()> {
        self.open.fetch_add(1, Ordering::SeqCst);
        let (name, counted) = (peer.name.clone(), Counted(Arc::clone(&self.open)));
        Box::pin(async move {
            let _counted = counted;
            let (mut reader, mut writer) = tunnel.into_split();
            drop(writer.write_all(format!("{name:>8}").as_bytes()).await);
            drop(tokio::io::copy(&mut reader, &mut writer).await);
        })
    }
}

pub(crate) fn hub(site: &Site, named: &'static [&'static str]) -> (Hub, Arc<AtomicUsize>) {
    let echo = Echo::default();
    let open = Arc::clone(&echo.open);
    let admission = Arc::new(move |name: &str| named.is_empty() || named.contains(&name));
    let certificates = site.certificates("hub", Role::Node);
    let hub = Hub::start(PeerId(1), local(), certificates, admission, Arc::new(echo)).unwrap();
    (hub, open)
}

pub(crate) fn local() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn edge(site: &Site, name: &str, id: u64) -> Edge {
    Edge::start(PeerId(id), site.certificates(name, Role::Edge)).unwrap()
}

/// A tunnel, and the name that the hub greets with. An edge may hear late that its session has ended: it tries again.
pub(crate) async fn open(edge: &Edge, hub: &Hub) -> (TunnelReader, TunnelWriter, String) {
    let address = hub.local_address().to_string();
    patiently("the hub", async {
        loop {
            if let Ok(tunnel) = edge.tunnel(&address, Urgency::Outward).await {
                let (mut reader, writer) = tunnel.into_split();
                let mut name = [0; 8];
                if reader.read_exact(&mut name).await.is_ok() {
                    return (reader, writer, String::from_utf8(name.to_vec()).unwrap().trim().to_owned());
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}

pub(crate) async fn echoes(reader: &mut TunnelReader, writer: &mut TunnelWriter, bytes: usize) {
    let sent = vec![7; bytes];
    let mut got = vec![0; bytes];
    let (wrote, read) =
        patiently("an echo", async { tokio::join!(writer.write_all(&sent), reader.read_exact(&mut got)) })
            .await;
    wrote.unwrap();
    read.unwrap();
    assert!(got == sent, "what came back is what was sent");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tunnels_share_a_session_carry_both_ways_and_outlive_a_change_of_address() {
    let site = Site::new("c1");
    let (hub, open_tunnels) = hub(&site, &[]);
    let edge = edge(&site, "site7", 7);
    let (mut reader, mut writer, name) = open(&edge, &hub).await;
    assert_eq!(name, "site7");
    let (mut second_reader, mut second_writer, _) = open(&edge, &hub).await;
    // More than all windows together.
    echoes(&mut reader, &mut writer, 24 << 20).await;
    echoes(&mut second_reader, &mut second_writer, 1000).await;
    edge.rebind().unwrap();
    echoes(&mut reader, &mut writer, 1 << 20).await;
    let edges = hub.edges();
    assert_eq!((edges.len(), edges[0].sessions), (1, 1));
    assert_eq!(edges[0].session.as_ref().unwrap().role, Role::Edge);
    drop((reader, writer));
    wait_for("one tunnel to end", || open_tunnels.load(Ordering::SeqCst) == 1).await;
    hub.close().await;
    // It is told, and does not have to find out.
    let mut rest = Vec::new();
    assert!(patiently("the end", second_reader.read_to_end(&mut rest)).await.is_err());
    assert_eq!(open_tunnels.load(Ordering::SeqCst), 0, "tunnels end with their session");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_has_so_many_tunnels_and_others_are_not_kept_waiting_by_it() {
    let site = Site::new("c1");
    let (hub, _) = hub(&site, &[]);
    let (greedy, modest) = (edge(&site, "greedy", 7), edge(&site, "modest", 8));
    let mut tunnels = Vec::new();
    let refused = loop {
        match greedy.tunnel(&hub.local_address().to_string(), Urgency::Outward).await {
            Ok(tunnel) => tunnels.push(tunnel),
            Err(error) => break error,
        }
        assert!(tunnels.len() <= 32, "it is bounded");
    };
    assert!(in_words(&refused).contains("no more tunnels"), "{refused}");
    let (mut reader, mut writer, _) = open(&modest, &hub).await;
    echoes(&mut reader, &mut writer, 1000).await;
    drop(tunnels);
    drop(open(&greedy, &hub).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_whose_store_was_emptied_takes_its_place_and_a_copy_does_not() {
    let site = Site::new("c1");
    let (hub, _) = hub(&site, &[]);
    let first = edge(&site, "site7", 7);
    let _open = open(&first, &hub).await;
    // The same certificate from another store, while the first answers.
    let second = edge(&site, "site7", 8);
    let address = hub.local_address().to_string();
    let error = second.tunnel(&address, Urgency::Outward).await.unwrap_err();
    assert!(in_words(&error).contains("known under another id"), "{}", in_words(&error));
    first.close().await;
    wait_for("the first to be gone", || hub.edges().iter().all(|edge| edge.session.is_none())).await;
    let (mut reader, mut writer, _) = open(&second, &hub).await;
    echoes(&mut reader, &mut writer, 1000).await;
    // Another name for the same store, once the old one is gone.
    second.close().await;
    wait_for("the second to be gone", || hub.edges().iter().all(|edge| edge.session.is_none())).await;
    let renamed = edge(&site, "site8", 8);
    assert_eq!(open(&renamed, &hub).await.2, "site8");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_no_edge_of_this_hub_does_not_get_in() {
    let site = Site::new("c1");
    let (hub, open_tunnels) = hub(&site, &["site7"]);
    let address = hub.local_address().to_string();
    let refused = |reason: Reason| hub.refusals().iter().any(|count| count.reason == reason);
    // The wrong kind of certificate is noticed before anything is sent.
    let node = Edge::start(PeerId(9), site.certificates("n9", Role::Node)).unwrap_err();
    assert!(matches!(node, BindError::Role { role: Role::Node, .. }), "{node}");
    assert!(node.to_string().contains("beamlog cert edge"), "{node}");
    let admission: Arc<dyn Fn(&str) -> bool + Send + Sync> = Arc::new(|_: &str| true);
    let wrong = Hub::start(
        PeerId(9),
        local(),
        site.certificates("e", Role::Edge),
        admission,
        Arc::new(Echo::default()),
    );
    assert!(matches!(wrong.unwrap_err(), BindError::Role { role: Role::Edge, .. }));
    // And by the hub, from one that sends all the same.
    for (role, reason) in [(Role::Node, Reason::WrongRole), (Role::Witness, Reason::WrongRole)] {
        assert_eq!(introduced(&site, &hub, role, VERSION_LOWEST..=VERSION_HIGHEST, "c1").await, Some(reason));
    }
    let future = VERSION_HIGHEST + 1..=VERSION_HIGHEST + 2;
    assert_eq!(introduced(&site, &hub, Role::Edge, future, "c1").await, Some(Reason::TooNew));
    let today = VERSION_LOWEST..=VERSION_HIGHEST;
    assert_eq!(introduced(&site, &hub, Role::Edge, today, "c2").await, Some(Reason::WrongCluster));
    let error = edge(&site, "other", 10).tunnel(&address, Urgency::Outward).await.unwrap_err();
    assert!(in_words(&error).contains("no [[edge]] of this hub is named other"), "{}", in_words(&error));
    let mut stranger = Site::new("c1");
    stranger.roots.push_str(&site.roots);
    assert!(edge(&stranger, "site7", 11).tunnel(&address, Urgency::Outward).await.is_err());
    wait_for("refusals by TLS", || refused(Reason::Tls)).await;
    assert!(refused(Reason::NotAdmitted) && refused(Reason::WrongRole) && refused(Reason::TooNew));
    // Nobody is at home; noise is no QUIC.
    let nobody = UdpSocket::bind("127.0.0.1:0").unwrap();
    let dialling = edge(&site, "site6", 12);
    let error =
        dialling.tunnel(&nobody.local_addr().unwrap().to_string(), Urgency::Outward).await.unwrap_err();
    assert!(!in_words(&error).is_empty());
    for length in [1, 21, 1200, 1472] {
        nobody.send_to(&vec![0xff; length], hub.local_address()).unwrap();
    }
    assert_eq!(open_tunnels.load(Ordering::SeqCst), 0);
    let edge = edge(&site, "site7", 7);
    assert_eq!(open(&edge, &hub).await.2, "site7");
}

/// Somebody with a certificate of the authority who says hello in this way: why the hub closes the connection.
async fn introduced(
    site: &Site,
    hub: &Hub,
    role: Role,
    versions: std::ops::RangeInclusive<u16>,
    cluster: &str,
) -> Option<Reason> {
    let tls = site.certificates("stranger", role).current().tls(PROTOCOL_EDGE).unwrap();
    let quic = quinn::crypto::rustls::QuicClientConfig::try_from(tls.client.as_ref().clone()).unwrap();
    let endpoint = quinn::Endpoint::client(local()).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(quic));
    let connection = endpoint.connect_with(config, hub.local_address(), "beamlog").unwrap().await.unwrap();
    let hello = Hello {
        version_lowest: *versions.start(),
        version_highest: *versions.end(),
        id: PeerId(66),
        incarnation: 1,
        dial: 1,
        role,
        cluster: cluster.to_owned(),
        name: "stranger".to_owned(),
        advertise: String::new(),
        claims: Bytes::new(),
    };
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    drop(send.write_all(&Message::Hello(hello).encode()).await);
    let closed = tokio::time::timeout(Duration::from_secs(30), connection.closed()).await.unwrap();
    let quinn::ConnectionError::ApplicationClosed(close) = closed else { return None };
    Reason::of_code(close.error_code.into_inner())
}
