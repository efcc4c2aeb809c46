//! Both ends of links over QUIC. At an edge: the transport that links dial hubs with, one for each certificate
//! or token. At a hub: the listener, and what each edge that comes may do. Here the transport, which knows
//! nothing of NATS, meets the endpoint, which knows nothing of QUIC.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use beamlog_nats::link::hub::{self, Hubs, NoTunnel, Pass};
use beamlog_nats::link::rules::Secret;
use beamlog_nats::{Grant, Guest, Server};
use beamlog_net::certificates::{
    CertificateFiles, CertificateStatus, Certificates, InvalidToken, LoadError, Token, TokenSource,
};
use beamlog_net::edge::{Edge, Hub, in_words};
use beamlog_net::peer::{BoxFuture, Introduction, PeerId};
use beamlog_net::transport::{BindError, Tunnel, TunnelHandler, Urgency};
use tokio::io::{AsyncRead, ReadBuf};
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
    /// certificate of the authority, or with a token of the folder.
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

/// What an edge cannot show.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PassError {
    #[error(transparent)]
    Files(#[from] LoadError),
    #[error("the variable of token_env")]
    Token(#[from] InvalidToken),
}

/// Reads what an edge shows a hub.
pub(crate) fn load_pass(pass: &Pass) -> Result<Certificates, PassError> {
    let (token, authorities) = match pass {
        Pass::Certificates(folder) => return Ok(load(folder)?),
        Pass::Token { token, authorities } => (token, authorities.clone()),
    };
    let source = match token {
        Secret::File(path) => TokenSource::File(path.clone()),
        Secret::Value(text) => TokenSource::Value(Token::parse(text)?),
    };
    Ok(Certificates::load(CertificateFiles::with_token(source, authorities))?)
}

/// The file or folder by which people know a pass.
fn place(pass: &Pass) -> &Path {
    match pass {
        Pass::Certificates(folder) => folder,
        Pass::Token { token: Secret::File(path), .. } => path,
        Pass::Token { token: Secret::Value(_), authorities } => authorities,
    }
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

/// How long a session with hubs is kept when no link uses it: one that connects again finds it.
const UNUSED_MAX: Duration = Duration::from_secs(1);

/// Dials hubs for the links of this node. Clones are the same.
///
/// Sessions end when no link uses them any more: in a cluster another node may be the edge from then on, and a hub
/// takes one at a time of a name.
#[derive(Clone, Debug)]
pub(crate) struct EdgeDialer(Arc<Dialer>);

#[derive(Debug)]
struct Dialer {
    me: PeerId,
    /// By what they show. As many as links ever named.
    edges: Mutex<BTreeMap<Pass, Known>>,
}

#[derive(Debug)]
struct Known {
    edge: Edge,
    /// What its tunnels hold.
    used: Weak<Use>,
}

/// Held by each tunnel over the edge of a pass.
#[derive(Debug)]
struct Use {
    pass: Pass,
    dialer: Weak<Dialer>,
    /// Tunnels may be dropped anywhere.
    runtime: tokio::runtime::Handle,
}

impl Drop for Use {
    fn drop(&mut self) {
        let (pass, dialer) = (self.pass.clone(), Weak::clone(&self.dialer));
        drop(self.runtime.spawn(async move {
            tokio::time::sleep(UNUSED_MAX).await;
            if let Some(dialer) = dialer.upgrade() {
                dialer.end_unused(&pass).await;
            }
        }));
    }
}

/// The reading half of a tunnel, which says that its edge is in use.
struct Used {
    reader: hub::TunnelReader,
    _used: Arc<Use>,
}

impl AsyncRead for Used {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.reader).poll_read(context, buffer)
    }
}

impl Dialer {
    async fn edge(self: &Arc<Self>, pass: &Pass) -> Result<(Edge, Arc<Use>), NoTunnel> {
        let mut edges = self.edges.lock().await;
        let fresh = || {
            let (dialer, runtime) = (Arc::downgrade(self), tokio::runtime::Handle::current());
            Arc::new(Use { pass: pass.clone(), dialer, runtime })
        };
        if let Some(known) = edges.get_mut(pass) {
            let used = known.used.upgrade().unwrap_or_else(fresh);
            known.used = Arc::downgrade(&used);
            return Ok((known.edge.clone(), used));
        }
        let place = place(pass).display();
        let told = |error: &dyn std::error::Error| NoTunnel(format!("{place}: {}", err_chain(error)));
        let read = pass.clone();
        let loaded = tokio::task::spawn_blocking(move || load_pass(&read)).await;
        let certificates = loaded.map_err(|error| told(&error))?.map_err(|error| told(&error))?;
        let edge = Edge::start(self.me, certificates).map_err(|error| told(&error))?;
        let used = fresh();
        edges.insert(pass.clone(), Known { edge: edge.clone(), used: Arc::downgrade(&used) });
        Ok((edge, used))
    }

    async fn end_unused(&self, pass: &Pass) {
        let mut edges = self.edges.lock().await;
        let is_unused = edges.get(pass).is_some_and(|known| known.used.strong_count() == 0);
        let ended = is_unused.then(|| edges.remove(pass)).flatten();
        drop(edges);
        // Whoever dials in this moment is refused once, and tries again.
        if let Some(known) = ended {
            known.edge.close().await;
        }
    }
}

impl EdgeDialer {
    pub(crate) fn new(me: PeerId) -> Self {
        Self(Arc::new(Dialer { me, edges: Mutex::default() }))
    }

    /// What hubs were shown, by file or folder.
    pub(crate) async fn certificates(&self) -> Vec<(PathBuf, CertificateStatus)> {
        let edges = self.0.edges.lock().await;
        edges.iter().map(|(pass, known)| (place(pass).to_owned(), known.edge.certificates())).collect()
    }

    /// Says good-bye to all hubs.
    pub(crate) async fn close(&self) {
        let edges = std::mem::take(&mut *self.0.edges.lock().await);
        for known in edges.into_values() {
            known.edge.close().await;
        }
    }
}

impl Hubs for EdgeDialer {
    fn tunnel<'a>(
        &'a self,
        pass: &'a Pass,
        address: &'a str,
        urgency: hub::Urgency,
    ) -> Pin<Box<dyn Future<Output = Result<hub::Tunnel, NoTunnel>> + Send + 'a>> {
        let urgency = match urgency {
            hub::Urgency::Outward => Urgency::Outward,
            hub::Urgency::Inward => Urgency::Inward,
            hub::Urgency::Express => Urgency::Express,
        };
        Box::pin(async move {
            let (edge, used) = self.0.edge(pass).await?;
            let tunnel = edge.tunnel(address, urgency).await.map_err(|error| NoTunnel(in_words(&error)))?;
            let hub::Tunnel { reader, writer } = halves(tunnel);
            Ok(hub::Tunnel { reader: Box::new(Used { reader, _used: used }), writer })
        })
    }
}
