//! How answers are spelled: a JSON document per request, or raw messages and statuses for direct get.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use beamlog_router::api::error::ApiError;
use beamlog_router::api::request::{AccountInfo, Answer, Page, Response};
use beamlog_router::consumer::ConsumerInfo;
use beamlog_router::headers::Builder;
use beamlog_router::{Message, Sequence, Timestamp};

use super::cluster_view::Whereabouts;
use super::errors::ErrorBody;
use super::json::Object;
use super::{consumer_config, stream_config, time, version};

/// A message to a reply subject.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Reply {
    /// A header block, or empty.
    pub headers: Vec<u8>,
    pub payload: String,
    pub(super) is_error: bool,
}

/// How the answer to an engine request is spelled.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Form {
    pub(super) kind: Kind,
    /// The client wants the payload of a message without its headers.
    pub(super) no_headers: bool,
    /// A direct get of the last message of each subject, whose "nothing" has a text of its own.
    pub(super) of_each: bool,
}

/// The documents of the API, and the one way that is none.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    System,
    Account,
    StreamCreate,
    StreamUpdate,
    StreamNames,
    StreamList,
    StreamInfo,
    StreamDelete,
    StreamPurge,
    StreamSnapshot,
    StreamRestore,
    StreamLeaderStepDown,
    StreamRemovePeer,
    StreamEvacuatePeer,
    StreamCancelMove,
    MessageGet,
    MessageDelete,
    ConsumerCreate,
    ConsumerNames,
    ConsumerList,
    ConsumerInfo,
    ConsumerDelete,
    ConsumerPause,
    ConsumerUnpin,
    ConsumerReset,
    ConsumerLeaderStepDown,
    MetaLeaderStepDown,
    MetaServerRemove,
    AccountPurge,
    /// Raw messages.
    Direct,
}

impl Kind {
    /// Behind `io.nats.jetstream.api.v1.`.
    fn type_name(self) -> &'static str {
        match self {
            // Direct get has no document; nobody asks.
            Self::System | Self::Direct => "system_response",
            Self::Account => "account_info_response",
            Self::StreamCreate => "stream_create_response",
            Self::StreamUpdate => "stream_update_response",
            Self::StreamNames => "stream_names_response",
            Self::StreamList => "stream_list_response",
            Self::StreamInfo => "stream_info_response",
            Self::StreamDelete => "stream_delete_response",
            Self::StreamPurge => "stream_purge_response",
            Self::StreamSnapshot => "stream_snapshot_response",
            Self::StreamRestore => "stream_restore_response",
            Self::StreamLeaderStepDown => "stream_leader_stepdown_response",
            Self::StreamRemovePeer => "stream_remove_peer_response",
            Self::StreamEvacuatePeer => "stream_evacuate_peer_response",
            Self::StreamCancelMove => "stream_cancel_move_response",
            Self::MessageGet => "stream_msg_get_response",
            Self::MessageDelete => "stream_msg_delete_response",
            Self::ConsumerCreate => "consumer_create_response",
            Self::ConsumerNames => "consumer_names_response",
            Self::ConsumerList => "consumer_list_response",
            Self::ConsumerInfo => "consumer_info_response",
            Self::ConsumerDelete => "consumer_delete_response",
            Self::ConsumerPause => "consumer_pause_response",
            Self::ConsumerUnpin => "consumer_unpin_response",
            Self::ConsumerReset => "consumer_reset_response",
            Self::ConsumerLeaderStepDown => "consumer_leader_stepdown_response",
            Self::MetaLeaderStepDown => "meta_leader_stepdown_response",
            Self::MetaServerRemove => "meta_server_remove_response",
            Self::AccountPurge => "account_purge_response",
        }
    }

    /// The members that nats-server never leaves out, not even beside an error.
    fn write_absent(self, object: &mut Object<'_>) {
        let page = |object: &mut Object<'_>| {
            for name in ["total", "offset", "limit"] {
                object.number(name, 0);
            }
        };
        match self {
            Self::StreamInfo => page(object),
            Self::StreamNames | Self::StreamList => {
                page(object);
                object.null("streams");
            }
            Self::ConsumerNames | Self::ConsumerList => {
                page(object);
                object.texts::<&str>("consumers", &[]);
            }
            Self::StreamPurge => object.number("purged", 0),
            Self::StreamRestore => object.text("deliver_subject", ""),
            Self::ConsumerReset => object.number("reset_seq", 0),
            Self::ConsumerPause => {
                object.boolean("paused", false);
                object.time("pause_until", Timestamp(0));
            }
            Self::System
            | Self::Account
            | Self::StreamCreate
            | Self::StreamUpdate
            | Self::StreamDelete
            | Self::StreamSnapshot
            | Self::StreamLeaderStepDown
            | Self::StreamRemovePeer
            | Self::StreamEvacuatePeer
            | Self::StreamCancelMove
            | Self::MessageGet
            | Self::MessageDelete
            | Self::ConsumerCreate
            | Self::ConsumerInfo
            | Self::ConsumerDelete
            | Self::ConsumerUnpin
            | Self::ConsumerLeaderStepDown
            | Self::MetaLeaderStepDown
            | Self::MetaServerRemove
            | Self::AccountPurge
            | Self::Direct => {}
        }
    }
}

