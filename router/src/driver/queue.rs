//! The bounded queue between all handles and the one driver.
//!
//! Invariant: a sleeping driver has seen the queue empty after it said that it sleeps, so that a
//! producer wakes it exactly when it must.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use bytes::Bytes;

use crate::driver::command::{Command, Full};
use crate::replica::{Lane, ReplicaCommand};

/// Bounds of the queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueueLimits {
    pub(crate) commands: usize,
    pub(crate) bytes: usize,
}

/// What wakes the driver.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Asleep {
    #[default]
    No,
    /// Whatever comes.
    ForAnything,
    /// Commands of replication; clients' gather.
    ForReplica,
}

#[derive(Default)]
struct Waiting {
    commands: VecDeque<Command>,
    /// What they weigh together.
    weight: usize,
    bytes: usize,
    /// Replication's commands, which go first.
    lane: Lane,
    /// The last word on each watched subject and group. Not bounded by the limits: there is one per
    /// watched pair, and none may be lost.
    interest: BTreeMap<(Bytes, Bytes), bool>,
    asleep: Asleep,
    /// Who is told of whatever comes, once: the task of a driver without a thread.
    stepped: Option<Waker>,
    closed: bool,
    /// Those who were told "full" and wait for room. One entry per waiter, each dropped when it fires.
    room: Vec<oneshot::Sender<()>>,
}

/// Who is woken for what was put in.
struct Wakes {
    thread: bool,
    stepped: Option<Waker>,
}

impl Waiting {
    /// Nothing that a driver would take, which takes clients' commands or leaves them.
    fn is_empty(&self, with_clients: bool) -> bool {
        self.lane.is_empty() && !(with_clients && !(self.commands.is_empty() && self.interest.is_empty()))
    }

    /// Whether the driver sleeps and must be woken for a client; it is taken for awake then.
    fn wakes_for_clients(&mut self) -> Wakes {
        let thread = self.asleep == Asleep::ForAnything;
        if thread {
            self.asleep = Asleep::No;
        }
        Wakes { thread, stepped: self.stepped.take() }
    }
}

pub(crate) struct Queue {
    limits: QueueLimits,
    waiting: Mutex<Waiting>,
    wake: Condvar,
}

/// What [`Queue::take`] found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Taken {
    Commands,
    TimedOut,
    /// No handle will send any more, and everything was taken.
    Closed,
}

impl Queue {
    pub(crate) fn new(limits: QueueLimits) -> Self {
        assert!(limits.commands > 0 && limits.bytes > 0, "a queue without room deadlocks its callers");
        Self { limits, waiting: Mutex::default(), wake: Condvar::new() }
    }

