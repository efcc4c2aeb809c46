//! Export of spans: batches of them, to a collector, as OTLP over HTTP in protocol buffers. Off unless an endpoint is
//! configured. What a collector does not take in time is dropped and counted: traces never slow decisions.
//!
//! The protocol's part that is needed is one message over one POST: it is written here and in `beamlog_tasks::otlp`
//! (docs/adr/0022).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use beamlog_tasks::otlp;
use beamlog_tasks::service::SpanSink;
use beamlog_tasks::trace::Span;
use thiserror::Error;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{Receiver, channel};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

/// Groups of spans that wait: one for each batch of tasks.
const WAITING_MAX: usize = 1_024;
/// Spans of one request.
const BATCH_MAX: usize = 2_048;
/// How long a request gathers.
const GATHER: Duration = Duration::from_millis(500);
/// How long a collector may take.
const PATIENCE: Duration = Duration::from_secs(5);
const ATTEMPTS: u32 = 3;
const PATH: &str = "/v1/traces";

/// Where a collector is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Endpoint {
    /// `host:port`.
    authority: String,
    path: String,
}

impl Endpoint {
    /// `http://host:port`, with a path if it is not the usual one. A collector beside the node needs no TLS, and
    /// takes spans on from there.
    #[must_use]
    pub fn parse(url: &str) -> Option<Self> {
        let rest = url.strip_prefix("http://")?;
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (host, port) = authority.rsplit_once(':')?;
        let is_plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if host.is_empty() || port.parse::<u16>().is_err() || !is_plain(rest) {
            return None;
        }
        let path = if path.len() <= 1 { PATH } else { path };
        Some(Self { authority: authority.to_owned(), path: path.to_owned() })
    }
}

/// What became of spans.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    exported: AtomicU64,
    dropped: AtomicU64,
}

impl Counts {
    pub(crate) fn exported(&self) -> u64 {
        self.exported.load(Ordering::Relaxed)
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// A running exporter.
#[derive(Debug)]
pub(crate) struct Exporter {
    counts: Arc<Counts>,
    task: JoinHandle<()>,
}

impl Drop for Exporter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug, Error)]
enum ExportError {
    #[error("the collector is not reached")]
    Io(#[from] std::io::Error),
    #[error("the collector did not answer within {PATIENCE:?}")]
    Late,
    #[error("the collector answered {0:?}")]
    Status(String),
}

impl ExportError {
    fn is_retryable(&self) -> bool {
        match self {
            Self::Io(_) | Self::Late => true,
            Self::Status(line) => ["429", "502", "503", "504"].iter().any(|code| line.contains(code)),
        }
    }
}

impl Exporter {
    /// Within a tokio runtime. The sink is for [`beamlog_tasks::service::ServiceOptions`].
    pub(crate) fn start(endpoint: Endpoint, node: String) -> (Self, SpanSink) {
        let (sender, receiver) = channel::<Vec<Span>>(WAITING_MAX);
        let counts = Arc::new(Counts::default());
        let counted = Arc::clone(&counts);
        let sink = SpanSink(Arc::new(move |spans| {
            let count = spans.len() as u64;
            if sender.try_send(spans).is_err() {
                counted.dropped.fetch_add(count, Ordering::Relaxed);
            }
        }));
        let task = tokio::spawn(run(endpoint, node, receiver, Arc::clone(&counts)));
        (Self { counts, task }, sink)
    }

    pub(crate) fn counts(&self) -> &Arc<Counts> {
        &self.counts
    }
}

async fn run(endpoint: Endpoint, node: String, mut waiting: Receiver<Vec<Span>>, counts: Arc<Counts>) {
    let mut told = String::new();
    while let Some(mut spans) = waiting.recv().await {
        let gathering = async {
            while spans.len() < BATCH_MAX
                && let Some(more) = waiting.recv().await
            {
                spans.extend(more);
            }
        };
        // What was gathered stays: a receiver that is not done took nothing.
        drop(timeout(GATHER, gathering).await);
        let resource = [
            ("service.name", "beamlog"),
            ("service.version", env!("CARGO_PKG_VERSION")),
            ("service.instance.id", node.as_str()),
        ];
        let body = otlp::request(&spans, &resource);
        let count = spans.len() as u64;
        match export(&endpoint, &body).await {
            Ok(()) => {
                counts.exported.fetch_add(count, Ordering::Relaxed);
                if !std::mem::take(&mut told).is_empty() {
                    info!("spans are exported again");
                }
            }
            Err(error) => {
                counts.dropped.fetch_add(count, Ordering::Relaxed);
                let problem = error.to_string();
                if problem != told {
                    warn!(err = problem, "spans are not exported");
                    told = problem;
                }
            }
        }
    }
}

async fn export(endpoint: &Endpoint, body: &[u8]) -> Result<(), ExportError> {
    let mut attempt = 1;
    loop {
        let error = match timeout(PATIENCE, post(endpoint, body)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error,
            Err(_elapsed) => ExportError::Late,
        };
        if attempt >= ATTEMPTS || !error.is_retryable() {
            return Err(error);
        }
        sleep(Duration::from_millis(200) * 4_u32.pow(attempt)).await;
        attempt += 1;
    }
}

async fn post(Endpoint { authority, path }: &Endpoint, body: &[u8]) -> Result<(), ExportError> {
    let mut stream = TcpStream::connect(authority).await?;
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: {authority}\r\nContent-Type: application/x-protobuf\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body).await?;
    let mut line = Vec::new();
    // The status line is all that is looked at; a collector that sends no end of it is cut off.
    let mut reader = tokio::io::AsyncReadExt::take(BufReader::new(stream), 1_024);
    reader.read_until(b'\n', &mut line).await?;
    let line = String::from_utf8_lossy(&line).trim().to_owned();
    if line.split(' ').nth(1).is_some_and(|code| code.starts_with('2')) {
        Ok(())
    } else {
        Err(ExportError::Status(line.chars().take(64).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_host_and_a_port() {
        let endpoint = |url| Endpoint::parse(url).map(|found| (found.authority, found.path));
        let found = |authority: &str, path: &str| Some((authority.to_owned(), path.to_owned()));
        assert_eq!(endpoint("http://127.0.0.1:4318"), found("127.0.0.1:4318", "/v1/traces"));
        assert_eq!(endpoint("http://[::1]:4318/"), found("[::1]:4318", "/v1/traces"));
        assert_eq!(endpoint("http://collector:4318/other"), found("collector:4318", "/other"));
        for wrong in
            ["", "collector:4318", "https://c:4318", "http://c", "http://:1", "http://c:x", "http://a b:1"]
        {
            assert_eq!(endpoint(wrong), None, "{wrong}");
        }
    }
}
