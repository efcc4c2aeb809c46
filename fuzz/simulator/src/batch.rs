//! Many seeds, on several threads: a run is one thread, and runs know nothing of each other.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};

use crate::planted::Planted;
use crate::run::{Verdict, run_scenario};
use crate::swarm::Scenario;

/// Which seeds, and how.
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    /// The first seed.
    pub from: u64,
    /// How many.
    pub seeds: u64,
    /// Threads.
    pub jobs: usize,
    /// One seed in so many runs twice, and both runs must be the same; 0 is none.
    pub twice_one_in: u64,
    pub planted: Option<Planted>,
}

/// What all seeds came to.
#[derive(Debug, Default)]
pub struct Sum {
    pub seeds: u64,
    /// Each that broke a promise, or that was two different runs, and what it says.
    pub failed: Vec<(u64, String)>,
    pub acked: u64,
    pub delivered: u64,
    pub crashes: u64,
    /// Nodes that others were put in the place of.
    pub replaced: u64,
    pub leaders: u64,
    pub simulated_seconds: f64,
}

impl Batch {
    /// Runs them all; `tell` hears of each as it ends, in any order.
    pub fn run(self, mut tell: impl FnMut(&Verdict)) -> Sum {
        let next = AtomicU64::new(0);
        let (sender, verdicts) = mpsc::channel();
        let mut sum = Sum::default();
        std::thread::scope(|scope| {
            for _ in 0..self.jobs.max(1) {
                let sender = sender.clone();
                let next = &next;
                scope.spawn(move || {
                    loop {
                        let nth = next.fetch_add(1, Ordering::Relaxed);
                        // Nobody listens any more when the receiver has panicked.
                        if nth >= self.seeds || sender.send(self.one(self.from + nth)).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(sender);
            for verdict in verdicts {
                tell(&verdict);
                sum.add(verdict);
            }
        });
        sum.failed.sort_unstable();
        sum
    }

    fn one(self, seed: u64) -> Verdict {
        let scenario = Scenario { planted: self.planted, ..Scenario::draw(seed) };
        let mut first = run_scenario(scenario.clone(), false);
        if self.twice_one_in > 0 && seed.is_multiple_of(self.twice_one_in) {
            let again = run_scenario(scenario, false);
            if (again.hash, again.events) != (first.hash, first.events) {
                let differs = format!("two runs differ, {:016x} and {:016x}", first.hash, again.hash);
                first.violation.get_or_insert(differs);
            }
        }
        first
    }
}

impl Sum {
    fn add(&mut self, verdict: Verdict) {
        self.seeds += 1;
        self.acked += verdict.acked;
        self.delivered += verdict.delivered;
        self.crashes += verdict.crashes;
        self.replaced += verdict.replaced;
        self.leaders += verdict.leaders;
        self.simulated_seconds += verdict.simulated.as_secs_f64();
        if let Some(violation) = verdict.violation {
            self.failed.push((verdict.seed, violation));
        }
    }
}

/// Looks for a seed that finds something, on several threads; the first of them by number.
#[must_use]
pub fn first_found(planted: Planted, seeds: u64, jobs: usize) -> Option<(u64, String)> {
    let found: Mutex<Option<(u64, String)>> = Mutex::new(None);
    let next = AtomicU64::new(0);
    let lock = || found.lock().unwrap_or_else(PoisonError::into_inner);
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds || lock().as_ref().is_some_and(|(before, _)| *before < seed) {
                        return;
                    }
                    let scenario = Scenario { planted: Some(planted), ..Scenario::draw(seed) };
                    if let Some(violation) = run_scenario(scenario, false).violation {
                        let mut found = lock();
                        if found.as_ref().is_none_or(|(before, _)| *before > seed) {
                            *found = Some((seed, violation));
                        }
                    }
                }
            });
        }
    });
    found.into_inner().unwrap_or_else(PoisonError::into_inner)
}
