//! Every setting of QUIC, and the limits around it.

use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, IdleTimeout, ServerConfig, TransportConfig, VarInt};

use crate::certificates::{Loaded, TlsConfigs};
use crate::handshake::{PROTOCOL_EDGE, PROTOCOL_NODE};
use crate::peer::{Lane, Role};

/// What an endpoint is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Nodes and witnesses of a cluster among themselves.
    Nodes,
    /// Where edges dial in. They may change their address.
    Hub,
    /// Dials a hub and is not dialled.
    Edge,
}

impl Kind {
    pub(super) const fn protocol(self) -> &'static [u8] {
        match self {
            Self::Nodes => PROTOCOL_NODE,
            Self::Hub | Self::Edge => PROTOCOL_EDGE,
        }
    }

    /// Who may be at the other end.
    pub(super) const fn accepts(self) -> &'static [Role] {
        match self {
            Self::Nodes => &[Role::Node, Role::Witness],
            Self::Hub => &[Role::Edge],
            Self::Edge => &[Role::Node],
        }
    }

    /// Whose certificate it takes, in words.
    pub(super) const fn certificate(self) -> &'static str {
        match self {
            Self::Nodes => "one of a node or a witness (`beamlog cert node`)",
            Self::Hub => "one of a node (`beamlog cert node`)",
            Self::Edge => "one of an edge (`beamlog cert edge`)",
        }
    }

    /// How long nothing may be heard before a connection is gone. An edge has nobody else to tell it that its hub is;
    /// three keep-alives may be lost.
    const fn idle_max(self) -> Duration {
        match self {
            Self::Nodes => IDLE_MAX,
            Self::Hub | Self::Edge => EDGE_IDLE_MAX,
        }
    }

    /// Whether who dials may show a token instead of a certificate, where there are any.
    pub(super) const fn takes_tokens(self) -> bool {
        match self {
            Self::Hub => true,
            Self::Nodes | Self::Edge => false,
        }
    }

    const fn streams_max(self) -> u32 {
        match self {
            Self::Nodes => STREAMS_MAX,
            Self::Hub | Self::Edge => EDGE_STREAMS_MAX,
        }
    }

    pub(super) const fn listens(self) -> bool {
        match self {
            Self::Nodes | Self::Hub => true,
            Self::Edge => false,
        }
    }
}

pub(super) const IDLE_MAX: Duration = Duration::from_secs(10);
const EDGE_IDLE_MAX: Duration = Duration::from_secs(7);
const KEEP_ALIVE: Duration = Duration::from_secs(2);
const STREAMS_MAX: u32 = 16;
/// Of an edge: three tunnels for each of its links.
const EDGE_STREAMS_MAX: u32 = 32;
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 24 << 20;

/// Connections that are not through the handshake: above the first, an address proves itself first
/// (Retry); above the second it is turned away.
pub(super) const RETRY_ABOVE: usize = 64;
pub(super) const INCOMING_MAX: usize = 1024;
const INCOMING_BYTES_MAX: u64 = 8 << 20;
const INCOMING_BYTES_EACH: u64 = 64 << 10;

/// Of the socket. Linux gives no more than `net.core.rmem_max`; with its usual 208 KiB datagrams are dropped when several
/// peers send at once, and are sent again.
pub(super) const RECEIVE_BYTES: usize = 4 << 20;

/// TLS and the first words together.
pub(super) const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// A session that does not answer within this gives way to another.
pub(super) const PROBE_MAX: Duration = Duration::from_secs(1);
/// How often certificates and what was revoked are looked at.
pub(super) const SWEEP: Duration = Duration::from_secs(1);
/// Peers that are known, and so sessions that there can be.
pub(super) const PEERS_MAX: usize = 4096;

/// One-way frames that wait for one peer and lane. The next is given back.
pub const OUTBOUND_BYTES_MAX: usize = 16 << 20;
/// Written to QUIC at once.
pub(super) const WRITE_BATCH: usize = 256 << 10;

/// After a failed attempt the next waits this long, doubled each time up to the most, less up to a half.
pub(super) const BACKOFF_MIN: Duration = Duration::from_millis(100);
pub(super) const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// The most after a refusal that will not change soon.
pub(super) const BACKOFF_REFUSED: Duration = Duration::from_secs(15);
/// A session that lasted as long begins the next attempts anew.
pub(super) const STABLE: Duration = Duration::from_secs(5);

/// Votes go before bulk, whatever waits.
pub(super) const fn priority(lane: Lane) -> i32 {
    match lane {
        Lane::Vote => 4,
        Lane::Append => 3,
        Lane::Mesh => 2,
        Lane::Admin => 1,
        Lane::CatchUp => 0,
    }
}

// What all other lanes can have under way, unread by the peer, leaves room for votes: a stream holds at most its
// window, and the connection's windows are for all streams together.
const _: () = {
    let mut bulk = 0;
    let mut streams = 0;
    let mut at = 0;
    while at < Lane::ALL.len() {
        let lane = Lane::ALL[at];
        streams += lane.calls_max();
        if !matches!(lane, Lane::Vote) {
            let each = if lane.bytes_max() < STREAM_WINDOW as usize {
                lane.bytes_max()
            } else {
                STREAM_WINDOW as usize
            };
            // The mesh has one stream of one-way frames.
            bulk += each * if matches!(lane, Lane::Mesh) { 1 } else { lane.calls_max() };
        }
        at += 1;
    }
    assert!(bulk + Lane::Vote.bytes_max() * Lane::Vote.calls_max() <= CONNECTION_WINDOW as usize);
    // One is for the first words, one for a probe.
    assert!(streams + 2 <= STREAMS_MAX as usize);
};

