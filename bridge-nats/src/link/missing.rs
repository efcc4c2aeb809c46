//! What the sending side of a stream rule has and the receiving side lacks: every message of both is looked at,
//! and told by where it came from.

use std::collections::BTreeSet;

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::push::OrderedConfig;
use async_nats::jetstream::stream::Stream;
use beamlog_router::api::error::ApiError;
use beamlog_router::api::request::{MessageSelector, Request, Response};
use beamlog_router::stream::{ORIGIN_HEADER, Provenance};
use beamlog_router::{Message, Router, Sequence, headers};
use futures_util::StreamExt;

use super::connection::Session;
use super::export::remote::{Remote, epoch};
use super::rules::{ExportStream, ImportStream, StartFrom};
use super::trail::{self, StreamKey, Trail};
use super::{dead, local, mapping};

/// Messages that a comparison names.
const EXAMPLES_MAX: usize = 10;
/// Messages of one side that are looked at.
const MESSAGES_MAX: usize = 4_000_000;

/// How many, and some of their sequences on the sending side.
pub(super) type Missing = (u64, Vec<String>);

/// Sequences that are missing.
#[derive(Default)]
struct Found {
    count: u64,
    examples: Vec<String>,
}

impl Found {
    fn add(&mut self, sequence: u64) {
        self.count += 1;
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(sequence.to_string());
        }
    }
}

pub(super) async fn imported(
    router: &Router,
    session: &Session,
    rule: &ImportStream,
) -> Result<Missing, String> {
    let (there, from) = open_there(session, &rule.stream).await?;
    let mut have = BTreeSet::new();
    let mut of_here = None;
    match local::stream(router, &rule.target).await {
        Ok(info) => {
            of_here = Some(local::key(&info));
            each_here(router, &rule.target, None, |message| {
                have.extend(origin(&message.headers, &from));
                within(&have)
            })
            .await?;
        }
        Err(ApiError::StreamNotFound) => {}
        Err(error) => return Err(format!("stream {} here: {error}", rule.target)),
    }
    put_aside(router, &from, &mut have).await?;
    // What was new when the link began is not known any more; before the first that came nothing was wanted.
    let new_from = match rule.start {
        StartFrom::New => have.first().copied().unwrap_or(u64::MAX),
        StartFrom::All | StartFrom::Sequence(_) | StartFrom::Time(_) => 0,
    };
    let mut missing = Found::default();
    each_there(session, &there, rule.filter.as_deref(), rule.start, |sequence, map| {
        let came_from_here = of_here.as_ref().is_some_and(|here| Trail::of_map(map).has_been_in(here));
        if sequence >= new_from && !came_from_here && !have.contains(&sequence) {
            missing.add(sequence);
        }
        Ok(())
    })
    .await?;
    Ok((missing.count, missing.examples))
}

pub(super) async fn exported(
    router: &Router,
    session: &Session,
    rule: &ExportStream,
) -> Result<Missing, String> {
    let info = local::stream(router, &rule.stream).await;
    let info = info.map_err(|error| format!("stream {} here: {error}", rule.stream))?;
    let from = local::key(&info);
    let destinations = match (&rule.mapping, &rule.filter) {
        (Some(mapping), _) => vec![mapping::image(&mapping.destination)],
        (None, Some(filter)) => vec![filter.clone()],
        (None, None) => info.config.subjects.clone(),
    };
    let remote = Remote::find(session, &destinations).await?;
    let mut have = BTreeSet::new();
    for target in &remote.targets {
        let (there, _) = open_there(session, &target.key.name).await?;
        each_there(session, &there, None, StartFrom::All, |_, map| {
            let id = map.and_then(|map| map.get(trail::MESSAGE_ID));
            have.extend(id.and_then(|id| from.sequence_of(id.as_str())));
            within(&have)
        })
        .await?;
    }
    put_aside(router, &from, &mut have).await?;
    let new_from = match rule.start {
        StartFrom::New => have.first().copied().unwrap_or(u64::MAX),
        StartFrom::Sequence(sequence) => sequence,
        StartFrom::All | StartFrom::Time(_) => 0,
    };
    let mut missing = Found::default();
    each_here(router, &rule.stream, rule.filter.as_deref(), |message| {
        let sequence = message.sequence.0;
        let is_early = matches!(rule.start, StartFrom::Time(time) if message.timestamp.0 < time);
        let trail = Trail::of_block(&message.headers);
        let came_from_there = remote.targets.iter().any(|target| trail.has_been_in(&target.key));
        if sequence >= new_from && !is_early && !came_from_there && !have.contains(&sequence) {
            missing.add(sequence);
        }
        Ok(())
    })
    .await?;
    Ok((missing.count, missing.examples))
}

