//! The fields that every message has (contract section 1.2) and their rules, tolerant and strict.

use serde_json::{Map, Value};

use crate::codes::{IntakeCode, Refusal};

/// Longest trace, request, assignment or message id.
pub const ID_BYTES_MAX: usize = 128;
/// Longest tenant.
pub const TENANT_BYTES_MAX: usize = 256;
/// Longest idempotency key.
pub const KEY_BYTES_MAX: usize = 256;
/// Longest policy id, job type, subject.
pub const NAME_BYTES_MAX: usize = 256;
/// Serialised context, metadata or options.
pub const CONTEXT_BYTES_MAX: usize = 64 << 10;

/// A text field: numbers are taken for their text, as lenient peers send them; empty and null are absent.
///
/// # Errors
/// It is an object, an array or a boolean, or too long.
pub fn text(value: Option<&Value>, name: &str, bytes_max: usize) -> Result<Option<String>, Refusal> {
    let text = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        Some(Value::Bool(_) | Value::Array(_) | Value::Object(_)) => {
            return Err(Refusal::intake(
                IntakeCode::SchemaValidationFailed,
                format!("{name} must be a string"),
            ));
        }
    };
    if text.is_empty() {
        return Ok(None);
    }
    if text.len() > bytes_max {
        return Err(Refusal::intake(
            IntakeCode::SchemaValidationFailed,
            format!("{name} is longer than {bytes_max} bytes"),
        ));
    }
    if text.chars().any(char::is_control) {
        return Err(Refusal::intake(
            IntakeCode::SchemaValidationFailed,
            format!("{name} has control characters"),
        ));
    }
    Ok(Some(text))
}

/// An object field; null is absent.
///
/// # Errors
/// It is something else, or too large.
pub fn object(value: Option<Value>, name: &str) -> Result<Map<String, Value>, Refusal> {
    match value {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(map)) => {
            if weight(&map) > CONTEXT_BYTES_MAX {
                return Err(Refusal::intake(
                    IntakeCode::SchemaValidationFailed,
                    format!("{name} is larger than {CONTEXT_BYTES_MAX} bytes"),
                ));
            }
            Ok(map)
        }
        Some(Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_)) => {
            Err(Refusal::intake(IntakeCode::SchemaValidationFailed, format!("{name} must be an object")))
        }
    }
}

/// About how many bytes a map is, without writing it.
fn weight(map: &Map<String, Value>) -> usize {
    fn of(value: &Value) -> usize {
        match value {
            Value::Null | Value::Bool(_) | Value::Number(_) => 8,
            Value::String(text) => text.len() + 2,
            Value::Array(all) => all.iter().map(of).sum::<usize>() + 2,
            Value::Object(map) => weight(map),
        }
    }
    map.iter().map(|(key, value)| key.len() + 4 + of(value)).sum::<usize>() + 2
}

/// Whether a version is one that we speak: "1", and leniently 1, "1.0" and "v1".
#[must_use]
pub fn is_version_1(value: &Value, strict: bool) -> bool {
    match value {
        Value::String(text) => text == "1" || (!strict && matches!(text.as_str(), "1.0" | "v1")),
        Value::Number(number) => !strict && number.as_f64() == Some(1.0),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => false,
    }
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// A UUID of version 4.
#[must_use]
pub fn is_uuid4(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let lengths: Vec<usize> = parts.iter().map(|part| part.len()).collect();
    lengths == [8, 4, 4, 4, 12]
        && parts.iter().all(|part| is_hex(part))
        && parts[2].starts_with('4')
        && parts[3].starts_with(['8', '9', 'a', 'b', 'A', 'B'])
}

/// A ULID: 26 characters of Crockford's alphabet, at most 128 bits.
#[must_use]
pub fn is_ulid(text: &str) -> bool {
    text.len() == 26
        && text.starts_with(|first: char| ('0'..='7').contains(&first))
        && text.bytes().all(|byte| {
            byte.is_ascii_alphanumeric() && !matches!(byte.to_ascii_uppercase(), b'I' | b'L' | b'O' | b'U')
        })
}

/// What holds a request, its answers and its run together.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Correlation {
    pub trace_id: Option<String>,
    pub run_id: Option<String>,
    pub flow_id: Option<String>,
    pub step_id: Option<String>,
}

impl Correlation {
    /// The strict rules: forms of the ids, and run, flow and step together or not at all.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn check(&self) -> Result<(), Refusal> {
        let refuse = |message: &str| Err(Refusal::intake(IntakeCode::CorrelationFieldsInvalid, message));
        if let Some(trace) = &self.trace_id
            && !(trace.len() == 32 && is_hex(trace))
            && !is_uuid4(trace)
        {
            return refuse("invalid_trace_id_format: trace_id is neither 32 hex digits nor a UUID v4");
        }
        let ids = [("run_id", &self.run_id), ("flow_id", &self.flow_id), ("step_id", &self.step_id)];
        for (name, id) in ids {
            if let Some(id) = id
                && !is_uuid4(id)
                && !is_ulid(id)
            {
                return refuse(&format!("invalid_{name}_format: {name} is neither a UUID v4 nor a ULID"));
            }
        }
        let present = ids.iter().filter(|(_, id)| id.is_some()).count();
        if present != 0 && present != ids.len() {
            return refuse("correlation_fields_incomplete: run_id, flow_id and step_id go together");
        }
        Ok(())
    }
}

/// The trace id of a W3C `traceparent`.
#[must_use]
pub fn trace_of_parent(parent: &str) -> Option<&str> {
    let mut parts = parent.trim().split('-');
    let (version, trace, span, _flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let is_valid = version.len() == 2
        && is_hex(version)
        && !version.eq_ignore_ascii_case("ff")
        && trace.len() == 32
        && is_hex(trace)
        && trace.bytes().any(|byte| byte != b'0')
        && span.len() == 16
        && is_hex(span)
        && span.bytes().any(|byte| byte != b'0');
    is_valid.then_some(trace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_the_forms_of_the_contract() {
        assert!(is_uuid4("3f2504e0-4f89-41d3-9a0c-0305e82c3301"));
        assert!(!is_uuid4("3f2504e0-4f89-11d3-9a0c-0305e82c3301"), "version 1");
        assert!(!is_uuid4("3f2504e0-4f89-41d3-ca0c-0305e82c3301"), "variant");
        assert!(is_ulid("01ARZ3NDEKTSV4RRFFQ69G5FAV"));
        assert!(!is_ulid("01ARZ3NDEKTSV4RRFFQ69G5FAI"));
        assert!(!is_ulid("81ARZ3NDEKTSV4RRFFQ69G5FAV"), "more than 128 bits");
    }

    #[test]
    fn a_traceparent_gives_its_trace() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        assert_eq!(trace_of_parent(&format!("00-{trace}-00f067aa0ba902b7-01")), Some(trace));
        for broken in [
            "",
            "00",
            "00-4bf9-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        ] {
            assert_eq!(trace_of_parent(broken), None, "{broken}");
        }
    }
}
