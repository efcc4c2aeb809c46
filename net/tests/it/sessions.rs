//! Connecting, asking, sending, losing each other.

use std::time::Duration;

use beamlog_net::certificates::{CertificateFiles, Certificates};
use beamlog_net::peer::{CallError, Lane, PeerId, PeerTransport, Refusal, Role, SendError};
use beamlog_net::transport::{DialError, Kind, PeerAddress, Transport, TransportOptions};
use bytes::Bytes;

use crate::support::{CALL, Site, TestNode, options, patiently, wait_for};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_that_dial_each_other_have_one_session_and_answer_on_every_lane() {
    let site = Site::new("c1");
    let (one, two) = (site.node("n1", 1), site.node("n2", 2));
    one.transport.set_peers(vec![two.entry()]);
    two.transport.set_peers(vec![one.entry()]);
    one.connected_with(two.id).await;
    two.connected_with(one.id).await;
    for lane in [Lane::Vote, Lane::Append, Lane::Admin, Lane::CatchUp] {
        assert_eq!(one.echo(two.id, lane, b"hello").await, "hello");
        assert_eq!(two.echo(one.id, lane, b"").await, "");
    }
    let peers = one.transport.peers();
    assert_eq!((peers.len(), peers[0].name.as_str(), peers[0].calls), (1, "n2", 4));
    assert!(peers[0].bytes_sent > 0 && peers[0].session.is_some());
    let introduced = two.handler.seen().introductions;
    assert!(
        introduced.iter().all(|peer| peer.name == "n1" && peer.claims == "claims" && peer.cluster == "c1")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_come_back_whole_or_as_what_went_wrong() {
    let site = Site::new("c1");
    let (one, two) = (site.node("n1", 1), site.node("n2", 2));
    one.transport.dial(&two.address()).await.unwrap();
    let call = |lane, request: &'static [u8], within| {
        one.transport.call(two.id, lane, Bytes::from_static(request), within)
    };
    let refused = call(Lane::Admin, b"refuse", CALL).await;
    assert_eq!(refused, Err(CallError::Refused(Refusal { code: 77, reason: "as asked".to_owned() })));
    let largest = call(Lane::Append, b"largest", CALL).await.unwrap();
    assert!(largest.len() == Lane::Append.bytes_max() && largest.iter().all(|byte| *byte == 7));
    assert!(matches!(
        call(Lane::Admin, b"too large", CALL).await,
        Err(CallError::Refused(Refusal { code: 2, .. }))
    ));
    let endless = call(Lane::Vote, b"never", Duration::from_millis(50)).await;
    assert_eq!(endless, Err(CallError::TimedOut));
    assert_eq!(call(Lane::Mesh, b"", CALL).await, Err(CallError::OneWay(Lane::Mesh)));
    let bytes = Lane::Vote.bytes_max() + 1;
    let huge = one.transport.call(two.id, Lane::Vote, Bytes::from(vec![0; bytes]), CALL).await;
    assert_eq!(huge, Err(CallError::TooLarge { bytes }));
    assert_eq!(
        one.transport.call(PeerId(9), Lane::Vote, Bytes::new(), CALL).await,
        Err(CallError::NotConnected(PeerId(9)))
    );
    // None of this ended the session, and whatever was given up left room.
    for _ in 0..20 {
        assert_eq!(call(Lane::Vote, b"never", Duration::from_millis(1)).await, Err(CallError::TimedOut));
    }
    assert_eq!(one.echo(two.id, Lane::Vote, b"still here").await, "still here");
    assert!(two.handler.seen().disconnected.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn votes_are_answered_while_bulk_waits() {
    let site = Site::new("c1");
    let (one, two) = (site.node("n1", 1), site.node("n2", 2));
    one.transport.dial(&two.address()).await.unwrap();
    // All calls of the bulk lanes hang, and more wait behind them.
    let hanging: Vec<_> = [Lane::Append, Lane::CatchUp, Lane::Admin]
        .into_iter()
        .flat_map(|lane| std::iter::repeat_n(lane, 10))
        .map(|lane| tokio::spawn(one.transport.call(two.id, lane, Bytes::from_static(b"never"), CALL)))
        .collect();
    for _ in 0..100 {
        one.echo(two.id, Lane::Vote, b"vote").await;
    }
    for each in hanging {
        each.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_arrive_in_order_and_only_within_their_session() {
    let site = Site::new("c1");
    let (one, two) = (site.node("n1", 1), site.node("n2", 2));
    let session = one.transport.dial(&two.address()).await.unwrap();
    let frame = |n: u32| {
        // Small ones are written together, large ones by themselves.
        let mut frame = n.to_le_bytes().to_vec();
        frame.resize(if n.is_multiple_of(7) { 9000 } else { 4 + n as usize % 50 }, 1);
        Bytes::from(frame)
    };
    for n in 0..2000 {
        one.transport.send(session, Lane::Mesh, frame(n)).unwrap();
    }
    let frames = two.handler.until(|seen| (seen.frames.len() == 2000).then(|| seen.frames.clone())).await;
    for (n, (_, got)) in (0..).zip(frames) {
        assert_eq!(got, frame(n));
    }
    assert_eq!(one.transport.send(session, Lane::Vote, Bytes::new()), Err(SendError::NotOneWay(Lane::Vote)));
    let bytes = Lane::Mesh.bytes_max() + 1;
    let huge = one.transport.send(session, Lane::Mesh, Bytes::from(vec![0; bytes]));
    assert_eq!(huge, Err(SendError::TooLarge { bytes }));

    one.transport.reset(session, "to see");
    two.handler.until(|seen| (seen.disconnected.len() == 1).then_some(())).await;
    one.handler.until(|seen| seen.ended(&session).then_some(())).await;
    assert_eq!(one.transport.send(session, Lane::Mesh, Bytes::new()), Err(SendError::Ended));
    let again = one.transport.dial(&two.address()).await.unwrap();
    assert!(again.number > session.number);
    assert_eq!(one.transport.send(session, Lane::Mesh, Bytes::new()), Err(SendError::Ended));
    one.transport.send(again, Lane::Mesh, Bytes::from_static(b"new")).unwrap();
    two.handler.until(|seen| (seen.frames.last()?.1 == "new").then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_gives_frames_back_and_loses_none_that_it_took() {
    let site = Site::new("c1");
    let (one, two) = (site.node("n1", 1), site.node("n2", 2));
    let session = one.transport.dial(&two.address()).await.unwrap();
    let large = Bytes::from(vec![1; 1 << 20]);
    let mut taken = 0;
    // One thread only fills: the queue is faster than any network.
    let full = loop {
        match one.transport.send(session, Lane::Mesh, large.clone()) {
            Ok(()) => taken += 1,
            Err(refused) => break refused,
        }
        assert!(taken < 10_000, "the queue has no end");
    };
    assert_eq!(full, SendError::Full(large));
    two.handler.until(|seen| (seen.frames.len() == taken).then_some(())).await;
    assert_eq!(one.transport.peers()[0].frames_refused, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_comes_back_is_connected_again_by_who_stayed() {
    let site = Site::new("c1");
    let one = site.node("n1", 1);
    let certificates = site.certificates("n2", Role::Node);
    let two = TestNode::start(options(2), certificates.clone());
    let address = two.transport.local_address();
    one.transport.set_peers(vec![two.entry()]);
    let first = one.connected_with(two.id).await;
    // It leaves properly: the other side knows at once.
    two.transport.close().await;
    one.handler.until(|seen| seen.ended(&first).then_some(())).await;
    let two_id = two.id;
    drop(two);
    let at_the_same = || TransportOptions { listen: address, ..options(2) };
    let two = patiently("the port", async {
        loop {
            match Transport::bind(at_the_same(), certificates.clone()) {
                Ok(transport) => return TestNode::of(transport, two_id),
                Err(_) => tokio::task::yield_now().await,
            }
        }
    })
    .await;
    let second = one.connected_with(two.id).await;
    assert!(second.number > first.number);
    assert_eq!(one.echo(two.id, Lane::Vote, b"again").await, "again");
    assert_eq!(one.transport.peers()[0].sessions, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_does_not_take_the_place_of_one_that_answers() {
    let site = Site::new("c1");
    let one = site.node("n1", 1);
    let certificates = site.certificates("n2", Role::Node);
    let two = TestNode::start(options(2), certificates.clone());
    one.transport.dial(&two.address()).await.unwrap();
    // A copy of it, somewhere else, with the same certificate and store.
    let copy = TestNode::start(options(2), certificates.clone());
    let refused = copy.transport.dial(&one.address()).await.unwrap_err();
    assert!(
        matches!(&refused, DialError::RefusedByPeer { reason: beamlog_net::handshake::Reason::IdTaken, .. }),
        "{refused}"
    );
    one.refused(beamlog_net::handshake::Reason::IdTaken).await;
    assert_eq!(one.echo(two.id, Lane::Vote, b"the first").await, "the first");
    // Once the first is gone, the name and id are free for whoever has both.
    two.transport.close().await;
    one.handler.until(|seen| (seen.disconnected.len() == 1).then_some(())).await;
    copy.transport.dial(&one.address()).await.unwrap();
    one.handler.until(|seen| (seen.connected.len() == 2).then_some(())).await;
    assert_eq!(one.echo(copy.id, Lane::Vote, b"the copy").await, "the copy");
}

#[test]
fn a_process_that_dies_without_a_word_is_succeeded_by_the_next() {
    let site = Site::new("c1");
    let here = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let there = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let certificates = site.certificates("n2", Role::Node);
    let one = {
        let _in = here.enter();
        site.node("n1", 1)
    };
    let first = {
        let _in = there.enter();
        TestNode::start(options(2), certificates.clone())
    };
    here.block_on(async { one.transport.dial(&first.address()).await.unwrap() });
    // No task of it runs again, so that no last packet leaves.
    there.shutdown_background();
    here.block_on(async {
        let next = TestNode::start(options(2), certificates);
        patiently("the successor", async {
            next.transport.set_peers(vec![one.entry()]);
            next.connected_with(one.id).await;
        })
        .await;
        one.handler.until(|seen| (seen.connected.len() == 2).then_some(())).await;
        assert_eq!(one.echo(next.id, Lane::Vote, b"next").await, "next");
        assert_eq!(one.handler.seen().disconnected.len(), 1);
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_fails_costs_its_session_and_nothing_else() {
    let site = Site::new("c1");
    let (one, two) = (site.node("n1", 1), site.node("n2", 2));
    one.transport.set_peers(vec![two.entry()]);
    one.connected_with(two.id).await;
    let failed = one.transport.call(two.id, Lane::Admin, Bytes::from_static(b"panic"), CALL).await;
    assert_eq!(failed, Err(CallError::Lost(two.id)));
    one.handler.until(|seen| (seen.connected.len() == 2).then_some(())).await;
    wait_for("an answer", || one.transport.session(two.id).is_some()).await;
    two.connected_with(one.id).await;
    assert_eq!(one.echo(two.id, Lane::Admin, b"fine").await, "fine");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_change_while_it_runs_and_our_own_among_them_does_no_harm() {
    let site = Site::new("c1");
    let (one, two, three) = (site.node("n1", 1), site.node("n2", 2), site.node("n3", 3));
    // As a list that all nodes share before they know each other.
    let port = three.transport.local_address().port();
    let all = [one.address(), two.address(), format!("localhost:{port}")];
    let entry = |address: &String| PeerAddress { id: None, addresses: vec![address.clone()] };
    one.transport.set_peers(all.iter().map(entry).collect());
    one.connected_with(two.id).await;
    one.connected_with(three.id).await;
    one.refused(beamlog_net::handshake::Reason::Itself).await;
    // Somebody moves, and is found at the second of its addresses.
    let moved = PeerAddress { id: Some(three.id), addresses: vec![one.address(), three.address()] };
    two.transport.set_peers(vec![moved]);
    two.connected_with(three.id).await;
    assert_eq!(two.echo(three.id, Lane::Admin, b"x").await, "x");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_keeps_its_session_when_its_address_changes() {
    let site = Site::new("c1");
    let hub_options = TransportOptions { kind: Kind::Hub, ..options(1) };
    let hub = TestNode::start(hub_options, site.certificates("hub", Role::Node));
    let edge_options = TransportOptions { kind: Kind::Edge, ..options(2) };
    let edge = TestNode::start(edge_options, site.certificates("van-7", Role::Edge));
    let session = edge.transport.dial(&hub.address()).await.unwrap();
    assert_eq!(edge.echo(hub.id, Lane::Append, b"before").await, "before");
    let before = hub.transport.peers()[0].session.as_ref().unwrap().address;
    edge.transport.rebind("127.0.0.1:0".parse().unwrap()).unwrap();
    assert_eq!(edge.echo(hub.id, Lane::Append, b"after").await, "after");
    let after = hub.transport.peers()[0].session.as_ref().unwrap().address;
    assert_ne!(before, after);
    assert_eq!(edge.transport.session(hub.id), Some(session));
    assert_eq!(hub.echo(edge.id, Lane::Admin, b"and back").await, "and back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_wrong_certificate_for_an_endpoint_is_told_at_the_start() {
    let site = Site::new("c1");
    let edge = site.certificates("van-7", Role::Edge);
    assert!(Transport::bind(options(1), edge).is_err());
    let missing = CertificateFiles::in_directory(&site.path("nowhere"));
    assert!(Certificates::load(missing).is_err());
}
