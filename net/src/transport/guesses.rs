//! Guesses: wrong tokens, counted by where they come from. After some, nobody from there is listened to with a token
//! until a while has passed. Who has a certificate is not concerned.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Wrong tokens from one place within [`WINDOW`].
const WRONG_MAX: u32 = 10;
const WINDOW: Duration = Duration::from_secs(60);
/// Places that are told apart. When there are more within the window, nobody new is listened to.
const PLACES_MAX: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Guesses(Mutex<BTreeMap<IpAddr, Wrong>>);

#[derive(Debug)]
struct Wrong {
    since: Instant,
    count: u32,
}

impl Guesses {
    /// Whether a token from there may be looked at.
    pub(super) fn may_try(&self, from: IpAddr) -> bool {
        self.may_try_at(from, Instant::now())
    }

    /// What came from there was wrong.
    pub(super) fn was_wrong(&self, from: IpAddr) {
        self.was_wrong_at(from, Instant::now());
    }

    fn may_try_at(&self, from: IpAddr, now: Instant) -> bool {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        places.retain(|_, wrong| now.saturating_duration_since(wrong.since) < WINDOW);
        match places.get(&place(from)) {
            Some(wrong) => wrong.count < WRONG_MAX,
            None => places.len() < PLACES_MAX,
        }
    }

    fn was_wrong_at(&self, from: IpAddr, now: Instant) {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = places.len() >= PLACES_MAX;
        match places.get_mut(&place(from)) {
            Some(wrong) => wrong.count = wrong.count.saturating_add(1),
            // Several came in the same moment; the table stays within its bound.
            None if is_full => {}
            None => {
                places.insert(place(from), Wrong { since: now, count: 1 });
            }
        }
    }
}

/// Of IPv6 everybody has a whole network.
fn place(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[test]
    fn after_some_wrong_ones_nobody_from_there_is_listened_to_for_a_while() {
        let guesses = Guesses::default();
        let begin = Instant::now();
        for _ in 0..WRONG_MAX {
            assert!(guesses.may_try_at(v4(1), begin));
            guesses.was_wrong_at(v4(1), begin);
        }
        assert!(!guesses.may_try_at(v4(1), begin + WINDOW / 2));
        assert!(!guesses.may_try_at("::ffff:192.0.2.1".parse().unwrap(), begin), "the same by another name");
        assert!(guesses.may_try_at(v4(2), begin), "others are");
        assert!(guesses.may_try_at(v4(1), begin + WINDOW));
    }

    #[test]
    fn a_network_of_ipv6_is_one_place() {
        let guesses = Guesses::default();
        let now = Instant::now();
        for host in 0..WRONG_MAX {
            guesses.was_wrong_at(format!("2001:db8::{host:x}").parse().unwrap(), now);
        }
        assert!(!guesses.may_try_at("2001:db8::ffff".parse().unwrap(), now));
        assert!(guesses.may_try_at("2001:db8:0:1::1".parse().unwrap(), now));
    }

    #[test]
    fn the_table_has_an_end() {
        let guesses = Guesses::default();
        let now = Instant::now();
        for place in 0..2 * u32::try_from(PLACES_MAX).unwrap() {
            guesses.was_wrong_at(std::net::Ipv4Addr::from_bits(place).into(), now);
        }
        assert_eq!(guesses.0.lock().unwrap().len(), PLACES_MAX);
        assert!(!guesses.may_try_at(v4(1), now), "nobody new");
        assert!(guesses.may_try_at(std::net::Ipv4Addr::from_bits(1).into(), now), "who is known");
        assert!(guesses.may_try_at(v4(1), now + WINDOW));
    }
}
