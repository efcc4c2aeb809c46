//! A place in the simulated cluster: a disk that stays, and the lives of a process on it.

use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use beamlog_log::sim_disk::{Crash, SimDisk};
use beamlog_log::{Disk, Index, NodeId, PlantedBug, SeededRandom, ShardId, Tail};
use beamlog_net::cluster::{self, ChangeError, Cluster, ClusterOptions, Member, Seat, Standing, Start};
use beamlog_net::peer::{Introduction, PeerId, Role as PeerRole};
use beamlog_net::runtime::{self, Executor};
use beamlog_router::embed::PlainWire;
use beamlog_router::replica::{Replica, Role};
use beamlog_router::{Clocks, Health, Router, RouterOptions, Stepper};
use tokio::sync::oneshot;

use crate::executor::{Machine, Simulation};
use crate::host::Host;
use crate::network::Network;
use crate::note;
use crate::oracle::Violation;
use crate::planted::Planted;
use crate::remains::Remains;
use crate::run::Leaders;
use crate::trace::Trace;

/// How long a step of a driver takes at least: time passes while it works.
const STEP: Duration = Duration::from_micros(5);
/// Steps without anything to do after which a driver is said to spin.
const SPIN: u32 = 5_000;
/// What is said of it then.
pub const SPINS: &str = "its driver has nothing to do and does not sleep";
/// Before a node asks again to be taken in.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// The cluster's only shard.
const SHARD: ShardId = ShardId(0);

/// What a running process shows to the world.
#[derive(Default)]
pub struct Shown {
    pub router: Option<Router>,
    pub cluster: Option<Cluster>,
    pub role: Role,
    /// The state at an index, when asked for by [`Place::ask_rows`].
    pub rows: Option<(Index, Vec<Vec<u8>>)>,
    wants_rows: bool,
    /// The sleeping driver, woken when rows are asked for.
    sleeper: Option<Waker>,
    /// Where its log ends since its last sector decayed and was taken for a torn write.
    ends_at: Option<Index>,
    /// Why it stopped by itself.
    pub stopped: Option<String>,
}

/// What is shared with the tasks of a life.
pub type Slot = Arc<Mutex<Shown>>;

/// One node of the cluster, dead or alive.
pub struct Place {
    pub number: usize,
    pub disk: SimDisk,
    pub id: NodeId,
    pub peer: PeerId,
    /// How often another node was put in this place.
    generation: u64,
    /// Its disk was told to fail: its process may stop.
    pub excused: bool,
    /// Bytes of its disk have decayed.
    pub rotten: bool,
    lives: u64,
    machine: Option<u64>,
    slot: Slot,
    /// The last entry that its processes knew to be committed and on this disk.
    held: Index,
}

/// What all places share.
#[derive(Clone)]
pub struct Surroundings {
    pub simulation: Simulation,
    pub network: Network,
    pub trace: Arc<Trace>,
    /// Where the simulated clocks begin.
    pub epoch: Instant,
    pub planted: Option<Planted>,
    pub leaders: Arc<Leaders>,
    pub remains: Arc<Remains>,
}

struct SimClocks {
    epoch: Instant,
}

impl Clocks for SimClocks {
    fn monotonic(&self) -> Instant {
        self.epoch + runtime::now().0
    }

    fn wall(&self) -> u64 {
        runtime::wall()
    }
}

/// The id of a store is drawn when it is made.
fn node_id(place: usize, generation: u64) -> NodeId {
    let mut bytes = [0; 16];
    SeededRandom::new(place as u64 + 1_000 * generation).fill(&mut bytes);
    NodeId(bytes)
}

