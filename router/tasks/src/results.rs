//! What workers say: results in all their forms, acks, heartbeats, dead letters (contract 1.5 and 1.6).

use std::collections::BTreeMap;

use serde_json::Value;

use crate::codes::{IntakeCode, Refusal};
use crate::intake::fields::{ID_BYTES_MAX, NAME_BYTES_MAX, TENANT_BYTES_MAX, is_version_1, text};
use crate::proto;

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Success,
    #[default]
    Error,
    Timeout,
    Cancelled,
}

impl Status {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Error => "error",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        match text {
            "success" | "ok" | "completed" => Some(Self::Success),
            "error" | "failed" => Some(Self::Error),
            "timeout" => Some(Self::Timeout),
            "cancelled" | "canceled" => Some(Self::Cancelled),
            _ => None,
        }
    }
}

/// The end of an execution, as a worker tells it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExecResult {
    pub assignment_id: Option<String>,
    pub request_id: Option<String>,
    pub status: Status,
    /// A provider from some senders, the worker's own id from others: who it was is looked up.
    pub provider_id: Option<String>,
    pub job_type: Option<String>,
    pub latency_millis: u64,
    pub cost: f64,
    /// As far as the worker counted them (`usage.total_tokens` of its output).
    pub tokens: u64,
    pub trace_id: Option<String>,
    pub tenant: Option<String>,
    pub run_id: Option<String>,
    pub error_code: Option<String>,
}

/// `accepted`, `rejected` or `error` for an assignment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ExecAck {
    pub assignment_id: String,
    pub accepted: bool,
    pub tenant: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum WorkerStatus {
    #[default]
    Idle,
    Busy,
    Draining,
    Stopped,
}

impl WorkerStatus {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Busy => "busy",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Heartbeat {
    pub worker_id: String,
    pub status: WorkerStatus,
    pub load: f64,
}

fn schema(message: impl Into<String>) -> Refusal {
    Refusal::intake(IntakeCode::SchemaValidationFailed, message)
}

/// A JSON object, without its `EventEnvelopeV1` if it has one.
fn open_envelope(payload: &[u8], kind: &str) -> Result<serde_json::Map<String, Value>, Refusal> {
    let value: Value = serde_json::from_slice(payload)
        .map_err(|error| schema(format!("not JSON at line {}, column {}", error.line(), error.column())))?;
    let Value::Object(mut map) = value else { return Err(schema("not a JSON object")) };
    let is_envelope = map.get("data").is_some_and(Value::is_object) && map.contains_key("kind");
    if !is_envelope {
        return Ok(map);
    }
    if map.get("kind").and_then(Value::as_str) != Some(kind) {
        return Err(schema(format!("the envelope's kind is not {kind}")));
    }
    match map.remove("data") {
        Some(Value::Object(data)) => Ok(data),
        Some(_) | None => Err(schema("the envelope has no data")),
    }
}

fn header(headers: &[u8], name: &[u8]) -> Option<String> {
    let value = beamlog_router::headers::find_ignore_case(headers, name)?;
    let value = std::str::from_utf8(value).ok()?.trim();
    (!value.is_empty() && value.len() <= TENANT_BYTES_MAX).then(|| value.to_owned())
}

fn version(value: Option<&Value>, headers: &[u8]) -> Result<(), Refusal> {
    let from_header = header(headers, b"version").map(Value::String);
    match from_header.as_ref().or(value) {
        None | Some(Value::Null) => Ok(()),
        Some(version) if is_version_1(version, false) => Ok(()),
        Some(_) => Err(Refusal::intake(IntakeCode::VersionUnsupported, "version must be \"1\"")),
    }
}

/// A number that is not negative; text of one is taken too, as one helper library sends it.
fn millis(value: Option<&Value>) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a cast of floats saturates")]
    let from_float = |number: f64| number as u64;
    match value {
        Some(Value::Number(number)) => {
            number.as_u64().or_else(|| number.as_f64().map(from_float)).unwrap_or_default()
        }
        Some(Value::String(text)) => text.parse().unwrap_or_default(),
        Some(Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_)) | None => 0,
    }
}

