//! Row 6: reading a stream. A pull consumer that fetches and acks every message, and an ordered
//! consumer (push, no acks, flow control) that replays the whole stream.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{Plan, RowError, set_usage};
use crate::client::Connection;
use crate::contender::{Contender, Server};
use crate::figures::{CPU, Figures, Latencies, Load, RATE};
use crate::jetstream::{Until, create_consumer, create_stream, publish_windowed};
use crate::process::usage;
use crate::report::{Comparison, Goal};

const STREAM: &str = "BENCH";
const MESSAGE_BYTES: usize = 128;
const FETCH: u64 = 500;
const PEERS: [Contender; 2] = [Contender::Beamlog, Contender::NatsDefault];

pub fn row_6(plan: &Plan) -> Result<Vec<Comparison>, RowError> {
    let messages: u64 = if plan.quick { 50_000 } else { 400_000 };
    let load = |in_flight| Load { message_bytes: MESSAGE_BYTES as u64, clients: 1, in_flight };
    let mut fetching = Comparison::new(6, "pull consumer, fetch of 500 with explicit acks", load(FETCH));
    let mut replaying = Comparison::new(6, "ordered consumer, replay of the stream", load(messages));
    plan.each_round(&PEERS, |contender| {
        let (_folder, server) = plan.fresh(contender)?;
        let mut connection = server.connect()?;
        create_stream(&mut connection, STREAM, "bench.consume", &serde_json::Value::Null)?;
        publish_windowed(&mut connection, "bench.consume", MESSAGE_BYTES, 1024, Until::Acked(messages))?;
        let durability = contender.durability();
        replaying.add(contender.name(), durability, replay(&server, messages)?);
        fetching.add(contender.name(), durability, fetch(&server, messages)?);
        Ok(())
    })?;
    let (us, peer) = (Contender::Beamlog.name(), Contender::NatsDefault.name());
    for comparison in [&mut fetching, &mut replaying] {
        comparison.ratio(RATE, us, peer, Goal::AtLeast(1.0));
        comparison.ratio(CPU, us, peer, Goal::None);
    }
    Ok(vec![fetching, replaying])
}

/// Fetches and acks one batch after the other; the latency is that of a whole batch, acks sent.
fn fetch(server: &Server, messages: u64) -> Result<Figures, RowError> {
    let mut connection = server.connect()?;
    let config = json!({
        "durable_name": "PULL", "ack_policy": "explicit", "deliver_policy": "all", "max_ack_pending": 20_000,
    });
    create_consumer(&mut connection, STREAM, &config)?;
    connection.subscribe("_F", None, 3);
    connection.ping()?;
    let request = format!("$JS.API.CONSUMER.MSG.NEXT.{STREAM}.PULL");
    let body = json!({ "batch": FETCH, "expires": 5_000_000_000_u64 }).to_string();
    let before = usage(server.pid());
    let start = Instant::now();
    let mut latencies = Latencies::default();
    let mut received = 0;
    let mut acks: Vec<Vec<u8>> = Vec::new();
    while received < messages {
        let asked = Instant::now();
        connection.publish(request.as_bytes(), b"_F", body.as_bytes());
        connection.flush()?;
        let wanted = (received + FETCH).min(messages);
        while received < wanted {
            connection.fill()?;
            while let Some(message) = connection.buffered_next()? {
                if !message.headers.is_empty() || message.reply.is_empty() {
                    return Err(status_text(message.headers).into());
                }
                acks.push(message.reply.to_vec());
                received += 1;
            }
            for reply in acks.drain(..) {
                connection.publish(&reply, b"", b"+ACK");
            }
            connection.flush()?;
        }
        latencies.record(asked.elapsed());
    }
    let elapsed = start.elapsed();
    let settled = wait_for_acks(&mut connection, messages)?;
    let mut figures = Figures::default();
    figures.set(RATE, messages as f64 / elapsed.as_secs_f64());
    figures.set("all_acked_after_s", (elapsed + settled).as_secs_f64());
    figures.set_latencies(&latencies);
    set_usage(&mut figures, server, before, messages);
    Ok(figures)
}

/// Waits until the consumer says that every message is acked: unanswered acks must not hide work.
fn wait_for_acks(connection: &mut Connection, messages: u64) -> Result<Duration, RowError> {
    let start = Instant::now();
    loop {
        let info = crate::jetstream::consumer_info(connection, STREAM, "PULL")?;
        if info["ack_floor"]["stream_seq"].as_u64() == Some(messages) {
            return Ok(start.elapsed());
        }
        if start.elapsed() > Duration::from_secs(60) {
            return Err(format!("acks were lost: {info}").into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Reads the stream as an ordered consumer does, answering flow control.
fn replay(server: &Server, messages: u64) -> Result<Figures, RowError> {
    let mut connection = server.connect()?;
    connection.subscribe("_D", None, 3);
    connection.ping()?;
    let before = usage(server.pid());
    let start = Instant::now();
    let config = json!({
        "deliver_subject": "_D", "ack_policy": "none", "deliver_policy": "all", "max_deliver": 1,
        "flow_control": true, "idle_heartbeat": 5_000_000_000_u64, "mem_storage": true, "num_replicas": 1,
    });
    let body = json!({ "stream_name": STREAM, "config": config }).to_string();
    // The answer to this comes between the messages and is none: it is told apart by its sid.
    connection.subscribe("_C", None, 4);
    connection.publish(format!("$JS.API.CONSUMER.CREATE.{STREAM}").as_bytes(), b"_C", body.as_bytes());
    connection.flush()?;
    let mut received = 0;
    let mut answers: Vec<Vec<u8>> = Vec::new();
    while received < messages {
        connection.fill()?;
        while let Some(message) = connection.buffered_next()? {
            if message.sid != 3 {
                if memchr::memmem::find(message.payload, b"\"error\"").is_some() {
                    return Err(String::from_utf8_lossy(message.payload).into());
                }
            } else if message.headers.is_empty() {
                received += 1;
            } else if !message.reply.is_empty() {
                answers.push(message.reply.to_vec());
            } else if let Some(stalled) = header(message.headers, "Nats-Consumer-Stalled") {
                answers.push(stalled.into_bytes());
            }
        }
        for reply in answers.drain(..) {
            connection.publish(&reply, b"", b"");
        }
        connection.flush()?;
    }
    let mut figures = Figures::default();
    figures.set(RATE, messages as f64 / start.elapsed().as_secs_f64());
    set_usage(&mut figures, server, before, messages);
    Ok(figures)
}

fn status_text(headers: &[u8]) -> String {
    format!("a status came instead of a message: {}", String::from_utf8_lossy(headers))
}

fn header(headers: &[u8], name: &str) -> Option<String> {
    let text = std::str::from_utf8(headers).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim_start_matches(':').trim().to_owned())
}
