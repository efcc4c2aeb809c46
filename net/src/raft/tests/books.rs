//! What the books hold against openraft, and what they do not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use beamlog_log::{EntryId, Index, Term};

use super::direct::DirectShard;
use crate::raft::books::{Books, Report};
use crate::raft::{Member, Membership, Vote};

const ME: u64 = 1;

fn id(term: u64, index: u64) -> EntryId {
    EntryId { index: Index(index), term: Term(term) }
}

/// One of three voters, which leads in term 3 and has entries 1 to 10 on its disk.
fn leading() -> Books {
    let books = Books::new(ME, Arc::new(DirectShard::new()));
    let members: BTreeMap<u64, Member> = (1..=3)
        .map(|node| (node, Member { name: format!("n{node}"), address: String::new(), witness: false }))
        .collect();
    let voters = BTreeSet::from([1, 2, 3]);
    books.membership(id(1, 1), Membership::new(vec![voters], members).unwrap());
    books.vote_saved(&Vote::new_committed(3, ME));
    books.durable_here(id(3, 10));
    books
}

fn holds(books: &Books, peer: u64, entry: EntryId) {
    let report = Report { term: Term(3), matched: entry, durable: entry };
    books.reported(peer, report, Index(10)).unwrap();
}

fn is_deposed(books: &Books) {
    let vote = Vote::new_committed(4, 2);
    books.vote_changes(&vote);
    books.vote_saved(&vote);
    assert_eq!(books.leads(), None);
}

#[test]
fn what_a_quorum_held_under_a_leadership_that_ended_is_committed() {
    let books = leading();
    holds(&books, 2, id(3, 8));
    is_deposed(&books);
    books.committed(id(3, 8)).unwrap();
    // Nobody but this node had the next one.
    assert!(books.committed(id(3, 9)).is_err());
    // What a later leader appended was not counted by this one.
    assert!(books.committed(id(4, 8)).is_err());
}

#[test]
fn what_was_cut_since_counts_no_more() {
    let books = leading();
    holds(&books, 2, id(3, 8));
    is_deposed(&books);
    books.truncated(id(3, 6));
    // An entry of before this leadership, which the next leader had and this one had not.
    books.durable_here(id(2, 7));
    assert!(books.committed(id(2, 7)).is_err());
    books.told(Index(7));
    books.committed(id(2, 7)).unwrap();
}

#[test]
fn who_held_what_was_cut_did_not_lose_what_was_committed_there() {
    let books = leading();
    // One more that is not committed: a quorum has it and openraft has not said so.
    holds(&books, 2, id(3, 8));
    is_deposed(&books);
    books.truncated(id(3, 6));
    books.durable_here(id(4, 9));
    books.told(Index(9));
    books.committed(id(4, 9)).unwrap();
    assert_eq!(books.regressed(2, Index(6)), None, "it was not seen with entries 7 to 9 of the next leader");
}
