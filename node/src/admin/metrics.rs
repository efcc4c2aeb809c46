//! `/metrics`: one table of figures, read when asked; `docs/reference/metrics.md` is made from it.
//! No labels that clients can choose.

use std::fmt::{self, Write};
use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use beamlog_nats::ServerStats;
use beamlog_nats::jetstream::ApiStats;
use beamlog_nats::link::status::{LinkState, LinkStatus, RuleFigures};
use beamlog_router::{Health, Router, RouterStats};
use beamlog_tasks::service::TasksStats;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::admin::certificates;
use crate::admin::monitor::Monitor;
use crate::admin::process;
use crate::cluster::Served;

/// The label of what a member of a cluster holds alone.
const HELD_SHARD: &str = "local";

/// Everything a scrape looks at.
#[derive(Debug)]
struct Figures {
    shard: ShardFigures,
    /// Of the others that this member of a cluster takes part in, by their label.
    others: Vec<(String, ShardFigures)>,
    moving: usize,
    server: ServerStats,
    api: ApiStats,
    tasks: TasksStats,
    tasks_here: bool,
    tasks_degraded: usize,
    spans: (u64, u64),
    draining: bool,
    resident_bytes: u64,
    processor_seconds: f64,
    open_files: u64,
    uptime_seconds: f64,
    links: Vec<LinkStatus>,
    certificate_seconds: f64,
    edges: usize,
    edges_refused: u64,
}

/// What a scrape looks at in one shard.
#[derive(Debug)]
struct ShardFigures {
    router: RouterStats,
    health: Health,
    missing_segments: usize,
    damaged: usize,
}

impl ShardFigures {
    fn of(router: &Router) -> Self {
        let recovery = router.recovery();
        Self {
            router: router.stats(),
            health: router.health(),
            missing_segments: recovery.missing.len(),
            damaged: recovery.damaged.len(),
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Counter,
    Gauge,
}

impl Kind {
    const fn of_metric(self) -> MetricType {
        match self {
            Self::Counter => MetricType::Counter,
            Self::Gauge => MetricType::Gauge,
        }
    }

    fn encode(self, value: f64, out: MetricEncoder<'_>) -> fmt::Result {
        match self {
            Self::Counter => ConstCounter::new(value).encode(out),
            Self::Gauge => ConstGauge::new(value).encode(out),
        }
    }

    /// How its name ends in a scrape, and what it is called.
    const fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Counter => ("_total", "counter"),
            Self::Gauge => ("", "gauge"),
        }
    }
}

/// One metric. A counter's name in a scrape ends in `_total`.
struct Metric {
    name: &'static str,
    kind: Kind,
    text: &'static str,
    read: Read,
}

/// What it is a figure of.
enum Read {
    Node(fn(&Figures) -> f64),
    Shard(fn(&ShardFigures) -> f64),
}

const fn counter(name: &'static str, text: &'static str, read: fn(&Figures) -> f64) -> Metric {
    Metric { name, kind: Kind::Counter, text, read: Read::Node(read) }
}

const fn gauge(name: &'static str, text: &'static str, read: fn(&Figures) -> f64) -> Metric {
    Metric { name, kind: Kind::Gauge, text, read: Read::Node(read) }
}

const fn shard_counter(name: &'static str, text: &'static str, read: fn(&ShardFigures) -> f64) -> Metric {
    Metric { name, kind: Kind::Counter, text, read: Read::Shard(read) }
}

const fn shard_gauge(name: &'static str, text: &'static str, read: fn(&ShardFigures) -> f64) -> Metric {
    Metric { name, kind: Kind::Gauge, text, read: Read::Shard(read) }
}

/// Figures are exact below 2^53; beyond, a float keeps the leading digits.
#[expect(clippy::cast_precision_loss, reason = "Prometheus knows floats only")]
const fn float(value: u64) -> f64 {
    value as f64
}

const fn truth(value: bool) -> f64 {
    if value { 1.0 } else { 0.0 }
}

