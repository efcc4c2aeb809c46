//! Making a copy of a leader's state.

use std::sync::Arc;

use beamlog_log::{EntryId, InstallError, Installation, LogFiles};
use bytes::Bytes;
use openraft::{SnapshotMeta, StoredMembership, storage::Snapshot};

use super::{Copies, Offered};
use crate::{
    peer::{Lane, PeerId},
    raft::{
        Staged, decode_membership, log_id, raft_vote,
        wire::{Answer, Request},
        wire_vote,
    },
    runtime,
};

/// Why a copy was not made. What was fetched is kept for the next attempt.
#[derive(Debug, thiserror::Error)]
enum CopyError {
    #[error("the peer gives nothing: {0}")]
    Peer(String),
    #[error("the list of files: {0}")]
    List(String),
    #[error("who offers it does not lead any more: this node is in term {term}")]
    Led { term: u64 },
    #[error(transparent)]
    Install(#[from] InstallError),
    #[error("{0}")]
    Shard(String),
}

type Governing = StoredMembership<
    openraft::type_config::alias::CommittedLeaderIdOf<crate::raft::Types>,
    u64,
    crate::raft::Member,
>;

/// What a leader gives.
struct Listed {
    list: LogFiles,
    membership: Governing,
}

impl Copies {
    /// Makes a copy, to its end or to an error; whoever offers is told when it asks. A new leader that offers while its
    /// predecessor gives nothing any more is turned to.
    pub(super) async fn make(self: Arc<Self>) {
        while let Some(Offered { from, .. }) = self.offer() {
            let failed = match self.copy(from).await {
                Ok(last) => {
                    tracing::info!(peer = %from, last = %last.index, "this node's state is a copy now");
                    None
                }
                Err(error) => {
                    tracing::warn!(peer = %from, %error, "a copy was not made");
                    if self.is_superseded(from) {
                        continue;
                    }
                    Some(error.to_string())
                }
            };
            return self.ended(failed);
        }
    }

    /// Whether another node offers by now.
    fn is_superseded(&self, from: PeerId) -> bool {
        self.offer().is_some_and(|offered| offered.from != from)
    }

    async fn copy(&self, from: PeerId) -> Result<EntryId, CopyError> {
        let Listed { list, membership } = self.list(from).await?;
        let last = list.last;
        if !self.shard.keeps_messages() {
            // A witness needs to know only that all of it is decided.
            return self.take(membership, last, None).await;
        }
        let total = list.total_bytes();
        tracing::info!(peer = %from, last = %last.index, bytes = total, "a copy begins");
        let mut installation =
            self.shard.begin_install(list).await.map_err(|error| CopyError::Shard(error.to_string()))?;
        let mut foreign = 0;
        loop {
            while let Some(wanted) = installation.wanted() {
                self.fetched(total - installation.missing_bytes().min(total), total);
                let bytes = u32::try_from(wanted.bytes).unwrap_or(u32::MAX).min(self.limits.chunk);
                let chunk = self.chunk(from, &wanted.name, wanted.offset, bytes).await?;
                if chunk.is_empty() {
                    return Err(CopyError::Peer("an answer without bytes".to_owned()));
                }
                let written = write(installation, wanted.name, wanted.offset, chunk).await?;
                installation = written.0;
                match written.1 {
                    Ok(()) => {}
                    Err(error @ InstallError::Foreign { .. }) => {
                        foreign += 1;
                        if foreign > self.limits.failures {
                            return Err(error.into());
                        }
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            let (back, verified) = runtime::blocking(move || {
                let verified = installation.verify();
                (installation, verified)
            })
            .await
            .map_err(|gone| CopyError::Shard(gone.to_string()))?;
            installation = back;
            verified?;
            if installation.wanted().is_none() {
                break;
            }
        }
        self.take(membership, last, Some(Box::new(installation))).await
    }

    /// Puts a copy in the place of the state, by the word of who leads by now.
    async fn take(
        &self,
        membership: Governing,
        last: EntryId,
        installation: Option<Box<Installation>>,
    ) -> Result<EntryId, CopyError> {
        let Some(Offered { vote, .. }) = self.offer() else {
            return Err(CopyError::Peer("nobody offers it any more".to_owned()));
        };
        let meta = SnapshotMeta { last_log_id: log_id(last), last_membership: membership };
        let snapshot = Snapshot { meta, snapshot: Staged { last, membership: None, installation } };
        let answer = self
            .raft
            .install_full_snapshot(raft_vote(vote), snapshot)
            .await
            .map_err(|error| CopyError::Shard(error.to_string()))?;
        // Then nothing was installed, and to say that it was would be a claim about entries that are not here.
        let ours = wire_vote(&answer.vote);
        if ours == vote { Ok(last) } else { Err(CopyError::Led { term: ours.term }) }
    }

    async fn list(&self, from: PeerId) -> Result<Listed, CopyError> {
        let Answer::Files { membership_id, membership, list } = self.ask(from, &Request::Files).await? else {
            return Err(CopyError::Peer("it answered something else".to_owned()));
        };
        let list = LogFiles::decode(&list).map_err(|error| CopyError::List(error.to_string()))?;
        if list.shard != self.shard.id() {
            return Err(CopyError::List("it is of another shard".to_owned()));
        }
        if list.last.index <= self.machine.applied().index {
            return Err(CopyError::List("it is older than the state here".to_owned()));
        }
        if membership_id.index.0 == 0 || membership_id > list.last {
            return Err(CopyError::List("its membership is not in it".to_owned()));
        }
        let membership =
            decode_membership(&membership).map_err(|error| CopyError::List(error.to_string()))?;
        Ok(Listed { list, membership: StoredMembership::new(log_id(membership_id), membership) })
    }

    async fn chunk(&self, from: PeerId, name: &str, offset: u64, bytes: u32) -> Result<Bytes, CopyError> {
        let request = Request::Chunk { file: name.to_owned(), offset, bytes };
        match self.ask(from, &request).await? {
            Answer::Chunk(bytes) => Ok(bytes),
            Answer::Vote { .. }
            | Answer::Append { .. }
            | Answer::Transfer(_)
            | Answer::Offer(_)
            | Answer::Have(_)
            | Answer::Members { .. }
            | Answer::Time(_)
            | Answer::Files { .. } => Err(CopyError::Peer("it answered something else".to_owned())),
        }
    }

    /// Asks, a few times if need be.
    async fn ask(&self, from: PeerId, request: &Request) -> Result<Answer, CopyError> {
        let mut failures = 0;
        loop {
            let bytes = request.encode(self.shard.id());
            let answer = self.transport.call(from, Lane::CatchUp, bytes, self.limits.answer).await;
            let error = match answer {
                Ok(bytes) => match Answer::decode(bytes) {
                    Ok(answer) => return Ok(answer),
                    Err(error) => error.to_string(),
                },
                Err(error) => error.to_string(),
            };
            failures += 1;
            if failures > self.limits.failures || self.is_superseded(from) {
                return Err(CopyError::Peer(error));
            }
            runtime::sleep(self.limits.answer / 20).await;
        }
    }
}

async fn write(
    mut installation: Installation,
    name: String,
    offset: u64,
    bytes: Bytes,
) -> Result<(Installation, Result<(), InstallError>), CopyError> {
    runtime::blocking(move || {
        let written = installation.write_chunk(&name, offset, &bytes);
        (installation, written)
    })
    .await
    .map_err(|gone| CopyError::Shard(gone.to_string()))
}
