//! The procedures of `docs/operations/links.md`, run as they stand there, against a real nats-server.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;

use crate::admin::NatsServer;
use crate::running::{Node, beamlog, outcome};

/// Runs a script as an operator would.
fn run(
    node: &Node,
    nats: &NatsServer,
    script: &str,
    arguments: &[&str],
    variables: &[(&str, &str)],
) -> String {
    let path = crate::repository::root().join("docs/operations/links").join(script);
    let mut command = Command::new("timeout");
    command.arg("120").arg(path).args(arguments).stdin(std::process::Stdio::null());
    command
        .env("BEAMLOG", env!("CARGO_BIN_EXE_beamlog"))
        .env("BEAMLOG_URL", format!("nats://{}", node.listen))
        .env("BEAMLOG_ADMIN", &node.admin)
        .env("NATS_URL", &nats.url);
    for (name, value) in variables {
        command.env(name, value);
    }
    outcome(&command.output().unwrap()).unwrap_or_else(|error| panic!("{script} {arguments:?}: {error}"))
}

/// A `beamlog` command against a server.
fn at(url: &str, arguments: &[&str]) -> String {
    let said = outcome(&beamlog().env("BEAMLOG_URL", url).args(arguments).output().unwrap()).unwrap();
    said.trim_end_matches('\n').to_owned()
}

fn json_at(url: &str, arguments: &[&str]) -> Value {
    serde_json::from_str(&at(url, &[arguments, &["-o", "json"]].concat())).unwrap()
}

fn url(node: &Node) -> String {
    format!("nats://{}", node.listen)
}

/// Publishes `name 0`, `name 1`, … with acks.
fn publish(url: &str, subject: &str, numbers: std::ops::Range<u32>) {
    for number in numbers {
        at(url, &["pub", subject, &format!("{subject} {number}"), "--ack"]);
    }
}

/// The messages of a stream: sequence, subject and payload.
fn messages(url: &str, stream: &str) -> Vec<(u64, String, String)> {
    let state = json_at(url, &["stream", "info", stream])["state"].clone();
    let (first, last) = (state["first_seq"].as_u64().unwrap(), state["last_seq"].as_u64().unwrap());
    (first..=last)
        .map(|sequence| {
            let message: Value = serde_json::from_str(&at(
                url,
                &["stream", "get", stream, "--sequence", &sequence.to_string(), "-o", "json"],
            ))
            .unwrap();
            let text = |key: &str| message[key].as_str().unwrap_or_default().to_owned();
            (sequence, text("subject"), text("payload"))
        })
        .collect()
}

/// How often each payload is in a stream.
fn payloads(url: &str, stream: &str) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for (_, _, payload) in messages(url, stream) {
        *found.entry(payload).or_default() += 1;
    }
    found
}

fn expected(subject: &str, numbers: std::ops::Range<u32>) -> BTreeMap<String, usize> {
    numbers.map(|number| (format!("{subject} {number}"), 1)).collect()
}

#[test]
fn a_site_moves_from_nats_to_beamlog_and_back() {
    let (node, nats) = (Node::start(), NatsServer::start());
    let (here, there) = (url(&node), nats.url.clone());
    at(&there, &["stream", "add", "ORDERS", "--subjects", "orders.>"]);
    at(&there, &["consumer", "add", "ORDERS", "billing"]);
    at(&there, &["kv", "add", "settings"]);
    at(&there, &["kv", "put", "settings", "colour", "red"]);
    publish(&there, "orders.eu", 0..5);
    // Billing has done two.
    for _ in 0..2 {
        at(&there, &["consumer", "next", "ORDERS", "billing"]);
    }
    run(&node, &nats, "nats-to-beamlog.sh", &["begin", "ORDERS", "--bucket", "settings"], &[]);
    // Clients go on over there, until they are stopped.
    publish(&there, "orders.eu", 5..10);
    at(&there, &["kv", "put", "settings", "colour", "blue"]);
    let said = run(&node, &nats, "nats-to-beamlog.sh", &["finish", "ORDERS", "--bucket", "settings"], &[]);
    assert!(said.contains("consumer billing of ORDERS goes on where it was"), "{said}");
    assert_eq!(messages(&here, "ORDERS"), messages(&there, "ORDERS"));
    assert_eq!(at(&here, &["kv", "get", "settings", "colour"]), "blue");
    let next = at(&here, &["consumer", "next", "ORDERS", "billing"]);
    assert!(next.contains("orders.eu 2"), "{next}");
    // Clients work here now, and then it was a mistake.
    publish(&here, "orders.eu", 10..15);
    at(&here, &["kv", "put", "settings", "colour", "green"]);
    run(&node, &nats, "roll-back.sh", &["ORDERS", "--bucket", "settings"], &[]);
    assert_eq!(payloads(&there, "ORDERS"), expected("orders.eu", 0..15));
    assert_eq!(at(&there, &["kv", "get", "settings", "colour"]), "green");
    assert_eq!(
        outcome(
            &beamlog().env("BEAMLOG_ADMIN", &node.admin).args(["link", "ls", "-o", "json"]).output().unwrap()
        )
        .unwrap()
        .trim(),
        "[]"
    );
}

