//! A stream moves between the nodes of a real cluster while clients publish to it and consume from it: nothing is lost,
//! nothing comes twice, whoever is killed meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::held::{ask, create, info, site};
use crate::shards::{cluster, formed, shard};
use crate::site::{Site, patiently};

/// Longer than the test.
const WINDOW_NANOS: u64 = 600_000_000_000;
const PATIENCE: Duration = Duration::from_secs(90);
/// Of what was there before: the first so many are acked.
const FLOOR: u64 = 500;
/// Publishes that wait for their acks while the stream is filled.
const IN_FLIGHT: usize = 500;

/// What a publisher was told, by id; every one is sent until it is acked.
struct Load {
    go_on: Arc<AtomicBool>,
    publisher: tokio::task::JoinHandle<BTreeMap<String, u64>>,
    worker: tokio::task::JoinHandle<Consumed>,
}

/// What a worker had, by id.
#[derive(Default)]
struct Consumed {
    confirmed: BTreeMap<String, u64>,
    /// It had no answer to its ack.
    uncertain: BTreeMap<String, u64>,
}

async fn publish(context: &Context, subject: &'static str, id: &str, more: &str) -> Option<u64> {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", id);
    let sent = context.publish_with_headers(subject, headers, format!("{id}{more}").into()).await.ok()?;
    sent.await.ok().map(|ack| ack.sequence)
}

impl Load {
    async fn start(context: Context) -> Self {
        let go_on = Arc::new(AtomicBool::new(true));
        let (publishing, publisher) = (Arc::clone(&go_on), context.clone());
        let publisher = tokio::spawn(async move {
            let mut acked = BTreeMap::new();
            while publishing.load(Ordering::Relaxed) {
                let id = format!("new-{}", acked.len());
                let sequence = async {
                    loop {
                        match publish(&publisher, "l.new", &id, "").await {
                            Some(sequence) => break sequence,
                            None => sleep(Duration::from_millis(20)).await,
                        }
                    }
                };
                let sequence = timeout(PATIENCE, sequence).await.expect("an ack");
                acked.insert(id, sequence);
            }
            acked
        });
        let working = Arc::clone(&go_on);
        let worker = tokio::spawn(async move {
            let mut done = Consumed::default();
            while working.load(Ordering::Relaxed) {
                work(&context, &mut done).await;
            }
            done
        });
        Self { go_on, publisher, worker }
    }
}

/// Takes what there is of the load, and confirms it.
async fn work(context: &Context, done: &mut Consumed) {
    let Ok(consumer) = context.get_consumer_from_stream::<pull::Config, _, _>("C", "L").await else { return };
    let consumer: PullConsumer = consumer;
    let Ok(mut batch) = consumer.fetch().max_messages(100).expires(Duration::from_secs(1)).messages().await
    else {
        return;
    };
    while let Some(Ok(message)) = batch.next().await {
        let id = String::from_utf8(message.payload.to_vec()).unwrap();
        let sequence = message.info().unwrap().stream_sequence;
        assert!(!done.confirmed.contains_key(&id), "{id} comes again after its ack was confirmed");
        done.uncertain.insert(id.clone(), sequence);
        // The client's own way takes the answer that nobody is there for a confirmation.
        let ack = message.reply.clone().unwrap();
        if context.client().request(ack, "+ACK".into()).await.is_ok() {
            done.uncertain.remove(&id);
            done.confirmed.insert(id, sequence);
        }
    }
}

/// A cluster with a stream, what was published to it before, and a load on it.
struct Begun {
    site: Site,
    third: Context,
    before: u64,
    padding: String,
    load: Load,
}

impl Begun {
    async fn with(before: u64, padding: usize) -> Self {
        Self::at(site().await, 1, "n1", before, padding).await
    }

    async fn at(site: Site, replicas: u64, tag: &str, before: u64, padding: usize) -> Self {
        let third = site.client(2).await;
        let there = json!({
            "num_replicas": replicas, "placement": { "tags": [tag] }, "duplicate_window": WINDOW_NANOS,
        });
        patiently("a stream", async || create(&third, "L", "l.>", there.clone()).await.ok()).await;
        let padding = " ".repeat(padding);
        patiently("a first ack", async || publish(&third, "l.old", "old-1", &padding).await).await;
        let mut at = 1;
        while at < before {
            let mut acks = Vec::new();
            while at < before && acks.len() < IN_FLIGHT {
                at += 1;
                let mut headers = HeaderMap::new();
                headers.insert("Nats-Msg-Id", format!("old-{at}"));
                let payload = format!("old-{at}{padding}").into();
                acks.push((at, third.publish_with_headers("l.old", headers, payload).await.unwrap()));
            }
            for (at, ack) in acks {
                assert_eq!(ack.await.unwrap().sequence, at);
            }
        }
        let stream = third.get_stream("L").await.unwrap();
        let of_load = pull::Config {
            durable_name: Some("C".into()),
            filter_subject: "l.new".into(),
            ack_wait: Duration::from_secs(5),
            ..Default::default()
        };
        stream.create_consumer(of_load).await.unwrap();
        let half_done = pull::Config {
            durable_name: Some("D".into()),
            filter_subject: "l.old".into(),
            ack_policy: AckPolicy::All,
            ack_wait: Duration::from_secs(600),
            ..Default::default()
        };
        let half_done = stream.create_consumer(half_done).await.unwrap();
        let mut batch =
            half_done.fetch().max_messages(usize::try_from(FLOOR).unwrap()).messages().await.unwrap();
        let mut last = None;
        while let Some(message) = batch.next().await {
            last = Some(message.unwrap());
        }
        last.unwrap().double_ack().await.unwrap();
        let load = Load::start(site.client(2).await).await;
        Self { site, third, before, padding, load }
    }

