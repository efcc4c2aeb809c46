//! Where consumers begin, what they see of messages, and in which rhythm.

use beamlog_log::{Sequence, Timestamp};

use super::scene::{SECOND, Scene, batch, expires, explicit, no_wait, push_to, sequences};
use crate::api::error::ApiError;
use crate::consumer::filters::Filters;
use crate::consumer::{ConsumerConfig, DeliverPolicy, PushConfig, ReplayPolicy};

const SUBJECTS: [&str; 8] = ["a.1", "a.2", "b", "a.1", "a.3", "b", "a.2", "c"];

fn begins(deliver_policy: DeliverPolicy, filters: &[&str]) -> Vec<u64> {
    let filter_subjects = filters.iter().map(|filter| (*filter).to_owned()).collect();
    let mut scene = Scene::with(&SUBJECTS, ConsumerConfig { deliver_policy, filter_subjects, ..explicit() });
    let pending = scene.info().pending;
    let got = scene.fetch(100);
    assert_eq!(pending, got.len() as u64, "pending was right from the start: {deliver_policy:?} {filters:?}");
    assert_eq!(scene.info().pending, 0);
    scene.store("a.2", b"");
    let matches = Filters::new(&scene.consumer().config().filter_subjects).matches(b"a.2");
    assert_eq!(scene.fetch(100).len(), usize::from(matches), "and goes on");
    got
}

#[test]
fn each_deliver_policy_begins_where_it_says() {
    let start_time = |seconds: u64| DeliverPolicy::ByStartTime(Timestamp((1000 + seconds) * SECOND));
    for (policy, filters, expected) in [
        (DeliverPolicy::All, &[][..], vec![1, 2, 3, 4, 5, 6, 7, 8]),
        (DeliverPolicy::All, &["a.*"], vec![1, 2, 4, 5, 7]),
        (DeliverPolicy::All, &["a.1", "a.2", "c"], vec![1, 2, 4, 7, 8]),
        (DeliverPolicy::Last, &[], vec![8]),
        (DeliverPolicy::Last, &["a.*"], vec![7]),
        (DeliverPolicy::Last, &["a.1", "a.3"], vec![5]),
        (DeliverPolicy::New, &[], vec![]),
        (DeliverPolicy::ByStartSequence(Sequence(5)), &[], vec![5, 6, 7, 8]),
        (DeliverPolicy::ByStartSequence(Sequence(3)), &["a.*"], vec![4, 5, 7]),
        (start_time(0), &[], vec![1, 2, 3, 4, 5, 6, 7, 8]),
        (start_time(4), &[], vec![5, 6, 7, 8]),
        (start_time(4), &["b"], vec![6]),
        (start_time(90), &[], vec![]),
        (DeliverPolicy::LastPerSubject, &["a.*"], vec![4, 5, 7]),
        (DeliverPolicy::LastPerSubject, &[">"], vec![4, 5, 6, 7, 8]),
        (DeliverPolicy::LastPerSubject, &["a.1", "c"], vec![4, 8]),
    ] {
        assert_eq!(begins(policy, filters), expected, "{policy:?} {filters:?}");
    }
}

#[test]
fn a_consumer_that_begins_at_a_removed_message_begins_after_it() {
    let mut scene = Scene::stream(&SUBJECTS);
    scene.create(ConsumerConfig { deliver_policy: DeliverPolicy::New, ..explicit() });
    for n in [1, 2, 5] {
        scene.remove(n);
    }
    scene
        .create(ConsumerConfig { deliver_policy: DeliverPolicy::ByStartSequence(Sequence(1)), ..explicit() });
    assert_eq!(scene.figures(), ((0, 2), (0, 2), 0, 5));
    scene.create(ConsumerConfig {
        deliver_policy: DeliverPolicy::ByStartTime(Timestamp(1004 * SECOND)),
        ..explicit()
    });
    assert_eq!(scene.info().pending, 3);
    assert_eq!(scene.fetch(9), [6, 7, 8]);
}

