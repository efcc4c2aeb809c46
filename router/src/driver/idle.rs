//! What the driver does for the log while nobody waits: it proves that the last frame is whole (DR6), and
//! searches the sealed segments for damage (DR15).
//!
//! Invariant: a log to which nothing is added gets one seal frame and no more, and without sealed segments
//! the driver then sleeps until it is called.

use std::time::{Duration, Instant};

use crate::driver::Driver;

/// How long nothing was written before the last frame is sealed.
const SEAL_AFTER: Duration = Duration::from_millis(250);
/// What a publish that comes in the middle of a step waits for: one read of this size.
const SCRUB_STEP_BYTES: usize = 1 << 20;
/// So that an idle driver wakes rarely, and a scrub leaves the disk to those who wait.
const SCRUB_STEPS_APART: Duration = Duration::from_secs(1);
pub(crate) const SCRUB_PERIOD_MIN: Duration = Duration::from_secs(1);

/// When there is something to do.
pub(crate) struct Idle {
    seal_at: Option<Instant>,
    scrub_period: Duration,
    /// What one pass of a scrub reads.
    scrub_bytes: u64,
    scrubbed_at: Instant,
}

impl Idle {
    /// The last frame of a log that was just opened may have no proof.
    pub(super) fn new(scrub_period: Duration, now: Instant) -> Self {
        Self { seal_at: Some(now + SEAL_AFTER), scrub_period, scrub_bytes: 0, scrubbed_at: now }
    }

    /// A frame was written: it wants its proof.
    pub(super) fn written(&mut self, now: Instant) {
        self.seal_at = Some(now + SEAL_AFTER);
    }

    pub(super) fn scrub_pass_is(&mut self, bytes: u64) {
        self.scrub_bytes = bytes;
    }

    /// Time between two steps, so that a period is enough for all bytes. `None`: there is nothing to read.
    fn scrub_interval(&self) -> Option<Duration> {
        if self.scrub_bytes == 0 {
            return None;
        }
        let steps = self.scrub_bytes.div_ceil(SCRUB_STEP_BYTES as u64);
        let interval = self.scrub_period / u32::try_from(steps).unwrap_or(u32::MAX);
        Some(interval.max(SCRUB_STEPS_APART))
    }

    fn scrub_at(&self) -> Option<Instant> {
        self.scrub_interval().map(|interval| self.scrubbed_at + interval)
    }

    /// The next step is late by as much as steps are apart: there was always something else to do.
    fn scrub_is_late(&self, now: Instant) -> bool {
        self.scrub_interval().is_some_and(|interval| self.scrubbed_at + interval * 2 <= now)
    }

    fn due_in(&self, now: Instant) -> Option<Duration> {
        let due = self.seal_at.into_iter().chain(self.scrub_at()).min()?;
        Some(due.saturating_duration_since(now))
    }
}

impl Driver {
    pub(super) fn idle_due_in(&self) -> Option<Duration> {
        // A log that failed is left as it is.
        if self.failure.is_some() { None } else { self.idle.due_in(self.clock.instant()) }
    }

    /// A seal frame behind the last frame, so that damage in that cannot look like a write that was cut
    /// short.
    pub(super) fn prove_tail(&mut self) {
        let now = self.clock.instant();
        if self.failure.is_some() || self.idle.seal_at.is_none_or(|due| now < due) {
            return;
        }
        if self.log.pending_records() > 0 || self.engine.has_unlogged() {
            // It will be written soon.
            self.idle.seal_at = Some(now + SEAL_AFTER);
            return;
        }
        self.idle.seal_at = None;
        // What is left on a full disk is for what frees space (DR16).
        if self.full || self.log.fence().is_some() {
            return;
        }
        if let Err(error) = self.log.seal_tail() {
            self.fail(&error);
        }
    }

    /// A step of a scrub although there is traffic, when it is late: who waits then waits for one read.
    pub(super) fn scrub_if_late(&mut self, now: Instant) {
        if self.idle.scrub_is_late(now) {
            self.scrub();
        }
    }

    /// One bounded step of a scrub.
    pub(super) fn scrub(&mut self) {
        let now = self.clock.instant();
        if self.failure.is_some() || self.idle.scrub_at().is_none_or(|due| now < due) {
            return;
        }
        self.idle.scrubbed_at = now;
        let scrubbed = self.log.scrub_step(SCRUB_STEP_BYTES);
        if scrubbed.finished {
            tracing::info!("a scrub has read all sealed segments");
        }
        self.count();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::clock::{Clocks, SystemClocks};

    fn idle(bytes: u64) -> Idle {
        let mut idle = Idle::new(Duration::from_secs(7 * 86_400), SystemClocks.monotonic());
        idle.seal_at = None;
        idle.scrub_pass_is(bytes);
        idle
    }

    #[test]
    fn a_pass_takes_a_period() {
        assert_eq!(idle(1).scrub_interval(), Some(Duration::from_secs(604_800)));
        assert_eq!(idle(7 << 20).scrub_interval(), Some(Duration::from_secs(86_400)));
    }

    #[test]
    fn steps_are_a_second_apart_however_much_there_is() {
        assert_eq!(idle(1 << 50).scrub_interval(), Some(Duration::from_secs(1)));
        assert_eq!(idle(u64::MAX).scrub_interval(), Some(Duration::from_secs(1)));
    }

    #[test]
    fn a_busy_store_takes_twice_as_long() {
        let idle = idle(7 << 20);
        let day = Duration::from_secs(86_400);
        assert!(!idle.scrub_is_late(idle.scrubbed_at + day));
        assert!(idle.scrub_is_late(idle.scrubbed_at + day * 2));
    }

    #[test]
    fn nothing_is_due_when_nothing_is_sealed() {
        let idle = idle(0);
        assert_eq!(idle.due_in(idle.scrubbed_at), None);
    }
}
