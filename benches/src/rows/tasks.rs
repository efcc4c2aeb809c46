//! Row 13: decisions over NATS, each durable before its reply, and the same from a gateway that connects anew
//! for every request. There is no peer to compare with in one run: the reference router's own record is
//! 62 requests/s at a p95 of 796 ms.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use super::{Plan, RowError, data, join, set_usage};
use crate::client::Connection;
use crate::contender::{Contender, Programs, Server};
use crate::figures::{Durability, Figures, Latencies, Load, P99, RATE};
use crate::process::usage;
use crate::report::{Comparison, Goal};

const SUBJECT: &str = "beamline.router.v1.decide";
const CLIENTS: u64 = 32;
const GATEWAYS: u64 = 8;
/// The numbers of the requests at a fixed rate: others than before, for the same request gets the same decision.
const PACED_FROM: u64 = 1 << 31;
/// Until then all clients are connected.
const CONNECTING: Duration = Duration::from_millis(100);
/// Requests a second of the run whose requests are due one after the other, whatever the answers do.
const FIXED_RATE: u64 = 10_000;
const RATE_MIN: f64 = 10_000.0;
const P99_MICROS_MAX: f64 = 5_000.0;
const GATEWAY_RATE_MIN: f64 = 2_000.0;

pub fn row_13(plan: &Plan) -> Result<Vec<Comparison>, RowError> {
    let message_bytes = body(0, 0).len() as u64;
    let load = Load { message_bytes, clients: CLIENTS, in_flight: 1 };
    let mut lasting = Comparison::new(13, format!("decide, {CLIENTS} clients"), load.clone());
    let title = format!("decide, {FIXED_RATE}/s fixed, {CLIENTS} clients, latency from when each was due");
    let mut paced = Comparison::new(13, title, load);
    let load = Load { message_bytes, clients: GATEWAYS, in_flight: 1 };
    let mut anew = Comparison::new(13, "decide, a connection for every request", load);
    let us = Contender::Beamlog.name();
    plan.each_round(&[Contender::Beamlog], |contender| {
        let folder = plan.folder()?;
        let mut programs: Programs = plan.programs.clone();
        programs.environment.push(("BEAMLOG_TASKS".into(), "true".into()));
        let server = Server::start(&programs, contender, &data(&folder))?;
        let figures = measure(&server, CLIENTS, plan.duration(), lasting_client)?;
        lasting.add(us, Durability::Disk, figures);
        let figures = measure(&server, CLIENTS, plan.duration(), paced_client)?;
        paced.add(us, Durability::Disk, figures);
        let figures = measure(&server, GATEWAYS, plan.duration(), connecting_client)?;
        anew.add(us, Durability::Disk, figures);
        Ok(())
    })?;
    judge(&mut lasting, RATE, Goal::AtLeast(RATE_MIN));
    judge(&mut lasting, P99, Goal::AtMost(P99_MICROS_MAX));
    judge(&mut paced, P99, Goal::AtMost(P99_MICROS_MAX));
    judge(&mut anew, RATE, Goal::AtLeast(GATEWAY_RATE_MIN));
    Ok(vec![lasting, paced, anew])
}

fn judge(comparison: &mut Comparison, figure: &'static str, goal: Goal) {
    let us = Contender::Beamlog.name();
    if let Some(value) = comparison.median(us, figure) {
        comparison.judge(us.to_owned(), figure, value, goal);
    }
}

type Client = fn(&Server, u64, Instant, Duration) -> Result<Latencies, RowError>;

fn measure(server: &Server, clients: u64, duration: Duration, client: Client) -> Result<Figures, RowError> {
    let before = usage(server.pid());
    let start = Instant::now() + CONNECTING;
    let latencies = thread::scope(|scope| {
        let running: Vec<_> =
            (0..clients).map(|number| scope.spawn(move || client(server, number, start, duration))).collect();
        let mut latencies = Latencies::default();
        for outcome in running.into_iter().map(join).collect::<Vec<_>>() {
            latencies.add(&outcome?);
        }
        Ok::<_, RowError>(latencies)
    })?;
    let mut figures = Figures::default();
    figures.set(RATE, latencies.len() as f64 / start.elapsed().max(duration).as_secs_f64());
    figures.set_latencies(&latencies);
    set_usage(&mut figures, server, before, latencies.len());
    Ok(figures)
}

/// What the C gateway sends; every request is another one.
fn body(client: u64, number: u64) -> String {
    format!(
        "{{\"version\":\"1\",\"tenant_id\":\"acme\",\"request_id\":\"r-{client:04}-{number:010}\",\
         \"trace_id\":\"4bf92f3577b34da6a3ce929d0e0e4736\",\"message\":{{\"message_id\":\
         \"m-{client:04}-{number:010}\",\"message_type\":\"chat\",\"payload\":{{\"prompt\":\
         \"What is the weather in Berlin today, and will it rain tomorrow?\"}},\"metadata\":{{}}}},\
         \"policy_id\":\"default\",\"context\":{{\"user_id\":\"u-{client}\"}}}}"
    )
}

