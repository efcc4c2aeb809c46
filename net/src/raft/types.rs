//! What openraft calls things here.
//!
//! An entry of openraft is a frame of our log. Our indexes begin at 1 and 0 is "before the first"; openraft's
//! begin at 0 and "before the first" is `None`. [`log_id`] and [`entry_id`] are the only places that know.

use std::fmt;

use beamlog_log::{EntryId, Index, Term, Timestamp};
use beamlog_router::replica::Proposal;
use bytes::Bytes;
use openraft::{
    RaftTypeConfig,
    entry::RaftPayload,
    impls::{BoxedErrorSource, InlineBatch, OneshotResponder, leader_id_std::LeaderId as StandardLeaderId},
    vote::RaftLeaderId,
};

use crate::runtime::Runtime;

/// The types of our Raft.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Types;

/// One leader in a term: the textbook's Raft, and all that a frame can say.
pub(crate) type LeaderId = StandardLeaderId<u64, u64>;
type CommittedLeaderId = <LeaderId as RaftLeaderId>::Committed;
pub(crate) type LogId = openraft::LogId<CommittedLeaderId>;
pub(crate) type Vote = openraft::Vote<LeaderId>;
pub(crate) type Membership = openraft::Membership<u64, Member>;
pub(crate) type StoredMembership = openraft::StoredMembership<CommittedLeaderId, u64, Member>;
pub(crate) type Entry = openraft::Entry<CommittedLeaderId, Payload>;
pub(crate) type Raft = openraft::Raft<Types, super::Machine>;

impl RaftTypeConfig for Types {
    type D = Data;
    type R = ();
    type NodeId = u64;
    type Node = Member;
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = Vote;
    type Payload = Payload;
    type Entry = Entry;
    type AsyncRuntime = Runtime;
    type Responder<T: Send + 'static> = OneshotResponder<Self, T>;
    type Batch<T: Send + 'static> = InlineBatch<T>;
    type ErrorSource = BoxedErrorSource;
}

/// The name of an entry of ours for openraft; `None` for "before the first".
pub(crate) fn log_id(id: EntryId) -> Option<LogId> {
    let index = id.index.0.checked_sub(1)?;
    Some(LogId::new(CommittedLeaderId::new(id.term.0), index))
}

/// The name of an entry of openraft's for us.
pub(crate) fn entry_id(id: Option<&LogId>) -> EntryId {
    id.map_or_else(EntryId::default, |id| EntryId {
        index: Index(id.index + 1),
        term: Term(id.committed_leader_id().term),
    })
}

/// A member of the cluster as its members know it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Member {
    pub name: String,
    /// `host:port` where its peers reach it.
    pub address: String,
    /// It votes and keeps no messages.
    pub witness: bool,
}

/// A frame without the name that replication gives it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Frame {
    pub(crate) timestamp: Timestamp,
    pub(crate) records: u32,
    pub(crate) body: Bytes,
}

/// What a leader's driver wants in the log.
#[derive(Clone, Debug)]
pub(crate) struct Data(pub(crate) Proposal);

impl fmt::Display for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "proposal {} of {} records", self.0.id, self.0.records)
    }
}

/// What an entry is for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Purpose {
    /// A leader's first: it commits what came before.
    Blank,
    Frame,
    Membership(Membership),
}

/// What an entry carries. All but the entries that openraft has just made have their frame.
#[derive(Clone, Debug)]
pub(crate) struct Payload {
    pub(crate) purpose: Purpose,
    pub(crate) frame: Option<Frame>,
    /// Of this very node: which proposal, and the term in which it was decided.
    pub(crate) proposal: Option<(u64, Term)>,
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.purpose {
            Purpose::Blank => f.write_str("blank"),
            Purpose::Frame => {
                write!(f, "{} records", self.frame.as_ref().map_or(0, |frame| frame.records))
            }
            Purpose::Membership(membership) => write!(f, "{membership}"),
        }
    }
}

impl RaftPayload for Payload {
    type D = Data;
    type NodeId = u64;
    type Node = Member;

    fn blank() -> Self {
        Self { purpose: Purpose::Blank, frame: None, proposal: None }
    }

    fn with_normal(self, data: Data) -> Self {
        let Proposal { id, term, timestamp, records, body } = data.0;
        Self {
            purpose: Purpose::Frame,
            frame: Some(Frame { timestamp, records, body }),
            proposal: Some((id, term)),
        }
    }

    fn with_membership(self, membership: Membership) -> Self {
        Self { purpose: Purpose::Membership(membership), frame: None, proposal: None }
    }

    fn get_membership(&self) -> Option<Membership> {
        match &self.purpose {
            Purpose::Membership(membership) => Some(membership.clone()),
            Purpose::Blank | Purpose::Frame => None,
        }
    }
}
