//! What clients say of deliveries, and what follows.

use std::collections::BTreeSet;

use beamlog_log::{Sequence, Timestamp};

use super::scene::{SECOND, Said, Scene, batch, explicit, no_wait, sequences};
use crate::api::request::AckKind;
use crate::consumer::{AckPolicy, ConsumerConfig, ConsumerRecord, SequenceRun};
use crate::wire::{Advisory, DeliveryStatus};

fn nak(delay_nanos: Option<u64>) -> AckKind {
    AckKind::Nak { delay_nanos }
}

#[test]
fn a_message_is_delivered_again_when_its_ack_wait_ends() {
    let mut scene = Scene::with(&["a"; 3], explicit());
    scene.fetch(3);
    scene.ack(2);
    assert_eq!(scene.pass(30 * SECOND - 1), []);
    scene.pass(1);
    assert_eq!(
        scene.pull("i", batch(9)),
        [Said::Message("i".to_owned(), 1, 2), Said::Message("i".to_owned(), 3, 2)]
    );
    assert_eq!(scene.info().redelivered, 2);
    assert_eq!(scene.figures(), ((5, 3), (0, 0), 2, 0), "redeliveries count as deliveries");
}

#[test]
fn what_is_delivered_again_goes_before_what_is_new() {
    let mut scene = Scene::with(&["a"; 4], explicit());
    scene.fetch(2);
    scene.say(2, nak(None), None);
    scene.say(1, nak(None), None);
    assert_eq!(scene.fetch(4), [2, 1, 3, 4], "in the order in which it was asked for");
}

#[test]
fn a_nak_with_a_delay_waits_so_long_and_not_longer() {
    let mut scene = Scene::with(&["a"; 2], explicit());
    scene.fetch(2);
    scene.say(1, nak(Some(5 * SECOND)), None);
    scene.pull("i", batch(1));
    assert_eq!(sequences(&scene.pass(5 * SECOND - 1)), []);
    assert_eq!(sequences(&scene.pass(1)), [1]);
}

#[test]
fn a_nak_with_a_long_delay_outlasts_the_ack_wait() {
    let mut scene = Scene::with(&["a"], explicit());
    scene.fetch(1);
    scene.say(1, nak(Some(60 * SECOND)), None);
    scene.pull("i", batch(1));
    assert_eq!(sequences(&scene.pass(59 * SECOND)), []);
    assert_eq!(sequences(&scene.pass(SECOND)), [1]);
}

#[test]
fn work_in_progress_begins_the_ack_wait_anew() {
    let mut scene = Scene::with(&["a"], explicit());
    scene.fetch(1);
    scene.pass(20 * SECOND);
    scene.say(1, AckKind::InProgress, None);
    scene.pull("i", batch(1));
    assert_eq!(sequences(&scene.pass(29 * SECOND)), []);
    assert_eq!(sequences(&scene.pass(SECOND)), [1]);
}

#[test]
fn a_terminated_message_is_done_and_told_of() {
    let mut scene = Scene::with(&["a"; 2], explicit());
    scene.fetch(2);
    let said = scene.say(1, AckKind::Terminate { reason: "no good".to_owned() }, None);
    assert_eq!(
        said,
        [
            Said::Acked(1),
            Said::Advisory(Advisory::MessageTerminated {
                stream: "S".to_owned(),
                consumer: "worker".to_owned(),
                stream_sequence: Sequence(1),
                consumer_sequence: 1,
                deliveries: 1,
                reason: "no good".to_owned()
            })
        ]
    );
    assert_eq!(scene.figures(), ((2, 2), (1, 1), 1, 0));
}

#[test]
fn a_backoff_list_gives_each_delivery_its_wait_and_the_last_repeats() {
    let backoff_nanos = vec![SECOND, 3 * SECOND, 9 * SECOND];
    let mut scene = Scene::with(&["a"], ConsumerConfig { backoff_nanos, ..explicit() });
    let mut waits = Vec::new();
    scene.pull("i", batch(10));
    let mut before = scene.now;
    for _ in 0..5 {
        while sequences(&scene.pass(SECOND)).is_empty() {}
        waits.push((scene.now.0 - before.0) / SECOND);
        before = scene.now;
    }
    assert_eq!(waits, [1, 3, 9, 9, 9]);
}

