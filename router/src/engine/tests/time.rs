//! What ends with time ends by records of the leader, not by the clock of whoever looks.

use super::*;

#[test]
fn messages_leave_when_they_are_too_old() {
    let mut shard = Shard::with(StreamConfig { max_age_nanos: Some(10 * SECOND), ..s() });
    shard.publish("s.a", "1").unwrap();
    shard.pass(4 * SECOND);
    shard.publish("s.b", "2").unwrap();
    assert!(shard.engine.next_deadline().is_some());
    shard.pass(5 * SECOND);
    assert_eq!(shard.living(), [1, 2]);
    shard.pass(2 * SECOND);
    assert_eq!(shard.living(), [2]);
    shard.check_recovery();
    shard.pass(10 * SECOND);
    assert_eq!(shard.info().state.messages, 0);
    shard.check_recovery();
}

#[test]
fn nothing_expires_while_nobody_says_so() {
    let mut shard = Shard::with(StreamConfig { max_age_nanos: Some(10 * SECOND), ..s() });
    shard.publish("s.a", "1").unwrap();
    shard.now.0 += 60 * SECOND;
    // Recovered at a later time: the message is still there until a record says that it is not.
    let mut recovered = shard.recovered();
    assert_eq!(recovered.living(), [1]);
    recovered.work();
    assert!(recovered.living().is_empty());
}

#[test]
fn an_empty_shard_wants_nothing() {
    let mut shard = Shard::with(s());
    assert_eq!(shard.engine.next_deadline(), None);
    shard.publish("s.a", "1").unwrap();
    assert_eq!(shard.engine.next_deadline(), None);
    assert!(!shard.engine.has_work());
}

#[test]
fn many_expire_in_steps() {
    let mut shard = Shard::with(StreamConfig { max_age_nanos: Some(SECOND), ..s() });
    for _ in 0..10_000 {
        shard.publish("s.a", "x").unwrap();
    }
    shard.pass(2 * SECOND);
    assert!(shard.living().is_empty());
    shard.check_recovery();
}

#[test]
fn a_message_may_have_a_time_of_its_own() {
    let mut shard = Shard::with(StreamConfig { allow_message_ttl: true, ..s() });
    shard.publish("s.a", "stays").unwrap();
    shard.publish_with("s.b", &[("Nats-TTL", "5")]).unwrap();
    shard.publish_with("s.b", &[("Nats-TTL", "1h")]).unwrap();
    shard.publish_with("s.b", &[("Nats-TTL", "never")]).unwrap();
    shard.check_recovery();
    let mut recovered = shard.restored();
    for shard in [&mut shard, &mut recovered] {
        shard.pass(6 * SECOND);
        assert_eq!(shard.living(), [1, 3, 4]);
        shard.pass(3600 * SECOND);
        assert_eq!(shard.living(), [1, 4]);
    }
    assert_eq!(shard.publish_with("s.b", &[("Nats-TTL", "soon")]), Err(PublishRefusal::TtlInvalid));
    let mut shard = Shard::with(s());
    assert_eq!(shard.publish_with("s.b", &[("Nats-TTL", "5")]), Err(PublishRefusal::TtlDisabled));
}

#[test]
fn a_marker_tells_that_the_last_of_a_subject_expired() {
    let config = StreamConfig {
        max_age_nanos: Some(10 * SECOND),
        subject_delete_marker_ttl_nanos: Some(60 * SECOND),
        ..s()
    };
    let mut shard = Shard::with(config);
    shard.publish("s.a", "1").unwrap();
    shard.pass(11 * SECOND);
    let marker = shard.get(MessageSelector::LastOn("s.a".into())).unwrap();
    assert_eq!(marker.sequence, Sequence(2));
    let reason = crate::headers::find(&marker.headers, b"Nats-Marker-Reason");
    assert_eq!(reason, Some(&b"MaxAge"[..]));
    shard.check_recovery();
    shard.pass(61 * SECOND);
    assert!(shard.living().is_empty());
}

#[test]
fn an_unreadable_message_expires_when_a_later_one_does() {
    let mut shard = Shard::with(StreamConfig { max_age_nanos: Some(10 * SECOND), ..s() });
    shard.publish("s.a", "1").unwrap();
    shard.publish("s.a", "2").unwrap();
    shard.journal.unreadable.insert((StreamId(1), Sequence(1)));
    let mut recovered = Shard { journal: std::mem::take(&mut shard.journal), ..shard };
    recovered.pass(80 * SECOND);
    assert!(recovered.living().is_empty());
}
