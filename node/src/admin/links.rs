//! `/links`: the links of this node as JSON, and how they are changed.
//!
//! Changes are taken on a loopback address only, from who shows the credentials that NATS clients need (if
//! they need any), and never from a form of a web page: the content type must be JSON.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, IF_NONE_MATCH};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::admin::monitor::Monitor;
use crate::cli::err_chain;
use crate::config::Authentication;
use crate::config::links::LinkTable;
use crate::links::{ChangeError, NodeLinks, Shown};

/// Why a request about links was not served.
pub(super) enum Refusal {
    NotLoopback,
    NotJson,
    NotAuthorized,
    Body(Vec<String>),
    Unknown(String),
    Change(ChangeError),
    Busy,
}

impl From<ChangeError> for Refusal {
    fn from(error: ChangeError) -> Self {
        Self::Change(error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, errors) = match self {
            Self::NotLoopback => {
                (StatusCode::FORBIDDEN, vec!["links are changed through a loopback address only".to_owned()])
            }
            Self::NotJson => {
                let text = "the content type must be application/json".to_owned();
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, vec![text])
            }
            Self::NotAuthorized => {
                let text = "the credentials of a NATS client are needed, by Authorization: Basic or Bearer";
                (StatusCode::UNAUTHORIZED, vec![text.to_owned()])
            }
            Self::Body(errors) => (StatusCode::BAD_REQUEST, errors),
            Self::Unknown(name) => (StatusCode::NOT_FOUND, vec![ChangeError::Unknown(name).to_string()]),
            Self::Change(error) => {
                let status = match &error {
                    ChangeError::Refused(_) | ChangeError::Runtime(_) => StatusCode::BAD_REQUEST,
                    ChangeError::Exists(_) | ChangeError::OfFile(_) => StatusCode::CONFLICT,
                    ChangeError::Unknown(_) => StatusCode::NOT_FOUND,
                    ChangeError::Stored(_) => StatusCode::INTERNAL_SERVER_ERROR,
                };
                let errors = match &error {
                    ChangeError::Refused(errors) => errors.iter().map(ToString::to_string).collect(),
                    ChangeError::Exists(_)
                    | ChangeError::Unknown(_)
                    | ChangeError::OfFile(_)
                    | ChangeError::Stored(_)
                    | ChangeError::Runtime(_) => vec![err_chain(&error)],
                };
                (status, errors)
            }
            Self::Busy => (StatusCode::INTERNAL_SERVER_ERROR, vec!["the change was interrupted".to_owned()]),
        };
        (status, Json(json!({ "errors": errors }))).into_response()
    }
}

type Answer = Result<Json<Value>, Refusal>;

pub(super) async fn list(State(monitor): State<Arc<Monitor>>) -> Json<Value> {
    monitor.count("/links");
    Json(json!({ "links": monitor.links.all().iter().map(value).collect::<Vec<_>>() }))
}

pub(super) async fn get(State(monitor): State<Arc<Monitor>>, Path(name): Path<String>) -> Answer {
    monitor.count("/links");
    let shown = monitor.links.all();
    // The file's comes first among two of one name.
    let link = shown.iter().find(|link| link.table.name == name).ok_or(Refusal::Unknown(name))?;
    Ok(Json(value(link)))
}

pub(super) async fn put(
    State(monitor): State<Arc<Monitor>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    authorize(&monitor, &headers)?;
    let table = read(&name, &body)?;
    let replace = headers.get(IF_NONE_MATCH).is_none_or(|value| value != "*");
    change(&monitor, move |links| links.put(table, replace)).await?;
    Ok(Json(json!({ "link": name, "added": true })))
}

