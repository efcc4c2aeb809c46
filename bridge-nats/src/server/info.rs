//! The INFO line, and who this server says it is.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::ServerOptions;
use crate::session::Connection;

/// The NATS server version whose behaviour clients may expect; they gate features on it.
pub const VERSION: &str = "2.14.0";
/// The JetStream API level that goes with what is offered.
pub const API_LEVEL: u32 = 2;

/// What all INFO lines of a server share.
#[derive(Debug)]
pub(crate) struct Info {
    pub(crate) server_id: String,
    pub(crate) server_name: String,
    host: String,
    port: u16,
    auth_required: bool,
    tls_required: bool,
    tls_verify: bool,
    tls_available: bool,
    payload_max: usize,
    jetstream: bool,
    cluster: RwLock<Arc<ClusterInfo>>,
}

/// What INFO says of the cluster that a server is in. Empty: it is in none.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ClusterInfo {
    pub name: String,
    /// Where clients reach its servers, `host:port`; this one too.
    pub connect_urls: Vec<String>,
}

#[derive(Serialize)]
struct Fields<'a> {
    server_id: &'a str,
    server_name: &'a str,
    version: &'static str,
    proto: u32,
    go: &'static str,
    host: &'a str,
    port: u16,
    headers: bool,
    #[serde(skip_serializing_if = "is_false")]
    auth_required: bool,
    #[serde(skip_serializing_if = "is_false")]
    tls_required: bool,
    #[serde(skip_serializing_if = "is_false")]
    tls_verify: bool,
    #[serde(skip_serializing_if = "is_false")]
    tls_available: bool,
    max_payload: usize,
    #[serde(skip_serializing_if = "is_false")]
    jetstream: bool,
    client_id: u64,
    client_ip: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    cluster: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    connect_urls: &'a [String],
    #[serde(skip_serializing_if = "is_false")]
    ldm: bool,
    #[serde(skip_serializing_if = "is_false")]
    connect_info: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    remote_account: Option<&'static str>,
    api_lvl: u32,
}

#[derive(Serialize)]
struct UserInfo<'a> {
    server: ServerIdentity<'a>,
    data: UserData<'a>,
}

#[derive(Serialize)]
struct ServerIdentity<'a> {
    name: &'a str,
    host: &'a str,
    id: &'a str,
    ver: &'static str,
    jetstream: bool,
    flags: u32,
    seq: u32,
    time: String,
}

#[derive(Serialize)]
struct UserData<'a> {
    user: &'a str,
    account: &'static str,
    account_name: &'static str,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

impl Info {
    pub(crate) fn new(
        options: &ServerOptions,
        address: SocketAddr,
        server_id: String,
        jetstream: bool,
    ) -> Self {
        let tls = options.tls.as_ref();
        Self {
            server_name: options.server_name.clone().unwrap_or_else(|| server_id.clone()),
            server_id,
            host: address.ip().to_string(),
            port: address.port(),
            auth_required: options.auth.is_required(),
            tls_required: tls.is_some_and(|tls| tls.required),
            tls_verify: tls.is_some_and(|tls| tls.verify),
            tls_available: tls.is_some_and(|tls| !tls.required),
            payload_max: options.payload_max,
            jetstream,
            cluster: RwLock::default(),
        }
    }

    /// From now on lines say this of the cluster. Returns whether that is news.
    pub(crate) fn set_cluster(&self, cluster: ClusterInfo) -> bool {
        let mut known = self.cluster.write().unwrap_or_else(PoisonError::into_inner);
        let news = **known != cluster;
        if news {
            *known = Arc::new(cluster);
        }
        news
    }

    /// The first line for one client. A guest has shown who it is, and what it says is sealed on its way already.
    pub(crate) fn line(&self, client_id: u64, peer: SocketAddr, is_guest: bool) -> Vec<u8> {
        self.write(client_id, peer, is_guest, false, false)
    }

    /// The line again, once the client has connected.
    pub(crate) fn connected_line(&self, to: &Connection) -> Vec<u8> {
        self.write(to.id, to.peer, to.guest.is_some(), true, false)
    }

