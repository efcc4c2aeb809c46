//! From a subject and a body to what is wanted. Pure: bytes in, a [`Call`] out, whatever the bytes are.

use std::ops::Bound;

use beamlog_router::Sequence;
use beamlog_router::api::request::{
    AckKind, AckTarget, BatchSelector, ConsumerAction, MessageSelector, PullRequest, Purge, Request,
};
use beamlog_router::headers::Builder;

use super::answer::{Form, Kind, Reply};
use super::consumer_config;
use super::errors::ErrorBody;
use super::json::{Fields, Malformed};
use super::{ack, stream_config, version};

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

fn create_stream(stream: &str, payload: &[u8]) -> Result<Wanted, ErrorBody> {
    let config = stream_config::read(payload)?;
    check_stream_name(stream, &config.name)?;
    if config.sealed {
        return Err(ErrorBody::stream_config("stream configuration for create can not be sealed"));
    }
    if config.mirror_direct {
        return Err(ErrorBody::stream_config("stream has no mirror but does have mirror direct"));
    }
    Ok(Request::CreateStream(Box::new(config)).into())
}

fn update_stream(stream: &str, payload: &[u8]) -> Result<Wanted, ErrorBody> {
    let config = stream_config::read(payload)?;
    check_stream_name(stream, &config.name)?;
    Ok(Request::UpdateStream(Box::new(config)).into())
}

fn check_stream_name(in_subject: &str, in_config: &str) -> Result<(), ErrorBody> {
    if in_subject != in_config {
        return Err(ErrorBody::new(400, 10056, "stream name in subject does not match request"));
    }
    if in_subject.contains(['/', '\\']) {
        return Err(ErrorBody::path_separators_in_stream());
    }
    Ok(())
}

/// The body of list requests: a filter and where to begin. What is no object is no body.
fn list(payload: &[u8]) -> Result<(Option<String>, usize), ErrorBody> {
    let Some(mut fields) = object_or_nothing(payload)? else { return Ok((None, 0)) };
    let subject = fields.string("subject")?;
    let offset = offset(&mut fields)?;
    fields.finish()?;
    Ok(((!subject.is_empty()).then_some(subject), offset))
}

fn offset(fields: &mut Fields) -> Result<usize, Malformed> {
    Ok(usize::try_from(fields.signed("offset")?).unwrap_or(0))
}

/// Some requests take a body that is an object (or an array, which is an error), and overlook others.
fn object_or_nothing(payload: &[u8]) -> Result<Option<Fields>, Malformed> {
    match payload.trim_ascii_start().first() {
        Some(b'{' | b'[') => Fields::parse(payload).map(Some),
        Some(_) | None => Ok(None),
    }
}

/// For requests that want no body: nothing, or an object without members.
fn empty(payload: &[u8]) -> Result<(), ErrorBody> {
    let is_empty = payload.is_empty() || is_empty_object(payload);
    if is_empty { Ok(()) } else { Err(ErrorBody::not_empty_request()) }
}

fn is_empty_object(payload: &[u8]) -> bool {
    let starts = payload.trim_ascii_start().first() == Some(&b'{');
    starts && Fields::parse(payload).is_ok_and(|fields| fields.finish().is_ok())
}

fn stream_info(stream: &str, payload: &[u8]) -> Result<Wanted, Malformed> {
    let mut request = (None, 0, false);
    if let Some(mut fields) = object_or_nothing(payload)? {
        let filter = fields.string("subjects_filter")?;
        let offset = offset(&mut fields)?;
        request = ((!filter.is_empty()).then_some(filter), offset, fields.boolean("deleted_details")?);
        fields.finish()?;
    }
    let (subjects_filter, offset, deleted_details) = request;
    Ok(Request::StreamInfo { stream: stream.to_owned(), subjects_filter, offset, deleted_details }.into())
}

fn purge(stream: &str, payload: &[u8]) -> Result<Wanted, ErrorBody> {
    let mut purge = Purge::default();
    if let Some(mut fields) = object_or_nothing(payload)? {
        let (before, keep) = (fields.unsigned("seq")?, fields.unsigned("keep")?);
        purge.filter = fields.string("filter")?;
        fields.finish()?;
        if before > 0 && keep > 0 {
            return Err(ErrorBody::bad_request());
        }
        purge.before = (before > 0).then_some(Sequence(before));
        purge.keep = (keep > 0).then_some(keep);
    }
    Ok(Request::PurgeStream { stream: stream.to_owned(), purge }.into())
}

