//! The same JetStream requests to nats-server and to us, and every member of the answers compared. What
//! differs on purpose is declared below with its reason; a declaration that nothing needs fails too.

use std::collections::{BTreeMap, BTreeSet};

use async_nats::{Client, HeaderMap, Message, Subscriber};
use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::jetstream_servers::{Beamlog, nats_server, nats_url};
use crate::raw::PATIENCE;

/// Members whose values differ, by the end of their path.
const DIFFERENT_MEMBERS: &[(&str, &str)] = &[
    ("metadata._nats.ver", "we name the version whose behaviour we promise, not the newest"),
    ("metadata._nats.level", "we have level 1: no counters, schedules, batches"),
    ("api.level", "we have level 1: no counters, schedules, batches"),
    ("cluster.leader", "the name of the server"),
    (".durability", "what an ack means is said with every stream (DR23)"),
    ("pause_remaining", "time passes between the two requests"),
    ("api.total", "we answer requests about which nats-server is silent"),
    ("api.errors", "we answer requests about which nats-server is silent"),
];

/// A request and what is special about it.
struct Step {
    subject: String,
    headers: Vec<(&'static str, String)>,
    body: String,
    /// Messages that come back.
    replies: usize,
    /// Why the two answers differ, and what ours says then.
    ours: Option<(&'static str, &'static str)>,
}

impl Step {
    fn replies(mut self, count: usize) -> Self {
        self.replies = count;
        self
    }

    fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    /// We answer otherwise, with an error that contains `text`, because of `reason`.
    fn ours(mut self, text: &'static str, reason: &'static str) -> Self {
        self.ours = Some((text, reason));
        self
    }
}

fn publish(subject: &str, body: &str) -> Step {
    Step { subject: subject.to_owned(), headers: Vec::new(), body: body.to_owned(), replies: 1, ours: None }
}

fn api(subject: &str, body: &str) -> Step {
    publish(&format!("$JS.API.{subject}"), body)
}

struct Asker {
    client: Client,
    inbox: Subscriber,
    prefix: String,
    asked: usize,
}

impl Asker {
    async fn connect(url: &str) -> Self {
        let client = async_nats::connect(url).await.unwrap();
        let prefix = client.new_inbox();
        let inbox = client.subscribe(format!("{prefix}.*")).await.unwrap();
        Self { client, inbox, prefix, asked: 0 }
    }

    /// The answers to one request, each as one document.
    async fn ask(&mut self, step: &Step) -> Vec<Value> {
        self.asked += 1;
        let reply = format!("{}.{}", self.prefix, self.asked);
        let mut headers = HeaderMap::new();
        for (name, value) in &step.headers {
            headers.append(*name, value.as_str());
        }
        let (subject, body) = (step.subject.clone(), step.body.clone().into());
        if headers.is_empty() {
            self.client.publish_with_reply(subject, reply.clone(), body).await.unwrap();
        } else {
            self.client.publish_with_reply_and_headers(subject, reply.clone(), headers, body).await.unwrap();
        }
        let mut answers = Vec::new();
        while answers.len() < step.replies {
            let message = tokio::time::timeout(PATIENCE, self.inbox.next())
                .await
                .unwrap_or_else(|_| panic!("{} {}: {} answers only", step.subject, step.body, answers.len()))
                .unwrap();
            // Deliveries of stored messages keep their own subject.
            let delivered = !message.subject.starts_with(&self.prefix);
            assert!(delivered || message.subject.as_str() == reply, "a late answer: {message:?}");
            answers.push(document(&message));
        }
        answers
    }
}

/// A message as one document: status, headers, body, and where an ack goes.
fn document(message: &Message) -> Value {
    let mut whole = serde_json::Map::new();
    if let Some(status) = message.status {
        whole.insert("status".to_owned(), json!(status.as_u16()));
        whole.insert("text".to_owned(), json!(message.description));
    }
    if let Some(headers) = message.headers.as_ref().filter(|headers| !headers.is_empty()) {
        let headers: BTreeMap<String, Vec<String>> = headers
            .iter()
            .map(|(name, values)| (name.to_string(), values.iter().map(ToString::to_string).collect()))
            .collect();
        whole.insert("headers".to_owned(), json!(headers));
    }
    if let Some(reply) = &message.reply {
        whole.insert("reply".to_owned(), json!(without_time(reply)));
    }
    let text = String::from_utf8_lossy(&message.payload).into_owned();
    let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
    whole.insert("body".to_owned(), body);
    Value::Object(whole)
}

/// An ack subject without the time of the message.
fn without_time(subject: &str) -> String {
    let mut tokens: Vec<&str> = subject.split('.').collect();
    if tokens.len() == 9 {
        tokens[7] = "time";
    }
    tokens.join(".")
}

/// All scalars by their path. Points in time are only told from "never".
fn flatten(path: &str, value: &Value, into: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(members) if members.is_empty() => drop(into.insert(path.to_owned(), "{}".to_owned())),
        Value::Object(members) => {
            for (name, member) in members {
                flatten(&format!("{path}.{name}"), member, into);
            }
        }
        Value::Array(items) => {
            into.insert(format!("{path}.length"), items.len().to_string());
            for (at, item) in items.iter().enumerate() {
                flatten(&format!("{path}.{at}"), item, into);
            }
        }
        Value::String(text) if is_time(text) => drop(into.insert(path.to_owned(), "<time>".to_owned())),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            into.insert(path.to_owned(), value.to_string());
        }
    }
}

