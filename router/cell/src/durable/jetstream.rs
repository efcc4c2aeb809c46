//! Durable requests in streams behind a NATS URL.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, Consumer, pull};
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::stream::{Config, DiscardPolicy, LastRawMessageErrorKind};
use async_nats::jetstream::{self, AckKind, Context};
use async_nats::{HeaderMap, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::time::timeout;

use super::DurableOptions;
use super::store::{
    ACK_WAIT, ANSWER_SUBJECTS, ANSWERS, CALL_TIMEOUT, CONSUMER, FIRST_ONLY, Kept, Open, REQUEST_SUBJECTS,
    REQUESTS, Reader, Settle, Store, Watch,
};
use crate::error::BusError;
use crate::nats::{NatsBus, round_trip};

pub(super) struct JetStream {
    bus: Arc<NatsBus>,
    context: Context,
}

fn failed(problem: &dyn std::fmt::Display) -> BusError {
    BusError::Connection(format!("the store of requests: {problem}"))
}

impl JetStream {
    pub(super) fn open(bus: Arc<NatsBus>, options: DurableOptions) -> Result<Self, BusError> {
        let streams =
            [(REQUESTS, REQUEST_SUBJECTS), (ANSWERS, ANSWER_SUBJECTS)].map(|(name, subjects)| Config {
                name: name.into(),
                description: Some("durable requests of cells".into()),
                subjects: vec![subjects.into()],
                max_age: options.kept_for,
                max_bytes: i64::try_from(options.bytes_max).unwrap_or(i64::MAX),
                discard: DiscardPolicy::New,
                allow_direct: true,
                ..Config::default()
            });
        let client = bus.client().clone();
        let context = bus.block(async move {
            // It begins a task: only a runtime can.
            let context = jetstream::new(client);
            for config in streams {
                // One that is there with other limits is as good.
                within(context.get_or_create_stream(config)).await?;
            }
            let consumer = pull::Config {
                durable_name: Some(CONSUMER.into()),
                ack_policy: AckPolicy::Explicit,
                ack_wait: ACK_WAIT,
                ..pull::Config::default()
            };
            let stream = within(context.get_stream_no_info(REQUESTS)).await?;
            within(stream.create_consumer(consumer)).await?;
            Ok(context)
        })?;
        Ok(Self { bus, context })
    }

    /// Whether it was stored, or is not the first of its subject.
    fn publish(&self, subject: &str, headers: HeaderMap, payload: Vec<u8>) -> Result<bool, BusError> {
        let (context, subject) = (self.context.clone(), subject.to_owned());
        self.bus.block(async move {
            let sent = within(context.publish_with_headers(subject, headers, payload.into())).await?;
            match timeout(CALL_TIMEOUT, sent.into_future()).await {
                Ok(Ok(_)) => Ok(true),
                Ok(Err(problem)) if problem.kind() == PublishErrorKind::WrongLastSequence => Ok(false),
                Ok(Err(problem)) => Err(failed(&problem)),
                Err(_) => Err(BusError::Timeout),
            }
        })
    }
}

async fn within<T, E: std::fmt::Display>(
    call: impl IntoFuture<Output = Result<T, E>>,
) -> Result<T, BusError> {
    match timeout(CALL_TIMEOUT, call.into_future()).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(problem)) => Err(failed(&problem)),
        Err(_) => Err(BusError::Timeout),
    }
}

impl Store for JetStream {
    fn put_first(&self, subject: &str, payload: Vec<u8>) -> Result<bool, BusError> {
        let mut headers = HeaderMap::new();
        headers.insert(FIRST_ONLY.0, FIRST_ONLY.1);
        self.publish(subject, headers, payload)
    }

    fn put(&self, subject: &str, payload: Vec<u8>) -> Result<(), BusError> {
        self.publish(subject, HeaderMap::new(), payload).map(drop)
    }

    fn last(&self, kept: Kept, subject: &str) -> Result<Option<Bytes>, BusError> {
        let (context, subject) = (self.context.clone(), subject.to_owned());
        self.bus.block(async move {
            let stream = within(context.get_stream_no_info(kept.stream())).await?;
            match timeout(CALL_TIMEOUT, stream.get_last_raw_message_by_subject(&subject)).await {
                Ok(Ok(message)) => Ok(Some(message.payload)),
                Ok(Err(problem)) if problem.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
                Ok(Err(problem)) => Err(failed(&problem)),
                Err(_) => Err(BusError::Timeout),
            }
        })
    }

    fn watch(&self, subject: &str) -> Result<Box<dyn Watch>, BusError> {
        let (client, subject) = (self.bus.client().clone(), subject.to_owned());
        let limit = self.bus.options().connection_timeout;
        let subscriber = self.bus.block(async move {
            let subscriber = within(client.subscribe(subject)).await?;
            // What is told from here on is heard.
            match timeout(limit, round_trip(&client)).await {
                Ok(heard) => heard.map_err(|problem| failed(&problem))?,
                Err(_) => return Err(BusError::Timeout),
            }
            Ok(subscriber)
        })?;
        Ok(Box::new(Told { bus: Arc::clone(&self.bus), subscriber: Some(subscriber) }))
    }

    fn tell(&self, subject: &str) {
        let (client, subject) = (self.bus.client().clone(), subject.to_owned());
        // Who does not hear it looks by itself, later.
        drop(self.bus.block(async move { within(client.publish(subject, Bytes::new())).await }));
    }

    fn reader(&self) -> Result<Box<dyn Reader>, BusError> {
        let context = self.context.clone();
        let consumer = self.bus.block(async move {
            let stream = within(context.get_stream_no_info(REQUESTS)).await?;
            within(stream.get_consumer::<pull::Config>(CONSUMER)).await
        })?;
        Ok(Box::new(Pull { bus: Arc::clone(&self.bus), consumer }))
    }
}

struct Told {
    bus: Arc<NatsBus>,
    /// Away while it is waited for.
    subscriber: Option<Subscriber>,
}

impl Watch for Told {
    fn wait(&mut self, limit: Duration) {
        let Some(mut subscriber) = self.subscriber.take() else { return };
        let waited = self.bus.block(async move {
            // Told or not, whoever waits looks.
            drop(timeout(limit, subscriber.next()).await);
            Ok(subscriber)
        });
        self.subscriber = waited.ok();
    }
}

struct Pull {
    bus: Arc<NatsBus>,
    consumer: Consumer<pull::Config>,
}

impl Reader for Pull {
    fn next(&mut self, wait: Duration) -> Result<Option<Open>, BusError> {
        let consumer = self.consumer.clone();
        let fetched = self.bus.block(async move {
            let mut messages = within(consumer.fetch().max_messages(1).expires(wait).messages()).await?;
            match timeout(wait + CALL_TIMEOUT, messages.next()).await {
                Ok(Some(Ok(message))) => Ok(Some(message)),
                Ok(Some(Err(problem))) => Err(failed(&problem)),
                Ok(None) | Err(_) => Ok(None),
            }
        })?;
        let Some(message) = fetched else { return Ok(None) };
        let payload = message.payload.clone();
        let deliveries = message.info().map_or(1, |info| u32::try_from(info.delivered).unwrap_or(1));
        let bus = Arc::clone(&self.bus);
        let settle = move |settle| {
            bus.block(async move {
                match settle {
                    Settle::Done => within(message.double_ack()).await,
                    Settle::Later(delay) => within(message.ack_with(AckKind::Nak(Some(delay)))).await,
                    Settle::Never => within(message.ack_with(AckKind::Term)).await,
                }
            })
        };
        Ok(Some(Open { payload, deliveries, settle: Box::new(settle) }))
    }
}
