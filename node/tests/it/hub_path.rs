//! Links over a path that is narrow, and links that are told to take less than there is.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use serde_json::Value;
use tempfile::TempDir;

use crate::hub::{Site, link, status, until, until_link};
use crate::running::{Node, outcome};

/// A UDP path of this many bytes a second each way, with a short queue. What finds it full is lost.
struct Narrow {
    address: SocketAddr,
    ended: Arc<AtomicBool>,
}

const QUEUED_MAX: usize = 24;
const POLL: Duration = Duration::from_millis(100);

impl Narrow {
    fn to(far: SocketAddr, bytes_per_second: u64) -> Self {
        let near = UdpSocket::bind("127.0.0.1:0").unwrap();
        near.set_read_timeout(Some(POLL)).unwrap();
        let path = Self { address: near.local_addr().unwrap(), ended: Arc::default() };
        let ended = Arc::clone(&path.ended);
        std::thread::spawn(move || {
            let mut known: HashMap<SocketAddr, mpsc::SyncSender<Vec<u8>>> = HashMap::new();
            let mut datagram = vec![0; 65_536];
            while !ended.load(Ordering::SeqCst) {
                let Ok((length, from)) = near.recv_from(&mut datagram) else { continue };
                let there = known.entry(from).or_insert_with(|| {
                    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
                    socket.set_read_timeout(Some(POLL)).unwrap();
                    let (back, sending) = (socket.try_clone().unwrap(), near.try_clone().unwrap());
                    let here = pace(bytes_per_second, move |bytes| drop(sending.send_to(&bytes, from)));
                    let ended = Arc::clone(&ended);
                    std::thread::spawn(move || {
                        let mut datagram = vec![0; 65_536];
                        while !ended.load(Ordering::SeqCst) {
                            let Ok(length) = back.recv(&mut datagram) else { continue };
                            drop(here.try_send(datagram[..length].to_vec()));
                        }
                    });
                    pace(bytes_per_second, move |bytes| drop(socket.send_to(&bytes, far)))
                });
                drop(there.try_send(datagram[..length].to_vec()));
            }
        });
        path
    }

    fn url(&self) -> String {
        format!("quic://{}", self.address)
    }
}

impl Drop for Narrow {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
    }
}

/// One direction: what is put in comes out when what was before it has had its time.
fn pace(bytes_per_second: u64, send: impl Fn(Vec<u8>) + Send + 'static) -> mpsc::SyncSender<Vec<u8>> {
    let (sender, receiver) = mpsc::sync_channel::<Vec<u8>>(QUEUED_MAX);
    std::thread::spawn(move || {
        while let Ok(bytes) = receiver.recv() {
            std::thread::sleep(Duration::from_secs_f64(bytes.len() as f64 / bytes_per_second as f64));
            send(bytes);
        }
    });
    sender
}

fn hub_address(site: &Site) -> SocketAddr {
    site.hub_url().strip_prefix("quic://").unwrap().parse().unwrap()
}

fn rule<'a>(status: &'a Value, name: &str) -> &'a Value {
    status["rules"].as_array().unwrap().iter().find(|rule| rule["rule"] == name).unwrap()
}

/// Fills a stream of a node with messages of this size.
async fn fill(node: &Node, subject: &'static str, count: usize, bytes: usize) {
    let client = async_nats::connect(node.listen.as_str()).await.unwrap();
    let context = async_nats::jetstream::new(client);
    for _ in 0..count {
        context.publish(subject, vec![b'x'; bytes].into()).await.unwrap().await.unwrap();
    }
}

