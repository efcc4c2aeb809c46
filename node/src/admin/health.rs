//! `/healthz` and `/readyz`: can this node do its work, and if not or only in part, why.

use std::sync::Arc;
use std::time::SystemTime;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use beamlog_nats::link::status::LinkState;
use beamlog_router::Health;
use serde_json::{Value, json};

use crate::admin::certificates;
use crate::admin::monitor::Monitor;
use crate::admin::query::{BadParameter, Query};

/// Degraded parts of tasks that are told in words; the rest is in the details.
const TASKS_TOLD_MAX: usize = 20;

/// 200 while the node stores and serves, 503 once it cannot. What is degraded does not make it unhealthy:
/// a restart would not help. It is told under `degraded`.
pub(super) async fn healthz(
    State(monitor): State<Arc<Monitor>>,
    query: Query,
) -> Result<Response, BadParameter> {
    monitor.count("/healthz");
    let with_details = query.boolean("details")?;
    let health = monitor.health();
    let failure = match &health {
        Health::Serving | Health::InsufficientStorage | Health::Damaged { .. } => None,
        Health::LogFailed { reason } => Some(format!("the log has failed: {reason}")),
        Health::Closed => Some("the router is closed".to_owned()),
    };
    let mut body = match &failure {
        None => json!({ "status": "ok" }),
        Some(error) => json!({ "status": "unavailable", "status_code": 503, "error": error }),
    };
    let certificates = monitor.certificates().await;
    let mut degraded = degraded(&monitor, &health);
    degraded.extend(certificates::problems(&certificates, SystemTime::now()));
    if !degraded.is_empty() {
        body["degraded"] = json!(degraded);
    }
    if with_details {
        body["details"] = details(&monitor, &health);
        body["details"]["certificates"] = certificates::details(&certificates);
    }
    let status = if failure.is_some() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    Ok((status, Json(body)).into_response())
}

/// 200 while clients should be sent here.
pub(super) async fn readyz(State(monitor): State<Arc<Monitor>>) -> Response {
    monitor.count("/readyz");
    let reason = match monitor.health() {
        Health::LogFailed { .. } => Some("the log has failed"),
        Health::Closed => Some("the router is closed"),
        Health::Serving | Health::InsufficientStorage | Health::Damaged { .. } => {
            monitor.is_draining().then_some("draining")
        }
    };
    match reason {
        None => Json(json!({ "status": "ok" })).into_response(),
        Some(reason) => {
            let body = json!({ "status": "unavailable", "error": reason });
            (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
        }
    }
}

/// What does not work as it should, a sentence each.
fn degraded(monitor: &Monitor, health: &Health) -> Vec<String> {
    let mut reasons = Vec::new();
    if *health == Health::InsufficientStorage {
        reasons.push("the disk is full: publishes to streams are refused until there is space".to_owned());
    }
    if let Health::Damaged { reason } = health {
        reasons.push(format!("this node's copy of the log is damaged and wants repair: {reason}"));
    }
    let recovery = monitor.router.recovery();
    if !recovery.missing.is_empty() {
        reasons.push(format!("{} segments of the log are missing", recovery.missing.len()));
    }
    if !recovery.damaged.is_empty() {
        reasons.push(format!("{} places of the log are damaged and not served", recovery.damaged.len()));
    }
    let stats = monitor.router.stats();
    if stats.unreadable > 0 {
        reasons.push(format!("{} reads met bytes that cannot be trusted", stats.unreadable));
    }
    if stats.scrub_damage > 0 {
        reasons.push(format!("a scrub found damage in {} segments", stats.scrub_damage));
    }
    for status in monitor.links.running().status() {
        if let LinkState::Degraded { cause } = &status.state {
            reasons.push(format!("link {} is degraded: {cause}", status.name));
        }
    }
    for link in monitor.links.all() {
        if let Some(cause) = link.refused {
            reasons.push(format!("link {} is not started: {cause}", link.table.name));
        }
    }
    if let Some(tasks) = &monitor.tasks {
        let degraded = tasks.degraded();
        let told = degraded.iter().take(TASKS_TOLD_MAX).map(|row| format!("tasks: {row}"));
        reasons.extend(told);
        if degraded.len() > TASKS_TOLD_MAX {
            reasons.push(format!("tasks: {} more, under details", degraded.len() - TASKS_TOLD_MAX));
        }
    }
    reasons
}

fn details(monitor: &Monitor, health: &Health) -> Value {
    let recovery = monitor.router.recovery();
    let stats = monitor.router.stats();
    json!({
        "log": match health {
            Health::Serving => "serving",
            Health::InsufficientStorage => "insufficient_storage",
            Health::LogFailed { .. } => "failed",
            Health::Damaged { .. } => "damaged",
            Health::Closed => "closed",
        },
        "tasks": monitor.tasks.as_ref().map(|tasks| json!({
            "here": tasks.is_here(),
            "degraded": tasks.degraded(),
        })),
        "draining": monitor.is_draining(),
        "durability": "disk",
        "last_index": stats.last_index.0,
        "durable_index": stats.durable_index.0,
        "recovery": {
            "tail": format!("{:?}", recovery.tail),
            "rewritten": recovery.rewritten,
            "segments": recovery.segments,
            "frames": recovery.frames,
            "indexes_rebuilt": recovery.indexes_rebuilt,
        },
        "links": monitor.links.running().status().iter().map(|link| {
            let mut shown = serde_json::to_value(&link.state).unwrap_or_default();
            shown["name"] = link.name.as_str().into();
            shown["reconnects"] = link.reconnects.into();
            shown
        }).collect::<Vec<_>>(),
        "missing_segments": recovery.missing.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "damaged": recovery.damaged.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "quarantined": recovery.quarantined,
        "unreadable": stats.unreadable,
        "scrub": {
            "bytes": stats.scrubbed_bytes,
            "passes": stats.scrub_passes,
            "damaged_segments": stats.scrub_damage,
        },
    })
}