    async fn update(&self, replicas: u64, tags: &[&str]) {
        let mut body = json!({
            "name": "L", "subjects": ["l.>"], "num_replicas": replicas, "duplicate_window": WINDOW_NANOS,
        });
        if !tags.is_empty() {
            body["placement"] = json!({ "tags": tags });
        }
        patiently("an update", async || ask(&self.third, "STREAM.UPDATE.L", body.clone()).await.ok()).await;
    }

    async fn is_at(&self, leader: &str, replicas: usize) {
        patiently("it has moved", async || {
            let seen = info(&self.third, "L").await.ok()?;
            let others = seen["cluster"]["replicas"].as_array().map_or(0, Vec::len);
            ((leader.is_empty() || seen["cluster"]["leader"] == leader) && others == replicas).then_some(())
        })
        .await;
    }

    /// Waits until it is in the shard.
    async fn is_in(&self, shard: u8) {
        let group = format!("shard-{shard}");
        patiently("it has moved", async || {
            let seen = info(&self.third, "L").await.ok()?;
            (seen["cluster"]["raft_group"] == group && seen["cluster"]["replicas"].as_array()?.len() == 2)
                .then_some(())
        })
        .await;
    }

    /// Nobody has a copy of the move before.
    async fn nothing_moves(&self) {
        patiently("nobody has another copy", async || {
            (0..3).all(|at| self.site.page(at)["moving"] == Value::Array(Vec::new())).then_some(())
        })
        .await;
    }

    /// Waits until a part is copied, and not all, as the page of that node shows it.
    async fn is_being_copied_to(&self, at: usize) {
        patiently("it is being copied", async || {
            let page = self.site.page(at);
            let copied = page["moving"].as_array()?.first()?["copied"].as_u64()?;
            assert!(copied < self.before, "the copy was made before this test looked");
            Some(())
        })
        .await;
    }

