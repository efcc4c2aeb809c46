//! Streams that this node holds alone: those with one replica. They are in a store of their own beside that of the
//! cluster, with a driver of their own, so that their acks wait for this node's disk and nobody else's.
//!
//! Who has which name and which subjects is decided in the catalogue. One task makes all changes here, in turn; and now
//! and then it compares with the catalogue, for what was cut off by a crash or happened while this node was away.

mod changes;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, OnceLock, PoisonError, RwLock, Weak};

use beamlog_log::{CloseError, StdDisk};
use beamlog_nats::JetStream;
use beamlog_nats::jetstream::{
    Api, ApiRequest, Call, ClusterView, Form, FromPeers, Handled, NatsWire, parse_request,
};
use beamlog_net::mesh::MeshMessage;
use beamlog_net::peer::PeerId;
use beamlog_router::api::error::ApiError;
use beamlog_router::api::request::{Request, Response};
use beamlog_router::interest::{Envelope, Interest, Offered, RouteCache, Subscriber, SubscriptionKey};
use beamlog_router::stream::StreamConfig;
use beamlog_router::{Full, Health, OpenError, PublishBatch, Router, RouterOptions, StreamId};
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::cluster::NodeCluster;
use crate::cluster::api::Onwards;

/// Changes that may wait for their turn.
const CHANGES_MAX: usize = 1024;

/// The names of the node that holds a stream, and of a node that is to hold one.
const OF_STREAM: &str = "_BEAMLOG.STREAM.";
const OF_NODE: &str = "_BEAMLOG.NODE.";

pub(super) fn of_stream(stream: &str) -> String {
    format!("{OF_STREAM}{stream}")
}

pub(super) fn of_node(peer: PeerId) -> String {
    format!("{OF_NODE}{peer}")
}

/// Sends a request on as it is, to who has the name. Whether somebody has it.
pub(super) fn send_to(interest: &Interest, name: &str, request: &ApiRequest<'_>) -> bool {
    let ApiRequest { subject, reply, headers, payload, .. } = *request;
    let mut cache = RouteCache::new();
    let envelope = Envelope { subject, reply, headers, payload, origin: 0 };
    interest.send_to(&mut cache, name.as_bytes(), &envelope) > 0
}

/// What this node holds alone. Clones are the same.
#[derive(Clone)]
pub(crate) struct Held(Arc<Inner>);

struct Inner {
    /// The shard of the cluster.
    main: Router,
    main_api: Api,
    member: NodeCluster,
    folder: PathBuf,
    options: RouterOptions,
    /// Since the first stream.
    store: OnceLock<Store>,
    /// What is here, and by what it is found.
    streams: RwLock<BTreeMap<String, SubscriptionKey>>,
    changes: mpsc::Sender<Change>,
    door: Arc<Door>,
    /// Finds the other way for a stream that is not here.
    onwards: Onwards,
}

/// The open store.
struct Store {
    router: Router,
    api: Api,
    /// Its identity.
    id: String,
}

/// A change of which streams there are, or of their configuration.
struct Change {
    what: What,
    form: Form,
    reply: Bytes,
    /// For who has it, if this node does not.
    subject: Bytes,
    headers: Bytes,
    payload: Bytes,
}

enum What {
    Create(Box<StreamConfig>),
    Update(Box<StreamConfig>),
    Delete(String),
}

impl What {
    fn of(call: Call) -> Option<(Self, Form)> {
        let Call::Engine { request, form } = call else { return None };
        let what = if let Request::CreateStream(config) = *request {
            Self::Create(config)
        } else if let Request::UpdateStream(config) = *request {
            Self::Update(config)
        } else if let Request::DeleteStream { stream } = *request {
            Self::Delete(stream)
        } else {
            return None;
        };
        Some((what, form))
    }
}

/// Takes what was sent here by a stream's or this node's name, in its order.
struct Door(FromPeers);

impl Subscriber for Door {
    fn offer(&self, _subscription: u64, message: &Envelope<'_>) -> Offered {
        let Envelope { subject, reply, headers, payload, .. } = *message;
        if !subject.starts_with(b"$JS.") {
            return Offered::Refused;
        }
        self.0.request(subject, reply, headers, payload);
        Offered::Taken
    }

