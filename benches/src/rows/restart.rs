//! Row 10: restarting with many messages stored, after a clean stop and after SIGKILL.

use std::thread;

use serde_json::Value;

use super::many::restart;
use super::{Plan, RowError, join};
use crate::contender::Contender;
use crate::figures::{Figures, Load, PEAK};
use crate::jetstream::{Until, create_stream, publish_windowed};
use crate::process::peak_memory_kib;
use crate::report::{Comparison, Goal};

const MESSAGE_BYTES: usize = 128;
const PUBLISHERS: u64 = 4;
const IN_FLIGHT: usize = 2048;
const STREAM: &str = "BENCH";
const CLEAN: &str = "after_clean_stop_s";
const KILLED: &str = "after_sigkill_s";

/// Fills once a contender: a round is a restart, and the data stays what it was.
pub fn row_10(plan: &Plan) -> Result<Vec<Comparison>, RowError> {
    let messages: u64 = if plan.quick { 1_000_000 } else { 10_000_000 };
    let load = Load { message_bytes: MESSAGE_BYTES as u64, clients: PUBLISHERS, in_flight: IN_FLIGHT as u64 };
    let mut comparison = Comparison::new(10, format!("restart with {messages} messages stored"), load);
    for contender in plan.taking_part(&[Contender::Beamlog, Contender::NatsDefault]) {
        let (folder, mut server) = plan.fresh(contender)?;
        fill(&server, messages)?;
        for _ in 0..plan.rounds {
            let mut figures = Figures::default();
            server.kill();
            let (killed, ready) = restart(plan, contender, &folder, STREAM, messages)?;
            figures.set(KILLED, ready.as_secs_f64());
            figures.set(PEAK, peak_memory_kib(killed.pid()) as f64 / 1024.0);
            figures.set("stopped_in_s", killed.stop().as_secs_f64());
            let (clean, ready) = restart(plan, contender, &folder, STREAM, messages)?;
            figures.set(CLEAN, ready.as_secs_f64());
            comparison.add(contender.name(), contender.durability(), figures);
            server = clean;
        }
    }
    let (us, peer) = (Contender::Beamlog.name(), Contender::NatsDefault.name());
    for figure in [CLEAN, KILLED] {
        if let Some(value) = comparison.median(us, figure) {
            comparison.judge(us.to_owned(), figure, value, Goal::AtMost(1.0));
        }
        comparison.ratio(figure, us, peer, Goal::None);
    }
    Ok(vec![comparison])
}

fn fill(server: &crate::contender::Server, messages: u64) -> Result<(), RowError> {
    let mut connections = Vec::new();
    for _ in 0..PUBLISHERS {
        connections.push(server.connect()?);
    }
    create_stream(&mut connections[0], STREAM, "bench.restart.>", &Value::Null)?;
    thread::scope(|scope| {
        let publishing: Vec<_> = connections
            .iter_mut()
            .enumerate()
            .map(|(number, connection)| {
                scope.spawn(move || {
                    let subject = format!("bench.restart.{number}");
                    let until = Until::Acked(messages / PUBLISHERS);
                    Ok(publish_windowed(connection, &subject, MESSAGE_BYTES, IN_FLIGHT, until)?)
                })
            })
            .collect();
        for thread in publishing {
            join(thread)?;
        }
        Ok(())
    })
}
