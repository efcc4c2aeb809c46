//! A node: the router over its data, the NATS endpoint, and the admin server. What `beamlog serve` runs
//! and what a program embeds.
//!
//! Order: the store is opened first (it may refuse), then clients are let in; on the way out clients
//! leave first, then the log is sealed.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use beamlog_log::{CloseError, LogOptions, StdDisk};
use beamlog_nats::jetstream::{Api, NatsWire};
use beamlog_nats::{Auth, JetStream, Server, ServerOptions, TlsFilesError, TlsOptions};
use beamlog_net::edge::Hub;
use beamlog_net::peer::{PeerId, Role};
use beamlog_router::replica::{Replica, Replicator};
use beamlog_router::{Health, OpenError, Router, RouterOptions};
use thiserror::Error;
use tokio::net::TcpListener;
use tracing::info;

use crate::admin::{Admin, Monitor};
use crate::cluster::{self, ClusterApi, ClusterError, Held, Lists, NodeCluster, Onwards, Served, Shards};
use crate::config::{Authentication, NodeOptions};
use crate::edges::{self, HubError};
use crate::gateway::Gateway;
use crate::grpc::Grpc;
use crate::links::{ChangeError, NodeLinks};
use crate::tasks::{Tasks, TasksError};

/// How often a node looks whether its log still works. A failed log has already stopped acking: this
/// only bounds how long the process outlives it.
const HEALTH_INTERVAL: Duration = Duration::from_millis(250);

