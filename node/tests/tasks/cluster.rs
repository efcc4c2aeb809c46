//! Tasks in a cluster of three nodes: whoever leads runs them, workers and gateways are connected to all. The
//! leader is killed under load, again and again.
//!
//! Oracle: every job has one result and one usage record; the same request has the same decision; a quota that
//! was used up stays so.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};

use super::*;

/// `beamlog cluster dev`, and the nodes it says it runs.
struct Dev {
    process: Child,
    nodes: Arc<Mutex<BTreeMap<String, Value>>>,
}

impl Dev {
    fn start(folder: &Path) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_beamlog"))
            .args(["cluster", "dev", "--tasks", "--base-port", &free_base().to_string(), "--data-dir"])
            .arg(folder.join("cluster"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(folder.join("log")).unwrap())
            .spawn()
            .unwrap();
        let nodes = Arc::new(Mutex::new(BTreeMap::new()));
        let (seen, output) = (Arc::clone(&nodes), process.stdout.take().unwrap());
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let node: Value = serde_json::from_str(&line).unwrap();
                seen.lock().unwrap().insert(node["name"].as_str().unwrap().to_owned(), node);
            }
        });
        Self { process, nodes }
    }

    fn text(&self, name: &str, key: &str) -> String {
        self.nodes.lock().unwrap()[name][key].as_str().unwrap().to_owned()
    }

    fn addresses(&self) -> Vec<String> {
        let nodes = self.nodes.lock().unwrap();
        nodes.values().map(|node| node["nats"].as_str().unwrap().to_owned()).collect()
    }

    /// The node at which tasks run.
    fn leader(&self) -> Option<String> {
        let names: Vec<String> = self.nodes.lock().unwrap().keys().cloned().collect();
        let runs: Vec<String> = names
            .into_iter()
            .filter(|name| {
                metrics(&self.text(name, "admin"))
                    .is_some_and(|text| text.lines().any(|line| line == "beamlog_tasks_serving 1.0"))
            })
            .collect();
        // One that has lost it and does not know yet is not asked.
        <[String; 1]>::try_from(runs).ok().map(|[name]| name)
    }

    /// Kills the leader; its name, once it is started again.
    fn kill_leader(&self) -> String {
        let mut leader = None;
        wait_until("one node runs tasks", || {
            leader = self.leader();
            leader.is_some()
        });
        let name = leader.unwrap();
        let pid = self.nodes.lock().unwrap()[&name]["pid"].clone();
        assert!(Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap().success());
        wait_until("it is started again", || self.nodes.lock().unwrap()[&name]["pid"] != pid);
        name
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // It stops its nodes.
        let told = Command::new("kill").args(["-TERM", &self.process.id().to_string()]).status();
        if told.is_ok_and(|status| status.success()) {
            drop(self.process.wait());
        }
    }
}

/// What the nodes logged, when a test fails.
struct LastWords(std::path::PathBuf);

impl Drop for LastWords {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", std::fs::read_to_string(&self.0).unwrap_or_default());
        }
    }
}

fn metrics(address: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

/// A port from which all those that a cluster of three derives are free.
fn free_base() -> u16 {
    let is_free = |base: u16| {
        (0..3).all(|node| {
            TcpListener::bind(("127.0.0.1", base + node)).is_ok()
                && TcpListener::bind(("127.0.0.1", base + 1000 + node)).is_ok()
                && UdpSocket::bind(("127.0.0.1", base + 2000 + node)).is_ok()
        })
    };
    let port = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    (0..100).map(|_| port().clamp(1024, 60_000)).find(|base| is_free(*base)).unwrap()
}

#[test]
fn a_killed_leader_of_a_cluster_loses_no_job_and_forgets_no_decision() {
    const KILLS: usize = 3;
    let jobs: u32 = std::env::var("BEAMLOG_TEST_TASKS_JOBS").map_or(300, |jobs| jobs.parse().unwrap());
    let folder = TempDir::new().unwrap();
    let dev = Dev::start(folder.path());
    let _last_words = LastWords(folder.path().join("log"));
    wait_until("three nodes serve", || dev.nodes.lock().unwrap().len() == 3);
    let addresses = dev.addresses();
    let book = Arc::new(Book::default());
    // Two at each node.
    let running: Vec<Worker> = (0..6)
        .map(|n| {
            let address = Arc::new(Mutex::new(addresses[n % 3].clone()));
            Worker::start(format!("worker-{n}"), address, habits(10), Arc::clone(&book))
        })
        .collect();
    // A quota, used up before anybody dies.
    let anywhere = |n: u32| addresses[n as usize % 3].clone();
    let quota = json!({"tenant_id": "small",
        "rules": {"quota": {"window_seconds": 31_536_000, "requests": 2}}});
    admin(&anywhere(0), "upsert_tenant", &quota);
    let small = |id: &str| {
        json!({"version": "1", "tenant_id": "small", "request_id": id,
        "task": {"type": "echo", "payload": {"number": id}}})
    };
    let first = insist(&|| anywhere(1), DECIDE, &small("s-1"))["provider_id"].clone();
    insist(&|| anywhere(2), DECIDE, &small("s-2"));

    let submitting = addresses.clone();
    let submitter = thread::spawn(move || {
        let mut decisions = BTreeMap::new();
        for n in 0..jobs {
            let id = format!("job-{n}");
            // Another node each time, so that one that is down is not asked for ever.
            let at = std::cell::Cell::new(n as usize);
            let address = || {
                at.set(at.get() + 1);
                submitting[at.get() % 3].clone()
            };
            let decision = insist(&address, DECIDE, &job(&id))["decision"].clone();
            decisions.insert(id, decision);
        }
        decisions
    });
    let killed: Vec<String> = (0..KILLS).map(|_| dev.kill_leader()).collect();
    let decisions = submitter.join().unwrap();
    let found = || totals(&addresses[0]);
    wait_until("all jobs have a result", || found()["open_tasks"] == 0);
    println!("{jobs} jobs, killed {killed:?}");
    let all = found();
    assert_eq!(all["totals"]["tasks"], jobs, "the same request is the same task: {all}");
    assert_eq!(all["totals"]["succeeded"], jobs, "{all}");
    wait_until("usage is stored", || usage(&addresses[0]).len() == jobs as usize);
    let records = usage(&addresses[1]);
    let twice: Vec<_> = records.iter().filter(|(_, records)| **records != 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    // Any node gives the decision of each request once more.
    for (n, (id, decision)) in decisions.iter().enumerate().step_by(7) {
        let again = insist(&|| addresses[n % 3].clone(), DECIDE, &job(id));
        assert_eq!(again["decision"], *decision, "{id}");
    }
    assert_eq!(insist(&|| anywhere(0), DECIDE, &small("s-1"))["provider_id"], first);
    let refused = gateway::request(&anywhere(2), DECIDE, &small("s-3")).unwrap();
    assert_eq!(refused["error"]["code"], "quota_exceeded", "{refused}");
    drop(running.into_iter().map(Worker::kill).collect::<Vec<_>>());
}