    /// What was acked is there once, at its sequence, and found by its id; what was confirmed does not come again.
    async fn finish(self) {
        let Self { site: _site, third, before, padding, load } = self;
        load.go_on.store(false, Ordering::Relaxed);
        let (acked, mut done) = (load.publisher.await.unwrap(), load.worker.await.unwrap());
        assert!(!acked.is_empty() && !done.confirmed.is_empty());
        let expected: BTreeMap<u64, String> = (1..=before)
            .map(|at| (at, format!("old-{at}")))
            .chain(acked.iter().map(|(id, at)| (*at, id.clone())))
            .collect();
        let stream = patiently("the stream", async || third.get_stream("L").await.ok()).await;
        let state = &stream.cached_info().state;
        assert_eq!((state.messages, state.last_sequence), (expected.len() as u64, expected.len() as u64));

        let all = pull::Config {
            ack_policy: AckPolicy::None,
            deliver_policy: DeliverPolicy::All,
            ..Default::default()
        };
        let all = stream.create_consumer(all).await.unwrap();
        let mut expected_next = expected.iter();
        while expected_next.len() > 0 {
            let mut batch = all.fetch().max_messages(5000).messages().await.unwrap();
            while let Some(message) = batch.next().await {
                let message = message.unwrap();
                let (at, id) = expected_next.next().unwrap();
                let is_old = *at <= before;
                let text = format!("{id}{}", if is_old { &*padding } else { "" });
                assert_eq!(message.info().unwrap().stream_sequence, *at);
                assert!(message.payload == text, "at {at}");
            }
        }
        let samples = [1, before / 2, before].map(|at| (at, "l.old"));
        let of_load = acked.values().step_by(acked.len().div_ceil(50)).map(|at| (*at, "l.new"));
        for (at, subject) in samples.into_iter().chain(of_load) {
            let more = if subject == "l.old" { &*padding } else { "" };
            assert_eq!(publish(&third, subject, &expected[&at], more).await, Some(at), "known by its id");
        }
        assert_eq!(info(&third, "L").await.unwrap()["state"]["messages"], expected.len());

        let half_done: PullConsumer = stream.get_consumer("D").await.unwrap();
        assert_eq!(half_done.cached_info().ack_floor.stream_sequence, FLOOR);
        let next = half_done.fetch().max_messages(1).messages().await.unwrap().next().await.unwrap().unwrap();
        assert_eq!(next.info().unwrap().stream_sequence, FLOOR + 1);
        patiently("everything is consumed", async || {
            work(&third, &mut done).await;
            let mut consumer: PullConsumer = stream.get_consumer("C").await.ok()?;
            let seen = consumer.info().await.ok()?;
            (seen.num_pending == 0 && seen.num_ack_pending == 0).then_some(())
        })
        .await;
        done.confirmed.append(&mut done.uncertain);
        assert_eq!(done.confirmed, acked);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_moves_between_nodes_to_all_and_back_under_load() {
    let begun = Begun::with(100_000, 0).await;
    begun.update(1, &["n2"]).await;
    begun.is_at("n2", 0).await;
    begun.update(3, &[]).await;
    begun.is_at("", 2).await;
    begun.update(1, &["n1"]).await;
    begun.is_at("n1", 0).await;
    begun.nothing_moves().await;
    begun.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_receiver_is_killed_meanwhile() {
    let mut begun = Begun::with(30_000, 1000).await;
    begun.update(1, &["n2"]).await;
    begun.is_being_copied_to(1).await;
    let folder = begun.site.kill(1);
    begun.site.start(1, folder);
    begun.is_at("n2", 0).await;
    begun.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_holder_is_killed_meanwhile() {
    let mut begun = Begun::with(30_000, 1000).await;
    begun.update(1, &["n2"]).await;
    begun.is_being_copied_to(1).await;
    let folder = begun.site.kill(0);
    begun.site.start(0, folder);
    begun.is_at("n2", 0).await;
    begun.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_called_back_stays() {
    let begun = Begun::with(30_000, 1000).await;
    begun.update(1, &["n2"]).await;
    begun.is_being_copied_to(1).await;
    let moving = info(&begun.third, "L").await.unwrap()["cluster"]["moving"].clone();
    assert_eq!(moving, json!({ "from": "n1", "to": "n2" }));
    begun.update(1, &["n1"]).await;
    begun.nothing_moves().await;
    begun.is_at("n1", 0).await;
    begun.finish().await;
}

/// Two shards beside the first, on all three nodes.
async fn site_of_shards() -> Site {
    let site = site().await;
    for number in 1..=2 {
        patiently("a shard", async || cluster(&site, 0, "shard add").ok()).await;
        formed(&site, 0, number).await;
    }
    site
}

/// The node of this name leads the shard.
async fn led_by(site: &Site, number: u64, name: &str) {
    patiently("it leads", async || {
        if formed(site, 0, number).await == name {
            return Some(());
        }
        drop(cluster(site, 0, &format!("transfer --shard {number} {name}")));
        None
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_moves_between_shards_and_a_node_under_load() {
    let begun = Begun::at(site_of_shards().await, 3, "shard:0", 20_000, 0).await;
    begun.is_in(0).await;
    let refused = async |replicas: u64, tag: &str| {
        let placement = json!({ "tags": [tag] });
        let body =
            json!({ "name": "L", "subjects": ["l.>"], "num_replicas": replicas, "placement": placement });
        ask(&begun.third, "STREAM.UPDATE.L", body).await
    };
    assert_eq!(refused(3, "shard:3").await, Err(10005));
    assert_eq!(refused(5, "shard:1").await, Err(10005));
    for (number, tag) in [(1, "shard:1"), (2, "shard:2")] {
        begun.update(3, &[tag]).await;
        begun.is_in(number).await;
        begun.nothing_moves().await;
    }
    assert_eq!(refused(2, "other").await, Err(10005));
    begun.update(1, &["n2"]).await;
    begun.is_at("n2", 0).await;
    begun.nothing_moves().await;
    begun.update(3, &["shard:1"]).await;
    begun.is_in(1).await;
    begun.nothing_moves().await;
    let listed = |number| shard(&begun.site, 0, number).unwrap()["streams"].clone();
    patiently("the list has it once", async || (listed(1) == 1 && listed(2) == 0).then_some(())).await;
    begun.update(3, &["shard:0"]).await;
    begun.is_in(0).await;
    begun.nothing_moves().await;
    begun.finish().await;
}

/// The stream is on its way to a shard when a node is killed. What was copied is in the shard's log, and its next leader
/// goes on.
async fn arrives_although_one_is_killed(mut begun: Begun, number: u8, killed: usize) {
    begun.update(3, &[&format!("shard:{number}")]).await;
    begun.is_being_copied_to(1).await;
    let folder = begun.site.kill(killed);
    begun.is_in(number).await;
    begun.site.start(killed, folder);
    begun.site.healthy().await;
    begun.nothing_moves().await;
    begun.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_of_the_shard_that_gets_a_stream_is_killed_meanwhile() {
    let site = site_of_shards().await;
    led_by(&site, 1, "n2").await;
    let begun = Begun::at(site, 1, "n1", 15_000, 1000).await;
    arrives_although_one_is_killed(begun, 1, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_of_the_shard_that_has_a_stream_is_killed_meanwhile() {
    let site = site_of_shards().await;
    led_by(&site, 1, "n1").await;
    led_by(&site, 2, "n2").await;
    let begun = Begun::at(site, 3, "shard:1", 15_000, 1000).await;
    arrives_although_one_is_killed(begun, 2, 0).await;
}
