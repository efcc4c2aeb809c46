//! Changing who is in the cluster, one change at a time, on whatever node it is asked for.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use beamlog_log::{
    ShardId,
    envelope::{self, DecodeError, Enveloped},
};
use bytes::{BufMut, Bytes, BytesMut};
use openraft::{
    ChangeMembers,
    async_runtime::WatchReceiver,
    errors::{ClientWriteError, RaftError},
};

use super::{Cluster, Inner, Member, Seat, seat::not_yet};
use crate::{
    peer::{CallError, Lane, PeerId, Refusal},
    raft::{Types, code},
    runtime,
};

/// A change of the cluster.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Change {
    /// Takes a node in: it gets the log first and votes when it is close behind.
    Add { id: PeerId, member: Member },
    /// Takes a node out. Its id never comes back.
    Remove { id: PeerId },
    /// Takes one in and another out, with one change of the voters.
    Replace { old: PeerId, new: PeerId, member: Member },
    /// Lets another node lead: the named one, or the one that holds most.
    Transfer { to: Option<PeerId> },
}

/// Why a change was not made, or not to its end.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ChangeError {
    #[error("there is no leader to change the cluster")]
    NoLeader,
    #[error("another change of the cluster is under way")]
    UnderWay,
    #[error("node {0} is not a member")]
    NotMember(PeerId),
    #[error("node {0} is a member already")]
    Member(PeerId),
    #[error("node {id} did not catch up in {waited:?}: it is {behind} entries behind and stays a learner")]
    Behind { id: PeerId, waited: Duration, behind: u64 },
    #[error("no other node can lead")]
    NoSuccessor,
    #[error("the last voter cannot be taken out")]
    LastVoter,
    #[error("{0}")]
    Refused(String),
    /// Perhaps it is made.
    #[error("the change was not confirmed in time: {0}")]
    Unknown(String),
}

/// Behind by this much a node is close enough to vote.
const CLOSE_ENTRIES: u64 = 64;
/// A step that needs only the quorum.
const STEP: Duration = Duration::from_secs(10);
/// A node that takes longer to catch up stays a learner; adding it again goes on.
const CATCH_UP: Duration = Duration::from_secs(3600);
/// How often its progress is looked at.
const LOOK: Duration = Duration::from_millis(50);

impl Cluster {
    /// Makes a change, here or by asking the leader. Adding a node returns when it votes, which can take as
    /// long as copying the log to it does.
    ///
    /// *Cancel safety*: a change that has begun goes on or stops between two steps; asking for it again
    /// continues it.
    pub async fn change(&self, change: Change) -> Result<(), ChangeError> {
        let inner = &self.inner;
        let leader = inner.raft.metrics().borrow_watched().current_leader.map(PeerId);
        match leader {
            Some(leader) if leader == inner.me => inner.make(change).await,
            Some(leader) => inner.forward(leader, &change, 1).await,
            None => Err(ChangeError::NoLeader),
        }
    }

    /// Asks a node of a cluster to take this one in. As [`Self::change`] with [`Change::Add`] on that node.
    ///
    /// *Cancel safety*: as [`Self::change`].
    pub async fn join(&self, through: PeerId, member: Member) -> Result<(), ChangeError> {
        self.inner.forward(through, &Change::Add { id: self.inner.me, member }, 0).await
    }
}

impl Inner {
    async fn forward(&self, to: PeerId, change: &Change, hops: u8) -> Result<(), ChangeError> {
        let request = ChangeRecord::of(change, hops).encode(self.handler.shard());
        let limit = match change {
            Change::Add { .. } | Change::Replace { .. } => CATCH_UP,
            Change::Remove { .. } | Change::Transfer { .. } => STEP * 2,
        };
        let answer = self.transport.call(to, Lane::Admin, request, limit).await;
        match answer {
            Ok(bytes) if bytes.as_ref() == [1] => Ok(()),
            Ok(_) => Err(ChangeError::Refused("the answer is not one".to_owned())),
            Err(CallError::Refused(refusal)) => Err(ChangeError::Refused(refusal.reason)),
            Err(error @ (CallError::NotConnected(_) | CallError::TooLarge { .. } | CallError::OneWay(_))) => {
                Err(ChangeError::Refused(error.to_string()))
            }
            Err(error @ (CallError::TimedOut | CallError::Lost(_))) => {
                Err(ChangeError::Unknown(error.to_string()))
            }
        }
    }

