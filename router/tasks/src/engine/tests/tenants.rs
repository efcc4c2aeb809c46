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
