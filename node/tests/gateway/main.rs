//! The built-in gateway over real sockets: what the separate gateway answers, case by case.
#![expect(clippy::unwrap_used, reason = "tests")]

mod http;
mod overload;

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use http::{Answer, PATIENCE, Request};

struct Node {
    child: Child,
    address: String,
    listen: String,
    _folder: TempDir,
}

impl Node {
    fn start(flags: &[&str]) -> Self {
        Self::with_policies(flags, &[])
    }

    fn with_policies(flags: &[&str], policies: &[(&str, Value)]) -> Self {
        let folder = TempDir::new().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_beamlog"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("BEAMLOG_") {
                command.env_remove(name);
            }
        }
        let policies_folder = folder.path().join("policies");
        std::fs::create_dir_all(policies_folder.join("_all")).unwrap();
        for (name, policy) in policies {
            std::fs::write(policies_folder.join(format!("_all/{name}.json")), policy.to_string()).unwrap();
        }
        let mut child = command
            .args(["serve", "--announce", "--tasks", "--gateway", "127.0.0.1:0", "--listen", "127.0.0.1:0"])
            .args(["--admin", "off", "--log-level", "warn", "--segment-bytes", "16MiB", "--data-dir"])
            .arg(folder.path().join("data"))
            .arg("--tasks-policies")
            .arg(policies_folder)
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let announced: Value = serde_json::from_str(&line).expect("it starts");
        let text = |key: &str| announced[key].as_str().unwrap().to_owned();
        Self { address: text("gateway"), listen: text("listen"), child, _folder: folder }
    }

    fn ask(&self, request: Request<'_>) -> Answer {
        request.send(&self.address)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

const DECIDE: &str = "/api/v1/routes/decide";

fn body(id: &str) -> Value {
    json!({"version": "1", "tenant_id": "acme", "request_id": id,
        "task": {"type": "chat", "payload": {"prompt": "hello"}}})
}

fn post(path: &str) -> Request<'_> {
    Request::new("POST", path).header("X-Tenant-ID: acme")
}

/// The shape of every error of the gateway itself.
fn is_problem(answer: &Answer, code: &str, message: &str, tenant: &str) {
    let value = answer.json();
    assert_eq!(value["ok"], false, "{value}");
    assert_eq!(value["error"]["code"], code, "{value}");
    assert_eq!(value["error"]["message"], message, "{value}");
    assert_eq!(value["error"].get("intake_error_code"), Some(&Value::Null), "{value}");
    assert!(value["error"]["details"].is_object(), "{value}");
    assert_eq!(value["context"]["tenant_id"], tenant, "{value}");
    assert_eq!(answer.header("content-type"), Some("application/json"));
}

