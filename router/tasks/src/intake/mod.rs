//! Requests for a decision: the six dialects that are really sent (contract section 1.3), made one.
//!
//! * A: the documented one, with `task`. B: the HTTP gateway's, with `message` and without `task`.
//!   C: the IPC bridge's, with `input` and neither version nor request id. D: the flat one of the tests.
//!   E: protocol buffers, and their JSON twin. F: version "1.0" with `input`.
//! * Tolerant unless asked to be strict. Strict is what the documents say; nobody sends it today.

pub mod fields;

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::codes::{IntakeCode, Refusal};
use crate::{proto, raw_json};
use fields::{
    Correlation, ID_BYTES_MAX, KEY_BYTES_MAX, NAME_BYTES_MAX, TENANT_BYTES_MAX, is_version_1, object, text,
    trace_of_parent,
};

/// How a request came, and so how its answer goes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Encoding {
    #[default]
    Json,
    Protobuf,
}

/// What a reply repeats, known even when the request is refused.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ReplyContext {
    pub encoding: Encoding,
    pub request_id: Option<String>,
    pub trace_id: Option<String>,
    pub tenant: Option<String>,
}

/// A request in the one form that the engine knows.
#[derive(Clone, Debug, PartialEq)]
pub struct DecideRequest {
    pub encoding: Encoding,
    /// `None` when the client gave neither request id nor message id: nothing it could ask again by.
    pub request_id: Option<String>,
    pub message_id: Option<String>,
    pub tenant: String,
    pub correlation: Correlation,
    pub traceparent: Option<String>,
    pub idempotency_key: Option<String>,
    pub policy_id: String,
    pub job_type: String,
    /// JSON text exactly as it came.
    pub payload: Option<Arc<str>>,
    pub payload_ref: Option<String>,
    /// Context, constraints and metadata in one.
    pub context: Map<String, Value>,
    pub options: Map<String, Value>,
    pub push_assignment: bool,
    pub assignment_subject: Option<String>,
    /// Of everything that decides what the request is; not of its trace.
    pub fingerprint: [u8; 16],
}

/// How a parse judges.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct IntakeRules {
    pub strict: bool,
    /// The most a request may be. Default 1 MiB.
    pub payload_bytes_max: usize,
}

/// Smallest task payload that strict rules accept, serialised.
const PAYLOAD_BYTES_MIN: usize = 10;

impl Default for IntakeRules {
    fn default() -> Self {
        Self { strict: false, payload_bytes_max: 1 << 20 }
    }
}

#[derive(Default, Deserialize)]
struct TaskWire {
    #[serde(rename = "type")]
    kind: Option<Value>,
    payload: Option<IgnoredAny>,
    payload_ref: Option<Value>,
}

#[derive(Default, Deserialize)]
struct MessageWire {
    message_id: Option<Value>,
    tenant_id: Option<Value>,
    trace_id: Option<Value>,
    message_type: Option<Value>,
    payload: Option<IgnoredAny>,
    metadata: Option<Value>,
}

#[derive(Default, Deserialize)]
struct RequestWire {
    version: Option<Value>,
    request_id: Option<Value>,
    message_id: Option<Value>,
    tenant_id: Option<Value>,
    trace_id: Option<Value>,
    run_id: Option<Value>,
    flow_id: Option<Value>,
    step_id: Option<Value>,
    idempotency_key: Option<Value>,
    policy_id: Option<Value>,
    task: Option<TaskWire>,
    message: Option<MessageWire>,
    message_type: Option<Value>,
    payload: Option<IgnoredAny>,
    input: Option<IgnoredAny>,
    context: Option<Value>,
    constraints: Option<Value>,
    metadata: Option<Value>,
    options: Option<Value>,
    push_assignment: Option<Value>,
    assignment_subject: Option<Value>,
}

/// Reads a request. `headers` is the raw block of the message, or empty.
///
/// # Errors
/// Why it is refused, and what is known of it for the reply.
pub fn decide(
    headers: &[u8],
    payload: &[u8],
    rules: IntakeRules,
) -> Result<DecideRequest, Box<(Refusal, ReplyContext)>> {
    let mut known = ReplyContext::default();
    parse(headers, payload, rules, &mut known).map_err(|refusal| Box::new((refusal, known)))
}