fn amount(value: Option<&Value>) -> f64 {
    let amount = match value {
        Some(Value::Number(number)) => number.as_f64(),
        Some(Value::String(text)) => text.parse().ok(),
        Some(Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_)) | None => None,
    };
    amount.filter(|amount| amount.is_finite() && *amount >= 0.0).unwrap_or_default()
}

fn is_json(payload: &[u8]) -> bool {
    payload.trim_ascii_start().first() == Some(&b'{')
}

/// Reads a result. Headers beat the payload for tenant, trace and version.
///
/// # Errors
/// It is none.
pub fn exec_result(headers: &[u8], payload: &[u8]) -> Result<ExecResult, Refusal> {
    let mut result = if is_json(payload) && payload.first() != Some(&0x0a) {
        json_result(headers, payload)?
    } else {
        match protobuf_result(payload) {
            Ok(result) => result,
            Err(proto::Malformed) if is_json(payload) => json_result(headers, payload)?,
            Err(proto::Malformed) => return Err(schema("neither a JSON object nor an ExecResult")),
        }
    };
    if let Some(tenant) = header(headers, b"tenant_id") {
        result.tenant = Some(tenant);
    }
    if let Some(trace) = header(headers, b"trace_id") {
        result.trace_id = Some(trace);
    }
    if result.assignment_id.is_none() && result.request_id.is_none() {
        return Err(Refusal::intake(
            IntakeCode::CorrelationFieldsInvalid,
            "assignment_id or request_id is required",
        ));
    }
    Ok(result)
}

fn json_result(headers: &[u8], payload: &[u8]) -> Result<ExecResult, Refusal> {
    let map = open_envelope(payload, "exec_result")?;
    version(map.get("version"), headers)?;
    let field = |key: &str, max: usize| text(map.get(key), key, max);
    let status = field("status", 32)?;
    let status = status
        .as_deref()
        .and_then(Status::parse)
        .ok_or_else(|| schema("status must be success, error, timeout or cancelled"))?;
    let job_type = match map.get("job") {
        Some(Value::Object(job)) => text(job.get("type"), "job.type", NAME_BYTES_MAX)?,
        // One helper writes the job as text.
        Some(Value::String(job)) => match serde_json::from_str::<Value>(job) {
            Ok(job) => text(job.get("type"), "job.type", NAME_BYTES_MAX)?,
            Err(_) => None,
        },
        Some(_) | None => None,
    };
    let usage = map.get("output").and_then(|output| output.get("usage")).or_else(|| map.get("usage"));
    let tokens = usage.map_or(0, |usage| {
        let total = millis(usage.get("total_tokens"));
        let parts = [("prompt_tokens", "completion_tokens"), ("input_tokens", "output_tokens")];
        let sums = parts.map(|(a, b)| millis(usage.get(a)).saturating_add(millis(usage.get(b))));
        [total, sums[0], sums[1]].into_iter().find(|tokens| *tokens > 0).unwrap_or(0)
    });
    Ok(ExecResult {
        assignment_id: field("assignment_id", ID_BYTES_MAX)?,
        request_id: field("request_id", ID_BYTES_MAX)?,
        status,
        provider_id: field("provider_id", TENANT_BYTES_MAX)?,
        job_type: match field("job_type", NAME_BYTES_MAX)? {
            Some(job_type) => Some(job_type),
            None => job_type,
        },
        latency_millis: millis(map.get("latency_ms")),
        cost: amount(map.get("cost")),
        tokens,
        trace_id: field("trace_id", ID_BYTES_MAX)?,
        tenant: field("tenant_id", TENANT_BYTES_MAX)?,
        run_id: field("run_id", ID_BYTES_MAX)?,
        error_code: match map.get("error_code") {
            Some(code) => text(Some(code), "error_code", ID_BYTES_MAX)?,
            None => None,
        },
    })
}

