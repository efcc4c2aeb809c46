//! A stream that moves from one shard to another is there what it was here, and only one of them takes publishes.

use super::consuming::durable;
use super::*;
use crate::api::moving::{Arrive, MoveAnswer, MovePage, MoveRequest};
use crate::api::request::{Arrival, ClusterShard, Place, Rearrange, Reservation};
use crate::stream::Retention;

impl Shard {
    fn asked(&mut self, wanted: MoveRequest) -> Result<MoveAnswer, ApiError> {
        match self.request(Request::Move(Box::new(wanted)))? {
            // As it comes over the wire.
            Response::Moving(answer) => Ok(MoveAnswer::decode(&answer.encode().unwrap().into()).unwrap()),
            other => panic!("{other:?}"),
        }
    }

    fn arriving(&mut self, wanted: Arrive) -> Result<(Sequence, bool), ApiError> {
        match self.request(Request::Arrive(Box::new(wanted)))? {
            Response::Arriving { last, again } => Ok((last, again)),
            other => panic!("{other:?}"),
        }
    }

    fn rearrange(&mut self, wanted: Rearrange) -> Result<Vec<Arrival>, ApiError> {
        match self.request(Request::Rearrange(Box::new(wanted)))? {
            Response::Arrivals(arrivals) => Ok(arrivals),
            other => panic!("{other:?}"),
        }
    }

    fn freeze(&mut self, id: u64) -> Result<MoveAnswer, ApiError> {
        self.asked(MoveRequest::Freeze { stream: "S".into(), id })
    }

    fn captures(&mut self) -> bool {
        let mut captured = false;
        for output in std::mem::take(&mut self.outputs) {
            match output {
                Output::Capture { .. } => captured = true,
                Output::Release { .. } => captured = false,
                _ => {}
            }
        }
        captured
    }

    fn stored_ids(&self, name: &str) -> Vec<(Vec<u8>, u64)> {
        let id = self.engine.names[name];
        let ids = self.engine.streams[&id].body.message_ids.iter();
        ids.map(|(id, sequence, ..)| (id.to_vec(), sequence.0)).collect()
    }
}

fn page(from: &mut Shard, after: Sequence) -> MovePage {
    match from.asked(MoveRequest::Page { stream: "S".into(), after }).unwrap() {
        MoveAnswer::Page(page) => page,
        other => panic!("{other:?}"),
    }
}

fn rows(from: &mut Shard) -> Vec<Vec<u8>> {
    match from.asked(MoveRequest::Rest { stream: "S".into(), from: 0 }).unwrap() {
        MoveAnswer::Rest(rest) if rest.next.is_none() => rest.rows,
        other => panic!("{other:?}"),
    }
}

/// Begins the copy, or goes on with it: all messages that there are now.
fn copy(from: &mut Shard, to: &mut Shard, id: u64) {
    let begin = Arrive::Begin { stream: "S".into(), id, rows: rows(from) };
    let (mut after, _) = to.arriving(begin).unwrap();
    loop {
        let page = page(from, after);
        let last = page.last;
        let take = Arrive::Take { stream: "S".into(), id, after, page };
        // What comes twice does nothing.
        let (taken, _) = to.arriving(take.clone()).unwrap();
        assert_eq!(to.arriving(take).unwrap().0, taken);
        assert!(taken > after || taken == last);
        after = taken;
        if taken == last {
            return;
        }
    }
}

fn rest(from: &mut Shard, to: &mut Shard, id: u64) {
    let stream = || "S".to_owned();
    let mut at = Some(Sequence(0));
    while let Some(from_here) = at {
        let MoveAnswer::Dead(dead) =
            from.asked(MoveRequest::Dead { stream: stream(), from: from_here }).unwrap()
        else {
            panic!("another answer");
        };
        at = dead.next;
        while to.arriving(Arrive::Trim { stream: stream(), id, dead: dead.clone() }).unwrap().1 {}
    }
    let rows = rows(from);
    to.arriving(Arrive::Rest { stream: stream(), id, rows: rows.clone() }).unwrap();
    // Once more, as after a restart.
    to.arriving(Arrive::Rest { stream: stream(), id, rows }).unwrap();
    to.arriving(Arrive::Check { stream: stream(), id }).unwrap();
}

