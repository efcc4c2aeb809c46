//! A bucket of this node.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use beamlog_router::api::error::{ApiError, PublishRefusal};
use beamlog_router::api::request::{
    ConsumerAction, MessageSelector, PullRequest, Request, Response, StreamInfo,
};
use beamlog_router::consumer::{AckPolicy, ConsumerConfig, DeliverPolicy};
use beamlog_router::headers::Builder;
use beamlog_router::interest::{Envelope, Offered, Subscriber, SubscriptionKey};
use beamlog_router::stream::{Discard, Storage, StreamConfig};
use beamlog_router::{Full, PublishError, Router, headers, subject};
use bytes::Bytes;
use tokio::sync::mpsc;

use super::copy::{Source, Target, Written};
use super::version::{BucketId, Entry, Operation, VERSION, Version, read_block};
use crate::link::trail::StreamKey;

/// Entries that are asked for at a time.
const PULL_MAX: u32 = 256;
/// How long a pull waits for new entries before it is asked again.
const PULL_NANOS: u64 = 20_000_000_000;
/// A consumer that nobody pulls from is removed.
const INACTIVE_NANOS: u64 = 60_000_000_000;

/// What a bucket is made with when it is missing on one side.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) history: u64,
    pub(super) max_age_nanos: u64,
    pub(super) max_bytes: Option<u64>,
    pub(super) max_value_bytes: Option<u32>,
    pub(super) in_memory: bool,
    pub(super) description: String,
}

pub(super) struct Bucket {
    router: Router,
    stream: String,
    prefix: String,
    id: BucketId,
    key: StreamKey,
    shape: Shape,
}

impl Bucket {
    pub(super) async fn open(router: &Router, name: &str) -> Result<Self, String> {
        match info(router, name).await? {
            Some(info) => Ok(Self::new(router, name, &info)),
            None => Err(format!("there is no bucket {name} here")),
        }
    }

    pub(super) async fn open_or_create(router: &Router, name: &str, shape: &Shape) -> Result<Self, String> {
        if let Some(info) = info(router, name).await? {
            return Ok(Self::new(router, name, &info));
        }
        let config = StreamConfig {
            name: format!("KV_{name}"),
            description: shape.description.clone(),
            subjects: vec![format!("$KV.{name}.>")],
            max_messages_per_subject: Some(shape.history.max(1)),
            max_age_nanos: (shape.max_age_nanos > 0).then_some(shape.max_age_nanos),
            max_bytes: shape.max_bytes,
            max_message_bytes: shape.max_value_bytes,
            discard: Discard::New,
            storage: if shape.in_memory { Storage::Memory } else { Storage::File },
            replicas: 1,
            deny_delete: true,
            allow_rollup_headers: true,
            allow_direct: true,
            ..StreamConfig::default()
        };
        match ask(router, Request::CreateStream(Box::new(config))).await {
            Ok(Response::Stream { info, .. }) => Ok(Self::new(router, name, &info)),
            // Another rule was faster.
            Ok(_) | Err(ApiError::StreamNameInUse) => Self::open(router, name).await,
            Err(error) => Err(format!("making bucket {name} here: {error}")),
        }
    }

    fn new(router: &Router, name: &str, info: &StreamInfo) -> Self {
        let config = &info.config;
        Self {
            router: router.clone(),
            stream: config.name.clone(),
            prefix: format!("$KV.{name}."),
            id: BucketId::new(&config.name, info.created.0),
            key: StreamKey { name: config.name.clone(), epoch: info.created.0 },
            shape: Shape {
                history: config.max_messages_per_subject.unwrap_or(1),
                max_age_nanos: config.max_age_nanos.unwrap_or_default(),
                max_bytes: config.max_bytes,
                max_value_bytes: config.max_message_bytes,
                in_memory: config.storage == Storage::Memory,
                description: config.description.clone(),
            },
        }
    }

    pub(super) fn id(&self) -> BucketId {
        self.id
    }

    pub(super) fn key(&self) -> &StreamKey {
        &self.key
    }