    /// On the leader.
    async fn make(&self, change: Change) -> Result<(), ChangeError> {
        let Ok(_one) = self.changing.try_lock() else { return Err(ChangeError::UnderWay) };
        match change {
            Change::Add { id, member } => {
                if self.voters().contains(&id.0) {
                    return Err(ChangeError::Member(id));
                }
                self.learn(id, member).await?;
                self.members(ChangeMembers::AddVoterIds(BTreeSet::from([id.0]))).await
            }
            Change::Remove { id } => {
                let voters = self.voters();
                if voters.contains(&id.0) {
                    if voters.len() == 1 {
                        return Err(ChangeError::LastVoter);
                    }
                    self.members(ChangeMembers::RemoveVoters(BTreeSet::from([id.0]))).await?;
                } else if self.is_member(id) {
                    self.members(ChangeMembers::RemoveNodes(BTreeSet::from([id.0]))).await?;
                } else {
                    return Err(ChangeError::NotMember(id));
                }
                self.books.forget(id.0);
                Ok(())
            }
            Change::Replace { old, new, member } => {
                let mut voters = self.voters();
                if !voters.remove(&old.0) {
                    return Err(ChangeError::NotMember(old));
                }
                if voters.contains(&new.0) {
                    return Err(ChangeError::Member(new));
                }
                self.learn(new, member).await?;
                voters.insert(new.0);
                self.members(ChangeMembers::ReplaceAllVoters(voters)).await?;
                self.books.forget(old.0);
                Ok(())
            }
            Change::Transfer { to } => self.transfer(to).await,
        }
    }

    fn voters(&self) -> BTreeSet<u64> {
        self.raft.metrics().borrow_watched().membership_config.membership().voter_ids().collect()
    }

    fn is_half_changed(&self) -> bool {
        self.raft.metrics().borrow_watched().membership_config.membership().get_joint_config().len() > 1
    }

    fn is_member(&self, id: PeerId) -> bool {
        self.raft.metrics().borrow_watched().membership_config.membership().get_node(&id.0).is_some()
    }

    fn is_witness(&self, id: PeerId) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.membership().get_node(&id.0).is_some_and(|member| member.witness)
    }

    /// Makes a node a learner and waits until it is close.
    async fn learn(&self, id: PeerId, member: Member) -> Result<(), ChangeError> {
        if !self.is_member(id) {
            within(STEP, self.raft.add_learner(id.0, member, false)).await?;
        }
        let began = runtime::now();
        loop {
            let held = self.books.peers().get(&id.0).map_or(0, |held| held.index.0);
            let behind = self.storage.last().index.0.saturating_sub(held);
            if held > 0 && behind <= CLOSE_ENTRIES {
                return Ok(());
            }
            let waited = runtime::now() - began;
            if waited > CATCH_UP {
                return Err(ChangeError::Behind { id, waited, behind });
            }
            if self.books.leads().is_none() {
                return Err(ChangeError::Unknown("this node does not lead any more".to_owned()));
            }
            runtime::sleep(LOOK).await;
        }
    }

    async fn members(&self, change: ChangeMembers<u64, Member>) -> Result<(), ChangeError> {
        within(STEP, self.raft.change_membership(change, false)).await.map(|_done| ())
    }

    async fn transfer(&self, to: Option<PeerId>) -> Result<(), ChangeError> {
        let to = match to {
            Some(to) if to == self.me => return Ok(()),
            Some(to) if self.is_witness(to) => return Err(ChangeError::NoSuccessor),
            Some(to) if self.voters().contains(&to.0) => to.0,
            Some(to) => return Err(ChangeError::NotMember(to)),
            None => self.successor().ok_or(ChangeError::NoSuccessor)?,
        };
        if self.raft.trigger().transfer_leader(to).await.is_err() {
            return Err(ChangeError::Unknown("Raft has stopped".to_owned()));
        }
        let mut metrics = self.raft.metrics();
        let moved = async {
            loop {
                if metrics.borrow_and_update().current_leader.is_some_and(|leader| leader != self.me.0) {
                    return true;
                }
                if metrics.changed().await.is_err() {
                    return false;
                }
            }
        };
        match runtime::timeout(STEP, moved).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(ChangeError::Unknown("Raft has stopped".to_owned())),
            Err(timed_out) => Err(ChangeError::Unknown(timed_out.to_string())),
        }
    }
}

/// Finishes what a leader that is gone has begun: a change of voters has two steps, and without the second every entry needs a
/// majority of the old voters and of the new ones for ever.
pub(super) async fn finish(inner: Arc<Inner>) {
    while !inner.ended() {
        runtime::sleep(inner.options.election.1).await;
        if inner.books.leads().is_none() || !inner.is_half_changed() {
            continue;
        }
        // Of this leader's own the second step is under way.
        let Ok(_one) = inner.changing.try_lock() else { continue };
        match inner.members(ChangeMembers::AddVoterIds(BTreeSet::new())).await {
            Ok(()) => tracing::info!("a change of the members that another leader began is finished"),
            Err(error) => tracing::debug!(err = %error, "a change of the members is not finished yet"),
        }
    }
}

