//! Membership, votes, what peers held and leaders' first entries as bytes of our disk, and entries of our log as openraft's.
//!
//! A leader's first entry is a record of replication without bytes; a membership is an envelope in one.

use std::collections::{BTreeMap, BTreeSet};

use beamlog_log::{
    EntryId, Index, LogEntry, ShardId, Timestamp,
    envelope::{self, DecodeError, EncodeError, Enveloped},
};
use bytes::Bytes;
use openraft::vote::RaftLeaderId;

use super::{
    Shard, ShardState,
    storage::StorageError,
    types::{Entry, Frame, LeaderId, Member, Membership, Payload, Purpose, Vote, log_id},
};

/// More members than any cluster has.
const MEMBERS_MAX: usize = 64;
/// Joint consensus has two.
const CONFIGS_MAX: usize = 4;
const TEXT_MAX: usize = 512;

#[derive(Debug, wincode::SchemaRead, wincode::SchemaWrite)]
struct MembershipRecord {
    configs: Vec<Vec<u64>>,
    members: Vec<MemberRecord>,
}

#[derive(Debug, wincode::SchemaRead, wincode::SchemaWrite)]
struct MemberRecord {
    id: u64,
    name: String,
    address: String,
    witness: bool,
}

#[derive(Debug, wincode::SchemaRead, wincode::SchemaWrite)]
struct VoteRecord {
    term: u64,
    node: u64,
    committed: bool,
}

/// What peers held of what is committed: id, index.
#[derive(Debug, wincode::SchemaRead, wincode::SchemaWrite)]
struct HeldRecord {
    peers: Vec<(u64, u64)>,
}

impl Enveloped for HeldRecord {
    const KIND: u16 = 0x0306;
    const VERSION: u8 = 1;
}

impl Enveloped for MembershipRecord {
    const KIND: u16 = 0x0301;
    const VERSION: u8 = 1;
}

impl Enveloped for VoteRecord {
    const KIND: u16 = 0x0302;
    const VERSION: u8 = 1;
}

