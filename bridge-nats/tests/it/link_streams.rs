//! Streams over a link, against real nats-servers: both ways, through restarts, deletions and refusals.

use std::collections::{BTreeMap, BTreeSet};

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy};
use async_nats::jetstream::{self, Context};
use async_nats::{Client, HeaderMap};
use beamlog_nats::link::rules::{LinkConfig, RuleConfig, StartFrom};
use beamlog_nats::link::status::LinkState;
use futures_util::StreamExt;

use crate::link_world::{Site, Upstream, Way, link, until};

pub(crate) fn stream(name: &str) -> RuleConfig {
    RuleConfig { stream: Some(name.to_owned()), ..RuleConfig::default() }
}

pub(crate) fn importing(name: &str, upstream: &Upstream, rule: RuleConfig) -> LinkConfig {
    LinkConfig { import: vec![rule], ..link(name, upstream) }
}

pub(crate) fn exporting(name: &str, upstream: &Upstream, rule: RuleConfig) -> LinkConfig {
    LinkConfig { export: vec![rule], ..link(name, upstream) }
}

pub(crate) async fn make(context: &Context, name: &str, subjects: &[&str]) {
    let subjects = subjects.iter().map(|subject| (*subject).to_owned()).collect();
    context.create_stream(Config { name: name.into(), subjects, ..Config::default() }).await.unwrap();
}

/// Makes a stream of each retention, `NAME.>` in stream `NAME`; their names.
pub(crate) async fn of_every_retention(context: &Context) -> [&'static str; 3] {
    let kinds = [
        ("limits", RetentionPolicy::Limits),
        ("work", RetentionPolicy::WorkQueue),
        ("interest", RetentionPolicy::Interest),
    ];
    for (name, retention) in kinds {
        let subjects = vec![format!("{name}.>")];
        let config = Config { name: name.into(), subjects, retention, ..Config::default() };
        context.create_stream(config).await.unwrap();
    }
    kinds.map(|(name, _)| name)
}

/// Publishes `m<n>` for each of the range on one of seven subjects under `prefix`, in pipelines.
pub(crate) async fn publish(context: &Context, prefix: &str, range: std::ops::Range<u64>) {
    let numbers: Vec<u64> = range.collect();
    for chunk in numbers.chunks(200) {
        let mut acks = Vec::new();
        for n in chunk {
            let subject = format!("{prefix}.{}", n % 7);
            acks.push(context.publish(subject, format!("m{n}").into()).await.unwrap());
        }
        for ack in acks {
            ack.await.unwrap();
        }
    }
}

pub(crate) struct Stored {
    subject: String,
    headers: HeaderMap,
    payload: String,
    sequence: u64,
}

/// Everything a stream has.
pub(crate) async fn everything(client: &Client, name: &str) -> Vec<Stored> {
    let context = jetstream::new(client.clone());
    let mut stream = context.get_stream(name).await.unwrap();
    let count = stream.info().await.unwrap().state.messages;
    let config = pull::Config {
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::None,
        ..pull::Config::default()
    };
    let consumer = stream.create_consumer(config).await.unwrap();
    let mut stored = Vec::new();
    if count == 0 {
        return stored;
    }
    let mut messages = consumer.messages().await.unwrap();
    while (stored.len() as u64) < count {
        let message = messages.next().await.unwrap().unwrap();
        stored.push(Stored {
            subject: message.subject.to_string(),
            headers: message.headers.clone().unwrap_or_default(),
            payload: String::from_utf8(message.payload.to_vec()).unwrap(),
            sequence: message.info().unwrap().stream_sequence,
        });
    }
    stored
}

pub(crate) async fn count(client: &Client, name: &str) -> u64 {
    let context = jetstream::new(client.clone());
    match context.get_stream(name).await {
        Ok(stream) => stream.cached_info().state.messages,
        Err(_) => 0,
    }
}

/// Each of `m0` to `m<n - 1>` once, and in order on each subject.
pub(crate) async fn check_each_once(client: &Client, name: &str, n: u64) {
    until(&format!("{n} messages are in {name}"), async || count(client, name).await >= n).await;
    check_stored(&everything(client, name).await, n);
}

