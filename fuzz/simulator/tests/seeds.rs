//! Seeds that once broke a promise or the simulator, and what they found. Each must hold now, and be the same run twice.

use beamlog_simulator::run::run;

fn holds(seed: u64) {
    let first = run(seed, false);
    assert_eq!(first.violation, None, "seed {seed}");
    assert!(first.acked > 100, "seed {seed} tests nothing: {first:?}");
    let again = run(seed, false);
    assert_eq!((again.hash, again.events), (first.hash, first.events), "seed {seed} is two different runs");
}

/// Five nodes, processes dying and a power cut of all.
#[test]
fn a_cluster_survives_deaths_and_a_power_cut() {
    holds(0);
}

/// A node whose wall clock was an hour ahead was made leader, and forgot the message ids of the last two minutes.
#[test]
fn a_leader_with_a_fast_clock_forgets_no_message_ids() {
    holds(1);
}

/// A failed sync: the process ends and comes back.
#[test]
fn a_node_whose_log_failed_comes_back() {
    holds(103);
}
