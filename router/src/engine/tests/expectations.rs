//! What a publisher may demand: expectations, deduplication, roll-up, time to live.

use super::*;

#[test]
fn an_expected_stream_must_be_this_one() {
    let mut shard = Shard::with(s());
    assert_eq!(shard.publish_with("s.a", &[("Nats-Expected-Stream", "S")]), stored(1));
    assert_eq!(shard.publish_with("s.a", &[("Nats-Expected-Stream", "T")]), Err(PublishRefusal::WrongStream));
}

#[test]
fn an_expected_last_sequence_must_be_the_last() {
    let mut shard = Shard::with(s());
    let mut publish = |value: &str| shard.publish_with("s.a", &[("Nats-Expected-Last-Sequence", value)]);
    let wrong = |actual| Err(PublishRefusal::WrongLastSequence { actual: Sequence(actual) });
    assert_eq!(publish("1"), wrong(0));
    assert_eq!(publish("0"), stored(1));
    assert_eq!(publish("0"), wrong(1));
    assert_eq!(publish("1"), stored(2));
    assert_eq!(publish("two"), wrong(2));
}

#[test]
fn an_expected_last_sequence_may_be_of_a_subject() {
    const LAST: &str = "Nats-Expected-Last-Subject-Sequence";
    const OF: &str = "Nats-Expected-Last-Subject-Sequence-Subject";
    let mut shard = Shard::with(s());
    let wrong = |actual| Err(PublishRefusal::WrongLastSequence { actual: Sequence(actual) });
    assert_eq!(shard.publish_with("s.a", &[(LAST, "0")]), stored(1));
    assert_eq!(shard.publish_with("s.a", &[(LAST, "0")]), wrong(1));
    assert_eq!(shard.publish_with("s.b", &[(LAST, "0")]), stored(2));
    assert_eq!(shard.publish_with("s.a", &[(LAST, "1")]), stored(3));
    assert_eq!(shard.publish_with("s.x", &[(LAST, "2"), (OF, "s.b")]), stored(4));
    assert_eq!(shard.publish_with("s.x", &[(LAST, "3"), (OF, "s.*")]), wrong(4));
    assert_eq!(shard.publish_with("s.x", &[(OF, "s.b")]), Err(PublishRefusal::MissingExpectedSequence));
    // The last of a subject was deleted: the one before it is the last.
    shard.request(Request::DeleteMessage { stream: "S".into(), sequence: Sequence(3), erase: true }).unwrap();
    assert_eq!(shard.publish_with("s.a", &[(LAST, "3")]), wrong(1));
}

#[test]
fn an_expected_last_id_must_be_that_of_the_last_message() {
    let mut shard = Shard::with(s());
    shard.publish_with("s.a", &[("Nats-Msg-Id", "one")]).unwrap();
    assert_eq!(shard.publish_with("s.a", &[("Nats-Expected-Last-Msg-Id", "one")]), stored(2));
    assert_eq!(
        shard.publish_with("s.a", &[("Nats-Expected-Last-Msg-Id", "one")]),
        Err(PublishRefusal::WrongLastMessageId { actual: String::new() })
    );
    shard.check_recovery();
}

#[test]
fn a_message_id_is_stored_once_inside_the_window() {
    let mut shard = Shard::with(s());
    let id = [("Nats-Msg-Id", "order-1")];
    assert_eq!(shard.publish_with("s.a", &id), stored(1));
    assert_eq!(shard.publish_with("s.a", &id), Ok(Published::Duplicate(Sequence(1))));
    let mut recovered = shard.recovered();
    assert_eq!(recovered.publish_with("s.a", &id), Ok(Published::Duplicate(Sequence(1))));
    let mut restored = shard.restored();
    assert_eq!(restored.publish_with("s.a", &id), Ok(Published::Duplicate(Sequence(1))));
    shard.pass(121 * SECOND);
    assert_eq!(shard.publish_with("s.a", &id), stored(2));
    assert_eq!(shard.engine.counters().duplicates, 1);
}

