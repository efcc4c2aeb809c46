//! Nodes with links, and nats-servers that can be stopped, frozen and started again where they were.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::Client;
use beamlog_nats::Server;
use beamlog_nats::jetstream::{Api, NatsWire};
use beamlog_nats::link::Links;
use beamlog_nats::link::rules::{Direction, LinkConfig, RequestConfig, RuleConfig};
use beamlog_nats::link::status::{LinkState, LinkStatus, RuleFigures};
use beamlog_router::{Router, RouterOptions, StdDisk};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::raw::options;

/// Nothing takes this long on a machine that works, even a busy one.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Looks again until it is so.
pub(crate) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !is_so().await {
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) fn nats_binary() -> PathBuf {
    match std::env::var_os("BEAMLOG_TEST_NATS_SERVER") {
        Some(path) => PathBuf::from(path),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../.venv/bin/nats-server"),
    }
}

/// The oldest nats-server that a link is meant for.
pub(crate) fn old_nats_binary() -> PathBuf {
    let path = match std::env::var_os("BEAMLOG_TEST_OLD_NATS_SERVER") {
        Some(path) => PathBuf::from(path),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../.venv/old/nats-server"),
    };
    assert!(
        path.exists(),
        "this test runs nats-server 2.9.10 and there is none at {}: run scripts/test, which fetches it, or name \
         one in BEAMLOG_TEST_OLD_NATS_SERVER",
        path.display()
    );
    path
}

/// Free now; nobody else asks for it in between but by chance.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A nats-server at an address that stays the same over restarts.
pub(crate) struct Upstream {
    binary: PathBuf,
    process: Option<Child>,
    port: u16,
    configuration: String,
    directory: TempDir,
}

impl Upstream {
    pub(crate) fn start() -> Self {
        Self::with_configuration("")
    }

    /// Starts with more lines of configuration.
    pub(crate) fn with_configuration(configuration: &str) -> Self {
        Self::of(nats_binary(), configuration)
    }

    /// Starts another server than the newest.
    pub(crate) fn of(binary: PathBuf, configuration: &str) -> Self {
        let mut upstream = Self {
            binary,
            process: None,
            port: free_port(),
            configuration: configuration.to_owned(),
            directory: tempfile::tempdir().unwrap(),
        };
        upstream.begin();
        upstream
    }

