//! Edges and their hubs: who dials whom, over which transport. An [`Edge`] opens tunnels to hubs; a [`Hub`] lets
//! edges in and hands their tunnels to whoever serves them. Neither takes part in the cluster's agreement.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use crate::certificates::{CertificateStatus, Certificates, chain};
use crate::handshake::RefusalCount;
use crate::peer::{BoxFuture, Introduction, Lane, PeerHandler, PeerId, Refusal, Session};
use crate::transport::{
    BindError, Kind, PeerSnapshot, Transport, TransportOptions, Tunnel, TunnelError, TunnelHandler, Urgency,
};

/// The code of the refusal of an edge that the hub does not name.
const NOT_NAMED: u16 = 1;
/// The code of the refusal of a call: edges have tunnels only.
const NO_CALLS: u16 = 2;

/// Says whether an edge of this name may come in.
pub type Admission = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// The outgoing end of an edge, for all hubs that know one certificate or token. Clones are the same.
#[derive(Clone, Debug)]
pub struct Edge(Transport);

impl Edge {
    /// Takes a UDP port. Within a tokio runtime.
    ///
    /// # Errors
    /// There is no port, or the certificate is not that of an edge. One with a token is.
    pub fn start(id: PeerId, certificates: Certificates) -> Result<Self, BindError> {
        let bind =
            |listen: SocketAddr| Transport::bind(options(Kind::Edge, listen, id), certificates.clone());
        // Both families where the system has both; a hub's name may have addresses of either.
        let transport = match bind((Ipv6Addr::UNSPECIFIED, 0).into()) {
            Err(BindError::Bind { .. }) => bind((Ipv4Addr::UNSPECIFIED, 0).into())?,
            other => other?,
        };
        transport.start(Arc::new(Doorkeeper(None)));
        Ok(Self(transport))
    }

    /// Opens a tunnel to the hub at `address`, `host:port`.
    ///
    /// *Cancel safety*: as [`Transport::tunnel`].
    ///
    /// # Errors
    /// There is none, and why.
    pub async fn tunnel(&self, address: &str, urgency: Urgency) -> Result<Tunnel, TunnelError> {
        self.0.tunnel(address, urgency).await
    }

    /// Moves to another local port, as when the network changes. Tunnels stay.
    ///
    /// # Errors
    /// There is no port.
    pub fn rebind(&self) -> std::io::Result<()> {
        // Of the same family: hubs are known by addresses of it.
        let listen = SocketAddr::new(self.0.local_address().ip(), 0);
        self.0.rebind(listen)
    }

    /// The certificate that hubs are shown, or whose token.
    #[must_use]
    pub fn certificates(&self) -> CertificateStatus {
        self.0.certificates().status()
    }

    /// The hubs that are known.
    #[must_use]
    pub fn hubs(&self) -> Vec<PeerSnapshot> {
        self.0.peers()
    }

    /// Says good-bye to the hubs. *Cancel safety*: call it again.
    pub async fn close(&self) {
        self.0.close().await;
    }
}

/// The incoming end of a hub. Clones are the same.
#[derive(Clone, Debug)]
pub struct Hub(Transport);

impl Hub {
    /// Listens for edges. Within a tokio runtime.
    ///
    /// # Errors
    /// The address is taken, or the certificate is not that of a node.
    pub fn start(
        id: PeerId,
        listen: SocketAddr,
        certificates: Certificates,
        admission: Admission,
        tunnels: Arc<dyn TunnelHandler>,
    ) -> Result<Self, BindError> {
        let transport = Transport::bind(options(Kind::Hub, listen, id), certificates)?;
        transport.serve_tunnels(tunnels);
        transport.start(Arc::new(Doorkeeper(Some(admission))));
        Ok(Self(transport))
    }

    /// The UDP address that was bound.
    #[must_use]
    pub fn local_address(&self) -> SocketAddr {
        self.0.local_address()
    }

    /// The certificate that edges are shown.
    #[must_use]
    pub fn certificates(&self) -> CertificateStatus {
        self.0.certificates().status()
    }

    /// The edges that are known.
    #[must_use]
    pub fn edges(&self) -> Vec<PeerSnapshot> {
        self.0.peers()
    }

    /// Who was refused, counted by reason.
    #[must_use]
    pub fn refusals(&self) -> Vec<RefusalCount> {
        self.0.refusals()
    }

    /// Says good-bye to the edges. *Cancel safety*: call it again.
    pub async fn close(&self) {
        self.0.close().await;
    }
}

fn options(kind: Kind, listen: SocketAddr, id: PeerId) -> TransportOptions {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    TransportOptions {
        kind,
        listen,
        // Nobody dials an edge, and who dials a hub knows where it is.
        advertise: String::new(),
        id,
        incarnation: u64::try_from(since.as_nanos()).unwrap_or(u64::MAX),
        claims: Arc::new(Bytes::new),
    }
}

/// A problem and its causes, in one line, for people.
#[must_use]
pub fn in_words(error: &TunnelError) -> String {
    chain(error)
}

/// Lets in who is named. Nothing but tunnels is served.
struct Doorkeeper(Option<Admission>);

impl PeerHandler for Doorkeeper {
    fn call(&self, _: PeerId, lane: Lane, _: Bytes) -> BoxFuture<'static, Result<Bytes, Refusal>> {
        let reason = format!("lane {lane:?} is not for edges");
        Box::pin(async move { Err(Refusal { code: NO_CALLS, reason }) })
    }

    fn received(&self, _: Session, _: Lane, _: Bytes) {}

    fn admit(&self, peer: &Introduction) -> Result<(), Refusal> {
        match &self.0 {
            Some(admission) if !admission(&peer.name) => {
                let reason = format!("no [[edge]] of this hub is named {}", peer.name);
                Err(Refusal { code: NOT_NAMED, reason })
            }
            Some(_) | None => Ok(()),
        }
    }

    fn connected(&self, _: Session, _: &Introduction) {}

    fn disconnected(&self, _: Session) {}
}
