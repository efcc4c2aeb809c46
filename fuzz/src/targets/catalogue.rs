//! What nodes of a cluster say of streams in other shards.

use beamlog_log::envelope::HEADER_BYTES;
use beamlog_router::api::catalogue::{CatalogueAnswer, CatalogueRefusal, CatalogueRequest, ListedMember};
use beamlog_router::api::request::{
    Arrival, ClusterShard, ListedShard, Place, Rearrange, Reservation, ShardList,
};

pub const WORDS: &[&[u8]] = &[&[0, 0, 0, 0, 0, 0, 0, 0], &[0xff; 8], &[1, 0, 0, 0], b"orders.>"];

/// The input as a request and as an answer, and as the body of each under a valid header.
pub fn run(data: &[u8]) {
    check(data);
    for valid in seeds() {
        if let Some(header) = valid.get(..4) {
            check(&sealed(header, data));
        }
    }
}

fn check(bytes: &[u8]) {
    if let Ok(request) = CatalogueRequest::decode(bytes) {
        let again = request.encode().expect("what was decoded is in bounds");
        assert_eq!(CatalogueRequest::decode(&again).expect("what was encoded decodes"), request);
    }
    if let Ok(answer) = CatalogueAnswer::decode(bytes) {
        let again = answer.encode().expect("what was decoded is in bounds");
        assert_eq!(CatalogueAnswer::decode(&again).expect("what was encoded decodes"), answer);
    }
}

/// A body under the header of an envelope of that kind.
pub(super) fn sealed(kind: &[u8], body: &[u8]) -> Vec<u8> {
    let mut bytes = kind.to_vec();
    bytes.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes);
    hasher.update(body);
    bytes.extend_from_slice(&hasher.finalize().to_le_bytes());
    assert_eq!(bytes.len(), HEADER_BYTES);
    bytes.extend_from_slice(body);
    bytes
}

pub fn seeds() -> Vec<Vec<u8>> {
    let reservation = Reservation {
        stream: "orders".into(),
        subjects: vec!["orders.>".into(), "returns".into()],
        store: "0123456789abcdef0123456789abcdef".into(),
        node: "n2".into(),
        peer: 7,
        term: 3,
        deleted: false,
    };
    let shard = ClusterShard { number: 1, nodes: vec!["n1".into(), "n2".into()], founder: 7 };
    let place = |peer| Place::Node { node: "n3".into(), peer };
    let arrival = Arrival {
        stream: "orders".into(),
        id: 4,
        from: Place::Common,
        to: place(3),
        store: String::new(),
        exchanged: false,
    };
    let requests = [
        CatalogueRequest::Reserve(reservation.clone()),
        CatalogueRequest::Release { stream: "orders".into(), store: "0123".into(), term: 3 },
        CatalogueRequest::Of { store: "0123".into(), after: "orders".into() },
        CatalogueRequest::PutShard(shard.clone()),
        CatalogueRequest::Shards,
        CatalogueRequest::Rearrange(Rearrange::Announce { stream: "orders".into(), to: place(3) }),
        CatalogueRequest::Rearrange(Rearrange::Exchange {
            stream: "orders".into(),
            id: 4,
            holder: Some(reservation.clone()),
        }),
        CatalogueRequest::Rearrange(Rearrange::Announce { stream: "orders".into(), to: Place::Shard(2) }),
        CatalogueRequest::Rearrange(Rearrange::List),
    ];
    let answers = [
        CatalogueAnswer::Reserved(reservation.clone()),
        CatalogueAnswer::Released,
        CatalogueAnswer::Arrivals(vec![arrival]),
        CatalogueAnswer::Page { reservations: vec![reservation], is_last: true },
        CatalogueAnswer::Refused(CatalogueRefusal::Invalid("invalid subject".into())),
        CatalogueAnswer::Refused(CatalogueRefusal::NameInUse),
        CatalogueAnswer::Shards {
            list: ShardList { common_streams: 2, shards: vec![ListedShard { shard, streams: 3 }] },
            members: vec![ListedMember { peer: 7, name: "n1".into(), address: "h:1".into() }],
        },
    ];
    let requests = requests.iter().map(|request| request.encode().expect("a small request"));
    let answers = answers.iter().map(|answer| answer.encode().expect("a small answer"));
    requests.chain(answers).collect()
}
