//! The clock of a log: nanoseconds since the epoch, never going back, carried by the monotonic clock and led by
//! wall clocks as far as they are believed (DR17).
//!
//! A driver that stands alone goes by its own, and does not follow one that jumps by more than a minute against the
//! monotonic one: messages and message ids would expire early, and what is deleted does not come back. A driver in a
//! shard that is replicated goes by what a quorum's clocks agree on ([`TimeSource`]); while there is no such thing its
//! time goes on from the log's as the monotonic clock says.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use beamlog_log::Timestamp;

use crate::replica::TimeSource;

/// Largest difference of the own wall clock that is followed.
const BELIEVED_MAX_NANOS: u64 = 60_000_000_000;
/// How often the wall clock is asked.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// Where the two clocks of a machine stand; what a test moves by hand.
pub trait Clocks: Send {
    /// Never goes back.
    fn monotonic(&self) -> Instant;
    /// Nanoseconds since the epoch.
    fn wall(&self) -> u64;
}

/// The machine's own.
pub(crate) struct SystemClocks;

impl Clocks for SystemClocks {
    #[expect(clippy::disallowed_methods, reason = "the driver is where time comes from")]
    fn monotonic(&self) -> Instant {
        Instant::now()
    }

    #[expect(clippy::disallowed_methods, reason = "the driver is where time comes from")]
    fn wall(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }
}

pub(crate) struct Clock {
    clocks: Box<dyn Clocks>,
    /// The time at `anchor_instant`.
    anchor: u64,
    anchor_instant: Instant,
    last: u64,
    disbelieved: bool,
    guide: Guide,
}

/// What time follows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Guide {
    Own,
    /// What others say that it was at this instant.
    Quorum {
        time: u64,
        at: Instant,
    },
    Nobody,
}

impl Clock {
    /// Of a driver that stands alone: begins at the wall clock, or where the log's time stands if that is later.
    pub(crate) fn new(clocks: Box<dyn Clocks>, not_before: Timestamp) -> Self {
        let mut clock = Self::of_log(clocks, not_before);
        clock.keep_by(TimeSource::Own);
        clock
    }

    /// Of one of several drivers: begins where the log's time stands, and believes nobody yet.
    pub(crate) fn of_log(clocks: Box<dyn Clocks>, not_before: Timestamp) -> Self {
        let (anchor_instant, anchor) = (clocks.monotonic(), not_before.0);
        Self { clocks, anchor, anchor_instant, last: anchor, disbelieved: false, guide: Guide::Nobody }
    }

    pub(crate) fn now(&mut self) -> Timestamp {
        let instant = self.clocks.monotonic();
        let elapsed = instant.saturating_duration_since(self.anchor_instant);
        let mut now = self.anchor + nanos(elapsed);
        if elapsed >= CHECK_EVERY {
            now = self.follow(now, instant);
            self.anchor = now;
            self.anchor_instant = instant;
        }
        self.last = self.last.max(now);
        Timestamp(self.last)
    }

    /// Goes by this from now on. What a quorum agrees on is believed however far it is ahead; so is the own wall clock
    /// of a node that becomes the only one.
    pub(crate) fn keep_by(&mut self, by: TimeSource) {
        let now = self.now().0;
        let instant = self.clocks.monotonic();
        let (guide, time) = match by {
            TimeSource::Own if self.guide == Guide::Own => return,
            TimeSource::Own => (Guide::Own, self.clocks.wall()),
            TimeSource::Quorum(Timestamp(time)) => (Guide::Quorum { time, at: instant }, time),
            TimeSource::Nobody => (Guide::Nobody, now),
        };
        self.guide = guide;
        if time > now {
            if by != TimeSource::Own && time - now > BELIEVED_MAX_NANOS {
                tracing::info!(time, now, "time goes on from what a quorum's clocks say");
            }
            self.anchor = time;
            self.anchor_instant = instant;
            self.last = time;
        }
    }

    fn follow(&mut self, now: u64, instant: Instant) -> u64 {
        let elapsed = nanos(instant.saturating_duration_since(self.anchor_instant));
        let wall = match self.guide {
            Guide::Nobody => return now,
            Guide::Own => {
                let wall = self.clocks.wall();
                if self.is_jump(wall, now) {
                    return now;
                }
                wall
            }
            Guide::Quorum { time, at } => time.saturating_add(nanos(instant.saturating_duration_since(at))),
        };
        if wall >= now {
            wall
        } else {
            // Behind: run at half speed until it has caught up, so that time neither stands nor goes back.
            now - (now - wall).min(elapsed / 2)
        }
    }

    fn is_jump(&mut self, wall: u64, now: u64) -> bool {
        let jumped = wall.abs_diff(now) > BELIEVED_MAX_NANOS;
        if jumped != self.disbelieved {
            self.disbelieved = jumped;
            if jumped {
                tracing::warn!(wall, now, "wall clock jumped by more than a minute and is not followed");
            } else {
                tracing::info!(wall, now, "wall clock is followed again");
            }
        }
        jumped
    }

    /// Goes on from `time` if it is later than now: somebody else's clock said so, and what was decided by it is
    /// in the log (DR17).
    pub(crate) fn raise(&mut self, time: Timestamp) {
        let now = self.now();
        if time > now {
            self.anchor = time.0;
            self.anchor_instant = self.clocks.monotonic();
            self.last = time.0;
        }
    }

    /// How long until `due`.
    pub(crate) fn until(&self, due: Timestamp) -> Duration {
        Duration::from_nanos(due.0.saturating_sub(self.last))
    }

