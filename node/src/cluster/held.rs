//! Streams that this node holds: those with one replica, which it holds alone, and those of a shard of the cluster
//! while it leads that. The first are in a store of their own beside that of the cluster, with a driver of their own,
//! so that their acks wait for this node's disk and nobody else's; the others wait for a quorum of their shard.
//!
//! Who has which name and which subjects is decided in the catalogue. One task makes all changes here, in turn; and now
//! and then it compares with the catalogue, for what was cut off by a crash or happened while this node was away.

mod changes;
mod moving;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, Weak};

use beamlog_log::{CloseError, StdDisk};
use beamlog_nats::JetStream;
use beamlog_nats::jetstream::{
    Api, ApiRequest, Call, ClusterView, Form, FromPeers, Handled, NatsWire, parse_request,
};
use beamlog_net::cluster::Cluster;
use beamlog_net::mesh::MeshMessage;
use beamlog_net::peer::PeerId;
use beamlog_router::api::error::ApiError;
use beamlog_router::api::moving::MoveRequest;
use beamlog_router::api::request::{Request, Reservation, Response};
use beamlog_router::interest::{Envelope, Interest, Offered, RouteCache, Subscriber, SubscriptionKey};
use beamlog_router::replica::Role;
use beamlog_router::stream::StreamConfig;
use beamlog_router::{Full, Health, OpenError, PublishBatch, Router, RouterOptions, StreamId};
use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use crate::cluster::NodeCluster;
use crate::cluster::api::Onwards;
use crate::cluster::moves;
pub(super) use changes::ask;

/// Changes that may wait for their turn.
const CHANGES_MAX: usize = 1024;

/// The names of the node that holds a stream, and of a node that is to hold one.
const OF_STREAM: &str = "_BEAMLOG.STREAM.";
const OF_NODE: &str = "_BEAMLOG.NODE.";
/// That of the node that leads a shard.
const OF_SHARD: &str = "_BEAMLOG.SHARD.";

pub(super) fn of_stream(stream: &str) -> String {
    format!("{OF_STREAM}{stream}")
}

pub(super) fn of_node(peer: PeerId) -> String {
    format!("{OF_NODE}{peer}")
}

/// Whoever leads the shard.
pub(super) fn of_shard(number: u8) -> String {
    format!("{OF_SHARD}{number}")
}

/// This node, while it leads the shard.
pub(super) fn of_shard_at(number: u8, peer: PeerId) -> String {
    format!("{OF_SHARD}{number}.{peer}")
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
    /// Its part in the shard that these streams are of; of a node's own streams that in the first one.
    member: NodeCluster,
    /// Its part in the first one.
    common: Cluster,
    place: Place,
    /// Since the first stream.
    store: OnceLock<Store>,
    /// What is here, and by what it is found.
    streams: RwLock<BTreeMap<String, SubscriptionKey>>,
    changes: mpsc::Sender<Change>,
    /// Who changes which streams are here: the one that makes changes, or the one that carries moves, at a move's end.
    turn: tokio::sync::Mutex<()>,
    door: Arc<Door>,
    /// Finds the other way for a stream that is not here.
    onwards: Onwards,
}

/// By what streams are here.
enum Place {
    /// Held by this node alone, in a store that is made with the first one.
    Node { folder: PathBuf, options: RouterOptions },
    /// Of a shard, whose voters they are.
    Shard(OfShard),
}

