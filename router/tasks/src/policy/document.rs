//! The policy document (contract section 1.4): read, checked, with every problem named.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// Extensions of one pipeline, and of each of its three parts.
pub const EXTENSIONS_MAX: usize = 10;
pub const PART_MAX: usize = 5;
const PROVIDERS_MAX: usize = 100;
const RULES_MAX: usize = 100;
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
        let mut reader = Reader { problems: Vec::new() };
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

/// `^\d+[smh]$`, in milliseconds.
fn duration(text: &str) -> Option<u64> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let count: u64 = digits.parse().ok().filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
    let scale = match unit {
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    count.checked_mul(scale)
}

struct Reader {
    problems: Vec<String>,
}

impl Reader {
    fn problem(&mut self, text: impl Into<String>) {
        // A document can be wrong in as many places as it has; the first hundred are enough.
        if self.problems.len() < 100 {
            self.problems.push(text.into());
        }
    }

    fn known(&mut self, place: &str, map: &Map<String, Value>, keys: &[&str]) {
        for key in map.keys().filter(|key| !keys.contains(&key.as_str())) {
            self.problem(format!("{place}.{key} is unknown"));
        }
    }

    fn policy(&mut self, document: &Value) -> Policy {
        let empty = Map::new();
        let map = match document {
            Value::Object(map) => map,
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                self.problem("the policy is not an object");
                &empty
            }
        };
        let version = match map.get("version") {
            Some(Value::String(version)) if is_version(version) => version.clone(),
            Some(_) | None => {
                self.problem("version is required, as digits.digits");
                String::new()
            }
        };
        let providers = self.providers(map);
        let mut fallbacks = Vec::new();
        for (at, rule) in self.list(map, "fallbacks", RULES_MAX).iter().enumerate() {
            fallbacks.push(self.fallback(&format!("fallbacks[{at}]"), rule));
        }
        fallbacks.extend(self.legacy_fallback(map));
        let parts = ["pre", "validators", "post"].map(|part| {
            let list = self.list(map, part, 4 * PART_MAX);
            list.iter()
                .enumerate()
                .map(|(at, extension)| self.extension(&format!("{part}[{at}]"), part, extension))
                .collect::<Vec<_>>()
        });
        let [pre, validators, post] = parts;
        Policy {
            version,
            providers,
            fallbacks,
            sticky: self.sticky(map),
            pre,
            validators,
            post,
            breaker: self.breaker(map),
            rate_limit: self.rate_limit(map),
        }
    }

    fn list<'v>(&mut self, map: &'v Map<String, Value>, key: &str, max: usize) -> &'v [Value] {
        match map.get(key) {
            None | Some(Value::Null) => &[],
            Some(Value::Array(list)) if list.len() <= max => list,
            Some(Value::Array(_)) => {
                self.problem(format!("{key} has more than {max} entries"));
                &[]
            }
            Some(_) => {
                self.problem(format!("{key} must be an array"));
                &[]
            }
        }
    }

    fn section<'v>(&mut self, map: &'v Map<String, Value>, key: &str) -> Option<&'v Map<String, Value>> {
        match map.get(key) {
            None | Some(Value::Null) => None,
            Some(Value::Object(section)) => Some(section),
            Some(_) => {
                self.problem(format!("{key} must be an object"));
                None
            }
        }
    }

    fn providers(&mut self, map: &Map<String, Value>) -> Vec<Provider> {
        let mut providers: Vec<Provider> = Vec::new();
        let listed = self.list(map, "providers", PROVIDERS_MAX);
        for (at, entry) in listed.iter().enumerate() {
            let place = format!("providers[{at}]");
            let Value::Object(entry) = entry else {
                self.problem(format!("{place} must be an object"));
                continue;
            };
            self.known(&place, entry, &["name", "weight", "priority"]);
            let name = self.name(&place, entry.get("name"), true);
            let weight = self.weight(&place, entry.get("weight"));
            if providers.iter().any(|provider| provider.name == name) {
                self.problem(format!("{place}: {name} is there twice"));
            }
            providers.push(Provider { name, weight });
        }
        if providers.is_empty()
            && let Some(weights) = self.section(map, "weights")
        {
            for (name, weight) in weights {
                let place = format!("weights.{name}");
                let weight = self.weight(&place, Some(weight));
                providers.push(Provider { name: name.clone(), weight });
            }
            if providers.len() > PROVIDERS_MAX {
                self.problem(format!("weights has more than {PROVIDERS_MAX} entries"));
            }
        }
        providers
    }

    /// Integers are of 100; fractions are taken as they are.
    fn weight(&mut self, place: &str, value: Option<&Value>) -> f64 {
        let number = match value {
            Some(Value::Number(number)) => number,
            Some(_) | None => {
                self.problem(format!("{place}.weight must be a number"));
                return 0.0;
            }
        };
        let plain = number.as_f64().unwrap_or(f64::NAN);
        let weight = if number.is_f64() && plain <= 1.0 { plain } else { plain / 100.0 };
        if !(0.0..=1.0).contains(&weight) {
            self.problem(format!("{place}.weight must be from 0 to 100"));
            return 0.0;
        }
        weight
    }

    fn name(&mut self, place: &str, value: Option<&Value>, strict: bool) -> String {
        let is_legal = |name: &str| {
            !name.is_empty()
                && name.len() <= NAME_BYTES_MAX
                && name.bytes().all(|byte| {
                    byte.is_ascii_lowercase()
                        || byte.is_ascii_digit()
                        || byte == b'_'
                        || (!strict && matches!(byte, b'-' | b'.' | b':' | b'A'..=b'Z'))
                })
        };
        match value {
            Some(Value::String(name)) if is_legal(name) => name.clone(),
            Some(_) | None => {
                self.problem(format!("{place} needs a name of letters, digits and _"));
                String::new()
            }
        }
    }

    fn when(&mut self, place: &str, value: Option<&Value>) -> BTreeMap<String, Vec<Value>> {
        match value {
            None | Some(Value::Null) => BTreeMap::new(),
            Some(Value::Object(map)) => map
                .iter()
                .map(|(key, value)| {
                    let one = || vec![value.clone()];
                    (key.clone(), value.as_array().cloned().unwrap_or_else(one))
                })
                .collect(),
            Some(_) => {
                self.problem(format!("{place}.when must be an object"));
                BTreeMap::new()
            }
        }
    }

    fn number(
        &mut self,
        place: &str,
        map: &Map<String, Value>,
        key: &str,
        bounds: (u64, u64),
        default: u64,
    ) -> u64 {
        match map.get(key) {
            None | Some(Value::Null) => default,
            Some(value) => match value.as_u64() {
                Some(number) if (bounds.0..=bounds.1).contains(&number) => number,
                Some(_) | None => {
                    self.problem(format!("{place}.{key} must be from {} to {}", bounds.0, bounds.1));
                    default
                }
            },
        }
    }

    fn count(
        &mut self,
        place: &str,
        map: &Map<String, Value>,
        key: &str,
        bounds: (u32, u32),
        default: u32,
    ) -> u32 {
        let bounds = (u64::from(bounds.0), u64::from(bounds.1));
        u32::try_from(self.number(place, map, key, bounds, u64::from(default))).unwrap_or(default)
    }

    fn boolean(&mut self, place: &str, map: &Map<String, Value>, key: &str, default: bool) -> bool {
        match map.get(key) {
            None | Some(Value::Null) => default,
            Some(Value::Bool(yes)) => *yes,
            Some(_) => {
                self.problem(format!("{place}.{key} must be true or false"));
                default
            }
        }
    }

    fn fallback(&mut self, place: &str, value: &Value) -> FallbackRule {
        let empty = Map::new();
        let map = match value {
            Value::Object(map) => map,
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                self.problem(format!("{place} must be an object"));
                &empty
            }
        };
        self.known(place, map, &["when", "retry", "backoff", "to"]);
        let to = map.get("to").map(|to| self.name(&format!("{place}.to"), Some(to), false));
        FallbackRule {
            when: self.when(place, map.get("when")),
            retry: self.count(place, map, "retry", (0, 10), 1),
            backoff: self.backoff(&format!("{place}.backoff"), map.get("backoff")),
            to,
        }
    }

    fn backoff(&mut self, place: &str, value: Option<&Value>) -> Backoff {
        let default = Backoff::default();
        let map = match value {
            None | Some(Value::Null) => return default,
            Some(Value::Object(map)) => map,
            Some(_) => {
                self.problem(format!("{place} must be an object"));
                return default;
            }
        };
        self.known(place, map, &["strategy", "base_ms", "max_ms", "jitter"]);
        let strategy = match map.get("strategy").map(|strategy| strategy.as_str()) {
            None | Some(Some("exponential")) => Strategy::Exponential,
            Some(Some("linear")) => Strategy::Linear,
            Some(Some("fixed")) => Strategy::Fixed,
            Some(_) => {
                self.problem(format!("{place}.strategy must be exponential, linear or fixed"));
                Strategy::Fixed
            }
        };
        Backoff {
            strategy,
            base_millis: self.number(place, map, "base_ms", (0, 3_600_000), default.base_millis),
            max_millis: self.number(place, map, "max_ms", (0, 3_600_000), default.max_millis),
            jitter: self.boolean(place, map, "jitter", default.jitter),
        }
    }

    /// `fallback: {provider, conditions}`: a rule that retries once.
    fn legacy_fallback(&mut self, map: &Map<String, Value>) -> Option<FallbackRule> {
        let section = self.section(map, "fallback")?;
        let to = self.name("fallback.provider", section.get("provider"), false);
        let mut when = BTreeMap::new();
        match section.get("conditions") {
            None | Some(Value::Null) => {}
            Some(Value::Array(conditions)) if conditions.is_empty() => {}
            Some(Value::Array(conditions)) => {
                when.insert("status".to_owned(), conditions.clone());
            }
            Some(_) => self.problem("fallback.conditions must be an array"),
        }
        Some(FallbackRule { when, retry: 1, backoff: Backoff::default(), to: Some(to) })
    }

    fn sticky(&mut self, map: &Map<String, Value>) -> Option<Sticky> {
        let section = self.section(map, "sticky")?;
        self.known("sticky", section, &["enabled", "session_key", "ttl", "ttl_seconds"]);
        if !self.boolean("sticky", section, "enabled", false) {
            return None;
        }
        let session_key = match section.get("session_key") {
            None => "session_id".to_owned(),
            Some(Value::String(key)) if !key.is_empty() && key.len() <= NAME_BYTES_MAX => key.clone(),
            Some(_) => {
                self.problem("sticky.session_key must be a text");
                String::new()
            }
        };
        let seconds = self.number("sticky", section, "ttl_seconds", (1, 86_400), 3_600);
        let ttl_millis = match section.get("ttl") {
            None => seconds * 1_000,
            Some(ttl) => match ttl.as_str().and_then(duration) {
                Some(millis) if (1_000..=30 * 86_400_000).contains(&millis) => millis,
                Some(_) | None => {
                    self.problem("sticky.ttl must be a number of s, m or h");
                    0
                }
            },
        };
        Some(Sticky { session_key, ttl_millis })
    }

    fn extension(&mut self, place: &str, part: &str, value: &Value) -> Extension {
        let empty = Map::new();
        let map = match value {
            Value::Object(map) => map,
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                self.problem(format!("{place} must be an object"));
                &empty
            }
        };
        let is_validator = part == "validators";
        let special = if is_validator { "on_fail" } else { "mode" };
        self.known(place, map, &["id", special, "config", "timeout_ms", "retry", "when"]);
        let required = match map.get("mode").map(|mode| mode.as_str()) {
            None | Some(Some("optional")) => false,
            Some(Some("required")) => true,
            Some(_) => {
                self.problem(format!("{place}.mode must be required or optional"));
                false
            }
        };
        let on_fail = match map.get("on_fail").map(|on_fail| on_fail.as_str()) {
            None | Some(Some("block")) => OnFail::Block,
            Some(Some("warn")) => OnFail::Warn,
            Some(Some("ignore")) => OnFail::Ignore,
            Some(_) => {
                self.problem(format!("{place}.on_fail must be block, warn or ignore"));
                OnFail::Block
            }
        };
        let config = match map.get("config") {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(config)) => config.clone(),
            Some(_) => {
                self.problem(format!("{place}.config must be an object"));
                Map::new()
            }
        };
        Extension {
            id: self.name(place, map.get("id"), false),
            required,
            on_fail,
            config,
            timeout_millis: map
                .contains_key("timeout_ms")
                .then(|| self.number(place, map, "timeout_ms", (10, 5_000), 5_000)),
            retry: map.contains_key("retry").then(|| self.count(place, map, "retry", (0, 3), 0)),
            when: self.when(place, map.get("when")),
        }
    }

    fn breaker(&mut self, map: &Map<String, Value>) -> Option<BreakerRules> {
        let section = self.section(map, "circuit_breaker")?;
        let place = "circuit_breaker";
        let keys = [
            "enabled",
            "failure_threshold",
            "success_threshold",
            "timeout_ms",
            "half_open_max_calls",
            "error_rate_threshold",
            "error_rate_window_seconds",
            "latency_threshold_ms",
        ];
        self.known(place, section, &keys);
        let enabled = self.boolean(place, section, "enabled", false);
        let error_rate_threshold = match section.get("error_rate_threshold") {
            None => 0.5,
            Some(value) => match value.as_f64().filter(|rate| (0.0..=1.0).contains(rate)) {
                Some(rate) => rate,
                None => {
                    self.problem("circuit_breaker.error_rate_threshold must be from 0 to 1");
                    0.5
                }
            },
        };
        let rules = BreakerRules {
            failure_threshold: self.count(place, section, "failure_threshold", (1, 100), 5),
            success_threshold: self.count(place, section, "success_threshold", (1, 10), 2),
            timeout_millis: self.number(place, section, "timeout_ms", (1_000, 300_000), 60_000),
            half_open_max_calls: self.count(place, section, "half_open_max_calls", (1, 100), 3),
            error_rate_threshold,
            error_rate_window_millis: self
                .number(place, section, "error_rate_window_seconds", (1, 3_600), 60)
                .saturating_mul(1_000),
            latency_threshold_millis: self.number(
                place,
                section,
                "latency_threshold_ms",
                (1, 3_600_000),
                5_000,
            ),
        };
        enabled.then_some(rules)
    }

    fn rate_limit(&mut self, map: &Map<String, Value>) -> Option<RateLimit> {
        let section = self.section(map, "rate_limit")?;
        self.known("rate_limit", section, &["enabled", "requests_per_second", "burst"]);
        let enabled = self.boolean("rate_limit", section, "enabled", false);
        let limit = RateLimit {
            requests_per_second: self.number(
                "rate_limit",
                section,
                "requests_per_second",
                (1, 1_000_000),
                100,
            ),
            burst: self.number("rate_limit", section, "burst", (1, 1_000_000), 50),
        };
        enabled.then_some(limit)
    }
}

