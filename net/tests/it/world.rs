//! Whole nodes, but for their sockets: router with its driver thread, log on a simulated disk, Raft, and wires
//! in memory between them.

use std::{future::IntoFuture, path::Path, sync::Arc, time::Duration};

use beamlog_log::{Disk, OpenMode, Sequence, ShardId, SimDisk, sim_disk::Crash};
use beamlog_net::{
    cluster::{Change, ChangeError, Cluster, ClusterOptions, Member, Seat, Seats, Standing, Start},
    peer::PeerId,
};
use beamlog_router::{
    Router, RouterOptions,
    api::request::{MessageSelector, PublishOutcome, Published, Request, Response},
    embed::PlainWire,
    replica::Role,
    stream::StreamConfig,
};

use crate::wires::Wires;

/// Nothing here takes so long.
pub(super) const LONG: Duration = Duration::from_secs(60);

pub(super) struct Node {
    pub(super) disk: SimDisk,
    pub(super) live: Option<Live>,
}

pub(super) struct Live {
    pub(super) router: Router,
    pub(super) cluster: Cluster,
    /// Where seats of other shards are added.
    pub(super) seats: Seats,
}

pub(super) struct World {
    pub(super) wires: Wires,
    pub(super) nodes: Vec<Node>,
    pub(super) options: RouterOptions,
    pub(super) timing: ClusterOptions,
}

pub(super) fn member(at: usize) -> Member {
    Member { name: format!("n{at}"), address: format!("10.0.0.{at}:7422"), witness: false }
}

/// Waits until `ready` says so.
pub(super) async fn until<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let wait = async {
        loop {
            if let Some(value) = ready() {
                return value;
            }
            // The condition is looked at again; nothing is assumed to have happened meanwhile.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    match tokio::time::timeout(LONG, wait).await {
        Ok(value) => value,
        Err(_late) => panic!("waited too long until {what}"),
    }
}

impl World {
    /// So many nodes with empty stores; none is in a cluster.
    pub(super) async fn new(count: usize) -> Self {
        Self::with(count, RouterOptions::for_simulation()).await
    }

    pub(super) async fn with(count: usize, options: RouterOptions) -> Self {
        Self::with_timing(count, options, ClusterOptions::default()).await
    }

    async fn with_timing(count: usize, options: RouterOptions, timing: ClusterOptions) -> Self {
        let mut world = Self { wires: Wires::default(), nodes: Vec::new(), options, timing };
        for at in 0..count {
            world.nodes.push(Node { disk: SimDisk::new(), live: None });
            world.start(at, at == 0).await;
        }
        world
    }

    /// As many voters, with a leader and the stream `ORDERS`.
    pub(super) async fn formed(count: usize) -> Self {
        let world = Self::voters(count).await;
        world.make_stream().await;
        world
    }

    /// The same with other times.
    pub(super) async fn formed_with(count: usize, timing: ClusterOptions) -> Self {
        let world = Self::with_timing(count, RouterOptions::for_simulation(), timing).await;
        world.join_all(count).await;
        world.make_stream().await;
        world
    }

    /// The same with a stream that keeps few messages.
    pub(super) async fn formed_with_short_stream(count: usize, messages: u64) -> Self {
        let world = Self::voters(count).await;
        world.make_short_stream(messages).await;
        world
    }

    async fn voters(count: usize) -> Self {
        let world = Self::new(count).await;
        world.join_all(count).await;
        world
    }

    async fn join_all(&self, count: usize) {
        self.leader().await;
        for at in 1..count {
            self.add(at).await.unwrap();
        }
    }

    pub(super) async fn make_stream(&self) {
        self.make(orders()).await;
    }

    /// A stream that keeps so many messages.
    pub(super) async fn make_short_stream(&self, messages: u64) {
        self.make(StreamConfig { max_messages: Some(messages), ..orders() }).await;
    }

    async fn make(&self, config: StreamConfig) {
        let leader = self.leader().await;
        let made = self.router(leader).request(Request::CreateStream(Box::new(config))).unwrap();
        tokio::time::timeout(LONG, made.into_future()).await.unwrap().unwrap();
    }

    pub(super) async fn start(&mut self, at: usize, first: bool) {
        let live = self.begin(at, first).await;
        self.nodes[at].live = Some(live);
    }

    /// A node that runs, to be put in its place.
    pub(super) async fn begin(&self, at: usize, first: bool) -> Live {
        let seat = Seat::new();
        let (router, replica) = Router::open_replicated(
            Path::new("/data"),
            Arc::new(self.nodes[at].disk.clone()),
            &self.options,
            Arc::new(PlainWire),
            seat.replicator(),
        )
        .unwrap();
        let me = PeerId::of_store(&router.node_id().0);
        let seats = Seats::new(&seat);
        self.wires.plug(me, seats.handler(), seat.claims());
        let cluster = Cluster::start(Start {
            seat,
            shard: ShardId(0),
            me,
            replica,
            transport: self.wires.of(me),
            first: first.then(|| member(at)),
            // Little enough that what left the disk is not in memory either.
            options: ClusterOptions { recent_bytes: 64 << 10, ..self.timing },
        })
        .await
        .unwrap();
        Live { router, cluster, seats }
    }

    pub(super) fn router(&self, at: usize) -> &Router {
        &self.nodes[at].live.as_ref().unwrap().router
    }

    pub(super) fn cluster(&self, at: usize) -> &Cluster {
        &self.nodes[at].live.as_ref().unwrap().cluster
    }

    pub(super) fn id(&self, at: usize) -> PeerId {
        self.cluster(at).me()
    }

