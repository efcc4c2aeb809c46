//! The API as the sessions use it: reads a request, hands it to the router, and sees to it that the
//! answer reaches the reply subject. Never blocks.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use beamlog_router::api::request::{Answer, Request};
use beamlog_router::headers::Builder;
use beamlog_router::interest::{Envelope, Interest, RouteCache};
use beamlog_router::{Full, Health, PublishBatch, Router, Timestamp};
use bytes::Bytes;

use super::answer::{self, Around, Form, Kind, Raw, Reply};
use super::call::{Call, parse_request};
use super::cluster_view::{ClusterView, Whereabouts};
use super::errors::ErrorBody;
use super::request::{ApiRequest, Handled};
use crate::server::JetStream;

/// The JetStream API of one node. Clones share their counters.
#[derive(Clone)]
pub struct Api {
    router: Router,
    shared: Arc<Shared>,
}

/// What the answers need; it travels to the driver thread with each request.
struct Shared {
    interest: Arc<Interest>,
    server_name: String,
    placed: OnceLock<Placed>,
    requests: AtomicU64,
    errors: AtomicU64,
}

/// Says where the streams of this cluster are, now.
pub type Placed = Box<dyn Fn() -> ClusterView + Send + Sync>;

/// How much the API was used.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ApiStats {
    pub requests: u64,
    /// Of those, answered by an error.
    pub errors: u64,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").field("server_name", &self.shared.server_name).finish_non_exhaustive()
    }
}

impl Api {
    /// `server_name` is told as the leader of every stream.
    #[must_use]
    pub fn new(router: Router, server_name: String) -> Self {
        let interest = Arc::clone(router.interest());
        let shared = Shared {
            interest,
            server_name,
            placed: OnceLock::new(),
            requests: AtomicU64::new(0),
            errors: AtomicU64::new(0),
        };
        Self { router, shared: Arc::new(shared) }
    }

    /// Of a node in a cluster: who says where streams are. The first one stays.
    pub fn placed_by(&self, placed: Placed) {
        // Set once, when the node starts.
        drop(self.shared.placed.set(placed));
    }

    /// Answers a request that somebody else asked of a router.
    pub fn tell(&self, reply: &[u8], form: Form, answer: &Answer) {
        self.shared.answer_document(reply, form, answer);
    }

    #[must_use]
    pub fn stats(&self) -> ApiStats {
        ApiStats {
            requests: self.shared.requests.load(Ordering::Relaxed),
            errors: self.shared.errors.load(Ordering::Relaxed),
        }
    }
}

impl JetStream for Api {
    /// Handles one publish to the API. The answer, if there is one, is routed to the reply subject, now
    /// or from the driver thread once what it says is durable.
    fn handle(&self, request: &ApiRequest<'_>) -> Handled {
        match parse_request(request.subject, request.headers, request.payload) {
            Call::Engine { request: wanted, form } => self.ask(*wanted, form, request),
            Call::Pull { stream, consumer, request: pull } => {
                // Without a reply subject there is nowhere to deliver to.
                if request.reply.is_empty() {
                    return Handled::Done;
                }
                let reply = Bytes::copy_from_slice(request.reply);
                taken(self.router.pull(stream, consumer, pull, reply))
            }
            Call::Ack { target, kind } => {
                let reply = (!request.reply.is_empty()).then(|| Bytes::copy_from_slice(request.reply));
                taken(self.router.ack(target, kind, reply))
            }
            Call::FlowControl { stream, consumer, token } => {
                taken(self.router.flow_control(stream, consumer, token))
            }
            Call::Reply(reply) => {
                self.shared.answer(request.reply, &reply);
                Handled::Done
            }
            Call::Nothing => Handled::Done,
        }
    }

    fn offer(&self, batch: PublishBatch) -> Result<(), Full<PublishBatch>> {
        self.router.offer_publishes(batch)
    }

    fn when_ready(&self) -> Pin<Box<dyn Future<Output = bool> + Send>> {
        let router = self.router.clone();
        Box::pin(async move {
            router.when_ready().await;
            router.health() != Health::Closed
        })
    }
}

impl Api {
    fn ask(&self, wanted: Request, form: Form, request: &ApiRequest<'_>) -> Handled {
        let direct_from =
            if let Request::DirectGet { stream, .. } | Request::DirectGetBatch { stream, .. } = &wanted {
                Some(stream.clone())
            } else {
                None
            };
        let shared = Arc::clone(&self.shared);
        let reply = Bytes::copy_from_slice(request.reply);
        // Needed only to say who was asked when nobody listens.
        let unheard =
            (direct_from.is_some() && request.no_responders).then(|| Bytes::copy_from_slice(request.subject));
        let then = move |answer: Answer| match direct_from {
            Some(stream) => shared.answer_raw(&reply, form, &stream, &answer, unheard.as_deref()),
            None => shared.answer_document(&reply, form, &answer),
        };
        if self.router.request_then(wanted, Box::new(then)).is_err() {
            let refusal = if form.kind == Kind::Direct {
                Reply::status(Builder::status(429, "Too Many Requests"))
            } else {
                Reply::refusal(form.kind, &ErrorBody::new(429, 10167, "too many requests"))
            };
            self.shared.answer(request.reply, &refusal);
        }
        Handled::Done
    }
}

fn taken<T>(offered: Result<(), Full<T>>) -> Handled {
    match offered {
        Ok(()) => Handled::Done,
        Err(Full(_)) => Handled::Full,
    }
}

impl Shared {
    fn answer_document(&self, to: &[u8], form: Form, answer: &Answer) {
        let view = self.placed.get().map(|placed| placed());
        let around = Around {
            whereabouts: view.as_ref().map_or(Whereabouts::Alone(&self.server_name), Whereabouts::Cluster),
            now: wall_clock(),
            requests: self.requests.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
        };
        let reply = answer::spell(form, answer, &around);
        // nats-server counts a message that was read as no request of the API.
        if form.kind != Kind::MessageGet || reply.is_error {
            self.count(reply.is_error);
        }
        self.send(&mut RouteCache::new(), to, &reply.headers, reply.payload.as_bytes());
    }

    fn count(&self, is_error: bool) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        if is_error {
            self.errors.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn answer(&self, to: &[u8], reply: &Reply) {
        // Statuses answer pulls and direct gets, which are not counted either.
        if reply.headers.is_empty() {
            self.count(reply.is_error);
        }
        self.send(&mut RouteCache::new(), to, &reply.headers, reply.payload.as_bytes());
    }

    /// Direct gets are reads, and count as none of the API's requests.
    fn answer_raw(&self, to: &[u8], form: Form, stream: &str, answer: &Answer, unheard: Option<&[u8]>) {
        let mut cache = RouteCache::new();
        let raw = answer::raw(form, stream, answer, &mut |headers, payload| {
            self.send(&mut cache, to, headers, payload);
        });
        match (raw, unheard) {
            (Raw::NobodyListens, Some(subject)) => {
                let block = Builder::status(503, "").header("Nats-Subject", subject).finish();
                self.send(&mut cache, to, &block, b"");
            }
            (Raw::NobodyListens, None) | (Raw::Sent, _) => {}
        }
    }

    fn send(&self, cache: &mut RouteCache, to: &[u8], headers: &[u8], payload: &[u8]) {
        if to.is_empty() {
            return;
        }
        let envelope = Envelope { subject: to, reply: b"", headers, payload, origin: 0 };
        // Whoever asked may have left.
        let _receivers = self.interest.route(cache, to, &envelope);
    }
}

/// The figures of a consumer are as of now; they do not carry a time of their own.
fn wall_clock() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}
