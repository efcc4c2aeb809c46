//! Policies as RouterAdmin has them, and as they are kept. The former say less: what a document has beside
//! providers, stickiness and fallbacks by status is not shown, and is gone once it is put in place over gRPC.

use serde_json::{Map, Value, json};

use super::messages::{AdminPolicy, AdminProvider, AdminRule};

/// A rule is a fallback: when the context's `status` is `match`, the first of `prefer` and `fallback` that is said.
pub(super) fn document(policy: &AdminPolicy) -> Value {
    let weights: Map<String, Value> =
        policy.providers.iter().map(|provider| (provider.id.clone(), provider.weight.into())).collect();
    let fallbacks: Vec<Value> = policy
        .rules
        .iter()
        .filter_map(|rule| {
            let to = rule.prefer.first().unwrap_or(&rule.fallback);
            (!to.is_empty()).then(|| json!({"when": {"status": rule.r#match}, "to": to}))
        })
        .collect();
    let mut document = json!({"version": "1.0", "weights": weights});
    if policy.sticky {
        document["sticky"] = json!({"enabled": true});
    }
    if !fallbacks.is_empty() {
        document["fallbacks"] = fallbacks.into();
    }
    document
}

pub(super) fn admin_policy(id: &str, document: &Value) -> AdminPolicy {
    let listed = document["providers"].as_array().into_iter().flatten().filter_map(|provider| {
        // A whole number is of a hundred.
        let weight = &provider["weight"];
        let weight = weight.as_u64().map_or_else(|| weight.as_f64(), |whole| Some(share(whole)));
        Some(AdminProvider { id: provider["name"].as_str()?.to_owned(), weight: weight.unwrap_or_default() })
    });
    let weighed = document["weights"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(id, weight)| AdminProvider { id: id.clone(), weight: weight.as_f64().unwrap_or_default() });
    let mut providers: Vec<AdminProvider> = listed.collect();
    if providers.is_empty() {
        providers = weighed.collect();
    }
    let rules = document["fallbacks"].as_array().into_iter().flatten().filter_map(|fallback| {
        let status = &fallback["when"]["status"];
        let status = status.as_str().or_else(|| status.get(0)?.as_str())?;
        let to = fallback["to"].as_str()?.to_owned();
        Some(AdminRule { r#match: status.to_owned(), prefer: Vec::new(), fallback: to })
    });
    AdminPolicy {
        policy_id: id.to_owned(),
        providers,
        sticky: document["sticky"]["enabled"] == true,
        rules: rules.collect(),
    }
}

#[expect(clippy::cast_precision_loss, reason = "at most a hundred")]
fn share(whole: u64) -> f64 {
    whole.min(100) as f64 / 100.0
}

#[cfg(test)]
mod tests {
    use beamlog_tasks::policy::document::Policy;

    use super::*;

    #[test]
    fn a_policy_comes_back_as_it_went() {
        let policy = AdminPolicy {
            policy_id: "p".into(),
            providers: vec![
                AdminProvider { id: "a".into(), weight: 0.25 },
                AdminProvider { id: "b".into(), weight: 0.75 },
            ],
            sticky: true,
            rules: vec![AdminRule { r#match: "timeout".into(), prefer: Vec::new(), fallback: "c".into() }],
        };
        let document = document(&policy);
        Policy::parse(&document).unwrap();
        assert_eq!(admin_policy("p", &document), policy);
    }

    #[test]
    fn a_document_of_a_file_is_shown_as_far_as_it_goes() {
        let shown = admin_policy(
            "p",
            &json!({"version": "1.0", "providers": [{"name": "a", "weight": 70}],
            "pre": [{"id": "x"}], "fallbacks": [{"when": {"status": ["5xx", "503"]}, "to": "b"}]}),
        );
        assert_eq!(shown.providers, [AdminProvider { id: "a".into(), weight: 0.7 }]);
        assert_eq!((shown.rules[0].r#match.as_str(), shown.rules[0].fallback.as_str()), ("5xx", "b"));
        assert_eq!(admin_policy("p", &json!([1])).providers, []);
    }
}