/// Everything of the stream that users can tell.
fn shown(shard: &mut Shard) -> String {
    let mut info = shard.info();
    (info.id, info.now) = (StreamId(0), Timestamp(0));
    let messages: Vec<Message> = shard
        .living()
        .into_iter()
        .map(|at| {
            let message = shard.get(MessageSelector::At(Sequence(at))).unwrap();
            Message { stream: StreamId(0), ..message }
        })
        .collect();
    let consumers = &shard.engine.streams[&shard.engine.names["S"]].consumers;
    let consumers: Vec<_> = consumers
        .values()
        .map(|slot| {
            let mut snapshot = slot.consumer.snapshot();
            snapshot.id = crate::consumer::ConsumerId(0);
            // Told to users only, and logged with the batch in which they changed.
            (snapshot.delivered_at, snapshot.acked_at) = (Timestamp(0), Timestamp(0));
            snapshot
        })
        .collect();
    let ids = shard.stored_ids("S");
    format!("{info:#?}\n{messages:#?}\n{consumers:#?}\n{ids:?}")
}

/// A work queue with a past: acked, deleted and pending messages, ids of all of them.
fn queue() -> Shard {
    let mut shard = Shard::with(StreamConfig {
        retention: Retention::WorkQueue,
        duplicate_window_nanos: Some(120 * SECOND),
        ..s()
    });
    shard.consumer(durable("c")).unwrap();
    for number in 1..=20 {
        let id = format!("id-{number}");
        assert_eq!(shard.publish_with("s.a", &[("Nats-Msg-Id", &id)]), stored(number));
    }
    shard.pull("c", 8);
    assert_eq!(shard.delivered().len(), 8);
    for acked in [1, 2, 3, 5] {
        shard.ack("c", acked, None);
    }
    shard
        .request(Request::DeleteMessage { stream: "S".into(), sequence: Sequence(20), erase: false })
        .unwrap();
    shard
}

#[test]
fn a_stream_arrives_as_what_it_was() {
    let (mut from, mut to) = (queue(), Shard::new());
    let id = announce(&mut from, n(3)).unwrap().id;
    // Other numbers than there.
    to.create(stream("OTHER")).unwrap();
    copy(&mut from, &mut to, id);
    assert_eq!(to.info_of_names(), ["OTHER"]);
    assert!(!to.captures_of("S"));
    to.check_recovery();

    // It goes on while it is copied: more messages, more acks, one deleted that the copy has.
    assert_eq!(from.publish_with("s.b", &[("Nats-Msg-Id", "id-21")]), stored(21));
    from.ack("c", 4, None);
    from.request(Request::DeleteMessage { stream: "S".into(), sequence: Sequence(10), erase: false })
        .unwrap();
    to = to.recovered();
    copy(&mut from, &mut to, id);
    assert_eq!(from.publish_with("s.b", &[("Nats-Msg-Id", "id-22")]), stored(22));
    from.ack("c", 6, None);

    let before = shown(&mut from);
    from.freeze(id).unwrap();
    assert_eq!(from.freeze(id), Ok(MoveAnswer::Done));
    assert_eq!(from.publish("s.c", "nobody takes it"), Err(PublishRefusal::StreamNotFound));
    from.check_recovery();
    copy(&mut from, &mut to, id);
    rest(&mut from, &mut to, id);
    to.check_recovery();
    assert_eq!(to.publish("s.c", "nor here"), Err(PublishRefusal::StreamNotFound));
    to.arriving(Arrive::Open { stream: "S".into(), id }).unwrap();
    assert_eq!(shown(&mut to), before);
    assert!(to.captures_of("S"));
    to.check_recovery();

    let publish = |to: &mut Shard, number: u64| {
        let id = format!("id-{number}");
        to.publish_with(if number < 21 { "s.a" } else { "s.b" }, &[("Nats-Msg-Id", &id)])
    };
    // Also after a restart, and from rows: ids of messages that are gone too.
    let (mut replayed, mut restored) = (to.recovered(), to.restored());
    for (which, shard) in [&mut to, &mut replayed, &mut restored].into_iter().enumerate() {
        // The journal of the test forgets at once what died here; a log has it until it is compacted.
        for number in (1..=22).filter(|number| which < 2 || ![4, 6, 10].contains(number)) {
            let duplicate = Ok(Published::Duplicate(Sequence(number)));
            assert_eq!(publish(shard, number), duplicate, "{number} in {which}");
        }
        assert_eq!(publish(shard, 23), stored(23));
    }
    to.pull("c", 100);
    assert_eq!(to.delivered().first(), Some(&9), "what is pending waits for its time");
    to.pass(60 * SECOND);
    to.pull("c", 100);
    assert!(to.delivered().starts_with(&[7, 8]));
    from.asked(MoveRequest::Drop { stream: "S".into(), id }).unwrap();
    from.check_recovery();
}

