//! One connection with a peer, after the handshake.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bytes::{BufMut, Bytes, BytesMut};
use quinn::{Connection, RecvStream, SendStream, VarInt};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use super::frames::{self, Frames, PING, Violation};
use super::outbound::Outbound;
use super::settings::{PROBE_MAX, priority};
use super::table::{Counts, SessionSnapshot};
use super::tunnel::{Tunnel, TunnelHandler, Urgency};
use crate::certificates::{Certificate, Loaded, TokenDigest};
use crate::handshake::Reason;
use crate::peer::{CallError, Introduction, Lane, PeerHandler, Refusal, SendError, Session};

/// Frames up to this size are copied together before they are written.
const COPIED_MAX: usize = 4 << 10;
/// The code of a refusal when our own answer was larger than its lane takes.
pub(super) const ANSWER_TOO_LARGE: u16 = 2;

/// By what a peer proved who it is.
#[derive(Clone, Debug)]
pub(super) enum Shown {
    Certificate(Box<Certificate>),
    Token(TokenDigest),
}

impl Shown {
    /// Why it is of no use any more, if it is not.
    pub(super) fn problem(&self, name: &str, loaded: &Loaded, now: SystemTime) -> Option<&'static str> {
        match self {
            Self::Certificate(certificate) if loaded.revocations.contains(certificate) => Some("revoked"),
            Self::Certificate(certificate) if certificate.not_after <= now => Some("expired"),
            Self::Token(_) if loaded.revocations.names(name) => Some("revoked"),
            Self::Token(digest) if !loaded.tokens.holds(name, digest) => {
                Some("its token is not taken any more")
            }
            Self::Certificate(_) | Self::Token(_) => None,
        }
    }

    fn not_after(&self) -> Option<SystemTime> {
        match self {
            Self::Certificate(certificate) => Some(certificate.not_after),
            Self::Token(_) => None,
        }
    }
}

/// A session.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) session: Session,
    pub(super) connection: Connection,
    pub(super) peer: Introduction,
    pub(super) shown: Shown,
    pub(super) dialled_by_us: bool,
    /// Counts the dialling of the side that dialled.
    pub(super) dial: u64,
    pub(super) counts: Arc<Counts>,
    since: Instant,
    permits: [Semaphore; Lane::ALL.len()],
    outbound: Outbound,
    one_way_open: AtomicBool,
    ended: watch::Sender<bool>,
}

impl Live {
    pub(super) fn new(
        session: Session,
        connection: Connection,
        peer: Introduction,
        shown: Shown,
        dialled_by_us: bool,
        dial: u64,
        counts: Arc<Counts>,
    ) -> Self {
        Self {
            session,
            connection,
            peer,
            shown,
            dialled_by_us,
            dial,
            counts,
            since: Instant::now(),
            permits: Lane::ALL.map(|lane| Semaphore::new(lane.calls_max())),
            outbound: Outbound::default(),
            one_way_open: AtomicBool::new(false),
            ended: watch::Sender::new(false),
        }
    }

    pub(super) fn close(&self, reason: Reason, detail: &str) {
        close(&self.connection, reason, detail);
    }

    pub(super) fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// Resolves once `disconnected` was said and the table is rid of it.
    pub(super) async fn gone(&self) {
        // The sender is in here: it cannot go before it said so.
        drop(self.ended.subscribe().wait_for(|ended| *ended).await);
    }

    pub(super) fn send(&self, lane: Lane, frame: Bytes) -> Result<(), SendError> {
        if lane != Lane::Mesh {
            return Err(SendError::NotOneWay(lane));
        }
        if frame.len() > lane.bytes_max() {
            return Err(SendError::TooLarge { bytes: frame.len() });
        }
        let pushed = self.outbound.push(frame);
        let counter = if pushed.is_ok() { &self.counts.frames_sent } else { &self.counts.frames_refused };
        counter.fetch_add(1, Ordering::Relaxed);
        pushed
    }

    pub(super) fn waiting(&self) -> usize {
        self.outbound.waiting()
    }

