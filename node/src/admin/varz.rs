//! `/varz`: the node in nats-server's fields.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Json;
use axum::extract::State;
use beamlog_nats::{API_LEVEL, VERSION};
use serde_json::{Value, json};

use crate::admin::monitor::{Monitor, shown, uptime_text};
use crate::admin::{jsz, process};
use crate::cluster::NodeCluster;
use crate::config::Authentication;

pub(super) async fn varz(State(monitor): State<Arc<Monitor>>) -> Json<Value> {
    monitor.count("/varz");
    let mut value = settings(&monitor);
    merge(&mut value, figures(&monitor));
    if monitor.options.authentication != Authentication::None {
        value["auth_required"] = true.into();
    }
    if let Some(tls) = &monitor.options.tls {
        value["tls_required"] = true.into();
        value["tls_verify"] = tls.client_authorities.is_some().into();
    }
    Json(value)
}

fn settings(monitor: &Monitor) -> Value {
    let options = &monitor.options;
    let address = monitor.server.local_addr();
    json!({
        "server_id": monitor.server.server_id(),
        "server_name": monitor.server.server_name(),
        "version": VERSION,
        "beamlog_version": env!("CARGO_PKG_VERSION"),
        "proto": 1,
        "git_commit": "",
        "go": "",
        "host": address.ip().to_string(),
        "port": address.port(),
        "max_connections": options.connections_max,
        "ping_interval": nanos(options.ping_interval),
        "ping_max": options.pings_outstanding_max,
        "http_host": options.admin.map_or_else(String::new, |address| address.ip().to_string()),
        "http_port": options.admin.map_or(0, |address| address.port()),
        "http_base_path": "",
        "https_port": 0,
        "auth_timeout": options.auth_timeout.as_secs_f64(),
        "max_control_line": options.control_line_bytes_max,
        "max_payload": options.payload_bytes_max,
        "max_pending": options.pending_bytes_max,
        "tls_timeout": 2.0,
        "write_deadline": nanos(options.write_deadline),
        "config_load_time": shown(monitor.started),
        "config_digest": "",
        "feature_flags": {},
        "system_account": "$SYS",
        "cluster": monitor.cluster.as_ref().map_or_else(|| json!({}), NodeCluster::settings),
        "gateway": {},
        "leaf": {},
        "mqtt": {},
        "websocket": {},
    })
}

fn figures(monitor: &Monitor) -> Value {
    let server = monitor.server.stats();
    let uptime = monitor.uptime();
    json!({
        "jetstream": jsz::summary(monitor),
        "start": shown(monitor.started),
        "now": shown(SystemTime::now()),
        "uptime": uptime_text(uptime),
        "mem": process::resident_bytes(),
        "cores": process::cores(),
        "gomaxprocs": process::cores(),
        "cpu": percent_of(process::processor_time(), uptime),
        "connections": server.connections,
        "total_connections": server.connections_total,
        "routes": 0,
        "remotes": 0,
        "leafnodes": 0,
        "in_msgs": server.in_messages,
        "in_bytes": server.in_bytes,
        "in_client_msgs": server.in_messages,
        "in_client_bytes": server.in_bytes,
        "out_msgs": server.out_messages,
        "out_bytes": server.out_bytes,
        "out_client_msgs": server.out_messages,
        "out_client_bytes": server.out_bytes,
        "slow_consumers": server.slow_consumers,
        "stale_connections": 0,
        "stalled_clients": 0,
        "subscriptions": server.subscriptions,
        "http_req_stats": monitor.requests(),
        "slow_consumer_stats": { "clients": server.slow_consumers, "routes": 0, "gateways": 0, "leafs": 0 },
        "stale_connection_stats": { "clients": 0, "routes": 0, "gateways": 0, "leafs": 0 },
        "disk_io_wait_stats": { "waiters": 0, "waits": 0, "wait_time": 0, "max_wait_time": 0 },
        "api_level": API_LEVEL,
    })
}

/// Puts the fields of one object into another.
pub(super) fn merge(into: &mut Value, from: Value) {
    if let (Some(into), Value::Object(from)) = (into.as_object_mut(), from) {
        into.extend(from);
    }
}

pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Processor time as per cent of one core, over the life of the process.
fn percent_of(used: Duration, uptime: Duration) -> f64 {
    let percent = 100.0 * used.as_secs_f64() / uptime.as_secs_f64().max(0.001);
    (percent * 10.0).round() / 10.0
}
