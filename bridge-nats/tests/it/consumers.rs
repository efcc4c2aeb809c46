//! Consumers with async-nats, unmodified: fetch, consume, push, ordered, every ack, redelivery, restart.

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, Consumer, DeliverPolicy, pull, push};
use async_nats::jetstream::stream::{self, RetentionPolicy, Stream};
use async_nats::jetstream::{AckKind, Context, Message};
use futures_util::{StreamExt, TryStreamExt};

use crate::node::Node;
use crate::raw::PATIENCE;

struct Scene {
    node: Node,
    jetstream: Context,
    stream: Stream,
    directory: tempfile::TempDir,
}

fn config(retention: RetentionPolicy) -> stream::Config {
    stream::Config {
        name: "ORDERS".to_owned(),
        subjects: vec!["orders.>".to_owned()],
        retention,
        ..stream::Config::default()
    }
}

async fn scene() -> Scene {
    scene_with(config(RetentionPolicy::Limits)).await
}

async fn scene_with(config: stream::Config) -> Scene {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path()).await;
    let jetstream = node.jetstream().await;
    let stream = jetstream.create_stream(config).await.unwrap();
    Scene { node, jetstream, stream, directory }
}

impl Scene {
    async fn publish(&self, range: std::ops::Range<u32>) {
        let mut acks = Vec::new();
        for number in range {
            let subject = format!("orders.{}", number % 3);
            acks.push(self.jetstream.publish(subject, number.to_string().into()).await.unwrap());
        }
        for ack in acks {
            ack.await.unwrap();
        }
    }

    async fn pull(&self, config: pull::Config) -> Consumer<pull::Config> {
        self.stream.create_consumer(config).await.unwrap()
    }

    /// Stops everything and starts again on the same data.
    async fn restart(self) -> Self {
        let Self { node, directory, jetstream, stream } = self;
        drop((jetstream, stream));
        node.stop().await;
        let node = Node::start(directory.path()).await;
        let jetstream = node.jetstream().await;
        let stream = jetstream.get_stream("ORDERS").await.unwrap();
        Self { node, jetstream, stream, directory }
    }
}

fn durable(name: &str) -> pull::Config {
    pull::Config { durable_name: Some(name.to_owned()), ..pull::Config::default() }
}

fn numbers(messages: &[Message]) -> Vec<u32> {
    messages.iter().map(|message| std::str::from_utf8(&message.payload).unwrap().parse().unwrap()).collect()
}

/// What a fetch gets, without waiting for more.
async fn fetch(consumer: &Consumer<pull::Config>, messages: usize) -> Vec<Message> {
    let fetch = consumer.fetch().max_messages(messages).messages().await.unwrap();
    tokio::time::timeout(PATIENCE, fetch.try_collect()).await.expect("an end in time").unwrap()
}

/// What a batch gets that waits for so many.
async fn batch(consumer: &Consumer<pull::Config>, messages: usize) -> Vec<Message> {
    let batch = consumer.batch().max_messages(messages).expires(PATIENCE).messages().await.unwrap();
    tokio::time::timeout(PATIENCE, batch.take(messages).try_collect()).await.expect("in time").unwrap()
}

#[tokio::test]
async fn a_fetch_gets_what_there_is_in_order_and_ends() {
    let scene = scene().await;
    scene.publish(0..50).await;
    let mut consumer = scene.pull(durable("worker")).await;
    let first = fetch(&consumer, 20).await;
    assert_eq!(numbers(&first), (0..20).collect::<Vec<_>>());
    let rest = fetch(&consumer, 100).await;
    assert_eq!(numbers(&rest), (20..50).collect::<Vec<_>>());
    assert_eq!(fetch(&consumer, 10).await.len(), 0);
    let info = consumer.info().await.unwrap();
    assert_eq!((info.num_ack_pending, info.num_pending, info.delivered.stream_sequence), (50, 0, 50));
    for message in first.iter().chain(&rest) {
        message.double_ack().await.unwrap();
    }
    let info = consumer.info().await.unwrap();
    assert_eq!((info.num_ack_pending, info.ack_floor.stream_sequence), (0, 50));
}

#[tokio::test]
async fn what_a_delivery_says_of_itself_is_right() {
    let scene = scene().await;
    scene.publish(0..3).await;
    let consumer = scene.pull(durable("worker")).await;
    let messages = fetch(&consumer, 3).await;
    for (number, message) in (1..).zip(&messages) {
        let info = message.info().unwrap();
        assert_eq!((info.stream, info.consumer), ("ORDERS", "worker"));
        assert_eq!((info.stream_sequence, info.consumer_sequence, info.delivered), (number, number, 1));
        assert_eq!(info.pending, 3 - number);
    }
}