/// Appends the members of an error.
pub(super) fn write_error(error: &ErrorBody, object: &mut Object<'_>) {
    object.object("error", |inner| {
        inner.number("code", error.code);
        inner.number("err_code", error.err_code);
        inner.text("description", &error.description);
    });
}

impl Reply {
    /// A document that refuses.
    pub(super) fn refusal(kind: Kind, error: &ErrorBody) -> Self {
        let payload = document(kind, |object| {
            write_error(error, object);
            kind.write_absent(object);
        });
        Self { headers: Vec::new(), payload, is_error: true }
    }

    /// A message that is only a status.
    pub(super) fn status(block: Builder) -> Self {
        Self { headers: block.finish(), payload: String::new(), is_error: true }
    }
}

fn document(kind: Kind, fill: impl FnOnce(&mut Object<'_>)) -> String {
    let mut out = String::with_capacity(1024);
    Object::write(&mut out, |object| {
        object.text("type", &format!("io.nats.jetstream.api.v1.{}", kind.type_name()));
        fill(object);
    });
    out
}

/// What an answer says besides what the engine knows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Around<'a> {
    pub(super) whereabouts: Whereabouts<'a>,
    pub(super) now: Timestamp,
    /// API requests answered, and how many of them by an error.
    pub(super) requests: u64,
    pub(super) errors: u64,
}

/// The document that answers a request. Direct get has none: see [`raw`].
pub(super) fn spell(form: Form, answer: &Answer, around: &Around<'_>) -> Reply {
    let kind = form.kind;
    let response = match answer {
        Ok(response) => response,
        Err(error) => return Reply::refusal(kind, &error.into()),
    };
    let payload = document(kind, |object| match response {
        Response::Account(info) => write_account(info, around, object),
        Response::Stream { info, created } => {
            let asked = kind == Kind::StreamInfo;
            if asked {
                // A page without subjects is none.
                write_page(info.subjects.as_ref().filter(|page| page.total > 0), object);
            }
            stream_config::write_info(info, true, around.whereabouts, asked, object);
            // nats-server says so whenever a create succeeds, the stream being new or not.
            object.boolean_if_set("did_create", *created || kind == Kind::StreamCreate);
        }
        Response::Names(page) => {
            write_page(Some(page), object);
            if kind == Kind::ConsumerNames {
                object.texts("consumers", &page.items);
            } else if page.items.is_empty() {
                object.null("streams");
            } else {
                object.texts("streams", &page.items);
            }
        }
        Response::Streams(page) => {
            write_page(Some(page), object);
            object.list("streams", &page.items, |info, out| {
                stream_config::push_info(info, around.whereabouts, out);
            });
        }
        Response::Deleted => object.boolean("success", true),
        Response::Purged { count } => {
            object.boolean("success", true);
            object.number("purged", *count);
        }
        Response::Message(message) => write_message(message, form.no_headers, object),
        // Answers to direct get, and to other nodes.
        Response::Batch { .. }
        | Response::Reserved(_)
        | Response::Reservations(_)
        | Response::Shards(_)
        | Response::Arrivals(_)
        | Response::Moving(_)
        | Response::MovingHere(_)
        | Response::Arriving { .. } => {}
        Response::Consumer(info) => {
            consumer_config::write_info(info, around.now, true, around.whereabouts, object);
        }
        Response::Consumers(page) => {
            write_page(Some(page), object);
            object.list("consumers", &page.items, |info: &ConsumerInfo, out| {
                Object::write(out, |inner| {
                    consumer_config::write_info(info, around.now, false, around.whereabouts, inner);
                });
            });
        }
        Response::Paused { until, remaining_nanos } => {
            object.boolean("paused", *remaining_nanos > 0);
            object.time("pause_until", until.unwrap_or(Timestamp(0)));
            object.number_unless_zero("pause_remaining", *remaining_nanos);
        }
    });
    Reply { headers: Vec::new(), payload, is_error: false }
}

