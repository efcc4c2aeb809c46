//! The engine as its clients see it: messages in, messages out.

use serde_json::{Value, json};

use super::pool::Member;
use super::settings::subjects::{ASSIGN, DECIDE, GET_DECISION, HEARTBEATS, RESULT};
use super::*;
use crate::state::event;
use crate::state::{Bounds, State};

struct Scene {
    engine: Engine,
    now: u64,
    log: Vec<Event>,
    published: Vec<(String, Value)>,
    offered: Vec<(u64, Value)>,
    asked: Vec<(u64, String, Value)>,
    members: Vec<Member>,
}

impl Scene {
    fn new() -> Self {
        Self::with(Settings::default())
    }

    fn with(settings: Settings) -> Self {
        let engine = Engine::new(State::new(Bounds::default()), settings, 7, 1_000);
        let mut scene = Self {
            engine,
            now: 1_000,
            log: Vec::new(),
            published: Vec::new(),
            offered: Vec::new(),
            asked: Vec::new(),
            members: Vec::new(),
        };
        scene.collect();
        scene
    }

    /// Another node over the same log.
    fn restart(mut self) -> Self {
        let written = event::encode(&self.log).unwrap();
        let mut state = State::new(Bounds::default());
        event::decode(&written).unwrap().iter().for_each(|event| state.apply(event));
        assert_eq!(&state, self.engine.state(), "live and replayed state are the same fold");
        self.engine = Engine::new(state, self.engine.settings.clone(), 8, self.now);
        self.members.clear();
        self.collect();
        self
    }

    fn collect(&mut self) {
        let (events, effects) = self.engine.take();
        self.log.extend(events);
        for effect in effects {
            match effect {
                Effect::Publish { subject, payload, .. } => {
                    let body = serde_json::from_slice(&payload).unwrap_or_default();
                    self.published.push((String::from_utf8(subject.to_vec()).unwrap(), body));
                }
                Effect::Ask { token, subject, payload } => {
                    self.asked.push((token, subject, serde_json::from_slice(&payload).unwrap()));
                }
                Effect::Offer { entry, payload, .. } => {
                    self.offered.push((entry, serde_json::from_slice(&payload).unwrap()));
                }
                Effect::Watch { .. } => {}
            }
        }
    }

    fn send(&mut self, subject: &str, origin: u64, body: &Value) {
        let payload = body.to_string();
        let message = Message {
            subject: subject.as_bytes(),
            reply: b"inbox",
            headers: b"",
            payload: payload.as_bytes(),
            origin,
        };
        self.engine.handle(self.now, Input::Message(message));
        self.collect();
    }

    fn request(&mut self, subject: &str, body: Value) -> Value {
        self.published.clear();
        self.send(subject, 1, &body);
        self.replied()
    }

    fn replied(&self) -> Value {
        let replies: Vec<&Value> =
            self.published.iter().filter(|(to, _)| to == "inbox").map(|(_, body)| body).collect();
        assert_eq!(replies.len(), 1, "{:?}", self.published);
        replies[0].clone()
    }

    fn admin(&mut self, name: &str, body: Value) -> Value {
        self.request(&format!("beamline.router.v1.admin.{name}"), body)
    }

    fn push(&mut self, id: &str) -> Value {
        self.request(DECIDE, job(id, json!({})))
    }

    fn push_with(&mut self, id: &str, options: Value) -> Value {
        self.request(DECIDE, job(id, options))
    }

    fn worker(&mut self, entry: u64) {
        self.members.push(Member { entry, connection: entry, in_group: false });
        self.tell();
    }

    fn worker_leaves(&mut self, entry: u64) {
        self.members.retain(|member| member.entry != entry);
        self.tell();
    }

    fn tell(&mut self) {
        let members = self.members.clone();
        self.engine.handle(self.now, Input::Members { subject: ASSIGN.into(), members, captured: false });
        self.collect();
    }

    fn wait(&mut self, millis: u64) {
        let until = self.now + millis;
        while let Some(at) = self.engine.next_deadline().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            self.engine.handle(self.now, Input::Tick);
            self.collect();
        }
        self.now = until;
        self.engine.handle(self.now, Input::Tick);
        self.collect();
    }

    fn finish(&mut self, assignment: &Value, status: &str) {
        let result = result_of(assignment, status);
        self.send(RESULT, 9, &result);
    }

    fn usage(&self) -> Vec<Value> {
        self.engine
            .usage_after(0, 1_000)
            .iter()
            .map(|(_, body)| serde_json::from_slice(body).unwrap())
            .collect()
    }
}