/// Why a node does not start. Nothing was deleted, nothing keeps running.
#[derive(Debug, Error)]
pub enum StartError {
    #[error("TLS")]
    Tls(#[from] TlsFilesError),
    #[error("opening the store in {}", path.display())]
    Store { path: PathBuf, source: OpenError },
    #[error(transparent)]
    Endpoint(#[from] beamlog_nats::StartError),
    #[error("tasks")]
    Tasks(#[from] TasksError),
    #[error("listening for admin requests on {address}")]
    Admin { address: SocketAddr, source: io::Error },
    #[error("listening for the gateway's requests on {address}")]
    Gateway { address: SocketAddr, source: io::Error },
    #[error("listening for gRPC on {address}")]
    Grpc { address: SocketAddr, source: io::Error },
    #[error("starting the links")]
    Links(#[source] ChangeError),
    #[error("listening for edges")]
    Hub(#[source] Box<HubError>),
    #[error("taking part in the cluster")]
    Cluster(#[source] Box<ClusterError>),
}

impl StartError {
    /// What an operator can do about it.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        let by_port = |source: &io::Error| {
            if source.kind() == io::ErrorKind::AddrInUse {
                "another process listens there; stop it, or choose another port"
            } else if source.kind() == io::ErrorKind::PermissionDenied {
                "this user may not listen there; choose a port above 1023"
            } else {
                "choose an address of this machine"
            }
        };
        match self {
            Self::Tls(_) => "check tls_cert_file, tls_key_file and tls_client_ca_file",
            Self::Endpoint(beamlog_nats::StartError::Listen { source, .. })
            | Self::Admin { source, .. }
            | Self::Gateway { source, .. }
            | Self::Grpc { source, .. } => by_port(source),
            Self::Store { source, .. } => store_remedy(source),
            Self::Hub(error) => error.remedy(),
            Self::Cluster(error) => error.remedy(),
            Self::Links(_) => "correct the link, or links.toml in the data directory",
            Self::Tasks(TasksError::Listen { source, .. }) => by_port(source),
            Self::Tasks(
                TasksError::Unreadable { .. }
                | TasksError::Malformed { .. }
                | TasksError::TooMany { .. }
                | TasksError::TooLarge { .. },
            ) => "correct the folder of --tasks-policies",
            Self::Tasks(TasksError::Start(beamlog_tasks::service::StartError::Policy { .. })) => {
                "correct the policy"
            }
            Self::Tasks(TasksError::Outpost(_)) => "check the limits of this process",
            Self::Tasks(TasksError::Start(_)) => {
                "look at the stream BEAMLINE; without --tasks the node starts"
            }
        }
    }
}

/// What to do about a store that does not open.
pub(crate) fn store_remedy(error: &OpenError) -> &'static str {
    match error {
        OpenError::Directory(directory) => directory.remedy(),
        OpenError::Options(_) => "correct the option",
        OpenError::Log(beamlog_log::OpenError::UnknownVersion { .. }) => {
            "use the version of beamlog that wrote it, or a newer one"
        }
        OpenError::Log(beamlog_log::OpenError::SuspectTail { .. }) => {
            "restore a copy of it, or accept the loss with `beamlog store repair --accept-tail-loss`"
        }
        OpenError::Log(beamlog_log::OpenError::Missing { .. }) => {
            "restore the directory from a backup, or start with another, empty --data-dir as a new node"
        }
        OpenError::Log(beamlog_log::OpenError::Disk(_)) => {
            "check that this user may read and write there, and the disk"
        }
        OpenError::Log(
            beamlog_log::OpenError::Options(_)
            | beamlog_log::OpenError::ForeignShard { .. }
            | beamlog_log::OpenError::Corrupt { .. },
        )
        | OpenError::Replay(_)
        | OpenError::State(_) => {
            "`beamlog store check` says what is damaged; restore it from a backup; nothing was deleted"
        }
        OpenError::Random(_) | OpenError::Thread(_) => "check the limits of this process",
        OpenError::Member => "start it with its cluster, or restore it from the others",
        OpenError::Vote(_) => "wipe the store and let the node join anew",
    }
}

/// A running node. Dropping it stops it without waiting; [`Node::stop`] is the polite way.
#[derive(Debug)]
pub struct Node {
    router: Router,
    server: Arc<Server>,
    admin: Option<Admin>,
    gateway: Option<Gateway>,
    grpc: Option<Grpc>,
    links: Arc<NodeLinks>,
    /// Where edges connect, if they may.
    hub: Option<Hub>,
    /// Of a cluster, if it is in one.
    member: Option<NodeCluster>,
    served: Option<Served>,
    monitor: Arc<Monitor>,
    tasks: Option<Tasks>,
    drain_timeout: Duration,
}

impl Node {
    /// Opens the store and lets clients in.
    ///
    /// # Errors
    /// What keeps it from starting.
    ///
    /// *Cancel safety*: when dropped before it returns, what was opened is closed again.
    pub async fn start(options: NodeOptions) -> Result<Self, StartError> {
        let started = SystemTime::now();
        let tls = match &options.tls {
            None => None,
            Some(files) => Some(TlsOptions::from_files(
                &files.certificates,
                &files.key,
                files.client_authorities.as_deref(),
            )?),
        };
        let prepared = options
            .cluster
            .as_ref()
            .map(|options| cluster::prepare(options, Role::Node))
            .transpose()
            .map_err(of_cluster)?;
        let (router, replica) =
            open_store(&options, prepared.as_ref().map(|prepared| prepared.seat.replicator())).await?;
        let server_name = options.server_name.clone().unwrap_or_else(|| default_name(&router));
        let interest = Arc::clone(router.interest());
        // At every node of a cluster, with tasks or without: the mesh takes what is said here to those that have them.
        if options.tasks.is_some() || options.cluster.is_some() {
            interest.keep_internal(&beamlog_tasks::engine::settings::subjects::INTERNAL);
        }
        let api = Api::new(router.clone(), server_name.clone());
        let mut jetstream: Arc<dyn JetStream> = Arc::new(api.clone());
        let (mut member, mut served) = (None, None);
        if let (Some(prepared), Some(replica)) = (prepared, replica) {
            let lists = Lists::new(router.clone(), api.clone());
            let clustered = Arc::new(ClusterApi::new(api.clone(), lists.clone(), Arc::clone(&interest)));
            match prepared.start(&router, replica, &clustered).await {
                Ok(started) => {
                    let seen = started.clone();
                    api.placed_by(Box::new(move || seen.view()));
                    let seen = started.clone();
                    lists.placed_by(Box::new(move || seen.view()));
                    match start_others(&router, &api, &started, &clustered, &options).await {
                        Ok(others) => served = Some(others),
                        Err(error) => return Err(close_after(router, error).await),
                    }
                    member = Some(started);
                }
                Err(error) => return Err(close_after(router, of_cluster(error)).await),
            }
            jetstream = clustered;
        }
        // Before clients: what they ask is answered by somebody who knows what was promised before.
        let role = member.as_ref().map(NodeCluster::role);
        let tasks = match &options.tasks {
            None => None,
            Some(tasks) => match Tasks::start(&router, tasks, &options, role).await {
                Ok(tasks) => Some(tasks),
                Err(error) => return Err(close_after(router, error.into()).await),
            },
        };
        let server_options = server_options(&options, server_name, tls);
        let server = match Server::start(interest, Some(jetstream), server_options).await {
            Ok(server) => Arc::new(server),
            Err(error) => {
                stop_tasks(tasks).await;
                return Err(close_after(router, error.into()).await);
            }
        };
        if let Some(member) = &member {
            cluster::announce(member, &server, &router);
        }
        // After the endpoint, so that nothing that a link brings comes before clients can be there for it.
        let links = match NodeLinks::start(router.clone(), &options, member.as_ref().map(NodeCluster::role)) {
            Ok(links) => Arc::new(links),
            Err(error) => {
                drop(server);
                stop_tasks(tasks).await;
                return Err(close_after(router, StartError::Links(error)).await);
            }
        };
        let me = PeerId::of_store(&router.node_id().0);
        let hub = match options.hub.as_ref().map(|hub| edges::start_hub(me, hub, &server)).transpose() {
            Ok(hub) => hub,
            Err(error) => {
                drop(links);
                drop(server);
                stop_tasks(tasks).await;
                return Err(close_after(router, StartError::Hub(Box::new(error))).await);
            }
        };
        let serving = tasks.as_ref().map(|tasks| Arc::clone(tasks.serving()));
        let monitor = Arc::new(Monitor::new(
            router.clone(),
            Arc::clone(&server),
            api,
            Arc::clone(&links),
            member.clone(),
            hub.clone(),
            options.clone(),
            started,
            (serving, served.clone()),
        ));
        let admin = match options.admin {
            None => None,
            Some(address) => match TcpListener::bind(address).await {
                Ok(listener) => Some(Admin::start(listener, address, Arc::clone(&monitor))),
                Err(source) => {
                    drop(monitor);
                    if let Some(hub) = hub {
                        hub.close().await;
                    }
                    drop(links);
                    drop(server);
                    stop_tasks(tasks).await;
                    return Err(close_after(router, StartError::Admin { address, source }).await);
                }
            },
        };
        let (gateway, grpc) = match start_shells(&router, &options, tasks.as_ref()).await {
            Ok(shells) => shells,
            Err(error) => {
                drop(admin);
                if let Some(hub) = hub {
                    hub.close().await;
                }
                drop(monitor);
                drop(links);
                drop(server);
                stop_tasks(tasks).await;
                return Err(close_after(router, error).await);
            }
        };
        let drain_timeout = options.drain_timeout;
        let node = Self {
            router,
            server,
            admin,
            gateway,
            grpc,
            links,
            hub,
            member,
            served,
            monitor,
            tasks,
            drain_timeout,
        };
        info!(
            version = env!("CARGO_PKG_VERSION"),
            server_name = node.server.server_name(),
            listen = %node.listen_address(),
            admin = node.admin_address().map(|address| address.to_string()),
            data_dir = %options.data_dir.display(),
            tasks = node.tasks.is_some(),
            gateway = node.gateway_address().map(|address| address.to_string()),
            grpc = node.grpc_address().map(|address| address.to_string()),
            "ready"
        );
        Ok(node)
    }

    /// Where NATS clients connect; the real port when 0 was asked for.
    #[must_use]
    pub fn listen_address(&self) -> SocketAddr {
        self.server.local_addr()
    }

    /// Where the admin server listens, if it does.
    #[must_use]
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(Admin::local_addr)
    }

    /// Where edges connect, if they may.
    #[must_use]
    pub fn edge_address(&self) -> Option<SocketAddr> {
        self.hub.as_ref().map(Hub::local_address)
    }

    /// Where the gateway listens, if there is one.
    #[must_use]
    pub fn gateway_address(&self) -> Option<SocketAddr> {
        self.gateway.as_ref().map(Gateway::local_addr)
    }

    /// Where gRPC is served, if it is.
    #[must_use]
    pub fn grpc_address(&self) -> Option<SocketAddr> {
        self.grpc.as_ref().map(Grpc::local_addr)
    }

    /// Where gateways ask for back-pressure, if they may.
    #[must_use]
    pub fn backpressure_address(&self) -> Option<SocketAddr> {
        self.tasks.as_ref().and_then(Tasks::backpressure_address)
    }

    /// The router, for a program that publishes and consumes without a socket.
    #[must_use]
    pub fn router(&self) -> &Router {
        &self.router
    }

    /// Waits until the log has failed, and says why. A node that lost its log must stop: what it was
    /// told from then on is nowhere. *Cancel safety*: may be dropped and called again.
    pub async fn failed(&self) -> String {
        loop {
            let others = self.served.as_ref().map(Served::routers).unwrap_or_default();
            for router in std::iter::once(&self.router).chain(&others) {
                match router.health() {
                    Health::LogFailed { reason } => return reason,
                    Health::Closed => return "the router was closed".to_owned(),
                    Health::Serving | Health::InsufficientStorage | Health::Damaged { .. } => {}
                }
            }
            tokio::time::sleep(HEALTH_INTERVAL).await;
        }
    }

    /// Drains and stops: no new connections, clients are told and given [`NodeOptions::drain_timeout`] to
    /// go, everything taken in is finished, the log is sealed.
    ///
    /// # Errors
    /// The log could not be sealed. What was acked is durable all the same.
    ///
    /// *Cancel safety*: when dropped, the rest happens without anybody waiting for it.
    pub async fn stop(self) -> Result<(), CloseError> {
        self.monitor.set_draining();
        // Edges are told at once, and come back by themselves: what they were not told was done, they send again.
        if let Some(hub) = &self.hub {
            hub.close().await;
        }
        tokio::join!(self.links.drain(self.drain_timeout), self.server.drain(self.drain_timeout));
        drop(self.admin);
        drop(self.gateway);
        drop(self.grpc);
        // Its last words need the log.
        stop_tasks(self.tasks).await;
        if let Some(served) = &self.served {
            served.shards.stop().await;
        }
        if let Some(member) = &self.member {
            member.stop().await;
        }
        let others = match &self.served {
            None => Ok(()),
            Some(served) => served.held.close().await.and(served.shards.close().await),
        };
        let closed = close(self.router).await.and(others);
        info!(clean = closed.is_ok(), "stopped");
        closed
    }
}

/// What serves tasks to those who do not speak NATS.
async fn start_shells(
    router: &Router,
    options: &NodeOptions,
    tasks: Option<&Tasks>,
) -> Result<(Option<Gateway>, Option<Grpc>), StartError> {
    // The configuration is refused when there is a gateway or gRPC and there are no tasks.
    let Some(tasks) = tasks else { return Ok((None, None)) };
    let body_bytes_max = options.payload_bytes_max;
    let gateway = match options.gateway {
        None => None,
        Some(gateway) => {
            let address = gateway.listen;
            let listener =
                TcpListener::bind(address).await.map_err(|source| StartError::Gateway { address, source })?;
            let serving = Arc::clone(tasks.serving());
            Some(Gateway::start(listener, router.clone(), serving, gateway, body_bytes_max))
        }
    };
    let grpc = match options.grpc.clone() {
        None => None,
        Some(grpc) => {
            let address = grpc.listen;
            let listener =
                TcpListener::bind(address).await.map_err(|source| StartError::Grpc { address, source })?;
            Some(Grpc::start(listener, router.clone(), grpc, body_bytes_max))
        }
    };
    Ok((gateway, grpc))
}

async fn stop_tasks(tasks: Option<Tasks>) {
    if let Some(tasks) = tasks {
        tasks.stop().await;
    }
}

/// What an event may be longer than the request that it keeps.
const EVENT_BYTES: usize = 256 << 10;
/// The store, within that of the node, of what a member of a cluster holds alone.
const LOCAL: &str = "local";

/// Opens the store: of a node that stands alone, or of a member of a cluster.
async fn open_store(
    options: &NodeOptions,
    replicator: Option<Arc<dyn Replicator>>,
) -> Result<(Router, Option<Replica>), StartError> {
    let path = options.data_dir.clone();
    let router_options = router_options(options);
    let opening = tokio::task::spawn_blocking(move || {
        let (disk, wire) = (Arc::new(StdDisk), Arc::new(NatsWire::new()));
        let opened = match replicator {
            None => Router::open(&path, disk, &router_options, wire).map(|router| (router, None)),
            Some(replicator) => Router::open_replicated(&path, disk, &router_options, wire, replicator)
                .map(|(router, replica)| (router, Some(replica))),
        };
        opened.map_err(|source| StartError::Store { path, source })
    });
    opening.await.expect("opening is not cancelled, and does not panic")
}

fn router_options(options: &NodeOptions) -> RouterOptions {
    RouterOptions {
        log: LogOptions { segment_bytes: options.segment_bytes, ..LogOptions::default() },
        scrub_period: options.scrub_period,
        message_bytes_max: options.payload_bytes_max + if options.tasks.is_some() { EVENT_BYTES } else { 0 },
        ..RouterOptions::default()
    }
}

/// Opens what a member of a cluster has beside the first shard, and lets requests for it in.
async fn start_others(
    router: &Router,
    api: &Api,
    member: &NodeCluster,
    clustered: &Arc<ClusterApi>,
    options: &NodeOptions,
) -> Result<Served, StartError> {
    let path = options.data_dir.join(LOCAL);
    let of_cluster = (router.clone(), api.clone());
    let starting = Held::start(
        of_cluster.clone(),
        member.clone(),
        path.clone(),
        router_options(options),
        Onwards::new(clustered),
    );
    let held = starting.await.map_err(|source| StartError::Store { path, source })?;
    let starting = Shards::start(
        of_cluster,
        member.clone(),
        options.data_dir.clone(),
        router_options(options),
        Onwards::new(clustered),
    );
    let shards = starting.await.map_err(|error| self::of_cluster(error.into()))?;
    clustered.with_others(held.clone(), shards.clone());
    Ok(Served { api: Arc::clone(clustered), held, shards })
}

fn of_cluster(error: ClusterError) -> StartError {
    StartError::Cluster(Box::new(error))
}

/// Seals the log of a router that nobody got to use.
async fn close_after(router: Router, error: StartError) -> StartError {
    if let Err(close_error) = close(router).await {
        tracing::warn!(err = %close_error, "the log was not sealed");
    }
    error
}

async fn close(router: Router) -> Result<(), CloseError> {
    let closing = tokio::task::spawn_blocking(move || router.close());
    closing.await.expect("closing is not cancelled, and does not panic")
}

/// `beamlog-` and the beginning of the node's identity: the same after every restart.
fn default_name(router: &Router) -> String {
    let identity = router.node_id().to_string();
    format!("beamlog-{}", &identity[..8])
}

fn server_options(options: &NodeOptions, server_name: String, tls: Option<TlsOptions>) -> ServerOptions {
    ServerOptions {
        listen: options.listen,
        server_name: Some(server_name),
        auth: match &options.authentication {
            Authentication::None => Auth::None,
            Authentication::Token(token) => Auth::Token(token.0.clone()),
            Authentication::User { user, password } => Auth::Users(vec![(user.clone(), password.0.clone())]),
        },
        tls,
        payload_max: options.payload_bytes_max,
        control_line_max: options.control_line_bytes_max,
        ping_interval: options.ping_interval,
        ping_max: options.pings_outstanding_max,
        pending_max: options.pending_bytes_max,
        write_deadline: options.write_deadline,
        auth_timeout: options.auth_timeout,
        connections_max: usize::try_from(options.connections_max).unwrap_or(usize::MAX),
        ..ServerOptions::default()
    }
}
