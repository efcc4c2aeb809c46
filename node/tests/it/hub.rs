//! Links over QUIC between real nodes: an edge and its hub, while either is killed, the network is cut, and the edge's
//! address changes; and who does not get in.

use std::collections::{BTreeMap, HashMap};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::{self, Context};
use futures_util::StreamExt;
use serde_json::Value;
use tempfile::TempDir;

use crate::running::{Node, beamlog, check_cannot_start, outcome, write};

const PATIENCE: Duration = Duration::from_secs(120);

/// An authority, certificates, and the folders of a hub and an edge.
pub(crate) struct Site {
    folder: TempDir,
    /// Where the hub listens for edges, also after it was started again.
    port: u16,
}

impl Site {
    pub(crate) fn new() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        // Free now; nobody else asks for it in between but by chance.
        let site = Self { folder: TempDir::new().unwrap(), port: socket.local_addr().unwrap().port() };
        site.cert("ca ca --cluster c1");
        site.cert("node hub --ca ca --out hub");
        site.cert("edge site7 --ca ca --out site7");
        site
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn cert(&self, line: &str) {
        let mut command = beamlog();
        command.current_dir(self.folder.path()).arg("cert").args(line.split_whitespace());
        outcome(&command.output().unwrap()).unwrap();
    }

    /// A hub with `more` in its configuration, over a folder that may hold a store.
    pub(crate) fn hub(&self, folder: TempDir, more: &str) -> Node {
        let file = folder.path().join("node.toml");
        write(&file, more);
        let (listen, certificates) = (format!("127.0.0.1:{}", self.port), self.path("hub"));
        let flags = ["--config", file.to_str().unwrap(), "--edge-listen", &listen, "--edge-certificates"];
        Node::start_with(folder, &[&flags[..], &[certificates.to_str().unwrap()]].concat())
    }

    pub(crate) fn hub_url(&self) -> String {
        format!("quic://127.0.0.1:{}", self.port)
    }
}

pub(crate) fn link(node: &Node, arguments: &[&str]) -> Output {
    let mut command = beamlog();
    command.env("BEAMLOG_ADMIN", &node.admin).arg("link").args(arguments).output().unwrap()
}

pub(crate) fn status(node: &Node, name: &str) -> Value {
    serde_json::from_str(&outcome(&link(node, &["status", name, "-o", "json"])).unwrap()).unwrap()
}

/// Looks again until it is so.
pub(crate) fn until<T>(what: &str, mut looked: impl FnMut() -> Result<T, String>) -> T {
    let begun = Instant::now();
    loop {
        match looked() {
            Ok(found) => return found,
            Err(seen) => assert!(begun.elapsed() < PATIENCE, "{what}: {seen}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn until_link(node: &Node, name: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    until("the link", || {
        let status = status(node, name);
        if is_so(&status) { Ok(status) } else { Err(format!("{status:#}\n{}", node.log())) }
    })
}

/// A UDP path that can be cut, and on which the edge gets another address.
struct Path7 {
    address: SocketAddr,
    cut: Arc<AtomicBool>,
    moves: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
}

impl Path7 {
    fn new(to: SocketAddr) -> Self {
        let near = Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap());
        let path = Self {
            address: near.local_addr().unwrap(),
            cut: Arc::default(),
            moves: Arc::default(),
            ended: Arc::default(),
        };
        let (cut, moves, ended) = (Arc::clone(&path.cut), Arc::clone(&path.moves), Arc::clone(&path.ended));
        near.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        std::thread::spawn(move || {
            let far: Mutex<HashMap<(SocketAddr, u64), Arc<UdpSocket>>> = Mutex::default();
            let mut datagram = vec![0; 65_536];
            while !ended.load(Ordering::SeqCst) {
                let Ok((length, from)) = near.recv_from(&mut datagram) else { continue };
                if cut.load(Ordering::SeqCst) {
                    continue;
                }
                let key = (from, moves.load(Ordering::SeqCst));
                let mut far = far.lock().unwrap();
                let socket = far.entry(key).or_insert_with(|| {
                    let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap());
                    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
                    let (near, back, cut) = (Arc::clone(&near), Arc::clone(&socket), Arc::clone(&cut));
                    let (moves, ended) = (Arc::clone(&moves), Arc::clone(&ended));
                    std::thread::spawn(move || {
                        let mut datagram = vec![0; 65_536];
                        while !ended.load(Ordering::SeqCst) {
                            let Ok(length) = back.recv(&mut datagram) else { continue };
                            // An address that is not ours any more hears nothing.
                            if !cut.load(Ordering::SeqCst) && moves.load(Ordering::SeqCst) == key.1 {
                                drop(near.send_to(&datagram[..length], from));
                            }
                        }
                    });
                    socket
                });
                drop(socket.send_to(&datagram[..length], to));
            }
        });
        path
    }
}