fn check_stored(stored: &[Stored], n: u64) {
    let mut last: BTreeMap<&str, u64> = BTreeMap::new();
    let mut all = BTreeSet::new();
    for message in stored {
        let number: u64 = message.payload.strip_prefix('m').unwrap().parse().unwrap();
        assert!(all.insert(number), "m{number} is there twice");
        let before = last.insert(message.subject.as_str(), number);
        assert!(before < Some(number), "m{number} came behind {before:?} on {}", message.subject);
    }
    assert_eq!(all, (0..n).collect(), "each is there");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_imported_stream_is_stored_here_each_message_once() {
    let upstream = Upstream::start();
    let there = jetstream::new(upstream.client().await);
    make(&there, "ORDERS", &["orders.>"]).await;
    publish(&there, "orders", 0..1500).await;
    let site = Site::start().await;
    site.link(importing("core", &upstream, stream("ORDERS"))).await;
    publish(&there, "orders", 1500..2000).await;
    let here = site.client().await;
    check_each_once(&here, "ORDERS", 2000).await;
    let stored = everything(&here, "ORDERS").await;
    let origin = stored[41].headers.get("Beamlog-Origin").unwrap().as_str().to_owned();
    assert!(origin.starts_with("ORDERS ") && origin.split(' ').nth(2) == Some("42"), "{origin}");
    until("the figures say so", async || {
        let figures = site.figures("core", 0);
        figures.transferred == 2000 && figures.lag_messages == 0
    })
    .await;
    assert_eq!(site.figures("core", 0).parked, 0);

    // The node starts again: nothing comes twice, and what came meanwhile comes.
    let directory = site.stop().await;
    publish(&there, "orders", 2000..2100).await;
    let site = Site::open(directory).await;
    site.link(importing("core", &upstream, stream("ORDERS"))).await;
    check_each_once(&site.client().await, "ORDERS", 2100).await;
    assert_eq!(site.figures("core", 0).transferred, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exported_stream_lands_there_each_message_once() {
    let upstream = Upstream::start();
    let there = upstream.client().await;
    make(&jetstream::new(there.clone()), "SITES", &["telemetry.>"]).await;
    let site = Site::start().await;
    let here = jetstream::new(site.client().await);
    make(&here, "TELEMETRY", &["t.>"]).await;
    publish(&here, "t", 0..1500).await;
    let rule = RuleConfig {
        filter: Some("t.>".into()),
        to: Some("telemetry.site7.>".into()),
        ..stream("TELEMETRY")
    };
    site.link(exporting("core", &upstream, rule.clone())).await;
    publish(&here, "t", 1500..2000).await;
    check_each_once(&there, "SITES", 2000).await;
    let stored = everything(&there, "SITES").await;
    assert_eq!(stored[0].subject, "telemetry.site7.0");
    let id = stored[41].headers.get("Nats-Msg-Id").unwrap().as_str().to_owned();
    assert!(id.starts_with("TELEMETRY@") && id.ends_with(":42"), "{id}");
    until("the lag is gone", async || site.figures("core", 0).lag_messages == 0).await;

    let directory = site.stop().await;
    let site = Site::open(directory).await;
    let here = jetstream::new(site.client().await);
    publish(&here, "t", 2000..2100).await;
    site.link(exporting("core", &upstream, rule)).await;
    check_each_once(&there, "SITES", 2100).await;
    assert_eq!(site.figures("core", 0).transferred, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn both_ways_through_kills_freezes_and_restarts_of_the_server() {
    let mut upstream = Upstream::start();
    let there = jetstream::new(upstream.client().await);
    make(&there, "DOWN", &["down.>"]).await;
    make(&there, "UP", &["up.>"]).await;
    publish(&there, "down", 0..3000).await;
    let site = Site::start().await;
    let here = jetstream::new(site.client().await);
    make(&here, "LOCAL", &["up.>"]).await;
    let config =
        LinkConfig { import: vec![stream("DOWN")], export: vec![stream("LOCAL")], ..link("core", &upstream) };
    site.link(config).await;
    for round in 0..6_u64 {
        if round % 3 == 1 {
            // What is published now is on its way to somebody who does not answer.
            upstream.signal("-STOP");
        }
        publish(&here, "up", round * 500..(round + 1) * 500).await;
        match round % 3 {
            0 => {
                site.connected("core").await;
                upstream.kill();
                until("the link says so", async || {
                    matches!(site.status("core").state, LinkState::Degraded { .. })
                })
                .await;
                upstream.begin();
            }
            1 => upstream.signal("-CONT"),
            _ => {
                upstream.signal("-STOP");
                upstream.kill();
                upstream.begin();
            }
        }
    }
    let there = upstream.client().await;
    check_each_once(&there, "UP", 3000).await;
    check_each_once(&site.client().await, "DOWN", 3000).await;
    assert!(site.status("core").reconnects >= 2);
}

/// What the server has delivered is gone with the connection, and what it delivers next must not hide that.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_lost_connection_took_with_it_is_imported_still() {
    let upstream = Upstream::start();
    let there = jetstream::new(upstream.client().await);
    let kinds = of_every_retention(&there).await;
    let way = Way::to(&upstream).await;
    let site = Site::start().await;
    let import = kinds.map(stream).to_vec();
    site.link(LinkConfig { urls: vec![way.url()], import, ..link("core", &upstream) }).await;
    for name in kinds {
        publish(&there, name, 0..300).await;
    }
    let here = site.client().await;
    for name in kinds {
        until("the first are here", async || count(&here, name).await == 300).await;
    }
    way.lose_answers();
    for name in kinds {
        publish(&there, name, 300..400).await;
        let stream = there.get_stream_no_info(name).await.unwrap();
        until("they were delivered, and did not arrive", async || {
            let mut consumers = stream.consumers();
            let delivered = consumers.next().await.unwrap().unwrap().delivered.stream_sequence;
            delivered == 400
        })
        .await;
        assert_eq!(count(&here, name).await, 300);
    }
    way.mend();
    for name in kinds {
        publish(&there, name, 400..1000).await;
    }
    for name in kinds {
        check_each_once(&here, name, 1000).await;
        let stream = there.get_stream_no_info(name).await.unwrap();
        until("everything is acked there", async || {
            let mut consumers = stream.consumers();
            consumers.next().await.unwrap().unwrap().num_ack_pending == 0
        })
        .await;
    }
}

/// A way that is slower than the server: what is asked for at a time is bounded, or the server ends a connection
/// that takes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn large_messages_over_a_slow_way() {
    let upstream = Upstream::with_configuration("max_pending: 8MB");
    let there = jetstream::new(upstream.client().await);
    make(&there, "LARGE", &["large.>"]).await;
    let payload = bytes::Bytes::from(vec![7; 1_000_000]);
    for _ in 0..60 {
        there.publish("large.a", payload.clone()).await.unwrap().await.unwrap();
    }
    let way = Way::slow(&upstream, 8 << 20).await;
    let site = Site::start().await;
    site.link(LinkConfig { urls: vec![way.url()], import: vec![stream("LARGE")], ..link("core", &upstream) })
        .await;
    let here = site.client().await;
    until("all are here", async || count(&here, "LARGE").await == 60).await;
    assert_eq!(site.status("core").reconnects, 0);
}

/// Messages that were stored under a larger `max_payload` than there is now are larger than what is asked for at a
/// time.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_larger_than_a_pull_is_imported_still() {
    let mut upstream = Upstream::with_configuration("max_payload: 4MB");
    let there = jetstream::new(upstream.client().await);
    make(&there, "LARGE", &["large.>"]).await;
    let sizes = [10, 3_000_000, 20, 30, 3_500_000, 40];
    for size in sizes {
        there.publish("large.a", vec![7; size].into()).await.unwrap().await.unwrap();
    }
    upstream.kill();
    upstream.configure("");
    upstream.begin();
    let site = Site::start().await;
    site.link(importing("core", &upstream, stream("LARGE"))).await;
    let here = site.client().await;
    until("all are here", async || count(&here, "LARGE").await == sizes.len() as u64).await;
    let stored = everything(&here, "LARGE").await;
    assert_eq!(stored.iter().map(|message| message.payload.len()).collect::<Vec<_>>(), sizes);
    // And it goes on as before.
    let there = jetstream::new(upstream.client().await);
    there.publish("large.b", "last".into()).await.unwrap().await.unwrap();
    until("the last is here", async || count(&here, "LARGE").await == sizes.len() as u64 + 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_made_anew_there_is_imported_anew() {
    let upstream = Upstream::start();
    let there = jetstream::new(upstream.client().await);
    make(&there, "ORDERS", &["orders.>"]).await;
    publish(&there, "orders", 0..100).await;
    let site = Site::start().await;
    site.link(importing("core", &upstream, stream("ORDERS"))).await;
    let here = site.client().await;
    check_each_once(&here, "ORDERS", 100).await;
    there.delete_stream("ORDERS").await.unwrap();
    until("the link misses it", async || {
        matches!(&site.status("core").state, LinkState::Degraded { cause } if cause.contains("ORDERS"))
    })
    .await;
    make(&there, "ORDERS", &["orders.>"]).await;
    publish(&there, "orders", 100..250).await;
    check_each_once(&here, "ORDERS", 250).await;
    let notes = site.status("core").rules[0].notes.clone();
    assert!(notes.iter().any(|note| note.contains("made anew")), "{notes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn our_consumer_that_is_deleted_there_is_made_again_at_the_watermark() {
    let upstream = Upstream::start();
    let there = jetstream::new(upstream.client().await);
    make(&there, "ORDERS", &["orders.>"]).await;
    publish(&there, "orders", 0..100).await;
    let site = Site::start().await;
    site.link(importing("core", &upstream, stream("ORDERS"))).await;
    let here = site.client().await;
    check_each_once(&here, "ORDERS", 100).await;
    let stream = there.get_stream("ORDERS").await.unwrap();
    let name = stream.consumer_names().next().await.unwrap().unwrap();
    stream.delete_consumer(&name).await.unwrap();
    publish(&there, "orders", 100..200).await;
    check_each_once(&here, "ORDERS", 200).await;
    assert_eq!(site.figures("core", 0).duplicates_refused, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_stream_there_holds_the_export_until_there_is_room() {
    let upstream = Upstream::start();
    let client = upstream.client().await;
    let there = jetstream::new(client.clone());
    let full = Config {
        name: "UP".into(),
        subjects: vec!["up.>".into()],
        max_messages: 100,
        discard: DiscardPolicy::New,
        ..Config::default()
    };
    there.create_stream(full.clone()).await.unwrap();
    let site = Site::start().await;
    let here = jetstream::new(site.client().await);
    make(&here, "LOCAL", &["up.>"]).await;
    publish(&here, "up", 0..1000).await;
    site.links.add(exporting("core", &upstream, stream("LOCAL"))).unwrap();
    until("the link says that it is full", async || {
        matches!(&site.status("core").state, LinkState::Degraded { cause } if cause.contains("maximum messages"))
    })
    .await;
    assert_eq!(count(&client, "UP").await, 100);
    there.update_stream(Config { max_messages: -1, ..full }).await.unwrap();
    check_each_once(&client, "UP", 1000).await;
    site.connected("core").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_they_never_take_is_put_aside_and_the_rest_goes_on() {
    let upstream = Upstream::with_configuration("max_payload: 65536");
    let client = upstream.client().await;
    let there = jetstream::new(client.clone());
    let limited = Config {
        name: "UP".into(),
        subjects: vec!["up.*".into()],
        max_message_size: 1000,
        ..Config::default()
    };
    there.create_stream(limited).await.unwrap();
    let site = Site::start().await;
    let local = site.client().await;
    let here = jetstream::new(local.clone());
    make(&here, "LOCAL", &["up.>"]).await;
    publish(&here, "up", 0..10).await;
    // For the stream, for the server, and for no stream at all.
    here.publish("up.1", vec![b'x'; 2000].into()).await.unwrap().await.unwrap();
    here.publish("up.2", vec![b'x'; 100_000].into()).await.unwrap().await.unwrap();
    here.publish("up.deeper.down", "lost".into()).await.unwrap().await.unwrap();
    publish(&here, "up", 10..20).await;
    site.link(exporting("core", &upstream, stream("LOCAL"))).await;
    check_each_once(&client, "UP", 20).await;
    until("all three are put aside", async || site.figures("core", 0).parked == 3).await;
    let dead = everything(&local, "LINK_DEAD_LETTERS").await;
    let reasons: Vec<_> =
        dead.iter().map(|letter| letter.headers.get("Beamlog-Dead-Reason").unwrap().as_str()).collect();
    assert_eq!(dead.len(), 3);
    assert!(
        reasons[2].contains("no stream there captures up.deeper.down") || reasons.len() == 3,
        "{reasons:?}"
    );
    assert!(dead.iter().any(|letter| letter.payload.len() == 100_000));
    site.connected("core").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_links_to_one_cluster_import_each_message_once() {
    let upstream = Upstream::start();
    let there = jetstream::new(upstream.client().await);
    make(&there, "ORDERS", &["orders.>"]).await;
    publish(&there, "orders", 0..500).await;
    let site = Site::start().await;
    // Both at once, so that both read the same messages.
    site.links.add(importing("one", &upstream, stream("ORDERS"))).unwrap();
    site.links.add(importing("two", &upstream, stream("ORDERS"))).unwrap();
    publish(&there, "orders", 500..1000).await;
    check_each_once(&site.client().await, "ORDERS", 1000).await;
    let stored: u64 = ["one", "two"].iter().map(|link| site.figures(link, 0).transferred).sum();
    assert_eq!(stored, 1000);
}

#[tokio::test(flavor = "multi_thread")]
async fn both_ways_on_one_stream_nothing_goes_back() {
    let upstream = Upstream::start();
    let client = upstream.client().await;
    let there = jetstream::new(client.clone());
    make(&there, "SHARED", &["shared.>"]).await;
    let site = Site::start().await;
    let local = site.client().await;
    let here = jetstream::new(local.clone());
    make(&here, "SHARED", &["shared.>"]).await;
    let both = LinkConfig {
        import: vec![stream("SHARED")],
        export: vec![stream("SHARED")],
        ..link("core", &upstream)
    };
    site.link(both).await;
    for n in 0..100_u64 {
        let context = if n % 2 == 0 { &here } else { &there };
        context.publish(format!("shared.{n}"), format!("m{n}").into()).await.unwrap().await.unwrap();
    }
    check_each_once(&client, "SHARED", 100).await;
    check_each_once(&local, "SHARED", 100).await;
    // What could still go in a circle would have by the time that one more went both ways.
    here.publish("shared.last", "m100".into()).await.unwrap().await.unwrap();
    there.publish("shared.more", "m101".into()).await.unwrap().await.unwrap();
    until("the last came", async || {
        count(&local, "SHARED").await >= 102 && count(&client, "SHARED").await >= 102
    })
    .await;
    until("nothing is on its way", async || (0..2).all(|rule| site.figures("core", rule).lag_messages == 0))
        .await;
    assert_eq!((count(&local, "SHARED").await, count(&client, "SHARED").await), (102, 102));
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_ring_of_three_each_message_lands_once_everywhere() {
    let servers = [Upstream::start(), Upstream::start(), Upstream::start()];
    let mut clients = Vec::new();
    for server in &servers {
        let client = server.client().await;
        make(&jetstream::new(client.clone()), "RING", &["ring.>"]).await;
        clients.push(client);
    }
    // Each site imports from one server and exports to the next.
    let mut sites = Vec::new();
    for at in 0..3 {
        let site = Site::start().await;
        site.link(importing("from", &servers[at], stream("RING"))).await;
        site.link(exporting("to", &servers[(at + 1) % 3], stream("RING"))).await;
        sites.push(site);
    }
    for n in 0..90_u64 {
        let context = jetstream::new(clients[usize::try_from(n % 3).unwrap()].clone());
        context.publish(format!("ring.{}", n % 3), format!("m{n}").into()).await.unwrap().await.unwrap();
    }
    for client in &clients {
        check_each_once(client, "RING", 90).await;
    }
    for site in &sites {
        check_each_once(&site.client().await, "RING", 90).await;
    }
    until("nothing is on its way", async || {
        sites.iter().all(|site| ["from", "to"].iter().all(|link| site.figures(link, 0).lag_messages == 0))
    })
    .await;
    for client in &clients {
        assert_eq!(count(client, "RING").await, 90);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_may_begin_late_keep_sequences_and_take_a_part() {
    let upstream = Upstream::start();
    let there = jetstream::new(upstream.client().await);
    make(&there, "ORDERS", &["orders.>"]).await;
    publish(&there, "orders", 0..100).await;
    let stream_there = there.get_stream("ORDERS").await.unwrap();
    for sequence in [60, 61, 70] {
        stream_there.delete_message(sequence).await.unwrap();
    }
    let site = Site::start().await;
    let kept = RuleConfig {
        target: Some("KEPT".into()),
        start: Some(StartFrom::Sequence(51)),
        keep_sequence: true,
        ..stream("ORDERS")
    };
    site.link(importing("kept", &upstream, kept)).await;
    let here = site.client().await;
    until("all that is left came", async || count(&here, "KEPT").await == 47).await;
    let sequences: Vec<u64> = everything(&here, "KEPT").await.iter().map(|stored| stored.sequence).collect();
    let expected: Vec<u64> = (51..=100).filter(|at| ![60, 61, 70].contains(at)).collect();
    assert_eq!(sequences, expected);
    assert_eq!(site.figures("kept", 0).missed, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_cannot_say_where_a_message_comes_from() {
    let site = Site::start().await;
    let client = site.client().await;
    let here = jetstream::new(client.clone());
    make(&here, "S", &["s.>"]).await;
    let mut headers = HeaderMap::new();
    headers.insert("Beamlog-Origin", "UP 1 7 7");
    headers.insert("User", "u");
    for _ in 0..2 {
        here.publish_with_headers("s.a", headers.clone(), "m".into()).await.unwrap().await.unwrap();
    }
    let stored = everything(&client, "S").await;
    assert_eq!(stored.len(), 2);
    assert!(stored.iter().all(|message| message.headers.get("Beamlog-Origin").is_none()));
    assert_eq!(stored[0].headers.get("User").map(|value| value.as_str()), Some("u"));
}
