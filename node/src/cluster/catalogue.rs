//! The catalogue of streams in other shards, and of those shards. Its entries are records of the shard that every
//! voter has; the node that leads answers for them, and the others ask it through the mesh.

use std::sync::Arc;
use std::time::Duration;

use beamlog_net::cluster::MemberRole;
use beamlog_router::Router;
use beamlog_router::api::catalogue::{CatalogueAnswer, CatalogueRequest, ListedMember};
use beamlog_router::api::error::ApiError;
use beamlog_router::api::request::{Arrival, ClusterShard, Rearrange, Reservation, ShardList};
use beamlog_router::interest::{Envelope, Interest, Offered, RouteCache, Subscriber, SubscriptionKey};
use bytes::Bytes;
use tracing::warn;

use crate::cluster::NodeCluster;
use crate::cluster::moves;
use crate::core_messages;

/// The name of who leads, and the subject that a request shows: a client's message shows the one that it goes by, so
/// it cannot be taken for one.
pub(super) const NAME: &[u8] = b"_BEAMLOG.CATALOGUE";
const SHOWN: &[u8] = b"$BEAMLOG.CATALOGUE";

/// A change waits for a quorum.
const PATIENCE: Duration = Duration::from_secs(5);

/// Answers while this node leads; dropped when it does not.
pub(super) struct Desk {
    interest: Arc<Interest>,
    key: SubscriptionKey,
}

struct Answering {
    router: Router,
    member: NodeCluster,
}

impl Desk {
    pub(super) fn open(router: &Router, member: &NodeCluster) -> Self {
        let interest = Arc::clone(router.interest());
        let answering = Arc::new(Answering { router: router.clone(), member: member.clone() });
        let key = interest.subscribe(NAME, None, answering, 0).expect("a legal filter");
        Self { interest, key }
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.interest.unsubscribe(&self.key);
    }
}

impl Subscriber for Answering {
    fn offer(&self, _subscription: u64, message: &Envelope<'_>) -> Offered {
        if message.subject == moves::SHOWN {
            return moves::answer(&self.router, message, |_| ());
        }
        if message.subject != SHOWN || message.reply.is_empty() {
            return Offered::Refused;
        }
        let request = match CatalogueRequest::decode(message.payload) {
            Ok(request) => request,
            Err(error) => {
                warn!(err = %error, "a request to the catalogue cannot be read");
                return Offered::Refused;
            }
        };
        let reply = Bytes::copy_from_slice(message.reply);
        let interest = Arc::clone(self.router.interest());
        let wanted = request.request();
        let member = self.member.clone();
        let then = move |answer| match request.answer(answer, || members(&member)).encode() {
            Ok(payload) => {
                let envelope =
                    Envelope { subject: &reply, reply: b"", headers: b"", payload: &payload, origin: 0 };
                // Whoever asked may have left.
                interest.route(&mut RouteCache::new(), &reply, &envelope);
            }
            Err(error) => warn!(err = %error, "an answer of the catalogue is too large"),
        };
        match self.router.request_then(wanted, Box::new(then)) {
            Ok(()) => Offered::Taken,
            Err(_full) => Offered::Refused,
        }
    }

    fn flush(&self) {}
}

/// The data nodes of the cluster that vote.
fn members(node: &NodeCluster) -> Vec<ListedMember> {
    let members = node.cluster.status().members.into_iter();
    members
        .filter(|member| member.role == MemberRole::Voter && !member.member.witness)
        .map(|member| ListedMember {
            peer: member.id.0,
            name: member.member.name,
            address: member.member.address,
        })
        .collect()
}

async fn ask(router: &Router, request: &CatalogueRequest) -> Result<CatalogueAnswer, ApiError> {
    let payload = request.encode().map_err(|_too_large| ApiError::BadRequest)?;
    let send = |reply: &str| {
        let message =
            Envelope { subject: SHOWN, reply: reply.as_bytes(), headers: b"", payload: &payload, origin: 0 };
        let mut routes = RouteCache::new();
        router.interest().send_to(&mut routes, NAME, &message)
    };
    let answer = core_messages::ask_by(router, send, PATIENCE).await;
    let answer = answer.map_err(|core_messages::Unanswered| ApiError::NotLeader)?;
    match CatalogueAnswer::decode(&answer) {
        Ok(CatalogueAnswer::Refused(refusal)) => Err(refusal.into()),
        Ok(answer) => Ok(answer),
        Err(error) => {
            warn!(err = %error, "an answer of the catalogue cannot be read");
            Err(ApiError::NotLeader)
        }
    }
}

