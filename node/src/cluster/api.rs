//! JetStream in a cluster: the node that leads answers, or of a stream in another shard the node that leads that or
//! holds it alone; at every other node requests find them through the mesh.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use beamlog_nats::JetStream;
use beamlog_nats::jetstream::{Api, ApiRequest, Call, FromPeers, Handled, parse_request, stream_named};
use beamlog_net::mesh::{MeshMessage, StreamGate};
use beamlog_router::api::error::ApiError;
use beamlog_router::api::request::Request;
use beamlog_router::interest::{Envelope, Interest, PeerTarget, RouteCache};
use beamlog_router::stream::StreamConfig;
use beamlog_router::{Full, PublishBatch, ShardKind, StreamId};
use bytes::Bytes;
use tokio::sync::Semaphore;

use crate::cluster::held::{Held, of_stream, send_to};
use crate::cluster::lists::{self, Lists};
use crate::cluster::shards::{Placed, Shards};

const CREATE: &[u8] = b"$JS.API.STREAM.CREATE.";
const UPDATE: &[u8] = b"$JS.API.STREAM.UPDATE.";

/// Changes of streams of the cluster's shard that may be under way.
const UPDATES_MAX: usize = 64;

/// The JetStream API of a clustered node.
pub(crate) struct ClusterApi {
    common: Arc<Common>,
    from_peers: FromPeers,
    leads: AtomicBool,
    shards: OnceLock<Shards>,
}

/// The shard that every voter has, where it is led.
struct Common {
    api: Api,
    interest: Arc<Interest>,
    lists: Lists,
    held: OnceLock<Held>,
    /// Room for changes of streams that are being made.
    updates: Arc<Semaphore>,
}

impl std::fmt::Debug for ClusterApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterApi").field("leads", &self.leads).finish_non_exhaustive()
    }
}

impl ClusterApi {
    /// Within a tokio runtime.
    pub(crate) fn new(api: Api, lists: Lists, interest: Arc<Interest>) -> Self {
        let (held, updates) = (OnceLock::new(), Arc::new(Semaphore::new(UPDATES_MAX)));
        let common = Arc::new(Common { api, interest: Arc::clone(&interest), lists, held, updates });
        let from_peers = FromPeers::start(Arc::clone(&common) as Arc<dyn JetStream>, interest);
        Self { common, from_peers, leads: AtomicBool::new(false), shards: OnceLock::new() }
    }

    /// What this node holds alone, and its part in other shards: from now on streams of these can be made here.
    pub(crate) fn with_others(&self, held: Held, shards: Shards) {
        // Set once, when the node starts.
        drop(self.common.held.set(held));
        drop(self.shards.set(shards));
    }

    /// What has the stream here, if it is not in the cluster's first shard.
    fn holder(&self, stream: &str) -> Option<Held> {
        let held = self.common.held.get().filter(|held| held.has(stream)).cloned();
        held.or_else(|| self.shards.get()?.holder(stream))
    }

    pub(super) fn set_leads(&self, leads: bool) {
        self.leads.store(leads, Ordering::Release);
    }

    /// A request of this node itself, wherever it is answered.
    pub(crate) fn request(&self, request: &ApiRequest<'_>) {
        if self.handle_held(request).is_none() {
            self.request_common(request);
        }
    }

    fn request_common(&self, request: &ApiRequest<'_>) {
        // Only pulls and acks can find no room, and those are clients'.
        let handled = self.handle_common(request);
        if handled == Handled::Done && !self.leads.load(Ordering::Acquire) {
            self.common.send(request);
        }
    }

    /// As [`JetStream::handle`], for the cluster's shard.
    fn handle_common(&self, request: &ApiRequest<'_>) -> Handled {
        // The leader has announced the subjects of the API to everybody else. Without one the driver refuses.
        if self.leads.load(Ordering::Acquire) || !self.common.interest.has_interest(request.subject) {
            return self.common.answer(request);
        }
        // Requests of the API are routed by the session itself, for those who listen to them.
        if !request.subject.starts_with(b"$JS.API.") {
            self.common.send(request);
        }
        Handled::Done
    }

    /// As [`JetStream::handle`], of a stream that is not in the cluster's first shard; `None` when it is not about one.
    fn handle_held(&self, request: &ApiRequest<'_>) -> Option<Handled> {
        let stream = stream_named(request.subject)?;
        if let Some(held) = self.holder(stream) {
            if held.handle(request) == Handled::Full {
                return Some(Handled::Full);
            }
        } else if !self.common.sent_to_holder(stream, request) {
            if !request.subject.starts_with(CREATE) {
                return None;
            }
            let call = parse_request(request.subject, request.headers, request.payload);
            let Call::Engine { request: wanted, form } = call else { return None };
            let Request::CreateStream(config) = *wanted else { return None };
            match self.place(&config, request) {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => self.common.api.tell(request.reply, form, &Err(error)),
            }
        }
        self.common.let_listen(request);
        Some(Handled::Elsewhere)
    }
}

