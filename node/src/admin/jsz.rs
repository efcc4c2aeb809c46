//! `/jsz`: streams and consumers in nats-server's fields and with its options.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use beamlog_nats::API_LEVEL;
use beamlog_nats::jetstream::{ApiRequest, ClusterView, consumer_detail, stream_detail};
use beamlog_router::RouterStats;
use beamlog_router::api::request::{Request, Response as Answer, StreamInfo};
use serde_json::{Value, json};

use crate::admin::monitor::{Monitor, shown};
use crate::admin::query::{BadParameter, Query};
use crate::admin::varz::{merge, nanos};
use crate::cluster::ClusterApi;
use crate::core_messages;

/// An engine that is busy for longer answers the page too late to be of use.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why the page could not be made.
#[derive(Debug)]
pub(super) enum Failure {
    Parameter(BadParameter),
    Unanswered,
}

impl From<BadParameter> for Failure {
    fn from(bad: BadParameter) -> Self {
        Self::Parameter(bad)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        match self {
            Self::Parameter(bad) => bad.into_response(),
            Self::Unanswered => {
                let text = "the engine does not answer; see /healthz\n";
                (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
            }
        }
    }
}

/// How much of streams and consumers is shown.
#[derive(Clone, Copy)]
struct Detail {
    consumers: bool,
    config: bool,
}

impl Detail {
    /// Leaves out of a stream or consumer what is not to be shown.
    fn reduce(self, value: &mut Value) {
        if !self.config
            && let Some(object) = value.as_object_mut()
        {
            object.remove("config");
        }
    }
}

pub(super) async fn jsz(State(monitor): State<Arc<Monitor>>, query: Query) -> Result<Json<Value>, Failure> {
    monitor.count("/jsz");
    let detail = Detail { consumers: query.boolean("consumers")?, config: query.boolean("config")? };
    let with_streams = query.boolean("streams")? || detail.consumers;
    let with_accounts = query.boolean("accounts")? || with_streams;
    let offset = query.number("offset")?.unwrap_or(0);
    let is_ours = query.text("acc").is_none_or(|account| account == "$G");
    let stats: Vec<RouterStats> = monitor.routers().map(|router| router.stats()).collect();
    let of_all = |figure: fn(&RouterStats) -> u64| stats.iter().map(figure).sum::<u64>();
    let mut value = stats_value(&monitor);
    let more = json!({
        "server_id": monitor.server.server_id(),
        "now": shown(SystemTime::now()),
        "config": config(&monitor),
        "limits": {},
        "streams": of_all(|stats| stats.streams),
        "consumers": of_all(|stats| stats.consumers),
        "messages": of_all(|stats| stats.messages),
        "bytes": of_all(|stats| stats.bytes),
        "total": 1,
    });
    merge(&mut value, more);
    if let Some(member) = &monitor.cluster {
        value["meta_cluster"] = meta_cluster(&member.view());
    }
    if with_accounts {
        let mut accounts = Vec::new();
        // There is one account; offset and limit count accounts, as in nats-server.
        if is_ours && offset == 0 {
            let mut account = stats_value(&monitor);
            merge(&mut account, json!({ "name": "$G", "id": "$G" }));
            if with_streams {
                account["stream_detail"] = match &monitor.served {
                    // What those say who have them.
                    Some(served) => streams_of_cluster(&monitor, &served.api, detail).await?.into(),
                    None => streams(&monitor, detail).await?.into(),
                };
            }
            accounts.push(account);
        }
        value["account_details"] = accounts.into();
    }
    Ok(Json(value))
}

/// The part that `/varz` has under `jetstream`.
pub(super) fn summary(monitor: &Monitor) -> Value {
    json!({ "config": config(monitor), "stats": stats_value(monitor), "limits": {} })
}

/// `durability` is ours: what an ack of any stream means. `sync_interval` is how long an acked message
/// may be without a sync: never.
fn config(monitor: &Monitor) -> Value {
    let data_dir = &monitor.options.data_dir;
    let free_bytes = rustix::fs::statvfs(data_dir).map_or(0, |figures| figures.f_bavail * figures.f_frsize);
    json!({
        "max_memory": 0,
        "max_storage": free_bytes + monitor.routers().map(|router| router.stats().log_bytes).sum::<u64>(),
        "store_dir": data_dir,
        "sync_interval": 0,
        "sync_always": true,
        "durability": "disk",
        "strict": true,
    })
}

fn stats_value(monitor: &Monitor) -> Value {
    let api = monitor.api.stats();
    json!({
        "memory": 0,
        "storage": monitor.routers().map(|router| router.stats().bytes).sum::<u64>(),
        "reserved_memory": 0,
        "reserved_storage": 0,
        "accounts": 1,
        "ha_assets": 0,
        "api": { "level": API_LEVEL, "total": api.requests, "errors": api.errors },
    })
}

async fn ask(monitor: &Monitor, request: Request) -> Result<Answer, Failure> {
    let Ok(ticket) = monitor.router.request(request) else { return Err(Failure::Unanswered) };
    match tokio::time::timeout(PATIENCE, ticket.into_future()).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) | Err(_) => Err(Failure::Unanswered),
    }
}

