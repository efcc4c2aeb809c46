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
