//! One seed, from its scenario to its verdict: faults while clients publish, then healing, then every promise is
//! compared with what every node holds.

use std::collections::BTreeMap;
use std::future::IntoFuture;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use beamlog_log::sim_disk::{Crash, Failure, Fault, Operation, Repeat};
use beamlog_log::{SeededRandom, Sequence};
use beamlog_net::cluster::Change;
use beamlog_net::runtime;
use beamlog_router::Router;
use beamlog_router::api::error::ApiError;
use beamlog_router::api::request::{MessageSelector, Request, Response};
use beamlog_router::replica::Role;
use beamlog_router::stream::StreamConfig;

use crate::clients::{Load, Nodes, id_of};
use crate::executor::Simulation;
use crate::network::Network;
use crate::node::{Place, Slot, Surroundings};
use crate::note;
use crate::oracle::Violation;
use crate::random::{Salt, choices};
use crate::swarm::Scenario;
use crate::trace::Trace;

const STREAM: &str = "SIM";

/// What a run came to.
#[derive(Debug)]
pub struct Verdict {
    pub seed: u64,
    pub hash: u64,
    pub events: u64,
    pub acked: u64,
    pub crashes: u64,
    pub leaders: u64,
    pub simulated: Duration,
    pub violation: Option<String>,
}

struct Slots(Vec<Slot>);

impl Nodes for Slots {
    fn router(&self, place: usize) -> Option<Router> {
        self.0[place].lock().unwrap_or_else(PoisonError::into_inner).router.clone()
    }

    fn count(&self) -> usize {
        self.0.len()
    }
}

/// Runs a seed.
#[must_use]
pub fn run(seed: u64, told: bool) -> Verdict {
    run_scenario(Scenario::draw(seed), told)
}

/// Runs a scenario that was not drawn.
#[must_use]
pub fn run_scenario(scenario: Scenario, told: bool) -> Verdict {
    let simulation = Simulation::new(scenario.seed);
    let world = simulation.machine(0);
    let inner = simulation.clone();
    let seed = scenario.seed;
    match simulation.run(&world, async move { World::build(scenario, inner, told).run().await }) {
        Ok(verdict) => verdict,
        Err(stuck) => Verdict {
            seed,
            hash: 0,
            events: 0,
            acked: 0,
            crashes: 0,
            leaders: 0,
            simulated: stuck.at,
            violation: Some(stuck.to_string()),
        },
    }
}

struct World {
    scenario: Scenario,
    around: Surroundings,
    places: Vec<Place>,
    load: Arc<Load>,
    go_on: Arc<AtomicBool>,
    random: SeededRandom,
    disk_random: SeededRandom,
    /// Who led in which term, as the nodes said.
    leaders: Arc<Mutex<BTreeMap<u64, usize>>>,
    crashes: u64,
}

/// What may happen next.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Happening {
    Partition,
    Crash,
    Pause,
    Blackout,
    DiskError,
    Transfer,
    Heal,
    Restart(usize),
    Resume(usize),
}

impl World {
    fn build(scenario: Scenario, simulation: Simulation, told: bool) -> Self {
        let trace = Arc::new(Trace::begin(told));
        note!(trace, "{scenario:?}");
        let network = Network::new(scenario.seed, scenario.faults.clone(), Arc::clone(&trace));
        // Only differences to it are ever used.
        let epoch = Instant::now();
        let planted = scenario.planted;
        let around = Surroundings { simulation, network, trace: Arc::clone(&trace), epoch, planted };
        let places: Vec<Place> = (0..scenario.nodes).map(Place::new).collect();
        let slots = Slots(places.iter().map(Place::slot).collect());
        let load = Arc::new(Load::new(Arc::new(slots), trace));
        Self {
            around,
            places,
            load,
            go_on: Arc::new(AtomicBool::new(true)),
            random: choices(scenario.seed, Salt::Faults, 0),
            disk_random: choices(scenario.seed, Salt::Disk, 0),
            leaders: Arc::default(),
            crashes: 0,
            scenario,
        }
    }

