//! From a subject and a body to what is wanted. Pure: bytes in, a [`Call`] out, whatever the bytes are.

mod bodies;
mod consumers;
mod messages;
mod streams;
#[cfg(test)]
mod tests;

use beamlog_router::api::request::{AckKind, AckTarget, PullRequest, Request};
use beamlog_router::headers::Builder;

use super::answer::{Form, Kind, Reply};
use super::errors::ErrorBody;
use super::{ack, version};
use bodies::{empty, list};
use consumers::{Naming, create_consumer, pause};
use messages::{delete_message, direct, get_message};
use streams::{create_stream, purge, stream_info, update_stream};

/// What an API request asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    /// A question to the engine, and how its answer is spelled.
    Engine { request: Box<Request>, form: Form },
    /// A pull; messages and statuses go to the reply subject.
    Pull { stream: String, consumer: String, request: PullRequest },
    /// A client's word on a delivery.
    Ack { target: AckTarget, kind: AckKind },
    /// The answer to a flow-control message.
    FlowControl { stream: String, consumer: String, token: u64 },
    /// Refused here, with this answer.
    Reply(Reply),
    /// An ack or flow-control answer that names nothing. Nobody waits for more.
    Nothing,
}

/// Reads one request. Total over all bytes.
#[must_use]
pub fn parse_request(subject: &[u8], headers: &[u8], payload: &[u8]) -> Call {
    let Ok(subject) = std::str::from_utf8(subject) else { return unknown() };
    let mut tokens = subject.split('.');
    match (tokens.next(), tokens.next()) {
        (Some("$JS"), Some("API")) => api(&tokens.collect::<Vec<_>>(), headers, payload),
        (Some("$JS"), Some("ACK")) => match (ack::target(subject), ack::kind(payload)) {
            (Some(target), Some(kind)) => Call::Ack { target, kind },
            (Some(_) | None, _) => Call::Nothing,
        },
        (Some("$JS"), Some("FC")) => flow_control(&tokens.collect::<Vec<_>>()),
        (_, _) => unknown(),
    }
}

/// `$JS.FC.<stream>.<consumer>.<token>`, or the same behind a domain and an account.
fn flow_control(tokens: &[&str]) -> Call {
    let fields = if tokens.len() > 3 { tokens.get(2..).unwrap_or_default() } else { tokens };
    match fields {
        [stream, consumer, token] => match token.parse() {
            Ok(token) => {
                Call::FlowControl { stream: (*stream).to_owned(), consumer: (*consumer).to_owned(), token }
            }
            Err(_) => Call::Nothing,
        },
        _ => Call::Nothing,
    }
}

fn unknown() -> Call {
    refuse(Kind::System, ErrorBody::bad_request())
}

fn refuse(kind: Kind, error: ErrorBody) -> Call {
    Call::Reply(Reply::refusal(kind, &error))
}

fn status(code: u16, text: &str) -> Call {
    Call::Reply(Reply::status(Builder::status(code, text)))
}

/// Dispatches on the tokens behind `$JS.API.`.
fn api(tokens: &[&str], headers: &[u8], payload: &[u8]) -> Call {
    match tokens {
        ["DIRECT", "GET", stream, subject @ ..] => return direct(stream, subject, headers, payload),
        ["CONSUMER", "MSG", "NEXT", stream, consumer] => return next(stream, consumer, headers, payload),
        _ => {}
    }
    let Some((kind, outcome)) = json_call(tokens, payload) else { return unknown() };
    if version::level_is_missing(headers) {
        return refuse(kind, ErrorBody::required_api_level());
    }
    match outcome {
        Ok(wanted) => {
            let form = Form { kind, no_headers: wanted.no_headers, of_each: false };
            Call::Engine { request: Box::new(wanted.request), form }
        }
        Err(error) => refuse(kind, error),
    }
}

/// A request with what only its answer needs to know.
struct Wanted {
    request: Request,
    no_headers: bool,
}

impl From<Request> for Wanted {
    fn from(request: Request) -> Self {
        Self { request, no_headers: false }
    }
}

