//! Row 3: the engine in process, without a network, beside the bare segment loop.
//!
//! The log takes one batch after the other, as the driver gives them to it: what is measured is laying
//! records into a frame, their index, the write, the sync, and rolling to new segments.

use std::sync::Arc;
use std::time::{Duration, Instant};

use beamlog_log::{Journal, Log, LogOptions, MessageRef, Sequence, ShardId, StdDisk, StreamId, Timestamp};

use super::{Plan, RowError};
use crate::device;
use crate::figures::{Durability, Figures, Latencies, Load, RATE};
use crate::report::{Comparison, Goal};

const RECORD_BYTES: usize = 256;
/// Records of one commit: a flood, and about what 128 messages in flight make of it.
const BATCHES: [usize; 2] = [1024, 64];
const BARE: &str = "bare segment loop";
const LOG: &str = "beamlog log";

pub fn row_3(plan: &Plan) -> Result<Vec<Comparison>, RowError> {
    let mut comparisons = Vec::new();
    for batch in BATCHES {
        let load = Load { message_bytes: RECORD_BYTES as u64, clients: 1, in_flight: batch as u64 };
        let title = format!("the engine in process, group commit of {batch}");
        let mut comparison = Comparison::new(3, title, load);
        for _ in 0..plan.rounds {
            let folder = plan.folder()?;
            let (rate, latencies) =
                device::segment_loop(folder.path(), RECORD_BYTES, batch, plan.duration())?;
            comparison.add(BARE, Durability::Disk, figures(rate, &latencies));
            let folder = plan.folder()?;
            let (rate, latencies) = log_loop(folder.path(), batch, plan.duration())?;
            comparison.add(LOG, Durability::Disk, figures(rate, &latencies));
        }
        comparison.ratio(RATE, LOG, BARE, Goal::AtLeast(0.5));
        comparisons.push(comparison);
    }
    Ok(comparisons)
}

/// The latency is that of a batch.
fn figures(rate: f64, latencies: &Latencies) -> Figures {
    let mut figures = Figures::default();
    figures.set(RATE, rate);
    figures.set_latencies(latencies);
    figures
}

fn log_loop(
    folder: &std::path::Path,
    batch: usize,
    duration: Duration,
) -> Result<(f64, Latencies), RowError> {
    let opened = Log::open(Arc::new(StdDisk), folder, ShardId(0), LogOptions::default())?;
    let mut log = opened.log;
    let payload = vec![0x5a_u8; RECORD_BYTES];
    let mut latencies = Latencies::default();
    let mut sequence = Sequence(0);
    let start = Instant::now();
    while start.elapsed() < duration {
        let before = Instant::now();
        let timestamp = Timestamp(u64::try_from(start.elapsed().as_nanos())?);
        log.set_time(timestamp);
        for _ in 0..batch {
            sequence = sequence.next();
            log.push_message(&MessageRef {
                stream: StreamId(1),
                sequence,
                timestamp,
                subject: b"bench.engine",
                headers: b"",
                payload: &payload,
            });
        }
        log.write()?;
        log.sync()?;
        if log.needs_roll() {
            log.roll(&mut std::iter::empty())?;
        }
        latencies.record(before.elapsed());
    }
    let rate = sequence.0 as f64 / start.elapsed().as_secs_f64();
    log.close()?;
    Ok((rate, latencies))
}
