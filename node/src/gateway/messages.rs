//! Messages as the UI changes them: kept nowhere, told to who looks on.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::header::{ACCESS_CONTROL_ALLOW_ORIGIN, CACHE_CONTROL};
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event as Line, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::broadcast;

use super::problem::{Problem, json_response};
use super::server::{Shell, context_of};

/// Who looks on at a time.
const LISTENERS_MAX: usize = 64;
/// Events that a listener may be behind; one that is further behind is told that it missed some.
const BEHIND_MAX: usize = 256;

/// Something that happened to a message of a tenant.
#[derive(Clone, Debug)]
pub(super) struct Event {
    tenant: String,
    name: &'static str,
    data: String,
}

impl Event {
    /// JSON goes out in one line; what is no JSON does not go out.
    pub(super) fn new(tenant: &str, name: &'static str, json: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(json).ok()?;
        Some(Self { tenant: tenant.to_owned(), name, data: value.to_string() })
    }
}

/// Who looks on, and what they are told.
pub(super) struct Events {
    sender: broadcast::Sender<Event>,
    listeners: Arc<AtomicUsize>,
}

impl Events {
    pub(super) fn new() -> Self {
        Self { sender: broadcast::channel(BEHIND_MAX).0, listeners: Arc::default() }
    }

    pub(super) fn tell(&self, event: Option<Event>) {
        if let Some(event) = event {
            // Nobody may be looking.
            drop(self.sender.send(event));
        }
    }

    fn listen(&self) -> Option<Listener> {
        let before = self.listeners.fetch_add(1, Ordering::AcqRel);
        let place = Place(Arc::clone(&self.listeners));
        (before < LISTENERS_MAX).then(|| Listener { receiver: self.sender.subscribe(), _place: place })
    }
}

struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

struct Listener {
    receiver: broadcast::Receiver<Event>,
    _place: Place,
}

/// `PUT /api/v1/messages/{message_id}`.
pub(super) async fn put(
    State(shell): State<Arc<Shell>>,
    Path(message_id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let context = context_of(&headers);
    if body.is_empty() {
        return Problem::invalid("empty body", &context).into_response();
    }
    let Ok(Value::Object(fields)) = serde_json::from_slice(&body) else {
        return Problem::invalid("invalid JSON", &context).into_response();
    };
    if fields.get("message_id").and_then(Value::as_str).is_some_and(|id| id != message_id) {
        let message = "message_id mismatch with path";
        return Problem::new(StatusCode::CONFLICT, "conflict", message, &context).into_response();
    }
    shell.events.tell(Event::new(&context.tenant_id, "message_updated", &body));
    json_response(StatusCode::OK, body)
}

/// `DELETE /api/v1/messages/{message_id}`.
pub(super) async fn delete(
    State(shell): State<Arc<Shell>>,
    Path(message_id): Path<String>,
    headers: HeaderMap,
) -> Response {
    let event = json!({"message_id": message_id}).to_string();
    shell.events.tell(Event::new(&context_of(&headers).tenant_id, "message_deleted", event.as_bytes()));
    json_response(StatusCode::OK, json!({"status": "deleted", "message_id": message_id}).to_string())
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Listening {
    #[serde(default)]
    tenant_id: String,
}

/// `GET /api/v1/messages/stream?tenant_id=`.
pub(super) async fn listen(
    State(shell): State<Arc<Shell>>,
    query: Result<Query<Listening>, QueryRejection>,
    headers: HeaderMap,
) -> Response {
    let tenant = query.map(|Query(query)| query.tenant_id).unwrap_or_default();
    if tenant.is_empty() {
        return Problem::invalid("missing tenant_id", &context_of(&headers)).into_response();
    }
    let allow = [(CACHE_CONTROL, "no-cache"), (ACCESS_CONTROL_ALLOW_ORIGIN, "*")];
    let Some(listener) = shell.events.listen() else {
        let full = stream::iter([Ok::<_, Infallible>(Line::default().comment("pool_full"))]);
        return (allow, Sse::new(full)).into_response();
    };
    let first = Some(Line::default().comment("connected"));
    let lines = stream::unfold((first, listener, tenant), |(first, mut listener, tenant)| async move {
        if let Some(first) = first {
            return Some((Ok::<_, Infallible>(first), (None, listener, tenant)));
        }
        loop {
            let line = match listener.receiver.recv().await {
                Ok(event) if event.tenant == tenant => Line::default().event(event.name).data(event.data),
                Ok(_) => continue,
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    Line::default().comment(format!("{missed} events were missed"))
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            };
            return Some((Ok(line), (None, listener, tenant)));
        }
    });
    let alive = KeepAlive::new().interval(Duration::from_secs(15));
    (allow, Sse::new(lines).keep_alive(alive)).into_response()
}