fn within(have: &BTreeSet<u64>) -> Result<(), String> {
    if have.len() > MESSAGES_MAX { Err(format!("more than {MESSAGES_MAX} messages")) } else { Ok(()) }
}

/// The sequence in `from` of a message that a link brought.
fn origin(block: &[u8], from: &StreamKey) -> Option<u64> {
    let origin = headers::find(block, ORIGIN_HEADER.as_bytes()).and_then(Provenance::parse)?;
    (origin.stream == from.name && origin.epoch == from.epoch).then_some(origin.sequence.0)
}

/// Dead letters are not missing: somebody has been told.
pub(super) async fn put_aside(
    router: &Router,
    from: &StreamKey,
    have: &mut BTreeSet<u64>,
) -> Result<(), String> {
    match local::stream(router, dead::STREAM).await {
        Ok(_) => {
            each_here(router, dead::STREAM, None, |letter| {
                have.extend(origin(&letter.headers, from));
                within(have)
            })
            .await
        }
        Err(_none_yet) => Ok(()),
    }
}

async fn each_here(
    router: &Router,
    stream: &str,
    filter: Option<&str>,
    mut look: impl FnMut(&Message) -> Result<(), String>,
) -> Result<(), String> {
    let mut from = Sequence(1);
    loop {
        let selector = MessageSelector::NextOn { filter: filter.unwrap_or_default().to_owned(), from };
        match local::request(router, Request::GetMessage { stream: stream.to_owned(), selector }).await {
            Ok(Response::Message(message)) => {
                look(&message)?;
                from = Sequence(message.sequence.0 + 1);
            }
            Ok(_) | Err(ApiError::NoMessage) => return Ok(()),
            Err(error) => return Err(format!("reading stream {stream} here: {error}")),
        }
    }
}

async fn open_there(session: &Session, name: &str) -> Result<(Stream, StreamKey), String> {
    let stream = session.jetstream.get_stream(name).await;
    let stream = stream.map_err(|error| format!("stream {name} there: {error}"))?;
    let key = StreamKey { name: name.to_owned(), epoch: epoch(stream.cached_info()) };
    Ok((stream, key))
}

async fn each_there(
    session: &Session,
    stream: &Stream,
    filter: Option<&str>,
    start: StartFrom,
    mut look: impl FnMut(u64, Option<&HeaderMap>) -> Result<(), String>,
) -> Result<(), String> {
    let name = &stream.cached_info().config.name;
    let explain = |error: &dyn std::fmt::Display| format!("reading stream {name} there: {error}");
    let deliver_policy = match start {
        StartFrom::All | StartFrom::New => DeliverPolicy::All,
        StartFrom::Sequence(start_sequence) => DeliverPolicy::ByStartSequence { start_sequence },
        // By its sequence: the client library has no time that can be made from a number here.
        StartFrom::Time(_) => DeliverPolicy::All,
    };
    let not_before = match start {
        StartFrom::Time(nanos) => i128::from(nanos),
        StartFrom::All | StartFrom::New | StartFrom::Sequence(_) => 0,
    };
    let config = OrderedConfig {
        deliver_subject: session.client.new_inbox(),
        filter_subject: filter.unwrap_or_default().to_owned(),
        headers_only: true,
        deliver_policy,
        ..OrderedConfig::default()
    };
    let consumer = stream.create_consumer(config).await.map_err(|error| explain(&error))?;
    if consumer.cached_info().num_pending == 0 {
        return Ok(());
    }
    let mut messages = consumer.messages().await.map_err(|error| explain(&error))?;
    while let Some(message) = messages.next().await {
        let message = message.map_err(|error| explain(&error))?;
        let info = message.info().map_err(|error| explain(&error))?;
        if info.published.unix_timestamp_nanos() >= not_before {
            look(info.stream_sequence, message.headers.as_ref())?;
        }
        if info.pending == 0 {
            return Ok(());
        }
    }
    Err(explain(&"it has ended"))
}