fn protobuf_result(raw: &[u8]) -> Result<ExecResult, proto::Malformed> {
    let mut result = ExecResult::default();
    let mut status = None;
    let some = |text: String| (!text.is_empty() && text.len() <= TENANT_BYTES_MAX).then_some(text);
    for field in proto::fields(raw) {
        match field? {
            (1, field) => result.assignment_id = some(field.text()?),
            (2, field) => result.request_id = some(field.text()?),
            (3, field) => status = Status::parse(&field.text()?),
            (4, field) => result.provider_id = some(field.text()?),
            (5, job) => {
                let mut metadata = BTreeMap::new();
                for field in proto::fields(job.bytes()?) {
                    match field? {
                        (1, field) => result.job_type = some(field.text()?),
                        (2, field) => field.map_entry(&mut metadata)?,
                        _ => {}
                    }
                }
            }
            (6, field) => result.latency_millis = u64::try_from(field.int64()?).unwrap_or(0),
            (7, field) => {
                result.cost =
                    Some(field.double()?).filter(|cost| cost.is_finite() && *cost >= 0.0).unwrap_or(0.0);
            }
            (8, field) => result.trace_id = some(field.text()?),
            (9, field) => result.tenant = some(field.text()?),
            (11, field) => result.error_code = some(field.text()?),
            _ => {}
        }
    }
    result.status = status.ok_or(proto::Malformed)?;
    Ok(result)
}

/// Reads an ack of an assignment.
///
/// # Errors
/// It is none.
pub fn exec_ack(headers: &[u8], payload: &[u8]) -> Result<ExecAck, Refusal> {
    let (assignment_id, status, tenant) = if is_json(payload) {
        let map = open_envelope(payload, "exec_ack")?;
        version(map.get("version"), headers)?;
        (
            text(map.get("assignment_id"), "assignment_id", ID_BYTES_MAX)?,
            text(map.get("status"), "status", 32)?,
            text(map.get("tenant_id"), "tenant_id", TENANT_BYTES_MAX)?,
        )
    } else {
        let mut parts = (None, None, None);
        for field in proto::fields(payload) {
            let malformed = |_: proto::Malformed| schema("neither a JSON object nor an ExecAssignmentAck");
            match field.map_err(malformed)? {
                (1, field) => parts.0 = Some(field.text().map_err(malformed)?),
                (2, field) => parts.1 = Some(field.text().map_err(malformed)?),
                (6, field) => parts.2 = Some(field.text().map_err(malformed)?),
                _ => {}
            }
        }
        parts
    };
    let assignment_id = assignment_id
        .filter(|id| !id.is_empty())
        .ok_or_else(|| Refusal::intake(IntakeCode::CorrelationFieldsInvalid, "assignment_id is required"))?;
    let accepted = match status.as_deref() {
        Some("accepted") => true,
        Some("rejected" | "error") => false,
        Some(_) | None => return Err(schema("status must be accepted, rejected or error")),
    };
    Ok(ExecAck { assignment_id, accepted, tenant: header(headers, b"tenant_id").or(tenant) })
}

/// Reads a heartbeat.
///
/// # Errors
/// It is none.
pub fn heartbeat(payload: &[u8]) -> Result<Heartbeat, Refusal> {
    let map = open_envelope(payload, "heartbeat")?;
    let worker_id = text(map.get("worker_id"), "worker_id", ID_BYTES_MAX)?
        .ok_or_else(|| schema("worker_id is required"))?;
    let status = match map.get("status").and_then(Value::as_str) {
        None | Some("idle") => WorkerStatus::Idle,
        Some("busy") => WorkerStatus::Busy,
        Some("draining") => WorkerStatus::Draining,
        Some("stopped") => WorkerStatus::Stopped,
        Some(_) => return Err(schema("status must be idle, busy, draining or stopped")),
    };
    let load = amount(map.get("load")).clamp(0.0, 1.0);
    Ok(Heartbeat { worker_id, status, load })
}

