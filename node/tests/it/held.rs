//! A stream with one replica in a cluster of three real nodes: one node holds it, each serves it, and when its node is
//! killed nobody else loses anything and nothing of it is lost.

use std::time::Duration;

use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::{AckKind, Context};
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use crate::running::get;
use crate::site::{Site, patiently};

const NAMES: &[&str] = &["n1", "n2", "n3"];
/// The node that holds the stream.
const HOLDER: usize = 1;

/// What the API says: the document, or the code of the error.
pub(crate) async fn ask(context: &Context, subject: &str, body: Value) -> Result<Value, u64> {
    match context.request(subject.to_owned(), &body).await {
        Ok(Response::Ok::<Value>(document)) => Ok(document),
        Ok(Response::Err { error }) => Err(error.error_code().0),
        // No answer in time, or none at all.
        Err(_) => Err(0),
    }
}

pub(crate) async fn create(context: &Context, name: &str, subject: &str, more: Value) -> Result<Value, u64> {
    let mut body = json!({ "name": name, "subjects": [subject] });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    ask(context, &format!("STREAM.CREATE.{name}"), body).await
}

pub(crate) async fn info(context: &Context, name: &str) -> Result<Value, u64> {
    ask(context, &format!("STREAM.INFO.{name}"), Value::Null).await
}

pub(crate) async fn names(context: &Context) -> Value {
    patiently("names", async || ask(context, "STREAM.NAMES", json!({})).await.ok()).await["streams"].take()
}

pub(crate) async fn publish(context: &Context, subject: &str, text: &str) -> Option<u64> {
    let sent = context.publish(subject.to_owned(), text.to_owned().into()).await.ok()?;
    sent.await.ok().map(|ack| ack.sequence)
}

/// The streams that a list has, and those that it misses.
pub(crate) fn listed(list: &Value) -> (Vec<&str>, Vec<&str>) {
    let streams = list["streams"].as_array().into_iter().flatten();
    let missing = list["missing"].as_array().into_iter().flatten();
    (
        streams.map(|stream| stream["config"]["name"].as_str().unwrap()).collect(),
        missing.map(|name| name.as_str().unwrap()).collect(),
    )
}

pub(crate) async fn site() -> Site {
    let mut site = Site::new(NAMES);
    site.start_all().await;
    site
}

