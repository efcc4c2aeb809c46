//! `serve`: a node in the foreground, until a signal drains it.

use std::path::PathBuf;

use crate::config::NodeConfig;

/// What `serve` and `config` read their configuration from.
#[derive(Debug, clap::Args)]
pub(crate) struct ConfigArguments {
    /// Configuration file in TOML; BEAMLOG_CONFIG names one too.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) flags: NodeConfig,
}
