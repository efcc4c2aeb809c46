//! The shell: methods, who may call them, and errors as statuses.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http;
use beamlog_router::Router;
use beamlog_router::headers::Builder;
use beamlog_tasks::codes::Code as TaskCode;
use beamlog_tasks::engine::settings::subjects;
use bytes::Bytes;
use prost::Message as _;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::{Grpc as Codec, NamedService, UnaryService};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Request, Response, Status};
use tonic_prost::ProstCodec;
use tracing::warn;

use super::messages::{
    self, Done, Json, ListPoliciesRequest, ListPoliciesResponse, PolicyRequest, PolicyResponse, QUESTIONS,
    RouteDecision, RouteRequest, UpsertPolicyRequest,
};
use super::policies::{admin_policy, document};
use crate::config::Secret;
use crate::core_messages::{Unanswered, ask};

/// How long tasks are waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// Calls of one connection at a time.
const STREAMS_MAX: u32 = 256;
/// Policies in one answer.
const POLICIES_MAX: usize = 1_000;
/// A correlation id that is passed on.
const CORRELATION_MAX: usize = 128;

/// What gRPC is started with.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct GrpcOptions {
    pub listen: SocketAddr,
    /// What callers of `RouterAdmin` must show; without one nobody may call it.
    pub admin_key: Option<Secret>,
}

/// What all calls have in common.
struct Shell {
    router: Router,
    admin_key: Option<Secret>,
    message_bytes_max: usize,
}

/// The running server.
#[derive(Debug)]
pub(crate) struct Grpc {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Grpc {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Grpc {
    /// # Errors
    /// The descriptors do not fit together: a bug of ours.
    pub(crate) fn start(
        listener: TcpListener,
        router: Router,
        options: GrpcOptions,
        message_bytes_max: usize,
    ) -> Self {
        let address = listener.local_addr().unwrap_or(options.listen);
        let shell = Arc::new(Shell { router, admin_key: options.admin_key, message_bytes_max });
        let task = tokio::spawn(async move {
            if let Err(error) = serve(listener, shell).await {
                warn!(err = %error, "gRPC ended");
            }
        });
        Self { address, task }
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.address
    }
}

async fn serve(
    listener: TcpListener,
    shell: Arc<Shell>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<RouterService>().await;
    reporter.set_serving::<AdminService>().await;
    let reflection = || {
        tonic_reflection::server::Builder::configure().register_file_descriptor_set(messages::descriptors())
    };
    Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .add_service(RouterService(Arc::clone(&shell)))
        .add_service(AdminService(shell))
        .add_service(health)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)))
        .await?;
    Ok(())
}

type Answer<A> = Pin<Box<dyn Future<Output = Result<A, Status>> + Send>>;
type Reply = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

/// One method: what it does with a request.
struct Method<Q, A>(fn(Arc<Shell>, Request<Q>) -> Answer<A>, Arc<Shell>);

impl<Q, A: Send + 'static> UnaryService<Q> for Method<Q, A> {
    type Response = A;
    type Future = Pin<Box<dyn Future<Output = Result<Response<A>, Status>> + Send>>;

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let answer = (self.0)(Arc::clone(&self.1), request);
        Box::pin(async move { answer.await.map(Response::new) })
    }
}

fn unary<Q, A>(
    shell: &Arc<Shell>,
    request: http::Request<Body>,
    handle: fn(Arc<Shell>, Request<Q>) -> Answer<A>,
) -> Reply
where
    Q: prost::Message + Default + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    let method = Method(handle, Arc::clone(shell));
    let most = Some(shell.message_bytes_max);
    Box::pin(async move {
        let mut codec = Codec::new(ProstCodec::<A, Q>::default()).apply_max_message_size_config(most, None);
        Ok(codec.unary(method, request).await)
    })
}

fn unimplemented() -> Reply {
    Box::pin(async { Ok(Status::unimplemented("there is no such method").into_http()) })
}

#[derive(Clone)]
struct RouterService(Arc<Shell>);

impl NamedService for RouterService {
    const NAME: &'static str = "beamline.flow.v1.Router";
}

