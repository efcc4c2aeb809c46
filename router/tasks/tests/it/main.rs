//! Tasks over a real router and its log: what was answered is durable, a restart changes nothing, a snapshot
//! replaces the events before it, and usage is in its stream once.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use beamlog_log::{Disk, SimDisk, StdDisk};
use beamlog_router::api::request::{Request, Response};
use beamlog_router::embed::PlainWire;
use beamlog_router::interest::{Envelope, Offered, RouteCache, Subscriber};
use beamlog_router::{Router, RouterOptions};
use beamlog_tasks::service::{Service, ServiceOptions};
use serde_json::{Value, json};

const DECIDE: &str = "beamline.router.v1.decide";
const ASSIGN: &str = "caf.exec.assign.v1";
const RESULT: &str = "caf.exec.result.v1";
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection with one mailbox.
struct Client {
    origin: u64,
    mail: Mutex<Vec<(String, Value)>>,
    came: Condvar,
}

impl Subscriber for Client {
    fn offer(&self, _: u64, message: &Envelope<'_>) -> Offered {
        let subject = String::from_utf8(message.subject.to_vec()).unwrap();
        self.mail
            .lock()
            .unwrap()
            .push((subject, serde_json::from_slice(message.payload).unwrap_or_default()));
        self.came.notify_all();
        Offered::Taken
    }

    fn flush(&self) {}

    fn origin(&self) -> u64 {
        self.origin
    }
}

impl Client {
    fn subscribed(router: &Router, filter: &str) -> Arc<Self> {
        let client = Arc::new(Self { origin: 7, mail: Mutex::default(), came: Condvar::new() });
        router.interest().subscribe(filter.as_bytes(), None, Arc::clone(&client) as _, 1).unwrap();
        client
    }

    fn next(&self, subject: &str) -> Value {
        let mail = self.mail.lock().unwrap();
        let is_missing = |mail: &mut Vec<(String, Value)>| !mail.iter().any(|(to, _)| to == subject);
        let (mut mail, waited) = self.came.wait_timeout_while(mail, PATIENCE, is_missing).unwrap();
        assert!(!waited.timed_out(), "nothing came on {subject}");
        let at = mail.iter().position(|(to, _)| to == subject).unwrap();
        mail.remove(at).1
    }
}

struct Node {
    router: Router,
    service: Service,
    client: Arc<Client>,
}

impl Node {
    fn start(folder: &Path, options: ServiceOptions) -> Self {
        Self::start_on(Arc::new(StdDisk), folder, &RouterOptions::default(), options)
    }

    fn start_on(disk: Arc<dyn Disk>, folder: &Path, router: &RouterOptions, options: ServiceOptions) -> Self {
        let router = Router::open(folder, disk, router, Arc::new(PlainWire)).unwrap();
        let service = Service::start(&router, options).unwrap();
        let client = Client::subscribed(&router, "_INBOX.me");
        let usage = b"beamline.usage.v1.metered";
        router.interest().subscribe(usage, None, Arc::clone(&client) as _, 1).unwrap();
        Self { router, service, client }
    }

    fn stop(self) {
        self.service.close();
        self.service.wait();
        drop(self.service);
        self.router.close().unwrap();
    }

    fn send(&self, subject: &str, reply: &str, body: &Value) {
        let payload = body.to_string();
        let message = Envelope {
            subject: subject.as_bytes(),
            reply: reply.as_bytes(),
            headers: b"",
            payload: payload.as_bytes(),
            origin: 7,
        };
        let mut cache = RouteCache::new();
        let routed = self.router.interest().route(&mut cache, subject.as_bytes(), &message);
        assert!(routed.receivers > 0, "somebody answers {subject}");
    }

    fn ask(&self, subject: &str, body: &Value) -> Value {
        self.send(subject, "_INBOX.me", body);
        self.client.next("_INBOX.me")
    }

    fn admin(&self, name: &str, body: &Value) -> Value {
        self.ask(&format!("beamline.router.v1.admin.{name}"), body)
    }

    fn stored_usage(&self) -> u64 {
        let info = Request::StreamInfo {
            stream: "BEAMLINE_USAGE".into(),
            subjects_filter: None,
            offset: 0,
            deleted_details: false,
        };
        let Response::Stream { info, .. } = self.router.request(info).unwrap().wait().unwrap() else {
            panic!()
        };
        info.state.messages
    }

