//! The HTTP shell: routes, who may ask, and stopping.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::header::HOST;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tracing::warn;

use crate::admin::monitor::Monitor;
use crate::admin::query::{BadParameter, Query, bad};
use crate::admin::{cluster, connz, health, jsz, links, metrics, varz};

/// The running server.
#[derive(Debug)]
pub(crate) struct Admin {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Admin {
    /// At once: there is nothing that a reader of figures could lose.
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Admin {
    pub(crate) fn start(listener: TcpListener, asked: SocketAddr, monitor: Arc<Monitor>) -> Self {
        let address = listener.local_addr().unwrap_or(asked);
        let routes = routes(monitor, address.ip().is_loopback());
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, routes).await {
                warn!(err = %error, "the admin server ended");
            }
        });
        Self { address, task }
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.address
    }
}

fn routes(monitor: Arc<Monitor>, is_loopback: bool) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(metrics::metrics))
        .route("/varz", get(varz::varz))
        .route("/connz", get(connz::connz))
        .route("/jsz", get(jsz::jsz))
        .route("/cluster", get(cluster::get))
        .route("/cluster/{action}", post(cluster::post))
        .route("/links", get(links::list))
        .route("/links/{name}", get(links::get).put(links::put).delete(links::delete))
        .route("/links/{name}/diff", get(links::diff))
        .route("/links/{name}/{action}", post(links::post))
        .layer(middleware::from_fn_with_state(is_loopback, guard))
        .with_state(monitor)
}

/// On loopback, only requests that were addressed to loopback: a web page that gave its own name this
/// address (DNS rebinding) reads nothing.
pub(super) async fn guard(State(is_loopback): State<bool>, request: Request, next: Next) -> Response {
    if is_loopback && !is_for_loopback(request.headers()) {
        return (StatusCode::FORBIDDEN, "this address answers to localhost only\n").into_response();
    }
    next.run(request).await
}

fn is_for_loopback(headers: &HeaderMap) -> bool {
    // HTTP/1.0 has no Host, and no browser speaks it.
    let Some(host) = headers.get(HOST) else { return true };
    let Ok(host) = host.to_str() else { return false };
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

async fn index() -> Html<&'static str> {
    Html(
        "<!doctype html><title>beamlog</title><h1>beamlog</h1><ul>\
         <li><a href=\"/healthz?details=1\">healthz</a><li><a href=\"/readyz\">readyz</a>\
         <li><a href=\"/metrics\">metrics</a><li><a href=\"/varz\">varz</a>\
         <li><a href=\"/connz?subs=1\">connz</a><li><a href=\"/jsz?consumers=1&amp;config=1\">jsz</a><li><a href=\"/links\">links</a></ul>\n",
    )
}

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = BadParameter;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, BadParameter> {
        match axum::extract::Query::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(parameters)) => Ok(Self(parameters)),
            Err(_) => Err(bad("query", parts.uri.query().unwrap_or_default(), "parameters")),
        }
    }
}