static METRICS: &[Metric] = &[
    shard_counter("beamlog_log_syncs", "Group commits: one frame written and synced each", |f| {
        float(f.router.commits)
    }),
    shard_counter("beamlog_log_sync_seconds", "Time spent in syncs", |f| float(f.router.sync_nanos) / 1e9),
    shard_gauge("beamlog_log_last_index", "Index of the last entry appended", |f| {
        float(f.router.last_index.0)
    }),
    shard_gauge("beamlog_log_durable_index", "Index of the last entry synced", |f| {
        float(f.router.durable_index.0)
    }),
    shard_gauge("beamlog_log_checkpoint_index", "Index of the last checkpoint of derived state", |f| {
        float(f.router.checkpoint_index.0)
    }),
    shard_gauge("beamlog_log_segments", "Files of the log", |f| float(f.router.segments)),
    shard_gauge("beamlog_log_bytes", "Size of the log on disk", |f| float(f.router.log_bytes)),
    shard_counter("beamlog_log_corrupt_reads", "Reads that met bytes which cannot be trusted", |f| {
        float(f.router.unreadable)
    }),
    shard_counter(
        "beamlog_log_scrubbed_bytes",
        "Bytes of the log that were read again in search of damage",
        |f| float(f.router.scrubbed_bytes),
    ),
    shard_counter(
        "beamlog_log_scrub_passes",
        "How often all sealed segments were read in search of damage",
        |f| float(f.router.scrub_passes),
    ),
    shard_counter("beamlog_log_scrub_damage", "Segments in which that search found damage", |f| {
        float(f.router.scrub_damage)
    }),
    shard_gauge("beamlog_log_damaged_places", "Damage that recovery found and fenced", |f| {
        float(f.damaged as u64)
    }),
    shard_gauge("beamlog_log_missing_segments", "Segments that should be there and are not", |f| {
        float(f.missing_segments as u64)
    }),
    shard_gauge("beamlog_log_failed", "1 once a write or sync has failed: nothing more is stored", |f| {
        truth(matches!(f.health, Health::LogFailed { .. }))
    }),
    shard_gauge("beamlog_log_full", "1 while the disk is full and publishes are refused", |f| {
        truth(f.health == Health::InsufficientStorage)
    }),
    shard_counter("beamlog_router_stored_messages", "Publishes that were stored", |f| {
        float(f.router.stored_messages)
    }),
    shard_counter("beamlog_router_stored_bytes", "Bytes of publishes that were stored", |f| {
        float(f.router.stored_bytes)
    }),
    shard_counter("beamlog_router_duplicates", "Publishes whose message id was in the window", |f| {
        float(f.router.duplicates)
    }),
    shard_counter(
        "beamlog_router_message_ids_reused",
        "Publishes refused: their id belonged to another message",
        |f| float(f.router.message_ids_reused),
    ),
    shard_counter(
        "beamlog_router_refused_publishes",
        "Publishes to a stream that were refused otherwise",
        |f| float(f.router.refused_publishes),
    ),
    shard_counter("beamlog_router_requests", "API requests that the engine answered", |f| {
        float(f.router.requests)
    }),
    shard_counter("beamlog_router_acks", "Acks of consumers", |f| float(f.router.acks)),
    shard_counter("beamlog_router_deliveries", "Messages delivered by consumers", |f| {
        float(f.router.deliveries)
    }),
    shard_counter("beamlog_router_redeliveries", "Of those, delivered again", |f| {
        float(f.router.redeliveries)
    }),
    shard_gauge("beamlog_router_streams", "Streams", |f| float(f.router.streams)),
    shard_gauge("beamlog_router_consumers", "Consumers", |f| float(f.router.consumers)),
    shard_gauge("beamlog_router_messages", "Messages kept in streams", |f| float(f.router.messages)),
    shard_gauge("beamlog_router_message_bytes", "Bytes of the messages kept in streams", |f| {
        float(f.router.bytes)
    }),
    shard_gauge("beamlog_router_queued_commands", "Commands that wait for the driver", |f| {
        float(f.router.queued_commands)
    }),
    gauge("beamlog_cluster_moving_streams", "Streams on their way to another place in the cluster", |f| {
        float(f.moving as u64)
    }),
    gauge("beamlog_nats_sessions", "Connections of clients", |f| float(f.server.connections)),
    counter("beamlog_nats_sessions_opened", "Connections since the start", |f| {
        float(f.server.connections_total)
    }),
    counter("beamlog_nats_received_messages", "Messages from clients", |f| float(f.server.in_messages)),
    counter("beamlog_nats_received_bytes", "Bytes of messages from clients", |f| float(f.server.in_bytes)),
    counter("beamlog_nats_sent_messages", "Messages to clients", |f| float(f.server.out_messages)),
    counter("beamlog_nats_sent_bytes", "Bytes of messages to clients", |f| float(f.server.out_bytes)),
    counter("beamlog_nats_slow_consumers", "Connections closed because they read too slowly", |f| {
        float(f.server.slow_consumers)
    }),
    counter("beamlog_nats_session_panics", "Connections ended by a bug of ours", |f| float(f.server.panics)),
    gauge("beamlog_nats_subscriptions", "Subscriptions of clients", |f| float(f.server.subscriptions)),
    counter("beamlog_nats_api_requests", "Requests of the JetStream API", |f| float(f.api.requests)),
    counter("beamlog_nats_api_errors", "Of those, answered by an error", |f| float(f.api.errors)),
    counter("beamlog_tasks_requests", "Requests for decisions", |f| float(f.tasks.counters.requests)),
    counter("beamlog_tasks_decisions", "Decisions made, of all starts", |f| float(f.tasks.totals.decisions)),
    counter("beamlog_tasks_refused_invalid", "Requests refused at the door", |f| {
        float(f.tasks.counters.refused_invalid)
    }),
    counter("beamlog_tasks_refused_tenant", "Requests refused for what their tenant may do", |f| {
        float(f.tasks.counters.refused_tenant)
    }),
    counter("beamlog_tasks_refused_policy", "Requests without a usable policy", |f| {
        float(f.tasks.counters.refused_policy)
    }),
    counter("beamlog_tasks_refused_rate", "Requests above a rate limit", |f| {
        float(f.tasks.counters.refused_rate)
    }),
    counter("beamlog_tasks_refused_quota", "Requests above a quota", |f| {
        float(f.tasks.counters.refused_quota)
    }),
    counter("beamlog_tasks_refused_overload", "Requests refused because too much waits", |f| {
        float(f.tasks.counters.refused_overload)
    }),
    counter("beamlog_tasks_refused_unstored", "Requests refused because the log takes nothing", |f| {
        float(f.tasks.counters.refused_unstored)
    }),
    counter("beamlog_tasks_refused_full", "Messages that found no room", |f| float(f.tasks.refused_full)),
    counter("beamlog_tasks_refused_other", "Requests refused by extensions or without a provider", |f| {
        float(f.tasks.counters.refused_other)
    }),
    counter("beamlog_tasks_idempotent_hits", "Requests answered as before", |f| {
        float(f.tasks.counters.idempotent_hits)
    }),
    counter("beamlog_tasks_idempotent_misses", "Requests that were new", |f| {
        float(f.tasks.counters.idempotent_misses)
    }),
    counter("beamlog_tasks_sticky_hits", "Decisions that a session's provider made", |f| {
        float(f.tasks.counters.sticky_hits)
    }),
    counter("beamlog_tasks_sticky_misses", "Decisions of sessions without one", |f| {
        float(f.tasks.counters.sticky_misses)
    }),
    counter("beamlog_tasks_created", "Tasks created, of all starts", |f| float(f.tasks.totals.tasks)),
    counter("beamlog_tasks_dispatched", "Assignments given to workers, of all starts", |f| {
        float(f.tasks.totals.dispatched)
    }),
    counter("beamlog_tasks_returned", "Assignments taken back, of all starts", |f| {
        float(f.tasks.totals.returned)
    }),
    counter(
        "beamlog_tasks_failed_attempts",
        "Executions that failed and were tried again, of all starts",
        |f| float(f.tasks.totals.failed),
    ),
    counter("beamlog_tasks_succeeded", "Tasks that succeeded, of all starts", |f| {
        float(f.tasks.totals.succeeded)
    }),
    counter("beamlog_tasks_ended_badly", "Tasks that ended in an error or a timeout, of all starts", |f| {
        float(f.tasks.totals.ended_badly)
    }),
    counter("beamlog_tasks_cancelled", "Tasks that were cancelled, of all starts", |f| {
        float(f.tasks.totals.cancelled)
    }),
    counter("beamlog_tasks_results", "Results of workers", |f| float(f.tasks.counters.results)),
    counter("beamlog_tasks_results_duplicate", "Of those, counted before", |f| {
        float(f.tasks.counters.results_duplicate)
    }),
    counter("beamlog_tasks_results_invalid", "Of those, not readable", |f| {
        float(f.tasks.counters.results_invalid)
    }),
    counter("beamlog_tasks_results_tenant_rejected", "Of those, of a tenant that may not", |f| {
        float(f.tasks.counters.results_tenant_rejected)
    }),
    counter("beamlog_tasks_heartbeats", "Heartbeats of workers", |f| float(f.tasks.counters.heartbeats)),
    counter("beamlog_tasks_ack_waits_over", "Assignments nothing was heard of in time", |f| {
        float(f.tasks.counters.ack_waits_over)
    }),
    counter("beamlog_tasks_workers_lost", "Assignments whose worker went", |f| {
        float(f.tasks.counters.workers_lost)
    }),
    counter("beamlog_tasks_extension_calls", "Requests to extensions", |f| {
        float(f.tasks.counters.extension_calls)
    }),
    counter("beamlog_tasks_extension_failures", "Of those, failed", |f| {
        float(f.tasks.counters.extension_failures)
    }),
    counter("beamlog_tasks_usage", "Usage records, of all starts", |f| float(f.tasks.totals.usage)),
    counter("beamlog_tasks_cost", "Cost of all tasks, of all starts", |f| f.tasks.totals.cost),
    counter("beamlog_tasks_run_seconds", "Time that workers took, of all starts", |f| {
        float(f.tasks.totals.run_millis) / 1e3
    }),
    counter("beamlog_tasks_queue_seconds", "Time that tasks waited for a worker, of all starts", |f| {
        float(f.tasks.totals.queued_millis) / 1e3
    }),
    counter("beamlog_tasks_shed", "Tasks given up to make room", |f| float(f.tasks.counters.shed)),
    counter("beamlog_tasks_blocks", "Tenants blocked for a while", |f| float(f.tasks.counters.blocks)),
    gauge("beamlog_tasks_queued", "Tasks that wait for a worker", |f| float(f.tasks.queued)),
    gauge("beamlog_tasks_assigned", "Tasks that a worker has", |f| float(f.tasks.assigned)),
    gauge("beamlog_tasks_dead_letters", "Dead letters kept", |f| float(f.tasks.dead_letters)),
    gauge("beamlog_tasks_remembered_decisions", "Decisions kept for the same request", |f| {
        float(f.tasks.decisions)
    }),
    gauge("beamlog_tasks_workers", "Connections with a subscription to assignments", |f| {
        float(f.tasks.workers)
    }),
    gauge("beamlog_tasks_usage_waiting", "Usage records on their way into their stream", |f| {
        float(f.tasks.usage_waiting)
    }),
    gauge("beamlog_tasks_payload_bytes", "Bytes of payloads kept", |f| float(f.tasks.payload_bytes)),
    gauge("beamlog_tasks_breakers_open", "Circuit breakers that are open", |f| float(f.tasks.breakers_open)),
    gauge(
        "beamlog_tasks_extensions_open",
        "Extensions that failed too often and rest, or are tried again",
        |f| float(f.tasks.extensions_open),
    ),
    gauge("beamlog_tasks_degraded", "Parts that do not work as they should: /healthz names them", |f| {
        float(f.tasks_degraded as u64)
    }),
    gauge("beamlog_tasks_held", "Results and acks that wait until the log takes events again", |f| {
        float(f.tasks.held)
    }),
    counter("beamlog_tasks_held_dropped", "Of those, without room: their jobs come back", |f| {
        float(f.tasks.held_dropped)
    }),
    gauge(
        "beamlog_tasks_decide_p95_seconds",
        "95 of 100 decisions of the last minute took at most this long",
        |f| float(f.tasks.counters.latency_p95_micros) / 1e6,
    ),
    gauge("beamlog_tasks_backpressure", "0 is none, 1 a warning, 2 active", |f| {
        float(f.tasks.counters.backpressure)
    }),
    gauge("beamlog_tasks_serving", "1 where tasks run: in a cluster, at the node that leads", |f| {
        truth(f.tasks_here)
    }),
    counter("beamlog_tasks_spans_exported", "Spans that the collector took", |f| float(f.spans.0)),
    counter("beamlog_tasks_spans_dropped", "Spans that it did not take, or not in time", |f| {
        float(f.spans.1)
    }),
    gauge("beamlog_tasks_failed", "1 while the log takes no events and nothing is decided", |f| {
        truth(f.tasks.failed.is_some())
    }),
    gauge(
        "beamlog_net_certificate_expiry_seconds",
        "Time until the first certificate in use, or its last root, ends; +Inf without any",
        |f| f.certificate_seconds,
    ),
    gauge("beamlog_net_edges", "Edges connected to this hub", |f| float(f.edges as u64)),
    counter("beamlog_net_edges_refused", "Connections of edges that this hub refused", |f| {
        float(f.edges_refused)
    }),
    gauge("beamlog_node_draining", "1 while the node is stopping", |f| truth(f.draining)),
    gauge("beamlog_node_uptime_seconds", "Time since the start", |f| f.uptime_seconds),
    gauge("process_resident_memory_bytes", "Memory in use", |f| float(f.resident_bytes)),
    counter("process_cpu_seconds", "Processor time of all threads", |f| f.processor_seconds),
    gauge("process_open_fds", "Open file descriptors", |f| float(f.open_files)),
];

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for metric in METRICS {
            let kind = metric.kind.of_metric();
            let mut out = encoder.encode_descriptor(metric.name, metric.text, None, kind)?;
            let value = match metric.read {
                Read::Node(read) => read(self),
                Read::Shard(read) => {
                    for (label, shard) in &self.others {
                        let labels = [("shard", label.as_str())];
                        metric.kind.encode(read(shard), out.encode_family(&labels)?)?;
                    }
                    read(&self.shard)
                }
            };
            metric.kind.encode(value, out)?;
        }
        self.encode_links(&mut encoder)
    }
}