/// The members that message and direct gets share.
#[derive(Debug, Default)]
struct Get {
    sequence: u64,
    last_on: String,
    next_on: String,
    start: Option<beamlog_router::Timestamp>,
    batch: i64,
    max_bytes: i64,
    last_of_each: Vec<String>,
    up_to: u64,
    up_to_time: Option<beamlog_router::Timestamp>,
    no_headers: bool,
}

impl Get {
    fn read(fields: &mut Fields) -> Result<Self, Malformed> {
        Ok(Self {
            sequence: fields.unsigned("seq")?,
            last_on: fields.string("last_by_subj")?,
            next_on: fields.string("next_by_subj")?,
            start: fields.time("start_time")?,
            batch: fields.signed("batch")?,
            max_bytes: fields.signed("max_bytes")?,
            last_of_each: fields.strings("multi_last")?,
            up_to: fields.unsigned("up_to_seq")?,
            up_to_time: fields.time("up_to_time")?,
            no_headers: fields.boolean("no_hdr")?,
        })
    }

    /// Sequence, last-by-subject and start time exclude each other; next-by-subject goes with the first
    /// and the third.
    fn contradicts(&self) -> bool {
        let (by_sequence, by_last, by_time) =
            (self.sequence > 0, !self.last_on.is_empty(), self.start.is_some());
        let starts = [by_sequence, by_last, by_time].iter().filter(|given| **given).count();
        starts > 1 || (by_last && !self.next_on.is_empty())
    }

    fn is_empty(&self) -> bool {
        self.sequence == 0 && self.last_on.is_empty() && self.next_on.is_empty() && self.start.is_none()
    }

    /// The one message that is meant.
    fn selector(self) -> MessageSelector {
        if let Some(time) = self.start {
            MessageSelector::NextAfter { filter: self.next_on, time }
        } else if !self.next_on.is_empty() {
            MessageSelector::NextOn { filter: self.next_on, from: Sequence(self.sequence.max(1)) }
        } else if self.sequence > 0 {
            MessageSelector::At(Sequence(self.sequence))
        } else {
            MessageSelector::LastOn(self.last_on)
        }
    }
}

fn get_message(stream: &str, payload: &[u8]) -> Result<Wanted, ErrorBody> {
    if payload.is_empty() || is_empty_object(payload) {
        return Err(ErrorBody::bad_request());
    }
    let mut fields = Fields::parse(payload)?;
    let get = Get::read(&mut fields)?;
    fields.finish()?;
    if get.batch > 0 || get.max_bytes > 0 || get.contradicts() || get.is_empty() {
        return Err(ErrorBody::bad_request());
    }
    let no_headers = get.no_headers;
    let request = Request::GetMessage { stream: stream.to_owned(), selector: get.selector() };
    Ok(Wanted { request, no_headers })
}

fn delete_message(stream: &str, payload: &[u8]) -> Result<Wanted, ErrorBody> {
    if payload.is_empty() || is_empty_object(payload) {
        return Err(ErrorBody::bad_request());
    }
    let mut fields = Fields::parse(payload)?;
    let (sequence, no_erase) = (fields.unsigned("seq")?, fields.boolean("no_erase")?);
    fields.finish()?;
    let sequence = Sequence(sequence);
    Ok(Request::DeleteMessage { stream: stream.to_owned(), sequence, erase: !no_erase }.into())
}

/// How the subject of a create request names the consumer.
enum Naming<'a> {
    /// Not at all: the body may.
    Ephemeral {
        stream: &'a str,
    },
    /// The old form for durables.
    Durable {
        stream: &'a str,
        consumer: &'a str,
    },
    Named {
        stream: &'a str,
        consumer: &'a str,
        filter: &'a str,
    },
}

