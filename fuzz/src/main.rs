//! Runs the fuzz targets: their corpora, then mutations for some time. The same seed makes the same
//! inputs. An input that breaks a promise is kept in the corpus, so that the tests see it from then on.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use beamlog_fuzz::{
    corpus,
    mutate::Mutator,
    targets::{TARGETS, Target},
};
use clap::Parser;

/// One input may take this long before it counts as endless.
const INPUT_TIME_MAX: Duration = Duration::from_secs(20);

/// Replays the corpora and mutates them. Exit code 1 when a promise was broken.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Seconds of mutations for each target
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Only this target; may be given several times
    #[arg(long)]
    target: Vec<String>,
    /// Chooses the inputs
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Writes the targets' well-formed inputs into their corpora, and ends
    #[arg(long)]
    write_seeds: bool,
}

/// What is being run, for the watchdog.
static RUNNING: Mutex<Option<(&'static str, Vec<u8>)>> = Mutex::new(None);
static EXECUTIONS: AtomicU64 = AtomicU64::new(0);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    for name in &arguments.target {
        if !TARGETS.iter().any(|target| target.name == name) {
            let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
            eprintln!("there is no target {name}; there are {}", names.join(", "));
            return ExitCode::from(2);
        }
    }
    thread::spawn(watch);
    let mut broken = false;
    for target in TARGETS {
        if !arguments.target.is_empty() && !arguments.target.iter().any(|name| name == target.name) {
            continue;
        }
        let result = if arguments.write_seeds { write_seeds(target) } else { fuzz(target, &arguments) };
        match result {
            Ok(held) => broken |= !held,
            Err(error) => {
                eprintln!("{}: reading or writing the corpus: {error}", target.name);
                return ExitCode::from(2);
            }
        }
    }
    if broken { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn write_seeds(target: &Target) -> std::io::Result<bool> {
    for seed in (target.seeds)() {
        corpus::save(target.name, "seed", &seed)?;
    }
    Ok(true)
}

fn fuzz(target: &Target, arguments: &Arguments) -> std::io::Result<bool> {
    let inputs: Vec<Vec<u8>> = corpus::load(target.name)?.into_iter().map(|(_, bytes)| bytes).collect();
    for input in &inputs {
        if !holds(target, input)? {
            return Ok(false);
        }
    }
    let mut mutator = Mutator::new(arguments.seed, &inputs, target.words);
    let mut input = Vec::new();
    let (start, mut count) = (Instant::now(), 0_u64);
    let time = Duration::from_secs_f64(arguments.seconds);
    while count % 64 != 0 || start.elapsed() < time {
        mutator.next_into(&mut input);
        if !holds(target, &input)? {
            println!("{}: broken by input {count} of seed {}", target.name, arguments.seed);
            return Ok(false);
        }
        count += 1;
    }
    let rate = count as f64 / start.elapsed().as_secs_f64().max(0.001);
    println!(
        "{:<16} {:>4} corpus inputs and {count} mutations held (seed {}, {rate:.0}/s)",
        target.name,
        inputs.len(),
        arguments.seed
    );
    Ok(true)
}

fn holds(target: &Target, input: &[u8]) -> std::io::Result<bool> {
    {
        let mut running = RUNNING.lock().expect("the watchdog does not panic");
        let (name, bytes) = running.get_or_insert((target.name, Vec::new()));
        *name = target.name;
        bytes.clear();
        bytes.extend_from_slice(input);
    }
    EXECUTIONS.fetch_add(1, Ordering::Relaxed);
    if catch_unwind(AssertUnwindSafe(|| (target.run)(input))).is_ok() {
        return Ok(true);
    }
    let path = corpus::save(target.name, "crash", input)?;
    println!("{}: a promise is broken by {}", target.name, path.display());
    Ok(false)
}

/// Ends the process when one input takes too long, and keeps that input.
fn watch() {
    let mut seen = 0;
    loop {
        thread::sleep(INPUT_TIME_MAX);
        let now = EXECUTIONS.load(Ordering::Relaxed);
        let running = RUNNING.lock().expect("nobody panics while holding it");
        if let (Some((name, input)), true) = (&*running, now == seen) {
            let kept = corpus::save(name, "crash", input);
            eprintln!("{name}: one input runs for more than {INPUT_TIME_MAX:?}; kept: {kept:?}");
            std::process::exit(1);
        }
        drop(running);
        seen = now;
    }
}
