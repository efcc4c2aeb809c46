//! The dialects as they are really sent, and a table of everything that is refused.

use serde_json::json;

use super::*;
use crate::proto::Writer;

const LENIENT: IntakeRules = IntakeRules { strict: false, payload_bytes_max: 1 << 20 };
const STRICT: IntakeRules = IntakeRules { strict: true, payload_bytes_max: 1 << 20 };

fn read(payload: &Value) -> DecideRequest {
    decide(b"", payload.to_string().as_bytes(), LENIENT).unwrap()
}

#[test]
fn dialect_a_the_documented_one() {
    let request = read(
        &json!({"version": "1", "request_id": "r-1", "tenant_id": "acme", "trace_id": "tr-123",
        "task": {"type": "chat", "payload": {"prompt": "hello"}, "payload_ref": "s3://x"}, "policy_id": "gold",
        "constraints": {"max_latency_ms": 500}, "metadata": {"session_id": "s"}, "push_assignment": "true",
        "assignment_subject": "jobs.gpu", "options": {"deadline_ms": 7000}, "idempotency_key": "k"}),
    );
    assert_eq!(request.request_id.as_deref(), Some("r-1"));
    assert_eq!((request.job_type.as_str(), request.policy_id.as_str()), ("chat", "gold"));
    assert_eq!(request.payload.as_deref(), Some("{\"prompt\":\"hello\"}"));
    assert_eq!(request.payload_ref.as_deref(), Some("s3://x"));
    assert_eq!(request.context["max_latency_ms"], 500);
    assert_eq!(request.context["session_id"], "s");
    assert_eq!(request.options["deadline_ms"], 7000);
    assert!(request.push_assignment);
    assert_eq!(request.assignment_subject.as_deref(), Some("jobs.gpu"));
    assert_eq!(request.correlation.trace_id.as_deref(), Some("tr-123"));
}

#[test]
fn dialect_b_the_http_gateway() {
    let request = read(&json!({"version": "1", "tenant_id": "acme", "request_id": "r", "trace_id": "t",
        "message": {"message_id": "m-1", "message_type": "chat", "payload": {"a": 1}, "metadata": {"k": "v"}},
        "policy_id": "default", "context": {"user_id": "u-1"}}));
    assert_eq!(request.request_id.as_deref(), Some("r"));
    assert_eq!(request.message_id.as_deref(), Some("m-1"));
    assert_eq!((request.job_type.as_str(), request.payload.as_deref()), ("chat", Some("{\"a\":1}")));
    assert_eq!((&request.context["user_id"], &request.context["k"]), (&json!("u-1"), &json!("v")));
    // The gateway sends an empty message when its caller had none.
    let bare = read(&json!({"version": "1", "tenant_id": "acme", "request_id": "r", "message": {},
        "run_id": "only-this-one"}));
    assert_eq!((bare.message_id.as_deref(), bare.job_type.as_str()), (Some("r"), "unknown"));
    assert_eq!(bare.correlation.run_id.as_deref(), Some("only-this-one"));
}

#[test]
fn dialect_c_the_ipc_bridge() {
    let request = read(&json!({"from": "ide@localhost", "to": "router", "message_id": "task_1_2",
        "tenant_id": "default", "policy_id": "default", "input": "some text"}));
    assert_eq!(request.request_id.as_deref(), Some("task_1_2"));
    assert_eq!(request.payload.as_deref(), Some("\"some text\""));
}

#[test]
fn dialect_d_the_flat_one() {
    let request = read(&json!({"message_id": "m", "tenant_id": "t", "trace_id": "x", "message_type": "chat",
        "payload": "eyJhIjoxfQ==", "policy_id": "p", "context": {"sticky": {"session_key": "s-1"}, "user_id": "u"}}));
    assert_eq!((request.job_type.as_str(), request.payload.as_deref()), ("chat", Some("\"eyJhIjoxfQ==\"")));
    assert_eq!(request.context["session_id"], "s-1");
}

fn route_request(payload: &[u8]) -> Vec<u8> {
    let message = Writer::default()
        .text(1, "m-1")
        .text(2, "acme")
        .text(3, "trace")
        .text(4, "chat")
        .bytes(5, payload)
        .map_entry(6, "k", "v")
        .int64(7, 1_700_000_000_000)
        .finish();
    Writer::default().bytes_even_empty(1, &message).text(2, "gold").map_entry(3, "session_id", "s").finish()
}