#[test]
fn a_decision_is_made_and_looked_up() {
    let node = Node::start(&[]);
    let decided = node.ask(
        post(DECIDE)
            .header("X-Trace-ID: 3f2504e0-4f89-41d3-9a0c-0305e82c3301")
            .header("traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
            .json(&body("r-1")),
    );
    assert_eq!(decided.status, 200, "{}", decided.text());
    let value = decided.json();
    assert_eq!(value["ok"], true);
    assert!(value["decision"]["provider_id"].is_string(), "{value}");
    assert_eq!(value["context"]["request_id"], "r-1");
    assert_eq!(value["context"]["trace_id"], "3f2504e0-4f89-41d3-9a0c-0305e82c3301");
    let found = node.ask(Request::new("GET", "/api/v1/routes/decide/r-1").header("X-Tenant-ID: acme"));
    assert_eq!((found.status, &found.json()["decision"]), (200, &value["decision"]), "{}", found.text());
    // The same request by the other route: the same decision. The header's tenant is stronger than the body's.
    let again = node.ask(post("/api/v1/messages").json(&body("r-1")));
    assert_eq!(again.json()["decision"], value["decision"]);
    let other = Request::new("POST", DECIDE).header("x-tenant-id: other").json(&body("r-2"));
    assert_eq!(node.ask(other).status, 200);
    let by_body = Request::new("GET", "/api/v1/routes/decide/r-2").header("X-Tenant-ID: acme");
    assert_eq!(node.ask(by_body).status, 404);
}

#[test]
fn what_is_refused_and_how() {
    let node = Node::start(&["--gateway-limit-decide", "1000", "--payload-bytes-max", "64KiB"]);
    let without_tenant = || Request::new("POST", DECIDE);
    let mut wrong_version = body("r");
    wrong_version["version"] = json!("2");
    let mut no_task = body("r");
    no_task.as_object_mut().unwrap().remove("task");
    let mut no_payload = body("r");
    no_payload["task"] = json!({"type": "chat"});
    let large = json!({"version": "1", "tenant_id": "acme", "request_id": "r",
        "task": {"type": "chat", "payload": {"text": "x".repeat(65_500)}}});
    let dto = "invalid decide request DTO";
    let table = [
        (without_tenant().json(&body("r")), 400, "invalid_request", "missing X-Tenant-ID header", ""),
        (without_tenant(), 400, "invalid_request", "missing X-Tenant-ID header", ""),
        (post(DECIDE), 400, "invalid_request", "empty request body", "acme"),
        (post(DECIDE).body("{"), 400, "invalid_request", dto, "acme"),
        (post(DECIDE).body("[]"), 400, "invalid_request", dto, "acme"),
        (post(DECIDE).json(&wrong_version), 400, "invalid_request", dto, "acme"),
        (post(DECIDE).json(&no_task), 400, "invalid_request", dto, "acme"),
        (post(DECIDE).json(&no_payload), 400, "invalid_request", dto, "acme"),
        (post("/api/v1/messages").json(&no_task), 400, "invalid_request", dto, "acme"),
        (post(DECIDE).json(&large), 413, "invalid_request", "the request body is too large", "acme"),
        (
            Request::new("GET", "/api/v1/routes/decide/r"),
            400,
            "invalid_request",
            "missing tenant_id for decision lookup",
            "",
        ),
        (
            Request::new("GET", "/api/v1/routes/decide/"),
            400,
            "invalid_request",
            "missing message_id path parameter",
            "",
        ),
        (Request::new("GET", "/nowhere"), 404, "invalid_request", "route not found", ""),
        (Request::new("GET", DECIDE), 404, "invalid_request", "route not found", ""),
        (Request::new("GET", "/api/v1/messages/stream"), 400, "invalid_request", "missing tenant_id", ""),
        (Request::new("PUT", "/api/v1/messages/m"), 400, "invalid_request", "missing X-Tenant-ID header", ""),
        (
            Request::new("PUT", "/api/v1/messages/m").header("X-Tenant-ID: acme"),
            400,
            "invalid_request",
            "empty body",
            "acme",
        ),
        (
            Request::new("PUT", "/api/v1/messages/m").header("X-Tenant-ID: acme").body("[1]"),
            400,
            "invalid_request",
            "invalid JSON",
            "acme",
        ),
        (
            Request::new("PUT", "/api/v1/messages/m")
                .header("X-Tenant-ID: acme")
                .body(r#"{"message_id":"other"}"#),
            409,
            "conflict",
            "message_id mismatch with path",
            "acme",
        ),
        (
            Request::new("DELETE", "/api/v1/messages/m"),
            400,
            "invalid_request",
            "missing X-Tenant-ID header",
            "",
        ),
        (Request::new("POST", "/api/v1/policies/dry-run"), 400, "INVALID_REQUEST", "empty request body", ""),
        (
            Request::new("POST", "/api/v1/registry/blocks/http"),
            400,
            "invalid_request",
            "missing version segment",
            "",
        ),
        (
            Request::new("POST", "/api/v1/registry/blocks/http/1").body("{"),
            400,
            "invalid_request",
            "invalid JSON",
            "",
        ),
        (Request::new("DELETE", "/api/v1/registry/blocks/http/1"), 404, "not_found", "block not found", ""),
    ];
    for (request, status, code, message, tenant) in table {
        let shown = format!("{request:?}");
        let answer = node.ask(request);
        assert_eq!(answer.status, status, "{shown}: {}", answer.text());
        is_problem(&answer, code, message, tenant);
    }
}

/// What the router refuses comes as it said it, with the status that its code means.
#[test]
fn refusals_of_the_router_keep_their_code() {
    let blocked = json!({"version": "1.0", "providers": [{"name": "openai", "weight": 100}],
        "validators": [{"id": "nobody_registered", "on_fail": "block"}]});
    let limited = json!({"version": "1.0", "providers": [{"name": "openai", "weight": 100}],
        "rate_limit": {"enabled": true, "requests_per_second": 1, "burst": 1}});
    let nobody = json!({"version": "1.0", "providers": [{"name": "openai", "weight": 0}]});
    let node = Node::with_policies(&[], &[("blocked", blocked), ("limited", limited), ("nobody", nobody)]);
    let ask = |id: &str, policy: &str| {
        let mut body = body(id);
        body["policy_id"] = policy.into();
        node.ask(post(DECIDE).json(&body))
    };
    for (policy, status, code) in [
        ("not_there", 404, "policy_not_found"),
        ("nobody", 500, "decision_failed"),
        ("blocked", 404, "extension_not_found"),
    ] {
        let answer = ask(policy, policy);
        let value = answer.json();
        assert_eq!((answer.status, &value["error"]["code"]), (status, &json!(code)), "{value}");
        assert_eq!(value["error"].get("intake_error_code"), Some(&Value::Null), "{value}");
        assert_eq!(value["context"]["request_id"], policy);
    }
    // The first is allowed, one of the next is not.
    let refused =
        (0..20).map(|n| ask(&format!("l-{n}"), "limited")).find(|answer| answer.status != 200).unwrap();
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (429, &json!("rate_limit_exceeded")));
    assert_eq!(refused.header("retry-after"), Some("1"));
    let mut empty = body("e");
    empty["idempotency_key"] = json!("");
    let intake = node.ask(post(DECIDE).json(&empty)).json();
    assert_eq!(intake["error"]["code"], "invalid_request");
    assert!(intake["error"]["intake_error_code"].is_string(), "{intake}");
}

#[test]
fn limits_come_first_then_authorization_then_what_is_missing() {
    let node = Node::start(&[
        "--gateway-authorization",
        "--gateway-limit-decide",
        "2",
        "--gateway-limit-registry",
        "1",
    ]);
    let open = node.ask(post(DECIDE).json(&body("r-1")));
    assert_eq!(open.status, 401);
    is_problem(&open, "unauthorized", "missing Authorization header", "acme");
    let nothing = node.ask(Request::new("POST", DECIDE));
    assert_eq!(nothing.status, 401, "before the tenant");
    let known = || post(DECIDE).header("Authorization: Bearer anything");
    assert_eq!(node.ask(known()).status, 400, "it counts");
    assert_eq!(node.ask(known().json(&body("r-1"))).status, 200);
    for request in [known().json(&body("r-2")), post(DECIDE), known().body("{")] {
        let full = node.ask(request);
        assert_eq!(full.status, 429, "{}", full.text());
        is_problem(
            &full,
            "rate_limit_exceeded",
            "Rate limit exceeded for endpoint /api/v1/routes/decide",
            "acme",
        );
        let seconds: u64 = full.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=60).contains(&seconds));
        assert_eq!(full.header("x-ratelimit-limit"), Some("2"));
        assert_eq!(full.header("x-ratelimit-remaining"), Some("0"));
        assert!(full.header("x-ratelimit-reset").unwrap().parse::<u64>().unwrap() > 1_600_000_000);
        let details = &full.json()["error"]["details"];
        assert_eq!(*details, json!({"endpoint": DECIDE, "limit": 2, "retry_after_seconds": seconds}));
    }
    // Of this tenant and this family only.
    let other = Request::new("POST", DECIDE).header("X-Tenant-ID: other").header("Authorization: x");
    assert_eq!(node.ask(other.json(&body("r-3"))).status, 200);
    let messages = post("/api/v1/messages").header("Authorization: x");
    assert_eq!(node.ask(messages.json(&body("r-4"))).status, 200);
    let block = || Request::new("DELETE", "/api/v1/registry/blocks/a/1");
    assert_eq!(node.ask(block()).status, 404);
    assert_eq!(node.ask(block()).status, 429);
    let figures = node.ask(Request::new("GET", "/_metrics")).json();
    assert_eq!(
        figures["rate_limit"]["exceeded_by_endpoint"],
        json!({"routes_decide": 3, "messages": 0, "registry_blocks": 1})
    );
    let text = node.ask(Request::new("GET", "/metrics")).text();
    assert!(text.contains("gateway_rate_limit_hits_total 4"), "{text}");
    let line = r#"gateway_http_requests_total{method="POST",path="/api/v1/routes/decide",status="429"} 3"#;
    assert!(text.contains(line), "{text}");
}