fn is_decision(payload: &[u8]) -> Result<(), RowError> {
    if payload.windows(9).any(|window| window == b"\"ok\":true") {
        return Ok(());
    }
    Err(format!("not decided: {}", String::from_utf8_lossy(payload)).into())
}

fn lasting_client(
    server: &Server,
    client: u64,
    start: Instant,
    duration: Duration,
) -> Result<Latencies, RowError> {
    let mut asking = Asking::new(server, client)?;
    let mut latencies = Latencies::default();
    wait_for(start);
    let mut now = Instant::now();
    let mut number = 0;
    while now - start < duration {
        asking.ask(number)?;
        let answered = Instant::now();
        latencies.record(answered - now);
        now = answered;
        number += 1;
    }
    Ok(latencies)
}

/// Asks when a request is due, or as soon as the one before it is answered; both count from when it was due.
fn paced_client(
    server: &Server,
    client: u64,
    start: Instant,
    duration: Duration,
) -> Result<Latencies, RowError> {
    let mut asking = Asking::new(server, client)?;
    let mut latencies = Latencies::default();
    let mut turn = 0;
    loop {
        let after = Duration::from_nanos((turn * CLIENTS + client) * 1_000_000_000 / FIXED_RATE);
        if after >= duration {
            return Ok(latencies);
        }
        let due = start + after;
        wait_for(due);
        asking.ask(PACED_FROM + turn)?;
        latencies.record(due.elapsed());
        turn += 1;
    }
}

fn wait_for(moment: Instant) {
    thread::sleep(moment.saturating_duration_since(Instant::now()));
}

/// A connection that asks, and waits for the answer.
struct Asking {
    connection: Connection,
    client: u64,
    reply: String,
}

impl Asking {
    fn new(server: &Server, client: u64) -> Result<Self, RowError> {
        let mut connection: Connection = server.connect()?;
        let reply = format!("_R.{client}");
        connection.subscribe(&reply, None, 1);
        connection.ping()?;
        Ok(Self { connection, client, reply })
    }

    fn ask(&mut self, number: u64) -> Result<(), RowError> {
        let body = body(self.client, number);
        self.connection.publish(SUBJECT.as_bytes(), self.reply.as_bytes(), body.as_bytes());
        self.connection.flush()?;
        is_decision(self.connection.receive()?.payload)
    }
}

/// The gateway: connect, CONNECT and PING, PONG, SUB with two spaces, PUB, the answer, an abrupt end.
fn connecting_client(
    server: &Server,
    client: u64,
    start: Instant,
    duration: Duration,
) -> Result<Latencies, RowError> {
    let mut latencies = Latencies::default();
    wait_for(start);
    let mut now = Instant::now();
    let mut number = 1 << 32;
    let mut input = vec![0; 64 << 10];
    while now - start < duration {
        let mut stream = TcpStream::connect(server.address())?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.write_all(
            b"CONNECT {\"verbose\":false,\"pedantic\":false,\"tls_required\":false,\"name\":\"\",\"lang\":\"C\",\
              \"version\":\"3.4.1\",\"protocol\":1,\"echo\":true,\"headers\":true,\"no_responders\":true}\r\n\
              PING\r\n",
        )?;
        read_until(&mut stream, &mut input, b"PONG\r\n")?;
        let inbox = format!("_INBOX.{client:010}{number:012}");
        let payload = body(1_000 + client, number);
        let request =
            format!("SUB {inbox}.*  1\r\nPUB {SUBJECT} {inbox}.0 {}\r\n{payload}\r\n", payload.len());
        stream.write_all(request.as_bytes())?;
        let length = read_until(&mut stream, &mut input, b"}\r\n")?;
        is_decision(&input[..length])?;
        drop(stream);
        let answered = Instant::now();
        latencies.record(answered - now);
        now = answered;
        number += 1;
    }
    Ok(latencies)
}

/// Reads until what came ends in `end`; how much that is.
fn read_until(stream: &mut TcpStream, input: &mut [u8], end: &[u8]) -> Result<usize, RowError> {
    let mut length = 0;
    loop {
        let read = stream.read(&mut input[length..])?;
        if read == 0 {
            return Err("the server closed the connection".into());
        }
        length += read;
        // INFO may come behind the PONG.
        if input[..length].ends_with(end) || input[..length].windows(end.len()).any(|window| window == end) {
            return Ok(length);
        }
    }
}
