//! One thread, one simulated clock, many machines. A machine is what dies together: a node's process, or the
//! world around the nodes. Tasks run in rounds: all that are awake, in an order that the seed draws from their
//! numbers, so that the order in which they were woken (which a library may draw by chance) decides nothing.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use beamlog_log::SeededRandom;
use beamlog_net::peer::BoxFuture;
use beamlog_net::runtime::{self, Executor};

use crate::random::{Salt, choices};

/// Rounds without any time passing after which a run is stuck in a loop, and from which on it is counted who runs.
const ROUNDS_MAX: u64 = 100_000;
const ROUNDS_SUSPICIOUS: u64 = 90_000;

/// What a right wall clock says when a run begins: 2026-01-01, in nanoseconds.
const BEGINNING: u64 = 1_767_225_600_000_000_000;

type TaskNumber = u64;
type MachineNumber = u64;

struct Task {
    machine: Rc<Machine>,
    name: &'static str,
    /// Taken out while it is being polled.
    future: Option<BoxFuture<'static, ()>>,
    waker: Waker,
}

/// What wakers and sleeping futures share with the scheduler: all that must be `Send`.
#[derive(Default)]
struct Clockwork {
    now: Duration,
    awake: BTreeSet<TaskNumber>,
    /// Machines that stand still, and which of their tasks would run.
    frozen: BTreeMap<MachineNumber, BTreeSet<TaskNumber>>,
    timers: BTreeMap<(Duration, u64), Waker>,
    next_timer: u64,
}

#[derive(Clone, Default)]
struct SharedClockwork(Arc<Mutex<Clockwork>>);

impl SharedClockwork {
    fn lock(&self) -> MutexGuard<'_, Clockwork> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct WakeTask {
    clockwork: SharedClockwork,
    number: TaskNumber,
}

impl Wake for WakeTask {
    fn wake(self: Arc<Self>) {
        self.clockwork.lock().awake.insert(self.number);
    }
}

struct Tasks {
    all: BTreeMap<TaskNumber, Task>,
    next: TaskNumber,
    random: SeededRandom,
}

/// The machines of a run and what they do.
#[derive(Clone)]
pub struct Simulation {
    clockwork: SharedClockwork,
    tasks: Rc<RefCell<Tasks>>,
    seed: u64,
}

/// A machine, as [`runtime`] sees it.
pub struct Machine {
    number: MachineNumber,
    /// How far its wall clock is off, in nanoseconds.
    skew: i64,
    simulation: Simulation,
    random: RefCell<SeededRandom>,
}

/// A run that does not end: tasks wake each other and no time passes.
#[derive(Clone, Debug, thiserror::Error)]
#[error("tasks wake each other for ever at {at:?}: {}", busiest.join(", "))]
pub struct Stuck {
    pub at: Duration,
    /// Who ran most, first: machine, task and how often.
    pub busiest: Vec<String>,
}

