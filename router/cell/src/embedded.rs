//! The bus over a router in this process: no socket, no serialisation but the envelope's. Clients of the same
//! node's NATS endpoint reach these cells, and are reached by them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use beamlog_router::headers;
use beamlog_router::interest::{
    Envelope as Message, Interest, Offered, RouteCache, Subscriber, SubscriptionKey,
};
use beamlog_router::{Router, StreamPublish};
use bytes::Bytes;

use crate::answering::{self, Reply};
use crate::bus::{Bus, Handler};
use crate::envelope::Envelope;
use crate::error::BusError;
use crate::subjects;

/// Bounds of a bus.
#[derive(Clone, Copy, Debug)]
pub struct EmbeddedLimits {
    /// How long a request waits for its answer. Default 5 s.
    pub request_timeout: Duration,
    /// Requests that may wait for one subject; those beyond are as if nobody served it. Default 1,024.
    pub requests_max: usize,
    /// Bytes of these. Default 16 MiB.
    pub request_bytes_max: usize,
}

impl Default for EmbeddedLimits {
    fn default() -> Self {
        Self { request_timeout: Duration::from_secs(5), requests_max: 1_024, request_bytes_max: 16 << 20 }
    }
}

/// The bus over a router in this process. Dropping it ends what it serves: requests that wait are finished.
pub struct EmbeddedBus {
    router: Router,
    limits: EmbeddedLimits,
    served: Mutex<BTreeMap<String, Served>>,
}

impl std::fmt::Debug for EmbeddedBus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedBus").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// A subject that is served, by a thread of its own.
struct Served {
    queue: Arc<Queue>,
    key: SubscriptionKey,
    interest: Arc<Interest>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.interest.unsubscribe(&self.key);
        self.queue.close();
        // A handler may let go of the bus that it was given: its thread cannot wait for itself.
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            // Panics of handlers are caught before they get here.
            drop(thread.join());
        }
    }
}

struct Request {
    reply: Bytes,
    payload: Bytes,
}

#[derive(Default)]
struct Waiting {
    requests: VecDeque<Request>,
    bytes: usize,
    closing: bool,
    handler: Option<Handler>,
}

/// What waits for a handler.
struct Queue {
    limits: EmbeddedLimits,
    waiting: Mutex<Waiting>,
    filled: Condvar,
}

impl Queue {
    fn close(&self) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).closing = true;
        self.filled.notify_one();
    }

    fn put(&self, handler: Handler) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).handler = Some(handler);
    }

    /// The next request and who handles it; `None` at the end.
    fn take(&self) -> Option<(Request, Handler)> {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let is_idle = |waiting: &mut Waiting| waiting.requests.is_empty() && !waiting.closing;
        let mut waiting = self.filled.wait_while(waiting, is_idle).unwrap_or_else(PoisonError::into_inner);
        let request = waiting.requests.pop_front()?;
        waiting.bytes -= request.payload.len();
        waiting.handler.clone().map(|handler| (request, handler))
    }
}

impl Subscriber for Queue {
    fn offer(&self, _subscription: u64, message: &Message<'_>) -> Offered {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = waiting.bytes + message.payload.len();
        if waiting.closing
            || waiting.requests.len() >= self.limits.requests_max
            || bytes > self.limits.request_bytes_max
        {
            return Offered::Refused;
        }
        waiting.bytes = bytes;
        waiting.requests.push_back(Request {
            reply: Bytes::copy_from_slice(message.reply),
            payload: Bytes::copy_from_slice(message.payload),
        });
        Offered::Taken
    }

    fn flush(&self) {
        self.filled.notify_one();
    }
}

impl EmbeddedBus {
    /// A bus over this router; clones of the handle share it.
    #[must_use]
    pub fn new(router: Router, limits: EmbeddedLimits) -> Self {
        Self { router, limits, served: Mutex::default() }
    }

    /// The router below.
    #[must_use]
    pub fn router(&self) -> &Router {
        &self.router
    }
}

/// Messages of one inbox: the answer, and the ack of a stream that may come before it.
const INBOX_MAX: usize = 4;