    pub(super) fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The last values of all keys, then everything that is written.
    pub(super) async fn read(&self) -> Result<Reader, String> {
        static READERS: AtomicU64 = AtomicU64::new(1);
        let number = READERS.fetch_add(1, Ordering::Relaxed);
        let reply = format!("_LINK.{}.bucket.{number}", self.router.node_id());
        let (sender, receiver) = mpsc::channel(PULL_MAX as usize + 16);
        let key = self
            .router
            .interest()
            .subscribe(reply.as_bytes(), None, Arc::new(Inbox(sender)), 0)
            .map_err(|error| error.to_string())?;
        // Ends the subscription also when the consumer cannot be made.
        let mut reader = Reader {
            router: self.router.clone(),
            stream: self.stream.clone(),
            prefix: self.prefix.clone(),
            id: self.id,
            consumer: format!("beamlog-link-{}-{number}", &self.router.node_id().to_string()[..8]),
            reply: reply.into(),
            key,
            receiver,
            asked: 0,
            last: 0,
            is_empty: false,
        };
        let config = ConsumerConfig {
            name: reader.consumer.clone(),
            deliver_policy: DeliverPolicy::LastPerSubject,
            filter_subjects: vec![format!("{}>", self.prefix)],
            ack_policy: AckPolicy::None,
            inactive_threshold_nanos: Some(INACTIVE_NANOS),
            memory_storage: true,
            ..ConsumerConfig::default()
        };
        let create = Request::CreateConsumer {
            stream: self.stream.clone(),
            config: Box::new(config),
            action: ConsumerAction::CreateOrUpdate,
        };
        match ask(&self.router, create).await {
            Ok(Response::Consumer(info)) => {
                reader.is_empty = info.pending == 0;
                reader.pull().await?;
                Ok(reader)
            }
            Ok(_) => Err(format!("reading {} here: no consumer", self.stream)),
            Err(error) => Err(format!("reading {} here: {error}", self.stream)),
        }
    }
}

