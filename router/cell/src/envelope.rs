//! The envelope: JSON, the whole payload of a message in both directions.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;
use uuid::{Uuid, Version};

use crate::error::BusError;
use crate::subjects;

/// A request, or the answer to one. An answer repeats id, service, verb and schema of its request.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Envelope {
    pub id: String,
    pub service: String,
    pub verb: String,
    pub schema: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorDetails>,
}

/// What went wrong, with whatever else a cell says about it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct ErrorDetails {
    pub code: String,
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Value>,
    /// Keys of the cell's own (`hint`, `path`, …).
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// What is wrong with an envelope.
#[derive(Debug, Error)]
pub enum EnvelopeError {
    #[error("not an envelope: it needs id, service, verb and schema")]
    Malformed(#[source] serde_json::Error),
    #[error("id {0:?} is not a UUID of version 4")]
    Id(String),
    #[error("service {0:?} must be lower case letters, digits and _, beginning with a letter")]
    Service(String),
    #[error("verb {0:?} must be lower case letters, digits and _, beginning with a letter")]
    Verb(String),
    #[error("schema {0:?} must look like demo/v1/Name")]
    Schema(String),
    #[error("it must have either payload or error")]
    PayloadOrError,
    #[error("the payload must be an object")]
    Payload,
    #[error("it has the unknown key {0:?}")]
    UnknownKey(String),
}

impl Envelope {
    /// A request with a new id.
    #[must_use]
    pub fn request(service: &str, verb: &str, schema: &str, payload: Value) -> Self {
        Self {
            id: Uuid::new_v4().to_string(),
            service: service.to_owned(),
            verb: verb.to_owned(),
            schema: schema.to_owned(),
            payload: Some(payload),
            error: None,
        }
    }

    /// The answer to this request. Exactly one of payload and error.
    #[must_use]
    pub fn answer(self, result: Result<Value, BusError>) -> Self {
        let (payload, error) = match result {
            Ok(payload) => (Some(payload), None),
            Err(error) => (None, Some(error.to_details())),
        };
        Self { payload, error, ..self }
    }

    /// What a requester makes of an answer.
    ///
    /// # Errors
    /// The answer's error, or that it has neither payload nor error.
    pub fn into_result(self) -> Result<Value, BusError> {
        match (self.error, self.payload) {
            (Some(error), _) => Err(BusError::from_details(error)),
            (None, Some(payload)) => Ok(payload),
            (None, None) => Err(BusError::Internal("Response envelope missing payload".to_owned())),
        }
    }

    /// Where this request goes.
    #[must_use]
    pub fn subject(&self) -> String {
        subjects::request(&self.service, &self.verb)
    }

    /// Reads an envelope as deployed cells do: the four names must be there, what they do not know is ignored.
    ///
    /// # Errors
    /// It is not one.
    pub fn parse(raw: &[u8]) -> Result<Self, EnvelopeError> {
        serde_json::from_slice(raw).map_err(EnvelopeError::Malformed)
    }

    /// Reads an envelope as its JSON schema says: no other keys, and [`Self::check`].
    ///
    /// # Errors
    /// What the schema forbids.
    pub fn parse_strictly(raw: &[u8]) -> Result<Self, EnvelopeError> {
        const KEYS: [&str; 6] = ["id", "service", "verb", "schema", "payload", "error"];
        let envelope = Self::parse(raw)?;
        let fields: Map<String, Value> = serde_json::from_slice(raw).map_err(EnvelopeError::Malformed)?;
        if let Some(unknown) = fields.keys().find(|key| !KEYS.contains(&key.as_str())) {
            return Err(EnvelopeError::UnknownKey(unknown.clone()));
        }
        envelope.check()?;
        Ok(envelope)
    }

    /// Whether it is what the envelope's JSON schema allows.
    ///
    /// # Errors
    /// The first thing that it forbids.
    pub fn check(&self) -> Result<(), EnvelopeError> {
        let is_v4 = |id: &Uuid| id.get_version() == Some(Version::Random);
        if self.id.len() != 36 || !Uuid::try_parse(&self.id).as_ref().is_ok_and(is_v4) {
            return Err(EnvelopeError::Id(self.id.clone()));
        }
        self.check_names()?;
        match (&self.payload, &self.error) {
            (Some(Value::Object(_)), None) | (None, Some(_)) => Ok(()),
            (Some(_), None) => Err(EnvelopeError::Payload),
            (Some(_), Some(_)) | (None, None) => Err(EnvelopeError::PayloadOrError),
        }
    }

