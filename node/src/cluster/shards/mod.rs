//! The shards of the cluster beside its first one: each is held by some of the nodes, with a log, a driver, an
//! agreement and a leader of its own. The list of them is in the first shard's log; a node that is named there opens
//! a store and takes part, and the leader of each shard makes its members those that are listed.
//!
//! What a node has begun it takes part in again when it starts, whether the first shard is led or not.

mod choose;
mod marks;
mod members;
mod shown;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::Duration;

use beamlog_log::{CloseError, ShardId, StdDisk};
use beamlog_nats::jetstream::{Api, ApiRequest, NatsWire};
use beamlog_net::cluster::{Change, Cluster, ClusterOptions as Timing, Seat, Start};
use beamlog_net::mesh::MeshMessage;
use beamlog_net::peer::{PeerId, PeerTransport as _};
use beamlog_router::api::catalogue::ListedMember;
use beamlog_router::api::error::ApiError;
use beamlog_router::api::request::{ClusterShard, ShardList};
use beamlog_router::interest::{Envelope, Interest, Offered, RouteCache, Subscriber};
use beamlog_router::stream::StreamConfig;
use beamlog_router::{OpenError, Router, RouterOptions, StreamId};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::cli::err_chain;
use crate::cluster::api::Onwards;
use crate::cluster::held::{Held, of_shard, of_shard_at, send_to};
use crate::cluster::{NodeCluster, announce, catalogue};
pub(in crate::cluster) use choose::named;
use marks::Mark;
pub use marks::MarkError;

/// Between two looks at the list, and after one that could not be had.
const LOOK: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// Between two looks of a shard's leader at its members.
const FOLLOW: Duration = Duration::from_millis(500);

/// The name of all nodes that look at the list, and the subject that is shown.
const NAME: &[u8] = b"_BEAMLOG.SHARDS";
const SHOWN: &[u8] = b"$BEAMLOG.SHARDS";

/// Why a node does not take part in a shard.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    #[error(transparent)]
    Mark(#[from] MarkError),
    #[error("opening the store in {}", path.display())]
    Open { path: PathBuf, source: OpenError },
}

/// This node's part in the shards. Clones are the same.
#[derive(Clone)]
pub(crate) struct Shards(Arc<Inner>);

struct Inner {
    main: Router,
    main_api: Api,
    member: NodeCluster,
    data_dir: PathBuf,
    options: RouterOptions,
    onwards: Onwards,
    /// The stores that are open.
    stores: RwLock<BTreeMap<u8, Router>>,
    /// Those of them that take part.
    parts: RwLock<BTreeMap<u8, Part>>,
    /// Why one does not.
    problems: Mutex<BTreeMap<u8, String>>,
    seen: watch::Sender<Seen>,
    /// The list has changed.
    changed: Arc<Notify>,
}

/// Where a new stream goes.
pub(in crate::cluster) enum Placed {
    /// To another shard, which was asked.
    Sent,
    /// To the first: its placement says so.
    First,
    /// Not to another shard.
    Elsewhere,
}

#[derive(Clone)]
struct Part {
    /// This node, with its part in this shard.
    node: NodeCluster,
    held: Held,
}

/// What the list said when it was looked at last.
#[derive(Clone, Debug, Default)]
struct Seen {
    list: ShardList,
    members: Vec<ListedMember>,
}

impl Seen {
    fn shard(&self, number: u8) -> Option<&ClusterShard> {
        self.list.shards.iter().map(|listed| &listed.shard).find(|shard| shard.number == number)
    }
}

impl std::fmt::Debug for Shards {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shards").field("seen", &*self.0.seen.borrow()).finish_non_exhaustive()
    }
}

/// Hears that the list has changed.
struct Ear(Arc<Notify>);

impl Subscriber for Ear {
    fn offer(&self, _subscription: u64, message: &Envelope<'_>) -> Offered {
        if message.subject != SHOWN {
            return Offered::Refused;
        }
        self.0.notify_one();
        Offered::Taken
    }

    fn flush(&self) {}
}