    /// *Cancel safety*: the call is abandoned: the peer is told to stop.
    pub(super) async fn call(&self, lane: Lane, request: Bytes) -> Result<Bytes, CallError> {
        let lost = || CallError::Lost(self.session.peer);
        let permits =
            Lane::ALL.iter().zip(&self.permits).find(|(each, _)| **each == lane).map(|(_, found)| found);
        let Some(permits) = permits else { return Err(CallError::OneWay(lane)) };
        // Never closed.
        let _permit = permits.acquire().await.map_err(|_error| lost())?;
        let (send, recv) =
            self.connection.open_bi().await.map_err(|_error| CallError::NotConnected(self.session.peer))?;
        let mut send = Abandoned(Some(send));
        send.stream()?.set_priority(priority(lane)).map_err(|_error| lost())?;
        let mut chunks = [frames::header(frames::number(lane), request.len()), request];
        send.stream()?.write_all_chunks(&mut chunks).await.map_err(|_error| lost())?;
        send.stream()?.finish().map_err(|_error| lost())?;
        let answer = async {
            let mut reader = Reader::new(recv);
            let Some(status) = reader.byte().await? else { return Err(Broken::Lost) };
            let Some(body) = reader.frame(lane.bytes_max()).await? else { return Err(Broken::Lost) };
            Ok(frames::decode_answer(status, body)?)
        };
        match answer.await {
            Ok(answer) => {
                drop(send.0.take());
                Ok(answer?)
            }
            Err(Broken::Lost) => Err(lost()),
            Err(Broken::Violation(violation)) => {
                self.close(Reason::Violation, &violation.to_string());
                Err(lost())
            }
        }
    }

    /// Whether the peer answers at all.
    pub(super) async fn answers(&self) -> bool {
        let ping = async {
            let (mut send, recv) = self.connection.open_bi().await.ok()?;
            send.set_priority(i32::MAX).ok()?;
            send.write_chunk(frames::header(PING, 0)).await.ok()?;
            send.finish().ok()?;
            Reader::new(recv).byte().await.ok()?
        };
        matches!(tokio::time::timeout(PROBE_MAX, ping).await, Ok(Some(_)))
    }

