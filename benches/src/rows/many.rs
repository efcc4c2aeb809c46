//! Row 9: 1,000 streams with one consumer and 10 messages each: what they cost, and restarting with them.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Plan, RowError, data};
use crate::contender::{Contender, Server};
use crate::figures::{Figures, Load};
use crate::jetstream::{Until, create_consumer, create_stream, publish_windowed, stream_info};
use crate::process::{files_below, memory_kib};
use crate::report::{Comparison, Goal};

const MESSAGE_BYTES: usize = 128;
const MESSAGES: u64 = 10;
const MEMORY: &str = "memory_above_idle_mib";
const FILES: &str = "files";
const RESTART: &str = "restart_s";

pub fn row_9(plan: &Plan) -> Result<Vec<Comparison>, RowError> {
    let streams: u64 = if plan.quick { 100 } else { 1000 };
    let load = Load { message_bytes: MESSAGE_BYTES as u64, clients: 1, in_flight: MESSAGES };
    let title = format!("{streams} streams + {streams} consumers, {MESSAGES} messages each");
    let mut comparison = Comparison::new(9, title, load);
    plan.each_round(&[Contender::Beamlog, Contender::NatsDefault], |contender| {
        comparison.add(contender.name(), contender.durability(), measure(plan, contender, streams)?);
        Ok(())
    })?;
    let us = Contender::Beamlog.name();
    for (figure, bound) in [(FILES, 20.0), (MEMORY, 15.0), (RESTART, 0.1)] {
        if let Some(value) = comparison.median(us, figure) {
            // Only the files have a goal yet; the others show how far it is.
            let goal = if figure == FILES { Goal::AtMost(bound) } else { Goal::None };
            comparison.judge(us.to_owned(), figure, value, goal);
        }
        comparison.ratio(figure, us, Contender::NatsDefault.name(), Goal::None);
    }
    Ok(vec![comparison])
}

fn measure(plan: &Plan, contender: Contender, streams: u64) -> Result<Figures, RowError> {
    let (folder, server) = plan.fresh(contender)?;
    let mut connection = server.connect()?;
    let idle = memory_kib(server.pid());
    let start = Instant::now();
    for number in 0..streams {
        create_stream(&mut connection, &format!("S{number}"), &format!("many.{number}"), &Value::Null)?;
        let config = json!({ "durable_name": "C", "ack_policy": "explicit" });
        create_consumer(&mut connection, &format!("S{number}"), &config)?;
    }
    let created = start.elapsed();
    for number in 0..streams {
        let in_flight = usize::try_from(MESSAGES)?;
        let until = Until::Acked(MESSAGES);
        publish_windowed(&mut connection, &format!("many.{number}"), MESSAGE_BYTES, in_flight, until)?;
    }
    let mut figures = Figures::default();
    figures.set("created_in_s", created.as_secs_f64());
    figures.set(MEMORY, memory_kib(server.pid()).saturating_sub(idle) as f64 / 1024.0);
    let (files, bytes) = files_below(&data(&folder));
    figures.set(FILES, files as f64);
    figures.set("disk_mib", bytes as f64 / 1024.0 / 1024.0);
    drop(connection);
    let stopped = server.stop();
    figures.set("stopped_in_s", stopped.as_secs_f64());
    let (server, ready) = restart(plan, contender, &folder, &format!("S{}", streams - 1), MESSAGES)?;
    figures.set(RESTART, ready.as_secs_f64());
    drop(server);
    Ok(figures)
}

/// Starts a server over data that is there, and waits until it says of a stream how many messages it has.
pub(super) fn restart(
    plan: &Plan,
    contender: Contender,
    folder: &tempfile::TempDir,
    stream: &str,
    messages: u64,
) -> Result<(Server, Duration), RowError> {
    let start = Instant::now();
    let server = Server::start(&plan.programs, contender, &data(folder))?;
    let mut connection = server.connect()?;
    let info = stream_info(&mut connection, stream)?;
    if info["state"]["messages"].as_u64() != Some(messages) {
        return Err(format!("{} came back with {}", contender.name(), info["state"]).into());
    }
    Ok((server, start.elapsed()))
}
