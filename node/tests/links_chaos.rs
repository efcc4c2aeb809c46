//! A link under load while everything around it fails at random: the node and nats-server are killed,
//! frozen and started again, and the connection between them is cut.
//!
//! Oracle: the two streams themselves, read at the end. What a link carried is what its source has: the
//! same messages, each once, in the same order on each subject. On the way, the cursors of both directions
//! are looked at: they are never ahead of what has arrived.
//!
//! 20 faults; `BEAMLOG_TEST_LINK_FAULTS=200` for a longer run.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::{BTreeMap, HashMap};
use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::stream::Config;
use async_nats::jetstream::{self, Context};
use async_nats::{Client, ConnectOptions, HeaderMap};
use futures_util::StreamExt;
use futures_util::future::join_all;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[path = "links_chaos/cluster.rs"]
mod cluster;
#[path = "dev_cluster/mod.rs"]
mod dev_cluster;
#[path = "links_chaos/edge.rs"]
mod edge;

const PUBLISHERS: u64 = 4;
const IN_FLIGHT: u64 = 32;
/// Between two waves of a publisher: what a link in a debug build can follow.
const PACE: Duration = Duration::from_millis(40);
const PATIENCE: Duration = Duration::from_secs(120);

/// Draws of one run; the seed is printed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

fn free_port() -> u16 {
    StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn nats_binary() -> PathBuf {
    match std::env::var_os("BEAMLOG_TEST_NATS_SERVER") {
        Some(path) => PathBuf::from(path),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../.venv/bin/nats-server"),
    }
}

/// A process that can be killed, frozen and started again at its address.
struct Process {
    start: Box<dyn Fn() -> Command>,
    child: Child,
    url: String,
}

impl Process {
    fn new(url: String, start: impl Fn() -> Command + 'static) -> Self {
        let child = start().spawn().unwrap();
        Self { start: Box::new(start), child, url }
    }

    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap().success());
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asked to stop, as an operator would.
    fn restart(&mut self) {
        self.signal("-TERM");
        let begun = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            if begun.elapsed() > Duration::from_secs(20) {
                self.kill();
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.begin();
    }

    fn begin(&mut self) {
        self.child = (self.start)().spawn().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Shows the end of the node's log when the test fails: what the link last said of itself is in it.
struct LastWords(PathBuf);

impl Drop for LastWords {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.0).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            println!("the node's log ends:\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
        }
    }
}

/// The way between the two, which can be cut.
struct Proxy {
    address: SocketAddr,
    cut: watch::Sender<u64>,
}

impl Proxy {
    async fn start(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cut, cuts) = watch::channel(0);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut cuts = cuts.clone();
                cuts.mark_unchanged();
                tokio::spawn(async move {
                    let Ok(mut far) = TcpStream::connect(("127.0.0.1", to)).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = cuts.changed() => {}
                    }
                });
            }
        });
        Self { address, cut }
    }
}

async fn connect(url: &str) -> Client {
    let options = || {
        ConnectOptions::new()
            .retry_on_initial_connect()
            .request_timeout(Some(Duration::from_secs(3)))
            .reconnect_delay_callback(|_| Duration::from_millis(50))
    };
    options().connect(url).await.unwrap()
}

/// Looks again until there is an answer.
async fn patiently<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until the target has as many messages as the source, as long as more and more come.
async fn all_of(source: (&Context, &str), target: (&Context, &str)) {
    let mut before = None;
    loop {
        let what = format!("more of {} than {before:?} comes to {}", source.1, target.1);
        let arrived = patiently(&what, async || {
            let (wanted, arrived) = (count(source.0, source.1).await?, count(target.0, target.1).await?);
            (arrived >= wanted || before != Some(arrived)).then_some((arrived, arrived >= wanted))
        });
        match arrived.await {
            (_, true) => return,
            (arrived, false) => before = Some(arrived),
        }
    }
}

async fn make(context: &Context, name: &str, subjects: &str) {
    let config = Config { name: name.into(), subjects: vec![subjects.into()], ..Config::default() };
    patiently("a stream is made", async || context.create_stream(config.clone()).await.ok()).await;
}