async fn streams(monitor: &Monitor, detail: Detail) -> Result<Vec<Value>, Failure> {
    let mut found = Vec::new();
    loop {
        let request = Request::StreamList { subject: None, offset: found.len() };
        let Answer::Streams(page) = ask(monitor, request).await? else { return Err(Failure::Unanswered) };
        let is_last = page.items.is_empty() || found.len() + page.items.len() >= page.total;
        for info in page.items {
            found.push(stream(monitor, &info, detail).await?);
        }
        if is_last {
            return Ok(found);
        }
    }
}

/// As [`streams`], by the JetStream API of the cluster.
async fn streams_of_cluster(
    monitor: &Monitor,
    api: &ClusterApi,
    detail: Detail,
) -> Result<Vec<Value>, Failure> {
    let mut found = pages(monitor, api, "$JS.API.STREAM.LIST", "streams").await?;
    for value in &mut found {
        let name = value["config"]["name"].as_str().unwrap_or_default().to_owned();
        if detail.consumers {
            let subject = format!("$JS.API.CONSUMER.LIST.{name}");
            let mut consumers = pages(monitor, api, &subject, "consumers").await?;
            consumers.iter_mut().for_each(|consumer| detail.reduce(consumer));
            if !consumers.is_empty() {
                value["consumer_detail"] = consumers.into();
            }
        }
        value["name"] = name.into();
        detail.reduce(value);
    }
    Ok(found)
}

/// All pages of a list of the JetStream API.
async fn pages(
    monitor: &Monitor,
    api: &ClusterApi,
    subject: &str,
    member: &str,
) -> Result<Vec<Value>, Failure> {
    let mut found = Vec::new();
    loop {
        let asked = json!({ "offset": found.len() }).to_string();
        let send = |reply: &str| {
            let (subject, reply, payload) = (subject.as_bytes(), reply.as_bytes(), asked.as_bytes());
            api.request(&ApiRequest { subject, reply, headers: b"", payload, no_responders: true });
            1
        };
        let answer = core_messages::ask_by(&monitor.router, send, PATIENCE).await;
        let mut answer: Value =
            answer.ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).ok_or(Failure::Unanswered)?;
        let total = answer["total"].as_u64().ok_or(Failure::Unanswered)?;
        let Value::Array(page) = answer[member].take() else { return Ok(found) };
        let is_last = page.is_empty() || (found.len() + page.len()) as u64 >= total;
        found.extend(page);
        if is_last {
            return Ok(found);
        }
    }
}

fn meta_cluster(view: &ClusterView) -> Value {
    let replicas: Vec<Value> = view
        .replicas
        .iter()
        .map(|replica| {
            json!({
                "name": replica.name,
                "current": replica.current,
                "offline": replica.offline,
                "active": replica.active.map_or(0, nanos),
                "lag": replica.lag,
                "peer": replica.peer,
            })
        })
        .collect();
    json!({
        "name": view.name,
        "leader": view.leader,
        "replicas": replicas,
        "cluster_size": view.replicas.len() + usize::from(view.leader.is_some()),
    })
}

async fn stream(monitor: &Monitor, info: &StreamInfo, detail: Detail) -> Result<Value, Failure> {
    let mut value = parsed(&stream_detail(info, monitor.server.server_name()), detail);
    if !detail.consumers {
        return Ok(value);
    }
    let mut found: Vec<Value> = Vec::new();
    loop {
        let request = Request::ConsumerList { stream: info.config.name.clone(), offset: found.len() };
        // The stream may have gone meanwhile: then it has no consumers.
        let Ok(Answer::Consumers(page)) = ask(monitor, request).await else { break };
        let is_last = page.items.is_empty() || found.len() + page.items.len() >= page.total;
        found.extend(page.items.iter().map(|one| parsed(&consumer_detail(one, info.now), detail)));
        if is_last {
            break;
        }
    }
    if !found.is_empty() {
        value["consumer_detail"] = found.into();
    }
    Ok(value)
}

fn parsed(text: &str, detail: Detail) -> Value {
    let mut value = serde_json::from_str(text).expect("the API writes JSON");
    detail.reduce(&mut value);
    value
}