async fn info(router: &Router, name: &str) -> Result<Option<StreamInfo>, String> {
    let request = Request::StreamInfo {
        stream: format!("KV_{name}"),
        subjects_filter: None,
        offset: 0,
        deleted_details: false,
    };
    match ask(router, request).await {
        Ok(Response::Stream { info, .. }) => Ok(Some(*info)),
        Ok(_) | Err(ApiError::StreamNotFound) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

async fn ask(router: &Router, request: Request) -> Result<Response, ApiError> {
    let mut request = request;
    loop {
        match router.request(request) {
            Ok(ticket) => return ticket.await,
            Err(Full(back)) => {
                request = back;
                router.when_ready().await;
                if !serves(router) {
                    return Err(ApiError::LogFailed);
                }
            }
        }
    }
}

fn serves(router: &Router) -> bool {
    use beamlog_router::Health::{Closed, Damaged, InsufficientStorage, LogFailed, Serving};
    match router.health() {
        Serving | InsufficientStorage | Damaged { .. } => true,
        LogFailed { .. } | Closed => false,
    }
}

impl Target for Bucket {
    fn id(&self) -> BucketId {
        self.id
    }

    async fn last(&self, key: &str) -> Result<Option<(Version, u64)>, String> {
        let selector = MessageSelector::LastOn(format!("{}{key}", self.prefix));
        match ask(&self.router, Request::GetMessage { stream: self.stream.clone(), selector }).await {
            Ok(Response::Message(message)) => {
                let (version, _) = read_block(&message.headers, self.id, message.timestamp.0);
                Ok(Some((version, message.sequence.0)))
            }
            Ok(_) | Err(ApiError::NoMessage) => Ok(None),
            Err(error) => Err(format!("reading key {key} here: {error}")),
        }
    }

    async fn write(&self, entry: &Entry, revision: u64) -> Result<Written, String> {
        let mut block = Builder::append_to(&entry.headers)
            .header(VERSION, entry.version.text())
            .header("Nats-Expected-Last-Subject-Sequence", revision.to_string());
        if let Some(operation) = entry.operation.name() {
            block = block.header(Operation::HEADER, operation);
        }
        if entry.operation == Operation::Purge {
            block = block.header("Nats-Rollup", "sub");
        }
        let subject = format!("{}{}", self.prefix, entry.key);
        let ticket = match self.router.publish(subject, block.finish(), entry.value.clone()) {
            Ok(ticket) => ticket,
            Err(PublishError::Full(Full(mut publish))) => loop {
                self.router.when_ready().await;
                if !serves(&self.router) {
                    return Err("the log has failed".to_owned());
                }
                match self.router.store(publish) {
                    Ok(ticket) => break ticket,
                    Err(Full(back)) => publish = back,
                }
            },
            Err(PublishError::Subject(_)) => {
                return Ok(Written::Unfit("the key is not legal".to_owned()));
            }
            Err(error @ PublishError::NoStream) => return Err(error.to_string()),
        };
        match ticket.await.result {
            Ok(_) => Ok(Written::Done),
            Err(PublishRefusal::WrongLastSequence { .. }) => Ok(Written::Changed),
            Err(
                refusal @ (PublishRefusal::TooLarge
                | PublishRefusal::HeadersTooLarge
                | PublishRefusal::RollupNotPermitted
                | PublishRefusal::HeadersMalformed),
            ) => Ok(Written::Unfit(refusal.to_string())),
            Err(refusal) => Err(format!("writing key {} here: {refusal}", entry.key)),
        }
    }
}

struct Received {
    subject: Bytes,
    reply: Bytes,
    headers: Bytes,
    payload: Bytes,
}

struct Inbox(mpsc::Sender<Received>);

impl Subscriber for Inbox {
    fn offer(&self, _subscription: u64, message: &Envelope<'_>) -> Offered {
        let received = Received {
            subject: Bytes::copy_from_slice(message.subject),
            reply: Bytes::copy_from_slice(message.reply),
            headers: Bytes::copy_from_slice(message.headers),
            payload: Bytes::copy_from_slice(message.payload),
        };
        // No more comes than was asked for, and for that there is room.
        match self.0.try_send(received) {
            Ok(()) => Offered::Taken,
            Err(_) => Offered::Refused,
        }
    }

    fn flush(&self) {}
}

/// Reads a bucket by a consumer of its own.
pub(super) struct Reader {
    router: Router,
    stream: String,
    prefix: String,
    id: BucketId,
    consumer: String,
    reply: Bytes,
    key: SubscriptionKey,
    receiver: mpsc::Receiver<Received>,
    /// Deliveries that the last pull still owes us.
    asked: u32,
    /// Consumer sequence of the last delivery.
    last: u64,
    /// Nothing was in the bucket when reading began.
    is_empty: bool,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.router.interest().unsubscribe(&self.key);
        let (stream, consumer) = (self.stream.clone(), self.consumer.clone());
        // When there is no room for it, it ends by itself after a while.
        drop(self.router.request(Request::DeleteConsumer { stream, consumer }));
    }
}

impl Reader {
    async fn pull(&mut self) -> Result<(), String> {
        self.asked = PULL_MAX;
        let request =
            PullRequest { batch: PULL_MAX, expires_nanos: Some(PULL_NANOS), ..PullRequest::default() };
        loop {
            let pulled = self.router.pull(
                self.stream.clone(),
                self.consumer.clone(),
                request.clone(),
                self.reply.clone(),
            );
            if pulled.is_ok() {
                return Ok(());
            }
            self.router.when_ready().await;
            if !serves(&self.router) {
                return Err("the log has failed".to_owned());
            }
        }
    }

    /// `None`: the pull has ended.
    fn read(&mut self, received: Received) -> Result<Option<Entry>, String> {
        if received.reply.is_empty() {
            self.asked = 0;
            return match headers::status(&received.headers) {
                // Nothing came in time, or the request was served.
                Some(404 | 408) => Ok(None),
                _ => Err(format!("reading {} here has ended", self.stream)),
            };
        }
        self.asked = self.asked.saturating_sub(1);
        let Some((sequence, number, stored, pending)) = ack_fields(&received.reply) else {
            return Err("a delivery without its position".to_owned());
        };
        if number != self.last + 1 {
            return Err(format!("a delivery of {} was lost", self.stream));
        }
        self.last = number;
        let key = received
            .subject
            .strip_prefix(self.prefix.as_bytes())
            .and_then(|key| std::str::from_utf8(key).ok())
            .unwrap_or_default()
            .to_owned();
        let (version, operation) = read_block(&received.headers, self.id, stored);
        Ok(Some(Entry {
            key,
            version,
            operation,
            headers: plain(&received.headers),
            value: received.payload,
            sequence,
            stored,
            pending,
        }))
    }
}

/// The headers of a user: what a copy gets anew is left out.
fn plain(block: &[u8]) -> Bytes {
    if block.is_empty() {
        return Bytes::new();
    }
    let is_ours = |name: &[u8]| {
        [VERSION, Operation::HEADER].iter().any(|ours| name.eq_ignore_ascii_case(ours.as_bytes()))
            || name.get(..5).is_some_and(|start| start.eq_ignore_ascii_case(b"Nats-"))
    };
    Bytes::from(headers::without(block, is_ours))
}

/// Stream sequence, consumer sequence, time of storing and pending, of an ack subject.
fn ack_fields(reply: &[u8]) -> Option<(u64, u64, u64, u64)> {
    let tokens: Vec<&[u8]> = subject::tokens(reply).collect();
    let [.., sequence, consumer_sequence, time, pending] = tokens[..] else { return None };
    let number = |token: &[u8]| std::str::from_utf8(token).ok()?.parse::<u64>().ok();
    Some((number(sequence)?, number(consumer_sequence)?, number(time)?, number(pending)?))
}

impl Source for Reader {
    fn is_empty(&self) -> bool {
        self.is_empty
    }

    async fn next(&mut self) -> Result<Entry, String> {
        loop {
            if self.asked == 0 {
                self.pull().await?;
            }
            let Some(received) = self.receiver.recv().await else {
                return Err(format!("reading {} here has ended", self.stream));
            };
            if let Some(entry) = self.read(received)? {
                return Ok(entry);
            }
        }
    }

    fn ready(&mut self) -> Option<Result<Entry, String>> {
        let received = self.receiver.try_recv().ok()?;
        self.read(received).transpose()
    }
}
