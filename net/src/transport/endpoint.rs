//! [`Transport`]: the endpoint, and everything that hangs on it.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use quinn::{Endpoint, EndpointConfig, Incoming, TokioRuntime, VarInt};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{error, warn};

use super::dial::{Book, DialError, PeerAddress};
use super::ended::nobody_listens;
use super::guesses::Guesses;
use super::introduce::Failed;
use super::session::{Numbers, close, closed};
use super::settings::{
    ConfigError, Configs, HANDSHAKE_MAX, INCOMING_MAX, Kind, RECEIVE_BYTES, RETRY_ABOVE, SWEEP,
};
use super::table::{PeerSnapshot, Table};
use super::tunnel::{Hubs, TunnelHandler};
use crate::certificates::{Certificates, chain};
use crate::handshake::{Reason, RefusalCount, Refusals};
use crate::peer::{BoxFuture, CallError, Lane, PeerHandler, PeerId, PeerTransport, SendError, Session};

/// How long `close` waits for the last packets.
const CLOSE_MAX: Duration = Duration::from_secs(3);

/// What a transport is told once.
#[derive(Clone)]
pub struct TransportOptions {
    pub kind: Kind,
    /// Of UDP. Port 0 chooses one.
    pub listen: SocketAddr,
    /// Told to peers: where this node can be reached. Empty: nowhere.
    pub advertise: String,
    pub id: PeerId,
    /// Differs at each start of the process.
    pub incarnation: u64,
    /// Told to each peer in the handshake; at most [`crate::handshake::CLAIMS_BYTES_MAX`].
    pub claims: Arc<dyn Fn() -> Bytes + Send + Sync>,
}

impl std::fmt::Debug for TransportOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TransportOptions")
            .field("kind", &self.kind)
            .field("listen", &self.listen)
            .field("advertise", &self.advertise)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("UDP address {address} cannot be bound")]
    Bind { address: SocketAddr, source: std::io::Error },
    #[error("QUIC cannot be set up with these certificates")]
    Config(#[from] ConfigError),
    #[error("the certificate is that of {role}; {wanted} is needed here", role = role.with_article(), wanted = kind.certificate())]
    Role { role: crate::peer::Role, kind: Kind },
}

