//! Streams of other shards: their names and subjects are as taken as those of streams here.

use super::*;
use crate::api::request::{ClusterShard, Page, Reservation, ShardList};

fn reservation(name: &str, subject: &str) -> Reservation {
    Reservation {
        stream: name.into(),
        subjects: vec![subject.into()],
        store: "store-2".into(),
        node: "n2".into(),
        peer: 2,
        term: 0,
        deleted: false,
    }
}

impl Shard {
    fn reserve(&mut self, wanted: Reservation) -> Result<Reservation, ApiError> {
        match self.request(Request::Reserve(Box::new(wanted)))? {
            Response::Reserved(in_force) => Ok(*in_force),
            other => panic!("{other:?}"),
        }
    }

    fn reservations(&mut self) -> Vec<Reservation> {
        match self.request(Request::Reservations).unwrap() {
            Response::Reservations(all) => all,
            other => panic!("{other:?}"),
        }
    }

    fn release(&mut self, name: &str, store: &str) {
        let request = Request::Release { stream: name.into(), store: store.into(), term: 0 };
        assert_eq!(self.request(request), Ok(Response::Deleted));
    }

    fn names(&mut self, subject: Option<&str>) -> Page<String> {
        let subject = subject.map(str::to_owned);
        match self.request(Request::StreamNames { subject, offset: 0 }).unwrap() {
            Response::Names(page) => page,
            other => panic!("{other:?}"),
        }
    }

    fn put_shard(&mut self, number: u8, nodes: &[&str], founder: u64) -> Result<ShardList, ApiError> {
        let nodes = nodes.iter().map(|name| (*name).to_owned()).collect();
        match self.request(Request::PutShard(ClusterShard { number, nodes, founder }))? {
            Response::Shards(list) => Ok(list),
            other => panic!("{other:?}"),
        }
    }

    fn delete(&mut self, name: &str) -> Answer {
        self.request(Request::DeleteStream { stream: name.into() })
    }
}

fn offline<T>() -> Result<T, ApiError> {
    Err(ApiError::StreamOffline { node: "n2".into() })
}

#[test]
fn no_two_streams_of_a_cluster_share_a_name_or_a_subject() {
    let mut shard = Shard::with(s());
    assert_eq!(shard.reserve(reservation("S", "other")), Err(ApiError::StreamNameInUse));
    assert_eq!(shard.reserve(reservation("L", "s.a")), Err(ApiError::SubjectOverlap));
    let there = reservation("L", "l.>");
    assert_eq!(shard.reserve(there.clone()), Ok(there.clone()));
    assert_eq!(
        shard.create(StreamConfig { subjects: vec!["l.x".into()], ..stream("X") }),
        Err(ApiError::SubjectOverlap)
    );
    assert_eq!(shard.create(stream("L")), offline());
    let wider = StreamConfig { subjects: vec!["s.>".into(), "l.*".into()], ..s() };
    assert_eq!(shard.request(Request::UpdateStream(Box::new(wider))), Err(ApiError::SubjectOverlap));
    // Another store does not get it, and is told who has it.
    let theirs = Reservation { store: "store-3".into(), node: "n3".into(), ..reservation("L", "x") };
    assert_eq!(shard.reserve(theirs.clone()), Ok(there.clone()));
    shard.release("L", "store-3");
    assert_eq!(shard.reservations(), [there]);
    shard.release("L", "store-2");
    assert_eq!(shard.reservations(), []);
    assert_eq!(shard.reserve(theirs.clone()), Ok(theirs));
}

#[test]
fn a_reservation_follows_its_streams_subjects() {
    let mut shard = Shard::with(s());
    shard.reserve(reservation("L", "l.>")).unwrap();
    shard.reserve(reservation("M", "m.>")).unwrap();
    assert_eq!(shard.reserve(reservation("L", "m.a")), Err(ApiError::SubjectOverlap));
    // Its own are no obstacle.
    let narrower = reservation("L", "l.a");
    assert_eq!(shard.reserve(narrower.clone()), Ok(narrower));
    let own_name = Reservation { subjects: Vec::new(), ..reservation("N", "") };
    assert_eq!(shard.reserve(own_name).unwrap().subjects, ["N"]);
    shard.check_recovery();
}

#[test]
fn what_is_no_stream_is_not_reserved() {
    let mut shard = Shard::new();
    for (name, subject) in [("", "a"), ("a.b", "a"), ("a", "a..b"), ("a", " ")] {
        assert!(shard.reserve(reservation(name, subject)).is_err(), "{name:?} {subject:?}");
    }
    let long = Reservation { node: "n".repeat(256), ..reservation("L", "l") };
    assert_eq!(shard.reserve(long), Err(ApiError::BadRequest));
    assert_eq!(shard.reservations(), []);
    for n in 0..limits().streams {
        shard.reserve(reservation(&format!("L{n}"), &format!("l.{n}"))).unwrap();
    }
    assert_eq!(shard.reserve(reservation("L", "l")), Err(ApiError::MaxStreams));
    assert_eq!(shard.create(s()), Err(ApiError::MaxStreams));
}