    pub(crate) fn begin(&mut self) {
        let file = self.directory.path().join("server.conf");
        std::fs::write(&file, self.text()).unwrap();
        let mut process =
            Command::new(&self.binary).arg("-c").arg(&file).stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap()).lines();
        let mut said = Vec::new();
        let ready = log.by_ref().map_while(Result::ok).any(|line| {
            let is_ready = line.contains("Server is ready");
            said.push(line);
            is_ready
        });
        assert!(ready, "nats-server does not start: {said:?}");
        // Read on, or it would block on a full pipe.
        std::thread::spawn(move || log.for_each(drop));
        self.process = Some(process);
    }

    fn text(&self) -> String {
        // A configuration that says more of JetStream says it first, or that there is none.
        if let Some(rest) = self.configuration.strip_prefix(NO_JETSTREAM) {
            return format!("listen: 127.0.0.1:{}\n{rest}\n", self.port);
        }
        let (jetstream, rest) = match self.configuration.strip_prefix("jetstream: ") {
            Some(said) => said.split_once('\n').unwrap_or((said, "")),
            None => ("", self.configuration.as_str()),
        };
        let data = self.directory.path().join("data");
        format!("listen: 127.0.0.1:{}\njetstream: {{ store_dir: {data:?}{jetstream} }}\n{rest}\n", self.port)
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    pub(crate) fn signal(&self, name: &str) {
        let id = self.process.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
    }

    /// Puts other lines in place for the next start.
    pub(crate) fn configure(&mut self, configuration: &str) {
        configuration.clone_into(&mut self.configuration);
    }

    /// Puts other lines in place and has the server read them.
    pub(crate) fn reload(&mut self, configuration: &str) {
        self.configuration = configuration.to_owned();
        let file = self.directory.path().join("server.conf");
        std::fs::write(file, self.text()).unwrap();
        self.signal("-HUP");
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub(crate) async fn client(&self) -> Client {
        async_nats::connect(self.url()).await.unwrap()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A configuration that begins with this is of a server without JetStream.
pub(crate) const NO_JETSTREAM: &str = "no jetstream\n";

/// A cluster of nats-servers.
pub(crate) struct UpstreamCluster {
    pub(crate) servers: Vec<Upstream>,
}

impl UpstreamCluster {
    pub(crate) fn start() -> Self {
        let ports = [free_port(), free_port(), free_port()];
        let routes = ports.map(|port| format!("nats://127.0.0.1:{port}")).join(", ");
        let configure = |(at, port): (usize, u16)| {
            format!(
                "server_name: s{at}\ncluster {{ name: c, listen: \"127.0.0.1:{port}\", routes: [ {routes} ] }}"
            )
        };
        let servers = (ports.into_iter().enumerate()).map(configure);
        Self { servers: servers.map(|text| Upstream::with_configuration(&text)).collect() }
    }

    pub(crate) fn urls(&self) -> Vec<String> {
        self.servers.iter().map(Upstream::url).collect()
    }

    pub(crate) async fn client(&self) -> Client {
        let options = async_nats::ConnectOptions::new()
            .request_timeout(Some(Duration::from_secs(2)))
            .reconnect_delay_callback(|_| Duration::from_millis(50));
        options.connect(self.urls()).await.unwrap()
    }
}

/// A node: router, endpoint, links.
pub(crate) struct Site {
    router: Router,
    pub(crate) links: Links,
    server: Server,
    directory: Option<TempDir>,
}

impl Site {
    pub(crate) async fn start() -> Self {
        Self::open(tempfile::tempdir().unwrap()).await
    }

    pub(crate) async fn open(directory: TempDir) -> Self {
        let wire = Arc::new(NatsWire::new());
        let path = directory.path().join("data");
        let router = Router::open(&path, Arc::new(StdDisk), &RouterOptions::default(), wire).unwrap();
        let api = Arc::new(Api::new(router.clone(), "site".to_owned()));
        let server = Server::start(Arc::clone(router.interest()), Some(api), options()).await.unwrap();
        let links = Links::new(router.clone());
        Self { router, links, server, directory: Some(directory) }
    }

    /// Ends it in good order; the directory for the next start.
    pub(crate) async fn stop(mut self) -> TempDir {
        self.links.drain(PATIENCE).await;
        self.server.drain(Duration::ZERO).await;
        let directory = self.directory.take().unwrap();
        let Self { router, links, server, .. } = self;
        drop((links, server));
        tokio::task::spawn_blocking(move || router.close()).await.unwrap().unwrap();
        directory
    }

    pub(crate) async fn client(&self) -> Client {
        async_nats::connect(format!("nats://{}", self.server.local_addr())).await.unwrap()
    }

    pub(crate) fn status(&self, link: &str) -> LinkStatus {
        self.links.status().into_iter().find(|status| status.name == link).unwrap()
    }

    pub(crate) fn figures(&self, link: &str, rule: usize) -> RuleFigures {
        self.status(link).rules[rule].figures
    }

    /// Adds a link and waits until all its rules work.
    pub(crate) async fn link(&self, config: LinkConfig) {
        let name = config.name.clone();
        self.links.add(config).unwrap();
        self.connected(&name).await;
    }

    pub(crate) async fn connected(&self, link: &str) {
        let begun = Instant::now();
        loop {
            let status = self.status(link);
            let is_connected = status.state == LinkState::Connected
                && status.rules.iter().all(|rule| rule.state == LinkState::Connected);
            if is_connected {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "not connected: {status:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// The way to a server, which can take what it says and lose it, and can be cut.
pub(crate) struct Way {
    address: SocketAddr,
    state: watch::Sender<Carries>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Carries {
    Both,
    /// What the server says is lost.
    OneWay,
}

impl Way {
    pub(crate) async fn to(upstream: &Upstream) -> Self {
        Self::of_rate(upstream, None).await
    }

    /// One that carries so many bytes a second of what the server says.
    pub(crate) async fn slow(upstream: &Upstream, bytes_per_second: u32) -> Self {
        Self::of_rate(upstream, Some(bytes_per_second)).await
    }

    async fn of_rate(upstream: &Upstream, bytes_per_second: Option<u32>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (state, watched) = watch::channel(Carries::Both);
        let port = upstream.port;
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let mut watched = watched.clone();
                watched.mark_unchanged();
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(("127.0.0.1", port)).await else { return };
                    let (mut near_read, mut near_write) = near.into_split();
                    let (mut far_read, mut far_write) = far.into_split();
                    let lossy = watched.clone();
                    let back = async {
                        let mut bytes = vec![0; 1 << 16];
                        while let Ok(n @ 1..) = far_read.read(&mut bytes).await {
                            if *lossy.borrow() == Carries::Both
                                && near_write.write_all(&bytes[..n]).await.is_err()
                            {
                                break;
                            }
                            if let (Some(rate), Ok(n)) = (bytes_per_second, u32::try_from(n)) {
                                tokio::time::sleep(Duration::from_secs(1) * n / rate).await;
                            }
                        }
                    };
                    // Connections that lost something do not live on.
                    let mended = async {
                        drop(watched.wait_for(|state| *state == Carries::OneWay).await);
                        drop(watched.wait_for(|state| *state == Carries::Both).await);
                    };
                    tokio::select! {
                        _ = tokio::io::copy(&mut near_read, &mut far_write) => {}
                        () = back => {}
                        () = mended => {}
                    }
                });
            }
        });
        Self { address, state }
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    pub(crate) fn lose_answers(&self) {
        self.state.send_replace(Carries::OneWay);
    }

    /// Connections that lost something end; the next ones lose nothing.
    pub(crate) fn mend(&self) {
        self.state.send_replace(Carries::Both);
    }
}

pub(crate) fn link(name: &str, upstream: &Upstream) -> LinkConfig {
    LinkConfig { name: name.to_owned(), urls: vec![upstream.url()], ..LinkConfig::default() }
}

/// A core subject, mapped or not.
pub(crate) fn subject(subject: &str, to: Option<&str>) -> RuleConfig {
    RuleConfig { subject: Some(subject.to_owned()), to: to.map(str::to_owned), ..RuleConfig::default() }
}

pub(crate) fn requests(subject: &str, direction: Direction, to: Option<&str>) -> RequestConfig {
    RequestConfig {
        subject: subject.to_owned(),
        direction,
        to: to.map(str::to_owned),
        queue: None,
        timeout_ms: None,
    }
}