    fn log_messages(&self) -> u64 {
        let info = Request::StreamInfo {
            stream: "BEAMLINE".into(),
            subjects_filter: None,
            offset: 0,
            deleted_details: false,
        };
        let Response::Stream { info, .. } = self.router.request(info).unwrap().wait().unwrap() else {
            panic!()
        };
        info.state.messages
    }
}

fn job(id: &str) -> Value {
    json!({"version": "1", "tenant_id": "acme", "request_id": id, "push_assignment": true,
        "task": {"type": "echo", "payload": {"number": 1.10}}})
}

fn result_of(assignment: &Value) -> Value {
    json!({"assignment_id": assignment["assignment_id"], "status": "success", "provider_id": "w",
        "job": {"type": "echo"}, "latency_ms": 5, "cost": 0.25, "tenant_id": "acme"})
}

#[test]
fn a_job_goes_its_way_over_restarts() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path(), ServiceOptions::default());
    let first = node.ask(DECIDE, &job("r-1"));
    assert_eq!(first["ok"], true, "{first}");
    node.stop();

    // Nobody was there for it; now somebody is.
    let node = Node::start(folder.path(), ServiceOptions::default());
    assert_eq!(node.ask(DECIDE, &job("r-1"))["decision"], first["decision"]);
    node.router.interest().subscribe(ASSIGN.as_bytes(), None, Arc::clone(&node.client) as _, 2).unwrap();
    let assignment = node.client.next(ASSIGN);
    assert_eq!(
        (&assignment["request_id"], &assignment["job"]["payload"]["number"]),
        (&json!("r-1"), &json!(1.1))
    );
    for _ in 0..3 {
        assert_eq!(node.ask(RESULT, &result_of(&assignment))["ok"], true);
    }
    let usage = node.client.next("beamline.usage.v1.metered");
    assert_eq!((&usage["assignment_id"], &usage["cost"]), (&assignment["assignment_id"], &json!(0.25)));
    node.stop();

    let node = Node::start(folder.path(), ServiceOptions::default());
    assert_eq!(node.ask(RESULT, &result_of(&assignment))["ok"], true);
    let status = node.admin("get_checkpoint_status", &json!({}));
    assert_eq!((&status["totals"]["succeeded"], &status["totals"]["usage"]), (&json!(1), &json!(1)));
    assert_eq!(node.stored_usage(), 1);
    assert!(node.client.mail.lock().unwrap().is_empty(), "usage is told once");
    node.stop();
}

#[test]
fn a_snapshot_takes_the_place_of_the_events_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let options = ServiceOptions { snapshot_bytes: 4_096, ..ServiceOptions::default() };
    let node = Node::start(folder.path(), options.clone());
    let mut asked = 0;
    // It is written beside the work, so it comes in its time.
    while asked < 300 || node.log_messages() >= asked {
        assert_eq!(node.ask(DECIDE, &job(&format!("r-{asked}")))["ok"], true);
        asked += 1;
        assert!(asked < 100_000, "old events are purged");
    }
    let before = node.admin("get_checkpoint_status", &json!({}))["totals"].clone();
    // Not stopped politely: the events behind the last snapshot are all there is.
    drop(node.service);
    node.router.close().unwrap();
    let node = Node::start(folder.path(), options);
    assert_eq!(node.admin("get_checkpoint_status", &json!({}))["totals"], before);
    assert_eq!(node.admin("list_tasks", &json!({}))["total"], asked);
    node.stop();
}