fn job(id: &str, options: Value) -> Value {
    json!({"version": "1", "tenant_id": "acme", "request_id": id, "trace_id": "tr", "push_assignment": true,
        "task": {"type": "echo", "payload": {"hello": "world"}}, "options": options})
}

fn result_of(assignment: &Value, status: &str) -> Value {
    json!({"version": "v1", "kind": "exec_result", "data": {"version": "1.0",
        "assignment_id": assignment["assignment_id"], "request_id": assignment["request_id"], "status": status,
        "provider_id": "worker-1", "job_type": "echo", "latency_ms": 40, "cost": 0.5, "tenant_id": "acme"}})
}

fn code(reply: &Value) -> &str {
    reply["error"]["code"].as_str().unwrap_or("none")
}

#[test]
fn a_request_is_decided_and_its_reply_has_every_dialect() {
    let mut scene = Scene::new();
    let reply = scene.request(DECIDE, json!({"tenant_id": "t", "request_id": "r", "message": {}}));
    assert_eq!(reply["ok"], true);
    assert_eq!(reply["provider_id"], reply["decision"]["provider_id"]);
    assert_eq!(reply["decision"]["reason"], "weighted");
}

#[test]
fn without_a_reply_subject_both_names_of_the_contract_are_used() {
    let mut scene = Scene::new();
    let payload = json!({"tenant_id": "t", "message_id": "m"}).to_string();
    let message = Message {
        subject: DECIDE.as_bytes(),
        reply: b"",
        headers: b"",
        payload: payload.as_bytes(),
        origin: 1,
    };
    scene.engine.handle(1_000, Input::Message(message));
    scene.collect();
    let to: Vec<&str> = scene.published.iter().map(|(to, _)| to.as_str()).collect();
    assert_eq!(to, ["beamline.router.v1.decide.reply", "beamline.router.v1.decide.response"]);
}

#[test]
fn the_same_request_gets_the_same_decision_after_a_restart_too() {
    let mut scene = Scene::new();
    let request = job("r-1", json!({}));
    let first = scene.request(DECIDE, request.clone());
    for _ in 0..20 {
        assert_eq!(scene.request(DECIDE, request.clone()), first);
    }
    let mut scene = scene.restart();
    assert_eq!(scene.request(DECIDE, request.clone()), first);
    assert_eq!(scene.engine.state().totals.tasks, 1);
    assert_eq!(scene.engine.counters().idempotent_hits, 1);
    // The same id with other content is another request; with a key of its own it is a mistake.
    let mut other = request.clone();
    other["task"]["payload"] = json!({"hello": "moon"});
    scene.request(DECIDE, other.clone());
    assert_eq!(scene.engine.state().totals.tasks, 2);
    let (mut request, mut other) = (request, other);
    request["idempotency_key"] = "key".into();
    other["idempotency_key"] = "key".into();
    assert_eq!(scene.request(DECIDE, request)["ok"], true);
    let refused = scene.request(DECIDE, other);
    assert_eq!(refused["error"]["intake_error_code"], "IDEMPOTENCY_VIOLATION");
    // And in an hour all is new.
    scene.now += 3_600_001;
    scene.request(DECIDE, job("r-1", json!({})));
    assert_eq!(scene.engine.state().totals.tasks, 4);
}

#[test]
fn a_decision_is_found_by_its_message() {
    let mut scene = Scene::new();
    let made = scene.request(DECIDE, json!({"tenant_id": "t", "message_id": "m-1", "message_type": "chat"}));
    let found = scene.request(GET_DECISION, json!({"message_id": "m-1"}));
    assert_eq!(found["decision"], made["decision"]);
    assert_eq!(code(&scene.request(GET_DECISION, json!({"message_id": "m-2"}))), "not_found");
    assert_eq!(code(&scene.request(GET_DECISION, json!({}))), "invalid_request");
    scene.request(DECIDE, json!({"tenant_id": "u", "message_id": "m-1", "message_type": "chat"}));
    assert_eq!(code(&scene.request(GET_DECISION, json!({"message_id": "m-1"}))), "invalid_request");
    assert_eq!(scene.request(GET_DECISION, json!({"message_id": "m-1", "tenant_id": "t"}))["ok"], true);
}

