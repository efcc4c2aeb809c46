//! The leader's clock: nanoseconds since the epoch, never going back, carried by the monotonic clock and
//! led by the wall clock as far as that is believed (DR17).
//!
//! A wall clock that jumps by more than a minute against the monotonic one is not followed: messages and
//! message ids would expire early, and what is deleted does not come back.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use beamlog_log::Timestamp;

/// Largest difference that is followed.
const BELIEVED_MAX_NANOS: u64 = 60_000_000_000;
/// A follower that heard its leader's time advance as its own does, for so long and as closely, believes it.
const HEARD_FOR_NANOS: u64 = 300_000_000;
const HEARD_APART_MAX_NANOS: u64 = 200_000_000;
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
    /// A time that the leader wrote, and when it came: what later ones are compared with.
    heard: Option<(u64, Instant)>,
}

impl Clock {
    /// Begins at the wall clock, or where the log's time stands if that is later.
    pub(crate) fn new(clocks: Box<dyn Clocks>, not_before: Timestamp) -> Self {
        let (instant, wall) = (clocks.monotonic(), clocks.wall());
        let anchor = wall.max(not_before.0);
        Self { clocks, anchor, anchor_instant: instant, last: anchor, disbelieved: false, heard: None }
    }

    pub(crate) fn now(&mut self) -> Timestamp {
        let instant = self.clocks.monotonic();
        let elapsed = instant.saturating_duration_since(self.anchor_instant);
        let mut now = self.anchor + nanos(elapsed);
        if elapsed >= CHECK_EVERY {
            now = self.follow_wall(now, nanos(elapsed));
            self.anchor = now;
            self.anchor_instant = instant;
        }
        self.last = self.last.max(now);
        Timestamp(self.last)
    }

    fn follow_wall(&mut self, now: u64, elapsed: u64) -> u64 {
        let wall = self.clocks.wall();
        let jumped = wall.abs_diff(now) > BELIEVED_MAX_NANOS;
        if jumped != self.disbelieved {
            self.disbelieved = jumped;
            if jumped {
                tracing::warn!(wall, now, "wall clock jumped by more than a minute and is not followed");
            } else {
                tracing::info!(wall, now, "wall clock is followed again");
            }
        }
        if jumped {
            now
        } else if wall >= now {
            wall
        } else {
            // Behind: run at half speed until it has caught up, so that time neither stands nor goes back.
            now - (now - wall).min(elapsed / 2)
        }
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

    /// A follower stores an entry of this time. When the leader's time advances as ours does (old entries that are
    /// caught up with come faster), ours goes on from it, also if that is back: who follows has decided nothing by
    /// its own. A node whose wall clock is an hour ahead, and that leads next, lets nothing expire an hour early (DR17).
    pub(crate) fn hear(&mut self, time: Timestamp) {
        let instant = self.clocks.monotonic();
        let (first, since) = *self.heard.get_or_insert((time.0, instant));
        let elapsed = nanos(instant.saturating_duration_since(since));
        let advance = time.0.saturating_sub(first);
        if advance.abs_diff(elapsed) > HEARD_APART_MAX_NANOS {
            self.heard = Some((time.0, instant));
        } else if elapsed >= HEARD_FOR_NANOS {
            self.anchor = time.0;
            self.anchor_instant = instant;
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

    #[test]
    fn a_follower_goes_by_its_leaders_clock_and_not_by_old_entries() {
        let hour = 3_600 * SECOND;
        let by_hand = ByHand::new(START + u64::try_from(hour).unwrap());
        let mut clock = Clock::new(Box::new(by_hand.clone()), Timestamp(0));
        // Caught up with: a minute of the log in a tenth of a second.
        for second in 0..60 {
            clock.hear(Timestamp(START - 60_000_000_000 + second * 1_000_000_000));
            by_hand.pass(Duration::from_millis(2), 2_000_000);
        }
        assert!(clock.now() >= Timestamp(START + u64::try_from(hour).unwrap()));
        // As they come: the leader's clock is an hour behind ours.
        for tenth in 0..10 {
            clock.hear(Timestamp(START + tenth * 100_000_000));
            by_hand.pass(Duration::from_millis(100), SECOND / 10);
        }
        assert_eq!(clock.now(), Timestamp(START + 1_000_000_000));
        by_hand.pass(Duration::from_secs(5), 5 * SECOND);
        assert_eq!(clock.now(), Timestamp(START + 6_000_000_000), "our own wall clock is not believed");
    }

    #[test]
    fn time_begins_where_the_log_stands() {
        let by_hand = ByHand::new(START);
        let mut clock = Clock::new(Box::new(by_hand), Timestamp(START + 5));
        assert_eq!(clock.now(), Timestamp(START + 5));
    }
}