impl Drop for Path7 {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
    }
}

/// A client of a node, whose address is new after each start.
async fn client(node: &Node) -> async_nats::Client {
    async_nats::connect(node.listen.as_str()).await.unwrap()
}

/// Publishes messages `from..to`, each acked; again, when it is not known what became of it.
async fn publish(node: &Node, prefix: &str, from: u64, to: u64) {
    let context = jetstream::new(client(node).await);
    for number in from..to {
        let message = jetstream::message::PublishMessage::build()
            .payload(number.to_string().into())
            .message_id(format!("{prefix}-{number}"));
        let subject = format!("{prefix}.k{}", number % 5);
        context.send_publish(subject, message).await.unwrap().await.unwrap();
    }
}

/// What a stream has, in its order: subject and number.
async fn read(context: &Context, stream: &str, count: usize) -> Vec<(String, u64)> {
    let stream = context.get_stream(stream).await.unwrap();
    let config = pull::Config { ack_policy: AckPolicy::None, ..Default::default() };
    let consumer = stream.create_consumer(config).await.unwrap();
    let mut messages = consumer.messages().await.unwrap();
    let mut all = Vec::new();
    while all.len() < count {
        let message = messages.next().await.unwrap().unwrap();
        let number = std::str::from_utf8(&message.payload).unwrap().parse().unwrap();
        all.push((message.subject.to_string(), number));
    }
    all
}

async fn messages_of(context: &Context, stream: &str) -> u64 {
    match context.get_stream(stream).await {
        Ok(stream) => stream.cached_info().state.messages,
        Err(_) => 0,
    }
}

