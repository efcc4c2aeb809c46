//! A node as a member of a cluster: its certificates, QUIC, replication and the mesh put together, and kept
//! together while it runs.

mod announce;
mod api;
mod catalogue;
mod held;
mod keeper;
mod lists;
mod moves;
mod shards;
mod shown;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use beamlog_log::ShardId;
use beamlog_net::certificates::{CertificateFiles, Certificates, LoadError};
use beamlog_net::cluster::{
    Cluster, ClusterOptions as Timing, Member, Seat, Seats, Start, StartWitness, Witness,
};
use beamlog_net::mesh::Mesh;
use beamlog_net::peer::{ByLane, Lane, PeerHandler, PeerId, PeerTransport, Role as Of};
use beamlog_net::transport::{BindError, Kind, Transport, TransportOptions};
use beamlog_router::Router;
use beamlog_router::replica::{Replica, Role};
use tokio::sync::watch;

pub(crate) use announce::announce;
pub(crate) use api::{ClusterApi, Onwards};
pub(crate) use held::Held;
pub(crate) use lists::Lists;
use moves::Moves;
pub(crate) use shards::Shards;
pub use shards::{MarkError, ShardError};
pub(crate) use shown::{Asked, change, status};

/// The shard that every voter has.
pub(crate) const SHARD: ShardId = ShardId(0);

/// What makes a node a member of a cluster.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ClusterOptions {
    /// UDP address where other nodes connect.
    pub listen: SocketAddr,
    /// How others reach it, `host:port`; `None` is the listen address.
    pub advertise: Option<String>,
    /// How clients reach it, `host:port`; `None` is not told to the others.
    pub clients: Option<String>,
    /// Folder with the node's certificate and its cluster's roots, as `beamlog cert node` writes it.
    pub certificates: PathBuf,
    /// Nodes through which it joins, `host:port`. Empty: it begins a cluster, unless it is in one.
    pub join: Vec<String>,
}

/// Why a node cannot be a member.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    #[error("the certificates in {}", folder.display())]
    Certificates { folder: PathBuf, source: Box<LoadError> },
    #[error("the certificate in {} is that of {}", folder.display(), role.with_article())]
    Role { folder: PathBuf, role: Of },
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    Start(#[from] beamlog_net::cluster::StartError),
    #[error(transparent)]
    Shard(#[from] ShardError),
}

impl ClusterError {
    /// What an operator can do about it.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Certificates { .. } => "make them with `beamlog cert ca` and `beamlog cert node`",
            Self::Role { role: Of::Witness, .. } => {
                "start it with --witness, or make another with `beamlog cert node`"
            }
            Self::Role { role: Of::Node | Of::Edge, .. } => "make one with `beamlog cert node --witness`",
            Self::Bind(_) => "choose another --cluster-listen, or stop who uses it",
            Self::Start(_) | Self::Shard(ShardError::Open { .. }) => {
                "`beamlog store check` says whether the store is whole"
            }
            Self::Shard(ShardError::Mark(MarkError::Lost { .. })) => {
                "restore the folder, or begin as a new node: `beamlog cluster remove` it, and start it with an empty --data-dir"
            }
            Self::Shard(ShardError::Mark(_)) => "check that this user may read and write there, and the disk",
        }
    }
}

/// What exists before the store is opened.
pub(crate) struct Prepared {
    options: ClusterOptions,
    certificates: Certificates,
    pub(crate) seat: Seat,
}

/// How a clustered node serves streams.
#[derive(Clone, Debug)]
pub(crate) struct Served {
    pub(crate) api: Arc<ClusterApi>,
    pub(crate) held: Held,
    pub(crate) shards: Shards,
}

impl Served {
    /// The stores beside the first.
    pub(crate) fn routers(&self) -> Vec<Router> {
        let of_shards = self.shards.routers().into_iter().map(|(_number, router)| router);
        self.held.router().cloned().into_iter().chain(of_shards).collect()
    }
}

/// A running part in a cluster: in its first shard, or in another.
#[derive(Clone)]
pub(crate) struct NodeCluster {
    pub(crate) cluster: Cluster,
    pub(crate) transport: Transport,
    pub(crate) certificates: Certificates,
    pub(crate) member: Member,
    /// Where peers find the shards of this node.
    seats: Seats,
    /// How clients reach this node.
    clients: Option<String>,
    /// Streams on their way, as far as was heard.
    pub(crate) moves: Arc<Moves>,
}

