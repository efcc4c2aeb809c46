//! Every operation of a life fails: once and from then on, wholly and after a part. Afterwards the process is
//! started again, on the page cache that the failure left (which may believe in bytes that the disk does not
//! hold) and after a power cut.

use beamlog_log::{
    LogOptions, SeededRandom, SimDisk,
    sim_disk::{Crash, Failure, Fault, Operation, Repeat},
};

use crate::{
    crash::{Outcome, recover},
    world::{State, World, new_disk},
};

fn failures(operation: Operation) -> Vec<Failure> {
    match operation {
        Operation::Write => vec![Failure::Io, Failure::NoSpace, Failure::PartialIo, Failure::PartialNoSpace],
        Operation::SyncData => vec![Failure::Io, Failure::PartialIo],
        Operation::Preallocate | Operation::Create | Operation::Rename | Operation::SetLen => {
            vec![Failure::Io, Failure::NoSpace]
        }
        Operation::Open
        | Operation::List
        | Operation::Exists
        | Operation::CreateDir
        | Operation::Remove
        | Operation::SyncDir
        | Operation::Lock
        | Operation::Read
        | Operation::ReadPastCache
        | Operation::Len => vec![Failure::Io],
    }
}

/// Two starts and a life; what was confirmed.
fn life(disk: &SimDisk, options: &LogOptions, seed: u64) -> State {
    let mut random = SeededRandom::new(seed);
    let mut confirmed = State::default();
    for _ in 0..2 {
        let Ok(opened) = crate::world::open(disk, options.clone()) else { return confirmed };
        let Some(mut world) = World::try_over(disk, opened) else { return confirmed };
        let lived = world.live(&mut random, 40);
        confirmed = world.confirmed.clone();
        if lived.is_err() || world.log.close().is_err() {
            return confirmed;
        }
    }
    confirmed
}

#[test]
fn every_operation_fails_and_nothing_confirmed_is_lost() {
    let options = LogOptions::for_simulation();
    let mut runs = 0;
    for operation in Operation::ALL {
        for failure in failures(operation) {
            for repeat in [Repeat::Once, Repeat::Forever] {
                for nth in 1.. {
                    let disk = new_disk();
                    let before = disk.count(operation);
                    disk.fail(Fault { operation: Some(operation), nth, failure, repeat });
                    let confirmed = life(&disk, &options, 2);
                    if disk.count(operation) - before < nth {
                        break;
                    }
                    runs += 1;
                    let restarted = disk.fork();
                    let outcome = recover(&restarted, &options, &confirmed);
                    assert_ne!(
                        outcome,
                        Outcome::Lost,
                        "{operation:?} {nth} {failure:?} {repeat:?}, started again"
                    );
                    let cut = disk.fork();
                    cut.crash(Crash::LoseUnsynced);
                    let outcome = recover(&cut, &options, &confirmed);
                    assert_ne!(
                        outcome,
                        Outcome::Lost,
                        "{operation:?} {nth} {failure:?} {repeat:?}, power cut"
                    );
                }
            }
        }
    }
    assert!(runs > 500, "{runs}");
}
