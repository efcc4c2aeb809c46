//! The HTTP shell: routes, and what happens to every request before its route.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router as Routes;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use beamlog_router::Router;
use bytes::Bytes;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tracing::warn;

use super::figures::{self, Figures};
use super::limits::{Exceeded, Family, GatewayLimits, Limits};
use super::messages::{self, Events};
use super::problem::{Context, Problem, json_response};
use super::registry::{self, Blocks};
use super::{decide, passed_on};
use crate::core_messages::{Unanswered, ask};
use crate::tasks::Serving;

/// Text of one header that is kept.
const HEADER_MAX: usize = 256;
/// How long tasks are waited for.
const PATIENCE: Duration = Duration::from_secs(5);
const OPENAPI: &str = include_str!("openapi.json");

/// What a gateway is started with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct GatewayOptions {
    pub listen: SocketAddr,
    /// Whether requests for decisions must have an `Authorization` header; what is in it is not looked at.
    pub authorization: bool,
    pub limits: GatewayLimits,
}

/// What all requests have in common.
pub(super) struct Shell {
    pub(super) router: Router,
    serving: Arc<Serving>,
    authorization: bool,
    limits: Limits,
    pub(super) figures: Figures,
    pub(super) events: Events,
    pub(super) blocks: Blocks,
}

impl Shell {
    /// What tasks answer to a request on one of their subjects.
    pub(super) async fn ask(
        &self,
        subject: &str,
        headers: &[u8],
        payload: &[u8],
    ) -> Result<Bytes, Unanswered> {
        ask(&self.router, subject, headers, payload, PATIENCE).await
    }

    pub(super) fn is_overloaded(&self) -> bool {
        self.serving.pressure().0 >= 2
    }
}

/// The running gateway.
#[derive(Debug)]
pub(crate) struct Gateway {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Gateway {
    pub(crate) fn start(
        listener: TcpListener,
        router: Router,
        serving: Arc<Serving>,
        options: GatewayOptions,
        body_bytes_max: usize,
    ) -> Self {
        let address = listener.local_addr().unwrap_or(options.listen);
        let shell = Arc::new(Shell {
            router,
            serving,
            authorization: options.authorization,
            limits: Limits::new(options.limits),
            figures: Figures::new(),
            events: Events::new(),
            blocks: Blocks::default(),
        });
        let routes = routes(shell, body_bytes_max);
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, routes).await {
                warn!(err = %error, "the gateway ended");
            }
        });
        Self { address, task }
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.address
    }
}

fn routes(shell: Arc<Shell>, body_bytes_max: usize) -> Routes {
    let block = put(registry::write).post(registry::write).delete(registry::delete);
    Routes::new()
        .route("/health", get(figures::health))
        .route("/_health", get(figures::health))
        .route("/metrics", get(figures::metrics))
        .route("/_metrics", get(figures::metrics_json))
        .route("/openapi.json", get(async || json_response(StatusCode::OK, OPENAPI)))
        .route("/api/v1/routes/decide", post(decide::post))
        .route("/api/v1/messages", post(decide::post))
        .route("/api/v1/routes/decide/", get(decide::get_nothing))
        .route("/api/v1/routes/decide/{message_id}", get(decide::get))
        .route("/api/v1/messages/stream", get(messages::listen))
        .route("/api/v1/messages/{message_id}", put(messages::put).delete(messages::delete))
        .route("/api/v1/extensions/health", get(passed_on::extension_health))
        .route("/api/v1/extensions/circuit-breakers", get(passed_on::circuit_breakers))
        .route("/api/v1/policies/dry-run", post(passed_on::dry_run))
        .route("/api/v1/policies/{tenant}/{policy}/complexity", get(passed_on::complexity))
        .route("/api/v1/registry/blocks/{type}/{version}", block)
        .route(
            "/api/v1/registry/blocks/{type}",
            put(registry::without_version).post(registry::without_version).delete(registry::without_version),
        )
        .fallback(not_found)
        .method_not_allowed_fallback(not_found)
        .layer(DefaultBodyLimit::max(body_bytes_max))
        .layer(middleware::from_fn_with_state(Arc::clone(&shell), before))
        .with_state(shell)
}

