//! One seed, from its scenario to its verdict: faults while clients publish, then healing, then every promise is
//! compared with what every node holds.

mod liveness;
mod safety;
mod streams;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use beamlog_log::{SeededRandom, Term};
use beamlog_net::cluster::MemberRole;
use beamlog_net::runtime;
use beamlog_router::Router;
use beamlog_router::replica::Role;

use crate::clients::{Load, Nodes, Seen};
use crate::executor::Simulation;
use crate::link::Link;
use crate::network::Network;
use crate::node::{Place, Slot, Surroundings};
use crate::note;
use crate::oracle::Violation;
use crate::random::{Salt, choices};
use crate::remains::Remains;
use crate::swarm::Scenario;
use crate::trace::Trace;
use crate::workers::Workers;

/// What a run came to.
#[derive(Debug)]
pub struct Verdict {
    pub seed: u64,
    pub hash: u64,
    pub events: u64,
    pub acked: u64,
    pub delivered: u64,
    pub crashes: u64,
    pub replaced: u64,
    pub leaders: u64,
    pub simulated: Duration,
    pub violation: Option<String>,
}

struct Slots(Vec<Slot>);

impl Nodes for Slots {
    fn router(&self, place: usize) -> Option<Router> {
        self.0[place].lock().unwrap_or_else(PoisonError::into_inner).router.clone()
    }

