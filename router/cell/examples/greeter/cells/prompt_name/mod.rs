//! Asks for a name: `test_input` is taken as typed, else a line is read.

use std::io::{self, BufRead};
use std::sync::Arc;

use beamlog_cell::{Bus, BusError, Cell};
use serde_json::{Value, json};

pub(crate) struct PromptName;

impl Cell for PromptName {
    fn id(&self) -> &str {
        "io.prompt_name"
    }

    fn subjects(&self) -> Vec<String> {
        vec!["cbs.prompt_name.read".to_owned()]
    }

    fn register(&self, bus: &Arc<dyn Bus>) -> Result<(), BusError> {
        bus.subscribe("cbs.prompt_name.read", super::handle(read))
    }
}

fn read(payload: &Value) -> Result<Value, BusError> {
    let typed = match payload["test_input"].as_str() {
        Some(typed) => typed.to_owned(),
        None => {
            println!("{}", payload["prompt"].as_str().unwrap_or("What is your name?"));
            let mut line = String::new();
            let failed = |problem| BusError::Internal(format!("reading a name: {problem}"));
            io::stdin().lock().read_line(&mut line).map_err(failed)?;
            line
        }
    };
    let name = typed.trim();
    if name.is_empty() {
        return Err(BusError::BadRequest("name is empty".to_owned()));
    }
    Ok(json!({"name": name, "length": name.chars().count(), "timestamp": super::timestamp()}))
}
