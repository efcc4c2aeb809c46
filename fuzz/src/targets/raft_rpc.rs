//! What peers say about the log.

use beamlog_log::{EntryId, Index, LogEntry, ShardId, Term, Timestamp};
use beamlog_net::raft::wire::{
    Answer, Append, CopyOf, Have, OfferState, Outcome, Request, TransferRefused, WireVote,
};

pub const WORDS: &[&[u8]] = &[&[0xff; 8], &[0; 8], &[1, 0, 0, 0], &[0xff, 0xff, 0xff, 0x7f]];

/// The input as a request and as an answer: what is taken has one spelling, and entries follow each other.
pub fn run(data: &[u8]) {
    if let Ok((shard, request)) = Request::decode(data.to_vec().into()) {
        if let Request::Append(append) = &request {
            let mut before = append.previous;
            for entry in &append.entries {
                assert_eq!(entry.id.index, before.index.next());
                assert!(before.term <= entry.id.term && entry.id.term.0 <= append.vote.term);
                before = entry.id;
            }
        }
        assert_eq!(request.encode(shard).as_ref(), data);
        assert_eq!(Request::shard_of(&data.to_vec().into()), Ok(shard));
    }
    if let Ok(answer) = Answer::decode(data.to_vec().into()) {
        assert_eq!(answer.encode().as_ref(), data);
    }
}

const fn id(index: u64, term: u64) -> EntryId {
    EntryId { index: Index(index), term: Term(term) }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let vote = WireVote { term: 3, node: 7, committed: false };
    let leader = WireVote { committed: true, ..vote };
    let entry = |index, term, body: &'static [u8]| LogEntry {
        id: id(index, term),
        timestamp: Timestamp(1_700_000_000_000_000_000),
        records: 1,
        body: body.into(),
    };
    let append = |previous, entries| {
        let held = vec![(8, Index(4)), (9, Index(5))];
        Request::Append(Append { vote: leader, previous, commit: id(5, 2), held, entries })
    };
    let requests = [
        Request::Vote { vote, last: id(9, 2), transfer: false },
        Request::PreVote { vote, last: id(0, 0), transfer: true },
        append(id(5, 2), vec![entry(6, 2, b"records"), entry(7, 3, b"")]),
        append(id(0, 0), vec![]),
        Request::Transfer { from: leader, to: 9, last: id(9, 3) },
        Request::Offer { vote: leader, state: CopyOf { last: id(9, 3) } },
        Request::Files,
        Request::Have { index: Index(9) },
        Request::Time,
        Request::Members,
        Request::Chunk { file: "00000000000000000001.seg".into(), offset: 4096, bytes: 65_536 },
    ];
    let answers = [
        Answer::Vote { vote, last: id(9, 2), granted: true },
        Answer::Append { outcome: Outcome::Taken, durable: id(7, 3) },
        Answer::Append { outcome: Outcome::Partly(id(6, 2)), durable: id(6, 2) },
        Answer::Append { outcome: Outcome::Conflict, durable: id(0, 0) },
        Answer::Append { outcome: Outcome::HigherVote(leader), durable: id(6, 2) },
        Answer::Transfer(Ok(())),
        Answer::Transfer(Err(TransferRefused::VoteChanged { expected: vote, actual: leader })),
        Answer::Transfer(Err(TransferRefused::NotFlushed { expected: id(9, 3), actual: id(8, 3) })),
        Answer::Offer(OfferState::Fetching { done: 1, total: 2 }),
        Answer::Offer(OfferState::Installed { vote: leader, last: id(9, 3) }),
        Answer::Offer(OfferState::Failed { reason: "the disk is full".into() }),
        Answer::Offer(OfferState::HigherVote(leader)),
        Answer::Files { membership_id: id(4, 2), membership: b"who".as_slice().into(), list: b"files".as_slice().into() },
        Answer::Have(Have::Never),
        Answer::Have(Have::Entry(entry(6, 2, b"records"))),
        Answer::Have(Have::Unknown),
        Answer::Time(Timestamp(1_767_225_600_000_000_000)),
        Answer::Members { membership_id: id(4, 2), membership: b"who".as_slice().into() },
        Answer::Chunk(b"bytes".as_slice().into()),
    ];
    let requests = requests.iter().map(|request| request.encode(ShardId(0)).to_vec());
    requests.chain(answers.iter().map(|answer| answer.encode().to_vec())).collect()
}
