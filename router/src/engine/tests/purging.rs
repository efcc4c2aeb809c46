//! Purge and delete: what goes, what stays, and that sequences never come back.

use super::*;
use crate::api::request::Purge;

fn shard() -> Shard {
    let mut shard = Shard::with(s());
    for subject in ["s.a", "s.b", "s.a", "s.b", "s.c"] {
        shard.publish(subject, "x").unwrap();
    }
    shard
}

fn purge(shard: &mut Shard, purge: Purge) -> Result<u64, ApiError> {
    match shard.request(Request::PurgeStream { stream: "S".into(), purge })? {
        Response::Purged { count } => Ok(count),
        other => panic!("{other:?}"),
    }
}

fn delete(shard: &mut Shard, sequence: u64) -> Result<(), ApiError> {
    let request = Request::DeleteMessage { stream: "S".into(), sequence: Sequence(sequence), erase: true };
    shard.request(request).map(|_| ())
}

#[test]
fn a_purge_empties_the_stream_and_goes_on_counting() {
    let mut shard = shard();
    assert_eq!(purge(&mut shard, Purge::default()), Ok(5));
    let state = shard.info().state;
    assert_eq!((state.messages, state.bytes, state.subjects_count), (0, 0, 0));
    assert_eq!((state.first_sequence, state.last_sequence), (Sequence(6), Sequence(5)));
    assert_eq!(shard.publish("s.a", "x"), stored(6));
    shard.check_recovery();
}

#[test]
fn a_purge_may_be_of_a_filter() {
    let mut shard = shard();
    assert_eq!(purge(&mut shard, Purge { filter: "s.a".into(), ..Purge::default() }), Ok(2));
    assert_eq!(shard.living(), [2, 4, 5]);
    assert_eq!(purge(&mut shard, Purge { filter: "s.none".into(), ..Purge::default() }), Ok(0));
    shard.check_recovery();
}

#[test]
fn a_purge_may_end_before_a_sequence() {
    let mut shard = shard();
    assert_eq!(purge(&mut shard, Purge { before: Some(Sequence(3)), ..Purge::default() }), Ok(2));
    assert_eq!(shard.living(), [3, 4, 5]);
    let filtered = Purge { before: Some(Sequence(5)), filter: "s.b".into(), ..Purge::default() };
    assert_eq!(purge(&mut shard, filtered), Ok(1));
    assert_eq!(shard.living(), [3, 5]);
    shard.check_recovery();
    assert_eq!(purge(&mut shard, Purge { before: Some(Sequence(9)), ..Purge::default() }), Ok(2));
}

#[test]
fn a_purge_may_leave_the_newest() {
    let mut shard = shard();
    assert_eq!(purge(&mut shard, Purge { keep: Some(1), filter: "s.*".into(), ..Purge::default() }), Ok(4));
    assert_eq!(shard.living(), [5]);
    assert_eq!(purge(&mut shard, Purge { keep: Some(1), ..Purge::default() }), Ok(0));
    let both = Purge { keep: Some(1), before: Some(Sequence(2)), ..Purge::default() };
    assert_eq!(purge(&mut shard, both), Err(ApiError::BadRequest));
    shard.check_recovery();
}

#[test]
fn a_large_purge_is_done_in_steps_and_publishes_go_on() {
    let mut shard = Shard::with(s());
    for at in 0..10_000 {
        shard.publish(if at % 2 == 0 { "s.a" } else { "s.b" }, "x").unwrap();
    }
    let request = Request::PurgeStream {
        stream: "S".into(),
        purge: Purge { filter: "s.a".into(), ..Purge::default() },
    };
    shard.input(Input::Request { token: 1, request });
    assert!(!shard.outputs.iter().any(|output| matches!(output, Output::Answer { .. })));
    assert_eq!(shard.publish("s.a", "after"), stored(10_001));
    shard.work();
    let answered = shard.outputs.iter().any(|output| {
        matches!(output, Output::Answer { token: 1, answer: Ok(Response::Purged { count: 5000 }) })
    });
    assert!(answered);
    assert_eq!(shard.info().subjects.unwrap().items, [("s.a".into(), 1), ("s.b".into(), 5000)]);
    shard.check_recovery();
}

