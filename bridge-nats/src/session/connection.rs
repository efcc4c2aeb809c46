//! The shared end of a connection: senders put messages into its buffer and write them out in one call.
//!
//! Who writes. `promised` says that somebody who put bytes in will call `flush`; `writing` says that
//! one thread, or the drain task, holds bytes outside the lock. Only one writes at a time, so bytes leave in
//! order. A socket that is full gets a drain task, and until it is done nobody else tries.
//! Invariant: bytes in `buffer` imply `promised`, or `writing`, or a caller of `flush` on its way.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use beamlog_router::interest::{Envelope, Interest, Offered, Subscriber, SubscriptionKey};
use tokio::runtime::Handle;
use tracing::debug;

use super::subscriptions::{SubscriptionSnapshot, Subscriptions};
use super::{ConnectOptions, encode};
use crate::protocol::Violation;
use crate::server::{Guest, Socket};

/// Buffers larger than this are given back after use.
const BUFFER_KEPT_MAX: usize = 256 << 10;

/// Why a connection ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CloseReason {
    ClientClosed,
    Violation(Violation),
    /// More than `pending_max` waits for it.
    SlowConsumerPending,
    /// It took nothing for `write_deadline`.
    SlowConsumerDeadline,
    WriteError,
    ReadError,
    ServerShutdown,
    /// A panic of ours; only this connection pays.
    Internal,
}

impl CloseReason {
    pub(crate) fn is_slow_consumer(self) -> bool {
        matches!(self, Self::SlowConsumerPending | Self::SlowConsumerDeadline)
    }
}

/// What a connection's writing is bounded by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    pub(crate) pending_max: usize,
    pub(crate) write_deadline: Duration,
}

pub(crate) struct Connection {
    pub(crate) id: u64,
    pub(crate) peer: SocketAddr,
    /// Who it is, of one that did not come by the listener.
    pub(crate) guest: Option<Guest>,
    pub(crate) started: Instant,
    this: Weak<Self>,
    runtime: Handle,
    limits: Output,
    state: Mutex<State>,
    pub(crate) input: InputCounts,
    pub(crate) pings: Pings,
}

/// Written by the task that reads, read by anybody.
#[derive(Debug, Default)]
pub(crate) struct InputCounts {
    pub(crate) messages: AtomicU64,
    pub(crate) bytes: AtomicU64,
    /// Milliseconds after `started` of the last read.
    pub(crate) active_millis: AtomicU64,
    /// CONNECT was accepted.
    pub(crate) connected: std::sync::atomic::AtomicBool,
}

#[derive(Debug, Default)]
pub(crate) struct Pings {
    /// Sent and not answered.
    pub(crate) outstanding: AtomicU32,
    /// Microseconds after `started` of the last PING; 0 is never.
    pub(crate) sent_micros: AtomicU64,
    pub(crate) rtt_micros: AtomicU64,
}

#[derive(Default)]
struct State {
    /// Gone once the connection is closed, so that a sender's memory of it holds no descriptor.
    socket: Option<Arc<Socket>>,
    buffer: Vec<u8>,
    /// The buffer that was written last, empty, for its capacity.
    spare: Vec<u8>,
    /// Bytes outside the lock.
    in_flight: usize,
    promised: bool,
    writing: bool,
    /// The drain task writes.
    draining: bool,
    urged: bool,
    subscriptions: Subscriptions,
    options: ConnectOptions,
    messages: u64,
    bytes: u64,
    closed: Option<CloseReason>,
}

/// What `/connz` shows of a connection.
#[derive(Clone, Debug)]
pub struct ConnectionSnapshot {
    pub id: u64,
    pub peer: SocketAddr,
    pub started: Instant,
    pub active: Instant,
    pub rtt: Option<Duration>,
    pub pending_bytes: u64,
    pub in_messages: u64,
    pub in_bytes: u64,
    pub out_messages: u64,
    pub out_bytes: u64,
    pub subscriptions: usize,
    pub name: String,
    pub lang: String,
    pub version: String,
    pub user: String,
}