#[test]
fn dialect_e_protocol_buffers_and_their_json_twin() {
    for (payload, json) in [
        (&b"{\"a\":1}"[..], Some("{\"a\":1}")),
        (b"text", Some("\"text\"")),
        (&[0xff, 0x00], Some("\"/wA=\"")),
        (b"", None),
    ] {
        let request = decide(b"", &route_request(payload), LENIENT).unwrap();
        assert_eq!(request.encoding, Encoding::Protobuf);
        assert_eq!(request.payload.as_deref(), json);
        assert_eq!((request.tenant.as_str(), request.policy_id.as_str()), ("acme", "gold"));
        assert_eq!((&request.context["k"], &request.context["session_id"]), (&json!("v"), &json!("s")));
    }
    let twin = read(&json!({"message": {"message_id": "m", "tenant_id": "t", "trace_id": "x",
        "message_type": "chat", "payload": "text", "metadata": {}, "timestamp_ms": 1}, "policy_id": "p",
        "context": {"a": "b"}}));
    assert_eq!((twin.tenant.as_str(), twin.request_id.as_deref()), ("t", Some("m")));
}

#[test]
fn a_protocol_buffer_that_looks_like_json_is_none() {
    // 0x0a 0x7b: a line feed and a brace.
    let payload = (1..200).map(|length| vec![b'x'; length]).find(|payload| route_request(payload)[1] == 0x7b);
    let request = decide(b"", &route_request(&payload.unwrap()), LENIENT).unwrap();
    assert_eq!(request.encoding, Encoding::Protobuf);
}

#[test]
fn dialect_f_version_1_0() {
    let request = read(&json!({"version": "1.0", "message_id": "m", "tenant_id": "t", "policy_id": "p",
        "input": {"a": 1}}));
    assert_eq!(request.payload.as_deref(), Some("{\"a\":1}"));
}

