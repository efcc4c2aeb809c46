//! Two nodes that keep messages and a witness, as real processes: any one of them may be lost, two may not.

use std::net::UdpSocket;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use async_nats::ConnectOptions;
use async_nats::jetstream::stream::Config;
use async_nats::jetstream::{self, Context};
use serde_json::Value;
use tempfile::TempDir;

use crate::running::{Node, beamlog, check_cannot_start, get, outcome};

const PATIENCE: Duration = Duration::from_secs(90);
const NAMES: [&str; 3] = ["n1", "n2", "w"];

struct Site {
    certificates: TempDir,
    ports: Vec<u16>,
    nodes: Vec<Option<Node>>,
}

impl Site {
    fn new() -> Self {
        let certificates = TempDir::new().unwrap();
        let cert = |line: &str| {
            let mut command = beamlog();
            command.current_dir(certificates.path()).arg("cert").args(line.split_whitespace());
            outcome(&command.output().unwrap()).unwrap();
        };
        cert("ca ca --cluster c1");
        cert("node n1 --ca ca --out n1");
        cert("node n2 --ca ca --out n2");
        cert("node w --witness --ca ca --out w");
        let sockets: Vec<UdpSocket> = NAMES.iter().map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let ports = sockets.iter().map(|socket| socket.local_addr().unwrap().port()).collect();
        Self { certificates, ports, nodes: NAMES.iter().map(|_| None).collect() }
    }

    fn certificates(&self, at: usize) -> PathBuf {
        self.certificates.path().join(NAMES[at])
    }

    fn start(&mut self, at: usize, folder: TempDir) {
        let listen = format!("127.0.0.1:{}", self.ports[at]);
        // Through any other: the first one may be the one that is away.
        let others: Vec<String> = (0..NAMES.len())
            .filter(|other| *other != at)
            .map(|other| format!("127.0.0.1:{}", self.ports[other]))
            .collect();
        let (join, certificates) = (others.join(","), self.certificates(at));
        let mut flags = vec!["--server-name", NAMES[at], "--cluster-listen", &listen];
        flags.extend(["--cluster-certificates", certificates.to_str().unwrap()]);
        if at != 0 {
            flags.extend(["--cluster-join", &join]);
        }
        if NAMES[at] == "w" {
            flags.push("--witness");
        }
        self.nodes[at] = Some(Node::start_with(folder, &flags));
    }

    fn node(&self, at: usize) -> &Node {
        self.nodes[at].as_ref().unwrap()
    }

    /// SIGKILL; the folder for the next start.
    fn kill(&mut self, at: usize) -> TempDir {
        let node = self.nodes[at].take().unwrap();
        node.signal("-KILL");
        node.stop_ended().1
    }

    fn page(&self, at: usize) -> Value {
        let (_status, body) = get(&self.node(at).admin, "/cluster", "localhost");
        serde_json::from_str(&body).unwrap()
    }

    async fn client(&self, at: usize) -> Context {
        let options = ConnectOptions::new().request_timeout(Some(Duration::from_secs(3)));
        jetstream::new(options.connect(format!("nats://{}", self.node(at).listen)).await.unwrap())
    }
}

async fn patiently<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn publish(context: &Context, text: &str) -> u64 {
    patiently("a publish is acked", async || {
        context.publish("s.a", text.to_owned().into()).await.ok()?.await.ok().map(|ack| ack.sequence)
    })
    .await
}