impl Connection {
    pub(crate) fn new(
        id: u64,
        peer: SocketAddr,
        guest: Option<Guest>,
        socket: Arc<Socket>,
        limits: Output,
        runtime: Handle,
        first_words: &[u8],
    ) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            id,
            peer,
            guest,
            started: Instant::now(),
            this: Weak::clone(this),
            runtime,
            limits,
            state: Mutex::new(State {
                socket: Some(socket),
                buffer: first_words.to_vec(),
                ..State::default()
            }),
            input: InputCounts::default(),
            pings: Pings::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| {
            // A panic while bytes were being put in: what the buffer holds may be half a message.
            let mut state = poisoned.into_inner();
            state.buffer = Vec::new();
            if state.closed.is_none() {
                self.shut(&mut state, CloseReason::Internal);
            }
            state
        })
    }

    /// Appends protocol lines of the server itself. Whoever calls flushes before it waits.
    pub(crate) fn say(&self, lines: &[u8]) {
        let mut state = self.lock();
        if state.closed.is_some() {
            return;
        }
        state.buffer.extend_from_slice(lines);
        // A client that asks and never reads is a slow consumer too.
        if state.buffer.len() + state.in_flight > self.limits.pending_max {
            self.shut(&mut state, CloseReason::SlowConsumerPending);
        }
    }

    /// Writes what was said.
    pub(crate) fn flush_now(&self) {
        Subscriber::flush(self);
    }

    /// TLS has something to say of its own (a key update): the next flush writes it.
    pub(crate) fn urge(&self) {
        self.lock().urged = true;
    }

    pub(crate) fn say_error(&self, text: &str) {
        let mut line = Vec::new();
        encode::error(&mut line, text);
        self.say(&line);
    }

    pub(crate) fn set_options(&self, options: ConnectOptions) {
        self.lock().options = options;
    }

    pub(crate) fn protocol(&self) -> i64 {
        self.lock().options.protocol
    }

    pub(crate) fn closed(&self) -> Option<CloseReason> {
        self.lock().closed
    }

    /// Subscribes. What the interest index refuses was refused before. `Err` when there are too many.
    pub(crate) fn subscribe(
        self: &Arc<Self>,
        interest: &Interest,
        filter: &[u8],
        queue: Option<&[u8]>,
        sid: &[u8],
        subscriptions_max: usize,
    ) -> Result<(), Refused> {
        let id = {
            let mut state = self.lock();
            if state.subscriptions.len() >= subscriptions_max {
                return Err(Refused::TooMany);
            }
            let Some(id) = state.subscriptions.begin(sid) else { return Ok(()) };
            id
        };
        // Not under the lock: a sender holds the index while it offers.
        match interest.subscribe(filter, queue, Arc::clone(self) as Arc<dyn Subscriber>, id) {
            Ok(key) => {
                self.lock().subscriptions.begun(id, key);
                Ok(())
            }
            Err(_) => {
                self.lock().subscriptions.end(sid, None);
                Err(Refused::InvalidSubject)
            }
        }
    }

    pub(crate) fn unsubscribe(&self, interest: &Interest, sid: &[u8], max: Option<usize>) {
        let ended = {
            let mut state = self.lock();
            state.subscriptions.end(sid, max);
            state.subscriptions.take_ended()
        };
        remove(interest, &ended);
    }

    /// Takes subscriptions that reached their maximum out of the interest index.
    pub(crate) fn tidy(&self, interest: &Interest) {
        let ended = self.lock().subscriptions.take_ended();
        remove(interest, &ended);
    }

    /// Gives back memory that an idle connection does not need.
    pub(crate) fn shrink(&self) {
        let mut state = self.lock();
        if state.buffer.is_empty() {
            state.buffer = Vec::new();
        }
        state.spare = Vec::new();
    }

    pub(crate) fn subscriptions(&self) -> Vec<SubscriptionSnapshot> {
        self.lock().subscriptions.snapshot()
    }

    pub(crate) fn snapshot(&self) -> ConnectionSnapshot {
        let state = self.lock();
        let rtt = self.pings.rtt_micros.load(Ordering::Relaxed);
        ConnectionSnapshot {
            id: self.id,
            peer: self.peer,
            started: self.started,
            active: self.started + Duration::from_millis(self.input.active_millis.load(Ordering::Relaxed)),
            rtt: (rtt > 0).then(|| Duration::from_micros(rtt)),
            pending_bytes: (state.buffer.len() + state.in_flight) as u64,
            in_messages: self.input.messages.load(Ordering::Relaxed),
            in_bytes: self.input.bytes.load(Ordering::Relaxed),
            out_messages: state.messages,
            out_bytes: state.bytes,
            subscriptions: state.subscriptions.len(),
            name: state.options.name.clone(),
            lang: state.options.lang.clone(),
            version: state.options.version.clone(),
            user: state.options.user.0.clone(),
        }
    }

    /// The last words are written as far as the socket takes them now, and the socket is shut: the task
    /// that reads it ends. The first reason counts.
    pub(crate) fn close(&self, reason: CloseReason) {
        let mut state = self.lock();
        if state.closed.is_some() {
            return;
        }
        if let CloseReason::Violation(violation) = reason
            && let Some(text) = violation.text()
        {
            encode::error(&mut state.buffer, text);
        }
        if !state.writing
            && !reason.is_slow_consumer()
            && let Some(socket) = state.socket.clone()
        {
            let mut last = std::mem::take(&mut state.buffer);
            // Whatever happens, the connection ends here.
            if let Err(error) = socket.encrypt_last(&mut last).and_then(|()| socket.write(&last)) {
                debug!(session = self.id, err = %error, "last words were not sent");
            }
        }
        self.shut(&mut state, reason);
    }

    fn shut(&self, state: &mut State, reason: CloseReason) {
        state.closed = Some(reason);
        state.buffer = Vec::new();
        state.spare = Vec::new();
        if let Some(socket) = state.socket.take() {
            socket.shut();
        }
    }

    /// Closes if that did not happen yet, and leaves the interest index.
    pub(crate) fn leave(&self, interest: &Interest, reason: CloseReason) -> CloseReason {
        self.close(reason);
        let (keys, reason) = {
            let mut state = self.lock();
            (state.subscriptions.take_all(), state.closed.unwrap_or(reason))
        };
        remove(interest, &keys);
        reason
    }

    /// Writes until the socket is full or nothing is left. The caller holds `writing`.
    fn write_out<'a>(&'a self, mut state: MutexGuard<'a, State>, socket: &Arc<Socket>) {
        loop {
            let spare = std::mem::take(&mut state.spare);
            let mut chunk = std::mem::replace(&mut state.buffer, spare);
            state.in_flight = chunk.len();
            drop(state);
            let result = socket.encrypt(&mut chunk).and_then(|()| socket.write(&chunk));
            state = self.lock();
            match result {
                Ok(written) if written == chunk.len() => {
                    state.in_flight = 0;
                    if chunk.capacity() <= BUFFER_KEPT_MAX {
                        chunk.clear();
                        state.spare = chunk;
                    }
                    // Somebody else has promised to write what came meanwhile.
                    let more = !state.buffer.is_empty() && !state.promised;
                    let more = more || std::mem::take(&mut state.urged);
                    if !more || state.closed.is_some() {
                        state.writing = false;
                        return;
                    }
                }
                Ok(written) => {
                    state.in_flight = chunk.len() - written;
                    state.draining = true;
                    drop(state);
                    match self.this.upgrade() {
                        Some(this) => {
                            drop(self.runtime.spawn(this.drain(Arc::clone(socket), chunk, written)))
                        }
                        None => self.close(CloseReason::ServerShutdown),
                    }
                    return;
                }
                Err(error) => {
                    debug!(session = self.id, err = %error, "write failed");
                    state.writing = false;
                    drop(state);
                    self.close(CloseReason::WriteError);
                    return;
                }
            }
        }
    }

    /// Writes to a socket that was full, as it takes bytes, until nothing is left.
    async fn drain(self: Arc<Self>, socket: Arc<Socket>, mut chunk: Vec<u8>, mut written: usize) {
        loop {
            while written < chunk.len() {
                match tokio::time::timeout(self.limits.write_deadline, socket.writable()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return self.close(CloseReason::WriteError),
                    Err(_) => return self.close(CloseReason::SlowConsumerDeadline),
                }
                match socket.write(&chunk[written..]) {
                    Ok(more) => written += more,
                    Err(_) => return self.close(CloseReason::WriteError),
                }
                let mut state = self.lock();
                if state.closed.is_some() {
                    return;
                }
                state.in_flight = chunk.len() - written;
            }
            let mut state = self.lock();
            state.in_flight = 0;
            if state.buffer.is_empty() || state.closed.is_some() {
                state.writing = false;
                state.draining = false;
                return;
            }
            chunk = std::mem::take(&mut state.buffer);
            state.in_flight = chunk.len();
            drop(state);
            written = 0;
            if socket.encrypt(&mut chunk).is_err() {
                return self.close(CloseReason::WriteError);
            }
        }
    }
}

