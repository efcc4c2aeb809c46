//! Disks that fail and disks that are full.

use std::collections::BTreeSet;
use std::path::Path;

use beamlog_log::sim_disk::{Crash, Failure, Fault, Operation, Repeat};
use beamlog_router::Health;
use beamlog_router::api::error::{ApiError, PublishRefusal};
use beamlog_router::api::request::{Published, Purge, Request};
use beamlog_router::stream::StreamConfig;

use crate::world::{World, open, s};

#[test]
fn nothing_is_acked_after_a_failed_sync() {
    let mut world = World::with(s());
    for n in 1..=5 {
        world.publish("s.a", &format!("{n}")).unwrap();
    }
    world.disk.fail(Fault {
        operation: Some(Operation::SyncData),
        nth: 1,
        failure: Failure::Io,
        repeat: Repeat::Once,
    });
    // Many in flight: none of the failed batch, and none after it, although the next sync would succeed.
    let tickets: Vec<_> = (6..40).map(|n| world.begin("s.a", &[], &format!("{n}"))).collect();
    for ticket in tickets {
        assert_eq!(ticket.wait().result, Err(PublishRefusal::LogFailed));
    }
    assert!(matches!(world.router().health(), Health::LogFailed { .. }));
    // What was durable is served, what is in doubt is not.
    assert_eq!(&world.get(5).unwrap().payload[..], b"5");
    assert_eq!(world.get(6), Err(ApiError::LogFailed));
    assert_eq!(world.request(Request::AccountInfo), Err(ApiError::LogFailed));
    world.abandon();
    world.disk.crash(Crash::LoseUnsynced);
    world.start();
    assert_eq!(world.content().len(), 5);
    assert!(matches!(world.publish("s.a", "6"), Ok(Published::Stored(_))));
}

#[test]
fn nothing_is_acked_after_a_failed_write() {
    let mut world = World::with(s());
    world.publish("s.a", "1").unwrap();
    world.disk.fail(Fault {
        operation: Some(Operation::Write),
        nth: 1,
        failure: Failure::Io,
        repeat: Repeat::Once,
    });
    assert_eq!(world.publish("s.a", "2"), Err(PublishRefusal::LogFailed));
    assert_eq!(world.publish("s.a", "3"), Err(PublishRefusal::LogFailed));
    world.abandon();
    world.start();
    let content = world.content();
    assert_eq!(content[0], (1, "1".into()));
    assert!(content.len() <= 2);
}

#[test]
fn a_full_disk_refuses_publishes_and_goes_on_with_the_rest() {
    let mut world = World::with(s());
    let payload = "x".repeat(2000);
    world.publish("s.a", &payload).unwrap();
    world.disk.limit_space(world.disk.used_space() + (70 << 10));
    let mut acked = 1;
    let refused = loop {
        match world.publish("s.a", &payload) {
            Ok(Published::Stored(sequence)) => acked = sequence.0,
            other => break other,
        }
        assert!(acked < 10_000, "a full disk shows");
    };
    assert_eq!(refused, Err(PublishRefusal::InsufficientStorage));
    assert_eq!(world.router().health(), Health::InsufficientStorage);
    assert_eq!(world.get(acked).unwrap().payload.len(), 2000);
    assert_eq!(
        world.request(Request::CreateStream(Box::new(beamlog_router::stream::StreamConfig {
            name: "MORE".into(),
            ..Default::default()
        }))),
        Err(ApiError::InsufficientStorage)
    );
    world.delete(acked).unwrap();
    assert!(world.purge(Purge { filter: "s.none".into(), ..Purge::default() }) == 0);
    // Space returns, and service with it, without a restart.
    world.disk.heal();
    let stored = loop {
        match world.publish("s.a", "after") {
            Err(PublishRefusal::InsufficientStorage) => std::thread::yield_now(),
            other => break other,
        }
    };
    assert!(matches!(stored, Ok(Published::Stored(_))), "{stored:?}");
    assert_eq!(world.router().health(), Health::Serving);
    let content = world.content();
    world.crash(Crash::LoseUnsynced);
    assert_eq!(world.content(), content);
}

