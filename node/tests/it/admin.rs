//! The admin pages: nats-server's fields, options and answers, compared with the real one.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::running::{Node, beamlog, get, outcome};

/// A real nats-server with JetStream and monitoring.
pub(crate) struct NatsServer {
    child: Child,
    pub(crate) url: String,
    monitor: String,
    _folder: TempDir,
}

impl NatsServer {
    pub(crate) fn start() -> Self {
        let fetched = || crate::repository::root().join(".venv/bin/nats-server");
        let program = std::env::var_os("BEAMLOG_TEST_NATS_SERVER").map_or_else(fetched, Into::into);
        assert!(program.exists(), "there is no {}: run scripts/test, which fetches it", program.display());
        let folder = TempDir::new().unwrap();
        let child = Command::new(program)
            .args(["-js", "-a", "127.0.0.1", "-p", "-1", "-m", "-1", "--ports_file_dir"])
            .arg(folder.path())
            .arg("-sd")
            .arg(folder.path().join("data"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let file = folder.path().join(format!("nats-server_{}.ports", child.id()));
        let start = Instant::now();
        let ports: Value = loop {
            if let Some(ports) = fs::read(&file).ok().and_then(|text| serde_json::from_slice(&text).ok()) {
                break ports;
            }
            assert!(start.elapsed() < Duration::from_secs(30), "nats-server does not start");
            std::thread::yield_now();
        };
        let address = |key: &str| ports[key][0].as_str().unwrap().to_owned();
        let monitor = address("monitoring").replace("http://", "");
        Self { url: address("nats"), monitor, child, _folder: folder }
    }

    fn run(&self, arguments: &[&str]) {
        outcome(&beamlog().env("BEAMLOG_URL", &self.url).args(arguments).output().unwrap()).unwrap();
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Every field of a page, as a path; elements of lists count as one.
fn fields(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let path = format!("{path}.{key}");
                fields(value, &path, found);
                found.insert(path);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| fields(item, &format!("{path}[]"), found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// What nats-server has and we do not, on purpose.
const ABSENT: [&str; 6] = [
    // Ours are of another program.
    ".feature_flags.",
    // A limit of 2.15 that we do not have.
    ".limits.default_max_consumers",
    ".jetstream.limits.default_max_consumers",
    // Counted by page: the pages asked differ.
    ".http_req_stats.",
    // Told once a ping was answered; by then the pages were read.
    ".connections[].rtt",
    // What the client said is shown by both; these depend on when.
    ".connections[].stop",
];

#[test]
fn the_pages_have_the_fields_of_nats_server() {
    let (node, peer) = (Node::start(), NatsServer::start());
    let commands: [&[&str]; 3] = [
        &["stream", "add", "S", "--subjects", "s.>"],
        &["pub", "s.a", "x", "--ack"],
        &["consumer", "add", "S", "c"],
    ];
    for command in commands {
        node.run(command).unwrap();
        peer.run(command);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // One client of each, so that the lists of connections are not empty.
    let _clients = runtime.block_on(async {
        let ours = async_nats::connect(&node.listen).await.unwrap();
        let theirs = async_nats::connect(&peer.url).await.unwrap();
        let subscriptions = (ours.subscribe("x.>").await.unwrap(), theirs.subscribe("x.>").await.unwrap());
        ours.flush().await.unwrap();
        theirs.flush().await.unwrap();
        (ours, theirs, subscriptions)
    });
    for page in [
        "/varz",
        "/connz",
        "/connz?subs=1",
        "/connz?subs=detail",
        "/connz?state=closed&limit=1&offset=100",
        "/jsz",
        "/jsz?accounts=1",
        "/jsz?streams=1",
        "/jsz?streams=1&consumers=1&config=1",
        "/healthz",
    ] {
        let (status, body) = get(&peer.monitor, page, "localhost");
        assert_eq!(status, 200, "{page}");
        let theirs: Value = serde_json::from_str(&body).unwrap();
        let ours = node.get_json(page);
        let (mut expected, mut found) = (BTreeSet::new(), BTreeSet::new());
        fields(&theirs, "", &mut expected);
        fields(&ours, "", &mut found);
        let missing: Vec<&String> = expected
            .difference(&found)
            .filter(|field| !ABSENT.iter().any(|absent| field.starts_with(absent)))
            .collect();
        assert!(missing.is_empty(), "{page} lacks {missing:?}");
    }
}

#[test]
fn options_that_are_not_understood_are_refused() {
    let node = Node::start();
    for page in
        ["/connz?subs=maybe", "/connz?limit=-x", "/connz?sort=colour", "/connz?state=odd", "/jsz?streams=2"]
    {
        assert_eq!(node.get(page).0, 400, "{page}");
    }
    assert_eq!(node.get("/nothing").0, 404);
    assert_eq!(get(&node.admin, "/varz", "evil.example").0, 403);
}

#[test]
fn health_says_what_is_behind_it() {
    let node = Node::start();
    assert_eq!(node.get_json("/healthz"), serde_json::json!({"status": "ok"}));
    assert_eq!(node.get_json("/readyz"), serde_json::json!({"status": "ok"}));
    let details = node.get_json("/healthz?details=1")["details"].clone();
    assert_eq!((&details["log"], &details["durability"]), (&"serving".into(), &"disk".into()));
    assert_eq!(details["damaged"], serde_json::json!([]));
}

#[test]
fn metrics_are_well_formed_and_count() {
    let node = Node::start();
    node.run(&["stream", "add", "S", "--subjects", "s.>"]).unwrap();
    node.run(&["pub", "s.a", "x", "--ack"]).unwrap();
    // The driver publishes its figures after it has answered: they may be a moment behind the ack.
    let start = Instant::now();
    let text = loop {
        let (status, text) = node.get("/metrics");
        assert_eq!(status, 200);
        if text.contains("beamlog_router_stored_messages_total 1") {
            break text;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "{text}");
    };
    assert!(text.ends_with("# EOF\n"), "{text}");
    let mut described = BTreeSet::new();
    let mut values = std::collections::BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(["counter", "gauge", "info"].contains(&kind), "{line}");
            assert!(described.insert(name.to_owned()), "{name} twice");
        } else if !line.starts_with('#') {
            let (name, value) = line.rsplit_once(' ').unwrap();
            let base = name.split('{').next().unwrap().trim_end_matches("_total").trim_end_matches("_info");
            assert!(described.contains(base), "{line} is not described");
            assert!(name.starts_with("beamlog_") || name.starts_with("process_"), "{line}");
            values.insert(name.to_owned(), value.parse::<f64>().unwrap());
        }
    }
    let at_least_one = |name: &str| assert!(values[name] >= 1.0, "{name} = {}", values[name]);
    for name in [
        "beamlog_router_stored_messages_total",
        "beamlog_router_streams",
        "beamlog_log_syncs_total",
        "beamlog_log_durable_index",
        "beamlog_nats_sessions_opened_total",
        "beamlog_nats_api_requests_total",
        "process_resident_memory_bytes",
    ] {
        at_least_one(name);
    }
    assert_eq!(values["beamlog_log_failed"], 0.0);
}
