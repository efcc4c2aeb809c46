//! Refusals are counted by reason, and logged once per cause and minute: whoever is refused comes again.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::warn;

use super::judge::Reason;

const LOGGED_EVERY: Duration = Duration::from_secs(60);
/// Causes that are told apart; names are those of certificates and of edges with tokens, so there are no more than
/// nodes.
const CAUSES_MAX: usize = 256;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RefusalCount {
    pub reason: Reason,
    pub count: u64,
}

#[derive(Debug, Default)]
pub struct Refusals(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    counts: BTreeMap<Reason, u64>,
    /// When a cause was logged last, and how often it came since.
    logged: BTreeMap<(Reason, String), (Instant, u64)>,
}

impl Refusals {
    /// Counts one. `name` is the one in its certificate, or the one that a wrong token was said to be of; empty when
    /// there is none that counts.
    pub fn refused(&self, reason: Reason, name: &str, address: SocketAddr, detail: &str) {
        if let Some(suppressed) = self.count(reason, name, Instant::now()) {
            let reason_name = reason.name();
            warn!(peer = %name, %address, reason = reason_name, suppressed, err = %detail, "refused a peer: {reason}");
        }
    }

    /// How many of this cause were not logged, if this one is to be.
    fn count(&self, reason: Reason, name: &str, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state.counts.entry(reason).or_default() += 1;
        if state.logged.len() >= CAUSES_MAX {
            state.logged.retain(|_, (last, _)| now.duration_since(*last) < LOGGED_EVERY);
        }
        // Full of fresh ones: those beyond share a line.
        let name = if state.logged.len() >= CAUSES_MAX { "" } else { name };
        match state.logged.get_mut(&(reason, name.to_owned())) {
            Some((last, suppressed)) if now.duration_since(*last) < LOGGED_EVERY => {
                *suppressed += 1;
                None
            }
            Some((last, suppressed)) => {
                *last = now;
                Some(std::mem::take(suppressed))
            }
            None => {
                state.logged.insert((reason, name.to_owned()), (now, 0));
                Some(0)
            }
        }
    }

    /// Every reason that came, with how often.
    #[must_use]
    pub fn counts(&self) -> Vec<RefusalCount> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.counts.iter().map(|(&reason, &count)| RefusalCount { reason, count }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_logged_once_a_minute_and_counted_always() {
        let refusals = Refusals::default();
        let begin = Instant::now();
        let logged =
            |reason, name, after: u64| refusals.count(reason, name, begin + Duration::from_secs(after));
        assert_eq!(logged(Reason::WrongCluster, "n1", 0), Some(0));
        assert_eq!(logged(Reason::WrongCluster, "n1", 1), None);
        assert_eq!(logged(Reason::WrongCluster, "n1", 59), None);
        assert_eq!(logged(Reason::WrongCluster, "n2", 59), Some(0), "another cause");
        assert_eq!(logged(Reason::Tls, "", 59), Some(0));
        assert_eq!(logged(Reason::WrongCluster, "n1", 60), Some(2));
        let counts = refusals.counts();
        assert_eq!(
            counts,
            [
                RefusalCount { reason: Reason::Tls, count: 1 },
                RefusalCount { reason: Reason::WrongCluster, count: 5 },
            ]
        );
    }

    #[test]
    fn a_flood_of_causes_shares_what_is_left() {
        let refusals = Refusals::default();
        let now = Instant::now();
        let logged =
            (0..10_000).filter(|n| refusals.count(Reason::NameTaken, &format!("n{n}"), now).is_some());
        assert!(logged.count() <= CAUSES_MAX + 1);
    }
}
