//! Requests for decisions and their replies.

use super::*;

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
