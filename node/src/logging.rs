//! Log lines: text for people, JSON lines for machines, on stderr.

use std::io;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, fmt};

use crate::config::{LogFormat, LogLevel};

/// Starts logging for this process; once.
///
/// # Errors
/// The process logs already.
pub fn start(format: LogFormat, level: LogLevel) -> Result<(), TryInitError> {
    let ours = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    // Other people's crates are heard when something is wrong.
    let targets = Targets::new().with_target("beamlog", ours).with_default(ours.min(LevelFilter::WARN));
    let layer = match format {
        LogFormat::Text => fmt::layer().with_writer(io::stderr).with_ansi(false).boxed(),
        LogFormat::Json => fmt::layer().json().flatten_event(true).with_writer(io::stderr).boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(targets)).try_init()
}