impl std::fmt::Debug for NodeCluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeCluster").field("member", &self.member).finish_non_exhaustive()
    }
}

/// Reads the certificates: without them the store is not even opened.
pub(crate) fn prepare(options: &ClusterOptions, role: Of) -> Result<Prepared, ClusterError> {
    let files = CertificateFiles::in_directory(&options.certificates);
    let certificates = Certificates::load(files).map_err(|source| ClusterError::Certificates {
        folder: options.certificates.clone(),
        source: Box::new(source),
    })?;
    let found = certificates.current().identity.role;
    if found != role {
        return Err(ClusterError::Role { folder: options.certificates.clone(), role: found });
    }
    let seat = Seat::new().with_clients_at(options.clients.as_deref().unwrap_or_default());
    Ok(Prepared { options: options.clone(), certificates, seat })
}

impl Prepared {
    /// Lets peers in and takes part. `api` is who answers JetStream here when this node leads.
    pub(crate) async fn start(
        self,
        router: &Router,
        replica: Replica,
        api: &Arc<ClusterApi>,
    ) -> Result<NodeCluster, ClusterError> {
        let me = PeerId::of_store(&router.node_id().0);
        let (transport, member) = self.bind(me)?;
        let Self { options, certificates, seat } = self;
        let peers: Arc<dyn PeerTransport> = Arc::new(transport.clone());
        let seats = Seats::new(&seat);
        let mesh = Mesh::new(Arc::clone(router.interest()), Arc::clone(api) as _);
        mesh.attach(Arc::clone(&peers));
        let handlers: Vec<(&'static [Lane], Arc<dyn PeerHandler>)> =
            vec![(Seat::LANES, seats.handler()), (&[Lane::Mesh], Arc::new(mesh.clone()))];
        transport.start(Arc::new(ByLane::new(handlers)));
        let start = Start {
            seat,
            shard: SHARD,
            me,
            replica,
            transport: peers,
            first: options.join.is_empty().then(|| member.clone()),
            options: Timing::default(),
        };
        let cluster = Cluster::start(start).await?;
        let clients = options.clients;
        let moves = Arc::default();
        let node = NodeCluster { cluster, transport, certificates, member, seats, clients, moves };
        tokio::spawn(keeper::tell_role(node.clone(), router.clone(), mesh, Arc::clone(api)));
        keeper::keep(node.clone(), options.join);
        Ok(node)
    }

    /// Lets peers in and votes.
    pub(crate) async fn start_witness(self, witness: Witness) -> Result<NodeCluster, ClusterError> {
        let me = PeerId::of_store(&witness.node_id().0);
        let (transport, member) = self.bind(me)?;
        let Self { options, certificates, seat } = self;
        let seats = Seats::new(&seat);
        transport.start(Arc::new(ByLane::new(vec![(Seat::LANES, seats.handler())])));
        let peers: Arc<dyn PeerTransport> = Arc::new(transport.clone());
        let start = StartWitness { seat, me, witness, transport: peers, options: Timing::default() };
        let cluster = Cluster::start_witness(start).await?;
        let (clients, moves) = (None, Arc::default());
        let node = NodeCluster { cluster, transport, certificates, member, seats, clients, moves };
        keeper::keep(node.clone(), options.join);
        Ok(node)
    }

    fn bind(&self, me: PeerId) -> Result<(Transport, Member), ClusterError> {
        let Self { options, certificates, seat } = self;
        let advertise = |bound: SocketAddr| options.advertise.clone().unwrap_or_else(|| bound.to_string());
        let transport = Transport::bind(
            TransportOptions {
                kind: Kind::Nodes,
                listen: options.listen,
                advertise: advertise(options.listen),
                id: me,
                incarnation: incarnation(),
                claims: seat.claims(),
            },
            certificates.clone(),
        )?;
        let identity = &certificates.current().identity;
        let member = Member {
            name: identity.name.clone(),
            address: advertise(transport.local_address()),
            witness: identity.role == Of::Witness,
        };
        Ok((transport, member))
    }
}

impl NodeCluster {
    /// Whether this node leads.
    pub(crate) fn role(&self) -> watch::Receiver<Role> {
        self.cluster.role()
    }

    /// Stops taking part, and says good-bye to the peers.
    pub(crate) async fn stop(&self) {
        self.cluster.stop().await;
        self.transport.close().await;
    }
}

/// Differs each time a process starts.
fn incarnation() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
