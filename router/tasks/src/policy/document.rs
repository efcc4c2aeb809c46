//! The policy document (contract section 1.4): read, checked, with every problem named.

mod read;

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// Extensions of one pipeline, and of each of its three parts.
pub const EXTENSIONS_MAX: usize = 10;
pub const PART_MAX: usize = 5;
const NAME_BYTES_MAX: usize = 255;

/// A policy as the engine uses it.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    pub version: String,
    /// Weights from 0 to 1, not all 0 in a useful policy; by name.
    pub providers: Vec<Provider>,
    pub fallbacks: Vec<FallbackRule>,
    pub sticky: Option<Sticky>,
    pub pre: Vec<Extension>,
    pub validators: Vec<Extension>,
    pub post: Vec<Extension>,
    pub breaker: Option<BreakerRules>,
    pub rate_limit: Option<RateLimit>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Provider {
    pub name: String,
    pub weight: f64,
}

/// What to do when the usual choice yields nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct FallbackRule {
    /// All keys must have one of their values in the context.
    pub when: BTreeMap<String, Vec<Value>>,
    pub retry: u32,
    pub backoff: Backoff,
    pub to: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    pub strategy: Strategy,
    pub base_millis: u64,
    pub max_millis: u64,
    pub jitter: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Strategy {
    Exponential,
    Linear,
    Fixed,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { strategy: Strategy::Exponential, base_millis: 100, max_millis: 5_000, jitter: true }
    }
}

impl Backoff {
    /// The wait before attempt `attempt` (from 1); `unit` in [0, 1) is the jitter: ± 10 %.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "milliseconds below 2^52, never negative"
    )]
    pub fn delay(&self, attempt: u32, unit: f64) -> u64 {
        let attempt = attempt.max(1);
        let plain = match self.strategy {
            Strategy::Exponential => {
                self.base_millis.saturating_mul(1_u64.checked_shl(attempt - 1).unwrap_or(u64::MAX))
            }
            Strategy::Linear => self.base_millis.saturating_mul(u64::from(attempt)),
            Strategy::Fixed => self.base_millis,
        }
        .min(self.max_millis);
        if self.jitter { ((plain as f64) * (0.9 + unit * 0.2)) as u64 } else { plain }
    }
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Sticky {
    pub session_key: String,
    pub ttl_millis: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Extension {
    pub id: String,
    /// For pre and post: whether a failure ends the request.
    pub required: bool,
    /// For validators.
    pub on_fail: OnFail,
    pub config: Map<String, Value>,
    pub timeout_millis: Option<u64>,
    pub retry: Option<u32>,
    pub when: BTreeMap<String, Vec<Value>>,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum OnFail {
    #[default]
    Block,
    Warn,
    Ignore,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BreakerRules {
    pub failure_threshold: u32,
    pub success_threshold: u32,
    pub timeout_millis: u64,
    pub half_open_max_calls: u32,
    pub error_rate_threshold: f64,
    pub error_rate_window_millis: u64,
    pub latency_threshold_millis: u64,
}

impl Default for BreakerRules {
    fn default() -> Self {
        Self {
            failure_threshold: 5,
            success_threshold: 2,
            timeout_millis: 60_000,
            half_open_max_calls: 3,
            error_rate_threshold: 0.5,
            error_rate_window_millis: 60_000,
            latency_threshold_millis: 5_000,
        }
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RateLimit {
    pub requests_per_second: u64,
    pub burst: u64,
}

/// Everything that is wrong with a document.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{}", problems.join("; "))]
pub struct InvalidPolicy {
    pub problems: Vec<String>,
}

impl Policy {
    /// Reads a document.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn parse(document: &Value) -> Result<Self, InvalidPolicy> {
        let mut reader = read::Reader { problems: Vec::new() };
        let policy = reader.policy(document);
        if reader.problems.is_empty() { Ok(policy) } else { Err(InvalidPolicy { problems: reader.problems }) }
    }

    /// The built-in policy of every tenant that has none of its own.
    #[must_use]
    pub fn built_in() -> (Value, Self) {
        let document = serde_json::json!({
            "version": "1.0",
            "providers": [{"name": "openai", "weight": 70}, {"name": "anthropic", "weight": 30}],
            "fallbacks": [{
                "when": {"status": ["timeout", "5xx", "all_providers_failed", "circuit_breaker_open"]},
                "retry": 1,
                "to": "local_llm",
            }],
            "sticky": {"enabled": true, "session_key": "session_id", "ttl_seconds": 3600},
        });
        let policy = Self::parse(&document).expect("a test reads it");
        (document, policy)
    }

    /// How many extensions it runs.
    #[must_use]
    pub fn extensions(&self) -> usize {
        self.pre.len() + self.validators.len() + self.post.len()
    }

    /// Which limit of the pipeline it breaks, if one.
    #[must_use]
    pub fn pipeline_problem(&self) -> Option<&'static str> {
        if self.extensions() > EXTENSIONS_MAX {
            Some("pipeline_too_deep")
        } else if self.pre.len() > PART_MAX {
            Some("too_many_pre_processors")
        } else if self.validators.len() > PART_MAX {
            Some("too_many_validators")
        } else if self.post.len() > PART_MAX {
            Some("too_many_post_processors")
        } else {
            None
        }
    }
}

/// Whether a context has, for every key, one of its values.
#[must_use]
pub fn when_matches(when: &BTreeMap<String, Vec<Value>>, context: &Map<String, Value>) -> bool {
    when.iter().all(|(key, values)| {
        context.get(key).is_some_and(|have| {
            values.iter().any(|value| {
                value == have
                    || match (value, have) {
                        // 429 and "429" are the same status.
                        (Value::String(text), Value::Number(number))
                        | (Value::Number(number), Value::String(text)) => *text == number.to_string(),
                        _ => false,
                    }
            })
        })
    })
}

#[cfg(test)]
mod tests;
