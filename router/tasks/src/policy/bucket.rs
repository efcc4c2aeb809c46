//! A token bucket, in millionths of a token, so that it is exact and needs no floats.

use super::document::RateLimit;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Bucket {
    millionths: u64,
    at: u64,
}

const TOKEN: u64 = 1_000_000;

impl Bucket {
    #[must_use]
    pub fn full(limit: RateLimit, now: u64) -> Self {
        Self { millionths: limit.burst.saturating_mul(TOKEN), at: now }
    }

    /// Takes a token; else says in how many milliseconds there will be one.
    ///
    /// # Errors
    /// There is none now.
    pub fn take(&mut self, limit: RateLimit, now: u64) -> Result<(), u64> {
        let per_milli = limit.requests_per_second.saturating_mul(TOKEN / 1_000);
        let grown = now.saturating_sub(self.at).saturating_mul(per_milli);
        self.millionths = self.millionths.saturating_add(grown).min(limit.burst.saturating_mul(TOKEN));
        self.at = self.at.max(now);
        match self.millionths.checked_sub(TOKEN) {
            Some(rest) => {
                self.millionths = rest;
                Ok(())
            }
            None => Err((TOKEN - self.millionths).div_ceil(per_milli.max(1)).max(1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: RateLimit = RateLimit { requests_per_second: 100, burst: 5 };

    #[test]
    fn a_burst_then_the_rate_and_never_more() {
        let mut bucket = Bucket::full(LIMIT, 0);
        assert_eq!((0..10).filter(|_| bucket.take(LIMIT, 0).is_ok()).count(), 5);
        assert_eq!(bucket.take(LIMIT, 0), Err(10));
        assert_eq!(bucket.take(LIMIT, 10), Ok(()));
        let taken = (0..1_000_u64).filter(|at| bucket.take(LIMIT, 1_000 + at).is_ok()).count();
        assert_eq!(taken, 5 + 99, "a second gives its rate, after what had gathered");
    }

    #[test]
    fn a_clock_that_steps_back_gives_nothing() {
        let mut bucket = Bucket::full(LIMIT, 1_000);
        (0..5).for_each(|_| bucket.take(LIMIT, 1_000).unwrap());
        assert!(bucket.take(LIMIT, 0).is_err());
        assert!(bucket.take(LIMIT, 1_000).is_err());
    }
}
