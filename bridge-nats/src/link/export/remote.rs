//! The streams that an export lands in: which there are, what of ours they have, and what they say.

use std::collections::BTreeSet;

use async_nats::StatusCode;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::RawMessageErrorKind;
use beamlog_router::subject;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, join_all};
use serde::{Deserialize, Serialize};

use crate::link::connection::Session;
use crate::link::trail::{self, StreamKey};
use crate::link::window::After;

/// Streams there that one rule may land in.
const TARGETS_MAX: usize = 64;
/// Messages at the end of a stream there that are looked at for ours.
const TAIL_MAX: u64 = 4096;
/// Without the chain, messages that were refused for a while may be this far out of order.
const MARGIN: u64 = 1024;
/// Questions on their way at once, as long as their answers are small.
const CONCURRENCY: u64 = 64;
/// Bytes of answers that may be on their way: the path may be narrow, and each question has its time.
const ANSWERS_BYTES: u64 = 128 << 10;

#[derive(Debug)]
pub(in crate::link) struct Target {
    pub(in crate::link) key: StreamKey,
    subjects: Vec<String>,
}

#[derive(Debug)]
pub(in crate::link) struct Remote {
    pub(in crate::link) targets: Vec<Target>,
}

/// What a comparison found.
#[derive(Debug, Default)]
pub(super) struct Compared {
    /// Sequences of ours that are there.
    pub(super) arrived: BTreeSet<u64>,
    /// Nobody else writes there, as far as the end of the stream tells.
    alone: bool,
    /// Its last sequence.
    last: u64,
}

impl Compared {
    /// What the next message must follow.
    pub(super) fn chain(&self) -> Option<After> {
        self.alone.then_some(After::Theirs(self.last))
    }
}

#[derive(Serialize)]
struct NamesRequest<'a> {
    subject: &'a str,
}

#[derive(Deserialize)]
struct NamesResponse {
    #[serde(default)]
    streams: Option<Vec<String>>,
}

impl Remote {
    /// The streams there that capture any of these subjects.
    ///
    /// # Errors
    /// There is none, or it may not be asked, in words.
    pub(in crate::link) async fn find(session: &Session, destinations: &[String]) -> Result<Self, String> {
        let mut names = BTreeSet::new();
        for destination in destinations {
            let asked = NamesRequest { subject: destination };
            let answer: Response<NamesResponse> = session
                .jetstream
                .request("STREAM.NAMES", &asked)
                .await
                .map_err(|error| format!("asking which streams there are: {error}"))?;
            match answer {
                Response::Ok(found) => names.extend(found.streams.unwrap_or_default()),
                Response::Err { error } => return Err(format!("asking which streams there are: {error}")),
            }
        }
        if names.is_empty() {
            return Err(format!("no stream there captures {}", destinations.join(", ")));
        }
        let mut targets = Vec::new();
        for name in names.into_iter().take(TARGETS_MAX) {
            let stream = session
                .jetstream
                .get_stream(&name)
                .await
                .map_err(|error| format!("asking for stream {name}: {error}"))?;
            let info = stream.cached_info();
            targets.push(Target {
                key: StreamKey { name, epoch: epoch(info) },
                subjects: info.config.subjects.clone(),
            });
        }
        Ok(Self { targets })
    }

    pub(super) fn captures(&self, name: &str) -> bool {
        let takes = |filter: &String| subject::matches(filter.as_bytes(), name.as_bytes());
        self.targets.iter().any(|target| target.subjects.iter().any(takes))
    }