fn parse(
    headers: &[u8],
    payload: &[u8],
    rules: IntakeRules,
    known: &mut ReplyContext,
) -> Result<DecideRequest, Refusal> {
    if payload.len() > rules.payload_bytes_max {
        return Err(schema(format!("the request is larger than {} bytes", rules.payload_bytes_max)));
    }
    if payload.trim_ascii_start().first() == Some(&b'{') {
        match serde_json::from_slice::<RequestWire>(payload) {
            Ok(wire) => {
                // serde has read it as JSON, and so as UTF-8.
                let text = std::str::from_utf8(payload).unwrap_or_default();
                let body = Body::of(&wire, text);
                return normalise(headers, wire, body, rules, known);
            }
            // A protocol buffer may begin with a line feed and a brace: a message of 123 bytes.
            Err(error) => {
                if payload.first() != Some(&0x0a) {
                    let place = format!("line {}, column {}", error.line(), error.column());
                    return Err(schema(match error.classify() {
                        serde_json::error::Category::Data => format!("a field has the wrong type at {place}"),
                        serde_json::error::Category::Syntax
                        | serde_json::error::Category::Eof
                        | serde_json::error::Category::Io => format!("the request is not JSON at {place}"),
                    }));
                }
            }
        }
    }
    let route = protobuf(payload)
        .map_err(|_malformed| schema("the request is neither a JSON object nor a RouteRequest"))?;
    known.encoding = Encoding::Protobuf;
    let body = payload_json(&route.payload);
    let message = MessageWire {
        message_id: some(route.message_id),
        tenant_id: some(route.tenant_id),
        trace_id: some(route.trace_id),
        message_type: some(route.message_type),
        payload: None,
        metadata: Some(strings(route.metadata)),
    };
    let wire = RequestWire {
        message: Some(message),
        policy_id: some(route.policy_id),
        context: Some(strings(route.context)),
        ..RequestWire::default()
    };
    let body = Body { of_task: None, of_message: body };
    normalise(headers, wire, body, rules, known)
}

fn schema(message: impl Into<String>) -> Refusal {
    Refusal::intake(IntakeCode::SchemaValidationFailed, message)
}

fn some(text: String) -> Option<Value> {
    (!text.is_empty()).then_some(Value::String(text))
}

fn strings(map: BTreeMap<String, String>) -> Value {
    Value::Object(map.into_iter().map(|(key, value)| (key, Value::String(value))).collect())
}

/// `beamline.flow.v1.RouteRequest`.
#[derive(Debug, Default)]
struct RouteRequest {
    message_id: String,
    tenant_id: String,
    trace_id: String,
    message_type: String,
    payload: Vec<u8>,
    metadata: BTreeMap<String, String>,
    policy_id: String,
    context: BTreeMap<String, String>,
}

fn protobuf(raw: &[u8]) -> Result<RouteRequest, proto::Malformed> {
    let mut route = RouteRequest::default();
    let mut has_message = false;
    for field in proto::fields(raw) {
        match field? {
            (1, message) => {
                has_message = true;
                for field in proto::fields(message.bytes()?) {
                    match field? {
                        (1, field) => route.message_id = field.text()?,
                        (2, field) => route.tenant_id = field.text()?,
                        (3, field) => route.trace_id = field.text()?,
                        (4, field) => route.message_type = field.text()?,
                        (5, field) => route.payload = field.bytes()?.to_vec(),
                        (6, field) => field.map_entry(&mut route.metadata)?,
                        _ => {}
                    }
                }
            }
            (2, field) => route.policy_id = field.text()?,
            (3, field) => field.map_entry(&mut route.context)?,
            _ => {}
        }
    }
    if has_message { Ok(route) } else { Err(proto::Malformed) }
}

/// Bytes as a worker can be given them: JSON as it is, text as a string, anything else in base64.
fn payload_json(bytes: &[u8]) -> Option<Arc<str>> {
    if bytes.is_empty() {
        return None;
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) if serde_json::from_str::<IgnoredAny>(text).is_ok() => text.trim().to_owned(),
        Ok(text) => Value::from(text).to_string(),
        Err(_) => Value::from(base64::engine::general_purpose::STANDARD.encode(bytes)).to_string(),
    };
    Some(text.into())
}

/// The payload as text, from wherever the dialect has it.
struct Body {
    of_task: Option<Arc<str>>,
    of_message: Option<Arc<str>>,
}

