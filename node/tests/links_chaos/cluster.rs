//! A link of a cluster of three nodes: the node that leads runs it, the others stand by. Whoever runs it is killed
//! under load, again and again.
//!
//! Oracle: as for one node, what a link carried is what its source has, each message once and in order; and
//! what the cluster acked is in its stream once.

use std::io::{BufRead, BufReader};
use std::sync::Mutex;

use serde_json::Value;

use super::*;

const KILLS: usize = 4;

/// `beamlog cluster dev`, and the nodes it says it runs.
struct Cluster {
    process: Child,
    nodes: Arc<Mutex<BTreeMap<String, Value>>>,
}

impl Cluster {
    fn start(folder: &Path) -> Self {
        let log = std::fs::File::create(folder.join("log")).unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_beamlog"))
            .args(["cluster", "dev", "--base-port", &free_base().to_string(), "--data-dir"])
            .arg(folder.join("cluster"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let nodes = Arc::new(Mutex::new(BTreeMap::new()));
        let (seen, output) = (Arc::clone(&nodes), process.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let node: Value = serde_json::from_str(&line).unwrap();
                seen.lock().unwrap().insert(node["name"].as_str().unwrap().to_owned(), node);
            }
        });
        Self { process, nodes }
    }

    fn nodes(&self) -> Vec<Value> {
        self.nodes.lock().unwrap().values().cloned().collect()
    }

    fn urls(&self) -> Vec<String> {
        self.nodes().iter().map(|node| format!("nats://{}", node["nats"].as_str().unwrap())).collect()
    }

    /// How each node that answers says the link is, by the node's name.
    fn states(&self) -> BTreeMap<String, String> {
        let state = |node: &Value| {
            let link: Value =
                serde_json::from_slice(&ask(node, &["link", "status", "core", "-o", "json"])?).ok()?;
            Some((node["name"].as_str()?.to_owned(), link["state"].as_str()?.to_owned()))
        };
        self.nodes().iter().filter_map(state).collect()
    }

    /// The only node that runs the link, when every other one stands by.
    fn runner(&self) -> Option<String> {
        let states = self.states();
        let standby = states.values().filter(|state| *state == "standby").count();
        let runs = states.iter().find(|(_, state)| *state == "connected")?;
        (states.len() == 3 && standby == 2).then(|| runs.0.clone())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // It stops its nodes.
        let told = Command::new("kill").args(["-TERM", &self.process.id().to_string()]).status();
        if told.is_ok_and(|status| status.success()) {
            drop(self.process.wait());
        }
    }
}

/// What the command says of this node; `None` if it fails.
fn ask(node: &Value, arguments: &[&str]) -> Option<Vec<u8>> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_beamlog"));
    command.args(arguments).args(["--admin", node["admin"].as_str()?]);
    let output = command.output().unwrap();
    output.status.success().then_some(output.stdout)
}

/// A port from which all those that a cluster of three derives are free.
pub(crate) fn free_base() -> u16 {
    let is_free = |base: u16| {
        (0..3).all(|node| {
            StdListener::bind(("127.0.0.1", base + node)).is_ok()
                && StdListener::bind(("127.0.0.1", base + 1000 + node)).is_ok()
                && std::net::UdpSocket::bind(("127.0.0.1", base + 2000 + node)).is_ok()
                && std::net::UdpSocket::bind(("127.0.0.1", base + 2003 + node)).is_ok()
        })
    };
    (0..100).map(|_| free_port().clamp(1024, 60_000)).find(|base| is_free(*base)).unwrap()
}

pub(crate) async fn connect_all(urls: Vec<String>) -> Client {
    ConnectOptions::new()
        .retry_on_initial_connect()
        .request_timeout(Some(Duration::from_secs(3)))
        .reconnect_delay_callback(|_| Duration::from_millis(50))
        .connect(urls)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_that_runs_a_link_may_be_killed_and_another_one_goes_on() {
    let folder = TempDir::new().unwrap();
    let (port, store) = (free_port(), folder.path().join("nats"));
    let nats = Process::new(format!("nats://127.0.0.1:{port}"), move || {
        let mut command = Command::new(nats_binary());
        command.args(["-a", "127.0.0.1", "-p", &port.to_string(), "-js", "-sd"]).arg(&store);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    });
    let cluster = Cluster::start(folder.path());
    let _last_words = LastWords(folder.path().join("log"));
    patiently("three nodes serve", async || (cluster.nodes().len() == 3).then_some(())).await;
    let (there, here) = (connect(&nats.url).await, connect_all(cluster.urls()).await);
    let (far, near) = (jetstream::new(there.clone()), jetstream::new(here.clone()));
    make(&far, "DOWN", "down.>").await;
    make(&far, "UP", "up.>").await;
    make(&near, "LOCAL", "up.>").await;
    for node in cluster.nodes() {
        let add = ["link", "add", "core", "--url", &nats.url];
        let rules = ["--import", "stream=DOWN", "--export", "stream=LOCAL"];
        ask(&node, &[&add[..], &rules[..]].concat()).unwrap();
    }
    patiently("one node runs the link", async || cluster.runner()).await;

    let stop = Arc::new(AtomicBool::new(false));
    let acked = [Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0))];
    let mut publishers = Vec::new();
    for at in 0..2 {
        for (urls, prefix, acked) in
            [(vec![nats.url.clone()], "down", &acked[0]), (cluster.urls(), "up", &acked[1])]
        {
            let (client, subject) = (connect_all(urls).await, format!("{prefix}.{at}"));
            publishers.push(tokio::spawn(publish(client, subject, Arc::clone(&stop), Arc::clone(acked))));
        }
    }
    let mut ran = Vec::new();
    for _ in 0..KILLS {
        let name = patiently("one node runs the link", async || cluster.runner()).await;
        let carried = count(&far, "UP").await.unwrap_or(0);
        patiently("it carries", async || (count(&far, "UP").await? > carried).then_some(())).await;
        let pid = cluster.nodes.lock().unwrap()[&name]["pid"].clone();
        assert!(Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap().success());
        patiently("it is started again", async || {
            (cluster.nodes.lock().unwrap()[&name]["pid"] != pid).then_some(())
        })
        .await;
        ran.push(name);
    }
    stop.store(true, Ordering::Relaxed);
    for publisher in publishers {
        publisher.await.unwrap();
    }
    for (from, source, to, target) in [(&far, "DOWN", &near, "DOWN"), (&near, "LOCAL", &far, "UP")] {
        all_of((from, source), (to, target)).await;
    }
    let source = by_subject(&there, "DOWN").await;
    check_equal(&source, &by_subject(&here, "DOWN").await, "import");
    let exported = by_subject(&here, "LOCAL").await;
    check_equal(&exported, &by_subject(&there, "UP").await, "export");
    let messages = |all: &BTreeMap<String, Vec<String>>| all.values().map(Vec::len).sum::<usize>() as u64;
    let acked = acked.map(|acked| acked.load(Ordering::Relaxed));
    println!(
        "killed {ran:?}: {} imported, {} exported, 0 lost, 0 doubled; acked {acked:?}",
        messages(&source),
        messages(&exported)
    );
    assert_eq!([messages(&source), messages(&exported)], acked, "what was acked is there, once");
}
