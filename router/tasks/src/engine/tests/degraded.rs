//! What is degraded, and what is not because of it.

use super::*;

impl Scene {
    /// Part, name and state of what is degraded.
    pub(super) fn degraded(&mut self) -> Vec<[String; 3]> {
        let told = self.admin("get_degraded", json!({}));
        let rows = told["degraded"].as_array().unwrap();
        assert_eq!(told["state"], if rows.is_empty() { "serving" } else { "degraded" });
        for row in rows {
            assert!(row["cause"].as_str().is_some_and(|cause| !cause.is_empty()), "{row}");
            assert!(row["affects"].as_str().is_some_and(|affects| !affects.is_empty()), "{row}");
        }
        rows.iter()
            .map(|row| ["part", "name", "state"].map(|key| row[key].as_str().unwrap().to_owned()))
            .collect()
    }
}

#[test]
fn a_provider_that_fails_is_named_until_it_works_again_and_others_do_not_suffer() {
    let mut scene = Scene::new();
    let policy = json!({"version": "1.0", "providers": [{"name": "a", "weight": 100}],
        "fallbacks": [{"when": {"status": "circuit_breaker_open"}, "to": "b"}],
        "circuit_breaker": {"enabled": true, "failure_threshold": 2, "success_threshold": 1, "timeout_ms": 1_000}});
    let put = json!({"tenant_id": "*", "policy_id": "default", "policy": policy});
    assert_eq!(scene.admin("upsert_policy", put)["ok"], true);
    assert!(scene.degraded().is_empty());
    let run = |scene: &mut Scene, id: &str, status: &str| {
        scene.worker(scene.members.len() as u64 + 1);
        let reply = scene.push_with(id, json!({"retry": {"max_attempts": 1}}));
        let assignment = scene.offered.last().unwrap().1.clone();
        scene.finish(&assignment, status);
        reply["provider_id"].clone()
    };
    run(&mut scene, "1", "error");
    run(&mut scene, "2", "error");
    assert_eq!(scene.degraded(), [["provider", "acme/a", "open"]]);
    let states = scene.admin("get_circuit_breaker_states", json!({}));
    assert_eq!(states["states"]["acme:a"]["cause"], "failed too often in a row");
    assert_eq!(run(&mut scene, "3", "success"), "b");
    let other = scene.request(DECIDE, json!({"tenant_id": "other", "request_id": "r"}));
    assert_eq!(other["provider_id"], "a", "another tenant's calls have not failed");
    scene.now += 1_001;
    assert_eq!(scene.degraded(), [["provider", "acme/a", "half_open"]]);
    assert_eq!(run(&mut scene, "4", "success"), "a");
    assert!(scene.degraded().is_empty());
}

#[test]
fn an_extension_that_is_silent_is_named_and_other_policies_go_on() {
    let mut scene = Scene::new();
    let with = json!({"version": "1.0", "providers": [{"name": "a", "weight": 100}],
        "pre": [{"id": "slow", "mode": "required", "timeout_ms": 100}]});
    let put = json!({"tenant_id": "t", "policy_id": "p", "policy": with});
    assert_eq!(scene.admin("upsert_policy", put)["ok"], true);
    let ask = |scene: &mut Scene, policy: &str, n: u64| {
        scene.published.clear();
        let id = format!("{policy}-{n}");
        scene.send(DECIDE, 1, &json!({"tenant_id": "t", "policy_id": policy, "request_id": id}));
        scene.wait(100);
        scene.replied()
    };
    for n in 0..5 {
        assert_eq!(code(&ask(&mut scene, "p", n)), "extension_timeout");
        assert_eq!(code(&ask(&mut scene, "default", n)), "none", "it has no extensions");
    }
    assert_eq!(scene.degraded(), [["extension", "slow", "open"]]);
    assert_eq!(code(&ask(&mut scene, "p", 9)), "extension_unavailable", "nobody waits for it any more");
    assert_eq!(scene.asked.len(), 5);
    scene.wait(5_000);
    assert_eq!(scene.degraded(), [["extension", "slow", "half_open"]]);
    for n in 10..12 {
        scene.published.clear();
        let id = format!("p-{n}");
        scene.send(DECIDE, 1, &json!({"tenant_id": "t", "policy_id": "p", "request_id": id}));
        let token = scene.asked.last().unwrap().0;
        scene.engine.handle(scene.now, Input::Answer { token, headers: b"", payload: b"{}" });
        scene.collect();
        assert_eq!(code(&scene.replied()), "none");
    }
    assert!(scene.degraded().is_empty());
}