fn is_time(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() >= 20
        && text.starts_with("20")
        && bytes[4] == b'-'
        && bytes[10] == b'T'
        && text.ends_with('Z')
}

/// Sends the steps to both, and lists where the answers differ.
async fn compare(steps: Vec<Step>, used: &mut BTreeSet<&'static str>) -> Vec<String> {
    let (nats, beamlog) = (nats_server(), Beamlog::start().await);
    let mut theirs = Asker::connect(&nats_url(&nats)).await;
    let mut ours = Asker::connect(&beamlog.url()).await;
    let mut different = Vec::new();
    for step in steps {
        let asked = format!("{} {} {:?}", step.subject, step.body, step.headers);
        let ours = ours.ask(&step).await;
        if let Some((text, _reason)) = step.ours {
            let all = json!(ours).to_string();
            if !all.contains(text) {
                different.push(format!("{asked}\n  ours lacks {text:?}: {all}"));
            }
            continue;
        }
        let theirs = theirs.ask(&step).await;
        let flat = |answers: &[Value]| {
            let mut flat = BTreeMap::new();
            flatten("", &json!(answers), &mut flat);
            flat
        };
        let (theirs, ours) = (flat(&theirs), flat(&ours));
        let paths: BTreeSet<&String> = theirs.keys().chain(ours.keys()).collect();
        for path in paths {
            if theirs.get(path) == ours.get(path) {
                continue;
            }
            match DIFFERENT_MEMBERS.iter().find(|(end, _)| path.ends_with(end)) {
                Some((end, _)) => drop(used.insert(end)),
                None => different.push(format!(
                    "{asked}\n  {path}: nats-server {}, ours {}",
                    theirs.get(path).map_or("-", String::as_str),
                    ours.get(path).map_or("-", String::as_str)
                )),
            }
        }
    }
    different
}

async fn check(steps: Vec<Step>) {
    let different = compare(steps, &mut BTreeSet::new()).await;
    assert!(different.is_empty(), "{} differences:\n{}", different.len(), different.join("\n"));
}

const UNKNOWN: &str = "nats-server says nothing; we never leave a request without an answer";
const WORDS: &str = "the decoder names what it found in its own words";