#[test]
fn a_start_beyond_the_end_waits_for_its_sequence() {
    let deliver_policy = DeliverPolicy::ByStartSequence(Sequence(50));
    let mut scene = Scene::with(&SUBJECTS, ConsumerConfig { deliver_policy, ..explicit() });
    assert_eq!(scene.figures(), ((0, 49), (0, 49), 0, 0));
    for _ in 9..=51 {
        scene.store("x", b"");
    }
    assert_eq!(scene.info().pending, 2);
    assert_eq!(scene.fetch(9), [50, 51]);
}

#[test]
fn the_last_message_of_each_subject_is_chosen_once_and_new_ones_follow() {
    let config = ConsumerConfig {
        deliver_policy: DeliverPolicy::LastPerSubject,
        filter_subjects: vec!["a.*".to_owned()],
        ..explicit()
    };
    let mut scene = Scene::with(&SUBJECTS, config);
    assert_eq!(scene.figures(), ((0, 3), (0, 3), 0, 3), "delivered stands before the first chosen");
    scene.store("a.1", b"newer");
    scene.remove(5);
    assert_eq!(scene.info().pending, 3);
    assert_eq!(scene.fetch(9), [4, 7, 9]);
}

#[test]
fn where_it_begins_cannot_be_decided_over_unreadable_messages() {
    let mut scene = Scene::stream(&SUBJECTS);
    for n in 1..=8 {
        scene.make_unreadable(n, true);
    }
    let config =
        ConsumerConfig { deliver_policy: DeliverPolicy::ByStartTime(Timestamp(1004 * SECOND)), ..explicit() };
    assert!(matches!(scene.try_create(config), Err(ApiError::Unreadable(_))));
}

#[test]
fn with_headers_only_the_payload_is_its_size() {
    let mut scene = Scene::with(&["a"], ConsumerConfig { headers_only: true, ..explicit() });
    scene.store_with_headers("a", b"NATS/1.0\r\nA: b\r\n\r\n", b"0123456789ab");
    scene.fetch(2);
    let sent: Vec<_> = scene
        .deliveries
        .iter()
        .map(|delivery| (&delivery.message.headers[..], &delivery.message.payload[..]))
        .collect();
    assert_eq!(
        sent,
        [
            (&b"NATS/1.0\r\nNats-Msg-Size: 10\r\n\r\n"[..], &b""[..]),
            (&b"NATS/1.0\r\nA: b\r\nNats-Msg-Size: 12\r\n\r\n"[..], &b""[..]),
        ]
    );
}

#[test]
fn replay_in_the_original_rhythm_keeps_the_gaps_of_what_was_there() {
    let mut scene =
        Scene::with(&["a"; 3], ConsumerConfig { replay_policy: ReplayPolicy::Original, ..explicit() });
    scene.now.0 += 100 * SECOND;
    assert_eq!(sequences(&scene.pull("i", batch(9))), [1]);
    assert_eq!(sequences(&scene.pass(SECOND - 1)), []);
    assert_eq!(sequences(&scene.pass(1)), [2]);
    assert_eq!(sequences(&scene.pass(SECOND)), [3]);
    scene.now.0 += 5 * SECOND;
    scene.store("a", b"");
    assert_eq!(sequences(&scene.deliver()), [4], "what is new is not held back");
}

#[test]
fn a_paused_consumer_delivers_nothing_until_then() {
    let until = Timestamp(2_000 * SECOND);
    let mut scene = Scene::with(&["a"; 2], explicit());
    let paused = ConsumerConfig { pause_until: Some(until), ..scene.consumer().config().clone() };
    let told = scene.update(paused);
    assert!(format!("{told:?}").contains("paused: true"), "{told:?}");
    assert_eq!(scene.info().paused_for_nanos, Some(until.0 - scene.now.0));
    assert_eq!(scene.fetch(2), []);
    assert_eq!(scene.pull("i", expires(2, 5_000 * SECOND)), []);
    let said = scene.pass(until.0 - scene.now.0);
    assert_eq!(sequences(&said), [1, 2]);
    assert!(format!("{said:?}").contains("paused: false"));
    assert_eq!(scene.info().paused_for_nanos, None);
}