#[tokio::test(flavor = "multi_thread")]
async fn one_node_holds_a_stream_with_one_replica_and_every_node_serves_it() {
    let mut site = site().await;
    let first = site.client(0).await;
    let three = json!({ "num_replicas": 3 });
    patiently("a stream of all", async || create(&first, "S", "s.>", three.clone()).await.ok()).await;
    let at_n2 = json!({ "num_replicas": 1, "placement": { "tags": ["n2"] } });
    let made =
        patiently("a stream of one", async || create(&first, "L", "l.>", at_n2.clone()).await.ok()).await;
    assert_eq!(made["cluster"]["leader"], "n2");
    assert_eq!(made["cluster"]["replicas"], Value::Null);
    assert_eq!(made["did_create"], true);

    // From each node, and in one order.
    let mut expected = Vec::new();
    for at in 0..NAMES.len() {
        let context = site.client(at).await;
        let seen = patiently("it is known", async || info(&context, "L").await.ok()).await;
        assert_eq!(seen["cluster"]["leader"], "n2");
        for n in 0..10 {
            let text = format!("{at} {n}");
            let sequence = patiently("an ack", async || publish(&context, "l.a", &text).await).await;
            expected.push(text);
            assert_eq!(sequence, expected.len() as u64);
        }
        assert_eq!(names(&context).await, json!(["L", "S"]));
        let list = patiently("a list", async || ask(&context, "STREAM.LIST", json!({})).await.ok()).await;
        assert_eq!(listed(&list), (vec!["L", "S"], vec![]), "{list}");
        let (status, page) = get(&site.node(at).admin, "/jsz?streams=1", "localhost");
        assert_eq!(status, 200);
        let page: Value = serde_json::from_str(&page).unwrap();
        let shown = page["account_details"][0]["stream_detail"].as_array().unwrap();
        let leaders: Vec<(&str, &str)> = shown
            .iter()
            .map(|one| (one["name"].as_str().unwrap(), one["cluster"]["leader"].as_str().unwrap()))
            .collect();
        assert!(leaders.contains(&("L", "n2")) && leaders.len() == 2, "{leaders:?}");
    }
    assert_eq!(site.page(HOLDER)["held"], json!(["L"]));
    let third = site.client(2).await;
    let stream = third.get_stream("L").await.unwrap();
    let durable = pull::Config { durable_name: Some("C".into()), ..Default::default() };
    let consumer = stream.create_consumer(durable).await.unwrap();
    let mut batch = consumer.fetch().max_messages(12).messages().await.unwrap();
    for text in &expected[..12] {
        let message = batch.next().await.unwrap().unwrap();
        assert_eq!(message.payload, text.as_bytes());
        message.double_ack().await.unwrap();
    }

    // Names and subjects are unique over all shards, whoever asks where.
    let two = json!({ "num_replicas": 1 });
    assert_eq!(create(&third, "X", "s.a", two.clone()).await, Err(10065));
    assert_eq!(create(&third, "X", "l.a", json!({ "num_replicas": 3 })).await, Err(10065));
    assert_eq!(create(&first, "L", "other", json!({ "num_replicas": 1 })).await, Err(10058));
    assert_eq!(create(&third, "S", "other", two.clone()).await, Err(10058));
    assert_eq!(create(&third, "L", "l.>", at_n2.clone()).await.unwrap()["cluster"]["leader"], "n2");
    let nowhere = json!({ "num_replicas": 1, "placement": { "tags": ["n9"] } });
    assert_eq!(create(&first, "X", "x", nowhere).await, Err(10005));
    assert_eq!(names(&third).await, json!(["L", "S"]));
    // Without a place it is where it was asked for.
    let here = create(&third, "X", "x", two.clone()).await.unwrap();
    assert_eq!(here["cluster"]["leader"], "n3");

    // Its node dies: the others say so, and go on.
    let folder = site.kill(HOLDER);
    patiently("it is said to be away", async || (info(&first, "L").await == Err(10118)).then_some(())).await;
    assert_eq!(publish(&first, "l.a", "nobody takes it").await, None);
    patiently("the others go on", async || publish(&first, "s.a", "goes on").await).await;
    assert_eq!(publish(&first, "x", "also").await, Some(1));
    assert_eq!(names(&first).await, json!(["L", "S", "X"]));
    let list = ask(&first, "STREAM.LIST", json!({})).await.unwrap();
    assert_eq!(listed(&list), (vec!["S", "X"], vec!["L"]), "{list}");
    assert_eq!(create(&first, "Y", "l.a", json!({ "num_replicas": 3 })).await, Err(10065));
    assert_eq!(create(&first, "L", "l.>", two.clone()).await, Err(10118));
    assert_eq!(create(&first, "Y", "y", at_n2.clone()).await, Err(10005));

    // It comes back with everything, and what was acked stays so.
    site.start(HOLDER, folder);
    site.healthy().await;
    let back = patiently("it is back", async || info(&first, "L").await.ok()).await;
    assert_eq!(back["state"]["messages"], expected.len());
    let stream = patiently("for every node", async || third.get_stream("L").await.ok()).await;
    for (at, text) in expected.iter().enumerate() {
        let message = stream.get_raw_message(at as u64 + 1).await.unwrap();
        assert_eq!(message.payload, text.as_bytes());
    }
    let consumer: async_nats::jetstream::consumer::PullConsumer = stream.get_consumer("C").await.unwrap();
    let mut batch = consumer.fetch().max_messages(1).messages().await.unwrap();
    let message = batch.next().await.unwrap().unwrap();
    assert_eq!(message.payload, expected[12].as_bytes());
    message.ack_with(AckKind::Ack).await.unwrap();
    assert_eq!(publish(&first, "l.a", "after").await, Some(expected.len() as u64 + 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_places_a_stream_and_sees_where_it_is() {
    let mut site = site().await;
    let add = |arguments: &[&str]| {
        let arguments = [&["stream", "add"], arguments, &["-o", "json"]].concat();
        site.node(0).run(&arguments).ok().map(|text| serde_json::from_str::<Value>(&text).unwrap())
    };
    let placed = ["L", "--subjects", "l.>", "--replicas", "1", "--tag", "n2"];
    let made = patiently("a stream of one", async || add(&placed)).await;
    assert_eq!((&made["config"]["num_replicas"], &made["cluster"]["leader"]), (&json!(1), &json!("n2")));
    patiently("a stream of all", async || add(&["S", "--subjects", "s.>", "--replicas", "3"])).await;
    assert_eq!(add(&["X", "--replicas", "1", "--tag", "n9"]), None);
    let first = site.client(0).await;
    for subject in ["l.a", "s.a", "l.b"] {
        patiently("an ack", async || publish(&first, subject, "four").await).await;
    }
    let stream = patiently("it is known", async || first.get_stream("L").await.ok()).await;
    stream
        .create_consumer(pull::Config { durable_name: Some("C".into()), ..Default::default() })
        .await
        .unwrap();

    let table = site.node(2).run(&["stream", "ls"]).unwrap();
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0].join(" "), "NAME SUBJECTS MESSAGES BYTES FIRST LAST CONSUMERS LEADER REPLICAS");
    assert_eq!((rows[1][0], &rows[1][6..]), ("L", &["1", "n2"][..]));
    let mut all = rows[2][7..].iter().map(|name| name.trim_end_matches(',')).collect::<Vec<_>>();
    all.sort_unstable();
    assert_eq!((rows[2][0], all), ("S", vec!["n1", "n2", "n3"]), "{table}");
    let shown = site.node(2).run(&["stream", "info", "L"]).unwrap();
    let shown: Vec<&str> = shown.lines().map(str::trim).collect();
    assert!(shown.contains(&"placement") && shown.contains(&"leader    n2"), "{shown:?}");

    // The figures of all shards, whoever is asked.
    let bytes = |info: &Value| info["state"]["bytes"].as_u64().unwrap();
    let both = bytes(&info(&first, "L").await.unwrap()) + bytes(&info(&first, "S").await.unwrap());
    for at in 0..NAMES.len() {
        let account = ask(&site.client(at).await, "INFO", Value::Null).await.unwrap();
        assert_eq!(account["storage"], both, "{account}");
        assert_eq!((&account["streams"], &account["consumers"]), (&json!(2), &json!(1)), "{account}");
    }
    let metrics = patiently("figures of what is held alone", async || {
        let (_, metrics) = site.node(HOLDER).get("/metrics");
        let stored = "beamlog_router_stored_messages_total{shard=\"local\"} 2";
        // It follows in the common shard, a little behind its leader.
        let follows = metrics.contains("\nbeamlog_router_streams 1.0\n");
        (metrics.contains(stored) && follows).then_some(metrics)
    })
    .await;
    assert!(metrics.contains("\nbeamlog_router_streams{shard=\"local\"} 1.0\n"), "{metrics}");
    assert!(!site.node(0).get("/metrics").1.contains("shard="));

    // A node that is away takes its figures with it, and keeps its names.
    site.kill(HOLDER);
    patiently("its figures are missing", async || {
        let account = ask(&first, "INFO", Value::Null).await.ok()?;
        let rest = bytes(&info(&first, "S").await.ok()?);
        (account["storage"] == rest && account["streams"] == 2 && account["consumers"] == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn subjects_of_a_held_stream_change_and_end_with_it_wherever_its_node_is() {
    let mut site = site().await;
    let first = site.client(0).await;
    let at_n2 = json!({ "num_replicas": 1, "placement": { "tags": ["n2"] } });
    let three = json!({ "num_replicas": 3 });
    patiently("a stream", async || create(&first, "L", "l.>", at_n2.clone()).await.ok()).await;
    let update = async |subjects: Value, replicas: u64| {
        let body = json!({
            "name": "L", "subjects": subjects, "num_replicas": replicas, "placement": { "tags": ["n2"] },
        });
        ask(&first, "STREAM.UPDATE.L", body).await
    };
    assert_eq!(create(&first, "S", "m.>", three.clone()).await.unwrap()["did_create"], true);
    assert_eq!(update(json!(["l.>", "m.a"]), 1).await, Err(10065));
    update(json!(["l.a", "k"]), 1).await.unwrap();
    assert_eq!(patiently("an ack", async || publish(&first, "k", "1").await).await, 1);
    // What it let go is free for others.
    create(&first, "T", "l.b", three.clone()).await.unwrap();
    assert_eq!(create(&first, "U", "k", three.clone()).await, Err(10065));

    // Deleted while its node lives: its name and subjects are free at once.
    ask(&first, "STREAM.DELETE.L", json!({})).await.unwrap();
    assert_eq!(info(&first, "L").await, Err(10059));
    create(&first, "L", "k", at_n2.clone()).await.unwrap();
    assert_eq!(patiently("an ack", async || publish(&first, "k", "1").await).await, 1);

    // Deleted while its node is away: they are when the node has come back and knows it.
    let folder = site.kill(HOLDER);
    patiently("it is said to be away", async || (info(&first, "L").await == Err(10118)).then_some(())).await;
    ask(&first, "STREAM.DELETE.L", json!({})).await.unwrap();
    assert_eq!(info(&first, "L").await, Err(10059));
    assert_eq!(names(&first).await, json!(["S", "T"]));
    assert_eq!(create(&first, "U", "k", three.clone()).await, Err(10065));
    site.start(HOLDER, folder);
    patiently("its subjects are free", async || create(&first, "U", "k", three.clone()).await.ok()).await;
    let made = patiently("and its name", async || create(&first, "L", "l.a", at_n2.clone()).await.ok()).await;
    assert_eq!((&made["cluster"]["leader"], &made["state"]["messages"]), (&json!("n2"), &json!(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_stream_needs_nobody_else() {
    let mut site = site().await;
    let holder = site.client(HOLDER).await;
    let one = json!({ "num_replicas": 1 });
    patiently("a stream", async || create(&holder, "L", "l.>", one.clone()).await.ok()).await;
    let stream = holder.get_stream("L").await.unwrap();
    let durable = pull::Config { durable_name: Some("C".into()), ..Default::default() };
    let consumer = stream.create_consumer(durable).await.unwrap();
    let folders = [site.kill(0), site.kill(2)];
    patiently("it is alone, and knows it", async || {
        let page = site.page(HOLDER);
        let problems = page["problems"].as_array().unwrap();
        ["n1", "n3"]
            .iter()
            .all(|name| problems.contains(&json!(format!("{name} is not connected"))))
            .then_some(())
    })
    .await;
    for n in 1..=10 {
        assert_eq!(publish(&holder, "l.a", "alone").await, Some(n));
    }
    let mut batch = consumer.fetch().max_messages(10).messages().await.unwrap();
    for _ in 0..10 {
        batch.next().await.unwrap().unwrap().double_ack().await.unwrap();
    }
    // Which streams there are is for a quorum to say.
    assert!(
        tokio::time::timeout(Duration::from_secs(8), create(&holder, "M", "m", one.clone()))
            .await
            .is_ok_and(|made| made.is_err())
    );
    let [first, third] = folders;
    site.start(0, first);
    site.start(2, third);
    site.healthy().await;
    let elsewhere = site.client(0).await;
    let seen = patiently("all know it again", async || info(&elsewhere, "L").await.ok()).await;
    assert_eq!(seen["state"]["messages"], 10);
    patiently("and more can be made", async || create(&holder, "M", "m", one.clone()).await.ok()).await;
}
