//! Atomic batches: all of them, or none.

use super::*;
use crate::api::error::BatchRefusal;
use crate::stream::{Abandoned, Discard};
use crate::wire::Advisory;

const ID: &str = "Nats-Batch-Id";
const NUMBER: &str = "Nats-Batch-Sequence";
const COMMIT: &str = "Nats-Batch-Commit";

fn atomic() -> StreamConfig {
    StreamConfig { allow_atomic: true, ..s() }
}

fn batch(last: u64, id: &'static str, messages: usize) -> Result<Published, PublishRefusal> {
    Ok(Published::Batch { last: Sequence(last), id: id.into(), messages })
}

fn refused(refusal: BatchRefusal) -> Result<Published, PublishRefusal> {
    Err(refusal.into())
}

impl Shard {
    /// The next message of a batch.
    fn add(&mut self, id: &str, number: u64) -> Result<Published, PublishRefusal> {
        self.publish_with("s.a", &[(ID, id), (NUMBER, &number.to_string())])
    }

    fn end(&mut self, id: &str, number: u64) -> Result<Published, PublishRefusal> {
        self.publish_with("s.a", &[(ID, id), (NUMBER, &number.to_string()), (COMMIT, "1")])
    }

    fn abandoned(&self) -> Vec<(&str, Abandoned)> {
        let told = |output| match output {
            &Output::Advisory(Advisory::BatchAbandoned { ref batch, reason, .. }) => {
                Some((batch.as_str(), reason))
            }
            _ => None,
        };
        self.outputs.iter().filter_map(told).collect()
    }
}

#[test]
fn a_batch_is_stored_when_its_last_message_comes() {
    let mut shard = Shard::with(atomic());
    assert_eq!(shard.add("b", 1), Ok(Published::Waiting));
    assert_eq!(shard.publish("s.other", "between"), stored(1));
    assert_eq!(shard.add("b", 2), Ok(Published::Waiting));
    assert_eq!(shard.living(), [1]);
    assert_eq!(shard.end("b", 3), batch(4, "b", 3));
    assert_eq!(shard.living(), [1, 2, 3, 4]);
    assert_eq!(shard.end("alone", 1), batch(5, "alone", 1));
    // Its end may be no message of it.
    assert_eq!(shard.add("e", 1), Ok(Published::Waiting));
    assert_eq!(shard.publish_with("s.a", &[(ID, "e"), (NUMBER, "2"), (COMMIT, "eob")]), batch(6, "e", 1));
    assert_eq!(shard.engine.batch_bytes, 0);
    shard.check_recovery();
}

#[test]
fn a_batch_with_a_gap_is_given_up() {
    let mut shard = Shard::with(atomic());
    for (id, wrong) in [("ahead", 3), ("again", 1), ("zero", 0)] {
        assert_eq!(shard.add(id, 1), Ok(Published::Waiting));
        assert_eq!(shard.add(id, wrong), refused(BatchRefusal::Incomplete));
        assert_eq!(shard.end(id, 2), refused(BatchRefusal::Incomplete));
    }
    assert_eq!(shard.end("never begun", 2), refused(BatchRefusal::Incomplete));
    let given_up = ["ahead", "again", "zero"].map(|id| (id, Abandoned::Incomplete));
    assert_eq!(shard.abandoned(), given_up);
    assert_eq!(shard.living(), [0_u64; 0]);
    assert_eq!(shard.engine.batch_bytes, 0);
}

