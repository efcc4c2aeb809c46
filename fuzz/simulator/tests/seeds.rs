//! Seeds that once broke a promise or the simulator, and what they found: each must hold now, and be the same run twice.
//! And the first ones of all, once.

use std::time::Duration;

use beamlog_simulator::run::{run, run_scenario};
use beamlog_simulator::swarm::{Faults, Scenario};

fn holds(seed: u64) {
    holds_in(&Scenario::draw(seed));
}

fn holds_in(scenario: &Scenario) {
    let seed = scenario.seed;
    let first = run_scenario(scenario.clone(), false);
    assert_eq!(first.violation, None, "seed {seed}");
    assert!(first.acked > 100, "seed {seed} tests nothing: {first:?}");
    let again = run_scenario(scenario.clone(), false);
    assert_eq!((again.hash, again.events), (first.hash, first.events), "seed {seed} is two different runs");
}

fn all_hold(seeds: impl Iterator<Item = u64>) {
    let failed: Vec<_> =
        seeds.filter_map(|seed| run(seed, false).violation.map(|violation| (seed, violation))).collect();
    assert_eq!(failed, []);
}

/// Five nodes, processes dying and a power cut of all.
#[test]
fn a_cluster_survives_deaths_and_a_power_cut() {
    holds(0);
}

/// A node whose wall clock was an hour ahead, and that had heard its leader's time, was made leader, and forgot the
/// message ids of the last two minutes.
#[test]
fn a_leader_with_a_fast_clock_forgets_no_message_ids() {
    let drawn = Scenario::draw(1);
    let faults = Faults { clock_skew_max: Duration::from_secs(3_600), ..drawn.faults };
    holds_in(&Scenario { faults, ..drawn });
}

/// A leader that had lost its quorum and found it again asked for a successor at every change that it saw, and each
/// time it asked was one: it did nothing else any more.
#[test]
fn a_leader_that_found_its_quorum_again_asks_for_a_successor_now_and_then() {
    holds(5);
}

/// A failed sync: the process ends and comes back.
#[test]
fn a_node_whose_log_failed_comes_back() {
    holds(103);
}

#[test]
fn the_first_seeds_hold_even_ones() {
    all_hold((2..30).step_by(2));
}

#[test]
fn the_first_seeds_hold_odd_ones() {
    all_hold((3..30).step_by(2).filter(|seed| *seed != 5));
}
