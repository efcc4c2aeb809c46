//! Secrets and personal data out of what is kept or shown (contract section 1.15).

use serde_json::Value;

const KEYS: [&str; 17] = [
    "password",
    "api_key",
    "apikey",
    "secret",
    "token",
    "access_token",
    "refresh_token",
    "authorization",
    "credit_card",
    "ssn",
    "email",
    "phone",
    "bearer",
    "x-api-key",
    "x-auth-token",
    "x-authorization",
    "client_secret",
];

const MASK: &str = "[REDACTED]";

/// Masks in place, at any depth.
pub fn mask(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                if KEYS.iter().any(|secret| key.eq_ignore_ascii_case(secret)) {
                    *value = MASK.into();
                } else {
                    mask(value);
                }
            }
        }
        Value::Array(all) => all.iter_mut().for_each(mask),
        Value::String(text) => {
            if let Some(masked) = mask_text(text) {
                *text = masked;
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The text without what looks like a credential or an e-mail address; `None` when there is nothing.
#[must_use]
pub fn mask_text(text: &str) -> Option<String> {
    let lower = text.to_ascii_lowercase();
    let is_secret = ["api_key", "api-key", "apikey", "secret", "password", "authorization", "bearer "]
        .iter()
        .any(|word| lower.contains(word))
        || lower.match_indices("token").any(|(at, _)| {
            // "token=…" and "token: …"; not "4096 tokens".
            lower[at + 5..].trim_start().starts_with(['=', ':'])
        });
    if is_secret {
        return Some(MASK.to_owned());
    }
    if !text.contains('@') {
        return None;
    }
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '%' | '+' | '-');
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut found = false;
    while let Some(at) = rest.find('@') {
        let (before, after) = (&rest[..at], &rest[at + 1..]);
        let name = before.len()
            - before.chars().rev().take_while(|c| is_part(*c)).map(char::len_utf8).sum::<usize>();
        let domain = after.chars().take_while(|c| is_part(*c)).map(char::len_utf8).sum::<usize>();
        if name < at && after[..domain].trim_matches('.').contains('.') {
            found = true;
            out.push_str(&before[..name]);
            out.push_str(MASK);
        } else {
            out.push_str(&rest[..=at]);
            out.push_str(&after[..domain]);
        }
        rest = &after[domain..];
    }
    out.push_str(rest);
    found.then_some(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_and_values_that_are_secret_are_masked_at_any_depth() {
        let mut value = json!({"a": [{"Password": "x", "n": 5}], "API_KEY": {"deep": 1}, "note": "Bearer abc",
            "mail": "write to ann.b@example.org, or bob@host", "tokens": "4096 tokens", "t": "token=abc"});
        mask(&mut value);
        assert_eq!(
            value,
            json!({"a": [{"Password": MASK, "n": 5}], "API_KEY": MASK, "note": MASK,
            "mail": "write to [REDACTED], or bob@host", "tokens": "4096 tokens", "t": MASK})
        );
    }

    #[test]
    fn odd_texts_do_not_break_it() {
        for text in ["@", "@@", "a@", "@b.c", "é@ü.de", "a@b.c@d.e", "@.@."] {
            let mut value = json!(text);
            mask(&mut value);
        }
        assert_eq!(mask_text("a@b.c"), Some(MASK.to_owned()));
    }
}
