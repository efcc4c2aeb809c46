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

#[test]
fn control_commands_show_the_token_where_one_is_asked_for() {
    let settings = Settings {
        control_token: Some(settings::ControlToken("open-sesame".into())),
        control_tenant: Some("acme".to_owned()),
        ..Settings::default()
    };
    let mut scene = Scene::with(settings);
    assert!(!format!("{:?}", scene.engine.settings).contains("sesame"));
    let mut check = |headers: &str, token: Option<&str>, expected: &str| {
        let body = json!({"version": "1", "request_id": "r", "trace_id": "x", "idempotency_key": "k", "token": token});
        let (payload, headers) = (body.to_string(), format!("NATS/1.0\r\n{headers}\r\n"));
        scene.published.clear();
        let message = Message {
            subject: b"beamline.router.control.v1.events.subscribe",
            reply: b"inbox",
            headers: headers.as_bytes(),
            payload: payload.as_bytes(),
            origin: 1,
        };
        scene.engine.handle(scene.now, Input::Message(message));
        scene.collect();
        assert_eq!(code(&scene.replied()), expected, "{headers} {token:?}");
    };
    check("", None, "unauthorized");
    check("", Some("open-says-me"), "unauthorized");
    check("", Some("open-sesame"), "none");
    check("token: open-sesame\r\n", None, "none");
    check("Authorization: Bearer open-sesame\r\n", None, "none");
    check("token: wrong\r\n", Some("open-sesame"), "unauthorized");
}

