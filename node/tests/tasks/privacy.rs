//! Secrets and personal data that come in do not come out again where they have no business: not in logs, not in dead
//! letters, not in what is shown of a task, not in errors.

use super::*;

/// Each is in some field of some message below.
const SECRETS: [&str; 6] =
    ["hunter2", "ann@example.org", "bob@example.org", "sk-live-4242", "eyJhbGciOi", "4111-1111"];

#[test]
fn what_is_secret_is_in_no_log_no_dead_letter_and_no_error() {
    let folder = TempDir::new().unwrap();
    let log = folder.path().join("log");
    let file = std::fs::File::create(&log).unwrap();
    let node = Node::logging(&folder.path().join("data"), &["--log-format", "json"], "trace", file.into());
    let mut wire = Wire::open(&node.listen, &Connect::C).unwrap();
    let watched = ["caf.exec.assign.v1.dlq", "beamline.router.v1.decide.dlq", "caf.exec.result.v1.dlq"];
    wire.send("SUB caf.exec.assign.v1 1\r\n").unwrap();
    for (n, subject) in watched.into_iter().enumerate() {
        wire.send(&format!("SUB {subject} {}\r\n", n + 2)).unwrap();
    }
    let mut seen: Vec<String> = Vec::new();

    // Refused at the door: the ids are personal, the version is wrong.
    let refused = json!({"version": "9", "tenant_id": "acme", "request_id": "ann@example.org",
        "trace_id": "password=hunter2", "task": {"type": "echo", "payload": {"password": "hunter2"}}});
    let answer = gateway::request(&node.listen, DECIDE, &refused).unwrap();
    assert_eq!(answer["ok"], false, "{answer}");
    // The caller's own ids are in its own answer, and nowhere else; its payload is not.
    seen.push(answer["error"].to_string());
    let message = wire.next().unwrap();
    seen.push(String::from_utf8(message.payload).unwrap());

    // Taken in, and failed by its worker, who says too much.
    let mut taken = job("job-1");
    taken["task"]["payload"] = json!({"password": "hunter2", "card": {"credit_card": "4111-1111"},
        "deep": [{"api_key": "sk-live-4242", "email": "ann@example.org"}], "note": "write to bob@example.org"});
    taken["options"]["retry"] = json!({"max_attempts": 1});
    insist(&|| node.listen.clone(), DECIDE, &taken);
    let message = loop {
        let message = wire.next().unwrap();
        if message.sid == "1" {
            break message;
        }
    };
    let assignment: Value = serde_json::from_slice(&message.payload).unwrap();
    assert_eq!(assignment["job"]["payload"], taken["task"]["payload"], "the worker needs it all");
    let result = json!({"assignment_id": assignment["assignment_id"], "status": "error", "provider_id": "w",
        "job": {"type": "echo"}, "latency_ms": 5, "cost": 0.0, "tenant_id": "acme",
        "error_code": "HTTP_REQUEST_FAILED", "error_message": "Bearer eyJhbGciOi for bob@example.org"});
    wire.send(&publish(RESULT, "", &result.to_string())).unwrap();
    let message = wire.next().unwrap();
    seen.push(String::from_utf8(message.payload).unwrap());
    // A result that is none.
    wire.send(&publish(RESULT, "", r#"{"status":"ann@example.org","token":"eyJhbGciOi"}"#)).unwrap();
    let message = wire.next().unwrap();
    seen.push(String::from_utf8(message.payload).unwrap());

    let letters = node.command(&["dlq", "ls"]).unwrap();
    assert_eq!(letters.as_array().unwrap().len(), 3, "{letters}");
    for letter in letters.as_array().unwrap() {
        seen.push(node.command(&["dlq", "show", &letter["dead_letter"].to_string()]).unwrap().to_string());
    }
    seen.push(letters.to_string());
    let masked = seen.iter().any(|text| text.contains("[REDACTED]"));
    assert!(masked, "a payload is shown, without what is secret");
    seen.push(node.command(&["task", "show", "job-1"]).unwrap().to_string());
    drop(node);
    let log = std::fs::read_to_string(&log).unwrap();
    assert!(log.lines().count() > 1, "it logs");
    seen.push(log);
    for text in &seen {
        for secret in SECRETS {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }
}
