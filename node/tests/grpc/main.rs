//! gRPC of a node, asked by a gRPC client that has the messages from elsewhere: from the contract.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use prost_types::FileDescriptorProto;
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_prost::ProstCodec;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

#[derive(Clone, PartialEq, prost::Message)]
struct Message {
    #[prost(string, tag = "1")]
    message_id: String,
    #[prost(string, tag = "2")]
    tenant_id: String,
    #[prost(string, tag = "3")]
    trace_id: String,
    #[prost(string, tag = "4")]
    message_type: String,
    #[prost(bytes = "vec", tag = "5")]
    payload: Vec<u8>,
    #[prost(btree_map = "string, string", tag = "6")]
    metadata: BTreeMap<String, String>,
    #[prost(int64, tag = "7")]
    timestamp_ms: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RouteRequest {
    #[prost(message, optional, tag = "1")]
    message: Option<Message>,
    #[prost(string, tag = "2")]
    policy_id: String,
    #[prost(btree_map = "string, string", tag = "3")]
    context: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RouteDecision {
    #[prost(string, tag = "1")]
    provider_id: String,
    #[prost(string, tag = "2")]
    reason: String,
    #[prost(int32, tag = "3")]
    priority: i32,
    #[prost(int64, tag = "4")]
    expected_latency_ms: i64,
    #[prost(double, tag = "5")]
    expected_cost: f64,
    #[prost(btree_map = "string, string", tag = "6")]
    metadata: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Provider {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(double, tag = "2")]
    weight: f64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Policy {
    #[prost(string, tag = "1")]
    policy_id: String,
    #[prost(message, repeated, tag = "2")]
    providers: Vec<Provider>,
    #[prost(bool, tag = "3")]
    sticky: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Upsert {
    #[prost(string, tag = "1")]
    tenant_id: String,
    #[prost(message, optional, tag = "2")]
    policy: Option<Policy>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Done {
    #[prost(bool, tag = "1")]
    ok: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Named {
    #[prost(string, tag = "1")]
    tenant_id: String,
    #[prost(string, tag = "2")]
    policy_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Found {
    #[prost(message, repeated, tag = "1")]
    policies: Vec<Policy>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Json {
    #[prost(string, tag = "1")]
    json: String,
}

struct Node {
    child: Child,
    channel: Channel,
    _folder: TempDir,
}

impl Node {
    async fn start(flags: &[&str]) -> Self {
        let folder = TempDir::new().unwrap();
        std::fs::write(folder.path().join("key"), "open sesame\n").unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_beamlog"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("BEAMLOG_") {
                command.env_remove(name);
            }
        }
        let mut child = command
            .args(["serve", "--announce", "--tasks", "--grpc", "127.0.0.1:0", "--listen", "127.0.0.1:0"])
            .args(["--admin", "off", "--log-level", "warn", "--segment-bytes", "16MiB", "--data-dir"])
            .arg(folder.path().join("data"))
            .args(flags)
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let announced: Value = serde_json::from_str(&line).expect("it starts");
        let address = format!("http://{}", announced["grpc"].as_str().unwrap());
        let channel = Channel::from_shared(address).unwrap().connect().await.unwrap();
        Self { child, channel, _folder: folder }
    }

    async fn call<Q, A>(
        &self,
        method: &'static str,
        request: Q,
        key: Option<&'static str>,
    ) -> Result<A, Status>
    where
        Q: prost::Message + Default + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let mut client = Grpc::new(self.channel.clone());
        client.ready().await.unwrap();
        let mut request = Request::new(request);
        if let Some(key) = key {
            request.metadata_mut().insert("x-api-key", key.parse().unwrap());
        }
        request
            .metadata_mut()
            .insert("x-correlation-id", "5f0c7f1e-0e0a-4c0e-9a51-2e4a6e2d9b11".parse().unwrap());
        let answer = client.unary(request, PathAndQuery::from_static(method), ProstCodec::default()).await?;
        Ok(answer.into_inner())
    }

    async fn decide(&self, message_id: &str, policy: &str, tenant: &str) -> Result<RouteDecision, Status> {
        let message = Message {
            message_id: message_id.into(),
            tenant_id: tenant.into(),
            message_type: "chat".into(),
            payload: br#"{"prompt":"hello"}"#.to_vec(),
            ..Message::default()
        };
        let request =
            RouteRequest { message: Some(message), policy_id: policy.into(), context: BTreeMap::new() };
        self.call("/beamline.flow.v1.Router/Decide", request, None).await
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

const ADMIN_KEY: [&str; 2] = ["--grpc-admin-key-file", "key"];
const UPSERT: &str = "/beamline.flow.v1.RouterAdmin/UpsertPolicy";
const GET: &str = "/beamline.flow.v1.RouterAdmin/GetPolicy";
const LIST: &str = "/beamline.flow.v1.RouterAdmin/ListPolicies";
const DELETE: &str = "/beamline.flow.v1.RouterAdmin/DeletePolicy";
const DRY_RUN: &str = "/beamline.flow.v1.RouterAdmin/DryRunPipeline";
const SESAME: Option<&str> = Some("open sesame");

#[tokio::test]
async fn a_decision_is_made_and_errors_are_statuses() {
    let node = Node::start(&[]).await;
    let first = node.decide("m-1", "", "acme").await.unwrap();
    assert!(!first.provider_id.is_empty() && first.reason == "weighted" && first.priority == 50, "{first:?}");
    assert_eq!(node.decide("m-1", "", "acme").await.unwrap(), first, "the same request");
    let code = |answer: Result<RouteDecision, Status>| answer.unwrap_err().code();
    assert_eq!(code(node.decide("m-2", "nothing", "acme").await), Code::NotFound);
    assert_eq!(code(node.decide("m-3", "", "").await), Code::InvalidArgument);
    let empty = node.call("/beamline.flow.v1.Router/Decide", RouteRequest::default(), None).await;
    assert_eq!(code(empty), Code::InvalidArgument);
    let unknown = node.call("/beamline.flow.v1.Router/Divine", RouteRequest::default(), None).await;
    assert_eq!(code(unknown), Code::Unimplemented);
}

#[tokio::test]
async fn policies_are_administered_by_who_has_the_key() {
    let node = Node::start(&ADMIN_KEY).await;
    let provider = Provider { id: "only".into(), weight: 1.0 };
    let policy = Policy { policy_id: "gold".into(), providers: vec![provider], sticky: false };
    let upsert = || Upsert { tenant_id: "acme".into(), policy: Some(policy.clone()) };
    let named = || Named { tenant_id: "acme".into(), policy_id: "gold".into() };
    for key in [None, Some("open sesamo"), Some("open"), Some("")] {
        let refused: Result<Done, Status> = node.call(UPSERT, upsert(), key).await;
        assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated, "{key:?}");
    }
    let done: Done = node.call(UPSERT, upsert(), SESAME).await.unwrap();
    assert!(done.ok);
    assert_eq!(node.decide("m-1", "gold", "acme").await.unwrap().provider_id, "only");
    let found: Found = node.call(GET, named(), SESAME).await.unwrap();
    assert_eq!(found.policies, std::slice::from_ref(&policy));
    let found: Found = node.call(LIST, named(), SESAME).await.unwrap();
    assert_eq!(found.policies, std::slice::from_ref(&policy));
    let dry = json!({"tenant_id": "acme", "policy_id": "gold", "payload": {"prompt": "x"}}).to_string();
    let answer: Json = node.call(DRY_RUN, Json { json: dry }, SESAME).await.unwrap();
    let answer: Value = serde_json::from_str(&answer.json).unwrap();
    assert_eq!(answer["result"]["decision"]["provider_id"], "only", "{answer}");
    let done: Done = node.call(DELETE, named(), SESAME).await.unwrap();
    assert!(done.ok);
    let gone: Result<Found, Status> = node.call(GET, named(), SESAME).await;
    assert_eq!(gone.unwrap_err().code(), Code::NotFound);
    let bad = Upsert { tenant_id: "acme".into(), policy: None };
    let refused: Result<Done, Status> = node.call(UPSERT, bad, SESAME).await;
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn without_a_key_nobody_administers() {
    let node = Node::start(&[]).await;
    let named = Named { tenant_id: "acme".into(), policy_id: "default".into() };
    let refused: Result<Found, Status> = node.call(GET, named, Some("")).await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn health_and_reflection_are_served() {
    let node = Node::start(&[]).await;
    let mut health = HealthClient::new(node.channel.clone());
    for service in ["", "beamline.flow.v1.Router", "beamline.flow.v1.RouterAdmin"] {
        let answer = health.check(HealthCheckRequest { service: service.to_owned() }).await.unwrap();
        assert_eq!(answer.into_inner().status, 1, "{service}");
    }
    let unknown = health.check(HealthCheckRequest { service: "nothing".to_owned() }).await;
    assert_eq!(unknown.unwrap_err().code(), Code::NotFound);

    let mut reflection = ServerReflectionClient::new(node.channel.clone());
    let questions = [
        MessageRequest::ListServices(String::new()),
        MessageRequest::FileContainingSymbol("beamline.flow.v1.Router".to_owned()),
    ];
    let questions = questions
        .map(|question| ServerReflectionRequest { host: String::new(), message_request: Some(question) });
    let answers = reflection.server_reflection_info(futures_util::stream::iter(questions)).await.unwrap();
    let mut answers = answers.into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(list) = answer else { panic!("{answer:?}") };
    let services = list.service;
    let names: BTreeSet<String> = services.into_iter().map(|service| service.name).collect();
    assert!(names.contains("beamline.flow.v1.Router") && names.contains("beamline.flow.v1.RouterAdmin"));
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::FileDescriptorResponse(files) = answer else { panic!("{answer:?}") };
    let files = files.file_descriptor_proto;
    let file: FileDescriptorProto = prost::Message::decode(files[0].as_slice()).unwrap();
    let decide = &file.service[0].method[0];
    assert_eq!(
        (decide.name(), decide.input_type(), decide.output_type()),
        ("Decide", ".beamline.flow.v1.RouteRequest", ".beamline.flow.v1.RouteDecision")
    );
}