/// What a worker could not take: only the reason; what it refers to is not ours to read.
///
/// # Errors
/// It is no dead letter.
pub fn worker_dead_letter(payload: &[u8]) -> Result<String, Refusal> {
    let map = match open_envelope(payload, "dead_letter") {
        Ok(map) => map,
        // The documented form is a result with status error.
        Err(_) => open_envelope(payload, "exec_result")?,
    };
    let reason = text(map.get("reason"), "reason", 64)?.or(text(map.get("error_code"), "error_code", 64)?);
    Ok(reason.unwrap_or_else(|| "unknown".to_owned()))
}

/// Whether trying again may help (contract 1.6).
#[must_use]
pub fn is_retryable(status: Status, error_code: Option<&str>) -> bool {
    match status {
        Status::Success | Status::Cancelled => return false,
        Status::Timeout => return true,
        Status::Error => {}
    }
    let Some(code) = error_code else { return true };
    if let Ok(number) = code.parse::<u32>() {
        return matches!(number, 2001 | 2002 | 3000..=3999 | 4000..=4999 | 408 | 429 | 500..=599);
    }
    match code.to_ascii_lowercase().as_str() {
        // The worker's own refusals, and the names of the classes 1xxx, 2003, 2004 and 5xxx.
        "unknown_job_type"
        | "missing_url"
        | "invalid_method"
        | "request_build_error"
        | "missing_expression"
        | "jmespath_compile_error"
        | "jmespath_runtime_error"
        | "missing_code"
        | "missing_connection_string"
        | "missing_query"
        | "db_query_error"
        | "missing_path"
        | "invalid_path"
        | "missing_content"
        | "base64_decode_error"
        | "missing_prompt"
        | "invalid_input"
        | "missing_required_field"
        | "invalid_format"
        | "permission_denied"
        | "quota_exceeded"
        | "cancelled_by_user"
        | "cancelled_by_timeout" => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::proto::Writer;

    fn read(value: &Value) -> ExecResult {
        exec_result(b"", value.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn the_shipped_workers_result() {
        let result = read(&json!({"version": "v1", "kind": "exec_result", "data": {"version": "1.0",
            "assignment_id": "a", "request_id": "r", "status": "success", "provider_id": "worker-1",
            "job_type": "echo", "output": {"usage": {"prompt_tokens": 3, "completion_tokens": 4}},
            "latency_ms": 12, "cost": 0.0, "tenant_id": "t", "trace_id": null, "run_id": "run"}}));
        assert_eq!((result.assignment_id.as_deref(), result.status), (Some("a"), Status::Success));
        assert_eq!((result.job_type.as_deref(), result.latency_millis, result.tokens), (Some("echo"), 12, 7));
        assert_eq!(result.tenant.as_deref(), Some("t"));
    }

    #[test]
    fn the_documented_result_and_the_one_of_strings() {
        let flat = read(&json!({"assignment_id": "a", "status": "error", "provider_id": "openai",
            "job": {"type": "chat"}, "latency_ms": 1.9, "cost": 0.5, "error_code": "3001"}));
        assert_eq!((flat.job_type.as_deref(), flat.latency_millis, flat.cost), (Some("chat"), 1, 0.5));
        let strings = read(&json!({"version": "1", "assignment_id": "a", "status": "timeout",
            "job": "{\"type\":\"chat\"}", "latency_ms": "17", "cost": "0.25"}));
        assert_eq!(
            (strings.job_type.as_deref(), strings.latency_millis, strings.cost),
            (Some("chat"), 17, 0.25)
        );
    }

    #[test]
    fn the_protocol_buffer() {
        let job = Writer::default().text(1, "chat").map_entry(2, "k", "v").finish();
        let raw = Writer::default()
            .text(1, "a")
            .text(2, "r")
            .text(3, "success")
            .text(4, "openai")
            .bytes(5, &job)
            .int64(6, 42)
            .double(7, 0.125)
            .text(9, "t")
            .finish();
        let result = exec_result(b"", &raw).unwrap();
        assert_eq!(
            (result.job_type.as_deref(), result.latency_millis, result.cost),
            (Some("chat"), 42, 0.125)
        );
    }

    #[test]
    fn headers_beat_the_payload() {
        let raw = json!({"assignment_id": "a", "status": "success", "tenant_id": "one", "version": "9"});
        let headers = b"NATS/1.0\r\ntenant_id: two\r\nversion: 1\r\n\r\n";
        let result = exec_result(headers, raw.to_string().as_bytes()).unwrap();
        assert_eq!(result.tenant.as_deref(), Some("two"));
        let refused = exec_result(b"", raw.to_string().as_bytes()).unwrap_err();
        assert_eq!(refused.intake, Some(IntakeCode::VersionUnsupported));
    }

    #[test]
    fn what_is_no_result_is_refused() {
        for (raw, intake) in [
            (json!({"status": "success"}), IntakeCode::CorrelationFieldsInvalid),
            (json!({"assignment_id": "a"}), IntakeCode::SchemaValidationFailed),
            (json!({"assignment_id": "a", "status": "great"}), IntakeCode::SchemaValidationFailed),
            (json!({"kind": "heartbeat", "data": {}}), IntakeCode::SchemaValidationFailed),
            (json!([]), IntakeCode::SchemaValidationFailed),
            (json!({"assignment_id": {}, "status": "success"}), IntakeCode::SchemaValidationFailed),
        ] {
            assert_eq!(
                exec_result(b"", raw.to_string().as_bytes()).unwrap_err().intake,
                Some(intake),
                "{raw}"
            );
        }
    }

    #[test]
    fn acks_and_heartbeats() {
        let ack = exec_ack(b"", br#"{"assignment_id":"a","status":"rejected"}"#).unwrap();
        assert!(!ack.accepted);
        let raw = Writer::default().text(1, "a").text(2, "accepted").text(6, "t").finish();
        let ack = exec_ack(b"", &raw).unwrap();
        assert_eq!((ack.accepted, ack.tenant.as_deref()), (true, Some("t")));
        assert!(exec_ack(b"", br#"{"assignment_id":"a"}"#).is_err());

        let raw = json!({"version": "v1", "kind": "heartbeat", "data": {"worker_id": "w", "status": "busy",
            "load": 0.25, "timestamp": "2026-01-01T00:00:00Z"}});
        let beat = heartbeat(raw.to_string().as_bytes()).unwrap();
        assert_eq!((beat.status, beat.load), (WorkerStatus::Busy, 0.25));
        assert!(heartbeat(b"{\"status\":\"idle\"}").is_err());
        let letter = json!({"kind": "dead_letter", "data": {"reason": "PARSE_ERROR", "payload_ref": "x"}});
        assert_eq!(worker_dead_letter(letter.to_string().as_bytes()).unwrap(), "PARSE_ERROR");
    }

    #[test]
    fn classes_of_errors_say_whether_to_retry() {
        for code in
            ["3001", "2001", "4002", "TIMEOUT", "HTTP_REQUEST_FAILED", "DB_CONNECTION_ERROR", "503", "odd"]
        {
            assert!(is_retryable(Status::Error, Some(code)), "{code}");
        }
        for code in ["1001", "2003", "5001", "404", "UNKNOWN_JOB_TYPE", "MISSING_URL", "cancelled_by_user"] {
            assert!(!is_retryable(Status::Error, Some(code)), "{code}");
        }
        assert!(is_retryable(Status::Error, None) && is_retryable(Status::Timeout, Some("1001")));
        assert!(!is_retryable(Status::Cancelled, None) && !is_retryable(Status::Success, None));
    }
}
