//! Messages that a link brought: each is stored once, however often and after whatever it comes again.

use beamlog_log::SeededRandom;

use super::*;
use crate::api::request::Purge;
use crate::stream::{ORIGIN_HEADER, Provenance};

fn from(sequence: u64) -> Provenance {
    Provenance {
        stream: "UP".into(),
        epoch: 3,
        sequence: Sequence(sequence),
        time: Timestamp(sequence),
        keep_sequence: false,
        after: None,
    }
}

fn import(shard: &mut Shard, from: &Provenance) -> Result<Published, PublishRefusal> {
    shard.publish_with("s.a", &[(ORIGIN_HEADER, from.to_header().as_str())])
}

fn duplicate() -> Result<Published, PublishRefusal> {
    Ok(Published::Duplicate(Sequence(0)))
}

#[test]
fn a_message_that_comes_again_is_a_duplicate_for_ever() {
    let mut shard = Shard::with(s());
    assert_eq!(import(&mut shard, &from(1)), stored(1));
    assert_eq!(import(&mut shard, &from(2)), stored(2));
    assert_eq!(import(&mut shard, &from(2)), duplicate());
    // Longer than any window of message ids.
    shard.pass(1_000_000 * SECOND);
    assert_eq!(import(&mut shard, &from(1)), duplicate());
    let mut shard = shard.recovered();
    assert_eq!(import(&mut shard, &from(1)), duplicate());
    let mut shard = shard.restored();
    assert_eq!(import(&mut shard, &from(2)), duplicate());
    assert_eq!(import(&mut shard, &from(3)), stored(3));
}

#[test]
fn a_message_that_is_gone_here_is_not_stored_again() {
    let mut shard = Shard::with(s());
    import(&mut shard, &from(1)).unwrap();
    let purge = Request::PurgeStream { stream: "S".into(), purge: Purge::default() };
    shard.request(purge).unwrap();
    assert_eq!(import(&mut shard.restored(), &from(1)), duplicate());
    assert_eq!(import(&mut shard, &from(1)), duplicate());
}

#[test]
fn a_stream_made_anew_there_is_another_origin() {
    let mut shard = Shard::with(s());
    import(&mut shard, &from(1)).unwrap();
    assert_eq!(import(&mut shard, &Provenance { epoch: 4, ..from(1) }), stored(2));
    let origins = shard.info().origins;
    assert_eq!(origins.len(), 2);
    assert_eq!((origins[0].epoch, origins[1].epoch), (3, 4));
}

#[test]
fn two_links_may_bring_parts_of_one_stream_at_their_own_pace() {
    let mut shard = Shard::with(s());
    for sequence in [2, 4, 6, 1, 3, 5] {
        assert!(matches!(import(&mut shard, &from(sequence)), Ok(Published::Stored(_))));
    }
    assert_eq!(import(&mut shard, &from(3)), duplicate());
    assert_eq!(shard.info().origins[0].highest, Sequence(6));
}

#[test]
fn a_kept_sequence_skips_what_is_missing() {
    let mut shard = Shard::with(s());
    let kept = |sequence| Provenance { keep_sequence: true, ..from(sequence) };
    assert_eq!(import(&mut shard, &kept(5)), stored(5));
    assert_eq!(import(&mut shard, &kept(6)), stored(6));
    // Longer than anybody would count through.
    let far = 1 << 24;
    assert_eq!(import(&mut shard, &kept(far)), stored(far));
    let actual = Sequence(far);
    // Longer than is kept in memory.
    assert_eq!(import(&mut shard, &kept(1 << 40)), Err(PublishRefusal::WrongLastSequence { actual }));
    assert_eq!(import(&mut shard, &kept(5)), duplicate());
    assert_eq!(import(&mut shard, &kept(7)), Err(PublishRefusal::WrongLastSequence { actual }));
    let state = shard.info().state;
    assert_eq!((state.first_sequence, state.last_sequence, state.messages), (Sequence(5), actual, 3));
    let mut recovered = shard.recovered();
    assert_eq!(recovered.info().state, state);
    assert_eq!(shard.restored().info().state, state);
    for sequence in [5, 6] {
        let request =
            Request::DeleteMessage { stream: "S".into(), sequence: Sequence(sequence), erase: true };
        recovered.request(request).unwrap();
    }
    assert_eq!(recovered.info().state.first_sequence, actual);
}

#[test]
fn a_message_id_of_another_stream_decides_nothing_here() {
    let mut shard = Shard::with(s());
    let id = ("Nats-Msg-Id", "one");
    shard.publish_raw("S", "s.a", &[id], "ours").unwrap();
    let origin = from(1).to_header();
    let imported = shard.publish_raw("S", "s.a", &[id, (ORIGIN_HEADER, &origin)], "theirs");
    assert_eq!(imported, stored(2));
}

#[test]
fn an_origin_that_cannot_be_read_is_refused() {
    let mut shard = Shard::with(s());
    assert_eq!(shard.publish_with("s.a", &[(ORIGIN_HEADER, "UP 3")]), Err(PublishRefusal::HeadersMalformed));
}

#[test]
fn origins_are_bounded() {
    let mut shard = Shard::with(s());
    for epoch in 0..1024 {
        import(&mut shard, &Provenance { epoch, ..from(1) }).unwrap();
    }
    let more = Provenance { epoch: 1024, ..from(1) };
    assert_eq!(import(&mut shard, &more), Err(PublishRefusal::TooManyOrigins));
    assert_eq!(import(&mut shard, &Provenance { epoch: 5, ..from(2) }), stored(1025));
}

/// What is stored is what a set says, through repeats, restarts and snapshots.
#[test]
fn any_order_of_repeats_and_restarts_stores_each_once() {
    for seed in 0..40 {
        let mut random = SeededRandom::new(seed);
        let mut below = move |end: u64| random.below(end);
        let mut shard = Shard::with(s());
        let mut model: BTreeSet<(u64, u64)> = BTreeSet::new();
        let mut at = 1;
        for _ in 0..300 {
            match below(20) {
                0 => shard = shard.recovered(),
                1 => shard = shard.restored(),
                2 => at = 1 + below(at),
                _ => {
                    let epoch = below(2);
                    let result = import(&mut shard, &Provenance { epoch, ..from(at) });
                    let expected =
                        if model.insert((epoch, at)) { stored(model.len() as u64) } else { duplicate() };
                    assert_eq!(result, expected, "seed {seed}");
                    at += 1 + below(3);
                }
            }
        }
    }
}