#[test]
fn a_move_that_is_given_up_leaves_the_stream_as_it_was() {
    let (mut from, mut to) = (queue(), Shard::new());
    let id = announce(&mut from, n(3)).unwrap().id;
    copy(&mut from, &mut to, id);
    let before = shown(&mut from);
    from.freeze(id).unwrap();
    from.captures();
    let thaw = MoveRequest::Thaw { stream: "S".into(), id };
    // One of another move does nothing.
    from.asked(MoveRequest::Thaw { stream: "S".into(), id: id + 1 }).unwrap();
    assert!(!from.captures());
    from.asked(thaw.clone()).unwrap();
    assert!(from.captures());
    assert_eq!(shown(&mut from), before);
    from.asked(thaw).unwrap();
    from.check_recovery();
    assert_eq!(from.publish("s.c", "again"), stored(21));
    from.pull("c", 1);
    assert_eq!(from.delivered(), [9]);
    to.asked(MoveRequest::Drop { stream: "S".into(), id }).unwrap();
    assert_eq!(to.engine.streams.len(), 0);
    to.check_recovery();
}

#[test]
fn a_copy_that_misses_something_is_not_opened() {
    let (mut from, mut to) = (queue(), Shard::new());
    let id = announce(&mut from, n(3)).unwrap().id;
    copy(&mut from, &mut to, id);
    from.publish("s.c", "late").unwrap();
    from.freeze(id).unwrap();
    let stream = || "S".to_owned();
    let rows = rows(&mut from);
    to.arriving(Arrive::Rest { stream: stream(), id, rows }).unwrap();
    let open = Arrive::Open { stream: stream(), id };
    let check = Arrive::Check { stream: stream(), id };
    assert!(matches!(to.arriving(check), Err(ApiError::StreamUpdateInvalid(_))));
    assert_eq!(to.arriving(open.clone()), Err(ApiError::StreamNotFound));
    copy(&mut from, &mut to, id);
    rest(&mut from, &mut to, id);
    to.arriving(open).unwrap();
}

fn at_n2() -> Reservation {
    Reservation {
        stream: "S".into(),
        subjects: vec!["s.>".into()],
        store: "store-2".into(),
        node: "n2".into(),
        peer: 2,
        term: 0,
        deleted: false,
    }
}

fn n(peer: u64) -> Place {
    Place::Node { node: format!("n{peer}"), peer }
}

fn announce(shard: &mut Shard, to: Place) -> Result<Arrival, ApiError> {
    shard.rearrange(Rearrange::Announce { stream: "S".into(), to }).map(|mut arrivals| arrivals.remove(0))
}