/// Everything that section 1.3 of the contract names: how it comes about, its codes, and whether it is a dead letter.
#[test]
fn every_error_of_the_contract() {
    let provider = json!([{"name": "a", "weight": 100}]);
    let policies = [
        ("nobody", json!({"version": "1.0", "providers": [{"name": "a", "weight": 0}]})),
        (
            "deep",
            json!({"version": "1.0", "providers": provider, "pre":
            (0..6).map(|n| json!({"id": format!("x{n}")})).collect::<Vec<_>>()}),
        ),
        (
            "slow",
            json!({"version": "1.0", "providers": provider,
            "rate_limit": {"enabled": true, "requests_per_second": 1, "burst": 1}}),
        ),
        ("pre", json!({"version": "1.0", "providers": provider, "pre": [{"id": "x", "mode": "required"}]})),
        ("known", json!({"version": "1.0", "providers": provider, "pre": [{"id": "k", "mode": "required"}]})),
        ("post", json!({"version": "1.0", "providers": provider, "post": [{"id": "x", "mode": "required"}]})),
        ("checked", json!({"version": "1.0", "providers": provider, "validators": [{"id": "v"}]})),
    ];
    let mut scene = Scene::with(Settings { open_tasks_max: 1, ..Settings::default() });
    for (id, policy) in policies {
        let put = json!({"tenant_id": "t", "policy_id": id, "policy": policy});
        assert_eq!(scene.admin("upsert_policy", put)["ok"], true, "{id}");
    }
    scene.admin("upsert_extension", json!({"id": "k", "extension": {"type": "pre", "subject": "my.pre"}}));
    for (tenant, rules) in [("no", json!({"denied": true})), ("used", json!({"quota": {"requests": 0}}))] {
        scene.admin("upsert_tenant", json!({"tenant_id": tenant, "rules": rules}));
    }
    scene.request(DECIDE, json!({"tenant_id": "t", "request_id": "first", "policy_id": "slow"}));
    scene.request(DECIDE, json!({"tenant_id": "t", "request_id": "k", "idempotency_key": "key"}));
    scene.push("takes the only place");

    /// What an extension does, if one is asked.
    #[derive(Clone, Copy)]
    enum Says {
        Nothing,
        Silence,
        NobodyThere,
        Rejection,
        Rubbish,
    }
    let of =
        |policy: &str| json!({"tenant_id": "t", "request_id": format!("r-{policy}"), "policy_id": policy});
    /// What happens, the request, its extension; code, intake code, HTTP, gRPC.
    type Row = (&'static str, Value, Says, &'static str, Option<&'static str>, u16, u8);
    let table: [Row; 20] = [
        (
            "no JSON",
            json!("text"),
            Says::Nothing,
            "invalid_request",
            Some("SCHEMA_VALIDATION_FAILED"),
            400,
            3,
        ),
        (
            "a field of the wrong type",
            json!({"tenant_id": "t", "request_id": {}}),
            Says::Nothing,
            "invalid_request",
            Some("SCHEMA_VALIDATION_FAILED"),
            400,
            3,
        ),
        (
            "another version",
            json!({"tenant_id": "t", "version": "2"}),
            Says::Nothing,
            "invalid_request",
            Some("VERSION_UNSUPPORTED"),
            400,
            3,
        ),
        (
            "no tenant",
            json!({"request_id": "r"}),
            Says::Nothing,
            "invalid_request",
            Some("CORRELATION_FIELDS_INVALID"),
            400,
            3,
        ),
        (
            "a tenant that may not",
            json!({"tenant_id": "no", "request_id": "r"}),
            Says::Nothing,
            "unauthorized",
            Some("TENANT_FORBIDDEN"),
            401,
            16,
        ),
        (
            "a key of another request",
            json!({"tenant_id": "t", "request_id": "k", "idempotency_key": "key", "payload": 1}),
            Says::Nothing,
            "invalid_request",
            Some("IDEMPOTENCY_VIOLATION"),
            400,
            3,
        ),
        ("no such policy", of("none"), Says::Nothing, "policy_not_found", None, 404, 5),
        ("no provider", of("nobody"), Says::Nothing, "decision_failed", None, 500, 13),
        ("a pipeline that is too deep", of("deep"), Says::Nothing, "decision_failed", None, 500, 13),
        ("too many requests", of("slow"), Says::Nothing, "rate_limit_exceeded", None, 429, 8),
        (
            "a used quota",
            json!({"tenant_id": "used", "request_id": "r"}),
            Says::Nothing,
            "quota_exceeded",
            None,
            429,
            8,
        ),
        (
            "no place for a task",
            job("one more", json!({})),
            Says::Nothing,
            "service_overloaded",
            None,
            503,
            14,
        ),
        ("an unknown extension", of("pre"), Says::NobodyThere, "extension_not_found", None, 404, 5),
        (
            "an extension without a service",
            of("known"),
            Says::NobodyThere,
            "extension_unavailable",
            None,
            503,
            14,
        ),
        ("an extension that is silent", of("known"), Says::Silence, "extension_timeout", None, 504, 4),
        ("an extension that answers nonsense", of("known"), Says::Rubbish, "extension_error", None, 500, 13),
        ("a post-processor that fails", of("post"), Says::Rubbish, "post_processor_failed", None, 500, 13),
        ("a validator that rejects", of("checked"), Says::Rejection, "validator_blocked", None, 403, 7),
        ("a validator that is silent", of("checked"), Says::Silence, "extension_timeout", None, 504, 4),
        ("a log that takes nothing", of("default"), Says::Nothing, "internal", None, 500, 13),
    ];
    for (what, body, says, expected, intake, http, grpc) in table {
        if expected == "internal" {
            scene.engine.set_unstored(scene.now, Some("the disk is full".to_owned()));
        }
        let letters = scene.engine.state().dead.len();
        scene.published.clear();
        scene.send(DECIDE, 1, &body);
        let token = scene.asked.last().map(|(token, ..)| *token).unwrap_or_default();
        let answer = match says {
            Says::Nothing => None,
            Says::Silence => {
                scene.wait(5_000);
                None
            }
            Says::NobodyThere => Some(Input::Unheard { token }),
            Says::Rejection => {
                Some(Input::Answer { token, headers: b"", payload: br#"{"status":"reject","reason":"no"}"# })
            }
            Says::Rubbish => Some(Input::Answer { token, headers: b"", payload: b"nonsense" }),
        };
        if let Some(answer) = answer {
            scene.engine.handle(scene.now, answer);
            scene.collect();
        }
        let reply = scene.replied();
        assert_eq!((code(&reply), &reply["ok"]), (expected, &json!(false)), "{what}: {reply}");
        assert_eq!(reply["error"]["intake_error_code"].as_str(), intake, "{what}");
        let known = crate::codes::Code::ALL.into_iter().find(|known| known.as_str() == expected).unwrap();
        assert_eq!((known.http(), known.grpc()), (http, grpc), "{what}");
        // The first four of the contract's intake errors are kept; the others are not.
        let is_kept = intake.is_some_and(|intake| intake != "IDEMPOTENCY_VIOLATION");
        assert_eq!(scene.engine.state().dead.len() - letters, usize::from(is_kept), "{what}");
        let told = scene.published.iter().filter(|(to, _)| to == "beamline.router.v1.decide.dlq").count();
        assert_eq!(told, usize::from(is_kept), "{what}");
    }
}

#[test]
fn how_long_a_decision_is_known_is_its_tenants_business() {
    let mut scene = Scene::new();
    let rules = json!({"tenant_id": "short", "rules": {"idempotency_ttl_seconds": 2}});
    assert_eq!(scene.admin("upsert_tenant", rules)["ok"], true);
    let ask = |scene: &mut Scene, tenant: &str| {
        let before = scene.engine.counters().idempotent_hits;
        let body = json!({"tenant_id": tenant, "request_id": "r"});
        assert_eq!(code(&scene.request(DECIDE, body)), "none");
        scene.engine.counters().idempotent_hits - before
    };
    for tenant in ["short", "usual"] {
        assert_eq!(ask(&mut scene, tenant), 0);
        assert_eq!(ask(&mut scene, tenant), 1);
    }
    scene.now += 2_001;
    assert_eq!((ask(&mut scene, "short"), ask(&mut scene, "usual")), (0, 1));
    scene.now += 3_600_000;
    assert_eq!(ask(&mut scene, "usual"), 0);
}

#[test]
fn who_asks_for_backpressure_is_told() {
    let mut scene = Scene::with(Settings {
        overload: settings::Overload { queued: 1, in_flight: 0, ..Default::default() },
        ..Settings::default()
    });
    let ask = |scene: &mut Scene| scene.request("beamline.router.v2.status.backpressure", json!({}));
    let told = ask(&mut scene);
    assert_eq!((&told["status"], &told["retry_after_seconds"]), (&json!("inactive"), &json!(0)));
    scene.push("1");
    scene.push("2");
    let told = ask(&mut scene);
    assert_eq!((&told["status"], &told["pending_messages"]), (&json!("warning"), &json!(2)));
    let policy = json!({"version": "1.0", "providers": [{"name": "a", "weight": 100}], "pre": [{"id": "x"}]});
    scene.admin("upsert_policy", json!({"tenant_id": "t", "policy_id": "p", "policy": policy}));
    scene.send(DECIDE, 1, &json!({"tenant_id": "t", "policy_id": "p", "request_id": "asks"}));
    let told = ask(&mut scene);
    assert_eq!((&told["status"], &told["retry_after_seconds"]), (&json!("active"), &json!(30)));
    assert_eq!(scene.degraded()[0], ["load", "decide", "active"]);
    let refused = scene.request(DECIDE, json!({"tenant_id": "t", "request_id": "new"}));
    assert_eq!(code(&refused), "service_overloaded");
    assert_eq!(refused["error"]["details"]["retry_after_seconds"], 30);
}

#[test]
fn the_older_name_of_the_control_commands_is_served_too() {
    let mut scene = Scene::new();
    let body =
        json!({"version": "1", "tenant_id": "t", "request_id": "r", "trace_id": "x", "idempotency_key": "k"});
    let reply = scene.request("beamline.router.ide.v1.events.subscribe", body);
    assert!(reply["result"]["subscription_id"].is_string(), "{reply}");
}
