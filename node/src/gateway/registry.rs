//! Manifests of blocks, in memory, by type and version.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::problem::{Context, Problem, json_response};
use super::server::{Shell, context_of};

/// Manifests at a time.
const MANIFESTS_MAX: usize = 64;

#[derive(Default)]
pub(super) struct Blocks {
    manifests: Mutex<BTreeMap<(String, String), Map<String, Value>>>,
}

fn timestamp() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// `POST` and `PUT /api/v1/registry/blocks/{type}/{version}`.
pub(super) async fn write(
    State(shell): State<Arc<Shell>>,
    Path((kind, version)): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let context = context_of(&headers);
    let manifest = match check(&body, &kind, &version, &context) {
        Ok(manifest) => manifest,
        Err(problem) => return problem.into_response(),
    };
    let mut manifests = shell.blocks.manifests.lock().unwrap_or_else(PoisonError::into_inner);
    let key = (kind.clone(), version.clone());
    if manifests.len() >= MANIFESTS_MAX && !manifests.contains_key(&key) {
        let message = "registry capacity reached";
        return Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message, &context)
            .into_response();
    }
    let (status, word) = match manifests.insert(key, manifest) {
        None => (StatusCode::CREATED, "created"),
        Some(_) => (StatusCode::OK, "updated"),
    };
    let body = json!({"type": kind, "version": version, "status": word, "ts": timestamp()});
    json_response(status, body.to_string())
}

/// `DELETE /api/v1/registry/blocks/{type}/{version}`.
pub(super) async fn delete(
    State(shell): State<Arc<Shell>>,
    Path((kind, version)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    let mut manifests = shell.blocks.manifests.lock().unwrap_or_else(PoisonError::into_inner);
    if manifests.remove(&(kind.clone(), version.clone())).is_none() {
        let context = context_of(&headers);
        return Problem::new(StatusCode::NOT_FOUND, "not_found", "block not found", &context).into_response();
    }
    let body = json!({"status": "unregistered", "type": kind, "version": version, "ts": timestamp()});
    json_response(StatusCode::OK, body.to_string())
}

/// `/api/v1/registry/blocks/{type}`, and the same with nothing behind it.
pub(super) async fn without_version(headers: HeaderMap) -> Response {
    Problem::invalid("missing version segment", &context_of(&headers)).into_response()
}

fn check(
    body: &[u8],
    kind: &str,
    version: &str,
    context: &Context,
) -> Result<Map<String, Value>, Box<Problem>> {
    let invalid = |message: &str| Err(Box::new(Problem::invalid(message, context)));
    let Ok(Value::Object(manifest)) = serde_json::from_slice(body) else {
        return invalid("invalid JSON");
    };
    let text = |key: &str| manifest.get(key).and_then(Value::as_str);
    if text("type") != Some(kind) || text("version") != Some(version) {
        let message = "type/version mismatch with path";
        return Err(Box::new(Problem::new(StatusCode::CONFLICT, "conflict", message, context)));
    }
    match manifest.get("capabilities") {
        None => {}
        Some(Value::Array(items)) if items.iter().all(Value::is_string) => {}
        Some(Value::Array(_)) => return invalid("capabilities items must be strings"),
        Some(_) => return invalid("capabilities must be array"),
    }
    if manifest.get("metadata").is_some_and(|metadata| !metadata.is_object()) {
        return invalid("metadata must be object");
    }
    let schema = |side: &str| manifest.get("schema").and_then(|schema| schema.get(side));
    let is_schema = |side: &str| schema(side).is_some_and(is_schema_of_draft_7);
    if !is_schema("input") || !is_schema("output") {
        let message = "schema validation failed";
        return Err(Box::new(Problem::new(StatusCode::BAD_REQUEST, "invalid_schema", message, context)));
    }
    Ok(manifest)
}

/// An object that the metaschema of draft 7 allows, and that does not say it is of another draft.
fn is_schema_of_draft_7(schema: &Value) -> bool {
    let names_it = schema
        .get("$schema")
        .is_none_or(|draft| draft.as_str().is_some_and(|draft| draft.contains("draft-07")));
    schema.is_object() && names_it && jsonschema::draft7::meta::is_valid(schema)
}
