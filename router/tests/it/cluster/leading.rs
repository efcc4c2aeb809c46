//! Who leads, who follows, and what clients hear of a change.

use std::time::Duration;

use beamlog_log::Sequence;
use beamlog_router::api::error::{ApiError, PublishRefusal};
use beamlog_router::api::request::{
    AckKind, AckTarget, ConsumerAction, MessageSelector, Published, PullRequest, Request, Response,
};
use beamlog_router::consumer::{AckPolicy, ConsumerConfig};
use beamlog_router::embed::EmbeddedSubscription;
use beamlog_router::replica::Role;

use super::Cluster;
use crate::world::s;

const SOON: Duration = Duration::ZERO;

pub(super) fn with_stream(count: usize) -> Cluster {
    let mut cluster = Cluster::led(count);
    cluster.request(Request::CreateStream(Box::new(s()))).unwrap();
    cluster
}

pub(super) fn get(cluster: &mut Cluster, sequence: u64) -> Result<String, ApiError> {
    let selector = MessageSelector::At(Sequence(sequence));
    match cluster.request(Request::GetMessage { stream: "S".into(), selector })? {
        Response::Message(message) => Ok(String::from_utf8(message.payload.to_vec()).unwrap()),
        other => panic!("{other:?}"),
    }
}

fn stored(sequence: u64) -> Result<Published, PublishRefusal> {
    Ok(Published::Stored(Sequence(sequence)))
}

fn consumer(cluster: &mut Cluster) {
    let config = ConsumerConfig {
        name: "C".into(),
        durable: true,
        ack_policy: AckPolicy::Explicit,
        ..ConsumerConfig::default()
    };
    let action = ConsumerAction::CreateOrUpdate;
    let config = Box::new(config);
    cluster.request(Request::CreateConsumer { stream: "S".into(), config, action }).unwrap();
}

fn pull(cluster: &mut Cluster, batch: u32, reply: &'static str) -> EmbeddedSubscription {
    let router = cluster.router(cluster.leader()).clone();
    let inbox = router.subscribe(reply, 100).unwrap();
    let request = PullRequest { batch, expires_nanos: Some(60_000_000_000), ..PullRequest::default() };
    router.pull("S".into(), "C".into(), request, reply.into()).unwrap();
    cluster.settle();
    inbox
}

fn payloads(inbox: &EmbeddedSubscription) -> Vec<String> {
    std::iter::from_fn(|| inbox.next(SOON))
        .map(|received| String::from_utf8([&received.headers[..], &received.payload[..]].concat()).unwrap())
        .collect()
}

#[test]
fn an_ack_waits_for_a_quorum() {
    let mut cluster = with_stream(3);
    cluster.hears(1, false);
    cluster.hears(2, false);
    let mut ticket = cluster.begin("s.a", None, "1");
    cluster.settle();
    assert!(ticket.is_waiting(), "one copy is no quorum");
    cluster.hears(2, true);
    cluster.settle();
    assert_eq!(ticket.take().unwrap().result, stored(1));
    assert_eq!(get(&mut cluster, 1).unwrap(), "1");
}

#[test]
fn what_comes_during_a_commit_shares_the_next_frame() {
    let mut cluster = with_stream(3);
    let before = cluster.state(0).last.index.0;
    let mut tickets: Vec<_> = (0..50).map(|n| cluster.begin("s.a", None, &n.to_string())).collect();
    // The first frame is under way now; the rest waits.
    cluster.step(0);
    tickets.extend((50..60).map(|n| cluster.begin("s.a", None, &n.to_string())));
    cluster.settle();
    for (ticket, at) in tickets.iter_mut().zip(1..) {
        assert_eq!(ticket.take().unwrap().result, stored(at));
    }
    let entries = cluster.state(0).last.index.0 - before;
    assert_eq!(entries, 2);
}

#[test]
fn a_follower_serves_nobody_and_says_so() {
    let mut cluster = with_stream(3);
    let mut info = cluster.ask(1, Request::AccountInfo);
    let router = cluster.router(1).clone();
    assert!(router.publish("s.a", "", "1").is_err(), "a follower captures nothing");
    let inbox = router.subscribe("inbox", 10).unwrap();
    router
        .pull("S".into(), "C".into(), PullRequest { batch: 1, ..PullRequest::default() }, "inbox".into())
        .unwrap();
    let target = AckTarget {
        stream: "S".into(),
        consumer: "C".into(),
        delivery_count: 1,
        stream_sequence: Sequence(1),
        consumer_sequence: 1,
    };
    router.ack(target, AckKind::Ack, Some("inbox".into())).unwrap();
    cluster.settle();
    assert_eq!(info.take(), Some(Err(ApiError::NotLeader)));
    assert_eq!(payloads(&inbox), ["LeadershipChange", "NobodyToAck"]);
    assert_eq!(router.stats().role, Role::Follower);
}