    async fn run(mut self) -> Verdict {
        let violation = match self.live().await {
            Ok(()) => None,
            Err(violation) => Some(violation.to_string()),
        };
        let (hash, events) = self.around.trace.summary();
        Verdict {
            seed: self.scenario.seed,
            hash,
            events,
            acked: self.load.oracle().acked_count(),
            crashes: self.crashes,
            leaders: self.leaders.lock().unwrap_or_else(PoisonError::into_inner).len() as u64,
            simulated: self.around.trace.elapsed(),
            violation,
        }
    }

    async fn live(&mut self) -> Result<(), Violation> {
        for place in 0..self.places.len() {
            self.start(place);
        }
        drop(runtime::spawn(watch_leaders(
            self.places.iter().map(Place::slot).collect(),
            Arc::clone(&self.leaders),
            Arc::clone(&self.load),
        )));
        self.create_stream().await?;
        for number in 0..self.scenario.clients {
            let random = choices(self.scenario.seed, Salt::Workload, number as u64);
            let (think, payload) = (self.scenario.think, self.scenario.payload_max);
            let client =
                Arc::clone(&self.load).client(number, random, think, payload, Arc::clone(&self.go_on));
            drop(runtime::spawn(client));
        }
        self.safety().await;
        self.heal();
        self.liveness().await
    }

    fn start(&mut self, place: usize) {
        let others: Vec<_> =
            self.places.iter().filter(|other| other.number != place).map(|other| other.peer).collect();
        let skew_max = u64::try_from(self.scenario.faults.clock_skew_max.as_nanos()).unwrap_or(u64::MAX);
        let skew = i64::try_from(self.random.below(skew_max + 1)).unwrap_or(0);
        let skew = if self.random.one_in(2) { skew } else { -skew };
        let around = self.around.clone();
        self.places[place].start(&around, place == 0, others, skew);
    }

    async fn create_stream(&self) -> Result<(), Violation> {
        let config = StreamConfig {
            name: STREAM.to_owned(),
            subjects: vec!["sim.>".to_owned()],
            duplicate_window_nanos: Some(120_000_000_000),
            ..StreamConfig::default()
        };
        let deadline = runtime::now() + self.scenario.liveness;
        while runtime::now() < deadline {
            if let Some(router) = self.leader() {
                let request = Request::CreateStream(Box::new(config.clone()));
                if let Ok(ticket) = router.request(request)
                    && let Ok(Ok(_)) = runtime::timeout(Duration::from_secs(5), ticket.into_future()).await
                {
                    return self.whole_cluster(deadline).await;
                }
            }
            runtime::sleep(Duration::from_millis(50)).await;
        }
        Err(Violation::Other("no leader created the stream before any fault".to_owned()))
    }

    /// Waits until every node votes.
    async fn whole_cluster(&self, deadline: runtime::Moment) -> Result<(), Violation> {
        while runtime::now() < deadline {
            let voters = self.places.iter().filter(|place| {
                place.shown().cluster.as_ref().is_some_and(|cluster| {
                    let status = cluster.status();
                    status.members.len() == self.places.len()
                        && status
                            .members
                            .iter()
                            .all(|member| member.role == beamlog_net::cluster::MemberRole::Voter)
                })
            });
            if voters.count() == self.places.len() {
                return Ok(());
            }
            runtime::sleep(Duration::from_millis(50)).await;
        }
        Err(Violation::Other("not every node became a voter before any fault".to_owned()))
    }

    fn leader(&self) -> Option<Router> {
        self.places.iter().find_map(|place| {
            let shown = place.shown();
            matches!(shown.role, Role::Leader { .. }).then(|| shown.router.clone()).flatten()
        })
    }

    async fn safety(&mut self) {
        let end = runtime::now() + self.scenario.safety;
        let mut plan: BTreeMap<(runtime::Moment, u64), Happening> = BTreeMap::new();
        let mut number = 0;
        let faults = self.scenario.faults.clone();
        let kinds = [
            (Happening::Partition, faults.partitions_every),
            (Happening::Crash, faults.crashes_every),
            (Happening::Pause, faults.pauses_every),
            (Happening::Blackout, faults.blackouts_every),
            (Happening::DiskError, faults.disk_errors_every),
            (Happening::Transfer, faults.transfers_every),
        ];
        for (kind, every) in kinds {
            if let Some(every) = every {
                number += 1;
                plan.insert((runtime::now() + self.about(every), number), kind);
            }
        }
        while let Some(((at, _), what)) = plan.pop_first() {
            if at >= end {
                break;
            }
            runtime::sleep_until(at).await;
            let (again, then) = self.happen(what);
            number += 1;
            if let Some((_, Some(every))) = kinds.iter().find(|(kind, _)| *kind == what)
                && again
            {
                plan.insert((runtime::now() + self.about(*every), number), what);
            }
            for (after, what) in then {
                number += 1;
                plan.insert((runtime::now() + after, number), what);
            }
        }
        runtime::sleep_until(end).await;
    }