    fn flush(&self) {}
}

/// Behind the door. It does not keep the node alive.
struct Inside(Weak<Inner>);

impl JetStream for Inside {
    fn handle(&self, request: &ApiRequest<'_>) -> Handled {
        self.0.upgrade().map_or(Handled::Done, |inner| Held(inner).handle(request))
    }

    fn offer(&self, batch: PublishBatch) -> Result<(), Full<PublishBatch>> {
        match self.0.upgrade() {
            Some(inner) => inner.main.offer_publishes(batch),
            None => Ok(()),
        }
    }

    fn when_ready(&self) -> Pin<Box<dyn Future<Output = bool> + Send>> {
        let inner = self.0.upgrade();
        Box::pin(async move {
            let Some(inner) = inner else { return false };
            let router = inner.store.get().map_or(&inner.main, |store| &store.router);
            router.when_ready().await;
            router.health() != Health::Closed
        })
    }
}

impl Held {
    /// Opens the store if there is one. Within a tokio runtime. `onwards` is asked for what is not here.
    ///
    /// # Errors
    /// The store does not open.
    pub(crate) async fn start(
        (main, main_api): (Router, Api),
        member: NodeCluster,
        folder: PathBuf,
        options: RouterOptions,
        onwards: Onwards,
    ) -> Result<Self, OpenError> {
        let (changes, waiting) = mpsc::channel(CHANGES_MAX);
        let held = Self(Arc::new_cyclic(|inner| {
            let inside = Arc::new(Inside(Weak::clone(inner)));
            let door = Arc::new(Door(FromPeers::start(inside, Arc::clone(main.interest()))));
            let (store, streams) = (OnceLock::new(), RwLock::default());
            Inner { main, main_api, member, folder, options, store, streams, changes, door, onwards }
        }));
        if held.0.folder.exists() {
            held.open().await?;
        }
        let peer = held.0.member.cluster.me();
        held.listen_by(&of_node(peer));
        tokio::spawn(changes::make(Arc::downgrade(&held.0), waiting));
        Ok(held)
    }

    /// Whether it has the stream.
    pub(super) fn has(&self, stream: &str) -> bool {
        self.0.streams.read().unwrap_or_else(PoisonError::into_inner).contains_key(stream)
    }

