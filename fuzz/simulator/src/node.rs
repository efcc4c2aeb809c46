//! A place in the simulated cluster: a disk that stays, and the lives of a process on it.

use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use beamlog_log::sim_disk::{Crash, SimDisk};
use beamlog_log::{Disk, Index, NodeId, SeededRandom, ShardId};
use beamlog_net::cluster::{ChangeError, Cluster, ClusterOptions, Member, Seat, Standing, Start};
use beamlog_net::peer::{Introduction, PeerId, Role as PeerRole};
use beamlog_net::runtime::{self, Executor};
use beamlog_router::embed::PlainWire;
use beamlog_router::replica::Role;
use beamlog_router::{Clocks, Router, RouterOptions, Stepper};

use crate::executor::{Machine, Simulation};
use crate::network::Network;
use crate::note;
use crate::planted::Planted;
use crate::trace::Trace;

/// How long a step of a driver takes at least: time passes while it works.
const STEP: Duration = Duration::from_micros(5);
/// Steps without anything to do after which a driver is said to spin.
const SPIN: u32 = 5_000;
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
    lives: u64,
    machine: Option<u64>,
    slot: Slot,
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
}

struct SimClocks {
    epoch: Instant,
    /// How far the wall clock is off, in nanoseconds.
    skew: i64,
}

/// 2026-01-01, in nanoseconds.
const BEGINNING: u64 = 1_767_225_600_000_000_000;

impl Clocks for SimClocks {
    fn monotonic(&self) -> Instant {
        self.epoch + runtime::now().0
    }

    fn wall(&self) -> u64 {
        let elapsed = u64::try_from(runtime::now().0.as_nanos()).unwrap_or(u64::MAX);
        BEGINNING.saturating_add(elapsed).saturating_add_signed(self.skew)
    }
}

fn lock(slot: &Slot) -> MutexGuard<'_, Shown> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Place {
    #[must_use]
    pub fn new(number: usize) -> Self {
        let mut bytes = [0; 16];
        SeededRandom::new(number as u64).fill(&mut bytes);
        let id = NodeId(bytes);
        Self {
            number,
            disk: SimDisk::new(),
            id,
            peer: PeerId::of_store(&id.0),
            lives: 0,
            machine: None,
            slot: Slot::default(),
        }
    }

    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.machine.is_some()
    }

    /// Whether its process has stopped by itself, or would have: a supervisor starts it anew.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        let shown = self.shown();
        let failed = |cluster: &Cluster| matches!(cluster.state().borrow().standing, Standing::Failed { .. });
        shown.stopped.is_some() || shown.cluster.as_ref().is_some_and(failed)
    }

    pub fn shown(&self) -> MutexGuard<'_, Shown> {
        lock(&self.slot)
    }

    #[must_use]
    pub fn slot(&self) -> Slot {
        Arc::clone(&self.slot)
    }

    fn member(&self) -> Member {
        Member {
            name: format!("n{}", self.number),
            address: format!("n{}:1", self.number),
            ..Member::default()
        }
    }

    /// Begins a life. The first node of all begins the cluster; others ask `others` to take them in.
    pub fn start(&mut self, around: &Surroundings, first: bool, others: Vec<PeerId>, skew: i64) {
        self.lives += 1;
        let number = 1 + self.number as u64 * 10_000 + self.lives;
        let machine = around.simulation.machine(number);
        self.machine = Some(number);
        *self.shown() = Shown::default();
        note!(around.trace, "n{} starts, life {}", self.number, self.lives);
        let life = Life {
            place: self.number,
            id: self.id,
            peer: self.peer,
            process: number,
            disk: Planted::disk(around.planted, self.number, &self.disk),
            forgets_ids: around.planted == Some(Planted::IdsForgotten),
            member: self.member(),
            first,
            others,
            skew,
            slot: Arc::clone(&self.slot),
            network: around.network.clone(),
            trace: Arc::clone(&around.trace),
            epoch: around.epoch,
        };
        spawn_on(&machine, life.live());
    }

    /// The process dies; `crash` says what becomes of what was not synced.
    pub fn die(&mut self, around: &Surroundings, crash: Crash) {
        let Some(machine) = self.machine.take() else { return };
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
    forgets_ids: bool,
    member: Member,
    first: bool,
    others: Vec<PeerId>,
    skew: i64,
    slot: Slot,
    network: Network,
    trace: Arc<Trace>,
    epoch: Instant,
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
        let clocks = SimClocks { epoch: self.epoch, skew: self.skew };
        let (router, replica, mut stepper) = Router::open_stepped(
            Path::new("/data"),
            Arc::clone(&self.disk),
            &RouterOptions::for_simulation(),
            Arc::new(PlainWire),
            seat.replicator(),
            Box::new(clocks),
            self.id,
        )
        .map_err(|error| format!("opening: {error:?}"))?;
        if self.forgets_ids {
            stepper.forget_ids_when_leading();
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
        let (handler, claims) = (seat.handler(), seat.claims());
        let endpoint = self.network.attach(introduction, handler, claims, self.process);
        drop(runtime::spawn(drive(stepper, Arc::clone(&self.slot), Arc::clone(&self.trace), self.place)));
        let start = Start {
            seat,
            shard: SHARD,
            me: self.peer,
            replica,
            transport: Arc::new(endpoint),
            first: self.first.then(|| self.member.clone()),
            options: ClusterOptions::default(),
        };
        let cluster = Cluster::start(start).await.map_err(|error| format!("starting: {error:?}"))?;
        {
            let mut shown = lock(&self.slot);
            shown.router = Some(router);
            shown.cluster = Some(cluster.clone());
        }
        drop(runtime::spawn(self.watch(cluster.clone())));
        self.join(&cluster).await;
        Ok(())
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
        let mut role = cluster.role();
        async move {
            loop {
                let now = *role.borrow_and_update();
                note!(trace, "n{place} is {now:?}");
                lock(&slot).role = now;
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
            lock(&slot).stopped = Some("its driver has nothing to do and does not sleep".to_owned());
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
