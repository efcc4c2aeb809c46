//! Every way in: how a link shows who it is, and the transports.

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use beamlog_nats::link::rules::{Credentials, LinkConfig, LinkTls, Secret};
use beamlog_nats::link::status::LinkState;
use nkeys::KeyPair;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::link_kv::{bucket, make};
use crate::link_world::{Site, Upstream, link, subject, until};

fn config(upstream: &Upstream, credentials: Credentials) -> LinkConfig {
    LinkConfig { export: vec![subject("out.>", None)], credentials, ..link("core", upstream) }
}

async fn refused(site: &Site) {
    let begun = std::time::Instant::now();
    loop {
        let status = site.status("core");
        if matches!(&status.state, LinkState::Degraded { cause } if cause.contains("not authorized")) {
            return;
        }
        assert!(begun.elapsed() < std::time::Duration::from_secs(20), "{status:?}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

/// A file with a wrong secret at first: it is read again at each attempt.
async fn check(configuration: &str, wrong: &str, right: &str, credentials: impl Fn(Secret) -> Credentials) {
    let (upstream, site) = (Upstream::with_configuration(configuration), Site::start().await);
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("secret");
    fs::write(&file, wrong).unwrap();
    site.links.add(config(&upstream, credentials(Secret::File(file.clone())))).unwrap();
    refused(&site).await;
    let shown = format!("{:?} {:?}", site.status("core"), site.links.config("core"));
    assert!(!shown.contains(wrong.trim()), "{shown}");
    fs::write(&file, right).unwrap();
    site.connected("core").await;
    // By value too, as from a variable.
    site.links.remove("core").unwrap();
    site.link(config(&upstream, credentials(Secret::Value(right.trim().to_owned())))).await;
}

#[tokio::test]
async fn by_user_and_password() {
    let configuration = "authorization { user: edge, password: \"right-one\" }";
    check(configuration, "wrong-one\n", "right-one\n", |password| Credentials::User {
        user: "edge".to_owned(),
        password,
    })
    .await;
}

#[tokio::test]
async fn by_token() {
    check("authorization { token: \"right-one\" }", "wrong-one", "right-one", Credentials::Token).await;
}

#[tokio::test]
async fn by_nkey() {
    let (key, other) = (KeyPair::new_user(), KeyPair::new_user());
    let configuration = format!("authorization {{\n users: [ {{ nkey: {} }} ]\n}}", key.public_key());
    check(&configuration, &other.seed().unwrap(), &key.seed().unwrap(), Credentials::NKey).await;
}

/// A JWT as nats-server reads it: header, claims, signature.
fn jwt(issuer: &KeyPair, subject: &KeyPair, name: &str, nats: Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let head = part(&json!({ "typ": "JWT", "alg": "ed25519-nkey" }));
    let claims = part(&json!({
        "jti": name, "iat": 1_700_000_000, "iss": issuer.public_key(), "sub": subject.public_key(),
        "name": name, "nats": nats,
    }));
    let signature = issuer.sign(format!("{head}.{claims}").as_bytes()).unwrap();
    format!("{head}.{claims}.{}", URL_SAFE_NO_PAD.encode(signature))
}

#[tokio::test]
async fn by_creds() {
    let (operator, account, system) =
        (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_account());
    let limits = json!({
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "conn": -1, "leaf": -1,
        "wildcards": true,
    });
    let operator_jwt = jwt(&operator, &operator, "op", json!({ "type": "operator", "version": 2 }));
    let of_account = json!({ "type": "account", "version": 2, "limits": limits });
    let account_jwt = jwt(&operator, &account, "site", of_account.clone());
    let system_jwt = jwt(&operator, &system, "system", of_account);
    let configuration = format!(
        "operator: {operator_jwt}\nresolver: MEMORY\nsystem_account: {1}\n\
         resolver_preload: {{\n{0}: {account_jwt}\n{1}: {system_jwt}\n}}",
        account.public_key(),
        system.public_key()
    );
    let creds = |issuer: &KeyPair| {
        let user = KeyPair::new_user();
        let nats = json!({ "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1 });
        format!(
            "-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            jwt(issuer, &user, "edge", nats),
            user.seed().unwrap()
        )
    };
    check(&configuration, &creds(&KeyPair::new_account()), &creds(&account), Credentials::Creds).await;
}

/// Certificates of a server and of a client, by one authority.
struct Certificates {
    _folder: TempDir,
    authority: PathBuf,
    server: (PathBuf, PathBuf),
    client: (PathBuf, PathBuf),
}

fn certificates() -> Certificates {
    let folder = TempDir::new().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap();
    let write = |name: &str, text: String| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let pair = |name: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
        (write(&format!("{name}.pem"), certificate.pem()), write(&format!("{name}.key"), key.serialize_pem()))
    };
    let (server, client) = (pair("server"), pair("client"));
    let authority = write("ca.pem", issuer.pem());
    Certificates { authority, server, client, _folder: folder }
}

fn tls_block(certificates: &Certificates, more: &str) -> String {
    let text = |path: &Path| format!("{:?}", path.to_str().unwrap());
    format!(
        "tls {{\n cert_file: {}\n key_file: {}\n ca_file: {}\n {more}\n}}",
        text(&certificates.server.0),
        text(&certificates.server.1),
        text(&certificates.authority)
    )
}

#[tokio::test]
async fn over_tls_by_the_authority_that_is_named() {
    let certificates = certificates();
    let upstream = Upstream::with_configuration(&tls_block(&certificates, ""));
    let site = Site::start().await;
    let tls = LinkTls { required: true, ca_file: Some(certificates.authority.clone()), ..LinkTls::default() };
    site.link(LinkConfig { tls, ..config(&upstream, Credentials::None) }).await;
    // Somebody else's authority.
    let other = self::certificates();
    let tls = LinkTls { required: true, ca_file: Some(other.authority.clone()), ..LinkTls::default() };
    let config = LinkConfig { name: "other".to_owned(), tls, ..config(&upstream, Credentials::None) };
    site.links.add(config).unwrap();
    until("it is not trusted", async || matches!(site.status("other").state, LinkState::Degraded { .. }))
        .await;
}

#[tokio::test]
async fn over_tls_with_our_certificate_and_the_handshake_first() {
    let certificates = certificates();
    let upstream =
        Upstream::with_configuration(&tls_block(&certificates, "verify: true\n handshake_first: true"));
    let site = Site::start().await;
    let bare = LinkTls {
        required: true,
        first: true,
        ca_file: Some(certificates.authority.clone()),
        ..LinkTls::default()
    };
    let without =
        LinkConfig { name: "bare".to_owned(), tls: bare.clone(), ..config(&upstream, Credentials::None) };
    site.links.add(without).unwrap();
    until("a certificate is asked for", async || {
        matches!(site.status("bare").state, LinkState::Degraded { .. })
    })
    .await;
    let (cert, key) = certificates.client.clone();
    let tls = LinkTls { cert_file: Some(cert), key_file: Some(key), ..bare };
    site.link(LinkConfig { tls, ..config(&upstream, Credentials::None) }).await;
}

#[tokio::test]
async fn over_websocket() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let configuration = format!("websocket {{\n listen: \"127.0.0.1:{port}\"\n no_tls: true\n}}");
    let (upstream, site) = (Upstream::with_configuration(&configuration), Site::start().await);
    let config =
        LinkConfig { urls: vec![format!("ws://127.0.0.1:{port}")], ..config(&upstream, Credentials::None) };
    site.link(config).await;
    let there = upstream.client().await;
    let mut heard = there.subscribe("out.>").await.unwrap();
    let here = site.client().await;
    until("it carries", async || {
        here.publish("out.x", "x".into()).await.unwrap();
        here.flush().await.unwrap();
        futures_util::FutureExt::now_or_never(futures_util::StreamExt::next(&mut heard)).is_some()
    })
    .await;
}

#[tokio::test]
async fn by_a_domain_and_by_a_prefix() {
    let (upstream, site) = (Upstream::with_configuration("jetstream: , domain: hub"), Site::start().await);
    let client = upstream.client().await;
    for (name, domain, api_prefix) in
        [("domain", Some("hub".to_owned()), None), ("prefix", None, Some("$JS.hub.API".to_owned()))]
    {
        let (import, export) = (vec![bucket(name)], vec![bucket(name)]);
        let there = make(&client, name).await;
        let here = make(&site.client().await, name).await;
        site.link(LinkConfig { domain, api_prefix, import, export, ..link(name, &upstream) }).await;
        there.put("theirs", "v".into()).await.unwrap();
        here.put("ours", "v".into()).await.unwrap();
        until("both have both", async || {
            here.get("theirs").await.unwrap().is_some() && there.get("ours").await.unwrap().is_some()
        })
        .await;
    }
}
