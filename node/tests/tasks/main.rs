//! Unmodified gateways and workers against the real binary with `--tasks`: nothing is lost, nothing is done
//! twice, and every job has exactly one result and one usage record, over SIGKILL of the node and of workers.
//!
//! 500 jobs and 10 workers with kills; `BEAMLOG_TEST_TASKS_JOBS=5000` and `BEAMLOG_TEST_TASKS_WORKERS=1` for another run.

#![expect(clippy::unwrap_used, reason = "tests")]

mod cluster;
mod degraded;
#[path = "../dev_cluster/mod.rs"]
mod dev_cluster;
mod gateway;
mod otlp;
mod privacy;
mod wire;
mod worker;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use gateway::{admin, insist};
use wire::{Connect, Received, Wire, publish};
use worker::{Book, Habits, Worker};

const DECIDE: &str = "beamline.router.v1.decide";
const RESULT: &str = "caf.exec.result.v1";
const PATIENCE: Duration = Duration::from_secs(600);

struct Node {
    child: Child,
    listen: String,
    admin: String,
}

impl Node {
    fn start(data: &Path, flags: &[&str]) -> Self {
        Self::logging(data, flags, "warn", Stdio::inherit())
    }

    fn logging(data: &Path, flags: &[&str], level: &str, log: Stdio) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_beamlog"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("BEAMLOG_") {
                command.env_remove(name);
            }
        }
        let mut child = command
            .args(["serve", "--announce", "--tasks", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
            .args(["--log-level", level, "--segment-bytes", "16MiB", "--data-dir"])
            .arg(data)
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let announced: Value = serde_json::from_str(&line).expect("it starts");
        let text = |key: &str| announced[key].as_str().unwrap().to_owned();
        Self { listen: text("listen"), admin: text("admin"), child }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn stop(&mut self) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        assert!(self.child.wait().unwrap().success());
    }

    fn command(&self, arguments: &[&str]) -> Result<Value, String> {
        let output = Command::new(env!("CARGO_BIN_EXE_beamlog"))
            .args(arguments)
            .args(["-o", "json", "--server", &format!("nats://{}", self.listen)])
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        match output.status.success() {
            true => Ok(serde_json::from_str(&text(&output.stdout)).unwrap()),
            false => Err(text(&output.stderr)),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn job(id: &str) -> Value {
    json!({"version": "1", "tenant_id": "acme", "request_id": id, "trace_id": format!("trace-{id}"),
        "task": {"type": "echo", "payload": {"number": id}}, "push_assignment": true,
        "options": {"deadline_ms": 2_000}})
}

fn totals(address: &str) -> Value {
    admin(address, "get_checkpoint_status", &json!({}))
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < until, "not in time: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// All usage there is, by request.
fn usage(address: &str) -> BTreeMap<String, u32> {
    let mut wire = Wire::open(address, &Connect::C).unwrap();
    wire.send("SUB _INBOX.usage 1\r\n").unwrap();
    let mut all = BTreeMap::new();
    let mut from = 1;
    loop {
        let body = json!({"batch": 1_000, "seq": from});
        wire.send(&publish("$JS.API.DIRECT.GET.BEAMLINE_USAGE", "_INBOX.usage", &body.to_string())).unwrap();
        let mut count = 0;
        loop {
            let message = wire.next().unwrap();
            if message.payload.is_empty() {
                break;
            }
            let sequence = message.headers.lines().find_map(|line| line.strip_prefix("Nats-Sequence: "));
            from = sequence.unwrap().trim().parse::<u64>().unwrap() + 1;
            count += 1;
            let record: Value = serde_json::from_slice(&message.payload).unwrap();
            *all.entry(record["request_id"].as_str().unwrap().to_owned()).or_default() += 1;
        }
        if count == 0 {
            return all;
        }
    }
}

fn habits(pause_millis: u64) -> Habits {
    Habits {
        pause: Duration::from_millis(pause_millis),
        heartbeat: Duration::from_millis(500),
        work: Duration::from_millis(1),
    }
}

/// Without any kill: every job is executed exactly once, and no worker throws one away.
fn check_quiet(workers: u32, jobs: u32) {
    let folder = TempDir::new().unwrap();
    let node = Node::start(&folder.path().join("data"), &[]);
    let address = Arc::new(Mutex::new(node.listen.clone()));
    let book = Arc::new(Book::default());
    let running: Vec<Worker> = (0..workers)
        .map(|n| Worker::start(format!("worker-{n}"), Arc::clone(&address), habits(10), Arc::clone(&book)))
        .collect();
    for n in 0..jobs {
        insist(&|| node.listen.clone(), DECIDE, &job(&format!("job-{n}")));
    }
    wait_until("all jobs have a result", || totals(&node.listen)["totals"]["succeeded"] == jobs);
    drop(running.into_iter().map(Worker::kill).collect::<Vec<_>>());
    let executed = book.executed.lock().unwrap();
    assert_eq!(executed.len(), jobs as usize);
    assert!(executed.values().all(|times| *times == 1), "{executed:?}");
    assert_eq!(book.dropped.load(Ordering::SeqCst), 0, "a job on a subscription that had ended");
    assert_eq!(book.skipped.load(Ordering::SeqCst), 0, "a job that this worker had before");
    wait_until("usage is stored", || usage(&node.listen).len() == jobs as usize);
    assert!(usage(&node.listen).values().all(|records| *records == 1));
}

#[test]
fn one_worker_that_subscribes_anew_loses_nothing() {
    check_quiet(1, 100);
}

#[test]
fn three_workers_share_the_jobs() {
    check_quiet(3, 200);
}

#[test]
fn ten_workers_share_the_jobs() {
    check_quiet(10, 500);
}

/// A small generator: what it drew is in the failure's output.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

#[test]
fn every_job_has_one_result_and_one_usage_over_sigkill_of_node_and_workers() {
    let number = |name: &str, usual: u32| std::env::var(name).map_or(usual, |text| text.parse().unwrap());
    let jobs = number("BEAMLOG_TEST_TASKS_JOBS", 500);
    let workers = u64::from(number("BEAMLOG_TEST_TASKS_WORKERS", 10));
    let folder = TempDir::new().unwrap();
    let data = folder.path().join("data");
    let mut node = Node::start(&data, &[]);
    let address = Arc::new(Mutex::new(node.listen.clone()));
    let book = Arc::new(Book::default());
    let begin =
        |n: u64| Worker::start(format!("worker-{n}"), Arc::clone(&address), habits(10), Arc::clone(&book));
    let seed = u64::from(std::process::id()) << 20 | 1;
    println!("seed {seed}");
    let mut random = Random(seed);
    let mut running: Vec<Worker> = (0..workers).map(begin).collect();
    let mut next_worker = workers;
    let submitting = Arc::clone(&address);
    let submitter = thread::spawn(move || {
        for n in 0..jobs {
            insist(&|| submitting.lock().unwrap().clone(), DECIDE, &job(&format!("job-{n}")));
        }
    });
    let (mut node_kills, mut worker_kills) = (0, 0);
    while !submitter.is_finished() || node_kills < 3 {
        thread::sleep(Duration::from_millis(100 + random.below(700)));
        if random.below(3) == 0 {
            node.kill();
            node = Node::start(&data, &[]);
            address.lock().unwrap().clone_from(&node.listen);
            node_kills += 1;
        } else {
            let victim = usize::try_from(random.below(workers)).unwrap();
            running.remove(victim).kill();
            running.push(begin(next_worker));
            next_worker += 1;
            worker_kills += 1;
        }
    }
    submitter.join().unwrap();
    wait_until("all jobs have a result", || {
        let totals = totals(&node.listen);
        totals["open_tasks"] == 0
    });
    println!("{jobs} jobs, {workers} workers, {node_kills} kills of the node, {worker_kills} of workers");
    node.stop();
    let mut node = Node::start(&data, &[]);
    let found = totals(&node.listen);
    assert_eq!(found["totals"]["tasks"], jobs, "the same request is the same task: {found}");
    assert_eq!(found["totals"]["succeeded"], jobs, "{found}");
    wait_until("usage is stored", || usage(&node.listen).len() == jobs as usize);
    let records = usage(&node.listen);
    let twice: Vec<_> = records.iter().filter(|(_, records)| **records != 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    drop(running.into_iter().map(Worker::kill).collect::<Vec<_>>());
    node.kill();
}

#[test]
fn every_recorded_way_to_connect_and_subscribe_gets_its_job() {
    let folder = TempDir::new().unwrap();
    let node = Node::start(&folder.path().join("data"), &[]);
    // sid 0, two spaces, headers or none, a queue group.
    let ways = [
        (Connect::WithoutHeaders, "SUB caf.exec.assign.v1 0\r\n", "0", false),
        (Connect::C, "SUB caf.exec.assign.v1  7\r\n", "7", true),
        (Connect::Rust, "SUB caf.exec.assign.v1 workers 0\r\n", "0", true),
    ];
    for (n, (connect, subscribe, sid, headers)) in ways.into_iter().enumerate() {
        let mut wire = Wire::open(&node.listen, &connect).unwrap();
        wire.send(subscribe).unwrap();
        let request = format!("way-{n}");
        insist(&|| node.listen.clone(), DECIDE, &job(&request));
        let message = wire.next().unwrap();
        assert_eq!((message.sid.as_str(), message.has_headers), (sid, headers));
        let assignment: Value = serde_json::from_slice(&message.payload).unwrap();
        assert_eq!(
            (&assignment["request_id"], &assignment["trace_id"]),
            (&json!(request), &json!(format!("trace-{request}")))
        );
        let result = json!({"assignment_id": assignment["assignment_id"], "status": "success",
            "provider_id": "w", "job": {"type": "echo"}, "latency_ms": 5, "cost": 0.25, "tenant_id": "acme"});
        wire.send(&publish(RESULT, "", &result.to_string())).unwrap();
        wait_until("the result counts", || totals(&node.listen)["totals"]["succeeded"] == n + 1);
        wire.vanish();
    }
    let shown = node.command(&["task", "show", "way-1"]).unwrap();
    assert_eq!((&shown["phase"], &shown["cost"]), (&json!("success"), &json!(0.25)));
    assert_eq!(node.command(&["task", "ls", "--phase", "success"]).unwrap().as_array().unwrap().len(), 3);
    assert!(node.command(&["task", "cancel", "way-1"]).unwrap_err().contains("has its result already"));
}

#[test]
fn a_job_that_nobody_can_do_is_a_dead_letter_and_can_be_replayed() {
    let folder = TempDir::new().unwrap();
    let data = folder.path().join("data");
    let mut node = Node::start(&data, &[]);
    let mut wire = Wire::open(&node.listen, &Connect::C).unwrap();
    wire.send("SUB caf.exec.assign.v1 1\r\nSUB caf.exec.assign.v1.dlq 2\r\n").unwrap();
    insist(&|| node.listen.clone(), DECIDE, &job("hopeless"));
    let answer = |wire: &mut Wire, status: &str, code: Option<&str>| {
        let message = loop {
            let message = wire.next().unwrap();
            if message.sid == "1" {
                break message;
            }
        };
        let assignment: Value = serde_json::from_slice(&message.payload).unwrap();
        let result = json!({"assignment_id": assignment["assignment_id"], "status": status, "error_code": code,
            "provider_id": "w", "job": {"type": "echo"}, "latency_ms": 5, "cost": 0.0, "tenant_id": "acme"});
        wire.send(&publish(RESULT, "", &result.to_string())).unwrap();
    };
    answer(&mut wire, "error", Some("UNKNOWN_JOB_TYPE"));
    let letter = wire.next().unwrap();
    assert_eq!(letter.subject, "caf.exec.assign.v1.dlq");
    assert!(
        !String::from_utf8(letter.payload).unwrap().contains("number"),
        "no payload in a dead letter's record"
    );
    // Dead letters outlive the node.
    node.kill();
    let node = Node::start(&data, &[]);
    let letters = node.command(&["dlq", "ls"]).unwrap();
    assert_eq!(
        (&letters[0]["reason"], &letters[0]["code"]),
        (&json!("PROCESSING_ERROR"), &json!("UNKNOWN_JOB_TYPE"))
    );
    let number = letters[0]["dead_letter"].to_string();
    assert_eq!(node.command(&["dlq", "show", &number]).unwrap()["job"]["payload"]["number"], "hopeless");
    let mut wire = Wire::open(&node.listen, &Connect::C).unwrap();
    wire.send("SUB caf.exec.assign.v1 1\r\n").unwrap();
    assert_eq!(node.command(&["dlq", "replay", &number]).unwrap()["tasks"], json!([2]));
    answer(&mut wire, "success", None);
    wait_until("the replayed job counts", || totals(&node.listen)["totals"]["succeeded"] == 1);
    assert_eq!(node.command(&["dlq", "purge", "--all"]).unwrap()["purged"], 1);
}

#[test]
fn policies_come_from_a_folder_and_change_without_a_restart() {
    let folder = TempDir::new().unwrap();
    let policies = folder.path().join("policies");
    std::fs::create_dir_all(policies.join("acme")).unwrap();
    let one = json!({"version": "1.0", "providers": [{"name": "one", "weight": 100}]});
    std::fs::write(policies.join("acme/gold.json"), one.to_string()).unwrap();
    let node = Node::start(&folder.path().join("data"), &["--tasks-policies", policies.to_str().unwrap()]);
    let decide = |id: &str| {
        let body = json!({"version": "1", "tenant_id": "acme", "request_id": id, "policy_id": "gold", "message": {}});
        insist(&|| node.listen.clone(), DECIDE, &body)["provider_id"].clone()
    };
    assert_eq!(decide("1"), "one");
    let file = folder.path().join("two.json");
    let two = json!({"version": "1.0", "providers": [{"name": "two", "weight": 100}]});
    std::fs::write(&file, two.to_string()).unwrap();
    assert_eq!(
        node.command(&["policy", "put", "acme", "gold", file.to_str().unwrap()]).unwrap()["version"],
        2
    );
    assert_eq!(decide("2"), "two");
    assert_eq!(decide("1"), "one", "what was decided stays so");
    let explained = node.command(&["policy", "explain", "acme", "gold"]).unwrap();
    assert_eq!(explained["decision"]["provider_id"], "two");
    std::fs::write(&file, "{\"version\":1}").unwrap();
    assert!(
        node.command(&["policy", "put", "acme", "gold", file.to_str().unwrap()])
            .unwrap_err()
            .contains("version")
    );
}

#[test]
fn the_backpressure_page_is_there_before_it_is_asked_for() {
    use std::io::Read;
    let folder = TempDir::new().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let _node = Node::start(&folder.path().join("data"), &["--tasks-backpressure", &port.to_string()]);
    let mut stream = std::net::TcpStream::connect(port).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    // Nothing was sent: the gateway writes and reads in one breath.
    let mut page = [0; 4096];
    let length = stream.read(&mut page).unwrap();
    let page = String::from_utf8_lossy(&page[..length]).into_owned();
    let at = page.find("router_intake_backpressure_active").unwrap();
    assert!(
        page[at..].starts_with("router_intake_backpressure_active{subject=\"beamline.router.v1.decide\"} 0")
    );
}