/// Upkeep goes on while a disk is full, and nothing else is written that would show its failure: a node that did not look
/// would refuse messages for want of space for ever.
#[test]
fn a_failure_of_upkeep_on_a_full_disk_shows() {
    let mut failed = 0;
    for nth in 1..=12 {
        let world = World::with(s());
        let payload = "x".repeat(2000);
        world.disk.limit_space(world.disk.used_space() + (200 << 10));
        let mut last = 0;
        while let Ok(Published::Stored(sequence)) = world.publish("s.a", &payload) {
            last = sequence.0;
        }
        assert_eq!(world.router().health(), Health::InsufficientStorage);
        world.disk.fail(Fault {
            operation: Some(Operation::SyncDir),
            nth,
            failure: Failure::Io,
            repeat: Repeat::Once,
        });
        // Some of each segment stays: segments are written anew.
        for sequence in (1..=last).filter(|sequence| sequence % 8 != 0) {
            if world.delete(sequence).is_err() {
                break;
            }
        }
        // There is room soon, if upkeep goes on.
        let said = loop {
            match world.publish("s.a", "after") {
                Err(PublishRefusal::InsufficientStorage) => std::thread::yield_now(),
                other => break other,
            }
        };
        match said {
            Ok(Published::Stored(_)) => match world.router().health() {
                Health::Serving => {}
                // Upkeep goes on beside publishes: it may also fail once one had found room.
                Health::LogFailed { .. } => {
                    assert_eq!(world.publish("s.a", "after"), Err(PublishRefusal::LogFailed));
                    failed += 1;
                }
                other => panic!("{other:?}"),
            },
            Err(PublishRefusal::LogFailed) => failed += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(failed > 0, "no failure was one of upkeep");
}

#[test]
fn every_failing_operation_loses_nothing_that_was_acked() {
    // First a life without faults, to see how many operations there are.
    let life = |world: &World| -> Vec<(u64, String)> {
        let mut acked = Vec::new();
        for n in 0..30 {
            let payload = format!("{n}-{}", "p".repeat(300 * (n % 9)));
            if let Ok(Published::Stored(sequence)) = world.publish(&format!("s.{}", n % 4), &payload) {
                acked.push((sequence.0, payload));
            }
        }
        acked
    };
    let world = World::with(s());
    let before = world.disk.changes();
    life(&world);
    let operations = world.disk.changes() - before;
    assert!(operations > 30);
    for nth in 1..=operations {
        let mut world = World::with(s());
        world.disk.fail(Fault { operation: None, nth, failure: Failure::Io, repeat: Repeat::Once });
        let acked = life(&world);
        world.abandon();
        world.disk.heal();
        world.disk.crash(Crash::LoseUnsynced);
        world.start();
        let content = world.content();
        for one in &acked {
            assert!(content.contains(one), "operation {nth}: {} is lost", one.0);
        }
    }
}

#[test]
fn a_directory_in_use_is_refused() {
    let world = World::new();
    let error = open(&world.disk).unwrap_err();
    assert!(matches!(error, beamlog_router::OpenError::Directory(_)), "{error}");
    let foreign = beamlog_log::sim_disk::SimDisk::new();
    beamlog_log::Disk::create_dir(&foreign, Path::new("/data")).unwrap();
    beamlog_log::Disk::create_dir(&foreign, Path::new("/data/photos")).unwrap();
    assert!(open(&foreign).is_err());
}

/// A batch is stored whole or not at all, whatever of its write a power cut leaves.
#[test]
fn a_batch_is_there_whole_or_not_at_all() {
    const MESSAGES: usize = 12;
    let mut found = BTreeSet::new();
    for (seed, fails) in (0..4).flat_map(|seed| [(seed, false), (seed, true)]) {
        for crash in Crash::sample(seed) {
            let mut world = World::with(StreamConfig { allow_atomic: true, ..s() });
            world.publish("s.a", "before").unwrap();
            if fails {
                // After the write, before its sync.
                world.disk.power_off_at(2);
            }
            let mut ticket = None;
            for number in 1..=MESSAGES {
                let number_text = number.to_string();
                let mut headers = vec![("Nats-Batch-Id", "b"), ("Nats-Batch-Sequence", number_text.as_str())];
                if number == MESSAGES {
                    headers.push(("Nats-Batch-Commit", "1"));
                }
                ticket = Some(world.begin("s.a", &headers, &format!("{number:0>50}")));
            }
            let is_acked = ticket.unwrap().wait().result.is_ok();
            assert_eq!(is_acked, !fails);
            world.crash(crash);
            let stored = world.content().len() - 1;
            assert!(stored == MESSAGES || (stored == 0 && fails), "{stored} of {MESSAGES} after {crash:?}");
            found.insert((fails, stored));
        }
    }
    assert_eq!(found.len(), 3, "acked and whole; not acked and whole, or nothing: {found:?}");
}