#[test]
fn streams_elsewhere_are_listed_and_said_to_be_there() {
    let mut shard = Shard::with(s());
    shard.reserve(reservation("L", "l.>")).unwrap();
    assert_eq!(shard.names(None).items, ["L", "S"]);
    assert_eq!(shard.names(Some("l.a")).items, ["L"]);
    assert_eq!(shard.names(Some("s.a")).items, ["S"]);
    let Response::Account(info) = shard.request(Request::AccountInfo).unwrap() else { panic!() };
    assert_eq!(info.streams, 2);
    let info = |stream: &str| Request::StreamInfo {
        stream: stream.into(),
        subjects_filter: None,
        offset: 0,
        deleted_details: false,
    };
    assert_eq!(shard.request(info("L")), offline());
    assert_eq!(shard.request(info("M")), Err(ApiError::StreamNotFound));
}

#[test]
fn a_stream_that_is_deleted_while_its_node_is_away_keeps_its_subjects_until_it_is_gone() {
    let mut shard = Shard::with(s());
    shard.reserve(reservation("L", "l.>")).unwrap();
    assert_eq!(shard.delete("L"), Ok(Response::Deleted));
    assert_eq!(shard.delete("L"), Err(ApiError::StreamNotFound));
    assert_eq!(shard.names(None).items, ["S"]);
    assert_eq!(shard.create(stream("L")), offline());
    assert_eq!(
        shard.create(StreamConfig { subjects: vec!["l.x".into()], ..stream("X") }),
        Err(ApiError::SubjectOverlap)
    );
    // Its own node is told, and must let go first.
    assert!(shard.reserve(reservation("L", "l.>")).unwrap().deleted);
    shard.check_recovery();
    shard.release("L", "store-2");
    assert_eq!(shard.reserve(reservation("L", "l.>")), Ok(reservation("L", "l.>")));
    shard.check_recovery();
}

#[test]
fn streams_of_two_shards_have_no_number_in_common() {
    let mut local = Shard::new();
    local.engine = Engine::new(EngineLimits { shard: ShardKind::Local, ..limits() });
    local.create(s()).unwrap();
    let mut common = Shard::with(s());
    assert_eq!(ShardKind::of(local.info().id), ShardKind::Local);
    assert_eq!(ShardKind::of(common.info().id), ShardKind::Common);
    common.engine.next_stream = ShardKind::Common.last_stream() + 1;
    assert_eq!(common.create(stream("T")), Err(ApiError::MaxStreams));
}

#[test]
fn shards_are_listed_in_turn_and_each_has_one_founder() {
    let mut shard = Shard::with(s());
    let three = ["n1", "n2", "n3"];
    let refused = |answer: Result<ShardList, ApiError>| {
        assert!(matches!(answer, Err(ApiError::NoSuitablePeers(_) | ApiError::BadRequest)), "{answer:?}");
    };
    refused(shard.put_shard(0, &three, 1));
    refused(shard.put_shard(2, &three, 1));
    refused(shard.put_shard(1, &[], 1));
    refused(shard.put_shard(1, &["n1", "n1"], 1));
    refused(shard.put_shard(1, &["n1", ""], 1));
    refused(shard.put_shard(1, &["a", "b", "c", "d", "e", "f"], 1));
    let list = shard.put_shard(1, &three, 1).unwrap();
    assert_eq!((list.common_streams, list.shards.len()), (1, 1));
    assert_eq!(shard.put_shard(1, &three, 1), Ok(list));
    refused(shard.put_shard(1, &three, 2));
    shard.put_shard(2, &["n4"], 4).unwrap();
    let list = shard.put_shard(1, &["n1", "n5"], 1).unwrap();
    assert_eq!(list.shards[0].shard.nodes, ["n1", "n5"]);
    let of_shard = Reservation { store: Reservation::store_of_shard(2), ..reservation("L", "l.>") };
    shard.reserve(of_shard).unwrap();
    shard.check_recovery();
    let Ok(Response::Shards(list)) = shard.request(Request::Shards) else { panic!("no list") };
    assert_eq!(list.shards.iter().map(|listed| listed.streams).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn what_an_older_leader_of_a_shard_says_comes_too_late() {
    let mut shard = Shard::new();
    let at = |term, subject: &str| Reservation {
        store: Reservation::store_of_shard(1),
        peer: 0,
        term,
        ..reservation("L", subject)
    };
    let release = |shard: &mut Shard, term| {
        let (stream, store) = ("L".into(), Reservation::store_of_shard(1));
        shard.request(Request::Release { stream, store, term }).unwrap();
    };
    shard.reserve(at(5, "l.5")).unwrap();
    assert_eq!(shard.reserve(at(7, "l.7")), Ok(at(7, "l.7")));
    assert_eq!(shard.reserve(at(5, "l.5")), Ok(at(7, "l.7")), "it is told what is in force");
    release(&mut shard, 6);
    assert_eq!(shard.reservations(), [at(7, "l.7")]);
    shard.check_recovery();
    release(&mut shard, 7);
    assert_eq!(shard.reservations(), []);
}
