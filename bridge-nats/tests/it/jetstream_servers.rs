//! A JetStream server of ours in a directory of its own, and a nats-server to put beside it.

use std::path::PathBuf;
use std::sync::Arc;

use beamlog_nats::Server;
use beamlog_nats::jetstream::{Api, NatsWire};
use beamlog_router::{Router, RouterOptions, StdDisk};
use tempfile::TempDir;

use crate::differential::NatsServer;
use crate::raw::options;

/// The whole of it in this process: router, API, endpoint.
pub(crate) struct Beamlog {
    server: Option<Server>,
    router: Option<Router>,
    directory: TempDir,
}

impl Beamlog {
    pub(crate) async fn start() -> Self {
        let mut beamlog = Self { server: None, router: None, directory: tempfile::tempdir().unwrap() };
        beamlog.open().await;
        beamlog
    }

    /// Opens what is in the directory.
    pub(crate) async fn open(&mut self) {
        let disk = Arc::new(StdDisk);
        let wire = Arc::new(NatsWire::new());
        let path = self.directory.path().join("data");
        let router = Router::open(&path, disk, &RouterOptions::default(), wire).unwrap();
        let api = Arc::new(Api::new(router.clone(), "beamlog".to_owned()));
        self.server = Some(Server::start(Arc::clone(router.interest()), Some(api), options()).await.unwrap());
        self.router = Some(router);
    }

    /// Ends it in good order.
    pub(crate) fn close(&mut self) {
        drop(self.server.take());
        self.router.take().unwrap().close().unwrap();
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://{}", self.server.as_ref().unwrap().local_addr())
    }
}

pub(crate) fn nats_server() -> NatsServer {
    NatsServer::start(&["-js"])
}

pub(crate) fn nats_url(server: &NatsServer) -> String {
    format!("nats://{}", server.address)
}

/// The Python that has nats-py.
pub(crate) fn python() -> PathBuf {
    let path = match std::env::var_os("BEAMLOG_TEST_PYTHON") {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../.venv/bin/python"),
    };
    assert!(
        path.exists(),
        "this test runs nats-py and there is no Python with it at {}: run scripts/test, which fetches one, or \
         name one in BEAMLOG_TEST_PYTHON",
        path.display()
    );
    path
}
