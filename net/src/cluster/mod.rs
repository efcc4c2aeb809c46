//! A node's part in a cluster: it begins one or joins one, says how it stands, and changes who is in it.
//!
//! In this order: a [`Seat`] is made; the router is opened with its [`Seat::replicator`]; the transport with
//! its [`Seat::handler`]; then [`Cluster::start`] puts both together. A node with several shards does so for each,
//! with one transport, whose handler is that of their [`Seats`]. Nothing here knows QUIC or the protocols of clients.

mod change;
mod claims;
mod memory;
mod roll;
mod seat;
mod seats;
mod status;
mod succession;
mod tail;
mod tasks;
mod time;
mod witness;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use beamlog_log::{EntryId, ShardId, Term};
use beamlog_router::replica::{Replica, ReplicaEntry, Role};
use openraft::{Config, SnapshotPolicy, StepDownPolicy};
use tokio::sync::watch;

pub use change::{Change, ChangeError};
pub use roll::Roll;
pub use seat::Seat;
pub use seats::Seats;
pub use status::{ClusterState, ClusterStatus, MemberRole, MemberStatus, Standing};
pub use witness::{Witness, WitnessError};

pub use crate::raft::Member;
use crate::{
    catchup::{Copies, CopyLimits},
    peer::{Introduction, PeerId, PeerTransport, Refusal},
    raft::{
        Books, Links, Machine, Raft, RaftHandler, ReplicaShard, Shard, ShardError, Storage, Timing, Vigil,
        begin_membership, code, last_membership,
    },
};

/// How a cluster keeps time and memory.
#[derive(Clone, Copy, Debug)]
pub struct ClusterOptions {
    /// Between two signs of life of a leader. Default 100 ms.
    pub heartbeat: Duration,
    /// Without one for so long a node asks to lead: a time by chance between these. Default 500 ms to 1 s.
    pub election: (Duration, Duration),
    /// How long a follower may take to store entries. Default 5 s.
    pub append: Duration,
    /// Bytes of entries kept in memory for followers. Default 16 MiB.
    pub recent_bytes: usize,
    /// A copy of the state that does not advance for so long is given up. Default 30 s.
    pub copy_stalled: Duration,
    /// A bug to behave like, so that the simulator can show that it would be found.
    #[cfg(feature = "planted-bugs")]
    pub planted_bug: Option<PlantedBug>,
}

/// Mistakes that the simulator must find.
#[cfg(feature = "planted-bugs")]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PlantedBug {
    /// openraft is told that a follower has what it never answered for: it commits with one copy less.
    AnswersMadeUp,
    /// And the books beside it count them too.
    AnswersMadeUpAndBooked,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(100),
            election: (Duration::from_millis(500), Duration::from_secs(1)),
            append: Duration::from_secs(5),
            recent_bytes: 16 << 20,
            copy_stalled: Duration::from_secs(30),
            #[cfg(feature = "planted-bugs")]
            planted_bug: None,
        }
    }
}

/// What a node brings to its cluster.
pub struct Start {
    pub seat: Seat,
    pub shard: ShardId,
    /// This node, from the id of its store.
    pub me: PeerId,
    /// The shard's driver, opened with [`Seat::replicator`].
    pub replica: Replica,
    /// Calls [`Seat::handler`].
    pub transport: Arc<dyn PeerTransport>,
    /// This node begins a new cluster, of itself alone, with what is in its store. Ignored in a store that is
    /// in one already: it is safe to say so at each start.
    pub first: Option<Member>,
    pub options: ClusterOptions,
}

impl std::fmt::Debug for Start {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Start").field("shard", &self.shard).field("me", &self.me).finish_non_exhaustive()
    }
}

/// What a witness brings to its cluster.
pub struct StartWitness {
    pub seat: Seat,
    /// This node, from the id of the witness's store.
    pub me: PeerId,
    pub witness: Witness,
    /// Calls [`Seat::handler`].
    pub transport: Arc<dyn PeerTransport>,
    pub options: ClusterOptions,
}

impl std::fmt::Debug for StartWitness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StartWitness").field("me", &self.me).finish_non_exhaustive()
    }
}

/// Why a node cannot take part.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("a heartbeat of {heartbeat:?} and elections after {election:?} do not go together: {reason}")]
    Options { heartbeat: Duration, election: (Duration, Duration), reason: String },
    #[error("reading how the shard stands")]
    Shard(#[from] ShardError),
    #[error("reading how the shard stands")]
    Storage(#[source] crate::raft::StorageError),
    #[error("beginning a cluster")]
    Begin(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("starting Raft: {0}")]
    Raft(String),
    #[error("this seat was taken before")]
    Taken,
}

/// A running part in a cluster. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    inner: Arc<Inner>,
}

