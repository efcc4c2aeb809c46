//! What waits for the thread of tasks: a bounded buffer that subscriptions fill.
//!
//! Requests beyond the limit are refused, so their senders hear at once that there is nobody; what workers
//! say is taken far beyond it, because it will not be said again, and slows its senders.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Wake;
use std::time::{Duration, Instant};

use beamlog_router::interest::{Envelope, Offered, Subscriber};
use bytes::{Bytes, BytesMut};

/// Which subscription a message came by.
pub(super) const REQUESTS: u64 = 0;
pub(super) const WORKERS: u64 = 1;
pub(super) const ANSWERS: u64 = 2;
/// What nodes of a cluster say to each other.
pub(super) const NODES: u64 = 3;
/// What workers of this very node say, and its peers' do not.
pub(super) const HERE: u64 = 4;

/// Messages taken into one batch.
const BATCH_MAX: usize = 1_024;

#[derive(Clone, Copy, Debug)]
pub(super) struct InboxLimits {
    pub(super) requests_max: usize,
    pub(super) bytes_max: usize,
}

/// A message that waits.
#[derive(Clone)]
pub(super) struct Incoming {
    pub(super) subject: Bytes,
    pub(super) reply: Bytes,
    pub(super) headers: Bytes,
    pub(super) payload: Bytes,
    pub(super) origin: u64,
    pub(super) subscription: u64,
    pub(super) at: Instant,
}

/// A question of the node to the thread that has the inbox: runs there, between two batches.
pub(super) type Job<T> = Box<dyn FnOnce(&mut T) + Send>;

struct Waiting<T> {
    messages: VecDeque<Incoming>,
    bytes: usize,
    changed: BTreeSet<Vec<u8>>,
    jobs: VecDeque<Job<T>>,
    ending: Option<Ending>,
    /// Something that the thread waits for elsewhere has come.
    woken: bool,
    refused: u64,
}

/// How a thread ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Ending {
    /// What was taken in is finished first.
    Finish,
    /// At once: another node goes on with it.
    Abandon,
}

/// `T` is what the thread owns.
pub(super) struct Inbox<T> {
    limits: InboxLimits,
    waiting: Mutex<Waiting<T>>,
    filled: Condvar,
}

impl<T> std::fmt::Debug for Inbox<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbox").finish_non_exhaustive()
    }
}

/// What one turn takes out.
pub(super) struct Taken<T> {
    pub(super) messages: Vec<Incoming>,
    pub(super) changed: BTreeSet<Vec<u8>>,
    pub(super) jobs: VecDeque<Job<T>>,
    pub(super) ending: Option<Ending>,
}