impl Body {
    fn of(wire: &RequestWire, text: &str) -> Self {
        fn part<'t>(whole: Option<&'t str>, key: &str) -> Option<&'t str> {
            raw_json::member(whole?, key)
        }
        let has = |value: Option<&IgnoredAny>, found: Option<&str>| {
            // A name that is spelt with escapes is not found by its letters; nobody writes one so.
            value.and(found).map(Arc::from)
        };
        let task = wire.task.as_ref().and_then(|task| task.payload.as_ref());
        let message = wire.message.as_ref().and_then(|message| message.payload.as_ref());
        Self {
            of_task: has(task, part(part(Some(text), "task"), "payload")),
            of_message: has(message, part(part(Some(text), "message"), "payload"))
                .or_else(|| has(wire.payload.as_ref(), part(Some(text), "payload")))
                .or_else(|| has(wire.input.as_ref(), part(Some(text), "input"))),
        }
    }
}

fn header(headers: &[u8], names: &[&[u8]]) -> Option<Value> {
    let value = names.iter().find_map(|name| beamlog_router::headers::find_ignore_case(headers, name))?;
    let value = std::str::from_utf8(value).ok()?.trim();
    (!value.is_empty()).then(|| Value::String(value.to_owned()))
}

/// The first that is there and not empty.
fn first<const N: usize>(
    values: [Option<&Value>; N],
    name: &str,
    bytes_max: usize,
) -> Result<Option<String>, Refusal> {
    for value in values {
        if let Some(found) = text(value, name, bytes_max)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn is_true(value: Option<&Value>) -> bool {
    match value {
        Some(Value::Bool(yes)) => *yes,
        Some(Value::String(text)) => text == "true" || text == "1",
        Some(Value::Number(number)) => number.as_i64() == Some(1),
        None | Some(Value::Null | Value::Array(_) | Value::Object(_)) => false,
    }
}

fn normalise(
    headers: &[u8],
    wire: RequestWire,
    body: Body,
    rules: IntakeRules,
    known: &mut ReplyContext,
) -> Result<DecideRequest, Refusal> {
    let task = wire.task.unwrap_or_default();
    let has_message = wire.message.is_some();
    let message = wire.message.unwrap_or_default();

    // First what the reply repeats, so that even a refusal can be matched to its request.
    let message_id =
        first([message.message_id.as_ref(), wire.message_id.as_ref()], "message_id", ID_BYTES_MAX)?;
    let request_header = header(headers, &[b"x_request_id", b"x-request-id"]);
    let request_id = first([wire.request_id.as_ref(), request_header.as_ref()], "request_id", ID_BYTES_MAX)?;
    let has_request_id = request_id.is_some();
    let request_id = request_id.or_else(|| message_id.clone());
    known.request_id.clone_from(&request_id);
    let parent = header(headers, &[b"traceparent"]);
    let from_parent =
        parent.as_ref().and_then(Value::as_str).and_then(trace_of_parent).map(|id| Value::String(id.into()));
    let trace_header = header(headers, &[b"trace_id", b"x-trace-id", b"x_trace_id"]);
    let traces =
        [wire.trace_id.as_ref(), message.trace_id.as_ref(), trace_header.as_ref(), from_parent.as_ref()];
    let trace_id = first(traces, "trace_id", ID_BYTES_MAX)?;
    known.trace_id.clone_from(&trace_id);
    let tenant_header = header(headers, &[b"tenant_id", b"x-tenant-id", b"x_tenant_id"]);
    let tenants = [wire.tenant_id.as_ref(), message.tenant_id.as_ref(), tenant_header.as_ref()];
    let tenant = first(tenants, "tenant_id", TENANT_BYTES_MAX)?;
    known.tenant.clone_from(&tenant);

    let version =
        wire.version.filter(|version| !version.is_null()).or_else(|| header(headers, &[b"version"]));
    match &version {
        Some(version) if !is_version_1(version, rules.strict) => {
            return Err(Refusal::intake(IntakeCode::VersionUnsupported, "version must be \"1\""));
        }
        None if rules.strict => {
            return Err(Refusal::intake(IntakeCode::VersionUnsupported, "version is required"));
        }
        Some(_) | None => {}
    }
    let Some(tenant) = tenant else {
        return Err(Refusal::intake(
            IntakeCode::CorrelationFieldsInvalid,
            "tenant_missing: tenant_id is required",
        ));
    };
    let correlation = Correlation {
        trace_id,
        run_id: text(wire.run_id.as_ref(), "run_id", ID_BYTES_MAX)?,
        flow_id: text(wire.flow_id.as_ref(), "flow_id", ID_BYTES_MAX)?,
        step_id: text(wire.step_id.as_ref(), "step_id", ID_BYTES_MAX)?,
    };
    if matches!(&wire.idempotency_key, Some(Value::String(key)) if key.is_empty()) {
        return Err(Refusal::intake(
            IntakeCode::CorrelationFieldsInvalid,
            "invalid_idempotency_key: idempotency_key must not be empty",
        ));
    }
    let idempotency_key = text(wire.idempotency_key.as_ref(), "idempotency_key", KEY_BYTES_MAX)?;
    let types = [task.kind.as_ref(), message.message_type.as_ref(), wire.message_type.as_ref()];
    let job_type = first(types, "task.type", NAME_BYTES_MAX)?;
    let payload_ref = text(task.payload_ref.as_ref(), "task.payload_ref", 4 * NAME_BYTES_MAX)?;

    if rules.strict {
        if !has_request_id {
            return Err(Refusal::intake(
                IntakeCode::CorrelationFieldsInvalid,
                "missing_request_id: request_id is required",
            ));
        }
        correlation.check()?;
        if task.kind.is_none() || job_type.is_none() {
            return Err(Refusal::intake(
                IntakeCode::CorrelationFieldsInvalid,
                "missing_task: task.type is required",
            ));
        }
        match (&body.of_task, &payload_ref) {
            (None, None) => {
                return Err(Refusal::intake(
                    IntakeCode::CorrelationFieldsInvalid,
                    "missing_task_payload: task.payload or task.payload_ref is required",
                ));
            }
            (Some(payload), _) => {
                if !payload.starts_with('{') {
                    return Err(schema("task.payload must be an object"));
                }
                if payload.len() < PAYLOAD_BYTES_MIN {
                    return Err(Refusal::intake(
                        IntakeCode::PayloadTooSmall,
                        format!("payload_too_small: task.payload is smaller than {PAYLOAD_BYTES_MIN} bytes"),
                    ));
                }
            }
            (None, Some(_)) => {}
        }
    }

    let mut context = object(wire.context, "context")?;
    for (name, part) in [
        ("constraints", wire.constraints),
        ("metadata", wire.metadata),
        ("message.metadata", message.metadata),
    ] {
        for (key, value) in object(part, name)? {
            context.entry(key).or_insert(value);
        }
    }
    flatten_sticky(&mut context);
    let options = object(wire.options, "options")?;
    let assignment_subject = text(wire.assignment_subject.as_ref(), "assignment_subject", NAME_BYTES_MAX)?;
    if let Some(subject) = &assignment_subject
        && beamlog_router::subject::check_subject(subject.as_bytes()).is_err()
    {
        return Err(schema("assignment_subject is not a subject"));
    }
    let policy_id = text(wire.policy_id.as_ref(), "policy_id", NAME_BYTES_MAX)?;
    let mut request = DecideRequest {
        encoding: known.encoding,
        message_id: message_id.or_else(|| if has_message { request_id.clone() } else { None }),
        request_id,
        tenant,
        correlation,
        traceparent: parent.as_ref().and_then(Value::as_str).map(str::to_owned),
        idempotency_key,
        policy_id: policy_id.unwrap_or_else(|| "default".to_owned()),
        job_type: job_type.unwrap_or_else(|| "unknown".to_owned()),
        payload: body.of_task.or(body.of_message),
        payload_ref,
        context,
        options,
        push_assignment: is_true(wire.push_assignment.as_ref()),
        assignment_subject,
        fingerprint: [0; 16],
    };
    request.fingerprint = fingerprint(&request);
    Ok(request)
}

/// The flat dialect nests the session: `context.sticky.session_key`.
fn flatten_sticky(context: &mut Map<String, Value>) {
    let Some(Value::Object(sticky)) = context.get("sticky") else { return };
    let key = sticky.get("session_key").or_else(|| sticky.get("session_id")).cloned();
    if let Some(key) = key
        && !context.contains_key("session_id")
    {
        context.insert("session_id".to_owned(), key);
    }
}

fn fingerprint(request: &DecideRequest) -> [u8; 16] {
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    part(request.tenant.as_bytes());
    part(request.policy_id.as_bytes());
    part(request.job_type.as_bytes());
    part(request.payload.as_deref().unwrap_or_default().as_bytes());
    part(request.payload_ref.as_deref().unwrap_or_default().as_bytes());
    part(request.assignment_subject.as_deref().unwrap_or_default().as_bytes());
    part(&[u8::from(request.push_assignment)]);
    for map in [&request.context, &request.options] {
        // A map of strings writes itself without fail.
        part(&serde_json::to_vec(map).unwrap_or_default());
    }
    let whole = hash.finalize();
    let mut short = [0; 16];
    short.copy_from_slice(&whole[..16]);
    short
}

#[cfg(test)]
mod tests;
