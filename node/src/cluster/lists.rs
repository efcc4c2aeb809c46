//! The list of all streams: those of the cluster's shard, which the leader has, and those that single nodes hold, which
//! these are asked for. What does not answer is told as missing.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use beamlog_nats::JetStream as _;
use beamlog_nats::jetstream::{
    Api, ApiRequest, Call, ClusterView, Form, Handled, parse_request, stream_listed,
};
use beamlog_router::Router;
use beamlog_router::api::error::ApiError;
use beamlog_router::api::request::{Answer, Page, Request, Response};
use beamlog_router::interest::{Envelope, RouteCache};
use bytes::Bytes;
use futures_util::future::join_all;
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;

use crate::cluster::held::{of_stream, send_to};
use crate::core_messages;

pub(super) const STREAM_LIST: &[u8] = b"$JS.API.STREAM.LIST";

/// Streams of one page, as nats-server pages them.
const PAGE: usize = 256;
/// A node that does not answer in this time is taken for away.
const PATIENCE: Duration = Duration::from_secs(2);
/// Lists that are made at once; more are refused.
const MAKING_MAX: usize = 8;

/// Makes lists where the cluster is led. Clones are the same.
#[derive(Clone)]
pub(crate) struct Lists(Arc<Shared>);

struct Shared {
    router: Router,
    api: Api,
    view: OnceLock<View>,
    making: Semaphore,
}

type View = Box<dyn Fn() -> ClusterView + Send + Sync>;

struct Wanted {
    subject: Option<String>,
    offset: usize,
    form: Form,
    reply: Bytes,
}

impl Lists {
    pub(crate) fn new(router: Router, api: Api) -> Self {
        let (view, making) = (OnceLock::new(), Semaphore::new(MAKING_MAX));
        Self(Arc::new(Shared { router, api, view, making }))
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
        let Request::StreamList { subject, offset } = *wanted else { return self.0.api.handle(request) };
        let reply = Bytes::copy_from_slice(request.reply);
        let wanted = Wanted { subject, offset, form, reply };
        let shared = Arc::clone(&self.0);
        tokio::spawn(async move {
            let answer = match shared.making.try_acquire() {
                Ok(_permit) => shared.make(&wanted).await,
                Err(_) => Err(ApiError::TooManyRequests),
            };
            match answer {
                Ok(List::Common(answer)) => shared.api.tell(&wanted.reply, wanted.form, &Ok(answer)),
                Ok(List::Merged(document)) => shared.send(&wanted.reply, &document.to_string()),
                Err(error) => shared.api.tell(&wanted.reply, wanted.form, &Err(error)),
            }
        });
        Handled::Done
    }
}

enum List {
    /// No stream is held by one node.
    Common(Response),
    Merged(Value),
}

impl Shared {
    async fn make(&self, wanted: &Wanted) -> Result<List, ApiError> {
        let Wanted { subject, offset, .. } = wanted;
        let Response::Reservations(reservations) = self.ask(Request::Reservations).await? else {
            return Err(ApiError::BadRequest);
        };
        let mut held = reservations.into_iter().filter(|one| !one.deleted).map(|one| one.stream).peekable();
        if held.peek().is_none() {
            let request = Request::StreamList { subject: subject.clone(), offset: *offset };
            return self.ask(request).await.map(List::Common);
        }
        let held: BTreeSet<String> = held.collect();
        let Page { total, offset, items, .. } = self.names(subject.as_ref(), *offset).await?;
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
        Ok(List::Merged(document))
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
        let subject = format!("$JS.API.STREAM.INFO.{stream}");
        let send = |reply: &str| {
            let request = ApiRequest {
                subject: subject.as_bytes(),
                reply: reply.as_bytes(),
                headers: b"",
                payload: b"",
                no_responders: true,
            };
            usize::from(send_to(self.router.interest(), &of_stream(stream), &request))
        };
        let answer = core_messages::ask_by(&self.router, send, PATIENCE).await.ok()?;
        let mut info: Map<String, Value> = serde_json::from_slice(&answer).ok()?;
        for of_the_page in ["type", "total", "offset", "limit"] {
            info.remove(of_the_page);
        }
        info.contains_key("config").then_some(Value::Object(info))
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
