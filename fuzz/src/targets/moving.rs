//! What shards say to each other of a stream on its way: the answers carry messages behind their envelope.

use beamlog_log::{Message, Sequence, StreamId, Timestamp};
use beamlog_router::api::catalogue::CatalogueRefusal;
use beamlog_router::api::moving::{Dead, MoveAnswer, MovePage, MoveRequest, MovedId, Rest};
use bytes::Bytes;

use super::catalogue::sealed;

pub const WORDS: &[&[u8]] = &[&[0, 0, 0, 0, 0, 0, 0, 0], &[0xff; 8], &[1, 0, 0, 0], b"orders"];

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
    if let Ok(request) = MoveRequest::decode(bytes) {
        let again = request.encode().expect("what was decoded is in bounds");
        assert_eq!(MoveRequest::decode(&again).expect("what was encoded decodes"), request);
    }
    if let Ok(answer) = MoveAnswer::decode(&Bytes::copy_from_slice(bytes)) {
        let again = answer.clone().encode().expect("what was decoded is in bounds");
        assert_eq!(MoveAnswer::decode(&again.into()).expect("what was encoded decodes"), answer);
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let stream = || "orders".to_owned();
    let requests = [
        MoveRequest::Page { stream: stream(), after: Sequence(7) },
        MoveRequest::Freeze { stream: stream(), id: 1_795_232_323_000_000_000 },
        MoveRequest::Dead { stream: stream(), from: Sequence(1) },
        MoveRequest::Rest { stream: stream(), from: 2 },
        MoveRequest::Thaw { stream: stream(), id: 3 },
        MoveRequest::Drop { stream: stream(), id: 3 },
    ];
    let message = |sequence, headers: &'static [u8]| Message {
        stream: StreamId(0),
        sequence: Sequence(sequence),
        timestamp: Timestamp(1_795_232_323_000_000_000 + sequence),
        subject: Bytes::from_static(b"orders.eu"),
        headers: Bytes::from_static(headers),
        payload: Bytes::from_static(b"payload"),
    };
    let page = MovePage {
        up_to: Sequence(9),
        last: Sequence(12),
        last_time: Timestamp(1_795_232_323_000_000_012),
        messages: vec![message(8, b""), message(9, b"NATS/1.0\r\nNats-Msg-Id: a\r\n\r\n")],
        ids: vec![MovedId { id: b"b".to_vec(), sequence: Sequence(7), at: Timestamp(5), content: 6 }],
    };
    let answers = [
        MoveAnswer::Page(page),
        MoveAnswer::Page(MovePage::default()),
        MoveAnswer::Dead(Dead { first: Sequence(2), set: vec![0; 8], next: Some(Sequence(5)) }),
        MoveAnswer::Rest(Rest { rows: vec![b"row".to_vec(), Vec::new()], next: None }),
        MoveAnswer::Done,
        MoveAnswer::Refused(CatalogueRefusal::NotNow("not now".into())),
    ];
    let requests = requests.iter().map(|request| request.encode().expect("a small request"));
    requests.chain(answers.map(|answer| answer.encode().expect("a small answer"))).collect()
}
