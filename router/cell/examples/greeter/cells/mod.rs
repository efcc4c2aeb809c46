//! The three cells.

pub(crate) mod greeter;
pub(crate) mod printer;
pub(crate) mod prompt_name;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use beamlog_cell::{BusError, Handler, Registry};
use serde_json::Value;

/// The cells by the names of `app.yaml`.
pub(crate) fn registry() -> Registry {
    Registry::new()
        .with("prompt_name", || prompt_name::PromptName)
        .with("greeter", || greeter::Greeter)
        .with("printer", || printer::Printer)
}

/// A handler of payloads.
fn handle(on: impl Fn(&Value) -> Result<Value, BusError> + Send + Sync + 'static) -> Handler {
    Arc::new(move |envelope| {
        let payload =
            envelope.payload.as_ref().ok_or_else(|| BusError::BadRequest("payload is missing".into()))?;
        on(payload)
    })
}

fn text<'a>(payload: &'a Value, key: &str) -> Result<&'a str, BusError> {
    payload[key].as_str().ok_or_else(|| BusError::BadRequest(format!("{key} is missing or not a string")))
}

/// Seconds since 1970.
fn timestamp() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
