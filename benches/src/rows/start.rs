//! Row 11: an empty start, idle memory, and the size of the program.

use std::time::Instant;

use super::{Plan, RowError, program_bytes};
use crate::contender::Contender;
use crate::figures::{Durability, Figures, Load};
use crate::process::{anonymous_memory_kib, memory_kib};
use crate::report::{Comparison, Goal};

const START: &str = "start_ms";
const IDLE: &str = "idle_mib";

pub fn row_11(plan: &Plan) -> Result<Vec<Comparison>, RowError> {
    let load = Load { message_bytes: 0, clients: 0, in_flight: 0 };
    let mut comparison = Comparison::new(11, "start to first INFO, idle memory, program size", load);
    plan.each_round(&[Contender::Beamlog, Contender::NatsDefault], |contender| {
        let (_folder, server) = plan.fresh(contender)?;
        let mut figures = Figures::default();
        figures.set(START, server.started_in().as_secs_f64() * 1000.0);
        // Idle is what it is after a first client came and went.
        let connected = Instant::now();
        drop(server.connect()?);
        figures.set("first_client_ms", connected.elapsed().as_secs_f64() * 1000.0);
        figures.set(IDLE, memory_kib(server.pid()) as f64 / 1024.0);
        figures.set("idle_anonymous_mib", anonymous_memory_kib(server.pid()) as f64 / 1024.0);
        let bytes = program_bytes(plan.programs.of(contender));
        figures.set("program_mib", bytes as f64 / 1024.0 / 1024.0);
        comparison.add(contender.name(), Durability::Memory, figures);
        Ok(())
    })?;
    let (us, peer) = (Contender::Beamlog.name(), Contender::NatsDefault.name());
    for (figure, bound) in [(START, 50.0), (IDLE, 20.0)] {
        if let Some(value) = comparison.median(us, figure) {
            comparison.judge(us.to_owned(), figure, value, Goal::AtMost(bound));
        }
        comparison.ratio(figure, us, peer, Goal::None);
    }
    Ok(vec![comparison])
}
