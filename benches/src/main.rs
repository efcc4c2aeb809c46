//! `beamlog-bench`: Beamlog and its peers in the same run, on the same machine, by the same client.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use beamlog_bench::contender::{Contender, Programs};
use beamlog_bench::rows::{self, Plan, ROWS};
use clap::Parser;

/// Measures Beamlog beside nats-server and beside the bare device, and prints medians and ratios.
///
/// Rows: 1 publish with 128 in flight; 2 with one in flight; 3 the engine in process; 4 core pub/sub;
/// 5 request/reply; 6 consumers; 8 three nodes; 9 a thousand streams; 10 restart with many messages; 11 start, memory;
/// 12 a link beside its client library; 13 decisions; 14 an edge that catches up with its hub.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Which rows; all when none is named
    rows: Vec<u8>,
    /// How often everyone is measured, in turn
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Short times and small sizes: shows that it works, is not for publication
    #[arg(long)]
    quick: bool,
    /// Writes every round's figures here as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The beamlog program; default: the one beside this program
    #[arg(long, value_name = "PATH")]
    beamlog: Option<PathBuf>,
    /// The nats-server program
    #[arg(long, value_name = "PATH", default_value = ".venv/bin/nats-server")]
    nats_server: PathBuf,
    /// Where data folders are made; must be on the disk to be measured
    #[arg(long, value_name = "DIR")]
    data_root: Option<PathBuf>,
    /// Takes one side only; ratios are then missing
    #[arg(long, value_name = "SIDE", value_parser = ["beamlog", "nats-server"])]
    only: Option<String>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = error.to_string();
            let mut source = error.source();
            while let Some(cause) = source {
                text = format!("{text}: {cause}");
                source = cause.source();
            }
            eprintln!("beamlog-bench: {text}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error + Send + Sync>> {
    let plan = plan(arguments)?;
    for contender in &plan.contenders {
        plan.programs.check(*contender)?;
    }
    let rows = if arguments.rows.is_empty() { ROWS.to_vec() } else { arguments.rows.clone() };
    if plan.quick {
        println!("Quick run: these figures are not for publication.\n");
    }
    let mut comparisons = Vec::new();
    for row in rows {
        let of_row = rows::run(row, &plan).map_err(|error| format!("row {row}: {error}"))?;
        for comparison in of_row {
            println!("{}", comparison.markdown());
            comparisons.push(comparison);
        }
    }
    if let Some(path) = &arguments.json {
        std::fs::write(path, serde_json::to_vec_pretty(&comparisons)?)?;
    }
    Ok(())
}

fn plan(arguments: &Arguments) -> Result<Plan, Box<dyn Error + Send + Sync>> {
    let beside = std::env::current_exe()?;
    let beside = beside.parent().unwrap_or(Path::new(".")).join("beamlog");
    let contenders = match arguments.only.as_deref() {
        Some("beamlog") => vec![Contender::Beamlog],
        Some(_) => vec![Contender::NatsDefault, Contender::NatsAlways],
        None => vec![Contender::Beamlog, Contender::NatsDefault, Contender::NatsAlways],
    };
    let data_root = arguments.data_root.clone().unwrap_or_else(std::env::temp_dir);
    if on_memory(&data_root)? {
        return Err(format!(
            "{} is in memory, where a sync costs nothing: give --data-root DIR on a disk",
            data_root.display()
        )
        .into());
    }
    Ok(Plan {
        programs: Programs {
            beamlog: arguments.beamlog.clone().unwrap_or(beside),
            nats_server: arguments.nats_server.clone(),
            environment: Vec::new(),
        },
        rounds: arguments.rounds.max(1),
        quick: arguments.quick,
        data_root,
        contenders,
    })
}

fn on_memory(folder: &Path) -> std::io::Result<bool> {
    const TMPFS_MAGIC: u64 = 0x0102_1994;
    const RAMFS_MAGIC: u64 = 0x8584_58f6;
    let kind = rustix::fs::statfs(folder)?.f_type;
    Ok(u64::try_from(kind).is_ok_and(|kind| kind == TMPFS_MAGIC || kind == RAMFS_MAGIC))
}
