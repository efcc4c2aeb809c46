//! The one thread of this crate: it writes the side file of a segment that was just sealed, while the log
//! goes on into the next one.
//!
//! Invariants: only what is derived is written here, so it may come late, or never. At most one file is on
//! its way. Nobody waits for it but the next roll, the removal of its segment, and the end of the log. It is
//! off ([`crate::LogOptions::background`]) on simulated disks, where the caller's order is the only one.

use std::{
    path::Path,
    sync::{Arc, mpsc},
    thread::{Builder, JoinHandle},
};

use crate::{
    Disk, ShardId,
    files::Files,
    format::segment::{Footer, SegmentKey},
    index::{self, MemoryIndex, SideDirectory},
    rewrite,
    segment::load_directory,
};

/// A side file to be written.
struct Job {
    key: SegmentKey,
    footer: Footer,
    index: Arc<MemoryIndex>,
}

/// What became of one. `None`: it could not be written.
pub(crate) struct Done {
    pub(crate) key: SegmentKey,
    pub(crate) directory: Option<SideDirectory>,
}

/// The thread, and what it has in hand.
#[derive(Debug)]
pub(crate) struct Background {
    /// `None` when the thread is to end.
    jobs: Option<mpsc::Sender<Job>>,
    done: mpsc::Receiver<Done>,
    thread: Option<JoinHandle<()>>,
    under_way: Option<SegmentKey>,
}

impl Background {
    /// Starts the thread. An error says that the system has none to spare.
    pub(crate) fn start(disk: Arc<dyn Disk>, directory: &Path, shard: ShardId) -> std::io::Result<Self> {
        let (jobs, work) = mpsc::channel::<Job>();
        let (tell, done) = mpsc::channel();
        let mut files = Files::new(disk, directory, 0);
        let thread = Builder::new().name("beamlog-side".into()).spawn(move || {
            for Job { key, footer, index } in work {
                let directory = write_side_file(&mut files, shard, key, &footer, &index);
                drop(index);
                if tell.send(Done { key, directory }).is_err() {
                    break;
                }
            }
        })?;
        Ok(Self { jobs: Some(jobs), done, thread: Some(thread), under_way: None })
    }

    /// Which segment's side file is on its way.
    pub(crate) const fn under_way(&self) -> Option<SegmentKey> {
        self.under_way
    }

    /// Gives the thread its next file. Returns whether it took it; it does not when it has died.
    pub(crate) fn write(&mut self, key: SegmentKey, footer: Footer, index: Arc<MemoryIndex>) -> bool {
        assert!(self.under_way.is_none(), "one side file at a time");
        let taken = self.jobs.as_ref().is_some_and(|jobs| jobs.send(Job { key, footer, index }).is_ok());
        self.under_way = taken.then_some(key);
        taken
    }

    /// The file that was under way, if it is finished; waits for it if that is asked.
    pub(crate) fn finished(&mut self, wait: bool) -> Option<Done> {
        let key = self.under_way?;
        let done = if wait {
            // A thread that died wrote nothing that counts.
            self.done.recv().unwrap_or(Done { key, directory: None })
        } else {
            match self.done.try_recv() {
                Ok(done) => done,
                Err(mpsc::TryRecvError::Empty) => return None,
                Err(mpsc::TryRecvError::Disconnected) => Done { key, directory: None },
            }
        };
        self.under_way = None;
        Some(done)
    }
}

impl Drop for Background {
    /// Nothing writes into a directory whose log has gone.
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that writes side files panicked");
        }
    }
}

/// Writes the side file of a segment and reads its directory back. `None` when it cannot be written: it is
/// derived, and the index in memory is as good.
pub(crate) fn write_side_file(
    files: &mut Files,
    shard: ShardId,
    key: SegmentKey,
    footer: &Footer,
    index: &MemoryIndex,
) -> Option<SideDirectory> {
    let bytes = index::encode(index, shard, key, footer.content_hash);
    if let Err(failed) = rewrite::write_derived(files, &key.index_name(), &bytes) {
        tracing::warn!(segment = key.segment.0, err = %failed.source, "no side index, keeping it in memory");
        return None;
    }
    load_directory(files, key, footer)
}