#[test]
fn a_message_delivered_as_often_as_it_may_be_is_given_up_and_told_of_once() {
    let config = ConsumerConfig { max_deliver: Some(2), ..explicit() };
    let mut scene = Scene::with(&["a"; 2], config);
    scene.fetch(1);
    scene.pass(30 * SECOND);
    assert_eq!(scene.fetch(1), [1]);
    let told = Said::Advisory(Advisory::MaxDeliveries {
        stream: "S".to_owned(),
        consumer: "worker".to_owned(),
        stream_sequence: Sequence(1),
        deliveries: 2,
    });
    assert_eq!(scene.pass(90 * SECOND), [told]);
    assert_eq!(scene.fetch(5), [2]);
    let info = scene.info();
    assert_eq!((info.ack_pending, info.redelivered), (1, 1));
    assert!(scene.consumer().wants(Sequence(1), b"a"), "nobody acked it: a work queue keeps it");
    assert_eq!(scene.say(1, AckKind::Ack, Some("r")), [Said::Acked(1), Said::AckReply("r".to_owned())]);
    assert!(!scene.consumer().wants(Sequence(1), b"a"), "until somebody does, late");
    assert_eq!(scene.info().redelivered, 0);
}

#[test]
fn a_nak_of_the_last_delivery_gives_the_message_up() {
    let mut scene = Scene::with(&["a"], ConsumerConfig { max_deliver: Some(1), ..explicit() });
    scene.fetch(1);
    let said = scene.say(1, nak(None), None);
    assert!(
        matches!(
            said[..],
            [
                Said::Advisory(Advisory::MessageNaked { .. }),
                Said::Advisory(Advisory::MaxDeliveries { deliveries: 1, .. })
            ]
        ),
        "{said:?}"
    );
    assert_eq!(scene.fetch(1), []);
    assert_eq!(scene.info().redelivered, 0, "where nothing is redelivered nothing is counted so");
}

#[test]
fn a_confirmed_ack_is_in_the_log_before_its_answer() {
    let mut scene = Scene::with(&["a"; 2], explicit());
    scene.fetch(2);
    assert!(scene.records.is_empty(), "a delivery waits for nobody");
    assert_eq!(scene.ack(1), [Said::Acked(1)]);
    assert!(scene.records.is_empty(), "and so does a plain ack");
    assert_eq!(scene.say(2, AckKind::Ack, Some("r")), [Said::Acked(2), Said::AckReply("r".to_owned())]);
    let [ConsumerRecord::Progress { .. }, ConsumerRecord::Acked { runs, .. }] = &scene.records[..] else {
        panic!("{:?}", scene.records)
    };
    assert_eq!(runs[..], [SequenceRun { first: Sequence(1), last: Sequence(2) }]);
}

#[test]
fn every_kind_of_ack_is_answered_and_a_repeated_one_too() {
    let mut scene = Scene::with(&["a"; 2], explicit());
    scene.fetch(2);
    let answered = |said: Vec<Said>| said.contains(&Said::AckReply("r".to_owned()));
    assert!(answered(scene.say(1, AckKind::InProgress, Some("r"))));
    assert!(answered(scene.say(1, nak(None), Some("r"))));
    assert!(answered(scene.say(1, AckKind::Ack, Some("r"))));
    assert!(answered(scene.say(1, AckKind::Ack, Some("r"))), "it is acked, which is what was asked");
    assert!(answered(scene.say(2, AckKind::Terminate { reason: String::new() }, Some("r"))));
}

#[test]
fn an_ack_of_what_was_never_delivered_is_ignored() {
    let mut scene = Scene::with(&["a"; 3], explicit());
    scene.fetch(1);
    assert_eq!(scene.say(2, AckKind::Ack, Some("r")), []);
    assert_eq!(scene.say(2000, AckKind::Ack, Some("r")), []);
    assert_eq!(scene.say(0, AckKind::Ack, Some("r")), []);
    assert_eq!(scene.fetch(3), [2, 3]);
}

#[test]
fn ack_all_covers_what_lies_before() {
    let mut scene = Scene::with(&["a"; 5], ConsumerConfig { ack_policy: AckPolicy::All, ..explicit() });
    scene.fetch(5);
    assert_eq!(scene.ack(3), [Said::Acked(1), Said::Acked(2), Said::Acked(3)]);
    assert_eq!(scene.figures(), ((5, 5), (3, 3), 2, 0));
    assert_eq!(scene.ack(2), [], "already covered");
}

#[test]
fn a_removed_message_is_neither_pending_nor_delivered_again() {
    let mut scene = Scene::with(&["a"; 4], explicit());
    scene.fetch(2);
    scene.remove(1);
    scene.remove(3);
    assert_eq!(scene.figures(), ((2, 2), (1, 1), 1, 1));
    scene.pass(30 * SECOND);
    assert_eq!(scene.fetch(9), [2, 4]);
}

