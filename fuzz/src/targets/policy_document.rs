//! Policies, as operators write them.

use beamlog_tasks::policy::complexity::complexity;
use beamlog_tasks::policy::document::Policy;
use beamlog_tasks::policy::select::{Situation, select};
use beamlog_tasks::random::Random;

pub const WORDS: &[&[u8]] = &[
    b"\"version\":\"1.0\"",
    b"\"providers\":[{\"name\":\"a\",\"weight\":50}]",
    b"\"weights\":{\"a\":0.5}",
    b"\"fallbacks\":[",
    b"\"when\":{\"status\":\"timeout\"}",
    b"\"sticky\":{\"enabled\":true,\"ttl\":\"10m\"}",
    b"\"circuit_breaker\":{\"enabled\":true}",
    b"\"retry\":11",
    b"18446744073709551615",
    b"-0.0",
    b"1e-320",
];

pub fn run(input: &[u8]) {
    let Ok(document) = serde_json::from_slice(input) else { return };
    match Policy::parse(&document) {
        Err(invalid) => assert!(!invalid.problems.is_empty()),
        Ok(policy) => {
            assert!(complexity(&policy).is_object());
            let context = serde_json::Map::new();
            for seed in 0..4 {
                let situation = Situation { context: &context, sticky: None, admits: &|name| name != "a" };
                let choice = select(&policy, &situation, &mut Random::seeded(seed), None);
                assert!(choice.is_none_or(|choice| choice.provider != "a"), "never through an open breaker");
            }
        }
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let built_in = Policy::built_in().0.to_string();
    [
        built_in.as_str(),
        r#"{"version":"1.0","weights":{"a":0.25,"b":75},"fallback":{"provider":"c","conditions":["timeout"]}}"#,
        r#"{"version":"2.1","providers":[{"name":"a","weight":0.5,"priority":3}],"fallbacks":[{"when":{"status":["timeout","5xx"]},"retry":2,"backoff":{"strategy":"linear","base_ms":50,"max_ms":500,"jitter":false},"to":"b"}],"sticky":{"enabled":true,"session_key":"user","ttl":"10m"},"pre":[{"id":"x","mode":"required","timeout_ms":100}],"validators":[{"id":"v","on_fail":"warn","when":{"k":"v"}}],"post":[{"id":"y"}],"circuit_breaker":{"enabled":true,"failure_threshold":3,"error_rate_threshold":0.25},"rate_limit":{"enabled":true,"requests_per_second":5,"burst":2},"metadata":{}}"#,
        "{}",
        "[]",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
