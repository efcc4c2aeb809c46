//! What everything above a transport is written against: who a peer is, how to ask it something, and
//! how to be asked. QUIC (`transport`) is one implementation, the simulator another.
//!
//! Promises of every transport:
//! * A peer has at most one *session* at a time. [`PeerHandler::connected`] comes before anything else
//!   of the session, [`PeerHandler::disconnected`] after everything.
//! * Frames that are sent within one session and lane arrive in order, each once, without a gap; a session that
//!   cannot keep this ends. Frames of another session are refused, never mixed in.
//! * Calls have no order among each other, even within a lane. A call that failed with
//!   [`CallError::Lost`] or [`CallError::TimedOut`] may have been executed.
//! * Nothing blocks, and every queue has an end. No function of a transport calls the handler before it
//!   returns: whoever calls may hold locks that the handler takes.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

/// The same type as that of `futures`.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A node of the cluster: made of the random id of its store, so that a wiped node is a new node. Never 0.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PeerId(pub u64);

impl PeerId {
    /// The peer id of a store.
    #[must_use]
    pub fn of_store(node: &[u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, rest @ ..] = *node;
        let low = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        let id = low ^ u64::from_le_bytes(rest);
        // Of 2^64 stores one would be nobody.
        Self(if id == 0 { 1 } else { id })
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Kinds of traffic, each with its own QUIC streams, so that none waits behind another. In the order of
/// their priority.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Lane {
    /// Votes, heartbeats, transfers of leadership.
    Vote,
    /// Entries of the log.
    Append,
    /// Interest and messages that are not stored.
    Mesh,
    /// Questions of operators.
    Admin,
    /// Segments as they lie.
    CatchUp,
}

impl Lane {
    pub const ALL: [Self; 5] = [Self::Vote, Self::Append, Self::Mesh, Self::Admin, Self::CatchUp];

    /// The most a request, an answer or a frame may have. A peer that sends more is disconnected.
    #[must_use]
    pub const fn bytes_max(self) -> usize {
        match self {
            Self::Vote => 64 << 10,
            // One frame of the log, and what openraft says about it.
            Self::Append => (16 << 20) + (64 << 10),
            Self::Mesh => 4 << 20,
            Self::Admin => 256 << 10,
            Self::CatchUp => (1 << 20) + (64 << 10),
        }
    }

    /// Calls that may be under way to one peer. The next wait for their turn within their deadline. The
    /// mesh has none: it is the lane of one-way frames, and the only one.
    #[must_use]
    pub const fn calls_max(self) -> usize {
        match self {
            // Of all shards together: one whose follower is slow leaves turns to the others.
            Self::Vote => 6,
            Self::Append => 4,
            Self::CatchUp => 2,
            Self::Admin => 1,
            Self::Mesh => 0,
        }
    }
}

/// One connection to a peer, from the first word to the last. Never used again, also not by the next
/// process: within one process numbers only grow.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Session {
    pub peer: PeerId,
    pub number: u64,
}

/// What a node is allowed to be; its certificate says it.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Role {
    Node,
    /// Votes, and keeps no messages.
    Witness,
    /// Not of the cluster: it dials a hub.
    Edge,
}

impl Role {
    pub const ALL: [Self; 3] = [Self::Node, Self::Witness, Self::Edge];

    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Witness => "witness",
            Self::Edge => "edge",
        }
    }

    /// As words put it.
    #[must_use]
    pub const fn with_article(self) -> &'static str {
        match self {
            Self::Node => "a node",
            Self::Witness => "a witness",
            Self::Edge => "an edge",
        }
    }

    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Who a peer said it is; cluster, name and role are those of its certificate.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Introduction {
    pub cluster: String,
    pub name: String,
    pub role: Role,
    pub id: PeerId,
    /// Differs each time the peer's process starts.
    pub incarnation: u64,
    /// Where it says it can be reached: `host:port`. Empty: nowhere.
    pub advertise: String,
    /// What it claims about itself, of the cluster's own making (its log's end, for DR13).
    pub claims: Bytes,
}

/// An answer that is none: why, by number, and in words for the log.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("refused by the peer ({code}): {reason}")]
pub struct Refusal {
    pub code: u16,
    pub reason: String,
}

#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CallError {
    /// Nothing was sent.
    #[error("peer {0} is not connected")]
    NotConnected(PeerId),
    /// Nothing was sent.
    #[error("{bytes} bytes are more than a lane takes")]
    TooLarge { bytes: usize },
    /// Nothing was sent.
    #[error("lane {0:?} is for one-way frames")]
    OneWay(Lane),
    /// Perhaps executed.
    #[error("no answer in time")]
    TimedOut,
    /// Perhaps executed.
    #[error("the connection to peer {0} was lost before the answer came")]
    Lost(PeerId),
    /// The peer's handler said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// The frame was not taken.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SendError {
    /// As much waits for this peer as may; here is the frame.
    #[error("the queue to the peer is full")]
    Full(Bytes),
    /// The session has ended: `disconnected` was called, or will be.
    #[error("the session has ended")]
    Ended,
    #[error("lane {0:?} is for calls")]
    NotOneWay(Lane),
    #[error("{bytes} bytes are more than a lane takes")]
    TooLarge { bytes: usize },
}

