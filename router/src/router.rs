//! The handle: what an embedding program and the protocol endpoints hold. Cheap to clone; every call is
//! bounded and gives refused work back.

use std::future::{Future, IntoFuture};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

use beamlog_log::{CloseError, Disk, LogOptions, NodeId, RecoveryReport};
use bytes::Bytes;

use crate::api::error::{ApiError, PublishRefusal};
use crate::api::request::{AckKind, AckTarget, Answer, PublishOutcome, PullRequest, Request};
use crate::driver::clock::Clocks;
use crate::driver::command::{
    Acknowledgement, Command, FlowControlReply, Full, PublishBatch, PublishReply, Pull, StreamPublish, Then,
};
use crate::driver::open::{self, Beside, OpenError, Opened, Surroundings};
use crate::driver::queue::{Queue, QueueLimits};
use crate::driver::stepper::Stepper;
use crate::interest::{Envelope, Interest, RouteCache};
use crate::replica::{Replica, Replicator};
use crate::shards::{SHARD_NUMBER_MAX, ShardKind, Table};
use crate::stats::{Health, RouterStats};
use crate::subject::{InvalidSubject, check_subject};
use crate::wire::Wire;

/// Bounds and sizes of a router. Every field has a default that suits one node.
#[derive(Clone, Debug)]
pub struct RouterOptions {
    pub log: LogOptions,
    /// Whether state is checkpointed beside the log, so that a start replays less. Default yes; no on disks
    /// that are simulated: the store of checkpoints lives on a real one.
    pub checkpoints: bool,
    /// Commands that may wait for the driver. Default 65,536.
    pub queue_commands_max: usize,
    /// Bytes that may wait for the driver. Default 64 MiB.
    pub queue_bytes_max: usize,
    /// Commands of one batch, which share one sync. Default 4,096.
    pub batch_commands_max: usize,
    /// Bytes of one batch. Default 2 MiB; it must fit one frame of the log.
    pub batch_bytes_max: usize,
    /// Streams of one shard. Default 65,536.
    pub streams_max: usize,
    /// Largest headers + payload of a message. Default 8 MiB, which is the most a frame can hold with ease.
    pub message_bytes_max: usize,
    /// How long it takes to read the sealed part of the log once in search of damage (DR15). Default 7 days,
    /// at least one second. It is read while nobody waits, at most 1 MiB a second, so a large store takes
    /// longer; of one that is never idle a step is read when it is late by as much as steps are apart, so that it
    /// takes twice as long. A start begins anew.
    pub scrub_period: Duration,
}

impl Default for RouterOptions {
    fn default() -> Self {
        Self {
            log: LogOptions::default(),
            checkpoints: true,
            queue_commands_max: 65_536,
            queue_bytes_max: 64 << 20,
            batch_commands_max: 4_096,
            batch_bytes_max: 2 << 20,
            streams_max: 65_536,
            message_bytes_max: 8 << 20,
            scrub_period: Duration::from_secs(7 * 86_400),
        }
    }
}

impl RouterOptions {
    /// Everything small, so that rare paths become the common ones; no checkpoints.
    #[must_use]
    pub fn for_simulation() -> Self {
        Self {
            log: LogOptions::for_simulation(),
            checkpoints: false,
            batch_commands_max: 64,
            batch_bytes_max: 8 << 10,
            message_bytes_max: 16 << 10,
            ..Self::default()
        }
    }
}

/// What all handles share with the driver.
pub(crate) struct Shared {
    pub(crate) queue: Queue,
    pub(crate) stats: Mutex<RouterStats>,
    pub(crate) health: Mutex<Health>,
    pub(crate) kind: ShardKind,
    /// All shards of this node, this one among them.
    pub(crate) table: Arc<Table>,
}

impl Shared {
    pub(crate) fn new(options: &RouterOptions, kind: ShardKind, table: Arc<Table>) -> Arc<Self> {
        let limits = QueueLimits { commands: options.queue_commands_max, bytes: options.queue_bytes_max };
        let (queue, stats, health) = (Queue::new(limits), Mutex::default(), Mutex::default());
        let shared = Arc::new(Self { queue, stats, health, kind, table });
        shared.table.add(&shared);
        shared
    }
}

/// What is left when the last handle goes.
struct Alive {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<Result<(), CloseError>>>>,
}

impl Drop for Alive {
    /// Nobody can wait any more: the driver finishes what it was given, seals the log and ends.
    fn drop(&mut self) {
        self.shared.queue.close();
    }
}