#[test]
fn one_record_exchanges_the_holder() {
    let mut shard = Shard::new();
    assert_eq!(announce(&mut shard, n(3)), Err(ApiError::StreamNotFound));
    shard.request(Request::Reserve(Box::new(at_n2()))).unwrap();
    let arrival = announce(&mut shard, n(3)).unwrap();
    assert_eq!((&arrival.from, arrival.store.as_str()), (&n(2), "store-2"));
    assert_eq!(announce(&mut shard, n(3)), Ok(arrival.clone()));
    assert!(announce(&mut shard, n(1)).is_err());
    let holder = Reservation { store: "store-3".into(), node: "n3".into(), peer: 3, ..at_n2() };
    let exchange = |id| {
        let holder = Some(Reservation { subjects: Vec::new(), ..holder.clone() });
        Rearrange::Exchange { stream: "S".into(), id, holder }
    };
    assert!(shard.rearrange(exchange(arrival.id + 1)).is_err());
    assert!(shard.rearrange(exchange(arrival.id)).unwrap()[0].exchanged);
    assert!(shard.rearrange(exchange(arrival.id)).unwrap()[0].exchanged, "asked again");
    let reserved = Request::Reservations;
    assert_eq!(shard.request(reserved), Ok(Response::Reservations(vec![holder.clone()])));
    shard.check_recovery();
    // It cannot be called back, and does not move on before the first one has forgotten it.
    let cancel = |id| Rearrange::Cancel { stream: "S".into(), id };
    assert!(shard.rearrange(cancel(arrival.id)).is_err());
    assert!(announce(&mut shard, n(1)).is_err());
    shard.rearrange(Rearrange::Forget { stream: "S".into(), id: arrival.id }).unwrap();
    assert_eq!(shard.rearrange(Rearrange::List), Ok(vec![]));
    let next = announce(&mut shard, n(1)).unwrap();
    shard.rearrange(cancel(next.id)).unwrap();
    assert!(shard.rearrange(exchange(next.id)).is_err(), "it was given up");
    shard.check_recovery();
}

#[test]
fn a_stream_comes_into_the_shard_of_the_catalogue_and_leaves_it() {
    let (mut from, mut shard) = (queue(), Shard::new());
    from.engine.limits.shard = ShardKind::Local;
    shard.request(Request::Reserve(Box::new(at_n2()))).unwrap();
    let id = announce(&mut shard, Place::Common).unwrap().id;
    copy(&mut from, &mut shard, id);
    // Its name and subjects are still the other's.
    assert_eq!(shard.create(s()), Err(ApiError::StreamOffline { node: "n2".into() }));
    let subjects = Reservation { subjects: vec!["s.>".into(), "t".into()], ..at_n2() };
    shard.request(Request::Reserve(Box::new(subjects))).unwrap();
    shard.request(Request::Reserve(Box::new(at_n2()))).unwrap();
    from.asked(MoveRequest::Freeze { stream: "S".into(), id }).unwrap();
    copy(&mut from, &mut shard, id);
    rest(&mut from, &mut shard, id);
    shard.captures();
    let exchange = Rearrange::Exchange { stream: "S".into(), id, holder: None };
    assert!(shard.rearrange(exchange.clone()).unwrap()[0].exchanged);
    assert!(shard.rearrange(exchange).unwrap()[0].exchanged);
    assert!(shard.captures());
    assert_eq!(shard.publish("s.a", "here"), stored(21));
    assert_eq!(shard.request(Request::Reservations), Ok(Response::Reservations(vec![])));
    shard.check_recovery();
    shard.rearrange(Rearrange::Forget { stream: "S".into(), id }).unwrap();

    let arrival = announce(&mut shard, n(3)).unwrap();
    assert_eq!(arrival.from, Place::Common);
    let mut to = Shard::new();
    copy(&mut shard, &mut to, arrival.id);
    let holder = || Some(Reservation { store: "store-3".into(), node: "n3".into(), peer: 3, ..at_n2() });
    let exchange = |id| Rearrange::Exchange { stream: "S".into(), id, holder: holder() };
    assert!(shard.rearrange(exchange(arrival.id)).is_err(), "it is not frozen");
    shard.asked(MoveRequest::Freeze { stream: "S".into(), id: arrival.id }).unwrap();
    // Given up: it serves again; and once more.
    shard.rearrange(Rearrange::Cancel { stream: "S".into(), id: arrival.id }).unwrap();
    assert_eq!(shard.publish("s.a", "goes on"), stored(22));
    let arrival = announce(&mut shard, n(3)).unwrap();
    copy(&mut shard, &mut to, arrival.id);
    shard.asked(MoveRequest::Freeze { stream: "S".into(), id: arrival.id }).unwrap();
    rest(&mut shard, &mut to, arrival.id);
    shard.rearrange(exchange(arrival.id)).unwrap();
    to.arriving(Arrive::Open { stream: "S".into(), id: arrival.id }).unwrap();
    assert_eq!(shard.engine.streams.len(), 0);
    assert_eq!(shard.request(Request::Reservations), Ok(Response::Reservations(vec![holder().unwrap()])));
    assert_eq!(shard.rearrange(Rearrange::List), Ok(vec![]));
    shard.check_recovery();
    to.check_recovery();
}

