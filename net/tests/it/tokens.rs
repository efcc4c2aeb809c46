//! Edges without a certificate: who gets in by a token, until when, and who is not shown it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use beamlog_net::certificates::{
    CertificateFiles, Certificates, Identity, ROOTS_FILE, TOKENS_FILE, Token, TokenSource, Tokens, new_token,
    write_atomically,
};
use beamlog_net::edge::{Edge, Hub, in_words};
use beamlog_net::handshake::{Hello, Message, PROTOCOL_EDGE, Reason, VERSION_HIGHEST, VERSION_LOWEST};
use beamlog_net::peer::{PeerId, Role};
use beamlog_net::transport::Urgency;
use bytes::Bytes;

use crate::edges::{echoes, hub, local, open};
use crate::support::{DAY, PATIENCE, Site, patiently, wait_for};

fn token(cluster: &str, name: &str) -> Token {
    new_token(Identity::new(cluster, Role::Edge, name).unwrap()).unwrap()
}

/// What the hub of a site takes from now on.
fn take(site: &Site, tokens: &[(&str, &Token)]) {
    let mut list = Tokens::default();
    for (edge, token) in tokens {
        list.insert(edge, token.digest()).unwrap();
    }
    write_atomically(&site.path("hub").join(TOKENS_FILE), list.to_text().as_bytes()).unwrap();
}

/// Whom an edge with a token believes.
fn roots(site: &Site) -> PathBuf {
    let path = site.path("trust").join(ROOTS_FILE);
    write_atomically(&path, site.roots.as_bytes()).unwrap();
    path
}

fn load(source: TokenSource, roots: PathBuf) -> Certificates {
    Certificates::load(CertificateFiles::with_token(source, roots)).unwrap()
}

fn edge(site: &Site, token: &Token, id: u64) -> Edge {
    Edge::start(PeerId(id), load(TokenSource::Value(token.clone()), roots(site))).unwrap()
}

/// Why it gets no tunnel; once it has heard of it, if its session was ended.
async fn refused(edge: &Edge, hub: &Hub) -> String {
    let address = hub.local_address().to_string();
    patiently("a refusal", async {
        loop {
            match edge.tunnel(&address, Urgency::Outward).await {
                Ok(_of_the_session_that_ends) => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(error) => return in_words(&error),
            }
        }
    })
    .await
}