impl Bus for EmbeddedBus {
    fn ask(&self, envelope: &Envelope) -> Result<Envelope, BusError> {
        static INBOXES: AtomicU64 = AtomicU64::new(1);
        envelope.check_names().map_err(|problem| BusError::BadRequest(problem.to_string()))?;
        let (subject, payload) = (envelope.subject(), envelope.encode()?);
        // Of this node: in a cluster answers come from others.
        let number = INBOXES.fetch_add(1, Ordering::Relaxed);
        let inbox = format!("_INBOX.cells.{}.{number}", self.router.node_id());
        let answers = self
            .router
            .subscribe(&inbox, INBOX_MAX)
            .map_err(|problem| BusError::Connection(problem.to_string()))?;
        let message = Message {
            subject: subject.as_bytes(),
            reply: inbox.as_bytes(),
            headers: b"",
            payload: &payload,
            origin: 0,
        };
        if publish(&self.router, &message) == 0 {
            return Err(BusError::no_subscribers());
        }
        let until = now() + self.limits.request_timeout;
        while let Some(received) = answers.next(until.saturating_duration_since(now())) {
            match answering::reply(headers::status(&received.headers), &received.payload) {
                Reply::Answer(answer) => return answer.map(|answer| *answer),
                Reply::NoSubscribers => return Err(BusError::no_subscribers()),
                Reply::Stored => {}
            }
        }
        Err(BusError::Timeout)
    }

    fn subscribe(&self, subject: &str, handler: Handler) -> Result<(), BusError> {
        let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(served) = served.get(subject) {
            served.queue.put(handler);
            return Ok(());
        }
        let interest = Arc::clone(self.router.interest());
        let waiting = Waiting { handler: Some(handler), ..Waiting::default() };
        let queue =
            Arc::new(Queue { limits: self.limits, waiting: Mutex::new(waiting), filled: Condvar::new() });
        let group = subjects::queue_group(subject).as_bytes();
        let subscriber: Arc<dyn Subscriber> = Arc::clone(&queue) as _;
        let key = interest
            .subscribe(subject.as_bytes(), Some(group), subscriber, 0)
            .map_err(|problem| BusError::BadRequest(format!("{subject}: {problem}")))?;
        let mut new = Served { queue: Arc::clone(&queue), key, interest, thread: None };
        // Not a clone of the bus: it ends what it serves when it goes.
        let (router, of) = (self.router.clone(), subject.to_owned());
        let thread = std::thread::Builder::new()
            .name("beamlog-cell".into())
            .spawn(move || serve(&router, &of, &queue))
            .map_err(|problem| BusError::Internal(format!("starting the thread of {subject}: {problem}")))?;
        new.thread = Some(thread);
        served.insert(subject.to_owned(), new);
        Ok(())
    }
}

fn serve(router: &Router, subject: &str, queue: &Queue) {
    while let Some((request, handler)) = queue.take() {
        let answer = answering::answer(subject, &request.payload, &handler);
        let Some(answer) = answer.filter(|_| !request.reply.is_empty()) else { continue };
        let message =
            Message { subject: &request.reply, reply: b"", headers: b"", payload: &answer, origin: 0 };
        publish(router, &message);
    }
}

/// Gives a message to who wants it, and to the stream that captures its subject. Says how many hear it.
pub(crate) fn publish(router: &Router, message: &Message<'_>) -> usize {
    let mut routes = RouteCache::new();
    let routed = router.interest().route(&mut routes, message.subject, message);
    routes.flush();
    if let Some(stream) = routed.capture {
        let copy = Bytes::copy_from_slice;
        let publish = StreamPublish {
            stream,
            subject: copy(message.subject),
            // The answer is a cell's, not the ack of the stream that looks on.
            reply: Bytes::new(),
            headers: copy(message.headers),
            payload: copy(message.payload),
        };
        if router.offer_publish(publish).is_err() {
            tracing::warn!("the stream that captures a cell's subject has no room: it misses a message");
        }
    }
    routed.receivers
}

fn now() -> Instant {
    Instant::now()
}
