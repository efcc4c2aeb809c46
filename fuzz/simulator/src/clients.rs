//! The load: clients that publish with message ids, try again what they know nothing of, and remember what
//! they were promised. A client talks to the node it believes in and goes to another when that one fails.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use beamlog_log::{SeededRandom, Term};
use beamlog_net::runtime::{sleep, timeout};
use beamlog_router::api::error::PublishRefusal;
use beamlog_router::api::request::{PublishOutcome, Published};
use beamlog_router::{PublishError, Router};

use crate::note;
use crate::oracle::{Oracle, Violation};
use crate::trace::Trace;

/// How long a client waits for an ack before it tries again.
const PATIENCE: Duration = Duration::from_secs(2);
/// Tries of one message before its fate stays what it is.
const TRIES: usize = 40;

/// Who can be published to: the running nodes by place.
pub trait Nodes: Send + Sync {
    fn router(&self, place: usize) -> Option<Router>;
    /// The term in which it says that it leads.
    fn leads(&self, place: usize) -> Option<Term>;
    fn count(&self) -> usize;
}

/// What all clients that publish to one stream share.
pub struct Load {
    /// The first token of what they publish to.
    subject: &'static str,
    pub nodes: Arc<dyn Nodes>,
    pub oracle: Mutex<Oracle>,
    pub trace: Arc<Trace>,
    pub violations: Arc<Seen>,
    next: Mutex<u64>,
    /// Clients that are at something.
    busy: AtomicUsize,
}

/// What was seen to be wrong while it ran.
#[derive(Debug, Default)]
pub struct Seen(Mutex<Vec<Violation>>);

impl Seen {
    pub fn note(&self, violation: Violation) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(violation);
    }

    /// The first of them.
    #[must_use]
    pub fn first(&self) -> Option<Violation> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).first().cloned()
    }
}

/// What one try came to.
enum Try {
    Acked(u64),
    /// It was not stored by this try.
    No,
    /// Nobody knows.
    Unknown,
}

impl Load {
    #[must_use]
    pub fn new(
        subject: &'static str,
        nodes: Arc<dyn Nodes>,
        trace: Arc<Trace>,
        violations: Arc<Seen>,
    ) -> Self {
        Self {
            subject,
            nodes,
            oracle: Mutex::default(),
            trace,
            violations,
            next: Mutex::new(1),
            busy: AtomicUsize::new(0),
        }
    }

    pub fn oracle(&self) -> std::sync::MutexGuard<'_, Oracle> {
        self.oracle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_id(&self) -> u64 {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let id = *next;
        *next += 1;
        id
    }

    /// Publishes one message after another until told to stop.
    pub async fn client(
        self: Arc<Self>,
        number: usize,
        mut random: SeededRandom,
        think: Duration,
        payload_max: u64,
        go_on: Arc<AtomicBool>,
    ) {
        let mut place = random.index(self.nodes.count());
        self.busy.fetch_add(1, Ordering::Relaxed);
        while go_on.load(Ordering::Relaxed) {
            let id = self.next_id();
            let filling = usize::try_from(random.below(payload_max + 1)).unwrap_or(0);
            self.publish(number, id, filling, &mut place, &mut random).await;
            let pause = u64::try_from(think.as_micros()).unwrap_or(u64::MAX);
            sleep(Duration::from_micros(random.below(2 * pause + 1))).await;
        }
        self.busy.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether all clients have finished what they were at.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.busy.load(Ordering::Relaxed) == 0
    }

    /// Publishes the next message until it is acked or patience ends. Returns whether it was acked.
    pub async fn publish_next(&self, number: usize, place: &mut usize, random: &mut SeededRandom) -> bool {
        let id = self.next_id();
        self.publish(number, id, 0, place, random).await
    }

    /// Publishes one message until it is acked or patience ends. Returns whether it was acked.
    pub async fn publish(
        &self,
        number: usize,
        id: u64,
        filling: usize,
        place: &mut usize,
        random: &mut SeededRandom,
    ) -> bool {
        self.oracle().begin(id);
        let mut unknown = false;
        for _ in 0..TRIES {
            match self.attempt(*place, number, id, filling).await {
                Try::Acked(sequence) => {
                    note!(self.trace, "client {number}: {}.{id} acked as {sequence}", self.subject);
                    if let Err(violation) = self.oracle().acked(id, sequence) {
                        self.violations.note(violation);
                    }
                    return true;
                }
                Try::Unknown => unknown = true,
                Try::No => {}
            }
            *place = random.index(self.nodes.count());
            sleep(Duration::from_millis(20 + random.below(100))).await;
        }
        if !unknown {
            self.oracle().refused(id);
        }
        false
    }

    async fn attempt(&self, place: usize, client: usize, id: u64, filling: usize) -> Try {
        let Some(router) = self.nodes.router(place) else { return Try::No };
        let headers = format!("NATS/1.0\r\nNats-Msg-Id: {id}\r\n\r\n");
        let payload = format!("{id} {}", "x".repeat(filling));
        let ticket = match router.publish(format!("{}.{client}", self.subject), headers, payload) {
            Ok(ticket) => ticket,
            Err(PublishError::Subject(_) | PublishError::NoStream | PublishError::Full(_)) => return Try::No,
        };
        match timeout(PATIENCE, std::future::IntoFuture::into_future(ticket)).await {
            Ok(PublishOutcome {
                result: Ok(Published::Stored(sequence) | Published::Duplicate(sequence)),
                ..
            }) => Try::Acked(sequence.0),
            Ok(PublishOutcome { result: Err(PublishRefusal::InsufficientStorage), .. }) => Try::No,
            // The log failed, leadership was lost, or nobody answered in time.
            Ok(PublishOutcome {
                result: Ok(Published::Waiting | Published::Batch { .. }) | Err(_), ..
            })
            | Err(_) => Try::Unknown,
        }
    }
}

/// The id at the front of a payload.
#[must_use]
pub fn id_of(payload: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(payload).ok()?;
    text.split(' ').next()?.parse().ok()
}
