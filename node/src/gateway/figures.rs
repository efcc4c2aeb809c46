//! What the gateway counts, and its health.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use beamlog_router::Timestamp;
use beamlog_router::timestamp::rfc3339;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as Labelled;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use serde_json::json;

use super::limits::Family;
use super::problem::json_response;
use super::server::Shell;

/// Durations of the newest requests, for the percentiles of `/_metrics`.
const LATENCIES_MAX: usize = 256;

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Request {
    method: String,
    /// The route, not the path: as many as there are routes.
    path: String,
    status: u16,
}

#[derive(Default)]
struct Newest {
    requests: u64,
    errors: u64,
    latencies_millis: VecDeque<u64>,
    checked: u64,
    exceeded: [u64; 3],
}

pub(super) struct Figures {
    started: Instant,
    registry: Registry,
    requests: Labelled<Request, Counter>,
    seconds: Histogram,
    allowed: Counter,
    hits: Counter,
    newest: Mutex<Newest>,
}

impl Figures {
    pub(super) fn new() -> Self {
        let mut registry = Registry::default();
        let requests = Labelled::default();
        let seconds = Histogram::new(exponential_buckets(0.001, 2.0, 14));
        let (allowed, hits) = (Counter::default(), Counter::default());
        registry.register("gateway_http_requests", "Requests by method, route and status", requests.clone());
        registry.register("gateway_http_request_duration_seconds", "Durations of requests", seconds.clone());
        registry.register("gateway_rate_limit_allowed", "Requests below their limit", allowed.clone());
        registry.register("gateway_rate_limit_hits", "Requests over their limit", hits.clone());
        Self { started: Instant::now(), registry, requests, seconds, allowed, hits, newest: Mutex::default() }
    }

    pub(super) fn count(&self, method: &str, route: &str, status: StatusCode, took: Duration) {
        let labels = Request { method: method.to_owned(), path: route.to_owned(), status: status.as_u16() };
        self.requests.get_or_create(&labels).inc();
        self.seconds.observe(took.as_secs_f64());
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        newest.requests += 1;
        newest.errors += u64::from(status.as_u16() >= 400);
        if newest.latencies_millis.len() == LATENCIES_MAX {
            newest.latencies_millis.pop_front();
        }
        newest.latencies_millis.push_back(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
    }

    pub(super) fn limited(&self, family: Family, exceeded: bool) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        newest.checked += 1;
        if !exceeded {
            self.allowed.inc();
            return;
        }
        self.hits.inc();
        match family {
            Family::Decide => newest.exceeded[0] += 1,
            Family::Messages => newest.exceeded[1] += 1,
            Family::Registry => newest.exceeded[2] += 1,
            Family::Other => {}
        }
    }
}

/// `GET /health`, `GET /_health`.
pub(super) async fn health() -> Response {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = rfc3339(Timestamp(u64::try_from(since.as_nanos()).unwrap_or_default()));
    json_response(StatusCode::OK, json!({"status": "healthy", "timestamp": now}).to_string())
}

/// `GET /metrics`.
pub(super) async fn metrics(State(shell): State<Arc<Shell>>) -> Response {
    let mut text = String::new();
    encode(&mut text, &shell.figures.registry).expect("a String takes everything");
    ([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response()
}

/// `GET /_metrics`.
pub(super) async fn metrics_json(State(shell): State<Arc<Shell>>) -> Response {
    let uptime = shell.figures.started.elapsed().as_secs_f64().max(1.0);
    let newest = shell.figures.newest.lock().unwrap_or_else(PoisonError::into_inner);
    let mut sorted: Vec<u64> = newest.latencies_millis.iter().copied().collect();
    sorted.sort_unstable();
    let percentile = |percent: usize| match sorted.len() {
        0 => json!(-1),
        count => json!(sorted[percent * (count - 1) / 100]),
    };
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let [decide, messages, registry] = newest.exceeded;
    let (rps, error_rate) =
        (newest.requests as f64 / uptime, newest.errors as f64 / newest.requests.max(1) as f64);
    let body = json!({
        "rps": rps,
        "latency": {"p50": percentile(50), "p95": percentile(95)},
        "error_rate": error_rate,
        "rate_limit": {
            "total_hits": newest.checked,
            "total_exceeded": decide + messages + registry,
            "exceeded_by_endpoint":
                {"routes_decide": decide, "messages": messages, "registry_blocks": registry},
        },
        // There is no connection that could be lost.
        "nats": "connected",
        "ts": since.as_secs(),
    });
    json_response(StatusCode::OK, body.to_string())
}
