//! Publish, subscribe and request with async-nats, unmodified.

use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::{Client, HeaderMap, Subscriber};
use beamlog_nats::Server;
use futures_util::StreamExt;

use crate::raw::{PATIENCE, options, start};

async fn client(server: &Server) -> Client {
    async_nats::connect(format!("nats://{}", server.local_addr())).await.unwrap()
}

/// Returns when the server has done all that this client sent so far (`flush` only hands it to the socket).
async fn settle(client: &Client) {
    let error = client.request("nobody", "".into()).await.unwrap_err();
    assert_eq!(error.kind(), async_nats::RequestErrorKind::NoResponders);
}

async fn next(subscriber: &mut Subscriber) -> async_nats::Message {
    tokio::time::timeout(PATIENCE, subscriber.next()).await.expect("a message in time").unwrap()
}

#[tokio::test]
async fn what_is_published_is_received_in_order() {
    let server = start(options()).await;
    let (publisher, receiver) = (client(&server).await, client(&server).await);
    let mut subscription = receiver.subscribe("orders.eu").await.unwrap();
    settle(&receiver).await;
    for number in 0..2_000_u32 {
        publisher.publish("orders.eu", number.to_string().into()).await.unwrap();
    }
    publisher.flush().await.unwrap();
    for number in 0..2_000_u32 {
        assert_eq!(next(&mut subscription).await.payload, number.to_string());
    }
}

#[tokio::test]
async fn wildcards_see_what_they_match() {
    let server = start(options()).await;
    let client = client(&server).await;
    let mut star = client.subscribe("a.*.c").await.unwrap();
    let mut tail = client.subscribe("a.>").await.unwrap();
    let mut all = client.subscribe(">").await.unwrap();
    for subject in ["a.b.c", "a.b", "x"] {
        client.publish(subject, "".into()).await.unwrap();
    }
    assert_eq!(next(&mut star).await.subject.as_str(), "a.b.c");
    assert_eq!(next(&mut tail).await.subject.as_str(), "a.b.c");
    assert_eq!(next(&mut tail).await.subject.as_str(), "a.b");
    for subject in ["a.b.c", "a.b", "x"] {
        assert_eq!(next(&mut all).await.subject.as_str(), subject);
    }
}

#[tokio::test]
async fn one_member_of_a_queue_group_gets_each_message() {
    let server = start(options()).await;
    let publisher = client(&server).await;
    let members = [client(&server).await, client(&server).await, client(&server).await];
    let mut subscriptions = Vec::new();
    for member in &members {
        subscriptions.push(member.queue_subscribe("work", "workers".into()).await.unwrap());
        settle(member).await;
    }
    for number in 0..300_u32 {
        publisher.publish("work", number.to_string().into()).await.unwrap();
    }
    settle(&publisher).await;
    let mut seen = BTreeSet::new();
    for (member, subscription) in members.iter().zip(&mut subscriptions) {
        // Drain ends the subscription behind all that was sent to it.
        subscription.drain().await.unwrap();
        settle(member).await;
        let before = seen.len();
        while let Some(message) = tokio::time::timeout(PATIENCE, subscription.next()).await.unwrap() {
            assert!(seen.insert(message.payload), "delivered twice");
        }
        assert!(seen.len() > before, "a member got nothing");
    }
    assert_eq!(seen.len(), 300);
}

#[tokio::test]
async fn requests_are_answered() {
    let server = start(options()).await;
    let (requester, replier) = (client(&server).await, client(&server).await);
    let mut requests = replier.subscribe("echo").await.unwrap();
    settle(&replier).await;
    tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            replier.publish(request.reply.unwrap(), request.payload).await.unwrap();
        }
    });
    for number in 0..100_u32 {
        let answer = requester.request("echo", number.to_string().into()).await.unwrap();
        assert_eq!(answer.payload, number.to_string());
    }
}

#[tokio::test]
async fn an_unheard_request_is_told_at_once() {
    let server = start(options()).await;
    let client = client(&server).await;
    let error = client.request("nobody", "".into()).await.unwrap_err();
    assert_eq!(error.kind(), async_nats::RequestErrorKind::NoResponders);
}

#[tokio::test]
async fn headers_arrive_as_they_were_sent() {
    let server = start(options()).await;
    let client = client(&server).await;
    let mut subscription = client.subscribe("h").await.unwrap();
    let mut headers = HeaderMap::new();
    headers.append("X-One", "1");
    headers.append("X-Two", "a");
    headers.append("X-Two", "b");
    client.publish_with_headers("h", headers.clone(), "body".into()).await.unwrap();
    let message = next(&mut subscription).await;
    assert_eq!(message.headers, Some(headers));
    assert_eq!(message.payload, "body");
}

