//! Answers that every client can parse: what the gateway reads (`ok`, `error.code`), what the documents say
//! (`decision`, `context`), and the flat copies that the tests and the UI look for, in one object.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::codes::Refusal;
use crate::intake::{Encoding, ReplyContext};
use crate::proto::Writer;

/// The longest reply that the gateway can take.
const REPLY_BYTES_MAX: usize = 65_535;
/// Of a refusal's text, in which a validator may have its say.
const MESSAGE_CHARS_MAX: usize = 1_000;

/// A decision as it is answered and kept.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Decision {
    pub provider: String,
    pub reason: String,
    pub priority: u8,
    pub expected_latency_millis: u64,
    pub expected_cost: f64,
    pub policy_id: String,
    pub policy_version: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sticky_key: Option<String>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub metadata: Map<String, Value>,
}

impl Decision {
    /// As it stands in replies and assignments.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut value = json!({
            "provider_id": self.provider,
            "priority": self.priority,
            "expected_latency_ms": self.expected_latency_millis,
            "expected_cost": self.expected_cost,
            "reason": self.reason,
            "policy_id": self.policy_id,
            "policy_version": self.policy_version,
            "fallback_used": self.reason.ends_with("fallback"),
            "metadata": self.metadata,
        });
        if let Some(key) = &self.sticky_key {
            value["sticky_key"] = key.as_str().into();
        }
        value
    }
}

