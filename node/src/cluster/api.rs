//! JetStream in a cluster: the node that leads answers; at every other node requests find it through the mesh.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use beamlog_nats::JetStream;
use beamlog_nats::jetstream::{Api, ApiRequest, FromPeers, Handled};
use beamlog_net::mesh::{MeshMessage, StreamGate};
use beamlog_router::interest::{Envelope, Interest, RouteCache};
use beamlog_router::{Full, PublishBatch, StreamId};

/// The JetStream API of a clustered node.
pub(crate) struct ClusterApi {
    api: Api,
    interest: Arc<Interest>,
    from_peers: FromPeers,
    leads: AtomicBool,
}

impl std::fmt::Debug for ClusterApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterApi").field("leads", &self.leads).finish_non_exhaustive()
    }
}

impl ClusterApi {
    /// Within a tokio runtime.
    pub(crate) fn new(api: Api, interest: Arc<Interest>) -> Self {
        let from_peers = FromPeers::start(Arc::new(api.clone()), Arc::clone(&interest));
        Self { api, interest, from_peers, leads: AtomicBool::new(false) }
    }

    pub(super) fn set_leads(&self, leads: bool) {
        self.leads.store(leads, Ordering::Release);
    }
}

impl JetStream for ClusterApi {
    fn handle(&self, request: &ApiRequest<'_>) -> Handled {
        // The leader has announced the subjects of the API to everybody else. Without one the driver refuses.
        if self.leads.load(Ordering::Acquire) || !self.interest.has_interest(request.subject) {
            return self.api.handle(request);
        }
        // Requests of the API are routed by the session itself, for those who listen to them.
        if !request.subject.starts_with(b"$JS.API.") {
            let ApiRequest { subject, reply, headers, payload, .. } = *request;
            let mut cache = RouteCache::new();
            let envelope = Envelope { subject, reply, headers, payload, origin: 0 };
            self.interest.route(&mut cache, subject, &envelope);
            cache.flush();
        }
        Handled::Done
    }

    fn offer(&self, batch: PublishBatch) -> Result<(), Full<PublishBatch>> {
        self.api.offer(batch)
    }

    fn when_ready(&self) -> Pin<Box<dyn Future<Output = bool> + Send>> {
        self.api.when_ready()
    }
}

/// What other nodes' clients send here.
impl StreamGate for ClusterApi {
    fn request(&self, message: &MeshMessage<'_>) {
        let MeshMessage { subject, reply, headers, payload, .. } = *message;
        self.from_peers.request(subject, reply, headers, payload);
    }

    fn captured(&self, stream: StreamId, message: &MeshMessage<'_>) {
        let MeshMessage { subject, reply, headers, payload, .. } = *message;
        self.from_peers.publish(stream, subject, reply, headers, payload);
    }
}
