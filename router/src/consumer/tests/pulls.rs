//! Pull requests: who gets what, and how each request ends.

use super::scene::{SECOND, Said, Scene, batch, expires, explicit, no_wait, sequences};
use crate::api::request::{AckKind, PullRequest};
use crate::consumer::{AckPolicy, ConsumerConfig, PullLimits};
use crate::wire::DeliveryStatus;

fn status(to: &str, status: DeliveryStatus) -> Said {
    Said::Status(to.to_owned(), status)
}

fn message(to: &str, sequence: u64) -> Said {
    Said::Message(to.to_owned(), sequence, 1)
}

fn ten() -> Scene {
    Scene::with(&["a.0", "a.1", "a.2", "a.0", "a.1", "a.2", "a.0", "a.1", "a.2", "a.0"], explicit())
}

#[test]
fn a_batch_gets_so_many_messages_and_no_end() {
    let mut scene = ten();
    assert_eq!(scene.pull("i", batch(3)), [message("i", 1), message("i", 2), message("i", 3)]);
    assert_eq!(scene.figures(), ((3, 3), (0, 0), 3, 7));
    let pending: Vec<_> = scene.deliveries.iter().map(|delivery| delivery.pending).collect();
    assert_eq!(pending, [9, 8, 7], "each delivery says how many are left");
}

#[test]
fn no_wait_gets_what_there_is_and_then_no_messages() {
    let mut scene = ten();
    let said = scene.pull("i", no_wait(20));
    assert_eq!(sequences(&said), (1..=10).collect::<Vec<_>>());
    assert_eq!(said.last(), Some(&status("i", DeliveryStatus::NoMessages)));
    assert_eq!(scene.pull("i", no_wait(1)), [status("i", DeliveryStatus::NoMessages)]);
}

#[test]
fn no_wait_that_is_filled_has_no_end() {
    assert_eq!(ten().pull("i", no_wait(10)).len(), 10);
}

#[test]
fn no_wait_with_expiry_waits_for_the_first_message_only() {
    let mut scene = Scene::with(&[], explicit());
    let request = PullRequest { no_wait: true, ..expires(5, SECOND) };
    assert_eq!(scene.pull("i", request), []);
    scene.store("a", b"x");
    assert_eq!(scene.deliver(), [message("i", 1), status("i", DeliveryStatus::NoMessages)]);
    assert_eq!(scene.pass(2 * SECOND), []);
}

#[test]
fn a_request_that_expires_is_told_what_it_still_lacked() {
    let mut scene = ten();
    let request = PullRequest { max_bytes: Some(100_000), ..expires(50, SECOND) };
    assert_eq!(scene.pull("i", request).len(), 10);
    let said = scene.pass(SECOND);
    let [Said::Status(_, DeliveryStatus::RequestTimeout { messages: 40, bytes })] = said[..] else {
        panic!("{said:?}")
    };
    assert!(bytes < 100_000 && bytes > 99_000, "{bytes}");
}

#[test]
fn a_message_that_comes_at_the_expiry_is_for_the_next_request() {
    let mut scene = Scene::with(&[], explicit());
    scene.pull("old", expires(1, SECOND));
    scene.now.0 += SECOND;
    scene.store("a", b"x");
    let said = scene.pull("new", batch(1));
    assert_eq!(
        said,
        [status("old", DeliveryStatus::RequestTimeout { messages: 1, bytes: 0 }), message("new", 1)]
    );
}

#[test]
fn a_message_too_large_for_the_bytes_asked_ends_the_request() {
    let mut scene = ten();
    let request = PullRequest { max_bytes: Some(20), ..expires(5, SECOND) };
    let expected = DeliveryStatus::MessageSizeExceedsMaxBytes { messages: 5, bytes: 20 };
    assert_eq!(scene.pull("i", request), [status("i", expected)]);
    assert_eq!(scene.figures(), ((0, 0), (0, 0), 0, 10), "nothing was spent on it");
}

#[test]
fn bytes_are_counted_as_a_client_counts_them() {
    // Observed with consumer "d1", whose name is 4 shorter than "worker": 150 bytes hold two messages
    // of 53 and leave 44. The timestamps of this scene have 13 digits, not 19.
    let mut scene = ten();
    let size = "a.0".len() + "$JS.ACK.S.worker.1.1.1.1000000000000.9".len() + "0123456789".len();
    let request = PullRequest { max_bytes: Some(2 * size as u64 + 44), ..expires(5, SECOND) };
    let said = scene.pull("i", request);
    let end = DeliveryStatus::MessageSizeExceedsMaxBytes { messages: 3, bytes: 44 };
    assert_eq!(said, [message("i", 1), message("i", 2), status("i", end)]);
}

#[test]
fn a_request_filled_to_the_byte_ends_without_a_word() {
    let mut scene = ten();
    let size = "a.0".len() + "$JS.ACK.S.worker.1.1.1.1000000000000.9".len() + "0123456789".len();
    let request = PullRequest { max_bytes: Some(size as u64), ..expires(5, SECOND) };
    assert_eq!(scene.pull("i", request), [message("i", 1)]);
    assert_eq!(scene.info().waiting, 0);
}