#[test]
fn a_message_id_with_other_content_is_refused_and_counted() {
    let mut shard = Shard::with(s());
    shard.publish_raw("S", "s.a", &[("Nats-Msg-Id", "x")], "one").unwrap();
    let reused = Err(PublishRefusal::MessageIdReused { stored: Sequence(1) });
    assert_eq!(shard.publish_raw("S", "s.a", &[("Nats-Msg-Id", "x")], "two"), reused);
    assert_eq!(shard.publish_raw("S", "s.b", &[("Nats-Msg-Id", "x")], "one"), reused);
    assert_eq!(shard.engine.counters().message_ids_reused, 2);
    assert_eq!(shard.living(), [1]);
}

#[test]
fn an_id_is_remembered_when_its_message_is_gone() {
    let mut shard = Shard::with(s());
    shard.publish_with("s.a", &[("Nats-Msg-Id", "x")]).unwrap();
    shard.request(Request::PurgeStream { stream: "S".into(), purge: Default::default() }).unwrap();
    let duplicate = Ok(Published::Duplicate(Sequence(1)));
    assert_eq!(shard.publish_with("s.a", &[("Nats-Msg-Id", "x")]), duplicate);
    assert_eq!(shard.recovered().publish_with("s.a", &[("Nats-Msg-Id", "x")]), duplicate);
}

#[test]
fn a_roll_up_replaces_what_was_before() {
    let mut shard = Shard::with(StreamConfig { allow_rollup_headers: true, ..s() });
    for subject in ["s.a", "s.b", "s.a", "s.b"] {
        shard.publish(subject, "x").unwrap();
    }
    shard.publish_with("s.a", &[("Nats-Rollup", "sub")]).unwrap();
    assert_eq!(shard.living(), [2, 4, 5]);
    shard.check_recovery();
    shard.publish_with("s.c", &[("Nats-Rollup", "all")]).unwrap();
    assert_eq!(shard.living(), [6]);
    assert_eq!(shard.info().subjects.unwrap().items, [("s.c".into(), 1)]);
    shard.check_recovery();
    let invalid = Err(PublishRefusal::RollupInvalid { value: "some".into() });
    assert_eq!(shard.publish_with("s.c", &[("Nats-Rollup", "some")]), invalid);
    let mut shard = Shard::with(s());
    let refused = shard.publish_with("s.a", &[("Nats-Rollup", "sub")]);
    assert_eq!(refused, Err(PublishRefusal::RollupNotPermitted));
}

#[test]
fn a_large_roll_up_is_done_in_steps() {
    let mut shard = Shard::with(StreamConfig { allow_rollup_headers: true, ..s() });
    for at in 0..3000 {
        shard.publish(if at % 2 == 0 { "s.a" } else { "s.b" }, "x").unwrap();
    }
    shard.publish_with("s.a", &[("Nats-Rollup", "sub")]).unwrap();
    shard.work();
    assert_eq!(shard.info().subjects.unwrap().items, [("s.a".into(), 1), ("s.b".into(), 1500)]);
    shard.check_recovery();
}

#[test]
fn malformed_headers_are_refused() {
    let mut shard = Shard::with(s());
    let publish = StreamPublish {
        stream: StreamId(1),
        subject: "s.a".into(),
        reply: Bytes::new(),
        headers: "not a block".into(),
        payload: Bytes::new(),
    };
    shard.input(Input::Publish(publish.borrow()));
    let refused = shard.outputs.iter().any(|output| {
        matches!(output, Output::Published { result: Err(PublishRefusal::HeadersMalformed), .. })
    });
    assert!(refused);
    assert!(shard.living().is_empty());
}

#[test]
fn an_expectation_is_never_met_by_what_cannot_be_read() {
    const LAST: &str = "Nats-Expected-Last-Subject-Sequence";
    let mut shard = Shard::with(s());
    shard.publish("s.a", "x").unwrap();
    shard.engine.stream("S").unwrap().body.hide(Sequence(1), damage());
    // A lost part of the log may have had a message on it.
    let unreadable = Err(PublishRefusal::Unreadable(damage()));
    assert_eq!(shard.publish_with("s.b", &[(LAST, "0")]), unreadable);
    shard.publish("s.b", "x").unwrap();
    assert_eq!(shard.publish_with("s.b", &[(LAST, "2")]), stored(3));
    let last = shard.get(MessageSelector::LastOn("s.none".into()));
    assert_eq!(last, Err(ApiError::Unreadable(damage())));
}
