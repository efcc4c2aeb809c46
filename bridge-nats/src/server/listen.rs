//! Accepting connections, the table of those that live, and leaving.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use beamlog_router::interest::Interest;
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tracing::{debug, info, warn};

use super::info::{ClusterInfo, Info, fresh_server_id};
use super::serve::Way;
use super::{JetStream, ServerOptions, flusher, keeper, serve};
use crate::session::{CloseReason, Connection, ConnectionSnapshot, SubscriptionSnapshot};

/// What all tasks of a server share.
pub(crate) struct Context {
    pub(crate) interest: Arc<Interest>,
    pub(crate) jetstream: Option<Arc<dyn JetStream>>,
    pub(crate) options: ServerOptions,
    pub(crate) info: Info,
    pub(super) runtime: Handle,
    /// Somebody connected.
    pub(super) arrival: Notify,
    /// Somebody left.
    departure: Notify,
    connections: Mutex<BTreeMap<u64, Arc<Connection>>>,
    last_id: AtomicU64,
    /// TLS handshakes under way.
    pub(super) handshakes: AtomicUsize,
    /// Reads of all connections, so that each sees how busy the others are.
    pub(super) reads: AtomicU64,
    /// Of connections that ended; those that live are added when asked.
    ended: Mutex<ServerStats>,
}

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ServerStats {
    pub connections: u64,
    pub connections_total: u64,
    pub in_messages: u64,
    pub out_messages: u64,
    pub in_bytes: u64,
    pub out_bytes: u64,
    pub slow_consumers: u64,
    /// Connections that a panic of ours ended.
    pub panics: u64,
    pub subscriptions: u64,
}

/// Why a server did not start.
#[derive(Debug, Error)]
pub enum StartError {
    #[error("listening for clients on {address}")]
    Listen { address: SocketAddr, source: io::Error },
}