    /// What it has.
    pub(crate) fn streams(&self) -> Vec<String> {
        self.0.streams.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// The shard of these streams, if there ever was one.
    pub(crate) fn router(&self) -> Option<&Router> {
        self.0.store.get().map(|store| &store.router)
    }

    /// The API of these streams.
    pub(crate) fn api(&self) -> Option<&Api> {
        self.0.store.get().map(|store| &store.api)
    }

    /// Sends a request for a new stream with one replica to the node that is to hold it.
    pub(super) fn place(&self, config: &StreamConfig, request: &ApiRequest<'_>) -> Result<(), ApiError> {
        let peer = self.choose(config)?;
        if send_to(self.0.main.interest(), &of_node(peer), request) {
            return Ok(());
        }
        Err(ApiError::NoSuitablePeers("the node is away".to_owned()))
    }

    /// This node, or the one that a tag names: a member, for the catalogue forgets who is none.
    fn choose(&self, config: &StreamConfig) -> Result<PeerId, ApiError> {
        let status = self.0.member.cluster.status();
        let none = |text: String| Err(ApiError::NoSuitablePeers(text));
        let (mut tags, mut cluster) = (&[][..], "");
        if let Some(placement) = &config.placement {
            (tags, cluster) = (&placement.tags[..], placement.cluster.as_str());
        }
        if !cluster.is_empty() && cluster != self.0.member.certificates.current().identity.cluster {
            return none(format!("there is no cluster {cluster}"));
        }
        let wanted = |name: &String, id| if tags.is_empty() { id == status.me } else { tags.contains(name) };
        let mut members = status.members.iter().filter(|member| !member.member.witness);
        match members.find(|member| wanted(&member.member.name, member.id)) {
            Some(member) => Ok(member.id),
            None if tags.is_empty() => none("this node is no member yet".to_owned()),
            None => none(format!("no node is called {}", tags.join(" or "))),
        }
    }

    /// Takes a publish of a peer, if a stream that is here captures it.
    pub(super) fn takes(&self, stream: StreamId, message: &MeshMessage<'_>) -> bool {
        let MeshMessage { subject, reply, headers, payload, .. } = *message;
        let is_here = self.0.main.is_beside(stream);
        if is_here {
            self.0.door.0.publish(stream, subject, reply, headers, payload);
        }
        is_here
    }

    /// A request for a stream that is here, or is to be.
    pub(super) fn handle(&self, request: &ApiRequest<'_>) -> Handled {
        let call = parse_request(request.subject, request.headers, request.payload);
        let Some((what, form)) = What::of(call) else {
            return self.api().unwrap_or(&self.0.main_api).handle(request);
        };
        let copy = Bytes::copy_from_slice;
        let change = Change {
            what,
            form,
            reply: copy(request.reply),
            subject: copy(request.subject),
            headers: copy(request.headers),
            payload: copy(request.payload),
        };
        if let Err(refused) = self.0.changes.try_send(change) {
            let change = refused.into_inner();
            self.0.main_api.tell(&change.reply, change.form, &Err(ApiError::TooManyRequests));
        }
        Handled::Done
    }

    /// Seals the store.
    ///
    /// # Errors
    /// It could not be sealed. What was acked is durable all the same.
    pub(crate) async fn close(&self) -> Result<(), CloseError> {
        let Some(router) = self.router().cloned() else { return Ok(()) };
        let closing = tokio::task::spawn_blocking(move || router.close());
        closing.await.expect("closing is not cancelled, and does not panic")
    }

    async fn open(&self) -> Result<&Store, OpenError> {
        if let Some(store) = self.0.store.get() {
            return Ok(store);
        }
        let Inner { main, folder, options, .. } = &*self.0;
        let (main, folder, options) = (main.clone(), folder.clone(), options.clone());
        let opening = tokio::task::spawn_blocking(move || {
            main.open_beside(&folder, Arc::new(StdDisk), &options, Arc::new(NatsWire::new()))
        });
        let router = opening.await.expect("opening is not cancelled, and does not panic")?;
        let api = Api::new(router.clone(), self.0.member.member.name.clone());
        let member = self.0.member.clone();
        api.placed_by(Box::new(move || view(&member)));
        let id = router.node_id().to_string();
        for stream in names(&router).await {
            self.found(&stream);
        }
        Ok(self.0.store.get_or_init(|| Store { router, api, id }))
    }

    /// The stream is here: everybody is told.
    fn found(&self, stream: &str) {
        let mut streams = self.0.streams.write().unwrap_or_else(PoisonError::into_inner);
        if !streams.contains_key(stream) {
            streams.insert(stream.to_owned(), self.listen_by(&of_stream(stream)));
        }
    }

    /// It is no longer.
    fn gone(&self, stream: &str) {
        let key = self.0.streams.write().unwrap_or_else(PoisonError::into_inner).remove(stream);
        if let Some(key) = key {
            self.0.main.interest().unsubscribe(&key);
        }
    }

    fn listen_by(&self, subject: &str) -> SubscriptionKey {
        let door = Arc::clone(&self.0.door) as Arc<dyn Subscriber>;
        // The names of streams are single tokens, and so are those of peers.
        self.0.main.interest().subscribe(subject.as_bytes(), None, door, 0).expect("a legal filter")
    }
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held").field("streams", &self.streams()).finish_non_exhaustive()
    }
}

fn view(member: &NodeCluster) -> ClusterView {
    let name = member.member.name.clone();
    ClusterView {
        name: member.certificates.current().identity.cluster.clone(),
        group: format!("local-{name}"),
        leader: Some(name),
        replicas: Vec::new(),
    }
}

/// All streams of a router.
async fn names(router: &Router) -> Vec<String> {
    let mut found = Vec::new();
    loop {
        let Ok(ticket) = router.request(Request::StreamNames { subject: None, offset: found.len() }) else {
            return found;
        };
        let Ok(Response::Names(page)) = ticket.await else { return found };
        let is_last = page.items.is_empty() || found.len() + page.items.len() >= page.total;
        found.extend(page.items);
        if is_last {
            return found;
        }
    }
}
