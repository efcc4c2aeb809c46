//! Row 5: request and reply through the server, one responder, 1 and 50 requesters with one request each.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::{Plan, RowError, join, set_usage};
use crate::client::Connection;
use crate::contender::{Contender, Server};
use crate::figures::{CPU, Durability, Figures, Latencies, Load, P50, P99, RATE};
use crate::process::usage;
use crate::report::{Comparison, Goal};

const SUBJECT: &str = "bench.request";
const MESSAGE_BYTES: u64 = 128;

pub fn row_5(plan: &Plan) -> Result<Vec<Comparison>, RowError> {
    let mut comparisons = Vec::new();
    for clients in [1, 50] {
        let load = Load { message_bytes: MESSAGE_BYTES, clients, in_flight: 1 };
        let mut comparison = Comparison::new(5, format!("request/reply, {clients} client(s)"), load);
        plan.each_round(&[Contender::Beamlog, Contender::NatsDefault], |contender| {
            let (_folder, server) = plan.fresh(contender)?;
            comparison.add(contender.name(), Durability::Memory, measure(&server, clients, plan.duration())?);
            Ok(())
        })?;
        let (us, peer) = (Contender::Beamlog.name(), Contender::NatsDefault.name());
        comparison.ratio(RATE, us, peer, Goal::AtLeast(1.0));
        comparison.ratio(P50, us, peer, Goal::AtMost(1.0));
        comparison.ratio(P99, us, peer, Goal::AtMost(1.0));
        comparison.ratio(CPU, us, peer, Goal::None);
        comparisons.push(comparison);
    }
    Ok(comparisons)
}

fn measure(server: &Server, clients: u64, duration: Duration) -> Result<Figures, RowError> {
    let mut responder = server.connect()?;
    responder.subscribe(SUBJECT, None, 1);
    responder.ping()?;
    let mut requesters = Vec::new();
    for number in 0..clients {
        let mut connection = server.connect()?;
        connection.subscribe(&format!("_R.{number}"), None, 1);
        connection.ping()?;
        requesters.push(connection);
    }
    let done = AtomicBool::new(false);
    let before = usage(server.pid());
    let start = Instant::now();
    let latencies = thread::scope(|scope| {
        let done = &done;
        let responding = scope.spawn(move || respond(responder, done));
        let requesting: Vec<_> = requesters
            .into_iter()
            .enumerate()
            .map(|(number, connection)| scope.spawn(move || request(connection, number, start, duration)))
            .collect();
        let outcomes: Vec<_> = requesting.into_iter().map(join).collect();
        done.store(true, Ordering::SeqCst);
        join(responding)?;
        let mut latencies = Latencies::default();
        for outcome in outcomes {
            latencies.add(&outcome?);
        }
        Ok::<_, RowError>(latencies)
    })?;
    let mut figures = Figures::default();
    // The requesters stop at the same moment; the responder's idle end does not count.
    figures.set(RATE, latencies.len() as f64 / duration.as_secs_f64());
    figures.set_latencies(&latencies);
    set_usage(&mut figures, server, before, latencies.len());
    Ok(figures)
}

fn request(
    mut connection: Connection,
    number: usize,
    start: Instant,
    duration: Duration,
) -> Result<Latencies, RowError> {
    let payload = vec![b'x'; usize::try_from(MESSAGE_BYTES)?];
    let reply = format!("_R.{number}");
    let mut latencies = Latencies::default();
    let mut now = Instant::now();
    while now - start < duration {
        connection.publish(SUBJECT.as_bytes(), reply.as_bytes(), &payload);
        connection.flush()?;
        let answer = connection.receive()?;
        if answer.payload.len() != payload.len() {
            return Err(format!("the answer has {} bytes", answer.payload.len()).into());
        }
        let answered = Instant::now();
        latencies.record(answered - now);
        now = answered;
    }
    Ok(latencies)
}

fn respond(mut connection: Connection, done: &AtomicBool) -> Result<(), RowError> {
    let payload = vec![b'y'; usize::try_from(MESSAGE_BYTES)?];
    let mut reply = Vec::new();
    while !done.load(Ordering::SeqCst) {
        connection.fill_or_idle(Duration::from_millis(20))?;
        while let Some(message) = connection.buffered_next()? {
            reply.clear();
            reply.extend_from_slice(message.reply);
            connection.publish(&reply, b"", &payload);
        }
        connection.flush()?;
    }
    Ok(())
}
