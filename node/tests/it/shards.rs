//! Several shards in a cluster of real nodes: each has nodes, a leader and a quorum of its own, and streams find theirs.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use serde_json::{Value, json};

use crate::held::{ask, create, info, listed, names, publish};
use crate::running::get;
use crate::site::{Site, patiently};

fn stream_of(replicas: u64) -> Value {
    json!({ "num_replicas": replicas })
}

/// `beamlog cluster …` by way of a node.
pub(crate) fn cluster(site: &Site, at: usize, line: &str) -> Result<String, String> {
    let words = std::iter::once("cluster").chain(line.split_whitespace());
    let words: Vec<&str> = words.chain(["--admin", &site.node(at).admin]).collect();
    site.node(at).run(&words)
}

/// What the page of a node says of a shard.
pub(crate) fn shard(site: &Site, at: usize, number: u64) -> Option<Value> {
    let page = site.page(at);
    page["shards"].as_array()?.iter().find(|shard| shard["number"] == number).cloned()
}

/// Waits until the shard has all its voters and a leader; the leader's name.
pub(crate) async fn formed(site: &Site, at: usize, number: u64) -> String {
    patiently("the shard is formed", async || {
        let shard = shard(site, at, number)?;
        let voters = shard["here"]["voters"].as_array()?.len();
        let leader = shard["leader"].as_str()?.to_owned();
        (voters == shard["nodes"].as_array()?.len()).then_some(leader)
    })
    .await
}

fn at(names: &[&str], name: &str) -> usize {
    names.iter().position(|one| *one == name).unwrap()
}

/// Until each is acknowledged; with an id, for one that was not may have been stored.
async fn publish_all(context: &Context, subject: &str, texts: &[String]) {
    for text in texts {
        patiently("an ack", async || {
            let mut headers = HeaderMap::new();
            headers.insert("Nats-Msg-Id", format!("{subject} {text}"));
            let payload = text.clone().into();
            let sent = context.publish_with_headers(subject.to_owned(), headers, payload).await.ok()?;
            sent.await.ok()
        })
        .await;
    }
}

/// What a stream has, each message once.
async fn messages(context: &Context, stream: &str) -> Vec<String> {
    let stream = patiently("the stream", async || context.get_stream(stream).await.ok()).await;
    let count = stream.cached_info().state.messages;
    let mut found = Vec::new();
    for sequence in 1..=count {
        let message = patiently("a message", async || stream.get_raw_message(sequence).await.ok()).await;
        found.push(String::from_utf8(message.payload.to_vec()).unwrap());
    }
    found
}

