//! Push consumers: who listens, heartbeats, flow control.

use beamlog_log::Sequence;

use super::scene::{SECOND, Said, Scene, explicit, push_to, sequences};
use crate::consumer::{AckPolicy, ConsumerConfig, PushConfig};
use crate::wire::DeliveryStatus;

fn pushing(push: PushConfig) -> ConsumerConfig {
    ConsumerConfig { push: Some(push), ..explicit() }
}

fn beat(last_consumer: u64, last_stream: u64) -> Said {
    let last_stream = Sequence(last_stream);
    Said::Status("d".to_owned(), DeliveryStatus::IdleHeartbeat { last_consumer, last_stream, stalled: None })
}

#[test]
fn messages_wait_until_somebody_listens() {
    let mut scene = Scene::with(&["a"; 3], pushing(push_to("d")));
    assert_eq!(scene.deliver(), []);
    assert!(!scene.info().push_bound);
    assert_eq!(sequences(&scene.interest(true)), [1, 2, 3]);
    assert!(scene.info().push_bound);
    scene.interest(false);
    scene.store("a", b"");
    assert_eq!(scene.deliver(), []);
    assert_eq!(sequences(&scene.interest(true)), [4]);
}

#[test]
fn what_found_nobody_is_pushed_again_to_whoever_comes() {
    let mut scene = Scene::with(&["a"; 2], pushing(push_to("d")));
    scene.interest(true);
    scene.undeliverable("d", 2);
    scene.undeliverable("d", 1);
    assert!(!scene.info().push_bound);
    assert_eq!(sequences(&scene.interest(true)), [2, 1]);
}

#[test]
fn heartbeats_fill_the_silence_and_only_that() {
    let push = PushConfig { idle_heartbeat_nanos: Some(SECOND), ..push_to("d") };
    let mut scene = Scene::with(&[], pushing(push));
    assert_eq!(scene.pass(5 * SECOND), [], "nobody listens");
    scene.interest(true);
    assert_eq!(scene.pass(2 * SECOND), [beat(0, 0), beat(0, 0)]);
    scene.pass(SECOND / 2);
    scene.store("a", b"");
    assert_eq!(sequences(&scene.deliver()), [1]);
    assert_eq!(scene.pass(SECOND - 1), []);
    assert_eq!(scene.pass(1), [beat(1, 1)]);
}

#[test]
fn a_client_that_does_not_answer_flow_control_is_left_alone() {
    let push = PushConfig { idle_heartbeat_nanos: Some(SECOND), flow_control: true, ..push_to("d") };
    let config = ConsumerConfig { ack_policy: AckPolicy::None, ..pushing(push) };
    let mut scene = Scene::with(&[], config);
    for _ in 0..100 {
        scene.store("a", &[b'x'; 1 << 16]);
    }
    scene.consumer().interest_changed(beamlog_log::Timestamp(0), true, &mut Vec::new());
    let (sent, token) = scene.deliver_for_token();
    assert_eq!(sent.len(), 32, "the first window is 2 MiB");
    assert_eq!(scene.deliver_for_token(), (vec![], None));
    scene.flow_control(token.unwrap() + 1);
    assert_eq!(scene.deliver_for_token(), (vec![], None), "not the answer to that question");
    scene.flow_control(token.unwrap());
    let (more, next) = scene.deliver_for_token();
    assert!(more.len() > 32, "and then it doubles: {}", more.len());
    assert_ne!(next, token);
}

#[test]
fn unacked_messages_up_to_the_limit_hold_back_the_next() {
    let config = ConsumerConfig { max_ack_pending: Some(2), ..pushing(push_to("d")) };
    let mut scene = Scene::with(&["a"; 4], config);
    assert_eq!(sequences(&scene.interest(true)), [1, 2]);
    assert_eq!(sequences(&scene.ack(2)), [3]);
}

#[test]
fn an_unacked_message_is_pushed_again() {
    let mut scene = Scene::with(&["a"], pushing(push_to("d")));
    scene.interest(true);
    assert_eq!(scene.pass(30 * SECOND), [Said::Message("d".to_owned(), 1, 2)]);
}

#[test]
fn another_deliver_subject_gets_what_the_old_one_did_not_ack() {
    let mut scene = Scene::with(&["a"; 2], pushing(push_to("d")));
    scene.interest(true);
    scene.ack(1);
    let moved = ConsumerConfig { push: Some(push_to("e")), ..scene.consumer().config().clone() };
    assert_eq!(scene.update(moved), [], "it is not known who listens there");
    assert_eq!(scene.interest(true), [Said::Message("e".to_owned(), 2, 2)]);
}

#[test]
fn without_acks_each_message_is_done_when_it_is_sent() {
    let config = ConsumerConfig { ack_policy: AckPolicy::None, ..pushing(push_to("d")) };
    let mut scene = Scene::with(&["a"], config);
    assert_eq!(scene.interest(true), [Said::Message("d".to_owned(), 1, 1), Said::Acked(1)]);
}
