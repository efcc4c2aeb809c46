//! Jobs: given out, taken back, ended once.

use super::*;

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
fn a_job_for_workers_that_pull_counts_as_given_when_its_stream_has_it() {
    let mut scene = Scene::new();
    scene.captured = true;
    scene.tell();
    scene.push("r");
    let (task, id) = scene.kept[0].clone();
    let phase = |scene: &mut Scene| scene.admin("get_task", json!({"task": 1}))["task"]["phase"].clone();
    assert_eq!(phase(&mut scene), "queued", "it is nowhere yet");
    // The node dies before it hears of it: the same id again, which the stream knows if it had it.
    let mut scene = scene.restart();
    scene.kept.clear();
    scene.tell();
    scene.wait(0);
    assert_eq!(scene.kept, [(task, id)]);
    // The stream refuses it, and is asked again later; meanwhile nobody else puts it there.
    scene.engine.handle(scene.now, Input::Kept { task, stored: false });
    scene.collect();
    assert_eq!(scene.kept.len(), 1);
    scene.wait(1_000);
    assert_eq!(scene.kept.len(), 2);
    scene.admin("retry_task", json!({"task": 1}));
    assert_eq!(scene.kept.len(), 2, "it is on its way");
    scene.engine.handle(scene.now, Input::Kept { task, stored: true });
    scene.collect();
    assert_eq!(phase(&mut scene), "assigned");
    scene.wait(600_000);
    assert_eq!(
        (scene.kept.len(), scene.offered.len()),
        (2, 0),
        "delivering it again is the consumer's business"
    );
    let assignment = json!({"assignment_id": scene.kept[1].1});
    scene.finish(&assignment, "success");
    assert_eq!(phase(&mut scene), "success");
    assert_eq!(scene.usage().len(), 1);
}

#[test]
fn a_run_is_found_with_all_its_tasks() {
    let mut scene = Scene::new();
    for id in ["a", "b", "c"] {
        let mut body = job(id, json!({}));
        if id != "c" {
            body["run_id"] = "run-1".into();
        }
        scene.request(DECIDE, body);
    }
    assert_eq!(scene.admin("list_tasks", json!({"run_id": "run-1"}))["total"], 2);
    let newest = scene.admin("get_task", json!({"task": "run-1"}));
    assert_eq!(newest["task"]["request_id"], "b");
}

#[test]
fn a_worker_that_acks_is_understood() {
    let mut scene = Scene::new();
    scene.worker(1);
    scene.worker(2);
    scene.push_with("r", json!({"deadline_ms": 60_000}));
    let ack = |scene: &mut Scene, id: &Value, status: &str| {
        let subject = format!("{ASSIGN}.ack");
        scene.send(&subject, 1, &json!({"assignment_id": id, "status": status, "tenant_id": "acme"}));
    };
    let first = scene.offered[0].1["assignment_id"].clone();
    ack(&mut scene, &first, "accepted");
    assert_eq!(scene.offered.len(), 1, "it is at it");
    ack(&mut scene, &first, "rejected");
    assert_eq!(scene.offered.len(), 2, "somebody else gets it at once");
    assert_ne!(scene.offered[0].0, scene.offered[1].0);
    ack(&mut scene, &first, "rejected");
    assert_eq!(scene.offered.len(), 2, "the first one has had its say");
    // What is none is told, and kept.
    ack(&mut scene, &first, "perhaps");
    assert_eq!(scene.engine.state().dead.len(), 1);
    assert_eq!(scene.engine.counters().acks_invalid, 1);
}

#[test]
fn a_result_without_an_assignment_id_is_found_by_its_request() {
    let mut scene = Scene::new();
    scene.worker(1);
    scene.push("r");
    let result = json!({"request_id": "r", "tenant_id": "acme", "status": "success", "job": {"type": "echo"},
        "latency_ms": 7, "cost": 0.1});
    scene.send(RESULT, 9, &result);
    scene.send(RESULT, 9, &result);
    assert_eq!(scene.engine.state().totals.succeeded, 1);
    let mut scene = scene.restart();
    scene.send(RESULT, 9, &result);
    let records = scene.usage();
    assert_eq!((records.len(), &records[0]["request_id"]), (1, &json!("r")), "counted once");
}

#[test]
fn what_workers_could_not_take_is_kept_without_its_payload() {
    let mut scene = Scene::new();
    let letter = json!({"version": "v1", "kind": "dead_letter",
        "data": {"reason": "PARSE_ERROR", "payload_ref": "password=hunter2", "ts": "x"}});
    scene.send("caf.deadletter.v1", 3, &letter);
    scene.send("caf.exec.dlq.v1", 3, &json!({"status": "error", "error_code": "DECODE_ERROR"}));
    scene.send("caf.deadletter.v1", 3, &json!("no dead letter"));
    let letters = scene.admin("list_dlq", json!({"reason": "WORKER_REFUSED"}));
    let codes: Vec<&Value> =
        letters["dead_letters"].as_array().unwrap().iter().map(|letter| &letter["code"]).collect();
    assert_eq!(codes, ["unknown", "DECODE_ERROR", "PARSE_ERROR"]);
    assert!(!format!("{:?}", scene.engine.state().dead).contains("hunter2"));
    assert!(scene.engine.state().dead.values().all(|letter| letter.payload_hash.is_some()));
}

#[test]
fn a_job_by_reference_has_a_payload_all_the_same() {
    let mut scene = Scene::new();
    scene.worker(1);
    let mut body = job("r", json!({}));
    body["task"] = json!({"type": "echo", "payload_ref": "s3://bucket/key"});
    scene.request(DECIDE, body);
    let shown = &scene.offered[0].1["job"];
    assert_eq!(
        (shown.get("payload"), &shown["payload_ref"]),
        (Some(&Value::Null), &json!("s3://bucket/key"))
    );
}