/// Why a SUB was refused; neither closes the connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Refused {
    InvalidSubject,
    TooMany,
}

fn remove(interest: &Interest, keys: &[SubscriptionKey]) {
    for key in keys {
        interest.unsubscribe(key);
    }
}

impl Subscriber for Connection {
    fn origin(&self) -> u64 {
        self.id
    }

    fn offer(&self, subscription: u64, message: &Envelope<'_>) -> Offered {
        let mut guard = self.lock();
        let state = &mut *guard;
        if state.closed.is_some() || (message.origin == self.id && !state.options.echo) {
            return Offered::Refused;
        }
        let Some((sid, last)) = state.subscriptions.deliver(subscription) else { return Offered::Refused };
        let size = encode::message(&mut state.buffer, sid, message, state.options.headers);
        if last {
            state.subscriptions.delivered_last(subscription);
        }
        state.messages += 1;
        state.bytes += size as u64;
        let pending = state.buffer.len() + state.in_flight;
        if pending > self.limits.pending_max {
            self.shut(state, CloseReason::SlowConsumerPending);
            return Offered::Taken;
        }
        if state.draining {
            // The drain task goes on until the buffer is empty.
            return if pending > self.limits.pending_max / 2 { Offered::Congested } else { Offered::Joined };
        }
        if std::mem::replace(&mut state.promised, true) { Offered::Joined } else { Offered::Taken }
    }

    fn flush(&self) {
        let mut state = self.lock();
        state.promised = false;
        if state.writing || (state.buffer.is_empty() && !std::mem::take(&mut state.urged)) {
            return;
        }
        let Some(socket) = state.socket.clone() else { return };
        state.writing = true;
        self.write_out(state, &socket);
    }
}

impl Connection {
    /// Sends a PING now, and counts it.
    pub(crate) fn ping(&self) {
        self.pings.outstanding.fetch_add(1, Ordering::Relaxed);
        self.pings.sent_micros.store(micros(self.started.elapsed()).max(1), Ordering::Relaxed);
        self.say(encode::PING);
        self.flush();
    }

    /// The client answered.
    pub(crate) fn pong(&self) {
        self.pings.outstanding.store(0, Ordering::Relaxed);
        let sent = self.pings.sent_micros.load(Ordering::Relaxed);
        if sent > 0 {
            let rtt = micros(self.started.elapsed()).saturating_sub(sent).max(1);
            self.pings.rtt_micros.store(rtt, Ordering::Relaxed);
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
