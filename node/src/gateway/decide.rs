//! Decisions: asked for, and looked up.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use beamlog_router::headers::Builder;
use beamlog_tasks::codes::Code;
use beamlog_tasks::engine::settings::subjects;
use bytes::Bytes;
use serde_json::{Value, json};

use super::dto;
use super::messages::Event;
use super::problem::{Context, Problem, json_response};
use super::server::{Shell, context_of};
use crate::core_messages::Unanswered;

/// What the gateway tells clients to wait when the router is overloaded.
const RETRY_AFTER_SECONDS: u64 = 30;

/// `POST /api/v1/routes/decide`, `POST /api/v1/messages`.
pub(super) async fn post(State(shell): State<Arc<Shell>>, headers: HeaderMap, body: Bytes) -> Response {
    let mut context = context_of(&headers);
    if body.is_empty() {
        return Problem::invalid("empty request body", &context).into_response();
    }
    if shell.is_overloaded() {
        return Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "service_overloaded",
            "Router is overloaded, please retry later",
            &context,
        )
        .retry_after(RETRY_AFTER_SECONDS)
        .into_response();
    }
    let Some(decide) = dto::decide(&body) else {
        return Problem::invalid("invalid decide request DTO", &context).into_response();
    };
    context.request_id.clone_from(&decide.request_id);
    if context.trace_id.is_empty() {
        context.trace_id = decide.trace_id.clone().unwrap_or_default();
    }
    let request = decide.route_request(&context.tenant_id, &context.trace_id);
    let traced = trace_headers(&headers);
    match shell.ask(subjects::DECIDE, &traced, &request).await {
        Ok(answer) => of_router(&answer, true),
        Err(Unanswered) => unavailable("unavailable", "router or NATS unavailable", &context),
    }
}

/// `GET /api/v1/routes/decide/{message_id}`.
pub(super) async fn get(
    State(shell): State<Arc<Shell>>,
    Path(message_id): Path<String>,
    headers: HeaderMap,
) -> Response {
    let context = context_of(&headers);
    if context.tenant_id.is_empty() {
        return Problem::invalid("missing tenant_id for decision lookup", &context).into_response();
    }
    let request = json!({"message_id": message_id, "tenant_id": context.tenant_id}).to_string();
    match shell.ask(subjects::GET_DECISION, b"", request.as_bytes()).await {
        Ok(answer) => {
            let response = of_router(&answer, true);
            if response.status() == StatusCode::OK {
                shell.events.tell(Event::new(&context.tenant_id, "message_created", &answer));
            }
            response
        }
        Err(Unanswered) => unavailable("internal", "router or NATS unavailable", &context),
    }
}

/// `GET /api/v1/routes/decide/`.
pub(super) async fn get_nothing(headers: HeaderMap) -> Response {
    Problem::invalid("missing message_id path parameter", &context_of(&headers)).into_response()
}

pub(super) fn unavailable(code: &'static str, message: &str, context: &Context) -> Response {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, code, message, context).into_response()
}

/// The router's answer as it is, with the status that its error code means; an error always has
/// `intake_error_code`, if need be null, when `filled`.
pub(super) fn of_router(answer: &Bytes, filled: bool) -> Response {
    let mut value: Value = serde_json::from_slice(answer).unwrap_or_default();
    if value["ok"] != Value::Bool(false) {
        return json_response(StatusCode::OK, answer.clone());
    }
    let code = value["error"]["code"].as_str();
    let known = Code::ALL.into_iter().find(|known| Some(known.as_str()) == code);
    let status = known.and_then(|code| StatusCode::from_u16(code.http()).ok()).unwrap_or(StatusCode::OK);
    let body = match value.get_mut("error").and_then(Value::as_object_mut) {
        Some(error) if filled && !error.contains_key("intake_error_code") => {
            error.insert("intake_error_code".to_owned(), Value::Null);
            Bytes::from(value.to_string())
        }
        Some(_) | None => answer.clone(),
    };
    let mut response = json_response(status, body);
    if status == StatusCode::TOO_MANY_REQUESTS || known == Some(Code::ServiceOverloaded) {
        let seconds = if known == Some(Code::ServiceOverloaded) { RETRY_AFTER_SECONDS } else { 1 };
        response.headers_mut().insert(axum::http::header::RETRY_AFTER, seconds.into());
    }
    response
}

/// W3C trace context goes on as it came.
fn trace_headers(headers: &HeaderMap) -> Vec<u8> {
    const LENGTH_MAX: usize = 512;
    let found = ["traceparent", "tracestate"].into_iter().filter_map(|name| {
        let value = headers.get(name)?.to_str().ok()?;
        (value.len() <= LENGTH_MAX).then_some((name, value))
    });
    let found: Vec<_> = found.collect();
    if found.is_empty() {
        return Vec::new();
    }
    found.into_iter().fold(Builder::new(), |builder, (name, value)| builder.header(name, value)).finish()
}