fn write_page<T>(page: Option<&Page<T>>, object: &mut Object<'_>) {
    let (total, offset, limit) = page.map_or((0, 0, 0), |page| (page.total, page.offset, page.limit));
    for (name, value) in [("total", total), ("offset", offset), ("limit", limit)] {
        object.number(name, i128::try_from(value).unwrap_or(i128::MAX));
    }
}

fn write_account(info: &AccountInfo, around: &Around<'_>, object: &mut Object<'_>) {
    object.number("memory", info.memory_bytes);
    object.number("storage", info.storage_bytes);
    object.number("reserved_memory", 0);
    object.number("reserved_storage", 0);
    object.number("streams", info.streams);
    object.number("consumers", info.consumers);
    object.object("limits", |limits| {
        for name in [
            "max_memory",
            "max_storage",
            "max_streams",
            "max_consumers",
            "max_ack_pending",
            "memory_max_stream_bytes",
            "storage_max_stream_bytes",
        ] {
            limits.number(name, -1);
        }
        limits.boolean("max_bytes_required", false);
    });
    object.object("api", |api| {
        api.number("level", version::API_LEVEL);
        api.number("total", around.requests);
        api.number("errors", around.errors);
    });
}

fn write_message(message: &Message, no_headers: bool, object: &mut Object<'_>) {
    object.object("message", |inner| {
        inner.text("subject", &String::from_utf8_lossy(&message.subject));
        inner.number("seq", message.sequence.0);
        if !no_headers {
            inner.text_unless_empty("hdrs", &BASE64.encode(&message.headers));
        }
        inner.text_unless_empty("data", &BASE64.encode(&message.payload));
        inner.time("time", message.timestamp);
    });
}

/// What becomes of an answer to a direct get.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Raw {
    Sent,
    /// The stream does not answer direct gets, or is not there: nobody is listening.
    NobodyListens,
}

