//! From a data directory to a running driver: log, base state, replay, thread.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use beamlog_log::{
    CheckpointStore, CloseError, Damage, DataDirectory, DirectoryError, Disk, EntryId, FirstStart, Index,
    Log, LogOptions, NodeId, PeersFile, RecoveryReport, ReplayedRecord, ShardId, Snapshot, SuspectTail, Tail,
    Term, Timestamp, VoteError, VoteFile,
};

use crate::driver::checkpoint::Checkpoints;
use crate::driver::clock::{Clock, Clocks, SystemClocks};
use crate::driver::idle::{Idle, SCRUB_PERIOD_MIN};
use crate::driver::{BatchLimits, Driver, Parts, ReplicatedParts};
use crate::engine::{BrokenState, Counters, Engine, EngineLimits, Recovering, rows};
use crate::interest::Interest;
use crate::replica::{Kept, Replicator};
use crate::router::{RouterOptions, Shared};
use crate::shards::{ShardKind, Table};
use crate::wire::Wire;

/// Why a router does not open. Nothing was deleted.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("an option of the router is out of bounds: {0}")]
    Options(&'static str),
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error("opening the log")]
    Log(#[source] beamlog_log::OpenError),
    /// A record of the newest segment, which holds the state, cannot be read.
    #[error("replaying the log")]
    Replay(#[source] Damage),
    /// The log is whole and says what cannot be.
    #[error("the state in the log does not hold together: {0}")]
    State(String),
    /// What it is to do alone, the others would not know.
    #[error("the store belongs to a member of a cluster, and is opened to stand alone")]
    Member,
    /// What this node voted as a member of its cluster.
    #[error("the vote of this node")]
    Vote(#[from] VoteError),
    #[error("no random bytes for an identity")]
    Random(#[source] io::Error),
    #[error("starting the driver thread")]
    Thread(#[source] io::Error),
}

impl From<BrokenState> for OpenError {
    fn from(broken: BrokenState) -> Self {
        let mut text = broken.to_string();
        let mut cause = std::error::Error::source(&broken);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        Self::State(text)
    }
}

/// A driver that runs, or one that is stepped.
pub(crate) struct Opened<D> {
    pub(crate) shared: Arc<Shared>,
    pub(crate) interest: Arc<Interest>,
    pub(crate) driver: D,
    pub(crate) recovery: RecoveryReport,
    pub(crate) node: NodeId,
    /// What a replicated one has beside its log.
    pub(crate) kept: Arc<Mutex<Kept>>,
}

pub(crate) type Thread = JoinHandle<Result<(), CloseError>>;

/// What a driver is opened with beside its options.
pub(crate) struct Surroundings {
    pub(crate) wire: Arc<dyn Wire>,
    pub(crate) clocks: Box<dyn Clocks>,
    /// Who this node is if its store is new.
    pub(crate) node: NodeId,
    pub(crate) replicator: Option<Arc<dyn Replicator>>,
    /// `None`: it is the first of its node.
    pub(crate) beside: Option<Beside>,
}

/// What a shard has in common with those of its node that it is opened beside.
pub(crate) struct Beside {
    pub(crate) kind: ShardKind,
    pub(crate) interest: Arc<Interest>,
    pub(crate) table: Arc<Table>,
}

impl Surroundings {
    pub(crate) fn of_this_machine(
        wire: Arc<dyn Wire>,
        replicator: Option<Arc<dyn Replicator>>,
    ) -> Result<Self, OpenError> {
        let node = NodeId::random().map_err(OpenError::Random)?;
        Ok(Self { wire, clocks: Box::new(SystemClocks), node, replicator, beside: None })
    }
}

/// Opens a driver and gives it a thread.
pub(crate) fn start(
    path: &Path,
    disk: Arc<dyn Disk>,
    options: &RouterOptions,
    surroundings: Surroundings,
) -> Result<Opened<Thread>, OpenError> {
    let Opened { shared, interest, driver, recovery, node, kept } = open(path, disk, options, surroundings)?;
    let driver = std::thread::Builder::new()
        .name("beamlog-driver".into())
        .spawn(move || driver.run())
        .map_err(OpenError::Thread)?;
    Ok(Opened { shared, interest, driver, recovery, node, kept })
}

pub(crate) fn open(
    path: &Path,
    disk: Arc<dyn Disk>,
    options: &RouterOptions,
    surroundings: Surroundings,
) -> Result<Opened<Driver>, OpenError> {
    check(options)?;
    let Surroundings { wire, clocks, node, replicator, beside } = surroundings;
    let Beside { kind, interest, table } = beside.unwrap_or_else(|| Beside {
        kind: ShardKind::Common,
        interest: Arc::default(),
        table: Arc::default(),
    });
    let first = FirstStart { node, created: Timestamp(clocks.wall()) };
    let mut directory = DataDirectory::open(Arc::clone(&disk), path, first)?;
    let shard = kind.id();
    // A store has one log, whatever shard it is of.
    let shard_directory = directory.shard_directory(ShardId(0));
    let mut log_options = LogOptions { must_exist: directory.has_log(), ..options.log.clone() };
    if replicator.is_some() {
        // The others may know what it held (DR5).
        log_options.suspect_tail = SuspectTail::Report;
    }
    let beamlog_log::Opened { mut log, snapshot, report } =
        Log::open(Arc::clone(&disk), &shard_directory, shard, log_options).map_err(OpenError::Log)?;
    directory.log_created()?;

    let limits = EngineLimits {
        streams: options.streams_max,
        message_bytes: options.message_bytes_max,
        // Half a frame may be gathered already; what is left over is for what follows from the messages.
        batch_bytes: options.log.frame_bytes_max / 16 * 7,
        // What a node holds alone may be on its way to the shard of all.
        replicas: if replicator.is_some() || kind == ShardKind::Local {
            crate::stream::validation::REPLICAS_MAX
        } else {
            1
        },
        shard: kind,
    };
    let kept = Arc::default();
    let recovered = match replicator {
        None => recover(&directory, options, limits, &mut log, snapshot, clocks)?,
        Some(replicator) => {
            let tail = report.tail;
            let base = Base { disk, directory: &shard_directory, shard, limits, snapshot, tail };
            recover_replicated(base, replicator, &mut log, &kept, clocks)?
        }
    };
    let Recovered { engine, checkpoints, clock, replica, counters } = recovered;

    // Before the first capture is announced.
    let shared = Shared::new(options, kind, table);
    let told = Arc::clone(&shared);
    let watcher = interest.on_change(Box::new(move |subject, group, present| {
        told.queue.interest_changed(subject, group, present);
    }));
    tracing::info!(
        index = log.last_index().0,
        base = checkpoints.index().0,
        segments = report.segments,
        frames = report.frames,
        tail = ?report.tail,
        rewritten = report.rewritten,
        indexes_rebuilt = report.indexes_rebuilt,
        damaged = report.damaged.len(),
        streams = counters.streams,
        messages = counters.messages,
        "recovered"
    );
    let node = directory.identity().node;
    let mut driver = Driver::new(Parts {
        shared: Arc::clone(&shared),
        engine,
        log,
        checkpoints,
        idle: Idle::new(options.scrub_period, clock.instant()),
        clock,
        interest: Arc::clone(&interest),
        watcher,
        wire,
        limits: BatchLimits {
            commands: options.batch_commands_max,
            bytes: options.batch_bytes_max,
            frame_bytes: options.log.frame_bytes_max / 2,
        },
        replica,
        directory,
    });
    driver.begin();
    Ok(Opened { shared, interest, driver, recovery: report, node, kept })
}

/// What the state of a driver begins with.
struct Recovered {
    engine: Engine,
    checkpoints: Checkpoints,
    clock: Clock,
    replica: Option<ReplicatedParts>,
    /// Of the state, for the line in the log.
    counters: Counters,
}

/// The state of a node that stands alone: everything in its log counts.
fn recover(
    directory: &DataDirectory,
    options: &RouterOptions,
    limits: EngineLimits,
    log: &mut Log,
    snapshot: Option<Snapshot>,
    clocks: Box<dyn Clocks>,
) -> Result<Recovered, OpenError> {
    let snapshot_index = snapshot.as_ref().map_or(Index(0), |snapshot| snapshot.index);
    let FromCheckpoint { store, restored, stale } = if options.checkpoints {
        from_checkpoint(&directory.state_directory(), log, limits, snapshot_index)
    } else {
        FromCheckpoint::default()
    };
    let saved = restored.as_ref().map_or(Index(0), |(_, index)| *index);
    let (mut recovering, base) = match restored {
        Some(restored) => restored,
        None => (from_snapshot(limits, snapshot)?, snapshot_index),
    };
    let mut time = recovering.now();
    for replayed in log.replay(base) {
        let replayed = replayed.map_err(OpenError::Replay)?;
        time = time.max(replayed.timestamp);
        match &replayed.record {
            ReplayedRecord::Message(message) => recovering.message(message)?,
            ReplayedRecord::Control(bytes) => recovering.control(bytes)?,
            ReplayedRecord::Replication(bytes) => {
                recovering.replication(EntryId { index: replayed.index, term: replayed.term }, bytes);
            }
        }
    }
    if recovering.engine().replication().is_some() {
        // Alone it would decide what the others never hear of.
        return Err(OpenError::Member);
    }
    let mut clock = Clock::new(clocks, time);
    let engine = recovering.finish(log, clock.now())?;
    let counters = engine.counters();
    let checkpoints = Checkpoints::new(store, saved, stale, clock.instant());
    Ok(Recovered { engine, checkpoints, clock, replica: None, counters })
}

/// Where the state of a member of a cluster begins.
struct Base<'a> {
    disk: Arc<dyn Disk>,
    directory: &'a Path,
    shard: ShardId,
    limits: EngineLimits,
    snapshot: Option<Snapshot>,
    tail: Tail,
}

/// The state of a member: what its newest segment begins with was committed. What comes after it is folded when
/// replication says that it is.
fn recover_replicated(
    base: Base<'_>,
    replicator: Arc<dyn Replicator>,
    log: &mut Log,
    kept: &Arc<Mutex<Kept>>,
    clocks: Box<dyn Clocks>,
) -> Result<Recovered, OpenError> {
    let Base { disk, directory, shard, limits, snapshot, tail } = base;
    let index = snapshot.as_ref().map_or(Index(0), |snapshot| snapshot.index);
    let mut folding = from_snapshot(limits, snapshot)?;
    folding.follow(log, true);
    let applied = log.id_at(index).map_err(OpenError::Replay)?.unwrap_or(EntryId { index, term: Term(0) });
    let was_member = folding.engine().replication().is_some() || log.last_id().term > Term(1);
    let (peers, known) = PeersFile::open(&disk, directory, shard);
    let (votes, vote) = VoteFile::open(disk, directory, shard, was_member)?;
    *kept.lock().unwrap_or_else(PoisonError::into_inner) = Kept { vote, peers: known };
    let clock = Clock::of_log(clocks, log.pending_time().max(folding.now()));
    let counters = folding.engine().counters();
    // A tail in doubt is not known to be damage.
    let damaged = log.fence().filter(|_| log.doubt().is_none()).cloned();
    let checkpoints = Checkpoints::new(None, index, Vec::new(), clock.instant());
    let kept = Arc::clone(kept);
    let replica = ReplicatedParts { replicator, folding, applied, votes, peers, kept, damaged, tail, limits };
    Ok(Recovered { engine: Engine::new(limits), checkpoints, clock, replica: Some(replica), counters })
}

fn from_snapshot(limits: EngineLimits, snapshot: Option<Snapshot>) -> Result<Recovering, BrokenState> {
    let mut recovering = Recovering::new(limits);
    for record in snapshot.iter().flat_map(|snapshot| &snapshot.records) {
        recovering.row(record)?;
    }
    Ok(recovering)
}

fn check(options: &RouterOptions) -> Result<(), OpenError> {
    if options.queue_commands_max == 0 || options.queue_bytes_max == 0 {
        return Err(OpenError::Options("the queue needs room"));
    }
    if options.batch_commands_max == 0 || options.batch_bytes_max == 0 {
        return Err(OpenError::Options("a batch needs room"));
    }
    if options.scrub_period < SCRUB_PERIOD_MIN {
        return Err(OpenError::Options("scrub_period is shorter than a second"));
    }
    Ok(())
}

fn open_store(path: &Path) -> Option<(CheckpointStore, Option<beamlog_log::Checkpoint>)> {
    match CheckpointStore::open(path) {
        Ok(opened) => {
            if let Some(damage) = &opened.damage {
                let moved_to = damage.moved_to.display().to_string();
                tracing::warn!(moved_to, err = %damage.reason, "the checkpoint was damaged: replaying");
            }
            Some((opened.store, opened.checkpoint))
        }
        Err(error) => {
            tracing::warn!(err = %error, "no checkpoint store: every start replays the log");
            None
        }
    }
}

/// What the checkpoint store gave.
#[derive(Default)]
struct FromCheckpoint {
    store: Option<CheckpointStore>,
    /// The state, if it fits the log and saves replay, and its index.
    restored: Option<(Recovering, Index)>,
    /// Keys of a checkpoint that is too old to be used: the next one removes them.
    stale: Vec<Vec<u8>>,
}

fn from_checkpoint(path: &Path, log: &mut Log, limits: EngineLimits, snapshot: Index) -> FromCheckpoint {
    let Some((mut store, checkpoint)) = open_store(path) else { return FromCheckpoint::default() };
    let Some(checkpoint) = checkpoint else {
        return FromCheckpoint { store: Some(store), ..FromCheckpoint::default() };
    };
    if checkpoint.applied < snapshot {
        let stale = checkpoint.rows.into_keys().collect();
        return FromCheckpoint { store: Some(store), restored: None, stale };
    }
    if log.contains(checkpoint.applied, checkpoint.frame_checksum)
        && let Some(recovering) = restore_rows(&checkpoint, limits)
    {
        let restored = Some((recovering, checkpoint.applied));
        return FromCheckpoint { store: Some(store), restored, stale: Vec::new() };
    }
    tracing::warn!(index = checkpoint.applied.0, "the checkpoint does not fit the log: replaying");
    match store.discard() {
        Ok(_moved_to) => FromCheckpoint { store: Some(store), ..FromCheckpoint::default() },
        Err(error) => {
            tracing::warn!(err = %error, "no checkpoint store: every start replays the log");
            FromCheckpoint::default()
        }
    }
}

fn restore_rows(checkpoint: &beamlog_log::Checkpoint, limits: EngineLimits) -> Option<Recovering> {
    let mut recovering = Recovering::new(limits);
    for value in checkpoint.rows.values() {
        for row in rows::split(value)? {
            if let Err(broken) = recovering.row(row) {
                tracing::warn!(err = %broken, "the checkpoint cannot be used: replaying");
                return None;
            }
        }
    }
    recovering.mark_saved();
    Some(recovering)
}

impl Driver {
    /// Carries out what recovery asks for: captures and watches.
    pub(super) fn begin(&mut self) {
        while let Some(output) = self.engine.poll_output() {
            self.hold(output);
        }
        self.release();
        self.set_full(self.log.is_full());
        self.roll_if_needed();
        self.count();
    }
}