fn transport(kind: Kind) -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(IdleTimeout::try_from(kind.idle_max()).expect("some seconds fit")))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_concurrent_bidi_streams(VarInt::from_u32(kind.streams_max()))
        .max_concurrent_uni_streams(VarInt::from_u32(STREAMS_MAX))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(u64::from(CONNECTION_WINDOW))
        .datagram_receive_buffer_size(None);
    transport
}

/// QUIC for both directions, with the certificates of one moment.
#[derive(Clone, Debug)]
pub(super) struct Configs {
    pub(super) generation: u64,
    /// `None`: an edge without a certificate serves nobody.
    pub(super) server: Option<Arc<ServerConfig>>,
    pub(super) client: ClientConfig,
}

/// The certificates cannot be used for QUIC.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("TLS 1.3 cannot be set up")]
    Tls(#[from] rustls::Error),
    #[error("the provider lacks the first cipher suite of QUIC")]
    Suite(#[from] NoInitialCipherSuite),
}

impl Configs {
    pub(super) fn new(kind: Kind, loaded: &Loaded) -> Result<Self, ConfigError> {
        let TlsConfigs { server, client } = if kind.takes_tokens() && !loaded.tokens.is_empty() {
            loaded.tls_for_tokens(kind.protocol())?
        } else {
            loaded.tls(kind.protocol())?
        };
        let transport = Arc::new(transport(kind));
        let server = match server {
            None => None,
            Some(server) => {
                let mut server = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(server)?));
                server
                    .transport_config(Arc::clone(&transport))
                    .migration(matches!(kind, Kind::Hub))
                    .max_incoming(INCOMING_MAX)
                    .incoming_buffer_size(INCOMING_BYTES_EACH)
                    .incoming_buffer_size_total(INCOMING_BYTES_MAX);
                Some(Arc::new(server))
            }
        };
        let mut client = ClientConfig::new(Arc::new(QuicClientConfig::try_from(client)?));
        client.transport_config(transport);
        Ok(Self { generation: loaded.generation, server, client })
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::certificates::{
        Authority, CertificateFiles, Certificates, IDENTITY_FILE, Identity, ROOTS_FILE, write_atomically,
    };

    fn loaded() -> Arc<Loaded> {
        let directory = tempfile::tempdir().unwrap();
        let day = Duration::from_secs(86_400);
        let authority = Authority::create("c1", SystemTime::now(), day).unwrap();
        let identity = Identity::new("c1", Role::Node, "n1").unwrap();
        let authority_pem = authority.pem.clone();
        let issued = Authority::from_pem(authority_pem.as_bytes())
            .unwrap()
            .issue(&identity, SystemTime::now(), day)
            .unwrap();
        let directory = directory.path().join("n1");
        write_atomically(&directory.join(IDENTITY_FILE), issued.pem.as_bytes()).unwrap();
        write_atomically(&directory.join(ROOTS_FILE), authority.pem.as_bytes()).unwrap();
        Certificates::load(CertificateFiles::in_directory(&directory)).unwrap().current()
    }

    /// As quinn prints what it will use: there is no other way to read it.
    fn has(config: &impl std::fmt::Debug, setting: &str) {
        let all = format!("{config:?}");
        assert!(all.contains(setting), "{setting} is not in {all}");
    }

    #[test]
    fn the_effective_settings_are_those_written_down() {
        let loaded = loaded();
        for kind in [Kind::Nodes, Kind::Hub, Kind::Edge] {
            let configs = Configs::new(kind, &loaded).unwrap();
            let server = configs.server.unwrap();
            for setting in [
                if kind == Kind::Nodes {
                    "max_idle_timeout: Some(10000)"
                } else {
                    "max_idle_timeout: Some(7000)"
                },
                "keep_alive_interval: Some(2s)",
                if kind == Kind::Nodes {
                    "max_concurrent_bidi_streams: 16"
                } else {
                    "max_concurrent_bidi_streams: 32"
                },
                "max_concurrent_uni_streams: 16",
                "stream_receive_window: 4194304",
                "receive_window: 25165824",
                "send_window: 25165824",
                "datagram_receive_buffer_size: None",
            ] {
                has(&server, setting);
                has(&configs.client, setting);
            }
            for setting in
                ["max_incoming: 1024", "incoming_buffer_size: 65536", "incoming_buffer_size_total: 8388608"]
            {
                has(&server, setting);
            }
            has(&server, if kind == Kind::Hub { "migration: true" } else { "migration: false" });
        }
        assert_eq!((RETRY_ABOVE, INCOMING_MAX), (64, 1024));
    }

    #[test]
    fn tls_is_mutual_1_3_and_forgets_everything() {
        let tls = loaded().tls(PROTOCOL_NODE).unwrap();
        let (server, client) = (tls.server.as_ref().unwrap(), &tls.client);
        assert_eq!(server.max_early_data_size, 0);
        assert_eq!(server.send_tls13_tickets, 0);
        assert!(!server.session_storage.can_cache());
        assert!(!client.enable_early_data && !client.enable_sni);
        assert_eq!(format!("{:?}", client.resumption).matches("NoClientSessionStorage").count(), 1);
        for protocols in [&server.alpn_protocols, &client.alpn_protocols] {
            assert_eq!(protocols, &[b"beamlog-node/1".to_vec()]);
        }
        // No version but 1.3 and no provider but ring: what rustls says of itself.
        for config in [format!("{server:?}"), format!("{client:?}")] {
            assert!(
                config.contains("versions: [TLSv1_3]") && config.contains("secure_random: Ring"),
                "{config}"
            );
        }
        assert!(client.client_auth_cert_resolver.has_certs());
    }
}
