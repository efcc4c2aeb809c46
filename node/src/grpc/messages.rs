//! The messages of package `beamline.flow.v1` (contract section 1.12), and the document of them that reflection
//! gives out. A test holds both together.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message as Prost;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet, MessageOptions,
    MethodDescriptorProto, ServiceDescriptorProto,
};

pub(super) const PACKAGE: &str = "beamline.flow.v1";

type Texts = BTreeMap<String, String>;

#[derive(Clone, PartialEq, Prost)]
pub(super) struct Message {
    #[prost(string, tag = "1")]
    pub(super) message_id: String,
    #[prost(string, tag = "2")]
    pub(super) tenant_id: String,
    #[prost(string, tag = "3")]
    pub(super) trace_id: String,
    #[prost(string, tag = "4")]
    pub(super) message_type: String,
    #[prost(bytes = "bytes", tag = "5")]
    pub(super) payload: Bytes,
    #[prost(btree_map = "string, string", tag = "6")]
    pub(super) metadata: Texts,
    #[prost(int64, tag = "7")]
    pub(super) timestamp_ms: i64,
}

#[derive(Clone, PartialEq, Prost)]
pub(super) struct RouteRequest {
    #[prost(message, optional, tag = "1")]
    pub(super) message: Option<Message>,
    #[prost(string, tag = "2")]
    pub(super) policy_id: String,
    #[prost(btree_map = "string, string", tag = "3")]
    pub(super) context: Texts,
}

#[derive(Clone, PartialEq, Prost)]
pub(super) struct RouteDecision {
    #[prost(string, tag = "1")]
    pub(super) provider_id: String,
    #[prost(string, tag = "2")]
    pub(super) reason: String,
    #[prost(int32, tag = "3")]
    pub(super) priority: i32,
    #[prost(int64, tag = "4")]
    pub(super) expected_latency_ms: i64,
    #[prost(double, tag = "5")]
    pub(super) expected_cost: f64,
    #[prost(btree_map = "string, string", tag = "6")]
    pub(super) metadata: Texts,
}

#[derive(Clone, PartialEq, Prost)]
pub(super) struct AdminProvider {
    #[prost(string, tag = "1")]
    pub(super) id: String,
    #[prost(double, tag = "2")]
    pub(super) weight: f64,
}

#[derive(Clone, PartialEq, Prost)]
pub(super) struct AdminRule {
    #[prost(string, tag = "1")]
    pub(super) r#match: String,
    #[prost(string, repeated, tag = "2")]
    pub(super) prefer: Vec<String>,
    #[prost(string, tag = "3")]
    pub(super) fallback: String,
}

#[derive(Clone, PartialEq, Prost)]
pub(super) struct AdminPolicy {
    #[prost(string, tag = "1")]
    pub(super) policy_id: String,
    #[prost(message, repeated, tag = "2")]
    pub(super) providers: Vec<AdminProvider>,
    #[prost(bool, tag = "3")]
    pub(super) sticky: bool,
    #[prost(message, repeated, tag = "4")]
    pub(super) rules: Vec<AdminRule>,
}

#[derive(Clone, PartialEq, Prost)]
pub(super) struct UpsertPolicyRequest {
    #[prost(string, tag = "1")]
    pub(super) tenant_id: String,
    #[prost(message, optional, tag = "2")]
    pub(super) policy: Option<AdminPolicy>,
}

#[derive(Clone, PartialEq, Prost)]
pub(super) struct Done {
    #[prost(bool, tag = "1")]
    pub(super) ok: bool,
}

#[derive(Clone, PartialEq, Prost)]
pub(super) struct PolicyRequest {
    #[prost(string, tag = "1")]
    pub(super) tenant_id: String,
    #[prost(string, tag = "2")]
    pub(super) policy_id: String,
}

#[derive(Clone, PartialEq, Prost)]
pub(super) struct PolicyResponse {
    #[prost(message, optional, tag = "1")]
    pub(super) policy: Option<AdminPolicy>,
}

#[derive(Clone, PartialEq, Prost)]
pub(super) struct ListPoliciesRequest {
    #[prost(string, tag = "1")]
    pub(super) tenant_id: String,
}

#[derive(Clone, PartialEq, Prost)]
pub(super) struct ListPoliciesResponse {
    #[prost(message, repeated, tag = "1")]
    pub(super) policies: Vec<AdminPolicy>,
}

/// A question of RouterAdmin whose messages the contract does not spell: the JSON of the administrative subject.
#[derive(Clone, PartialEq, Prost)]
pub(super) struct Json {
    #[prost(string, tag = "1")]
    pub(super) json: String,
}