/// A decision that was made, in the encoding of its request.
#[must_use]
pub fn decided(context: &ReplyContext, message_id: Option<&str>, decision: &Decision) -> Vec<u8> {
    match context.encoding {
        Encoding::Protobuf => {
            let writer = Writer::default()
                .text(1, &decision.provider)
                .text(2, &decision.reason)
                .int64(3, i64::from(decision.priority))
                .int64(4, i64::try_from(decision.expected_latency_millis).unwrap_or(i64::MAX))
                .double(5, decision.expected_cost);
            let strings: BTreeMap<&String, String> = decision
                .metadata
                .iter()
                .map(|(key, value)| (key, value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
                .collect();
            strings.iter().fold(writer, |writer, (key, value)| writer.map_entry(6, key, value)).finish()
        }
        Encoding::Json => {
            let mut value = json!({
                "ok": true,
                "decision": decision.to_json(),
                "context": context_json(context),
                "provider_id": decision.provider,
                "reason": decision.reason,
                "priority": decision.priority,
                "expected_latency_ms": decision.expected_latency_millis,
                "expected_cost": decision.expected_cost,
                "metadata": decision.metadata,
            });
            if let Some(id) = message_id {
                value["message_id"] = id.into();
            }
            let mut text = value.to_string();
            if text.len() > REPLY_BYTES_MAX {
                // Once is enough; and what post-processors add must not cost the client its answer.
                value["metadata"] = json!({});
                text = value.to_string();
            }
            if text.len() > REPLY_BYTES_MAX {
                value["decision"]["metadata"] = json!({"left_out": "too large for the gateway"});
                text = value.to_string();
            }
            text.into_bytes()
        }
    }
}

/// An error. Always JSON: a RouteDecision has no place for one.
#[must_use]
pub fn refused(context: &ReplyContext, refusal: &Refusal) -> Vec<u8> {
    let message: String = refusal.message.chars().take(MESSAGE_CHARS_MAX).collect();
    let mut error = json!({"code": refusal.code.as_str(), "message": message});
    if let Some(intake) = refusal.intake {
        error["intake_error_code"] = intake.as_str().into();
    }
    if let Some(details) = &refusal.details
        && serde_json::to_vec(details).is_ok_and(|raw| raw.len() <= REPLY_BYTES_MAX / 2)
    {
        error["details"] = details.clone();
    }
    json!({"ok": false, "error": error, "context": context_json(context)}).to_string().into_bytes()
}

fn context_json(context: &ReplyContext) -> Value {
    let mut value = json!({"request_id": context.request_id});
    if let Some(trace) = &context.trace_id {
        value["trace_id"] = trace.as_str().into();
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codes::{Code, IntakeCode};
    use crate::proto;

    fn decision() -> Decision {
        Decision {
            provider: "openai".into(),
            reason: "weighted".into(),
            priority: 50,
            expected_latency_millis: 120,
            expected_cost: 0.25,
            policy_id: "default".into(),
            ..Decision::default()
        }
    }

    #[test]
    fn one_reply_has_what_each_client_reads() {
        let context = ReplyContext {
            request_id: Some("r".into()),
            trace_id: Some("t".into()),
            ..ReplyContext::default()
        };
        let raw = decided(&context, Some("m"), &decision());
        let value: Value = serde_json::from_slice(&raw).unwrap();
        assert_eq!(value["ok"], true);
        assert_eq!(value["decision"]["provider_id"], "openai");
        assert_eq!(value["provider_id"], "openai");
        assert_eq!(value["context"], json!({"request_id": "r", "trace_id": "t"}));
        assert_eq!(value["message_id"], "m");
    }

    #[test]
    fn a_reply_is_never_longer_than_the_gateway_can_take() {
        let with = |bytes: usize| {
            let mut decision = decision();
            decision.metadata.insert("long".into(), "x".repeat(bytes).into());
            decided(&ReplyContext::default(), None, &decision)
        };
        for (bytes, flat, nested) in [(1_000, true, true), (40_000, false, true), (64 << 10, false, false)] {
            let raw = with(bytes);
            assert!(raw.len() <= 65_535, "{} bytes", raw.len());
            let value: Value = serde_json::from_slice(&raw).unwrap();
            assert_eq!(value["provider_id"], "openai");
            let has = |place: &Value| place["metadata"]["long"].is_string();
            assert_eq!((has(&value), has(&value["decision"])), (flat, nested), "{bytes}");
        }
        let refusal = Refusal::new(Code::ValidatorBlocked, "é".repeat(100_000))
            .with_details(json!({"why": "x".repeat(100_000)}));
        let raw = refused(&ReplyContext::default(), &refusal);
        assert!(raw.len() <= 65_535);
        let value: Value = serde_json::from_slice(&raw).unwrap();
        assert_eq!(value["error"]["code"], "validator_blocked");
    }

    #[test]
    fn protocol_buffers_get_a_route_decision() {
        let context = ReplyContext { encoding: Encoding::Protobuf, ..ReplyContext::default() };
        let raw = decided(&context, None, &decision());
        let fields: Vec<_> = proto::fields(&raw).collect::<Result<_, _>>().unwrap();
        assert_eq!(fields[0].1.text().unwrap(), "openai");
        assert_eq!(fields[3].1.int64().unwrap(), 120);
        assert_eq!(fields[4].1.double().unwrap(), 0.25);
    }

    #[test]
    fn errors_carry_the_code_and_where_they_came_from() {
        let refusal = Refusal::intake(IntakeCode::TenantForbidden, "no");
        let value: Value = serde_json::from_slice(&refused(&ReplyContext::default(), &refusal)).unwrap();
        assert_eq!((&value["ok"], &value["error"]["code"]), (&json!(false), &json!("unauthorized")));
        assert_eq!(value["error"]["intake_error_code"], "TENANT_FORBIDDEN");
    }

    #[test]
    fn codes_map_as_the_contract_says() {
        for (code, http, grpc) in [
            ("invalid_request", 400, 3),
            ("unauthorized", 401, 16),
            ("policy_not_found", 404, 5),
            ("decision_failed", 500, 13),
            ("internal", 500, 13),
            ("extension_not_found", 404, 5),
            ("extension_timeout", 504, 4),
            ("validator_blocked", 403, 7),
            ("post_processor_failed", 500, 13),
            ("extension_error", 500, 13),
            ("extension_unavailable", 503, 14),
            ("rate_limit_exceeded", 429, 8),
            ("service_overloaded", 503, 14),
        ] {
            let found = Code::ALL.into_iter().find(|known| known.as_str() == code).unwrap();
            assert_eq!((found.http(), found.grpc()), (http, grpc), "{code}");
        }
        let intake = [
            (IntakeCode::SchemaValidationFailed, Code::InvalidRequest, true),
            (IntakeCode::VersionUnsupported, Code::InvalidRequest, true),
            (IntakeCode::CorrelationFieldsInvalid, Code::InvalidRequest, true),
            (IntakeCode::TenantForbidden, Code::Unauthorized, true),
            (IntakeCode::IdempotencyViolation, Code::InvalidRequest, false),
            (IntakeCode::PayloadTooSmall, Code::InvalidRequest, false),
            (IntakeCode::InternalValidationError, Code::Internal, false),
        ];
        for (intake, code, dead) in intake {
            assert_eq!((intake.reply(), intake.is_dead_letter()), (code, dead), "{intake}");
        }
    }
}
