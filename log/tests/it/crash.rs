//! Power cuts: before every changing operation of a life, with every kind of survival of what was not synced.
//!
//! Judged by what was confirmed: it is all there. What was not confirmed may be there or not, but no later part
//! of it without the earlier ones (the replay asserts that).

use beamlog_log::{LogOptions, OpenError, PlantedBug, SeededRandom, SimDisk, Tail, sim_disk::Crash};

use crate::world::{State, World, continues, new_disk, open};

/// A life on a disk that loses its power at the `cut`th change. What was confirmed until then; `None` if the life
/// ended before.
fn life_until(disk: &SimDisk, options: &LogOptions, seed: u64, cut: u64) -> Option<State> {
    disk.power_off_at(cut);
    let mut random = SeededRandom::new(seed);
    let Ok(mut world) = World::new(disk, options) else { return Some(State::default()) };
    let lived = world.live(&mut random, 40);
    let closed = match lived {
        Ok(()) => {
            let confirmed = world.state.clone();
            world.log.close().map_err(|_error| confirmed)
        }
        Err(_stopped) => Err(world.confirmed),
    };
    closed.err()
}

/// What a power cut did.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    Kept,
    /// The start was refused for a tail that nobody can judge.
    Refused,
    Lost,
}

pub(crate) fn recover(disk: &SimDisk, options: &LogOptions, confirmed: &State) -> Outcome {
    let (opened, refused) = match open(disk, options.clone()) {
        Ok(opened) => (opened, false),
        Err(OpenError::SuspectTail { .. }) => {
            // The operator accepts: nothing that was confirmed may be in what is cut.
            let accepted = LogOptions { accept_tail_loss: true, ..options.clone() };
            (open(disk, accepted).unwrap(), true)
        }
        Err(_other) => return Outcome::Lost,
    };
    if !opened.report.damaged.is_empty() || !opened.report.missing.is_empty() {
        return Outcome::Lost;
    }
    let last_index = opened.report.last_index;
    let mut world = World::over(disk, opened);
    if !continues(&world.state, confirmed) {
        return Outcome::Lost;
    }
    world.check_reads();
    // Recovering again finds the same, and so does a life after it.
    let state = world.state.clone();
    drop(world);
    let opened = open(disk, options.clone()).unwrap();
    assert_eq!(opened.report.last_index, last_index);
    assert!(matches!(opened.report.tail, Tail::Whole | Tail::Clean), "{:?}", opened.report);
    let mut world = World::over(disk, opened);
    assert_eq!(world.state, state);
    world.publish(1);
    world.commit().unwrap();
    world.check_reads();
    if refused { Outcome::Refused } else { Outcome::Kept }
}

/// Runs a life once for each change it makes, cut before that change, and recovers after each kind of crash.
fn cut_everywhere(options: &LogOptions, seed: u64) -> (u64, Vec<Outcome>) {
    let mut outcomes = Vec::new();
    for cut in 1.. {
        let disk = new_disk();
        let Some(confirmed) = life_until(&disk, options, seed, cut) else {
            return (cut, outcomes);
        };
        for crash in Crash::sample(seed ^ cut) {
            let after = disk.fork();
            after.crash(crash);
            let outcome = recover(&after, options, &confirmed);
            assert!(
                options.planted_bug.is_some() || outcome != Outcome::Lost,
                "seed {seed}, cut before change {cut}, {crash:?}: what was confirmed is lost"
            );
            outcomes.push(outcome);
        }
    }
    unreachable!("a life ends")
}

#[test]
fn what_was_confirmed_survives_a_cut_before_every_change() {
    let mut states = 0;
    let mut refused = 0;
    for seed in 0..4 {
        let (_, outcomes) = cut_everywhere(&LogOptions::for_simulation(), seed);
        states += outcomes.len();
        refused += outcomes.iter().filter(|outcome| **outcome == Outcome::Refused).count();
    }
    assert!(states > 2000, "{states}");
    // Only a sector torn inside its header or at its very end looks like damage.
    assert!(refused * 100 < states, "{refused} of {states} refused");
}

#[test]
fn acknowledging_before_the_sync_is_found() {
    let options = LogOptions { planted_bug: Some(PlantedBug::AckBeforeSync), ..LogOptions::for_simulation() };
    let (_, outcomes) = cut_everywhere(&options, 1);
    assert!(outcomes.contains(&Outcome::Lost));
}

#[test]
fn a_directory_that_is_not_synced_is_found() {
    let options =
        LogOptions { planted_bug: Some(PlantedBug::DirectoryNotSynced), ..LogOptions::for_simulation() };
    let (_, outcomes) = cut_everywhere(&options, 1);
    assert!(outcomes.contains(&Outcome::Lost));
}

/// A crash while recovering from a crash changes nothing (A8).
#[test]
fn what_was_confirmed_survives_cuts_while_recovering() {
    let options = LogOptions::for_simulation();
    let mut cuts = 0;
    for seed in 10..16 {
        let disk = new_disk();
        let Some(confirmed) = life_until(&disk, &options, seed, 5 + seed * 3) else { continue };
        disk.crash(Crash::Scatter { seed });
        for cut in 1.. {
            let again = disk.fork();
            again.power_off_at(cut);
            let recovered = open(&again, LogOptions { accept_tail_loss: true, ..options.clone() }).is_ok();
            if recovered && !again.is_off() {
                break;
            }
            cuts += 1;
            for crash in Crash::sample(cut) {
                let after = again.fork();
                after.crash(crash);
                assert_ne!(
                    recover(&after, &options, &confirmed),
                    Outcome::Lost,
                    "seed {seed}, cut {cut}, {crash:?}"
                );
            }
        }
    }
    assert!(cuts > 30, "{cuts}");
}