/// Several at once, so that batches are decided while others become durable and while the state is written; and the end
/// comes at any moment of that.
#[test]
fn what_was_answered_is_there_however_it_ended() {
    const ASKERS: u64 = 4;
    let folder = tempfile::tempdir().unwrap();
    let options = ServiceOptions { snapshot_bytes: 64 << 10, ..ServiceOptions::default() };
    let request = |asker: u64, number: u64| {
        // The payload makes it a state of many parts.
        let mut job = job(&format!("r-{asker}-{number}"));
        job["task"]["payload"]["text"] = "x".repeat(2_000).into();
        job
    };
    let mut answered = vec![Vec::<Value>::new(); usize::try_from(ASKERS).unwrap()];
    for life in 0..4 {
        let node = Node::start(folder.path(), options.clone());
        let told = node.admin("get_checkpoint_status", &json!({}))["totals"]["decisions"].as_u64().unwrap();
        let known = answered.iter().map(Vec::len).sum::<usize>() as u64;
        assert!((known..=known + ASKERS).contains(&told), "life {life}: {known} answered, {told} decided");
        std::thread::scope(|scope| {
            for (asker, answered) in (0..).zip(&mut answered) {
                let node = &node;
                scope.spawn(move || {
                    let client = Client::subscribed(&node.router, &format!("_INBOX.{asker}"));
                    let first = answered.len() as u64;
                    for number in first..first + 250 {
                        node.send(DECIDE, &format!("_INBOX.{asker}"), &request(asker, number));
                        let answer = client.next(&format!("_INBOX.{asker}"));
                        assert_eq!(answer["ok"], true, "{answer}");
                        answered.push(answer["decision"].clone());
                    }
                    // The last is not waited for: the end finds it on its way.
                    node.send(DECIDE, "", &request(asker, first + 250));
                });
            }
        });
        node.service.stand_down();
        drop(node.service);
        node.router.close().unwrap();
    }
    let node = Node::start(folder.path(), options);
    for (asker, answered) in (0..).zip(&answered) {
        for (number, decision) in (0..).zip(answered).step_by(7) {
            assert_eq!(node.ask(DECIDE, &request(asker, number))["decision"], *decision, "{asker} {number}");
        }
    }
    let asked = ASKERS * 1_000;
    assert!(node.log_messages() < asked, "snapshots were written");
    node.stop();
}

#[test]
fn what_somebody_else_writes_into_the_log_is_found_out_and_is_no_event() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path(), ServiceOptions::default());
    assert_eq!(node.ask(DECIDE, &job("r-1"))["ok"], true);
    let foreign = node.router.publish("$BEAMLINE.event", "", "not even an event");
    foreign.unwrap().wait().result.unwrap();
    // The next decision meets it, is refused, and the state is read again; then all is well.
    let refused = node.ask(DECIDE, &job("r-2"));
    assert_eq!(refused["error"]["code"], "internal", "{refused}");
    assert_eq!(node.ask(DECIDE, &job("r-2"))["ok"], true);
    assert_eq!(node.admin("list_tasks", &json!({}))["total"], 2);
    node.stop();
}

/// The one whose batch is not stored is told, and so is everyone whose batch is behind it; asked again, all is well.
#[test]
fn a_batch_that_is_not_stored_takes_those_behind_it_along() {
    const ASKERS: u64 = 4;
    const EACH: u64 = 150;
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path(), ServiceOptions::default());
    let refused: u64 = std::thread::scope(|scope| {
        let ask = |asker: u64| {
            let inbox = format!("_INBOX.{asker}");
            let client = Client::subscribed(&node.router, &inbox);
            let mut refused = 0;
            for number in 0..EACH {
                if number % 10 == asker {
                    // Moves the log on behind the node's back.
                    node.router.publish("$BEAMLINE.event", "", "no event").unwrap().wait().result.unwrap();
                }
                loop {
                    node.send(DECIDE, &inbox, &job(&format!("r-{asker}-{number}")));
                    let answer = client.next(&inbox);
                    if answer["ok"] == true {
                        break;
                    }
                    assert_eq!(answer["error"]["code"], "internal", "{answer}");
                    refused += 1;
                    assert!(refused < 10_000, "it ends");
                }
            }
            refused
        };
        let askers: Vec<_> = (0..ASKERS).map(|asker| scope.spawn(move || ask(asker))).collect();
        askers.into_iter().map(|asker| asker.join().unwrap()).sum()
    });
    assert!(refused > 0, "the log was not taken away once");
    let totals = |node: &Node| node.admin("get_checkpoint_status", &json!({}))["totals"]["tasks"].clone();
    assert_eq!(totals(&node), ASKERS * EACH);
    node.service.stand_down();
    drop(node.service);
    node.router.close().unwrap();
    let node = Node::start(folder.path(), ServiceOptions::default());
    assert_eq!(totals(&node), ASKERS * EACH, "what was not answered was not stored either");
    node.stop();
}