#[test]
fn a_job_goes_to_one_worker_and_its_result_counts_once() {
    let mut scene = Scene::new();
    scene.worker(1);
    scene.worker(2);
    scene.push("r");
    assert_eq!(scene.offered.len(), 1);
    let assignment = scene.offered[0].1.clone();
    assert_eq!(assignment["job"], json!({"type": "echo", "payload": {"hello": "world"}}));
    assert_eq!(
        (&assignment["trace_id"], &assignment["correlation"]["trace_id"]),
        (&json!("tr"), &json!("tr"))
    );
    assert_eq!(assignment["options"]["deadline_ms"], 5_000);
    for _ in 0..3 {
        scene.finish(&assignment, "success");
    }
    let scene = scene.restart();
    let usage = scene.usage();
    assert_eq!(usage.len(), 1);
    assert_eq!(usage[0]["assignment_id"], assignment["assignment_id"]);
    assert_ne!(usage[0]["provider_id"], "worker-1", "the provider is looked up");
    assert_eq!(scene.engine.state().totals.succeeded, 1);
}

#[test]
fn a_result_counts_once_for_ever() {
    let mut scene = Scene::new();
    scene.worker(1);
    scene.push("r");
    let assignment = scene.offered[0].1.clone();
    scene.finish(&assignment, "success");
    scene.engine.state.tasks.clear();
    scene.finish(&assignment, "success");
    assert_eq!(scene.usage().len(), 1, "no memory of the task is needed");
    assert_eq!(scene.engine.counters().results_duplicate, 1);
}

#[test]
fn a_silent_worker_loses_the_job_to_another() {
    let mut scene = Scene::new();
    scene.worker(1);
    scene.worker(2);
    scene.push_with("r", json!({"deadline_ms": 1_000}));
    let (first, assignment) = scene.offered[0].clone();
    scene.wait(1_001);
    let (second, again) = scene.offered[1].clone();
    assert_ne!(first, second);
    assert_ne!(assignment["assignment_id"], again["assignment_id"], "or a worker that had it would skip it");
    // The late one is first in the end: it counts, the other does not.
    scene.finish(&assignment, "success");
    scene.finish(&again, "success");
    assert_eq!(scene.usage().len(), 1);
    assert_eq!(scene.usage()[0]["assignment_id"], assignment["assignment_id"]);
}

#[test]
fn silence_for_ever_ends_in_a_dead_letter_that_can_be_replayed() {
    let mut scene = Scene::with(Settings { deliveries_max: 3, ..Settings::default() });
    scene.worker(1);
    scene.push_with("r", json!({"deadline_ms": 1_000}));
    scene.wait(60_000);
    assert_eq!(scene.offered.len(), 3);
    let letters = scene.admin("list_dlq", json!({}));
    assert_eq!(letters["dead_letters"][0]["reason"], "MAXDELIVER_EXHAUSTED");
    assert_eq!(scene.usage()[0]["status"], "timeout");
    let replayed = scene.admin("replay_dlq", json!({"dead_letter": 1}));
    assert_eq!(replayed["tasks"], json!([2]));
    assert_eq!(scene.admin("replay_dlq", json!({"dead_letter": 1}))["ok"], false, "once is enough");
    let assignment = scene.offered.last().unwrap().1.clone();
    scene.finish(&assignment, "success");
    assert_eq!(scene.engine.state().totals.succeeded, 1);
    assert_eq!(scene.admin("purge_dlq", json!({"all": true}))["purged"], 1);
    assert_eq!(scene.admin("get_dlq", json!({"dead_letter": 1}))["error"]["code"], "NOT_FOUND");
}

#[test]
fn errors_are_retried_by_their_class() {
    let mut scene = Scene::new();
    scene.worker(1);
    scene.push_with("r", json!({"retry": {"max_attempts": 3}}));
    for attempt in 0..3 {
        assert_eq!(scene.offered.len(), attempt + 1);
        let assignment = scene.offered[attempt].1.clone();
        let mut result = result_of(&assignment, "error");
        result["data"]["error_code"] = "3001".into();
        scene.send(RESULT, 1, &result);
        assert_eq!(scene.offered.len(), attempt + 1, "it waits first");
        scene.wait(2_000);
    }
    assert_eq!(scene.offered.len(), 3);
    assert_eq!((scene.usage().len(), scene.engine.state().dead.len()), (1, 1));

    scene.push("hopeless");
    let assignment = scene.offered[3].1.clone();
    let mut result = result_of(&assignment, "error");
    result["data"]["error_code"] = "UNKNOWN_JOB_TYPE".into();
    scene.send(RESULT, 1, &result);
    assert_eq!((scene.usage().len(), scene.engine.state().dead.len()), (2, 2), "no second attempt");
}

