//! Both ends of links over QUIC. At an edge: the transport that links dial hubs with, one for each folder of
//! certificates. At a hub: the listener, and what each edge that comes may do. Here the transport, which knows
//! nothing of NATS, meets the endpoint, which knows nothing of QUIC.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Weak};

use beamlog_nats::link::hub::{self, Hubs, NoTunnel};
use beamlog_nats::{Grant, Guest, Server};
use beamlog_net::certificates::{CertificateFiles, Certificates, LoadError};
use beamlog_net::edge::{Edge, Hub, in_words};
use beamlog_net::peer::{BoxFuture, Introduction, PeerId};
use beamlog_net::transport::{BindError, Tunnel, TunnelHandler, Urgency};
use tokio::sync::Mutex;
use tracing::{info, warn};

use crate::cli::err_chain;

/// What makes a node a hub.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HubOptions {
    /// UDP address where edges connect.
    pub listen: SocketAddr,
    /// Folder with this node's certificate and its authority, as `beamlog cert node` writes it.
    pub certificates: PathBuf,
    /// Which edges may come, and what each may do; `None` is whatever clients may. Empty: every edge with a
    /// certificate of the authority.
    pub edges: BTreeMap<String, Option<Grant>>,
}

/// Why a node cannot be a hub.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error("the certificates in {}", folder.display())]
    Certificates { folder: PathBuf, source: Box<LoadError> },
    #[error(transparent)]
    Bind(#[from] BindError),
}

impl HubError {
    /// What an operator can do about it.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Certificates { .. } => "make them with `beamlog cert ca` and `beamlog cert node`",
            Self::Bind(BindError::Bind { .. }) => "choose another --edge-listen, or stop who uses it",
            Self::Bind(BindError::Role { .. } | BindError::Config(_)) => {
                "name a folder that `beamlog cert node` wrote in --edge-certificates"
            }
        }
    }
}

/// Reads a folder of certificates.
pub(crate) fn load(folder: &Path) -> Result<Certificates, LoadError> {
    Certificates::load(CertificateFiles::in_directory(folder))
}

/// Lets edges in.
pub(crate) fn start_hub(me: PeerId, options: &HubOptions, server: &Arc<Server>) -> Result<Hub, HubError> {
    let folder = options.certificates.clone();
    let certificates =
        load(&folder).map_err(|source| HubError::Certificates { folder, source: Box::new(source) })?;
    let edges = Arc::new(options.edges.clone());
    let named = Arc::clone(&edges);
    let admission = Arc::new(move |name: &str| named.is_empty() || named.contains_key(name));
    let reception = Arc::new(Reception { server: Arc::downgrade(server), edges });
    let hub = Hub::start(me, options.listen, certificates, admission, reception)?;
    info!(address = %hub.local_address(), "listening for edges");
    Ok(hub)
}

/// Brings edges to the endpoint.
struct Reception {
    /// Not its owner: a node that is dropped takes its server along.
    server: Weak<Server>,
    edges: Arc<BTreeMap<String, Option<Grant>>>,
}

impl TunnelHandler for Reception {
    fn serve(&self, peer: &Introduction, address: SocketAddr, tunnel: Tunnel) -> BoxFuture<'static, ()> {
        let grant = self.edges.get(&peer.name).cloned().flatten();
        let guest = Guest { name: peer.name.clone(), address, grant };
        let received = self.server.upgrade().map(|server| server.receive(guest));
        let name = peer.name.clone();
        Box::pin(async move {
            match received {
                Some(Ok(endpoint)) => hub::join(halves(tunnel), endpoint).await,
                None => {}
                Some(Err(error)) => warn!(edge = name, err = %error, "an edge cannot be served now"),
            }
        })
    }
}

fn halves(tunnel: Tunnel) -> hub::Tunnel {
    let (reader, writer) = tunnel.into_split();
    hub::Tunnel { reader, writer }
}

/// Dials hubs for the links of this node. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct EdgeDialer(Arc<Dialer>);

#[derive(Debug)]
struct Dialer {
    me: PeerId,
    /// By folder of certificates. As many as links ever named.
    edges: Mutex<BTreeMap<PathBuf, Edge>>,
}

impl EdgeDialer {
    pub(crate) fn new(me: PeerId) -> Self {
        Self(Arc::new(Dialer { me, edges: Mutex::default() }))
    }

    async fn edge(&self, folder: &Path) -> Result<Edge, NoTunnel> {
        let mut edges = self.0.edges.lock().await;
        if let Some(edge) = edges.get(folder) {
            return Ok(edge.clone());
        }
        let told =
            |error: &dyn std::error::Error| NoTunnel(format!("{}: {}", folder.display(), err_chain(error)));
        let read = folder.to_owned();
        let loaded = tokio::task::spawn_blocking(move || load(&read)).await;
        let certificates = loaded.map_err(|error| told(&error))?.map_err(|error| told(&error))?;
        let edge = Edge::start(self.0.me, certificates).map_err(|error| told(&error))?;
        edges.insert(folder.to_owned(), edge.clone());
        Ok(edge)
    }

    /// Says good-bye to all hubs.
    pub(crate) async fn close(&self) {
        let edges = std::mem::take(&mut *self.0.edges.lock().await);
        for edge in edges.into_values() {
            edge.close().await;
        }
    }
}

impl Hubs for EdgeDialer {
    fn tunnel<'a>(
        &'a self,
        certificates: &'a Path,
        address: &'a str,
        urgency: hub::Urgency,
    ) -> Pin<Box<dyn Future<Output = Result<hub::Tunnel, NoTunnel>> + Send + 'a>> {
        let urgency = match urgency {
            hub::Urgency::Bulk => Urgency::Bulk,
            hub::Urgency::Express => Urgency::Express,
        };
        Box::pin(async move {
            let edge = self.edge(certificates).await?;
            let tunnel = edge.tunnel(address, urgency).await;
            tunnel.map(halves).map_err(|error| NoTunnel(in_words(&error)))
        })
    }
}
