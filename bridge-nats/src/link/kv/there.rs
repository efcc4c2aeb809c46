//! A bucket of the cluster at the other end.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::push::{Ordered, OrderedConfig};
use async_nats::jetstream::context::{KeyValueErrorKind, PublishErrorKind};
use async_nats::jetstream::kv::Store;
use async_nats::jetstream::stream::{Config, DiscardPolicy, LastRawMessageErrorKind, StorageType};
use futures_util::{FutureExt, StreamExt};

use super::copy::{Source, Target, Written};
use super::here::Shape;
use super::version::{BucketId, Entry, Operation, VERSION, Version};
use crate::link::connection::Session;
use crate::link::headers;
use crate::link::trail::StreamKey;

/// How long a bucket that we make knows the ids of writes.
const DUPLICATES: Duration = Duration::from_secs(120);

pub(super) struct Bucket {
    session: Session,
    store: Store,
    id: BucketId,
    key: StreamKey,
    shape: Shape,
}

impl Bucket {
    pub(super) async fn open(session: &Session, name: &str) -> Result<Self, String> {
        match session.jetstream.get_key_value(name).await {
            Ok(store) => Ok(Self::new(session, store)),
            Err(error) => Err(match error.kind() {
                KeyValueErrorKind::InvalidStoreName => format!("{name} is no bucket there"),
                KeyValueErrorKind::GetBucket | KeyValueErrorKind::JetStream => {
                    format!("opening bucket {name} there: {error}")
                }
            }),
        }
    }

    pub(super) async fn open_or_create(session: &Session, name: &str, shape: &Shape) -> Result<Self, String> {
        if let Ok(bucket) = Self::open(session, name).await {
            return Ok(bucket);
        }
        let none = -1_i64;
        let max_age = Duration::from_nanos(shape.max_age_nanos);
        // As a stream: the library asks for the account first to make a bucket, and cannot read what servers
        // before 2.10 answer.
        let config = Config {
            name: format!("KV_{name}"),
            description: Some(shape.description.clone()).filter(|text| !text.is_empty()),
            subjects: vec![format!("$KV.{name}.>")],
            max_messages_per_subject: i64::try_from(shape.history).unwrap_or(1).clamp(1, 64),
            max_message_size: shape.max_value_bytes.and_then(|size| i32::try_from(size).ok()).unwrap_or(-1),
            max_bytes: shape.max_bytes.and_then(|size| i64::try_from(size).ok()).unwrap_or(none),
            max_messages: none,
            max_consumers: -1,
            max_age,
            // It may not be longer than what it is about is kept.
            duplicate_window: if max_age.is_zero() { DUPLICATES } else { max_age.min(DUPLICATES) },
            storage: if shape.in_memory { StorageType::Memory } else { StorageType::File },
            discard: DiscardPolicy::New,
            allow_rollup: true,
            deny_delete: true,
            allow_direct: true,
            // Of a cluster its own default: all of its nodes, when it is one of ours.
            num_replicas: 0,
            ..Config::default()
        };
        let made = session.jetstream.create_stream(config).await;
        match (Self::open(session, name).await, made) {
            // Another rule, or somebody else, may have been faster.
            (Ok(bucket), _) => Ok(bucket),
            (Err(_), Err(error)) => Err(format!("making bucket {name} there: {error}")),
            (Err(error), Ok(_)) => Err(error),
        }
    }

    fn new(session: &Session, store: Store) -> Self {
        let info = store.stream.cached_info();
        let config = &info.config;
        let created = u64::try_from(info.created.unix_timestamp_nanos()).unwrap_or_default();
        let positive = |number: i64| u64::try_from(number).ok().filter(|number| *number > 0);
        let shape = Shape {
            history: positive(config.max_messages_per_subject).unwrap_or(1),
            max_age_nanos: u64::try_from(config.max_age.as_nanos()).unwrap_or(u64::MAX),
            max_bytes: positive(config.max_bytes),
            max_value_bytes: u32::try_from(config.max_message_size).ok().filter(|size| *size > 0),
            in_memory: config.storage == StorageType::Memory,
            description: config.description.clone().unwrap_or_default(),
        };
        let id = BucketId::new(&config.name, created);
        let key = StreamKey { name: config.name.clone(), epoch: created };
        Self { session: session.clone(), store, id, key, shape }
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
        let config = OrderedConfig {
            deliver_subject: self.session.client.new_inbox(),
            description: Some("beamlog link".to_owned()),
            filter_subject: format!("{}>", self.store.prefix),
            deliver_policy: DeliverPolicy::LastPerSubject,
            ..OrderedConfig::default()
        };
        let reading = |error: String| format!("reading bucket {} there: {error}", self.store.name);
        let consumer =
            self.store.stream.create_consumer(config).await.map_err(|error| reading(error.to_string()))?;
        let is_empty = self.store.stream.cached_info().state.messages == 0;
        let messages = consumer.messages().await.map_err(|error| reading(error.to_string()))?;
        Ok(Reader {
            messages: Box::pin(messages),
            prefix: self.store.prefix.clone(),
            name: self.store.name.clone(),
            id: self.id,
            is_empty,
        })
    }