#[tokio::test]
async fn consuming_goes_on_as_messages_come() {
    let scene = scene().await;
    let consumer = scene.pull(durable("worker")).await;
    let mut messages = consumer.messages().await.unwrap();
    let publishing = scene.publish(0..2_000);
    let consuming = async {
        for expected in 0..2_000_u32 {
            let message = messages.try_next().await.unwrap().unwrap();
            assert_eq!(message.payload, expected.to_string());
            message.ack().await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, async { tokio::join!(publishing, consuming) }).await.unwrap();
}

#[tokio::test]
async fn several_consumers_of_one_name_share_the_messages() {
    let scene = scene().await;
    scene.publish(0..300).await;
    let consumer = scene.pull(durable("worker")).await;
    let other = scene.node.jetstream().await;
    let other: Consumer<pull::Config> =
        other.get_stream("ORDERS").await.unwrap().get_consumer("worker").await.unwrap();
    let (mine, theirs) = tokio::join!(batch(&consumer, 150), batch(&other, 150));
    let mut all = [numbers(&mine), numbers(&theirs)].concat();
    all.sort_unstable();
    assert_eq!(all, (0..300).collect::<Vec<_>>());
}

#[tokio::test]
async fn each_kind_of_ack_does_what_it_says() {
    let scene = scene().await;
    scene.publish(0..4).await;
    let mut consumer = scene.pull(durable("worker")).await;
    let messages = fetch(&consumer, 4).await;
    messages[0].double_ack_with(AckKind::Nak(None)).await.unwrap();
    messages[1].double_ack_with(AckKind::Nak(Some(Duration::from_millis(300)))).await.unwrap();
    messages[2].double_ack_with(AckKind::Term).await.unwrap();
    messages[3].double_ack_with(AckKind::Progress).await.unwrap();
    let again = batch(&consumer, 2).await;
    assert_eq!(numbers(&again), [0, 1]);
    assert_eq!(again[0].info().unwrap().delivered, 2);
    for message in again.iter().chain(&messages[3..]) {
        message.double_ack().await.unwrap();
    }
    let info = consumer.info().await.unwrap();
    assert_eq!((info.num_ack_pending, info.num_redelivered, info.ack_floor.stream_sequence), (0, 0, 4));
}

#[tokio::test]
async fn an_unacked_message_comes_again_and_is_given_up_at_the_limit() {
    let scene = scene().await;
    let mut advisories =
        scene.node.client().await.subscribe("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.>").await.unwrap();
    scene.publish(0..2).await;
    let config = pull::Config { ack_wait: Duration::from_millis(200), max_deliver: 3, ..durable("worker") };
    let consumer = scene.pull(config).await;
    let got = batch(&consumer, 6).await;
    let mut seen = numbers(&got);
    seen.sort_unstable();
    assert_eq!(seen, [0, 0, 0, 1, 1, 1]);
    for _ in 0..2 {
        let told = tokio::time::timeout(PATIENCE, advisories.next()).await.unwrap().unwrap();
        let told = std::str::from_utf8(&told.payload).unwrap().to_owned();
        assert!(told.contains("\"deliveries\":3"), "{told}");
    }
    assert_eq!(fetch(&consumer, 5).await.len(), 0);
}

#[tokio::test]
async fn an_ack_of_all_covers_what_lies_before() {
    let scene = scene().await;
    scene.publish(0..10).await;
    let config = pull::Config { ack_policy: AckPolicy::All, ..durable("worker") };
    let mut consumer = scene.pull(config).await;
    let messages = fetch(&consumer, 10).await;
    messages[6].double_ack().await.unwrap();
    let info = consumer.info().await.unwrap();
    assert_eq!((info.num_ack_pending, info.ack_floor.stream_sequence), (3, 7));
}

#[tokio::test]
async fn filters_choose_and_policies_begin() {
    let scene = scene().await;
    scene.publish(0..9).await;
    let several = ["orders.1".to_owned(), "orders.2".to_owned()];
    for (name, deliver_policy, filter_subjects, expected) in [
        ("all", DeliverPolicy::All, &several[..1], vec![1, 4, 7]),
        ("both", DeliverPolicy::All, &several[..], vec![1, 2, 4, 5, 7, 8]),
        ("last", DeliverPolicy::Last, &several[..1], vec![7]),
        ("each", DeliverPolicy::LastPerSubject, &several[..], vec![7, 8]),
        ("at", DeliverPolicy::ByStartSequence { start_sequence: 5 }, &several[..1], vec![4, 7]),
        ("new", DeliverPolicy::New, &several[..], vec![]),
    ] {
        let filter_subjects = filter_subjects.to_vec();
        let mut consumer =
            scene.pull(pull::Config { deliver_policy, filter_subjects, ..durable(name) }).await;
        assert_eq!(consumer.info().await.unwrap().num_pending, expected.len() as u64, "{name}");
        assert_eq!(numbers(&fetch(&consumer, 20).await), expected, "{name}");
    }
}

#[tokio::test]
async fn a_push_consumer_sends_to_whoever_listens() {
    let scene = scene().await;
    scene.publish(0..100).await;
    let consumer = scene
        .stream
        .create_consumer(push::Config {
            durable_name: Some("pushed".to_owned()),
            deliver_subject: "inbox.pushed".to_owned(),
            flow_control: true,
            idle_heartbeat: Duration::from_secs(1),
            ..push::Config::default()
        })
        .await
        .unwrap();
    let mut messages = consumer.messages().await.unwrap();
    let publishing = scene.publish(100..3_000);
    let consuming = async {
        for expected in 0..3_000_u32 {
            let message = messages.try_next().await.unwrap().unwrap();
            assert_eq!(message.payload, expected.to_string());
            message.ack().await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, async { tokio::join!(publishing, consuming) }).await.unwrap();
}

#[tokio::test]
async fn a_push_consumer_with_a_group_sends_each_message_to_one_member() {
    let scene = scene().await;
    let config = push::Config {
        durable_name: Some("pushed".to_owned()),
        deliver_subject: "inbox.pushed".to_owned(),
        deliver_group: Some("workers".to_owned()),
        ..push::Config::default()
    };
    let consumer = scene.stream.create_consumer(config).await.unwrap();
    let (one, two) = (consumer.messages().await.unwrap(), consumer.messages().await.unwrap());
    scene.publish(0..200).await;
    let mut both = futures_util::stream::select(one, two);
    let mut seen = Vec::new();
    while seen.len() < 200 {
        let message = tokio::time::timeout(PATIENCE, both.try_next()).await.unwrap().unwrap().unwrap();
        message.ack().await.unwrap();
        seen.extend(numbers(&[message]));
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..200).collect::<Vec<_>>());
}

#[tokio::test]
async fn ordered_consumers_see_everything_once_and_in_order() {
    let scene = scene().await;
    scene.publish(0..500).await;
    let pulled = scene
        .stream
        .create_consumer(pull::OrderedConfig { name: Some("pulled".to_owned()), ..Default::default() })
        .await
        .unwrap();
    let pushed = scene
        .stream
        .create_consumer(push::OrderedConfig {
            deliver_subject: scene.node.client().await.new_inbox(),
            ..Default::default()
        })
        .await
        .unwrap();
    let pulled = pulled.messages().await.unwrap().map_err(|error| error.to_string());
    let pushed = pushed.messages().await.unwrap().map_err(|error| error.to_string());
    scene.publish(500..1_000).await;
    for mut messages in [pulled.boxed(), pushed.boxed()] {
        for expected in 0..1_000_u32 {
            let message = tokio::time::timeout(PATIENCE, messages.try_next()).await.unwrap();
            assert_eq!(message.unwrap().unwrap().payload, expected.to_string());
        }
    }
}

#[tokio::test]
async fn a_work_queue_lets_go_of_what_is_acked() {
    let mut scene = scene_with(config(RetentionPolicy::WorkQueue)).await;
    scene.publish(0..10).await;
    let consumer = scene.pull(durable("worker")).await;
    for message in fetch(&consumer, 4).await {
        message.double_ack().await.unwrap();
    }
    assert_eq!(scene.stream.info().await.unwrap().state.messages, 6);
    let refused = scene.stream.create_consumer(durable("second")).await.unwrap_err();
    assert!(refused.to_string().contains("10099"), "{refused}");
}

#[tokio::test]
async fn an_interest_stream_keeps_what_some_consumer_has_not_acked() {
    let mut scene = scene_with(config(RetentionPolicy::Interest)).await;
    let (one, two) = (scene.pull(durable("one")).await, scene.pull(durable("two")).await);
    scene.publish(0..10).await;
    for message in fetch(&one, 10).await {
        message.double_ack().await.unwrap();
    }
    assert_eq!(scene.stream.info().await.unwrap().state.messages, 10);
    for message in fetch(&two, 7).await {
        message.double_ack().await.unwrap();
    }
    assert_eq!(scene.stream.info().await.unwrap().state.messages, 3);
}

#[tokio::test]
async fn a_restart_keeps_positions_acks_and_counts() {
    let scene = scene().await;
    scene.publish(0..10).await;
    let config = pull::Config { ack_wait: Duration::from_secs(1), ..durable("worker") };
    let consumer = scene.pull(config).await;
    let messages = fetch(&consumer, 6).await;
    for done in [0, 1, 4] {
        messages[done].double_ack().await.unwrap();
    }
    let scene = scene.restart().await;
    let mut consumer: Consumer<pull::Config> = scene.stream.get_consumer("worker").await.unwrap();
    let info = consumer.info().await.unwrap();
    assert_eq!((info.num_ack_pending, info.ack_floor.stream_sequence, info.num_pending), (3, 2, 4));
    let mut got = batch(&consumer, 7).await;
    got.sort_by_key(|message| message.info().unwrap().stream_sequence);
    assert_eq!(numbers(&got), [2, 3, 5, 6, 7, 8, 9]);
    let counts: Vec<_> = got.iter().map(|message| message.info().unwrap().delivered).collect();
    assert_eq!(counts, [2, 2, 2, 1, 1, 1, 1]);
}

#[tokio::test]
async fn a_paused_consumer_waits() {
    let scene = scene().await;
    scene.publish(0..3).await;
    let consumer = scene.pull(durable("worker")).await;
    let pause = serde_json::json!({ "pause_until": "2999-01-01T00:00:00Z" });
    let paused: serde_json::Value =
        scene.jetstream.request("CONSUMER.PAUSE.ORDERS.worker", &pause).await.unwrap();
    assert_eq!(paused["paused"], true, "{paused}");
    assert_eq!(fetch(&consumer, 3).await.len(), 0);
    scene.stream.resume_consumer("worker").await.unwrap();
    assert_eq!(fetch(&consumer, 3).await.len(), 3);
}

#[tokio::test]
async fn deleting_a_consumer_ends_those_who_wait() {
    let scene = scene().await;
    let consumer = scene.pull(durable("worker")).await;
    let mut messages = consumer.messages().await.unwrap();
    let waiting = tokio::spawn(async move { messages.try_next().await });
    let mut info = scene.stream.get_consumer::<pull::Config>("worker").await.unwrap();
    while info.info().await.unwrap().num_waiting == 0 {}
    scene.stream.delete_consumer("worker").await.unwrap();
    let ended = tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap();
    assert!(ended.is_err(), "{ended:?}");
}

#[tokio::test]
async fn headers_only_leaves_the_payload_at_home() {
    let scene = scene().await;
    scene.publish(10..11).await;
    let consumer = scene.pull(pull::Config { headers_only: true, ..durable("worker") }).await;
    let messages = fetch(&consumer, 1).await;
    assert_eq!(messages[0].payload.len(), 0);
    let headers = messages[0].headers.as_ref().unwrap();
    assert_eq!(headers.get("Nats-Msg-Size").unwrap().as_str(), "2");
}

#[tokio::test]
async fn an_ephemeral_consumer_goes_when_nobody_uses_it() {
    let scene = scene().await;
    let config = pull::Config { inactive_threshold: Duration::from_millis(300), ..pull::Config::default() };
    let consumer = scene.stream.create_consumer(config).await.unwrap();
    let name = consumer.cached_info().name.clone();
    let gone = async {
        while scene.stream.consumer_info(&name).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.unwrap();
}

#[tokio::test]
async fn sampled_acks_tell_how_long_they_took() {
    let scene = scene().await;
    let mut metrics = scene.node.client().await.subscribe("$JS.EVENT.METRIC.CONSUMER.ACK.>").await.unwrap();
    scene.publish(0..1).await;
    let consumer = scene.pull(pull::Config { sample_frequency: 100, ..durable("worker") }).await;
    fetch(&consumer, 1).await[0].double_ack().await.unwrap();
    let told = tokio::time::timeout(PATIENCE, metrics.next()).await.unwrap().unwrap();
    assert_eq!(told.subject.as_str(), "$JS.EVENT.METRIC.CONSUMER.ACK.ORDERS.worker");
}
