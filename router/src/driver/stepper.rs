//! A driver without a thread, for a simulator: it does one step when it is told to.

use std::task::{Context, Poll};
use std::time::Duration;

use beamlog_log::{CloseError, Index};

use crate::driver::Driver;
use crate::driver::queue::Taken;

/// The driver of a router that was opened to be stepped. Dropping it is a crash of the process: nothing is
/// sealed and nobody is told.
pub struct Stepper {
    driver: Driver,
    closed: bool,
}

impl std::fmt::Debug for Stepper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stepper").field("closed", &self.closed).finish_non_exhaustive()
    }
}

/// What a step found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Stepped {
    /// Whether commands were there.
    pub progress: bool,
    /// When the next step is due if no command comes before: zero is at once, `None` is never.
    pub next: Option<Duration>,
    /// All handles are gone or one was closed: [`Stepper::close`] is what is left to do.
    pub closed: bool,
}

impl Stepper {
    pub(crate) fn new(driver: Driver) -> Self {
        Self { driver, closed: false }
    }

    /// Takes what is waiting, does it, and does what is due. Never waits.
    pub fn step(&mut self) -> Stepped {
        let taken = self.driver.step(Some(Duration::ZERO));
        self.closed |= taken == Taken::Closed;
        Stepped { progress: taken == Taken::Commands, next: self.driver.timeout(), closed: self.closed }
    }

    /// Ready when something waits that a step would take; until then the task is woken by what comes.
    pub fn poll_work(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.driver.poll_work(context.waker())
    }

    /// The last entry that the state has, and the state as rows, whose equality at the same index is an invariant
    /// of replication: what a new segment would begin with, but for the time. `None` while the state is ahead of
    /// what is committed.
    #[must_use]
    pub fn state_rows(&self) -> Option<(Index, Vec<Vec<u8>>)> {
        self.driver.state_rows()
    }

    /// Plants a bug, to see whether it is found: who becomes leader here forgets the message ids it knew.
    #[cfg(feature = "planted-bugs")]
    pub fn forget_ids_when_leading(&mut self) {
        self.driver.forget_ids_when_leading();
    }

    /// Plants a bug, to see whether it is found: who becomes leader here does not know how far any link came.
    #[cfg(feature = "planted-bugs")]
    pub fn forget_watermarks_when_leading(&mut self) {
        self.driver.forget_watermarks_when_leading();
    }

    /// The last turn: those who wait are told, the log is sealed.
    ///
    /// # Errors
    /// What kept the log from being sealed.
    pub fn close(self) -> Result<(), CloseError> {
        self.driver.close()
    }
}