#[test]
fn policies_are_put_by_the_program_too() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path(), ServiceOptions::default());
    let policy = json!({"version": "1.0", "providers": [{"name": "mine", "weight": 100}]});
    assert_eq!(node.service.put_policy("acme", "default", policy.clone()), Ok(true));
    assert_eq!(node.service.put_policy("acme", "default", policy), Ok(false));
    assert!(node.service.put_policy("acme", "default", json!({})).unwrap_err().contains("version"));
    assert_eq!(node.ask(DECIDE, &job("r-1"))["provider_id"], "mine");
    assert_eq!(node.service.stats().policies.max(1), 1);
    node.stop();
}

/// No space: what is new is refused, what was decided is known, what workers say is kept, and when there is space again
/// all goes on by itself.
#[test]
fn a_full_disk_degrades_what_must_be_stored_and_nothing_else() {
    let disk = SimDisk::new();
    // Segments of a simulation are small; messages are as large as ever.
    let simulated = RouterOptions::for_simulation();
    let options = RouterOptions { log: simulated.log, checkpoints: false, ..RouterOptions::default() };
    let node =
        Node::start_on(Arc::new(disk.clone()), Path::new("/data"), &options, ServiceOptions::default());
    let wait = |what: &str, is_so: &mut dyn FnMut() -> bool| {
        for _ in 0..1_500 {
            if is_so() {
                return;
            }
            // Whatever comes may be what it waits for; what is only counted is looked at again.
            let mail = node.client.mail.lock().unwrap();
            drop(node.client.came.wait_timeout(mail, Duration::from_millis(20)).unwrap());
        }
        panic!("not in time: {what}");
    };
    node.router.interest().subscribe(ASSIGN.as_bytes(), None, Arc::clone(&node.client) as _, 2).unwrap();
    let first = node.ask(DECIDE, &job("first"));
    let assignment = node.client.next(ASSIGN);
    assert_eq!(assignment["request_id"], "first");

    disk.limit_space(disk.used_space() + (70 << 10));
    let mut decided = 0;
    let refused = loop {
        let answer = node.ask(DECIDE, &job(&format!("fill-{decided}")));
        if answer["ok"] == false {
            break answer;
        }
        decided += 1;
        assert!(decided < 10_000, "a full disk shows");
    };
    assert_eq!(refused["error"]["code"], "internal", "{refused}");
    // Told: what, why, and what suffers.
    wait("the shortage is told", &mut || {
        node.service.stats().degraded.iter().any(|row| row.cause == "the disk is full")
    });
    let told = node.admin("get_degraded", &json!({}));
    assert_eq!(
        (&told["degraded"][0]["part"], &told["degraded"][0]["state"]),
        (&json!("log"), &json!("not_storing"))
    );
    let refused = node.ask(DECIDE, &job("new"));
    assert!(refused["error"]["message"].as_str().unwrap().contains("the disk is full"), "{refused}");
    let put = json!({"tenant_id": "acme", "rules": {"denied": true}});
    assert_eq!(node.admin("upsert_tenant", &put)["error"]["code"], "UNAVAILABLE");
    // What needs no space works.
    assert_eq!(node.ask(DECIDE, &job("first"))["decision"], first["decision"]);
    assert_eq!(node.admin("get_task", &json!({"task": "first"}))["task"]["phase"], "assigned");
    // A worker is done meanwhile. It says so once.
    node.send(RESULT, "", &result_of(&assignment));
    wait("the result is held", &mut || node.service.stats().held == 1);
    assert_eq!(node.admin("get_task", &json!({"task": "first"}))["task"]["phase"], "assigned");

    let stats = node.service.stats();
    assert!(stats.failed.is_some() && !stats.degraded.is_empty(), "answers do not hide it: {stats:?}");

    disk.heal();
    wait("the result counts", &mut || {
        node.admin("get_task", &json!({"task": "first"}))["task"]["phase"] == "success"
    });
    assert_eq!(node.ask(DECIDE, &job("new"))["ok"], true);
    wait("nothing is degraded", &mut || {
        let stats = node.service.stats();
        stats.failed.is_none() && stats.held == 0 && !stats.degraded.iter().any(|row| row.name == "BEAMLINE")
    });
    wait("its usage is stored, once", &mut || node.stored_usage() == 1);
    let status = node.admin("get_checkpoint_status", &json!({}));
    assert_eq!(status["totals"]["decisions"], decided + 2, "{status}");
    node.stop();
}
