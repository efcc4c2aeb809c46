//! The circuit breaker of one provider of one tenant: closed, open, half-open. A fold over results; time is
//! theirs.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::document::BreakerRules;

/// Calls that the error rate looks at, at most.
const WINDOW_CALLS_MAX: usize = 1_000;
/// Calls before which a rate says nothing.
const WINDOW_CALLS_MIN: usize = 10;

#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BreakerState {
    #[default]
    Closed,
    Open,
    HalfOpen,
}

impl BreakerState {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// Why a breaker opened.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    #[default]
    Failures,
    ErrorRate,
    Slow,
    /// A call that tried whether it works again.
    Trial,
}

impl Cause {
    /// In words, after the name of what is behind the breaker.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failures => "failed too often in a row",
            Self::ErrorRate => "fails too large a part of its calls",
            Self::Slow => "answers too slowly",
            Self::Trial => "failed again when it was tried",
        }
    }
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Breaker {
    state: BreakerState,
    consecutive_failures: u32,
    half_open_successes: u32,
    /// Calls let through since it became half-open.
    half_open_calls: u32,
    opened_at: u64,
    /// When, and whether it failed.
    window: VecDeque<(u64, bool)>,
    opened_times: u64,
    /// When calls are tried again, and why it opened the last time.
    #[serde(default)]
    until: u64,
    #[serde(default)]
    cause: Cause,
}

impl Breaker {
    /// What it is at `now`: an open one becomes half-open by time alone.
    #[must_use]
    pub fn state(&self, rules: &BreakerRules, now: u64) -> BreakerState {
        match self.state {
            BreakerState::Open if now >= self.opened_at.saturating_add(rules.timeout_millis) => {
                BreakerState::HalfOpen
            }
            state @ (BreakerState::Closed | BreakerState::Open | BreakerState::HalfOpen) => state,
        }
    }

    /// Whether a call may go to the provider now.
    #[must_use]
    pub fn admits(&self, rules: &BreakerRules, now: u64) -> bool {
        match self.state(rules, now) {
            BreakerState::Closed => true,
            BreakerState::Open => false,
            // The clock made it half-open and no call was made yet.
            BreakerState::HalfOpen if self.state == BreakerState::Open => true,
            // Calls whose results never came must not keep it shut for ever.
            BreakerState::HalfOpen => {
                self.half_open_calls < rules.half_open_max_calls
                    || now >= self.opened_at.saturating_add(rules.timeout_millis)
            }
        }
    }

    /// A call was decided.
    pub fn called(&mut self, rules: &BreakerRules, now: u64) {
        match (self.state, self.state(rules, now)) {
            (BreakerState::Open, BreakerState::HalfOpen) => {
                self.state = BreakerState::HalfOpen;
                self.half_open_successes = 0;
                self.half_open_calls = 1;
                self.opened_at = now;
            }
            (BreakerState::HalfOpen, _) => {
                if self.half_open_calls >= rules.half_open_max_calls {
                    self.half_open_calls = 0;
                    self.opened_at = now;
                }
                self.half_open_calls += 1;
            }
            (BreakerState::Closed | BreakerState::Open, _) => {}
        }
    }

    /// A call ended.
    pub fn ended(&mut self, rules: &BreakerRules, failed: bool, latency_millis: u64, now: u64) {
        let is_slow = !failed && latency_millis > rules.latency_threshold_millis;
        let failed = failed || is_slow;
        self.window.push_back((now, failed));
        let oldest = now.saturating_sub(rules.error_rate_window_millis);
        while self.window.len() > WINDOW_CALLS_MAX || self.window.front().is_some_and(|(at, _)| *at < oldest)
        {
            self.window.pop_front();
        }
        match self.state(rules, now) {
            BreakerState::Closed => {
                if !failed {
                    self.consecutive_failures = 0;
                    return;
                }
                self.consecutive_failures += 1;
                if self.consecutive_failures >= rules.failure_threshold {
                    self.open(rules, if is_slow { Cause::Slow } else { Cause::Failures }, now);
                } else if self.rate_is_over(rules) {
                    self.open(rules, Cause::ErrorRate, now);
                }
            }
            BreakerState::HalfOpen => {
                self.state = BreakerState::HalfOpen;
                if failed {
                    self.open(rules, Cause::Trial, now);
                    return;
                }
                self.half_open_successes += 1;
                if self.half_open_successes >= rules.success_threshold {
                    let opened_times = self.opened_times;
                    *self = Self { opened_times, ..Self::default() };
                }
            }
            // A call from before it opened.
            BreakerState::Open => {}
        }
    }