    /// Runs the session from `connected` to `disconnected`.
    pub(super) async fn run(
        self: Arc<Self>,
        handler: Arc<dyn PeerHandler>,
        tunnels: Option<Arc<dyn TunnelHandler>>,
    ) {
        self.counts.sessions.fetch_add(1, Ordering::Relaxed);
        info!(
            peer = %self.peer.name,
            id = %self.session.peer,
            address = %self.connection.remote_address(),
            session = self.session.number,
            dialled = self.dialled_by_us,
            "peer connected"
        );
        handler.connected(self.session, &self.peer);
        // Every task of the session, so that none outlives it.
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&self).write_frames());
        let why = loop {
            tokio::select! {
                accepted = self.connection.accept_bi() => match accepted {
                    Ok((send, recv)) => {
                        tasks.spawn(Arc::clone(&self).answer(Arc::clone(&handler), tunnels.clone(), send, recv));
                    }
                    Err(lost) => break closed(&lost),
                },
                accepted = self.connection.accept_uni() => match accepted {
                    Ok(recv) => {
                        tasks.spawn(Arc::clone(&self).read_frames(Arc::clone(&handler), recv));
                    }
                    Err(lost) => break closed(&lost),
                },
                Some(done) = tasks.join_next() => match done {
                    Ok(Ok(()) | Err(Broken::Lost)) => {}
                    Ok(Err(Broken::Violation(violation))) => {
                        warn!(peer = %self.peer.name, err = %violation, "a peer broke the protocol");
                        self.close(Reason::Violation, &violation.to_string());
                        break violation.to_string();
                    }
                    Err(panic) => {
                        error!(peer = %self.peer.name, err = %panic, "a handler of peers failed");
                        self.close(Reason::Reset, "internal");
                        break "a handler failed".to_owned();
                    }
                },
            }
        };
        self.outbound.end();
        tasks.shutdown().await;
        self.counts.ended(&self.connection);
        self.counts.failed(&why);
        info!(peer = %self.peer.name, id = %self.session.peer, session = self.session.number, err = %why, "peer disconnected");
        handler.disconnected(self.session);
    }

    /// The table is rid of it.
    pub(super) fn ended(&self) {
        self.ended.send_replace(true);
    }

    async fn write_frames(self: Arc<Self>) -> Result<(), Broken> {
        let mut taken = Vec::new();
        let mut cost = self.outbound.take(&mut taken).await;
        let mut stream = self.connection.open_uni().await.map_err(|_error| Broken::Lost)?;
        stream.set_priority(priority(Lane::Mesh)).map_err(|_error| Broken::Lost)?;
        let mut together = BytesMut::new();
        together.put_u8(frames::number(Lane::Mesh));
        let mut chunks = Vec::new();
        loop {
            for frame in taken.drain(..) {
                frames::put_length(&mut together, frame.len());
                if frame.len() <= COPIED_MAX {
                    together.put_slice(&frame);
                } else {
                    chunks.push(together.split().freeze());
                    chunks.push(frame);
                }
            }
            if !together.is_empty() {
                chunks.push(together.split().freeze());
            }
            stream.write_all_chunks(&mut chunks).await.map_err(|_error| Broken::Lost)?;
            chunks.clear();
            self.outbound.written(cost);
            cost = self.outbound.take(&mut taken).await;
        }
    }

    async fn read_frames(
        self: Arc<Self>,
        handler: Arc<dyn PeerHandler>,
        recv: RecvStream,
    ) -> Result<(), Broken> {
        let mut reader = Reader::new(recv);
        let Some(byte) = reader.byte().await? else { return Ok(()) };
        let lane = frames::lane(byte)?;
        if lane != Lane::Mesh {
            return Err(Violation::WrongLane(lane).into());
        }
        if self.one_way_open.swap(true, Ordering::AcqRel) {
            return Err(Violation::SecondStream.into());
        }
        while let Some(frame) = reader.frame(lane.bytes_max()).await? {
            self.counts.frames_received.fetch_add(1, Ordering::Relaxed);
            handler.received(self.session, lane, frame);
        }
        // It never ends before its connection does: frames would be missing.
        Err(Broken::Lost)
    }

    async fn answer(
        self: Arc<Self>,
        handler: Arc<dyn PeerHandler>,
        tunnels: Option<Arc<dyn TunnelHandler>>,
        mut send: SendStream,
        mut recv: RecvStream,
    ) -> Result<(), Broken> {
        // Not by the reader of frames: what follows may not be frames.
        let mut first = [0];
        match recv.read_exact(&mut first).await {
            Ok(()) => {}
            Err(quinn::ReadExactError::FinishedEarly(_)) => return Ok(()),
            Err(quinn::ReadExactError::ReadError(_)) => return Err(Broken::Lost),
        }
        let [byte] = first;
        if let (Some(urgency), Some(tunnels)) = (Urgency::of_byte(byte), tunnels) {
            let tunnel = Tunnel::new(send, recv, urgency).ok_or(Broken::Lost)?;
            tunnels.serve(&self.peer, self.connection.remote_address(), tunnel).await;
            return Ok(());
        }
        let mut reader = Reader::new(recv);
        if byte == PING {
            send.write_chunk(frames::header(0, 0)).await.map_err(|_error| Broken::Lost)?;
            return Ok(());
        }
        let lane = frames::lane(byte)?;
        if lane == Lane::Mesh {
            return Err(Violation::WrongLane(lane).into());
        }
        // Cut short is abandoned.
        let Some(request) = reader.frame(lane.bytes_max()).await? else { return Ok(()) };
        let answer = tokio::select! {
            answer = handler.call(self.session.peer, lane, request) => answer,
            _ = send.stopped() => return Ok(()),
        };
        let answer = answer.and_then(|body| {
            if body.len() <= lane.bytes_max() {
                return Ok(body);
            }
            error!(?lane, bytes = body.len(), "an answer is larger than its lane takes");
            Err(Refusal { code: ANSWER_TOO_LARGE, reason: "the answer is too large".to_owned() })
        });
        let (head, body) = frames::encode_answer(answer);
        send.set_priority(priority(lane)).map_err(|_error| Broken::Lost)?;
        send.write_all_chunks(&mut [head, body]).await.map_err(|_error| Broken::Lost)?;
        send.finish().map_err(|_error| Broken::Lost)
    }

    pub(super) fn snapshot(&self) -> SessionSnapshot {
        let stats = self.connection.stats();
        SessionSnapshot {
            number: self.session.number,
            address: self.connection.remote_address(),
            advertise: self.peer.advertise.clone(),
            claims: self.peer.claims.clone(),
            role: self.peer.role,
            dialled_by_us: self.dialled_by_us,
            age: self.age(),
            rtt: self.connection.rtt(),
            lost_packets: stats.path.lost_packets,
            queued_bytes: self.outbound.waiting(),
            certificate_not_after: self.shown.not_after(),
        }
    }
}