struct OfShard {
    number: u8,
    role: watch::Receiver<Role>,
    /// How many voters it is to have; 0 is not known yet.
    wanted: AtomicUsize,
    /// By what it is found while this node leads.
    keys: Mutex<Vec<SubscriptionKey>>,
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
struct Door {
    requests: FromPeers,
    inner: Weak<Inner>,
}

impl Subscriber for Door {
    fn offer(&self, _subscription: u64, message: &Envelope<'_>) -> Offered {
        let Envelope { subject, reply, headers, payload, .. } = *message;
        if subject == moves::SHOWN {
            return self.inner.upgrade().map_or(Offered::Refused, |inner| Held(inner).tell_of_move(message));
        }
        if !subject.starts_with(b"$JS.") {
            return Offered::Refused;
        }
        self.requests.request(subject, reply, headers, payload);
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
            let requests = FromPeers::start(inside, Arc::clone(main.interest()));
            let door = Arc::new(Door { requests, inner: Weak::clone(inner) });
            let (store, streams) = (OnceLock::new(), RwLock::default());
            let place = Place::Node { folder: folder.clone(), options };
            let (common, turn) = (member.cluster.clone(), tokio::sync::Mutex::default());
            Inner { main, main_api, member, common, place, store, streams, changes, turn, door, onwards }
        }));
        if folder.exists() {
            held.open().await?;
        }
        let peer = held.0.member.cluster.me();
        held.listen_by(&of_node(peer));
        tokio::spawn(changes::make(Arc::downgrade(&held.0), waiting));
        tokio::spawn(moving::tend(Arc::downgrade(&held.0)));
        tokio::spawn(moving::carry(Arc::downgrade(&held.0), held.0.member.moves.heard.subscribe()));
        Ok(held)
    }

    /// What this node holds of a shard, whose part of the node this is. Within a tokio runtime.
    pub(super) fn start_shard(
        (main, main_api): (Router, Api),
        common: Cluster,
        member: NodeCluster,
        (number, router): (u8, Router),
        onwards: Onwards,
    ) -> Self {
        let (changes, waiting) = mpsc::channel(CHANGES_MAX);
        let api = Api::new(router.clone(), member.member.name.clone());
        let seen = member.clone();
        api.placed_by(Box::new(move || seen.view()));
        let store = OnceLock::from(Store { router, api, id: Reservation::store_of_shard(number) });
        let role = member.role();
        let held = Self(Arc::new_cyclic(|inner| {
            let inside = Arc::new(Inside(Weak::clone(inner)));
            let requests = FromPeers::start(inside, Arc::clone(main.interest()));
            let door = Arc::new(Door { requests, inner: Weak::clone(inner) });
            let (wanted, keys) = (AtomicUsize::new(0), Mutex::default());
            let place = Place::Shard(OfShard { number, role: role.clone(), wanted, keys });
            let (streams, turn) = (RwLock::default(), tokio::sync::Mutex::default());
            Inner { main, main_api, member, common, place, store, streams, changes, turn, door, onwards }
        }));
        tokio::spawn(changes::make(Arc::downgrade(&held.0), waiting));
        tokio::spawn(moving::carry(Arc::downgrade(&held.0), held.0.member.moves.heard.subscribe()));
        tokio::spawn(follow_role(Arc::downgrade(&held.0), role));
        held
    }

    /// How many voters its shard is to have.
    pub(super) fn expect_voters(&self, count: usize) {
        if let Place::Shard(shard) = &self.0.place {
            shard.wanted.store(count, Ordering::Relaxed);
        }
    }

    /// Everybody is told which streams of the shard are here now.
    async fn lead(&self, shard: &OfShard) {
        let (Some(store), me) = (self.0.store.get(), self.0.member.cluster.me()) else { return };
        // Who leads no more is told that next.
        let Ok(moving) = moving::moving_here(&store.router).await else { return };
        let Ok(streams) = names(&store.router).await else { return };
        for stream in streams.iter().filter(|stream| !moving.iter().any(|one| one.stream == **stream)) {
            self.found(stream);
        }
        let mut keys = shard.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if keys.is_empty() {
            let names = [of_shard(shard.number), of_shard_at(shard.number, me)];
            keys.extend(names.iter().map(|name| self.listen_by(name)));
        }
    }

    /// Another node has them, or none.
    fn resign(&self, shard: &OfShard) {
        let mut keys = std::mem::take(&mut *shard.keys.lock().unwrap_or_else(PoisonError::into_inner));
        let streams = std::mem::take(&mut *self.0.streams.write().unwrap_or_else(PoisonError::into_inner));
        keys.extend(streams.into_values());
        for key in keys {
            self.0.main.interest().unsubscribe(&key);
        }
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
        let status = self.0.common.status();
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

    /// Takes a publish of a peer, which a stream that is here captures.
    pub(super) fn publish(&self, stream: StreamId, message: &MeshMessage<'_>) {
        let MeshMessage { subject, reply, headers, payload, .. } = *message;
        self.0.door.requests.publish(stream, subject, reply, headers, payload);
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

    /// Another shard asks about a stream that it is to have.
    fn tell_of_move(self, message: &Envelope<'_>) -> Offered {
        let Some(router) = self.router().cloned() else { return Offered::Refused };
        moves::answer(&router, message, move |wanted| {
            if let MoveRequest::Freeze { stream, .. } = wanted {
                // Nobody is sent here any more.
                self.gone(stream);
            }
        })
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
        let Place::Node { folder, options } = &self.0.place else { unreachable!("that of a shard is open") };
        let (main, folder, options) = (self.0.main.clone(), folder.clone(), options.clone());
        let opening = tokio::task::spawn_blocking(move || {
            main.open_beside(&folder, Arc::new(StdDisk), &options, Arc::new(NatsWire::new()))
        });
        let router = opening.await.expect("opening is not cancelled, and does not panic")?;
        let api = Api::new(router.clone(), self.0.member.member.name.clone());
        let member = self.0.member.clone();
        api.placed_by(Box::new(move || view(&member)));
        let id = router.node_id().to_string();
        let moving = moving::moving_here(&router).await.unwrap_or_default();
        // It answers until it has failed, and then for nothing.
        for stream in names(&router).await.unwrap_or_default() {
            if !moving.iter().any(|one| one.stream == stream) {
                self.found(&stream);
            }
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

    /// As [`Self::found`], of a shard that was led in this term. Who ceased to lead meanwhile has told everybody that
    /// nothing is here; what leads from now on is told again.
    fn found_in(&self, term: u64, stream: &str) {
        self.found(stream);
        if self.term() != Ok(term) {
            self.gone(stream);
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
        moves: member.moves_seen(),
    }
}

/// Tells what is here whenever this node begins to lead the shard, and that nothing is when it ends to.
async fn follow_role(inner: Weak<Inner>, mut role: watch::Receiver<Role>) {
    loop {
        let leads = matches!(*role.borrow_and_update(), Role::Leader { .. });
        let Some(held) = inner.upgrade().map(Held) else { return };
        let Place::Shard(shard) = &held.0.place else { return };
        if leads {
            held.lead(shard).await;
        } else {
            held.resign(shard);
        }
        drop(held);
        if role.changed().await.is_err() {
            return;
        }
    }
}

/// All streams of a router.
///
/// # Errors
/// It does not say all of them: perhaps it does not lead any more.
async fn names(router: &Router) -> Result<Vec<String>, ApiError> {
    let mut found = Vec::new();
    loop {
        let request = Request::StreamNames { subject: None, offset: found.len() };
        let Response::Names(page) = changes::ask(router, request).await? else {
            return Err(ApiError::BadRequest);
        };
        let is_last = page.items.is_empty() || found.len() + page.items.len() >= page.total;
        found.extend(page.items);
        if is_last {
            return Ok(found);
        }
    }
}