#[test]
fn blocks_are_registered_with_schemas() {
    let node = Node::start(&[]);
    let path = "/api/v1/registry/blocks/http/1.0";
    let manifest = json!({"type": "http", "version": "1.0", "capabilities": ["get"], "metadata": {},
        "schema": {"input": {"type": "object"}, "output": {"$schema": "http://json-schema.org/draft-07/schema#"}}});
    let write = |method: &'static str, manifest: &Value| node.ask(Request::new(method, path).json(manifest));
    let created = write("POST", &manifest);
    assert_eq!((created.status, &created.json()["status"]), (201, &json!("created")), "{}", created.text());
    let updated = write("PUT", &manifest);
    assert_eq!((updated.status, &updated.json()["status"]), (200, &json!("updated")));
    let wrong = [
        ("/type", json!("grpc"), 409, "conflict"),
        ("/version", json!("2.0"), 409, "conflict"),
        ("/capabilities", json!("get"), 400, "invalid_request"),
        ("/capabilities", json!([1]), 400, "invalid_request"),
        ("/metadata", json!([]), 400, "invalid_request"),
        ("/schema/input", json!({"type": "objekt"}), 400, "invalid_schema"),
        ("/schema/input", json!({"required": [1]}), 400, "invalid_schema"),
        ("/schema/output", json!(null), 400, "invalid_schema"),
        (
            "/schema/output",
            json!({"$schema": "https://json-schema.org/draft/2020-12/schema"}),
            400,
            "invalid_schema",
        ),
    ];
    for (at, value, status, code) in wrong {
        let mut manifest = manifest.clone();
        *manifest.pointer_mut(at).unwrap() = value;
        let answer = write("PUT", &manifest);
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (status, &json!(code)), "{manifest}");
    }
    let deleted = node.ask(Request::new("DELETE", path));
    assert_eq!((deleted.status, &deleted.json()["status"]), (200, &json!("unregistered")));
    assert_eq!(node.ask(Request::new("DELETE", path)).status, 404);
}

