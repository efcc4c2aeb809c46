//! The rows of the measurement plan, each in its own file, and what they share.

pub mod cluster;
pub mod consume;
pub mod edge;
pub mod engine;
pub mod link;
pub mod many;
mod paced;
pub mod publish;
pub mod pubsub;
pub mod request;
pub mod restart;
pub mod start;
pub mod tasks;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use crate::contender::{Contender, Programs, Server};
use crate::figures::{CPU, Figures, PEAK};
use crate::process::{Usage, peak_memory_kib, usage};
use crate::report::Comparison;

/// A row stops at its first failure: half a comparison is none.
pub type RowError = Box<dyn Error + Send + Sync>;

/// How the rows are run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub programs: Programs,
    pub rounds: usize,
    /// Small sizes and short times: to see that it works, not to publish.
    pub quick: bool,
    /// Where data folders are made: must be on the disk that is to be measured.
    pub data_root: PathBuf,
    /// Who takes part; the rows skip the others' lines.
    pub contenders: Vec<Contender>,
}

impl Plan {
    /// How long a timed measurement runs.
    #[must_use]
    pub fn duration(&self) -> Duration {
        if self.quick { Duration::from_millis(1000) } else { Duration::from_secs(3) }
    }

    /// Those of `wanted` that take part.
    pub fn taking_part<'a>(&'a self, wanted: &'a [Contender]) -> impl Iterator<Item = Contender> + 'a {
        wanted.iter().copied().filter(|contender| self.contenders.contains(contender))
    }

    /// Everyone once a round, the first one another each round.
    pub fn each_round(
        &self,
        wanted: &[Contender],
        mut measure: impl FnMut(Contender) -> Result<(), RowError>,
    ) -> Result<(), RowError> {
        let contenders: Vec<Contender> = self.taking_part(wanted).collect();
        for round in 0..self.rounds {
            for at in 0..contenders.len() {
                measure(contenders[(at + round) % contenders.len()])?;
            }
        }
        Ok(())
    }

    pub fn folder(&self) -> Result<TempDir, RowError> {
        Ok(tempfile::Builder::new().prefix("beamlog-bench-").tempdir_in(&self.data_root)?)
    }

    /// A server over an empty data folder.
    pub fn fresh(&self, contender: Contender) -> Result<(TempDir, Server), RowError> {
        let folder = self.folder()?;
        let server = Server::start(&self.programs, contender, &data(&folder))?;
        Ok((folder, server))
    }
}

/// Where the server's data is in the folder of a measurement; its log and configuration lie beside it.
#[must_use]
pub fn data(folder: &TempDir) -> PathBuf {
    folder.path().join("data")
}

/// Runs a row by its number.
pub fn run(row: u8, plan: &Plan) -> Result<Vec<Comparison>, RowError> {
    match row {
        1 => publish::row_1(plan),
        2 => publish::row_2(plan),
        3 => engine::row_3(plan),
        4 => pubsub::row_4(plan),
        5 => request::row_5(plan),
        6 => consume::row_6(plan),
        8 => cluster::row_8(plan),
        9 => many::row_9(plan),
        10 => restart::row_10(plan),
        11 => start::row_11(plan),
        12 => link::row_12(plan),
        13 => tasks::row_13(plan),
        14 => edge::row_14(plan),
        other => Err(format!("there is no row {other}; there are 1 2 3 4 5 6 8 9 10 11 12 13 14").into()),
    }
}

/// The rows there are.
pub const ROWS: [u8; 13] = [1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14];

/// Sets CPU per message and peak memory of a server, `before` being what it had used at the start.
fn set_usage(figures: &mut Figures, server: &Server, before: Usage, messages: u64) {
    let after = usage(server.pid());
    let cpu = after.cpu.saturating_sub(before.cpu);
    if messages > 0 {
        figures.set(CPU, cpu.as_secs_f64() * 1e6 / messages as f64);
    }
    figures.set(PEAK, peak_memory_kib(server.pid()) as f64 / 1024.0);
}

/// Joins a measuring thread; its panic is this row's error.
fn join<T>(thread: std::thread::ScopedJoinHandle<'_, Result<T, RowError>>) -> Result<T, RowError> {
    thread.join().map_err(|_panic| RowError::from("a load thread panicked"))?
}

/// The value of a counter or a histogram's `_count` on the admin port; nothing when there is none.
fn metric(server: &Server, name: &str) -> Option<f64> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(server.admin()).ok()?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let values: Vec<f64> = text
        .lines()
        .filter_map(|line| line.strip_prefix(name))
        .filter(|rest| rest.starts_with(' ') || rest.starts_with('{'))
        .filter_map(|rest| rest.rsplit(' ').next()?.parse().ok())
        .collect();
    (!values.is_empty()).then(|| values.iter().sum())
}

/// Bytes of a program on disk.
fn program_bytes(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}
