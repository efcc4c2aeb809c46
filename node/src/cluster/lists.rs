//! The list of all streams, and the figures of all together: of those of the cluster's shard, which the leader has, and
//! of the others, for which the nodes that hold them or lead their shard are asked. What does not answer is told as missing.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use beamlog_nats::JetStream as _;
use beamlog_nats::jetstream::{
    Api, ApiRequest, Call, ClusterView, Form, Handled, parse_request, stream_listed,
};
use beamlog_net::peer::PeerId;
use beamlog_router::Router;
use beamlog_router::api::error::ApiError;
use beamlog_router::api::request::{AccountInfo, Answer, Page, Request, Reservation, Response};
use beamlog_router::interest::{Envelope, RouteCache};
use bytes::Bytes;
use futures_util::future::join_all;
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;

use crate::cluster::held::{of_node, of_shard, of_stream, send_to};
use crate::core_messages;

const STREAM_LIST: &[u8] = b"$JS.API.STREAM.LIST";
const ACCOUNT_INFO: &str = "$JS.API.INFO";

/// Streams of one page, as nats-server pages them.
const PAGE: usize = 256;
/// A node that does not answer in this time is taken for away.
const PATIENCE: Duration = Duration::from_secs(2);
/// Lists that are made at once, and sums of figures; more are refused.
const LISTS_MAX: usize = 8;
const ACCOUNTS_MAX: usize = 256;

/// Makes lists where the cluster is led. Clones are the same.
#[derive(Clone)]
pub(crate) struct Lists(Arc<Shared>);

struct Shared {
    router: Router,
    api: Api,
    view: OnceLock<View>,
    lists: Semaphore,
    accounts: Semaphore,
}

type View = Box<dyn Fn() -> ClusterView + Send + Sync>;

struct Wanted {
    what: What,
    form: Form,
    reply: Bytes,
}

enum What {
    List { subject: Option<String>, offset: usize },
    Account,
}

/// Whether these requests are answered by [`Lists`].
pub(super) fn is_of_all(subject: &[u8]) -> bool {
    subject == STREAM_LIST || subject == ACCOUNT_INFO.as_bytes()
}

impl Lists {
    pub(crate) fn new(router: Router, api: Api) -> Self {
        let (lists, accounts) = (Semaphore::new(LISTS_MAX), Semaphore::new(ACCOUNTS_MAX));
        Self(Arc::new(Shared { router, api, view: OnceLock::new(), lists, accounts }))
    }

    /// Who says where the streams of the cluster's shard are. The first one stays.
    pub(crate) fn placed_by(&self, view: View) {
        // Set once, when the node starts.
        drop(self.0.view.set(view));
    }

    /// Within a tokio runtime.
    pub(super) fn answer(&self, request: &ApiRequest<'_>) -> Handled {
        let call = parse_request(request.subject, request.headers, request.payload);
        let Call::Engine { request: wanted, form } = call else { return self.0.api.handle(request) };
        let what = if let Request::StreamList { subject, offset } = *wanted {
            What::List { subject, offset }
        } else if *wanted == Request::AccountInfo {
            What::Account
        } else {
            return self.0.api.handle(request);
        };
        let wanted = Wanted { what, form, reply: Bytes::copy_from_slice(request.reply) };
        let shared = Arc::clone(&self.0);
        tokio::spawn(async move {
            let answer = shared.make(&wanted.what).await;
            match answer {
                Ok(Made::Answer(answer)) => shared.api.tell(&wanted.reply, wanted.form, &Ok(answer)),
                Ok(Made::List(document)) => shared.send(&wanted.reply, &document.to_string()),
                Err(error) => shared.api.tell(&wanted.reply, wanted.form, &Err(error)),
            }
        });
        Handled::Done
    }
}

enum Made {
    Answer(Response),
    List(Value),
}

impl Shared {
    async fn make(&self, what: &What) -> Result<Made, ApiError> {
        let making = match what {
            What::List { .. } => &self.lists,
            What::Account => &self.accounts,
        };
        let _permit = making.try_acquire().map_err(|_full| ApiError::TooManyRequests)?;
        match what {
            What::List { subject, offset } => self.list(subject.as_ref(), *offset).await,
            What::Account => self.account().await.map(|info| Made::Answer(Response::Account(info))),
        }
    }

    async fn reservations(&self) -> Result<Vec<Reservation>, ApiError> {
        let Response::Reservations(reservations) = self.ask(Request::Reservations).await? else {
            return Err(ApiError::BadRequest);
        };
        Ok(reservations)
    }