fn streams() -> Vec<Step> {
    let mut steps = vec![
        api("INFO", ""),
        api("INFO", "x"),
        api("NOPE", "").ours("10003", UNKNOWN),
        api("STREAM.NOPE.x", "").ours("10003", UNKNOWN),
        api("STREAM.CREATE.A.B", "{}").ours("10003", UNKNOWN),
        api("STREAM.INFO.none", ""),
        api("STREAM.CREATE.A", ""),
        api("STREAM.CREATE.A", "{"),
        api("STREAM.CREATE.A", r#"{"name":"B"}"#),
        api("STREAM.CREATE.A", r#"{"name":"A","bogus":1}"#),
        api("STREAM.CREATE.A", r#"{"name":"A","max_age":"x"}"#).ours("10025", WORDS),
        api("STREAM.CREATE.A", r#"{"name":"A","retention":"x"}"#),
        api("STREAM.CREATE.A", r#"{"name":"A","subjects":["a.>"]}"#),
        api("STREAM.CREATE.A", r#"{"name":"A","subjects":["a.>"]}"#),
        api("STREAM.CREATE.A", r#"{"name":"A","subjects":["b.>"]}"#),
        api("STREAM.CREATE.B", r#"{"name":"B","subjects":["a.>"]}"#),
        api("STREAM.CREATE.B", r#"{"name":"B","subjects":["a.b"]}"#),
        api("STREAM.CREATE.B", r#"{"name":"B","subjects":["x","x"]}"#),
        api("STREAM.CREATE.B", r#"{"name":"B","subjects":["x.*","x.y"]}"#),
        api("STREAM.CREATE.B", r#"{"name":"B","subjects":["x..y"]}"#),
        api("STREAM.CREATE.B", r#"{"name":"B","subjects":["$JS.API.>"]}"#),
        api("STREAM.CREATE.B", r#"{"name":"B","subjects":[">"]}"#),
        api("STREAM.CREATE.B", r#"{"name":"B","num_replicas":3}"#),
        api("STREAM.CREATE.B", r#"{"name":"B","num_replicas":-1}"#),
        api("STREAM.CREATE.B", r#"{"name":"B","num_replicas":9}"#),
        api("STREAM.CREATE.B", r#"{"name":"B","mirror":{"name":"A"}}"#).ours("10052", "no mirrors yet"),
        api("STREAM.CREATE.B", r#"{"name":"B","allow_atomic":true}"#),
        api("STREAM.DELETE.B", ""),
        api("STREAM.CREATE.B", r#"{"name":"B","max_age":10}"#),
        api("STREAM.CREATE.B", r#"{"name":"B","max_age":1000000000,"duplicate_window":2000000000}"#),
        api("STREAM.CREATE.B", r#"{"name":"B","duplicate_window":10}"#),
        api("STREAM.CREATE.B", r#"{"name":"B","discard_new_per_subject":true}"#),
        api("STREAM.CREATE.B", r#"{"name":"B","discard":"new","discard_new_per_subject":true}"#),
        api("STREAM.CREATE.B", r#"{"name":"B","deny_purge":true,"allow_rollup_hdrs":true}"#),
        api("STREAM.CREATE.B", r#"{"name":"B","sealed":true}"#),
        api("STREAM.CREATE.B", r#"{"name":"B","mirror_direct":true}"#),
        api("STREAM.CREATE.B", r#"{"name":"B","max_msgs_per_subject":0,"max_msg_size":-5,"max_bytes":-7}"#),
        api(
            "STREAM.CREATE.C",
            r#"{"name":"C","max_age":60000000000,"storage":"memory","retention":"interest"}"#,
        ),
        api("STREAM.CREATE.D", r#"{"name":"D","subjects":["d.*"],"first_seq":10,"allow_msg_ttl":true}"#),
        api("STREAM.CREATE.E", r#"{"name":"E","subject_delete_marker_ttl":1000000000,"allow_msg_ttl":true}"#),
    ];
    steps.extend([
        api("STREAM.UPDATE.Z", r#"{"name":"Z"}"#),
        api("STREAM.UPDATE.A", r#"{"name":"A","subjects":["a.>"],"retention":"workqueue"}"#),
        api("STREAM.UPDATE.A", r#"{"name":"A","subjects":["a.>"],"storage":"memory"}"#),
        api("STREAM.UPDATE.A", r#"{"name":"A","subjects":["d.x"]}"#),
        api(
            "STREAM.UPDATE.A",
            r#"{"name":"A","subjects":["a.>","c"],"max_msgs":5,"description":"hi","metadata":{"a":"b"}}"#,
        ),
        api("STREAM.INFO.A", ""),
        api("STREAM.INFO.A", r#"{"x":1}"#),
        api("STREAM.INFO.A", "x"),
        api("STREAM.NAMES", ""),
        api("STREAM.NAMES", r#"{"subject":"a.b"}"#),
        api("STREAM.NAMES", r#"{"subject":"*.b"}"#),
        api("STREAM.NAMES", r#"{"subject":"zz"}"#),
        api("STREAM.NAMES", r#"{"offset":1}"#),
        api("STREAM.NAMES", r#"{"offset":10}"#),
        api("STREAM.LIST", ""),
        api("STREAM.LIST", r#"{"offset":3}"#),
        api("STREAM.LEADER.STEPDOWN.A", ""),
        api("STREAM.PEER.REMOVE.A", r#"{"peer":"x"}"#),
        api("META.LEADER.STEPDOWN", "").ours("10010", UNKNOWN),
        api("STREAM.SNAPSHOT.A", r#"{"deliver_subject":"x"}"#).ours("10064", "no snapshots yet"),
        api("STREAM.DELETE.none", ""),
        api("STREAM.DELETE.A", "x"),
        api("STREAM.DELETE.A", "{}"),
        api("STREAM.DELETE.A", ""),
        api("STREAM.INFO.B", "").header("Nats-Required-Api-Level", "99"),
        api("STREAM.INFO.B", "").header("Nats-Required-Api-Level", "1"),
        api("INFO", ""),
    ]);
    steps
}

fn publishes() -> Vec<Step> {
    let store = |name: &str, more: &str| {
        let subject = name.to_lowercase();
        api(
            &format!("STREAM.CREATE.{name}"),
            &format!(r#"{{"name":"{name}","subjects":["{subject}.>"]{more}}}"#),
        )
    };
    let info =
        |name: &str| api(&format!("STREAM.INFO.{name}"), r#"{"subjects_filter":">","deleted_details":true}"#);
    vec![
        store("A", r#","allow_direct":true"#),
        publish("a.b", "m1"),
        publish("a.b", "m2"),
        publish("a.c", "m3"),
        publish("a.b", "h").header("X", "y"),
        publish("a.b", "h").header("Nats-Expected-Last-Sequence", "77"),
        publish("a.b", "h").header("Nats-Expected-Last-Sequence", "4"),
        publish("a.b", "h").header("Nats-Expected-Last-Subject-Sequence", "1"),
        publish("a.c", "h").header("Nats-Expected-Last-Subject-Sequence", "3"),
        publish("a.new", "h").header("Nats-Expected-Last-Subject-Sequence", "0"),
        publish("a.c", "h")
            .header("Nats-Expected-Last-Subject-Sequence", "7")
            .header("Nats-Expected-Last-Subject-Sequence-Subject", "a.>"),
        publish("a.c", "h").header("Nats-Expected-Last-Subject-Sequence-Subject", "a.>"),
        publish("a.b", "h").header("Nats-Expected-Stream", "B"),
        publish("a.b", "h").header("Nats-Expected-Stream", "A"),
        publish("a.b", "h").header("Nats-Msg-Id", "one"),
        publish("a.b", "h").header("Nats-Msg-Id", "one"),
        publish("a.b", "h").header("Nats-Expected-Last-Msg-Id", "two"),
        publish("a.b", "h").header("Nats-Expected-Last-Msg-Id", "one"),
        publish("a.b", "h").header("Nats-TTL", "7"),
        publish("a.b", "h").header("Nats-Rollup", "all"),
        publish("a.b", "h").header("Nats-Batch-Id", "x").header("Nats-Batch-Sequence", "1"),
        publish("a.b", "h").header("Nats-Incr", "1"),
        publish("a.b", "h").header("Nats-Schedule", "@at 2030-01-01T00:00:00Z"),
        info("A"),
        publish("nowhere.b", "h"),
        store("R", r#","allow_rollup_hdrs":true"#),
        publish("r.a", "1"),
        publish("r.b", "2"),
        publish("r.a", "3"),
        publish("r.a", "4").header("Nats-Rollup", "sub"),
        info("R"),
        publish("r.a", "5").header("Nats-Rollup", "nonsense"),
        publish("r.c", "6").header("Nats-Rollup", "all"),
        info("R"),
        store("M", r#","max_msgs":2,"discard":"new""#),
        publish("m.a", "1"),
        publish("m.a", "2"),
        publish("m.a", "3"),
        store("P", r#","max_msgs_per_subject":2"#),
        publish("p.a", "1"),
        publish("p.b", "2"),
        publish("p.a", "3"),
        publish("p.a", "4"),
        info("P"),
        store("N", r#","max_msgs_per_subject":1,"discard":"new","discard_new_per_subject":true"#),
        publish("n.a", "1"),
        publish("n.a", "2"),
        publish("n.b", "3"),
        store("L", r#","max_msg_size":5"#),
        publish("l.a", "12345"),
        publish("l.a", "123456"),
        store("O", r#","max_msgs":2"#),
        publish("o.a", "1"),
        publish("o.b", "2"),
        publish("o.c", "3"),
        info("O"),
        store("T", r#","allow_msg_ttl":true"#),
        publish("t.a", "1").header("Nats-TTL", "1h"),
        publish("t.a", "1").header("Nats-TTL", "100"),
        publish("t.a", "1").header("Nats-TTL", "never"),
        publish("t.a", "1").header("Nats-TTL", "soon"),
        publish("t.a", "1").header("Nats-TTL", "10ms"),
        publish("t.a", "1").header("Nats-TTL", "0"),
        info("T"),
        store("X", r#","deny_delete":true,"deny_purge":true"#),
        publish("x.a", "1"),
        api("STREAM.MSG.DELETE.X", r#"{"seq":1}"#),
        api("STREAM.PURGE.X", ""),
        store("K", r#","subject_transform":{"src":"k.*","dest":"k.t.{{wildcard(1)}}"}"#),
        publish("k.a", "1"),
        api("STREAM.MSG.GET.K", r#"{"seq":1}"#),
    ]
}

fn messages() -> Vec<Step> {
    let mut steps = vec![api("STREAM.CREATE.S", r#"{"name":"S","subjects":["s.>"],"allow_direct":true}"#)];
    for n in 0..6 {
        steps.push(publish(&format!("s.{}", n % 4), &format!("m{n}")));
    }
    steps.push(publish("s.h", "with").header("K", "v"));
    for body in [
        "",
        "{}",
        r#"{"seq":2}"#,
        r#"{"seq":7}"#,
        r#"{"seq":7,"no_hdr":true}"#,
        r#"{"last_by_subj":"s.1"}"#,
        r#"{"last_by_subj":"s.*"}"#,
        r#"{"last_by_subj":"zz"}"#,
        r#"{"next_by_subj":"s.>"}"#,
        r#"{"next_by_subj":"s.1","seq":3}"#,
        r#"{"next_by_subj":"s.1","seq":7}"#,
        r#"{"seq":99}"#,
        r#"{"seq":1,"last_by_subj":"s.1"}"#,
        r#"{"seq":3,"batch":2}"#,
        r#"{"start_time":"2020-01-01T00:00:00Z"}"#,
        r#"{"start_time":"2090-01-01T00:00:00Z"}"#,
        r#"{"seq":1,"x":2}"#,
    ] {
        steps.push(api("STREAM.MSG.GET.S", body));
    }
    steps.push(api("STREAM.MSG.GET.none", r#"{"seq":1}"#));
    for (body, replies) in [
        ("", 1),
        ("{}", 1),
        ("x", 1),
        (r#"{"seq":2}"#, 1),
        (r#"{"seq":7}"#, 1),
        (r#"{"seq":7,"no_hdr":true}"#, 1),
        (r#"{"seq":99}"#, 1),
        (r#"{"seq":1,"x":2}"#, 1),
        (r#"{"last_by_subj":"s.1"}"#, 1),
        (r#"{"last_by_subj":"zz"}"#, 1),
        (r#"{"next_by_subj":"s.*","seq":2}"#, 1),
        (r#"{"seq":1,"last_by_subj":"s.1"}"#, 1),
        (r#"{"last_by_subj":"s.1","batch":1}"#, 1),
        (r#"{"seq":1,"batch":2}"#, 3),
        (r#"{"seq":6,"batch":9}"#, 3),
        (r#"{"batch":2,"next_by_subj":"s.1"}"#, 3),
        (r#"{"seq":99,"batch":2}"#, 1),
        (r#"{"seq":1,"batch":10,"max_bytes":9}"#, 3),
        (r#"{"start_time":"2020-01-01T00:00:00Z","batch":1}"#, 2),
        (r#"{"multi_last":["s.1","s.2"]}"#, 3),
        (r#"{"multi_last":["s.>"],"up_to_seq":3}"#, 4),
        (r#"{"multi_last":["s.>"],"batch":2}"#, 3),
        (r#"{"multi_last":["zz"]}"#, 1),
        (r#"{"multi_last":["s.1"],"next_by_subj":"s.2"}"#, 1),
    ] {
        steps.push(api("DIRECT.GET.S", body).replies(replies));
    }
    steps.extend([
        api("DIRECT.GET.S", r#"{"multi_last":["s.>"],"seq":3}"#)
            .ours("Bad Request", "the router cannot say a lower bound for the last of each subject"),
        api("DIRECT.GET.S.s.1", ""),
        api("DIRECT.GET.S.zz", ""),
        api("DIRECT.GET.S.s.1", r#"{"seq":1}"#),
        api("DIRECT.GET.none", r#"{"seq":1}"#),
        api("DIRECT.GET.S", r#"{"seq":1}"#).header("Nats-Required-Api-Level", "99"),
        api("STREAM.MSG.DELETE.S", ""),
        api("STREAM.MSG.DELETE.S", r#"{"seq":99}"#).ours("10057", "the text there is of nats-server's files"),
        api("STREAM.MSG.DELETE.S", r#"{"seq":3}"#),
        api("STREAM.MSG.DELETE.S", r#"{"seq":3}"#),
        api("STREAM.MSG.GET.S", r#"{"seq":3}"#),
        api("STREAM.MSG.DELETE.none", r#"{"seq":1}"#),
        api("STREAM.INFO.S", r#"{"deleted_details":true,"subjects_filter":"s.*"}"#),
        api("STREAM.PURGE.S", r#"{"seq":2,"keep":1}"#),
        api("STREAM.PURGE.S", r#"{"filter":"s.0","keep":1}"#),
        api("STREAM.PURGE.S", r#"{"filter":"s.1","seq":4}"#),
        api("STREAM.INFO.S", r#"{"deleted_details":true,"subjects_filter":">"}"#),
        api("STREAM.PURGE.S", r#"{"seq":6}"#),
        api("STREAM.INFO.S", r#"{"deleted_details":true,"subjects_filter":">"}"#),
        api("STREAM.PURGE.S", r#"{"keep":1}"#),
        api("STREAM.PURGE.S", ""),
        api("STREAM.PURGE.S", ""),
        api("STREAM.PURGE.none", ""),
        api("STREAM.INFO.S", ""),
        publish("s.1", "after"),
        api("STREAM.INFO.S", ""),
        api("STREAM.CREATE.N", r#"{"name":"N","subjects":["n"]}"#),
        publish("n", "1"),
        api("DIRECT.GET.N", r#"{"seq":1}"#),
    ]);
    steps
}

fn consumers() -> Vec<Step> {
    let create = |subject: &str, config: &str| {
        api(&format!("CONSUMER.{subject}"), &format!(r#"{{"stream_name":"S","config":{{{config}}}}}"#))
    };
    let mut steps = vec![api(
        "STREAM.CREATE.S",
        r#"{"name":"S","subjects":["s.>"],"consumer_limits":{"max_ack_pending":5000}}"#,
    )];
    for n in 0..5 {
        steps.push(publish(&format!("s.{n}"), &format!("m{n}")));
    }
    let long = format!(r#""name":"x","description":"{}""#, "d".repeat(5000));
    for (subject, config) in [
        ("CREATE.S.c1", r#""name":"c1","ack_policy":"explicit","inactive_threshold":60000000000"#),
        ("CREATE.S.c1", r#""name":"c1","ack_policy":"explicit","inactive_threshold":60000000000"#),
        ("CREATE.S.c1", r#""name":"c1","ack_policy":"none","inactive_threshold":60000000000"#),
        ("CREATE.S.d1", r#""durable_name":"d1","name":"d1","ack_policy":"explicit""#),
        ("CREATE.S.d1", r#""durable_name":"d1","ack_policy":"explicit","description":"x","max_deliver":7"#),
        ("CREATE.S.d1", r#""durable_name":"d1","ack_policy":"all","description":"x""#),
        ("CREATE.S.d1", r#""durable_name":"d1","ack_policy":"explicit","deliver_policy":"new""#),
        ("CREATE.S.d1", r#""durable_name":"d1","ack_policy":"explicit","deliver_subject":"x""#),
        ("CREATE.S.d2", r#""durable_name":"d1""#),
        ("CREATE.T.d2", r#""durable_name":"d2""#),
        ("CREATE.S.f1.s.1", r#""name":"f1","filter_subject":"s.1","deliver_policy":"last""#),
        ("CREATE.S.f2.s.1", r#""name":"f2","filter_subject":"s.2""#),
        ("CREATE.S.f2.s.1", r#""name":"f2","filter_subjects":["s.1","s.2"]"#),
        ("CREATE.S.f3", r#""name":"f3","filter_subjects":["s.1","s.2"]"#),
        ("CREATE.S.f4", r#""name":"f4","filter_subjects":["s.*","s.2"]"#),
        ("CREATE.S.f4", r#""name":"f4","filter_subjects":["s.1",""]"#),
        ("CREATE.S.f4", r#""name":"f4","filter_subject":"x""#),
        ("CREATE.S.f5", r#""name":"f5","filter_subject":"s.1","filter_subjects":["s.2"]"#),
        ("DURABLE.CREATE.S.dd", r#""durable_name":"dd","ack_policy":"explicit""#),
        ("DURABLE.CREATE.S.dd", r#""durable_name":"ee""#),
        ("DURABLE.CREATE.S.dd", ""),
        ("CREATE.S", r#""durable_name":"ee""#),
        (
            "CREATE.S.st",
            r#""name":"st","deliver_policy":"by_start_time","opt_start_time":"2020-01-02T03:04:05.678Z",
               "max_batch":10,"max_expires":1000000000,"max_bytes":100,"max_waiting":5,
               "replay_policy":"original","ack_policy":"all","max_ack_pending":-1"#,
        ),
        (
            "CREATE.S.ss",
            r#""name":"ss","deliver_policy":"by_start_sequence","opt_start_seq":3,"ack_policy":"none",
               "pause_until":"2090-01-01T00:00:00Z""#,
        ),
        ("CREATE.S.lps", r#""name":"lps","deliver_policy":"last_per_subject","filter_subject":"s.>""#),
        ("CREATE.S.lp2", r#""name":"lp2","deliver_policy":"last_per_subject""#),
        ("CREATE.S.new", r#""name":"new","deliver_policy":"new""#),
        ("CREATE.S.bo", r#""name":"bo","ack_policy":"explicit","backoff":[1000000000,2000000000]"#),
        ("CREATE.S.bo", r#""name":"bo","ack_policy":"explicit","backoff":[1000000000],"max_deliver":1"#),
        (
            "CREATE.S.bo",
            r#""name":"bo","ack_policy":"explicit","backoff":[1000000000,5000000000],"max_deliver":4"#,
        ),
        (
            "CREATE.S.push",
            r#""durable_name":"push","deliver_subject":"dlv","idle_heartbeat":5000000000,"flow_control":true"#,
        ),
        (
            "CREATE.S.pg",
            r#""durable_name":"pg","deliver_subject":"dlv2","deliver_group":"g","rate_limit_bps":10"#,
        ),
        ("CREATE.S.bad", r#""name":"bad","deliver_subject":"d.*""#),
        ("CREATE.S.bad", r#""name":"bad","deliver_subject":"s.1""#),
        ("CREATE.S.bad", r#""name":"bad","deliver_subject":"d","max_waiting":5"#),
        ("CREATE.S.bad", r#""name":"bad","deliver_subject":"d","flow_control":true"#),
        ("CREATE.S.bad", r#""name":"bad","deliver_subject":"d","idle_heartbeat":1000"#),
        ("CREATE.S.bad", r#""name":"bad","idle_heartbeat":1000000000"#),
        ("CREATE.S.bad", r#""name":"bad","flow_control":true"#),
        ("CREATE.S.bad", r#""name":"bad","rate_limit_bps":1"#),
        ("CREATE.S.bad", r#""name":"bad","max_waiting":-1"#),
        ("CREATE.S.bad", r#""name":"bad","max_ack_pending":5,"ack_policy":"none""#),
        ("CREATE.S.bad", r#""name":"bad","ack_wait":-5,"ack_policy":"explicit""#),
        ("CREATE.S.bad", r#""name":"bad","ack_policy":"explicit","backoff":[-1]"#),
        ("CREATE.S.bad", r#""name":"bad","max_expires":5"#),
        ("CREATE.S.bad", r#""name":"bad","max_batch":-5"#),
        ("CREATE.S.bad", r#""name":"bad","sample_freq":"x""#),
        ("CREATE.S.bad", r#""name":"bad","sample_freq":"50%""#),
        ("CREATE.S.bad2", r#""name":"bad2","num_replicas":3"#),
        ("CREATE.S.bad2", r#""name":"bad2","num_replicas":-3"#),
        ("CREATE.S.bad2", r#""name":"bad2","direct":true"#),
        ("CREATE.S.bad2", r#""name":"bad2","deliver_policy":"by_start_sequence""#),
        ("CREATE.S.bad2", r#""name":"bad2","deliver_policy":"by_start_time""#),
        ("CREATE.S.bad2", r#""name":"bad2","deliver_policy":"all","opt_start_seq":4"#),
        ("CREATE.S.bad2", r#""name":"bad2","deliver_policy":"last","opt_start_time":"2020-01-01T00:00:00Z""#),
        ("CREATE.S.bad2", r#""name":"bad2","deliver_policy":"nope""#),
        ("CREATE.S.bad2", r#""name":"bad2","ack_policy":"nope""#),
        ("CREATE.S.bad2", r#""name":"bad2","priority_groups":["a"]"#),
        ("CREATE.S.bad2", r#""name":"bad2","x":1"#),
        ("CREATE.S.bad2", r#""name":"other","ack_policy":"explicit","max_ack_pending":6000"#),
        ("CREATE.S.x", long.as_str()),
    ] {
        steps.push(create(subject, config));
    }
    steps.extend([
        api(
            "CONSUMER.CREATE.S.d1",
            r#"{"stream_name":"S","action":"create","config":{"durable_name":"d1"}}"#,
        ),
        api(
            "CONSUMER.CREATE.S.d9",
            r#"{"stream_name":"S","action":"update","config":{"durable_name":"d9"}}"#,
        ),
        api("CONSUMER.CREATE.S.d9", r#"{"stream_name":"S","action":"zip","config":{}}"#),
        api("CONSUMER.CREATE.S.d9", r#"{"stream_name":"S","confi":{}}"#),
        api("CONSUMER.CREATE.S.d9", ""),
        api("CONSUMER.CREATE.N.d9", r#"{"stream_name":"N","config":{}}"#),
        api("CONSUMER.NAMES.S", ""),
        api("CONSUMER.NAMES.S", r#"{"offset":4}"#),
        api("CONSUMER.LIST.S", ""),
        api("CONSUMER.NAMES.N", ""),
        api("CONSUMER.LIST.N", ""),
        api("CONSUMER.INFO.S.d1", ""),
        api("CONSUMER.INFO.S.none", ""),
        api("CONSUMER.INFO.N.none", ""),
        api("CONSUMER.INFO.S.d1", "x"),
        api("CONSUMER.INFO.S", "").ours("10003", UNKNOWN),
        api("CONSUMER.PAUSE.S.d1", r#"{"pause_until":"2090-01-01T00:00:00Z"}"#),
        api("CONSUMER.INFO.S.d1", ""),
        api("CONSUMER.PAUSE.S.d1", "{}"),
        api("CONSUMER.PAUSE.S.d1", r#"{"pause_until":"2020-01-01T00:00:00Z"}"#),
        api("CONSUMER.PAUSE.S.none", ""),
        api("CONSUMER.UNPIN.S.d1", r#"{"group":"x"}"#),
        api("CONSUMER.RESET.S.d1", r#"{"seq":1}"#).ours("10204", "no reset yet"),
        api("CONSUMER.LEADER.STEPDOWN.S.d1", ""),
        api("CONSUMER.DELETE.S.none", ""),
        api("CONSUMER.DELETE.S.dd", "x"),
        api("CONSUMER.DELETE.S.dd", ""),
        api("CONSUMER.INFO.S.dd", ""),
        api("STREAM.CREATE.W", r#"{"name":"W","subjects":["w.>"],"retention":"workqueue"}"#),
    ]);
    for (name, config) in [
        ("a", r#""durable_name":"a""#),
        ("a", r#""durable_name":"a","ack_policy":"explicit","deliver_policy":"new""#),
        ("a", r#""durable_name":"a","ack_policy":"explicit","filter_subject":"w.1""#),
        ("b", r#""durable_name":"b","ack_policy":"explicit""#),
        ("b", r#""durable_name":"b","ack_policy":"explicit","filter_subject":"w.*""#),
        ("b", r#""durable_name":"b","ack_policy":"explicit","filter_subject":"w.2""#),
    ] {
        steps.push(api(
            &format!("CONSUMER.CREATE.W.{name}"),
            &format!(r#"{{"stream_name":"W","config":{{{config}}}}}"#),
        ));
    }
    steps
}

fn deliveries() -> Vec<Step> {
    let mut steps = vec![
        api("STREAM.CREATE.S", r#"{"name":"S","subjects":["s.>"]}"#),
        api(
            "CONSUMER.CREATE.S.d",
            r#"{"stream_name":"S","config":{"durable_name":"d","ack_policy":"explicit","max_deliver":5}}"#,
        ),
        api(
            "CONSUMER.CREATE.S.small",
            r#"{"stream_name":"S","config":{"durable_name":"small","ack_policy":"all","max_batch":10,
                "max_expires":1000000000,"max_bytes":100,"max_waiting":5,"headers_only":true}}"#,
        ),
        api(
            "CONSUMER.CREATE.S.push",
            r#"{"stream_name":"S","config":{"durable_name":"push","deliver_subject":"nobody"}}"#,
        ),
    ];
    for n in 0..8 {
        steps.push(publish(&format!("s.{n}"), &format!("m{n}")));
    }
    steps.push(publish("s.h", "h").header("K", "v"));
    let next = |body: &str| api("CONSUMER.MSG.NEXT.S.d", body);
    steps.extend([
        next(""),
        next("1"),
        next(r#"{"batch":1}"#),
        next("x"),
        next(r#"{"x":1}"#),
        api("CONSUMER.INFO.S.d", ""),
        publish("$JS.ACK.S.d.1.1.1.1.0", "+ACK"),
        publish("$JS.ACK.S.d.1.2.2.1.0", ""),
        publish("$JS.ACK.S.d.1.3.3.1.0", "+OK"),
        api("CONSUMER.INFO.S.d", ""),
        publish("$JS.ACK.S.d.1.4.4.1.0", "+WPI"),
        publish("$JS.ACK.S.d.1.4.4.1.0", "+TERM no use"),
        publish("$JS.ACK.S.d.1.5.5.1.0", "-NAK"),
        next(""),
        publish("$JS.ACK.S.d.2.5.6.1.0", "+NXT 2").replies(2),
        api("CONSUMER.INFO.S.d", ""),
        next(r#"{"batch":100,"no_wait":true}"#).replies(3),
        next(r#"{"batch":1,"no_wait":true}"#),
        next(r#"{"batch":3,"expires":100000000}"#),
        next(r#"{"batch":3,"expires":100000000,"idle_heartbeat":90000000}"#),
        next(r#"{"batch":3,"expires":300000000,"idle_heartbeat":120000000}"#).replies(3),
        next(r#"{"batch":"x"}"#).ours("400", WORDS),
        next("").header("Nats-Required-Api-Level", "99"),
        api("CONSUMER.MSG.NEXT.S.none", ""),
        api("CONSUMER.MSG.NEXT.N.none", ""),
        api("CONSUMER.MSG.NEXT.S.push", ""),
        api("CONSUMER.MSG.NEXT.S.small", r#"{"batch":11}"#),
        api("CONSUMER.MSG.NEXT.S.small", r#"{"batch":1,"expires":2000000000}"#),
        api("CONSUMER.MSG.NEXT.S.small", r#"{"batch":1,"max_bytes":2000}"#),
        api("CONSUMER.MSG.NEXT.S.small", r#"{"batch":1,"max_bytes":2}"#),
        api("CONSUMER.MSG.NEXT.S.small", r#"{"batch":10,"no_wait":true}"#).replies(10),
        publish("$JS.ACK.S.small.1.8.8.1.0", "+ACK"),
        api("CONSUMER.INFO.S.small", ""),
        publish("$JS.ACK.S.none.1.1.1.1.0", "+ACK").ours("503", "the status does not repeat the subject"),
        publish("$JS.ACK.none.none.1.1.1.1.0", "+ACK").ours("503", "the status does not repeat the subject"),
        api("CONSUMER.INFO.S.d", ""),
    ]);
    steps
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_managed_as_nats_server_manages_them() {
    check(streams()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn publishes_are_acked_and_refused_as_nats_server_does_it() {
    check(publishes()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_read_and_removed_as_nats_server_does_it() {
    check(messages()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consumers_are_managed_as_nats_server_manages_them() {
    check(consumers()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_and_acks_are_nats_servers() {
    check(deliveries()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_declared_difference_is_one() {
    let mut used = BTreeSet::new();
    for steps in [streams(), publishes(), messages(), consumers(), deliveries()] {
        drop(compare(steps, &mut used).await);
    }
    let stale: Vec<_> = DIFFERENT_MEMBERS.iter().filter(|(end, _)| !used.contains(end)).collect();
    assert!(stale.is_empty(), "declared and not seen: {stale:?}");
}