async fn not_found(headers: HeaderMap) -> Response {
    Problem::new(StatusCode::NOT_FOUND, "invalid_request", "route not found", &context_of(&headers))
        .into_response()
}

/// Whose request it is, by its headers.
pub(super) fn context_of(headers: &HeaderMap) -> Context {
    let text = |name: &str| {
        let value = headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().trim();
        if value.len() <= HEADER_MAX { value.to_owned() } else { String::new() }
    };
    Context { request_id: String::new(), trace_id: text("x-trace-id"), tenant_id: text("x-tenant-id") }
}

/// How a route is limited, and whether it needs a tenant.
fn rules(method: &Method, route: &str) -> (Option<Family>, bool) {
    match route {
        "/api/v1/routes/decide" if *method == Method::POST => (Some(Family::Decide), true),
        "/api/v1/routes/decide/{message_id}" => (Some(Family::Decide), false),
        "/api/v1/messages" if *method == Method::POST => (Some(Family::Messages), true),
        "/api/v1/messages/{message_id}" if *method == Method::PUT || *method == Method::DELETE => {
            (Some(Family::Messages), true)
        }
        "/api/v1/registry/blocks/{type}/{version}" => (Some(Family::Registry), false),
        // A stream is one request, however long.
        "/api/v1/messages/stream" => (None, false),
        _ if route.starts_with("/api/") && *method != Method::OPTIONS => (Some(Family::Other), false),
        _ => (None, false),
    }
}

/// A full window is said before anything else; then authorization, then what the request lacks.
async fn before(State(shell): State<Arc<Shell>>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let route = route.unwrap_or_else(|| "unknown".to_owned());
    let context = context_of(request.headers());
    let response = match admit(&shell, &request, &route, &context, began) {
        Err(problem) => problem.into_response(),
        Ok(()) => {
            let response = next.run(request).await;
            // What axum itself refuses gets the shape of all errors.
            match response.status() {
                StatusCode::PAYLOAD_TOO_LARGE => Problem::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "invalid_request",
                    "the request body is too large",
                    &context,
                )
                .into_response(),
                _ => response,
            }
        }
    };
    shell.figures.count(method.as_str(), &route, response.status(), began.elapsed());
    response
}

fn admit(
    shell: &Shell,
    request: &Request,
    route: &str,
    context: &Context,
    now: Instant,
) -> Result<(), Box<Problem>> {
    let (family, needs_tenant) = rules(request.method(), route);
    let is_decide =
        *request.method() == Method::POST && matches!(route, "/api/v1/routes/decide" | "/api/v1/messages");
    let tenant = context.tenant_id.as_str();
    if let Some(family) = family
        && let Err(exceeded) = shell.limits.look(family, tenant, now)
    {
        shell.figures.limited(family, true);
        return Err(too_many(family, exceeded, context));
    }
    if is_decide && shell.authorization && !request.headers().contains_key(AUTHORIZATION) {
        let message = "missing Authorization header";
        return Err(Box::new(Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", message, context)));
    }
    if needs_tenant && tenant.is_empty() {
        return Err(Box::new(Problem::invalid("missing X-Tenant-ID header", context)));
    }
    if let Some(family) = family {
        let taken = shell.limits.take(family, tenant, now);
        shell.figures.limited(family, taken.is_err());
        taken.map_err(|exceeded| too_many(family, exceeded, context))?;
    }
    Ok(())
}

fn too_many(family: Family, exceeded: Exceeded, context: &Context) -> Box<Problem> {
    let Exceeded { limit, seconds } = exceeded;
    let endpoint = family.endpoint();
    let message = format!("Rate limit exceeded for endpoint {endpoint}");
    let details = json!({"endpoint": endpoint, "limit": limit, "retry_after_seconds": seconds});
    let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", message, context);
    Box::new(Problem { details, limit: Some(limit), retry_after: Some(seconds), ..problem })
}