impl ClusterApi {
    /// Sends a request for a new stream to where it is to be. Whether that is not the first shard.
    fn place(&self, config: &StreamConfig, request: &ApiRequest<'_>) -> Result<bool, ApiError> {
        let (Some(held), Some(shards)) = (self.common.held.get(), self.shards.get()) else {
            return Ok(false);
        };
        match shards.place(config, request)? {
            Placed::Sent => Ok(true),
            Placed::Elsewhere if config.replicas == 1 => held.place(config, request).map(|()| true),
            Placed::First | Placed::Elsewhere => Ok(false),
        }
    }
}

impl JetStream for ClusterApi {
    fn handle(&self, request: &ApiRequest<'_>) -> Handled {
        self.handle_held(request).unwrap_or_else(|| self.handle_common(request))
    }

    fn offer(&self, batch: PublishBatch) -> Result<(), Full<PublishBatch>> {
        self.common.offer(batch)
    }

    fn when_ready(&self) -> Pin<Box<dyn Future<Output = bool> + Send>> {
        self.common.when_ready()
    }
}

impl Common {
    /// Sends a request about a stream with one replica to the node that has it, if one has.
    fn sent_to_holder(&self, stream: &str, request: &ApiRequest<'_>) -> bool {
        let holder = of_stream(stream);
        self.interest.is_named(holder.as_bytes()) && send_to(&self.interest, &holder, request)
    }

    /// To who listens to requests: the leader.
    fn send(&self, request: &ApiRequest<'_>) {
        let ApiRequest { subject, reply, headers, payload, .. } = *request;
        let mut cache = RouteCache::new();
        let envelope = Envelope { subject, reply, headers, payload, origin: 0 };
        self.interest.route(&mut cache, subject, &envelope);
    }

    /// Those of this node who listen to requests of the API hear it.
    fn let_listen(&self, request: &ApiRequest<'_>) {
        if !request.subject.starts_with(b"$JS.API.") {
            return;
        }
        let ApiRequest { subject, reply, headers, payload, .. } = *request;
        let mut cache = RouteCache::new();
        let envelope = Envelope { subject, reply, headers, payload, origin: 0 };
        self.interest.route_from_peer(&mut cache, subject, &envelope, PeerTarget::Plain);
    }

    fn answer(&self, request: &ApiRequest<'_>) -> Handled {
        if lists::is_of_all(request.subject) {
            return self.lists.answer(request);
        }
        if request.subject.starts_with(UPDATE) {
            return self.update(request);
        }
        self.api.handle(request)
    }

    /// It may say that the stream is to be elsewhere.
    fn update(&self, request: &ApiRequest<'_>) -> Handled {
        let call = parse_request(request.subject, request.headers, request.payload);
        let (Call::Engine { request: wanted, form }, Some(held)) = (call, self.held.get()) else {
            return self.api.handle(request);
        };
        let Request::UpdateStream(config) = *wanted else { return self.api.handle(request) };
        let (held, api, reply) = (held.clone(), self.api.clone(), Bytes::copy_from_slice(request.reply));
        let Ok(room) = Arc::clone(&self.updates).try_acquire_owned() else {
            self.api.tell(&reply, form, &Err(ApiError::TooManyRequests));
            return Handled::Done;
        };
        tokio::spawn(async move {
            let answer = held.update_common(*config).await;
            api.tell(&reply, form, &answer);
            drop(room);
        });
        Handled::Done
    }
}

/// What other nodes' clients want of the shard that this one leads.
impl JetStream for Common {
    fn handle(&self, request: &ApiRequest<'_>) -> Handled {
        // Its own node may not have heard of the stream yet.
        if stream_named(request.subject).is_some_and(|stream| self.sent_to_holder(stream, request)) {
            return Handled::Done;
        }
        self.answer(request)
    }

    fn offer(&self, batch: PublishBatch) -> Result<(), Full<PublishBatch>> {
        self.api.offer(batch)
    }

    fn when_ready(&self) -> Pin<Box<dyn Future<Output = bool> + Send>> {
        self.api.when_ready()
    }
}

/// What leads from the streams of other shards to the shard of all: a request that is for a stream there.
#[derive(Clone)]
pub(crate) struct Onwards(Weak<ClusterApi>);

impl Onwards {
    pub(crate) fn new(api: &Arc<ClusterApi>) -> Self {
        Self(Arc::downgrade(api))
    }

    pub(super) fn send(&self, request: &ApiRequest<'_>) {
        if let Some(api) = self.0.upgrade() {
            api.request_common(request);
        }
    }
}

/// What other nodes' clients send here.
impl StreamGate for ClusterApi {
    fn request(&self, message: &MeshMessage<'_>) {
        let MeshMessage { subject, reply, headers, payload, .. } = *message;
        self.from_peers.request(subject, reply, headers, payload);
    }

    fn captured(&self, stream: StreamId, message: &MeshMessage<'_>) {
        // By a way of its own for each shard: one that is full does not hold up the others.
        let (held, shards) = (self.common.held.get(), self.shards.get());
        match (ShardKind::of(stream), held, shards) {
            (ShardKind::Local, Some(held), _) => held.publish(stream, message),
            (ShardKind::Numbered(number), _, Some(shards)) => shards.publish(number, stream, message),
            (ShardKind::Common, ..) | (ShardKind::Local, None, _) | (ShardKind::Numbered(_), _, None) => {
                let MeshMessage { subject, reply, headers, payload, .. } = *message;
                self.from_peers.publish(stream, subject, reply, headers, payload);
            }
        }
    }
}
