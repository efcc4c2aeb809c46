//! What is counted while running, and the three signals of back-pressure.

use std::collections::VecDeque;

use super::settings::Overload;

/// Counters since the start. What must survive a restart is in the state's totals.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counters {
    pub requests: u64,
    pub refused_invalid: u64,
    pub refused_tenant: u64,
    pub refused_policy: u64,
    pub refused_rate: u64,
    pub refused_quota: u64,
    pub refused_overload: u64,
    /// Because the log took nothing.
    pub refused_unstored: u64,
    pub refused_other: u64,
    pub idempotent_hits: u64,
    pub idempotent_misses: u64,
    pub sticky_hits: u64,
    pub sticky_misses: u64,
    pub results: u64,
    pub results_duplicate: u64,
    pub results_invalid: u64,
    pub results_tenant_rejected: u64,
    pub acks: u64,
    pub acks_invalid: u64,
    pub heartbeats: u64,
    pub worker_dead_letters: u64,
    pub extension_calls: u64,
    pub extension_failures: u64,
    pub not_taken: u64,
    pub ack_waits_over: u64,
    pub workers_lost: u64,
    pub shed: u64,
    pub blocks: u64,
    pub latency_p95_micros: u64,
    pub backpressure: u64,
}

/// Latencies of the last decisions; how many there are is bounded, and old ones count no more.
#[derive(Debug, Default)]
pub struct Signals {
    latencies: VecDeque<(u64, u64)>,
    p95_micros: u64,
    sorted_at: u64,
}

const LATENCIES_MAX: usize = 1_024;
const LATENCIES_MILLIS: u64 = 60_000;

/// How loaded the router is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Pressure {
    Inactive,
    Warning,
    Active,
}

impl Pressure {
    #[must_use]
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Inactive => "inactive",
            Self::Warning => "warning",
            Self::Active => "active",
        }
    }

    /// Two of three signals make it active, one is a warning.
    #[must_use]
    pub(super) fn of(limits: &Overload, queued: usize, latency_micros: u64, in_flight: usize) -> Self {
        let signals = [
            queued > limits.queued,
            latency_micros > limits.latency_millis.saturating_mul(1_000),
            in_flight > limits.in_flight,
        ];
        match signals.iter().filter(|over| **over).count() {
            0 => Self::Inactive,
            1 => Self::Warning,
            _ => Self::Active,
        }
    }
}

impl Signals {
    /// A decision was answered this long after it was asked for.
    pub fn answered(&mut self, now: u64, micros: u64) {
        if self.latencies.len() >= LATENCIES_MAX {
            self.latencies.pop_front();
        }
        self.latencies.push_back((now, micros));
    }

    /// 95 of 100 of the last minute were at most this long.
    pub fn p95_micros(&mut self, now: u64) -> u64 {
        if now.saturating_sub(self.sorted_at) >= 100 || self.sorted_at == 0 {
            while self.latencies.front().is_some_and(|(at, _)| now.saturating_sub(*at) > LATENCIES_MILLIS) {
                self.latencies.pop_front();
            }
            let mut sorted: Vec<u64> = self.latencies.iter().map(|(_, micros)| *micros).collect();
            sorted.sort_unstable();
            self.p95_micros = sorted.get(sorted.len().saturating_sub(1) * 95 / 100).copied().unwrap_or(0);
            self.sorted_at = now.max(1);
        }
        self.p95_micros
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_of_three_signals_are_pressure() {
        let limits = Overload::default();
        let check = |queued, micros, in_flight, pressure| {
            assert_eq!(Pressure::of(&limits, queued, micros, in_flight), pressure);
        };
        check(0, 0, 0, Pressure::Inactive);
        check(1_000, 5_000_000, 500, Pressure::Inactive);
        check(1_001, 0, 0, Pressure::Warning);
        check(0, 5_000_001, 0, Pressure::Warning);
        check(1_001, 5_000_001, 0, Pressure::Active);
        check(1_001, 0, 501, Pressure::Active);
    }

    #[test]
    fn the_percentile_is_of_the_last_minute() {
        let mut signals = Signals::default();
        (1..=100).for_each(|micros| signals.answered(1_000, micros));
        assert_eq!(signals.p95_micros(1_000), 95);
        assert_eq!(signals.p95_micros(62_000), 0);
    }
}