/// Sends the answer to a direct get: raw messages with headers that say where they are from, or a status.
pub(super) fn raw(form: Form, stream: &str, answer: &Answer, send: &mut dyn FnMut(&[u8], &[u8])) -> Raw {
    let mut status = |code, text: &str| send(&Builder::status(code, text).finish(), b"");
    match answer {
        Ok(Response::Message(message)) => send_message(form, stream, message, None, send),
        Err(ApiError::NoMessage) if form.of_each => status(404, "No Results"),
        Ok(Response::Batch { messages, pending, last_sequence, up_to }) => {
            let mut last = Sequence(0);
            for (at, message) in messages.iter().enumerate() {
                let behind = u64::try_from(messages.len() - at - 1).unwrap_or(u64::MAX);
                send_message(form, stream, message, Some((pending.saturating_add(behind), last)), send);
                last = message.sequence;
            }
            let end = Builder::status(204, "EOB")
                .header("Nats-Num-Pending", pending.to_string())
                .header("Nats-Last-Sequence", last_sequence.to_string());
            let end = match up_to {
                Some(up_to) => end.header("Nats-UpTo-Sequence", up_to.to_string()),
                None => end,
            };
            send(&end.finish(), b"");
        }
        Err(ApiError::StreamNotFound) => return Raw::NobodyListens,
        Err(ApiError::NoMessage | ApiError::SequenceNotFound(_)) => status(404, "Message Not Found"),
        Err(ApiError::TooManyRequests) => status(429, "Too Many Requests"),
        Err(error) => {
            let body = ErrorBody::from(error);
            status(body.code, &body.description);
        }
        // The engine answers direct gets with messages.
        Ok(
            Response::Account(_)
            | Response::Stream { .. }
            | Response::Reserved(_)
            | Response::Reservations(_)
            | Response::Shards(_)
            | Response::Arrivals(_)
            | Response::Moving(_)
            | Response::MovingHere(_)
            | Response::Arriving { .. }
            | Response::Names(_)
            | Response::Streams(_)
            | Response::Deleted
            | Response::Purged { .. }
            | Response::Consumer(_)
            | Response::Consumers(_)
            | Response::Paused { .. },
        ) => status(500, "unexpected answer"),
    }
    Raw::Sent
}

fn send_message(
    form: Form,
    stream: &str,
    message: &Message,
    batch: Option<(u64, Sequence)>,
    send: &mut dyn FnMut(&[u8], &[u8]),
) {
    if form.no_headers {
        send(b"", &message.payload);
        return;
    }
    let mut block = Builder::append_to(&message.headers)
        .header("Nats-Stream", stream)
        .header("Nats-Subject", &message.subject)
        .header("Nats-Sequence", message.sequence.to_string())
        .header("Nats-Time-Stamp", time::text(message.timestamp));
    if let Some((pending, last)) = batch {
        block = block
            .header("Nats-Num-Pending", pending.to_string())
            .header("Nats-Last-Sequence", last.to_string());
    }
    send(&block.finish(), &message.payload);
}

#[cfg(test)]
mod tests {
    use beamlog_router::StreamId;
    use beamlog_router::api::request::StreamInfo;
    use beamlog_router::consumer::{ConsumerConfig, ConsumerPosition};
    use beamlog_router::stream::{StreamConfig, StreamState};
    use bytes::Bytes;
    use serde_json::{Value, json};

    use super::*;

    const AROUND: Around<'_> =
        Around { whereabouts: Whereabouts::Alone("n1"), now: Timestamp(5), requests: 7, errors: 2 };

    fn document(kind: Kind, answer: Answer) -> Value {
        let reply = spell(Form { kind, no_headers: false, of_each: false }, &answer, &AROUND);
        assert!(reply.headers.is_empty());
        serde_json::from_str(&reply.payload).unwrap()
    }

    fn stream_info() -> StreamInfo {
        StreamInfo {
            id: StreamId(1),
            config: StreamConfig { name: "S".to_owned(), ..StreamConfig::default() },
            created: Timestamp(1),
            state: StreamState::default(),
            subjects: None,
            deleted: None,
            origins: Vec::new(),
            now: Timestamp(2),
        }
    }

    fn message(headers: &'static [u8]) -> Message {
        Message {
            stream: StreamId(1),
            sequence: Sequence(3),
            timestamp: Timestamp(1_000_000_000),
            subject: Bytes::from_static(b"a.b"),
            headers: Bytes::from_static(headers),
            payload: Bytes::from_static(b"m1"),
        }
    }

    fn sent(form: Form, answer: &Answer) -> Vec<(String, String)> {
        let mut messages = Vec::new();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let raw =
            raw(form, "S", answer, &mut |headers, payload| messages.push((text(headers), text(payload))));
        assert_eq!(raw, Raw::Sent);
        messages
    }

    const DIRECT: Form = Form { kind: Kind::Direct, no_headers: false, of_each: false };