/// The requests that are answered in JSON. `None`: there is no such request.
fn json_call(tokens: &[&str], payload: &[u8]) -> Option<(Kind, Result<Wanted, ErrorBody>)> {
    Some(match tokens {
        ["INFO"] => (Kind::Account, Ok(Request::AccountInfo.into())),
        ["STREAM", "CREATE", stream] => (Kind::StreamCreate, create_stream(stream, payload)),
        ["STREAM", "UPDATE", stream] => (Kind::StreamUpdate, update_stream(stream, payload)),
        ["STREAM", "NAMES"] => (
            Kind::StreamNames,
            list(payload).map(|(subject, offset)| Request::StreamNames { subject, offset }.into()),
        ),
        ["STREAM", "LIST"] => (
            Kind::StreamList,
            list(payload).map(|(subject, offset)| Request::StreamList { subject, offset }.into()),
        ),
        ["STREAM", "INFO", stream] => (Kind::StreamInfo, stream_info(stream, payload).map_err(Into::into)),
        ["STREAM", "DELETE", stream] => (
            Kind::StreamDelete,
            empty(payload).map(|()| Request::DeleteStream { stream: (*stream).to_owned() }.into()),
        ),
        ["STREAM", "PURGE", stream] => (Kind::StreamPurge, purge(stream, payload)),
        ["STREAM", "MSG", "GET", stream] => (Kind::MessageGet, get_message(stream, payload)),
        ["STREAM", "MSG", "DELETE", stream] => (Kind::MessageDelete, delete_message(stream, payload)),
        ["CONSUMER", "CREATE", stream] => {
            (Kind::ConsumerCreate, create_consumer(&Naming::Ephemeral { stream }, payload))
        }
        ["CONSUMER", "CREATE", stream, consumer, filter @ ..] => {
            let filter = filter.join(".");
            let naming = Naming::Named { stream, consumer, filter: &filter };
            (Kind::ConsumerCreate, create_consumer(&naming, payload))
        }
        ["CONSUMER", "DURABLE", "CREATE", stream, consumer] => {
            (Kind::ConsumerCreate, create_consumer(&Naming::Durable { stream, consumer }, payload))
        }
        ["CONSUMER", "DURABLE", "CREATE", ..] => {
            let text = "consumer expected to be durable but no durable name set in subject";
            (Kind::ConsumerCreate, Err(ErrorBody::new(400, 10016, text)))
        }
        ["CONSUMER", "NAMES", stream] => (
            Kind::ConsumerNames,
            list(payload)
                .map(|(_, offset)| Request::ConsumerNames { stream: (*stream).to_owned(), offset }.into()),
        ),
        ["CONSUMER", "LIST", stream] => (
            Kind::ConsumerList,
            list(payload)
                .map(|(_, offset)| Request::ConsumerList { stream: (*stream).to_owned(), offset }.into()),
        ),
        ["CONSUMER", "INFO", stream, consumer] => (
            Kind::ConsumerInfo,
            empty(payload).map(|()| {
                let (stream, consumer) = ((*stream).to_owned(), (*consumer).to_owned());
                Request::ConsumerInfo { stream, consumer }.into()
            }),
        ),
        ["CONSUMER", "DELETE", stream, consumer] => (
            Kind::ConsumerDelete,
            empty(payload).map(|()| {
                let (stream, consumer) = ((*stream).to_owned(), (*consumer).to_owned());
                Request::DeleteConsumer { stream, consumer }.into()
            }),
        ),
        ["CONSUMER", "PAUSE", stream, consumer] => {
            (Kind::ConsumerPause, pause(stream, consumer, payload).map_err(Into::into))
        }
        tokens => {
            let (kind, error) = not_done(tokens)?;
            (kind, Err(error))
        }
    })
}

/// What nats-server does and this router does not: refused by name, never met with silence.
fn not_done(tokens: &[&str]) -> Option<(Kind, ErrorBody)> {
    Some(match tokens {
        ["STREAM", "SNAPSHOT", _] => {
            (Kind::StreamSnapshot, ErrorBody::new(500, 10064, "snapshot failed: not supported"))
        }
        ["STREAM", "RESTORE", _] => {
            (Kind::StreamRestore, ErrorBody::new(500, 10062, "restore failed: not supported"))
        }
        ["CONSUMER", "UNPIN", _, _] => {
            let text = "Provided priority group does not exist for this consumer";
            (Kind::ConsumerUnpin, ErrorBody::new(400, 10160, text))
        }
        ["CONSUMER", "RESET", _, _] => {
            (Kind::ConsumerReset, ErrorBody::new(400, 10204, "invalid reset: not supported"))
        }
        ["STREAM", "LEADER", "STEPDOWN", _] => (Kind::StreamLeaderStepDown, ErrorBody::cluster_required()),
        ["STREAM", "PEER", "REMOVE", _] => (Kind::StreamRemovePeer, ErrorBody::cluster_required()),
        ["STREAM", "PEER", "EVACUATE", _] => (Kind::StreamEvacuatePeer, ErrorBody::cluster_required()),
        ["STREAM", "CANCEL_MOVE", _] => (Kind::StreamCancelMove, ErrorBody::cluster_required()),
        ["CONSUMER", "LEADER", "STEPDOWN", _, _] => {
            (Kind::ConsumerLeaderStepDown, ErrorBody::cluster_required())
        }
        ["META", "LEADER", "STEPDOWN"] => (Kind::MetaLeaderStepDown, ErrorBody::cluster_required()),
        ["SERVER", "REMOVE"] => (Kind::MetaServerRemove, ErrorBody::cluster_required()),
        ["ACCOUNT", "PURGE", _] => (Kind::AccountPurge, ErrorBody::cluster_required()),
        _ => return None,
    })
}

fn next(stream: &str, consumer: &str, headers: &[u8], payload: &[u8]) -> Call {
    if version::level_is_missing(headers) {
        return status(412, "Required Api Level");
    }
    match ack::pull(payload) {
        Ok(request) => Call::Pull { stream: stream.to_owned(), consumer: consumer.to_owned(), request },
        Err(reason) => status(400, &format!("Bad Request - {reason}")),
    }
}
