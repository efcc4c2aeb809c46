//! `beamlog-trace`: runs a server under strace, loads it with publishers, and proves from the trace that
//! every ack left after its message was written and synced.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use beamlog_bench::contender::{Contender, Programs, Server};
use beamlog_bench::ledger::{self, Ledger, Load, Shape};
use beamlog_bench::trace;
use clap::Parser;

/// What a record and a frame add to the bytes of a message (docs/design/format.md).
const RECORD_HEADER_BYTES: u64 = 36;
const FRAME_HEADER_BYTES: u64 = 64;

/// Proves ack-after-sync for a number of acks; exit code 1 when one is unproven or too much is written.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The beamlog program; default: the one beside this program
    #[arg(long, value_name = "PATH")]
    beamlog: Option<PathBuf>,
    /// Judges this nats-server instead; with its default it must fail
    #[arg(long, value_name = "PATH")]
    nats_server: Option<PathBuf>,
    /// With --nats-server: sync_interval always
    #[arg(long)]
    always: bool,
    /// Acks to be proven
    #[arg(long, default_value_t = 10_000)]
    acks: u64,
    #[arg(long, default_value_t = 4)]
    publishers: u32,
    #[arg(long, default_value_t = 16)]
    in_flight: usize,
    /// Where the data folder and the trace are made
    #[arg(long, value_name = "DIR")]
    data_root: Option<PathBuf>,
    /// Keeps the trace here
    #[arg(long, value_name = "FILE")]
    keep: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("beamlog-trace: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let root = arguments.data_root.clone().unwrap_or_else(std::env::temp_dir);
    let folder = tempfile::Builder::new().prefix("beamlog-trace-").tempdir_in(root)?;
    let beside = std::env::current_exe()?.with_file_name("beamlog");
    let programs = Programs {
        beamlog: arguments.beamlog.clone().unwrap_or(beside),
        nats_server: arguments.nats_server.clone().unwrap_or_default(),
        environment: Vec::new(),
    };
    let contender = match (&arguments.nats_server, arguments.always) {
        (None, _) => Contender::Beamlog,
        (Some(_), false) => Contender::NatsDefault,
        (Some(_), true) => Contender::NatsAlways,
    };
    programs.check(contender)?;
    let (data, path) = (folder.path().join("data"), folder.path().join("trace"));

    let server = Server::start_traced(&programs, contender, &data, &path)?;
    let shape = Shape { streams: 2, publishers: arguments.publishers, message_bytes: 128 };
    let ledger = Ledger::open(&folder.path().join("ledger"), shape)?;
    let load = Load {
        in_flight: arguments.in_flight,
        consume: false,
        duration: Duration::from_secs(240),
        messages_max: arguments.acks.div_ceil(u64::from(arguments.publishers)),
    };
    let loaded = ledger::load(server.address(), &ledger, load, &AtomicBool::new(false))?;
    server.stop();

    let text = finished(&path)?;
    if let Some(keep) = &arguments.keep {
        std::fs::copy(&path, keep)?;
    }
    let calls = trace::parse(&text)?;
    let proof = trace::judge(&calls, &data.canonicalize()?);
    println!("{}", serde_json::to_string_pretty(&proof)?);
    let allowed = allowed_bytes(&proof, &ledger, loaded.acked);
    println!(
        "{}: {} acks read by clients, {} acks on sockets, {} unproven; {} frames, {} syncs, {} bytes for messages (at most {allowed})",
        contender.name(),
        loaded.acked,
        proof.acks,
        proof.unproven,
        proof.frames,
        proof.syncs,
        proof.frame_bytes
    );
    let written_once = proof.frame_bytes <= allowed;
    if !written_once {
        println!("more was written than the messages and their headers");
    }
    Ok(if proof.holds(arguments.acks) && written_once { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One write of every message: its subject, header block and payload, the headers of records and frames,
/// and 5 %.
fn allowed_bytes(proof: &trace::Proof, ledger: &Ledger, acked: u64) -> u64 {
    let shape = ledger.shape();
    let payload = shape.message_bytes as u64;
    let subject = "ledger.0.00".len() as u64;
    let headers = "NATS/1.0\r\nNats-Msg-Id: p00-000000\r\n\r\n".len() as u64;
    let messages = acked * (payload + subject + headers);
    messages * 105 / 100 + acked * RECORD_HEADER_BYTES + proof.frames * FRAME_HEADER_BYTES
}

/// The trace, once strace has written its end.
fn finished(path: &std::path::Path) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let start = Instant::now();
    loop {
        let text = std::fs::read(path)?;
        let last = text.trim_ascii_end().rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
        if memchr::memmem::find(last, b"+++ exited with").is_some()
            || memchr::memmem::find(last, b"+++ killed by").is_some()
        {
            return Ok(text);
        }
        if start.elapsed() > Duration::from_secs(30) {
            return Err("strace did not finish its trace".into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
