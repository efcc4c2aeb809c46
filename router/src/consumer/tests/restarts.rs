//! What a restart keeps.

use beamlog_log::Sequence;

use super::scene::{SECOND, Said, Scene, batch, explicit, push_to, sequences};
use crate::api::request::AckKind;
use crate::consumer::{AckPolicy, ConsumerConfig, DeliverPolicy};

#[test]
fn a_confirmed_ack_survives_and_an_unacked_message_comes_again() {
    let mut scene = Scene::with(&["a"; 3], explicit());
    scene.fetch(3);
    scene.say(2, AckKind::Ack, Some("r"));
    scene.restart();
    assert_eq!(scene.figures(), ((3, 3), (0, 0), 2, 0));
    scene.pull("i", batch(9));
    assert_eq!(
        scene.pass(30 * SECOND),
        [Said::Message("i".to_owned(), 1, 2), Said::Message("i".to_owned(), 3, 2)]
    );
}

#[test]
fn what_no_record_told_of_is_delivered_anew() {
    let mut scene = Scene::with(&["a"; 3], explicit());
    scene.fetch(3);
    scene.ack(1);
    scene.restart();
    assert_eq!(scene.figures(), ((0, 0), (0, 0), 0, 3));
    assert_eq!(scene.fetch(3), [1, 2, 3]);
}

#[test]
fn plain_acks_survive_once_they_were_flushed() {
    let mut scene = Scene::with(&["a"; 3], explicit());
    scene.fetch(3);
    scene.ack(1);
    assert!(scene.consumer().has_unlogged());
    scene.flush();
    assert!(!scene.consumer().has_unlogged());
    scene.restart();
    assert_eq!(scene.figures(), ((3, 3), (1, 1), 2, 0));
}

#[test]
fn delivery_counts_and_the_delivery_limit_survive() {
    let mut scene = Scene::with(&["a"], ConsumerConfig { max_deliver: Some(3), ..explicit() });
    for expected in 1..=3 {
        let said = scene.pull("i", batch(1));
        let said = if said.is_empty() { scene.pass(30 * SECOND) } else { said };
        assert_eq!(said, [Said::Message("i".to_owned(), 1, expected)]);
        scene.flush();
        scene.restart();
    }
    scene.pass(31 * SECOND);
    assert_eq!(scene.fetch(1), [], "given up");
    scene.flush();
    scene.restart();
    assert_eq!(scene.fetch(1), [], "for good");
    assert!(scene.consumer().wants(Sequence(1), b"a"));
}

#[test]
fn the_end_of_an_ack_wait_that_passed_while_it_was_down_is_met_at_once() {
    let mut scene = Scene::with(&["a"], explicit());
    scene.fetch(1);
    scene.flush();
    scene.now.0 += 3600 * SECOND;
    scene.restart();
    scene.pull("i", batch(1));
    assert_eq!(sequences(&scene.pass(0)), [1]);
}

#[test]
fn a_delay_that_a_client_asked_for_survives() {
    let mut scene = Scene::with(&["a"], explicit());
    scene.fetch(1);
    scene.say(1, AckKind::Nak { delay_nanos: Some(3600 * SECOND) }, None);
    scene.restart();
    scene.pull("i", batch(1));
    assert_eq!(sequences(&scene.pass(3599 * SECOND)), []);
    assert_eq!(sequences(&scene.pass(SECOND)), [1]);
}

#[test]
fn a_new_segment_carries_the_whole_state() {
    for policy in [AckPolicy::None, AckPolicy::All, AckPolicy::Explicit] {
        let mut scene = Scene::with(&["a"; 50], ConsumerConfig { ack_policy: policy, ..explicit() });
        scene.fetch(20);
        scene.ack(7);
        scene.roll();
        let before = scene.figures();
        scene.restart();
        assert_eq!(scene.figures(), before, "{policy:?}");
        assert_eq!(scene.fetch(1), [21]);
    }
}

#[test]
fn a_state_too_large_for_one_record_is_split_and_put_together() {
    let count = 40_000;
    let config = ConsumerConfig { max_ack_pending: Some(u32::MAX), max_deliver: Some(1), ..explicit() };
    let mut scene = Scene::with(&[], config);
    for _ in 0..count {
        scene.store("a", b"");
    }
    assert_eq!(scene.fetch(count).len(), count as usize);
    for n in (1..=u64::from(count)).step_by(2) {
        scene.say(n, AckKind::Nak { delay_nanos: None }, None);
    }
    scene.roll();
    assert!(scene.records.len() > 1, "{}", scene.records.len());
    let before = scene.figures();
    scene.restart();
    assert_eq!(scene.figures(), before);
    assert_eq!(scene.info().ack_pending, u64::from(count) / 2);
    assert!(scene.consumer().wants(Sequence(39_999), b"a"), "given up, and remembered");
}

#[test]
fn what_was_chosen_at_the_start_stays_chosen() {
    let config = ConsumerConfig {
        deliver_policy: DeliverPolicy::LastPerSubject,
        filter_subjects: vec![">".to_owned()],
        ..explicit()
    };
    let mut scene = Scene::with(&["a", "b", "a", "c", "b", "c"], config);
    assert_eq!(scene.fetch(1), [3]);
    scene.flush();
    scene.store("a", b"");
    scene.restart();
    assert_eq!(scene.info().pending, 3);
    assert_eq!(scene.fetch(9), [5, 6, 7]);
    scene.flush();
    scene.restart();
    assert_eq!(scene.figures().3, 0);
}

#[test]
fn a_changed_configuration_survives() {
    let mut scene = Scene::with(&["a", "b", "a"], explicit());
    let config = scene.consumer().config().clone();
    scene.update(ConsumerConfig {
        filter_subjects: vec!["b".to_owned()],
        ack_wait_nanos: Some(SECOND),
        ..config
    });
    scene.restart();
    assert_eq!(scene.info().pending, 1);
    assert_eq!(scene.fetch(9), [2]);
    assert_eq!(scene.consumer().config().ack_wait_nanos, Some(SECOND));
}

#[test]
fn messages_that_went_away_are_forgotten() {
    let mut scene = Scene::with(&["a"; 5], explicit());
    scene.fetch(3);
    // The removal is in the log before the deliveries are.
    scene.remove(1);
    scene.remove(2);
    scene.flush();
    scene.restart();
    assert_eq!(scene.figures(), ((3, 3), (2, 2), 1, 2));
}

#[test]
fn nobody_is_taken_to_listen_after_a_restart() {
    let config = ConsumerConfig { push: Some(push_to("d")), ..explicit() };
    let mut scene = Scene::with(&["a"; 2], config);
    scene.interest(true);
    scene.flush();
    scene.restart();
    assert!(!scene.info().push_bound);
    assert_eq!(scene.pass(60 * SECOND), []);
    assert_eq!(sequences(&scene.interest(true)), [1, 2]);
}

#[test]
fn records_applied_twice_change_nothing() {
    let mut scene = Scene::with(&["a"; 9], explicit());
    scene.fetch(5);
    scene.ack(2);
    scene.flush();
    scene.fetch(2);
    scene.flush();
    let once = scene.folded();
    let again: Vec<_> = scene.records.iter().chain(&scene.records).cloned().collect();
    scene.records = again;
    let mut twice = scene.folded();
    twice.apply(&scene.records[0].clone());
    // Acks are in the log after the deliveries they are for, so they win in the end.
    for record in &scene.records {
        twice.apply(record);
    }
    assert_eq!(once.snapshot().delivered, twice.snapshot().delivered);
    assert_eq!(once.snapshot().pending, twice.snapshot().pending);
}