/// A running endpoint. Dropping it stops it at once; [`Server::drain`] is the polite way.
pub struct Server {
    context: Arc<Context>,
    address: SocketAddr,
    tasks: [AbortHandle; 3],
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Server {
    /// Listens, and serves clients until it is drained or dropped. Without `jetstream` it is a plain
    /// publish/subscribe endpoint.
    ///
    /// # Errors
    /// The address cannot be bound.
    ///
    /// *Cancel safety*: when dropped before it returns, nothing was started.
    pub async fn start(
        interest: Arc<Interest>,
        jetstream: Option<Arc<dyn JetStream>>,
        options: ServerOptions,
    ) -> Result<Self, StartError> {
        let failed = |source| StartError::Listen { address: options.listen, source };
        let listener = TcpListener::bind(options.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let context = Arc::new(Context {
            info: Info::new(&options, address, fresh_server_id(), jetstream.is_some()),
            interest,
            jetstream,
            options,
            runtime: Handle::current(),
            arrival: Notify::new(),
            departure: Notify::new(),
            connections: Mutex::default(),
            last_id: AtomicU64::new(0),
            handshakes: AtomicUsize::new(0),
            reads: AtomicU64::new(0),
            ended: Mutex::default(),
        });
        info!(%address, "listening for NATS clients");
        let accepting = tokio::spawn(accept(Arc::clone(&context), listener));
        let keeping = tokio::spawn(keeper::keep(Arc::clone(&context)));
        let flushing = flusher::start(&context.interest);
        Ok(Self { context, address, tasks: [accepting.abort_handle(), keeping.abort_handle(), flushing] })
    }

    /// Where it listens; the real port when 0 was asked for.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    #[must_use]
    pub fn server_id(&self) -> &str {
        &self.context.info.server_id
    }

    #[must_use]
    pub fn server_name(&self) -> &str {
        &self.context.info.server_name
    }

    pub(super) fn context(&self) -> Arc<Context> {
        Arc::clone(&self.context)
    }

    /// Says of which cluster it is, and tells clients when that has changed, so that they know where else to go.
    pub fn set_cluster(&self, cluster: ClusterInfo) {
        if !self.context.info.set_cluster(cluster) {
            return;
        }
        for connection in self.context.living() {
            // Older clients do not expect the line again, and a guest came another way.
            if connection.protocol() >= 1 && connection.guest.is_none() {
                connection.say(&self.context.info.line(connection.id, connection.peer, false));
                connection.flush_now();
            }
        }
    }

    /// The connections that live, in the order of their ids.
    #[must_use]
    pub fn connections(&self) -> Vec<ConnectionSnapshot> {
        self.context.living().iter().map(|connection| connection.snapshot()).collect()
    }

    /// The subscriptions of one connection.
    #[must_use]
    pub fn subscriptions_of(&self, id: u64) -> Option<Vec<SubscriptionSnapshot>> {
        let connection = self.context.connections().get(&id).cloned()?;
        Some(connection.subscriptions())
    }

    #[must_use]
    pub fn stats(&self) -> ServerStats {
        let mut stats = *self.context.ended();
        for living in self.connections() {
            stats.add(&living);
            stats.connections += 1;
        }
        stats.connections_total = stats.connections_total.max(stats.connections);
        stats.subscriptions = self.context.interest.subscriptions() as u64;
        stats
    }

    /// Takes no more connections, tells clients that it is leaving, gives them `within` to go, and closes
    /// those that stay. *Cancel safety*: may be called again.
    pub async fn drain(&self, within: Duration) {
        self.tasks[0].abort();
        let connections = self.context.living();
        info!(connections = connections.len(), "draining");
        if !within.is_zero() {
            for connection in connections {
                if connection.protocol() >= 1 {
                    connection.say(&self.context.info.lame_duck_line(&connection));
                    connection.flush_now();
                }
            }
            self.wait_until_empty(within).await;
        }
        for connection in self.context.living() {
            connection.close(CloseReason::ServerShutdown);
        }
        self.wait_until_empty(Duration::from_secs(5)).await;
    }

    async fn wait_until_empty(&self, within: Duration) {
        let gone = async {
            loop {
                let departure = self.context.departure.notified();
                if self.context.connections().is_empty() {
                    return;
                }
                departure.await;
            }
        };
        if tokio::time::timeout(within, gone).await.is_err() {
            debug!("some connections stayed");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        for connection in self.context.living() {
            connection.close(CloseReason::ServerShutdown);
        }
    }
}

impl ServerStats {
    fn add(&mut self, connection: &ConnectionSnapshot) {
        self.in_messages += connection.in_messages;
        self.in_bytes += connection.in_bytes;
        self.out_messages += connection.out_messages;
        self.out_bytes += connection.out_bytes;
    }
}

impl Context {
    fn connections(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Connection>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ended(&self) -> MutexGuard<'_, ServerStats> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn living(&self) -> Vec<Arc<Connection>> {
        self.connections().values().cloned().collect()
    }

    pub(super) fn next_id(&self) -> u64 {
        self.last_id.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Enters a connection. `false` when there are too many.
    pub(super) fn enter(&self, connection: &Arc<Connection>) -> bool {
        let mut connections = self.connections();
        if connections.len() >= self.options.connections_max {
            return false;
        }
        let first = connections.is_empty();
        connections.insert(connection.id, Arc::clone(connection));
        drop(connections);
        self.ended().connections_total += 1;
        if first {
            self.arrival.notify_one();
        }
        true
    }

    /// The task of a connection ends, by whatever cause.
    pub(super) fn leave(&self, connection: &Arc<Connection>, reason: CloseReason) {
        let reason = connection.leave(&self.interest, reason);
        let entered = self.connections().remove(&connection.id).is_some();
        let mut ended = self.ended();
        if entered {
            ended.add(&connection.snapshot());
        }
        ended.slow_consumers += u64::from(reason.is_slow_consumer());
        ended.panics += u64::from(reason == CloseReason::Internal);
        drop(ended);
        self.departure.notify_waiters();
        debug!(session = connection.id, peer = %connection.peer, ?reason, "connection ended");
    }
}

async fn accept(context: Arc<Context>, listener: TcpListener) {
    const PAUSE_MIN: Duration = Duration::from_millis(10);
    const PAUSE_MAX: Duration = Duration::from_secs(1);
    let mut pause = PAUSE_MIN;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                pause = PAUSE_MIN;
                begin(&context, stream, peer);
            }
            Err(error) => {
                // Out of descriptors, or a peer that left before it was accepted: neither ends the server.
                warn!(err = %error, "accepting a connection failed");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}

fn begin(context: &Arc<Context>, stream: TcpStream, peer: SocketAddr) {
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%peer, err = %error, "socket was gone already");
        return;
    }
    drop(tokio::spawn(serve::serve(Arc::clone(context), Way::Listener(stream, peer))));
}
