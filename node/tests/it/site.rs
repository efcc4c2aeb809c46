//! Real processes that are one cluster, each with a certificate of its own; a test stops and starts them.

use std::net::UdpSocket;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use async_nats::ConnectOptions;
use async_nats::jetstream::{self, Context};
use serde_json::Value;
use tempfile::TempDir;

use crate::running::{Node, beamlog, get, outcome};

const PATIENCE: Duration = Duration::from_secs(90);
/// The node of this name is a witness.
const WITNESS: &str = "w";

pub(crate) struct Site {
    names: &'static [&'static str],
    certificates: TempDir,
    ports: Vec<u16>,
    nodes: Vec<Option<Node>>,
}

impl Site {
    pub(crate) fn new(names: &'static [&'static str]) -> Self {
        let certificates = TempDir::new().unwrap();
        let cert = |line: &str| {
            let mut command = beamlog();
            command.current_dir(certificates.path()).arg("cert").args(line.split_whitespace());
            outcome(&command.output().unwrap()).unwrap();
        };
        cert("ca ca --cluster c1");
        for name in names {
            let witness = if *name == WITNESS { "--witness" } else { "" };
            cert(&format!("node {name} {witness} --ca ca --out {name}"));
        }
        let sockets: Vec<UdpSocket> = names.iter().map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let ports = sockets.iter().map(|socket| socket.local_addr().unwrap().port()).collect();
        Self { names, certificates, ports, nodes: names.iter().map(|_| None).collect() }
    }

    pub(crate) fn certificates(&self, at: usize) -> PathBuf {
        self.certificates.path().join(self.names[at])
    }

    pub(crate) fn start(&mut self, at: usize, folder: TempDir) {
        let listen = format!("127.0.0.1:{}", self.ports[at]);
        // Through any other: the first one may be the one that is away.
        let others: Vec<String> = (0..self.names.len())
            .filter(|other| *other != at)
            .map(|other| format!("127.0.0.1:{}", self.ports[other]))
            .collect();
        let (join, certificates) = (others.join(","), self.certificates(at));
        let mut flags = vec!["--server-name", self.names[at], "--cluster-listen", &listen];
        flags.extend(["--cluster-certificates", certificates.to_str().unwrap()]);
        if at != 0 {
            flags.extend(["--cluster-join", &join]);
        }
        if self.names[at] == WITNESS {
            flags.push("--witness");
        }
        self.nodes[at] = Some(Node::start_with(folder, &flags));
    }

    pub(crate) fn node(&self, at: usize) -> &Node {
        self.nodes[at].as_ref().unwrap()
    }

    /// Starts all of them over empty folders, and waits until each is well.
    pub(crate) async fn start_all(&mut self) {
        for at in 0..self.names.len() {
            self.start(at, TempDir::new().unwrap());
        }
        self.healthy().await;
    }

    /// Waits until every node is well, and gives the page of the first.
    pub(crate) async fn healthy(&self) -> Value {
        patiently("all are well", async || {
            let page = self.page(0);
            (page["healthy"] == true && page["members"].as_array().unwrap().len() == self.names.len())
                .then_some(page)
        })
        .await
    }

    /// SIGKILL; the folder for the next start.
    pub(crate) fn kill(&mut self, at: usize) -> TempDir {
        let node = self.nodes[at].take().unwrap();
        node.signal("-KILL");
        node.stop_ended().1
    }

    pub(crate) fn page(&self, at: usize) -> Value {
        let (_status, body) = get(&self.node(at).admin, "/cluster", "localhost");
        serde_json::from_str(&body).unwrap()
    }

    pub(crate) async fn client(&self, at: usize) -> Context {
        let options = ConnectOptions::new().request_timeout(Some(Duration::from_secs(3)));
        jetstream::new(options.connect(format!("nats://{}", self.node(at).listen)).await.unwrap())
    }
}

pub(crate) async fn patiently<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