fn create_consumer(naming: &Naming<'_>, payload: &[u8]) -> Result<Wanted, ErrorBody> {
    let mut fields = Fields::parse(payload)?;
    let stream_name = fields.string("stream_name")?;
    let action = match fields.string("action")?.as_str() {
        "" => ConsumerAction::CreateOrUpdate,
        "create" => ConsumerAction::Create,
        "update" => ConsumerAction::Update,
        other => return Err(ErrorBody::invalid_json(format!("unknown consumer action: {other:?}"))),
    };
    fields.boolean("pedantic")?;
    let config = fields.object("config")?;
    fields.finish()?;
    let mut config = config.unwrap_or_default();
    let sent = consumer_config::read(&mut config)?;
    config.finish()?;

    let (stream, in_subject) = match naming {
        Naming::Ephemeral { stream } => (*stream, ""),
        Naming::Durable { stream, consumer } | Naming::Named { stream, consumer, .. } => (*stream, *consumer),
    };
    if stream != stream_name {
        return Err(ErrorBody::new(400, 10056, "stream name in subject does not match request"));
    }
    let mut sent = sent?;
    let name = if in_subject.is_empty() { sent.config.name.as_str() } else { in_subject };
    if name.contains(['/', '\\']) {
        return Err(ErrorBody::path_separators_in_consumer());
    }
    let durable_differs = in_subject != sent.durable_name;
    let mismatch = "consumer name in subject does not match durable name in request";
    match naming {
        Naming::Ephemeral { .. } if !sent.durable_name.is_empty() => {
            let text = "consumer expected to be ephemeral but a durable name was set in request";
            return Err(ErrorBody::new(400, 10020, text));
        }
        Naming::Ephemeral { .. } => {}
        Naming::Durable { .. } if sent.durable_name.is_empty() => {
            let text = "consumer expected to be durable but a durable name was not set";
            return Err(ErrorBody::new(400, 10018, text));
        }
        Naming::Durable { .. } if durable_differs => return Err(ErrorBody::new(400, 10017, mismatch)),
        Naming::Durable { .. } => {}
        Naming::Named { .. } if durable_differs && !sent.durable_name.is_empty() => {
            return Err(ErrorBody::new(400, 10017, mismatch));
        }
        Naming::Named { filter, .. } => check_filter(filter, &sent)?,
    }
    if !in_subject.is_empty() {
        in_subject.clone_into(&mut sent.config.name);
    }
    let config = Box::new(sent.config);
    Ok(Request::CreateConsumer { stream: stream.to_owned(), config, action }.into())
}

/// A filter in the subject must be the one in the body: permissions are given on the subject.
fn check_filter(in_subject: &str, sent: &consumer_config::Sent) -> Result<(), ErrorBody> {
    if in_subject.is_empty() {
        return Ok(());
    }
    if sent.config.filters_as_list {
        let text = "consumer with multiple subject filters cannot use subject based API";
        return Err(ErrorBody::new(400, 10137, text));
    }
    if sent.filter_subject != in_subject {
        let text = "Consumer create request did not match filtered subject from create subject";
        return Err(ErrorBody::new(400, 10131, text));
    }
    Ok(())
}

