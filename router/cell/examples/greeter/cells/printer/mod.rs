//! Prints a greeting.

use std::sync::Arc;

use beamlog_cell::{Bus, BusError, Cell};
use serde_json::{Value, json};

pub(crate) struct Printer;

impl Cell for Printer {
    fn id(&self) -> &str {
        "io.print_greeting"
    }

    fn subjects(&self) -> Vec<String> {
        vec!["cbs.printer.write".to_owned()]
    }

    fn register(&self, bus: &Arc<dyn Bus>) -> Result<(), BusError> {
        bus.subscribe("cbs.printer.write", super::handle(write))
    }
}

fn write(payload: &Value) -> Result<Value, BusError> {
    let message = super::text(payload, "message")?;
    println!("{message}");
    Ok(json!({"printed": true, "message_length": message.chars().count(), "timestamp": super::timestamp()}))
}