    /// Whether a copy took the place of its log at some time.
    pub(super) fn copied(&self, at: usize) -> bool {
        self.nodes[at]
            .disk
            .files()
            .keys()
            .any(|path| path.components().any(|part| part.as_os_str() == "replaced"))
    }

    pub(super) fn is_up(&self, at: usize) -> bool {
        self.nodes[at].live.is_some()
    }

    /// The node whose driver serves clients.
    pub(super) async fn leader(&self) -> usize {
        self.leader_among(&(0..self.nodes.len()).collect::<Vec<_>>()).await
    }

    pub(super) async fn leader_among(&self, nodes: &[usize]) -> usize {
        until("there is a leader", || {
            nodes.iter().copied().find(|at| {
                self.is_up(*at) && matches!(*self.cluster(*at).role().borrow(), Role::Leader { .. })
            })
        })
        .await
    }

    pub(super) async fn add(&self, at: usize) -> Result<(), ChangeError> {
        let leader = self.leader().await;
        let change = Change::Add { id: self.id(at), member: member(at) };
        tokio::time::timeout(LONG, self.cluster(leader).change(change)).await.unwrap()
    }

    /// The process ends at once; the disk keeps what a power cut leaves.
    pub(super) async fn kill(&mut self, at: usize, crash: Crash) {
        let Live { router, cluster, seats: _ } = self.nodes[at].live.take().unwrap();
        self.wires.unplug(cluster.me());
        self.nodes[at].disk.crash(crash);
        // What is left of it in this process; it can write nothing that survives.
        cluster.stop().await;
        drop(cluster);
        drop(router.close());
        self.nodes[at].disk.crash(Crash::LoseUnsynced);
    }

    /// Ends in good order.
    pub(super) async fn stop(&mut self, at: usize) {
        let Live { router, cluster, seats: _ } = self.nodes[at].live.take().unwrap();
        self.wires.unplug(cluster.me());
        cluster.stop().await;
        drop(cluster);
        router.close().unwrap();
    }

    /// Publishes on a node; the outcome when there is one within the time.
    pub(super) async fn publish_on(
        &self,
        at: usize,
        payload: String,
        within: Duration,
    ) -> Option<PublishOutcome> {
        let ticket = self.router(at).publish("orders.new", "", payload).unwrap();
        tokio::time::timeout(within, ticket.into_future()).await.ok()
    }

    /// Publishes on the leader until it is acknowledged; its sequence.
    pub(super) async fn publish(&self, payload: &str) -> u64 {
        loop {
            let leader = self.leader().await;
            if let Some(outcome) = self.publish_on(leader, payload.to_owned(), Duration::from_secs(5)).await
                && let Ok(Published::Stored(sequence)) = outcome.result
            {
                return sequence.0;
            }
        }
    }

    /// What the leader has at a sequence of `ORDERS`.
    pub(super) async fn read(&self, at: usize, sequence: u64) -> Option<String> {
        let request = get(sequence);
        match tokio::time::timeout(LONG, self.router(at).request(request).unwrap().into_future())
            .await
            .unwrap()
        {
            Ok(Response::Message(message)) => Some(String::from_utf8(message.payload.to_vec()).unwrap()),
            Ok(_) | Err(_) => None,
        }
    }

    /// A store that stands alone, with messages, closed in good order.
    pub(super) fn alone(&self, at: usize, payloads: &[&str]) {
        let disk = Arc::new(self.nodes[at].disk.clone());
        let router = Router::open(Path::new("/data"), disk, &self.options, Arc::new(PlainWire)).unwrap();
        router.request(Request::CreateStream(Box::new(orders()))).unwrap().wait().unwrap();
        for payload in payloads {
            let outcome = router.publish("orders.new", "", (*payload).to_owned()).unwrap().wait();
            outcome.result.unwrap();
        }
        router.close().unwrap();
    }

    /// Waits until all nodes that are up have folded what the leader has.
    pub(super) async fn settled(&self) {
        let leader = self.leader().await;
        until("all have folded everything", || {
            let end = self.cluster(leader).status().last;
            let all = (0..self.nodes.len()).filter(|at| self.is_up(*at)).all(|at| {
                let status = self.cluster(at).status();
                status.last == end && status.applied == end.index && status.durable == end
            });
            all.then_some(())
        })
        .await;
    }

    pub(super) async fn standing(&self, at: usize, wanted: impl Fn(&Standing) -> bool) {
        let mut state = self.cluster(at).state();
        let waited = tokio::time::timeout(LONG, state.wait_for(|state| wanted(&state.standing))).await;
        waited.unwrap().unwrap();
    }
}

fn get(sequence: u64) -> Request {
    Request::GetMessage { stream: "ORDERS".into(), selector: MessageSelector::At(Sequence(sequence)) }
}

fn orders() -> StreamConfig {
    StreamConfig { name: "ORDERS".into(), subjects: vec!["orders.>".into()], ..StreamConfig::default() }
}

/// Another disk with what is on the medium of this one.
pub(super) fn copy(disk: &SimDisk) -> SimDisk {
    let other = SimDisk::new();
    for (path, bytes) in disk.files() {
        for directory in path.ancestors().skip(1).collect::<Vec<_>>().into_iter().rev() {
            if !other.exists(directory).unwrap() {
                other.create_dir(directory).unwrap();
                other.sync_dir(directory.parent().unwrap()).unwrap();
            }
        }
        let file = other.open(&path, OpenMode::CreateNew).unwrap();
        file.write_at(&bytes, 0).unwrap();
        file.sync_data().unwrap();
        other.sync_dir(path.parent().unwrap()).unwrap();
    }
    other
}
