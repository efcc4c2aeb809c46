//! What is here and what is there: both sides of every rule that stores something, looked at by a connection
//! of its own, so that a link that is paused or stuck can be compared too.

use std::time::Duration;

use beamlog_router::Router;
use beamlog_router::api::request::{Request, Response};
use serde::Serialize;

use super::connection::{self, Session};
use super::hub::{SharedHubs, Urgency};
use super::kv;
use super::missing::{self, Missing};
use super::rules::{CheckedLink, Rule};

/// How long one rule is compared.
const PATIENCE: Duration = Duration::from_secs(20);

/// Both sides of one rule.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct RuleDiff {
    pub rule: String,
    /// `None`: the stream or bucket does not exist there (or cannot be seen; then `problem` says why).
    pub here: Option<Side>,
    pub there: Option<Side>,
    /// What the sending side has and the receiving side lacks; `None` when it cannot be told.
    pub missing: Option<u64>,
    /// Some of what is missing: sequences, or keys.
    pub examples: Vec<String>,
    pub problem: Option<String>,
}

/// A stream (or the stream of a bucket) on one side.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Side {
    pub messages: u64,
    pub bytes: u64,
    pub first: u64,
    pub last: u64,
}

/// Compares every rule of a link that stores something.
pub(super) async fn compare(router: &Router, link: &CheckedLink, hubs: &SharedHubs) -> Vec<RuleDiff> {
    let session = connection::connect(&link.config, hubs, Urgency::Inward).await;
    let mut diffs = Vec::new();
    for rule in &link.rules {
        let Some((here, there)) = streams(rule) else { continue };
        let mut diff =
            RuleDiff { rule: rule.label(), here: local(router, &here).await, ..RuleDiff::default() };
        match &session {
            Ok((session, _)) => match (remote(session, there.as_deref()).await, there) {
                (Ok(side), _) => diff.there = side,
                (Err(problem), _) => diff.problem = Some(problem),
            },
            Err(error) => diff.problem = Some(error.to_string()),
        }
        if let Ok((session, _)) = &session {
            match tokio::time::timeout(PATIENCE, missing(router, session, rule)).await {
                Ok(Ok((missing, examples))) => (diff.missing, diff.examples) = (Some(missing), examples),
                Ok(Err(problem)) => diff.problem = Some(problem),
                Err(_) => diff.problem = Some("comparing takes too long".to_owned()),
            }
        }
        diffs.push(diff);
    }
    diffs
}

async fn missing(router: &Router, session: &Session, rule: &Rule) -> Result<Missing, String> {
    match rule {
        Rule::ImportStream(rule) => missing::imported(router, session, rule).await,
        Rule::ExportStream(rule) => missing::exported(router, session, rule).await,
        Rule::ImportBucket(rule) => kv::missing(router, session, rule, true).await,
        Rule::ExportBucket(rule) => kv::missing(router, session, rule, false).await,
        Rule::ImportSubject(_) | Rule::ExportSubject(_) | Rule::Requests(_) => Ok((0, Vec::new())),
    }
}

/// The streams of a rule here and there; an exported stream lands where its subjects are captured.
fn streams(rule: &Rule) -> Option<(String, Option<String>)> {
    match rule {
        Rule::ImportStream(rule) => Some((rule.target.clone(), Some(rule.stream.clone()))),
        Rule::ExportStream(rule) => Some((rule.stream.clone(), None)),
        Rule::ImportBucket(rule) => {
            Some((format!("KV_{}", rule.target), Some(format!("KV_{}", rule.bucket))))
        }
        Rule::ExportBucket(rule) => {
            Some((format!("KV_{}", rule.bucket), Some(format!("KV_{}", rule.target))))
        }
        Rule::ImportSubject(_) | Rule::ExportSubject(_) | Rule::Requests(_) => None,
    }
}

async fn local(router: &Router, stream: &str) -> Option<Side> {
    let request = Request::StreamInfo {
        stream: stream.to_owned(),
        subjects_filter: None,
        offset: 0,
        deleted_details: false,
    };
    let answer = router.request(request).ok()?.await.ok()?;
    let Response::Stream { info, .. } = answer else { return None };
    let state = &info.state;
    Some(Side {
        messages: state.messages,
        bytes: state.bytes,
        first: state.first_sequence.0,
        last: state.last_sequence.0,
    })
}

async fn remote(session: &Session, stream: Option<&str>) -> Result<Option<Side>, String> {
    let Some(stream) = stream else { return Ok(None) };
    match session.jetstream.get_stream(stream).await {
        Ok(stream) => {
            let state = &stream.cached_info().state;
            Ok(Some(Side {
                messages: state.messages,
                bytes: state.bytes,
                first: state.first_sequence,
                last: state.last_sequence,
            }))
        }
        Err(error) => Err(error.to_string()),
    }
}
