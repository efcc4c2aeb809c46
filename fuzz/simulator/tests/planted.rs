//! Bugs put in on purpose, and in how many seeds, counted from 0, each must be found. They measure the simulator: a
//! change that lets one through has made it blind to what it stands for.

use beamlog_simulator::planted::Planted;
use beamlog_simulator::run::run_scenario;
use beamlog_simulator::swarm::Scenario;

/// Runs seeds with a bug until one fails. Returns what it said.
fn found(planted: Planted, within: u64) -> String {
    let mut runs = (0..within)
        .map(|seed| run_scenario(Scenario { planted: Some(planted), ..Scenario::draw(seed) }, false));
    let violation = runs.find_map(|verdict| verdict.violation);
    violation.unwrap_or_else(|| panic!("{planted:?} was not found in {within} seeds"))
}

#[test]
fn acks_before_the_sync_are_found_in_4_seeds() {
    found(Planted::AckBeforeSync, 4);
}

#[test]
fn quorums_of_which_one_copy_is_not_on_disk_are_found_in_8_seeds() {
    found(Planted::QuorumOneShort, 8);
}

#[test]
fn votes_that_are_not_synced_are_found_in_8_seeds() {
    found(Planted::VoteNotSynced, 8);
}

#[test]
fn message_ids_forgotten_at_a_change_of_leader_are_found_in_4_seeds() {
    let violation = found(Planted::IdsForgotten, 4);
    assert!(violation.contains("is stored twice"), "{violation}");
}