fn texts(of: &str, range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| format!("{of} {n}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_shards_on_three_nodes_have_leaders_of_their_own() {
    const NAMES: &[&str] = &["n1", "n2", "n3"];
    let mut site = Site::new(NAMES);
    site.start_all().await;
    let first = site.client(0).await;
    patiently("a stream", async || create(&first, "A", "a.>", stream_of(3)).await.ok()).await;
    cluster(&site, 0, "shard add").unwrap();
    let leader = patiently("each is led by another node", async || {
        let leader = formed(&site, 0, 1).await;
        let of_first = site.page(0)["leader"].as_str()?.to_owned();
        if leader != of_first {
            return Some(leader);
        }
        // It began so; elections on a busy machine may have changed it.
        let to = NAMES.iter().find(|name| **name != of_first)?;
        drop(cluster(&site, 0, &format!("transfer --shard 1 {to}")));
        None
    })
    .await;

    // The next stream goes where there are fewer; a tag says otherwise. Any node serves both.
    let made = create(&first, "B", "b.>", stream_of(3)).await.unwrap();
    assert_eq!(made["cluster"]["raft_group"], "shard-1");
    let in_first = json!({ "num_replicas": 3, "placement": { "tags": ["shard:0"] } });
    assert_eq!(create(&first, "C", "c.>", in_first).await.unwrap()["cluster"]["raft_group"], "shard-0");
    let nowhere = json!({ "num_replicas": 3, "placement": { "tags": ["shard:2"] } });
    assert_eq!(create(&first, "D", "d.>", nowhere).await, Err(10005));
    let too_few = json!({ "num_replicas": 2, "placement": { "tags": ["shard:1"] } });
    assert_eq!(create(&first, "D", "d.>", too_few).await, Err(10005));
    assert_eq!(create(&first, "D", "b.x", stream_of(3)).await, Err(10065));
    assert_eq!(create(&first, "B", "other", stream_of(3)).await, Err(10058));
    let mut expected = Vec::new();
    for (node, name) in NAMES.iter().enumerate() {
        let context = site.client(node).await;
        patiently("it is known", async || info(&context, "B").await.ok()).await;
        let more = texts(name, 0..5);
        publish_all(&context, "b.x", &more).await;
        publish_all(&context, "a.x", &more).await;
        expected.extend(more);
        assert_eq!(names(&context).await, json!(["A", "B", "C"]));
        let list = ask(&context, "STREAM.LIST", json!({})).await.unwrap();
        assert_eq!(listed(&list), (vec!["A", "B", "C"], vec![]), "{list}");
        let page: Value =
            serde_json::from_str(&get(&site.node(node).admin, "/jsz?streams=1", "localhost").1).unwrap();
        assert_eq!(page["account_details"][0]["stream_detail"].as_array().unwrap().len(), 3);
    }
    assert!(cluster(&site, 2, "shard ls").unwrap().contains(&leader));

    // The figures of all shards, whoever is asked; a node shows those of its own.
    let bytes = async |stream| info(&first, stream).await.unwrap()["state"]["bytes"].as_u64().unwrap();
    let of_all = bytes("A").await + bytes("B").await;
    for node in 0..NAMES.len() {
        let account = ask(&site.client(node).await, "INFO", Value::Null).await.unwrap();
        assert_eq!((&account["storage"], &account["streams"]), (&json!(of_all), &json!(3)), "{account}");
        patiently("figures of both shards", async || {
            let metrics = site.node(node).get("/metrics").1;
            let (of_first, of_second) =
                ("\nbeamlog_router_streams 2.0\n", "beamlog_router_streams{shard=\"1\"} 1.0\n");
            (metrics.contains(of_first) && metrics.contains(of_second)).then_some(())
        })
        .await;
    }

    // The leader of the second shard dies. The first has the same leader as before, or a new one; the second has one.
    let dead = at(NAMES, &leader);
    let folder = site.kill(dead);
    let alive = site.client((dead + 1) % 3).await;
    publish_all(&alive, "a.x", &texts("after", 0..5)).await;
    publish_all(&alive, "b.x", &texts("after", 0..5)).await;
    site.start(dead, folder);
    site.healthy().await;
    expected.extend(texts("after", 0..5));
    for stream in ["A", "B"] {
        assert_eq!(messages(&site.client(dead).await, stream).await, expected, "{stream}");
    }

    // All of them die, and nothing is lost.
    let folders: Vec<_> = (0..NAMES.len()).map(|node| site.kill(node)).collect();
    for (node, folder) in folders.into_iter().enumerate() {
        site.start(node, folder);
    }
    site.healthy().await;
    let again = site.client(0).await;
    for stream in ["A", "B"] {
        assert_eq!(messages(&again, stream).await, expected, "{stream}");
    }
    publish_all(&again, "b.x", &texts("last", 0..1)).await;

    // Leadership is given away.
    let leads = formed(&site, 0, 1).await;
    let to = NAMES.iter().find(|name| **name != leads).unwrap();
    cluster(&site, 0, &format!("transfer --shard 1 {to}")).unwrap();
    patiently("another leads", async || (formed(&site, 0, 1).await == *to).then_some(())).await;
    publish_all(&again, "b.x", &texts("last", 1..2)).await;
    expected.extend(texts("last", 0..2));
    assert_eq!(messages(&again, "B").await, expected);
    patiently("it is deleted", async || ask(&again, "STREAM.DELETE.B", json!({})).await.ok()).await;
    assert_eq!(names(&again).await, json!(["A", "C"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_of_three_of_five_nodes_needs_a_quorum_of_the_three() {
    const NAMES: &[&str] = &["n1", "n2", "n3", "n4", "n5"];
    let mut site = Site::new(NAMES);
    site.start_all().await;
    let first = site.client(0).await;
    patiently("a stream", async || create(&first, "A", "a.>", stream_of(5)).await.ok()).await;
    cluster(&site, 0, "shard add --nodes n9,n4,n5").unwrap_err();
    cluster(&site, 0, "shard add --nodes n3,n4,n5").unwrap();
    formed(&site, 4, 1).await;
    let made =
        patiently("a stream of three", async || create(&first, "B", "b.>", stream_of(3)).await.ok()).await;
    assert_eq!(made["cluster"]["raft_group"], "shard-1");
    assert_eq!(made["cluster"]["replicas"].as_array().unwrap().len(), 2);
    let expected = texts("b", 0..10);
    publish_all(&first, "b.x", &expected).await;
    assert!(!site.node(0).data().join("shard-1").exists(), "it is on three nodes");

    // Two of its three die: it acknowledges nothing and says so, and the other shard goes on.
    let folders: Vec<_> = [3, 4].into_iter().map(|node| (node, site.kill(node))).collect();
    let deadline = Duration::from_secs(60);
    tokio::time::timeout(deadline, async {
        patiently("it is said", async || (info(&first, "B").await == Err(10118)).then_some(())).await;
    })
    .await
    .unwrap();
    assert_eq!(publish(&first, "b.x", "nobody takes it").await, None);
    publish_all(&first, "a.x", &texts("a", 0..5)).await;
    cluster(&site, 0, "health").unwrap_err();
    let problems = site.page(0)["problems"].clone();
    assert!(problems.as_array().unwrap().contains(&json!("shard 1 has no leader")), "{problems}");
    for (node, folder) in folders {
        site.start(node, folder);
    }
    site.healthy().await;
    assert_eq!(messages(&first, "B").await, expected);
    publish_all(&first, "b.x", &texts("back", 0..1)).await;

    // Another node in the place of one.
    cluster(&site, 0, "shard set 1 --nodes n2,n4,n5").unwrap();
    patiently("n2 has come and n3 has gone", async || {
        let voters = shard(&site, 1, 1)?["here"]["voters"].clone();
        (voters == json!(["n2", "n4", "n5"])).then_some(())
    })
    .await;
    let folder = site.kill(4);
    publish_all(&first, "b.x", &texts("back", 1..2)).await;
    drop(folder);
}