/// Publishes until it is told to stop; what is not acked is sent again under its id.
async fn publish(client: Client, subject: String, stop: Arc<AtomicBool>, acked: Arc<AtomicU64>) {
    let mut context = jetstream::new(client);
    context.set_timeout(Duration::from_secs(3));
    let mut first = 0;
    while !stop.load(Ordering::Relaxed) {
        let mut waiting: Vec<u64> = (first..first + IN_FLIGHT).collect();
        while !waiting.is_empty() {
            let mut acks = Vec::new();
            for n in &waiting {
                let mut headers = HeaderMap::new();
                headers.insert("Nats-Msg-Id", format!("{subject}-{n}").as_str());
                let payload = format!("{subject}-{n}");
                acks.push((*n, context.publish_with_headers(subject.clone(), headers, payload.into()).await));
            }
            waiting.clear();
            // All at once: each of them may be waited for in vain.
            let answers = acks.into_iter().map(|(n, ack)| async move {
                match ack {
                    Ok(ack) => (n, ack.await.is_ok()),
                    Err(_) => (n, false),
                }
            });
            for (n, stored) in join_all(answers).await {
                if stored {
                    acked.fetch_add(1, Ordering::Relaxed);
                } else {
                    waiting.push(n);
                }
            }
        }
        first += IN_FLIGHT;
        tokio::time::sleep(PACE).await;
    }
}

async fn count(context: &Context, name: &str) -> Option<u64> {
    Some(context.get_stream(name).await.ok()?.cached_info().state.messages)
}

/// How far a durable consumer of the stream is acked; 0 without one.
async fn floor(context: &Context, name: &str) -> Option<u64> {
    let stream = context.get_stream(name).await.ok()?;
    let mut floor = 0;
    let mut consumers = stream.consumers();
    while let Some(consumer) = consumers.next().await {
        let consumer = consumer.ok()?;
        if consumer.name.starts_with("beamlog-link-") {
            floor = floor.max(consumer.ack_floor.stream_sequence);
        }
    }
    Some(floor)
}

/// The payloads of a stream by subject, in order. The tail of the subject names it on both sides.
async fn by_subject(client: &Client, name: &str) -> BTreeMap<String, Vec<String>> {
    let context = jetstream::new(client.clone());
    let stream = context.get_stream(name).await.unwrap();
    let count = stream.cached_info().state.messages;
    let config = pull::Config {
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::None,
        ..pull::Config::default()
    };
    let mut messages = stream.create_consumer(config).await.unwrap().messages().await.unwrap();
    let mut read: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for _ in 0..count {
        let message = messages.next().await.unwrap().unwrap();
        let payload = String::from_utf8(message.payload.to_vec()).unwrap();
        read.entry(message.subject.to_string()).or_default().push(payload);
    }
    read
}

