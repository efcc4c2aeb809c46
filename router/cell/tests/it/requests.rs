//! Requests and their errors, over every transport alike.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

use beamlog_cell::{App, Body, BodyPlan, Bus, BusError, CheckedBus, Envelope, Handler, Schemas};
use serde_json::{Value, json};

use crate::cells;
use crate::world::{Made, PATIENCE, SHORT, World, nats, seen};

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/greeter")
}

fn ask(bus: &Arc<dyn Bus>, service: &str, verb: &str, payload: Value) -> Result<Value, BusError> {
    bus.request(Envelope::request(service, verb, "demo/v1/Name", payload))
}

fn constant(result: Result<Value, BusError>) -> Handler {
    Arc::new(move |_| result.clone())
}

fn greet(world: &World) {
    let (served, asking) = (world.bus(), world.bus());
    let schemas = Arc::new(Schemas::read(&folder().join("schemas")).unwrap());
    let checked: Arc<dyn Bus> = Arc::new(CheckedBus::new(served.bus(), schemas));
    let plan = BodyPlan::read(&folder().join("body.yaml")).unwrap();
    let app = App::read(&folder()).unwrap();
    let body = Body::start(&app, Some(&plan), &cells::registry(), checked).unwrap();
    assert_eq!(body.ids().collect::<Vec<_>>(), ["io.prompt_name", "logic.greet", "io.print_greeting"]);
    let bus = asking.bus();
    let prompt = Envelope::request("prompt_name", "read", "demo/v1/Prompt", json!({"test_input": " Ada \n"}));
    let read = bus.request(prompt);
    let read = read.unwrap();
    assert_eq!((&read["name"], &read["length"]), (&json!("Ada"), &json!(3)));
    let greeting = ask(&bus, "greeter", "say_hello", json!({"name": read["name"]})).unwrap();
    assert_eq!(greeting["message"], "Hello Ada!");
    let message =
        Envelope::request("printer", "write", "demo/v1/Greeting", json!({"message": greeting["message"]}));
    assert_eq!(bus.request(message).unwrap()["printed"], true);
    let empty = ask(&bus, "greeter", "say_hello", json!({"name": " "}));
    assert_eq!(empty, Err(BusError::BadRequest("Bad request: name is empty".into())));
    let unchecked = ask(&bus, "greeter", "say_hello", json!({"name": 7})).unwrap_err();
    assert!(matches!(&unchecked, BusError::BadRequest(text) if text.contains("demo/v1/Name")), "{unchecked}");
}

/// The table of section 2.3.
fn errors(world: &World) {
    let (served, asking) = (world.bus().bus(), world.bus().bus());
    let text = || "x".to_owned();
    let table = [
        (BusError::BadRequest(text()), BusError::BadRequest("Bad request: x".into())),
        (BusError::NotFound(text()), BusError::NotFound("Not found: x".into())),
        (BusError::Timeout, BusError::Timeout),
        (BusError::Internal(text()), BusError::Internal("Internal error: x".into())),
        (BusError::Connection(text()), BusError::Internal("Connection error: x".into())),
        (BusError::Serialization(text()), BusError::Internal("Serialization error: x".into())),
    ];
    for (number, (told, heard)) in table.into_iter().enumerate() {
        let verb = format!("fail_{number}");
        served.subscribe(&format!("cbs.errors.{verb}"), constant(Err(told))).unwrap();
        assert_eq!(ask(&asking, "errors", &verb, json!({})), Err(heard));
    }
    served.subscribe("cbs.errors.panic", Arc::new(|_| panic!("on purpose"))).unwrap();
    for _ in 0..2 {
        let panicked = ask(&asking, "errors", "panic", json!({}));
        assert_eq!(panicked, Err(BusError::Internal("Internal error: the handler panicked".into())));
    }
    assert_eq!(
        ask(&asking, "nobody", "there", json!({})),
        Err(BusError::NotFound("No subscribers for subject".into()))
    );
    for (service, verb, schema) in
        [("Greeter", "x", "demo/v1/N"), ("a", "b c", "demo/v1/N"), ("a", "b", "demo")]
    {
        let refused = asking.request(Envelope::request(service, verb, schema, json!({})));
        assert!(matches!(refused, Err(BusError::BadRequest(_))), "{refused:?}");
    }
}