#[test]
fn a_new_leader_has_everything_that_was_acked() {
    let mut cluster = with_stream(3);
    for n in 1..=20 {
        assert_eq!(cluster.publish("s.a", &n.to_string()).result, stored(n));
    }
    cluster.elect(2);
    cluster.settle();
    assert_eq!(
        cluster.roles(2),
        [Role::Elected { term: beamlog_log::Term(2) }, Role::Leader { term: beamlog_log::Term(2) }]
    );
    assert_eq!(cluster.roles(0).last(), Some(&Role::Follower));
    assert_eq!(get(&mut cluster, 20).unwrap(), "20");
    assert_eq!(cluster.publish("s.a", "21").result, stored(21));
    cluster.elect(1);
    cluster.settle();
    assert_eq!(get(&mut cluster, 21).unwrap(), "21");
}

#[test]
fn a_deposed_leader_refuses_what_it_held_and_forgets_what_it_decided() {
    let mut cluster = with_stream(3);
    cluster.publish("s.a", "1");
    cluster.hears(0, false);
    let mut lost = cluster.begin("s.a", Some("id"), "lost");
    let mut other = s();
    (other.name, other.subjects) = ("T".into(), vec!["t".into()]);
    let mut create = cluster.ask(0, Request::CreateStream(Box::new(other)));
    // In the old leader's log, and nowhere else.
    cluster.settle();
    assert!(lost.is_waiting() && create.is_waiting());
    assert_eq!(cluster.state(0).last.index, beamlog_log::Index(4));
    let mut waits = cluster.begin("s.a", None, "waits in the queue");
    cluster.elect(1);
    cluster.settle();
    assert_eq!(cluster.publish("s.a", "2").result, stored(2));
    assert!(lost.is_waiting(), "it has not heard of it");
    cluster.hears(0, true);
    cluster.settle();
    assert_eq!(lost.take().unwrap().result, Err(PublishRefusal::NotLeader));
    assert_eq!(create.take(), Some(Err(ApiError::NotLeader)));
    assert_eq!(waits.take().unwrap().result, Err(PublishRefusal::NotLeader));
    assert!(cluster.router(0).publish("s.a", "", "x").is_err(), "captures are released");
    // As if it had never been: neither its sequence, nor its id, nor its stream.
    cluster.elect(0);
    cluster.settle();
    let mut again = cluster.begin("s.a", Some("id"), "again");
    cluster.settle();
    assert_eq!(again.take().unwrap().result, stored(3));
    assert!(cluster.router(0).publish("t", "", "x").is_err());
    assert_eq!(get(&mut cluster, 2).unwrap(), "2");
}

#[test]
fn what_a_deposed_leader_wrote_and_its_successor_had_is_committed_after_all() {
    let mut cluster = with_stream(3);
    let mut ticket = cluster.begin("s.a", Some("id"), "1");
    // It reaches one follower, and nobody hears of it.
    cluster.step(0);
    cluster.hear();
    cluster.step(0);
    cluster.hear();
    assert!(cluster.replicate(1));
    cluster.step(1);
    cluster.hear();
    cluster.elect(1);
    cluster.settle();
    assert_eq!(ticket.take().unwrap().result, Err(PublishRefusal::NotLeader), "it could not know");
    assert_eq!(get(&mut cluster, 1).unwrap(), "1");
    // The client asks again and is told what became of it.
    let mut again = cluster.begin("s.a", Some("id"), "1");
    cluster.settle();
    assert_eq!(again.take().unwrap().result, Ok(Published::Duplicate(Sequence(1))));
}

#[test]
fn a_message_id_is_known_to_every_later_leader() {
    let mut cluster = with_stream(3);
    let mut first = cluster.begin("s.a", Some("id"), "1");
    cluster.settle();
    assert_eq!(first.take().unwrap().result, stored(1));
    for leader in [1, 2, 0] {
        cluster.elect(leader);
        cluster.settle();
        let mut again = cluster.begin("s.a", Some("id"), "1");
        let mut other = cluster.begin("s.a", Some("id"), "with other bytes");
        cluster.settle();
        assert_eq!(again.take().unwrap().result, Ok(Published::Duplicate(Sequence(1))));
        let reused = PublishRefusal::MessageIdReused { stored: Sequence(1) };
        assert_eq!(other.take().unwrap().result, Err(reused));
    }
    // Until its window ends, whoever leads then.
    cluster.pass(Duration::from_secs(121));
    cluster.elect(1);
    cluster.settle();
    let mut after = cluster.begin("s.a", Some("id"), "1");
    cluster.settle();
    assert_eq!(after.take().unwrap().result, stored(2));
}