#[test]
fn the_policy_says_who_is_next_after_a_failure() {
    let mut scene = Scene::new();
    let policy = json!({"version": "1.0", "providers": [{"name": "a", "weight": 100}], "fallbacks": [
        {"when": {"status": ["timeout"]}, "retry": 1, "to": "b", "backoff": {"base_ms": 50, "jitter": false}}]});
    scene.admin("upsert_policy", json!({"tenant_id": "acme", "policy_id": "default", "policy": policy}));
    scene.worker(1);
    scene.push_with("r", json!({"retry": {"max_attempts": 5}}));
    for provider in ["a", "a", "b"] {
        let assignment = scene.offered.last().unwrap().1.clone();
        assert_eq!(assignment["executor"]["provider_id"], provider);
        scene.finish(&assignment, "timeout");
        scene.wait(5_000);
    }
}

#[test]
fn another_tenants_result_is_refused_and_was_not_seen() {
    let mut scene = Scene::new();
    scene.worker(1);
    scene.push("r");
    let assignment = scene.offered[0].1.clone();
    let mut forged = result_of(&assignment, "success");
    forged["data"]["tenant_id"] = "evil".into();
    scene.send(RESULT, 3, &forged);
    assert_eq!(scene.usage().len(), 0);
    scene.finish(&assignment, "success");
    assert_eq!(scene.usage().len(), 1);
    assert_eq!(scene.engine.counters().results_tenant_rejected, 1);
}

#[test]
fn results_of_other_routers_are_counted_once_too() {
    let mut scene = Scene::new();
    let result = json!({"assignment_id": "3f2504e0-4f89-41d3-9a0c-0305e82c3301", "request_id": "r",
        "status": "success", "provider_id": "openai", "job": {"type": "chat"}, "latency_ms": 1, "cost": 0.1,
        "tenant_id": "t"});
    scene.send(RESULT, 1, &result);
    scene.send(RESULT, 1, &result);
    assert_eq!(scene.usage().len(), 1);
    let mut nobody = result;
    nobody["tenant_id"] = Value::Null;
    scene.send(RESULT, 1, &nobody);
    assert_eq!(scene.usage().len(), 1);
}

#[test]
fn a_worker_that_goes_loses_its_job_and_a_restart_waits_for_it() {
    let mut scene = Scene::new();
    scene.worker(1);
    scene.push_with("r", json!({"deadline_ms": 60_000}));
    scene.worker_leaves(1);
    scene.worker(2);
    assert_eq!(scene.offered.len(), 1, "it may still come with its result");
    scene.wait(3_001);
    assert_eq!(scene.offered.len(), 2);
    let mut scene = scene.restart();
    scene.worker(5);
    scene.wait(10_000);
    assert_eq!(scene.offered.len(), 2, "whoever has it may connect again");
    scene.wait(60_000);
    assert_eq!(scene.offered.len(), 3);
}

#[test]
fn jobs_wait_for_workers_and_may_expire() {
    let mut scene = Scene::new();
    scene.push_with("r-1", json!({"expires_ms": 2_000}));
    scene.push("r-2");
    scene.wait(2_001);
    assert_eq!(scene.admin("list_dlq", json!({}))["dead_letters"][0]["reason"], "EXPIRED");
    let told = scene.published.iter().any(|(to, _)| to == RESULT);
    assert!(told || scene.engine.state().totals.ended_badly == 1);
    scene.worker(1);
    assert_eq!(scene.offered[0].1["request_id"], "r-2");
}