    fn leads(&self, place: usize) -> Option<Term> {
        match self.0[place].lock().unwrap_or_else(PoisonError::into_inner).role {
            Role::Leader { term } => Some(term),
            Role::Alone | Role::Follower | Role::Elected { .. } => None,
        }
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
    let world = simulation.machine(0, 0);
    let inner = simulation.clone();
    let seed = scenario.seed;
    let remains = Arc::new(Remains::default());
    let seen = Arc::clone(&remains);
    let ended = simulation.run(&world, async move { World::build(scenario, inner, seen, told).run().await });
    let held = remains.held();
    match ended {
        Ok(verdict) if held.is_empty() => verdict,
        Ok(verdict) => {
            let violation = format!("held when the run is over: {}", held.join(", "));
            Verdict { violation: verdict.violation.or(Some(violation)), ..verdict }
        }
        Err(stuck) => Verdict {
            seed,
            hash: 0,
            events: 0,
            acked: 0,
            delivered: 0,
            crashes: 0,
            replaced: 0,
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
    /// Who publishes to the stream that keeps messages.
    load: Arc<Load>,
    /// Who publishes to the work queue, and who works.
    work: Arc<Load>,
    workers: Arc<Workers>,
    link: Arc<Link>,
    seen: Arc<Seen>,
    go_on: Arc<AtomicBool>,
    random: SeededRandom,
    disk_random: SeededRandom,
    /// The one node whose copy is not to be counted on, until another stands in its place.
    impaired: Option<safety::Impaired>,
    crashes: u64,
    replaced: u64,
}

impl World {
    fn build(scenario: Scenario, simulation: Simulation, remains: Arc<Remains>, told: bool) -> Self {
        let trace = Arc::new(Trace::begin(told));
        note!(trace, "{scenario:?}");
        let network = Network::new(scenario.seed, scenario.faults.clone(), Arc::clone(&trace));
        let seen = Arc::new(Seen::default());
        let around = Surroundings {
            simulation,
            network,
            trace: Arc::clone(&trace),
            // Only differences to it are ever used.
            epoch: Instant::now(),
            planted: scenario.planted,
            leaders: Arc::new(Leaders { of: Mutex::default(), seen: Arc::clone(&seen) }),
            remains,
        };
        around.remains.expect_gone("the trace".to_owned(), &trace);
        let places: Vec<Place> = (0..scenario.nodes).map(Place::new).collect();
        let nodes: Arc<dyn Nodes> = Arc::new(Slots(places.iter().map(Place::slot).collect()));
        let load =
            |subject| Arc::new(Load::new(subject, Arc::clone(&nodes), Arc::clone(&trace), Arc::clone(&seen)));
        let workers = Workers::new(
            streams::WORK,
            streams::WORKER,
            Arc::clone(&nodes),
            Arc::clone(&trace),
            Arc::clone(&seen),
        );
        Self {
            around,
            places,
            load: load("sim"),
            work: load("work"),
            workers: Arc::new(workers),
            link: Arc::new(Link::new(streams::LINK, Arc::clone(&nodes), Arc::clone(&trace))),
            seen,
            go_on: Arc::new(AtomicBool::new(true)),
            random: choices(scenario.seed, Salt::Faults, 0),
            disk_random: choices(scenario.seed, Salt::Disk, 0),
            impaired: None,
            crashes: 0,
            replaced: 0,
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
            acked: self.load.oracle().acked_count() + self.work.oracle().acked_count() + self.link.acked(),
            delivered: self.workers.deliveries(),
            crashes: self.crashes,
            replaced: self.replaced,
            leaders: self.around.leaders.count(),
            simulated: self.around.trace.elapsed(),
            violation,
        }
    }

    async fn live(&mut self) -> Result<(), Violation> {
        for place in 0..self.places.len() {
            self.start(place);
        }
        let deadline = runtime::now() + self.scenario.liveness;
        self.create_streams(deadline).await?;
        self.whole_cluster(deadline).await?;
        self.begin_load();
        self.safety().await?;
        self.heal();
        self.liveness().await
    }

    fn begin_load(&self) {
        let Scenario { seed, clients, publishers, workers, links, think, payload_max, .. } = self.scenario;
        let go_on = || Arc::clone(&self.go_on);
        let random = |number: usize| choices(seed, Salt::Workload, number as u64);
        for number in 0..clients {
            let load = Arc::clone(&self.load);
            drop(runtime::spawn(load.client(number, random(number), think, payload_max, go_on())));
        }
        for number in 0..publishers {
            let (load, random) = (Arc::clone(&self.work), random(100 + number));
            drop(runtime::spawn(load.client(number, random, think * 4, payload_max, go_on())));
        }
        for number in 0..workers {
            drop(runtime::spawn(Arc::clone(&self.workers).work(random(200 + number), go_on())));
        }
        if links {
            drop(runtime::spawn(Arc::clone(&self.link).bring(random(300), think * 2, go_on())));
        }
    }

    fn start(&mut self, place: usize) {
        let others: Vec<_> =
            self.places.iter().filter(|other| other.number != place).map(|other| other.peer).collect();
        let faults = &self.scenario.faults;
        let wild = place > self.places.len() / 2;
        let skew_max = if wild { faults.wild_clock_skew_max } else { faults.clock_skew_max };
        let skew_max = u64::try_from(skew_max.max(faults.clock_skew_max).as_nanos()).unwrap_or(u64::MAX);
        let skew = i64::try_from(self.random.below(skew_max + 1)).unwrap_or(0);
        let skew = if self.random.one_in(2) { skew } else { -skew };
        let around = self.around.clone();
        self.places[place].start(&around, others, skew);
    }

    /// Waits until every node votes.
    async fn whole_cluster(&self, deadline: runtime::Moment) -> Result<(), Violation> {
        while runtime::now() < deadline {
            if self.places.iter().all(|place| self.is_whole(place)) {
                return Ok(());
            }
            runtime::sleep(Duration::from_millis(50)).await;
        }
        Err(Violation::Other(format!("not every node became a voter: {}", self.describe())))
    }

    /// Whether a node says that the nodes of all places vote, and nobody else.
    fn is_whole(&self, place: &Place) -> bool {
        let shown = place.shown();
        shown.cluster.as_ref().is_some_and(|cluster| {
            let members = cluster.status().members;
            members.len() == self.places.len()
                && members.iter().all(|member| {
                    member.role == MemberRole::Voter
                        && self.places.iter().any(|place| place.peer == member.id)
                })
        })
    }

    fn leader(&self) -> Option<(usize, Router)> {
        self.places.iter().find_map(|place| {
            let shown = place.shown();
            let leads = matches!(shown.role, Role::Leader { .. });
            leads.then(|| shown.router.clone()).flatten().map(|router| (place.number, router))
        })
    }

    fn describe(&self) -> String {
        let of = |place: &Place| {
            let shown = place.shown();
            let state = shown.cluster.as_ref().map(|cluster| cluster.status());
            format!("n{}: {:?} {:?} {state:?}", place.number, shown.role, shown.stopped)
        };
        self.places.iter().map(of).collect::<Vec<_>>().join("; ")
    }

    /// What was seen while it ran.
    fn check_seen(&self) -> Result<(), Violation> {
        self.seen.first().map_or(Ok(()), Err)
    }
}

/// At most one leader in a term, as the nodes say of themselves.
pub struct Leaders {
    of: Mutex<BTreeMap<Term, usize>>,
    seen: Arc<Seen>,
}

impl Leaders {
    /// A node says that it leads.
    pub fn note(&self, term: Term, place: usize) {
        let before = self.of.lock().unwrap_or_else(PoisonError::into_inner).insert(term, place);
        if let Some(before) = before.filter(|before| *before != place) {
            self.seen.note(Violation::Other(format!("n{before} and n{place} both led in term {term}")));
        }
    }

    /// Where violations are noted.
    #[must_use]
    pub fn seen(&self) -> &Seen {
        &self.seen
    }

    fn count(&self) -> u64 {
        self.of.lock().unwrap_or_else(PoisonError::into_inner).len() as u64
    }
}