pub(super) async fn delete(
    State(monitor): State<Arc<Monitor>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Answer {
    authorize(&monitor, &headers)?;
    let removed = name.clone();
    change(&monitor, move |links| links.remove(&removed)).await?;
    Ok(Json(json!({ "link": name, "removed": true })))
}

pub(super) async fn post(
    State(monitor): State<Arc<Monitor>>,
    Path((name, action)): Path<(String, String)>,
    headers: HeaderMap,
) -> Answer {
    authorize(&monitor, &headers)?;
    let link = name.clone();
    let done = match action.as_str() {
        "pause" => change(&monitor, move |links| links.set_paused(&link, true)).await,
        "resume" => change(&monitor, move |links| links.set_paused(&link, false)).await,
        "resync" => change(&monitor, move |links| links.resync(&link)).await,
        other => return Err(Refusal::Body(vec![format!("{other:?} is not one of pause, resume, resync")])),
    };
    done?;
    Ok(Json(json!({ "link": name, "done": action })))
}

pub(super) async fn diff(State(monitor): State<Arc<Monitor>>, Path(name): Path<String>) -> Answer {
    monitor.count("/links");
    let diff = monitor.links.running().diff(&name).await.map_err(ChangeError::Runtime)?;
    let rules = serde_json::to_value(diff).unwrap_or_default();
    Ok(Json(json!({ "link": name, "rules": rules })))
}

/// Changes block on the disk: they get a thread of their own.
async fn change(
    monitor: &Monitor,
    change: impl FnOnce(&NodeLinks) -> Result<(), ChangeError> + Send + 'static,
) -> Result<(), Refusal> {
    let links = Arc::clone(&monitor.links);
    let runtime = tokio::runtime::Handle::current();
    let changing = tokio::task::spawn_blocking(move || {
        // Links begin tasks.
        let _inside = runtime.enter();
        change(&links)
    });
    changing.await.map_err(|_ended| Refusal::Busy)?.map_err(Refusal::Change)
}

fn read(name: &str, body: &[u8]) -> Result<LinkTable, Refusal> {
    let one = |text: String| Refusal::Body(vec![text]);
    let mut table: toml::Table =
        serde_json::from_slice(body).map_err(|e| one(format!("the body is not a link in JSON: {e}")))?;
    let said = table.entry("name").or_insert_with(|| name.into());
    if said.as_str() != Some(name) {
        return Err(one(format!("the path says link {name}, the body says {said}")));
    }
    LinkTable::read(table).map_err(|errors| Refusal::Body(errors.iter().map(ToString::to_string).collect()))
}

/// Whether this request may change links.
pub(super) fn authorize(monitor: &Monitor, headers: &HeaderMap) -> Result<(), Refusal> {
    monitor.count("/links");
    if !monitor.options.admin.is_some_and(|address| address.ip().is_loopback()) {
        return Err(Refusal::NotLoopback);
    }
    let content = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if content.split(';').next().unwrap_or_default().trim() != "application/json" {
        return Err(Refusal::NotJson);
    }
    let shown = headers.get(AUTHORIZATION).map(|value| value.as_bytes()).unwrap_or_default();
    let expected = match &monitor.options.authentication {
        Authentication::None => return Ok(()),
        Authentication::Token(token) => format!("Bearer {}", token.0),
        Authentication::User { user, password } => {
            format!("Basic {}", STANDARD.encode(format!("{user}:{}", password.0)))
        }
    };
    if is_same(shown, expected.as_bytes()) { Ok(()) } else { Err(Refusal::NotAuthorized) }
}

/// Takes as long whatever differs.
fn is_same(left: &[u8], right: &[u8]) -> bool {
    left.len() == right.len() && left.iter().zip(right).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

fn value(shown: &Shown) -> Value {
    let mut value = match (&shown.status, &shown.refused) {
        (_, Some(cause)) => json!({ "name": shown.table.name, "state": "refused", "cause": cause }),
        (Some(status), None) => serde_json::to_value(status).unwrap_or_default(),
        (None, None) => json!({ "name": shown.table.name, "state": "stopped" }),
    };
    value["source"] = shown.source.name().into();
    value["config"] = serde_json::to_value(&shown.table).unwrap_or_default();
    value
}