#[test]
fn heartbeats_hold_and_release_jobs() {
    let mut scene = Scene::new();
    scene.worker(1);
    let beat = |status: &str, load: f64| {
        json!({"version": "v1", "kind": "heartbeat",
            "data": {"worker_id": "w-1", "status": status, "load": load, "timestamp": "x"}})
    };
    scene.send(HEARTBEATS[0], 1, &beat("busy", 1.0));
    scene.push("r");
    assert_eq!(scene.offered.len(), 0);
    scene.send(HEARTBEATS[1], 1, &beat("idle", 0.1));
    assert_eq!(scene.offered.len(), 1);
    let workers = scene.admin("list_workers", json!({}));
    assert_eq!(workers["workers"][0]["worker_id"], "w-1");
}

#[test]
fn a_job_is_shown_cancelled_and_given_out_again() {
    let mut scene = Scene::new();
    scene.worker(1);
    scene.push("r");
    let shown = scene.admin("get_task", json!({"task": "r"}));
    assert_eq!(shown["task"]["phase"], "assigned");
    assert_eq!(shown["task"]["story"].as_array().unwrap().len(), 2);
    assert_eq!(scene.admin("retry_task", json!({"task": 1}))["ok"], true);
    assert_eq!(scene.offered.len(), 2);
    assert_eq!(scene.admin("cancel_task", json!({"task": 1}))["ok"], true);
    assert_eq!(scene.admin("cancel_task", json!({"task": 1}))["error"]["code"], "FAILED_PRECONDITION");
    assert_eq!(scene.usage()[0]["status"], "cancelled");
    assert_eq!(scene.admin("list_tasks", json!({"phase": "cancelled"}))["total"], 1);
}

#[test]
fn what_is_refused_at_the_door_is_answered_and_kept_without_its_payload() {
    let mut scene = Scene::new();
    for (body, expected, intake, letters) in [
        (json!({"version": "9", "tenant_id": "t"}), "invalid_request", "VERSION_UNSUPPORTED", 1),
        (json!({"request_id": "r"}), "invalid_request", "CORRELATION_FIELDS_INVALID", 2),
        (
            json!({"tenant_id": "t", "task": "password=hunter2"}),
            "invalid_request",
            "SCHEMA_VALIDATION_FAILED",
            3,
        ),
    ] {
        let reply = scene.request(DECIDE, body);
        assert_eq!((code(&reply), &reply["error"]["intake_error_code"]), (expected, &json!(intake)));
        assert_eq!(scene.engine.state().dead.len(), letters);
        let letter = scene.published.iter().find(|(to, _)| to == "beamline.router.v1.decide.dlq").unwrap();
        assert_eq!(letter.1["original_payload_hash"].as_str().unwrap().len(), 64);
        assert!(!letter.1.to_string().contains("hunter2"));
    }
}

#[test]
fn tenants_have_rules_quotas_and_limits() {
    let mut scene = Scene::new();
    let put = |scene: &mut Scene, tenant: &str, rules: Value| {
        assert_eq!(scene.admin("upsert_tenant", json!({"tenant_id": tenant, "rules": rules}))["ok"], true);
    };
    let decide = |scene: &mut Scene, tenant: &str, id: &str| {
        scene.request(DECIDE, json!({"tenant_id": tenant, "request_id": id}))
    };
    put(&mut scene, "no", json!({"denied": true}));
    assert_eq!(decide(&mut scene, "no", "a")["error"]["intake_error_code"], "TENANT_FORBIDDEN");
    put(&mut scene, "api", json!({"api": ["beamline.router.v1.get_decision"]}));
    assert_eq!(code(&decide(&mut scene, "api", "a")), "unauthorized");
    put(&mut scene, "two", json!({"quota": {"requests": 2}}));
    for (id, expected) in [("a", "none"), ("b", "none"), ("b", "none"), ("c", "quota_exceeded")] {
        assert_eq!(code(&decide(&mut scene, "two", id)), expected);
    }
    let mut scene = scene.restart();
    assert_eq!(code(&decide(&mut scene, "two", "d")), "quota_exceeded", "counted in the log");
    scene.now += 3_600_000;
    assert_eq!(code(&decide(&mut scene, "two", "d")), "none");
    put(&mut scene, "slow", json!({"rate_limit": {"requests_per_second": 1, "burst": 2}}));
    for (id, expected) in [("a", "none"), ("b", "none"), ("c", "rate_limit_exceeded")] {
        assert_eq!(code(&decide(&mut scene, "slow", id)), expected);
    }
    put(&mut scene, "acme", json!({"assignment_subjects": ["jobs.*"], "quota": {"concurrent_jobs": 1}}));
    let mut elsewhere = job("x", json!({}));
    elsewhere["assignment_subject"] = "other".into();
    assert_eq!(code(&scene.request(DECIDE, elsewhere)), "unauthorized");
    assert_eq!(code(&scene.push("y")), "none");
    assert_eq!(code(&scene.push("z")), "quota_exceeded");
    assert!(scene.admin("get_audit", json!({}))["audit"].as_array().unwrap().len() >= 5);
}

