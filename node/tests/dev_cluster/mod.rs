//! `beamlog cluster dev` as a process of a test, and the ports that clusters need.

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::Value;

/// For a cluster to begin, or a node of it to be started again, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(300);

/// The process, and the nodes that it says it runs. Its log is told when the test fails.
pub(crate) struct Dev {
    process: Child,
    nodes: Arc<Nodes>,
    log: PathBuf,
}

#[derive(Default)]
struct Nodes {
    /// The last line of each, by name.
    said: Mutex<BTreeMap<String, Value>>,
    more: Condvar,
}

/// The program, without what the environment of the test says to it.
pub(crate) fn beamlog() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_beamlog"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("BEAMLOG_") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

impl Dev {
    /// When as many nodes as were asked for serve.
    pub(crate) fn start(folder: &Path, nodes: usize, arguments: &[&str]) -> Self {
        let log = folder.join("cluster.log");
        let mut process = beamlog()
            .args(["cluster", "dev", "--nodes", &nodes.to_string(), "--base-port", &free_base().to_string()])
            .args(arguments)
            .arg("--data-dir")
            .arg(folder.join("cluster"))
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let known = Arc::new(Nodes::default());
        let (told, output) = (Arc::clone(&known), process.stdout.take().unwrap());
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let node: Value = serde_json::from_str(&line).unwrap();
                told.said.lock().unwrap().insert(node["name"].as_str().unwrap().to_owned(), node);
                told.more.notify_all();
            }
        });
        let dev = Self { process, nodes: known, log };
        dev.wait("all nodes serve", |said| said.len() == nodes);
        dev
    }

    fn wait(&self, what: &str, done: impl Fn(&BTreeMap<String, Value>) -> bool) {
        let said = self.nodes.said.lock().unwrap();
        let (_said, waited) = self.nodes.more.wait_timeout_while(said, PATIENCE, |said| !done(said)).unwrap();
        assert!(!waited.timed_out(), "not within {PATIENCE:?}: {what}");
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.nodes.said.lock().unwrap().keys().cloned().collect()
    }

    /// What `cluster dev` says of a node: `nats` or `admin`, an address.
    pub(crate) fn text(&self, name: &str, key: &str) -> String {
        self.nodes.said.lock().unwrap()[name][key].as_str().unwrap().to_owned()
    }

    /// Where clients connect.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.names().iter().map(|name| self.text(name, "nats")).collect()
    }

    /// Ends a node's process by SIGKILL; what [`Self::started_again`] is asked with.
    pub(crate) fn kill(&self, name: &str) -> Killed {
        let pid = self.nodes.said.lock().unwrap()[name]["pid"].clone();
        assert!(Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap().success());
        Killed { name: name.to_owned(), pid }
    }

    pub(crate) fn started_again(&self, killed: &Killed) {
        self.wait("it is started again", |said| said[&killed.name]["pid"] != killed.pid);
    }
}

/// A process that is no more.
pub(crate) struct Killed {
    name: String,
    pid: Value,
}

impl Drop for Dev {
    fn drop(&mut self) {
        // It stops its nodes.
        let told = Command::new("kill").args(["-TERM", &self.process.id().to_string()]).status();
        if told.is_ok_and(|status| status.success()) {
            drop(self.process.wait());
        }
        if thread::panicking() {
            eprintln!("{}", std::fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

/// A port from which all those that five nodes derive are free. They are below those that the system gives to
/// connections (from 32,768 on), so that a node that is started again finds its own free.
pub(crate) fn free_base() -> u16 {
    let is_free = |base: u16| {
        (base..base + 5).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok())
            && (base + 1000..base + 1005).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok())
            && (base + 2000..base + 2008).all(|port| UdpSocket::bind(("127.0.0.1", port)).is_ok())
    };
    let by_chance = || RandomState::new().build_hasher().finish();
    let base = || 10_000 + u16::try_from(by_chance() % 2_500).unwrap() * 8;
    (0..1000).map(|_| base()).find(|base| is_free(*base)).expect("some ports are free")
}