#[test]
fn a_read_waits_until_it_is_sure_who_leads() {
    let mut cluster = with_stream(3);
    cluster.publish("s.a", "1");
    cluster.hears(0, false);
    let selector = MessageSelector::LastOn("s.a".into());
    let last = Request::GetMessage { stream: "S".into(), selector };
    let mut stale = cluster.ask(0, last.clone());
    let mut refused =
        Request::GetMessage { stream: "none".into(), selector: MessageSelector::At(Sequence(1)) };
    let mut stale_refusal = cluster.ask(0, refused.clone());
    cluster.settle();
    cluster.elect(1);
    cluster.settle();
    cluster.publish("s.a", "2");
    let mut fresh = cluster.ask(1, last);
    cluster.settle();
    match fresh.take().unwrap().unwrap() {
        Response::Message(message) => assert_eq!(&message.payload[..], b"2"),
        other => panic!("{other:?}"),
    }
    assert!(stale.is_waiting(), "the one that was cut off must not answer with what was");
    cluster.hears(0, true);
    cluster.settle();
    assert_eq!(stale.take(), Some(Err(ApiError::NotLeader)));
    assert_eq!(stale_refusal.take(), Some(Err(ApiError::NotLeader)));
    refused = Request::AccountInfo;
    cluster.request(refused).unwrap();
}

#[test]
fn deliveries_are_made_again_by_the_next_leader_and_acks_stay() {
    let mut cluster = with_stream(3);
    consumer(&mut cluster);
    for payload in ["1", "2", "3"] {
        cluster.publish("s.a", payload);
    }
    let router = cluster.router(0).clone();
    let inbox = pull(&mut cluster, 2, "inbox.0");
    let received: Vec<_> = std::iter::from_fn(|| inbox.next(SOON)).collect();
    assert_eq!(received.len(), 2);
    let target = AckTarget {
        stream: "S".into(),
        consumer: "C".into(),
        delivery_count: 1,
        stream_sequence: Sequence(1),
        consumer_sequence: 1,
    };
    let confirmed = router.subscribe("acked", 1).unwrap();
    router.ack(target, AckKind::Ack, Some("acked".into())).unwrap();
    cluster.settle();
    assert!(confirmed.next(SOON).is_some());
    // Somebody waits for more when the leader changes.
    let waits = pull(&mut cluster, 10, "inbox.1");
    assert_eq!(payloads(&waits), ["3"]);
    cluster.elect(1);
    cluster.settle();
    assert_eq!(payloads(&waits), ["LeadershipChange"]);
    cluster.pass(Duration::from_secs(31));
    let inbox = pull(&mut cluster, 10, "inbox.2");
    let mut again = payloads(&inbox);
    again.sort_unstable();
    assert_eq!(again, ["2", "3"]);
}

#[test]
fn a_leader_does_not_go_on_before_its_own_term_is_committed() {
    let mut cluster = with_stream(3);
    cluster.hears(1, false);
    cluster.hears(0, false);
    // Node 2 was elected by votes that went out before: here nobody hears it.
    cluster.hears(1, true);
    cluster.elect(2);
    cluster.hears(1, false);
    cluster.settle();
    assert_eq!(cluster.router(2).stats().role, Role::Elected { term: beamlog_log::Term(2) });
    let mut asked = cluster.ask(2, Request::AccountInfo);
    cluster.settle();
    assert_eq!(asked.take(), Some(Err(ApiError::NotLeader)));
    cluster.hears(1, true);
    cluster.settle();
    let role = cluster.state(2).role;
    assert_eq!(role, Role::Leader { term: beamlog_log::Term(2) });
}

#[test]
fn replications_own_entries_pass_while_a_frame_is_under_way() {
    let mut cluster = with_stream(3);
    let mut ticket = cluster.begin("s.a", None, "1");
    // Proposed, and before it becomes an entry the membership changes.
    cluster.step(0);
    cluster.change_membership(b"three");
    cluster.settle();
    assert_eq!(ticket.take().unwrap().result, stored(1));
    for at in 0..3 {
        let (id, bytes) = cluster.state(at).replication.unwrap();
        assert_eq!((id.index, &bytes[..]), (beamlog_log::Index(3), &b"three"[..]));
    }
    assert_eq!(get(&mut cluster, 1).unwrap(), "1");
}

#[test]
fn a_router_that_closes_refuses_what_was_not_decided() {
    let mut cluster = with_stream(3);
    cluster.hears(0, false);
    let mut ticket = cluster.begin("s.a", None, "1");
    cluster.settle();
    let mut queued = cluster.begin("s.a", None, "2");
    cluster.close(0);
    assert_eq!(ticket.take().unwrap().result, Err(PublishRefusal::NotLeader));
    assert_eq!(queued.take().unwrap().result, Err(PublishRefusal::NotLeader));
    cluster.elect(1);
    cluster.settle();
    cluster.start(0);
    cluster.settle();
    assert_eq!(cluster.publish("s.a", "3").result, stored(1));
}
