//! What is short degrades what depends on it and nothing else, and an operator sees which, why, and what suffers:
//! in `/healthz`, in the metrics, and by `beamlog task health`.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::*;

impl Node {
    fn page(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.admin).unwrap();
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text.split_once("\r\n\r\n").unwrap().1.to_owned()
    }

    fn metric(&self, name: &str) -> f64 {
        let page = self.page("/metrics");
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {page}")).trim().parse().unwrap()
    }

    /// What `/healthz` says is degraded, of tasks and of links.
    fn told(&self) -> Vec<String> {
        let health: Value = serde_json::from_str(&self.page("/healthz?details=1")).unwrap();
        assert_eq!(health["status"], "ok", "{health:#}");
        let rows = health["degraded"].as_array().cloned().unwrap_or_default();
        rows.iter().map(|row| row.as_str().unwrap().to_owned()).collect()
    }

    fn decide(&self, tenant: &str, policy: &str, id: &str) -> Value {
        let body = json!({"version": "1", "tenant_id": tenant, "request_id": id, "policy_id": policy,
            "task": {"type": "echo", "payload": {"n": id}}});
        gateway::request(&self.listen, DECIDE, &body).unwrap()
    }
}

/// A worker in the test's own hands: takes one job and ends it so.
fn run_one(node: &Node, wire: &mut Wire, id: &str, status: &str) -> Value {
    let mut body = job(id);
    body["options"] = json!({"retry": {"max_attempts": 1}, "deadline_ms": 60_000});
    let reply = insist(&|| node.listen.clone(), DECIDE, &body);
    let assignment: Value = serde_json::from_slice(&wire.next().unwrap().payload).unwrap();
    let result = json!({"assignment_id": assignment["assignment_id"], "status": status, "provider_id": "w",
        "job": {"type": "echo"}, "latency_ms": 5, "cost": 0.0, "tenant_id": "acme"});
    wire.send(&publish(RESULT, "", &result.to_string())).unwrap();
    reply
}

#[test]
fn providers_extensions_and_links_fail_alone_and_are_named() {
    let folder = TempDir::new().unwrap();
    let policies = folder.path().join("policies");
    std::fs::create_dir_all(policies.join("_all")).unwrap();
    let plain = json!({"version": "1.0", "providers": [{"name": "a", "weight": 100}],
        "fallbacks": [{"when": {"status": "circuit_breaker_open"}, "to": "b"}],
        "circuit_breaker": {"enabled": true, "failure_threshold": 2, "success_threshold": 1, "timeout_ms": 1_000}});
    let checked = json!({"version": "1.0", "providers": [{"name": "a", "weight": 100}],
        "pre": [{"id": "silent", "mode": "required", "timeout_ms": 50}]});
    std::fs::write(policies.join("_all/default.json"), plain.to_string()).unwrap();
    std::fs::write(policies.join("_all/checked.json"), checked.to_string()).unwrap();
    let config = folder.path().join("beamlog.toml");
    // An address where nobody listens.
    let link = "[[link]]\nname = \"far\"\nurls = [\"nats://127.0.0.1:9\"]\nexport = [ { subject = \"elsewhere.>\" } ]\n";
    std::fs::write(&config, link).unwrap();
    let flags = ["--config", config.to_str().unwrap(), "--tasks-policies", policies.to_str().unwrap()];
    let node = Node::start(&folder.path().join("data"), &flags);
    let is_told = |words: &str| node.told().iter().any(|row| row.contains(words));

    // The link is down from the first moment, and nothing here waits for it.
    wait_until("the link is told", || is_told("link far is degraded"));
    let mut wire = Wire::open(&node.listen, &Connect::C).unwrap();
    wire.send("SUB caf.exec.assign.v1 workers 1\r\n").unwrap();
    assert_eq!(run_one(&node, &mut wire, "job-0", "success")["provider_id"], "a");
    assert!(!node.told().iter().any(|row| row.starts_with("tasks:")), "{:?}", node.told());

    // The provider fails.
    run_one(&node, &mut wire, "job-1", "error");
    run_one(&node, &mut wire, "job-2", "error");
    wait_until("the provider is told", || is_told("provider acme/a is"));
    assert!(is_told("failed too often in a row"), "{:?}", node.told());
    assert_eq!(node.metric("beamlog_tasks_breakers_open"), 1.0);
    assert_eq!(node.decide("other", "default", "o-1")["provider_id"], "a", "its calls have not failed");

    // The extension is there and says nothing.
    let mut extension = Wire::open(&node.listen, &Connect::C).unwrap();
    extension.send("SUB beamline.ext.pre.silent.v1 1\r\nPING\r\n").unwrap();
    for n in 0..5 {
        let refused = node.decide("other", "checked", &format!("c-{n}"));
        assert_eq!(refused["error"]["code"], "extension_timeout", "{refused}");
        extension.next().unwrap();
        assert_eq!(node.decide("other", "default", &format!("p-{n}"))["ok"], true, "it needs no extension");
    }
    wait_until("the extension is told", || is_told("extension silent is"));
    assert!(is_told("did not answer in time"), "{:?}", node.told());
    assert_eq!(node.metric("beamlog_tasks_extensions_open"), 1.0);
    let health = node.command(&["task", "health"]).unwrap();
    let parts: Vec<&str> =
        health.as_array().unwrap().iter().map(|row| row["part"].as_str().unwrap()).collect();
    assert_eq!(parts, ["provider", "extension"], "{health:#}");
    assert!(
        health[0]["cause"].is_string() && health[0]["affects"].is_string() && health[0]["since"].is_u64()
    );
    wait_until("it is counted", || node.metric("beamlog_tasks_degraded") == 2.0);

    // Both come back, and nobody has to be told.
    let mut tries = 0;
    wait_until("the provider is tried again", || {
        tries += 1;
        run_one(&node, &mut wire, &format!("again-{tries}"), "success")["provider_id"] == "a"
    });
    let mut asked = 0;
    wait_until("the extension is tried again", || {
        asked += 1;
        let (address, id) = (node.listen.clone(), format!("e-{asked}"));
        let body = json!({"version": "1", "tenant_id": "other", "request_id": id, "policy_id": "checked",
            "message": {}});
        let asking = thread::spawn(move || gateway::request(&address, DECIDE, &body).unwrap());
        let question = extension.next_within(Duration::from_millis(20)).unwrap();
        if let Some(question) = question {
            let reply = question.reply.unwrap();
            extension.send(&publish(&reply, "", "{}")).unwrap();
        }
        asking.join().unwrap()["ok"] == true && !is_told("extension silent")
    });
    wait_until("nothing of tasks is degraded", || node.metric("beamlog_tasks_degraded") == 0.0);
    assert_eq!(node.command(&["task", "health"]).unwrap(), json!([]));
    assert!(is_told("link far is degraded"), "it still is");
}

