//! Routes that only pass a question on to the router's administrative subjects.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use beamlog_tasks::engine::settings::subjects;
use bytes::Bytes;
use serde_json::json;

use super::decide::{of_router, unavailable};
use super::problem::{Problem, json_response};
use super::server::{Shell, context_of};
use crate::core_messages::Unanswered;

async fn pass(shell: &Shell, name: &str, request: &[u8], headers: &HeaderMap) -> Result<Bytes, Response> {
    let subject = format!("{}{name}", subjects::ADMIN);
    shell.ask(&subject, b"", request).await.map_err(|Unanswered| {
        unavailable("SERVICE_UNAVAILABLE", "Router or NATS unavailable", &context_of(headers))
    })
}

/// `GET /api/v1/extensions/health`.
pub(super) async fn extension_health(State(shell): State<Arc<Shell>>, headers: HeaderMap) -> Response {
    match pass(&shell, "get_extension_health", b"{}", &headers).await {
        Ok(answer) => json_response(StatusCode::OK, answer),
        Err(refused) => refused,
    }
}

/// `GET /api/v1/extensions/circuit-breakers`.
pub(super) async fn circuit_breakers(State(shell): State<Arc<Shell>>, headers: HeaderMap) -> Response {
    match pass(&shell, "get_circuit_breaker_states", b"{}", &headers).await {
        Ok(answer) => json_response(StatusCode::OK, answer),
        Err(refused) => refused,
    }
}

/// `POST /api/v1/policies/dry-run`.
pub(super) async fn dry_run(State(shell): State<Arc<Shell>>, headers: HeaderMap, body: Bytes) -> Response {
    if body.is_empty() {
        let context = context_of(&headers);
        return Problem::new(StatusCode::BAD_REQUEST, "INVALID_REQUEST", "empty request body", &context)
            .into_response();
    }
    match pass(&shell, "dry_run_pipeline", &body, &headers).await {
        Ok(answer) => of_router(&answer, false),
        Err(refused) => refused,
    }
}

/// `GET /api/v1/policies/{tenant}/{policy}/complexity`.
pub(super) async fn complexity(
    State(shell): State<Arc<Shell>>,
    Path((tenant, policy)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    let request = json!({"tenant_id": tenant, "policy_id": policy}).to_string();
    match pass(&shell, "get_pipeline_complexity", request.as_bytes(), &headers).await {
        Ok(answer) => of_router(&answer, false),
        Err(refused) => refused,
    }
}