#[test]
fn one_message_that_may_not_be_stored_keeps_all_out() {
    let mut shard = Shard::with(atomic());
    shard.publish_with("s.a", &[("Nats-Msg-Id", "known")]).unwrap();
    let wrong = |actual| Err(PublishRefusal::WrongLastSequence { actual: Sequence(actual) });
    let second = |shard: &mut Shard, name, value| {
        shard.add("b", 1).unwrap();
        shard.publish_with("s.a", &[(ID, "b"), (NUMBER, "2"), (COMMIT, "1"), (name, value)])
    };
    assert_eq!(second(&mut shard, "Nats-Msg-Id", "known"), refused(BatchRefusal::DuplicateMessageId));
    assert_eq!(second(&mut shard, "Nats-Expected-Stream", "T"), Err(PublishRefusal::WrongStream));
    assert_eq!(second(&mut shard, "Nats-TTL", "5"), Err(PublishRefusal::TtlDisabled));
    let unsupported = BatchRefusal::UnsupportedHeader { name: "Nats-Expected-Last-Msg-Id" };
    assert_eq!(second(&mut shard, "Nats-Expected-Last-Msg-Id", "known"), refused(unsupported));
    // What the batch itself writes cannot be expected.
    let moved = refused(BatchRefusal::WrongLastSequence);
    assert_eq!(second(&mut shard, "Nats-Expected-Last-Sequence", "1"), moved);
    let subject_sequence = "Nats-Expected-Last-Subject-Sequence";
    assert_eq!(second(&mut shard, subject_sequence, "1"), moved);
    shard.publish_with("s.b", &[(ID, "c"), (NUMBER, "1"), (subject_sequence, "7")]).unwrap();
    assert_eq!(shard.end("c", 2), wrong(0));
    shard.publish_with("s.a", &[(ID, "d"), (NUMBER, "1"), ("Nats-Expected-Last-Sequence", "0")]).unwrap();
    assert_eq!(shard.end("d", 2), wrong(1));
    assert_eq!(shard.living(), [1]);
    assert_eq!(shard.publish("s.a", "next"), stored(2));
    shard.check_recovery();
}

#[test]
fn ids_of_a_batch_are_known_when_it_is_stored_and_not_before() {
    let mut shard = Shard::with(atomic());
    let id = ("Nats-Msg-Id", "one");
    shard.publish_with("s.a", &[(ID, "b"), (NUMBER, "1"), id]).unwrap();
    assert_eq!(shard.publish_with("s.a", &[id]), stored(1));
    assert_eq!(shard.end("b", 2), refused(BatchRefusal::DuplicateMessageId));
    shard.publish_with("s.a", &[(ID, "c"), (NUMBER, "1"), ("Nats-Msg-Id", "two")]).unwrap();
    assert_eq!(shard.end("c", 2), batch(3, "c", 2));
    let again = shard.publish_with("s.a", &[("Nats-Msg-Id", "two")]);
    assert_eq!(again, Ok(Published::Duplicate(Sequence(2))));
    shard.check_recovery();
}

#[test]
fn what_a_full_stream_has_no_room_for_is_refused_together() {
    let full = StreamConfig { discard: Discard::New, max_messages: Some(3), ..atomic() };
    let mut shard = Shard::with(full);
    shard.publish("s.a", "1").unwrap();
    for number in 1..3 {
        shard.add("b", number).unwrap();
    }
    assert_eq!(shard.end("b", 3), Err(PublishRefusal::MaxMessages));
    assert_eq!(shard.living(), [1]);
    shard.add("c", 1).unwrap();
    assert_eq!(shard.end("c", 2), batch(3, "c", 2));
    shard.check_recovery();
}

#[test]
fn a_roll_up_stands_before_its_subject_in_a_batch() {
    let mut shard = Shard::with(StreamConfig { allow_rollup_headers: true, ..atomic() });
    shard.publish("s.a", "old").unwrap();
    shard.add("b", 1).unwrap();
    let rolled = [(ID, "b"), (NUMBER, "2"), (COMMIT, "1"), ("Nats-Rollup", "sub")];
    assert_eq!(shard.publish_with("s.a", &rolled), refused(BatchRefusal::Rollup { what: "sub" }));
    shard.add("c", 1).unwrap();
    let rolled = [(ID, "c"), (NUMBER, "2"), (COMMIT, "1"), ("Nats-Rollup", "all")];
    assert_eq!(shard.publish_with("s.b", &rolled), refused(BatchRefusal::Rollup { what: "all" }));
    shard.publish_with("s.a", &[(ID, "d"), (NUMBER, "1"), ("Nats-Rollup", "sub")]).unwrap();
    assert_eq!(shard.end("d", 2), batch(3, "d", 2));
    assert_eq!(shard.living(), [2, 3]);
    shard.check_recovery();
}

#[test]
fn a_batch_is_bounded_in_messages_and_bytes() {
    let mut shard = Shard::with(atomic());
    for number in 1..=1000 {
        shard.add("many", number).unwrap();
    }
    assert_eq!(shard.end("many", 1001), refused(BatchRefusal::TooLarge { messages: 1000 }));
    let large = "x".repeat(600_000);
    shard.publish_raw("S", "s.a", &[(ID, "large"), (NUMBER, "1")], &large).unwrap();
    let second = shard.publish_raw("S", "s.a", &[(ID, "large"), (NUMBER, "2")], &large);
    assert_eq!(second, refused(BatchRefusal::TooLarge { messages: 1 }));
    assert_eq!(shard.abandoned(), ["many", "large"].map(|id| (id, Abandoned::Large)));
    assert_eq!(shard.engine.batch_bytes, 0);
}

