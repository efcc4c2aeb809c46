//! Authentication and TLS.

use std::path::PathBuf;
use std::time::Duration;

use async_nats::ConnectOptions;
use beamlog_nats::{Auth, Server, ServerOptions, TlsOptions};
use futures_util::StreamExt;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;

use crate::raw::{Raw, options, start};

fn users() -> Auth {
    Auth::Users(vec![("alice".into(), "secret".into()), ("bob".into(), "other".into())])
}

async fn refused(server: &Server, sent: &str) {
    let mut client = Raw::connect(server.local_addr()).await;
    client.send(sent).await;
    assert_eq!(client.until_end().await, "-ERR 'Authorization Violation'\r\n", "{sent}");
}

async fn admitted(server: &Server, sent: &str) {
    let mut client = Raw::connect(server.local_addr()).await;
    client.send(sent).await;
    client.expect("+OK\r\nPONG\r\n").await;
}

#[tokio::test]
async fn only_users_with_their_own_password_come_in() {
    let server = start(ServerOptions { auth: users(), ..options() }).await;
    admitted(&server, "CONNECT {\"user\":\"alice\",\"pass\":\"secret\"}\r\nPING\r\n").await;
    admitted(&server, "CONNECT {\"user\":\"bob\",\"pass\":\"other\"}\r\nPING\r\n").await;
    for sent in [
        "CONNECT {}\r\n",
        "CONNECT {\"user\":\"alice\"}\r\n",
        "CONNECT {\"user\":\"alice\",\"pass\":\"other\"}\r\n",
        "CONNECT {\"user\":\"alice\",\"pass\":\"secret2\"}\r\n",
        "CONNECT {\"user\":\"alice\",\"pass\":\"secre\"}\r\n",
        "CONNECT {\"user\":\"eve\",\"pass\":\"secret\"}\r\n",
        "CONNECT {\"auth_token\":\"secret\"}\r\n",
        "PING\r\n",
        "PUB a 1\r\nx\r\n",
        "SUB > 1\r\n",
        "GET / HTTP/1.1\r\n\r\n",
    ] {
        refused(&server, sent).await;
    }
}

#[tokio::test]
async fn a_token_is_a_token_and_nothing_else() {
    let server = start(ServerOptions { auth: Auth::Token("t0k".into()), ..options() }).await;
    admitted(&server, "CONNECT {\"auth_token\":\"t0k\"}\r\nPING\r\n").await;
    refused(&server, "CONNECT {\"auth_token\":\"t0\"}\r\n").await;
    refused(&server, "CONNECT {\"pass\":\"t0k\"}\r\n").await;
    refused(&server, "CONNECT {\"user\":\"t0k\"}\r\n").await;
}

#[tokio::test]
async fn async_nats_authenticates() {
    let server = start(ServerOptions { auth: users(), ..options() }).await;
    let url = format!("nats://{}", server.local_addr());
    let client =
        ConnectOptions::with_user_and_password("alice".into(), "secret".into()).connect(&url).await.unwrap();
    client.flush().await.unwrap();
    assert_eq!(server.connections()[0].user, "alice");
    let error =
        ConnectOptions::with_user_and_password("alice".into(), "x".into()).connect(&url).await.unwrap_err();
    assert_eq!(error.kind(), async_nats::ConnectErrorKind::AuthorizationViolation);
}

#[tokio::test]
async fn who_does_not_authenticate_in_time_is_told_and_dropped() {
    let auth_timeout = Duration::from_millis(100);
    let server = start(ServerOptions { auth: users(), auth_timeout, ..options() }).await;
    let mut client = Raw::connect(server.local_addr()).await;
    assert_eq!(client.until_end().await, "-ERR 'Authentication Timeout'\r\n");
}

struct Certificates {
    directory: TempDir,
}

impl Certificates {
    /// An authority, a certificate for localhost, and one for a client.
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(directory.path().join("ca.pem"), authority.pem()).unwrap();
        for name in ["localhost", "client"] {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            let certificate = params.signed_by(&key, &authority).unwrap();
            std::fs::write(directory.path().join(format!("{name}.pem")), certificate.pem()).unwrap();
            std::fs::write(directory.path().join(format!("{name}.key")), key.serialize_pem()).unwrap();
        }
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn server(&self, client_ca: bool) -> TlsOptions {
        let ca = self.path("ca.pem");
        TlsOptions::from_files(
            &self.path("localhost.pem"),
            &self.path("localhost.key"),
            client_ca.then_some(ca.as_path()),
        )
        .unwrap()
    }

    fn client(&self) -> ConnectOptions {
        ConnectOptions::new().require_tls(true).add_root_certificates(self.path("ca.pem"))
    }
}

async fn exchange(server: &Server, client: ConnectOptions) {
    let client = client.connect(format!("nats://localhost:{}", server.local_addr().port())).await.unwrap();
    let mut subscription = client.subscribe("a").await.unwrap();
    let payload = vec![7_u8; 300_000];
    for _ in 0..10 {
        client.publish("a", payload.clone().into()).await.unwrap();
    }
    for _ in 0..10 {
        assert!(subscription.next().await.unwrap().payload == payload);
    }
    client.drain().await.unwrap();
}

#[tokio::test]
async fn tls_after_info() {
    let certificates = Certificates::new();
    let server = start(ServerOptions { tls: Some(certificates.server(false)), ..options() }).await;
    exchange(&server, certificates.client()).await;
    let mut plain = Raw::connect(server.local_addr()).await;
    plain.send("CONNECT {}\r\nPING\r\n").await;
    let heard = plain.until_end().await;
    assert!(!heard.contains("PONG"), "served without TLS: {heard}");
}

#[tokio::test]
async fn tls_before_info() {
    let certificates = Certificates::new();
    let tls = TlsOptions { handshake_first: true, ..certificates.server(false) };
    let server = start(ServerOptions { tls: Some(tls), ..options() }).await;
    exchange(&server, certificates.client().tls_first()).await;
}

#[tokio::test]
async fn tls_where_the_client_wants_it() {
    let certificates = Certificates::new();
    let tls = TlsOptions { required: false, ..certificates.server(false) };
    let server = start(ServerOptions { tls: Some(tls), ..options() }).await;
    exchange(&server, certificates.client()).await;
    exchange(&server, ConnectOptions::new()).await;
}

#[tokio::test]
async fn a_client_certificate_is_asked_for() {
    let certificates = Certificates::new();
    let server = start(ServerOptions { tls: Some(certificates.server(true)), ..options() }).await;
    let with = certificates
        .client()
        .add_client_certificate(certificates.path("client.pem"), certificates.path("client.key"));
    exchange(&server, with).await;
    let url = format!("nats://localhost:{}", server.local_addr().port());
    assert!(certificates.client().connect(url).await.is_err());
}

#[test]
fn files_that_are_no_certificates_are_named() {
    let certificates = Certificates::new();
    let (good, key) = (certificates.path("localhost.pem"), certificates.path("localhost.key"));
    let missing = certificates.path("missing.pem");
    let error = TlsOptions::from_files(&missing, &key, None).unwrap_err();
    assert!(error.to_string().contains("missing.pem"), "{error}");
    let error = TlsOptions::from_files(&key, &key, None).unwrap_err();
    assert!(error.to_string().contains("no certificate"), "{error}");
    assert!(TlsOptions::from_files(&good, &good, None).is_err());
    assert!(TlsOptions::from_files(&good, &certificates.path("client.key"), None).is_err(), "another's key");
}
