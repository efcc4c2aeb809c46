//! Log lines: text for people, JSON lines for machines, on stderr. A JSON line begins with `component`: `router` (tasks
//! and the log they are in), `gateway`, or `node`, as BeamLine's collectors look for it.

use std::io;

use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{Format, Json, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
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
        LogFormat::Json => json_layer(io::stderr).boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(targets)).try_init()
}

fn json_layer<S, W>(writer: W) -> impl Layer<S>
where
    S: Subscriber + for<'lookup> LookupSpan<'lookup>,
    W: for<'writer> fmt::MakeWriter<'writer> + Send + Sync + 'static,
{
    fmt::layer()
        .json()
        .event_format(WithComponent(fmt::format().json().flatten_event(true)))
        .with_writer(writer)
}

/// The usual JSON, with its component before the rest.
struct WithComponent(Format<Json>);

impl<S, N> FormatEvent<S, N> for WithComponent
where
    S: Subscriber + for<'lookup> LookupSpan<'lookup>,
    N: for<'writer> FormatFields<'writer> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        let mut line = String::new();
        self.0.format_event(context, Writer::new(&mut line), event)?;
        let rest = line.strip_prefix('{').unwrap_or(&line);
        write!(writer, "{{\"component\":\"{}\",{rest}", component(event.metadata().target()))
    }
}

fn component(target: &str) -> &'static str {
    if target.starts_with("beamlog_tasks") || target.starts_with("beamlog_router") {
        "router"
    } else if target.starts_with("beamlog::gateway") {
        "gateway"
    } else {
        "node"
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::Value;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_json_line_has_the_fields_of_the_contract() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::registry().with(json_layer(move || writer.clone()));
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(target: "beamlog_tasks::service", tenant_id = "acme", "it \"happens\"");
            tracing::info!(target: "beamlog::gateway::server", "ready");
            tracing::info!(target: "beamlog::node", "ready");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let components: Vec<&Value> = lines.iter().map(|line| &line["component"]).collect();
        assert_eq!(components, ["router", "gateway", "node"]);
        assert_eq!((&lines[0]["level"], &lines[0]["tenant_id"]), (&"WARN".into(), &"acme".into()));
        assert_eq!(lines[0]["message"], "it \"happens\"");
        let at = lines[0]["timestamp"].as_str().unwrap();
        assert!(at.ends_with('Z') && at.len() == "2026-01-01T00:00:00.000000Z".len(), "{at}");
    }
}
