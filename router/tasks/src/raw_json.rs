//! Parts of a JSON text as they were written: a payload is handed on byte by byte, so that no number of it is
//! rounded on the way. What is searched is legal JSON already (serde has read it); on anything else the answer
//! is `None`, and never a panic.

/// The text of a member of an object. `None` when it is not there, or is `null`.
#[must_use]
pub fn member<'t>(object: &'t str, key: &str) -> Option<&'t str> {
    let mut rest = object.trim_start().strip_prefix('{')?.trim_start();
    while let Some(quoted) = rest.strip_prefix('"') {
        let name_end = string_end(quoted)?;
        let name = quoted.get(..name_end)?;
        rest = quoted.get(name_end + 1..)?.trim_start().strip_prefix(':')?.trim_start();
        let length = value_length(rest)?;
        let value = rest.get(..length)?;
        if name == key {
            return (value != "null").then_some(value);
        }
        rest = rest.get(length..)?.trim_start();
        rest = rest.strip_prefix(',')?.trim_start();
    }
    None
}

/// Where a string ends, its opening quote not counted.
fn string_end(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Some(at),
            _ => {}
        }
    }
    None
}

/// How long the value at the start of a text is.
fn value_length(text: &str) -> Option<usize> {
    match text.bytes().next()? {
        b'"' => Some(string_end(text.get(1..)?)? + 2),
        b'{' | b'[' => {
            let (mut depth, mut at) = (0_usize, 0);
            let bytes = text.as_bytes();
            while let Some(byte) = bytes.get(at) {
                match byte {
                    b'"' => at += string_end(text.get(at + 1..)?)? + 1,
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' => {
                        depth = depth.checked_sub(1)?;
                        if depth == 0 {
                            return Some(at + 1);
                        }
                    }
                    _ => {}
                }
                at += 1;
            }
            None
        }
        _ => {
            let end = text.find(|c: char| matches!(c, ',' | '}' | ']') || c.is_ascii_whitespace());
            let length = end.unwrap_or(text.len());
            (length > 0).then_some(length)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_found_as_they_were_written() {
        let text = r#" { "a" : 1.10 , "b":{"c":[1, "}" ,{"d":"\"]"}]}, "n": null, "s":"x\\", "last": -1e5}"#;
        assert_eq!(member(text, "a"), Some("1.10"));
        assert_eq!(member(text, "b"), Some(r#"{"c":[1, "}" ,{"d":"\"]"}]}"#));
        assert_eq!(member(member(text, "b").unwrap(), "c"), Some(r#"[1, "}" ,{"d":"\"]"}]"#));
        assert_eq!(member(text, "s"), Some(r#""x\\""#));
        assert_eq!(member(text, "last"), Some("-1e5"));
        assert_eq!((member(text, "n"), member(text, "c"), member(text, "")), (None, None, None));
        assert_eq!((member("{}", "a"), member("[]", "a")), (None, None));
    }

    #[test]
    fn what_is_cut_or_no_json_has_no_members() {
        let text = r#"{"a":{"b":"c\""},"d":[1,2],"é":"ü"}"#;
        for end in (0..text.len()).filter(|end| text.is_char_boundary(*end)) {
            // An answer is allowed, a panic is not.
            for key in ["a", "d", "é", "x"] {
                assert!(member(&text[..end], key).is_none_or(|value| !value.is_empty()));
            }
        }
        for odd in ["", "{", "{\"", "{\"a", "{\"a\"", "{\"a\":", "{\"a\":}", "{\"a\":]]}", "{\"a\":\"\\"] {
            assert_eq!(member(odd, "a"), None, "{odd}");
        }
    }
}
