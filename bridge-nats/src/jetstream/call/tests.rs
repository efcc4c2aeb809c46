//! Requests as clients send them.

use std::ops::Bound;

use beamlog_router::api::request::{BatchSelector, ConsumerAction, MessageSelector, Purge};
use beamlog_router::consumer::DeliverPolicy;
use beamlog_router::{Sequence, Timestamp};

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
    let Call::Reply(reply) = parse_request(subject.as_bytes(), headers.as_bytes(), payload.as_bytes()) else {
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
    let names = |subject: Option<&str>, offset| Request::StreamNames { subject: subject.map(named), offset };
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
        (r#"{"next_by_subj":"a.>"}"#, MessageSelector::NextOn { filter: named("a.>"), from: Sequence(1) }),
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
    let from =
        |filter, from| BatchSelector::Next { filter: named(filter), from: Sequence(from), from_time: None };
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
    for subject in ["", "$JS", "$JS.API", "$JS.API.", "$JS.ACK", "$JS.FC", "x.y", "$JS.API.DIRECT.GET.S."] {
        for payload in ["", "{", "[", "null", "0", "\"\"", "{\"config\":[]}", "{\"config\":5}"] {
            let _call = call(subject, payload);
        }
    }
    let _call = parse_request(b"$JS.API.STREAM.CREATE.\xff", b"\xff", b"\xff\xfe");
}