/// The handle of a running router. Clones share it. When the last one is dropped the router closes on its
/// own time; [`Router::close`] waits for it and says how it went.
#[derive(Clone)]
pub struct Router {
    shared: Arc<Shared>,
    alive: Arc<Alive>,
    interest: Arc<Interest>,
    recovery: Arc<RecoveryReport>,
    node: NodeId,
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Router").field("health", &self.health()).finish_non_exhaustive()
    }
}

/// Why an embedded publish was not taken in. Nothing was stored.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error("the subject is illegal")]
    Subject(#[from] InvalidSubject),
    #[error("no stream captures the subject")]
    NoStream,
    /// [`Router::when_ready`] waits for room.
    #[error(transparent)]
    Full(#[from] Full<StreamPublish>),
}

impl Router {
    /// Opens the data directory `path` on `disk`, or begins one there: takes its lock, recovers the log and
    /// starts the driver. `wire` spells what protocol clients are sent.
    ///
    /// # Errors
    /// Whatever keeps the data from being trusted or written; nothing is deleted then.
    pub fn open(
        path: &Path,
        disk: Arc<dyn Disk>,
        options: &RouterOptions,
        wire: Arc<dyn Wire>,
    ) -> Result<Self, OpenError> {
        let surroundings = Surroundings::of_this_machine(wire, None)?;
        let (router, thread) = Self::of(open::start(path, disk, options, surroundings)?);
        Ok(router.with(thread))
    }

    /// Opens a member of a cluster, or what becomes one: as [`Router::open`], but the driver follows until
    /// `replicator` makes it lead by way of the [`Replica`]. A store that stood alone is taken as it is; from
    /// then on it is a member's.
    ///
    /// # Errors
    /// As [`Router::open`]; and when the node cannot know what it voted.
    pub fn open_replicated(
        path: &Path,
        disk: Arc<dyn Disk>,
        options: &RouterOptions,
        wire: Arc<dyn Wire>,
        replicator: Arc<dyn Replicator>,
    ) -> Result<(Self, Replica), OpenError> {
        let surroundings = Surroundings::of_this_machine(wire, Some(replicator))?;
        let opened = open::start(path, disk, options, surroundings)?;
        let replica = Replica::new(Arc::clone(&opened.shared), Arc::clone(&opened.kept));
        let (router, thread) = Self::of(opened);
        Ok((router.with(thread), replica))
    }

    /// As [`Router::open_replicated`], for a simulator: there is no thread, the driver does a step when the
    /// [`Stepper`] is told to. Time is what `clocks` say, and a new store belongs to `node`: nothing is drawn.
    ///
    /// # Errors
    /// As [`Router::open_replicated`].
    pub fn open_stepped(
        path: &Path,
        disk: Arc<dyn Disk>,
        options: &RouterOptions,
        wire: Arc<dyn Wire>,
        replicator: Arc<dyn Replicator>,
        clocks: Box<dyn Clocks>,
        node: NodeId,
    ) -> Result<(Self, Replica, Stepper), OpenError> {
        let surroundings = Surroundings { wire, clocks, node, replicator: Some(replicator), beside: None };
        let opened = open::open(path, disk, options, surroundings)?;
        let replica = Replica::new(Arc::clone(&opened.shared), Arc::clone(&opened.kept));
        let (router, driver) = Self::of(opened);
        Ok((router, replica, Stepper::new(driver)))
    }

    /// Opens the local shard of this node beside its first one: a store of its own, whose streams this node holds
    /// alone, and the same subjects and subscribers. From then on publishes that are given to any handle go to
    /// the shard that has the stream. Once for each router.
    ///
    /// # Errors
    /// As [`Router::open`].
    pub fn open_beside(
        &self,
        path: &Path,
        disk: Arc<dyn Disk>,
        options: &RouterOptions,
        wire: Arc<dyn Wire>,
    ) -> Result<Self, OpenError> {
        let mut surroundings = Surroundings::of_this_machine(wire, None)?;
        surroundings.beside = Some(self.beside(ShardKind::Local));
        let (router, thread) = Self::of(open::start(path, disk, options, surroundings)?);
        Ok(router.with(thread))
    }

    /// As [`Router::open_beside`], a shard that several nodes hold: what [`Router::open_replicated`] is to
    /// [`Router::open`]. Once for each number, from 1 to [`SHARD_NUMBER_MAX`].
    ///
    /// # Errors
    /// As [`Router::open_replicated`].
    pub fn open_replicated_beside(
        &self,
        number: u8,
        path: &Path,
        disk: Arc<dyn Disk>,
        options: &RouterOptions,
        wire: Arc<dyn Wire>,
        replicator: Arc<dyn Replicator>,
    ) -> Result<(Self, Replica), OpenError> {
        if !(1..=SHARD_NUMBER_MAX).contains(&number) {
            return Err(OpenError::Options("a shard has a number from 1 to 126"));
        }
        let mut surroundings = Surroundings::of_this_machine(wire, Some(replicator))?;
        surroundings.beside = Some(self.beside(ShardKind::Numbered(number)));
        let opened = open::start(path, disk, options, surroundings)?;
        let replica = Replica::new(Arc::clone(&opened.shared), Arc::clone(&opened.kept));
        let (router, thread) = Self::of(opened);
        Ok((router.with(thread), replica))
    }

    fn beside(&self, kind: ShardKind) -> Beside {
        Beside { kind, interest: Arc::clone(&self.interest), table: Arc::clone(&self.shared.table) }
    }

    fn of<D>(opened: Opened<D>) -> (Self, D) {
        let Opened { shared, interest, driver, recovery, node, kept: _ } = opened;
        let alive = Arc::new(Alive { shared: Arc::clone(&shared), thread: Mutex::default() });
        (Self { shared, alive, interest, recovery: Arc::new(recovery), node }, driver)
    }

    fn with(self, thread: open::Thread) -> Self {
        *self.alive.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        self
    }

    /// Who wants which subject: where sessions subscribe and what unstored messages are routed by.
    #[must_use]
    pub fn interest(&self) -> &Arc<Interest> {
        &self.interest
    }

    /// Whose store it is.
    #[must_use]
    pub fn node_id(&self) -> NodeId {
        self.node
    }

    /// What opening found.
    #[must_use]
    pub fn recovery(&self) -> &RecoveryReport {
        &self.recovery
    }

    /// Publishes: subscribers get it at once, and the stream that captures the subject stores it. The
    /// ticket tells when that is durable, or why it was refused.
    ///
    /// # Errors
    /// The subject is illegal or captured by no stream, or there is no room now.
    pub fn publish(
        &self,
        subject: impl Into<Bytes>,
        headers: impl Into<Bytes>,
        payload: impl Into<Bytes>,
    ) -> Result<PublishTicket, PublishError> {
        let (subject, headers, payload) = (subject.into(), headers.into(), payload.into());
        check_subject(&subject)?;
        let envelope =
            Envelope { subject: &subject, reply: b"", headers: &headers, payload: &payload, origin: 0 };
        let mut routes = RouteCache::new();
        let routed = self.interest.route(&mut routes, &subject, &envelope);
        routes.flush();
        let stream = routed.capture.ok_or(PublishError::NoStream)?;
        let publish = StreamPublish { stream, subject, reply: Bytes::new(), headers, payload };
        let (sender, receiver) = oneshot::channel();
        self.push_publish(publish, PublishReply::Ticket(sender))
            .map(|()| PublishTicket(receiver))
            .map_err(PublishError::from)
    }

    /// Stores a message in the stream that it names, whoever captures its subject; subscribers do not get it.
    /// For messages from elsewhere: their [`crate::stream::Provenance`] is believed. The ticket tells when
    /// it is durable. Gives it back when the queue is full.
    pub fn store(&self, publish: StreamPublish) -> Result<PublishTicket, Full<StreamPublish>> {
        let (sender, receiver) = oneshot::channel();
        self.push_publish(publish, PublishReply::Ticket(sender)).map(|()| PublishTicket(receiver))
    }

    /// Takes no more work, finishes what was taken, tells those who wait, seals the log. Clones of the
    /// handle are refused from here on.
    ///
    /// # Errors
    /// What kept the log from being sealed; what was durable still is.
    pub fn close(self) -> Result<(), CloseError> {
        self.shared.queue.close();
        let thread = self.alive.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        match thread {
            // A panic of the driver aborts the process: there is always a result.
            Some(thread) => thread.join().unwrap_or(Err(CloseError::Poisoned)),
            // A clone closes it, or has.
            None => Ok(()),
        }
    }

    /// Hands a publish to the stream that captures it; the ack goes to its reply subject when it is durable.
    /// Gives it back when the queue is full.
    pub fn offer_publish(&self, publish: StreamPublish) -> Result<(), Full<StreamPublish>> {
        let reply = PublishReply::Wire(publish.reply.clone());
        self.push_publish(publish, reply)
    }

    /// To the shard that has the stream.
    fn push_publish(&self, publish: StreamPublish, reply: PublishReply) -> Result<(), Full<StreamPublish>> {
        let other = self.shared.other_of(publish.stream);
        let shared = other.as_ref().unwrap_or(&self.shared);
        shared.queue.push(Command::Publish { publish, reply }).map_err(|Full(command)| match command {
            Command::Publish { publish, .. } => Full(publish),
            Command::PublishAll(_)
            | Command::Request { .. }
            | Command::Acknowledge(_)
            | Command::Pull(_)
            | Command::FlowControl(_) => unreachable!("the queue gives back what it was given"),
        })
    }

    /// As [`Router::offer_publish`], for all that one sender has now. All of a shard are taken or none is; what is
    /// given back is what was not.
    pub fn offer_publishes(&self, batch: PublishBatch) -> Result<(), Full<PublishBatch>> {
        let kind = self.shared.kind;
        if batch.kinds().all(|other| other == kind) {
            return push_all(&self.shared, batch);
        }
        let mut refused = PublishBatch::default();
        for (kind, part) in batch.split() {
            let other = self.shared.other(kind);
            if let Err(Full(part)) = push_all(other.as_ref().unwrap_or(&self.shared), part) {
                refused.append(&part);
            }
        }
        if refused.is_empty() { Ok(()) } else { Err(Full(refused)) }
    }

    /// Resolves when the queue has room again, and those of the node's other shards.
    #[must_use]
    pub fn when_ready(&self) -> ReadyTicket {
        // Of several that are full the next is waited for when this one has room.
        let is_full = |shard: &Shared| !shard.queue.is_ready();
        let other = if is_full(&self.shared) { None } else { self.shared.table.find(is_full) };
        ReadyTicket(other.as_ref().unwrap_or(&self.shared).queue.when_ready())
    }

    /// Asks the engine. What the answer says is durable when it arrives.
    pub fn request(&self, request: Request) -> Result<AnswerTicket, Full<Request>> {
        let (sender, receiver) = oneshot::channel();
        // Who dropped the ticket does not want the answer.
        self.request_then(request, Box::new(move |answer| drop(sender.send(answer))))?;
        Ok(AnswerTicket(receiver))
    }

    /// As [`Router::request`]; `then` is called with the answer on the driver thread and must not block.
    pub fn request_then(&self, request: Request, then: Then) -> Result<(), Full<Request>> {
        let command = Command::Request { request: Box::new(request), then };
        self.shared.queue.push(command).map_err(|Full(command)| match command {
            Command::Request { request, .. } => Full(*request),
            Command::Publish { .. }
            | Command::PublishAll(_)
            | Command::Acknowledge(_)
            | Command::Pull(_)
            | Command::FlowControl(_) => unreachable!("the queue gives back what it was given"),
        })
    }

    /// Tells a consumer what a client says of a delivery. With `reply`, an empty message goes there once
    /// the ack is durable.
    pub fn ack(
        &self,
        target: AckTarget,
        kind: AckKind,
        reply: Option<Bytes>,
    ) -> Result<(), Full<Acknowledgement>> {
        let command = Command::Acknowledge(Box::new(Acknowledgement { target, kind, reply }));
        self.shared.queue.push(command).map_err(|Full(command)| match command {
            Command::Acknowledge(acknowledgement) => Full(*acknowledgement),
            Command::Publish { .. }
            | Command::PublishAll(_)
            | Command::Request { .. }
            | Command::Pull(_)
            | Command::FlowControl(_) => unreachable!("the queue gives back what it was given"),
        })
    }

    /// Asks a pull consumer for messages; they and the status messages go to `reply`.
    pub fn pull(
        &self,
        stream: String,
        consumer: String,
        request: PullRequest,
        reply: Bytes,
    ) -> Result<(), Full<Pull>> {
        let command = Command::Pull(Box::new(Pull { stream, consumer, request, reply }));
        self.shared.queue.push(command).map_err(|Full(command)| match command {
            Command::Pull(pull) => Full(*pull),
            Command::Publish { .. }
            | Command::PublishAll(_)
            | Command::Request { .. }
            | Command::Acknowledge(_)
            | Command::FlowControl(_) => unreachable!("the queue gives back what it was given"),
        })
    }

    /// A client answered a flow-control message.
    pub fn flow_control(
        &self,
        stream: String,
        consumer: String,
        token: u64,
    ) -> Result<(), Full<FlowControlReply>> {
        let command = Command::FlowControl(Box::new(FlowControlReply { stream, consumer, token }));
        self.shared.queue.push(command).map_err(|Full(command)| match command {
            Command::FlowControl(reply) => Full(*reply),
            Command::Publish { .. }
            | Command::PublishAll(_)
            | Command::Request { .. }
            | Command::Acknowledge(_)
            | Command::Pull(_) => unreachable!("the queue gives back what it was given"),
        })
    }

    /// Counters and sizes.
    #[must_use]
    pub fn stats(&self) -> RouterStats {
        let mut stats = self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner).clone();
        stats.queued_commands = self.shared.queue.depth() as u64;
        stats
    }

    /// Whether it stores, and if not, why.
    #[must_use]
    pub fn health(&self) -> Health {
        self.shared.health.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn push_all(shared: &Shared, batch: PublishBatch) -> Result<(), Full<PublishBatch>> {
    if batch.is_empty() {
        return Ok(());
    }
    shared.queue.push(Command::PublishAll(batch)).map_err(|Full(command)| match command {
        Command::PublishAll(batch) => Full(batch),
        Command::Publish { .. }
        | Command::Request { .. }
        | Command::Acknowledge(_)
        | Command::Pull(_)
        | Command::FlowControl(_) => unreachable!("the queue gives back what it was given"),
    })
}

/// The outcome of a publish, once it is durable. Await it, or [`PublishTicket::wait`] blocks for it.
/// *Cancel safety*: dropping it does not undo the publish.
#[derive(Debug)]
pub struct PublishTicket(pub(crate) oneshot::Receiver<PublishOutcome>);

/// The answer to a request. Await it, or [`AnswerTicket::wait`] blocks for it.
/// *Cancel safety*: dropping it does not undo the request.
#[derive(Debug)]
pub struct AnswerTicket(oneshot::Receiver<Answer>);

/// Room in the queue. Await it, or [`ReadyTicket::wait`] blocks for it. *Cancel safety*: may be dropped.
#[derive(Debug)]
pub struct ReadyTicket(oneshot::Receiver<()>);

impl PublishTicket {
    /// Blocks until the outcome is durable.
    #[must_use]
    pub fn wait(self) -> PublishOutcome {
        self.0.recv().unwrap_or_else(|_| lost_publish())
    }
}

impl AnswerTicket {
    /// Blocks until the answer is there.
    pub fn wait(self) -> Answer {
        self.0.recv().unwrap_or(Err(ApiError::LogFailed))
    }
}

impl ReadyTicket {
    /// Blocks until there is room.
    pub fn wait(self) {
        // A sender that is gone means a closed router: the next push says so.
        self.0.recv().unwrap_or(());
    }
}

// The driver never drops a ticket while its log works.
fn lost_publish() -> PublishOutcome {
    PublishOutcome { stream: String::new(), result: Err(PublishRefusal::LogFailed) }
}

/// A ticket that is being awaited.
#[derive(Debug)]
pub struct TicketFuture<T> {
    receiver: oneshot::AsyncReceiver<T>,
    /// What it resolves to when the driver has gone.
    lost: fn() -> T,
}

impl<T> Future for TicketFuture<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let lost = self.lost;
        Pin::new(&mut self.receiver).poll(context).map(|value| value.unwrap_or_else(|_| lost()))
    }
}

impl IntoFuture for PublishTicket {
    type Output = PublishOutcome;
    type IntoFuture = TicketFuture<PublishOutcome>;

    fn into_future(self) -> Self::IntoFuture {
        TicketFuture { receiver: self.0.into_future(), lost: lost_publish }
    }
}

impl IntoFuture for AnswerTicket {
    type Output = Answer;
    type IntoFuture = TicketFuture<Answer>;

    fn into_future(self) -> Self::IntoFuture {
        TicketFuture { receiver: self.0.into_future(), lost: || Err(ApiError::LogFailed) }
    }
}

impl IntoFuture for ReadyTicket {
    type Output = ();
    type IntoFuture = TicketFuture<()>;

    fn into_future(self) -> Self::IntoFuture {
        TicketFuture { receiver: self.0.into_future(), lost: || () }
    }
}