impl Shards {
    /// Takes part in what this node has begun. Within a tokio runtime. `onwards` is asked for what is not here.
    ///
    /// # Errors
    /// A store is lost or does not open.
    pub(crate) async fn start(
        (main, main_api): (Router, Api),
        member: NodeCluster,
        data_dir: PathBuf,
        options: RouterOptions,
        onwards: Onwards,
    ) -> Result<Self, ShardError> {
        let changed = Arc::new(Notify::new());
        let ear = Arc::new(Ear(Arc::clone(&changed)));
        main.interest().subscribe(NAME, None, ear, 0).expect("a legal filter");
        let marked = {
            let data_dir = data_dir.clone();
            let looking = tokio::task::spawn_blocking(move || marks::all(&data_dir));
            looking.await.expect("looking is not cancelled, and does not panic")?
        };
        let shards = Self(Arc::new(Inner {
            main,
            main_api,
            member,
            data_dir,
            options,
            onwards,
            stores: RwLock::default(),
            parts: RwLock::default(),
            problems: Mutex::default(),
            seen: watch::channel(Seen::default()).0,
            changed,
        }));
        for (number, mark) in marked {
            shards.open(number, mark.founds).await?;
        }
        tokio::spawn(look(Arc::downgrade(&shards.0)));
        Ok(shards)
    }

    /// The stores of this node, each with the number of its shard.
    pub(crate) fn routers(&self) -> Vec<(u8, Router)> {
        let stores = self.0.stores.read().unwrap_or_else(PoisonError::into_inner);
        stores.iter().map(|(number, router)| (*number, router.clone())).collect()
    }

    fn part(&self, number: u8) -> Option<Part> {
        self.0.parts.read().unwrap_or_else(PoisonError::into_inner).get(&number).cloned()
    }

    /// What has the stream, if a shard has it that this node leads.
    pub(in crate::cluster) fn holder(&self, stream: &str) -> Option<Held> {
        let parts = self.0.parts.read().unwrap_or_else(PoisonError::into_inner);
        parts.values().map(|part| &part.held).find(|held| held.has(stream)).cloned()
    }

    /// Takes a publish of a peer, which a stream of this shard captures.
    pub(in crate::cluster) fn publish(&self, number: u8, stream: StreamId, message: &MeshMessage<'_>) {
        if let Some(part) = self.part(number) {
            part.held.publish(stream, message);
        }
    }

    /// Sends a request for a new stream to the shard that it is for, if that is one of these.
    ///
    /// # Errors
    /// There is no such shard, or nobody leads it.
    pub(in crate::cluster) fn place(
        &self,
        config: &StreamConfig,
        request: &ApiRequest<'_>,
    ) -> Result<Placed, ApiError> {
        let interest = self.0.main.interest();
        let number = match choose::named(config) {
            Some(named) => match named.map_err(ApiError::NoSuitablePeers)? {
                0 => return Ok(Placed::First),
                number => number,
            },
            // One replica is a node's; and who does not say how many gets all nodes.
            None if config.replicas < 2 => 0,
            None if config.placement.as_ref().is_some_and(|placement| !placement.tags.is_empty()) => 0,
            None => self.choose(config.replicas),
        };
        if number == 0 {
            return Ok(Placed::Elsewhere);
        }
        if send_to(interest, &of_shard(number), request) {
            return Ok(Placed::Sent);
        }
        Err(ApiError::NoSuitablePeers(format!("shard {number} has no leader, or there is none")))
    }

    fn choose(&self, replicas: u8) -> u8 {
        let interest = self.0.main.interest();
        let is_led = |number| interest.is_named(of_shard(number).as_bytes());
        let mut chosen = 0;
        // What was just sent there is not in the list yet.
        self.0.seen.send_if_modified(|seen| {
            chosen = choose::shard_for(replicas, &seen.list, seen.members.len(), is_led);
            match seen.list.shards.iter_mut().find(|listed| listed.shard.number == chosen) {
                Some(listed) => listed.streams += 1,
                None => seen.list.common_streams += 1,
            }
            false
        });
        chosen
    }

    /// Lists a new shard: on these nodes, or on so many.
    ///
    /// # Errors
    /// It cannot be so, or is not confirmed; in words.
    pub(crate) async fn add(&self, nodes: Vec<String>, replicas: Option<u8>) -> Result<u8, String> {
        let Seen { list, members } = self.refresh().await?;
        let member = &self.0.member;
        let me = member.cluster.me();
        let is_connected = |one: &ListedMember| {
            PeerId(one.peer) == me || member.transport.session(PeerId(one.peer)).is_some()
        };
        let nodes = if nodes.is_empty() {
            choose::nodes_for(usize::from(replicas.unwrap_or(3)), &list, &members, is_connected)?
        } else {
            are_members(&nodes, &members)?;
            nodes
        };
        let leader = member.cluster.status().state.leader.map(|leader| leader.0);
        let founder = choose::founder(&nodes, &list, &members, leader, is_connected)
            .ok_or_else(|| "none of these nodes is there".to_owned())?;
        let number = list.shards.last().map_or(1, |last| last.shard.number.saturating_add(1));
        self.put(ClusterShard { number, nodes, founder }).await?;
        Ok(number)
    }