#[test]
fn a_tenant_that_sends_rubbish_is_blocked_for_a_while() {
    let mut scene = Scene::with(Settings { abuse_invalid_max: 3, ..Settings::default() });
    for _ in 0..3 {
        scene.request(DECIDE, json!({"tenant_id": "t", "version": "9"}));
    }
    let good = json!({"tenant_id": "t", "request_id": "r"});
    assert_eq!(code(&scene.request(DECIDE, good.clone())), "rate_limit_exceeded");
    assert_eq!(code(&scene.request(DECIDE, json!({"tenant_id": "u", "request_id": "r"}))), "none");
    let mut scene = scene.restart();
    assert_eq!(code(&scene.request(DECIDE, good.clone())), "rate_limit_exceeded");
    scene.now += 300_001;
    assert_eq!(code(&scene.request(DECIDE, good)), "none");
}

#[test]
fn policies_are_changed_without_a_restart_and_explained() {
    let mut scene = Scene::new();
    let request = |id: &str| json!({"tenant_id": "t", "request_id": id, "policy_id": "p"});
    assert_eq!(code(&scene.request(DECIDE, request("1"))), "policy_not_found");
    let put = |scene: &mut Scene, policy: Value| {
        scene.admin("upsert_policy", json!({"tenant_id": "t", "policy_id": "p", "policy": policy}))
    };
    assert_eq!(put(&mut scene, json!({"version": "x"}))["error"]["code"], "INVALID_ARGUMENT");
    let one = json!({"version": "1.0", "providers": [{"name": "one", "weight": 1}]});
    assert_eq!(put(&mut scene, one.clone())["version"], 1);
    assert_eq!(put(&mut scene, one)["changed"], false);
    assert_eq!(scene.request(DECIDE, request("2"))["provider_id"], "one");
    put(&mut scene, json!({"version": "1.0", "providers": [{"name": "two", "weight": 1}]}));
    let mut scene = scene.restart();
    let decided = scene.request(DECIDE, request("3"));
    assert_eq!((&decided["provider_id"], &decided["decision"]["policy_version"]), (&json!("two"), &json!(2)));
    let dry = json!({"tenant_id": "t", "policy_id": "p", "payload": {"a": 1}});
    let explained = scene.admin("dry_run_pipeline", dry);
    assert_eq!(explained["result"]["decision"]["provider_id"], "two");
    assert_eq!(explained["result"]["explanation"].as_array().unwrap().len(), 1);
    assert_eq!(
        scene.admin("dry_run_pipeline", json!({"tenant_id": "t"}))["error"]["code"],
        "INVALID_ARGUMENT"
    );
    let complexity = scene.admin("get_pipeline_complexity", json!({"tenant_id": "t", "policy_id": "p"}));
    assert_eq!(
        (&complexity["total_extensions"], &complexity["complexity_level"]),
        (&json!(0), &json!("low"))
    );
    scene.admin("delete_policy", json!({"tenant_id": "t", "policy_id": "p"}));
    assert_eq!(code(&scene.request(DECIDE, request("4"))), "policy_not_found");
}

#[test]
fn sessions_keep_their_provider() {
    let mut scene = Scene::new();
    let decide = |scene: &mut Scene, id: u64| {
        let context = json!({"session_id": "s"});
        scene.request(DECIDE, json!({"tenant_id": "t", "request_id": id.to_string(), "context": context}))
    };
    let first = decide(&mut scene, 0)["provider_id"].clone();
    let mut scene = scene.restart();
    for id in 1..20 {
        let reply = decide(&mut scene, id);
        assert_eq!((&reply["provider_id"], &reply["decision"]["reason"]), (&first, &json!("sticky")));
    }
    assert_eq!(scene.engine.counters().sticky_hits, 19);
}