#[test]
fn resuming_ends_the_pause_at_once() {
    let config = ConsumerConfig { pause_until: Some(Timestamp(2_000 * SECOND)), ..explicit() };
    let mut scene = Scene::with(&["a"], config);
    assert_eq!(scene.pull("i", batch(1)), []);
    let resumed = ConsumerConfig { pause_until: None, ..scene.consumer().config().clone() };
    assert_eq!(sequences(&scene.update(resumed)), [1]);
}

#[test]
fn other_filters_count_anew() {
    let mut scene = Scene::with(&SUBJECTS, explicit());
    scene.fetch(2);
    let filtered =
        ConsumerConfig { filter_subjects: vec!["b".to_owned()], ..scene.consumer().config().clone() };
    scene.update(filtered);
    assert_eq!(scene.info().pending, 2);
    assert_eq!(scene.fetch(9), [3, 6]);
}

#[test]
fn a_pull_consumer_that_nobody_uses_expires() {
    let config = ConsumerConfig { durable: false, ..explicit() };
    let mut scene = Scene::with(&["a"], config);
    assert_eq!(scene.pass(5 * SECOND - 1), []);
    assert_eq!(scene.pass(1), [super::scene::Said::Expired]);
}

#[test]
fn a_waiting_request_and_an_open_ack_keep_a_consumer_alive() {
    let mut scene = Scene::with(&[], ConsumerConfig { durable: false, ..explicit() });
    scene.pull("i", expires(1, 60 * SECOND));
    assert_eq!(scene.pass(59 * SECOND), []);
    scene.store("a", b"");
    assert_eq!(sequences(&scene.deliver()), [1]);
    // The ack wait of 30 s, and then the threshold of 5 s.
    assert_eq!(scene.pass(34 * SECOND), []);
    assert_eq!(scene.pass(2 * SECOND), [super::scene::Said::Expired]);
}

#[test]
fn a_waiting_request_nobody_listens_for_keeps_nothing_alive() {
    let mut scene = Scene::with(&[], ConsumerConfig { durable: false, ..explicit() });
    scene.pull("gone", batch(1));
    scene.deaf.insert(b"gone".to_vec());
    assert_eq!(scene.pass(5 * SECOND), [super::scene::Said::Expired]);
}

#[test]
fn a_durable_consumer_never_expires_unless_it_is_told_to() {
    let mut scene = Scene::with(&["a"], explicit());
    assert_eq!(scene.pass(1_000_000 * SECOND), []);
    let config = ConsumerConfig { inactive_threshold_nanos: Some(9 * SECOND), ..explicit() };
    assert_eq!(Scene::with(&["a"], config).pass(9 * SECOND), [super::scene::Said::Expired]);
}

#[test]
fn a_push_consumer_expires_when_nobody_listens_for_so_long() {
    let config = ConsumerConfig { durable: false, push: Some(push_to("d")), ..explicit() };
    let mut scene = Scene::with(&[], config);
    scene.interest(true);
    assert_eq!(scene.pass(100 * SECOND), []);
    scene.interest(false);
    assert_eq!(scene.pass(5 * SECOND - 1), []);
    assert_eq!(scene.pass(1), [super::scene::Said::Expired]);
}

#[test]
fn a_rate_limit_spreads_what_goes_beyond_the_burst() {
    let push = PushConfig { rate_limit_bits_per_second: Some(8 << 20), ..push_to("d") };
    let mut scene = Scene::with(&[], ConsumerConfig { push: Some(push), ..explicit() });
    for _ in 0..32 {
        scene.store("a", &[b'x'; 1 << 16]);
    }
    let at_once = sequences(&scene.interest(true)).len();
    assert!((15..=16).contains(&at_once), "{at_once}");
    let later = sequences(&scene.pass(SECOND / 2)).len();
    assert!((7..=8).contains(&later), "half a second is half a MiB: {later}");
}

#[test]
fn what_no_wait_finds_is_what_pending_says() {
    let mut scene = Scene::with(&SUBJECTS, explicit());
    scene.remove(8);
    let said = scene.pull("i", no_wait(100));
    assert_eq!(sequences(&said).len(), 7);
    assert_eq!(said.len(), 8);
}
