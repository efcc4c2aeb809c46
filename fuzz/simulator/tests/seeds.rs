//! Seeds that once broke a promise or the simulator, and what they found: each must hold now, and be the same run twice.
//! And the first ones of all, once.

use std::time::Duration;

use beamlog_simulator::batch::{Batch, Sum};
use beamlog_simulator::run::run_scenario;
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

fn told(sum: &Sum) -> String {
    let tell = |(seed, violation): &(u64, String)| {
        let again = format!("cargo run --release -p beamlog-simulator -- --seed {seed} --trace");
        format!("seed {seed}: {violation}\n  again: {again}\n")
    };
    sum.failed.iter().map(tell).collect()
}

/// A node whose wall clock was an hour ahead, and that had heard its leader's time, was made leader, and forgot the
/// message ids of the last two minutes.
#[test]
fn a_leader_with_a_fast_clock_forgets_no_message_ids() {
    for seed in [1, 15, 16, 28] {
        let drawn = Scenario::draw(seed);
        let faults = Faults { wild_clock_skew_max: Duration::from_secs(3_600), ..drawn.faults };
        holds_in(&Scenario { faults, ..drawn });
    }
}

/// A leader that had lost its quorum and found it again asked for a successor at every change that it saw, and each
/// time it asked was one: it did nothing else any more.
#[test]
fn a_leader_that_found_its_quorum_again_asks_for_a_successor_now_and_then() {
    holds(5);
}

/// One of three nodes was dead, one needed a copy of the files, and the leader gave none while there was an entry that
/// was not committed: which it could not become without the node that waited for the copy.
#[test]
fn a_copy_is_given_while_the_last_entries_are_not_committed() {
    for seed in [39, 135, 137] {
        holds(seed);
    }
}

/// Files that were given stood in the way of a fifth copy for two minutes, although nobody asked for them any more: the
/// node that took another's place caught up with nothing until then, and no other change could be made.
#[test]
fn copies_that_were_made_do_not_keep_others_waiting() {
    holds(228);
}

/// A copy was done when another node led already, and openraft did not install it; the node that had fetched it said that
/// it was made. The new leader took it for one that has those entries, and sent it what comes behind them for ever.
#[test]
fn a_copy_that_was_not_installed_is_not_called_made() {
    for seed in [780, 937] {
        holds(seed);
    }
}

/// A segment went while entries behind the last decided one were in the log: the note of that stood behind them and was
/// not in a copy, which was a log without its first segment then. Nobody could be given one, and no quorum be found.
#[test]
fn a_copy_has_what_was_noted_behind_its_end() {
    holds(1595);
}

/// A sector at the end of a log was empty when its node was started, with three frames in it. That is what a torn write
/// looks like, and was no broken promise: the others know what the node held, and take it back only as a new one.
#[test]
fn frames_in_a_last_sector_that_decayed_are_a_torn_write() {
    holds(1900);
}

/// Upkeep of the log failed while the disk of the leader was full: it refused messages for want of space from then on, and led.
#[test]
fn a_leader_whose_log_failed_in_upkeep_stops() {
    holds(2062);
}

/// The last frame of a log was in doubt when its node was started, and the node asked the others for what stood there and
/// then for all that they had stored since: they stored more in that time, and it never came to an end.
#[test]
fn who_settles_the_end_of_a_log_under_load_comes_to_an_end() {
    holds(2993);
}

/// A leader without a quorum had a change of members in its log that was never committed, and told it as made: the operator
/// took the next node away, and no quorum was left.
#[test]
fn a_change_of_members_that_may_be_undone_is_not_told_as_made() {
    holds(5090);
}

/// The disk of a follower had room for the ballast and the next segment, but not for the snapshot before it: it was full and
/// not full in turn, as fast as the driver could look.
#[test]
fn a_disk_without_room_for_a_snapshot_is_full() {
    holds(5346);
}

/// A new node had its copy when the entries behind that were left behind too. Openraft had begun to send it entries, of which
/// there were none to read: it sent none for ever, and as long as it did it purged nothing and offered no other copy.
#[test]
fn a_stream_whose_entries_are_gone_ends() {
    for seed in [2737, 4170] {
        holds(seed);
    }
}

/// Who lost the end of its log with a sector is a node with a shorter log at each of its starts, not at the first only.
#[test]
fn a_log_that_lost_its_last_sector_is_shorter_from_then_on() {
    for seed in [1017, 3193] {
        holds(seed);
    }
}

#[test]
fn the_first_300_seeds_hold() {
    let jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let batch = Batch { from: 0, seeds: 300, jobs, twice_one_in: 20, planted: None };
    let sum = batch.run(|_| {});
    assert!(sum.failed.is_empty(), "{}", told(&sum));
    assert!(
        sum.acked > 100_000 && sum.delivered > 1_000 && sum.replaced > 10,
        "the seeds test little: {sum:?}"
    );
}
