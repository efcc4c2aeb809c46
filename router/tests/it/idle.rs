//! What the driver does while nobody asks: it seals the tail, and scrubs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use beamlog_log::sim_disk::SimDisk;
use beamlog_router::api::request::Request;
use beamlog_router::embed::PlainWire;
use beamlog_router::{Health, OpenError, Router, RouterOptions};

use crate::world::{WAIT, World, open, s};

#[expect(clippy::disallowed_methods, reason = "the driver's clock is the machine's")]
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < WAIT, "{what}");
        #[expect(clippy::disallowed_methods, reason = "as above")]
        sleep(Duration::from_millis(5));
    }
}

/// Where the frames of the open segment begin, the last of it being a seal or not.
fn frames(disk: &SimDisk) -> (PathBuf, Vec<usize>, bool) {
    let files = disk.files();
    let (path, bytes) =
        files.iter().rfind(|(path, _)| path.extension().is_some_and(|extension| extension == "seg")).unwrap();
    let mut places = Vec::new();
    let mut at = 4096;
    let mut seal = false;
    while bytes[at..].starts_with(b"BFR1") {
        places.push(at);
        seal = bytes[at + 5] & 4 != 0;
        at += 64 + u32::from_le_bytes(*bytes[at + 48..].first_chunk::<4>().unwrap()) as usize;
    }
    (path.clone(), places, seal)
}

#[test]
fn an_idle_log_proves_its_last_frame_once() {
    let world = World::with(s());
    world.publish("s.a", "the last one").unwrap();
    wait_until("an idle log is sealed", || frames(&world.disk).2);
    let (path, places, _) = frames(&world.disk);
    // Nothing happens, and nothing grows.
    let changes = world.disk.changes();
    wait_until("time passes", {
        let mut looks = 0;
        move || {
            looks += 1;
            looks > 160
        }
    });
    assert_eq!(world.disk.changes(), changes);
    assert_eq!(frames(&world.disk).1, places);

    // The machine stops here. Damage of what was acked cannot be taken for a write that was cut short.
    let disk = world.disk.fork();
    let published = places[places.len() - 2];
    disk.flip_bit(&path, (published as u64 + 90) * 8).unwrap();
    world.router().clone().close().unwrap();
    match open(&disk) {
        Err(OpenError::Replay(damage)) => assert_eq!(damage.offset, published as u64),
        other => panic!("{:?}", other.map(|_| ())),
    }

    // The next message is followed by a seal of its own.
    let world = World::with(s());
    for payload in ["1", "2"] {
        world.publish("s.a", payload).unwrap();
        wait_until("sealed", || frames(&world.disk).2);
    }
    // Of the stream's creation there may be one too, if this machine is slow.
    assert!(frames(&world.disk).1.len() <= 6);
}

#[test]
fn damage_in_a_sealed_segment_is_found_while_nobody_reads() {
    let disk = SimDisk::new();
    let options = RouterOptions { scrub_period: Duration::from_secs(1), ..RouterOptions::for_simulation() };
    let router =
        Router::open(Path::new("/data"), Arc::new(disk.clone()), &options, Arc::new(PlainWire)).unwrap();
    router.request(Request::CreateStream(Box::new(s()))).unwrap().wait().unwrap();
    // Not until the counters say so, which they do late: a pass is to have few steps.
    for _ in 0..40 {
        router.publish("s.a".to_owned(), Vec::new(), "x".repeat(4000)).unwrap().wait().result.unwrap();
    }
    wait_until("two segments are sealed", || router.stats().segments >= 3);
    let files = disk.files();
    let sealed = files
        .keys()
        .find(|path| path.extension().is_some_and(|extension| extension == "seg"))
        .unwrap()
        .clone();
    wait_until("a pass", || router.stats().scrub_passes > 0);
    assert_eq!(router.stats().scrub_damage, 0);
    disk.flip_bit(&sealed, 5000 * 8).unwrap();
    wait_until("the damage is found", || router.stats().scrub_damage == 1);
    assert_eq!(router.health(), Health::Serving);
    let after = disk.files();
    assert!(files.keys().all(|path| after.contains_key(path)), "nothing is removed");
    assert!(after.keys().any(|path| path.to_string_lossy().contains("/quarantine/")));
    router.close().unwrap();
}
