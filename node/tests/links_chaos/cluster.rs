//! A link of a cluster of three nodes: the node that leads runs it, the others stand by. Whoever runs it is killed
//! under load, again and again.
//!
//! Oracle: as for one node, what a link carried is what its source has, each message once and in order; and
//! what the cluster acked is in its stream once.

use serde_json::Value;

use super::dev_cluster::{Dev, beamlog};
use super::*;

const KILLS: usize = 4;

fn urls(dev: &Dev) -> Vec<String> {
    dev.addresses().iter().map(|address| format!("nats://{address}")).collect()
}

/// How each node that answers says the link is, by the node's name.
fn states(dev: &Dev) -> BTreeMap<String, String> {
    let state = |name: String| {
        let said = ask(&dev.text(&name, "admin"), &["link", "status", "core", "-o", "json"])?;
        let link: Value = serde_json::from_slice(&said).ok()?;
        Some((name, link["state"].as_str()?.to_owned()))
    };
    dev.names().into_iter().filter_map(state).collect()
}

/// The only node that runs the link, when every other one stands by.
fn runner(dev: &Dev) -> Option<String> {
    let states = states(dev);
    let standby = states.values().filter(|state| *state == "standby").count();
    let runs = states.iter().find(|(_, state)| *state == "connected")?;
    (states.len() == 3 && standby == 2).then(|| runs.0.clone())
}

/// What the command says of the node with this admin address; `None` if it fails.
fn ask(admin: &str, arguments: &[&str]) -> Option<Vec<u8>> {
    let output = beamlog().args(arguments).args(["--admin", admin]).output().unwrap();
    output.status.success().then_some(output.stdout)
}

pub(crate) async fn connect_all(urls: Vec<String>) -> Client {
    ConnectOptions::new()
        .retry_on_initial_connect()
        .request_timeout(Some(Duration::from_secs(3)))
        .reconnect_delay_callback(|_| Duration::from_millis(50))
        .connect(urls)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_that_runs_a_link_may_be_killed_and_another_one_goes_on() {
    let folder = TempDir::new().unwrap();
    let (port, store) = (free_port(), folder.path().join("nats"));
    let nats = Process::new(format!("nats://127.0.0.1:{port}"), move || {
        let mut command = Command::new(nats_binary());
        command.args(["-a", "127.0.0.1", "-p", &port.to_string(), "-js", "-sd"]).arg(&store);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    });
    let dev = tokio::task::block_in_place(|| Dev::start(folder.path(), 3, &[]));
    let (there, here) = (connect(&nats.url).await, connect_all(urls(&dev)).await);
    let (far, near) = (jetstream::new(there.clone()), jetstream::new(here.clone()));
    make(&far, "DOWN", "down.>").await;
    make(&far, "UP", "up.>").await;
    make(&near, "LOCAL", "up.>").await;
    for name in dev.names() {
        let add = ["link", "add", "core", "--url", &nats.url];
        let rules = ["--import", "stream=DOWN", "--export", "stream=LOCAL"];
        ask(&dev.text(&name, "admin"), &[&add[..], &rules[..]].concat()).unwrap();
    }
    patiently("one node runs the link", async || runner(&dev)).await;

    let stop = Arc::new(AtomicBool::new(false));
    let acked = [Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0))];
    let mut publishers = Vec::new();
    for at in 0..2 {
        for (urls, prefix, acked) in
            [(vec![nats.url.clone()], "down", &acked[0]), (urls(&dev), "up", &acked[1])]
        {
            let (client, subject) = (connect_all(urls).await, format!("{prefix}.{at}"));
            publishers.push(tokio::spawn(publish(client, subject, Arc::clone(&stop), Arc::clone(acked))));
        }
    }
    let mut ran = Vec::new();
    for _ in 0..KILLS {
        let name = patiently("one node runs the link", async || runner(&dev)).await;
        let carried = count(&far, "UP").await.unwrap_or(0);
        patiently("it carries", async || (count(&far, "UP").await? > carried).then_some(())).await;
        tokio::task::block_in_place(|| dev.started_again(&dev.kill(&name)));
        ran.push(name);
    }
    stop.store(true, Ordering::Relaxed);
    for publisher in publishers {
        publisher.await.unwrap();
    }
    for (from, source, to, target) in [(&far, "DOWN", &near, "DOWN"), (&near, "LOCAL", &far, "UP")] {
        all_of((from, source), (to, target)).await;
    }
    let source = by_subject(&there, "DOWN").await;
    check_equal(&source, &by_subject(&here, "DOWN").await, "import");
    let exported = by_subject(&here, "LOCAL").await;
    check_equal(&exported, &by_subject(&there, "UP").await, "export");
    let messages = |all: &BTreeMap<String, Vec<String>>| all.values().map(Vec::len).sum::<usize>() as u64;
    let acked = acked.map(|acked| acked.load(Ordering::Relaxed));
    println!(
        "killed {ran:?}: {} imported, {} exported, 0 lost, 0 doubled; acked {acked:?}",
        messages(&source),
        messages(&exported)
    );
    assert_eq!([messages(&source), messages(&exported)], acked, "what was acked is there, once");
}
