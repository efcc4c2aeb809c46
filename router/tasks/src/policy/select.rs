//! Choosing a provider. Pure: what it looks at is handed in, what it drew is in the answer.

use serde_json::{Map, Value};

use super::document::{FallbackRule, Policy, when_matches};
use crate::random::Random;

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Reason {
    Sticky,
    Weighted,
    Retry,
    Fallback,
    CircuitBreakerFallback,
}

impl Reason {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sticky => "sticky",
            Self::Weighted => "weighted",
            Self::Retry => "retry",
            Self::Fallback => "fallback",
            Self::CircuitBreakerFallback => "circuit_breaker_fallback",
        }
    }

    #[must_use]
    pub fn priority(self) -> u8 {
        match self {
            Self::Sticky => 100,
            Self::Weighted | Self::Retry => 50,
            Self::Fallback => 25,
            Self::CircuitBreakerFallback => 20,
        }
    }
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Choice {
    pub provider: String,
    pub reason: Reason,
    /// How long the caller should wait first, where a rule says so.
    pub backoff_millis: Option<u64>,
}

/// Why each provider was taken or left, for people who ask.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Explanation {
    pub steps: Vec<String>,
}

impl Explanation {
    fn say(&mut self, text: impl FnOnce() -> String) {
        self.steps.push(text());
    }
}

/// What a choice depends on, besides the policy.
pub struct Situation<'a> {
    pub context: &'a Map<String, Value>,
    /// The provider this session had, if it is remembered.
    pub sticky: Option<&'a str>,
    /// Whether a provider's breaker lets a call through.
    pub admits: &'a dyn Fn(&str) -> bool,
}

/// Sticky, then by weight, then fallbacks. `None`: there is no provider.
pub fn select(
    policy: &Policy,
    situation: &Situation<'_>,
    random: &mut Random,
    mut explanation: Option<&mut Explanation>,
) -> Option<Choice> {
    let mut say = |text: &dyn Fn() -> String| {
        if let Some(explanation) = explanation.as_deref_mut() {
            explanation.say(text);
        }
    };
    if let Some(provider) = situation.sticky {
        let is_listed = policy.providers.iter().any(|listed| listed.name == provider)
            || policy.fallbacks.iter().any(|rule| rule.to.as_deref() == Some(provider));
        match (is_listed, (situation.admits)(provider)) {
            (true, true) => {
                say(&|| format!("sticky: the session has {provider}"));
                return Some(choice(provider, Reason::Sticky, None));
            }
            (false, _) => say(&|| format!("sticky: {provider} is no longer in the policy")),
            (true, false) => say(&|| format!("sticky: {provider} is behind an open circuit breaker")),
        }
    }
    let mut open = 0;
    let mut candidates = Vec::new();
    for provider in &policy.providers {
        if provider.weight <= 0.0 {
            say(&|| format!("weighted: {} has no weight", provider.name));
        } else if (situation.admits)(&provider.name) {
            candidates.push(provider);
        } else {
            open += 1;
            say(&|| format!("weighted: {} is behind an open circuit breaker", provider.name));
        }
    }
    let total: f64 = candidates.iter().map(|provider| provider.weight).sum();
    if total > 0.0 {
        let mut drawn = random.unit() * total;
        let last = candidates.last().copied();
        let taken = candidates.iter().copied().find(|provider| {
            drawn -= provider.weight;
            drawn < 0.0
        });
        // The sum of floats may leave a hair at the end: it belongs to the last.
        let taken = taken.or(last)?;
        say(&|| format!("weighted: {} with {} of {total}", taken.name, taken.weight));
        return Some(choice(&taken.name, Reason::Weighted, None));
    }
    say(&|| "weighted: nobody is left".to_owned());
    let by_breaker = open > 0;
    let mut context = situation.context.clone();
    if !context.contains_key("status") {
        let status = if by_breaker { "circuit_breaker_open" } else { "all_providers_failed" };
        context.insert("status".to_owned(), status.into());
    }
    for (at, rule) in policy.fallbacks.iter().enumerate() {
        if !when_matches(&rule.when, &context) && !is_about_breakers(rule, by_breaker) {
            say(&|| format!("fallbacks[{at}]: its condition does not hold"));
            continue;
        }
        if let Some(again) = again(rule, &context, situation, random) {
            say(&|| format!("fallbacks[{at}]: {} once more", again.provider));
            return Some(again);
        }
        match &rule.to {
            Some(to) if (situation.admits)(to) => {
                say(&|| format!("fallbacks[{at}]: {to}"));
                let reason = if by_breaker { Reason::CircuitBreakerFallback } else { Reason::Fallback };
                return Some(choice(to, reason, None));
            }
            Some(to) => say(&|| format!("fallbacks[{at}]: {to} is behind an open circuit breaker")),
            None => say(&|| format!("fallbacks[{at}]: leads nowhere")),
        }
    }
    say(&|| "no provider is available".to_owned());
    None
}

/// A context may carry a status of its own; a rule for open breakers holds all the same when they are.
fn is_about_breakers(rule: &FallbackRule, by_breaker: bool) -> bool {
    by_breaker
        && rule.when.len() == 1
        && rule.when.get("status").is_some_and(|values| {
            values
                .iter()
                .any(|value| matches!(value.as_str(), Some("circuit_breaker_open" | "all_providers_failed")))
        })
}

/// The provider that failed, while the rule allows it another attempt.
fn again(
    rule: &FallbackRule,
    context: &Map<String, Value>,
    situation: &Situation<'_>,
    random: &mut Random,
) -> Option<Choice> {
    let failed = ["provider_id", "failed_provider"].iter().find_map(|key| context.get(*key)?.as_str())?;
    let attempt = ["attempt", "retry_count"].iter().find_map(|key| context.get(*key)?.as_u64()).unwrap_or(0);
    let attempt = u32::try_from(attempt).unwrap_or(u32::MAX);
    if attempt >= rule.retry || !(situation.admits)(failed) {
        return None;
    }
    let backoff = rule.backoff.delay(attempt.saturating_add(1), random.unit());
    Some(choice(failed, Reason::Retry, Some(backoff)))
}

fn choice(provider: &str, reason: Reason, backoff_millis: Option<u64>) -> Choice {
    Choice { provider: provider.to_owned(), reason, backoff_millis }
}

/// What follows a failed call of an assignment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AfterFailure {
    /// The same provider, after this long.
    Again { backoff_millis: u64 },
    /// Another provider, now.
    Instead { provider: String },
    /// No rule speaks of it.
    NoRule,
}

/// What the policy says of a call that ended with `status`, after `attempts` calls of this provider.
pub fn after_failure(
    policy: &Policy,
    context: &Map<String, Value>,
    status: &str,
    attempts: u32,
    provider: &str,
    admits: &dyn Fn(&str) -> bool,
    random: &mut Random,
) -> AfterFailure {
    let mut context = context.clone();
    context.insert("status".to_owned(), status.into());
    for rule in policy.fallbacks.iter().filter(|rule| when_matches(&rule.when, &context)) {
        if attempts <= rule.retry && admits(provider) {
            return AfterFailure::Again {
                backoff_millis: rule.backoff.delay(attempts.max(1), random.unit()),
            };
        }
        if let Some(to) = rule.to.as_deref().filter(|to| *to != provider && admits(to)) {
            return AfterFailure::Instead { provider: to.to_owned() };
        }
    }
    AfterFailure::NoRule
}

#[cfg(test)]
mod tests;