fn sessions(hub: &Hub) -> usize {
    hub.edges().iter().filter(|edge| edge.session.is_some()).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_lets_its_edge_in_and_nobody_else() {
    let site = Site::new("c1");
    let (ours, theirs) = (token("c1", "site7"), token("c1", "site8"));
    take(&site, &[("site7", &ours), ("site8", &theirs)]);
    let (hub, _) = hub(&site, &[]);
    let seventh = edge(&site, &ours, 7);
    let (mut reader, mut writer, name) = open(&seventh, &hub).await;
    assert_eq!(name, "site7");
    echoes(&mut reader, &mut writer, 1 << 20).await;
    let shown = hub.edges();
    let session = shown[0].session.as_ref().unwrap();
    assert_eq!((session.role, session.claims.len(), session.certificate_not_after), (Role::Edge, 0, None));
    // A certificate still does, beside tokens.
    let certified = Edge::start(PeerId(9), site.certificates("site9", Role::Edge)).unwrap();
    assert_eq!(open(&certified, &hub).await.2, "site9");
    // One that was never made here, one of another name, and none at all.
    let wrong = edge(&site, &token("c1", "site7"), 10);
    assert!(refused(&wrong, &hub).await.contains("no token that is taken here"));
    for (name, claims) in [("site8", ours.reveal()), ("site7", ""), ("nobody", ours.reveal())] {
        assert_eq!(said(&site, &hub, "c1", name, claims).await, Some(Reason::Token), "{name}");
    }
    // What it says of itself must fit its token as it must fit a certificate.
    assert_eq!(said(&site, &hub, "c2", "site8", theirs.reveal()).await, Some(Reason::WrongCluster));
    // A hub of another cluster is not told anything: it has another authority.
    let elsewhere = edge(&Site::new("c2"), &token("c2", "site7"), 11);
    assert!(refused(&elsewhere, &hub).await.contains("UnknownIssuer"));
    assert_eq!(sessions(&hub), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_tokens_a_certificate_is_asked_for_by_tls() {
    let site = Site::new("c1");
    let (hub, _) = hub(&site, &[]);
    let ours = token("c1", "site7");
    let seventh = edge(&site, &ours, 7);
    refused(&seventh, &hub).await;
    wait_for("a refusal by TLS", || hub.refusals().iter().any(|count| count.reason == Reason::Tls)).await;
    // The first one is taken without a restart.
    take(&site, &[("site7", &ours)]);
    assert_eq!(open(&seventh, &hub).await.2, "site7");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_changes_its_token_without_a_break_and_loses_what_is_taken_from_it() {
    let site = Site::new("c1");
    let (old, new) = (token("c1", "site7"), token("c1", "site7"));
    take(&site, &[("site7", &old), ("site7", &new)]);
    let (hub, _) = hub(&site, &[]);
    let file = site.path("site7").join("token");
    write_atomically(&file, format!("{}\n", old.reveal()).as_bytes()).unwrap();
    let seventh = Edge::start(PeerId(7), load(TokenSource::File(file.clone()), roots(&site))).unwrap();
    let (mut reader, mut writer, _) = open(&seventh, &hub).await;
    // A new token in the file changes nothing for the session there is.
    write_atomically(&file, new.reveal().as_bytes()).unwrap();
    echoes(&mut reader, &mut writer, 1000).await;
    assert_eq!(hub.edges()[0].sessions, 1);
    // The old one is retired: its session ends, and the next one shows the new one.
    take(&site, &[("site7", &new)]);
    wait_for("the session to end", || sessions(&hub) == 0).await;
    let (mut reader, mut writer, _) = open(&seventh, &hub).await;
    echoes(&mut reader, &mut writer, 1000).await;
    // Revoked by name, although the token is still there.
    write_atomically(&site.path("hub").join("revoked"), b"name site7\n").unwrap();
    wait_for("the session to end", || sessions(&hub) == 0).await;
    assert!(refused(&seventh, &hub).await.contains("no token that is taken here"));
    write_atomically(&site.path("hub").join("revoked"), b"").unwrap();
    drop(open(&seventh, &hub).await);
    take(&site, &[]);
    wait_for("the session to end", || sessions(&hub) == 0).await;
    refused(&seventh, &hub).await;
    assert!(hub.refusals().iter().any(|count| count.reason == Reason::Revoked));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_guesses_is_not_listened_to() {
    let site = Site::new("c1");
    let ours = token("c1", "site7");
    take(&site, &[("site7", &ours)]);
    let (hub, _) = hub(&site, &[]);
    let wrong = token("c1", "site7");
    for _ in 0..10 {
        assert_eq!(said(&site, &hub, "c1", "site7", wrong.reveal()).await, Some(Reason::Token));
    }
    assert_eq!(said(&site, &hub, "c1", "site7", ours.reveal()).await, Some(Reason::Guessing));
    // Somebody at the same address with a certificate does not suffer for it.
    let certified = Edge::start(PeerId(9), site.certificates("site9", Role::Edge)).unwrap();
    assert_eq!(open(&certified, &hub).await.2, "site9");
}

/// Another edge of the same authority, which stands where the hub was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_shown_to_nodes_only() {
    let site = Site::new("c1");
    let thief = site.certificates("thief", Role::Edge).current().tls(PROTOCOL_EDGE).unwrap();
    let server = thief.server.unwrap().as_ref().clone();
    let mut server = without_client_certificates(server, &site.path("thief"));
    server.alpn_protocols = vec![PROTOCOL_EDGE.to_vec()];
    let quic = quinn::crypto::rustls::QuicServerConfig::try_from(server).unwrap();
    let endpoint =
        quinn::Endpoint::server(quinn::ServerConfig::with_crypto(Arc::new(quic)), local()).unwrap();
    let address = endpoint.local_addr().unwrap().to_string();
    let heard = Arc::new(AtomicBool::new(false));
    let listening = Arc::clone(&heard);
    let thief = tokio::spawn(async move {
        let connection = endpoint.accept().await.unwrap().await.unwrap();
        if let Ok((_, mut recv)) = connection.accept_bi().await {
            let said = recv.read_to_end(1 << 20).await.unwrap_or_default();
            listening.store(!said.is_empty(), Ordering::SeqCst);
        }
    });
    let ours = token("c1", "site7");
    let error = edge(&site, &ours, 7).tunnel(&address, Urgency::Outward).await.unwrap_err();
    assert!(in_words(&error).contains("its role has no business"), "{}", in_words(&error));
    thief.await.unwrap();
    assert!(!heard.load(Ordering::SeqCst), "nothing was said");
}

/// TLS of a server with the certificate in a folder, that asks for none.
fn without_client_certificates(server: rustls::ServerConfig, folder: &Path) -> rustls::ServerConfig {
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let pem = std::fs::read(folder.join("node.pem")).unwrap();
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(&pem).unwrap();
    rustls::ServerConfig::builder_with_provider(Arc::clone(server.crypto_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap()
}

/// Somebody without a certificate who says hello in this way: why the hub closes the connection.
async fn said(site: &Site, hub: &Hub, cluster: &str, name: &str, claims: &str) -> Option<Reason> {
    let certificates = load(TokenSource::Value(token("c1", "stranger")), roots(site));
    let tls = certificates.current().tls(PROTOCOL_EDGE).unwrap();
    assert!(tls.server.is_none());
    let quic = quinn::crypto::rustls::QuicClientConfig::try_from(tls.client.as_ref().clone()).unwrap();
    let endpoint = quinn::Endpoint::client(local()).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(quic));
    let connection = endpoint.connect_with(config, hub.local_address(), "beamlog").unwrap().await.unwrap();
    let hello = Hello {
        version_lowest: VERSION_LOWEST,
        version_highest: VERSION_HIGHEST,
        id: PeerId(66),
        incarnation: 1,
        dial: 1,
        role: Role::Edge,
        cluster: cluster.to_owned(),
        name: name.to_owned(),
        advertise: String::new(),
        claims: Bytes::copy_from_slice(claims.as_bytes()),
    };
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    drop(send.write_all(&Message::Hello(hello).encode()).await);
    let closed = tokio::time::timeout(PATIENCE, connection.closed()).await.unwrap();
    let quinn::ConnectionError::ApplicationClosed(close) = closed else { return None };
    Reason::of_code(close.error_code.into_inner())
}

#[test]
fn a_token_that_others_can_read_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let site = Site::new("c1");
    let file = site.path("site7").join("token");
    let load = |source| Certificates::load(CertificateFiles::with_token(source, roots(&site)));
    write_atomically(&file, b"beamlog-edge/c1/site7/short\n").unwrap();
    let error = load(TokenSource::File(file.clone())).unwrap_err();
    assert!(!format!("{error:?}").contains("short"), "{error:?}");
    write_atomically(&file, token("c1", "site7").reveal().as_bytes()).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    let error = load(TokenSource::File(file.clone())).unwrap_err();
    assert!(error.to_string().contains("0640"), "{error}");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let status = load(TokenSource::File(file)).unwrap().status();
    assert!(status.own.is_none() && status.ends() > std::time::SystemTime::now() + 30 * DAY);
}
