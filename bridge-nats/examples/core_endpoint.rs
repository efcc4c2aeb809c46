//! A plain publish/subscribe endpoint inside a program of one's own: no storage, just NATS clients.
//!
//! `cargo run -p beamlog-nats --example core_endpoint -- 127.0.0.1:4222`

use std::net::SocketAddr;
use std::sync::Arc;

use beamlog_nats::{Server, ServerOptions};
use beamlog_router::interest::Interest;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let listen: SocketAddr = std::env::args().nth(1).as_deref().unwrap_or("127.0.0.1:0").parse()?;
    let options = ServerOptions { listen, ..ServerOptions::default() };
    let server = Server::start(Arc::new(Interest::new()), None, options).await?;
    println!("NATS clients connect to {}", server.local_addr());
    tokio::signal::ctrl_c().await?;
    server.drain(std::time::Duration::ZERO).await;
    let stats = server.stats();
    println!("{} messages in, {} out", stats.in_messages, stats.out_messages);
    Ok(())
}
