//! Everything that can grow has a limit and nats-server's answer.

use std::sync::Arc;
use std::time::Duration;

use beamlog_nats::{Server, ServerOptions};
use beamlog_router::interest::{Envelope, Interest, Offered, Subscriber};

use crate::raw::{Raw, options, start};

#[tokio::test]
async fn an_oversized_payload_is_refused_before_it_is_sent() {
    let server = start(ServerOptions { payload_max: 1000, ..options() }).await;
    let mut client = Raw::ready(server.local_addr()).await;
    client.send(format!("SUB a 1\r\nPUB a 1000\r\n{}\r\n", "x".repeat(1000))).await;
    client.expect(format!("MSG a 1 1000\r\n{}\r\n", "x".repeat(1000))).await;
    client.send("PUB a 1001\r\n").await;
    assert_eq!(client.until_end().await, "-ERR 'Maximum Payload Violation'\r\n");
}

#[tokio::test]
async fn a_control_line_without_end_is_cut_off() {
    let server = start(options()).await;
    let mut client = Raw::ready(server.local_addr()).await;
    client.send(format!("SUB {}", "a".repeat(5000))).await;
    assert_eq!(client.until_end().await, "-ERR 'maximum control line exceeded'\r\n");
}

#[tokio::test]
async fn one_connection_too_many_is_told_so() {
    let server = start(ServerOptions { connections_max: 1, ..options() }).await;
    let first = Raw::ready(server.local_addr()).await;
    let mut second = Raw::connect(server.local_addr()).await;
    assert_eq!(second.until_end().await, "-ERR 'maximum connections exceeded'\r\n");
    drop(first);
}

#[tokio::test]
async fn one_subscription_too_many_is_told_so_and_the_rest_lives() {
    let server = start(ServerOptions { subscriptions_max: 1, ..options() }).await;
    let mut client = Raw::ready(server.local_addr()).await;
    client.send("SUB a 1\r\nSUB b 2\r\nPUB b 0\r\n\r\nPUB a 0\r\n\r\n").await;
    client.expect("-ERR 'maximum subscriptions exceeded'\r\nMSG a 1 0\r\n\r\n").await;
}

#[tokio::test]
async fn a_receiver_that_does_not_read_is_dropped_and_counted() {
    let server = start(ServerOptions { pending_max: 1 << 20, ..options() }).await;
    let mut stalled = Raw::ready(server.local_addr()).await;
    stalled.send("SUB flood 1\r\nPING\r\n").await;
    stalled.expect("PONG\r\n").await;
    let mut sender = Raw::ready(server.local_addr()).await;
    let message = format!("PUB flood 100000\r\n{}\r\n", "x".repeat(100_000));
    while server.stats().slow_consumers == 0 {
        sender.send(&message).await;
    }
    sender.send("PING\r\n").await;
    sender.expect("PONG\r\n").await;
    assert_eq!(server.connections().len(), 1);
}

#[tokio::test]
async fn a_receiver_that_takes_nothing_misses_the_write_deadline() {
    let server = start(ServerOptions { write_deadline: Duration::from_millis(50), ..options() }).await;
    let mut stalled = Raw::ready(server.local_addr()).await;
    stalled.send("SUB flood 1\r\nPING\r\n").await;
    stalled.expect("PONG\r\n").await;
    let mut sender = Raw::ready(server.local_addr()).await;
    // More than two sockets hold, less than may be pending.
    for _ in 0..200 {
        sender.send(format!("PUB flood 100000\r\n{}\r\n", "x".repeat(100_000))).await;
    }
    while server.stats().slow_consumers == 0 {
        sender.send("PING\r\n").await;
        sender.expect("PONG\r\n").await;
    }
}

#[tokio::test]
async fn a_client_that_answers_no_ping_is_stale() {
    let server = start(ServerOptions { ping_interval: Duration::from_millis(40), ..options() }).await;
    let mut client = Raw::ready(server.local_addr()).await;
    assert_eq!(client.until_end().await, "PING\r\nPING\r\n-ERR 'Stale Connection'\r\n");
}