    fn about(&mut self, mean: Duration) -> Duration {
        let micros = u64::try_from(mean.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(micros / 4 + self.random.below(3 * micros / 2 + 1))
    }

    /// Lets something happen. Says whether it comes again, and what follows from it.
    fn happen(&mut self, what: Happening) -> (bool, Vec<(Duration, Happening)>) {
        let mut then = Vec::new();
        let count = self.places.len();
        match what {
            Happening::Partition => {
                self.partition();
                then.push((self.about(Duration::from_millis(1_500)), Happening::Heal));
            }
            Happening::Heal => {
                note!(self.around.trace, "the network is whole");
                self.around.network.heal();
            }
            Happening::Crash => {
                let place = self.random.index(count);
                self.crash(place);
                then.push((self.about(Duration::from_millis(800)), Happening::Restart(place)));
            }
            Happening::Blackout => {
                note!(self.around.trace, "power cut");
                for place in 0..count {
                    self.crash(place);
                    then.push((self.about(Duration::from_millis(500)), Happening::Restart(place)));
                }
            }
            Happening::Restart(place) => {
                if !self.places[place].is_alive() {
                    self.start(place);
                }
            }
            Happening::Pause => {
                let place = self.random.index(count);
                note!(self.around.trace, "n{place} stands still");
                self.around.network.pause(self.places[place].peer, true);
                then.push((self.about(Duration::from_millis(1_500)), Happening::Resume(place)));
            }
            Happening::Resume(place) => {
                note!(self.around.trace, "n{place} goes on");
                self.around.network.pause(self.places[place].peer, false);
            }
            Happening::DiskError => {
                let place = self.random.index(count);
                note!(self.around.trace, "the disk of n{place} fails a sync");
                let nth = 1 + self.disk_random.below(20);
                self.places[place].disk.fail(Fault {
                    operation: Some(Operation::SyncData),
                    nth,
                    failure: Failure::Io,
                    repeat: Repeat::Once,
                });
                // The log is poisoned for good: the process ends and comes back.
                then.push((Duration::from_millis(700), Happening::Crash));
            }
            Happening::Transfer => self.transfer(),
        }
        (true, then)
    }

    fn transfer(&mut self) {
        let to = self.random.index(self.places.len());
        let peer = self.places[to].peer;
        let cluster = self.places[self.random.index(self.places.len())].shown().cluster.clone();
        let Some(cluster) = cluster else { return };
        let trace = Arc::clone(&self.around.trace);
        note!(trace, "leadership is to go to n{to}");
        drop(runtime::spawn(async move {
            let done = cluster.change(Change::Transfer { to: Some(peer) }).await;
            note!(trace, "leadership to n{to}: {done:?}");
        }));
    }

    fn partition(&mut self) {
        let peers: Vec<_> = self.places.iter().map(|place| place.peer).collect();
        let network = self.around.network.clone();
        match self.random.below(4) {
            // One node is alone.
            0 => {
                let alone = self.random.index(peers.len());
                note!(self.around.trace, "n{alone} is cut off");
                for (at, peer) in peers.iter().enumerate() {
                    if at != alone {
                        network.cut(peers[alone], *peer);
                        network.cut(*peer, peers[alone]);
                    }
                }
            }
            // One way only.
            1 => {
                let from = self.random.index(peers.len());
                note!(self.around.trace, "n{from} is not heard");
                for (at, peer) in peers.iter().enumerate() {
                    if at != from {
                        network.cut(peers[from], *peer);
                    }
                }
            }
            // Some ways, by chance.
            2 => {
                note!(self.around.trace, "ways are cut by chance");
                for from in &peers {
                    for to in &peers {
                        if from != to && self.random.one_in(3) {
                            network.cut(*from, *to);
                        }
                    }
                }
            }
            // Two halves.
            _ => {
                let mut order: Vec<usize> = (0..peers.len()).collect();
                self.random.shuffle(&mut order);
                let (few, many) = order.split_at(peers.len() / 2);
                note!(self.around.trace, "{few:?} and {many:?} are apart");
                for one in few {
                    for other in many {
                        network.cut(peers[*one], peers[*other]);
                        network.cut(peers[*other], peers[*one]);
                    }
                }
            }
        }
    }

    fn crash(&mut self, place: usize) {
        let crashes = Crash::sample(self.disk_random.next());
        // A killed process leaves what it wrote to the system; a power cut leaves what was synced, more or less.
        let crash = if self.disk_random.one_in(2) {
            Crash::KeepUnsynced
        } else {
            crashes[self.disk_random.index(crashes.len())]
        };
        if self.places[place].is_alive() {
            self.crashes += 1;
        }
        let around = self.around.clone();
        self.places[place].die(&around, crash);
        self.places[place].disk.heal();
    }

    /// The end of all faults.
    fn heal(&mut self) {
        note!(self.around.trace, "everything heals");
        self.around.network.heal();
        self.around.network.calm();
        for place in 0..self.places.len() {
            if self.places[place].has_failed() {
                self.crash(place);
            }
            self.places[place].disk.heal();
            if !self.places[place].is_alive() {
                self.start(place);
            }
        }
    }

    /// After healing everything must serve, and agree.
    async fn liveness(&mut self) -> Result<(), Violation> {
        let deadline = runtime::now() + self.scenario.liveness;
        self.go_on.store(false, Ordering::Relaxed);
        loop {
            self.check_seen()?;
            if self.probe().await {
                break;
            }
            if runtime::now() >= deadline {
                return Err(Violation::Other(format!(
                    "no publish was acked within {:?} after healing; {}",
                    self.scenario.liveness,
                    self.describe()
                )));
            }
            self.revive();
        }
        // Clients finish what they were at.
        runtime::sleep(Duration::from_secs(8)).await;
        self.agree(deadline + Duration::from_secs(8)).await?;
        self.check_seen()?;
        let content = self.content().await?;
        self.load.oracle().check(&content)
    }

    /// A node whose disk failed late stops late.
    fn revive(&mut self) {
        for place in 0..self.places.len() {
            if self.places[place].has_failed() {
                self.crash(place);
                self.start(place);
            }
        }
    }

    fn describe(&self) -> String {
        let of = |place: &Place| {
            let shown = place.shown();
            let state = shown.cluster.as_ref().map(|cluster| cluster.status());
            format!("n{}: {:?} {:?} {state:?}", place.number, shown.role, shown.stopped)
        };
        self.places.iter().map(of).collect::<Vec<_>>().join("; ")
    }

    async fn probe(&self) -> bool {
        let mut random = choices(self.scenario.seed, Salt::Workload, 1_000);
        let mut place = 0;
        self.load.publish_next(usize::MAX, &mut place, &mut random).await
    }

    /// What was seen while it ran.
    fn check_seen(&self) -> Result<(), Violation> {
        let mut violations = self.load.violations.lock().unwrap_or_else(PoisonError::into_inner);
        match violations.pop() {
            Some(violation) => Err(violation),
            None => Ok(()),
        }
    }

    /// All nodes come to the same state at the same index.
    async fn agree(&mut self, deadline: runtime::Moment) -> Result<(), Violation> {
        loop {
            for place in &self.places {
                place.ask_rows();
            }
            runtime::sleep(Duration::from_millis(300)).await;
            let rows: Vec<_> = self.places.iter().map(|place| place.shown().rows.clone()).collect();
            if let Some((Some((index, first)), rest)) = rows.split_first()
                && rest.iter().all(|row| row.as_ref().is_some_and(|(other, _)| other == index))
            {
                for (at, row) in rest.iter().enumerate() {
                    if row.as_ref().is_some_and(|(_, rows)| rows != first) {
                        return Err(Violation::Other(format!(
                            "the states of n0 and n{} differ at index {}",
                            at + 1,
                            index.0
                        )));
                    }
                }
                return Ok(());
            }
            if runtime::now() >= deadline {
                let at: Vec<_> = rows.iter().map(|row| row.as_ref().map(|(index, _)| index.0)).collect();
                return Err(Violation::Other(format!(
                    "the nodes did not come together: {at:?}; {}",
                    self.describe()
                )));
            }
            self.revive();
        }
    }

    /// The messages of the stream, read through each node in turn as it leads.
    async fn content(&self) -> Result<BTreeMap<u64, u64>, Violation> {
        let mut found: Option<BTreeMap<u64, u64>> = None;
        for place in &self.places {
            let read = self.content_of(place).await?;
            match &found {
                Some(before) if *before != read => {
                    return Err(Violation::Other(format!("n{} holds other messages", place.number)));
                }
                Some(_) => {}
                None => found = Some(read),
            }
        }
        Ok(found.unwrap_or_default())
    }

    async fn content_of(&self, place: &Place) -> Result<BTreeMap<u64, u64>, Violation> {
        let router = self.make_leader(place).await?;
        let info = Request::StreamInfo {
            stream: STREAM.to_owned(),
            subjects_filter: None,
            offset: 0,
            deleted_details: false,
        };
        let unreadable = |what: String| Violation::Other(format!("n{}: {what}", place.number));
        let answer = ask(&router, info).await;
        let Ok(Response::Stream { info, .. }) = answer else {
            return Err(unreadable(format!("stream info: {answer:?}")));
        };
        let mut content = BTreeMap::new();
        for sequence in info.state.first_sequence.0..=info.state.last_sequence.0 {
            let selector = MessageSelector::At(Sequence(sequence));
            match ask(&router, Request::GetMessage { stream: STREAM.to_owned(), selector }).await {
                Ok(Response::Message(message)) => {
                    let id = id_of(&message.payload).ok_or_else(|| Violation::Invented {
                        sequence,
                        payload: String::from_utf8_lossy(&message.payload).into_owned(),
                    })?;
                    content.insert(sequence, id);
                }
                Err(ApiError::NoMessage) => {}
                other => return Err(unreadable(format!("message {sequence}: {other:?}"))),
            }
        }
        Ok(content)
    }

    async fn make_leader(&self, place: &Place) -> Result<Router, Violation> {
        let deadline = runtime::now() + self.scenario.liveness;
        while runtime::now() < deadline {
            let (role, router, cluster) = {
                let shown = place.shown();
                (shown.role, shown.router.clone(), shown.cluster.clone())
            };
            match (role, router, cluster) {
                (Role::Leader { .. }, Some(router), _) => return Ok(router),
                (_, _, Some(cluster)) => {
                    let change = Change::Transfer { to: Some(place.peer) };
                    let change = Box::pin(cluster.change(change));
                    let done = runtime::timeout(Duration::from_secs(3), change).await;
                    note!(self.around.trace, "leadership to n{}: {done:?}", place.number);
                }
                _ => {}
            }
            runtime::sleep(Duration::from_millis(200)).await;
        }
        Err(Violation::Other(format!("n{} cannot be made leader: {}", place.number, self.describe())))
    }
}

async fn ask(router: &Router, request: Request) -> Result<Response, ApiError> {
    match router.request(request) {
        Ok(ticket) => {
            let answer = runtime::timeout(Duration::from_secs(5), ticket.into_future()).await;
            answer.unwrap_or(Err(ApiError::LogFailed))
        }
        Err(_full) => Err(ApiError::LogFailed),
    }
}

/// At most one leader in a term, as the nodes say of themselves.
async fn watch_leaders(slots: Vec<Slot>, leaders: Arc<Mutex<BTreeMap<u64, usize>>>, load: Arc<Load>) {
    loop {
        for (place, slot) in slots.iter().enumerate() {
            let role = slot.lock().unwrap_or_else(PoisonError::into_inner).role;
            let Role::Leader { term } = role else { continue };
            let before = leaders.lock().unwrap_or_else(PoisonError::into_inner).insert(term.0, place);
            if let Some(before) = before.filter(|before| *before != place) {
                let text = format!("n{before} and n{place} both led in term {}", term.0);
                load.violations.lock().unwrap_or_else(PoisonError::into_inner).push(Violation::Other(text));
            }
        }
        runtime::sleep(Duration::from_millis(2)).await;
    }
}
