//! Row 3: the engine in process, without a network, beside the bare segment loop.

use super::{Plan, RowError};
use crate::device;
use crate::figures::{Durability, Figures, Load, RATE};
use crate::report::Comparison;

const RECORD_BYTES: usize = 256;
const BATCH: usize = 1024;
const BARE: &str = "bare segment loop";

pub fn row_3(plan: &Plan) -> Result<Vec<Comparison>, RowError> {
    let load = Load { message_bytes: RECORD_BYTES as u64, clients: 1, in_flight: BATCH as u64 };
    let mut comparison = Comparison::new(3, "the engine in process, group commit", load);
    for _ in 0..plan.rounds {
        let folder = plan.folder()?;
        let (rate, latencies) = device::segment_loop(folder.path(), RECORD_BYTES, BATCH, plan.duration())?;
        let mut figures = Figures::default();
        figures.set(RATE, rate);
        figures.set_latencies(&latencies);
        comparison.add(BARE, Durability::Disk, figures);
    }
    Ok(vec![comparison])
}
