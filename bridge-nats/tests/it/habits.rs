//! What clients in the field send, byte for byte (`contracts/beamline-cbs.md`, part 4).

use beamlog_nats::ClusterInfo;
use serde_json::json;

use crate::raw::{Raw, options, start};

#[tokio::test]
async fn a_client_without_headers_gets_msg_only_and_no_503() {
    let server = start(options()).await;
    // The Dart client of CBS: no `headers`, no `no_responders`.
    let mut dart = Raw::connect(server.local_addr()).await;
    dart.send("CONNECT {\"verbose\":false,\"pedantic\":false,\"lang\":\"dart\"}\r\n").await;
    dart.send("SUB in 1\r\nPUB nobody in 0\r\n\r\nPING\r\n").await;
    dart.expect("PONG\r\n").await;
    let mut other = Raw::ready(server.local_addr()).await;
    other.send("HPUB in r 18 20\r\nNATS/1.0\r\nA: b\r\n\r\nhi\r\n").await;
    dart.expect("MSG in 1 r 2\r\nhi\r\n").await;
}

#[tokio::test]
async fn libnats_writes_two_spaces_and_closes_without_unsubscribing() {
    let server = start(options()).await;
    let mut libnats = Raw::connect(server.local_addr()).await;
    libnats
        .send(
            "CONNECT {\"verbose\":false,\"pedantic\":false,\"tls_required\":false,\"name\":\"\",\"lang\":\"C\",\
             \"version\":\"3.4.1\",\"protocol\":1,\"echo\":true,\"headers\":true,\"no_responders\":true}\r\nPING\r\n",
        )
        .await;
    libnats.expect("PONG\r\n").await;
    assert!(libnats.line().await.contains("\"connect_info\":true"));
    libnats
        .send("SUB _INBOX.abcdefghijklmnopqrstuv.*  1\r\nPUB ask _INBOX.abcdefghijklmnopqrstuv.0 2\r\nhi\r\n")
        .await;
    let headers = "NATS/1.0 503\r\nNats-Subject: ask\r\n\r\n";
    libnats
        .expect(format!("HMSG _INBOX.abcdefghijklmnopqrstuv.0 1 {0} {0}\r\n{headers}\r\n", headers.len()))
        .await;
    drop(libnats);
    let mut other = Raw::ready(server.local_addr()).await;
    // The server notices the end by itself; asking again and again is the only way to see that from outside.
    while server.stats().subscriptions > 0 {
        other.send("PING\r\n").await;
        other.expect("PONG\r\n").await;
    }
}

#[tokio::test]
async fn async_nats_0_20_sends_nulls_and_begins_with_sid_0() {
    let server = start(options()).await;
    let mut client = Raw::connect(server.local_addr()).await;
    client
        .send(
            "CONNECT {\"verbose\":false,\"pedantic\":false,\"jwt\":null,\"nkey\":null,\"sig\":null,\
             \"name\":\"beta-rust-client\",\"echo\":true,\"lang\":\"rust\",\"version\":\"0.20.0\",\"protocol\":1,\
             \"tls_required\":false,\"user\":null,\"pass\":null,\"auth_token\":null,\"headers\":true,\
             \"no_responders\":true}\r\n",
        )
        .await;
    client
        .send(
            "SUB cbs.greeter.say_hello greeter 0\r\nPUB cbs.greeter.say_hello 2\r\n{}\r\nUNSUB 0\r\nPING\r\n",
        )
        .await;
    client.expect("MSG cbs.greeter.say_hello 0 2\r\n{}\r\nPONG\r\n").await;
}

#[tokio::test]
async fn a_worker_that_resubscribes_before_it_unsubscribes_gets_both() {
    let server = start(options()).await;
    let mut worker = Raw::ready(server.local_addr()).await;
    worker.send("SUB caf.exec.assign.v1 1\r\nSUB caf.exec.assign.v1 2\r\n").await;
    worker.send("PUB caf.exec.assign.v1 1\r\nx\r\nUNSUB 1\r\nPUB caf.exec.assign.v1 1\r\ny\r\n").await;
    worker.expect("MSG caf.exec.assign.v1 1 1\r\nx\r\nMSG caf.exec.assign.v1 2 1\r\nx\r\n").await;
    worker.expect("MSG caf.exec.assign.v1 2 1\r\ny\r\n").await;
}

#[tokio::test]
async fn a_length_counted_in_characters_ends_that_connection_only() {
    let server = start(options()).await;
    let mut bystander = Raw::ready(server.local_addr()).await;
    let mut dart = Raw::ready(server.local_addr()).await;
    dart.send("PUB a 5\r\nnaïve\r\n").await;
    assert_eq!(dart.until_end().await, "-ERR 'Unknown Protocol Operation'\r\n");
    bystander.send("PING\r\n").await;
    bystander.expect("PONG\r\n").await;
}

#[tokio::test]
async fn without_echo_a_client_does_not_hear_itself_but_others_do() {
    let server = start(options()).await;
    let mut quiet = Raw::connect(server.local_addr()).await;
    let mut other = Raw::ready(server.local_addr()).await;
    other.send("SUB a 9\r\nSUB q g 8\r\nPING\r\n").await;
    other.expect("PONG\r\n").await;
    quiet.send("CONNECT {\"echo\":false,\"verbose\":false}\r\nSUB a 1\r\nSUB q g 2\r\n").await;
    quiet.send("PUB a 1\r\nx\r\nPUB q 1\r\ny\r\nPUB q 1\r\nz\r\nPING\r\n").await;
    quiet.expect("PONG\r\n").await;
    other.expect("MSG a 9 1\r\nx\r\nMSG q 8 1\r\ny\r\nMSG q 8 1\r\nz\r\n").await;
}

/// Clients take the line whenever it comes, and learn from it where else they may go.
#[tokio::test]
async fn who_is_connected_is_told_when_the_cluster_changes() {
    let server = start(options()).await;
    let mut client = Raw::connect(server.local_addr()).await;
    client.send("CONNECT {\"verbose\":false,\"pedantic\":false,\"protocol\":1}\r\nPING\r\n").await;
    client.expect("PONG\r\n").await;
    assert!(client.line().await.contains("\"connect_info\":true"));
    let cluster = ClusterInfo { name: "c".into(), connect_urls: vec!["a:4222".into(), "b:4222".into()] };
    server.set_cluster(cluster.clone());
    let line = client.line().await;
    let told: serde_json::Value = serde_json::from_str(line.strip_prefix("INFO ").unwrap()).unwrap();
    assert_eq!((&told["cluster"], &told["connect_urls"]), (&json!("c"), &json!(["a:4222", "b:4222"])));
    // The same again is no news: what comes next is the answer to the ping.
    server.set_cluster(cluster);
    client.send("PING\r\n").await;
    assert_eq!(client.line().await.trim_end(), "PONG");
}