#[tokio::test]
async fn a_client_that_answers_pings_stays_and_its_round_trip_is_known() {
    let server = start(ServerOptions { ping_interval: Duration::from_millis(40), ..options() }).await;
    let mut client = Raw::ready(server.local_addr()).await;
    for _ in 0..5 {
        client.expect("PING\r\n").await;
        client.send("PONG\r\n").await;
    }
    assert!(server.connections()[0].rtt.is_some());
}

/// A subscriber with a bug.
struct Panicking;

impl Subscriber for Panicking {
    fn offer(&self, _: u64, _: &Envelope<'_>) -> Offered {
        panic!("planted")
    }
    fn flush(&self) {}
}

#[tokio::test]
async fn a_panic_ends_its_own_connection_and_is_counted() {
    let interest = Arc::new(Interest::new());
    let server = Server::start(Arc::clone(&interest), None, options()).await.unwrap();
    interest.subscribe(b"trap", None, Arc::new(Panicking), 1).unwrap();
    let mut bystander = Raw::ready(server.local_addr()).await;
    let mut victim = Raw::ready(server.local_addr()).await;
    bystander.send("SUB a 1\r\nPING\r\n").await;
    bystander.expect("PONG\r\n").await;
    // What was taken before the panic still arrives.
    victim.send("PUB a 1\r\nx\r\nPUB trap 1\r\ny\r\n").await;
    assert_eq!(victim.until_end().await, "");
    bystander.expect("MSG a 1 1\r\nx\r\n").await;
    bystander.send("PING\r\n").await;
    bystander.expect("PONG\r\n").await;
    assert_eq!((server.stats().panics, server.connections().len()), (1, 1));
}

#[derive(Default)]
struct Heard(std::sync::Mutex<Vec<String>>);

impl Subscriber for Heard {
    fn offer(&self, _: u64, message: &Envelope<'_>) -> Offered {
        self.0.lock().unwrap().push(String::from_utf8_lossy(message.payload).into_owned());
        Offered::Taken
    }

    fn flush(&self) {}
}

#[tokio::test]
async fn on_internal_subjects_only_nodes_speak_and_listen() {
    let interest = Arc::new(Interest::new());
    interest.keep_internal(&["$TASKS."]);
    let heard = Arc::new(Heard::default());
    interest.subscribe(b"$TASKS.>", None, Arc::clone(&heard) as _, 1).unwrap();
    let server = Server::start(Arc::clone(&interest), None, options()).await.unwrap();
    let mut client = Raw::ready(server.local_addr()).await;
    client.send("PUB $TASKS.leader 1\r\n1\r\n").await;
    client.expect("-ERR 'Permissions Violation for Publish to \"$TASKS.leader\"'\r\n").await;
    client.send("HPUB $TASKS.leader 12 13\r\nNATS/1.0\r\n\r\n2\r\n").await;
    client.expect("-ERR 'Permissions Violation for Publish to \"$TASKS.leader\"'\r\n").await;
    client.send("PUB service $TASKS.leader 1\r\n3\r\n").await;
    client.expect("-ERR 'Permissions Violation for Publish to \"$TASKS.leader\"'\r\n").await;
    client.send("SUB $TASKS.node.* 1\r\n").await;
    client.expect("-ERR 'Permissions Violation for Subscription to \"$TASKS.node.*\"'\r\n").await;
    // Names of nodes need not be kept: they always are.
    client.send("SUB _BEAMLOG.STREAM.s 1\r\n").await;
    client.expect("-ERR 'Permissions Violation for Subscription to \"_BEAMLOG.STREAM.s\"'\r\n").await;
    // The connection lives, and its other subjects do.
    client.send("SUB $TASKS 2\r\nPUB $TASKS 0\r\n\r\n").await;
    client.expect("MSG $TASKS 2 0\r\n\r\n").await;
    // Whatever else would bring a client's message there.
    let message = Envelope { subject: b"$TASKS.leader", reply: b"", headers: b"", payload: b"4", origin: 0 };
    let mut routes = beamlog_router::interest::RouteCache::new();
    assert_eq!(interest.route(&mut routes, message.subject, &message).receivers, 0);
    assert_eq!(interest.route_as_node(&mut routes, message.subject, &message).receivers, 1);
    assert_eq!(*heard.0.lock().unwrap(), ["4"]);
}