    async fn list(&self, subject: Option<&String>, offset: usize) -> Result<Made, ApiError> {
        let reservations = self.reservations().await?;
        let mut held = reservations.into_iter().filter(|one| !one.deleted).map(|one| one.stream).peekable();
        if held.peek().is_none() {
            let request = Request::StreamList { subject: subject.cloned(), offset };
            return self.ask(request).await.map(Made::Answer);
        }
        let held: BTreeSet<String> = held.collect();
        let Page { total, offset, items, .. } = self.names(subject, offset).await?;
        let infos = join_all(items.iter().map(|name| self.info(name, held.contains(name)))).await;
        let missing: Vec<&String> =
            items.iter().zip(&infos).filter(|(_, info)| info.is_none()).map(|(name, _)| name).collect();
        let mut document = json!({
            "type": "io.nats.jetstream.api.v1.stream_list_response",
            "total": total,
            "offset": offset,
            "limit": PAGE,
            "streams": infos.iter().flatten().collect::<Vec<_>>(),
        });
        if !missing.is_empty() {
            document["missing"] = json!(missing);
        }
        Ok(Made::List(document))
    }

    /// One page of names.
    async fn names(&self, subject: Option<&String>, offset: usize) -> Result<Page<String>, ApiError> {
        let request = Request::StreamNames { subject: subject.cloned(), offset };
        let Response::Names(mut page) = self.ask(request).await? else { return Err(ApiError::BadRequest) };
        page.items.truncate(PAGE);
        Ok(page)
    }

    /// `None`: its node does not answer, or it has gone meanwhile.
    async fn info(&self, stream: &str, is_held: bool) -> Option<Value> {
        let request = Request::StreamInfo {
            stream: stream.to_owned(),
            subjects_filter: None,
            offset: 0,
            deleted_details: false,
        };
        if !is_held {
            let Ok(Response::Stream { info, .. }) = self.ask(request).await else { return None };
            let view = self.view.get().map(|view| view()).unwrap_or_default();
            return serde_json::from_str(&stream_listed(&info, &view)).ok();
        }
        let mut info = self.document(&format!("$JS.API.STREAM.INFO.{stream}"), &of_stream(stream)).await?;
        for of_the_page in ["type", "total", "offset", "limit"] {
            info.remove(of_the_page);
        }
        info.contains_key("config").then_some(Value::Object(info))
    }

    /// The streams of a node that is away, or of a shard without a leader, count all the same; their bytes and consumers nobody knows.
    async fn account(&self) -> Result<AccountInfo, ApiError> {
        let Response::Account(mut all) = self.ask(Request::AccountInfo).await? else {
            return Err(ApiError::BadRequest);
        };
        let holder = |one: &Reservation| one.shard().map_or_else(|| of_node(PeerId(one.peer)), of_shard);
        let names: BTreeSet<String> = self.reservations().await?.iter().map(holder).collect();
        let infos = join_all(names.iter().map(|name| self.document(ACCOUNT_INFO, name))).await;
        for info in infos.into_iter().flatten() {
            let figure = |name: &str| info.get(name).and_then(Value::as_u64).unwrap_or(0);
            all.memory_bytes += figure("memory");
            all.storage_bytes += figure("storage");
            all.consumers += figure("consumers");
        }
        Ok(all)
    }

    /// What who has the name answers to an API request without a body.
    async fn document(&self, subject: &str, name: &str) -> Option<Map<String, Value>> {
        let send = |reply: &str| {
            let request = ApiRequest {
                subject: subject.as_bytes(),
                reply: reply.as_bytes(),
                headers: b"",
                payload: b"",
                no_responders: true,
            };
            usize::from(send_to(self.router.interest(), name, &request))
        };
        let answer = core_messages::ask_by(&self.router, send, PATIENCE).await.ok()?;
        serde_json::from_slice(&answer).ok()
    }

    async fn ask(&self, request: Request) -> Answer {
        match self.router.request(request) {
            Ok(ticket) => ticket.await,
            Err(_full) => Err(ApiError::TooManyRequests),
        }
    }

    fn send(&self, reply: &[u8], document: &str) {
        let envelope =
            Envelope { subject: reply, reply: b"", headers: b"", payload: document.as_bytes(), origin: 0 };
        if !reply.is_empty() {
            // Whoever asked may have left.
            self.router.interest().route(&mut RouteCache::new(), reply, &envelope);
        }
    }
}