/// Why a record of replication is not one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    #[error("a record of replication cannot be read")]
    Decode(#[from] DecodeError),
    #[error("a record of replication cannot be written")]
    Encode(#[from] EncodeError),
    #[error("a membership: {0}")]
    Membership(&'static str),
}

pub(crate) fn encode_membership(membership: &Membership) -> Result<Vec<u8>, ControlError> {
    let configs =
        membership.get_joint_config().iter().map(|config| config.iter().copied().collect()).collect();
    let members = membership
        .nodes()
        .map(|(id, member)| MemberRecord {
            id: *id,
            name: member.name.clone(),
            address: member.address.clone(),
            witness: member.witness,
        })
        .collect();
    Ok(envelope::encode(&MembershipRecord { configs, members })?)
}

pub(crate) fn decode_membership(bytes: &[u8]) -> Result<Membership, ControlError> {
    let record: MembershipRecord = envelope::decode(bytes)?;
    if record.members.len() > MEMBERS_MAX || record.configs.len() > CONFIGS_MAX {
        return Err(ControlError::Membership("more members than a cluster has"));
    }
    let long = |member: &MemberRecord| member.name.len() > TEXT_MAX || member.address.len() > TEXT_MAX;
    if record.members.iter().any(long) {
        return Err(ControlError::Membership("a name or an address is too long"));
    }
    let members: BTreeMap<u64, Member> = record
        .members
        .into_iter()
        .map(|member| {
            let MemberRecord { id, name, address, witness } = member;
            (id, Member { name, address, witness })
        })
        .collect();
    let configs: Vec<BTreeSet<u64>> =
        record.configs.into_iter().map(|config| config.into_iter().collect()).collect();
    Membership::new(configs, members)
        .map_err(|_invalid| ControlError::Membership("a voter is not among the members"))
}

pub(crate) fn encode_vote(vote: &Vote) -> Result<Vec<u8>, ControlError> {
    let leader = vote.leader_id();
    let record = VoteRecord { term: leader.term, node: leader.voted_for, committed: vote.is_committed() };
    Ok(envelope::encode(&record)?)
}

pub(crate) fn decode_vote(bytes: &[u8]) -> Result<Vote, ControlError> {
    let VoteRecord { term, node, committed } = envelope::decode(bytes)?;
    Ok(Vote { leader_id: LeaderId::new(term, node), committed })
}

/// `held` has at most [`MEMBERS_MAX`] peers.
pub(crate) fn encode_held(held: &BTreeMap<u64, Index>) -> Result<Vec<u8>, ControlError> {
    let peers = held.iter().take(MEMBERS_MAX).map(|(peer, index)| (*peer, index.0)).collect();
    Ok(envelope::encode(&HeldRecord { peers })?)
}

pub(crate) fn decode_held(bytes: &[u8]) -> Result<BTreeMap<u64, Index>, ControlError> {
    let HeldRecord { peers } = envelope::decode(bytes)?;
    Ok(peers.into_iter().take(MEMBERS_MAX).map(|(peer, index)| (peer, Index(index))).collect())
}

/// Gives an entry that openraft has just made the frame it will have in the log.
pub(crate) fn give_frame(entry: &mut Entry, shard: ShardId, now: Timestamp) -> Result<(), ControlError> {
    let term = entry.log_id.committed_leader_id().term;
    let payload = &mut entry.payload;
    // Decided in another term, against another state: it may not become an entry of this one.
    if payload.proposal.is_some_and(|(_, decided)| decided.0 != term) {
        *payload = Payload { purpose: Purpose::Blank, frame: None, proposal: None };
    }
    if payload.frame.is_none() {
        let bytes = match &payload.purpose {
            Purpose::Membership(membership) => encode_membership(membership)?,
            Purpose::Blank | Purpose::Frame => Vec::new(),
        };
        let body = LogEntry::replication_body(shard, &bytes);
        payload.frame = Some(Frame { timestamp: now, records: 1, body });
    }
    Ok(())
}

/// An entry out of the log, or from a peer, for openraft.
pub(crate) fn entry_of(entry: LogEntry) -> Result<Entry, ControlError> {
    let purpose = match entry.replication() {
        None => Purpose::Frame,
        Some([]) => Purpose::Blank,
        Some(bytes) => Purpose::Membership(decode_membership(bytes)?),
    };
    let LogEntry { id, timestamp, records, body } = entry;
    let log_id = log_id(id).ok_or(ControlError::Membership("an entry has index 0"))?;
    let frame = Some(Frame { timestamp, records, body });
    Ok(Entry { log_id, payload: Payload { purpose, frame, proposal: None } })
}

/// The membership in a record of replication, if it is one.
pub(crate) fn membership_of(bytes: &Bytes) -> Result<Membership, ControlError> {
    if bytes.is_empty() { Ok(Membership::default()) } else { decode_membership(bytes) }
}

/// The first membership of a cluster, of one node, as an entry; and the vote that goes with it.
pub(crate) fn begin_membership(
    shard: ShardId,
    id: EntryId,
    me: u64,
    member: Member,
) -> Result<(LogEntry, Vec<u8>), ControlError> {
    let membership = Membership::new(vec![BTreeSet::from([me])], BTreeMap::from([(me, member)]))
        .map_err(|_invalid| ControlError::Membership("a voter is not among the members"))?;
    let body = LogEntry::replication_body(shard, &encode_membership(&membership)?);
    let entry = LogEntry { id, timestamp: Timestamp(0), records: 1, body };
    let vote = encode_vote(&Vote { leader_id: LeaderId::new(id.term.0, me), committed: false })?;
    Ok((entry, vote))
}

/// The last membership in the log, folded or not.
pub(crate) async fn last_membership(
    shard: &dyn Shard,
    state: &ShardState,
) -> Result<Option<Membership>, StorageError> {
    let mut last_one = match &state.replication {
        Some((_, bytes)) => Some(membership_of(bytes)?),
        None => None,
    };
    let mut from = state.applied.index.next();
    while from <= state.last.index {
        let entries = shard.read(from, state.last.index.next(), 4 << 20).await?;
        let Some(last) = entries.last() else { break };
        from = last.id.index.next();
        for entry in &entries {
            if let Some(bytes) = entry.replication().filter(|bytes| !bytes.is_empty()) {
                last_one = Some(decode_membership(bytes)?);
            }
        }
    }
    Ok(last_one)
}