fn lock(slot: &Slot) -> MutexGuard<'_, Shown> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Place {
    #[must_use]
    pub fn new(number: usize) -> Self {
        let id = node_id(number, 0);
        Self {
            number,
            disk: SimDisk::new(),
            id,
            peer: PeerId::of_store(&id.0),
            generation: 0,
            excused: false,
            rotten: false,
            lives: 0,
            machine: None,
            slot: Slot::default(),
            held: Index(0),
        }
    }

    /// Another node with an empty disk is in this place. The one before must be dead; its id does not come back.
    pub fn replace(&mut self) -> PeerId {
        assert!(!self.is_alive(), "a node is replaced when it is gone");
        self.generation += 1;
        self.id = node_id(self.number, self.generation);
        self.disk = SimDisk::new();
        self.held = Index(0);
        std::mem::replace(&mut self.peer, PeerId::of_store(&self.id.0))
    }

    /// The running process.
    #[must_use]
    pub const fn machine(&self) -> Option<u64> {
        self.machine
    }

    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.machine.is_some()
    }

    /// Why its process has stopped by itself, or would have: a supervisor starts it anew.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        let shown = self.shown();
        let of = |cluster: &Cluster| match &cluster.state().borrow().standing {
            Standing::Failed { reason } => Some(reason.clone()),
            Standing::Waiting
            | Standing::Learner
            | Standing::Follower
            | Standing::Candidate
            | Standing::Leader
            | Standing::Fenced { .. }
            | Standing::Stopped => None,
        };
        // A process whose log has failed ends.
        let log = |router: &Router| match router.health() {
            Health::LogFailed { reason } => Some(reason),
            Health::Serving | Health::InsufficientStorage | Health::Damaged { .. } | Health::Closed => None,
        };
        let of_router = || shown.router.as_ref().and_then(log);
        shown.stopped.clone().or_else(of_router).or_else(|| shown.cluster.as_ref().and_then(of))
    }

    pub fn shown(&self) -> MutexGuard<'_, Shown> {
        lock(&self.slot)
    }

    #[must_use]
    pub fn slot(&self) -> Slot {
        Arc::clone(&self.slot)
    }

    /// What it is to the others.
    #[must_use]
    pub fn member(&self) -> Member {
        let name = match self.generation {
            0 => format!("n{}", self.number),
            generation => format!("n{}-{generation}", self.number),
        };
        Member { address: format!("{name}:1"), name, ..Member::default() }
    }

    /// Begins a life. The first node of all begins the cluster; others ask `others` to take them in, but for those that
    /// replace somebody: they are taken in by who replaces them.
    pub fn start(&mut self, around: &Surroundings, others: Vec<PeerId>, skew: i64) {
        self.lives += 1;
        let number = 1 + self.number as u64 * 10_000 + self.lives;
        let machine = around.simulation.machine(number, skew);
        self.machine = Some(number);
        *self.shown() = Shown::default();
        note!(around.trace, "n{} starts, life {}", self.number, self.lives);
        let life = Life {
            place: self.number,
            id: self.id,
            peer: self.peer,
            process: number,
            disk: Planted::disk(around.planted, self.number, &self.disk),
            planted: around.planted,
            member: self.member(),
            first: self.number == 0 && self.generation == 0,
            others: if self.generation == 0 { others } else { Vec::new() },
            slot: Arc::clone(&self.slot),
            network: around.network.clone(),
            trace: Arc::clone(&around.trace),
            epoch: around.epoch,
            leaders: Arc::clone(&around.leaders),
            remains: Arc::clone(&around.remains),
            held: self.held,
            rotten: self.rotten,
        };
        spawn_on(&machine, life.live());
    }

    /// The process dies; `crash` says what becomes of what was not synced.
    pub fn die(&mut self, around: &Surroundings, crash: Crash) {
        let Some(machine) = self.machine.take() else { return };
        let (status, ends_at) = {
            let shown = self.shown();
            (shown.cluster.as_ref().map(Cluster::status), shown.ends_at)
        };
        self.held = ends_at.unwrap_or(self.held);
        if let Some(status) = status {
            self.held = self.held.max(status.committed.min(status.durable.index));
        }
        note!(around.trace, "n{} dies: {crash:?}", self.number);
        around.network.detach(self.peer);
        around.simulation.kill(machine);
        *self.shown() = Shown::default();
        self.disk.crash(crash);
    }

    /// Asks a running node for its state; it appears in [`Shown::rows`].
    pub fn ask_rows(&self) {
        let mut shown = self.shown();
        shown.rows = None;
        shown.wants_rows = true;
        if let Some(sleeper) = shown.sleeper.take() {
            sleeper.wake();
        }
    }
}

