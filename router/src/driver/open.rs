//! From a data directory to a running driver: log, base state, replay, thread.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use beamlog_log::{
    CheckpointStore, CloseError, Damage, DataDirectory, DirectoryError, Disk, FirstStart, Index, Log,
    LogOptions, NodeId, Opened, RecoveryReport, ReplayedRecord, ShardId, Timestamp,
};

use crate::driver::checkpoint::Checkpoints;
use crate::driver::clock::{Clock, Clocks, SystemClocks};
use crate::driver::idle::{Idle, SCRUB_PERIOD_MIN};
use crate::driver::{BatchLimits, Driver, Parts};
use crate::engine::{BrokenState, EngineLimits, Recovering, rows};
use crate::interest::Interest;
use crate::router::{RouterOptions, Shared};
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

/// A driver that runs.
pub(crate) struct Running {
    pub(crate) shared: Arc<Shared>,
    pub(crate) interest: Arc<Interest>,
    pub(crate) thread: JoinHandle<Result<(), CloseError>>,
    pub(crate) recovery: RecoveryReport,
    pub(crate) node: NodeId,
}

pub(crate) fn open(
    path: &Path,
    disk: Arc<dyn Disk>,
    options: &RouterOptions,
    wire: Arc<dyn Wire>,
) -> Result<Running, OpenError> {
    check(options)?;
    let clocks = Box::new(SystemClocks);
    let first =
        FirstStart { node: NodeId::random().map_err(OpenError::Random)?, created: Timestamp(clocks.wall()) };
    let mut directory = DataDirectory::open(Arc::clone(&disk), path, first)?;
    let shard = ShardId(0);
    let log_options = LogOptions { must_exist: directory.has_log(), ..options.log.clone() };
    let Opened { mut log, snapshot, report } =
        Log::open(disk, &directory.shard_directory(shard), shard, log_options).map_err(OpenError::Log)?;
    directory.log_created()?;

    let limits = EngineLimits { streams: options.streams_max, message_bytes: options.message_bytes_max };
    let snapshot_index = snapshot.as_ref().map_or(Index(0), |snapshot| snapshot.index);
    let FromCheckpoint { store, restored, stale } = if options.checkpoints {
        from_checkpoint(&directory.state_directory(), &mut log, limits, snapshot_index)
    } else {
        FromCheckpoint::default()
    };
    let saved = restored.as_ref().map_or(Index(0), |(_, index)| *index);
    let (mut recovering, base) = match restored {
        Some(restored) => restored,
        None => {
            let mut recovering = Recovering::new(limits);
            for record in snapshot.iter().flat_map(|snapshot| &snapshot.records) {
                recovering.row(record)?;
            }
            (recovering, snapshot_index)
        }
    };
    let mut time = recovering.now();
    for replayed in log.replay(base) {
        let replayed = replayed.map_err(OpenError::Replay)?;
        time = time.max(replayed.timestamp);
        match &replayed.record {
            ReplayedRecord::Message(message) => recovering.message(message)?,
            ReplayedRecord::Control(bytes) => recovering.control(bytes)?,
            // Nothing of the engine's.
            ReplayedRecord::Replication(_) => {}
        }
    }
    let mut clock = Clock::new(clocks, time);
    let engine = recovering.finish(&mut log, clock.now())?;

    let interest = Arc::new(Interest::new());
    let shared = Arc::new(Shared::new(options));
    let told = Arc::clone(&shared);
    interest.on_change(Box::new(move |subject, group, present| {
        told.queue.interest_changed(subject, group, present);
    }));
    tracing::info!(
        index = log.last_index().0,
        base = base.0,
        segments = report.segments,
        frames = report.frames,
        tail = ?report.tail,
        rewritten = report.rewritten,
        indexes_rebuilt = report.indexes_rebuilt,
        damaged = report.damaged.len(),
        streams = engine.counters().streams,
        messages = engine.counters().messages,
        "recovered"
    );
    let node = directory.identity().node;
    let mut driver = Driver::new(Parts {
        shared: Arc::clone(&shared),
        engine,
        log,
        checkpoints: Checkpoints::new(store, saved, stale, clock.instant()),
        idle: Idle::new(options.scrub_period, clock.instant()),
        clock,
        interest: Arc::clone(&interest),
        wire,
        limits: BatchLimits {
            commands: options.batch_commands_max,
            bytes: options.batch_bytes_max,
            frame_bytes: options.log.frame_bytes_max / 2,
        },
        directory,
    });
    driver.begin();
    let thread = std::thread::Builder::new()
        .name("beamlog-driver".into())
        .spawn(move || driver.run())
        .map_err(OpenError::Thread)?;
    Ok(Running { shared, interest, thread, recovery: report, node })
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
    fn begin(&mut self) {
        while let Some(output) = self.engine.poll_output() {
            self.hold(output);
        }
        self.release();
        self.set_full(self.log.is_full());
        self.roll_if_needed();
    }
}
