//! Three real nodes as `cluster dev` starts them, and what clients and operators are told of them.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::stream::Config;
use async_nats::{Client, ConnectOptions};
use futures_util::StreamExt;
use serde_json::Value;
use tempfile::TempDir;

use crate::dev_cluster::Dev;
use crate::running::get;
use crate::site::patiently;

const PATIENCE: Duration = Duration::from_secs(90);

async fn connect(dev: &Dev, name: &str) -> Client {
    let options = ConnectOptions::new().request_timeout(Some(Duration::from_secs(5)));
    options.connect(format!("nats://{}", dev.text(name, "nats"))).await.unwrap()
}

fn page(dev: &Dev, name: &str, path: &str) -> Option<Value> {
    let (status, body) = get(&dev.text(name, "admin"), path, "localhost");
    (status == 200).then(|| serde_json::from_str(&body).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_and_operators_see_the_cluster_as_it_is() {
    let folder = TempDir::new().unwrap();
    let dev = tokio::task::block_in_place(|| Dev::start(folder.path(), 3, &[]));
    let mut urls = dev.addresses();
    urls.sort();
    let client = patiently("INFO names every node's address", async || {
        let n1 = connect(&dev, "n1").await;
        (n1.server_info().connect_urls == urls).then_some(n1)
    })
    .await;

    let context = jetstream::new(client.clone());
    let config =
        Config { name: "S".into(), subjects: vec!["s.>".into()], num_replicas: 3, ..Config::default() };
    patiently("a stream is made", async || context.create_stream(config.clone()).await.ok()).await;
    for n in 0..50 {
        context.publish("s.a", format!("m{n}").into()).await.unwrap().await.unwrap();
    }
    let stream = context.get_stream("S").await.unwrap();
    let consumer = jetstream::consumer::pull::Config { durable_name: Some("C".into()), ..Default::default() };
    let consumer = stream.create_consumer(consumer).await.unwrap();
    let cluster = patiently("everybody is current", async || {
        let cluster = context.get_stream("S").await.ok()?.cached_info().cluster.clone()?;
        (cluster.replicas.len() == 2 && cluster.replicas.iter().all(|one| one.current && !one.offline))
            .then_some(cluster)
    })
    .await;
    let leader = cluster.leader.unwrap();
    assert!(cluster.replicas.iter().all(|one| one.name != leader && dev.names().contains(&one.name)));
    assert!(cluster.name.is_some_and(|name| !name.is_empty()));
    assert_eq!(consumer.cached_info().cluster.as_ref().unwrap().leader.as_ref(), Some(&leader));

    // Every node shows what the leader has.
    for name in &dev.names() {
        let jsz = patiently("a page with the stream", async || {
            let jsz = page(&dev, name, "/jsz?consumers=1&config=1")?;
            (jsz["messages"] == 50 && jsz["meta_cluster"]["leader"] == leader.as_str()).then_some(jsz)
        })
        .await;
        let stream = &jsz["account_details"][0]["stream_detail"][0];
        assert_eq!(
            (stream["name"].as_str(), stream["state"]["messages"].as_u64()),
            (Some("S"), Some(50)),
            "{name}"
        );
        assert_eq!(stream["cluster"]["leader"], leader.as_str());
        assert_eq!(stream["consumer_detail"][0]["name"], "C");
        assert_eq!(stream["config"]["num_replicas"], 3);
        assert_eq!(jsz["meta_cluster"]["cluster_size"], 3);
        assert_eq!(page(&dev, name, "/varz").unwrap()["cluster"]["urls"].as_array().unwrap().len(), 3);
    }

    // A new leader is told of, at whichever node one listens.
    let listens = dev.names().into_iter().find(|name| *name != leader).unwrap();
    let listener = connect(&dev, &listens).await;
    let mut advisories = listener.subscribe("$JS.EVENT.ADVISORY.*.LEADER_ELECTED.>").await.unwrap();
    listener.flush().await.unwrap();
    let killed = dev.kill(&leader);
    let mut told = BTreeMap::new();
    while told.len() < 2 {
        let message = tokio::time::timeout(PATIENCE, advisories.next()).await.unwrap().unwrap();
        let advisory: Value = serde_json::from_slice(&message.payload).unwrap();
        assert_ne!(advisory["leader"], leader.as_str());
        told.insert(message.subject.to_string(), advisory);
    }
    let of_stream = &told["$JS.EVENT.ADVISORY.STREAM.LEADER_ELECTED.S"];
    assert_eq!(of_stream["type"], "io.nats.jetstream.advisory.v1.stream_leader_elected");
    assert_eq!(of_stream["stream"], "S");
    let of_consumer = &told["$JS.EVENT.ADVISORY.CONSUMER.LEADER_ELECTED.S.C"];
    assert_eq!(of_consumer["type"], "io.nats.jetstream.advisory.v1.consumer_leader_elected");
    assert_eq!(of_consumer["consumer"], "C");

    // What was acked is there, and the node comes back.
    let context = jetstream::new(listener.clone());
    patiently("it goes on", async || {
        context.publish("s.a", "after".into()).await.ok()?.await.ok().map(|ack| ack.sequence)
    })
    .await;
    assert!(context.get_stream("S").await.unwrap().cached_info().state.messages >= 51);
    tokio::task::block_in_place(|| dev.started_again(&killed));
}