struct Inner {
    me: PeerId,
    options: ClusterOptions,
    raft: Raft,
    books: Arc<Books>,
    storage: Storage,
    machine: Machine,
    handler: Arc<RaftHandler>,
    vigil: Arc<Vigil>,
    transport: Arc<dyn PeerTransport>,
    shard: Arc<dyn Shard>,
    state: watch::Sender<ClusterState>,
    /// What the driver is.
    role: watch::Receiver<Role>,
    copies: Arc<Copies>,
    /// What must live as long as this.
    keeps: OnceLock<Box<dyn std::any::Any + Send + Sync>>,
    /// One change of the membership at a time.
    changing: tokio::sync::Mutex<()>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("me", &self.inner.me).finish_non_exhaustive()
    }
}

impl Cluster {
    /// Takes part as a witness: votes, keeps no messages, never leads. It is added with a [`Member`] that says so.
    ///
    /// *Cancel safety*: as [`Self::start`].
    pub async fn start_witness(start: StartWitness) -> Result<Self, StartError> {
        let StartWitness { seat, me, witness, transport, options } = start;
        let shard = witness.shard();
        let cluster = Self::begin(seat, shard, me, transport, None, options).await?;
        // The store stays locked as long as its cluster lives.
        cluster.inner.keeps.set(Box::new(witness)).ok();
        Ok(cluster)
    }

    /// Takes part from now on: votes, stores entries, may be elected.
    ///
    /// A log whose end is in doubt is settled first, which waits for peers (DR5).
    ///
    /// *Cancel safety*: none; a start that was dropped half-way ends with the process.
    pub async fn start(start: Start) -> Result<Self, StartError> {
        let Start { seat, shard, me, replica, transport, first, options } = start;
        let shard: Arc<dyn Shard> = Arc::new(ReplicaShard::new(shard, replica));
        Self::begin(seat, shard, me, transport, first, options).await
    }

    async fn begin(
        mut seat: Seat,
        shard: Arc<dyn Shard>,
        me: PeerId,
        transport: Arc<dyn PeerTransport>,
        first: Option<Member>,
        options: ClusterOptions,
    ) -> Result<Self, StartError> {
        let id = shard.id();
        let config = Arc::new(config(&options, shard.keeps_messages())?);
        let inbox = seat.take_inbox().ok_or(StartError::Taken)?;
        seat.before(&shard);
        tail::settle(&shard, me, &transport).await.map_err(StartError::Storage)?;
        if let Some(member) = first {
            begin(&*shard, me, member).await?;
        }
        time::begin(&*shard, me).await.map_err(StartError::Storage)?;
        let books = Arc::new(Books::new(me.0, Arc::clone(&shard)));
        memory::recall(&*shard, &books);
        let storage = Storage::open(Arc::clone(&shard), Arc::clone(&books), options.recent_bytes)
            .await
            .map_err(StartError::Storage)?;
        let machine = Machine::open(Arc::clone(&shard), Arc::clone(&books), storage.clone())
            .await
            .map_err(StartError::Storage)?;
        let links = Links {
            me: me.0,
            shard: id,
            transport: Arc::clone(&transport),
            books: Arc::clone(&books),
            storage: storage.clone(),
            #[cfg(feature = "planted-bugs")]
            planted_bug: options.planted_bug,
            timing: Timing {
                append: options.append,
                copy: options.append,
                copy_poll: Duration::from_millis(100),
                copy_stalled: options.copy_stalled,
            },
        };
        let raft = Raft::build(me.0, config, links, storage.clone(), machine.clone())
            .await
            .map_err(|error| StartError::Raft(error.to_string()))?;
        let vigil = Arc::new(Vigil::new(Arc::clone(&transport), options.heartbeat * 3 / 2));
        let handler = Arc::new(RaftHandler::new(
            &*shard,
            me.0,
            raft.clone(),
            Arc::clone(&books),
            storage.clone(),
            machine.clone(),
            Arc::clone(&vigil),
        ));
        let copies = Arc::new(Copies::new(
            raft.clone(),
            Arc::clone(&shard),
            Arc::clone(&books),
            storage.clone(),
            machine.clone(),
            Arc::clone(&transport),
            CopyLimits { answer: options.append, failures: 10, chunk: 1 << 20 },
        ));
        let (state, _) = watch::channel(ClusterState::default());
        let inner = Arc::new(Inner {
            me,
            options,
            raft,
            books,
            storage,
            machine,
            handler,
            vigil,
            transport,
            shard,
            state,
            role: seat.role(),
            copies,
            keeps: OnceLock::new(),
            changing: tokio::sync::Mutex::default(),
        });
        let cluster = Self { inner };
        seat.sit(&cluster);
        cluster.inner.raft.run();
        tasks::start(&cluster, inbox);
        Ok(cluster)
    }

    /// This node.
    #[must_use]
    pub fn me(&self) -> PeerId {
        self.inner.me
    }