    /// How often it has opened.
    #[must_use]
    pub fn opened_times(&self) -> u64 {
        self.opened_times
    }

    /// What it is at `now`, for people: by the rules that it opened by.
    #[must_use]
    pub fn shown(&self, now: u64) -> BreakerState {
        match self.state {
            BreakerState::Open if now >= self.until => BreakerState::HalfOpen,
            state @ (BreakerState::Closed | BreakerState::Open | BreakerState::HalfOpen) => state,
        }
    }

    /// While it is not closed: why, and since when.
    #[must_use]
    pub fn trouble(&self) -> Option<(Cause, u64)> {
        match self.state {
            BreakerState::Closed => None,
            BreakerState::Open | BreakerState::HalfOpen => Some((self.cause, self.opened_at)),
        }
    }

    /// Whether it is open, were it asked when it was last changed.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.state == BreakerState::Open
    }

    #[must_use]
    pub fn consecutive_failures(&self) -> u32 {
        self.consecutive_failures
    }

    #[expect(clippy::cast_precision_loss, reason = "at most a thousand")]
    fn rate_is_over(&self, rules: &BreakerRules) -> bool {
        let failures = self.window.iter().filter(|(_, failed)| *failed).count();
        self.window.len() >= WINDOW_CALLS_MIN
            && failures as f64 >= rules.error_rate_threshold * self.window.len() as f64
    }

    fn open(&mut self, rules: &BreakerRules, cause: Cause, now: u64) {
        self.state = BreakerState::Open;
        self.opened_at = now;
        self.until = now.saturating_add(rules.timeout_millis);
        self.cause = cause;
        self.half_open_successes = 0;
        self.half_open_calls = 0;
        self.consecutive_failures = 0;
        self.opened_times += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: BreakerRules = BreakerRules {
        failure_threshold: 3,
        success_threshold: 2,
        timeout_millis: 1_000,
        half_open_max_calls: 2,
        error_rate_threshold: 0.5,
        error_rate_window_millis: 10_000,
        latency_threshold_millis: 500,
    };

    fn failing(times: u32) -> Breaker {
        let mut breaker = Breaker::default();
        (0..times).for_each(|n| breaker.ended(&RULES, true, 1, u64::from(n)));
        breaker
    }

    #[test]
    fn consecutive_failures_open_it_and_time_half_opens_it() {
        assert_eq!(failing(2).state(&RULES, 2), BreakerState::Closed);
        let breaker = failing(3);
        assert_eq!(breaker.state(&RULES, 3), BreakerState::Open);
        assert!(!breaker.admits(&RULES, 1_001));
        assert_eq!(breaker.state(&RULES, 1_002), BreakerState::HalfOpen);
        assert!(breaker.admits(&RULES, 1_002));
    }

    #[test]
    fn half_open_lets_few_calls_through_and_their_results_decide() {
        let mut breaker = failing(3);
        breaker.called(&RULES, 1_100);
        breaker.called(&RULES, 1_101);
        assert!(!breaker.admits(&RULES, 1_102), "two calls are its maximum");
        breaker.ended(&RULES, false, 1, 1_110);
        assert_eq!(breaker.state(&RULES, 1_111), BreakerState::HalfOpen);
        let mut failed = breaker.clone();
        breaker.ended(&RULES, false, 1, 1_120);
        assert_eq!(breaker.state(&RULES, 1_121), BreakerState::Closed);
        failed.ended(&RULES, true, 1, 1_120);
        assert_eq!(failed.state(&RULES, 1_121), BreakerState::Open);
        assert_eq!(failed.opened_times(), 2);
    }

    #[test]
    fn trial_calls_that_are_never_answered_do_not_shut_it_for_ever() {
        let mut breaker = failing(3);
        breaker.called(&RULES, 1_100);
        breaker.called(&RULES, 1_101);
        assert!(!breaker.admits(&RULES, 2_000));
        assert!(breaker.admits(&RULES, 2_101));
    }

    #[test]
    fn a_rate_of_errors_and_slow_answers_open_it_too() {
        let mut breaker = Breaker::default();
        for n in 0..20 {
            breaker.ended(&RULES, n % 2 == 0, 1, n);
        }
        assert_eq!(breaker.state(&RULES, 20), BreakerState::Open);
        let mut slow = Breaker::default();
        (0..3).for_each(|n| slow.ended(&RULES, false, 501, n));
        assert_eq!(slow.state(&RULES, 3), BreakerState::Open);
    }
}