    // Nothing in this file panics while it holds the lock.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, wakes: Wakes) {
        if wakes.thread {
            self.wake.notify_one();
        }
        if let Some(stepped) = wakes.stepped {
            stepped.wake();
        }
    }

    /// Whether something waits, for a driver without a thread; if not, `waker` is told when something comes.
    pub(crate) fn poll_waiting(&self, with_clients: bool, waker: &Waker) -> Poll<()> {
        let mut waiting = self.lock();
        if waiting.closed || !waiting.is_empty(with_clients) {
            return Poll::Ready(());
        }
        waiting.stepped = Some(waker.clone());
        Poll::Pending
    }

    /// Adds a command, or gives it back. A command larger than all room is taken by an empty queue.
    pub(crate) fn push(&self, command: Command) -> Result<(), Full<Command>> {
        let (bytes, weight) = (command.bytes(), command.weight());
        let mut waiting = self.lock();
        let no_room = waiting.weight >= self.limits.commands
            || (waiting.bytes + bytes > self.limits.bytes && !waiting.commands.is_empty());
        if waiting.closed || no_room {
            return Err(Full(command));
        }
        waiting.bytes += bytes;
        waiting.weight += weight;
        waiting.commands.push_back(command);
        let wakes = waiting.wakes_for_clients();
        drop(waiting);
        self.tell(wakes);
        Ok(())
    }

    /// Adds a command of replication, or gives it back when the queue is closed.
    pub(crate) fn push_replica(&self, command: ReplicaCommand) -> Result<(), ReplicaCommand> {
        let mut waiting = self.lock();
        if waiting.closed {
            return Err(command);
        }
        waiting.lane.push_back(command);
        let thread = std::mem::take(&mut waiting.asleep) != Asleep::No;
        let wakes = Wakes { thread, stepped: waiting.stepped.take() };
        drop(waiting);
        self.tell(wakes);
        Ok(())
    }

    /// Resolves when there is room again (or the queue is closed).
    pub(crate) fn when_ready(&self) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.lock();
        if waiting.closed || self.has_room(&waiting) {
            drop(waiting);
            // The receiver is in our hands: it is there.
            sender.send(()).expect("the receiver was not dropped");
        } else {
            waiting.room.retain(|waiter| !waiter.is_closed());
            waiting.room.push(sender);
        }
        receiver
    }

    /// Whether who waits for room would wait for nothing.
    pub(crate) fn is_ready(&self) -> bool {
        let waiting = self.lock();
        waiting.closed || self.has_room(&waiting)
    }

    // Half empty: a waiter that wakes for one free slot would be back at once.
    fn has_room(&self, waiting: &Waiting) -> bool {
        waiting.weight <= self.limits.commands / 2 && waiting.bytes <= self.limits.bytes / 2
    }

    /// Notes that interest in a watched subject began or ended.
    pub(crate) fn interest_changed(&self, subject: &[u8], group: &[u8], present: bool) {
        let mut waiting = self.lock();
        if waiting.closed {
            return;
        }
        let key = (Bytes::copy_from_slice(subject), Bytes::copy_from_slice(group));
        waiting.interest.insert(key, present);
        let wakes = waiting.wakes_for_clients();
        drop(waiting);
        self.tell(wakes);
    }

    /// The changes of interest since the last time.
    pub(crate) fn take_interest(&self) -> BTreeMap<(Bytes, Bytes), bool> {
        std::mem::take(&mut self.lock().interest)
    }

    /// Moves up to `commands_max` commands of about `bytes_max` bytes to `out`. Waits for the first one
    /// up to `timeout` (`None`: for ever).
    pub(crate) fn take(
        &self,
        out: &mut VecDeque<Command>,
        commands_max: usize,
        bytes_max: usize,
        timeout: Option<Duration>,
    ) -> Taken {
        let mut waiting = self.lock();
        let nothing = |waiting: &mut Waiting| waiting.commands.is_empty() && waiting.interest.is_empty();
        if nothing(&mut waiting) && !waiting.closed && timeout != Some(Duration::ZERO) {
            waiting.asleep = Asleep::ForAnything;
            let sleeps = |waiting: &mut Waiting| nothing(waiting) && !waiting.closed;
            waiting = match timeout {
                None => self.wake.wait_while(waiting, sleeps).unwrap_or_else(PoisonError::into_inner),
                Some(timeout) => {
                    self.wake
                        .wait_timeout_while(waiting, timeout, sleeps)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
            waiting.asleep = Asleep::No;
        }
        if nothing(&mut waiting) {
            return if waiting.closed { Taken::Closed } else { Taken::TimedOut };
        }
        self.hand_out(waiting, out, commands_max, bytes_max);
        Taken::Commands
    }

    /// Moves clients' commands to `out`, and tells those who wait for room.
    fn hand_out(
        &self,
        mut waiting: MutexGuard<'_, Waiting>,
        out: &mut VecDeque<Command>,
        commands_max: usize,
        bytes_max: usize,
    ) {
        let mut bytes = 0;
        if waiting.weight <= commands_max && waiting.bytes <= bytes_max && out.is_empty() {
            // The usual case moves everything by exchanging the buffers.
            std::mem::swap(&mut waiting.commands, out);
            (waiting.bytes, waiting.weight) = (0, 0);
        } else {
            let mut weight = out.iter().map(Command::weight).sum::<usize>();
            let before = weight;
            while weight < commands_max && bytes < bytes_max {
                let Some(command) = waiting.commands.pop_front() else { break };
                bytes += command.bytes();
                weight += command.weight();
                out.push_back(command);
            }
            waiting.bytes -= bytes;
            waiting.weight -= weight - before;
        }
        let woken = if self.has_room(&waiting) { std::mem::take(&mut waiting.room) } else { Vec::new() };
        drop(waiting);
        for waiter in woken {
            // A waiter that went away needs no room.
            drop(waiter.send(()));
        }
    }

    /// As [`Self::take`], for a driver that replicates: all commands of replication go to `lane`. Without a
    /// place for clients' commands these stay where they are, and do not end the wait.
    pub(crate) fn take_replicated(
        &self,
        lane: &mut Lane,
        clients: Option<(&mut VecDeque<Command>, usize, usize)>,
        timeout: Option<Duration>,
    ) -> Taken {
        let mut waiting = self.lock();
        let with_clients = clients.is_some();
        let nothing = |waiting: &Waiting| waiting.is_empty(with_clients);
        if nothing(&waiting) && !waiting.closed && timeout != Some(Duration::ZERO) {
            waiting.asleep = if with_clients { Asleep::ForAnything } else { Asleep::ForReplica };
            let sleeps = |waiting: &mut Waiting| nothing(waiting) && !waiting.closed;
            waiting = match timeout {
                None => self.wake.wait_while(waiting, sleeps).unwrap_or_else(PoisonError::into_inner),
                Some(timeout) => {
                    self.wake
                        .wait_timeout_while(waiting, timeout, sleeps)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
            waiting.asleep = Asleep::No;
        }
        if nothing(&waiting) {
            return if waiting.closed { Taken::Closed } else { Taken::TimedOut };
        }
        lane.append(&mut waiting.lane);
        if let Some((out, commands_max, bytes_max)) = clients {
            self.hand_out(waiting, out, commands_max, bytes_max);
        }
        Taken::Commands
    }

    /// No more commands are taken in; what waits is still handed out.
    pub(crate) fn close(&self) {
        let mut waiting = self.lock();
        waiting.closed = true;
        let woken = std::mem::take(&mut waiting.room);
        let stepped = waiting.stepped.take();
        drop(waiting);
        self.tell(Wakes { thread: true, stepped });
        for waiter in woken {
            drop(waiter.send(()));
        }
    }

    /// How many commands wait.
    pub(crate) fn depth(&self) -> usize {
        self.lock().weight
    }
}