    /// A reading for measuring only.
    pub(crate) fn instant(&self) -> Instant {
        self.clocks.monotonic()
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone)]
    struct ByHand(Arc<Mutex<(Instant, u64)>>);

    impl ByHand {
        fn new(wall: u64) -> Self {
            Self(Arc::new(Mutex::new((SystemClocks.monotonic(), wall))))
        }

        fn pass(&self, monotonic: Duration, wall: i64) {
            let mut at = self.0.lock().unwrap();
            at.0 += monotonic;
            at.1 = at.1.checked_add_signed(wall).unwrap();
        }
    }

    impl Clocks for ByHand {
        fn monotonic(&self) -> Instant {
            self.0.lock().unwrap().0
        }

        fn wall(&self) -> u64 {
            self.0.lock().unwrap().1
        }
    }

    const SECOND: i64 = 1_000_000_000;
    const START: u64 = 1_700_000_000_000_000_000;

    fn clock() -> (ByHand, Clock) {
        let by_hand = ByHand::new(START);
        let clock = Clock::new(Box::new(by_hand.clone()), Timestamp(0));
        (by_hand, clock)
    }

    #[test]
    fn a_jump_of_ten_years_is_not_believed() {
        let (by_hand, mut clock) = clock();
        by_hand.pass(Duration::from_secs(2), 10 * 365 * 86_400 * SECOND);
        assert_eq!(clock.now(), Timestamp(START + 2_000_000_000));
        by_hand.pass(Duration::from_secs(2), -10 * 365 * 86_400 * SECOND + 4 * SECOND);
        assert_eq!(clock.now(), Timestamp(START + 4_000_000_000));
    }

    #[test]
    fn a_small_step_forward_is_followed() {
        let (by_hand, mut clock) = clock();
        by_hand.pass(Duration::from_secs(1), 30 * SECOND);
        assert_eq!(clock.now(), Timestamp(START + 30_000_000_000));
    }

    #[test]
    fn time_never_goes_back_and_never_stands() {
        let (by_hand, mut clock) = clock();
        by_hand.pass(Duration::from_secs(1), -10 * SECOND);
        let mut before = clock.now();
        for _ in 0..60 {
            by_hand.pass(Duration::from_secs(1), SECOND);
            let now = clock.now();
            assert!(now > before);
            before = now;
        }
        // One second of a minute went by before the step back.
        assert_eq!(before, Timestamp(by_hand.wall()));
    }

    fn of_log(wall: u64) -> (ByHand, Clock) {
        let by_hand = ByHand::new(wall);
        let clock = Clock::of_log(Box::new(by_hand.clone()), Timestamp(START));
        (by_hand, clock)
    }

    const HOUR: u64 = 3_600_000_000_000;

    #[test]
    fn one_of_several_does_not_go_by_its_own_wall_clock() {
        let (by_hand, mut clock) = of_log(START + HOUR);
        by_hand.pass(Duration::from_secs(5), 5 * SECOND);
        assert_eq!(clock.now(), Timestamp(START + 5_000_000_000));
        by_hand.pass(Duration::from_secs(5), -5 * SECOND);
        assert_eq!(clock.now(), Timestamp(START + 10_000_000_000));
        clock.raise(Timestamp(START + 20_000_000_000));
        by_hand.pass(Duration::from_secs(5), 0);
        assert_eq!(clock.now(), Timestamp(START + 25_000_000_000), "it goes on from what its leader wrote");
    }

    #[test]
    fn what_a_quorum_agrees_on_is_believed_however_far_ahead() {
        let (by_hand, mut clock) = of_log(START);
        clock.keep_by(TimeSource::Quorum(Timestamp(START + 24 * HOUR)));
        assert_eq!(clock.now(), Timestamp(START + 24 * HOUR));
        by_hand.pass(Duration::from_secs(5), 0);
        assert_eq!(clock.now(), Timestamp(START + 24 * HOUR + 5_000_000_000));
        clock.keep_by(TimeSource::Nobody);
        by_hand.pass(Duration::from_secs(5), 0);
        assert_eq!(clock.now(), Timestamp(START + 24 * HOUR + 10_000_000_000));
    }

    #[test]
    fn a_quorum_that_is_behind_is_waited_for() {
        let (by_hand, mut clock) = of_log(START);
        clock.keep_by(TimeSource::Quorum(Timestamp(START - 60_000_000_000)));
        for _ in 0..120 {
            by_hand.pass(Duration::from_secs(1), 0);
            clock.now();
        }
        assert_eq!(clock.now(), Timestamp(START + 60_000_000_000), "half speed for two minutes");
    }

    #[test]
    fn who_becomes_the_only_one_goes_by_its_own_clock() {
        let (by_hand, mut clock) = of_log(START + HOUR);
        clock.keep_by(TimeSource::Own);
        assert_eq!(clock.now(), Timestamp(START + HOUR));
        by_hand.pass(Duration::from_secs(2), 10 * 365 * 86_400 * SECOND);
        clock.keep_by(TimeSource::Own);
        assert_eq!(clock.now(), Timestamp(START + HOUR + 2_000_000_000), "a jump is not followed");
    }

    #[test]
    fn time_begins_where_the_log_stands() {
        let by_hand = ByHand::new(START);
        let mut clock = Clock::new(Box::new(by_hand), Timestamp(START + 5));
        assert_eq!(clock.now(), Timestamp(START + 5));
    }
}
