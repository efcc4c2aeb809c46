//! Who is connected, who is known, and what was counted of each.

use bytes::Bytes;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::session::Live;
use super::settings::PEERS_MAX;
use crate::handshake::{Hello, Reason};
use crate::peer::{PeerId, Role};

#[derive(Debug, Default)]
pub(super) struct Table(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    live: BTreeMap<PeerId, Arc<Live>>,
    known: BTreeMap<PeerId, Known>,
    by_name: BTreeMap<String, PeerId>,
}

#[derive(Debug)]
struct Known {
    name: String,
    counts: Arc<Counts>,
}

/// Of one peer, over all its sessions.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) sessions: AtomicU64,
    pub(super) calls: AtomicU64,
    pub(super) calls_failed: AtomicU64,
    pub(super) frames_sent: AtomicU64,
    pub(super) frames_received: AtomicU64,
    pub(super) frames_refused: AtomicU64,
    bytes_sent: AtomicU64,
    bytes_received: AtomicU64,
    last_error: Mutex<Option<String>>,
}

impl Counts {
    pub(super) fn failed(&self, error: &str) {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_owned());
    }

    /// What a session that ends has sent and received.
    pub(super) fn ended(&self, connection: &quinn::Connection) {
        let stats = connection.stats();
        self.bytes_sent.fetch_add(stats.udp_tx.bytes, Ordering::Relaxed);
        self.bytes_received.fetch_add(stats.udp_rx.bytes, Ordering::Relaxed);
    }
}

/// What metrics and status pages tell of a peer.
#[derive(Clone, Debug)]
pub struct PeerSnapshot {
    pub id: PeerId,
    pub name: String,
    /// Of the session there is.
    pub session: Option<SessionSnapshot>,
    pub sessions: u64,
    pub calls: u64,
    pub calls_failed: u64,
    pub frames_sent: u64,
    pub frames_received: u64,
    /// One-way frames that the full queue gave back.
    pub frames_refused: u64,
    /// Datagrams, all sessions together.
    pub bytes_sent: u64,
    pub bytes_received: u64,
    /// Why the last session ended, or the last attempt failed.
    pub last_error: Option<String>,
}

#[derive(Clone, Debug)]
pub struct SessionSnapshot {
    pub number: u64,
    pub address: SocketAddr,
    pub advertise: String,
    /// What it said of itself when it came.
    pub claims: Bytes,
    pub role: Role,
    pub dialled_by_us: bool,
    pub age: Duration,
    pub rtt: Duration,
    pub lost_packets: u64,
    /// Bytes of one-way frames that wait.
    pub queued_bytes: usize,
    /// `None`: it showed a token.
    pub certificate_not_after: Option<std::time::SystemTime>,
}

impl Table {
    pub(super) fn get(&self, peer: PeerId) -> Option<Arc<Live>> {
        self.state().live.get(&peer).cloned()
    }

    pub(super) fn all(&self) -> Vec<Arc<Live>> {
        self.state().live.values().cloned().collect()
    }

    /// Puts a session in, unless there is one: that one is returned.
    pub(super) fn insert(&self, live: &Arc<Live>) -> Result<(), Arc<Live>> {
        let mut state = self.state();
        match state.live.get(&live.session.peer) {
            Some(existing) => Err(Arc::clone(existing)),
            None => {
                state.live.insert(live.session.peer, Arc::clone(live));
                Ok(())
            }
        }
    }

    pub(super) fn remove(&self, live: &Live) {
        let mut state = self.state();
        if state.live.get(&live.session.peer).is_some_and(|found| found.session == live.session) {
            state.live.remove(&live.session.peer);
        }
    }

    /// The id this name, and the name this id, was seen with.
    pub(super) fn known(&self, hello: &Hello) -> (Option<PeerId>, Option<String>) {
        let state = self.state();
        let name = state.known.get(&hello.id).map(|known| known.name.clone());
        (state.by_name.get(&hello.name).copied(), name)
    }

    /// Remembers whose name and id belong together.
    ///
    /// # Errors
    /// They are known otherwise, or there are too many.
    pub(super) fn remember(&self, id: PeerId, name: &str) -> Result<Arc<Counts>, Reason> {
        let mut state = self.state();
        if state.by_name.get(name).is_some_and(|known| *known != id) {
            return Err(Reason::NameTaken);
        }
        if let Some(known) = state.known.get(&id) {
            let same = known.name == name;
            return if same { Ok(Arc::clone(&known.counts)) } else { Err(Reason::IdTaken) };
        }
        if state.known.len() >= PEERS_MAX {
            return Err(Reason::Busy);
        }
        let counts = Arc::new(Counts::default());
        state.by_name.insert(name.to_owned(), id);
        state.known.insert(id, Known { name: name.to_owned(), counts: Arc::clone(&counts) });
        Ok(counts)
    }

    pub(super) fn counts(&self, id: PeerId) -> Option<Arc<Counts>> {
        self.state().known.get(&id).map(|known| Arc::clone(&known.counts))
    }

    /// Forgets whose name it is; its session, if there is one, is returned.
    pub(super) fn forget(&self, id: PeerId) -> Option<Arc<Live>> {
        let mut state = self.state();
        if let Some(known) = state.known.remove(&id) {
            state.by_name.remove(&known.name);
        }
        state.live.get(&id).cloned()
    }

    pub(super) fn snapshot(&self) -> Vec<PeerSnapshot> {
        let state = self.state();
        let of = |(id, known): (&PeerId, &Known)| {
            let live = state.live.get(id);
            let stats = live.map(|live| live.connection.stats());
            let counts = &known.counts;
            let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            PeerSnapshot {
                id: *id,
                name: known.name.clone(),
                session: live.map(|live| live.snapshot()),
                sessions: count(&counts.sessions),
                calls: count(&counts.calls),
                calls_failed: count(&counts.calls_failed),
                frames_sent: count(&counts.frames_sent),
                frames_received: count(&counts.frames_received),
                frames_refused: count(&counts.frames_refused),
                bytes_sent: count(&counts.bytes_sent) + stats.map_or(0, |stats| stats.udp_tx.bytes),
                bytes_received: count(&counts.bytes_received) + stats.map_or(0, |stats| stats.udp_rx.bytes),
                last_error: counts.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            }
        };
        state.known.iter().map(of).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
