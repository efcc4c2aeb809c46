//! Stored requests: nothing lost when requester, cell or node are away; nothing answered twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use beamlog_cell::durable::Submitted;
use beamlog_cell::{BusError, Envelope, Handler};
use serde_json::{Value, json};

use crate::world::{Made, PATIENCE, World};

fn request(n: u32) -> Envelope {
    Envelope::request("counter", "count", "demo/v1/Number", json!({"n": n}))
}

/// Counts how often it is asked, and says so.
fn counting() -> (Arc<AtomicU32>, Handler) {
    let count = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&count);
    let handler: Handler = Arc::new(move |envelope| {
        let times = counted.fetch_add(1, Ordering::SeqCst) + 1;
        let n = envelope.payload.unwrap_or_default()["n"].clone();
        if n == json!(13) {
            return Err(BusError::BadRequest("not this one".into()));
        }
        Ok(json!({"n": n, "times": times}))
    });
    (count, handler)
}

fn story(mut world: World) {
    const REQUESTS: u32 = 20;
    let asked: Vec<Envelope> = (0..REQUESTS).map(request).collect();
    {
        // Nobody serves, nobody delivers, and then all of it ends.
        let made = world.bus();
        let durable = made.durable();
        for envelope in &asked {
            assert_eq!(durable.submit(envelope), Ok(Submitted::Stored));
        }
        assert_eq!(durable.submit(&asked[3]), Ok(Submitted::Duplicate));
        assert_eq!(durable.answer(&asked[3].id, Duration::ZERO), Err(BusError::Timeout));
    }
    world.restart();
    let made = world.bus();
    let durable = made.durable();
    let delivery = durable.deliver().unwrap();
    let second = world.bus().durable();
    let _another = second.deliver().unwrap();
    // Only now is there a cell; requests wait for it meanwhile.
    let serving = world.bus();
    let (count, handler) = counting();
    serving.bus().subscribe("cbs.counter.count", handler).unwrap();
    let told: Vec<Result<Value, BusError>> =
        asked.iter().map(|envelope| durable.answer(&envelope.id, PATIENCE)).collect();
    for (n, result) in told.iter().enumerate() {
        match result {
            Ok(value) => assert_eq!(value["n"], n),
            Err(problem) => {
                assert_eq!((n, problem), (13, &BusError::BadRequest("Bad request: not this one".into())));
            }
        }
    }
    assert_eq!(count.load(Ordering::SeqCst), REQUESTS, "each was handled once");
    // The same request again, by somebody who lost the answer: the same answer, and nothing is done.
    for (envelope, before) in asked.iter().zip(&told) {
        assert_eq!(durable.request(envelope, PATIENCE), *before);
    }
    assert_eq!(count.load(Ordering::SeqCst), REQUESTS);
    // On purpose, it is done again, and is the answer from then on.
    let again = durable.replay(&asked[5].id).unwrap();
    assert_eq!(again["times"], REQUESTS + 1);
    assert_eq!(durable.answer(&asked[5].id, Duration::ZERO), Ok(again.clone()));
    let missing = durable.replay("3f2504e0-4f89-41d3-9a0c-0305e82c3301");
    assert!(matches!(missing, Err(BusError::NotFound(_))), "{missing:?}");
    for id in ["*", "a.b", "", ">"] {
        assert!(matches!(durable.answer(id, Duration::ZERO), Err(BusError::BadRequest(_))), "{id}");
    }
    // Answers outlive everything too.
    drop((delivery, _another, second, durable, serving, made));
    world.restart();
    let durable = world.bus().durable();
    assert_eq!(durable.answer(&asked[5].id, Duration::ZERO), Ok(again));
    assert_eq!(durable.submit(&asked[7]), Ok(Submitted::Duplicate));
}

#[test]
fn a_router_in_the_process_keeps_requests() {
    story(World::embedded());
}

#[test]
fn a_node_keeps_requests() {
    story(World::node());
}

#[test]
fn a_nats_server_keeps_requests() {
    story(World::nats_server());
}

#[test]
fn a_request_that_could_not_be_answered_is_refused() {
    let made: Made = World::embedded().bus();
    let durable = made.durable();
    let bad = Envelope { id: "1".into(), ..request(1) };
    assert!(matches!(durable.submit(&bad), Err(BusError::BadRequest(_))));
}