/// Questions of RouterAdmin that carry JSON, and the administrative subjects that answer them.
pub(super) const QUESTIONS: [(&str, &str); 6] = [
    ("GetCheckpointStatus", "get_checkpoint_status"),
    ("GetValidatorsHealth", "get_extension_health"),
    ("GetExtensionHealth", "get_extension_health"),
    ("GetCircuitBreakerStates", "get_circuit_breaker_states"),
    ("DryRunPipeline", "dry_run_pipeline"),
    ("GetPipelineComplexity", "get_pipeline_complexity"),
];

/// Name, type and whether repeated; the number is the place. A type that is none of protobuf's is a message.
type Field = (&'static str, &'static str, bool);

/// `map` is a `map<string, string>`.
const MESSAGES: [(&str, &[Field]); 13] = [
    (
        "Message",
        &[
            ("message_id", "string", false),
            ("tenant_id", "string", false),
            ("trace_id", "string", false),
            ("message_type", "string", false),
            ("payload", "bytes", false),
            ("metadata", "map", true),
            ("timestamp_ms", "int64", false),
        ],
    ),
    (
        "RouteRequest",
        &[("message", "Message", false), ("policy_id", "string", false), ("context", "map", true)],
    ),
    (
        "RouteDecision",
        &[
            ("provider_id", "string", false),
            ("reason", "string", false),
            ("priority", "int32", false),
            ("expected_latency_ms", "int64", false),
            ("expected_cost", "double", false),
            ("metadata", "map", true),
        ],
    ),
    ("AdminProvider", &[("id", "string", false), ("weight", "double", false)]),
    ("AdminRule", &[("match", "string", false), ("prefer", "string", true), ("fallback", "string", false)]),
    (
        "AdminPolicy",
        &[
            ("policy_id", "string", false),
            ("providers", "AdminProvider", true),
            ("sticky", "bool", false),
            ("rules", "AdminRule", true),
        ],
    ),
    ("UpsertPolicyRequest", &[("tenant_id", "string", false), ("policy", "AdminPolicy", false)]),
    ("Done", &[("ok", "bool", false)]),
    ("PolicyRequest", &[("tenant_id", "string", false), ("policy_id", "string", false)]),
    ("PolicyResponse", &[("policy", "AdminPolicy", false)]),
    ("ListPoliciesRequest", &[("tenant_id", "string", false)]),
    ("ListPoliciesResponse", &[("policies", "AdminPolicy", true)]),
    ("Json", &[("json", "string", false)]),
];

/// What reflection gives out.
pub(super) fn descriptors() -> FileDescriptorSet {
    let full = |name: &str| format!(".{PACKAGE}.{name}");
    let method = |name: &str, input: &str, output: &str| MethodDescriptorProto {
        name: Some(name.to_owned()),
        input_type: Some(full(input)),
        output_type: Some(full(output)),
        ..MethodDescriptorProto::default()
    };
    let service = |name: &str, method| ServiceDescriptorProto {
        name: Some(name.to_owned()),
        method,
        ..ServiceDescriptorProto::default()
    };
    let admin = [
        method("UpsertPolicy", "UpsertPolicyRequest", "Done"),
        method("DeletePolicy", "PolicyRequest", "Done"),
        method("GetPolicy", "PolicyRequest", "PolicyResponse"),
        method("ListPolicies", "ListPoliciesRequest", "ListPoliciesResponse"),
    ];
    let questions = QUESTIONS.iter().map(|(name, _)| method(name, "Json", "Json"));
    let file = FileDescriptorProto {
        name: Some("beamline/flow/v1/flow.proto".to_owned()),
        package: Some(PACKAGE.to_owned()),
        syntax: Some("proto3".to_owned()),
        message_type: MESSAGES.iter().map(|(name, fields)| message(name, fields)).collect(),
        service: vec![
            service("Router", vec![method("Decide", "RouteRequest", "RouteDecision")]),
            service("RouterAdmin", admin.into_iter().chain(questions).collect()),
        ],
        ..FileDescriptorProto::default()
    };
    FileDescriptorSet { file: vec![file] }
}

fn field(name: &str, number: usize, kind: Type, of: Option<String>, repeated: bool) -> FieldDescriptorProto {
    let label = if repeated { Label::Repeated } else { Label::Optional };
    FieldDescriptorProto {
        name: Some(name.to_owned()),
        number: i32::try_from(number).ok(),
        label: Some(label.into()),
        r#type: Some(kind.into()),
        type_name: of,
        ..FieldDescriptorProto::default()
    }
}

