//! Whether the leader's process is known to have ended.
//!
//! A leader that says nothing may be slow, cut off or paused; only time tells, and a lease protects it
//! meanwhile. A process that *ended* is another matter: nobody leads any more, and waiting for the lease is
//! waiting for nothing. It is known to have ended when its address answers that nobody listens there, or when its
//! successor introduced itself. A leader that was heard of within [`Vigil::silence`] is never even asked about.
//!
//! This decides when an election begins, not who may win it: terms, logs and synced votes are Raft's as ever.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{
    peer::{PeerId, PeerTransport},
    runtime::{self, Moment},
};

/// A leader as this node last heard of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Heard {
    pub(crate) leader: u64,
    pub(crate) term: u64,
}

pub(crate) struct Vigil {
    transport: Arc<dyn PeerTransport>,
    /// A leader that was heard of within this lives.
    silence: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    heard: Option<(Heard, Moment)>,
    /// The process of that leader has ended.
    ended: bool,
    /// When this node last said that it would vote for another.
    yielded: Option<Moment>,
}

impl fmt::Debug for Vigil {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vigil").finish_non_exhaustive()
    }
}

impl Vigil {
    pub(crate) fn new(transport: Arc<dyn PeerTransport>, silence: Duration) -> Self {
        Self { transport, silence, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A leader spoke, and was believed.
    pub(crate) fn heard(&self, leader: u64, term: u64) {
        let mut state = self.state();
        state.heard = Some((Heard { leader, term }, runtime::now()));
        state.ended = false;
    }

    /// A peer is another process than before. If it led, nobody leads: a process starts as a follower.
    pub(crate) fn succeeded(&self, peer: PeerId) {
        let mut state = self.state();
        if state.heard.is_some_and(|(heard, _)| heard.leader == peer.0) {
            state.ended = true;
        }
    }

    /// This node said that it would vote for another.
    pub(crate) fn yielded(&self) {
        self.state().yielded = Some(runtime::now());
    }

    /// Whether it said so within this time.
    pub(crate) fn has_yielded(&self, within: Duration) -> bool {
        self.state().yielded.is_some_and(|at| runtime::now() - at < within)
    }

    /// The last leader, if its process is known to have ended. It is asked about when it was silent for a while.
    pub(crate) async fn ended(&self) -> Option<Heard> {
        let heard = {
            let state = self.state();
            let (heard, at) = state.heard?;
            if state.ended {
                return Some(heard);
            }
            if runtime::now() - at < self.silence {
                return None;
            }
            heard
        };
        if !self.transport.has_ended(PeerId(heard.leader)).await {
            return None;
        }
        let mut state = self.state();
        // It, or another, may have spoken meanwhile.
        let (now, at) = state.heard?;
        if now != heard || runtime::now() - at < self.silence {
            return None;
        }
        state.ended = true;
        Some(heard)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::peer::{BoxFuture, CallError, Lane, SendError, Session};

    struct Answers(bool);

    impl PeerTransport for Answers {
        fn call(
            &self,
            peer: PeerId,
            _lane: Lane,
            _request: Bytes,
            _timeout: Duration,
        ) -> BoxFuture<'static, Result<Bytes, CallError>> {
            Box::pin(std::future::ready(Err(CallError::NotConnected(peer))))
        }

        fn send(&self, _to: Session, _lane: Lane, _frame: Bytes) -> Result<(), SendError> {
            Err(SendError::Ended)
        }

        fn reset(&self, _session: Session, _reason: &str) {}

        fn session(&self, _peer: PeerId) -> Option<Session> {
            None
        }

        fn has_ended(&self, _peer: PeerId) -> BoxFuture<'static, bool> {
            Box::pin(std::future::ready(self.0))
        }
    }

    const SEVEN: Heard = Heard { leader: 7, term: 3 };

    #[tokio::test]
    async fn only_a_silent_leader_is_asked_about() {
        for (silence, ended, expected) in [
            (Duration::from_secs(3600), true, None),
            (Duration::ZERO, false, None),
            (Duration::ZERO, true, Some(SEVEN)),
        ] {
            let vigil = Vigil::new(Arc::new(Answers(ended)), silence);
            assert_eq!(vigil.ended().await, None, "of nobody");
            vigil.heard(7, 3);
            assert_eq!(vigil.ended().await, expected, "{silence:?} {ended}");
        }
    }

    #[tokio::test]
    async fn the_successor_of_a_process_says_that_it_ended() {
        let vigil = Vigil::new(Arc::new(Answers(false)), Duration::from_secs(3600));
        vigil.heard(7, 3);
        vigil.succeeded(PeerId(8));
        assert_eq!(vigil.ended().await, None);
        vigil.succeeded(PeerId(7));
        assert_eq!(vigil.ended().await, Some(SEVEN));
        // The successor was elected.
        vigil.heard(7, 4);
        assert_eq!(vigil.ended().await, None);
    }
}