/// Waits until a stream has as many as were published, and looks at each.
async fn check_whole(node: &Node, stream: &str, prefix: &str, count: u64) {
    let context = jetstream::new(client(node).await);
    let begun = Instant::now();
    while messages_of(&context, stream).await < count {
        assert!(begun.elapsed() < PATIENCE, "{stream}: {} of {count}", messages_of(&context, stream).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(messages_of(&context, stream).await, count, "{stream}: no more than were published");
    let mut by_subject: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for (subject, number) in read(&context, stream, usize::try_from(count).unwrap()).await {
        by_subject.entry(subject).or_default().push(number);
    }
    for key in 0..5 {
        let expected: Vec<u64> = (0..count).filter(|number| number % 5 == key).collect();
        assert_eq!(
            by_subject.remove(&format!("{prefix}.k{key}")),
            Some(expected),
            "{stream}: order of k{key}"
        );
    }
    assert!(by_subject.is_empty(), "{by_subject:?}");
}

const HUB: &str = "[[edge]]\nname = \"site7\"\nstreams = [\"ORDERS\", \"TELEMETRY\"]\nbuckets = [\"settings\"]\n\
                   subjects = [\"telemetry.>\", \"alerts.>\", \"cmd.>\", \"rpc.>\"]\n";

#[test]
fn nothing_is_lost_doubled_or_reordered_whatever_happens_to_either_side_and_the_path() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let site = Site::new();
    let mut hub = site.hub(TempDir::new().unwrap(), HUB);
    let path = Path7::new(SocketAddr::from(([127, 0, 0, 1], site.port)));
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("node.toml");
    write(
        &file,
        &format!(
            "[[link]]\nname = \"hub\"\nurls = [\"quic://{}\"]\ncertificates = {:?}\n\
             import = [ {{ stream = \"ORDERS\" }}, {{ subject = \"cmd.>\" }}, {{ bucket = \"settings\" }} ]\n\
             export = [ {{ stream = \"TELEMETRY\" }}, {{ subject = \"alerts.>\" }} ]\n\
             requests = [ {{ subject = \"rpc.>\", direction = \"out\" }} ]\n",
            path.address,
            site.path("site7")
        ),
    );
    let flags = ["--config", file.to_str().unwrap()];
    hub.run(&["stream", "add", "ORDERS", "--subjects", "orders.>"]).unwrap();
    hub.run(&["stream", "add", "TELEMETRY", "--subjects", "telemetry.>"]).unwrap();
    let mut edge = Node::start_with(folder, &flags);
    edge.run(&["stream", "add", "TELEMETRY", "--subjects", "telemetry.>"]).unwrap();
    let connected = |edge: &Node| until_link(edge, "hub", |status| status["state"] == "connected");
    hub.run(&["kv", "add", "settings"]).unwrap();
    hub.run(&["kv", "put", "settings", "colour", "red"]).unwrap();
    let shown = connected(&edge);
    assert_eq!((shown["kind"].as_str(), shown["reconnects"].as_u64()), (Some("beamlog"), Some(0)));
    assert_eq!(shown["server"], format!("quic://{}", path.address));
    until("the bucket", || match edge.run(&["kv", "get", "settings", "colour"]) {
        Ok(value) if value.contains("red") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    // The hub shows who it is.
    let connections = hub.get("/connz?auth=1").1;
    assert!(connections.contains("beamlog link hub"), "{connections}");

    runtime.block_on(unstored(&hub, &edge));

    let both = |hub: &Node, edge: &Node, from, to| {
        runtime.block_on(async {
            tokio::join!(publish(hub, "orders", from, to), publish(edge, "telemetry", from, to));
        });
    };
    both(&hub, &edge, 0, 200);
    // The path is cut: each side works alone, and the edge notices.
    path.cut.store(true, Ordering::SeqCst);
    both(&hub, &edge, 200, 300);
    until_link(&edge, "hub", |status| status["last_error"].is_string());
    path.cut.store(false, Ordering::SeqCst);
    both(&hub, &edge, 300, 400);
    // Killed while messages are under way.
    hub.signal("-KILL");
    let (_, folder) = hub.stop_ended();
    runtime.block_on(publish(&edge, "telemetry", 400, 500));
    hub = site.hub(folder, HUB);
    runtime.block_on(publish(&hub, "orders", 400, 500));
    connected(&edge);
    both(&hub, &edge, 500, 600);
    edge.signal("-KILL");
    let (_, folder) = edge.stop_ended();
    runtime.block_on(publish(&hub, "orders", 600, 700));
    edge = Node::start_with(folder, &flags);
    runtime.block_on(publish(&edge, "telemetry", 600, 700));
    let before = connected(&edge)["reconnects"].clone();
    // Another address, as behind a NAT that forgot: the session goes on.
    both(&hub, &edge, 700, 750);
    path.moves.fetch_add(1, Ordering::SeqCst);
    both(&hub, &edge, 750, 800);
    runtime.block_on(async {
        check_whole(&hub, "TELEMETRY", "telemetry", 800).await;
        check_whole(&edge, "ORDERS", "orders", 800).await;
    });
    assert_eq!(status(&edge, "hub")["reconnects"], before, "a move is no reconnect");
    runtime.block_on(unstored(&hub, &edge));
    // Stopped in good order, the hub says so at once.
    let (code, folder) = hub.stop();
    assert_eq!(code, Some(0));
    let left = until_link(&edge, "hub", |status| status["state"] == "degraded");
    assert!(left["last_error"].is_string(), "{left:#}");
    hub = site.hub(folder, HUB);
    connected(&edge);
    let diff = outcome(&link(&edge, &["diff", "hub"])).unwrap();
    assert!(diff.contains("import stream ORDERS"), "{diff} {left}");
    assert_eq!(edge.stop().0, Some(0));
    runtime.block_on(check_whole(&hub, "TELEMETRY", "telemetry", 800));
}

/// Core subjects both ways, and a request.
async fn unstored(hub: &Node, edge: &Node) {
    let (at_hub, at_edge) = (client(hub).await, client(edge).await);
    for (from, to, subject) in [(&at_edge, &at_hub, "alerts.fire"), (&at_hub, &at_edge, "cmd.stop")] {
        let mut heard = to.subscribe(subject).await.unwrap();
        to.flush().await.unwrap();
        // Nothing is kept for later: said again until it is heard.
        let saying = async {
            loop {
                from.publish(subject, "x".into()).await.unwrap();
                from.flush().await.unwrap();
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::select! {
            message = heard.next() => assert_eq!(message.unwrap().payload, "x"),
            () = saying => {}
            () = tokio::time::sleep(PATIENCE) => panic!("{subject} was not heard"),
        }
    }
    let mut service = at_hub.subscribe("rpc.*").await.unwrap();
    at_hub.flush().await.unwrap();
    let serving = tokio::spawn(async move {
        while let Some(request) = service.next().await {
            at_hub.publish(request.reply.unwrap(), "answer".into()).await.unwrap();
        }
    });
    let begun = Instant::now();
    loop {
        match at_edge.request("rpc.x", "?".into()).await {
            Ok(answer) if answer.payload == "answer" => break,
            other => assert!(begun.elapsed() < PATIENCE, "{other:?}"),
        }
    }
    serving.abort();
}

/// Waits for a cause that has these words.
pub(crate) fn degraded(edge: &Node, name: &str, words: &[&str]) -> String {
    let shown = until_link(edge, name, |status| {
        let error = status["last_error"].as_str().unwrap_or_default();
        words.iter().all(|word| error.contains(word))
    });
    shown["last_error"].as_str().unwrap().to_owned()
}

#[test]
fn who_does_not_belong_there_is_told_why_and_logged_once() {
    let site = Site::new();
    site.cert("edge stranger --ca ca --out stranger");
    site.cert("edge thief --ca ca --out thief");
    let hub = site.hub(TempDir::new().unwrap(), "[[edge]]\nname = \"site7\"\nunrestricted = true\n\n[[edge]]\nname = \"thief\"\nunrestricted = true\n");
    let edge = Node::start();
    let add = |name: &str, certificates: &Path| {
        let folder = certificates.to_str().unwrap();
        let rule = format!("subject={name}.>");
        link(&edge, &["add", name, "--url", &site.hub_url(), "--certificates", folder, "--export", &rule])
    };
    // What is no handshake at all does no harm.
    let noise = UdpSocket::bind("127.0.0.1:0").unwrap();
    for length in [1, 20, 1200] {
        noise.send_to(&vec![0xc3; length], ("127.0.0.1", site.port)).unwrap();
    }
    assert!(TcpStream::connect(("127.0.0.1", site.port)).is_err(), "there is no TCP");
    outcome(&add("good", &site.path("site7"))).unwrap();
    until_link(&edge, "good", |status| status["state"] == "connected");
    // Another authority that calls its cluster by the same name, and trusts ours.
    let other = Site::new();
    let roots = |site: &Site, name: &str| std::fs::read_to_string(site.path(name).join("roots.pem")).unwrap();
    let both = format!("{}{}", roots(&other, "site7"), roots(&site, "site7"));
    std::fs::write(other.path("site7").join("roots.pem"), both).unwrap();
    // A node of its own each: one store is one edge.
    let second = Node::start();
    let add_second = |name: &str, certificates: &Path| {
        let folder = certificates.to_str().unwrap();
        let rule = format!("subject={name}.>");
        let arguments = ["add", name, "--url", &site.hub_url(), "--certificates", folder, "--export", &rule];
        outcome(&link(&second, &arguments)).unwrap();
    };
    add_second("foreign", &other.path("site7"));
    degraded(&second, "foreign", &["quic://127.0.0.1", "connection"]);
    add_second("unnamed", &site.path("stranger"));
    degraded(&second, "unnamed", &["does not want it", "stranger"]);
    // A node where an edge is needed, told when it is added.
    let refused = add("node", &site.path("hub"));
    check_cannot_start(&refused, &["a node is named there", "beamlog cert edge"]);
    // One that was let in, until its name was revoked.
    outcome(&link(&second, &["rm", "unnamed"])).unwrap();
    let third = Node::start();
    let folder = site.path("thief");
    let arguments = ["add", "thief", "--url", &site.hub_url(), "--export", "subject=t.>", "--certificates"];
    outcome(&link(&third, &[&arguments[..], &[folder.to_str().unwrap()]].concat())).unwrap();
    until_link(&third, "thief", |status| status["state"] == "connected");
    write(&site.path("hub").join("revoked"), "name thief\n");
    until_link(&third, "thief", |status| status["state"] == "degraded");
    // The others go on.
    assert_eq!(status(&edge, "good")["state"], "connected");
    for words in ["stranger", "thief"] {
        let log = hub.log();
        let said = log.lines().filter(|line| line.contains("refused a peer") && line.contains(words)).count();
        assert_eq!(said, 1, "{words}: {log}");
    }
    assert!(hub.log().contains("no session by TLS"), "{}", hub.log());
}

#[test]
fn an_edge_carries_what_is_named_for_it_and_nothing_else() {
    let site = Site::new();
    let grant = "[[edge]]\nname = \"site7\"\nstreams = [\"ORDERS\"]\nsubjects = [\"alerts.>\"]\n";
    let hub = site.hub(TempDir::new().unwrap(), grant);
    hub.run(&["stream", "add", "ORDERS", "--subjects", "orders.>"]).unwrap();
    hub.run(&["stream", "add", "SECRET", "--subjects", "secret.>"]).unwrap();
    hub.run(&["pub", "orders.a", "one", "--ack"]).unwrap();
    hub.run(&["pub", "secret.a", "two", "--ack"]).unwrap();
    let edge = Node::start();
    let folder = site.path("site7");
    let arguments = [
        "add",
        "hub",
        "--url",
        &site.hub_url(),
        "--certificates",
        folder.to_str().unwrap(),
        "--import",
        "stream=ORDERS",
        "--import",
        "stream=SECRET",
        "--import",
        "subject=private.>",
    ];
    outcome(&link(&edge, &arguments)).unwrap();
    let rule = |status: &Value, name: &str| {
        let rules = status["rules"].as_array().unwrap().clone();
        rules.into_iter().find(|rule| rule["rule"] == name).unwrap()
    };
    let shown = until_link(&edge, "hub", |status| {
        status["rules"].is_array()
            && rule(status, "import stream ORDERS")["transferred"] == 1
            && rule(status, "import stream SECRET")["state"] == "degraded"
            && rule(status, "import subject private.>")["state"] == "degraded"
    });
    let cause = rule(&shown, "import subject private.>")["cause"].as_str().unwrap().to_owned();
    assert!(cause.to_lowercase().contains("permission"), "{cause}");
    assert!(edge.run(&["stream", "info", "SECRET"]).is_err(), "nothing of it came");
}

#[test]
fn a_certificate_is_renewed_while_the_link_runs() {
    let site = Site::new();
    let mut hub = site.hub(TempDir::new().unwrap(), "");
    let edge = Node::start();
    let folder = site.path("site7");
    let arguments = ["add", "hub", "--url", &site.hub_url(), "--export", "subject=a.>", "--certificates"];
    outcome(&link(&edge, &[&arguments[..], &[folder.to_str().unwrap()]].concat())).unwrap();
    until_link(&edge, "hub", |status| status["state"] == "connected");
    let first = std::fs::read(folder.join("node.pem")).unwrap();
    // A new authority: certificates of the old one are of no use when it has retired.
    site.cert("ca ca --rotate");
    site.cert("renew hub --ca ca");
    site.cert("renew site7 --ca ca");
    site.cert("ca ca --retire");
    site.cert("renew hub --ca ca --trust-only");
    site.cert("renew site7 --ca ca --trust-only");
    assert_ne!(std::fs::read(folder.join("node.pem")).unwrap(), first);
    let (_, data) = hub.stop();
    hub = site.hub(data, "");
    until_link(&edge, "hub", |status| status["state"] == "connected" && status["reconnects"] != 0);
    assert!(!hub.log().contains("refused a peer"), "{}", hub.log());
}

/// As in a cluster, whose nodes share the certificate: the one that runs the link is the edge.
#[test]
fn an_edge_may_move_to_another_node_when_the_first_one_stops_its_link() {
    let site = Site::new();
    let hub = site.hub(TempDir::new().unwrap(), "");
    let (first, second) = (Node::start(), Node::start());
    let folder = site.path("site7");
    let url = site.hub_url();
    let add = ["add", "hub", "--url", &url, "--export", "subject=a.>", "--certificates"];
    let add = [&add[..], &[folder.to_str().unwrap()]].concat();
    outcome(&link(&first, &add)).unwrap();
    until_link(&first, "hub", |status| status["state"] == "connected");
    // One at a time.
    outcome(&link(&second, &add)).unwrap();
    degraded(&second, "hub", &["known under another id"]);
    outcome(&link(&first, &["pause", "hub"])).unwrap();
    until_link(&second, "hub", |status| status["state"] == "connected");
    outcome(&link(&first, &["resume", "hub"])).unwrap();
    degraded(&first, "hub", &["known under another id"]);
    outcome(&link(&second, &["rm", "hub"])).unwrap();
    until_link(&first, "hub", |status| status["state"] == "connected");
    // What it is shown says until when.
    let details = first.get_json("/healthz?details=1")["details"]["certificates"].clone();
    assert_eq!((details[0]["name"].as_str(), details.as_array().map(Vec::len)), (Some("site7"), Some(1)));
    assert_eq!(hub.get_json("/healthz?details=1")["details"]["certificates"][0]["for"], "edges");
    let (_, metrics) = hub.get("/metrics");
    let metric = |name: &str| {
        let line = metrics.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    assert!((metric("beamlog_net_edges") - 1.0).abs() < 0.5, "{metrics}");
    assert!(metric("beamlog_net_edges_refused_total") >= 1.0);
    assert!(metric("beamlog_net_certificate_expiry_seconds") > 86_400.0);
}