#[test]
fn so_many_batches_gather_at_once() {
    let mut shard = Shard::with(atomic());
    for number in 0..50 {
        shard.add(&format!("b{number}"), 1).unwrap();
    }
    assert_eq!(shard.add("one more", 1), refused(BatchRefusal::TooManyOpen));
    // One that is whole needs no room.
    assert_eq!(shard.end("whole", 1), batch(1, "whole", 1));
    assert_eq!(shard.end("b7", 2), batch(3, "b7", 2));
    assert_eq!(shard.add("one more", 1), Ok(Published::Waiting));
    shard.request(Request::DeleteStream { stream: "S".into() }).unwrap();
    assert_eq!(shard.engine.batch_bytes, 0);
}

#[test]
fn what_waits_is_bounded_over_all_batches() {
    let mut shard = Shard::with(atomic());
    let large = "x".repeat(1_000_000);
    let mut last = Ok(Published::Waiting);
    for stream in 0..2 {
        let name = format!("T{stream}");
        shard.create(StreamConfig { allow_atomic: true, ..stream_of(&name) }).unwrap();
        for number in 0..40 {
            last = shard.publish_raw(&name, &name, &[(ID, &format!("b{number}")), (NUMBER, "1")], &large);
        }
    }
    assert_eq!(last, refused(BatchRefusal::TooManyOpen));
    assert!(shard.engine.batch_bytes <= 64 << 20);
}

fn stream_of(name: &str) -> StreamConfig {
    StreamConfig { subjects: vec![name.into()], ..stream(name) }
}

#[test]
fn a_batch_that_nobody_goes_on_with_is_given_up() {
    let mut shard = Shard::with(atomic());
    shard.add("slow", 1).unwrap();
    shard.pass(6 * SECOND);
    shard.add("slow", 2).unwrap();
    shard.add("dead", 1).unwrap();
    shard.pass(6 * SECOND);
    shard.add("slow", 3).unwrap();
    shard.pass(6 * SECOND);
    assert_eq!(shard.abandoned(), [("dead", Abandoned::Timeout)]);
    assert_eq!(shard.end("dead", 2), refused(BatchRefusal::Incomplete));
    assert_eq!(shard.end("slow", 4), batch(4, "slow", 4));
    shard.pass(60 * SECOND);
    assert_eq!((shard.abandoned().len(), shard.engine.next_deadline()), (1, None));
}

#[test]
fn headers_that_make_no_batch_are_refused() {
    let mut shard = Shard::with(atomic());
    let mut say = |headers: &[(&str, &str)]| shard.publish_with("s.a", headers);
    let long = "i".repeat(65);
    assert_eq!(say(&[(ID, &long), (NUMBER, "1"), (COMMIT, "1")]), refused(BatchRefusal::InvalidId));
    assert_eq!(say(&[(ID, "b")]), refused(BatchRefusal::MissingSequence));
    assert_eq!(say(&[(ID, "b"), (NUMBER, "one")]), refused(BatchRefusal::MissingSequence));
    assert_eq!(say(&[(ID, "b"), (NUMBER, "1"), (COMMIT, "yes")]), refused(BatchRefusal::InvalidCommit));
    assert_eq!(say(&[(ID, "b"), (NUMBER, "1"), (COMMIT, "eob")]), refused(BatchRefusal::Incomplete));
    // Without an id it is no batch.
    assert_eq!(say(&[(NUMBER, "1")]), stored(1));
}

#[test]
fn a_stream_takes_batches_if_it_is_told_to() {
    let mut shard = Shard::with(s());
    assert_eq!(shard.end("b", 1), refused(BatchRefusal::Disabled));
    shard.request(Request::UpdateStream(Box::new(atomic()))).unwrap();
    assert_eq!(shard.end("b", 1), batch(1, "b", 1));
    shard.check_recovery();
    assert_eq!(shard.restored().end("c", 1), batch(2, "c", 1));
    shard.request(Request::UpdateStream(Box::new(s()))).unwrap();
    assert_eq!(shard.recovered().end("d", 1), refused(BatchRefusal::Disabled));
}
