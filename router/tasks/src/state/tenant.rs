//! What a tenant may: rules that an operator sets, and counts that the log holds.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::policy::document::RateLimit;

/// Rules of a tenant. A tenant without rules has those of `"*"`, if there are, else these defaults.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct TenantRules {
    /// Whether it may do anything at all.
    pub denied: bool,
    /// Filters of assignment subjects that it may name; empty is all.
    pub assignment_subjects: Vec<String>,
    /// Subjects of the API that it may use (`beamline.router.v1.decide`, …), as filters; empty is all.
    pub api: Vec<String>,
    /// How long the same request gets the same answer. Default an hour.
    pub idempotency_ttl_seconds: Option<u64>,
    pub quota: Quota,
    pub rate_limit: Option<RateLimitRule>,
    /// Whether assignments may be pushed.
    pub push_denied: bool,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimitRule {
    pub requests_per_second: u64,
    pub burst: u64,
}

impl From<RateLimitRule> for RateLimit {
    fn from(rule: RateLimitRule) -> Self {
        Self { requests_per_second: rule.requests_per_second.max(1), burst: rule.burst.max(1) }
    }
}

/// How much in one window; absent is as much as it likes.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Quota {
    pub window_seconds: Option<u64>,
    pub requests: Option<u64>,
    pub tokens: Option<u64>,
    pub cost: Option<f64>,
    pub concurrent_jobs: Option<u64>,
}

impl Quota {
    #[must_use]
    pub fn window_millis(&self) -> u64 {
        self.window_seconds.unwrap_or(3_600).max(1).saturating_mul(1_000)
    }
}

/// What a tenant used in its present window. Reserved at the decision, settled by the result.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Consumption {
    pub window: u64,
    pub requests: u64,
    pub tokens: u64,
    pub cost: f64,
    pub reserved_cost: f64,
    pub open_jobs: u64,
}

impl Consumption {
    /// Enters the window of `now`: what was used in an older one is forgotten, what is open is not.
    pub fn enter(&mut self, quota: &Quota, now: u64) {
        let window = now / quota.window_millis();
        if window != self.window {
            self.window = window;
            self.requests = 0;
            self.tokens = 0;
            self.cost = 0.0;
        }
    }

    /// Which quota leaves no room for one more request of this expected cost.
    #[must_use]
    pub fn exceeded(
        &self,
        quota: &Quota,
        now: u64,
        expected_cost: f64,
        is_job: bool,
    ) -> Option<&'static str> {
        let is_same = now / quota.window_millis() == self.window;
        let (requests, tokens, cost) =
            if is_same { (self.requests, self.tokens, self.cost) } else { (0, 0, 0.0) };
        if quota.requests.is_some_and(|max| requests >= max) {
            Some("requests")
        } else if quota.tokens.is_some_and(|max| tokens >= max) {
            Some("tokens")
        } else if quota.cost.is_some_and(|max| {
            let used = cost + self.reserved_cost;
            used >= max || used + expected_cost > max
        }) {
            Some("cost")
        } else if is_job && quota.concurrent_jobs.is_some_and(|max| self.open_jobs >= max) {
            Some("concurrent_jobs")
        } else {
            None
        }
    }
}

pub type Tenants = BTreeMap<String, TenantRules>;