/// Whether a log ended with what was taken for a torn write.
async fn is_torn(replica: &Replica) -> bool {
    let (sender, state) = oneshot::channel();
    replica.state(Box::new(move |state| drop(sender.send(state))));
    state.await.is_ok_and(|state| matches!(state.tail, Tail::Torn { .. }))
}

fn spawn_on(machine: &Rc<Machine>, task: impl Future<Output = ()> + Send + 'static) {
    machine.spawn(Box::pin(task), "a life");
}

/// What a process is started with.
struct Life {
    place: usize,
    id: NodeId,
    peer: PeerId,
    process: u64,
    disk: Arc<dyn Disk>,
    planted: Option<Planted>,
    member: Member,
    first: bool,
    others: Vec<PeerId>,
    slot: Slot,
    network: Network,
    trace: Arc<Trace>,
    epoch: Instant,
    leaders: Arc<Leaders>,
    remains: Arc<Remains>,
    held: Index,
    rotten: bool,
}

impl Life {
    async fn live(self) {
        if let Err(reason) = self.try_live().await {
            note!(self.trace, "n{} stops: {reason}", self.place);
            self.network.detach(self.peer);
            let mut shown = lock(&self.slot);
            *shown = Shown { stopped: Some(reason), ..Shown::default() };
        }
    }

    async fn try_live(&self) -> Result<(), String> {
        let seat = Seat::new();
        let clocks = SimClocks { epoch: self.epoch };
        let mut options = RouterOptions::for_simulation();
        options.log.planted_bug = (self.planted == Some(Planted::HoleCut)).then_some(PlantedBug::HoleCut);
        let (router, replica, mut stepper) = Router::open_stepped(
            Path::new("/data"),
            Arc::clone(&self.disk),
            &options,
            Arc::new(PlainWire),
            seat.replicator(),
            Box::new(clocks),
            self.id,
        )
        .map_err(|error| format!("opening: {error:?}"))?;
        match self.planted {
            Some(Planted::IdsForgotten) => stepper.forget_ids_when_leading(),
            Some(Planted::WatermarkBeside) => stepper.forget_watermarks_when_leading(),
            Some(_) | None => {}
        }
        let introduction = Introduction {
            cluster: "sim".to_owned(),
            name: self.member.name.clone(),
            role: PeerRole::Node,
            id: self.peer,
            incarnation: self.process,
            advertise: self.member.address.clone(),
            claims: bytes::Bytes::new(),
        };
        let (handler, claims) = (Host::begin(seat.handler()), seat.claims());
        let name = |what: &str| format!("the {what} of n{}, process {}", self.place, self.process);
        self.remains.expect_gone(name("disk"), &self.disk);
        self.remains.expect_gone(name("host"), &handler);
        let endpoint = Arc::new(self.network.attach(introduction, handler, claims, self.process));
        self.remains.expect_gone(name("endpoint"), &endpoint);
        drop(runtime::spawn(drive(stepper, Arc::clone(&self.slot), Arc::clone(&self.trace), self.place)));
        let asked = replica.clone();
        let start = Start {
            seat,
            shard: SHARD,
            me: self.peer,
            replica,
            transport: endpoint,
            first: self.first.then(|| self.member.clone()),
            options: ClusterOptions { planted_bug: self.counting(), ..ClusterOptions::default() },
        };
        let cluster = Cluster::start(start).await.map_err(|error| format!("starting: {error:?}"))?;
        let router_health = router.health();
        {
            let mut shown = lock(&self.slot);
            shown.router = Some(router);
            shown.cluster = Some(cluster.clone());
        }
        let last = cluster.status().last.index;
        if last < self.held && !matches!(router_health, Health::Damaged { .. }) {
            let (held, place) = (self.held, self.place);
            let text = format!("n{place} held committed entries up to {held} and comes back with {last}");
            // A last sector that decayed, and the frames in it, cannot be told from one that was torn (DR4); its peers
            // can, and refuse it (DR13).
            if self.rotten && is_torn(&asked).await {
                note!(self.trace, "{text}: their sector decayed");
                // The next start finds a whole log that ends here.
                lock(&self.slot).ends_at = Some(last);
            } else {
                self.leaders.seen().note(Violation::Other(text));
            }
        }
        drop(asked);
        drop(runtime::spawn(self.watch(cluster.clone())));
        self.join(&cluster).await;
        Ok(())
    }