    /// Which shard it is of.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        self.inner.handler.shard()
    }

    /// How this node sees the cluster, and each change of that: who leads, whether there is a quorum.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<ClusterState> {
        self.inner.state.subscribe()
    }

    /// What the driver of the shard is: it serves clients as [`Role::Leader`] only.
    #[must_use]
    pub fn role(&self) -> watch::Receiver<Role> {
        self.inner.role.clone()
    }

    /// All figures that this node knows.
    #[must_use]
    pub fn status(&self) -> ClusterStatus {
        status::of(&self.inner)
    }

    /// Whether this node leads now, asked of a quorum: what was acknowledged before this call is folded into
    /// the state when it returns `true`.
    ///
    /// *Cancel safety*: safe.
    pub async fn confirm_leadership(&self) -> bool {
        self.inner.confirm().await
    }

    /// Stops taking part. Entries that are on their way are not awaited.
    ///
    /// *Cancel safety*: it stops all the same.
    pub async fn stop(&self) {
        let stopped = || {
            self.inner.state.send_if_modified(|state| {
                let changed = state.standing != Standing::Stopped;
                state.standing = Standing::Stopped;
                changed
            });
        };
        // Before, so that nobody takes Raft's end for a failure; and after whoever was just looking.
        stopped();
        if self.inner.raft.shutdown().await.is_err() {
            tracing::warn!("Raft had stopped by itself");
        }
        stopped();
        memory::keep_now(&self.inner);
        self.inner.shard.step_down();
    }
}

impl Inner {
    /// Whether a peer may have a session with this node (DR13).
    fn admit(&self, peer: &Introduction) -> Result<(), Refusal> {
        let Some(last) = claims::decode(&peer.claims, self.handler.shard())? else { return Ok(()) };
        match self.books.regressed(peer.id.0, last.index) {
            None => {
                self.books.admitted(peer.id.0);
                Ok(())
            }
            Some(held) => {
                let reason = format!(
                    "the log of {} ends at entry {}, but it once held committed ones up to {held}: it lost \
                     acknowledged messages and can come back only as a new node",
                    peer.name, last.index
                );
                self.books.refuse(peer.id.0, reason.clone());
                Err(Refusal { code: code::REGRESSED, reason })
            }
        }
    }

    /// A session with a peer has begun: entries need not wait for its next turn.
    fn connected(self: &Arc<Self>, peer: PeerId) {
        if self.books.leads().is_some() {
            let inner = Arc::clone(self);
            drop(crate::runtime::spawn(async move {
                drop(inner.raft.trigger().reset_backoff([peer.0]).await);
            }));
        }
    }

    async fn confirm(&self) -> bool {
        let asked = self.raft.get_read_log_id(openraft::ReadPolicy::ReadIndex);
        matches!(crate::runtime::timeout(self.options.election.1, asked).await, Ok(Ok(_)))
    }
}

fn config(options: &ClusterOptions, campaigns: bool) -> Result<Config, StartError> {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let config = Config {
        cluster_name: "beamlog".to_owned(),
        heartbeat_interval: millis(options.heartbeat),
        election_timeout_min: millis(options.election.0),
        election_timeout_max: millis(options.election.1),
        // A copy has a deadline of its own: that it advances.
        install_snapshot_timeout: 24 * 3600 * 1000,
        max_payload_entries: crate::raft::wire::ENTRIES_MAX as u64,
        // Copies are made when a follower needs one, not by the number of entries.
        replication_lag_threshold: u64::MAX,
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        api_channel_size: Some(1024),
        notification_channel_size: Some(1024),
        broadcast_submitted_on_append: Some(true),
        removed_leader_step_down: StepDownPolicy::After(millis(options.heartbeat) * 2),
        enable_elect: campaigns,
        enable_pre_vote: Some(true),
        backoff: "50ms,100ms,200ms...500ms".to_owned(),
        // The commit index is not kept: a leader that restarts is elected anew, and finds out by that.
        enable_leader_restore: Some(false),
        // A log that went back is found in the books, not papered over (DR13).
        allow_log_reversion: Some(false),
        ..Config::default()
    };
    config.validate().map_err(|error| StartError::Options {
        heartbeat: options.heartbeat,
        election: options.election,
        reason: error.to_string(),
    })
}

/// Makes a store that stands alone, or is empty, the first member of a cluster: what it holds is kept, and a
/// membership of one is the next entry.
async fn begin(shard: &dyn Shard, me: PeerId, member: Member) -> Result<(), StartError> {
    let state = shard.state().await?;
    if state.replication.is_some() || shard.vote().is_some() {
        return Ok(());
    }
    if last_membership(shard, &state).await.map_err(StartError::Storage)?.is_some() {
        return Ok(());
    }
    let term = Term(state.last.term.0.max(1));
    let id = EntryId { index: state.last.index.next(), term };
    let (entry, vote) =
        begin_membership(shard.id(), id, me.0, member).map_err(|error| StartError::Begin(error.into()))?;
    let (sender, receiver) = tokio::sync::oneshot::channel();
    shard.append(vec![ReplicaEntry { entry, proposal: None }], Box::new(move |done| drop(sender.send(done))));
    receiver.await.map_err(|_gone| ShardError::Gone)??;
    // After the membership: a store with a vote and no membership would be nobody's.
    shard.save_vote(vote).await?;
    tracing::info!(entry = %id.index, term = %term, "this node begins a cluster");
    Ok(())
}
