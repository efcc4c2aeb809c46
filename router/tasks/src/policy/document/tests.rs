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
