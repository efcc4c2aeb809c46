//! Requests for decisions, as gateways send them: JSON of six dialects, and protocol buffers.

use beamlog_tasks::intake::{self, IntakeRules};

pub const WORDS: &[&[u8]] = &[
    b"\"tenant_id\":\"t\"",
    b"\"request_id\":",
    b"\"message\":{",
    b"\"task\":{\"type\":\"chat\",\"payload\":",
    b"\"input\":",
    b"\"context\":{\"sticky\":{\"session_key\":\"s\"}}",
    b"\"version\":\"1\"",
    b"\"push_assignment\":true",
    b"null",
    b"\\u0000",
    b"\x0a\x04",
    b"\x12\x01",
    b"1e999",
];

pub fn run(input: &[u8]) {
    // The first half may be headers.
    let (headers, payload) = match input.split_first() {
        Some((0xff, rest)) => rest.split_at(rest.len() / 2),
        Some(_) | None => (&b""[..], input),
    };
    let lenient = IntakeRules { strict: false, payload_bytes_max: 4_096 };
    let strict = IntakeRules { strict: true, ..lenient };
    let by_lenient = intake::decide(headers, payload, lenient);
    let by_strict = intake::decide(headers, payload, strict);
    if let Ok(request) = &by_strict {
        assert_eq!(Some(request), by_lenient.as_ref().ok(), "what is strictly right is read the same leniently");
    }
    if let Ok(request) = by_lenient {
        assert!(!request.tenant.is_empty());
        if let Some(payload) = &request.payload {
            // By its grammar: it is carried as it is, also with numbers that no float holds.
            serde_json::from_str::<serde::de::IgnoredAny>(payload).expect("a payload is JSON");
        }
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = [
        r#"{"version":"1","request_id":"r","tenant_id":"t","trace_id":"3f2504e0-4f89-41d3-9a0c-0305e82c3301","task":{"type":"chat","payload":{"prompt":"hello"}},"policy_id":"p","push_assignment":true,"options":{"deadline_ms":1}}"#,
        r#"{"version":"1","tenant_id":"t","request_id":"r","message":{"message_id":"m","message_type":"chat","payload":{"a":1},"metadata":{}},"context":{"user_id":"u"}}"#,
        r#"{"from":"ide@localhost","to":"router","message_id":"task_1_2","tenant_id":"default","policy_id":"default","input":"x"}"#,
        r#"{"message_id":"m","tenant_id":"t","message_type":"chat","payload":"eyJhIjoxfQ==","context":{"sticky":{"session_key":"s"}}}"#,
        r#"{"version":"1.0","message_id":"m","tenant_id":"t","policy_id":"p","input":{}}"#,
        r#"{}"#,
        "",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec();
    let message = beamlog_tasks::proto::Writer::default()
        .text(1, "m")
        .text(2, "t")
        .text(4, "chat")
        .bytes(5, b"{\"a\":1}")
        .map_entry(6, "k", "v")
        .finish();
    let route = beamlog_tasks::proto::Writer::default()
        .bytes(1, &message)
        .text(2, "p")
        .map_entry(3, "session_id", "s")
        .finish();
    seeds.push(route);
    let headers = b"NATS/1.0\r\ntenant_id: t\r\n\r\n";
    seeds.push([&[0xff][..], headers, br#"{"request_id":"longer"}     "#].concat());
    seeds
}