impl Service<http::Request<Body>> for RouterService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Reply;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Reply {
        match request.uri().path() {
            "/beamline.flow.v1.Router/Decide" => {
                unary(&self.0, request, |shell, request| Box::pin(decide(shell, request)))
            }
            _ => unimplemented(),
        }
    }
}

#[derive(Clone)]
struct AdminService(Arc<Shell>);

impl NamedService for AdminService {
    const NAME: &'static str = "beamline.flow.v1.RouterAdmin";
}

impl Service<http::Request<Body>> for AdminService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Reply;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Reply {
        if let Err(refused) = self.0.admits(request.headers()) {
            return Box::pin(async { Ok(refused.into_http()) });
        }
        let path = request.uri().path().to_owned();
        let name = path.rsplit('/').next().unwrap_or_default();
        match name {
            "UpsertPolicy" => unary(&self.0, request, |shell, q| Box::pin(upsert_policy(shell, q))),
            "DeletePolicy" => unary(&self.0, request, |shell, q| Box::pin(delete_policy(shell, q))),
            "GetPolicy" => unary(&self.0, request, |shell, q| Box::pin(get_policy(shell, q))),
            "ListPolicies" => unary(&self.0, request, |shell, q| Box::pin(list_policies(shell, q))),
            _ => match QUESTIONS.iter().find(|(question, _)| *question == name) {
                Some((_, subject)) => {
                    let mut request = request;
                    request.extensions_mut().insert(Question(subject));
                    unary(&self.0, request, |shell, q| Box::pin(question(shell, q)))
                }
                None => unimplemented(),
            },
        }
    }
}

