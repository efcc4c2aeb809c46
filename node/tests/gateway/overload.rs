//! Too much work: what expires first is given up, with a word; the rest is refused so that clients wait.

use std::io::{BufRead, BufReader, Read, Write};
use std::time::Instant;

use super::*;

/// A connection with the NATS side of the node.
struct Nats(BufReader<TcpStream>);

impl Nats {
    fn open(address: &str, subscriptions: &[&str]) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut nats = Self(BufReader::new(stream));
        nats.send("CONNECT {\"verbose\":false,\"headers\":true,\"no_responders\":true}\r\n");
        for (n, subject) in subscriptions.iter().enumerate() {
            nats.send(&format!("SUB {subject} {n}\r\n"));
        }
        nats.send("PING\r\n");
        while nats.line() != "PONG" {}
        nats
    }

    fn send(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).unwrap();
    }

    fn publish(subject: &str, reply: &str, body: &Value) -> String {
        let body = body.to_string();
        format!("PUB {subject} {reply} {}\r\n{body}\r\n", body.len())
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.0.read_line(&mut line).unwrap() > 0, "the node closed the connection");
        line.trim_end().to_owned()
    }

    /// The next message: its subject and its body.
    fn next(&mut self) -> (String, Value) {
        loop {
            let line = self.line();
            let words: Vec<&str> = line.split_whitespace().collect();
            let (headers, length): (usize, usize) = match words[..] {
                ["MSG", _, _, .., length] => (0, length.parse().unwrap()),
                ["HMSG", _, _, .., headers, length] => (headers.parse().unwrap(), length.parse().unwrap()),
                _ => continue,
            };
            let mut raw = vec![0; length + 2];
            self.0.read_exact(&mut raw).unwrap();
            return (words[1].to_owned(), serde_json::from_slice(&raw[headers..length]).unwrap_or_default());
        }
    }
}

fn job(id: &str, expires_millis: Option<u64>) -> Value {
    let mut job = body(id);
    job["push_assignment"] = json!(true);
    if let Some(millis) = expires_millis {
        job["options"] = json!({"expires_ms": millis});
    }
    job
}

#[test]
fn the_oldest_deadline_is_shed_first_and_never_silently() {
    let node = Node::start(&["--tasks-open-max", "3"]);
    let mut nats = Nats::open(&node.listen, &["caf.exec.result.v1", "caf.exec.assign.v1.dlq"]);
    let ask = |job: &Value| node.ask(post(DECIDE).json(job));
    let jobs = [
        ("later", Some(600_000)),
        ("sooner", Some(300_000)),
        ("lasting", None),
        ("more", None),
        ("last", None),
    ];
    for (id, expires) in jobs {
        let answer = ask(&job(id, expires));
        assert_eq!(answer.status, 200, "{id}: {}", answer.text());
    }
    for id in ["sooner", "later"] {
        let (subject, result) = nats.next();
        assert_eq!(subject, "caf.exec.result.v1");
        assert_eq!(
            (&result["request_id"], &result["status"], &result["error_code"]),
            (&json!(id), &json!("cancelled"), &json!("SHED"))
        );
        let (subject, letter) = nats.next();
        assert_eq!((subject.as_str(), &letter["msg_id"]), ("caf.exec.assign.v1.dlq", &json!(id)));
        assert_eq!((&letter["error_code"], &letter["reason"]), (&json!("SHED"), &json!("shed")));
    }
    // Nothing that is left expires: new work waits where it is.
    let refused = ask(&job("too-many", Some(1_000)));
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert_eq!(refused.json()["error"]["code"], "service_overloaded");
    assert_eq!(refused.header("retry-after"), Some("30"));
    // What asks for no worker is decided all the same.
    assert_eq!(ask(&body("only-a-decision")).status, 200);
}

#[test]
fn an_overloaded_router_is_503_with_retry_after_until_it_is_not() {
    let slow = json!({"version": "1.0", "providers": [{"name": "one", "weight": 100}],
        "pre": [{"id": "slow", "mode": "optional", "timeout_ms": 5_000}]});
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let flags = ["--gateway-limit-decide", "1000000", "--tasks-backpressure", &port];
    let node = Node::with_policies(&flags, &[("slow", slow)]);
    let mut nats = Nats::open(&node.listen, &["beamline.ext.pre.slow.v1", "_INBOX.me"]);
    let extension = json!({"id": "slow", "extension": {"type": "pre", "subject": "beamline.ext.pre.slow.v1",
        "timeout_ms": 5_000}});
    nats.send(&Nats::publish("beamline.router.v1.admin.upsert_extension", "_INBOX.me", &extension));
    let (_, answer) = nats.next();
    assert_eq!(answer["ok"], true, "{answer}");
    let is_overloaded = |n: u32| {
        let answer = node.ask(post(DECIDE).json(&body(&format!("probe-{n}"))));
        match answer.status {
            200 => false,
            503 => {
                let value = answer.json();
                assert_eq!(value["error"]["code"], "service_overloaded", "{value}");
                assert_eq!(answer.header("retry-after"), Some("30"));
                true
            }
            other => panic!("{other}: {}", answer.text()),
        }
    };
    assert!(!is_overloaded(0));
    // More tasks than 1,000 wait for workers: a warning, and requests go on.
    let jobs: String = (0..1_100)
        .map(|n| Nats::publish("beamline.router.v1.decide", "_INBOX.none", &job(&format!("j-{n}"), None)))
        .collect();
    nats.send(&jobs);
    let began = Instant::now();
    let mut n = 1;
    // And more requests than 500 wait for an extension that does not answer: that is two signals of three.
    while !is_overloaded(n) {
        assert!(began.elapsed() < PATIENCE, "never overloaded");
        let wave: String = (0..600)
            .map(|at| {
                let mut request = body(&format!("slow-{n}-{at}"));
                request["policy_id"] = json!("slow");
                Nats::publish("beamline.router.v1.decide", "_INBOX.none", &request)
            })
            .collect();
        nats.send(&wave);
        n += 1;
    }
    let mut page = String::new();
    TcpStream::connect(&port).unwrap().read_to_string(&mut page).unwrap();
    assert!(
        page.contains("router_intake_backpressure_active{subject=\"beamline.router.v1.decide\"} "),
        "{page}"
    );
    let began = Instant::now();
    while is_overloaded(n) {
        assert!(began.elapsed() < PATIENCE, "overloaded for ever");
        n += 1;
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}