#[test]
fn estimates_come_from_results() {
    let mut scene = Scene::new();
    let policy = json!({"version": "1.0", "providers": [{"name": "a", "weight": 100}]});
    scene.admin("upsert_policy", json!({"tenant_id": "acme", "policy_id": "default", "policy": policy}));
    scene.worker(1);
    scene.push("r");
    let assignment = scene.offered[0].1.clone();
    scene.finish(&assignment, "success");
    let reply = scene.push("s");
    assert_eq!((&reply["expected_latency_ms"], &reply["expected_cost"]), (&json!(40), &json!(0.5)));
}

#[test]
fn failures_open_the_breaker_and_the_fallback_takes_over() {
    let mut scene = Scene::new();
    let policy = json!({"version": "1.0", "providers": [{"name": "a", "weight": 100}],
        "fallbacks": [{"when": {"status": "circuit_breaker_open"}, "to": "b"}],
        "circuit_breaker": {"enabled": true, "failure_threshold": 2, "timeout_ms": 1_000}});
    scene.admin("upsert_policy", json!({"tenant_id": "acme", "policy_id": "default", "policy": policy}));
    for n in 0..2 {
        scene.worker(n + 1);
        scene.push_with(&format!("r{n}"), json!({"retry": {"max_attempts": 1}}));
        let assignment = scene.offered.last().unwrap().1.clone();
        scene.finish(&assignment, "error");
    }
    assert_eq!(scene.offered.len(), 2);
    let states = scene.admin("get_circuit_breaker_states", json!({}));
    assert_eq!(states["states"]["acme:a"]["state"], "open");
    let mut scene = scene.restart();
    assert_eq!(scene.push("s")["decision"]["reason"], "circuit_breaker_fallback");
    scene.now += 2_000;
    assert_eq!(scene.push("t")["provider_id"], "a", "half-open lets one through");
}

fn with_extensions(policy: Value) -> Scene {
    let mut scene = Scene::new();
    let mut document = json!({"version": "1.0", "providers": [{"name": "a", "weight": 100}]});
    for (key, value) in policy.as_object().unwrap() {
        document[key] = value.clone();
    }
    let put = json!({"tenant_id": "t", "policy_id": "p", "policy": document});
    assert_eq!(scene.admin("upsert_policy", put)["ok"], true);
    scene
}

impl Scene {
    fn begin(&mut self, id: &str) {
        self.published.clear();
        let body =
            json!({"tenant_id": "t", "policy_id": "p", "request_id": id, "payload": {"text": "hello"}});
        self.send(DECIDE, 1, &body);
        assert!(self.published.is_empty(), "it waits for its extensions: {:?}", self.published);
    }

    fn answer(&mut self, body: &Value) -> String {
        let (token, subject, _) = self.asked.last().unwrap().clone();
        let payload = body.to_string();
        self.engine.handle(self.now, Input::Answer { token, headers: b"", payload: payload.as_bytes() });
        self.collect();
        subject
    }
}

#[test]
fn extensions_are_asked_in_order_and_may_change_and_refuse() {
    let mut scene = with_extensions(json!({"pre": [{"id": "clean"}],
        "validators": [{"id": "pii"}], "post": [{"id": "mark"}]}));
    scene.begin("1");
    let same_subject = scene.answer(&json!({"payload": {"text": "clean"}, "metadata": {"lang": "en"}}));
    assert_eq!(same_subject, "beamline.ext.pre.clean.v1");
    assert_eq!(scene.asked[1].2["payload"], json!({"text": "clean"}));
    assert_eq!(scene.answer(&json!({"status": "ok"})), "beamline.ext.validate.pii.v1");
    assert_eq!(scene.answer(&json!({"metadata": {"marked": true}})), "beamline.ext.post.mark.v1");
    let reply = scene.replied();
    assert_eq!((&reply["metadata"]["marked"], &reply["metadata"]["lang"]), (&json!(true), &json!("en")));

    scene.begin("2");
    scene.answer(&json!({}));
    scene.answer(&json!({"status": "reject", "reason": "has a name in it"}));
    assert_eq!(code(&scene.replied()), "validator_blocked");
    let health = scene.admin("get_extension_health", json!({}));
    assert_eq!(health["health"]["pii"]["status"], "healthy");
}