#[test]
fn a_batch_with_bytes_to_spare_is_told_that_it_is_complete() {
    let mut scene = ten();
    let said = scene.pull("i", PullRequest { max_bytes: Some(1500), ..expires(1, SECOND) });
    let [Said::Message(..), Said::Status(_, DeliveryStatus::BatchCompleted { messages: 0, bytes })] =
        said[..]
    else {
        panic!("{said:?}")
    };
    assert!(bytes < 1500);
}

#[test]
fn requests_take_turns() {
    let mut scene = Scene::with(&[], explicit());
    scene.pull("a", expires(3, SECOND));
    scene.pull("b", expires(3, SECOND));
    for _ in 0..4 {
        scene.store("x", b"y");
    }
    assert_eq!(scene.deliver(), [message("a", 1), message("b", 2), message("a", 3), message("b", 4)]);
}

#[test]
fn heartbeats_come_while_nothing_else_does() {
    let mut scene = ten();
    let request = PullRequest { idle_heartbeat_nanos: Some(300), ..expires(50, 1000) };
    scene.pull("i", request);
    let beat = DeliveryStatus::IdleHeartbeat {
        last_consumer: 10,
        last_stream: beamlog_log::Sequence(10),
        stalled: None,
    };
    let timeout = DeliveryStatus::RequestTimeout { messages: 40, bytes: 0 };
    assert_eq!(
        scene.pass(1000),
        [status("i", beat.clone()), status("i", beat.clone()), status("i", beat), status("i", timeout)]
    );
}

#[test]
fn a_heartbeat_longer_than_half_the_expiry_is_a_bad_request() {
    let request = PullRequest { idle_heartbeat_nanos: Some(501), ..expires(1, 1000) };
    let expected = DeliveryStatus::BadRequest("heartbeat value too large".to_owned());
    assert_eq!(ten().pull("i", request), [status("i", expected)]);
}

#[test]
fn requests_beyond_the_limits_of_the_consumer_are_refused() {
    let limits = PullLimits {
        max_waiting: None,
        max_request_batch: Some(2),
        max_request_expires_nanos: Some(SECOND),
        max_request_max_bytes: Some(100),
    };
    for (request, expected) in [
        (batch(3), DeliveryStatus::MaxRequestBatchExceeded { max: 2 }),
        (expires(1, SECOND + 1), DeliveryStatus::MaxRequestExpiresExceeded { max_nanos: SECOND }),
        (
            PullRequest { max_bytes: Some(101), ..batch(1) },
            DeliveryStatus::MaxRequestMaxBytesExceeded { max: 100 },
        ),
    ] {
        let mut scene = Scene::with(&["a"], ConsumerConfig { pull: limits.clone(), ..explicit() });
        assert_eq!(scene.pull("i", request), [status("i", expected)]);
    }
}

#[test]
fn a_full_queue_refuses_but_says_nothing_to_a_client_that_listens_for_heartbeats() {
    let pull = PullLimits { max_waiting: Some(1), ..PullLimits::default() };
    let mut scene = Scene::with(&[], ConsumerConfig { pull, ..explicit() });
    assert_eq!(scene.pull("a", expires(1, SECOND)), []);
    assert_eq!(scene.pull("b", expires(1, SECOND)), [status("b", DeliveryStatus::MaxWaitingExceeded)]);
    let patient = PullRequest { idle_heartbeat_nanos: Some(SECOND / 3), ..expires(1, SECOND) };
    assert_eq!(scene.pull("c", patient), []);
    assert_eq!(scene.info().waiting, 1);
    scene.now.0 += SECOND;
    let timeout = DeliveryStatus::RequestTimeout { messages: 1, bytes: 0 };
    assert_eq!(scene.pull("d", expires(1, SECOND)), [status("a", timeout)], "an expired one makes room");
}

#[test]
fn no_wait_behind_requests_that_will_take_everything_is_refused() {
    let mut scene = Scene::with(&["a", "a"], ConsumerConfig { max_ack_pending: Some(1), ..explicit() });
    scene.pull("first", expires(5, SECOND));
    assert_eq!(scene.pull("second", no_wait(1)), [status("second", DeliveryStatus::RequestsPending)]);
}

#[test]
fn a_request_nobody_listens_for_costs_no_message() {
    let mut scene = Scene::with(&[], explicit());
    scene.pull("gone", batch(1));
    scene.pull("here", batch(1));
    scene.deaf.insert(b"gone".to_vec());
    scene.store("a", b"x");
    assert_eq!(scene.deliver(), [message("here", 1)]);
}

#[test]
fn a_delivery_that_found_nobody_is_made_again() {
    let mut scene = Scene::with(&["a"], explicit());
    assert_eq!(scene.pull("gone", batch(5)), [message("gone", 1)]);
    scene.undeliverable("gone", 1);
    assert_eq!(scene.info().waiting, 0, "whoever asked is gone");
    assert_eq!(scene.pull("here", batch(1)), [Said::Message("here".to_owned(), 1, 2)]);
}