impl Figures {
    /// Without links their metrics are not there.
    fn encode_links(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for metric in LINK_METRICS.iter().filter(|_| !self.links.is_empty()) {
            let kind = metric.kind.of_metric();
            let mut family = encoder.encode_descriptor(metric.name, metric.text, None, kind)?;
            for link in &self.links {
                let labels = [("link", link.name.as_str())];
                metric.kind.encode((metric.read)(link), family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

/// One metric of each link.
struct LinkMetric {
    name: &'static str,
    kind: Kind,
    text: &'static str,
    read: fn(&LinkStatus) -> f64,
}

/// A figure of all rules together.
fn of_rules(link: &LinkStatus, figure: fn(&RuleFigures) -> u64) -> f64 {
    float(link.rules.iter().map(|rule| figure(&rule.figures)).sum())
}

const fn link_counter(name: &'static str, text: &'static str, read: fn(&LinkStatus) -> f64) -> LinkMetric {
    LinkMetric { name, kind: Kind::Counter, text, read }
}

const fn link_gauge(name: &'static str, text: &'static str, read: fn(&LinkStatus) -> f64) -> LinkMetric {
    LinkMetric { name, kind: Kind::Gauge, text, read }
}

static LINK_METRICS: &[LinkMetric] = &[
    link_gauge(
        "beamlog_nats_link_state",
        "5 standing by (another node of the cluster runs it), 4 connected, 3 degraded, 2 connecting, 1 paused, 0 stopped",
        |link| match link.state {
            LinkState::Standby => 5.0,
            LinkState::Connected => 4.0,
            LinkState::Degraded { .. } => 3.0,
            LinkState::Connecting => 2.0,
            LinkState::Paused => 1.0,
            LinkState::Stopped => 0.0,
        },
    ),
    link_counter("beamlog_nats_link_reconnects", "Connections after the first", |link| {
        float(link.reconnects)
    }),
    link_gauge(
        "beamlog_nats_link_lag_messages",
        "Messages that wait to be carried, where it is known",
        |link| of_rules(link, |figures| figures.lag_messages),
    ),
    link_gauge("beamlog_nats_link_lag_bytes", "Bytes that wait to be carried, where it is known", |link| {
        of_rules(link, |figures| figures.lag_bytes)
    }),
    link_gauge("beamlog_nats_link_lag_seconds", "Age of the oldest message that waits", |link| {
        float(link.rules.iter().map(|rule| rule.figures.lag_seconds).max().unwrap_or(0))
    }),
    link_counter(
        "beamlog_nats_link_carried_messages",
        "Messages that arrived on the other side, each once",
        |link| of_rules(link, |figures| figures.transferred),
    ),
    link_counter("beamlog_nats_link_carried_bytes", "Bytes of these messages", |link| {
        of_rules(link, |figures| figures.transferred_bytes)
    }),
    link_counter(
        "beamlog_nats_link_duplicates",
        "Messages that had arrived before and were refused",
        |link| of_rules(link, |figures| figures.duplicates_refused),
    ),
    link_counter("beamlog_nats_link_dropped", "Unstored messages and requests that found no room", |link| {
        of_rules(link, |figures| figures.dropped)
    }),
    link_counter(
        "beamlog_nats_link_parked",
        "Messages that the other side does not take, put aside",
        |link| of_rules(link, |figures| figures.parked),
    ),
    link_counter(
        "beamlog_nats_link_missed",
        "Messages that were deleted there before they could be imported",
        |link| of_rules(link, |figures| figures.missed),
    ),
];

fn others(served: &Served) -> Vec<(String, ShardFigures)> {
    let held = served.held.router().map(|router| (HELD_SHARD.to_owned(), ShardFigures::of(router)));
    let of_shards = served.shards.routers().into_iter();
    let of_shards = of_shards.map(|(number, router)| (number.to_string(), ShardFigures::of(&router)));
    held.into_iter().chain(of_shards).collect()
}

pub(super) async fn metrics(State(monitor): State<Arc<Monitor>>) -> impl IntoResponse {
    monitor.count("/metrics");
    let hub = monitor.hub.as_ref();
    let figures = Figures {
        shard: ShardFigures::of(&monitor.router),
        others: monitor.served.as_ref().map(others).unwrap_or_default(),
        moving: monitor.served.as_ref().map_or(0, |served| served.held.moving()),
        server: monitor.server.stats(),
        api: monitor.api.stats(),
        tasks: monitor.tasks.as_ref().map(|tasks| tasks.stats()).unwrap_or_default(),
        spans: monitor.tasks.as_ref().map(|tasks| tasks.spans()).unwrap_or_default(),
        tasks_here: monitor.tasks.as_ref().is_some_and(|tasks| tasks.is_here()),
        tasks_degraded: monitor.tasks.as_ref().map_or(0, |tasks| tasks.degraded().len()),
        draining: monitor.is_draining(),
        resident_bytes: process::resident_bytes(),
        processor_seconds: process::processor_time().as_secs_f64(),
        open_files: process::open_files(),
        uptime_seconds: monitor.uptime().as_secs_f64(),
        links: monitor.links.running().status(),
        certificate_seconds: certificates::seconds_left(&monitor.certificates().await, SystemTime::now()),
        edges: hub.map_or(0, |hub| hub.edges().iter().filter(|edge| edge.session.is_some()).count()),
        edges_refused: hub.map_or(0, |hub| hub.refusals().iter().map(|refusal| refusal.count).sum()),
    };
    let mut registry = Registry::default();
    // What an ack of any stream means (DR23), and which program this is.
    let labels = [("version", env!("CARGO_PKG_VERSION")), ("durability", "disk")];
    registry.register("beamlog_node", "Version, and the durability class of publish acks", Info::new(labels));
    registry.register_collector(Box::new(figures));
    let mut text = String::new();
    encode(&mut text, &registry).expect("a String takes everything");
    ([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
}

const HEAD: &str = "\
# Metrics

Made from `node/src/admin/metrics.rs`; do not edit: a test writes it
(`BEAMLOG_TEST_UPDATE=1 cargo test -p beamlog`).

`curl http://127.0.0.1:8222/metrics` answers in the OpenMetrics text format. `beamlog_node_info` has labels
whose values are constants of the program; metrics of links have the link's name. A member of a cluster has the figures
of the log and the router (`beamlog_log_…`, `beamlog_router_…`) of each shard that it takes part in: of the first without a label,
of another with its number, `shard=\"1\"`, and with `shard=\"local\"` of the streams that it holds alone. No other metric has
labels.

| metric | kind | meaning |
|---|---|---|
| `beamlog_node_info{version,durability}` | info | version, and the durability class of publish acks: `disk` is synced before the ack |
";

const LINK_HEAD: &str = "
## Links

One of each for every link of the node; the label is the link's name, so there are at most 64 values. Alert on
`beamlog_nats_link_state < 4` for longer than a restart of the cluster there takes, and on a growing
`beamlog_nats_link_lag_seconds`.

| metric | kind | meaning |
|---|---|---|
";

/// `docs/reference/metrics.md`.
#[must_use]
pub fn markdown() -> String {
    let mut out = HEAD.to_owned();
    for metric in METRICS {
        let (suffix, kind) = metric.kind.words();
        let text = metric.text;
        writeln!(out, "| `{}{suffix}` | {kind} | {text} |", metric.name).expect("a String takes everything");
    }
    out.push_str(LINK_HEAD);
    for metric in LINK_METRICS {
        let (suffix, kind) = metric.kind.words();
        let text = metric.text;
        writeln!(out, "| `{}{suffix}{{link}}` | {kind} | {text} |", metric.name)
            .expect("a String takes everything");
    }
    out
}