fn pause(stream: &str, consumer: &str, payload: &[u8]) -> Result<Wanted, Malformed> {
    let mut until = None;
    if let Some(mut fields) = object_or_nothing(payload)? {
        until = fields.time("pause_until")?;
        fields.finish()?;
    }
    Ok(Request::PauseConsumer { stream: stream.to_owned(), consumer: consumer.to_owned(), until }.into())
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

/// Direct get: answered by raw messages and statuses, and lenient with what it does not know.
fn direct(stream: &str, subject: &[&str], headers: &[u8], payload: &[u8]) -> Call {
    if version::level_is_missing(headers) {
        return status(412, "Required Api Level");
    }
    let by_subject = !subject.is_empty();
    if payload.is_empty() && !by_subject {
        return status(408, "Empty Request");
    }
    let Ok(get) = Fields::parse(payload).and_then(|mut fields| Get::read(&mut fields)) else {
        return status(408, "Malformed Request");
    };
    if by_subject {
        let key = subject.join(".");
        let other = !get.is_empty() || !get.last_of_each.is_empty() || get.batch != 0;
        if key.is_empty() || other || get.up_to != 0 || get.up_to_time.is_some() {
            return status(408, "Bad Request");
        }
        let form = Form { kind: Kind::Direct, no_headers: get.no_headers, of_each: false };
        let selector = MessageSelector::LastOn(key);
        return Call::Engine {
            request: Box::new(Request::DirectGet { stream: stream.to_owned(), selector }),
            form,
        };
    }
    if get.is_empty() && get.last_of_each.is_empty() {
        return status(408, "Empty Request");
    }
    let multiple = !get.last_of_each.is_empty();
    if get.contradicts()
        || (!get.last_on.is_empty() && (get.batch > 0 || multiple))
        || (!get.next_on.is_empty() && multiple)
        || (get.up_to > 0 && get.up_to_time.is_some())
        // A lower bound for the last of each subject is not something the router can say.
        || (multiple && (get.sequence > 0 || get.start.is_some()))
    {
        return status(408, "Bad Request");
    }
    let form = Form { kind: Kind::Direct, no_headers: get.no_headers, of_each: multiple };
    let batch = u32::try_from(get.batch).unwrap_or(0);
    let max_bytes = u64::try_from(get.max_bytes).ok().filter(|&bytes| bytes > 0);
    let stream = stream.to_owned();
    let request = if multiple {
        let up_to = if get.up_to > 0 { Bound::Included(Sequence(get.up_to)) } else { Bound::Unbounded };
        let selector =
            BatchSelector::LastOfEach { filters: get.last_of_each, up_to, up_to_time: get.up_to_time };
        // 0 is "all there are", which the router bounds.
        Request::DirectGetBatch { stream, selector, batch, max_bytes }
    } else if batch > 0 {
        let from = Sequence(get.sequence.max(1));
        let selector = BatchSelector::Next { filter: get.next_on, from, from_time: get.start };
        Request::DirectGetBatch { stream, selector, batch, max_bytes }
    } else {
        Request::DirectGet { stream, selector: get.selector() }
    };
    Call::Engine { request: Box::new(request), form }
}

#[cfg(test)]
mod tests {
    use beamlog_router::Timestamp;
    use beamlog_router::consumer::DeliverPolicy;

    use super::*;

    fn call(subject: &str, payload: &str) -> Call {
        parse_request(subject.as_bytes(), b"", payload.as_bytes())
    }

    fn request(subject: &str, payload: &str) -> Request {
        let Call::Engine { request, .. } = call(subject, payload) else {
            panic!("{subject} {payload}: refused or elsewhere")
        };
        *request
    }

    fn refusal(subject: &str, payload: &str) -> (u64, serde_json::Value) {
        let Call::Reply(reply) = call(subject, payload) else { panic!("{subject} {payload}: accepted") };
        assert!(reply.is_error && reply.headers.is_empty());
        let document: serde_json::Value = serde_json::from_str(&reply.payload).unwrap();
        (document["error"]["err_code"].as_u64().unwrap(), document)
    }

    fn status_of(subject: &str, headers: &str, payload: &str) -> String {
        let Call::Reply(reply) = parse_request(subject.as_bytes(), headers.as_bytes(), payload.as_bytes())
        else {
            panic!("{subject} {payload}: accepted")
        };
        String::from_utf8(reply.headers).unwrap().replace("\r\n", "")
    }

    fn named(stream: &str) -> String {
        stream.to_owned()
    }

    #[test]
    fn each_subject_asks_its_question() {
        assert_eq!(request("$JS.API.INFO", "x"), Request::AccountInfo);
        let names =
            |subject: Option<&str>, offset| Request::StreamNames { subject: subject.map(named), offset };
        assert_eq!(request("$JS.API.STREAM.NAMES", ""), names(None, 0));
        assert_eq!(request("$JS.API.STREAM.NAMES", "x"), names(None, 0));
        assert_eq!(request("$JS.API.STREAM.NAMES", r#"{"subject":"a","offset":3}"#), names(Some("a"), 3));
        assert_eq!(request("$JS.API.STREAM.NAMES", r#"{"offset":-3}"#), names(None, 0));
        assert_eq!(request("$JS.API.STREAM.DELETE.S", " {} "), Request::DeleteStream { stream: named("S") });
        let consumer = Request::ConsumerInfo { stream: named("S"), consumer: named("c") };
        assert_eq!(request("$JS.API.CONSUMER.INFO.S.c", ""), consumer);
        assert_eq!(
            request("$JS.API.STREAM.PURGE.S", r#"{"filter":"a.*","keep":2}"#),
            Request::PurgeStream {
                stream: named("S"),
                purge: Purge { filter: named("a.*"), before: None, keep: Some(2) }
            }
        );
        assert_eq!(
            request("$JS.API.STREAM.INFO.S", r#"{"subjects_filter":">","offset":5,"deleted_details":true}"#),
            Request::StreamInfo {
                stream: named("S"),
                subjects_filter: Some(named(">")),
                offset: 5,
                deleted_details: true
            }
        );
        assert_eq!(
            request("$JS.API.STREAM.MSG.DELETE.S", r#"{"seq":7,"no_erase":true}"#),
            Request::DeleteMessage { stream: named("S"), sequence: Sequence(7), erase: false }
        );
        assert_eq!(
            request("$JS.API.CONSUMER.PAUSE.S.c", r#"{"pause_until":"1970-01-01T00:00:01Z"}"#),
            Request::PauseConsumer {
                stream: named("S"),
                consumer: named("c"),
                until: Some(Timestamp(1_000_000_000))
            }
        );
    }

    #[test]
    fn messages_are_selected_in_all_the_ways_there_are() {
        for (body, selector) in [
            (r#"{"seq":2}"#, MessageSelector::At(Sequence(2))),
            (r#"{"last_by_subj":"a"}"#, MessageSelector::LastOn(named("a"))),
            (
                r#"{"next_by_subj":"a.>"}"#,
                MessageSelector::NextOn { filter: named("a.>"), from: Sequence(1) },
            ),
            (
                r#"{"next_by_subj":"a.>","seq":4}"#,
                MessageSelector::NextOn { filter: named("a.>"), from: Sequence(4) },
            ),
            (
                r#"{"start_time":"1970-01-01T00:00:00.000000009Z"}"#,
                MessageSelector::NextAfter { filter: String::new(), time: Timestamp(9) },
            ),
        ] {
            let get = Request::GetMessage { stream: named("S"), selector: selector.clone() };
            assert_eq!(request("$JS.API.STREAM.MSG.GET.S", body), get, "{body}");
            let direct = Request::DirectGet { stream: named("S"), selector };
            assert_eq!(request("$JS.API.DIRECT.GET.S", body), direct, "{body}");
        }
        for body in ["", "{}", r#"{"seq":1,"last_by_subj":"x"}"#, r#"{"seq":1,"batch":2}"#, r#"{"seq":0}"#] {
            assert_eq!(refusal("$JS.API.STREAM.MSG.GET.S", body).0, 10003, "{body}");
        }
        assert_eq!(
            request("$JS.API.DIRECT.GET.S.a.b", ""),
            Request::DirectGet { stream: named("S"), selector: MessageSelector::LastOn(named("a.b")) }
        );
    }

    #[test]
    fn direct_gets_that_say_nothing_or_too_much_are_told_so_by_status() {
        for (subject, body, status) in [
            ("$JS.API.DIRECT.GET.S", "", "NATS/1.0 408 Empty Request"),
            ("$JS.API.DIRECT.GET.S", "{}", "NATS/1.0 408 Empty Request"),
            ("$JS.API.DIRECT.GET.S", "x", "NATS/1.0 408 Malformed Request"),
            ("$JS.API.DIRECT.GET.S", r#"{"seq":1,"last_by_subj":"a"}"#, "NATS/1.0 408 Bad Request"),
            ("$JS.API.DIRECT.GET.S", r#"{"last_by_subj":"a","batch":2}"#, "NATS/1.0 408 Bad Request"),
            ("$JS.API.DIRECT.GET.S.a", r#"{"seq":1}"#, "NATS/1.0 408 Bad Request"),
        ] {
            assert_eq!(status_of(subject, "", body), status, "{body}");
        }
        // Members nobody knows are overlooked here, unlike everywhere else.
        let lenient = call("$JS.API.DIRECT.GET.S", r#"{"seq":1,"x":2}"#);
        assert!(matches!(lenient, Call::Engine { .. }), "{lenient:?}");
    }

    #[test]
    fn batches_are_asked_for_by_sequence_or_by_subject() {
        let batch = |selector, batch, max_bytes| Request::DirectGetBatch {
            stream: named("S"),
            selector,
            batch,
            max_bytes,
        };
        let from = |filter, from| BatchSelector::Next {
            filter: named(filter),
            from: Sequence(from),
            from_time: None,
        };
        let subject = "$JS.API.DIRECT.GET.S";
        assert_eq!(request(subject, r#"{"seq":3,"batch":2}"#), batch(from("", 3), 2, None));
        assert_eq!(
            request(subject, r#"{"next_by_subj":"a","batch":2,"max_bytes":9}"#),
            batch(from("a", 1), 2, Some(9))
        );
        let each = |up_to| BatchSelector::LastOfEach { filters: vec![named("a.>")], up_to, up_to_time: None };
        assert_eq!(request(subject, r#"{"multi_last":["a.>"]}"#), batch(each(Bound::Unbounded), 0, None));
        assert_eq!(
            request(subject, r#"{"multi_last":["a.>"],"up_to_seq":5,"batch":1}"#),
            batch(each(Bound::Included(Sequence(5))), 1, None)
        );
    }

    #[test]
    fn consumers_are_created_in_three_forms() {
        let name_of = |subject: &str, body: &str| {
            let Request::CreateConsumer { config, .. } = request(subject, body) else { panic!("{subject}") };
            (config.name.clone(), config.durable)
        };
        let body = |config: &str| format!(r#"{{"stream_name":"S","config":{{{config}}}}}"#);
        let durable = (named("d"), true);
        assert_eq!(name_of("$JS.API.CONSUMER.CREATE.S", &body("")), (String::new(), false));
        assert_eq!(name_of("$JS.API.CONSUMER.CREATE.S", &body(r#""name":"n""#)), (named("n"), false));
        assert_eq!(name_of("$JS.API.CONSUMER.CREATE.S.n", &body("")), (named("n"), false));
        assert_eq!(name_of("$JS.API.CONSUMER.CREATE.S.d", &body(r#""durable_name":"d""#)), durable);
        assert_eq!(name_of("$JS.API.CONSUMER.DURABLE.CREATE.S.d", &body(r#""durable_name":"d""#)), durable);
        let filtered = request(
            "$JS.API.CONSUMER.CREATE.S.n.a.*",
            &body(r#""filter_subject":"a.*","deliver_policy":"last""#),
        );
        let Request::CreateConsumer { config, action, .. } = filtered else { panic!("{filtered:?}") };
        assert_eq!(config.filter_subjects, [named("a.*")]);
        assert_eq!((config.deliver_policy, action), (DeliverPolicy::Last, ConsumerAction::CreateOrUpdate));
    }

    #[test]
    fn a_name_that_contradicts_its_subject_is_refused_with_nats_servers_code() {
        let body = |config: &str| format!(r#"{{"stream_name":"S","config":{{{config}}}}}"#);
        for (subject, config, code) in [
            ("CREATE.S", r#""durable_name":"d""#, 10020),
            ("CREATE.S.x", r#""durable_name":"d""#, 10017),
            ("CREATE.T.x", "", 10056),
            ("CREATE.S.x/y", "", 10127),
            ("DURABLE.CREATE.S.d", "", 10018),
            ("DURABLE.CREATE.S.d", r#""durable_name":"e""#, 10017),
            ("DURABLE.CREATE.S", "", 10016),
            ("CREATE.S.x.a", r#""filter_subject":"b""#, 10131),
            ("CREATE.S.x.a", r#""filter_subjects":["a"]"#, 10137),
            ("CREATE.S.x", r#""bogus":1"#, 10025),
        ] {
            assert_eq!(
                refusal(&format!("$JS.API.CONSUMER.{subject}"), &body(config)).0,
                code,
                "{subject} {config}"
            );
        }
        let action = r#"{"stream_name":"S","action":"zip","config":{}}"#;
        let (code, document) = refusal("$JS.API.CONSUMER.CREATE.S.x", action);
        assert_eq!(code, 10025);
        assert_eq!(document["error"]["description"], "invalid JSON: unknown consumer action: \"zip\"");
    }

    #[test]
    fn streams_are_refused_at_the_door_for_what_the_subject_decides() {
        for (subject, body, code) in [
            ("CREATE.A", "", 10056),
            ("CREATE.A", r#"{"name":"B"}"#, 10056),
            ("CREATE.A/b", r#"{"name":"A/b"}"#, 10128),
            ("CREATE.A", r#"{"name":"A","sealed":true}"#, 10052),
            ("CREATE.A", r#"{"name":"A","mirror_direct":true}"#, 10052),
            ("UPDATE.A", r#"{"name":"B"}"#, 10056),
            ("DELETE.A", "x", 10038),
            ("PURGE.A", r#"{"seq":1,"keep":1}"#, 10003),
            ("MSG.DELETE.A", "", 10003),
            ("INFO.A", r#"{"x":1}"#, 10025),
            ("INFO.A", "[]", 10025),
        ] {
            assert_eq!(refusal(&format!("$JS.API.STREAM.{subject}"), body).0, code, "{subject} {body}");
        }
    }

    #[test]
    fn what_is_not_done_is_refused_and_never_met_with_silence() {
        for (subject, code, kind) in [
            ("NOPE", 10003, "system_response"),
            ("STREAM.CREATE.A.B", 10003, "system_response"),
            ("STREAM.TEMPLATE.NAMES", 10003, "system_response"),
            ("STREAM.SNAPSHOT.A", 10064, "stream_snapshot_response"),
            ("STREAM.RESTORE.A", 10062, "stream_restore_response"),
            ("STREAM.LEADER.STEPDOWN.A", 10010, "stream_leader_stepdown_response"),
            ("STREAM.PEER.REMOVE.A", 10010, "stream_remove_peer_response"),
            ("CONSUMER.LEADER.STEPDOWN.A.c", 10010, "consumer_leader_stepdown_response"),
            ("CONSUMER.UNPIN.A.c", 10160, "consumer_unpin_response"),
            ("CONSUMER.RESET.A.c", 10204, "consumer_reset_response"),
            ("META.LEADER.STEPDOWN", 10010, "meta_leader_stepdown_response"),
            ("ACCOUNT.PURGE.A", 10010, "account_purge_response"),
        ] {
            let (told, document) = refusal(&format!("$JS.API.{subject}"), "");
            assert_eq!(told, code, "{subject}");
            assert_eq!(document["type"], format!("io.nats.jetstream.api.v1.{kind}"));
        }
    }

    #[test]
    fn a_level_we_do_not_have_is_refused_before_anything_else() {
        let headers = "NATS/1.0\r\nNats-Required-Api-Level: 99\r\n\r\n";
        let Call::Reply(reply) = parse_request(b"$JS.API.CONSUMER.INFO.S.c", headers.as_bytes(), b"") else {
            panic!("accepted")
        };
        assert!(reply.payload.contains("10185") && reply.payload.contains("\"code\":412"));
        for subject in ["$JS.API.CONSUMER.MSG.NEXT.S.c", "$JS.API.DIRECT.GET.S", "$JS.API.DIRECT.GET.S.a"] {
            assert_eq!(status_of(subject, headers, ""), "NATS/1.0 412 Required Api Level");
        }
    }

    #[test]
    fn acks_pulls_and_flow_control_go_to_their_consumer() {
        let pull = call("$JS.API.CONSUMER.MSG.NEXT.S.c", "5");
        let request = PullRequest { batch: 5, ..PullRequest::default() };
        assert_eq!(pull, Call::Pull { stream: named("S"), consumer: named("c"), request });
        let reason = status_of("$JS.API.CONSUMER.MSG.NEXT.S.c", "", r#"{"idle_heartbeat":1}"#);
        assert_eq!(reason, "NATS/1.0 400 Bad Request - heartbeat value too large");
        let fc = Call::FlowControl { stream: named("S"), consumer: named("c"), token: 77 };
        assert_eq!(call("$JS.FC.S.c.77", ""), fc);
        assert_eq!(call("$JS.FC._.hash.S.c.77", ""), fc);
        for subject in ["$JS.FC.S.c.x", "$JS.FC.S", "$JS.ACK.S.c.1.1.1.1", "$JS.ACK.S.c.1.0.1.1.1"] {
            assert_eq!(call(subject, ""), Call::Nothing, "{subject}");
        }
        assert_eq!(call("$JS.ACK.S.c.1.1.1.1.0", "what?"), Call::Nothing);
    }

    #[test]
    fn no_bytes_make_it_panic() {
        for subject in ["", "$JS", "$JS.API", "$JS.API.", "$JS.ACK", "$JS.FC", "x.y", "$JS.API.DIRECT.GET.S."]
        {
            for payload in ["", "{", "[", "null", "0", "\"\"", "{\"config\":[]}", "{\"config\":5}"] {
                let _call = call(subject, payload);
            }
        }
        let _call = parse_request(b"$JS.API.STREAM.CREATE.\xff", b"\xff", b"\xff\xfe");
    }
}
