//! Row 12: a link beside the client library it is made of. One stream exported and one imported, and what
//! async-nats reaches alone against the same server: publishes with as many acks awaited at once, and a pull
//! consumer whose messages are acked. The link does more: it reads and stores every message here, synced.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::context::Context;
use async_nats::jetstream::stream::Config;
use beamlog_nats::jetstream::NatsWire;
use beamlog_nats::link::Links;
use beamlog_nats::link::rules::{LinkConfig, RuleConfig};
use beamlog_router::api::request::{Request, Response};
use beamlog_router::stream::StreamConfig;
use beamlog_router::{Router, RouterOptions, StdDisk};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

use super::{Plan, RowError};
use crate::contender::Contender;
use crate::figures::{Durability, Figures, Load, RATE};
use crate::report::{Comparison, Goal};

pub(super) const MESSAGE_BYTES: usize = 256;
/// What a link has on its way at once.
pub(super) const IN_FLIGHT: usize = 1024;
const US: &str = "link";
const ALONE: &str = "async-nats alone";
/// Longer than any of it takes.
const PATIENCE: Duration = Duration::from_secs(300);

pub fn row_12(plan: &Plan) -> Result<Vec<Comparison>, RowError> {
    let messages: u64 = if plan.quick { 20_000 } else { 200_000 };
    let load = Load { message_bytes: MESSAGE_BYTES as u64, clients: 1, in_flight: IN_FLIGHT as u64 };
    let mut exported = Comparison::new(12, "a stream exported by a link", load.clone());
    let mut imported = Comparison::new(12, "a stream imported by a link", load);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    plan.each_round(&[Contender::NatsDefault], |contender| {
        let (_theirs, server) = plan.fresh(contender)?;
        let folder = plan.folder()?;
        let url = format!("nats://{}", server.address());
        let round = runtime.block_on(round(&url, folder.path(), messages))?;
        let figures = |elapsed: Duration| {
            let mut figures = Figures::default();
            figures.set(RATE, messages as f64 / elapsed.as_secs_f64());
            figures
        };
        exported.add(ALONE, Durability::Os, figures(round.published));
        exported.add(US, Durability::Os, figures(round.exported));
        imported.add(ALONE, Durability::Memory, figures(round.consumed));
        imported.add(US, Durability::Disk, figures(round.imported));
        Ok(())
    })?;
    for comparison in [&mut exported, &mut imported] {
        comparison.ratio(RATE, US, ALONE, Goal::AtLeast(0.7));
    }
    Ok(vec![exported, imported])
}

struct Round {
    published: Duration,
    exported: Duration,
    consumed: Duration,
    imported: Duration,
}

async fn round(url: &str, folder: &Path, messages: u64) -> Result<Round, RowError> {
    let client = async_nats::connect(url).await?;
    let context = async_nats::jetstream::new(client);
    for (name, subject) in [("BASE", "base"), ("UP", "up")] {
        let config = Config { name: name.into(), subjects: vec![subject.into()], ..Config::default() };
        context.create_stream(config).await?;
    }
    let published = publish(&context, "base", messages).await?;
    let consumed = consume(&context, messages).await?;

    let wire = Arc::new(NatsWire::new());
    let router = Router::open(&folder.join("data"), Arc::new(StdDisk), &RouterOptions::default(), wire)?;
    fill(&router, messages).await?;
    let links = Links::new(router.clone());
    let rule = |stream: &str| RuleConfig { stream: Some(stream.into()), ..RuleConfig::default() };
    let link = |name: &str| LinkConfig { name: name.into(), urls: vec![url.into()], ..LinkConfig::default() };

    let start = Instant::now();
    links.add(LinkConfig { export: vec![rule("LOCAL")], ..link("export") })?;
    let exported =
        until(start, messages, async || Ok(context.get_stream("UP").await?.cached_info().state.messages))
            .await?;
    links.remove("export")?;

    let start = Instant::now();
    links.add(LinkConfig { import: vec![rule("BASE")], ..link("import") })?;
    let imported = until(start, messages, async || stored(&router, "BASE").await).await?;
    links.drain(PATIENCE).await;
    drop(links);
    tokio::task::spawn_blocking(move || router.close()).await??;
    Ok(Round { published, exported, consumed, imported })
}

pub(super) async fn publish(
    context: &Context,
    subject: &'static str,
    messages: u64,
) -> Result<Duration, RowError> {
    let payload = bytes::Bytes::from(vec![b'x'; MESSAGE_BYTES]);
    let start = Instant::now();
    let mut acks = FuturesUnordered::new();
    for _ in 0..messages {
        if acks.len() >= IN_FLIGHT {
            acks.next().await.transpose()?;
        }
        let ack = context.publish(subject, payload.clone()).await?;
        acks.push(ack.into_future());
    }
    while let Some(ack) = acks.next().await {
        ack?;
    }
    Ok(start.elapsed())
}

async fn consume(context: &Context, messages: u64) -> Result<Duration, RowError> {
    let stream = context.get_stream("BASE").await?;
    let config = pull::Config {
        durable_name: Some("alone".into()),
        ack_policy: AckPolicy::Explicit,
        max_ack_pending: 10_000,
        ..pull::Config::default()
    };
    let start = Instant::now();
    let consumer = stream.create_consumer(config).await?;
    let mut delivered = consumer.stream().max_messages_per_batch(4000).messages().await?;
    for _ in 0..messages {
        let message = delivered.next().await.ok_or("the consumer ended")??;
        message.ack().await?;
    }
    Ok(start.elapsed())
}

/// A stream here, for the export.
async fn fill(router: &Router, messages: u64) -> Result<(), RowError> {
    let config =
        StreamConfig { name: "LOCAL".into(), subjects: vec!["up".into()], ..StreamConfig::default() };
    router.request(Request::CreateStream(Box::new(config)))?.await?;
    let payload = bytes::Bytes::from(vec![b'x'; MESSAGE_BYTES]);
    let mut tickets = Vec::new();
    for _ in 0..messages {
        loop {
            match router.publish("up", "", payload.clone()) {
                Ok(ticket) => {
                    tickets.push(ticket);
                    break;
                }
                Err(beamlog_router::PublishError::Full(_)) => router.when_ready().await,
                Err(error) => return Err(error.into()),
            }
        }
    }
    for ticket in tickets {
        ticket.await.result?;
    }
    Ok(())
}

async fn stored(router: &Router, stream: &str) -> Result<u64, RowError> {
    let ask = Request::StreamInfo {
        stream: stream.into(),
        subjects_filter: None,
        offset: 0,
        deleted_details: false,
    };
    Ok(match router.request(ask)?.await {
        Ok(Response::Stream { info, .. }) => info.state.messages,
        // Not made yet.
        Ok(_) | Err(_) => 0,
    })
}

pub(super) async fn until(
    start: Instant,
    messages: u64,
    mut count: impl AsyncFnMut() -> Result<u64, RowError>,
) -> Result<Duration, RowError> {
    loop {
        if count().await? >= messages {
            return Ok(start.elapsed());
        }
        if start.elapsed() > PATIENCE {
            return Err("the link does not come to an end".into());
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
