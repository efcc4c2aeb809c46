//! Messages by sequence, subject and time; absent and unreadable are different answers (DR14).

use std::ops::Bound;

use super::*;
use crate::api::request::BatchSelector;

fn shard() -> Shard {
    let mut shard = Shard::with(StreamConfig { allow_direct: true, ..s() });
    for (at, subject) in ["s.a", "s.b", "s.a", "s.b", "s.c", "s.a"].into_iter().enumerate() {
        shard.now = Timestamp((1_700_000_000 + 10 * at as u64) * SECOND);
        shard.publish(subject, &format!("{}", at + 1)).unwrap();
    }
    shard
        .request(Request::DeleteMessage { stream: "S".into(), sequence: Sequence(4), erase: false })
        .unwrap();
    shard
}

fn got(shard: &mut Shard, selector: MessageSelector) -> u64 {
    shard.get(selector).map_or(0, |message| message.sequence.0)
}

fn at(seconds: u64) -> Timestamp {
    Timestamp((1_700_000_000 + seconds) * SECOND)
}

#[test]
fn a_message_is_found_by_its_sequence() {
    let mut shard = shard();
    let message = shard.get(MessageSelector::At(Sequence(3))).unwrap();
    assert_eq!((&message.subject[..], &message.payload[..]), (&b"s.a"[..], &b"3"[..]));
    for absent in [0, 4, 7] {
        let answer = shard.get(MessageSelector::At(Sequence(absent)));
        assert_eq!(answer, Err(ApiError::NoMessage), "{absent}");
    }
}

#[test]
fn the_last_of_a_subject_or_filter_is_found() {
    let mut shard = shard();
    let mut last = |filter: &str| got(&mut shard, MessageSelector::LastOn(filter.into()));
    assert_eq!([last("s.a"), last("s.b"), last("s.c"), last("s.d"), last("s.>")], [6, 2, 5, 0, 6]);
    assert_eq!(shard.get(MessageSelector::LastOn("s..".into())), Err(ApiError::BadRequest));
}

#[test]
fn the_next_of_a_subject_or_filter_is_found() {
    let mut shard = shard();
    let mut next = |filter: &str, from| {
        got(&mut shard, MessageSelector::NextOn { filter: filter.into(), from: Sequence(from) })
    };
    assert_eq!([next("s.a", 0), next("s.a", 2), next("s.a", 4), next("s.a", 7)], [1, 3, 6, 0]);
    assert_eq!([next("s.b", 1), next("s.b", 3), next("s.c", 1)], [2, 0, 5]);
    assert_eq!([next("", 4), next("s.*", 4), next(">", 1)], [5, 5, 1]);
}

#[test]
fn the_first_since_a_time_is_found() {
    let mut shard = shard();
    let mut since = |seconds, filter: &str| {
        got(&mut shard, MessageSelector::NextAfter { filter: filter.into(), time: at(seconds) })
    };
    assert_eq!([since(0, ""), since(1, ""), since(29, ""), since(31, "")], [1, 2, 4 + 1, 5]);
    assert_eq!([since(5, "s.a"), since(45, "s.a"), since(51, "")], [3, 6, 0]);
}

#[test]
fn an_unreadable_message_is_never_absent() {
    let mut shard = shard();
    let unreadable = Err(ApiError::Unreadable(damage()));
    shard.journal.unreadable.insert((StreamId(1), Sequence(5)));
    assert_eq!(shard.get(MessageSelector::At(Sequence(5))), unreadable);
    assert_eq!(shard.get(MessageSelector::LastOn("s.c".into())), unreadable);
    let next = MessageSelector::NextOn { filter: "s.c".into(), from: Sequence(1) };
    assert_eq!(shard.get(next), unreadable);
    let next = MessageSelector::NextOn { filter: "s.*".into(), from: Sequence(4) };
    assert_eq!(shard.get(next), unreadable);
    assert_eq!(shard.engine.counters().unreadable, 4);
}

#[test]
fn direct_get_is_for_streams_that_allow_it() {
    let mut shard = Shard::with(s());
    shard.publish("s.a", "x").unwrap();
    let request = Request::DirectGet { stream: "S".into(), selector: MessageSelector::At(Sequence(1)) };
    assert_eq!(shard.request(request), Err(ApiError::StreamNotFound));
}

fn batch(
    shard: &mut Shard,
    selector: BatchSelector,
    batch: u32,
    max_bytes: Option<u64>,
) -> Result<(Vec<u64>, u64, u64), ApiError> {
    match shard.request(Request::DirectGetBatch { stream: "S".into(), selector, batch, max_bytes })? {
        Response::Batch { messages, pending, last_sequence, .. } => {
            let sequences = messages.iter().map(|message| message.sequence.0).collect();
            Ok((sequences, pending, last_sequence.0))
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_batch_says_how_many_are_left() {
    let mut shard = shard();
    let next = |filter: &str, from| BatchSelector::Next {
        filter: filter.into(),
        from: Sequence(from),
        from_time: None,
    };
    assert_eq!(batch(&mut shard, next("", 0), 3, None), Ok((vec![1, 2, 3], 2, 3)));
    assert_eq!(batch(&mut shard, next("", 4), 3, None), Ok((vec![5, 6], 0, 6)));
    assert_eq!(batch(&mut shard, next("s.a", 2), 1, None), Ok((vec![3], 1, 3)));
    assert_eq!(batch(&mut shard, next("", 1), 9, Some(5)), Ok((vec![1, 2], 3, 2)));
    assert_eq!(batch(&mut shard, next("s.d", 1), 9, None), Err(ApiError::NoMessage));
    let timed = BatchSelector::Next { filter: String::new(), from: Sequence(0), from_time: Some(at(20)) };
    assert_eq!(batch(&mut shard, timed, 9, None), Ok((vec![3, 5, 6], 0, 6)));
}

#[test]
fn the_last_of_each_subject_comes_in_order() {
    let mut shard = shard();
    let last = |filters: &[&str], up_to, up_to_time| BatchSelector::LastOfEach {
        filters: filters.iter().map(|filter| (*filter).to_owned()).collect(),
        up_to,
        up_to_time,
    };
    let all = last(&["s.>"], Bound::Unbounded, None);
    assert_eq!(batch(&mut shard, all, 0, None), Ok((vec![2, 5, 6], 0, 6)));
    let overlapping = last(&["s.a", "s.*"], Bound::Unbounded, None);
    assert_eq!(batch(&mut shard, overlapping, 2, None), Ok((vec![2, 5], 1, 5)));
    let bounded = last(&["s.a", "s.c"], Bound::Included(Sequence(5)), None);
    assert_eq!(batch(&mut shard, bounded, 0, None), Ok((vec![3, 5], 0, 5)));
    let timed = last(&["s.>"], Bound::Unbounded, Some(at(20)));
    assert_eq!(batch(&mut shard, timed, 0, None), Ok((vec![1, 2], 0, 2)));
    let none = last(&["s.x"], Bound::Unbounded, None);
    assert_eq!(batch(&mut shard, none, 0, None), Err(ApiError::NoMessage));
}