    #[test]
    fn errors_keep_the_members_that_clients_read_in_any_case() {
        let error = |kind| document(kind, Err(ApiError::StreamNotFound));
        let envelope = json!({"code":404,"err_code":10059,"description":"stream not found"});
        let page = json!({
            "type":"io.nats.jetstream.api.v1.stream_info_response","error":envelope,"total":0,"offset":0,"limit":0
        });
        assert_eq!(error(Kind::StreamInfo), page);
        assert_eq!(error(Kind::StreamPurge)["purged"], 0);
        assert_eq!(error(Kind::StreamNames)["streams"], Value::Null);
        assert_eq!(error(Kind::ConsumerNames)["consumers"], json!([]));
        let paused = error(Kind::ConsumerPause);
        assert_eq!(
            (&paused["paused"], &paused["pause_until"]),
            (&json!(false), &json!("0001-01-01T00:00:00Z"))
        );
        let bare = error(Kind::ConsumerCreate);
        assert_eq!(bare.as_object().unwrap().len(), 2);
    }

    #[test]
    fn a_stream_info_says_the_page_only_when_asked_for_the_stream() {
        let info = Box::new(stream_info());
        let created =
            document(Kind::StreamCreate, Ok(Response::Stream { info: info.clone(), created: true }));
        assert_eq!(created["did_create"], true);
        assert_eq!(created.get("total"), None);
        assert_eq!(created.get("cluster"), None);
        let state = json!({
            "messages":0,"bytes":0,"first_seq":0,"first_ts":"0001-01-01T00:00:00Z","last_seq":0,
            "last_ts":"0001-01-01T00:00:00Z","consumer_count":0
        });
        assert_eq!(created["state"], state);
        let mut asked = *info;
        asked.subjects =
            Some(Page { total: 1, offset: 0, limit: 100_000, items: vec![("a.b".to_owned(), 5)] });
        asked.deleted = Some(vec![Sequence(4)]);
        asked.state.deleted_count = 1;
        let asked =
            document(Kind::StreamInfo, Ok(Response::Stream { info: Box::new(asked), created: false }));
        assert_eq!((&asked["total"], &asked["limit"]), (&json!(1), &json!(100_000)));
        assert_eq!(asked["state"]["subjects"], json!({"a.b":5}));
        assert_eq!(asked["state"]["deleted"], json!([4]));
        assert_eq!(asked["cluster"], json!({"leader":"n1"}));
        assert_eq!(asked.get("did_create"), None);
    }

    #[test]
    fn lists_are_pages() {
        let names = |items: Vec<String>| Page { total: items.len(), offset: 0, limit: 1024, items };
        let streams = document(Kind::StreamNames, Ok(Response::Names(names(vec!["A".to_owned()]))));
        assert_eq!(streams["streams"], json!(["A"]));
        assert_eq!(document(Kind::StreamNames, Ok(Response::Names(names(vec![]))))["streams"], Value::Null);
        assert_eq!(document(Kind::ConsumerNames, Ok(Response::Names(names(vec![]))))["consumers"], json!([]));
        let page = Page { total: 1, offset: 0, limit: 256, items: vec![stream_info()] };
        let list = document(Kind::StreamList, Ok(Response::Streams(page)));
        // A list names no server.
        assert_eq!(list["streams"][0]["config"]["metadata"], json!({"_nats.req.level":"0"}));
    }

    #[test]
    fn a_consumer_info_has_what_nats_server_has() {
        let info = ConsumerInfo {
            stream: "S".to_owned(),
            config: ConsumerConfig { name: "c".to_owned(), ..ConsumerConfig::default() },
            created: Timestamp(1_000_000_000),
            delivered: ConsumerPosition { consumer: 2, stream: Sequence(3), last_active: Timestamp(4) },
            ack_floor: ConsumerPosition::default(),
            ack_pending: 1,
            redelivered: 0,
            waiting: 0,
            pending: 9,
            push_bound: true,
            paused_for_nanos: Some(8),
        };
        let told = document(Kind::ConsumerInfo, Ok(Response::Consumer(Box::new(info))));
        assert_eq!((&told["stream_name"], &told["name"]), (&json!("S"), &json!("c")));
        assert_eq!(told["delivered"]["last_active"], "1970-01-01T00:00:00.000000004Z");
        assert_eq!(told["ack_floor"], json!({"consumer_seq":0,"stream_seq":0}));
        assert_eq!(
            (&told["push_bound"], &told["paused"], &told["pause_remaining"]),
            (&json!(true), &json!(true), &json!(8))
        );
        assert_eq!(told["ts"], "1970-01-01T00:00:00.000000005Z");
    }

