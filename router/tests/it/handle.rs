//! The handle: bounded, shared, and closed for everybody at once.

use std::sync::Arc;

use beamlog_router::api::request::{Published, Request};
use beamlog_router::{Full, Health, PublishError, StreamPublish};
use bytes::Bytes;

use crate::world::{WAIT, World, s};

#[test]
fn clones_share_one_router_and_closing_is_for_all() {
    let mut world = World::with(s());
    let clone = world.router().clone();
    assert!(clone.publish("s.a", "", "x").unwrap().wait().result.is_ok());
    world.abandon();
    assert_eq!(clone.health(), Health::Closed);
    assert!(matches!(clone.publish("s.a", "", "x"), Err(PublishError::Full(_) | PublishError::NoStream)));
    assert!(matches!(clone.request(Request::AccountInfo), Err(Full(Request::AccountInfo))));
    clone.when_ready().wait();
    clone.close().unwrap();
}

#[test]
fn a_subject_that_no_stream_captures_is_not_stored() {
    let world = World::with(s());
    assert!(matches!(world.router().publish("t.a", "", "x"), Err(PublishError::NoStream)));
    assert!(matches!(world.router().publish("s..a", "", "x"), Err(PublishError::Subject(_))));
}

#[test]
fn subscribers_get_a_stored_message_too_and_acks_go_by_the_wire() {
    let world = World::with(s());
    let subscription = world.router().subscribe("s.*", 10).unwrap();
    world.publish("s.a", "hello").unwrap();
    assert_eq!(&subscription.next(WAIT).unwrap().payload[..], b"hello");

    let replies = world.router().subscribe("reply.here", 10).unwrap();
    let stream = match world.router().publish("s.a", "", "x") {
        Ok(ticket) => ticket.wait().stream,
        Err(error) => panic!("{error}"),
    };
    assert_eq!(stream, "S");
    let publish = StreamPublish {
        stream: beamlog_router::StreamId(1),
        subject: "s.b".into(),
        reply: "reply.here".into(),
        headers: Bytes::new(),
        payload: "y".into(),
    };
    world.router().offer_publish(publish).unwrap();
    let ack = replies.next(WAIT).unwrap();
    assert!(String::from_utf8_lossy(&ack.payload).contains("Stored(Sequence(3))"));
}

#[test]
fn many_threads_publish_at_once_and_each_gets_its_own_sequence() {
    let world = World::with(s());
    let sequences = Arc::new(std::sync::Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let router = world.router().clone();
            let sequences = Arc::clone(&sequences);
            scope.spawn(move || {
                for n in 0..50 {
                    let ticket = router.publish(format!("s.{thread}"), "", format!("{n}")).unwrap();
                    let Ok(Published::Stored(sequence)) = ticket.wait().result else { panic!("stored") };
                    sequences.lock().unwrap().push(sequence.0);
                }
            });
        }
    });
    let mut sequences = std::mem::take(&mut *sequences.lock().unwrap());
    sequences.sort_unstable();
    assert_eq!(sequences, (1..=400).collect::<Vec<_>>());
    let commits = world.router().stats().commits;
    assert!(commits < 400, "publishes of one batch share a sync: {commits}");
}

#[test]
fn an_ephemeral_subscription_that_ends_gets_nothing() {
    let world = World::with(s());
    let subscription = world.router().subscribe("s.>", 1).unwrap();
    world.publish("s.a", "1").unwrap();
    world.publish("s.a", "2").unwrap();
    assert_eq!(subscription.missed(), 1);
    drop(subscription);
    assert!(!world.router().interest().has_interest(b"s.a"));
}
