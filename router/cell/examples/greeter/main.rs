//! Three cells: one asks for a name, one makes a greeting, one prints it.
//!
//! `cargo run -p beamlog-cell --example greeter` runs them over a router in the process;
//! `… --example greeter nats://127.0.0.1:4222` over a Beamlog node or a NATS server. The greeting is asked for
//! durably if a third word says so: it would survive the end of this program.

mod cells;

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use beamlog_cell::durable::{Durable, DurableOptions};
use beamlog_cell::{
    App, Body, BodyPlan, Bus, CheckedBus, EmbeddedBus, EmbeddedLimits, Envelope, NatsBus, NatsBusOptions,
    Schemas,
};
use beamlog_router::embed::PlainWire;
use beamlog_router::{Router, RouterOptions, StdDisk};
use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (url, durable) = (arguments.next(), arguments.next().is_some());
    let temporary = tempfile::tempdir()?;
    let options = DurableOptions::default();
    let (bus, durable): (Arc<dyn Bus>, _) = match url {
        Some(url) => {
            let bus = Arc::new(NatsBus::connect(NatsBusOptions { url, ..NatsBusOptions::default() })?);
            let durable = durable.then(|| Durable::over_nats(Arc::clone(&bus), options)).transpose()?;
            (bus, durable)
        }
        None => {
            let data = temporary.path().join("data");
            let router =
                Router::open(&data, Arc::new(StdDisk), &RouterOptions::default(), Arc::new(PlainWire))?;
            let bus = Arc::new(EmbeddedBus::new(router, EmbeddedLimits::default()));
            let durable = Some(Durable::over_router(Arc::clone(&bus), options)?);
            (bus, durable)
        }
    };

    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/greeter");
    let schemas = Arc::new(Schemas::read(&folder.join("schemas"))?);
    let bus: Arc<dyn Bus> = Arc::new(CheckedBus::new(bus, schemas));
    let plan = BodyPlan::read(&folder.join("body.yaml"))?;
    let body = Body::start(&App::read(&folder)?, Some(&plan), &cells::registry(), bus)?;

    let ask = |service: &str, verb: &str, schema: &str, payload: Value| {
        body.bus().request(Envelope::request(service, verb, schema, payload))
    };
    let read = ask("prompt_name", "read", "demo/v1/Prompt", json!({"prompt": "What is your name?"}))?;
    let request = Envelope::request("greeter", "say_hello", "demo/v1/Name", json!({"name": read["name"]}));
    let greeting = match &durable {
        None => body.bus().request(request)?,
        Some(durable) => {
            let _delivery = durable.deliver()?;
            durable.request(&request, Duration::from_secs(5))?
        }
    };
    ask("printer", "write", "demo/v1/Greeting", json!({"message": greeting["message"]}))?;
    Ok(())
}