#[test]
fn workers_that_pull_get_jobs_from_a_stream_over_a_kill() {
    let folder = TempDir::new().unwrap();
    let data = folder.path().join("data");
    let mut node = Node::start(&data, &[]);
    let mut wire = Wire::open(&node.listen, &Connect::C).unwrap();
    wire.send("SUB _INBOX.w.* 1\r\n").unwrap();
    let ask = |wire: &mut Wire, subject: &str, body: Value| -> Received {
        wire.send(&publish(subject, "_INBOX.w.1", &body.to_string())).unwrap();
        wire.next().unwrap()
    };
    let stream = json!({"name": "JOBS", "subjects": ["caf.exec.assign.v1"], "retention": "workqueue",
        "storage": "file"});
    ask(&mut wire, "$JS.API.STREAM.CREATE.JOBS", stream);
    let consumer = json!({"stream_name": "JOBS", "config": {"durable_name": "w", "ack_policy": "explicit"}});
    ask(&mut wire, "$JS.API.CONSUMER.DURABLE.CREATE.JOBS.w", consumer);
    for n in 0..20 {
        insist(&|| node.listen.clone(), DECIDE, &job(&format!("pulled-{n}")));
        if n == 10 {
            node.kill();
            node = Node::start(&data, &[]);
        }
    }
    let mut wire = Wire::open(&node.listen, &Connect::C).unwrap();
    wire.send("SUB _INBOX.w.* 1\r\n").unwrap();
    let mut seen = BTreeMap::new();
    for _ in 0..20 {
        let message = ask(
            &mut wire,
            "$JS.API.CONSUMER.MSG.NEXT.JOBS.w",
            json!({"batch": 1, "expires": 9_000_000_000_u64}),
        );
        let assignment: Value = serde_json::from_slice(&message.payload).unwrap();
        *seen.entry(assignment["request_id"].as_str().unwrap().to_owned()).or_insert(0) += 1;
        let result = json!({"assignment_id": assignment["assignment_id"], "status": "success", "provider_id": "w",
            "job": {"type": "echo"}, "latency_ms": 5, "cost": 0.0, "tenant_id": "acme"});
        wire.send(&publish(RESULT, "", &result.to_string())).unwrap();
        wire.send(&publish(&message.reply.unwrap(), "", "+ACK")).unwrap();
    }
    assert_eq!((seen.len(), seen.values().max()), (20, Some(&1)), "{seen:?}");
    wait_until("all count", || totals(&node.listen)["totals"]["succeeded"] == 20);
    wait_until("usage is stored", || usage(&node.listen).len() == 20);
}
