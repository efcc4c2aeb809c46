//! Rate limits: fixed windows by tenant and kind of route.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Windows that are known at a time. Tenants are what clients say they are: those beyond share one window.
const WINDOWS_MAX: usize = 10_000;

/// Which limit counts a request.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Family {
    Decide,
    Messages,
    Registry,
    Other,
}

impl Family {
    /// As errors and figures name it.
    pub(super) fn endpoint(self) -> &'static str {
        match self {
            Self::Decide => "/api/v1/routes/decide",
            Self::Messages => "/api/v1/messages",
            Self::Registry => "/api/v1/registry/blocks",
            Self::Other => "unknown",
        }
    }
}

/// Requests of one tenant in a window.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct GatewayLimits {
    pub decide: u32,
    pub messages: u32,
    pub registry: u32,
    pub other: u32,
    pub window: Duration,
}

impl Default for GatewayLimits {
    fn default() -> Self {
        Self { decide: 50, messages: 100, registry: 200, other: 1_000, window: Duration::from_secs(60) }
    }
}

#[derive(Clone, Copy, Debug)]
struct Window {
    ends: Instant,
    count: u32,
}

/// Too many.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Exceeded {
    pub(super) limit: u32,
    /// Until the window ends; at least 1.
    pub(super) seconds: u64,
}

pub(super) struct Limits {
    limits: GatewayLimits,
    windows: Mutex<BTreeMap<(Family, String), Window>>,
}

impl Limits {
    pub(super) fn new(limits: GatewayLimits) -> Self {
        Self { limits, windows: Mutex::default() }
    }

    fn limit(&self, family: Family) -> u32 {
        match family {
            Family::Decide => self.limits.decide,
            Family::Messages => self.limits.messages,
            Family::Registry => self.limits.registry,
            Family::Other => self.limits.other,
        }
    }

    /// Whether this tenant's window is full, without counting: that is said before anything else is.
    pub(super) fn look(&self, family: Family, tenant: &str, now: Instant) -> Result<(), Exceeded> {
        self.count(family, tenant, now, 0)
    }

    /// Counts a request.
    pub(super) fn take(&self, family: Family, tenant: &str, now: Instant) -> Result<(), Exceeded> {
        self.count(family, tenant, now, 1)
    }

    fn count(&self, family: Family, tenant: &str, now: Instant, by: u32) -> Result<(), Exceeded> {
        let limit = self.limit(family);
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = (family, tenant.to_owned());
        if !windows.contains_key(&key) {
            if windows.len() >= WINDOWS_MAX {
                windows.retain(|_, window| window.ends > now);
            }
            if windows.len() >= WINDOWS_MAX {
                key.1.clear();
            }
        }
        if by == 0 && !windows.contains_key(&key) {
            return Ok(());
        }
        let ends = now + self.limits.window;
        let window = windows.entry(key).or_insert(Window { ends, count: 0 });
        if window.ends <= now {
            *window = Window { ends, count: 0 };
        }
        if window.count >= limit {
            let millis = window.ends.saturating_duration_since(now).as_millis();
            return Err(Exceeded {
                limit,
                seconds: u64::try_from(millis.div_ceil(1_000)).unwrap_or(1).max(1),
            });
        }
        window.count += by;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_counts_by_tenant_and_family_and_ends() {
        let limits = Limits::new(GatewayLimits { decide: 2, ..GatewayLimits::default() });
        let begun = Instant::now();
        let take =
            |tenant: &str, after| limits.take(Family::Decide, tenant, begun + Duration::from_secs(after));
        assert_eq!(take("a", 0), Ok(()));
        assert_eq!(limits.look(Family::Decide, "a", begun), Ok(()));
        assert_eq!(take("a", 1), Ok(()));
        assert_eq!(take("a", 2), Err(Exceeded { limit: 2, seconds: 58 }));
        assert_eq!(limits.look(Family::Decide, "a", begun), Err(Exceeded { limit: 2, seconds: 60 }));
        assert_eq!(take("b", 2), Ok(()));
        assert_eq!(limits.take(Family::Messages, "a", begun), Ok(()));
        assert_eq!(take("a", 60), Ok(()));
    }

    #[test]
    fn made_up_tenants_take_no_memory() {
        let limits = Limits::new(GatewayLimits { decide: 1, ..GatewayLimits::default() });
        let now = Instant::now();
        let refused =
            (0..WINDOWS_MAX + 100).filter(|n| limits.take(Family::Decide, &n.to_string(), now).is_err());
        assert_eq!(refused.count(), 99);
        assert!(limits.windows.lock().unwrap().len() <= WINDOWS_MAX + 1);
    }
}