    /// Which of the suspects, by sequence and subject there, have arrived. A message that was taken from
    /// there since cannot be found: of such a stream only its own window of ids tells.
    ///
    /// # Errors
    /// It cannot be told now, in words.
    pub(super) async fn compare(
        &self,
        session: &Session,
        key: &StreamKey,
        suspects: &[(u64, String)],
    ) -> Result<Compared, String> {
        let mut compared = Compared { alone: self.targets.len() == 1, ..Compared::default() };
        let lowest = suspects.first().map(|(sequence, _)| *sequence);
        let mut covered = true;
        for target in &self.targets {
            let name = &target.key.name;
            let explain = |error: &dyn std::fmt::Display| format!("comparing with stream {name}: {error}");
            let stream = session.jetstream.get_stream(name).await.map_err(|error| explain(&error))?;
            let state = &stream.cached_info().state;
            let (first, last) = (state.first_sequence.max(1), state.last_sequence);
            compared.last = last;
            let from = first.max(last.saturating_sub(TAIL_MAX) + 1);
            let mut complete = from == first;
            let mut at = last + 1;
            // One first: with nothing in doubt it is all there is to know.
            let (mut asking, mut largest) = (1, 1);
            'tail: while at > from {
                let begin = from.max(at.saturating_sub(asking));
                let asked: Vec<BoxFuture<'_, _>> =
                    (begin..at).rev().map(|sequence| stream.get_raw_message(sequence).boxed()).collect();
                for (sequence, message) in (begin..at).rev().zip(join_all(asked).await) {
                    if let Ok(message) = &message {
                        largest = largest.max(message.payload.len() as u64);
                    }
                    let id = match &message {
                        Ok(message) => message.headers.get(trail::MESSAGE_ID).map(|id| id.as_str()),
                        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => continue,
                        Err(error) => return Err(explain(error)),
                    };
                    let ours = id.and_then(|id| key.sequence_of(id));
                    if sequence == last && ours.is_none() {
                        compared.alone = false;
                    }
                    match (ours, lowest) {
                        // What we sent is there in order: whatever is before this one is older still.
                        (Some(ours), Some(lowest))
                            if ours + if compared.alone { 0 } else { MARGIN } < lowest =>
                        {
                            complete = true;
                            break 'tail;
                        }
                        (_, None) => {
                            complete = true;
                            break 'tail;
                        }
                        (Some(ours), Some(_)) => {
                            compared.arrived.insert(ours);
                        }
                        (None, Some(_)) => {}
                    }
                }
                at = begin;
                asking = (asking * 4).min(ANSWERS_BYTES / largest).clamp(1, CONCURRENCY);
            }
            covered &= complete;
        }
        if !covered {
            self.compare_subjects(session, key, suspects, &mut compared).await?;
        }
        Ok(compared)
    }

    /// Others wrote so much meanwhile that ours are further back: the last message of each subject tells,
    /// since ours are in order there.
    async fn compare_subjects(
        &self,
        session: &Session,
        key: &StreamKey,
        suspects: &[(u64, String)],
        compared: &mut Compared,
    ) -> Result<(), String> {
        let subjects: BTreeSet<&str> = suspects.iter().map(|(_, subject)| subject.as_str()).collect();
        for target in &self.targets {
            let name = &target.key.name;
            let stream = session
                .jetstream
                .get_stream_no_info(name)
                .await
                .map_err(|error| format!("comparing with stream {name}: {error}"))?;
            let subjects: Vec<&str> = subjects.iter().copied().collect();
            let asked =
                subjects.iter().map(|subject| stream.get_last_raw_message_by_subject(subject).boxed());
            let asked: Vec<BoxFuture<'_, _>> = asked.collect();
            for (subject, message) in subjects.iter().zip(join_all(asked).await) {
                // None is there, or it is somebody else's: our window of ids tells.
                let Ok(message) = message else { continue };
                let id = message.headers.get(trail::MESSAGE_ID).map(|id| id.as_str().to_owned());
                let Some(last) = id.and_then(|id| key.sequence_of(&id)) else { continue };
                let before = suspects.iter().filter(|(at, of)| of == *subject && *at <= last);
                compared.arrived.extend(before.map(|(at, _)| *at));
            }
        }
        Ok(())
    }
}

/// When a stream was made, in nanoseconds: what tells it from one of the same name.
pub(in crate::link) fn epoch(info: &async_nats::jetstream::stream::Info) -> u64 {
    u64::try_from(info.created.unix_timestamp_nanos()).unwrap_or(0)
}

/// What an answer to a publish says.
#[derive(Debug)]
pub(super) enum Answer {
    /// Under this sequence of theirs.
    Stored(u64),
    /// It was there before.
    Duplicate,
    NoStream,
    OutOfOrder,
    Again(String),
    Never(String),
}

/// What of an answer matters here.
#[derive(Deserialize)]
struct PublishAnswer {
    #[serde(default)]
    error: Option<async_nats::jetstream::Error>,
    #[serde(default, rename = "seq")]
    sequence: Option<u64>,
    #[serde(default)]
    duplicate: bool,
}

pub(super) fn verdict(answer: &async_nats::Message) -> Answer {
    if answer.status == Some(StatusCode::NO_RESPONDERS) {
        return Answer::NoStream;
    }
    match serde_json::from_slice::<PublishAnswer>(&answer.payload) {
        Ok(PublishAnswer { error: Some(error), .. }) => refusal(&error),
        Ok(PublishAnswer { duplicate: true, .. }) => Answer::Duplicate,
        Ok(PublishAnswer { sequence: Some(sequence), .. }) => Answer::Stored(sequence),
        Ok(_) => Answer::Again("an answer that says neither".to_owned()),
        Err(error) => Answer::Again(format!("an answer that cannot be read: {error}")),
    }
}

/// Which refusals are for ever: those that the same message would meet again whatever else changes there
/// but their configuration.
fn refusal(error: &async_nats::jetstream::Error) -> Answer {
    match error.error_code() {
        ErrorCode::STREAM_WRONG_LAST_MESSAGE_ID
        | ErrorCode::STREAM_WRONG_LAST_SEQUENCE
        | ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT => Answer::OutOfOrder,
        ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM | ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM => {
            Answer::Never(error.to_string())
        }
        _ if error.code() == 400 && is_about_the_message(error) => Answer::Never(error.to_string()),
        _ => Answer::Again(format!("refused there: {error}")),
    }
}

/// Codes without a name in the library, of messages that are malformed for that server.
fn is_about_the_message(error: &async_nats::jetstream::Error) -> bool {
    // Ours for an id that was used for other bytes; theirs for headers they cannot read, time to live,
    // roll-up, schedules, counters.
    matches!(error.error_code().0, 10_003 | 10_111 | 10_165 | 10_166 | 10_168 | 10_174 | 10_188 | 10_227)
        || u64::from(crate::jetstream::MESSAGE_ID_REUSED) == error.error_code().0
}
