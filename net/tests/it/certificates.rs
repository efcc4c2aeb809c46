//! Certificates that change while nodes talk.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use beamlog_net::certificates::{
    Authority, CertificateStatus, REVOKED_FILE, ROOTS_FILE, Revocations, write_atomically,
};
use beamlog_net::handshake::Reason;
use beamlog_net::peer::{Lane, PeerTransport, Role};
use bytes::Bytes;

use crate::support::{CALL, DAY, Site, TestNode, public_part, wait_for};

/// Calls that go on until they are told to stop, and how many failed.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<u64>,
}

impl Load {
    fn begin(from: &TestNode, to: &TestNode) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopping, counting) = (Arc::clone(&stop), Arc::clone(&done));
        let (transport, peer) = (from.transport.clone(), to.id);
        let task = tokio::spawn(async move {
            let mut failed = 0;
            while !stopping.load(Ordering::Acquire) {
                let answer = transport.call(peer, Lane::Append, Bytes::from_static(b"x"), CALL).await;
                failed += u64::from(answer.is_err());
                counting.fetch_add(1, Ordering::AcqRel);
            }
            failed
        });
        Self { stop, done, task }
    }

    /// Some more calls were made.
    async fn goes_on(&self) {
        let before = self.done.load(Ordering::Acquire);
        wait_for("calls to go on", || self.done.load(Ordering::Acquire) > before + 20).await;
    }

    async fn failed(self) -> u64 {
        self.stop.store(true, Ordering::Release);
        self.task.await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_exchanged_many_times_under_load_and_no_call_fails() {
    let site = Site::new("c1");
    let (one, two) = (site.node("n1", 1), site.node("n2", 2));
    one.transport.dial(&two.address()).await.unwrap();
    let load = Load::begin(&one, &two);
    for round in 0..10 {
        for (name, node) in [("n1", &one), ("n2", &two)] {
            let before = node.transport.certificates().status();
            site.write(&site.path(name), name, Role::Node, 30 * DAY);
            // Not the generation: the files of the round before may be read once more.
            wait_for("the new certificate", || {
                serial(&node.transport.certificates().status()) != serial(&before)
            })
            .await;
        }
        // Whoever comes now meets the new certificates.
        let visitor = site.node(&format!("v{round}"), 100 + round);
        visitor.transport.dial(&one.address()).await.unwrap();
        visitor.transport.close().await;
        load.goes_on().await;
    }
    assert_eq!(load.failed().await, 0);
    assert!(one.handler.seen().disconnected.iter().all(|session| session.peer != two.id));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_authority_is_exchanged_under_load_and_no_call_fails() {
    let mut site = Site::new("c1");
    let (one, two) = (site.node("n1", 1), site.node("n2", 2));
    one.transport.dial(&two.address()).await.unwrap();
    let load = Load::begin(&one, &two);
    let issued = Authority::create("c1", SystemTime::now(), 365 * DAY).unwrap();
    let (old_roots, new_root) = (site.roots.clone(), public_part(&issued.pem));
    // First everybody believes both, then everybody gets a certificate of the new one, then the old one goes.
    let both = format!("{new_root}{old_roots}");
    let loaded = async |roots: usize, generation: u64| {
        for node in [&one, &two] {
            wait_for("the new files", || {
                let status = node.transport.certificates().status();
                status.roots.len() == roots
                    && status.generation >= generation
                    && status.reload_error.is_none()
            })
            .await;
        }
    };
    for name in ["n1", "n2"] {
        write_atomically(&site.path(name).join(ROOTS_FILE), both.as_bytes()).unwrap();
    }
    loaded(2, 2).await;
    load.goes_on().await;
    site.authority = Authority::from_pem(issued.pem.as_bytes()).unwrap();
    site.roots = both;
    // In between, one of each: both directions.
    site.write(&site.path("n1"), "n1", Role::Node, 30 * DAY);
    wait_for("the first", || one.transport.certificates().status().generation >= 3).await;
    let third = site.node("n3", 3);
    third.transport.dial(&two.address()).await.unwrap();
    two.transport.dial(&third.address()).await.unwrap_or_else(|error| {
        // The one that is there already stays.
        assert!(error.to_string().contains("session"), "{error}");
        two.transport.session(third.id).unwrap()
    });
    site.write(&site.path("n2"), "n2", Role::Node, 30 * DAY);
    wait_for("the second", || two.transport.certificates().status().generation >= 3).await;
    for name in ["n1", "n2"] {
        write_atomically(&site.path(name).join(ROOTS_FILE), new_root.as_bytes()).unwrap();
    }
    loaded(1, 4).await;
    load.goes_on().await;
    site.roots = new_root;
    let fourth = site.node("n4", 4);
    fourth.transport.dial(&one.address()).await.unwrap();
    one.transport.dial(&fourth.address()).await.ok();
    assert_eq!(load.failed().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_peer_is_out_within_seconds_and_stays_out() {
    let site = Site::new("c1");
    let (one, two, three) = (site.node("n1", 1), site.node("n2", 2), site.node("n3", 3));
    two.transport.set_peers(vec![one.entry()]);
    three.transport.set_peers(vec![one.entry()]);
    let session = one.connected_with(two.id).await;
    let other = one.connected_with(three.id).await;
    let begun = std::time::Instant::now();
    write_atomically(&site.path("n1").join(REVOKED_FILE), b"name n2\n").unwrap();
    one.handler.until(|seen| seen.ended(&session).then_some(())).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    one.refused(Reason::Revoked).await;
    // It tries again, and is refused by TLS.
    one.refused(Reason::Tls).await;
    assert!(one.transport.session(two.id).is_none());
    assert_eq!(one.transport.session(three.id), Some(other));
    // The cluster's own list does the same.
    one.transport.certificates().set_revoked_by_cluster(Revocations::parse(b"name n3").unwrap()).unwrap();
    one.handler.until(|seen| seen.ended(&other).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_ends_with_the_certificate_of_its_peer() {
    let site = Site::new("c1");
    let one = site.node("n1", 1);
    site.write(&site.path("n2"), "n2", Role::Node, Duration::from_secs(3));
    let files = beamlog_net::certificates::CertificateFiles::in_directory(&site.path("n2"));
    let certificates = beamlog_net::certificates::Certificates::load(files).unwrap();
    let two = TestNode::start(crate::support::options(2), certificates);
    two.transport.dial(&one.address()).await.unwrap();
    let session = one.connected_with(two.id).await;
    one.handler.until(|seen| seen.ended(&session).then_some(())).await;
    one.refused(Reason::Revoked).await;
    assert_eq!(
        two.transport.certificates().status().severity(SystemTime::now()),
        beamlog_net::certificates::Severity::Expired
    );
}

fn serial(status: &CertificateStatus) -> String {
    status.own.as_ref().unwrap().serial.clone()
}
