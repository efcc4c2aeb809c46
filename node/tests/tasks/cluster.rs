//! Tasks in a cluster of three nodes: whoever leads runs them, workers and gateways are connected to all. The
//! leader is killed under load, again and again.
//!
//! Oracle: every job has one result and one usage record; the same request has the same decision; a quota that
//! was used up stays so.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::dev_cluster::Dev;
use super::*;

/// The node at which tasks run.
fn leader(dev: &Dev) -> Option<String> {
    let runs: Vec<String> = dev
        .names()
        .into_iter()
        .filter(|name| {
            metrics(&dev.text(name, "admin"))
                .is_some_and(|text| text.lines().any(|line| line == "beamlog_tasks_serving 1.0"))
        })
        .collect();
    // One that has lost it and does not know yet is not asked.
    <[String; 1]>::try_from(runs).ok().map(|[name]| name)
}

/// Kills the leader; its name, once it is started again.
fn kill_leader(dev: &Dev) -> String {
    let mut found = None;
    wait_until("one node runs tasks", || {
        found = leader(dev);
        found.is_some()
    });
    let name = found.unwrap();
    dev.started_again(&dev.kill(&name));
    name
}

fn metrics(address: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

#[test]
fn a_killed_leader_of_a_cluster_loses_no_job_and_forgets_no_decision() {
    const KILLS: usize = 3;
    let jobs: u32 = std::env::var("BEAMLOG_TEST_TASKS_JOBS").map_or(300, |jobs| jobs.parse().unwrap());
    let folder = TempDir::new().unwrap();
    let dev = Dev::start(folder.path(), 3, &["--tasks"]);
    let addresses = dev.addresses();
    let book = Arc::new(Book::default());
    // Two at each node.
    let running: Vec<Worker> = (0..6)
        .map(|n| {
            let address = Arc::new(Mutex::new(addresses[n % 3].clone()));
            Worker::start(format!("worker-{n}"), address, habits(10), Arc::clone(&book))
        })
        .collect();
    // A quota, used up before anybody dies.
    let anywhere = |n: u32| addresses[n as usize % 3].clone();
    let quota = json!({"tenant_id": "small",
        "rules": {"quota": {"window_seconds": 31_536_000, "requests": 2}}});
    admin(&anywhere(0), "upsert_tenant", &quota);
    let small = |id: &str| {
        json!({"version": "1", "tenant_id": "small", "request_id": id,
        "task": {"type": "echo", "payload": {"number": id}}})
    };
    let first = insist(&|| anywhere(1), DECIDE, &small("s-1"))["provider_id"].clone();
    insist(&|| anywhere(2), DECIDE, &small("s-2"));

    let submitting = addresses.clone();
    let submitter = thread::spawn(move || {
        let mut decisions = BTreeMap::new();
        for n in 0..jobs {
            let id = format!("job-{n}");
            // Another node each time, so that one that is down is not asked for ever.
            let at = std::cell::Cell::new(n as usize);
            let address = || {
                at.set(at.get() + 1);
                submitting[at.get() % 3].clone()
            };
            let decision = insist(&address, DECIDE, &job(&id))["decision"].clone();
            decisions.insert(id, decision);
        }
        decisions
    });
    let killed: Vec<String> = (0..KILLS).map(|_| kill_leader(&dev)).collect();
    let decisions = submitter.join().unwrap();
    let found = || totals(&addresses[0]);
    wait_until("all jobs have a result", || found()["open_tasks"] == 0);
    println!("{jobs} jobs, killed {killed:?}");
    let all = found();
    assert_eq!(all["totals"]["tasks"], jobs, "the same request is the same task: {all}");
    assert_eq!(all["totals"]["succeeded"], jobs, "{all}");
    wait_until("usage is stored", || usage(&addresses[0]).len() == jobs as usize);
    let records = usage(&addresses[1]);
    let twice: Vec<_> = records.iter().filter(|(_, records)| **records != 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    // Any node gives the decision of each request once more.
    for (n, (id, decision)) in decisions.iter().enumerate().step_by(7) {
        let again = insist(&|| addresses[n % 3].clone(), DECIDE, &job(id));
        assert_eq!(again["decision"], *decision, "{id}");
    }
    assert_eq!(insist(&|| anywhere(0), DECIDE, &small("s-1"))["provider_id"], first);
    let refused = gateway::request(&anywhere(2), DECIDE, &small("s-3")).unwrap();
    assert_eq!(refused["error"]["code"], "quota_exceeded", "{refused}");
    drop(running.into_iter().map(Worker::kill).collect::<Vec<_>>());
}