#[test]
fn a_purge_moves_the_consumer_up() {
    let mut scene = Scene::with(&["a"; 6], explicit());
    scene.fetch(2);
    scene.purge(6);
    assert_eq!(scene.figures(), ((2, 6), (2, 6), 0, 0));
    scene.store("a", b"x");
    assert_eq!(scene.fetch(9), [7]);
}

#[test]
fn pending_counts_only_what_matches() {
    let config = ConsumerConfig { filter_subjects: vec!["a.*".to_owned(), "c".to_owned()], ..explicit() };
    let mut scene = Scene::with(&["a.1", "b.1", "c", "a.2"], config);
    assert_eq!(scene.info().pending, 3);
    scene.store("b.1", b"");
    scene.store("a.3", b"");
    assert_eq!(scene.info().pending, 4);
    scene.remove(3);
    scene.remove(2);
    assert_eq!(scene.info().pending, 3);
    assert_eq!(
        scene.pull("i", no_wait(9)).last(),
        Some(&Said::Status("i".to_owned(), DeliveryStatus::NoMessages))
    );
    assert_eq!(scene.figures(), ((3, 6), (0, 0), 3, 0));
    scene.ack(4);
    assert_eq!(scene.figures(), ((3, 6), (0, 0), 2, 0), "the floor stands below the first unacked");
    scene.ack(1);
    assert_eq!(scene.figures(), ((3, 6), (2, 5), 1, 0), "and jumps to just below the next");
}

#[test]
fn the_floor_moves_by_acks_and_not_over_what_does_not_match() {
    let config = ConsumerConfig { filter_subjects: vec!["a".to_owned()], ..explicit() };
    let mut scene = Scene::with(&["b", "a", "b", "b", "a", "b", "b", "a"], config);
    scene.fetch(3);
    assert_eq!(scene.figures(), ((3, 8), (0, 0), 3, 0));
    scene.ack(5);
    assert_eq!(scene.figures(), ((3, 8), (0, 0), 2, 0));
    scene.ack(2);
    assert_eq!(scene.figures(), ((3, 8), (2, 7), 1, 0));
    scene.ack(8);
    assert_eq!(scene.figures(), ((3, 8), (3, 8), 0, 0));
    scene.store("b", b"");
    scene.store("a", b"");
    scene.fetch(1);
    assert_eq!(scene.figures(), ((4, 10), (3, 8), 1, 0));
}

#[test]
fn as_many_acks_are_sampled_as_were_asked_for_and_tell_how_long_they_took() {
    let config = ConsumerConfig { sample_frequency: "30%".to_owned(), ..explicit() };
    let mut scene = Scene::with(&["a"; 20], config);
    scene.fetch(20);
    scene.pass(2 * SECOND);
    let mut delays = Vec::new();
    for n in 1..=20 {
        for said in scene.ack(n) {
            if let Said::Advisory(Advisory::AckSampled { delay_nanos, .. }) = said {
                delays.push(delay_nanos);
            }
        }
    }
    assert_eq!(delays, [2 * SECOND; 6]);
}

/// All orders in which five messages can be acked, against what the floor means.
#[test]
fn the_floor_is_the_end_of_what_is_acked_without_a_gap_in_every_order() {
    let mut orders = vec![vec![]];
    for _ in 0..5 {
        orders = orders
            .into_iter()
            .flat_map(|order: Vec<u64>| {
                (1..=5)
                    .filter(|n| !order.contains(n))
                    .map(|n| [&order[..], &[n]].concat())
                    .collect::<Vec<_>>()
            })
            .collect();
    }
    assert_eq!(orders.len(), 120);
    for policy in [AckPolicy::Explicit, AckPolicy::All, AckPolicy::None] {
        for order in &orders {
            let mut scene = Scene::with(&["a"; 5], ConsumerConfig { ack_policy: policy, ..explicit() });
            scene.fetch(5);
            let mut acked: BTreeSet<u64> =
                if policy == AckPolicy::None { (1..=5).collect() } else { BTreeSet::new() };
            let mut before = 0;
            for n in order {
                scene.ack(*n);
                match policy {
                    AckPolicy::Explicit => acked.extend([*n]),
                    AckPolicy::All => acked.extend(1..=*n),
                    AckPolicy::None => {}
                }
                let floor = (1..=5).take_while(|n| acked.contains(n)).count() as u64;
                let pending = 5 - acked.len() as u64;
                assert_eq!(
                    scene.figures(),
                    ((5, 5), (floor, floor), pending, 0),
                    "{policy:?} {order:?} at {n}"
                );
                assert!(floor >= before);
                before = floor;
                let restarted = scene.folded().info(Timestamp(0), &|_| true, &mut Vec::new());
                assert!(restarted.ack_floor.stream.0 <= floor);
            }
        }
    }
}
