//! The smallest JetStream server: a router, the API over it, and the endpoint.
//!
//! `cargo run -p beamlog-nats --example endpoint -- 127.0.0.1:4222 /tmp/beamlog-data`

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

use beamlog_nats::jetstream::{Api, NatsWire};
use beamlog_nats::{Server, ServerOptions};
use beamlog_router::{Router, RouterOptions, StdDisk};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let listen = arguments.next().unwrap_or_else(|| "127.0.0.1:4222".to_owned()).parse()?;
    let data = arguments.next().map_or_else(|| std::env::temp_dir().join("beamlog-data"), PathBuf::from);

    let wire = Arc::new(NatsWire::new());
    let router = Router::open(&data, Arc::new(StdDisk), &RouterOptions::default(), wire)?;
    let api = Arc::new(Api::new(router.clone(), "example".to_owned()));
    let options =
        ServerOptions { listen, server_name: Some("example".to_owned()), ..ServerOptions::default() };
    let server = Server::start(Arc::clone(router.interest()), Some(api), options).await?;
    println!("listening on {}, data in {}", server.local_addr(), data.display());
    tokio::signal::ctrl_c().await?;
    drop(server);
    router.close()?;
    Ok(())
}
