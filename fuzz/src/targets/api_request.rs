//! Requests of the JetStream API, acks and flow-control answers: subject, headers and JSON.

use beamlog_nats::jetstream::{Call, parse_request, stream_named};
use beamlog_router::api::request::Request;

pub const WORDS: &[&[u8]] = &[
    b"$JS.API.",
    b"$JS.ACK.",
    b"$JS.FC.",
    b"STREAM.",
    b"CONSUMER.",
    b".CREATE.",
    b".UPDATE.",
    b".MSG.",
    b"NEXT.",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b"\"",
    b"null",
    b"true",
    b"-1",
    b"0",
    b"1e400",
    b"9223372036854775808",
    b"\"2026-11-21T00:00:00.000000001Z\"",
    b"\\u0000",
    b"\\ud800",
    b"\"config\":",
    b"\"subjects\":[\">\"]",
    b"\"max_age\":",
    b"\"backoff\":[1,2]",
    b"+NXT {\"batch\":2}",
    b"-NAK {\"delay\":5}",
    b"[[[[[[[[[[[[[[[[",
];

/// First line the subject, second the headers (with `|` for line ends), then the body.
pub fn run(data: &[u8]) {
    let mut lines = data.splitn(3, |byte| *byte == b'\n');
    let subject = lines.next().unwrap_or_default();
    let mut headers = Vec::new();
    for byte in lines.next().unwrap_or_default() {
        match byte {
            b'|' => headers.extend_from_slice(b"\r\n"),
            other => headers.push(*other),
        }
    }
    let payload = lines.next().unwrap_or_default();
    // Total over all bytes, and the same every time.
    let call = parse_request(subject, &headers, payload);
    assert_eq!(call, parse_request(subject, &headers, payload));
    // Whoever routes by the name of the stream agrees with who reads the whole.
    let named = match &call {
        Call::Pull { stream, .. } | Call::FlowControl { stream, .. } => stream,
        Call::Ack { target, .. } => &target.stream,
        Call::Engine { request, .. } => match &**request {
            Request::StreamInfo { stream, .. }
            | Request::DeleteStream { stream }
            | Request::PurgeStream { stream, .. }
            | Request::GetMessage { stream, .. }
            | Request::DirectGet { stream, .. }
            | Request::DirectGetBatch { stream, .. }
            | Request::DeleteMessage { stream, .. }
            | Request::CreateConsumer { stream, .. }
            | Request::ConsumerInfo { stream, .. }
            | Request::ConsumerNames { stream, .. }
            | Request::ConsumerList { stream, .. }
            | Request::DeleteConsumer { stream, .. }
            | Request::PauseConsumer { stream, .. } => stream,
            Request::CreateStream(config) | Request::UpdateStream(config) => &config.name,
            Request::AccountInfo
            | Request::StreamNames { .. }
            | Request::StreamList { .. }
            | Request::Reserve(_)
            | Request::Release { .. }
            | Request::Reservations
            | Request::PutShard(_)
            | Request::Shards
            | Request::Rearrange(_)
            | Request::Move(_)
            | Request::Arrive(_)
            | Request::MovingHere => return,
        },
        Call::Reply(_) | Call::Nothing => return,
    };
    assert_eq!(stream_named(subject), Some(named.as_str()));
}

pub fn seeds() -> Vec<Vec<u8>> {
    [
        "$JS.API.INFO\n\n",
        "$JS.API.STREAM.CREATE.orders\n\n{\"name\":\"orders\",\"subjects\":[\"orders.>\"],\"retention\":\"limits\",\"max_consumers\":-1,\"max_msgs\":-1,\"max_bytes\":-1,\"max_age\":0,\"max_msgs_per_subject\":5,\"max_msg_size\":-1,\"discard\":\"old\",\"storage\":\"file\",\"num_replicas\":1,\"duplicate_window\":120000000000,\"allow_direct\":true,\"metadata\":{\"a\":\"b\"}}",
        "$JS.API.STREAM.UPDATE.orders\n\n{\"name\":\"orders\",\"subjects\":[\"orders.>\",\"x\"],\"discard\":\"new\",\"discard_new_per_subject\":true}",
        "$JS.API.STREAM.PURGE.orders\n\n{\"filter\":\"orders.eu\",\"keep\":3}",
        "$JS.API.STREAM.NAMES\n\n{\"offset\":1,\"subject\":\"orders.*\"}",
        "$JS.API.STREAM.INFO.orders\n\n{\"deleted_details\":true,\"subjects_filter\":\">\"}",
        "$JS.API.STREAM.MSG.GET.orders\n\n{\"last_by_subj\":\"orders.eu\"}",
        "$JS.API.STREAM.MSG.DELETE.orders\n\n{\"seq\":7,\"no_erase\":true}",
        "$JS.API.DIRECT.GET.orders.orders.eu\n\n",
        "$JS.API.DIRECT.GET.orders\n\n{\"multi_last\":[\"a.*\"],\"batch\":5,\"up_to_seq\":9}",
        "$JS.API.CONSUMER.CREATE.orders.worker.orders.eu\n\n{\"stream_name\":\"orders\",\"config\":{\"durable_name\":\"worker\",\"name\":\"worker\",\"deliver_policy\":\"by_start_time\",\"opt_start_time\":\"2026-11-21T01:02:03.000000004Z\",\"ack_policy\":\"explicit\",\"ack_wait\":30000000000,\"max_deliver\":3,\"backoff\":[1000000000,2000000000],\"filter_subject\":\"orders.eu\",\"replay_policy\":\"instant\",\"max_ack_pending\":1000,\"max_waiting\":512},\"action\":\"create\"}",
        "$JS.API.CONSUMER.DURABLE.CREATE.orders.push\n\n{\"stream_name\":\"orders\",\"config\":{\"durable_name\":\"push\",\"deliver_subject\":\"d\",\"deliver_group\":\"q\",\"flow_control\":true,\"idle_heartbeat\":1000000000,\"headers_only\":true,\"rate_limit_bps\":1024}}",
        "$JS.API.CONSUMER.MSG.NEXT.orders.worker\nNATS/1.0|Nats-Required-Api-Level: 1||\n{\"batch\":10,\"expires\":5000000000,\"no_wait\":false,\"idle_heartbeat\":500000000,\"max_bytes\":1024}",
        "$JS.API.CONSUMER.MSG.NEXT.orders.worker\n\n25",
        "$JS.API.CONSUMER.PAUSE.orders.worker\n\n{\"pause_until\":\"2027-01-01T00:00:00Z\"}",
        "$JS.API.CONSUMER.LIST.orders\n\n{\"offset\":0}",
        "$JS.ACK.orders.worker.1.2.3.1795232323000000000.4\n\n+ACK",
        "$JS.ACK._.hash.orders.worker.1.2.3.1795232323000000000.4.token\n\n-NAK {\"delay\": 1000000000}",
        "$JS.ACK.orders.worker.1.2.3.1795232323000000000.4\n\n+TERM because",
        "$JS.ACK.orders.worker.1.2.3.1795232323000000000.4\n\n+NXT {\"batch\":2}",
        "$JS.FC.orders.push.42\n\n",
        "$JS.API.SERVER.REMOVE\n\n{}",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
