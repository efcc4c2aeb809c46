//! `serve`: a node in the foreground, until a signal drains it.

use std::io;
use std::path::PathBuf;

use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info};

use crate::cli::configuration::{gather, resolve};
use crate::cli::exit::{Code, Failure, err_chain};
use crate::cli::output::raw;
use crate::config::{NodeConfig, NodeOptions};
use crate::logging;
use crate::node::Node;
use crate::witness::{WitnessNode, WitnessStartError};

/// What `serve` and `config` read their configuration from.
#[derive(Debug, clap::Args)]
pub(crate) struct ConfigArguments {
    /// Configuration file in TOML; BEAMLOG_CONFIG names one too.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) flags: NodeConfig,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  beamlog serve
  beamlog serve --listen 127.0.0.1:0 --admin off --announce
  beamlog serve --config node.toml --log-format json
  beamlog serve --listen 0.0.0.0:4222 --auth-token-file token

SIGTERM and SIGINT drain: clients are told, what was taken in is finished, the log is sealed. A second
signal ends the process at once; nothing that was acked is lost by that.
Every key and its bounds: docs/reference/config.md.")]
pub(crate) struct ServeArguments {
    #[command(flatten)]
    pub(crate) config: ConfigArguments,
    /// When ready, print one JSON line with the real addresses and the process id on stdout.
    #[arg(long)]
    pub(crate) announce: bool,
}

pub(crate) fn serve(arguments: ServeArguments) -> Result<(), Failure> {
    let layers = gather(arguments.config)?;
    let options = resolve(&layers)?;
    logging::start(options.log_format, options.log_level)
        .map_err(|e| Failure::cannot_start(format!("starting the log: {e}")))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("beamlog-io")
        .build()
        .map_err(|e| Failure::cannot_start(format!("starting: {e}")))?;
    runtime.block_on(run(options, arguments.announce))
}

async fn run(options: NodeOptions, announce: bool) -> Result<(), Failure> {
    let cannot_listen = |e: io::Error| Failure::cannot_start(format!("listening for signals: {e}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot_listen)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot_listen)?;
    if options.witness {
        let failure =
            |e: &WitnessStartError| Failure::cannot_start(format!("{}; {}", err_chain(e), e.remedy()));
        let witness = WitnessNode::start(&options).await.map_err(|e| failure(&e))?;
        if announce {
            let line = json!({
                "witness": true,
                "admin": witness.admin_address().map(|address| address.to_string()),
                "pid": std::process::id(),
            });
            raw(format!("{line}\n").as_bytes())?;
        }
        let failed = tokio::select! {
            _ = terminate.recv() => None,
            _ = interrupt.recv() => None,
            reason = witness.failed() => Some(reason),
        };
        if let Some(reason) = failed {
            error!(reason, "this witness has failed: stopping");
            return Err(Failure::failed(format!("this witness cannot vote any more: {reason}")));
        }
        witness.stop().await;
        return Ok(());
    }
    let started = tokio::select! {
        started = Node::start(options) => started,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let node = started.map_err(|e| Failure::cannot_start(format!("{}; {}", err_chain(&e), e.remedy())))?;
    if announce {
        let line = json!({
            "listen": node.listen_address().to_string(),
            "gateway": node.gateway_address().map(|address| address.to_string()),
            "grpc": node.grpc_address().map(|address| address.to_string()),
            "admin": node.admin_address().map(|address| address.to_string()),
            "edges": node.edge_address().map(|address| address.to_string()),
            "pid": std::process::id(),
        });
        raw(format!("{line}\n").as_bytes())?;
    }
    let failure = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        reason = node.failed() => Some(reason),
    };
    if let Some(reason) = failure {
        // Not drained: what clients would still be told could not be kept.
        error!(reason, "the log has failed: stopping");
        return Err(Failure::failed(format!(
            "the log has failed and nothing more can be stored: {reason}; check the disk, then start again"
        )));
    }
    info!("stopping; a second signal ends the process at once");
    tokio::select! {
        stopped = node.stop() => stopped.map_err(|e| Failure::failed(format!("sealing the log: {}", err_chain(&e)))),
        _ = terminate.recv() => Err(at_once()),
        _ = interrupt.recv() => Err(at_once()),
    }
}

fn at_once() -> Failure {
    Failure { code: Code::Interrupted, message: "stopped at once by a second signal".to_owned() }
}