#[test]
fn jobs_that_nobody_takes_are_named() {
    let mut scene = Scene::new();
    scene.push("1");
    assert_eq!(scene.degraded(), [["workers", ASSIGN, "absent"]]);
    scene.worker(1);
    scene.push("2");
    assert!(scene.degraded().is_empty(), "a busy worker is one");
}

#[test]
fn a_log_that_takes_nothing_refuses_what_is_new_and_nothing_else() {
    let mut scene = Scene::new();
    scene.worker(1);
    let first = scene.push("first");
    scene.admin("upsert_tenant", json!({"tenant_id": "acme", "rules": {}}));
    let written = scene.log.len();
    scene.engine.set_unstored(scene.now, Some("the disk is full".to_owned()));
    assert_eq!(scene.degraded(), [["log", "BEAMLINE", "not_storing"]]);

    let refused = scene.push("second");
    assert_eq!(code(&refused), "internal");
    assert!(refused["error"]["message"].as_str().unwrap().contains("the disk is full"));
    assert_eq!(scene.push("first")["decision"], first["decision"], "what was decided is known");
    assert_eq!(scene.admin("get_task", json!({"task": "first"}))["task"]["phase"], "assigned");
    let dry = json!({"tenant_id": "acme", "policy_id": "default", "payload": {}});
    assert_eq!(scene.admin("dry_run_pipeline", dry)["ok"], true);
    for (name, body) in [
        ("upsert_tenant", json!({"tenant_id": "acme", "rules": {"denied": true}})),
        ("cancel_task", json!({"task": 1})),
        ("purge_dlq", json!({"all": true})),
    ] {
        assert_eq!(scene.admin(name, body)["error"]["code"], "UNAVAILABLE", "{name}");
    }
    assert_eq!(code(&scene.request(DECIDE, json!({"tenant_id": "t", "version": "9"}))), "invalid_request");
    // Workers come and go, and time goes by.
    scene.worker(2);
    scene.worker_leaves(1);
    let beat = json!({"kind": "heartbeat", "data": {"worker_id": "w", "status": "stopped", "load": 0.0}});
    scene.send(HEARTBEATS[0], 2, &beat);
    scene.now += 120_000;
    scene.engine.handle(scene.now, Input::Tick);
    scene.collect();
    assert_eq!(scene.log.len(), written, "nothing happened that would have to be written");

    scene.engine.set_unstored(scene.now, None);
    scene.worker(3);
    scene.wait(1);
    assert_eq!(scene.offered.len(), 2, "its worker went meanwhile");
    assert_eq!(code(&scene.push("second")), "none");
    assert!(scene.degraded().is_empty());
}

#[test]
fn who_waits_for_an_extension_while_the_log_fails_hears_of_it() {
    let mut scene = Scene::new();
    let with = json!({"version": "1.0", "providers": [{"name": "a", "weight": 100}], "pre": [{"id": "x"}]});
    scene.admin("upsert_policy", json!({"tenant_id": "t", "policy_id": "p", "policy": with}));
    scene.published.clear();
    scene.send(DECIDE, 1, &json!({"tenant_id": "t", "policy_id": "p", "request_id": "r"}));
    let state = State::from_bytes(&scene.engine.state().to_bytes().unwrap(), Bounds::default()).unwrap();
    let next = Engine::new(state, Settings::default(), 9, scene.now);
    let before = std::mem::replace(&mut scene.engine, next);
    scene.engine.remember(before);
    scene.collect();
    assert_eq!(code(&scene.replied()), "internal");
    assert_eq!(scene.engine.counters().requests, 1, "what was counted stays");
}