/// Closes a connection with a reason, and words for the other side's log.
pub(super) fn close(connection: &Connection, reason: Reason, detail: &str) {
    let text = if detail.is_empty() { reason.text() } else { detail };
    connection.close(VarInt::from_u32(u32::from(reason.code())), text.as_bytes());
}

/// Why a connection ended, in words.
pub(super) fn closed(lost: &quinn::ConnectionError) -> String {
    match reason_of(lost) {
        Some((reason, text)) if text == reason.text() => format!("the peer said: {text}"),
        Some((reason, text)) => format!("the peer said: {reason} ({text})"),
        None => lost.to_string(),
    }
}

/// The reason that the peer gave, if it gave one of ours.
pub(super) fn reason_of(lost: &quinn::ConnectionError) -> Option<(Reason, String)> {
    let quinn::ConnectionError::ApplicationClosed(close) = lost else { return None };
    let text = String::from_utf8_lossy(&close.reason).replace(char::is_control, " ");
    Reason::of_code(close.error_code.into_inner()).map(|reason| (reason, text))
}

/// Why a task of a session ended early.
#[derive(Debug)]
pub(super) enum Broken {
    /// The stream or the connection ended; the session learns of that elsewhere.
    Lost,
    Violation(Violation),
}

impl From<Violation> for Broken {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}

/// A request's stream: reset when the call is dropped, or what was written so far would look like all of it.
struct Abandoned(Option<SendStream>);

impl Abandoned {
    fn stream(&mut self) -> Result<&mut SendStream, CallError> {
        Ok(self.0.as_mut().expect("taken only when the call is over"))
    }
}

impl Drop for Abandoned {
    fn drop(&mut self) {
        if let Some(mut stream) = self.0.take() {
            // Finished and acknowledged already, perhaps.
            drop(stream.reset(VarInt::from_u32(0)));
        }
    }
}

/// Frames from a stream.
struct Reader {
    recv: RecvStream,
    frames: Frames,
}

impl Reader {
    fn new(recv: RecvStream) -> Self {
        Self { recv, frames: Frames::new() }
    }

    async fn more(&mut self) -> Result<bool, Broken> {
        match self.recv.read_chunk(usize::MAX, true).await {
            Ok(Some(chunk)) => {
                self.frames.feed(chunk.bytes);
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(_) => Err(Broken::Lost),
        }
    }

    /// `None` when the stream ended.
    async fn byte(&mut self) -> Result<Option<u8>, Broken> {
        loop {
            if let Some(byte) = self.frames.byte() {
                return Ok(Some(byte));
            }
            if !self.more().await? {
                return Ok(None);
            }
        }
    }

    /// `None` when the stream ended before the frame did.
    async fn frame(&mut self, max: usize) -> Result<Option<Bytes>, Broken> {
        loop {
            if let Some(frame) = self.frames.frame(max)? {
                return Ok(Some(frame));
            }
            if !self.more().await? {
                return Ok(None);
            }
        }
    }
}

/// Numbers for sessions.
#[derive(Debug, Default)]
pub(super) struct Numbers(AtomicU64);

impl Numbers {
    pub(super) fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }
}
