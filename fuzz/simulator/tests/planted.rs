//! Bugs put in on purpose, and in how many seeds, counted from 0, each must be found. They measure the simulator: a
//! change that lets one through has made it blind to what it stands for.

use beamlog_simulator::batch::first_found;
use beamlog_simulator::planted::Planted;

/// Runs seeds with a bug until one fails. Returns what it said.
fn found(planted: Planted, within: u64) -> String {
    let (_, violation) = first_found(planted, within, 2)
        .unwrap_or_else(|| panic!("{planted:?} was not found in {within} seeds"));
    violation
}

#[test]
fn acks_before_the_sync_are_found_in_8_seeds() {
    found(Planted::AckBeforeSync, 8);
}

#[test]
fn quorums_of_which_one_copy_is_not_on_disk_are_found_in_16_seeds() {
    found(Planted::QuorumOneShort, 16);
}

/// The books that count beside the library stop the node before anything is let out.
#[test]
fn a_library_that_counts_one_too_many_is_stopped_by_the_books_in_8_seeds() {
    let violation = found(Planted::AnswersMadeUp, 8);
    assert!(violation.contains("is said to be committed"), "{violation}");
}

#[test]
fn a_quorum_counted_one_short_by_both_is_found_in_8_seeds() {
    found(Planted::AnswersMadeUpAndBooked, 8);
}

#[test]
fn votes_that_are_not_synced_are_found_in_16_seeds() {
    found(Planted::VoteNotSynced, 16);
}

#[test]
fn message_ids_forgotten_at_a_change_of_leader_are_found_in_8_seeds() {
    let violation = found(Planted::IdsForgotten, 8);
    assert!(violation.contains("is stored twice"), "{violation}");
}

#[test]
fn a_hole_that_is_cut_as_a_torn_tail_is_found_in_32_seeds() {
    let violation = found(Planted::HoleCut, 32);
    assert!(violation.contains("comes back with"), "{violation}");
}

#[test]
fn a_watermark_that_is_not_in_the_entry_is_found_in_16_seeds() {
    let violation = found(Planted::WatermarkBeside, 16);
    let expected = violation.contains("of the link") || violation.contains("the states of");
    assert!(expected, "{violation}");
}
