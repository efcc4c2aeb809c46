//! `beamlog-simulator`: runs seeds until one breaks a promise, and says how to see it again.

use std::process::ExitCode;

use beamlog_simulator::planted::Planted;
use beamlog_simulator::run::{Verdict, run_scenario};
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
    /// One seed only, every event told on standard error
    #[arg(long, value_name = "SEED", conflicts_with_all = ["seeds", "from"])]
    seed: Option<u64>,
    /// With --seed: the events too
    #[arg(long, requires = "seed")]
    trace: bool,
    /// One seed in so many runs twice, and both runs must be the same
    #[arg(long, default_value_t = 20)]
    twice_one_in: u64,
    /// With --seed: what the code logs, as RUST_LOG says
    #[arg(long)]
    log: bool,
    /// A bug put in on purpose, to see in which seeds it is found
    #[arg(long, value_enum)]
    planted: Option<Planted>,
}

impl Arguments {
    fn run(&self, seed: u64) -> Verdict {
        run_scenario(Scenario { planted: self.planted, ..Scenario::draw(seed) }, self.trace)
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.log {
        tracing_subscriber::fmt().with_writer(std::io::stderr).without_time().init();
    }
    if let Some(seed) = arguments.seed {
        let verdict = arguments.run(seed);
        println!("{verdict:#?}");
        return if verdict.violation.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let (mut acked, mut crashes, mut leaders, mut simulated) = (0, 0, 0, 0.0);
    let mut failed = 0_u64;
    for seed in arguments.from..arguments.from + arguments.seeds {
        let verdict = arguments.run(seed);
        acked += verdict.acked;
        crashes += verdict.crashes;
        leaders += verdict.leaders;
        simulated += verdict.simulated.as_secs_f64();
        failed += u64::from(!is_good(&verdict));
        if arguments.twice_one_in > 0 && seed % arguments.twice_one_in == 0 {
            let again = arguments.run(seed);
            if (again.hash, again.events) != (verdict.hash, verdict.events) {
                println!("seed {seed}: two runs differ, {:016x} and {:016x}", verdict.hash, again.hash);
                failed += 1;
            }
        }
    }
    println!(
        "{} seeds, {failed} failed; {acked} acked, {crashes} crashes, {leaders} terms with a leader, {:.0} s simulated",
        arguments.seeds, simulated
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn is_good(verdict: &Verdict) -> bool {
    let Some(violation) = &verdict.violation else { return true };
    println!("seed {}: {violation}", verdict.seed);
    println!("  again: cargo run --release -p beamlog-simulator -- --seed {} --trace", verdict.seed);
    false
}