/// QUIC with the peers of this node. Clones are the same transport.
#[derive(Clone, Debug)]
pub struct Transport(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) options: TransportOptions,
    pub(super) certificates: Certificates,
    pub(super) endpoint: Endpoint,
    pub(super) table: Table,
    pub(super) handler: OnceLock<Arc<dyn PeerHandler>>,
    pub(super) tunnels: OnceLock<Arc<dyn TunnelHandler>>,
    pub(super) hubs: Hubs,
    pub(super) refusals: Refusals,
    pub(super) guesses: Guesses,
    pub(super) sessions: Numbers,
    pub(super) dials: Numbers,
    pub(super) closing: watch::Sender<bool>,
    configs: Mutex<Configs>,
    book: Book,
    /// Connections that are not through the handshake.
    pending: AtomicUsize,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Transport {
    /// Binds the address. Nobody gets in, and nobody is dialled, before [`Self::start`]. Within a tokio runtime.
    ///
    /// # Errors
    /// The address is taken, or the certificates are not for this.
    pub fn bind(options: TransportOptions, certificates: Certificates) -> Result<Self, BindError> {
        let loaded = certificates.current();
        let role = loaded.identity.role;
        let fits = match options.kind {
            Kind::Nodes => role != crate::peer::Role::Edge,
            Kind::Hub => role == crate::peer::Role::Node,
            Kind::Edge => role == crate::peer::Role::Edge,
        };
        if !fits {
            return Err(BindError::Role { role, kind: options.kind });
        }
        let configs = Configs::new(options.kind, &loaded)?;
        let at = |source| BindError::Bind { address: options.listen, source };
        let socket = bind(options.listen).map_err(at)?;
        // The key of stateless resets is random, as is that of Retry tokens.
        let server = configs.server.as_deref().filter(|_| options.kind.listens()).cloned();
        let endpoint =
            Endpoint::new(EndpointConfig::default(), server, socket, Arc::new(TokioRuntime)).map_err(at)?;
        Ok(Self(Arc::new(Inner {
            options,
            certificates,
            endpoint,
            table: Table::default(),
            handler: OnceLock::new(),
            tunnels: OnceLock::new(),
            hubs: Hubs::default(),
            refusals: Refusals::default(),
            guesses: Guesses::default(),
            sessions: Numbers::default(),
            dials: Numbers::default(),
            closing: watch::Sender::new(false),
            configs: Mutex::new(configs),
            book: Book::default(),
            pending: AtomicUsize::new(0),
        })))
    }

    /// Lets peers in. Once; another call changes nothing.
    pub fn start(&self, handler: Arc<dyn PeerHandler>) {
        if self.0.handler.set(handler).is_err() {
            return;
        }
        tokio::spawn(Arc::clone(&self.0).accept());
        tokio::spawn(Arc::clone(&self.0).sweep());
    }

    /// The UDP address that was bound.
    ///
    /// # Panics
    /// Never: the socket is bound for as long as this lives.
    #[must_use]
    pub fn local_address(&self) -> SocketAddr {
        self.0.endpoint.local_addr().expect("the socket is bound")
    }

    /// Sets whom to keep connected with. Sessions with others stay, as do their own attempts to come back:
    /// whether they may is up to [`PeerHandler::admit`].
    pub fn set_peers(&self, peers: Vec<PeerAddress>) {
        if !*self.0.closing.borrow() {
            self.0.book.set(&self.0, peers);
        }
    }

    /// Connects once with whoever of the cluster answers there.
    ///
    /// *Cancel safety*: the attempt is given up.
    ///
    /// # Errors
    /// There is no session by this attempt.
    pub async fn dial(&self, address: &str) -> Result<Session, DialError> {
        let live = self.0.dial_any(&[address.to_owned()], None).await?;
        Ok(live.session)
    }

    /// Says that this name and this id belong together (from the membership), so that nobody else gets in with either.
    ///
    /// # Errors
    /// They are known otherwise: `forget` the old one first.
    pub fn remember(&self, id: PeerId, name: &str) -> Result<(), Reason> {
        self.0.table.remember(id, name).map(|_| ())
    }

    /// Forgets a peer (it was removed from the cluster): its session ends, its name is free again.
    pub fn forget(&self, id: PeerId) {
        if let Some(live) = self.0.table.forget(id) {
            live.close(Reason::NotAdmitted, "removed from the cluster");
        }
    }

    /// Everybody who is known, connected or not.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerSnapshot> {
        self.0.table.snapshot()
    }

    #[must_use]
    pub fn refusals(&self) -> Vec<RefusalCount> {
        self.0.refusals.counts()
    }

    #[must_use]
    pub fn certificates(&self) -> &Certificates {
        &self.0.certificates
    }

    /// Moves to another local UDP socket, as an edge does that got another network. Sessions stay where the other
    /// side allows it.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub fn rebind(&self, listen: SocketAddr) -> std::io::Result<()> {
        self.0.endpoint.rebind(bind(listen)?)
    }

    /// Ends all sessions, tells the peers, and waits until they were told, not for long.
    ///
    /// *Cancel safety*: call it again.
    pub async fn close(&self) {
        self.0.closing.send_replace(true);
        self.0.book.clear();
        let live = self.0.table.all();
        for each in &live {
            each.close(Reason::Leaving, "");
        }
        for each in &live {
            each.gone().await;
        }
        self.0
            .endpoint
            .close(VarInt::from_u32(u32::from(Reason::Leaving.code())), Reason::Leaving.text().as_bytes());
        if timeout(CLOSE_MAX, self.0.endpoint.wait_idle()).await.is_err() {
            warn!("some peers did not hear that this node leaves");
        }
    }
}

/// A UDP socket with room for what comes in at once.
fn bind(listen: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind(listen)?;
    // The system gives what it allows. Less is slower, and no fault.
    if let Err(error) = socket2::SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BYTES) {
        warn!(err = %error, "the receive buffer of the UDP socket stays as it is");
    }
    Ok(socket)
}