    /// Whether service, verb and schema are names: without that a request has no subject.
    ///
    /// # Errors
    /// The first that is none.
    pub fn check_names(&self) -> Result<(), EnvelopeError> {
        if !subjects::is_name(&self.service) {
            return Err(EnvelopeError::Service(self.service.clone()));
        }
        if !subjects::is_name(&self.verb) {
            return Err(EnvelopeError::Verb(self.verb.clone()));
        }
        if !subjects::is_schema(&self.schema) {
            return Err(EnvelopeError::Schema(self.schema.clone()));
        }
        Ok(())
    }

    /// The bytes on the wire.
    ///
    /// # Errors
    /// It cannot be JSON; nothing that was parsed or made here is like that.
    pub fn encode(&self) -> Result<Vec<u8>, BusError> {
        serde_json::to_vec(self)
            .map_err(|error| BusError::Serialization(format!("Failed to serialize envelope: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ID: &str = "3f2504e0-4f89-41d3-9a0c-0305e82c3301";

    fn request() -> Envelope {
        Envelope {
            id: ID.into(),
            ..Envelope::request("greeter", "say_hello", "demo/v1/Name", json!({"name": "Ada"}))
        }
    }

    #[test]
    fn bytes_are_those_of_the_contract() {
        let text = |envelope: &Envelope| String::from_utf8(envelope.encode().unwrap()).unwrap();
        let head =
            format!(r#"{{"id":"{ID}","service":"greeter","verb":"say_hello","schema":"demo/v1/Name","#);
        assert_eq!(text(&request()), format!(r#"{head}"payload":{{"name":"Ada"}}}}"#));
        let refused = request().answer(Err(BusError::BadRequest("name is empty".into())));
        assert_eq!(
            text(&refused),
            format!(r#"{head}"error":{{"code":"BadRequest","message":"Bad request: name is empty"}}}}"#)
        );
        assert_eq!(refused.into_result(), Err(BusError::BadRequest("Bad request: name is empty".into())));
        let answered = request().answer(Ok(json!({"message": "Hello Ada!"})));
        assert_eq!(text(&answered), format!(r#"{head}"payload":{{"message":"Hello Ada!"}}}}"#));
        assert_eq!(request().subject(), "cbs.greeter.say_hello");
    }

    #[test]
    fn an_answer_without_payload_is_internal() {
        let empty = Envelope { payload: None, ..request() };
        assert_eq!(empty.into_result(), Err(BusError::Internal("Response envelope missing payload".into())));
    }

    #[test]
    fn what_the_schema_forbids_is_named() {
        let mut whole = serde_json::to_value(request()).unwrap();
        let parse = |value: &Value| Envelope::parse_strictly(value.to_string().as_bytes());
        assert_eq!(parse(&whole).unwrap(), request());
        for (key, value, problem) in [
            ("id", json!("not-a-uuid"), "id "),
            ("id", json!("3f2504e0-4f89-11d3-9a0c-0305e82c3301"), "id "),
            ("id", json!("3f2504e04f8941d39a0c0305e82c3301"), "id "),
            ("service", json!("Greeter"), "service "),
            ("verb", json!("say hello"), "verb "),
            ("schema", json!("demo/Name"), "schema "),
            ("payload", json!([1]), "the payload"),
            ("error", json!({"code": "Internal", "message": "m"}), "it must have either"),
            ("extra", json!(1), "it has the unknown key"),
            ("id", json!(1), "not an envelope"),
        ] {
            let before = whole.clone();
            whole[key] = value;
            let error = parse(&whole).unwrap_err().to_string();
            assert!(error.starts_with(problem), "{key}: {error}");
            whole = before;
        }
        whole.as_object_mut().unwrap().remove("payload");
        assert!(matches!(parse(&whole), Err(EnvelopeError::PayloadOrError)));
    }

    #[test]
    fn keys_of_a_cell_in_an_error_are_kept() {
        let raw = format!(
            r#"{{"id":"{ID}","service":"s","verb":"v","schema":"demo/v1/N","error":{{"code":"NotFound","message":"m","details":{{"a":1}},"hint":"h"}}}}"#
        );
        let envelope = Envelope::parse_strictly(raw.as_bytes()).unwrap();
        assert_eq!(String::from_utf8(envelope.encode().unwrap()).unwrap(), raw);
        assert_eq!(envelope.into_result(), Err(BusError::NotFound("m".into())));
    }
}
