//! What tenants may.

use super::*;

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
fn each_kind_of_abuse_has_its_own_count_and_its_name() {
    let settings =
        Settings { abuse_invalid_max: 3, abuse_denied_max: 2, abuse_burst_max: 4, ..Settings::default() };
    let mut scene = Scene::with(settings);
    let put = |scene: &mut Scene, tenant: &str, rules: Value| {
        scene.admin("upsert_tenant", json!({"tenant_id": tenant, "rules": rules}));
    };
    put(&mut scene, "denied", json!({"denied": true}));
    put(&mut scene, "fast", json!({"rate_limit": {"requests_per_second": 1, "burst": 1}}));
    let good = |tenant: &str, n: u32| json!({"tenant_id": tenant, "request_id": format!("r{n}")});
    let why = |scene: &mut Scene, tenant: &str| {
        scene.admin("get_tenant", json!({"tenant_id": tenant}))["blocked"]["why"].clone()
    };
    for n in 0..2 {
        assert_eq!(code(&scene.request(DECIDE, good("denied", n))), "unauthorized");
        scene.request(DECIDE, json!({"tenant_id": "odd", "version": "9"}));
    }
    assert_eq!(why(&mut scene, "denied"), "auth_failures");
    assert_eq!(why(&mut scene, "odd"), Value::Null, "one more is needed");
    scene.request(DECIDE, json!({"tenant_id": "odd", "version": "9"}));
    assert_eq!(why(&mut scene, "odd"), "repeated_invalid");
    for n in 0..5 {
        scene.request(DECIDE, good("fast", n));
    }
    assert_eq!(why(&mut scene, "fast"), "burst");
    let blocked = scene.request(DECIDE, good("fast", 9));
    assert_eq!(code(&blocked), "rate_limit_exceeded");
    assert!(blocked["error"]["details"]["retry_after_seconds"].as_u64().unwrap() > 200, "{blocked}");
    assert_eq!(code(&scene.request(DECIDE, good("other", 1))), "none", "nobody else suffers");
    assert_eq!(scene.admin("unblock_tenant", json!({"tenant_id": "fast"}))["ok"], true);
    scene.now += 1_000;
    assert_eq!(code(&scene.request(DECIDE, good("fast", 9))), "none");
}

#[test]
fn every_change_says_who_made_it() {
    let mut scene = Scene::new();
    let policy = json!({"version": "1.0", "providers": [{"name": "a", "weight": 100}]});
    let by = "ann";
    for (name, body) in [
        ("upsert_policy", json!({"tenant_id": "t", "policy_id": "p", "policy": policy})),
        ("delete_policy", json!({"tenant_id": "t", "policy_id": "p"})),
        ("upsert_tenant", json!({"tenant_id": "t", "rules": {}})),
        ("delete_tenant", json!({"tenant_id": "t"})),
        ("unblock_tenant", json!({"tenant_id": "t"})),
        ("upsert_extension", json!({"id": "x", "extension": {"type": "pre", "subject": "my.pre"}})),
        ("delete_extension", json!({"id": "x"})),
    ] {
        let mut body = body;
        body["by"] = by.into();
        assert_eq!(scene.admin(name, body)["ok"], true, "{name}");
    }
    scene.worker(1);
    scene.push_with("r", json!({"retry": {"max_attempts": 1}}));
    scene.admin("retry_task", json!({"task": 1, "by": by}));
    let assignment = scene.offered.last().unwrap().1.clone();
    scene.finish(&assignment, "error");
    scene.admin("replay_dlq", json!({"dead_letter": 1, "by": by}));
    scene.admin("cancel_task", json!({"task": 2, "by": by}));
    scene.admin("purge_dlq", json!({"all": true, "by": by}));
    let mut scene = scene.restart();
    let audit = scene.admin("get_audit", json!({}));
    let told: Vec<(&str, &str)> = audit["audit"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["action"].as_str().unwrap(), row["by"].as_str().unwrap()))
        .collect();
    let actions = [
        "policy.put",
        "policy.delete",
        "tenant.put",
        "tenant.delete",
        "tenant.unblock",
        "extension.put",
        "extension.delete",
        "task.retry",
        "dlq.replay",
        "task.cancel",
        "dlq.purge",
    ];
    assert_eq!(told, actions.map(|action| (action, by)));
}

#[test]
fn a_quota_of_cost_reserves_what_a_job_will_cost_and_settles_what_it_did() {
    let mut scene = Scene::new();
    let policy = json!({"version": "1.0", "providers": [{"name": "a", "weight": 100}]});
    scene.admin("upsert_policy", json!({"tenant_id": "acme", "policy_id": "default", "policy": policy}));
    let rules = json!({"quota": {"cost": 1.2, "tokens": 1_000}});
    scene.admin("upsert_tenant", json!({"tenant_id": "acme", "rules": rules}));
    scene.worker(1);
    scene.push("1");
    let assignment = scene.offered[0].1.clone();
    scene.finish(&assignment, "success");
    // It cost 0.5, and so will the next.
    assert_eq!(scene.push("2")["expected_cost"], 0.5);
    assert_eq!(code(&scene.push("3")), "quota_exceeded", "0.5 used, 0.5 reserved, 0.5 more");
    let mut scene = scene.restart();
    assert_eq!(code(&scene.push("3")), "quota_exceeded", "reserved in the log");
    let shown = scene.admin("get_tenant", json!({"tenant_id": "acme"}))["consumption"].clone();
    assert_eq!((&shown["cost"], &shown["reserved_cost"]), (&json!(0.5), &json!(0.5)), "{shown}");
    // The second was cheaper than expected, and that is what counts.
    let second = scene.admin("get_task", json!({"task": "2"}))["task"]["current_assignment_id"].clone();
    let result = json!({"assignment_id": second, "status": "success", "provider_id": "w", "job": {"type": "echo"},
        "latency_ms": 5, "cost": 0.1, "tenant_id": "acme", "output": {"usage": {"total_tokens": 900}}});
    scene.send(RESULT, 9, &result);
    assert_eq!(code(&scene.push("3")), "none");
    let shown = scene.admin("get_tenant", json!({"tenant_id": "acme"}))["consumption"].clone();
    assert_eq!((&shown["cost"], &shown["tokens"]), (&json!(0.6), &json!(900)), "{shown}");
    let third = scene.admin("get_task", json!({"task": "3"}))["task"]["current_assignment_id"].clone();
    let mut result = result;
    result["assignment_id"] = third;
    result["cost"] = json!(0.0);
    scene.send(RESULT, 9, &result);
    let refused = scene.push("4");
    assert_eq!((code(&refused), &refused["error"]["details"]["quota"]), ("quota_exceeded", &json!("tokens")));
}

#[test]
fn a_tenant_that_may_not_push_is_refused_with_a_dead_letter() {
    let mut scene = Scene::new();
    scene.admin("upsert_tenant", json!({"tenant_id": "acme", "rules": {"push_denied": true}}));
    let refused = scene.push("r");
    assert_eq!(refused["error"]["intake_error_code"], "TENANT_FORBIDDEN");
    assert_eq!(scene.engine.state().dead.len(), 1);
    let plain = json!({"tenant_id": "acme", "request_id": "s"});
    assert_eq!(code(&scene.request(DECIDE, plain)), "none", "it may ask");
}