fn check_equal(source: &BTreeMap<String, Vec<String>>, carried: &BTreeMap<String, Vec<String>>, what: &str) {
    let (mut lost, mut doubled) = (0, 0);
    for (subject, messages) in source {
        let mut times: HashMap<&str, i64> = HashMap::new();
        for message in carried.get(subject).into_iter().flatten() {
            *times.entry(message).or_default() += 1;
        }
        for message in messages {
            match times.remove(message.as_str()).unwrap_or(0) {
                0 => lost += 1,
                1 => {}
                more => doubled += more - 1,
            }
        }
        assert!(times.is_empty(), "{what}: {subject} has what its source has not");
    }
    assert_eq!((lost, doubled), (0, 0), "{what}: lost and doubled");
    assert!(source == carried, "{what}: each subject is in order");
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_fails_around_a_link_each_message_lands_once() {
    let faults: u64 = std::env::var("BEAMLOG_TEST_LINK_FAULTS").map_or(20, |faults| faults.parse().unwrap());
    let seed = std::env::var("BEAMLOG_TEST_LINK_SEED").map_or_else(
        |_| u64::from(std::process::id()) << 20 | u64::from(Instant::now().elapsed().subsec_nanos()) | 1,
        |seed| seed.parse().unwrap(),
    );
    println!("BEAMLOG_TEST_LINK_SEED={seed}");
    let mut random = Random(seed);
    let folder = TempDir::new().unwrap();
    let (nats_port, node_port) = (free_port(), free_port());
    let store = folder.path().join("nats");
    let mut nats = Process::new(format!("nats://127.0.0.1:{nats_port}"), move || {
        let mut command = Command::new(nats_binary());
        command.args(["-a", "127.0.0.1", "-p", &nats_port.to_string(), "-js", "-sd"]).arg(&store);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    });
    let proxy = Proxy::start(nats_port).await;
    let file = folder.path().join("beamlog.toml");
    let text = format!(
        "[[link]]\nname = \"core\"\nurls = [\"nats://{}\"]\nimport = [ {{ stream = \"DOWN\" }} ]\nexport = [ {{ stream = \"LOCAL\" }} ]\n",
        proxy.address
    );
    std::fs::write(&file, text).unwrap();
    let data = folder.path().join("data");
    let log = folder.path().join("log");
    let _last_words = LastWords(log.clone());
    let mut node = Process::new(format!("nats://127.0.0.1:{node_port}"), move || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_beamlog"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("BEAMLOG_") {
                command.env_remove(name);
            }
        }
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        command.args(["serve", "--listen", &format!("127.0.0.1:{node_port}"), "--admin", "off"]);
        command.arg("--config").arg(&file).arg("--data-dir").arg(&data);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        command
    });
    let (there, here) = (connect(&nats.url).await, connect(&node.url).await);
    let (far, near) = (jetstream::new(there.clone()), jetstream::new(here.clone()));
    make(&far, "DOWN", "down.>").await;
    make(&far, "UP", "up.>").await;
    make(&near, "LOCAL", "up.>").await;

    let stop = Arc::new(AtomicBool::new(false));
    let acked = [Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0))];
    let mut publishers = Vec::new();
    for at in 0..PUBLISHERS {
        for (url, prefix, acked) in [(&nats.url, "down", &acked[0]), (&node.url, "up", &acked[1])] {
            let client = connect(url).await;
            publishers.push(tokio::spawn(publish(
                client,
                format!("{prefix}.{at}"),
                Arc::clone(&stop),
                Arc::clone(acked),
            )));
        }
    }
    let mut happened: BTreeMap<&str, u32> = BTreeMap::new();
    for _ in 0..faults {
        tokio::time::sleep(Duration::from_millis(200 + random.below(800))).await;
        let on_node = random.below(2) == 0;
        let process = if on_node { &mut node } else { &mut nats };
        let pause = Duration::from_millis(random.below(700));
        let kind = match random.below(4) {
            0 => {
                process.kill();
                tokio::time::sleep(pause).await;
                process.begin();
                if on_node { "node killed" } else { "nats-server killed" }
            }
            1 => {
                process.signal("-STOP");
                tokio::time::sleep(pause * 3).await;
                process.signal("-CONT");
                if on_node { "node frozen" } else { "nats-server frozen" }
            }
            2 => {
                tokio::task::block_in_place(|| process.restart());
                if on_node { "node restarted" } else { "nats-server restarted" }
            }
            _ => {
                proxy.cut.send_modify(|cuts| *cuts += 1);
                "connection cut"
            }
        };
        *happened.entry(kind).or_default() += 1;
        // The cursor first: what it covers has arrived by then.
        if let Some(floor) = floor(&near, "LOCAL").await
            && let Some(arrived) = count(&far, "UP").await
        {
            assert!(floor <= arrived, "the cursor of the export is at {floor}, and {arrived} arrived");
        }
        if let Some(floor) = floor(&far, "DOWN").await
            && let Some(arrived) = count(&near, "DOWN").await
        {
            assert!(floor <= arrived, "the cursor of the import is at {floor}, and {arrived} arrived");
        }
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
    let messages = |all: &BTreeMap<String, Vec<String>>| all.values().map(Vec::len).sum::<usize>();
    println!(
        "{faults} faults {happened:?}: {} imported, {} exported, 0 lost, 0 doubled; acked {} and {}",
        messages(&source),
        messages(&exported),
        acked[0].load(Ordering::Relaxed),
        acked[1].load(Ordering::Relaxed)
    );
    assert!(messages(&source) > 0 && messages(&exported) > 0);
}
