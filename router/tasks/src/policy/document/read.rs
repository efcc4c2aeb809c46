//! Reading a policy document: every field checked, every problem named with its place.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{
    Backoff, BreakerRules, Extension, FallbackRule, NAME_BYTES_MAX, OnFail, PART_MAX, Policy, Provider,
    RateLimit, Sticky, Strategy,
};

const PROVIDERS_MAX: usize = 100;
const RULES_MAX: usize = 100;

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

pub(super) struct Reader {
    pub(super) problems: Vec<String>,
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

    pub(super) fn policy(&mut self, document: &Value) -> Policy {
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
