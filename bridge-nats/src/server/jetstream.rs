//! What a session needs of storage: the seam to the router's driver and the JetStream API.

use std::future::Future;
use std::pin::Pin;

use beamlog_router::{Full, PublishBatch};

use crate::jetstream::{ApiRequest, Handled};

/// Storage behind an endpoint. Called on the tasks of connections; must not block.
pub trait JetStream: Send + Sync {
    /// A publish to a subject of the API.
    fn handle(&self, request: &ApiRequest<'_>) -> Handled;

    /// Publishes that streams capture, in the order of their sender.
    ///
    /// # Errors
    /// They are given back: there is no room now.
    fn offer(&self, batch: PublishBatch) -> Result<(), Full<PublishBatch>>;

    /// Resolves to true when there may be room again, to false when there never will be.
    fn when_ready(&self) -> Pin<Box<dyn Future<Output = bool> + Send>>;
}
