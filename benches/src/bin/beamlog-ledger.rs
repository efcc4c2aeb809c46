//! `beamlog-ledger`: loads a server while writing down what it promises, and audits it afterwards.
//!
//! For crash and power-cut tests: the ledger must lie outside of what is cut.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use beamlog_bench::client::Connection;
use beamlog_bench::ledger::{self, Ledger, LedgerError, Load, Shape};
use clap::{Args, Parser, Subcommand};

/// Loads a NATS server and writes every ack that was read into a ledger, or audits a server against one.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Publishes and consumes until the time is over or the server is gone; exit code 0 in both cases
    Load {
        #[command(flatten)]
        target: Target,
        /// Unacked messages of each publisher
        #[arg(long, default_value_t = 16)]
        in_flight: usize,
        #[arg(long, default_value_t = 3600.0)]
        seconds: f64,
        /// Messages of each publisher at most
        #[arg(long, default_value_t = u64::MAX)]
        messages: u64,
        /// Runs no consumers
        #[arg(long)]
        no_consumers: bool,
    },
    /// Reads the server's streams and consumers; exit code 1 when a promise is broken
    Verify {
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Args, Debug)]
struct Target {
    /// nats://host:port, with an address as host
    #[arg(long, default_value = "nats://127.0.0.1:4222")]
    url: String,
    #[arg(long, value_name = "FILE")]
    ledger: PathBuf,
    #[arg(long, default_value_t = 3)]
    streams: u32,
    #[arg(long, default_value_t = 6)]
    publishers: u32,
    #[arg(long, default_value_t = 128)]
    message_bytes: usize,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            let mut text = error.to_string();
            let mut source = std::error::Error::source(&*error);
            while let Some(cause) = source {
                text = format!("{text}: {cause}");
                source = cause.source();
            }
            eprintln!("beamlog-ledger: {text}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode, Box<dyn std::error::Error>> {
    match arguments.command {
        Command::Load { target, in_flight, seconds, messages, no_consumers } => {
            let (address, ledger) = target.open()?;
            let load = Load {
                in_flight,
                consume: !no_consumers,
                duration: Duration::from_secs_f64(seconds),
                messages_max: messages,
            };
            let loaded = ledger::load(address, &ledger, load, &AtomicBool::new(false))?;
            println!(
                "acked {} confirmed {} refused {} connections_lost {}",
                loaded.acked, loaded.confirmed, loaded.refused, loaded.connections_lost
            );
            Ok(ExitCode::SUCCESS)
        }
        Command::Verify { target } => {
            let (address, ledger) = target.open()?;
            let verdict = ledger::audit(&mut Connection::open(address)?, &ledger, &|_stream| 1)?;
            println!("{}", serde_json::to_string_pretty(&verdict)?);
            Ok(if verdict.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}

impl Target {
    fn open(&self) -> Result<(SocketAddr, Ledger), Box<dyn std::error::Error>> {
        let host = self.url.strip_prefix("nats://").unwrap_or(&self.url);
        let address: SocketAddr =
            host.parse().map_err(|_malformed| format!("{} is no nats://ADDRESS:PORT", self.url))?;
        if self.streams == 0 || self.publishers == 0 || self.message_bytes < 48 {
            return Err("at least 1 stream, 1 publisher and 48 bytes a message".into());
        }
        let shape =
            Shape { streams: self.streams, publishers: self.publishers, message_bytes: self.message_bytes };
        let ledger = Ledger::open(&self.ledger, shape).map_err(|error: LedgerError| Box::new(error))?;
        Ok((address, ledger))
    }
}
