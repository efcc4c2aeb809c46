//! The three transports, each with as many buses as a test wants.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use beamlog::{Node, NodeOptions};
use beamlog_cell::durable::{Durable, DurableOptions};
use beamlog_cell::{Bus, EmbeddedBus, EmbeddedLimits, NatsBus, NatsBusOptions};
use beamlog_router::embed::PlainWire;
use beamlog_router::{Router, RouterOptions, StdDisk};
use tempfile::TempDir;
use tokio::runtime::Runtime;

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// For tests in which nobody answers.
pub(crate) const SHORT: Duration = Duration::from_millis(200);

/// A bus, and stored requests over it.
#[derive(Clone)]
pub(crate) enum Made {
    Embedded(Arc<EmbeddedBus>),
    Nats(Arc<NatsBus>),
}

impl Made {
    pub(crate) fn bus(&self) -> Arc<dyn Bus> {
        match self {
            Self::Embedded(bus) => Arc::clone(bus) as _,
            Self::Nats(bus) => Arc::clone(bus) as _,
        }
    }

    pub(crate) fn durable(&self) -> Durable {
        let options = DurableOptions { retry_first: Duration::from_millis(10), ..DurableOptions::default() };
        match self {
            Self::Embedded(bus) => Durable::over_router(Arc::clone(bus), options),
            Self::Nats(bus) => Durable::over_nats(Arc::clone(bus), options),
        }
        .unwrap()
    }
}

pub(crate) enum World {
    Embedded { router: Option<Router>, data: TempDir },
    Node(Box<TestNode>),
    NatsServer(NatsServer),
}

fn open(data: &Path) -> Router {
    Router::open(&data.join("data"), Arc::new(StdDisk), &RouterOptions::default(), Arc::new(PlainWire))
        .unwrap()
}

impl World {
    pub(crate) fn embedded() -> Self {
        let data = tempfile::tempdir().unwrap();
        Self::Embedded { router: Some(open(data.path())), data }
    }

    pub(crate) fn node() -> Self {
        Self::Node(Box::new(TestNode::start()))
    }

    pub(crate) fn nats_server() -> Self {
        Self::NatsServer(NatsServer::start())
    }

    pub(crate) fn bus(&self) -> Made {
        self.bus_with(PATIENCE)
    }

    /// A bus of its own: of another process, as far as the transport knows.
    pub(crate) fn bus_with(&self, request_timeout: Duration) -> Made {
        match self {
            Self::Embedded { router, .. } => {
                let limits = EmbeddedLimits { request_timeout, ..EmbeddedLimits::default() };
                Made::Embedded(Arc::new(EmbeddedBus::new(router.clone().unwrap(), limits)))
            }
            Self::Node(_) | Self::NatsServer(_) => nats(self.address().unwrap(), request_timeout),
        }
    }

    pub(crate) fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Embedded { .. } => None,
            Self::Node(node) => Some(node.node.as_ref().unwrap().listen_address()),
            Self::NatsServer(server) => Some(server.address),
        }
    }

    /// Ends and begins again with the same data; buses of before are gone. A nats-server keeps its own.
    pub(crate) fn restart(&mut self) {
        match self {
            Self::Embedded { router, data } => {
                router.take().unwrap().close().unwrap();
                *router = Some(open(data.path()));
            }
            Self::Node(node) => node.restart(),
            Self::NatsServer(_) => {}
        }
    }
}

pub(crate) fn nats(address: SocketAddr, request_timeout: Duration) -> Made {
    let options =
        NatsBusOptions { url: format!("nats://{address}"), request_timeout, ..NatsBusOptions::default() };
    Made::Nats(Arc::new(NatsBus::connect(options).unwrap()))
}

pub(crate) struct TestNode {
    pub(crate) node: Option<Node>,
    runtime: Runtime,
    data: TempDir,
}

impl TestNode {
    fn start() -> Self {
        let runtime = Runtime::new().unwrap();
        let data = tempfile::tempdir().unwrap();
        let mut this = Self { node: None, runtime, data };
        this.begin();
        this
    }

    fn begin(&mut self) {
        let options = NodeOptions {
            listen: "127.0.0.1:0".parse().unwrap(),
            admin: None,
            data_dir: self.data.path().join("data"),
            drain_timeout: Duration::from_millis(100),
            ..NodeOptions::default()
        };
        self.node = Some(self.runtime.block_on(Node::start(options)).unwrap());
    }

    fn restart(&mut self) {
        let node = self.node.take().unwrap();
        self.runtime.block_on(node.stop()).unwrap();
        self.begin();
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        let _entered = self.runtime.enter();
        drop(self.node.take());
    }
}

/// A nats-server of its own, on a free port.
pub(crate) struct NatsServer {
    process: Child,
    address: SocketAddr,
    _directory: TempDir,
}

impl NatsServer {
    fn start() -> Self {
        let program = match std::env::var_os("BEAMLOG_TEST_NATS_SERVER") {
            Some(path) => PathBuf::from(path),
            None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.venv/bin/nats-server"),
        };
        assert!(
            program.exists(),
            "this test needs a nats-server and there is none at {}: run scripts/test, which fetches one, or name \
             one in BEAMLOG_TEST_NATS_SERVER",
            program.display()
        );
        let directory = tempfile::tempdir().unwrap();
        let mut process = Command::new(program)
            .args(["-a", "127.0.0.1", "-p", "-1", "-js", "-sd"])
            .arg(directory.path())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines().map_while(Result::ok);
        let address = lines
            .find_map(|line| Some(line.split_once("client connections on ")?.1.trim().parse().unwrap()))
            .expect("nats-server says where it listens");
        assert!(lines.any(|line| line.contains("Server is ready")));
        // Read on, or it would block on a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self { process, address, _directory: directory }
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// What a handler saw, one after another.
pub(crate) fn seen<T>() -> (mpsc::Sender<T>, mpsc::Receiver<T>) {
    mpsc::channel()
}