fn message(name: &str, fields: &[Field]) -> DescriptorProto {
    let mut made = DescriptorProto { name: Some(name.to_owned()), ..DescriptorProto::default() };
    for (at, (field_name, kind, repeated)) in fields.iter().enumerate() {
        let (kind, of) = match *kind {
            "string" => (Type::String, None),
            "bytes" => (Type::Bytes, None),
            "bool" => (Type::Bool, None),
            "double" => (Type::Double, None),
            "int32" => (Type::Int32, None),
            "int64" => (Type::Int64, None),
            "map" => {
                let entry = format!("{}Entry", capitalised(field_name));
                made.nested_type.push(DescriptorProto {
                    name: Some(entry.clone()),
                    field: vec![
                        field("key", 1, Type::String, None, false),
                        field("value", 2, Type::String, None, false),
                    ],
                    options: Some(MessageOptions { map_entry: Some(true), ..MessageOptions::default() }),
                    ..DescriptorProto::default()
                });
                (Type::Message, Some(format!(".{PACKAGE}.{name}.{entry}")))
            }
            other => (Type::Message, Some(format!(".{PACKAGE}.{other}"))),
        };
        made.field.push(field(field_name, at + 1, kind, of, *repeated));
    }
    made
}

fn capitalised(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().into_iter().flat_map(char::to_uppercase).chain(letters).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers and wire types that a message is written with, as the document says them.
    fn check(name: &str, written: &[u8]) {
        let (_, fields) = MESSAGES.iter().find(|(known, _)| *known == name).unwrap();
        let found: Vec<_> = beamlog_tasks::proto::fields(written).collect::<Result<Vec<_>, _>>().unwrap();
        assert_eq!(found.len(), fields.len(), "{name}");
        for (at, ((number, value), (field, kind, _))) in found.iter().zip(*fields).enumerate() {
            assert_eq!(usize::try_from(*number).unwrap(), at + 1, "{name}.{field}");
            let is_so = match *kind {
                "int32" | "int64" | "bool" => matches!(value, beamlog_tasks::proto::Field::Varint(_)),
                "double" => matches!(value, beamlog_tasks::proto::Field::Fixed64(_)),
                _ => matches!(value, beamlog_tasks::proto::Field::Bytes(_)),
            };
            assert!(is_so, "{name}.{field} as {value:?}");
        }
    }

    #[test]
    fn what_reflection_says_is_what_is_sent() {
        let text = || "x".to_owned();
        let texts = || Texts::from([(text(), text())]);
        let sent = Message {
            message_id: text(),
            tenant_id: text(),
            trace_id: text(),
            message_type: text(),
            payload: Bytes::from_static(b"{}"),
            metadata: texts(),
            timestamp_ms: 1,
        };
        check("Message", &sent.encode_to_vec());
        let request = RouteRequest { message: Some(sent), policy_id: text(), context: texts() };
        check("RouteRequest", &request.encode_to_vec());
        let decision = RouteDecision {
            provider_id: text(),
            reason: text(),
            priority: 1,
            expected_latency_ms: 1,
            expected_cost: 1.0,
            metadata: texts(),
        };
        check("RouteDecision", &decision.encode_to_vec());
        let provider = AdminProvider { id: text(), weight: 1.0 };
        check("AdminProvider", &provider.encode_to_vec());
        let rule = AdminRule { r#match: text(), prefer: vec![text()], fallback: text() };
        check("AdminRule", &rule.encode_to_vec());
        let policy =
            AdminPolicy { policy_id: text(), providers: vec![provider], sticky: true, rules: vec![rule] };
        check("AdminPolicy", &policy.encode_to_vec());
        let upsert = UpsertPolicyRequest { tenant_id: text(), policy: Some(policy.clone()) };
        check("UpsertPolicyRequest", &upsert.encode_to_vec());
        check("Done", &Done { ok: true }.encode_to_vec());
        check("PolicyRequest", &PolicyRequest { tenant_id: text(), policy_id: text() }.encode_to_vec());
        check("PolicyResponse", &PolicyResponse { policy: Some(policy.clone()) }.encode_to_vec());
        check("ListPoliciesRequest", &ListPoliciesRequest { tenant_id: text() }.encode_to_vec());
        check("ListPoliciesResponse", &ListPoliciesResponse { policies: vec![policy] }.encode_to_vec());
        check("Json", &Json { json: text() }.encode_to_vec());
    }
}
