//! Policies: changed, explained, and what they choose.

use super::*;

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

#[test]
fn figures_are_told_by_provider_and_by_model() {
    let mut scene = Scene::new();
    let policy = json!({"version": "1.0", "providers": [{"name": "a", "weight": 100}]});
    scene.admin("upsert_policy", json!({"tenant_id": "acme", "policy_id": "default", "policy": policy}));
    for (n, status) in ["success", "success", "success", "error"].into_iter().enumerate() {
        scene.worker(n as u64 + 1);
        let mut body = job(&format!("r{n}"), json!({"retry": {"max_attempts": 1}}));
        body["task"]["payload"] = json!({"model": "large", "prompt": "x"});
        scene.request(DECIDE, body);
        let assignment = scene.offered.last().unwrap().1.clone();
        scene.finish(&assignment, status);
    }
    let mut scene = scene.restart();
    let figures = scene.admin("get_figures", json!({}));
    let (provider, model) = (&figures["providers"][0], &figures["models"][0]);
    assert_eq!((&provider["tenant_id"], &provider["provider_id"]), (&json!("acme"), &json!("a")));
    assert_eq!((&model["provider_id"], &model["model"]), (&json!("a"), &json!("large")));
    for row in [provider, model] {
        assert_eq!((&row["calls"], &row["success_rate"]), (&json!(4), &json!(0.75)), "{row}");
        assert_eq!((&row["latency_ms"], &row["cost_total"]), (&json!(40.0), &json!(2.0)), "{row}");
    }
}