#[test]
fn on_a_narrow_path_requests_and_what_comes_do_not_wait_behind_what_goes() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let site = Site::new();
    let hub = site.hub(TempDir::new().unwrap(), "");
    let edge = Node::start();
    hub.run(&["stream", "add", "UP", "--subjects", "up"]).unwrap();
    hub.run(&["stream", "add", "DOWN", "--subjects", "down"]).unwrap();
    edge.run(&["stream", "add", "UP", "--subjects", "up"]).unwrap();
    // Half a minute of the path, and more than all buffers on the way hold.
    const BACKLOG: usize = 480;
    runtime.block_on(fill(&edge, "up", BACKLOG, 16 << 10));
    runtime.block_on(fill(&hub, "down", 50, 100));
    let path = Narrow::to(hub_address(&site), 256 << 10);
    let folder = site.path("site7");
    let (url, folder) = (path.url(), folder.to_str().unwrap());
    let arguments = ["add", "hub", "--url", &url, "--certificates", folder, "--export", "stream=UP"];
    outcome(&link(&edge, &arguments)).unwrap();
    until_link(&edge, "hub", |status| rule(status, "export stream UP")["transferred"] != 0);
    // The way there is full now. Another link of the same session, so that it begins behind all that.
    let more = ["--import", "stream=DOWN", "--requests", "subject=rpc.>,direction=out"];
    let arguments = ["add", "more", "--url", &url, "--certificates", folder];
    outcome(&link(&edge, &[&arguments[..], &more[..]].concat())).unwrap();
    until_link(&edge, "more", |status| rule(status, "import stream DOWN")["transferred"] == 50);
    runtime.block_on(async {
        let there = async_nats::connect(hub.listen.as_str()).await.unwrap();
        let mut service = there.subscribe("rpc.*").await.unwrap();
        there.flush().await.unwrap();
        tokio::spawn(async move {
            while let Some(request) = service.next().await {
                there.publish(request.reply.unwrap(), "answer".into()).await.unwrap();
            }
        });
        let here = async_nats::connect(edge.listen.as_str()).await.unwrap();
        let mut answered = 0;
        while answered < 5 {
            answered += usize::from(here.request("rpc.x", "?".into()).await.is_ok());
        }
    });
    let waiting = status(&edge, "hub");
    let left = rule(&waiting, "export stream UP")["lag_messages"].as_u64().unwrap();
    assert!(left > 0, "the backlog was there all the time: {waiting:#}");
    assert!(rule(&waiting, "export stream UP")["lag_bytes"].as_u64().unwrap() >= left * (16 << 10));
    // And nothing of it is lost.
    until("the backlog", || {
        let shown = status(&edge, "hub");
        let carried = rule(&shown, "export stream UP")["transferred"].as_u64();
        if carried == Some(BACKLOG as u64) { Ok(()) } else { Err(format!("{shown:#}")) }
    });
}

#[test]
fn a_link_takes_no_more_than_it_may() {
    const RATE: u64 = 256 << 10;
    const COUNT: u64 = 24;
    const BYTES: u64 = 64 << 10;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let site = Site::new();
    let hub = site.hub(TempDir::new().unwrap(), "");
    let edge = Node::start();
    for (node, stream) in [(&hub, "DOWN"), (&hub, "UP"), (&edge, "UP")] {
        node.run(&["stream", "add", stream, "--subjects", &stream.to_lowercase()]).unwrap();
    }
    runtime.block_on(fill(&edge, "up", usize::try_from(COUNT).unwrap(), usize::try_from(BYTES).unwrap()));
    runtime.block_on(fill(&hub, "down", usize::try_from(COUNT).unwrap(), usize::try_from(BYTES).unwrap()));
    let (url, folder) = (site.hub_url(), site.path("site7"));
    let rules = ["--bytes-per-second", "256KiB", "--export", "stream=UP", "--import", "stream=DOWN"];
    let arguments = ["add", "hub", "--url", &url, "--certificates", folder.to_str().unwrap()];
    let begun = Instant::now();
    outcome(&link(&edge, &[&arguments[..], &rules[..]].concat())).unwrap();
    // Looked at all the way: never more than its time allows, beside the burst and the message that is on its way.
    let slack = RATE / 4 + 2 * BYTES;
    until("both directions", || {
        let shown = status(&edge, "hub");
        let allowed = RATE * u64::try_from(begun.elapsed().as_millis()).unwrap() / 1000 + slack;
        let rules = ["export stream UP", "import stream DOWN"].map(|name| rule(&shown, name).clone());
        for rule in &rules {
            let carried = rule["transferred_bytes"].as_u64().unwrap();
            assert!(carried <= allowed, "{carried} of {allowed}: {rule:#}");
        }
        let is_done = rules.iter().all(|rule| rule["transferred"] == COUNT);
        if is_done { Ok(()) } else { Err(format!("{shown:#}")) }
    });
}