impl<T> Inbox<T> {
    pub(super) fn new(limits: InboxLimits) -> Self {
        let waiting = Waiting {
            messages: VecDeque::new(),
            bytes: 0,
            changed: BTreeSet::new(),
            jobs: VecDeque::new(),
            ending: None,
            woken: false,
            refused: 0,
        };
        Self { limits, waiting: Mutex::new(waiting), filled: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting<T>> {
        // Every change in here is whole before anything can panic.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The members of this subject may have changed.
    pub(super) fn changed(&self, subject: &[u8]) {
        self.lock().changed.insert(subject.to_vec());
        self.filled.notify_one();
    }

    /// Has a job done by the thread. `false` when it takes no more.
    pub(super) fn run(&self, job: Job<T>) -> bool {
        let mut waiting = self.lock();
        if waiting.ending.is_some() {
            return false;
        }
        waiting.jobs.push_back(job);
        self.filled.notify_one();
        true
    }

    pub(super) fn close(&self) {
        self.lock().ending.get_or_insert(Ending::Finish);
        self.filled.notify_one();
    }

    /// Ends the thread without what waits.
    pub(super) fn abandon(&self) {
        self.lock().ending = Some(Ending::Abandon);
        self.filled.notify_one();
    }

    /// Whether nobody will look at what the thread still does.
    pub(super) fn is_abandoned(&self) -> bool {
        self.lock().ending == Some(Ending::Abandon)
    }

    pub(super) fn refused(&self) -> u64 {
        self.lock().refused
    }

    /// Blocks until it is woken as a [`Wake`]; what else came meanwhile stays.
    pub(super) fn wait_woken(&self) {
        let is_asleep = |waiting: &mut Waiting<T>| !waiting.woken;
        let mut waiting =
            self.filled.wait_while(self.lock(), is_asleep).unwrap_or_else(PoisonError::into_inner);
        waiting.woken = false;
    }

    /// What waits; waits for it up to `timeout`, or until it is woken.
    pub(super) fn take(&self, timeout: Option<Duration>) -> Taken<T> {
        let is_empty = |waiting: &mut Waiting<T>| {
            waiting.messages.is_empty()
                && waiting.changed.is_empty()
                && waiting.jobs.is_empty()
                && waiting.ending.is_none()
                && !waiting.woken
        };
        let waiting = self.lock();
        let mut waiting = match timeout {
            None => self.filled.wait_while(waiting, is_empty).unwrap_or_else(PoisonError::into_inner),
            Some(timeout) => {
                self.filled
                    .wait_timeout_while(waiting, timeout, is_empty)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
        };
        waiting.woken = false;
        let count = waiting.messages.len().min(BATCH_MAX);
        let messages: Vec<Incoming> = waiting.messages.drain(..count).collect();
        waiting.bytes = waiting.bytes.saturating_sub(messages.iter().map(Incoming::weight).sum());
        Taken {
            messages,
            changed: std::mem::take(&mut waiting.changed),
            jobs: std::mem::take(&mut waiting.jobs),
            ending: waiting.ending.filter(|ending| *ending == Ending::Abandon || waiting.messages.is_empty()),
        }
    }
}

impl<T: 'static> Wake for Inbox<T> {
    fn wake(self: Arc<Self>) {
        self.lock().woken = true;
        self.filled.notify_one();
    }
}

impl Incoming {
    pub(super) fn weight(&self) -> usize {
        256 + self.subject.len() + self.reply.len() + self.headers.len() + self.payload.len()
    }
}

impl<T> Subscriber for Inbox<T> {
    fn offer(&self, subscription: u64, message: &Envelope<'_>) -> Offered {
        let weight =
            256 + message.subject.len() + message.reply.len() + message.headers.len() + message.payload.len();
        let mut waiting = self.lock();
        let (most, bytes) = match subscription {
            REQUESTS => (self.limits.requests_max, self.limits.bytes_max),
            _ => (self.limits.requests_max * 10, self.limits.bytes_max * 4),
        };
        if waiting.ending.is_some() || waiting.messages.len() >= most || waiting.bytes + weight > bytes {
            waiting.refused += 1;
            return Offered::Refused;
        }
        let is_crowded =
            waiting.messages.len() >= self.limits.requests_max || waiting.bytes > self.limits.bytes_max;
        let was_empty = waiting.messages.is_empty();
        waiting.bytes += weight;
        // One allocation for all parts.
        let parts = [message.subject, message.reply, message.headers, message.payload];
        let mut all = BytesMut::with_capacity(weight - 256);
        parts.iter().for_each(|part| all.extend_from_slice(part));
        let mut all = all.freeze();
        let [subject, reply, headers, payload] = parts.map(|part| all.split_to(part.len()));
        waiting.messages.push_back(Incoming {
            subject,
            reply,
            headers,
            payload,
            origin: message.origin,
            subscription,
            at: super::instant(),
        });
        drop(waiting);
        if is_crowded {
            self.filled.notify_one();
            return Offered::Congested;
        }
        if was_empty { Offered::Taken } else { Offered::Joined }
    }

    fn flush(&self) {
        self.filled.notify_one();
    }
}