/// Asks peers. Cheap to share as `Arc<dyn PeerTransport>`.
pub trait PeerTransport: Send + Sync {
    /// Sends a request and waits for its answer, `timeout` at most, waiting for a turn included. Does not
    /// wait for a connection: without one it fails at once.
    ///
    /// *Cancel safety*: dropping the future abandons the call; it may have been executed.
    fn call(
        &self,
        peer: PeerId,
        lane: Lane,
        request: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Bytes, CallError>>;

    /// Puts a frame behind those that were sent in this session and lane. Never blocks.
    ///
    /// # Errors
    /// The frame was not taken and will not be sent.
    fn send(&self, to: Session, lane: Lane, frame: Bytes) -> Result<(), SendError>;

    /// How many bytes of one-way frames wait in this session and lane: whoever sends can slow down in time.
    fn waiting(&self, to: Session, lane: Lane) -> usize {
        let _ = (to, lane);
        0
    }

    /// Ends a session (it may have ended). The peer is connected again as after any loss.
    fn reset(&self, session: Session, reason: &str);

    /// The session with a peer, if there is one.
    fn session(&self, peer: PeerId) -> Option<Session>;

    /// Whether the process that this node has its session with is known to have ended, which nobody told it yet.
    /// Asks, for a moment. `false` means nothing.
    ///
    /// *Cancel safety*: nothing happens.
    fn has_ended(&self, peer: PeerId) -> BoxFuture<'static, bool> {
        let _ = peer;
        Box::pin(std::future::ready(false))
    }
}

/// Is asked by peers. Calls come on the transport's tasks and must not block.
pub trait PeerHandler: Send + Sync {
    /// A request; the future's result is the answer. It is dropped when the asking side gave up.
    fn call(&self, from: PeerId, lane: Lane, request: Bytes) -> BoxFuture<'static, Result<Bytes, Refusal>>;

    /// A one-way frame. The next frame of the session and lane is not read before this returns.
    fn received(&self, from: Session, lane: Lane, frame: Bytes);

    /// Somebody wants a session, whose certificate and words agree: does the cluster want it? Asked of
    /// both sides, before the peer gets anything else to say.
    ///
    /// # Errors
    /// No, and why.
    fn admit(&self, peer: &Introduction) -> Result<(), Refusal>;

    /// A session begins.
    fn connected(&self, session: Session, peer: &Introduction);

    /// It has ended; nothing of it comes after this.
    fn disconnected(&self, session: Session);
}

/// A handler made of several, by lane. `admit` asks all, and all are told of sessions, in the order given.
pub struct ByLane(Vec<(&'static [Lane], Arc<dyn PeerHandler>)>);

impl fmt::Debug for ByLane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(lanes, _)| lanes)).finish()
    }
}

/// The code of the refusal of a call on a lane that nobody serves.
pub const NOT_SERVED: u16 = 1;

impl ByLane {
    /// The first that names a lane serves it.
    #[must_use]
    pub fn new(handlers: Vec<(&'static [Lane], Arc<dyn PeerHandler>)>) -> Self {
        Self(handlers)
    }

    fn of(&self, lane: Lane) -> Option<&Arc<dyn PeerHandler>> {
        self.0.iter().find(|(lanes, _)| lanes.contains(&lane)).map(|(_, handler)| handler)
    }
}

impl PeerHandler for ByLane {
    fn call(&self, from: PeerId, lane: Lane, request: Bytes) -> BoxFuture<'static, Result<Bytes, Refusal>> {
        match self.of(lane) {
            Some(handler) => handler.call(from, lane, request),
            None => Box::pin(async move {
                Err(Refusal { code: NOT_SERVED, reason: format!("lane {lane:?} is not served here") })
            }),
        }
    }

    fn received(&self, from: Session, lane: Lane, frame: Bytes) {
        if let Some(handler) = self.of(lane) {
            handler.received(from, lane, frame);
        }
    }

    fn admit(&self, peer: &Introduction) -> Result<(), Refusal> {
        self.0.iter().try_for_each(|(_, handler)| handler.admit(peer))
    }

    fn connected(&self, session: Session, peer: &Introduction) {
        for (_, handler) in &self.0 {
            handler.connected(session, peer);
        }
    }

    fn disconnected(&self, session: Session) {
        for (_, handler) in &self.0 {
            handler.disconnected(session);
        }
    }
}