#[test]
fn listeners_hear_of_their_tenant() {
    let node = Node::start(&[]);
    let stream = TcpStream::connect(&node.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut lines = Request::new("GET", "/api/v1/messages/stream?tenant_id=acme").open(stream);
    let head: Vec<String> = lines.by_ref().map_while(|line| (!line.is_empty()).then_some(line)).collect();
    let has = |wanted: &str| head.iter().any(|line| line.eq_ignore_ascii_case(wanted));
    assert!(has("HTTP/1.1 200 OK") && has("content-type: text/event-stream"), "{head:?}");
    assert!(has("access-control-allow-origin: *") && has("cache-control: no-cache"), "{head:?}");
    let mut next = |beginning: &str| lines.by_ref().find(|line| line.starts_with(beginning)).unwrap();
    next(": connected");
    let put = |tenant: &str, text: &str| {
        let tenant = format!("X-Tenant-ID: {tenant}");
        node.ask(Request::new("PUT", "/api/v1/messages/m-1").header(&tenant).body(text))
    };
    assert_eq!(put("other", "{\"a\":1}").status, 200);
    let told = put("acme", "{\n \"message_id\": \"m-1\"\n}");
    assert_eq!((told.status, told.text().as_str()), (200, "{\n \"message_id\": \"m-1\"\n}"));
    assert_eq!(next("event: "), "event: message_updated");
    assert_eq!(next("data: "), "data: {\"message_id\":\"m-1\"}");
    let deleted = node.ask(Request::new("DELETE", "/api/v1/messages/m-1").header("X-Tenant-ID: acme"));
    assert_eq!(deleted.json(), json!({"status": "deleted", "message_id": "m-1"}));
    assert_eq!(next("event: "), "event: message_deleted");
    assert_eq!(next("data: "), "data: {\"message_id\":\"m-1\"}");
    assert_eq!(node.ask(post(DECIDE).json(&body("r-1"))).status, 200);
    assert_eq!(
        node.ask(Request::new("GET", "/api/v1/routes/decide/r-1").header("X-Tenant-ID: acme")).status,
        200
    );
    assert_eq!(next("event: "), "event: message_created");
    assert!(next("data: ").contains("provider_id"));
}

#[test]
fn no_more_listeners_than_there_are_places() {
    let node = Node::start(&[]);
    let open = || {
        let stream = TcpStream::connect(&node.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut lines = Request::new("GET", "/api/v1/messages/stream?tenant_id=acme").open(stream);
        let first = lines.find(|line| line.starts_with(": ")).unwrap();
        (lines, first)
    };
    let listeners: Vec<_> = (0..64).map(|_| open()).collect();
    assert!(listeners.iter().all(|(_, first)| first == ": connected"));
    assert_eq!(open().1, ": pool_full");
}

#[test]
fn questions_of_administrators_are_passed_on() {
    let node = Node::start(&[]);
    let get = |path: &str| node.ask(Request::new("GET", path));
    let health = get("/api/v1/extensions/health");
    assert!(health.status == 200 && health.json()["health"].is_object(), "{}", health.text());
    let states = get("/api/v1/extensions/circuit-breakers");
    assert!(states.status == 200 && states.json()["states"].is_object(), "{}", states.text());
    let complexity = get("/api/v1/policies/acme/default/complexity");
    assert!(complexity.status == 200 && complexity.json()["total_extensions"] == 0, "{}", complexity.text());
    let request = json!({"tenant_id": "acme", "policy_id": "default", "payload": {"a": 1}});
    let dry = node.ask(Request::new("POST", "/api/v1/policies/dry-run").json(&request));
    assert!(dry.status == 200 && dry.json()["ok"] == true, "{}", dry.text());
    let health = get("/_health").json();
    assert_eq!(health["status"], "healthy");
    assert!(health["timestamp"].as_str().unwrap().ends_with('Z'));
    assert_eq!(get("/health").status, 200);
}

#[test]
fn the_document_names_every_route() {
    let node = Node::start(&[]);
    let document = node.ask(Request::new("GET", "/openapi.json")).json();
    assert_eq!(document["openapi"], "3.1.0");
    let paths = document["paths"].as_object().unwrap();
    for (path, methods) in paths {
        for method in methods.as_object().unwrap().keys() {
            let path = path.replace(['{', '}'], "");
            let answer = node.ask(Request::new(&method.to_uppercase(), &path));
            let is_missing = answer.status == 404 && answer.text().contains("route not found");
            assert!(!is_missing, "{method} {path}");
        }
    }
    assert_eq!(paths.len(), 15);
}

#[test]
fn a_gateway_needs_tasks_and_a_safe_address() {
    let refused = |flags: &[&str]| {
        let folder = TempDir::new().unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_beamlog"))
            .args(["serve", "--listen", "127.0.0.1:0", "--admin", "off", "--data-dir"])
            .arg(folder.path().join("data"))
            .args(flags)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(refused(&["--gateway", "127.0.0.1:0"]).contains("gateway: needs tasks"));
    assert!(refused(&["--tasks", "--gateway", "0.0.0.0:0"]).contains("--insecure"));
}
