//! JetStream in a cluster: the node that leads answers; every other hands requests to it through the mesh.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use beamlog_nats::{Api, ApiRequest, Handled, JetStream};
use beamlog_net::mesh::{Mesh, MeshReceiver};
use beamlog_router::interest::{Envelope, Interest, RouteCache};
use beamlog_router::{Full, StreamPublish};

/// The JetStream API of a clustered node.
pub(crate) struct ClusterApi {
    api: Api,
    interest: Arc<Interest>,
    leads: AtomicBool,
    mesh: OnceLock<Mesh>,
}

impl std::fmt::Debug for ClusterApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterApi").field("leads", &self.leads).finish_non_exhaustive()
    }
}

impl ClusterApi {
    pub(crate) fn new(api: Api, interest: Arc<Interest>) -> Self {
        Self { api, interest, leads: AtomicBool::new(false), mesh: OnceLock::new() }
    }

    pub(super) fn serve_through(&self, mesh: Mesh) {
        // Set once, at the start.
        self.mesh.set(mesh).ok();
    }

    pub(super) fn set_leads(&self, leads: bool) {
        self.leads.store(leads, Ordering::Release);
    }
}

impl JetStream for ClusterApi {
    fn handle(&self, request: &ApiRequest<'_>) -> Handled {
        if self.leads.load(Ordering::Acquire) {
            return self.api.handle(request);
        }
        // The leader has announced the subjects of the API: it is who takes this.
        let envelope = Envelope {
            subject: request.subject,
            reply: request.reply,
            headers: request.headers,
            payload: request.payload,
            origin: 0,
        };
        let mut cache = RouteCache::new();
        let routed = self.interest.route(&mut cache, request.subject, &envelope);
        cache.flush();
        if routed.receivers == 0 {
            self.api.unavailable(request);
        }
        Handled::Done
    }

    fn offer(&self, publish: StreamPublish) -> Result<(), Full<StreamPublish>> {
        self.api.offer(publish)
    }

    fn when_ready(&self) -> Pin<Box<dyn Future<Output = bool> + Send>> {
        self.api.when_ready()
    }
}
