//! `/cluster`: how the cluster stands as this node sees it, and changes of it.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::admin::links;
use crate::admin::monitor::Monitor;
use crate::cluster::{self, Asked};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    node: Option<String>,
    /// Of a shard, which one; of the first when it is not said.
    shard: Option<u8>,
    /// Who is to hold a shard, or how many.
    nodes: Option<Vec<String>>,
    replicas: Option<u8>,
}

fn refused(status: StatusCode, reason: String) -> Response {
    (status, Json(json!({ "errors": [reason] }))).into_response()
}

fn alone() -> Response {
    refused(
        StatusCode::NOT_FOUND,
        "this node stands alone; --cluster-listen makes it part of a cluster".to_owned(),
    )
}

pub(super) async fn get(State(monitor): State<Arc<Monitor>>) -> Response {
    monitor.count("/cluster");
    match &monitor.cluster {
        Some(node) => Json(cluster::status(node, monitor.served.as_ref())).into_response(),
        None => alone(),
    }
}

pub(super) async fn post(
    State(monitor): State<Arc<Monitor>>,
    Path(action): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if let Err(refusal) = links::authorize(&monitor, &headers) {
        return refusal.into_response();
    }
    let Some(node) = &monitor.cluster else { return alone() };
    let Some(asked) = Asked::parse(&action) else {
        return refused(
            StatusCode::NOT_FOUND,
            format!("{action:?} is not one of add, remove, transfer, shard"),
        );
    };
    let named: Named = match serde_json::from_slice(&body) {
        Ok(named) => named,
        Err(error) => {
            return refused(StatusCode::BAD_REQUEST, format!("the body is not understood: {error}"));
        }
    };
    let done = match (asked, &monitor.served) {
        (Asked::Shard, Some(served)) => match (named.shard, named.nodes.unwrap_or_default()) {
            (None, nodes) => served.shards.add(nodes, named.replicas).await.map(Some),
            (Some(number), nodes) => served.shards.set_nodes(number, nodes).await.map(|()| Some(number)),
        },
        (Asked::Transfer, Some(served)) if named.shard.is_some_and(|number| number != 0) => {
            let number = named.shard.unwrap_or_default();
            served.shards.transfer(number, named.node.as_deref()).await.map(|()| Some(number))
        }
        (Asked::Shard, None) => return alone(),
        (asked, _) => cluster::change(node, asked, named.node.as_deref()).await.map(|()| named.shard),
    };
    match done {
        Ok(shard) => {
            Json::<Value>(json!({ "done": action, "node": named.node, "shard": shard })).into_response()
        }
        Err(reason) => refused(StatusCode::CONFLICT, reason),
    }
}
