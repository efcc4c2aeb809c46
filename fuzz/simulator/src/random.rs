//! One seed, several streams of choices: a new draw in one does not reshuffle the others.

use beamlog_log::SeededRandom;

/// What a stream of choices is for.
#[derive(Clone, Copy, Debug)]
pub enum Salt {
    Scenario,
    Network,
    Disk,
    Workload,
    Faults,
    Elections,
    Scheduling,
}

/// The choices of `salt` in the run of `seed`; `part` tells several of one kind apart.
#[must_use]
pub fn choices(seed: u64, salt: Salt, part: u64) -> SeededRandom {
    let mut mixed = SeededRandom::new(seed ^ 0x6265_616d_6c6f_6700);
    let mut mixed = SeededRandom::new(mixed.next() ^ (salt as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    SeededRandom::new(mixed.next() ^ part.wrapping_mul(0xd6e8_feb8_6659_fd93))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_of_one_seed_differ_and_repeat() {
        let first = |salt, part| choices(7, salt, part).next();
        assert_eq!(first(Salt::Disk, 1), first(Salt::Disk, 1));
        assert_ne!(first(Salt::Disk, 1), first(Salt::Disk, 2));
        assert_ne!(first(Salt::Disk, 1), first(Salt::Network, 1));
        assert_ne!(choices(7, Salt::Disk, 1).next(), choices(8, Salt::Disk, 1).next());
    }
}