    #[test]
    fn the_account_has_all_members_that_clients_insist_on() {
        let info = AccountInfo { memory_bytes: 1, storage_bytes: 2, streams: 3, consumers: 4 };
        let told = document(Kind::Account, Ok(Response::Account(info)));
        for member in ["memory", "storage", "reserved_memory", "reserved_storage", "streams", "consumers"] {
            assert!(told[member].is_number(), "{member}");
        }
        assert_eq!(told["limits"].as_object().unwrap().len(), 8);
        assert_eq!(told["api"], json!({"level":version::API_LEVEL,"total":7,"errors":2}));
        assert_eq!(told.get("tiers"), None);
    }

    #[test]
    fn a_stored_message_is_told_in_base64_or_raw() {
        let answer = Ok(Response::Message(message(b"NATS/1.0\r\nX: y\r\n\r\n")));
        let told = document(Kind::MessageGet, answer.clone());
        assert_eq!(
            told["message"],
            json!({
                "subject":"a.b","seq":3,"hdrs":"TkFUUy8xLjANClg6IHkNCg0K","data":"bTE=",
                "time":"1970-01-01T00:00:01Z"
            })
        );
        let place = "Nats-Stream: S\r\nNats-Subject: a.b\r\nNats-Sequence: 3\r\n\
                     Nats-Time-Stamp: 1970-01-01T00:00:01Z\r\n\r\n";
        let with = format!("NATS/1.0\r\nX: y\r\n{place}");
        assert_eq!(sent(DIRECT, &answer), [(with, "m1".to_owned())]);
        let plain = Ok(Response::Message(message(b"")));
        assert_eq!(sent(DIRECT, &plain), [(format!("NATS/1.0\r\n{place}"), "m1".to_owned())]);
        let bare = Form { no_headers: true, ..DIRECT };
        assert_eq!(sent(bare, &plain), [(String::new(), "m1".to_owned())]);
    }

    #[test]
    fn a_batch_counts_down_and_ends_with_its_end() {
        let second = Message { sequence: Sequence(8), ..message(b"") };
        let answer = Ok(Response::Batch {
            messages: vec![message(b""), second],
            pending: 3,
            last_sequence: Sequence(8),
            up_to: Some(Sequence(20)),
        });
        let messages = sent(DIRECT, &answer);
        assert!(messages[0].0.ends_with("Nats-Num-Pending: 4\r\nNats-Last-Sequence: 0\r\n\r\n"));
        assert!(messages[1].0.ends_with("Nats-Num-Pending: 3\r\nNats-Last-Sequence: 3\r\n\r\n"));
        assert_eq!(
            messages[2].0,
            "NATS/1.0 204 EOB\r\nNats-Num-Pending: 3\r\nNats-Last-Sequence: 8\r\nNats-UpTo-Sequence: 20\r\n\r\n"
        );
    }

    #[test]
    fn unreadable_is_never_told_as_absent() {
        let damage = beamlog_router::Damage {
            segment: beamlog_router::SegmentId(1),
            offset: 2,
            reason: beamlog_router::DamageReason::Checksum,
        };
        let answer: Answer = Err(ApiError::Unreadable(damage));
        assert_eq!(sent(DIRECT, &answer)[0].0, "NATS/1.0 500 a stored message is unreadable\r\n\r\n");
        let absent = Err(ApiError::NoMessage);
        assert_eq!(sent(DIRECT, &absent)[0].0, "NATS/1.0 404 Message Not Found\r\n\r\n");
        assert_eq!(document(Kind::MessageGet, answer)["error"]["code"], 500);
    }
}