#[test]
fn a_site_moves_from_beamlog_to_nats() {
    let (node, nats) = (Node::start(), NatsServer::start());
    let (here, there) = (url(&node), nats.url.clone());
    at(&here, &["stream", "add", "TELEMETRY", "--subjects", "telemetry.>", "--max-messages", "1000"]);
    at(&here, &["kv", "add", "state"]);
    publish(&here, "telemetry.a", 0..5);
    at(&here, &["kv", "put", "state", "door", "open"]);
    run(&node, &nats, "beamlog-to-nats.sh", &["begin", "TELEMETRY", "--bucket", "state"], &[]);
    publish(&here, "telemetry.a", 5..10);
    at(&here, &["kv", "put", "state", "door", "shut"]);
    run(&node, &nats, "beamlog-to-nats.sh", &["finish"], &[]);
    assert_eq!(payloads(&there, "TELEMETRY"), expected("telemetry.a", 0..10));
    assert_eq!(json_at(&there, &["stream", "info", "TELEMETRY"])["config"]["max_msgs"], 1000);
    assert_eq!(at(&there, &["kv", "get", "state", "door"]), "shut");
}

#[test]
fn both_run_side_by_side() {
    let (node, nats) = (Node::start(), NatsServer::start());
    let (here, there) = (url(&node), nats.url.clone());
    at(&there, &["stream", "add", "ORDERS", "--subjects", "orders.>"]);
    at(&here, &["stream", "add", "TELEMETRY", "--subjects", "telemetry.>"]);
    at(&there, &["stream", "add", "TELEMETRY", "--subjects", "telemetry.>"]);
    at(&there, &["kv", "add", "state"]);
    publish(&there, "orders.eu", 0..5);
    publish(&here, "telemetry.a", 0..5);
    let variables = [
        ("FROM_NATS", "ORDERS"),
        ("FROM_BEAMLOG", "TELEMETRY"),
        ("BUCKETS", "state"),
        ("SUBJECTS_IN", "cmd.>"),
        ("SUBJECTS_OUT", "alerts.>"),
        ("SERVICES_OUT", "rpc.>"),
    ];
    run(&node, &nats, "side-by-side.sh", &["begin"], &variables);
    at(&there, &["kv", "put", "state", "theirs", "1"]);
    // A request here reaches a service there.
    let mut service = beamlog();
    let mut service =
        service.env("BEAMLOG_URL", &there).args(["reply", "rpc.x", "pong", "--count", "1"]).spawn().unwrap();
    let begun = std::time::Instant::now();
    let answer = loop {
        let asked = beamlog().env("BEAMLOG_URL", &here).args(["request", "rpc.x", "ping"]).output().unwrap();
        if let Ok(answer) = outcome(&asked) {
            break answer;
        }
        assert!(begun.elapsed().as_secs() < 60, "no answer");
    };
    assert!(answer.contains("pong"), "{answer}");
    service.wait().unwrap();
    run(&node, &nats, "side-by-side.sh", &["end"], &variables);
    assert_eq!(payloads(&here, "ORDERS"), expected("orders.eu", 0..5));
    assert_eq!(payloads(&there, "TELEMETRY"), expected("telemetry.a", 0..5));
    assert_eq!(at(&here, &["kv", "get", "state", "theirs"]), "1");
}