#[tokio::test]
async fn a_subscription_ends_after_its_maximum() {
    let server = start(options()).await;
    let client = client(&server).await;
    let mut subscription = client.subscribe("a").await.unwrap();
    subscription.unsubscribe_after(2).await.unwrap();
    for _ in 0..5 {
        client.publish("a", "x".into()).await.unwrap();
    }
    client.flush().await.unwrap();
    assert!(subscription.next().await.is_some());
    assert!(subscription.next().await.is_some());
    assert!(subscription.next().await.is_none());
}

#[tokio::test]
async fn a_large_payload_passes_whole() {
    let server = start(options()).await;
    let client = client(&server).await;
    let mut subscription = client.subscribe("big").await.unwrap();
    let payload: Vec<u8> = (0..1 << 20).map(|at: u32| at.to_le_bytes()[0] ^ at.to_le_bytes()[1]).collect();
    for _ in 0..20 {
        client.publish("big", payload.clone().into()).await.unwrap();
    }
    for _ in 0..20 {
        assert!(next(&mut subscription).await.payload == payload);
    }
}

#[tokio::test]
async fn a_client_can_drain_and_the_server_can_leave() {
    let server = start(options()).await;
    let (leaving, staying) = (client(&server).await, client(&server).await);
    let mut subscription = leaving.subscribe("a").await.unwrap();
    settle(&leaving).await;
    for _ in 0..100 {
        staying.publish("a", "x".into()).await.unwrap();
    }
    settle(&staying).await;
    leaving.drain().await.unwrap();
    let mut count = 0;
    while subscription.next().await.is_some() {
        count += 1;
    }
    assert_eq!(count, 100);
    server.drain(Duration::from_millis(50)).await;
    assert!(server.connections().is_empty());
    let stats = server.stats();
    assert_eq!(
        (stats.connections_total, stats.in_messages, stats.out_messages),
        (2, 102, 102),
        "and two that settled"
    );
    assert_eq!(stats.subscriptions, 0);
    assert!(async_nats::connect(format!("nats://{}", server.local_addr())).await.is_err());
}

#[tokio::test]
async fn monitoring_sees_connections_and_subscriptions() {
    let server = start(options()).await;
    let client = async_nats::ConnectOptions::new()
        .name("watched")
        .connect(format!("nats://{}", server.local_addr()))
        .await
        .unwrap();
    let mut subscription = client.queue_subscribe("a.*", "q".into()).await.unwrap();
    client.publish("a.b", "12345".into()).await.unwrap();
    next(&mut subscription).await;
    let connections = server.connections();
    let [connection] = connections.as_slice() else { panic!("{connections:?}") };
    assert_eq!((connection.name.as_str(), connection.lang.as_str()), ("watched", "rust"));
    assert_eq!((connection.in_messages, connection.in_bytes, connection.subscriptions), (1, 5, 1));
    let subscriptions = server.subscriptions_of(connection.id).unwrap();
    assert_eq!(subscriptions[0].filter, b"a.*");
    assert_eq!(subscriptions[0].queue.as_deref(), Some(&b"q"[..]));
    assert!(server.subscriptions_of(connection.id + 1).is_none());
}

#[tokio::test]
async fn clients_are_told_before_the_server_leaves() {
    let server = start(options()).await;
    let mut told = crate::raw::Raw::connect(server.local_addr()).await;
    told.send("CONNECT {\"verbose\":false,\"protocol\":1}\r\nPING\r\n").await;
    told.expect("PONG\r\n").await;
    assert!(told.line().await.contains("\"connect_info\":true"));
    let (_, line) = tokio::join!(server.drain(PATIENCE), async {
        let line = told.line().await;
        // It goes when it likes; the server waits for it.
        drop(told);
        line
    });
    assert!(line.starts_with("INFO {") && line.contains("\"ldm\":true"), "{line}");
    assert!(server.connections().is_empty());
}

#[tokio::test]
async fn many_requesters_at_once_are_all_answered() {
    let server = start(options()).await;
    let replier = client(&server).await;
    let mut requests = replier.queue_subscribe("echo", "q".into()).await.unwrap();
    settle(&replier).await;
    tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            replier.publish(request.reply.unwrap(), request.payload).await.unwrap();
        }
    });
    let mut requesters = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let requester = client(&server).await;
        requesters.spawn(async move {
            for number in 0..50_u32 {
                let answer = requester.request("echo", number.to_string().into()).await.unwrap();
                assert_eq!(answer.payload, number.to_string());
            }
        });
    }
    while let Some(finished) = requesters.join_next().await {
        finished.unwrap();
    }
}