#[test]
fn extensions_that_fail_are_told_by_the_contracts_codes() {
    let mut scene =
        with_extensions(json!({"pre": [{"id": "x", "mode": "required", "retry": 1, "timeout_ms": 100}]}));
    scene.begin("1");
    scene.wait(100);
    assert_eq!(scene.asked.len(), 2, "tried again");
    scene.wait(100);
    assert_eq!(code(&scene.replied()), "extension_timeout");
    scene.begin("2");
    for _ in 0..2 {
        let token = scene.asked.last().unwrap().0;
        scene.engine.handle(scene.now, Input::Unheard { token });
        scene.collect();
    }
    assert_eq!(code(&scene.replied()), "extension_not_found");
    let registered = json!({"id": "x", "extension": {"type": "pre", "subject": "my.pre"}});
    assert_eq!(scene.admin("upsert_extension", registered)["ok"], true);
    scene.begin("3");
    assert_eq!(scene.answer(&json!({"error": "broken"})), "my.pre");
    // Too many failures: it rests, and nobody waits for it.
    assert_eq!(code(&scene.replied()), "extension_unavailable");
    scene.published.clear();
    scene.send(DECIDE, 1, &json!({"tenant_id": "t", "policy_id": "p", "request_id": "4"}));
    assert_eq!(code(&scene.replied()), "extension_unavailable");

    let mut scene = with_extensions(json!({"pre": [{"id": "x", "mode": "required"}]}));
    scene.begin("1");
    scene.answer(&json!({"error": "broken"}));
    assert_eq!(code(&scene.replied()), "extension_error");
    let mut scene = with_extensions(json!({"post": [{"id": "y", "mode": "required"}]}));
    scene.begin("1");
    scene.answer(&json!("no object"));
    assert_eq!(code(&scene.replied()), "post_processor_failed");
    let mut scene =
        with_extensions(json!({"post": [{"id": "y"}], "validators": [{"id": "v", "on_fail": "warn"}]}));
    scene.begin("1");
    scene.answer(&json!({"status": "reject", "reason": "odd"}));
    scene.answer(&json!("no object"));
    let reply = scene.replied();
    assert_eq!((&reply["ok"], &reply["metadata"]["warnings"][0]["validator"]), (&json!(true), &json!("v")));
}

#[test]
fn the_same_request_waits_with_the_first() {
    let mut scene = with_extensions(json!({"pre": [{"id": "x"}]}));
    scene.begin("1");
    scene.begin("1");
    assert_eq!(scene.asked.len(), 1);
    scene.answer(&json!({}));
    let replies: Vec<&Value> = scene.published.iter().map(|(_, body)| body).collect();
    assert_eq!((replies.len(), replies[0]), (2, replies[1]));
}

#[test]
fn a_full_queue_sheds_what_expires_first_and_then_refuses() {
    let mut scene = Scene::with(Settings { open_tasks_max: 2, ..Settings::default() });
    scene.push_with("1", json!({"expires_ms": 50_000}));
    scene.push_with("2", json!({"expires_ms": 10_000}));
    assert_eq!(scene.push("3")["ok"], true);
    let letters = scene.admin("list_dlq", json!({}));
    assert_eq!(
        (&letters["dead_letters"][0]["reason"], &letters["dead_letters"][0]["request_id"]),
        (&json!("SHED"), &json!("2"))
    );
    assert_eq!(scene.push("4")["ok"], true);
    assert_eq!(code(&scene.push("5")), "service_overloaded");
}

#[test]
fn control_commands_are_checked_and_mostly_not_there() {
    let mut scene = Scene::new();
    let body = json!({"version": "1", "tenant_id": "t", "request_id": "r", "trace_id": "x", "idempotency_key": "k",
        "project_root": "p", "job": {"type": "x"}});
    let mut check = |command: &str, body: &Value, expected: &str| {
        let reply = scene.request(&format!("beamline.router.control.v1.{command}"), body.clone());
        assert_eq!(code(&reply), expected, "{command}");
        reply
    };
    check("project.open", &body, "not_implemented");
    check("task.submit", &body, "not_implemented");
    check("project.close", &body, "invalid_request");
    check("project.fly", &body, "invalid_subject");
    check("events.subscribe", &json!({"version": "1"}), "invalid_request");
    let reply = check("events.subscribe", &body, "none");
    let inbox = reply["result"]["inbox_subject"].as_str().unwrap();
    assert!(inbox.starts_with("beamline.router.control.v1.events.inbox."));
}
