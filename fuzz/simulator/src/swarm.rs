//! What a seed draws before it runs: which faults exist and how strong, how many nodes, what load.

use std::time::Duration;

use beamlog_log::SeededRandom;

use crate::planted::Planted;
use crate::random::{Salt, choices};

/// The kinds of fault a run may have. Each seed draws a subset, so that some runs are quiet in all but one way.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Faults {
    /// One message in so many is lost; 0 is none.
    pub loss_one_in: u64,
    /// One message in so many arrives twice.
    pub duplicate_one_in: u64,
    /// The longest extra delay of a message.
    pub delay_max: Duration,
    /// Halves, single nodes and one-way cuts, about this far apart.
    pub partitions_every: Option<Duration>,
    /// Power cuts and process deaths, about this far apart.
    pub crashes_every: Option<Duration>,
    /// Nodes stand still for a while, about this far apart.
    pub pauses_every: Option<Duration>,
    /// All nodes lose power together, about this far apart.
    pub blackouts_every: Option<Duration>,
    /// A failed sync now and then.
    pub disk_errors_every: Option<Duration>,
    /// Nodes stand still altogether, as SIGSTOP does it, about this far apart.
    pub freezes_every: Option<Duration>,
    /// A disk has no room for a while, about this far apart.
    pub full_disks_every: Option<Duration>,
    /// Bytes on the disk of one node decay, about this far apart; later another node is put in its place.
    pub rots_every: Option<Duration>,
    /// A node is taken away and a new one put in its place, about this far apart.
    pub replacements_every: Option<Duration>,
    /// Leadership is handed over by hand, about this far apart.
    pub transfers_every: Option<Duration>,
    /// Wall clocks are off by up to this much, another time each time that a node starts.
    pub clock_skew_max: Duration,
    /// Those of a minority, the last nodes, are off by up to this much.
    pub wild_clock_skew_max: Duration,
}

/// A run, drawn from its seed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Scenario {
    pub seed: u64,
    pub nodes: usize,
    pub clients: usize,
    /// Clients that publish to the work queue, and who works there.
    pub publishers: usize,
    pub workers: usize,
    /// Whether a link brings messages too.
    pub links: bool,
    /// How many messages the stream keeps; all if not said.
    pub keeps: Option<u64>,
    /// The mean pause of a client between two publishes.
    pub think: Duration,
    /// Bytes of a payload beyond its id.
    pub payload_max: u64,
    pub faults: Faults,
    /// How long faults go on.
    pub safety: Duration,
    /// Within this time after healing everything must serve.
    pub liveness: Duration,
    /// A bug that is there on purpose; never drawn.
    pub planted: Option<Planted>,
}

/// Clocks of a quorum that are further apart than this may not agree.
const SKEW_MAX_MILLIS: u64 = 20_000;
const HOURS: u64 = 3_600_000;

impl Scenario {
    #[must_use]
    pub fn draw(seed: u64) -> Self {
        let random = &mut choices(seed, Salt::Scenario, 0);
        let faults = Faults {
            loss_one_in: one_of(random, &[0, 0, 100, 20]),
            duplicate_one_in: one_of(random, &[0, 0, 50]),
            delay_max: millis(one_of(random, &[1, 5, 50, 200])),
            partitions_every: maybe(random, 2, &[2_000, 6_000]),
            crashes_every: maybe(random, 3, &[1_500, 4_000]),
            pauses_every: maybe(random, 2, &[3_000]),
            blackouts_every: maybe(random, 1, &[6_000]),
            disk_errors_every: maybe(random, 1, &[5_000]),
            transfers_every: maybe(random, 1, &[3_000]),
            freezes_every: maybe(random, 1, &[3_000]),
            full_disks_every: maybe(random, 1, &[4_000]),
            rots_every: maybe(random, 1, &[3_000]),
            replacements_every: maybe(random, 1, &[3_000]),
            clock_skew_max: millis(one_of(random, &[0, 100, SKEW_MAX_MILLIS])),
            wild_clock_skew_max: millis(one_of(random, &[0, HOURS / 10, 6 * HOURS, 24 * HOURS])),
        };
        Self {
            seed,
            nodes: if random.one_in(4) { 5 } else { 3 },
            clients: 1 + random.index(4),
            publishers: random.index(3),
            workers: 1 + random.index(2),
            links: random.one_in(2),
            keeps: if random.one_in(3) { Some(50 + random.below(200)) } else { None },
            think: millis(one_of(random, &[1, 5, 20])),
            payload_max: one_of(random, &[0, 64, 400]),
            faults,
            safety: Duration::from_secs(10),
            liveness: Duration::from_secs(30),
            planted: None,
        }
    }
}

fn one_of(random: &mut SeededRandom, values: &[u64]) -> u64 {
    values[random.index(values.len())]
}

/// In `of_four` of four runs one of these distances.
fn maybe(random: &mut SeededRandom, of_four: u64, values: &[u64]) -> Option<Duration> {
    let distance = one_of(random, values);
    (random.below(4) < of_four).then(|| millis(distance))
}

const fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_draws_the_same_scenario_and_seeds_draw_all_kinds() {
        assert_eq!(Scenario::draw(3), Scenario::draw(3));
        let drawn: Vec<Scenario> = (0..200).map(Scenario::draw).collect();
        let has = |is: fn(&Scenario) -> bool| drawn.iter().any(is) && !drawn.iter().all(is);
        assert!(has(|scenario| scenario.nodes == 5));
        assert!(has(|scenario| scenario.faults.loss_one_in > 0));
        assert!(has(|scenario| scenario.faults.partitions_every.is_some()));
        assert!(has(|scenario| scenario.faults.crashes_every.is_some()));
        assert!(has(|scenario| scenario.faults.blackouts_every.is_some()));
        assert!(has(|scenario| scenario.faults.disk_errors_every.is_some()));
    }
}