#[test]
fn a_stream_that_is_deleted_on_its_way_is_gone() {
    let mut shard = Shard::with(s());
    announce(&mut shard, n(3)).unwrap();
    shard.request(Request::DeleteStream { stream: "S".into() }).unwrap();
    assert_eq!(shard.rearrange(Rearrange::List), Ok(vec![]));
    shard.request(Request::Reserve(Box::new(at_n2()))).unwrap();
    announce(&mut shard, n(3)).unwrap();
    shard.request(Request::Release { stream: "S".into(), store: "store-2".into(), term: 0 }).unwrap();
    assert_eq!(shard.rearrange(Rearrange::List), Ok(vec![]));
    shard.check_recovery();
}

fn of_shard(number: u8, term: u64) -> Reservation {
    let (store, node) = (Reservation::store_of_shard(number), format!("shard {number}"));
    Reservation { store, node, peer: 0, term, ..at_n2() }
}

#[test]
fn a_numbered_shard_gets_a_stream_and_gives_it_away_whoever_leads_it() {
    let mut shard = Shard::new();
    let reserved = |shard: &mut Shard| shard.request(Request::Reservations);
    let list = |shard: &mut Shard, number| {
        let nodes = vec!["n1".to_owned()];
        shard.request(Request::PutShard(ClusterShard { number, nodes, founder: 1 })).unwrap();
    };
    list(&mut shard, 1);
    shard.request(Request::Reserve(Box::new(of_shard(1, 3)))).unwrap();
    assert!(matches!(announce(&mut shard, Place::Shard(2)), Err(ApiError::NoSuitablePeers(_))));
    list(&mut shard, 2);
    let arrival = announce(&mut shard, Place::Shard(2)).unwrap();
    assert_eq!((&arrival.from, arrival.store.as_str()), (&Place::Shard(1), "shard-1"));
    let exchange = |id, holder| Rearrange::Exchange { stream: "S".into(), id, holder };
    // Nobody else takes it.
    for other in [None, Some(at_n2()), Some(of_shard(1, 9))] {
        assert_eq!(shard.rearrange(exchange(arrival.id, other)), Err(ApiError::BadRequest));
    }
    // The leader of before asks too, and is late: it changes nothing.
    for term in [5, 4] {
        assert!(shard.rearrange(exchange(arrival.id, Some(of_shard(2, term)))).unwrap()[0].exchanged);
        assert_eq!(reserved(&mut shard), Ok(Response::Reservations(vec![of_shard(2, 5)])));
    }
    let release = |store: &str, term| Request::Release { stream: "S".into(), store: store.into(), term };
    for late in [release("shard-2", 4), release("shard-1", 9)] {
        shard.request(late).unwrap();
        assert_eq!(reserved(&mut shard), Ok(Response::Reservations(vec![of_shard(2, 5)])));
    }
    shard.check_recovery();
    assert!(announce(&mut shard, Place::Common).is_err(), "shard 1 has its copy yet");
    shard.rearrange(Rearrange::Forget { stream: "S".into(), id: arrival.id }).unwrap();

    let next = announce(&mut shard, n(3)).unwrap();
    assert_eq!(next.from, Place::Shard(2));
    let n3 = Reservation { store: "store-3".into(), node: "n3".into(), peer: 3, ..at_n2() };
    shard.rearrange(exchange(next.id, Some(n3))).unwrap();
    shard.rearrange(Rearrange::Forget { stream: "S".into(), id: next.id }).unwrap();
    let next = announce(&mut shard, Place::Shard(1)).unwrap();
    assert_eq!((&next.from, next.store.as_str()), (&n(3), "store-3"));
    shard.check_recovery();
}

