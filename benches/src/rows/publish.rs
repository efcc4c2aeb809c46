//! Rows 1 and 2: JetStream publish into a file stream, with 128 messages in flight and with one.

use std::thread;
use std::time::{Duration, Instant};

use super::{Plan, RowError, join, metric, paced, set_usage};
use crate::contender::{Contender, Server};
use crate::device;
use crate::figures::{CPU, Durability, Figures, Latencies, Load, P50, RATE, SYNCS};
use crate::jetstream::{Until, create_stream, publish_windowed};
use crate::process::usage;
use crate::report::{Comparison, Goal};

const MESSAGE_BYTES: u64 = 128;
/// What one message of this size takes in a frame of its own, about; the device is given the same.
const FRAME_BYTES: usize = 256;
const ALL: [Contender; 3] = [Contender::Beamlog, Contender::NatsDefault, Contender::NatsAlways];

pub fn row_1(plan: &Plan) -> Result<Vec<Comparison>, RowError> {
    let mut comparisons = Vec::new();
    for (clients, in_flight) in [(1, 128), (16, 8)] {
        let load = Load { message_bytes: MESSAGE_BYTES, clients, in_flight };
        let title = format!("JetStream publish, file, {clients} × {in_flight} in flight");
        let mut comparison = Comparison::new(1, title, load);
        plan.each_round(&ALL, |contender| {
            let (_folder, server) = plan.fresh(contender)?;
            let figures = publish(&server, clients, in_flight, plan.duration())?;
            comparison.add(contender.name(), contender.durability(), figures);
            Ok(())
        })?;
        let us = Contender::Beamlog.name();
        comparison.ratio(RATE, us, Contender::NatsAlways.name(), Goal::AtLeast(50.0));
        comparison.ratio(RATE, us, Contender::NatsDefault.name(), Goal::AtLeast(0.8));
        comparison.ratio(CPU, us, Contender::NatsDefault.name(), Goal::None);
        comparisons.push(comparison);
    }
    comparisons.extend(paced::fixed_rates(plan)?);
    Ok(comparisons)
}

pub fn row_2(plan: &Plan) -> Result<Vec<Comparison>, RowError> {
    const DEVICE: &str = "bare write + fdatasync, preallocated";
    const LOOPBACK: &str = "bare loopback TCP";
    let load = Load { message_bytes: MESSAGE_BYTES, clients: 1, in_flight: 1 };
    let mut comparison = Comparison::new(2, "JetStream publish, file, one in flight", load);
    for _ in 0..plan.rounds {
        let folder = plan.folder()?;
        let latencies = device::sync_latencies(folder.path(), FRAME_BYTES, plan.duration())?;
        comparison.add(DEVICE, Durability::Disk, of_latencies(&latencies, plan.duration()));
        let latencies = device::loopback_latencies(FRAME_BYTES, 64, plan.duration())?;
        comparison.add(LOOPBACK, Durability::Memory, of_latencies(&latencies, plan.duration()));
        for contender in plan.taking_part(&ALL) {
            let (_folder, server) = plan.fresh(contender)?;
            let figures = publish(&server, 1, 1, plan.duration())?;
            comparison.add(contender.name(), contender.durability(), figures);
        }
    }
    let us = Contender::Beamlog.name();
    comparison.ratio(P50, us, DEVICE, Goal::AtMost(2.0));
    if let (Some(ours), Some(device), Some(loopback)) =
        (comparison.median(us, P50), comparison.median(DEVICE, P50), comparison.median(LOOPBACK, P50))
    {
        let text = format!("{us} / (device + loopback)");
        comparison.judge(text, P50, ours / (device + loopback), Goal::None);
    }
    comparison.ratio(RATE, us, Contender::NatsAlways.name(), Goal::None);
    Ok(vec![comparison])
}

fn of_latencies(latencies: &Latencies, duration: Duration) -> Figures {
    let mut figures = Figures::default();
    figures.set(RATE, latencies.len() as f64 / duration.as_secs_f64());
    figures.set_latencies(latencies);
    figures
}

fn publish(server: &Server, clients: u64, in_flight: u64, duration: Duration) -> Result<Figures, RowError> {
    const SYNC_COUNT: &str = "beamlog_log_syncs_total";
    let mut connections = Vec::new();
    for _ in 0..clients {
        connections.push(server.connect()?);
    }
    create_stream(&mut connections[0], "BENCH", "bench.publish.>", &serde_json::Value::Null)?;
    let in_flight = usize::try_from(in_flight)?;
    let bytes = usize::try_from(MESSAGE_BYTES)?;
    let syncs = metric(server, SYNC_COUNT);
    let before = usage(server.pid());
    let start = Instant::now();
    let (acked, latencies) = thread::scope(|scope| {
        let publishing: Vec<_> = connections
            .iter_mut()
            .enumerate()
            .map(|(number, connection)| {
                scope.spawn(move || {
                    let subject = format!("bench.publish.{number}");
                    let until = Until::Elapsed(duration);
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
    set_usage(&mut figures, server, before, acked);
    if let (Some(before), Some(after)) = (syncs, metric(server, SYNC_COUNT)) {
        figures.set(SYNCS, (after - before) / acked as f64);
    }
    Ok(figures)
}
