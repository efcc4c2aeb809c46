//! The dead-letter stream: messages that the other side, or this one, takes never. Each with the reason, so
//! that the link goes on and nothing disappears.

use std::time::Duration;

use beamlog_router::api::error::ApiError;
use beamlog_router::api::request::{Request, Response};
use beamlog_router::stream::{ORIGIN_HEADER, Provenance, StreamConfig};
use beamlog_router::{Router, StreamPublish, headers};
use bytes::Bytes;

use super::local;

/// Where messages are put aside.
pub(crate) const STREAM: &str = "LINK_DEAD_LETTERS";
/// Followed by the name of the link.
const SUBJECT: &str = "$LINK.DEAD";
/// Bytes of dead letters that are kept: the oldest go first.
const BYTES_MAX: u64 = 1 << 30;
/// How often it is tried.
const ATTEMPTS: u32 = 5;

/// A message that nobody takes.
#[derive(Debug)]
pub(crate) struct Letter<'a> {
    pub(crate) link: &'a str,
    pub(crate) subject: &'a [u8],
    pub(crate) headers: &'a [u8],
    pub(crate) payload: &'a Bytes,
    pub(crate) reason: &'a str,
    /// Whose message it is: a letter that was put aside before is not put aside again.
    pub(crate) from: &'a Provenance,
}

/// Puts a message aside; it is durable on return.
///
/// # Errors
/// Why it could not be, in words.
pub(crate) async fn park(router: &Router, letter: &Letter<'_>) -> Result<(), String> {
    let mut block = headers::Builder::append_to(&headers::without(letter.headers, |name| {
        name == ORIGIN_HEADER.as_bytes() || name.starts_with(b"Nats-")
    }));
    block = block
        .header("Beamlog-Dead-Reason", letter.reason)
        .header("Beamlog-Dead-Subject", letter.subject)
        .header(ORIGIN_HEADER, letter.from.to_header());
    let block: Bytes = block.finish().into();
    let mut cause = String::new();
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            tokio::time::sleep(Duration::from_millis(100 << attempt)).await;
        }
        let info = match ensure(router).await {
            Ok(info) => info,
            Err(error) => {
                cause = format!("the stream of dead letters: {error}");
                continue;
            }
        };
        let publish = StreamPublish {
            stream: info,
            subject: format!("{SUBJECT}.{}", letter.link).into(),
            reply: Bytes::new(),
            headers: block.clone(),
            payload: letter.payload.clone(),
        };
        let outcome = local::store(router, publish).await;
        match outcome.result {
            Ok(published) if published.sequence().is_some() => return Ok(()),
            Ok(_) => cause = "the dead letter waits for a batch".to_owned(),
            Err(error) => cause = format!("the stream of dead letters: {error}"),
        }
    }
    Err(cause)
}

async fn ensure(router: &Router) -> Result<beamlog_router::StreamId, ApiError> {
    if let Ok(info) = local::stream(router, STREAM).await {
        return Ok(info.id);
    }
    let config = StreamConfig {
        name: STREAM.into(),
        subjects: vec![format!("{SUBJECT}.>")],
        max_bytes: Some(BYTES_MAX),
        ..StreamConfig::default()
    };
    let made = local::request(router, Request::CreateStream(Box::new(config))).await?;
    if let Response::Stream { info, .. } = made { Ok(info.id) } else { Err(ApiError::BadRequest) }
}
