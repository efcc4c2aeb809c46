//! Row 8: publish into a stream that three servers hold, clients spread over all of them.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{Plan, RowError, join};
use crate::contender::Contender;
use crate::figures::{CPU, Figures, Latencies, Load, PEAK, RATE};
use crate::jetstream::{Until, create_stream, is_publish_ack, publish_windowed};
use crate::process::{peak_memory_kib, usage};
use crate::report::{Comparison, Goal};
use crate::trio::{Trio, patiently};

/// Asked again after this.
const SOON: Duration = Duration::from_secs(2);
/// A server that is silent for so long under load has failed.
const LATE: Duration = Duration::from_secs(60);
const ALL: [Contender; 3] = [Contender::Beamlog, Contender::NatsDefault, Contender::NatsAlways];

pub fn row_8(plan: &Plan) -> Result<Vec<Comparison>, RowError> {
    let mut comparisons = Vec::new();
    for message_bytes in [128, 1024] {
        let load = || Load { message_bytes, clients: 6, in_flight: 128 };
        let title = format!("three nodes, R3, file, 6 × 128 in flight, {message_bytes} B");
        let mut comparison = Comparison::new(8, title, load());
        plan.each_round(&ALL, |contender| {
            let figures = publish(plan, contender, &load())?;
            comparison.add(contender.name(), contender.durability(), figures);
            Ok(())
        })?;
        let us = Contender::Beamlog.name();
        comparison.ratio(RATE, us, Contender::NatsDefault.name(), Goal::AtLeast(2.0));
        comparison.ratio(RATE, us, Contender::NatsAlways.name(), Goal::AtLeast(50.0));
        comparison.ratio(CPU, us, Contender::NatsDefault.name(), Goal::None);
        comparisons.push(comparison);
    }
    Ok(comparisons)
}

fn publish(plan: &Plan, contender: Contender, load: &Load) -> Result<Figures, RowError> {
    let folder = plan.folder()?;
    let trio = Trio::start(&plan.programs, contender, folder.path())?;
    let (bytes, in_flight) = (usize::try_from(load.message_bytes)?, usize::try_from(load.in_flight)?);
    let three = json!({ "num_replicas": 3 });
    patiently(|| -> Result<(), RowError> {
        Ok(create_stream(&mut trio.connect(0, SOON)?, "BENCH", "bench.publish.>", &three)?)
    })?;
    let mut connections = Vec::new();
    for number in 0..usize::try_from(load.clients)? {
        // Every server knows the way to the stream before the clock runs.
        connections.push(patiently(|| -> Result<_, RowError> {
            let answer = trio.connect(number, SOON)?.request("bench.publish.first", b"first")?;
            if is_publish_ack(&answer) { Ok(trio.connect(number, LATE)?) } else { Err("no ack".into()) }
        })?);
    }
    let before: Vec<_> = trio.pids().iter().map(|pid| usage(*pid)).collect();
    let start = Instant::now();
    let (acked, latencies) = thread::scope(|scope| {
        let publishing: Vec<_> = connections
            .iter_mut()
            .enumerate()
            .map(|(number, connection)| {
                scope.spawn(move || {
                    let subject = format!("bench.publish.{number}");
                    let until = Until::Elapsed(plan.duration());
                    Ok(publish_windowed(connection, &subject, bytes, in_flight, until)?)
                })
            })
            .collect();
        let mut all = (0, Latencies::default());
        for thread in publishing {
            let published = join(thread)?;
            all.0 += published.acked;
            all.1.add(&published.latencies);
        }
        Ok::<_, RowError>(all)
    })?;
    let elapsed = start.elapsed();
    let mut figures = Figures::default();
    figures.set(RATE, acked as f64 / elapsed.as_secs_f64());
    figures.set_latencies(&latencies);
    // Of all three servers together.
    let cpu: f64 = (trio.pids().iter().zip(&before))
        .map(|(pid, before)| usage(*pid).cpu.saturating_sub(before.cpu).as_secs_f64())
        .sum();
    if acked > 0 {
        figures.set(CPU, cpu * 1e6 / acked as f64);
    }
    figures.set(PEAK, trio.pids().iter().map(|pid| peak_memory_kib(*pid) as f64 / 1024.0).sum());
    Ok(figures)
}