async fn within<T>(
    limit: Duration,
    change: impl Future<Output = Result<T, RaftError<Types, ClientWriteError<Types>>>> + Send,
) -> Result<T, ChangeError> {
    match runtime::timeout(limit, change).await {
        Err(timed_out) => Err(ChangeError::Unknown(timed_out.to_string())),
        Ok(Ok(done)) => Ok(done),
        Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) => Err(ChangeError::NoLeader),
        Ok(Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error)))) => {
            Err(ChangeError::Refused(error.to_string()))
        }
        Ok(Err(error)) => Err(ChangeError::Unknown(error.to_string())),
    }
}

/// A change on its way to the leader.
#[derive(Debug, wincode::SchemaRead, wincode::SchemaWrite)]
struct ChangeRecord {
    /// 1 add, 2 remove, 3 replace, 4 transfer.
    what: u8,
    /// How many nodes have passed it on: two that each take the other for the leader do not do so for ever.
    hops: u8,
    id: u64,
    old: u64,
    name: String,
    address: String,
    witness: bool,
}

impl Enveloped for ChangeRecord {
    const KIND: u16 = 0x0303;
    const VERSION: u8 = 1;
}

/// The same, of another shard than the first.
#[derive(Debug, wincode::SchemaRead, wincode::SchemaWrite)]
struct ShardChangeRecord {
    shard: u32,
    change: ChangeRecord,
}

impl Enveloped for ShardChangeRecord {
    const KIND: u16 = 0x0305;
    const VERSION: u8 = 1;
}

/// Which shard a peer's request on the lane of operators is about.
pub(super) fn shard_of(request: &[u8]) -> ShardId {
    let bytes = request.strip_prefix(&[Seat::ADMIN_MARK]).unwrap_or_default();
    // What is not a change is refused by whoever it comes to.
    ChangeRecord::decode(bytes).map_or(ShardId(0), |(shard, _)| shard)
}

impl ChangeRecord {
    fn of(change: &Change, hops: u8) -> Self {
        let nobody = Member::default();
        let (what, id, old, member) = match change {
            Change::Add { id, member } => (1, id.0, 0, member),
            Change::Remove { id } => (2, id.0, 0, &nobody),
            Change::Replace { old, new, member } => (3, new.0, old.0, member),
            Change::Transfer { to } => (4, to.map_or(0, |to| to.0), 0, &nobody),
        };
        let Member { name, address, witness } = member.clone();
        Self { what, hops, id, old, name, address, witness }
    }

    fn encode(self, shard: ShardId) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(Seat::ADMIN_MARK);
        let encoded = match shard {
            ShardId(0) => envelope::encode(&self),
            ShardId(shard) => envelope::encode(&ShardChangeRecord { shard, change: self }),
        };
        out.put_slice(&encoded.expect("names and addresses are short"));
        out.freeze()
    }

    fn decode(bytes: &[u8]) -> Result<(ShardId, Self), DecodeError> {
        match envelope::decode::<ShardChangeRecord>(bytes) {
            Ok(ShardChangeRecord { shard, change }) => Ok((ShardId(shard), change)),
            Err(_other) => envelope::decode(bytes).map(|change| (ShardId(0), change)),
        }
    }

    fn change(self) -> Option<Change> {
        let Self { what, hops: _, id, old, name, address, witness } = self;
        if name.len() > 255 || address.len() > 255 {
            return None;
        }
        let member = Member { name, address, witness };
        let id = PeerId(id);
        match what {
            1 => Some(Change::Add { id, member }),
            2 => Some(Change::Remove { id }),
            3 => Some(Change::Replace { old: PeerId(old), new: id, member }),
            4 => Some(Change::Transfer { to: (id.0 != 0).then_some(id) }),
            _ => None,
        }
    }
}

/// A peer asks for a change.
pub(super) async fn asked(inner: &Arc<Inner>, from: PeerId, request: Bytes) -> Result<Bytes, Refusal> {
    let malformed = |reason: String| Refusal { code: code::MALFORMED, reason };
    let bytes =
        request.strip_prefix(&[Seat::ADMIN_MARK]).ok_or_else(|| malformed("not a change".to_owned()))?;
    let (shard, record) = ChangeRecord::decode(bytes).map_err(|error| malformed(error.to_string()))?;
    if shard != inner.handler.shard() {
        return Err(not_yet(shard));
    }
    let hops = record.hops;
    let change = record.change().ok_or_else(|| malformed("no change of this version".to_owned()))?;
    tracing::info!(peer = %from, ?change, "a peer asks for a change of the cluster");
    let leader = inner.raft.metrics().borrow_watched().current_leader.map(PeerId);
    // Boxed: it is one of many that a task may hold.
    let made = match leader {
        Some(leader) if leader == inner.me => Box::pin(inner.make(change)).await,
        Some(leader) if hops == 0 => Box::pin(inner.forward(leader, &change, 1)).await,
        Some(_) | None => Err(ChangeError::NoLeader),
    };
    match made {
        Ok(()) => Ok(Bytes::from_static(&[1])),
        Err(error) => Err(Refusal { code: code::STOPPED, reason: error.to_string() }),
    }
}
