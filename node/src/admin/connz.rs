//! `/connz`: the connections, in nats-server's fields and with its options.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Json;
use axum::extract::State;
use beamlog_nats::{ConnectionSnapshot, SubscriptionSnapshot};
use serde_json::{Value, json};

use crate::admin::monitor::{Monitor, shown, uptime_text};
use crate::admin::query::{BadParameter, Query, bad};

const LIMIT: u64 = 1024;

#[derive(Clone, Copy)]
enum Subscriptions {
    Count,
    Names,
    Detail,
}

pub(super) async fn connz(
    State(monitor): State<Arc<Monitor>>,
    query: Query,
) -> Result<Json<Value>, BadParameter> {
    monitor.count("/connz");
    let with_user = query.boolean("auth")?;
    let subscriptions = match query.text("subs") {
        Some("detail") => Subscriptions::Detail,
        Some(_) if query.boolean("subs")? => Subscriptions::Names,
        Some(_) | None => Subscriptions::Count,
    };
    let offset = query.number("offset")?.unwrap_or(0);
    let limit = query.number("limit")?.filter(|limit| *limit > 0).unwrap_or(LIMIT);
    let mut connections = match query.text("state") {
        None | Some("open" | "any" | "all") => monitor.server.connections(),
        // Connections that ended are counted, not kept.
        Some("closed") => Vec::new(),
        Some(other) => return Err(bad("state", other, "open, closed or any")),
    };
    if let Some(id) = query.number("cid")? {
        connections.retain(|connection| connection.id == id);
    }
    if let Some(user) = query.text("user") {
        connections.retain(|connection| connection.user == user);
    }
    sort(&mut connections, query.text("sort"))?;
    let page: Vec<Value> = connections
        .iter()
        .skip(usize::try_from(offset).unwrap_or(usize::MAX))
        .take(usize::try_from(limit).unwrap_or(usize::MAX))
        .map(|connection| shown_connection(&monitor, connection, with_user, subscriptions))
        .collect();
    Ok(Json(json!({
        "server_id": monitor.server.server_id(),
        "now": shown(SystemTime::now()),
        "num_connections": page.len(),
        "total": connections.len(),
        "offset": offset,
        "limit": limit,
        "connections": page,
    })))
}

fn sort(connections: &mut [ConnectionSnapshot], by: Option<&str>) -> Result<(), BadParameter> {
    match by {
        None | Some("cid" | "start") => connections.sort_by_key(|connection| connection.id),
        Some("subs") => connections.sort_by_key(|connection| Reverse(connection.subscriptions)),
        Some("pending") => connections.sort_by_key(|connection| Reverse(connection.pending_bytes)),
        Some("msgs_to") => connections.sort_by_key(|connection| Reverse(connection.out_messages)),
        Some("msgs_from") => connections.sort_by_key(|connection| Reverse(connection.in_messages)),
        Some("bytes_to") => connections.sort_by_key(|connection| Reverse(connection.out_bytes)),
        Some("bytes_from") => connections.sort_by_key(|connection| Reverse(connection.in_bytes)),
        Some("last") => connections.sort_by_key(|connection| Reverse(connection.active)),
        Some("idle") => connections.sort_by_key(|connection| connection.active),
        Some("uptime") => connections.sort_by_key(|connection| connection.started),
        Some("rtt") => connections.sort_by_key(|connection| Reverse(connection.rtt)),
        Some(other) => return Err(bad("sort", other, "a sorting")),
    }
    Ok(())
}

fn shown_connection(
    monitor: &Monitor,
    connection: &ConnectionSnapshot,
    with_user: bool,
    subscriptions: Subscriptions,
) -> Value {
    let (uptime, idle) = (connection.started.elapsed(), connection.active.elapsed());
    let now = SystemTime::now();
    let mut value = json!({
        "cid": connection.id,
        "kind": "Client",
        "type": "nats",
        "ip": connection.peer.ip().to_string(),
        "port": connection.peer.port(),
        "start": shown(now - uptime),
        "last_activity": shown(now - idle),
        "uptime": uptime_text(uptime),
        "idle": uptime_text(idle),
        "pending_bytes": connection.pending_bytes,
        "in_msgs": connection.in_messages,
        "out_msgs": connection.out_messages,
        "in_bytes": connection.in_bytes,
        "out_bytes": connection.out_bytes,
        "subscriptions": connection.subscriptions,
    });
    if let Some(rtt) = connection.rtt {
        value["rtt"] = rtt_text(rtt).into();
    }
    let texts = [("name", &connection.name), ("lang", &connection.lang), ("version", &connection.version)];
    for (key, text) in texts {
        if !text.is_empty() {
            value[key] = text.as_str().into();
        }
    }
    if with_user {
        value["account"] = "$G".into();
        if !connection.user.is_empty() {
            value["authorized_user"] = connection.user.as_str().into();
        }
    }
    let of_connection = || monitor.server.subscriptions_of(connection.id).unwrap_or_default();
    match subscriptions {
        Subscriptions::Count => {}
        Subscriptions::Names => {
            let name = |one: SubscriptionSnapshot| Value::from(String::from_utf8_lossy(&one.filter));
            value["subscriptions_list"] = of_connection().into_iter().map(name).collect();
        }
        Subscriptions::Detail => {
            let detail = |one: SubscriptionSnapshot| shown_subscription(&one, connection.id);
            value["subscriptions_list_detail"] = of_connection().into_iter().map(detail).collect();
        }
    }
    value
}

fn shown_subscription(subscription: &SubscriptionSnapshot, connection: u64) -> Value {
    json!({
        "account": "$G",
        "subject": String::from_utf8_lossy(&subscription.filter),
        "sid": String::from_utf8_lossy(&subscription.sid),
        "msgs": subscription.delivered,
        "cid": connection,
    })
}

/// A round trip as Go writes a duration below a second.
fn rtt_text(rtt: Duration) -> String {
    let micros = rtt.as_micros();
    if micros < 1_000 {
        format!("{micros}µs")
    } else {
        format!("{}.{:03}ms", micros / 1_000, micros % 1_000)
    }
}