impl Simulation {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let tasks = Tasks { all: BTreeMap::new(), next: 1, random: choices(seed, Salt::Scheduling, 0) };
        Self { clockwork: SharedClockwork::default(), tasks: Rc::new(RefCell::new(tasks)), seed }
    }

    /// A machine; the number tells it from others, and from its own earlier lives.
    #[must_use]
    pub fn machine(&self, number: MachineNumber, skew: i64) -> Rc<Machine> {
        let random = RefCell::new(choices(self.seed, Salt::Elections, number));
        Rc::new(Machine { number, skew, simulation: self.clone(), random })
    }

    /// Stops a machine as SIGSTOP does: time passes, and nothing on it runs.
    pub fn freeze(&self, machine: MachineNumber) {
        self.clockwork.lock().frozen.entry(machine).or_default();
    }

    /// Lets a machine go on.
    pub fn thaw(&self, machine: MachineNumber) {
        let mut clockwork = self.clockwork.lock();
        let awake = clockwork.frozen.remove(&machine).unwrap_or_default();
        clockwork.awake.extend(awake);
    }

    /// Ends everything that runs on a machine, as SIGKILL does.
    pub fn kill(&self, machine: MachineNumber) {
        self.thaw(machine);
        let dead: Vec<Task> = {
            let mut tasks = self.tasks.borrow_mut();
            let numbers: Vec<TaskNumber> = tasks
                .all
                .iter()
                .filter(|(_, task)| task.machine.number == machine)
                .map(|(n, _)| *n)
                .collect();
            numbers.into_iter().filter_map(|number| tasks.all.remove(&number)).collect()
        };
        // What they hold goes here, and may wake others.
        drop(dead);
    }

    /// Runs until `main`, on `machine`, is done, and ends all that runs.
    ///
    /// # Errors
    /// The run is stuck.
    pub fn run<T: 'static>(
        &self,
        machine: &Rc<Machine>,
        main: impl Future<Output = T> + 'static,
    ) -> Result<T, Stuck> {
        let done = self.run_until(machine, main);
        self.end();
        done
    }

    /// Ends every task. Tasks hold their machines, machines the tasks: all that a run made would stay for ever.
    fn end(&self) {
        loop {
            let left = std::mem::take(&mut self.tasks.borrow_mut().all);
            if left.is_empty() {
                return;
            }
            // What they hold goes while nothing is borrowed.
            drop(left);
        }
    }

    fn run_until<T: 'static>(
        &self,
        machine: &Rc<Machine>,
        main: impl Future<Output = T> + 'static,
    ) -> Result<T, Stuck> {
        let awake_main = Arc::new(WakeTask { clockwork: self.clockwork.clone(), number: 0 });
        let waker = Waker::from(awake_main);
        let mut main = Box::pin(main);
        self.clockwork.lock().awake.insert(0);
        let (mut rounds, mut at) = (0, Duration::ZERO);
        let mut ran = BTreeMap::new();
        loop {
            let awake: Vec<TaskNumber> = {
                let mut clockwork = self.clockwork.lock();
                std::mem::take(&mut clockwork.awake).into_iter().collect()
            };
            if awake.is_empty() {
                self.advance();
                continue;
            }
            let now = self.now();
            rounds = if now == at { rounds + 1 } else { 0 };
            at = now;
            if rounds == ROUNDS_SUSPICIOUS {
                ran.clear();
            }
            if rounds >= ROUNDS_SUSPICIOUS {
                for number in &awake {
                    *ran.entry(*number).or_default() += 1;
                }
            }
            if rounds > ROUNDS_MAX {
                return Err(Stuck { at, busiest: self.busiest(&ran) });
            }
            let mut order = awake;
            self.tasks.borrow_mut().random.shuffle(&mut order);
            for number in order {
                if number == 0 {
                    let _installed = runtime::install(Rc::clone(machine) as Rc<dyn Executor>);
                    if let Poll::Ready(value) = main.as_mut().poll(&mut Context::from_waker(&waker)) {
                        return Ok(value);
                    }
                } else {
                    self.poll(number);
                }
            }
        }
    }

    fn poll(&self, number: TaskNumber) {
        let taken = {
            let mut tasks = self.tasks.borrow_mut();
            // It may have ended, or been killed, since it was woken.
            tasks.all.get_mut(&number).and_then(|task| {
                if let Some(waiting) = self.clockwork.lock().frozen.get_mut(&task.machine.number) {
                    waiting.insert(number);
                    return None;
                }
                let future = task.future.take()?;
                Some((future, Rc::clone(&task.machine), task.waker.clone()))
            })
        };
        let Some((mut future, machine, waker)) = taken else { return };
        let _installed = runtime::install(machine as Rc<dyn Executor>);
        let polled = Pin::new(&mut future).poll(&mut Context::from_waker(&waker));
        let rest = match polled {
            Poll::Ready(()) => self.tasks.borrow_mut().all.remove(&number).map(|_task| future),
            Poll::Pending => match self.tasks.borrow_mut().all.get_mut(&number) {
                Some(task) => {
                    task.future = Some(future);
                    None
                }
                // Killed by what it did itself.
                None => Some(future),
            },
        };
        // What it held goes while nothing is borrowed: it may wake others or spawn.
        drop(rest);
    }

    fn busiest(&self, ran: &BTreeMap<TaskNumber, u64>) -> Vec<String> {
        let tasks = self.tasks.borrow();
        let mut all: Vec<(u64, TaskNumber)> = ran.iter().map(|(number, count)| (*count, *number)).collect();
        all.sort_unstable_by(|a, b| b.cmp(a));
        let tell = |(count, number): (u64, TaskNumber)| match tasks.all.get(&number) {
            Some(task) => format!("machine {} ran {} {count} times", task.machine.number, task.name),
            None => format!("task {number} ran {count} times"),
        };
        all.into_iter().take(4).map(tell).collect()
    }

    /// Nothing is awake: the clock goes to the next moment that somebody waits for.
    fn advance(&self) {
        let due: Vec<Waker> = {
            let mut clockwork = self.clockwork.lock();
            let next = clockwork.timers.first_key_value().map(|((at, _), _)| *at);
            let next = next.expect("the world always waits for something: its end");
            clockwork.now = clockwork.now.max(next);
            let later = clockwork.timers.split_off(&(next, u64::MAX));
            std::mem::replace(&mut clockwork.timers, later).into_values().collect()
        };
        for waker in due {
            waker.wake();
        }
    }

    /// Time since the run began.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.clockwork.lock().now
    }
}

impl Executor for Machine {
    fn now(&self) -> Duration {
        self.simulation.now()
    }

    fn wall(&self) -> u64 {
        let elapsed = u64::try_from(self.simulation.now().as_nanos()).unwrap_or(u64::MAX);
        BEGINNING.saturating_add(elapsed).saturating_add_signed(self.skew)
    }