/// A connection that is not through the handshake.
struct Pending(Arc<Inner>);

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.pending.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Inner {
    /// QUIC with the certificates as they are now.
    pub(super) fn configs(&self) -> Configs {
        self.certificates.refresh();
        let loaded = self.certificates.current();
        let mut configs = self.configs.lock().unwrap_or_else(PoisonError::into_inner);
        if configs.generation != loaded.generation {
            match Configs::new(self.options.kind, &loaded) {
                Ok(new) => *configs = new,
                Err(error) => error!(err = %chain(&error), "new certificates cannot be used for QUIC"),
            }
        }
        configs.clone()
    }

    async fn accept(self: Arc<Self>) {
        let mut closing = self.closing.subscribe();
        loop {
            let incoming = tokio::select! {
                incoming = self.endpoint.accept() => incoming,
                _ = closing.wait_for(|closing| *closing) => return,
            };
            let Some(incoming) = incoming else { return };
            let pending = self.pending.fetch_add(1, Ordering::AcqRel) + 1;
            let guard = Pending(Arc::clone(&self));
            if pending > INCOMING_MAX {
                self.refusals.refused(Reason::Busy, "", incoming.remote_address(), "");
                incoming.refuse();
            } else if pending > RETRY_ABOVE && incoming.may_retry() && !incoming.remote_address_validated() {
                // It has not proved that it can be reached where it says it is.
                drop(incoming.retry());
            } else {
                tokio::spawn(Arc::clone(&self).welcome(incoming, guard));
            }
        }
    }

    /// One connection, to the end of its handshake.
    async fn welcome(self: Arc<Self>, incoming: Incoming, _pending: Pending) {
        let address = incoming.remote_address();
        // Who listens has a certificate.
        let Some(server) = self.configs().server else { return incoming.refuse() };
        let connection = async {
            let connecting = incoming.accept_with(server).map_err(Failed::Lost)?;
            connecting.await.map_err(Failed::Lost)
        };
        let begun = tokio::time::Instant::now();
        let connection = match timeout(HANDSHAKE_MAX, connection).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(Failed::Lost(lost))) => {
                // One that went away by itself refused us, not we it.
                if matches!(lost, quinn::ConnectionError::TransportError(_)) {
                    self.refusals.refused(Reason::Tls, "", address, &closed(&lost));
                }
                return;
            }
            Ok(Err(Failed::Refused { .. })) => return,
            Err(_) => return self.refusals.refused(Reason::Slow, "", address, ""),
        };
        let introduced = self.introduce_by(connection.clone());
        match tokio::time::timeout_at(begun + HANDSHAKE_MAX, introduced).await {
            Ok(Ok(_)) => {}
            Ok(Err(Failed::Refused { reason, name, detail })) => {
                if reason != Reason::AlreadyConnected {
                    self.refusals.refused(reason, &name, address, &detail);
                }
            }
            Ok(Err(Failed::Lost(_))) => {}
            Err(_) => {
                close(&connection, Reason::Slow, "");
                self.refusals.refused(Reason::Slow, "", address, "");
            }
        }
    }

    /// Looks at certificates, and ends the sessions of those that are not believed any more.
    async fn sweep(self: Arc<Self>) {
        let mut closing = self.closing.subscribe();
        let mut tick = tokio::time::interval(SWEEP);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                _ = closing.wait_for(|closing| *closing) => return,
            }
            drop(self.configs());
            let loaded = self.certificates.current();
            let now = SystemTime::now();
            for live in self.table.all() {
                if let Some(detail) = live.shown.problem(&live.peer.name, &loaded, now) {
                    let address = live.connection.remote_address();
                    self.refusals.refused(Reason::Revoked, &live.peer.name, address, detail);
                    live.close(Reason::Revoked, detail);
                }
            }
        }
    }
}

impl PeerTransport for Transport {
    fn call(
        &self,
        peer: PeerId,
        lane: Lane,
        request: Bytes,
        within: Duration,
    ) -> BoxFuture<'static, Result<Bytes, CallError>> {
        if lane.calls_max() == 0 {
            return Box::pin(std::future::ready(Err(CallError::OneWay(lane))));
        }
        if request.len() > lane.bytes_max() {
            let bytes = request.len();
            return Box::pin(std::future::ready(Err(CallError::TooLarge { bytes })));
        }
        let Some(live) = self.0.table.get(peer) else {
            return Box::pin(std::future::ready(Err(CallError::NotConnected(peer))));
        };
        Box::pin(async move {
            live.counts.calls.fetch_add(1, Ordering::Relaxed);
            let answer = timeout(within, live.call(lane, request)).await;
            let answer = answer.unwrap_or(Err(CallError::TimedOut));
            if answer.is_err() {
                live.counts.calls_failed.fetch_add(1, Ordering::Relaxed);
            }
            answer
        })
    }

    fn send(&self, to: Session, lane: Lane, frame: Bytes) -> Result<(), SendError> {
        match self.0.table.get(to.peer).filter(|live| live.session == to) {
            Some(live) => live.send(lane, frame),
            None => Err(SendError::Ended),
        }
    }

    fn waiting(&self, to: Session, lane: Lane) -> usize {
        let live = self.0.table.get(to.peer).filter(|live| live.session == to && lane == Lane::Mesh);
        live.map_or(0, |live| live.waiting())
    }

    fn reset(&self, session: Session, reason: &str) {
        if let Some(live) = self.0.table.get(session.peer).filter(|live| live.session == session) {
            live.close(Reason::Reset, reason);
        }
    }

    fn session(&self, peer: PeerId) -> Option<Session> {
        self.0.table.get(peer).map(|live| live.session)
    }

    fn has_ended(&self, peer: PeerId) -> BoxFuture<'static, bool> {
        match self.0.table.get(peer) {
            Some(live) => Box::pin(nobody_listens(live.connection.remote_address())),
            None => Box::pin(std::future::ready(false)),
        }
    }
}