#[test]
fn numbers_of_a_payload_stay_as_they_were_written() {
    let raw = br#"{"tenant_id":"t","request_id":"r","payload":{"n":12345678901234567890123,"f":1.10}}"#;
    let request = decide(b"", raw, LENIENT).unwrap();
    assert_eq!(request.payload.as_deref(), Some(r#"{"n":12345678901234567890123,"f":1.10}"#));
}

#[test]
fn headers_stand_in_for_what_the_payload_lacks() {
    let headers = b"NATS/1.0\r\ntenant_id: acme\r\n\
        traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n\r\n";
    let request = decide(headers, br#"{"request_id":"r"}"#, LENIENT).unwrap();
    let planned = b"NATS/1.0\r\nx_tenant_id: acme\r\nx_trace_id: t\r\nx_request_id: r-2\r\n\r\n";
    let named = decide(planned, b"{}", LENIENT).unwrap();
    assert_eq!((named.tenant.as_str(), named.request_id.as_deref()), ("acme", Some("r-2")));
    assert_eq!(named.correlation.trace_id.as_deref(), Some("t"));
    assert_eq!(request.tenant, "acme");
    assert_eq!(request.correlation.trace_id.as_deref(), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
}

#[test]
fn the_fingerprint_is_of_the_request_and_not_of_its_trace() {
    let of = |value: Value| read(&value).fingerprint;
    let base =
        json!({"tenant_id": "t", "request_id": "r", "trace_id": "a", "task": {"type": "x", "payload": {}}});
    let mut other = base.clone();
    other["trace_id"] = "b".into();
    assert_eq!(of(base.clone()), of(other));
    for (key, value) in [
        ("tenant_id", json!("u")),
        ("task", json!({"type": "y", "payload": {}})),
        ("policy_id", json!("p")),
        ("context", json!({"a": 1})),
        ("push_assignment", json!(true)),
    ] {
        let mut other = base.clone();
        other[key] = value;
        assert_ne!(of(base.clone()), of(other), "{key}");
    }
}

fn check(rules: IntakeRules, raw: &[u8], intake: IntakeCode, words: &str) {
    let refused = decide(b"", raw, rules).unwrap_err();
    let (refusal, _) = *refused;
    assert_eq!((refusal.intake, refusal.code), (Some(intake), intake.reply()), "{refusal}");
    assert!(refusal.message.contains(words), "{words:?} is not in {:?}", refusal.message);
}

#[test]
fn everything_that_is_refused() {
    use IntakeCode::{CorrelationFieldsInvalid, PayloadTooSmall, SchemaValidationFailed, VersionUnsupported};
    let uuid = "3f2504e0-4f89-41d3-9a0c-0305e82c3301";
    let good = json!({"version": "1", "tenant_id": "t", "request_id": "r", "trace_id": uuid,
        "task": {"type": "chat", "payload": {"prompt": "hello"}}});
    decide(b"", good.to_string().as_bytes(), STRICT).unwrap();
    let both = [LENIENT, STRICT];
    for rules in both {
        check(rules, b"", SchemaValidationFailed, "neither");
        check(rules, b"[]", SchemaValidationFailed, "neither");
        check(rules, b"\xff\xfe", SchemaValidationFailed, "neither");
        check(rules, b"{\"tenant_id\":", SchemaValidationFailed, "not JSON");
        check(rules, b"{} x", SchemaValidationFailed, "not JSON");
        let small = IntakeRules { payload_bytes_max: 10, ..rules };
        check(small, good.to_string().as_bytes(), SchemaValidationFailed, "larger");
    }
    let change = |key: &str, value: Value| {
        let mut changed = good.clone();
        changed[key] = value;
        changed.to_string().into_bytes()
    };
    let long = "x".repeat(300);
    for (key, value, intake, words) in [
        ("version", json!("2"), VersionUnsupported, "version"),
        ("version", json!(2), VersionUnsupported, "version"),
        ("version", json!({}), VersionUnsupported, "version"),
        ("tenant_id", json!(null), CorrelationFieldsInvalid, "tenant_missing"),
        ("tenant_id", json!(""), CorrelationFieldsInvalid, "tenant_missing"),
        ("tenant_id", json!([]), SchemaValidationFailed, "tenant_id must be a string"),
        ("tenant_id", json!(long), SchemaValidationFailed, "longer"),
        ("request_id", json!({}), SchemaValidationFailed, "request_id must be a string"),
        ("request_id", json!("a\nb"), SchemaValidationFailed, "control"),
        ("trace_id", json!(long), SchemaValidationFailed, "longer"),
        ("idempotency_key", json!(""), CorrelationFieldsInvalid, "idempotency_key"),
        ("idempotency_key", json!(long), SchemaValidationFailed, "longer"),
        ("task", json!("text"), SchemaValidationFailed, "wrong type"),
        ("message", json!(5), SchemaValidationFailed, "wrong type"),
        ("context", json!([]), SchemaValidationFailed, "context must be an object"),
        ("options", json!("x"), SchemaValidationFailed, "options must be an object"),
        ("context", json!({"a": "x".repeat(70_000)}), SchemaValidationFailed, "larger"),
        ("assignment_subject", json!("a..b"), SchemaValidationFailed, "not a subject"),
        ("assignment_subject", json!("a.>"), SchemaValidationFailed, "not a subject"),
    ] {
        for rules in both {
            check(rules, &change(key, value.clone()), intake, words);
        }
    }
    // Only the strict rules refuse these, and nobody keeps them today.
    for (key, value, intake, words) in [
        ("version", json!(null), VersionUnsupported, "required"),
        ("version", json!("1.0"), VersionUnsupported, "version"),
        ("request_id", json!(null), CorrelationFieldsInvalid, "missing_request_id"),
        ("trace_id", json!("tr-123"), CorrelationFieldsInvalid, "invalid_trace_id_format"),
        ("run_id", json!(uuid), CorrelationFieldsInvalid, "go together"),
        ("run_id", json!("run-1"), CorrelationFieldsInvalid, "invalid_run_id_format"),
        ("task", json!(null), CorrelationFieldsInvalid, "missing_task"),
        ("task", json!({"payload": {"prompt": "hello"}}), CorrelationFieldsInvalid, "missing_task"),
        ("task", json!({"type": "x"}), CorrelationFieldsInvalid, "missing_task_payload"),
        ("task", json!({"type": "x", "payload": "0123456789"}), SchemaValidationFailed, "object"),
        ("task", json!({"type": "x", "payload": {}}), PayloadTooSmall, "payload_too_small"),
    ] {
        check(STRICT, &change(key, value.clone()), intake, words);
        decide(b"", &change(key, value.clone()), LENIENT).unwrap();
    }
}

#[test]
fn a_refusal_still_knows_whom_to_answer() {
    let raw = json!({"version": "9", "tenant_id": "t", "request_id": "r", "trace_id": "x"}).to_string();
    let (_, context) = *decide(b"", raw.as_bytes(), LENIENT).unwrap_err();
    assert_eq!(context.request_id.as_deref(), Some("r"));
    assert_eq!(context.trace_id.as_deref(), Some("x"));
    assert_eq!(context.tenant.as_deref(), Some("t"));
}
