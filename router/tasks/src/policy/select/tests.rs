//! Properties of the choice over thousands of random policies, and the order of the contract by example.

use std::collections::BTreeSet;

use serde_json::json;

use super::*;

fn policy(document: &Value) -> Policy {
    Policy::parse(document).unwrap()
}

fn select_with(
    policy: &Policy,
    context: &Value,
    sticky: Option<&str>,
    open: &[&str],
    seed: u64,
) -> Option<Choice> {
    let Value::Object(context) = context else { panic!("a context is an object") };
    let situation = Situation { context, sticky, admits: &|name| !open.contains(&name) };
    select(policy, &situation, &mut Random::seeded(seed), None)
}

/// A random policy: names, weights with zeros, rules with and without conditions.
fn random_policy(random: &mut Random) -> Policy {
    let providers: Vec<Value> = (0..random.below(6))
        .map(|n| json!({"name": format!("p{n}"), "weight": (random.below(5) * 30).saturating_sub(30)}))
        .collect();
    let fallbacks: Vec<Value> = (0..random.below(4))
        .map(|_| {
            let mut rule = json!({"retry": random.below(4)});
            if random.below(3) > 0 {
                rule["to"] = format!("p{}", random.below(8)).into();
            }
            if random.below(2) == 0 {
                rule["when"] = json!({"status": ["timeout", "circuit_breaker_open", "5xx"]});
            }
            rule
        })
        .collect();
    policy(&json!({"version": "1.0", "providers": providers, "fallbacks": fallbacks}))
}

#[test]
fn a_choice_is_always_allowed_and_the_same_for_the_same_seed() {
    let mut random = Random::seeded(1);
    let (mut chosen, mut refused) = (BTreeSet::new(), 0);
    for round in 0..20_000_u64 {
        let policy = random_policy(&mut random);
        let names: Vec<String> = (0..8).map(|n| format!("p{n}")).collect();
        let open: Vec<&str> = names.iter().filter(|_| random.below(3) == 0).map(String::as_str).collect();
        let sticky =
            (random.below(3) == 0).then(|| names[usize::try_from(random.below(8)).unwrap()].as_str());
        let context = match random.below(3) {
            0 => json!({}),
            1 => json!({"status": "timeout", "provider_id": "p1", "attempt": random.below(4)}),
            _ => json!({"status": "odd"}),
        };
        let once = select_with(&policy, &context, sticky, &open, round);
        assert_eq!(once, select_with(&policy, &context, sticky, &open, round), "the same seed");
        let Some(choice) = once else {
            // Then nobody with weight is admitted.
            assert!(policy.providers.iter().all(|p| p.weight <= 0.0 || open.contains(&p.name.as_str())));
            refused += 1;
            continue;
        };
        let name = choice.provider.as_str();
        assert!(!open.contains(&name), "never through an open breaker");
        let weighted = policy.providers.iter().find(|p| p.name == name);
        let is_target = policy.fallbacks.iter().any(|rule| rule.to.as_deref() == Some(name));
        match choice.reason {
            Reason::Sticky => assert!(sticky == Some(name) && (weighted.is_some() || is_target)),
            Reason::Weighted => assert!(weighted.is_some_and(|p| p.weight > 0.0)),
            Reason::Retry => assert!(choice.backoff_millis.is_some() && context["provider_id"] == name),
            Reason::Fallback | Reason::CircuitBreakerFallback => assert!(is_target),
        }
        let any_weighted =
            policy.providers.iter().any(|p| p.weight > 0.0 && !open.contains(&p.name.as_str()));
        if !matches!(choice.reason, Reason::Sticky) {
            assert_eq!(
                choice.reason == Reason::Weighted,
                any_weighted,
                "fallbacks are for when nobody is left"
            );
        }
        chosen.insert(choice.reason);
    }
    assert_eq!(chosen.len(), 5, "every reason occurs: {chosen:?}");
    assert!(refused > 100);
}

#[test]
fn weights_are_kept_over_many_draws() {
    let policy = policy(&json!({"version": "1.0", "providers": [
        {"name": "a", "weight": 70}, {"name": "b", "weight": 30}, {"name": "c", "weight": 0}]}));
    let mut random = Random::seeded(9);
    let context = Map::new();
    let situation = Situation { context: &context, sticky: None, admits: &|_| true };
    let mut a = 0;
    for _ in 0..100_000 {
        match select(&policy, &situation, &mut random, None).unwrap().provider.as_str() {
            "a" => a += 1,
            "b" => {}
            other => panic!("{other} has no weight"),
        }
    }
    // Five standard deviations of a binomial are about 725.
    assert!((69_275..70_725).contains(&a), "{a}");
}

#[test]
fn the_order_is_sticky_weighted_fallback() {
    let policy = policy(&json!({"version": "1.0", "providers": [{"name": "a", "weight": 100}],
        "fallbacks": [{"when": {"status": "circuit_breaker_open"}, "to": "b"}]}));
    let check = |sticky, open: &[&str], provider: &str, reason: Reason| {
        let choice = select_with(&policy, &json!({}), sticky, open, 1).unwrap();
        assert_eq!((choice.provider.as_str(), choice.reason), (provider, reason));
    };
    check(Some("b"), &[], "b", Reason::Sticky);
    check(Some("stranger"), &[], "a", Reason::Weighted);
    check(None, &[], "a", Reason::Weighted);
    check(Some("a"), &["a"], "b", Reason::CircuitBreakerFallback);
    assert_eq!(select_with(&policy, &json!({}), None, &["a", "b"], 1), None);
}

#[test]
fn a_legacy_fallback_is_a_rule() {
    let policy = policy(&json!({"version": "1.0", "weights": {"a": 0}, "fallback": {"provider": "b"}}));
    let choice = select_with(&policy, &json!({}), None, &[], 1).unwrap();
    assert_eq!((choice.provider.as_str(), choice.reason.priority()), ("b", 25));
}

#[test]
fn a_failed_call_is_tried_again_then_elsewhere() {
    let policy = policy(&json!({"version": "1.0", "providers": [{"name": "a", "weight": 1}],
        "fallbacks": [{"when": {"status": ["timeout", "5xx"]}, "retry": 2, "to": "b",
            "backoff": {"strategy": "fixed", "base_ms": 70, "jitter": false}}]}));
    let after = |attempts, status: &str| {
        after_failure(&policy, &Map::new(), status, attempts, "a", &|_| true, &mut Random::seeded(1))
    };
    assert_eq!(after(1, "timeout"), AfterFailure::Again { backoff_millis: 70 });
    assert_eq!(after(2, "timeout"), AfterFailure::Again { backoff_millis: 70 });
    assert_eq!(after(3, "timeout"), AfterFailure::Instead { provider: "b".into() });
    assert_eq!(after(1, "error"), AfterFailure::NoRule);
}
