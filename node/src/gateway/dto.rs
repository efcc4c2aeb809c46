//! The body of a request for a decision: what it must have, and what of it goes to the router. Pure.

use serde_json::{Map, Value};

/// Fields that go on as they are. The separate gateway drops what is not of `message`; this one does not, so a
/// request for an assignment gets one.
const PASSED: [&str; 16] = [
    "version",
    "request_id",
    "trace_id",
    "run_id",
    "flow_id",
    "step_id",
    "idempotency_key",
    "task",
    "policy_id",
    "context",
    "constraints",
    "push_assignment",
    "assignment_subject",
    "options",
    "metadata",
    "message_id",
];
/// Fields that are the message's.
const OF_MESSAGE: [&str; 4] = ["message_id", "message_type", "payload", "metadata"];

/// A request that may be passed on.
#[derive(Clone, Debug, PartialEq)]
pub struct DecideBody {
    pub request_id: String,
    pub trace_id: Option<String>,
    fields: Map<String, Value>,
}

/// Reads a body: version "1", tenant_id, request_id and a task with a type and a payload.
#[must_use]
pub fn decide(raw: &[u8]) -> Option<DecideBody> {
    let fields: Map<String, Value> = serde_json::from_slice(raw).ok()?;
    let text = |key: &str| fields.get(key).and_then(Value::as_str);
    let task = fields.get("task")?.as_object()?;
    let is_whole = text("version") == Some("1")
        && text("tenant_id").is_some()
        && task.get("type").is_some_and(Value::is_string)
        && task.get("payload").is_some_and(Value::is_object);
    if !is_whole {
        return None;
    }
    let request_id = text("request_id")?.to_owned();
    let trace_id = text("trace_id").map(str::to_owned);
    Some(DecideBody { request_id, trace_id, fields })
}

impl DecideBody {
    /// The request to the router. The headers' tenant and trace are stronger than the body's.
    #[must_use]
    pub fn route_request(mut self, tenant: &str, trace: &str) -> Vec<u8> {
        let mut message = Map::new();
        for key in OF_MESSAGE {
            if let Some(value) = self.fields.get(key) {
                message.insert(key.to_owned(), value.clone());
            }
        }
        let mut route = Map::new();
        for key in PASSED {
            if let Some(value) = self.fields.remove(key) {
                route.insert(key.to_owned(), value);
            }
        }
        route.insert("tenant_id".to_owned(), tenant.into());
        if !trace.is_empty() {
            route.insert("trace_id".to_owned(), trace.into());
        }
        if !message.is_empty() {
            route.insert("message".to_owned(), Value::Object(message));
        }
        Value::Object(route).to_string().into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn whole() -> Value {
        json!({"version": "1", "tenant_id": "body", "request_id": "r", "task": {"type": "chat", "payload": {"a": 1}}})
    }

    #[test]
    fn what_must_be_there() {
        assert!(decide(whole().to_string().as_bytes()).is_some());
        let wrong = [
            ("version", json!("2")),
            ("version", json!(1)),
            ("tenant_id", json!(1)),
            ("request_id", Value::Null),
            ("task", json!("chat")),
            ("task", json!({"type": "chat"})),
            ("task", json!({"type": 1, "payload": {}})),
            ("task", json!({"type": "chat", "payload": "text"})),
        ];
        for (key, value) in wrong {
            let mut body = whole();
            body[key] = value;
            assert!(decide(body.to_string().as_bytes()).is_none(), "{body}");
        }
        for body in ["", "{", "[]", "null", "{}"] {
            assert!(decide(body.as_bytes()).is_none(), "{body}");
        }
    }

    #[test]
    fn headers_are_stronger_and_unknown_fields_stay_behind() {
        let mut body = whole();
        body["trace_id"] = json!("body");
        body["message_id"] = json!("m");
        body["push_assignment"] = json!(true);
        body["unknown"] = json!(1);
        let body = decide(body.to_string().as_bytes()).unwrap();
        assert_eq!(body.trace_id.as_deref(), Some("body"));
        let route = |trace| -> Value {
            serde_json::from_slice(&body.clone().route_request("header", trace)).unwrap()
        };
        assert_eq!(
            route("t"),
            json!({"version": "1", "tenant_id": "header", "request_id": "r", "trace_id": "t", "message_id": "m",
                "message": {"message_id": "m"}, "push_assignment": true,
                "task": {"type": "chat", "payload": {"a": 1}}})
        );
        assert_eq!(route("")["trace_id"], "body");
    }
}
