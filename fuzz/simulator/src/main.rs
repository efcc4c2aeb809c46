//! `beamlog-simulator`: runs seeds until one breaks a promise, and says how to see it again.

use std::process::ExitCode;

use beamlog_simulator::batch::Batch;
use beamlog_simulator::planted::Planted;
use beamlog_simulator::run::run_scenario;
use beamlog_simulator::swarm::Scenario;
use clap::Parser;

/// Runs simulated clusters under faults, a seed each, and checks every promise.
#[derive(Debug, Parser)]
struct Arguments {
    /// How many seeds
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Seeds that run at once; as many as there are cores if not said
    #[arg(long)]
    jobs: Option<usize>,
    /// One seed only
    #[arg(long, value_name = "SEED", conflicts_with_all = ["seeds", "from", "jobs"])]
    seed: Option<u64>,
    /// With --seed: every event told on standard error
    #[arg(long, requires = "seed")]
    trace: bool,
    /// One seed in so many runs twice, and both runs must be the same
    #[arg(long, default_value_t = 20)]
    twice_one_in: u64,
    /// With --seed: what the code logs, as RUST_LOG says
    #[arg(long, requires = "seed")]
    log: bool,
    /// A bug put in on purpose, to see in which seeds it is found
    #[arg(long, value_enum)]
    planted: Option<Planted>,
}

/// Seeds between two lines that say how many have run.
const TELL: u64 = 500;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(seed) = arguments.seed {
        return one(seed, &arguments);
    }
    let jobs = arguments
        .jobs
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
    let Arguments { from, seeds, twice_one_in, planted, .. } = arguments;
    let mut ended = 0_u64;
    let sum = Batch { from, seeds, jobs, twice_one_in, planted }.run(|verdict| {
        ended += 1;
        if ended.is_multiple_of(TELL) {
            eprintln!("{ended} of {seeds} seeds");
        }
        if let Some(violation) = &verdict.violation {
            println!("seed {}: {violation}", verdict.seed);
            println!("  again: cargo run --release -p beamlog-simulator -- --seed {} --trace", verdict.seed);
        }
    });
    println!(
        "{} seeds from {from}, {} failed; {} acked, {} delivered, {} crashes, {} nodes replaced, {} terms with a leader, {:.0} s simulated",
        sum.seeds,
        sum.failed.len(),
        sum.acked,
        sum.delivered,
        sum.crashes,
        sum.replaced,
        sum.leaders,
        sum.simulated_seconds
    );
    if sum.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn one(seed: u64, arguments: &Arguments) -> ExitCode {
    if arguments.log {
        tracing_subscriber::fmt().with_writer(std::io::stderr).without_time().init();
    }
    let scenario = Scenario { planted: arguments.planted, ..Scenario::draw(seed) };
    let verdict = run_scenario(scenario, arguments.trace);
    println!("{verdict:#?}");
    if verdict.violation.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
