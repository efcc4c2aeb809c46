//! An endpoint with storage behind it, which can be stopped and started again.

use std::path::Path;
use std::sync::Arc;

use async_nats::Client;
use async_nats::jetstream::{self, Context};
use beamlog_nats::jetstream::{Api, NatsWire};
use beamlog_nats::{JetStream, Server};
use beamlog_router::{Router, RouterOptions, StdDisk};

use crate::raw::options;

/// A node of one endpoint and one store.
pub(crate) struct Node {
    pub(crate) server: Server,
    router: Router,
}

impl Node {
    pub(crate) async fn start(data: &Path) -> Self {
        let wire = Arc::new(NatsWire::new());
        let router = Router::open(data, Arc::new(StdDisk), &RouterOptions::default(), wire).unwrap();
        let interest = Arc::clone(router.interest());
        let api: Arc<dyn JetStream> = Arc::new(Api::new(router.clone(), "test".to_owned()));
        let server = Server::start(interest, Some(api), options()).await.unwrap();
        Self { server, router }
    }

    pub(crate) async fn client(&self) -> Client {
        async_nats::connect(format!("nats://{}", self.server.local_addr())).await.unwrap()
    }

    pub(crate) async fn jetstream(&self) -> Context {
        jetstream::new(self.client().await)
    }

    /// Ends connections, seals the log.
    pub(crate) async fn stop(self) {
        self.server.drain(std::time::Duration::ZERO).await;
        self.router.close().unwrap();
    }
}
