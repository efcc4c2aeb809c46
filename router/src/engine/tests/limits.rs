//! Limits: what goes, what stays out, and what a message costs.

use super::*;
use crate::stream::Discard;

fn fill(shard: &mut Shard, subjects: &[&str]) {
    for subject in subjects {
        shard.publish(subject, "12345").unwrap();
    }
}

#[test]
fn a_message_costs_what_it_costs_in_nats_server() {
    let mut shard = Shard::with(s());
    shard.publish("s.a", "12345").unwrap();
    assert_eq!(shard.info().state.bytes, 22 + 3 + 5 + 8);
    shard.publish_with("s.a", &[("A", "b")]).unwrap();
    let header = "NATS/1.0\r\nA: b\r\n\r\n".len() as u64;
    assert_eq!(shard.info().state.bytes, 38 + 22 + 3 + 4 + header + 7 + 8);
}

#[test]
fn the_oldest_goes_when_there_are_too_many() {
    let mut shard = Shard::with(StreamConfig { max_messages: Some(3), ..s() });
    fill(&mut shard, &["s.a", "s.b", "s.a", "s.c", "s.a"]);
    assert_eq!(shard.living(), [3, 4, 5]);
    let info = shard.info();
    assert_eq!(info.state.subjects_count, 2);
    assert_eq!(info.state.first_sequence, Sequence(3));
    shard.check_recovery();
}

#[test]
fn the_oldest_goes_when_there_are_too_many_bytes() {
    let mut shard = Shard::with(StreamConfig { max_bytes: Some(38 * 3), ..s() });
    fill(&mut shard, &["s.a"; 10]);
    assert_eq!(shard.living(), [8, 9, 10]);
    shard.publish("s.a", &"x".repeat(60)).unwrap();
    assert_eq!(shard.living(), [11]);
    shard.check_recovery();
}

#[test]
fn a_subject_keeps_only_its_newest() {
    for (max, living) in [(1, vec![4, 5]), (2, vec![2, 3, 4, 5])] {
        let mut shard = Shard::with(StreamConfig { max_messages_per_subject: Some(max), ..s() });
        fill(&mut shard, &["s.a", "s.b", "s.a", "s.a", "s.b"]);
        assert_eq!(shard.living(), living);
        shard.check_recovery();
        fill(&mut shard, &["s.b", "s.a"]);
        assert_eq!(shard.info().state.messages, 2 * max);
        shard.check_recovery();
    }
}

#[test]
fn a_full_stream_may_keep_new_messages_out() {
    let config = StreamConfig { discard: Discard::New, max_messages: Some(2), ..s() };
    let mut shard = Shard::with(config);
    fill(&mut shard, &["s.a", "s.b"]);
    assert_eq!(shard.publish("s.c", "x"), Err(PublishRefusal::MaxMessages));
    let config = StreamConfig { discard: Discard::New, max_bytes: Some(38 * 2), ..s() };
    let mut shard = Shard::with(config);
    fill(&mut shard, &["s.a", "s.b"]);
    assert_eq!(shard.publish("s.c", "x"), Err(PublishRefusal::MaxBytes));
    assert_eq!(shard.living(), [1, 2]);
    shard.check_recovery();
}

#[test]
fn in_a_full_stream_a_subject_may_still_replace_its_own() {
    let config = StreamConfig {
        discard: Discard::New,
        max_messages: Some(2),
        max_messages_per_subject: Some(1),
        ..s()
    };
    let mut shard = Shard::with(config.clone());
    fill(&mut shard, &["s.a", "s.b"]);
    assert_eq!(shard.publish("s.a", "x"), stored(3));
    assert_eq!(shard.publish("s.c", "x"), Err(PublishRefusal::MaxMessages));
    assert_eq!(shard.living(), [2, 3]);

    let mut shard = Shard::with(StreamConfig { discard_new_per_subject: true, ..config });
    fill(&mut shard, &["s.a"]);
    assert_eq!(shard.publish("s.a", "x"), Err(PublishRefusal::MaxMessagesPerSubject));
    assert_eq!(shard.publish("s.b", "x"), stored(2));
}

#[test]
fn a_message_may_be_too_large() {
    let mut shard = Shard::with(StreamConfig { max_message_bytes: Some(4), ..s() });
    assert_eq!(shard.publish("s.a", "1234"), stored(1));
    assert_eq!(shard.publish("s.a", "12345"), Err(PublishRefusal::TooLarge));
    let mut shard = Shard::with(s());
    assert_eq!(shard.publish("s.a", &"x".repeat((1 << 20) + 1)), Err(PublishRefusal::TooLarge));
    let long = "x".repeat(66_000);
    assert_eq!(shard.publish_with("s.a", &[("A", &long)]), Err(PublishRefusal::HeadersTooLarge));
}

#[test]
fn a_lowered_limit_is_enforced_at_once() {
    let mut shard = Shard::with(s());
    for at in 0..300 {
        shard.publish(if at % 3 == 0 { "s.a" } else { "s.b" }, "12345").unwrap();
    }
    let config = StreamConfig { max_messages: Some(10), max_messages_per_subject: Some(4), ..s() };
    shard.request(Request::UpdateStream(Box::new(config))).unwrap();
    shard.work();
    let info = shard.info();
    assert_eq!(info.state.messages, 7);
    assert_eq!(info.subjects.unwrap().items, [("s.a".into(), 3), ("s.b".into(), 4)]);
    shard.check_recovery();
}

#[test]
fn an_unreadable_message_goes_with_its_limit_and_leaves_no_bytes_behind() {
    let mut shard = Shard::with(StreamConfig { max_messages: Some(2), ..s() });
    fill(&mut shard, &["s.a", "s.b"]);
    shard.journal.unreadable.insert((StreamId(1), Sequence(1)));
    fill(&mut shard, &["s.c", "s.d", "s.e"]);
    assert_eq!(shard.living(), [4, 5]);
    shard.request(Request::PurgeStream { stream: "S".into(), purge: Default::default() }).unwrap();
    assert_eq!(shard.info().state.bytes, 0);
    shard.check_recovery();
}
