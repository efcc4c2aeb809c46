//! What waits before a one-way stream. Bounded in bytes; what does not fit is given back.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use super::settings::{OUTBOUND_BYTES_MAX, WRITE_BATCH};
use crate::peer::SendError;

/// What a frame costs beside its bytes.
const FRAME_OVERHEAD: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Outbound {
    state: Mutex<State>,
    more: Notify,
}

#[derive(Debug, Default)]
struct State {
    frames: VecDeque<Bytes>,
    /// Of those, and of those being written.
    bytes: usize,
    ended: bool,
}

impl Outbound {
    pub(super) fn push(&self, frame: Bytes) -> Result<(), SendError> {
        let mut state = self.state();
        if state.ended {
            return Err(SendError::Ended);
        }
        let cost = frame.len() + FRAME_OVERHEAD;
        if state.bytes + cost > OUTBOUND_BYTES_MAX {
            return Err(SendError::Full(frame));
        }
        state.bytes += cost;
        state.frames.push_back(frame);
        drop(state);
        self.more.notify_one();
        Ok(())
    }

    /// Waits for frames and takes some: at least one. They count as waiting until [`Self::written`].
    ///
    /// *Cancel safety*: nothing is lost, as taking is the last step.
    pub(super) async fn take(&self, into: &mut Vec<Bytes>) -> usize {
        loop {
            {
                let mut state = self.state();
                let mut cost = 0;
                while cost < WRITE_BATCH
                    && let Some(frame) = state.frames.pop_front()
                {
                    cost += frame.len() + FRAME_OVERHEAD;
                    into.push(frame);
                }
                if cost > 0 {
                    return cost;
                }
            }
            // A push in between left a permit.
            self.more.notified().await;
        }
    }

    pub(super) fn written(&self, cost: usize) {
        self.state().bytes -= cost;
    }

    pub(super) fn waiting(&self) -> usize {
        self.state().bytes
    }

    pub(super) fn end(&self) {
        let mut state = self.state();
        state.ended = true;
        state.frames = VecDeque::new();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_does_not_fit_is_given_back_and_fits_once_the_rest_is_written() {
        let outbound = Outbound::default();
        let frame = Bytes::from(vec![0; OUTBOUND_BYTES_MAX / 2 - FRAME_OVERHEAD]);
        outbound.push(frame.clone()).unwrap();
        outbound.push(frame.clone()).unwrap();
        assert_eq!(outbound.push(Bytes::new()), Err(SendError::Full(Bytes::new())));
        let mut taken = Vec::new();
        let cost = outbound.take(&mut taken).await;
        assert_eq!((taken.len(), cost), (1, OUTBOUND_BYTES_MAX / 2));
        assert!(outbound.push(Bytes::new()).is_err(), "it is still being written");
        outbound.written(cost);
        outbound.push(Bytes::new()).unwrap();
        outbound.end();
        assert_eq!(outbound.push(Bytes::new()), Err(SendError::Ended));
    }
}
