//! async-nats, unmodified, against us: streams, consumers, key-value and object buckets, and what is left
//! after a restart.

use std::time::Duration;

use async_nats::jetstream::consumer::{self, AckPolicy, DeliverPolicy, PullConsumer, PushConsumer};
use async_nats::jetstream::kv::{self, Operation};
use async_nats::jetstream::stream::{self, RetentionPolicy};
use async_nats::jetstream::{self, AckKind};
use futures_util::{StreamExt, TryStreamExt};

use crate::jetstream_servers::Beamlog;
use crate::raw::PATIENCE;

async fn context(beamlog: &Beamlog) -> jetstream::Context {
    jetstream::new(async_nats::connect(beamlog.url()).await.unwrap())
}

async fn stream_of(context: &jetstream::Context, name: &str) -> stream::Stream {
    let config = stream::Config {
        name: name.to_owned(),
        subjects: vec![format!("{name}.>")],
        ..stream::Config::default()
    };
    context.create_stream(config).await.unwrap()
}

fn durable(name: &str) -> consumer::pull::Config {
    consumer::pull::Config { durable_name: Some(name.to_owned()), ..consumer::pull::Config::default() }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("an answer in time")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_acked_is_there_after_a_restart() {
    let mut beamlog = Beamlog::start().await;
    let js = context(&beamlog).await;
    let stream = stream_of(&js, "S").await;
    let consumer = stream.create_consumer(durable("d")).await.unwrap();
    for n in 0..100 {
        let ack = js.publish("S.a", format!("m{n}").into()).await.unwrap().await.unwrap();
        assert_eq!((ack.sequence, ack.duplicate), (n + 1, false));
    }
    // No more than that: what is delivered and not acked comes again only after the ack wait.
    let mut messages = consumer.fetch().max_messages(40).messages().await.unwrap();
    for n in 0..40 {
        let message = soon(messages.next()).await.unwrap().unwrap();
        assert_eq!(message.payload, format!("m{n}"));
        soon(message.double_ack()).await.unwrap();
    }
    drop(messages);
    beamlog.close();
    beamlog.open().await;

    let js = context(&beamlog).await;
    let mut stream = js.get_stream("S").await.unwrap();
    assert_eq!(stream.info().await.unwrap().state.messages, 100);
    let mut consumer: PullConsumer = stream.get_consumer("d").await.unwrap();
    assert_eq!(consumer.info().await.unwrap().ack_floor.stream_sequence, 40);
    let mut messages = consumer.messages().await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 60 {
        let message = soon(messages.next()).await.unwrap().unwrap();
        seen.push(message.info().unwrap().stream_sequence);
        soon(message.double_ack()).await.unwrap();
    }
    seen.sort_unstable();
    assert_eq!(seen, (41..=100).collect::<Vec<u64>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_created_changed_listed_and_deleted() {
    let beamlog = Beamlog::start().await;
    let js = context(&beamlog).await;
    for name in ["A", "B", "C"] {
        stream_of(&js, name).await;
    }
    let again =
        stream::Config { name: "A".to_owned(), subjects: vec!["other".to_owned()], ..Default::default() };
    assert!(js.create_stream(again).await.unwrap_err().to_string().contains("10058"));
    let mut names: Vec<String> = js.stream_names().try_collect().await.unwrap();
    names.sort_unstable();
    assert_eq!(names, ["A", "B", "C"]);
    let listed: Vec<_> = js.streams().try_collect().await.unwrap();
    assert_eq!(listed.len(), 3);
    assert_eq!(js.stream_by_subject("B.x").await.unwrap(), "B");
    let changed = stream::Config {
        name: "A".to_owned(),
        subjects: vec!["A.>".to_owned()],
        max_messages: 2,
        ..Default::default()
    };
    assert_eq!(js.update_stream(changed).await.unwrap().config.max_messages, 2);
    for n in 0..5 {
        js.publish("A.x", n.to_string().into()).await.unwrap().await.unwrap();
    }
    let mut stream = js.get_stream("A").await.unwrap();
    let state = stream.info().await.unwrap().state.clone();
    assert_eq!((state.messages, state.first_sequence, state.last_sequence), (2, 4, 5));
    assert_eq!(stream.get_raw_message(5).await.unwrap().payload.as_ref(), b"4");
    assert_eq!(stream.get_last_raw_message_by_subject("A.x").await.unwrap().sequence, 5);
    assert!(stream.delete_message(5).await.unwrap());
    assert_eq!(stream.purge().await.unwrap().purged, 1);
    assert!(js.delete_stream("A").await.unwrap().success);
    assert!(js.get_stream("A").await.is_err());
    assert_eq!(js.query_account().await.unwrap().streams, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_not_acked_comes_again_and_one_that_is_refused_does_not() {
    let beamlog = Beamlog::start().await;
    let js = context(&beamlog).await;
    let stream = stream_of(&js, "S").await;
    let config = consumer::pull::Config { ack_wait: Duration::from_millis(200), ..durable("d") };
    let mut consumer = stream.create_consumer(config).await.unwrap();
    for n in 0..3 {
        js.publish("S.a", n.to_string().into()).await.unwrap().await.unwrap();
    }
    let mut messages = consumer.messages().await.unwrap();
    let first = soon(messages.next()).await.unwrap().unwrap();
    let second = soon(messages.next()).await.unwrap().unwrap();
    let third = soon(messages.next()).await.unwrap().unwrap();
    soon(second.double_ack_with(AckKind::Term)).await.unwrap();
    soon(third.double_ack_with(AckKind::Nak(None))).await.unwrap();
    drop(first);
    let mut again = Vec::new();
    while again.len() < 2 {
        let message = soon(messages.next()).await.unwrap().unwrap();
        let info = message.info().unwrap();
        again.push((info.stream_sequence, info.delivered));
        soon(message.double_ack()).await.unwrap();
    }
    again.sort_unstable();
    assert_eq!(again, [(1, 2), (3, 2)]);
    let info = consumer.info().await.unwrap();
    assert_eq!((info.num_ack_pending, info.num_pending, info.ack_floor.stream_sequence), (0, 0, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_and_fetches_end_when_there_is_no_more() {
    let beamlog = Beamlog::start().await;
    let js = context(&beamlog).await;
    let stream = stream_of(&js, "S").await;
    let consumer = stream.create_consumer(durable("d")).await.unwrap();
    for n in 0..5 {
        js.publish("S.a", n.to_string().into()).await.unwrap().await.unwrap();
    }
    let fetched = consumer.fetch().max_messages(10).messages().await.unwrap();
    assert_eq!(soon(fetched.count()).await, 5);
    let nothing = consumer.fetch().max_messages(10).messages().await.unwrap();
    assert_eq!(soon(nothing.count()).await, 0);
    let waited =
        consumer.batch().max_messages(2).expires(Duration::from_millis(200)).messages().await.unwrap();
    assert_eq!(soon(waited.count()).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn push_and_ordered_consumers_deliver_in_order() {
    let beamlog = Beamlog::start().await;
    let js = context(&beamlog).await;
    let stream = stream_of(&js, "S").await;
    for n in 0..500 {
        js.publish(format!("S.{}", n % 5), n.to_string().into()).await.unwrap().await.unwrap();
    }
    let push: PushConsumer = stream
        .create_consumer(consumer::push::Config {
            deliver_subject: "deliver.here".to_owned(),
            durable_name: Some("push".to_owned()),
            filter_subject: "S.3".to_owned(),
            idle_heartbeat: Duration::from_secs(1),
            flow_control: true,
            ..Default::default()
        })
        .await
        .unwrap();
    let mut messages = push.messages().await.unwrap();
    for n in 0..100 {
        let message = soon(messages.next()).await.unwrap().unwrap();
        assert_eq!(message.payload, (n * 5 + 3).to_string());
        message.ack().await.unwrap();
    }
    let ordered = stream
        .create_consumer(consumer::pull::OrderedConfig {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: 101 },
            ..Default::default()
        })
        .await
        .unwrap();
    let mut messages = ordered.messages().await.unwrap();
    for n in 100..500 {
        assert_eq!(soon(messages.next()).await.unwrap().unwrap().payload, n.to_string());
    }
    let ordered = stream
        .create_consumer(consumer::push::OrderedConfig {
            deliver_subject: "ordered.here".to_owned(),
            ..Default::default()
        })
        .await
        .unwrap();
    let mut messages = ordered.messages().await.unwrap();
    for n in 0..500 {
        assert_eq!(soon(messages.next()).await.unwrap().unwrap().payload, n.to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_work_queue_is_empty_when_all_is_done() {
    let beamlog = Beamlog::start().await;
    let js = context(&beamlog).await;
    let mut stream = js
        .create_stream(stream::Config {
            name: "W".to_owned(),
            subjects: vec!["w.>".to_owned()],
            retention: RetentionPolicy::WorkQueue,
            ..Default::default()
        })
        .await
        .unwrap();
    for n in 0..10 {
        js.publish("w.job", n.to_string().into()).await.unwrap().await.unwrap();
    }
    let worker = stream.create_consumer(durable("worker")).await.unwrap();
    let second = consumer::pull::Config { ack_policy: AckPolicy::Explicit, ..durable("second") };
    assert!(stream.create_consumer(second).await.unwrap_err().to_string().contains("10099"));
    let mut messages = worker.messages().await.unwrap();
    for _ in 0..10 {
        soon(soon(messages.next()).await.unwrap().unwrap().double_ack()).await.unwrap();
    }
    assert_eq!(stream.info().await.unwrap().state.messages, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_sent_twice_is_stored_once() {
    let beamlog = Beamlog::start().await;
    let js = context(&beamlog).await;
    stream_of(&js, "S").await;
    let publish = || {
        let message = jetstream::message::PublishMessage::build().payload("x".into()).message_id("one");
        js.send_publish("S.a", message)
    };
    let first = publish().await.unwrap().await.unwrap();
    let second = publish().await.unwrap().await.unwrap();
    assert_eq!((first.sequence, first.duplicate), (1, false));
    assert_eq!((second.sequence, second.duplicate), (1, true));
}

async fn bucket(js: &jetstream::Context) -> kv::Store {
    let config = kv::Config { bucket: "B".to_owned(), history: 5, ..Default::default() };
    js.create_key_value(config).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_keeps_what_is_put_and_refuses_what_comes_too_late() {
    let beamlog = Beamlog::start().await;
    let js = context(&beamlog).await;
    let store = bucket(&js).await;
    assert_eq!(store.put("a", "1".into()).await.unwrap(), 1);
    assert_eq!(store.put("a", "2".into()).await.unwrap(), 2);
    assert_eq!(store.get("a").await.unwrap().unwrap(), "2");
    assert_eq!(store.get("absent").await.unwrap(), None);
    let entry = store.entry("a").await.unwrap().unwrap();
    assert_eq!((entry.revision, entry.operation), (2, Operation::Put));
    assert_eq!(store.create("b", "x".into()).await.unwrap(), 3);
    assert!(store.create("b", "y".into()).await.is_err());
    assert_eq!(store.update("b", "z".into(), 3).await.unwrap(), 4);
    assert!(store.update("b", "late".into(), 3).await.is_err());
    store.delete("a").await.unwrap();
    assert_eq!(store.get("a").await.unwrap(), None);
    let history: Vec<_> = store.history("a").await.unwrap().try_collect().await.unwrap();
    let told: Vec<_> = history.iter().map(|entry| (entry.revision, entry.operation)).collect();
    assert_eq!(told, [(1, Operation::Put), (2, Operation::Put), (5, Operation::Delete)]);
    // A key that was deleted may be created again.
    assert_eq!(store.create("a", "back".into()).await.unwrap(), 6);
    store.purge("b").await.unwrap();
    let history: Vec<_> = store.history("b").await.unwrap().try_collect().await.unwrap();
    assert_eq!(history.len(), 1);
    assert_eq!(history[0].operation, Operation::Purge);
    let keys: Vec<String> = store.keys().await.unwrap().try_collect().await.unwrap();
    assert_eq!(keys, ["a"]);
    let status = store.status().await.unwrap();
    assert_eq!((status.bucket(), status.history()), ("B", 5));
    js.delete_key_value("B").await.unwrap();
    assert!(js.get_key_value("B").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_sees_changes_as_they_are_made() {
    let beamlog = Beamlog::start().await;
    let js = context(&beamlog).await;
    let store = bucket(&js).await;
    store.put("old", "1".into()).await.unwrap();
    let mut watch = store.watch_with_history(">").await.unwrap();
    let first = soon(watch.next()).await.unwrap().unwrap();
    assert_eq!((first.key.as_str(), first.value.as_ref()), ("old", b"1".as_ref()));
    store.put("new", "2".into()).await.unwrap();
    store.delete("old").await.unwrap();
    let second = soon(watch.next()).await.unwrap().unwrap();
    assert_eq!((second.key.as_str(), second.operation), ("new", Operation::Put));
    let third = soon(watch.next()).await.unwrap().unwrap();
    assert_eq!((third.key.as_str(), third.operation), ("old", Operation::Delete));
}
