//! How fast one driver stores, without a protocol in between, with a fixed number in flight; and how fast
//! what it stored is opened again.
//!
//! `cargo run --release -p beamlog-router --example throughput [in flight] [messages]`

use std::collections::VecDeque;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use beamlog_log::StdDisk;
use beamlog_router::api::request::Request;
use beamlog_router::embed::PlainWire;
use beamlog_router::stream::StreamConfig;
use beamlog_router::{PublishError, Router, RouterOptions};
use bytes::Bytes;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<usize>());
    let in_flight = arguments.next().transpose()?.unwrap_or(128);
    let messages = arguments.next().transpose()?.unwrap_or(200_000);
    let directory = tempfile::tempdir_in(".")?;
    let router = Router::open(
        &directory.path().join("data"),
        Arc::new(StdDisk),
        &RouterOptions::default(),
        Arc::new(PlainWire),
    )?;
    let stream = StreamConfig { name: "S".into(), subjects: vec!["s.>".into()], ..StreamConfig::default() };
    router.request(Request::CreateStream(Box::new(stream)))?.wait()?;

    let payload = Bytes::from(vec![b'x'; 128]);
    let subject = Bytes::from_static(b"s.a");
    #[expect(clippy::disallowed_methods, reason = "a measurement")]
    let begun = std::time::Instant::now();
    let mut waiting = VecDeque::with_capacity(in_flight);
    for _ in 0..messages {
        if waiting.len() == in_flight
            && let Some(ticket) = waiting.pop_front()
        {
            let ticket: beamlog_router::PublishTicket = ticket;
            ticket.wait().result?;
        }
        loop {
            match router.publish(subject.clone(), Bytes::new(), payload.clone()) {
                Ok(ticket) => {
                    waiting.push_back(ticket);
                    break;
                }
                Err(PublishError::Full(_)) => router.when_ready().wait(),
                Err(error @ (PublishError::Subject(_) | PublishError::NoStream)) => return Err(error.into()),
            }
        }
    }
    for ticket in waiting {
        ticket.wait().result?;
    }
    let took = begun.elapsed().max(Duration::from_nanos(1));
    let stats = router.stats();
    println!(
        "{messages} messages, {in_flight} in flight: {:.0}/s, {} commits, {:.1} µs per sync",
        messages as f64 / took.as_secs_f64(),
        stats.commits,
        stats.sync_nanos as f64 / 1000.0 / stats.commits.max(1) as f64
    );
    let path = directory.path().join("data");
    router.close()?;
    #[expect(clippy::disallowed_methods, reason = "a measurement")]
    let begun = std::time::Instant::now();
    let router = Router::open(&path, Arc::new(StdDisk), &RouterOptions::default(), Arc::new(PlainWire))?;
    println!("reopened in {:?}", begun.elapsed());
    router.close()?;
    std::fs::remove_dir_all(path.join("state"))?;
    #[expect(clippy::disallowed_methods, reason = "a measurement")]
    let begun = std::time::Instant::now();
    let router = Router::open(&path, Arc::new(StdDisk), &RouterOptions::default(), Arc::new(PlainWire))?;
    println!("reopened without checkpoint in {:?}", begun.elapsed());
    router.close()?;
    Ok(())
}