    fn subject(&self, key: &str) -> String {
        let prefix = self.store.put_prefix.as_ref().unwrap_or(&self.store.prefix);
        if self.store.use_jetstream_prefix {
            format!("{}.{prefix}{key}", self.session.api_prefix)
        } else {
            format!("{prefix}{key}")
        }
    }
}

/// What a map of a stored message says of version and operation.
fn read_map(headers: &HeaderMap, bucket: BucketId, stored: u64) -> (Version, Operation) {
    let find = |name: &str| headers.get(name).map(|value| value.as_str().as_bytes());
    let version = Version::of(find(VERSION), bucket, stored);
    (version, Operation::of(find(Operation::HEADER), find("Nats-Marker-Reason")))
}

/// The headers of a user: what a copy gets anew is left out.
fn plain(map: &HeaderMap) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for (name, values) in map.iter() {
        let text: &str = name.as_ref();
        let is_ours = [VERSION, Operation::HEADER].iter().any(|ours| text.eq_ignore_ascii_case(ours))
            || text.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("Nats-"));
        if !is_ours {
            for value in values {
                kept.append(name.clone(), value.clone());
            }
        }
    }
    kept
}

impl Target for Bucket {
    fn id(&self) -> BucketId {
        self.id
    }

    async fn last(&self, key: &str) -> Result<Option<(Version, u64)>, String> {
        let subject = format!("{}{key}", self.store.prefix);
        match self.store.stream.get_last_raw_message_by_subject(&subject).await {
            Ok(message) => {
                let stored = u64::try_from(message.time.unix_timestamp_nanos()).unwrap_or_default();
                Ok(Some((read_map(&message.headers, self.id, stored).0, message.sequence)))
            }
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(format!("reading key {key} there: {error}")),
        }
    }

    async fn write(&self, entry: &Entry, revision: u64) -> Result<Written, String> {
        let (version, revision) = (entry.version.text(), revision.to_string());
        let mut more = vec![(VERSION, version.as_str()), ("Nats-Expected-Last-Subject-Sequence", &revision)];
        if let Some(operation) = entry.operation.name() {
            more.push((Operation::HEADER, operation));
        }
        if entry.operation == Operation::Purge {
            more.push(("Nats-Rollup", "sub"));
        }
        if entry.bytes() + 256 > self.session.client.max_payload() {
            return Ok(Written::Unfit("larger than the server takes".to_owned()));
        }
        let map = headers::outward(&entry.headers, &more);
        let writing = |error: &dyn std::error::Error| format!("writing key {} there: {error}", entry.key);
        let sent =
            self.session.jetstream.publish_with_headers(self.subject(&entry.key), map, entry.value.clone());
        let ack = sent.await.map_err(|error| writing(&error))?;
        match ack.await {
            Ok(_) => Ok(Written::Done),
            Err(error) => match error.kind() {
                PublishErrorKind::WrongLastSequence => Ok(Written::Changed),
                PublishErrorKind::MaxPayloadExceeded => Ok(Written::Unfit(error.to_string())),
                PublishErrorKind::StreamNotFound
                | PublishErrorKind::WrongLastMessageId
                | PublishErrorKind::TimedOut
                | PublishErrorKind::BrokenPipe
                | PublishErrorKind::MaxAckPending
                | PublishErrorKind::Other => {
                    // The only refusal that is about this message and not about the stream.
                    if error.to_string().contains("message size exceeds") {
                        return Ok(Written::Unfit("larger than the bucket takes".to_owned()));
                    }
                    Err(writing(&error))
                }
            },
        }
    }
}

/// Reads a bucket by an ordered consumer.
pub(super) struct Reader {
    messages: std::pin::Pin<Box<Ordered>>,
    prefix: String,
    name: String,
    id: BucketId,
    is_empty: bool,
}

impl Reader {
    fn read<E: std::fmt::Display>(
        &self,
        message: Option<Result<async_nats::jetstream::Message, E>>,
    ) -> Result<Entry, String> {
        let ended = |problem: String| format!("reading bucket {} there: {problem}", self.name);
        let message = match message {
            Some(Ok(message)) => message,
            Some(Err(error)) => return Err(ended(error.to_string())),
            None => return Err(ended("it has ended".to_owned())),
        };
        let info = message.info().map_err(|error| ended(error.to_string()))?;
        let stored = u64::try_from(info.published.unix_timestamp_nanos()).unwrap_or_default();
        let (pending, sequence) = (info.pending, info.stream_sequence);
        let empty = HeaderMap::new();
        let map = message.headers.as_ref().unwrap_or(&empty);
        let (version, operation) = read_map(map, self.id, stored);
        let key = message.subject.strip_prefix(&self.prefix).unwrap_or_default().to_owned();
        let headers = headers::inward(Some(&plain(map)), &[]);
        Ok(Entry {
            key,
            version,
            operation,
            headers: headers.into(),
            value: message.payload.clone(),
            sequence,
            stored,
            pending,
        })
    }
}

impl Source for Reader {
    fn is_empty(&self) -> bool {
        self.is_empty
    }

    async fn next(&mut self) -> Result<Entry, String> {
        let message = self.messages.next().await;
        self.read(message)
    }

    fn ready(&mut self) -> Option<Result<Entry, String>> {
        let message = self.messages.next().now_or_never()?;
        Some(self.read(message))
    }
}