/// The administrative subject of a call.
#[derive(Clone, Copy)]
struct Question(&'static str);

impl Shell {
    /// Whether a caller may administer.
    fn admits(&self, headers: &http::HeaderMap) -> Result<(), Status> {
        let Some(key) = &self.admin_key else {
            return Err(Status::permission_denied("no grpc_admin_key is configured: nobody may administer"));
        };
        let shown = headers.get("x-api-key").or_else(|| headers.get("authorization"));
        let shown = shown.map(http::HeaderValue::as_bytes).unwrap_or_default();
        let shown = shown.strip_prefix(b"Bearer ").unwrap_or(shown);
        // As long for a wrong key as for one that is nearly right.
        let differs = shown.iter().zip(key.0.as_bytes()).fold(0, |differs, (a, b)| differs | (a ^ b));
        if shown.len() == key.0.len() && differs == 0 {
            Ok(())
        } else {
            Err(Status::unauthenticated("x-api-key or authorization is missing or wrong"))
        }
    }

    async fn ask_admin(&self, name: &str, body: &Value) -> Result<Value, Status> {
        let subject = format!("{}{name}", subjects::ADMIN);
        let answer = ask(&self.router, &subject, b"", body.to_string().as_bytes(), PATIENCE)
            .await
            .map_err(|Unanswered| unavailable())?;
        let value: Value = serde_json::from_slice(&answer)
            .map_err(|_not_json| Status::internal("not an answer of tasks"))?;
        if value["ok"] == false { Err(of_error(&value)) } else { Ok(value) }
    }
}

fn unavailable() -> Status {
    Status::unavailable("tasks do not answer")
}

/// An error of tasks as a status.
fn of_error(value: &Value) -> Status {
    let (code, message) = (&value["error"]["code"], value["error"]["message"].as_str().unwrap_or_default());
    let code = code.as_str().unwrap_or_default();
    let known = TaskCode::ALL.into_iter().find(|known| known.as_str() == code);
    let code = match (known, code) {
        (Some(known), _) => Code::from_i32(known.grpc().into()),
        (None, "INVALID_ARGUMENT") => Code::InvalidArgument,
        (None, "POLICY_NOT_FOUND" | "NOT_FOUND") => Code::NotFound,
        (None, "RESOURCE_EXHAUSTED") => Code::ResourceExhausted,
        (None, "PIPELINE_ERROR") => Code::FailedPrecondition,
        (None, _) => Code::Internal,
    };
    Status::new(code, message)
}

/// Trace context and correlation, as headers of the request to tasks.
fn traced<Q>(request: &Request<Q>) -> Vec<u8> {
    let found = |name: &str| {
        let value = request.metadata().get(name)?.to_str().ok()?;
        (value.len() <= CORRELATION_MAX).then(|| value.to_owned())
    };
    let correlation = found("x-correlation-id").or_else(|| found("correlation-id"));
    let pairs = [("traceparent", found("traceparent")), ("x-correlation-id", correlation)];
    let mut pairs = pairs.into_iter().filter_map(|(name, value)| Some((name, value?))).peekable();
    if pairs.peek().is_none() {
        return Vec::new();
    }
    pairs.fold(Builder::new(), |builder, (name, value)| builder.header(name, value)).finish()
}

async fn decide(shell: Arc<Shell>, request: Request<RouteRequest>) -> Result<RouteDecision, Status> {
    let headers = traced(&request);
    let request = request.into_inner();
    if request.message.is_none() {
        return Err(Status::invalid_argument("message is required"));
    }
    let answer: Bytes = ask(&shell.router, subjects::DECIDE, &headers, &request.encode_to_vec(), PATIENCE)
        .await
        .map_err(|Unanswered| unavailable())?;
    // An error is JSON always: a decision has no place for one.
    if answer.first() == Some(&b'{') {
        return Err(of_error(&serde_json::from_slice(&answer).unwrap_or_default()));
    }
    RouteDecision::decode(answer).map_err(|_malformed| Status::internal("not a decision"))
}

async fn upsert_policy(shell: Arc<Shell>, request: Request<UpsertPolicyRequest>) -> Result<Done, Status> {
    let UpsertPolicyRequest { tenant_id, policy } = request.into_inner();
    let policy = policy.ok_or_else(|| Status::invalid_argument("policy is required"))?;
    let body = json!({"tenant_id": tenant_id, "policy_id": policy.policy_id, "policy": document(&policy),
        "by": "gRPC"});
    shell.ask_admin("upsert_policy", &body).await.map(|_| Done { ok: true })
}

async fn delete_policy(shell: Arc<Shell>, request: Request<PolicyRequest>) -> Result<Done, Status> {
    let PolicyRequest { tenant_id, policy_id } = request.into_inner();
    let body = json!({"tenant_id": tenant_id, "policy_id": policy_id, "by": "gRPC"});
    shell.ask_admin("delete_policy", &body).await.map(|_| Done { ok: true })
}

async fn get_policy(shell: Arc<Shell>, request: Request<PolicyRequest>) -> Result<PolicyResponse, Status> {
    let PolicyRequest { tenant_id, policy_id } = request.into_inner();
    let body = json!({"tenant_id": tenant_id, "policy_id": policy_id});
    let found = shell.ask_admin("get_policy", &body).await?;
    Ok(PolicyResponse { policy: Some(admin_policy(&policy_id, &found["policy"])) })
}

async fn list_policies(
    shell: Arc<Shell>,
    request: Request<ListPoliciesRequest>,
) -> Result<ListPoliciesResponse, Status> {
    let tenant = request.into_inner().tenant_id;
    let list = shell.ask_admin("list_policies", &json!({"tenant_id": tenant, "limit": POLICIES_MAX})).await?;
    let mut policies = Vec::new();
    for row in list["policies"].as_array().into_iter().flatten() {
        let id = row["policy_id"].as_str().unwrap_or_default();
        let body = json!({"tenant_id": tenant, "policy_id": id});
        match shell.ask_admin("get_policy", &body).await {
            Ok(found) => policies.push(admin_policy(id, &found["policy"])),
            // It was deleted meanwhile.
            Err(status) if status.code() == Code::NotFound => {}
            Err(status) => return Err(status),
        }
    }
    Ok(ListPoliciesResponse { policies })
}

async fn question(shell: Arc<Shell>, request: Request<Json>) -> Result<Json, Status> {
    let Some(Question(name)) = request.extensions().get::<Question>().copied() else {
        return Err(Status::internal("a question without a subject"));
    };
    let text = request.into_inner().json;
    let body: Value = match text.as_str() {
        "" => json!({}),
        text => {
            serde_json::from_str(text).map_err(|_not_json| Status::invalid_argument("json is no JSON"))?
        }
    };
    shell.ask_admin(name, &body).await.map(|answer| Json { json: answer.to_string() })
}
