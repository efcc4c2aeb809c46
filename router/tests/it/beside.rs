//! Two shards of one node: two stores, two drivers, one interest. Each has its streams, and publishes find theirs by
//! whichever handle they come.

use std::path::Path;
use std::sync::Arc;

use beamlog_log::Sequence;
use beamlog_log::sim_disk::{Crash, SimDisk};
use beamlog_router::api::request::{Published, Request, Response};
use beamlog_router::embed::PlainWire;
use beamlog_router::stream::{Republish, StreamConfig};
use beamlog_router::{PublishBatch, Router, RouterOptions};

use crate::world::{WAIT, World};

fn config(name: &str) -> StreamConfig {
    StreamConfig { name: name.into(), subjects: vec![format!("{name}.>")], ..StreamConfig::default() }
}

fn open_beside(router: &Router, disk: &SimDisk) -> Router {
    let options = RouterOptions::for_simulation();
    router
        .open_beside(Path::new("/data/local"), Arc::new(disk.clone()), &options, Arc::new(PlainWire))
        .unwrap()
}

fn create(router: &Router, config: StreamConfig) {
    router.request(Request::CreateStream(Box::new(config))).unwrap().wait().unwrap();
}

fn messages(router: &Router, stream: &str) -> u64 {
    let request = Request::StreamInfo {
        stream: stream.into(),
        subjects_filter: None,
        offset: 0,
        deleted_details: false,
    };
    match router.request(request).unwrap().wait().unwrap() {
        Response::Stream { info, .. } => info.state.messages,
        other => panic!("{other:?}"),
    }
}

fn publish(by: &Router, subject: &str) -> (String, Published) {
    let outcome = by.publish(subject.to_owned(), "", "x").unwrap().wait();
    (outcome.stream, outcome.result.unwrap())
}

fn stored(stream: &str, sequence: u64) -> (String, Published) {
    (stream.into(), Published::Stored(Sequence(sequence)))
}

#[test]
fn a_publish_finds_its_shard_by_either_handle() {
    let world = World::with(config("s"));
    let local = open_beside(world.router(), &world.disk);
    create(&local, config("l"));
    assert_eq!(publish(world.router(), "l.a"), stored("l", 1));
    assert_eq!(publish(&local, "l.a"), stored("l", 2));
    assert_eq!(publish(&local, "s.a"), stored("s", 1));
    assert_eq!(publish(world.router(), "s.a"), stored("s", 2));

    // One batch of both, as a session hands it over: each in its order.
    let replies = local.subscribe("reply.>", 100).unwrap();
    let mut batch = PublishBatch::default();
    for n in 0..10 {
        for subject in ["l.b", "s.b"] {
            let stream = world.router().interest().capture_of(subject.as_bytes()).unwrap();
            let reply = format!("reply.{subject}.{n}");
            batch.push(stream, subject.as_bytes(), reply.as_bytes(), b"", b"y");
        }
    }
    world.router().offer_publishes(batch).unwrap();
    let mut acks: Vec<(String, String)> = (0..20)
        .map(|_| replies.next(WAIT).unwrap())
        .map(|ack| {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            (text(&ack.subject), text(&ack.payload))
        })
        .collect();
    acks.sort();
    for (n, (subject, ack)) in acks.iter().enumerate() {
        let sequence = n % 10 + 3;
        assert!(ack.contains(&format!("Stored(Sequence({sequence}))")), "{subject}: {ack}");
    }
    assert_eq!((messages(&local, "l"), messages(world.router(), "s")), (12, 12));
}

#[test]
fn what_one_shard_sends_the_other_may_store() {
    let world = World::with(config("copies"));
    let local = open_beside(world.router(), &world.disk);
    let republish = Republish { source: ">".into(), destination: "copies.>".into(), headers_only: false };
    create(&local, StreamConfig { republish: Some(republish), ..config("l") });
    let heard = local.subscribe("copies.>", 10).unwrap();
    publish(&local, "l.a");
    heard.next(WAIT).unwrap();
    // It was put into the other shard's queue before subscribers were told.
    assert_eq!(messages(world.router(), "copies"), 1);
}

#[test]
fn each_shard_comes_back_with_its_own() {
    let mut world = World::with(config("s"));
    let local = open_beside(world.router(), &world.disk);
    create(&local, config("l"));
    for _ in 0..3 {
        publish(&local, "l.a");
    }
    publish(&local, "s.a");
    // The one beside may go first, and come back; what it captures is refused meanwhile.
    local.close().unwrap();
    assert_eq!(publish(world.router(), "s.a"), stored("s", 2));
    let local = open_beside(world.router(), &world.disk);
    assert_eq!(publish(world.router(), "l.a"), stored("l", 4));
    local.close().unwrap();
    world.reopen();
    let local = open_beside(world.router(), &world.disk);
    assert_eq!(publish(&local, "l.b"), stored("l", 5));
    assert_eq!(publish(&local, "s.b"), stored("s", 3));
    create(&local, config("l2"));
    assert_eq!(publish(world.router(), "l2.a"), stored("l2", 1));
}

#[test]
fn what_the_local_shard_acked_survives_a_power_cut() {
    let mut world = World::with(config("s"));
    let local = open_beside(world.router(), &world.disk);
    create(&local, config("l"));
    for n in 1..=20 {
        assert_eq!(publish(world.router(), "l.a"), stored("l", n));
    }
    world.disk.power_off_at(1);
    drop(local.close());
    world.crash(Crash::LoseUnsynced);
    let local = open_beside(world.router(), &world.disk);
    assert_eq!(messages(&local, "l"), 20);
    assert_eq!(publish(world.router(), "l.a"), stored("l", 21));
}
