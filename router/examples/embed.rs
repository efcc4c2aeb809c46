//! A router inside a program: open, publish durably, consume with explicit acks, reopen.
//!
//! `cargo run -p beamlog-router --example embed [directory]`

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use beamlog_log::StdDisk;
use beamlog_router::api::request::{ConsumerAction, Request, Response};
use beamlog_router::consumer::{AckPolicy, ConsumerConfig};
use beamlog_router::embed::PlainWire;
use beamlog_router::stream::StreamConfig;
use beamlog_router::{Router, RouterOptions};

fn open(directory: &Path) -> Result<Router, Box<dyn Error>> {
    Ok(Router::open(directory, Arc::new(StdDisk), &RouterOptions::default(), Arc::new(PlainWire))?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let temporary = tempfile::tempdir()?;
    let directory =
        std::env::args_os().nth(1).map_or_else(|| temporary.path().join("data"), std::path::PathBuf::from);

    let router = open(&directory)?;
    let stream =
        StreamConfig { name: "ORDERS".into(), subjects: vec!["orders.>".into()], ..StreamConfig::default() };
    router.request(Request::CreateStream(Box::new(stream)))?.wait()?;
    let consumer = ConsumerConfig {
        name: "billing".into(),
        durable: true,
        ack_policy: AckPolicy::Explicit,
        ..ConsumerConfig::default()
    };
    router
        .request(Request::CreateConsumer {
            stream: "ORDERS".into(),
            config: Box::new(consumer),
            action: ConsumerAction::CreateOrUpdate,
        })?
        .wait()?;

    // All ten share a sync or two; each outcome is durable when it is there.
    let tickets = (1..=10)
        .map(|n| router.publish(format!("orders.{n}"), "", format!("order number {n}")))
        .collect::<Result<Vec<_>, _>>()?;
    for ticket in tickets {
        let outcome = ticket.wait();
        println!("stored in {}: {:?}", outcome.stream, outcome.result?);
    }

    let billing = router.consume("ORDERS", "billing")?;
    for delivered in billing.fetch(4, Duration::from_secs(1))? {
        println!("billing {}", String::from_utf8_lossy(&delivered.payload));
        router.ack_and_wait(&delivered, Duration::from_secs(5))?;
    }
    drop(billing);
    router.close()?;

    println!("reopened");
    let router = open(&directory)?;
    let billing = router.consume("ORDERS", "billing")?;
    for delivered in billing.fetch(10, Duration::from_millis(200))? {
        println!("billing {}", String::from_utf8_lossy(&delivered.payload));
        router.ack_and_wait(&delivered, Duration::from_secs(5))?;
    }
    let info = Request::ConsumerInfo { stream: "ORDERS".into(), consumer: "billing".into() };
    if let Response::Consumer(info) = router.request(info)?.wait()? {
        println!("acked up to {}, {} pending", info.ack_floor.stream, info.pending);
    }
    drop(billing);
    router.close()?;
    Ok(())
}
