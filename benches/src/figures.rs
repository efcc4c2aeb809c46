//! What one measurement yields, and medians over rounds.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// What an ack in this measurement meant.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Synced to the device before the ack.
    Disk,
    /// Written, not synced.
    Os,
    /// Not stored.
    Memory,
}

impl Durability {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Os => "os",
            Self::Memory => "memory",
        }
    }
}

/// The load of a measurement, the same for everyone in one comparison.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Load {
    pub message_bytes: u64,
    pub clients: u64,
    pub in_flight: u64,
}

/// An hour: what is above is recorded as this.
const HIGHEST: u64 = 3_600_000_000_000;

/// Latencies, recorded in nanoseconds with three digits.
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, HIGHEST, 3).expect("the bounds and three digits are legal"))
    }
}

impl Latencies {
    pub fn record(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    pub fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("both histograms have the same bounds");
    }

    #[must_use]
    pub fn len(&self) -> u64 {
        self.0.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The latency below which this share of all is, in microseconds.
    #[must_use]
    pub fn micros(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1000.0
    }
}

/// One measurement of one contender: named figures, in the units their names say.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Figures(pub BTreeMap<&'static str, f64>);

/// Per-second rate of what the row counts.
pub const RATE: &str = "per_second";
pub const P50: &str = "p50_us";
pub const P99: &str = "p99_us";
pub const P999: &str = "p999_us";
pub const CPU: &str = "cpu_us_per_message";
pub const SYNCS: &str = "syncs_per_message";
pub const PEAK: &str = "peak_mib";

impl Figures {
    pub fn set(&mut self, name: &'static str, value: f64) {
        self.0.insert(name, value);
    }

    #[must_use]
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name).copied()
    }

    pub fn set_latencies(&mut self, latencies: &Latencies) {
        if !latencies.is_empty() {
            self.set(P50, latencies.micros(0.5));
            self.set(P99, latencies.micros(0.99));
            self.set(P999, latencies.micros(0.999));
        }
    }

    /// Each figure's median over the rounds that have it.
    #[must_use]
    pub fn median(rounds: &[Self]) -> Self {
        let mut values: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
        for round in rounds {
            for (name, value) in &round.0 {
                values.entry(name).or_default().push(*value);
            }
        }
        Self(values.into_iter().map(|(name, values)| (name, median(values))).collect())
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_two() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