#[test]
fn a_purge_whose_stream_is_deleted_is_answered() {
    let mut shard = Shard::with(s());
    for _ in 0..10_000 {
        shard.publish("s.a", "x").unwrap();
    }
    let purge = Purge { filter: "s.a".into(), ..Purge::default() };
    shard.input(Input::Request { token: 1, request: Request::PurgeStream { stream: "S".into(), purge } });
    shard.request(Request::DeleteStream { stream: "S".into() }).unwrap();
    let answered = shard
        .outputs
        .iter()
        .any(|output| matches!(output, Output::Answer { token: 1, answer: Err(ApiError::StreamNotFound) }));
    assert!(answered);
}

#[test]
fn a_message_is_deleted_once() {
    let mut shard = shard();
    assert_eq!(delete(&mut shard, 2), Ok(()));
    assert_eq!(delete(&mut shard, 2), Err(ApiError::SequenceNotFound(Sequence(2))));
    // What never was is told apart, as nats-server does it.
    let never = Err(ApiError::MessageDeleteFailed("no message found".into()));
    assert_eq!(delete(&mut shard, 9), never);
    let info = shard.info();
    assert_eq!(info.deleted, Some(vec![Sequence(2)]));
    assert_eq!(info.state.deleted_count, 1);
    delete(&mut shard, 1).unwrap();
    delete(&mut shard, 5).unwrap();
    let info = shard.info();
    assert_eq!((info.state.first_sequence, info.state.last_sequence), (Sequence(3), Sequence(5)));
    assert_eq!(shard.living(), [3, 4]);
    shard.check_recovery();
}

#[test]
fn deletes_in_any_order_leave_the_same_state() {
    for order in [[1, 2, 3, 4, 5], [5, 4, 3, 2, 1], [3, 1, 5, 2, 4], [2, 4, 1, 3, 5]] {
        let mut shard = shard();
        for sequence in order {
            delete(&mut shard, sequence).unwrap();
            shard.check_recovery();
        }
        let state = shard.info().state;
        assert_eq!((state.messages, state.bytes), (0, 0));
        assert_eq!((state.first_sequence, state.last_sequence), (Sequence(6), Sequence(5)));
    }
}

#[test]
fn what_a_stream_denies_is_refused() {
    let mut shard = Shard::with(StreamConfig { deny_delete: true, deny_purge: true, ..s() });
    shard.publish("s.a", "x").unwrap();
    let text = "message delete not permitted".to_owned();
    assert_eq!(delete(&mut shard, 1), Err(ApiError::MessageDeleteFailed(text)));
    let text = "stream purge not permitted".to_owned();
    assert_eq!(purge(&mut shard, Purge::default()), Err(ApiError::PurgeFailed(text)));
    let sealed = StreamConfig { sealed: true, deny_delete: true, deny_purge: true, ..s() };
    shard.request(Request::UpdateStream(Box::new(sealed))).unwrap();
    assert_eq!(delete(&mut shard, 1), Err(ApiError::StreamSealed));
    assert_eq!(purge(&mut shard, Purge::default()), Err(ApiError::StreamSealed));
}

#[test]
fn a_filtered_purge_does_not_step_over_what_it_cannot_read() {
    let mut shard = shard();
    shard.journal.unreadable.insert((StreamId(1), Sequence(2)));
    let filtered = Purge { filter: "s.*".into(), ..Purge::default() };
    assert_eq!(purge(&mut shard, filtered), Err(ApiError::Unreadable(damage())));
    assert_eq!(purge(&mut shard, Purge::default()), Ok(4));
}