#[test]
fn a_push_consumer_answers_no_pull() {
    let config = ConsumerConfig { push: Some(super::scene::push_to("d")), ..explicit() };
    let expected = status("i", DeliveryStatus::ConsumerIsPushBased);
    assert_eq!(Scene::with(&["a"], config).pull("i", batch(1)), [expected]);
}

#[test]
fn unacked_messages_up_to_the_limit_hold_back_the_next() {
    let mut scene = Scene::with(&["a"; 5], ConsumerConfig { max_ack_pending: Some(2), ..explicit() });
    assert_eq!(sequences(&scene.pull("i", batch(5))), [1, 2]);
    assert_eq!(sequences(&scene.ack(1)), [3]);
    assert_eq!(sequences(&scene.ack(3)), [4]);
}

#[test]
fn no_wait_at_the_limit_of_unacked_messages_is_not_the_end_of_the_stream() {
    let mut scene = Scene::with(&["a"; 5], ConsumerConfig { max_ack_pending: Some(2), ..explicit() });
    assert_eq!(sequences(&scene.pull("i", no_wait(5))), [1, 2]);
    assert_eq!(sequences(&scene.ack(1)), [3], "it goes on when there is room");
}

#[test]
fn ack_next_acks_and_asks_in_one() {
    let mut scene = Scene::with(&["a", "a"], explicit());
    scene.pull("i", batch(1));
    assert_eq!(scene.say(1, AckKind::AckNext(batch(1)), Some("j")), [Said::Acked(1), message("j", 2)]);
}

#[test]
fn a_consumer_without_acks_delivers_without_end_and_keeps_nothing() {
    let mut scene = Scene::with(&["a"; 3], ConsumerConfig { ack_policy: AckPolicy::None, ..explicit() });
    assert_eq!(scene.fetch(3), [1, 2, 3]);
    assert_eq!(scene.figures(), ((3, 3), (3, 3), 0, 0));
    assert_eq!(scene.say(1, AckKind::Ack, Some("r")), [], "there is nothing to confirm");
}

#[test]
fn requests_that_wait_are_told_when_the_consumer_is_deleted() {
    let mut scene = Scene::with(&[], explicit());
    scene.pull("a", batch(1));
    scene.pull("b", batch(1));
    let deleted = DeliveryStatus::ConsumerDeleted;
    assert_eq!(scene.close(), [status("a", deleted.clone()), status("b", deleted)]);
}

#[test]
fn a_message_that_cannot_be_read_stops_the_consumer_and_is_told_once() {
    let mut scene = Scene::with(&["a"; 4], explicit());
    scene.make_unreadable(2, true);
    let said = scene.pull("i", no_wait(4));
    assert_eq!(said, [message("i", 1), Said::Blocked(2), status("i", DeliveryStatus::Unreadable)]);
    let said = scene.pull("j", expires(4, 5 * SECOND));
    assert_eq!(said, [], "it is not tried again at once");
    assert_eq!(scene.pass(5 * SECOND), [status("j", DeliveryStatus::Unreadable)], "and is no timeout");
    scene.make_unreadable(2, false);
    assert_eq!(sequences(&scene.pull("k", batch(3))), [2, 3, 4], "once it is repaired nothing was skipped");
}

#[test]
fn a_redelivery_that_cannot_be_read_holds_up_no_other() {
    let mut scene = Scene::with(&["a"; 3], explicit());
    scene.fetch(2);
    scene.make_unreadable(1, true);
    scene.pass(30 * SECOND);
    assert_eq!(
        scene.pull("i", batch(2)),
        [Said::Blocked(1), Said::Message("i".to_owned(), 2, 2), message("i", 3)]
    );
    assert_eq!(scene.info().ack_pending, 3);
    scene.make_unreadable(1, false);
    scene.pull("i", batch(1));
    assert_eq!(sequences(&scene.pass(SECOND)), [1]);
}

#[test]
fn a_filtered_consumer_stops_before_what_it_cannot_read() {
    let config = ConsumerConfig { filter_subjects: vec!["b".to_owned()], ..explicit() };
    let mut scene = Scene::with(&["b", "a", "a", "b"], config);
    scene.make_unreadable(3, true);
    assert_eq!(
        scene.pull("i", no_wait(2)),
        [message("i", 1), Said::Blocked(3), status("i", DeliveryStatus::Unreadable)]
    );
}

#[test]
fn messages_that_could_not_be_counted_are_not_taken_to_be_none() {
    let config = ConsumerConfig { filter_subjects: vec!["b".to_owned()], ..explicit() };
    let mut scene = Scene::with(&["a", "b", "a", "b", "b"], config);
    assert_eq!(scene.fetch(2), [2, 4]);
    scene.flush();
    scene.make_unreadable(5, true);
    scene.restart();
    assert_eq!(scene.pull("i", no_wait(2)), [Said::Blocked(5), status("i", DeliveryStatus::Unreadable)]);
    scene.make_unreadable(5, false);
    scene.pull("i", batch(1));
    assert_eq!(sequences(&scene.pass(SECOND)), [5]);
}