/// The reservation that is in force then: perhaps that of another store, or of a stream that is to go.
pub(super) async fn reserve(router: &Router, reservation: Reservation) -> Result<Reservation, ApiError> {
    match ask(router, &CatalogueRequest::Reserve(reservation)).await? {
        CatalogueAnswer::Reserved(in_force) => Ok(in_force),
        CatalogueAnswer::Released
        | CatalogueAnswer::Page { .. }
        | CatalogueAnswer::Shards { .. }
        | CatalogueAnswer::Arrivals(_)
        | CatalogueAnswer::Refused(_) => Err(ApiError::NotLeader),
    }
}

/// What moves then.
pub(super) async fn rearrange(router: &Router, wanted: Rearrange) -> Result<Vec<Arrival>, ApiError> {
    match ask(router, &CatalogueRequest::Rearrange(wanted)).await? {
        CatalogueAnswer::Arrivals(arrivals) => Ok(arrivals),
        CatalogueAnswer::Reserved(_)
        | CatalogueAnswer::Released
        | CatalogueAnswer::Page { .. }
        | CatalogueAnswer::Shards { .. }
        | CatalogueAnswer::Refused(_) => Err(ApiError::NotLeader),
    }
}

/// All that moves.
pub(super) async fn moving(router: &Router) -> Result<Vec<Arrival>, ApiError> {
    rearrange(router, Rearrange::List).await
}

pub(super) async fn release(router: &Router, stream: &str, store: &str, term: u64) -> Result<(), ApiError> {
    let (stream, store) = (stream.to_owned(), store.to_owned());
    ask(router, &CatalogueRequest::Release { stream, store, term }).await.map(drop)
}

/// All reservations of a store.
pub(super) async fn of_store(router: &Router, store: &str) -> Result<Vec<Reservation>, ApiError> {
    let mut found: Vec<Reservation> = Vec::new();
    loop {
        let after = found.last().map(|last| last.stream.clone()).unwrap_or_default();
        match ask(router, &CatalogueRequest::Of { store: store.to_owned(), after }).await? {
            CatalogueAnswer::Page { reservations, is_last } => {
                let ends = is_last || reservations.is_empty();
                found.extend(reservations);
                if ends {
                    return Ok(found);
                }
            }
            CatalogueAnswer::Reserved(_)
            | CatalogueAnswer::Released
            | CatalogueAnswer::Shards { .. }
            | CatalogueAnswer::Arrivals(_)
            | CatalogueAnswer::Refused(_) => return Err(ApiError::NotLeader),
        }
    }
}

/// The shards beside the first, and who may be in them.
pub(super) async fn shards(router: &Router) -> Result<(ShardList, Vec<ListedMember>), ApiError> {
    listed(router, &CatalogueRequest::Shards).await
}

/// Lists a new shard, or other nodes of one.
pub(super) async fn put_shard(
    router: &Router,
    shard: ClusterShard,
) -> Result<(ShardList, Vec<ListedMember>), ApiError> {
    listed(router, &CatalogueRequest::PutShard(shard)).await
}

async fn listed(
    router: &Router,
    request: &CatalogueRequest,
) -> Result<(ShardList, Vec<ListedMember>), ApiError> {
    match ask(router, request).await? {
        CatalogueAnswer::Shards { list, members } => Ok((list, members)),
        CatalogueAnswer::Reserved(_)
        | CatalogueAnswer::Released
        | CatalogueAnswer::Page { .. }
        | CatalogueAnswer::Arrivals(_)
        | CatalogueAnswer::Refused(_) => Err(ApiError::NotLeader),
    }
}
