//! Row 1 at a fixed rate: every message has a moment at which it is due, and its latency counts from there.
//! So a server that stalls is charged for everything that would have come meanwhile (no coordinated omission).

use std::io::Write;
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use super::{Plan, RowError, join, set_usage};
use crate::contender::{Contender, Server};
use crate::figures::{Figures, Latencies, Load, P50, P99, P999, RATE};
use crate::jetstream::{create_stream, is_publish_ack};
use crate::process::usage;
use crate::report::{Comparison, Goal};

const MESSAGE_BYTES: u64 = 128;
const ACK_SID: u64 = 2;

/// One comparison for each rate, with those who can hold it.
pub(super) fn fixed_rates(plan: &Plan) -> Result<Vec<Comparison>, RowError> {
    let rates: [(u64, &[Contender]); 2] = [
        (500, &[Contender::Beamlog, Contender::NatsDefault, Contender::NatsAlways]),
        (20_000, &[Contender::Beamlog, Contender::NatsDefault]),
    ];
    let mut comparisons = Vec::new();
    for (rate, contenders) in rates {
        // As many in flight as are due and not acked.
        let load = Load { message_bytes: MESSAGE_BYTES, clients: 1, in_flight: 0 };
        let title = format!("JetStream publish, file, {rate}/s fixed, latency from when each was due");
        let mut comparison = Comparison::new(1, title, load);
        plan.each_round(contenders, |contender| {
            let (_folder, server) = plan.fresh(contender)?;
            let figures = paced(&server, rate, plan.duration())?;
            comparison.add(contender.name(), contender.durability(), figures);
            Ok(())
        })?;
        let us = Contender::Beamlog.name();
        for peer in contenders.iter().skip(1) {
            for figure in [P50, P99, P999] {
                comparison.ratio(figure, us, peer.name(), Goal::None);
            }
        }
        comparisons.push(comparison);
    }
    Ok(comparisons)
}

fn paced(server: &Server, rate: u64, duration: Duration) -> Result<Figures, RowError> {
    let mut connection = server.connect()?;
    create_stream(&mut connection, "BENCH", "bench.publish.>", &serde_json::Value::Null)?;
    let inbox = format!("{}.", connection.inbox());
    connection.subscribe(&format!("{inbox}*"), None, ACK_SID);
    connection.ping()?;
    let count = rate * u64::try_from(duration.as_millis())? / 1000;
    let schedule = Schedule { start: Instant::now() + Duration::from_millis(1), rate };
    let before = usage(server.pid());
    let output = connection.stream()?;
    let mut latencies = Latencies::default();
    thread::scope(|scope| {
        let sending = scope.spawn(|| send(output, &inbox, count, schedule));
        let mut acked = 0;
        while acked < count {
            connection.fill()?;
            let now = Instant::now();
            while let Some(message) = connection.buffered_next()? {
                let Some(number) = message.subject.strip_prefix(inbox.as_bytes()) else { continue };
                let number: u64 = std::str::from_utf8(number)?.parse()?;
                if !is_publish_ack(message.payload) {
                    return Err(String::from_utf8_lossy(message.payload).into_owned().into());
                }
                latencies.record(now.saturating_duration_since(schedule.due(number)));
                acked += 1;
            }
        }
        join(sending)
    })?;
    let mut figures = Figures::default();
    figures.set(RATE, count as f64 / schedule.start.elapsed().as_secs_f64());
    figures.set_latencies(&latencies);
    set_usage(&mut figures, server, before, count);
    Ok(figures)
}

#[derive(Clone, Copy)]
struct Schedule {
    start: Instant,
    rate: u64,
}

impl Schedule {
    fn due(self, number: u64) -> Instant {
        self.start + Duration::from_nanos(number * 1_000_000_000 / self.rate)
    }
}

/// Sends each message when it is due; those that became due together go in one write.
fn send(mut output: TcpStream, inbox: &str, count: u64, schedule: Schedule) -> Result<(), RowError> {
    let payload = vec![b'x'; usize::try_from(MESSAGE_BYTES)?];
    let mut buffer = Vec::new();
    let mut number = 0;
    while number < count {
        thread::sleep(schedule.due(number).saturating_duration_since(Instant::now()));
        let now = Instant::now();
        buffer.clear();
        while number < count && schedule.due(number) <= now {
            write!(buffer, "PUB bench.publish.0 {inbox}{number} {MESSAGE_BYTES}\r\n")?;
            buffer.extend_from_slice(&payload);
            buffer.extend_from_slice(b"\r\n");
            number += 1;
        }
        output.write_all(&buffer)?;
    }
    Ok(())
}