fn nobody_answers_in_time(world: &World) {
    let (served, asking) = (world.bus().bus(), world.bus_with(SHORT).bus());
    let (go, wait) = seen::<()>();
    let wait = Mutex::new(wait);
    let slow: Handler = Arc::new(move |_| {
        wait.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        Ok(json!({}))
    });
    served.subscribe("cbs.slow.answer", slow).unwrap();
    assert_eq!(ask(&asking, "slow", "answer", json!({})), Err(BusError::Timeout));
    go.send(()).unwrap();
    // It is not stuck: the next one is served. Its patience is short, so it may take some.
    go.send(()).unwrap();
    let bus = world.bus().bus();
    assert_eq!(ask(&bus, "slow", "answer", json!({})), Ok(json!({})));
}

fn one_of_a_service_gets_each_request(world: &World) {
    const REQUESTS: usize = 200;
    let (sender, receiver) = seen();
    let buses: Vec<Made> = (0..3).map(|_| world.bus()).collect();
    for (who, made) in buses.iter().enumerate() {
        let sender = sender.clone();
        let count: Handler = Arc::new(move |envelope| {
            sender.send((who, envelope.id)).unwrap();
            Ok(json!({"who": who}))
        });
        made.bus().subscribe("cbs.counter.count", count).unwrap();
    }
    let asking = world.bus().bus();
    for _ in 0..REQUESTS {
        ask(&asking, "counter", "count", json!({})).unwrap();
    }
    let mut by_bus: BTreeMap<usize, usize> = BTreeMap::new();
    let handled: Vec<(usize, String)> = receiver.try_iter().collect();
    assert_eq!(handled.len(), REQUESTS, "each once");
    for (who, _) in handled {
        *by_bus.entry(who).or_default() += 1;
    }
    assert_eq!(by_bus.len(), 3, "everybody got some: {by_bus:?}");
}

fn a_handler_takes_the_place_of_another(world: &World) {
    let (served, asking) = (world.bus().bus(), world.bus().bus());
    for n in 0..2 {
        served.subscribe("cbs.place.take", constant(Ok(json!({"n": n})))).unwrap();
        assert_eq!(ask(&asking, "place", "take", json!({})), Ok(json!({"n": n})));
    }
}

fn a_handler_may_ask(world: &World) {
    let (served, asking) = (world.bus().bus(), world.bus().bus());
    served.subscribe("cbs.inner.ask", constant(Ok(json!({"deep": 1})))).unwrap();
    let inner = world.bus().bus();
    let outer: Handler = Arc::new(move |_| ask(&inner, "inner", "ask", json!({})));
    served.subscribe("cbs.outer.ask", outer).unwrap();
    assert_eq!(ask(&asking, "outer", "ask", json!({})), Ok(json!({"deep": 1})));
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let bus = Arc::clone(&asking);
            thread::spawn(move || ask(&bus, "outer", "ask", json!({})))
        })
        .collect();
    for thread in threads {
        assert_eq!(thread.join().unwrap(), Ok(json!({"deep": 1})));
    }
}

macro_rules! over_every_transport {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            use super::*;

            #[test]
            fn over_a_router_in_the_process() {
                super::$name(&World::embedded());
            }

            #[test]
            fn over_a_node() {
                super::$name(&World::node());
            }

            #[test]
            fn over_a_nats_server() {
                super::$name(&World::nats_server());
            }
        }
    )+};
}

over_every_transport! {
    greet,
    errors,
    nobody_answers_in_time,
    one_of_a_service_gets_each_request,
    a_handler_takes_the_place_of_another,
    a_handler_may_ask,
}

#[test]
fn cells_in_the_node_and_cells_outside_reach_each_other() {
    let world = World::node();
    let World::Node(node) = &world else { unreachable!() };
    let router = node.node.as_ref().unwrap().router().clone();
    let limits = beamlog_cell::EmbeddedLimits::default();
    let inside: Arc<dyn Bus> = Arc::new(beamlog_cell::EmbeddedBus::new(router, limits));
    let outside = nats(world.address().unwrap(), PATIENCE).bus();
    inside.subscribe("cbs.inside.where", constant(Ok(json!({"at": "inside"})))).unwrap();
    outside.subscribe("cbs.outside.where", constant(Ok(json!({"at": "outside"})))).unwrap();
    assert_eq!(ask(&outside, "inside", "where", json!({})), Ok(json!({"at": "inside"})));
    assert_eq!(ask(&inside, "outside", "where", json!({})), Ok(json!({"at": "outside"})));
}