fn is_version(text: &str) -> bool {
    text.split_once('.').is_some_and(|(major, minor)| {
        [major, minor].iter().all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(document: Value, problem: &str) {
        let problems = Policy::parse(&document).unwrap_err().problems;
        assert!(problems.iter().any(|text| text.contains(problem)), "{problem:?} is not in {problems:?}");
    }

    #[test]
    fn the_built_in_policy_is_one() {
        let (_, policy) = Policy::built_in();
        assert_eq!(policy.providers[0], Provider { name: "openai".into(), weight: 0.7 });
        assert_eq!(policy.sticky.unwrap().ttl_millis, 3_600_000);
    }

    #[test]
    fn weights_are_of_100_or_fractions_and_providers_win() {
        let weights = |document: Value| {
            Policy::parse(&document).unwrap().providers.iter().map(|p| p.weight).collect::<Vec<_>>()
        };
        assert_eq!(weights(json!({"version": "1.0", "weights": {"a": 0.25, "b": 75}})), [0.25, 0.75]);
        let both = json!({"version": "1.0", "weights": {"a": 1}, "providers": [{"name": "b", "weight": 1}]});
        assert_eq!(weights(both), [0.01]);
    }

    #[test]
    fn defaults_are_the_contracts() {
        let document = json!({"version": "1.0", "circuit_breaker": {"enabled": true},
            "rate_limit": {"enabled": true}, "sticky": {"enabled": true, "ttl": "10m"},
            "fallbacks": [{"to": "x"}], "validators": [{"id": "v"}], "pre": [{"id": "p"}]});
        let policy = Policy::parse(&document).unwrap();
        assert_eq!(policy.breaker, Some(BreakerRules::default()));
        assert_eq!(policy.rate_limit, Some(RateLimit { requests_per_second: 100, burst: 50 }));
        assert_eq!(policy.sticky.unwrap().ttl_millis, 600_000);
        assert_eq!((policy.fallbacks[0].retry, policy.fallbacks[0].backoff), (1, Backoff::default()));
        assert_eq!((policy.validators[0].on_fail, policy.pre[0].required), (OnFail::Block, false));
    }

    #[test]
    fn everything_wrong_is_named() {
        check(json!([]), "not an object");
        check(json!({}), "version is required");
        check(json!({"version": "1"}), "version is required");
        check(json!({"version": "1.0", "providers": [{"name": "A b", "weight": 1}]}), "needs a name");
        check(json!({"version": "1.0", "providers": [{"name": "a", "weight": 101}]}), "0 to 100");
        check(json!({"version": "1.0", "providers": [{"name": "a", "weight": 1, "x": 1}]}), "x is unknown");
        check(json!({"version": "1.0", "fallbacks": [{"retry": 11}]}), "retry must be from 0 to 10");
        check(json!({"version": "1.0", "sticky": {"enabled": true, "ttl": "10"}}), "sticky.ttl");
        check(json!({"version": "1.0", "validators": [{"id": "v", "on_fail": "no"}]}), "on_fail");
        check(json!({"version": "1.0", "circuit_breaker": {"failure_threshold": 0}}), "from 1 to 100");
        check(json!({"version": "1.0", "rate_limit": {"burst": 0}}), "from 1 to");
    }

    #[test]
    fn backoff_grows_to_its_bound() {
        let plain = Backoff { jitter: false, ..Backoff::default() };
        let delays: Vec<u64> = (1..=8).map(|attempt| plain.delay(attempt, 0.0)).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000]);
        assert_eq!(plain.delay(u32::MAX, 0.0), 5_000);
        let linear = Backoff { strategy: Strategy::Linear, ..plain };
        assert_eq!(linear.delay(3, 0.0), 300);
        let jittered = Backoff::default();
        assert_eq!((jittered.delay(1, 0.0), jittered.delay(1, 0.999_999)), (90, 109));
    }
}
