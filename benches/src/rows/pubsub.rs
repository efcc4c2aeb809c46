//! Row 4: core publish and subscribe, nothing stored. Publishers stop at a window of undelivered
//! messages, so nobody loses any and the slowest receiver sets the pace.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::{Plan, RowError, join, set_usage};
use crate::client::Connection;
use crate::contender::{Contender, Server};
use crate::figures::{CPU, Durability, Figures, Latencies, Load, RATE};
use crate::process::usage;
use crate::report::{Comparison, Goal};

const SUBJECT: &str = "bench.pubsub";
const SID: u64 = 7;
/// Publishes that go out in one write.
const BATCH: u64 = 256;
/// Messages sent and not yet received by the slowest subscriber, at most.
const WINDOW: u64 = 65_536;

pub fn row_4(plan: &Plan) -> Result<Vec<Comparison>, RowError> {
    let mut comparisons = Vec::new();
    for message_bytes in [16, 128] {
        for (publishers, subscribers) in [(1, 1), (1, 4), (4, 4)] {
            let title = format!("core pub/sub {publishers}:{subscribers}, {message_bytes} B");
            let load = Load { message_bytes, clients: publishers + subscribers, in_flight: WINDOW };
            let mut comparison = Comparison::new(4, title, load);
            plan.each_round(&[Contender::Beamlog, Contender::NatsDefault], |contender| {
                let (_folder, server) = plan.fresh(contender)?;
                let figures = measure(&server, message_bytes, publishers, subscribers, plan.duration())?;
                comparison.add(contender.name(), Durability::Memory, figures);
                Ok(())
            })?;
            let (us, peer) = (Contender::Beamlog.name(), Contender::NatsDefault.name());
            comparison.ratio(RATE, us, peer, Goal::AtLeast(1.0));
            comparison.ratio(CPU, us, peer, Goal::None);
            comparisons.push(comparison);
        }
    }
    Ok(comparisons)
}

/// The rate counts deliveries: messages times subscribers.
fn measure(
    server: &Server,
    message_bytes: u64,
    publishers: u64,
    subscribers: u64,
    duration: Duration,
) -> Result<Figures, RowError> {
    let sent = AtomicU64::new(0);
    let received: Vec<AtomicU64> = (0..subscribers).map(|_| AtomicU64::new(0)).collect();
    let publishing = AtomicU64::new(publishers);
    let mut readers = Vec::new();
    for _ in 0..subscribers {
        let mut connection = server.connect()?;
        connection.subscribe(SUBJECT, None, SID);
        connection.ping()?;
        readers.push(connection);
    }
    let mut writers = Vec::new();
    for _ in 0..publishers {
        writers.push(server.connect()?);
    }
    let before = usage(server.pid());
    let start = Instant::now();
    let latencies = thread::scope(|scope| {
        let (sent, received, publishing) = (&sent, &received, &publishing);
        let reading: Vec<_> = readers
            .into_iter()
            .zip(received)
            .map(|(connection, count)| {
                scope.spawn(move || receive(connection, count, sent, publishing, message_bytes, start))
            })
            .collect();
        let writing: Vec<_> = writers
            .into_iter()
            .map(|connection| {
                scope.spawn(move || {
                    let outcome = publish(connection, sent, received, message_bytes, start, duration);
                    publishing.fetch_sub(1, Ordering::SeqCst);
                    outcome
                })
            })
            .collect();
        for thread in writing {
            join(thread)?;
        }
        let mut latencies = Latencies::default();
        for thread in reading {
            latencies.add(&join(thread)?);
        }
        Ok::<_, RowError>(latencies)
    })?;
    let elapsed = start.elapsed();
    let delivered = sent.load(Ordering::SeqCst) * subscribers;
    let mut figures = Figures::default();
    figures.set(RATE, delivered as f64 / elapsed.as_secs_f64());
    figures.set_latencies(&latencies);
    set_usage(&mut figures, server, before, delivered);
    Ok(figures)
}

fn publish(
    mut connection: Connection,
    sent: &AtomicU64,
    received: &[AtomicU64],
    message_bytes: u64,
    start: Instant,
    duration: Duration,
) -> Result<(), RowError> {
    let message_bytes = usize::try_from(message_bytes)?;
    let line = format!("PUB {SUBJECT} {message_bytes}\r\n");
    let mut batch = Vec::new();
    for _ in 0..BATCH {
        batch.extend_from_slice(line.as_bytes());
        batch.resize(batch.len() + message_bytes, 0);
        batch.extend_from_slice(b"\r\n");
    }
    let stamp = line.len()..line.len() + 8;
    while start.elapsed() < duration {
        let slowest = received.iter().map(|count| count.load(Ordering::Relaxed)).min().unwrap_or(0);
        if sent.load(Ordering::Relaxed) > slowest + WINDOW {
            thread::sleep(Duration::from_micros(50));
            continue;
        }
        // The first message of a batch carries when it was sent; the others carry zero.
        let now = u64::try_from(start.elapsed().as_nanos())?;
        batch[stamp.clone()].copy_from_slice(&now.to_le_bytes());
        connection.send(&batch)?;
        sent.fetch_add(BATCH, Ordering::SeqCst);
    }
    connection.ping()?;
    Ok(())
}

fn receive(
    mut connection: Connection,
    received: &AtomicU64,
    sent: &AtomicU64,
    publishing: &AtomicU64,
    message_bytes: u64,
    start: Instant,
) -> Result<Latencies, RowError> {
    let mut latencies = Latencies::default();
    let line = format!("MSG {SUBJECT} {SID} {message_bytes}\r\n").into_bytes();
    let message_bytes = usize::try_from(message_bytes)?;
    let mut count = 0u64;
    loop {
        let now = start.elapsed();
        while let Some(payload) = connection.buffered_next_like(&line, message_bytes)? {
            count += 1;
            let stamp = payload.first_chunk().map_or(0, |stamp| u64::from_le_bytes(*stamp));
            if stamp != 0 {
                latencies.record(now.saturating_sub(Duration::from_nanos(stamp)));
            }
        }
        received.store(count, Ordering::Relaxed);
        // The publishers count a batch after they sent it: all is counted once they are done.
        if publishing.load(Ordering::SeqCst) == 0 && count >= sent.load(Ordering::SeqCst) {
            return Ok(latencies);
        }
        connection.fill_or_idle(Duration::from_millis(100))?;
    }
}
