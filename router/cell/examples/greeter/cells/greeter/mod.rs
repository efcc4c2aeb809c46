//! Makes a greeting.

use std::sync::Arc;

use beamlog_cell::{Bus, BusError, Cell};
use serde_json::{Value, json};

pub(crate) struct Greeter;

impl Cell for Greeter {
    fn id(&self) -> &str {
        "logic.greet"
    }

    fn subjects(&self) -> Vec<String> {
        vec!["cbs.greeter.say_hello".to_owned()]
    }

    fn register(&self, bus: &Arc<dyn Bus>) -> Result<(), BusError> {
        bus.subscribe("cbs.greeter.say_hello", super::handle(say_hello))
    }
}

fn say_hello(payload: &Value) -> Result<Value, BusError> {
    let name = super::text(payload, "name")?.trim();
    if name.is_empty() {
        return Err(BusError::BadRequest("name is empty".to_owned()));
    }
    Ok(json!({"message": format!("Hello {name}!"), "timestamp": super::timestamp()}))
}