    /// Says that the server is about to leave.
    pub(crate) fn lame_duck_line(&self, to: &Connection) -> Vec<u8> {
        self.write(to.id, to.peer, to.guest.is_some(), false, true)
    }

    fn write(
        &self,
        client_id: u64,
        peer: SocketAddr,
        is_guest: bool,
        connect_info: bool,
        ldm: bool,
    ) -> Vec<u8> {
        // A guest came another way, and cannot go where clients go.
        let cluster = match is_guest {
            true => Arc::default(),
            false => Arc::clone(&self.cluster.read().unwrap_or_else(PoisonError::into_inner)),
        };
        let fields = Fields {
            server_id: &self.server_id,
            server_name: &self.server_name,
            version: VERSION,
            proto: 1,
            go: "",
            host: &self.host,
            port: self.port,
            headers: true,
            auth_required: self.auth_required && !is_guest,
            tls_required: self.tls_required && !is_guest,
            tls_verify: self.tls_verify && !is_guest,
            tls_available: self.tls_available && !is_guest,
            max_payload: self.payload_max,
            jetstream: self.jetstream,
            client_id,
            client_ip: peer.ip().to_string(),
            cluster: &cluster.name,
            connect_urls: &cluster.connect_urls,
            ldm,
            connect_info,
            remote_account: connect_info.then_some("$G"),
            api_lvl: API_LEVEL,
        };
        let mut line = b"INFO ".to_vec();
        serde_json::to_writer(&mut line, &fields).expect("strings and numbers have a JSON form");
        line.extend_from_slice(b" \r\n");
        line
    }

    /// The answer to `$SYS.REQ.USER.INFO`.
    pub(crate) fn user_info(&self, user: &str) -> Vec<u8> {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let server = ServerIdentity {
            name: &self.server_name,
            host: &self.host,
            id: &self.server_id,
            ver: VERSION,
            jetstream: self.jetstream,
            flags: 0,
            seq: 0,
            time: crate::rfc3339(u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX)),
        };
        let data = UserData { user, account: "$G", account_name: "$G" };
        serde_json::to_vec(&UserInfo { server, data }).expect("strings and numbers have a JSON form")
    }
}

/// A fresh identity in the form of NATS's public server keys: clients only ever show and compare it.
pub(crate) fn fresh_server_id() -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut random = [0_u8; 55];
    rustls::crypto::ring::default_provider()
        .secure_random
        .fill(&mut random)
        .expect("the operating system has randomness");
    std::iter::once('N')
        .chain(random.iter().map(|byte| char::from(ALPHABET[usize::from(byte & 31)])))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_has_what_clients_rely_on() {
        let address: SocketAddr = "127.0.0.1:4222".parse().unwrap();
        let info = Info::new(&ServerOptions::default(), address, fresh_server_id(), true);
        let line = String::from_utf8(info.line(7, address, false)).unwrap();
        let json = line.strip_prefix("INFO ").unwrap().strip_suffix("\r\n").unwrap();
        let json: serde_json::Value = serde_json::from_str(json).unwrap();
        assert_eq!(json["server_id"].as_str().unwrap().len(), 56);
        assert_eq!(json["server_name"], json["server_id"]);
        assert_eq!(json["proto"], 1);
        assert_eq!(json["headers"], true);
        assert_eq!(json["max_payload"], 1_048_576);
        assert_eq!(json["client_id"], 7);
        assert_eq!(json["client_ip"], "127.0.0.1");
        assert_eq!(json["jetstream"], true);
        assert!(json.get("connect_info").is_none() && json.get("auth_required").is_none());
        assert!(json.get("cluster").is_none() && json.get("connect_urls").is_none());

        let cluster = ClusterInfo { name: "c".into(), connect_urls: vec!["h:4222".into()] };
        assert!(info.set_cluster(cluster.clone()));
        assert!(!info.set_cluster(cluster), "it is known already");
        let line = String::from_utf8(info.line(7, address, false)).unwrap();
        let json: serde_json::Value = serde_json::from_str(line.strip_prefix("INFO ").unwrap()).unwrap();
        assert_eq!((json["cluster"].as_str(), json["connect_urls"][0].as_str()), (Some("c"), Some("h:4222")));
    }
}