    /// How it counts wrong.
    fn counting(&self) -> Option<cluster::PlantedBug> {
        match self.planted {
            Some(Planted::AnswersMadeUp) => Some(cluster::PlantedBug::AnswersMadeUp),
            Some(Planted::AnswersMadeUpAndBooked) => Some(cluster::PlantedBug::AnswersMadeUpAndBooked),
            Some(_) | None => None,
        }
    }

    /// Asks one node after another to be taken in, until it is.
    async fn join(&self, cluster: &Cluster) {
        let mut turn = 0;
        while !self.others.is_empty() {
            let standing = cluster.state().borrow().standing.clone();
            match standing {
                Standing::Follower | Standing::Leader | Standing::Candidate => return,
                Standing::Waiting | Standing::Learner => {
                    let through = self.others[turn % self.others.len()];
                    turn += 1;
                    match cluster.join(through, self.member.clone()).await {
                        Ok(()) | Err(ChangeError::Member(_)) => {
                            note!(self.trace, "n{} was taken in", self.place);
                        }
                        Err(error) => note!(self.trace, "n{} is not taken in: {error}", self.place),
                    }
                }
                Standing::Fenced { .. } | Standing::Stopped | Standing::Failed { .. } => return,
            }
            runtime::sleep(ASK_AGAIN).await;
        }
    }

    /// Tells of changes of the role.
    fn watch(&self, cluster: Cluster) -> impl Future<Output = ()> + Send + 'static {
        let (slot, trace, place) = (Arc::clone(&self.slot), Arc::clone(&self.trace), self.place);
        let leaders = Arc::clone(&self.leaders);
        let mut role = cluster.role();
        async move {
            loop {
                let now = *role.borrow_and_update();
                note!(trace, "n{place} is {now:?}");
                lock(&slot).role = now;
                if let Role::Leader { term } = now {
                    leaders.note(term, place);
                }
                if role.changed().await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Steps a driver for as long as its process lives.
async fn drive(mut stepper: Stepper, slot: Slot, trace: Arc<Trace>, place: usize) {
    let mut idle = 0_u32;
    loop {
        let stepped = stepper.step();
        if stepped.closed {
            return;
        }
        idle = if !stepped.progress && stepped.next == Some(Duration::ZERO) { idle + 1 } else { 0 };
        if idle == SPIN {
            note!(trace, "n{place} spins");
            lock(&slot).stopped = Some(SPINS.to_owned());
            return;
        }
        {
            let mut shown = lock(&slot);
            if shown.wants_rows
                && let Some(rows) = stepper.state_rows()
            {
                shown.rows = Some(rows);
                shown.wants_rows = false;
            }
        }
        // As its thread would: until something comes or something is due.
        let work = std::future::poll_fn(|context| {
            let mut shown = lock(&slot);
            if shown.wants_rows && stepper.state_rows().is_some() {
                return Poll::Ready(());
            }
            shown.sleeper = Some(context.waker().clone());
            drop(shown);
            stepper.poll_work(context)
        });
        runtime::sleep(STEP).await;
        match stepped.next {
            Some(next) => drop(runtime::timeout(next, work).await),
            None => work.await,
        }
    }
}
