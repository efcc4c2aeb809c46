//! How much work a policy's extensions are, as `get_pipeline_complexity` answers it.

use serde_json::{Value, json};

use super::document::{EXTENSIONS_MAX, PART_MAX, Policy};

/// What one extension is assumed to take.
const MILLIS_EACH: usize = 30;
const RECOMMENDED: usize = 4;
const RECOMMENDED_PART: usize = 2;

#[must_use]
pub fn complexity(policy: &Policy) -> Value {
    let counts =
        [("pre", policy.pre.len()), ("validators", policy.validators.len()), ("post", policy.post.len())];
    let total = policy.extensions();
    let required = policy.pre.iter().chain(&policy.post).filter(|extension| extension.required).count();
    let score = total * 10 + required * 2 + policy.validators.len() * 3;
    let level = match total {
        0..=2 => "low",
        3..=4 => "medium",
        5..=7 => "high",
        _ => "very_high",
    };
    let mut warnings = Vec::new();
    let mut recommendations = Vec::new();
    if total > RECOMMENDED {
        warnings.push(format!(
            "{total} extensions; {RECOMMENDED} are recommended, {EXTENSIONS_MAX} are the limit"
        ));
        recommendations.push("join extensions, or give the rare ones a `when`".to_owned());
    }
    for (part, count) in counts {
        if count > RECOMMENDED_PART {
            warnings.push(format!(
                "{count} in {part}; {RECOMMENDED_PART} are recommended, {PART_MAX} are the limit"
            ));
        }
    }
    json!({
        "total_extensions": total,
        "pre_count": policy.pre.len(),
        "validators_count": policy.validators.len(),
        "post_count": policy.post.len(),
        "complexity_score": score,
        "complexity_level": level,
        "estimated_latency_ms": total * MILLIS_EACH,
        "recommended_limits": {
            "max_total": RECOMMENDED,
            "max_pre": RECOMMENDED_PART,
            "max_validators": RECOMMENDED_PART,
            "max_post": RECOMMENDED_PART,
        },
        "warnings": warnings,
        "recommendations": recommendations,
    })
}