    /// Gives a shard other nodes.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub(crate) async fn set_nodes(&self, number: u8, nodes: Vec<String>) -> Result<(), String> {
        let seen = self.refresh().await?;
        let shard = seen.shard(number).ok_or_else(|| format!("there is no shard {number}"))?;
        are_members(&nodes, &seen.members)?;
        self.put(ClusterShard { nodes, ..shard.clone() }).await
    }

    /// Lets another node lead a shard.
    ///
    /// # Errors
    /// This node has no part in it, or it was refused.
    pub(crate) async fn transfer(&self, number: u8, to: Option<&str>) -> Result<(), String> {
        let part = self.part(number).ok_or_else(|| {
            format!("this node has no part in shard {number}: ask one that has (`beamlog cluster shard ls`)")
        })?;
        let members = part.node.cluster.status().members;
        let id = |name: &str| {
            let found = members.iter().find(|one| one.member.name == name || one.id.to_string() == name);
            found.map(|one| one.id).ok_or_else(|| format!("no node of shard {number} is called {name}"))
        };
        let change = Change::Transfer { to: to.map(id).transpose()? };
        part.node.cluster.change(change).await.map_err(|error| error.to_string())
    }

    async fn put(&self, shard: ClusterShard) -> Result<(), String> {
        let (list, members) = catalogue::put_shard(&self.0.main, shard).await.map_err(|error| {
            if error == ApiError::NotLeader {
                "the list of shards has no leader, or it did not answer".to_owned()
            } else {
                error.to_string()
            }
        })?;
        self.0.seen.send_replace(Seen { list, members });
        // All nodes look, this one too; who does not hear it looks by itself.
        let told = Envelope { subject: SHOWN, reply: b"", headers: b"", payload: b"", origin: 0 };
        self.0.main.interest().send_to(&mut RouteCache::new(), NAME, &told);
        Ok(())
    }

    async fn refresh(&self) -> Result<Seen, String> {
        match catalogue::shards(&self.0.main).await {
            Ok((list, members)) => {
                let seen = Seen { list, members };
                self.0.seen.send_replace(seen.clone());
                Ok(seen)
            }
            Err(_unanswered) => Err("the list of shards has no leader, or it did not answer".to_owned()),
        }
    }

    /// Looks at the list, and begins to take part where this node is named. When to look again.
    async fn look(&self) -> Duration {
        let Ok(seen) = self.refresh().await else { return LOOK_AGAIN };
        let me = self.0.member.cluster.me().0;
        // By its identity: another node may have its name.
        let Some(member) = seen.members.iter().find(|member| member.peer == me) else { return LOOK };
        let mut again = LOOK;
        for listed in &seen.list.shards {
            let ClusterShard { number, nodes, founder } = &listed.shard;
            let is_open = self.0.stores.read().unwrap_or_else(PoisonError::into_inner).contains_key(number);
            if is_open || !nodes.contains(&member.name) {
                continue;
            }
            if let Err(error) = self.open(*number, *founder == me).await {
                let problem = err_chain(&error);
                warn!(shard = number, err = problem, "this node cannot take part in a shard");
                self.has_problem(*number, problem);
                again = LOOK_AGAIN;
            }
        }
        again
    }

    fn has_problem(&self, number: u8, problem: String) {
        self.0.problems.lock().unwrap_or_else(PoisonError::into_inner).insert(number, problem);
    }

    /// Opens the store of a shard, and takes part as soon as its log is known to be whole.
    async fn open(&self, number: u8, founds: bool) -> Result<(), ShardError> {
        let seat = Seat::new();
        let Inner { main, data_dir, options, .. } = &*self.0;
        let (main, data_dir, options) = (main.clone(), data_dir.clone(), options.clone());
        let replicator = seat.replicator();
        let opening = tokio::task::spawn_blocking(move || {
            let mark = Mark::check(&data_dir, number)?;
            let path = marks::folder(&data_dir, number);
            let (disk, wire) = (Arc::new(StdDisk), Arc::new(NatsWire::new()));
            let (router, replica) = main
                .open_replicated_beside(number, &path, disk, &options, wire, replicator)
                .map_err(|source| ShardError::Open { path, source })?;
            if mark.is_none()
                && let Err(error) = Mark::of(router.node_id(), founds).write(&data_dir, number)
            {
                // It is opened anew when there is room again; this waits until it is closed.
                drop(router.close());
                return Err(error.into());
            }
            Ok::<_, ShardError>((router, replica))
        });
        let (router, replica) = opening.await.expect("opening is not cancelled, and does not panic")?;
        self.0.stores.write().unwrap_or_else(PoisonError::into_inner).insert(number, router.clone());
        let shard = ShardId(u32::from(number));
        let member = &self.0.member;
        member.seats.add(shard, &seat);
        let start = Start {
            seat,
            shard,
            me: member.cluster.me(),
            replica,
            transport: Arc::new(member.transport.clone()),
            first: founds.then(|| member.member.clone()),
            options: Timing::default(),
        };
        let shards = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            // It may wait for peers: the other shards do not wait for this one.
            let cluster = Cluster::start(start).await;
            let Some(shards) = shards.upgrade().map(Self) else { return };
            match cluster {
                Ok(cluster) => shards.take_part(number, router, cluster),
                Err(error) => {
                    let problem = err_chain(&error);
                    warn!(shard = number, err = problem, "this node's part in a shard does not begin");
                    shards.has_problem(number, problem);
                }
            }
        });
        Ok(())
    }

    fn take_part(&self, number: u8, router: Router, cluster: Cluster) {
        let Inner { main, main_api, onwards, .. } = &*self.0;
        let node = NodeCluster { cluster, ..self.0.member.clone() };
        let of_cluster = (main.clone(), main_api.clone());
        let common = self.0.member.cluster.clone();
        let of_shard = (number, router.clone());
        let held = Held::start_shard(of_cluster, common, node.clone(), of_shard, onwards.clone());
        let part = Part { node: node.clone(), held };
        tokio::spawn(follow(part.clone(), number, self.0.seen.subscribe()));
        tokio::spawn(announce::tell_events(node, router));
        info!(shard = number, "takes part in a shard");
        self.0.problems.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
        self.0.parts.write().unwrap_or_else(PoisonError::into_inner).insert(number, part);
    }

    /// Takes part no more.
    pub(crate) async fn stop(&self) {
        let parts: Vec<Part> =
            self.0.parts.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        for part in parts {
            part.node.cluster.stop().await;
        }
    }

    /// Seals the stores.
    ///
    /// # Errors
    /// One could not be sealed. What was acked is durable all the same.
    pub(crate) async fn close(&self) -> Result<(), CloseError> {
        let mut closed = Ok(());
        for (_number, router) in self.routers() {
            let closing = tokio::task::spawn_blocking(move || router.close());
            let this = closing.await.expect("closing is not cancelled, and does not panic");
            closed = closed.and(this);
        }
        closed
    }

    /// Who leads a shard, as far as this node hears.
    fn leader(&self, number: u8, members: &[ListedMember]) -> Option<String> {
        let interest: &Interest = self.0.main.interest();
        let leads =
            |member: &&ListedMember| interest.is_named(of_shard_at(number, PeerId(member.peer)).as_bytes());
        members.iter().find(leads).map(|member| member.name.clone())
    }
}

fn are_members(nodes: &[String], members: &[ListedMember]) -> Result<(), String> {
    match nodes.iter().find(|name| !members.iter().any(|member| member.name == **name)) {
        Some(name) => Err(format!("no data node of the cluster is called {name}")),
        None => Ok(()),
    }
}

/// Looks at the list until the node is gone.
async fn look(inner: Weak<Inner>) {
    loop {
        let Some(shards) = inner.upgrade().map(Shards) else { return };
        let next = shards.look().await;
        let changed = Arc::clone(&shards.0.changed);
        drop(shards);
        // Whichever is first.
        drop(timeout(next, changed.notified()).await);
    }
}

/// Keeps the members of a shard as they are listed, where it is led.
async fn follow(part: Part, number: u8, mut seen: watch::Receiver<Seen>) {
    loop {
        let now = seen.borrow_and_update().clone();
        if let Some(shard) = now.shard(number) {
            part.held.expect_voters(shard.nodes.len());
            members::follow(&part.node, shard, &now.members).await;
        }
        tokio::select! {
            changed = seen.changed() => if changed.is_err() { return },
            () = sleep(FOLLOW) => {}
        }
    }
}
