//! The state is written beside the work: a thread of its own folds what is in the log, as a start would, and hands it
//! over in parts, between which the work goes on. So nobody waits for a state of hundreds of megabytes.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use beamlog_router::{PublishTicket, Router};
use tracing::{info, warn};

use super::fold::Fold;
use super::inbox::Inbox;
use super::journal::{self, END, JournalError, PART, PART_BYTES, SnapshotEnd};
use super::worker::Worker;
use super::{chain, instant};
use crate::state::Bounds;

/// After one that failed.
const AGAIN_AFTER: Duration = Duration::from_secs(10);

/// Snapshots of a worker's state, one at a time.
#[derive(Debug, Default)]
pub(super) struct Snapshots {
    running: Option<(JoinHandle<()>, Arc<AtomicBool>)>,
    failed: Option<Instant>,
}

impl Snapshots {
    fn may_begin(&self) -> bool {
        self.running.as_ref().is_none_or(|(thread, _)| thread.is_finished())
            && self.failed.is_none_or(|at| at.elapsed() >= AGAIN_AFTER)
    }

    /// The one that runs, if one does, is of no use any more. It ends soon.
    pub(super) fn abandon(&self) {
        if let Some((_, ended)) = &self.running {
            ended.store(true, Ordering::Relaxed);
        }
    }
}

impl Worker {
    /// Begins one when it is worth it. All that was decided is durable.
    pub(super) fn snapshot_when_due(&mut self) {
        let is_due = self.journal.wants_snapshot(self.options.snapshot_bytes);
        if !is_due || self.engine.is_unstored() || self.failed.is_some() || !self.snapshots.may_begin() {
            return;
        }
        self.settle(0);
        if self.stale {
            return;
        }
        let ended = Arc::new(AtomicBool::new(false));
        let writer = Writer {
            router: self.router.clone(),
            inbox: Arc::clone(&self.inbox),
            bounds: self.options.bounds,
            ended: Arc::clone(&ended),
            end: SnapshotEnd { first: 0, parts: 0, through: self.journal.last() },
            part: Vec::new(),
            bytes: 0,
            problem: None,
        };
        let before = self.journal.since_snapshot();
        let thread = std::thread::Builder::new().name("beamlog-tasks-s".into());
        match thread.spawn(move || writer.run(before)) {
            Ok(thread) => self.snapshots.running = Some((thread, ended)),
            Err(problem) => self.snapshot_failed(&problem),
        }
    }

    fn snapshot_failed(&mut self, problem: &dyn std::error::Error) {
        warn!(err = %chain(problem), "the state of tasks was not written; its events are kept");
        self.snapshots.failed = Some(instant());
    }
}

/// What the thread has.
struct Writer {
    router: Router,
    inbox: Arc<Inbox<Worker>>,
    bounds: Bounds,
    ended: Arc<AtomicBool>,
    end: SnapshotEnd,
    part: Vec<u8>,
    bytes: u64,
    /// What an [`io::Error`] would hide.
    problem: Option<JournalError>,
}

impl Writer {
    /// `before`: bytes of events that were there when it began.
    fn run(mut self, before: u64) {
        let began = instant();
        let outcome = self.write();
        let bytes = self.bytes;
        let done = Box::new(move |worker: &mut Worker| match outcome {
            Ok(()) => {
                worker.snapshots.failed = None;
                let since = worker.journal.since_snapshot().saturating_sub(before);
                worker.journal.has_snapshot(bytes, since);
                let millis = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                info!(millis, bytes, "the state of tasks is written");
            }
            Err(JournalError::Abandoned) => {}
            Err(problem) => worker.snapshot_failed(&problem),
        });
        // A worker that has ended has no use for it.
        self.inbox.run(done);
    }

    fn write(&mut self) -> Result<(), JournalError> {
        let folded = Fold::new(&self.router, self.bounds).up_to(self.end.through, &self.ended).run()?;
        let written =
            folded.state.write_to(&mut *self).and_then(|()| self.flush().map_err(serde_json::Error::io));
        if let Err(problem) = written {
            return Err(self.problem.take().unwrap_or(JournalError::Encode(problem)));
        }
        let end = self.end.encode()?;
        self.store(END, end)?;
        journal::forget(&self.router, self.end.through)
    }

    /// Has the worker put a message between its own; durable on return. Its sequence.
    fn store(&self, subject: &'static str, payload: Vec<u8>) -> Result<u64, JournalError> {
        let (sender, receiver) = mpsc::channel::<Result<(u64, PublishTicket), JournalError>>();
        let ended = Arc::clone(&self.ended);
        let job = Box::new(move |worker: &mut Worker| {
            let is_wanted = worker.failed.is_none() && !ended.load(Ordering::Relaxed);
            let handed = match is_wanted {
                true => worker.journal.hand_over(subject, payload),
                false => Err(JournalError::Abandoned),
            };
            // The thread waits for it.
            drop(sender.send(handed));
        });
        if !self.inbox.run(job) {
            return Err(JournalError::Abandoned);
        }
        let (sequence, ticket) = receiver.recv().unwrap_or(Err(JournalError::Abandoned))?;
        journal::stored_as(sequence, ticket.wait())?;
        Ok(sequence)
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PART_BYTES - self.part.len());
        self.part.extend_from_slice(&bytes[..taken]);
        if self.part.len() == PART_BYTES {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.part.is_empty() {
            return Ok(());
        }
        let part = std::mem::take(&mut self.part);
        self.bytes += part.len() as u64;
        match self.store(PART, part) {
            Ok(sequence) => {
                if self.end.parts == 0 {
                    self.end.first = sequence;
                }
                self.end.parts += 1;
                Ok(())
            }
            Err(problem) => {
                self.problem = Some(problem);
                Err(io::ErrorKind::Other.into())
            }
        }
    }
}