async fn healthy(site: &Site) -> Value {
    patiently("all three are well", async || {
        let page = site.page(0);
        (page["healthy"] == true && page["members"].as_array().unwrap().len() == NAMES.len()).then_some(page)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn any_one_of_three_may_be_lost_and_two_may_not() {
    let mut site = Site::new();
    for at in 0..NAMES.len() {
        site.start(at, TempDir::new().unwrap());
    }
    let page = healthy(&site).await;
    let roles: Vec<(&str, &str)> = page["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|member| (member["name"].as_str().unwrap(), member["role"].as_str().unwrap()))
        .collect();
    for expected in [("n1", "voter"), ("n2", "voter"), ("w", "witness")] {
        assert!(roles.contains(&expected), "{roles:?}");
    }
    let shown = site.node(2).run(&["cluster", "status", "--admin", &site.node(2).admin]).unwrap();
    assert!(shown.contains("witness"), "{shown}");

    let config =
        Config { name: "S".into(), subjects: vec!["s.>".into()], num_replicas: 2, ..Config::default() };
    let context = site.client(0).await;
    patiently("a stream is made", async || context.create_stream(config.clone()).await.ok()).await;
    let mut acked = Vec::new();
    for lost in [2, 0, 1] {
        let stays = usize::from(lost == 0);
        for n in 0..10 {
            let text = format!("before {lost} {n}");
            acked.push((publish(&site.client(stays).await, &text).await, text));
        }
        let folder = site.kill(lost);
        let context = site.client(stays).await;
        for n in 0..10 {
            let text = format!("without {lost} {n}");
            acked.push((publish(&context, &text).await, text));
        }
        assert_eq!(site.page(stays)["members"].as_array().unwrap().len(), NAMES.len());
        site.start(lost, folder);
        healthy(&site).await;
    }

    // Two at once: what is left knows, and acks nothing.
    let folders = [site.kill(2), site.kill(1)];
    patiently("one alone knows it", async || {
        let page = site.page(0);
        (page["quorum"] == false || page["leader"].is_null()).then_some(())
    })
    .await;
    let context = site.client(0).await;
    let alone = async { context.publish("s.a", "alone".into()).await?.await };
    assert!(!matches!(tokio::time::timeout(Duration::from_secs(5), alone).await, Ok(Ok(_))));
    let [witness, second] = folders;
    site.start(2, witness);
    site.start(1, second);
    healthy(&site).await;
    for at in [0, 1] {
        let context = site.client(at).await;
        let stream = patiently("the stream", async || context.get_stream("S").await.ok()).await;
        for (sequence, text) in &acked {
            let message = stream.get_raw_message(*sequence).await.unwrap();
            assert_eq!(message.payload, text.as_bytes());
        }
    }
    let kept: u64 = std::fs::read_dir(site.node(2).data().join("shard-0000"))
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    assert!(kept < 64 << 10, "the witness keeps {kept} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_lost_its_store_is_taken_out_and_comes_back_under_its_name() {
    const LOST: usize = 1;
    let mut site = Site::new();
    for at in 0..NAMES.len() {
        site.start(at, TempDir::new().unwrap());
    }
    let id = |page: &Value| {
        let members = page["members"].as_array().unwrap();
        members.iter().find(|member| member["name"] == NAMES[LOST]).unwrap()["id"].clone()
    };
    let before = id(&healthy(&site).await);
    drop(site.kill(LOST));
    // The others stay: they have seen the name with the id that is gone.
    let admin = site.node(0).admin.clone();
    patiently("it is taken out", async || {
        site.node(0).run(&["cluster", "remove", NAMES[LOST], "--admin", &admin]).ok()
    })
    .await;
    site.start(LOST, TempDir::new().unwrap());
    assert_ne!(before, id(&healthy(&site).await));
}

#[test]
fn a_witness_needs_its_certificate_and_a_cluster_to_join() {
    let site = Site::new();
    let data = TempDir::new().unwrap();
    let serve = |arguments: &[&str], certificates: PathBuf| {
        let mut command = beamlog();
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--admin", "off", "--data-dir"])
            .arg(data.path().join("d"));
        command.args(["--cluster-listen", "127.0.0.1:0", "--cluster-certificates"]).arg(certificates);
        command.args(arguments).output().unwrap()
    };
    check_cannot_start(&serve(&["--witness"], site.certificates(2)), &["witness", "cluster_join"]);
    let join = ["--witness", "--cluster-join", "127.0.0.1:1"];
    check_cannot_start(&serve(&join, site.certificates(0)), &["a node", "cert node --witness"]);
    check_cannot_start(&serve(&[], site.certificates(2)), &["a witness", "--witness"]);
    let hub = ["--witness", "--cluster-join", "127.0.0.1:1", "--edge-listen", "127.0.0.1:0"];
    check_cannot_start(&serve(&hub, site.certificates(2)), &["edge_listen", "witness"]);
}
