//! The bandwidth limit of a link: what each direction may take, over all its rules that store something.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Bytes may pass when those before them have had their time. A pause earns nothing beyond this much.
const BURST: Duration = Duration::from_millis(250);

/// Shared by the rules of one direction.
#[derive(Debug)]
pub(crate) struct Limit {
    bytes_per_second: Option<u64>,
    /// When what has passed will have had its time.
    free_at: Mutex<Instant>,
}

impl Limit {
    pub(crate) fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second, free_at: Mutex::new(Instant::now()) }
    }

    /// Lets `bytes` pass: at once without a limit. *Cancel safety*: when dropped, they count all the same.
    pub(crate) async fn pass(&self, bytes: usize) {
        let Some(until) = self.take(bytes, Instant::now()) else { return };
        tokio::time::sleep_until(until).await;
    }

    /// When these bytes may go, if that is not now.
    fn take(&self, bytes: usize, now: Instant) -> Option<Instant> {
        let rate = self.bytes_per_second.filter(|rate| *rate > 0)?;
        let nanos = u128::from(u64::try_from(bytes).unwrap_or(u64::MAX)) * 1_000_000_000 / u128::from(rate);
        let needs = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let start = (*free_at).max(now.checked_sub(BURST).unwrap_or(now));
        *free_at = start.checked_add(needs).unwrap_or(start);
        (start > now).then_some(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_take_their_time() {
        let limit = Limit::new(Some(1000));
        let begin = Instant::now() + Duration::from_secs(10);
        let after = |at: Option<Instant>| at.map(|at| (at - begin).as_millis());
        // The burst is used first.
        assert_eq!(after(limit.take(250, begin)), None);
        assert_eq!(after(limit.take(1000, begin)), None);
        assert_eq!(after(limit.take(500, begin)), Some(1000));
        assert_eq!(after(limit.take(1, begin)), Some(1500));
        // A long pause earns the burst and no more.
        let later = begin + Duration::from_secs(60);
        assert_eq!(limit.take(250, later), None);
        assert_eq!(limit.take(1, later), None);
        assert!(limit.take(1, later).is_some());
    }

    #[test]
    fn no_limit_is_no_wait() {
        let limit = Limit::new(None);
        assert_eq!(limit.take(usize::MAX, Instant::now()), None);
    }
}
