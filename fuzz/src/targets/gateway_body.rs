//! Bodies of requests for decisions at the gateway, and what of them goes to the router.

use beamlog::gateway::dto;
use beamlog_tasks::intake::{self, IntakeRules};
use serde_json::Value;

pub const WORDS: &[&[u8]] = &[
    b"\"version\":\"1\"",
    b"\"tenant_id\":\"t\"",
    b"\"request_id\":\"r\"",
    b"\"task\":{\"type\":\"chat\",\"payload\":{}}",
    b"\"message_id\":\"m\"",
    b"\"metadata\":{}",
    b"\"push_assignment\":true",
    b"null",
    b"\\u0000",
];

pub fn run(input: &[u8]) {
    let Some(body) = dto::decide(input) else { return };
    let request_id = body.request_id.clone();
    let route = body.route_request("header", "trace");
    let value: Value = serde_json::from_slice(&route).expect("a request is JSON");
    assert_eq!(
        (&value["tenant_id"], &value["trace_id"], &value["request_id"]),
        (&"header".into(), &"trace".into(), &Value::from(request_id))
    );
    assert!(value["task"]["payload"].is_object());
    if let Ok(request) = intake::decide(b"", &route, IntakeRules { strict: false, payload_bytes_max: 1 << 20 }) {
        assert_eq!(&*request.tenant, "header", "nobody asks for another tenant");
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    [
        r#"{"version":"1","tenant_id":"t","request_id":"r","task":{"type":"chat","payload":{"a":1}},"message_id":"m","message_type":"chat","metadata":{},"push_assignment":true,"unknown":1}"#,
        r#"{"version":"1","tenant_id":"t","request_id":"r","task":{"type":"chat","payload":{}},"payload":{"a":1},"context":{"user_id":"u"},"trace_id":"x"}"#,
        "{}",
        "",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