#[test]
fn a_stream_of_the_first_shard_goes_to_a_numbered_one_and_comes_back() {
    let mut shard = Shard::with(s());
    let nodes = vec!["n1".to_owned()];
    shard.request(Request::PutShard(ClusterShard { number: 1, nodes, founder: 1 })).unwrap();
    shard.publish("s.a", "first").unwrap();
    let id = announce(&mut shard, Place::Shard(1)).unwrap().id;
    let mut to = Shard::new();
    to.engine.limits.shard = ShardKind::Numbered(1);
    copy(&mut shard, &mut to, id);
    let exchange = |id, holder| Rearrange::Exchange { stream: "S".into(), id, holder };
    let holder = || Some(of_shard(1, 7));
    assert!(shard.rearrange(exchange(id, holder())).is_err(), "it is not frozen");
    shard.freeze(id).unwrap();
    rest(&mut shard, &mut to, id);
    shard.rearrange(exchange(id, holder())).unwrap();
    assert_eq!(shard.engine.streams.len(), 0);
    assert_eq!(shard.request(Request::Reservations), Ok(Response::Reservations(vec![of_shard(1, 7)])));
    // Until it is opened nobody makes another one of it there.
    assert!(matches!(to.create(s()), Err(ApiError::StreamOffline { .. })));
    to.arriving(Arrive::Open { stream: "S".into(), id }).unwrap();
    assert_eq!(to.publish("s.a", "second"), stored(2));
    let back = announce(&mut shard, Place::Common).unwrap().id;
    copy(&mut to, &mut shard, back);
    to.freeze(back).unwrap();
    rest(&mut to, &mut shard, back);
    shard.rearrange(exchange(back, None)).unwrap();
    assert_eq!(shard.publish("s.a", "third"), stored(3));
    assert_eq!(shard.request(Request::Reservations), Ok(Response::Reservations(vec![])));
    shard.check_recovery();
}

#[test]
fn whoever_carried_a_move_before_does_not_touch_the_copy_of_a_later_one() {
    let (mut from, mut to) = (queue(), Shard::new());
    let id = announce(&mut from, n(3)).unwrap().id;
    copy(&mut from, &mut to, id);
    from.freeze(id).unwrap();
    rest(&mut from, &mut to, id);
    let begin = |id, rows| Arrive::Begin { stream: "S".into(), id, rows };
    let rows = rows(&mut from);
    assert_eq!(to.arriving(begin(id - 1, rows.clone())), Err(ApiError::StreamNotFound));
    to = to.recovered();
    assert_eq!(to.arriving(begin(id - 1, rows.clone())), Err(ApiError::StreamNotFound));
    let (_, is_whole) = to.arriving(begin(id, rows.clone())).unwrap();
    assert!(is_whole);
    // Of a later one the copy is another.
    let (last, is_whole) = to.arriving(begin(id + 1, rows)).unwrap();
    assert_eq!((last, is_whole), (Sequence(0), false));
    assert_eq!(to.engine.streams.len(), 1);
}

#[test]
fn what_a_move_is_told_is_in_the_log() {
    let mut from = queue();
    // No answer to an ack waits for the log.
    from.engine.take_commit_wanted();
    from.ack("c", 4, None);
    assert!(!from.engine.take_commit_wanted());
    from.asked(MoveRequest::Dead { stream: "S".into(), from: Sequence(0) }).unwrap();
    assert!(from.engine.take_commit_wanted());
}

impl Shard {
    fn info_of_names(&mut self) -> Vec<String> {
        match self.request(Request::StreamNames { subject: None, offset: 0 }).unwrap() {
            Response::Names(page) => page.items,
            other => panic!("{other:?}"),
        }
    }

    /// Whether the stream of that name is announced.
    fn captures_of(&mut self, name: &str) -> bool {
        let id = self.engine.names.get(name).copied();
        let captured = self
            .outputs
            .iter()
            .any(|output| matches!(output, Output::Capture { stream, .. } if Some(*stream) == id));
        id.is_some() && captured
    }
}
