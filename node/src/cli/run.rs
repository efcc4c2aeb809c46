//! From the arguments of the process to its exit code.

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use serde_json::json;

use crate::cli::arguments::{Arguments, Command};
use crate::cli::exit::{Code, Failure};
use crate::cli::output::{Output, columns};
use crate::cli::{
    bench, cert, cluster, completion, configuration, consumer, kv, link, messages, serve, store, stream, task,
};

/// Runs the command line of this process.
#[must_use]
pub fn run() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return usage(&error),
    };
    match execute(arguments) {
        Ok(()) => ExitCode::from(Code::Done as u8),
        Err(failure) => {
            if !failure.message.is_empty() {
                eprintln!("beamlog: {failure}");
            }
            ExitCode::from(failure.code as u8)
        }
    }
}

/// Help and version go to stdout and are not errors; wrong usage is exit code 2.
fn usage(error: &clap::Error) -> ExitCode {
    // The reader of a pipe may have gone; there is nobody left to tell.
    drop(error.print());
    let asked_for = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    ExitCode::from(if asked_for { Code::Done } else { Code::CannotStart } as u8)
}

fn execute(arguments: Arguments) -> Result<(), Failure> {
    let output = Output::new(arguments.output);
    match arguments.command {
        Command::Serve(arguments) => serve::serve(*arguments),
        Command::Pub(arguments) => client(messages::publish(arguments, output)),
        Command::Sub(arguments) => client(messages::sub(arguments, output)),
        Command::Request(arguments) => client(messages::request(arguments, output)),
        Command::Reply(arguments) => client(messages::reply(arguments, output)),
        Command::Stream(arguments) => client(stream::stream(*arguments, output)),
        Command::Consumer(arguments) => client(consumer::consumer(arguments, output)),
        Command::Kv(arguments) => client(kv::kv(arguments, output)),
        Command::Link(arguments) => client(link::link(*arguments, output)),
        Command::Cluster(arguments) => client(cluster::cluster(*arguments, output)),
        Command::Cert(command) => cert::cert(command, output),
        Command::Task(arguments) => client(task::task(arguments, output)),
        Command::Dlq(arguments) => client(task::dlq(arguments, output)),
        Command::Policy(arguments) => client(task::policy(arguments, output)),
        Command::Store(command) => store::store(command, output),
        Command::Config(command) => configuration::config(command, output),
        Command::Bench(arguments) => client(bench::bench(arguments, output)),
        Command::Version => version(output),
        Command::Completion { shell } => completion::completion(shell),
    }
}

/// A command that speaks to a server needs one thread and no more.
fn client(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::failed(format!("starting: {e}")))?
        .block_on(command)
}

fn version(output: Output) -> Result<(), Failure> {
    let value = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "store_format": beamlog_log::STORE_FORMAT,
    });
    output.value(&value, |value| {
        let rows: Vec<Vec<String>> = value
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, version)| vec![name.clone(), crate::cli::output::cell(version)])
            .collect();
        columns(&["what", "version"], &rows)
    })
}