    fn spawn(&self, task: BoxFuture<'static, ()>, name: &'static str) {
        let clockwork = self.simulation.clockwork.clone();
        let mut tasks = self.simulation.tasks.borrow_mut();
        let number = tasks.next;
        tasks.next += 1;
        let waker = Waker::from(Arc::new(WakeTask { clockwork: clockwork.clone(), number }));
        let machine = Rc::new(Self {
            number: self.number,
            skew: self.skew,
            simulation: self.simulation.clone(),
            random: RefCell::new(SeededRandom::new(self.random() ^ number)),
        });
        tasks.all.insert(number, Task { machine, name, future: Some(task), waker });
        drop(tasks);
        clockwork.lock().awake.insert(number);
    }

    fn sleep_until(&self, at: Duration) -> BoxFuture<'static, ()> {
        Box::pin(Timer { clockwork: self.simulation.clockwork.clone(), at, place: None })
    }

    fn random(&self) -> u64 {
        self.random.borrow_mut().next()
    }
}

struct Timer {
    clockwork: SharedClockwork,
    at: Duration,
    place: Option<(Duration, u64)>,
}

impl Future for Timer {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let (at, place) = (self.at, self.place);
        let taken = {
            let mut clockwork = self.clockwork.lock();
            if let Some(place) = place {
                clockwork.timers.remove(&place);
            }
            if clockwork.now >= at {
                None
            } else {
                let place = (at, clockwork.next_timer);
                clockwork.next_timer += 1;
                clockwork.timers.insert(place, context.waker().clone());
                Some(place)
            }
        };
        self.place = taken;
        if taken.is_some() { Poll::Pending } else { Poll::Ready(()) }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            // The waker may hold the last reference to something: it goes after the lock.
            let waker = self.clockwork.lock().timers.remove(&place);
            drop(waker);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(seed: u64) -> Vec<u64> {
        let simulation = Simulation::new(seed);
        let world = simulation.machine(0, 0);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let inner = Arc::clone(&seen);
        simulation
            .run(&world, async move {
                for number in 0..8 {
                    let seen = Arc::clone(&inner);
                    drop(runtime::spawn(async move {
                        runtime::sleep(Duration::from_millis(5)).await;
                        seen.lock().unwrap().push(number);
                    }));
                }
                runtime::sleep(Duration::from_secs(3_600)).await;
            })
            .unwrap();
        assert_eq!(simulation.now(), Duration::from_secs(3_600));
        Arc::try_unwrap(seen)
            .map_or_else(|shared| shared.lock().unwrap().clone(), |own| own.into_inner().unwrap())
    }

    #[test]
    fn a_seed_decides_the_order_of_what_is_due_together() {
        assert_eq!(order(1), order(1));
        assert!((0..20).any(|seed| order(seed) != order(1)));
        let mut all = order(3);
        all.sort_unstable();
        assert_eq!(all, (0..8).collect::<Vec<_>>());
    }

    #[test]
    fn tasks_that_never_rest_are_named() {
        let simulation = Simulation::new(1);
        let (world, node) = (simulation.machine(0, 0), simulation.machine(7, 0));
        let stuck = simulation.run(&world, async move {
            let restless = std::future::poll_fn(|context: &mut Context<'_>| {
                context.waker().wake_by_ref();
                Poll::<()>::Pending
            });
            node.spawn(Box::pin(restless), "restless");
            runtime::sleep(Duration::from_secs(1)).await;
        });
        assert!(stuck.unwrap_err().to_string().contains("machine 7 ran restless"));
    }

    #[test]
    fn nothing_of_a_run_stays() {
        let simulation = Simulation::new(1);
        let (world, node) = (simulation.machine(0, 0), simulation.machine(7, 0));
        let held = Arc::new(());
        let (one, other) = (Arc::clone(&held), Arc::clone(&held));
        simulation
            .run(&world, async move {
                node.spawn(
                    Box::pin(async move {
                        runtime::sleep(Duration::from_secs(3_600)).await;
                        drop(one);
                    }),
                    "waiting",
                );
                drop(runtime::spawn(async move {
                    std::future::pending::<()>().await;
                    drop(other);
                }));
                runtime::sleep(Duration::from_secs(1)).await;
            })
            .unwrap();
        assert_eq!(Arc::strong_count(&held), 1);
        drop(world);
        assert!(simulation.clockwork.lock().timers.is_empty());
        assert_eq!(Rc::strong_count(&simulation.tasks), 1);
    }

    #[test]
    fn a_killed_machine_does_nothing_more() {
        let simulation = Simulation::new(1);
        let (world, node) = (simulation.machine(0, 0), simulation.machine(1, 0));
        let done = Arc::new(Mutex::new(0));
        let (inner, outer, killer) = (Arc::clone(&done), Arc::clone(&done), simulation.clone());
        simulation
            .run(&world, async move {
                node.spawn(
                    Box::pin(async move {
                        loop {
                            runtime::sleep(Duration::from_millis(10)).await;
                            *inner.lock().unwrap() += 1;
                        }
                    }),
                    "counting",
                );
                runtime::sleep(Duration::from_millis(35)).await;
                killer.kill(1);
                runtime::sleep(Duration::from_secs(1)).await;
            })
            .unwrap();
        assert_eq!(*outer.lock().unwrap(), 3);
    }
}
