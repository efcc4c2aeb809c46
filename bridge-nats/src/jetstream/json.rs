//! JSON as nats-server reads and writes it.
//!
//! Reading: names without regard to case, `null` as absent, a member nobody asked for is an error
//! (strict mode, the default since 2.12). Writing: members in a fixed order, nothing that was not asked
//! for, no allocation per member.

use beamlog_router::Timestamp;
use serde_json::{Map, Value};
use thiserror::Error;

use super::time;

/// A request that is not the JSON we want. The text goes to the client behind "invalid JSON: ".
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[error("{0}")]
pub(super) struct Malformed(pub(super) String);

/// The members of an object that were not taken yet.
#[derive(Debug, Default)]
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    /// Reads one object; nothing at all counts as an empty one.
    pub(super) fn parse(text: &[u8]) -> Result<Self, Malformed> {
        if text.trim_ascii().is_empty() {
            return Ok(Self::default());
        }
        let value: Value = serde_json::from_slice(text).map_err(|error| {
            Malformed(if error.is_eof() { "unexpected EOF".to_owned() } else { error.to_string() })
        })?;
        match value {
            Value::Object(map) => Ok(Self(map)),
            Value::Null => Ok(Self::default()),
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                Err(Malformed(format!("json: cannot unmarshal {} into an object", kind(&value))))
            }
        }
    }

    /// Refuses what nobody took.
    pub(super) fn finish(self) -> Result<(), Malformed> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(name) => Err(Malformed(format!("json: unknown field {name:?}"))),
        }
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        let value = match self.0.remove(name) {
            Some(value) => value,
            None => {
                let key = self.0.keys().find(|key| key.eq_ignore_ascii_case(name))?.clone();
                self.0.remove(&key)?
            }
        };
        (!value.is_null()).then_some(value)
    }

    /// A string; empty when absent.
    pub(super) fn string(&mut self, name: &str) -> Result<String, Malformed> {
        match self.take(name) {
            None => Ok(String::new()),
            Some(Value::String(text)) => Ok(text),
            Some(other) => Err(wrong(name, &other, "string")),
        }
    }

    /// A boolean; false when absent.
    pub(super) fn boolean(&mut self, name: &str) -> Result<bool, Malformed> {
        match self.take(name) {
            None => Ok(false),
            Some(Value::Bool(value)) => Ok(value),
            Some(other) => Err(wrong(name, &other, "bool")),
        }
    }

    /// A signed integer; 0 when absent.
    pub(super) fn signed(&mut self, name: &str) -> Result<i64, Malformed> {
        match self.take(name) {
            None => Ok(0),
            Some(value) => value.as_i64().ok_or_else(|| wrong(name, &value, "int64")),
        }
    }

    /// An integer from 0 on; 0 when absent.
    pub(super) fn unsigned(&mut self, name: &str) -> Result<u64, Malformed> {
        match self.take(name) {
            None => Ok(0),
            Some(value) => value.as_u64().ok_or_else(|| wrong(name, &value, "uint64")),
        }
    }

    /// A time; `None` when absent or "never".
    pub(super) fn time(&mut self, name: &str) -> Result<Option<Timestamp>, Malformed> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => match time::parse(&text) {
                Some(Timestamp(0)) => Ok(None),
                Some(time) => Ok(Some(time)),
                None => Err(Malformed(format!(
                    "parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse it"
                ))),
            },
            Some(other) => Err(wrong(name, &other, "time")),
        }
    }

    /// A list of strings; empty when absent.
    pub(super) fn strings(&mut self, name: &str) -> Result<Vec<String>, Malformed> {
        self.list(name)?.into_iter().map(|value| string_or_null(name, value)).collect()
    }

    /// A list of signed integers; empty when absent.
    pub(super) fn integers(&mut self, name: &str) -> Result<Vec<i64>, Malformed> {
        self.list(name)?
            .into_iter()
            .map(|value| value.as_i64().ok_or_else(|| wrong(name, &value, "int64")))
            .collect()
    }

    pub(super) fn list(&mut self, name: &str) -> Result<Vec<Value>, Malformed> {
        match self.take(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(values)) => Ok(values),
            Some(other) => Err(wrong(name, &other, "array")),
        }
    }

    /// An object; `None` when absent.
    pub(super) fn object(&mut self, name: &str) -> Result<Option<Self>, Malformed> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self(map))),
            Some(other) => Err(wrong(name, &other, "object")),
        }
    }

    /// An object whose members are all strings, with names that are not ours to know.
    pub(super) fn texts(&mut self, name: &str) -> Result<Vec<(String, String)>, Malformed> {
        let Some(Self(map)) = self.object(name)? else { return Ok(Vec::new()) };
        map.into_iter().map(|(key, value)| Ok((key, string_or_null(name, value)?))).collect()
    }
}

fn string_or_null(name: &str, value: Value) -> Result<String, Malformed> {
    if let Value::String(text) = value {
        Ok(text)
    } else if value.is_null() {
        Ok(String::new())
    } else {
        Err(wrong(name, &value, "string"))
    }
}

fn wrong(name: &str, value: &Value, wanted: &str) -> Malformed {
    Malformed(format!("json: cannot unmarshal {} into field {name} of type {wanted}", kind(value)))
}

fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "bool".to_owned(),
        Value::Number(number) if number.is_f64() => format!("number {number}"),
        Value::Number(_) => "number".to_owned(),
        Value::String(_) => "string".to_owned(),
        Value::Array(_) => "array".to_owned(),
        Value::Object(_) => "object".to_owned(),
    }
}

/// Writes one object into a text. Members appear in the order of the calls.
#[derive(Debug)]
pub(super) struct Object<'a> {
    out: &'a mut String,
    empty: bool,
}

impl<'a> Object<'a> {
    /// Writes an object with the members that `fill` adds.
    pub(super) fn write(out: &'a mut String, fill: impl FnOnce(&mut Self)) {
        out.push('{');
        let mut object = Self { out, empty: true };
        fill(&mut object);
        object.out.push('}');
    }

    /// The name of a member; what follows is its value.
    fn name(&mut self, name: &str) -> &mut String {
        if !self.empty {
            self.out.push(',');
        }
        self.empty = false;
        push_text(self.out, name);
        self.out.push(':');
        self.out
    }

    pub(super) fn text(&mut self, name: &str, value: &str) {
        push_text(self.name(name), value);
    }

    /// Left out when empty.
    pub(super) fn text_unless_empty(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.text(name, value);
        }
    }

    pub(super) fn number(&mut self, name: &str, value: impl Into<i128>) {
        push_number(self.name(name), value.into());
    }

    /// Left out when 0.
    pub(super) fn number_unless_zero(&mut self, name: &str, value: impl Into<i128>) {
        let value = value.into();
        if value != 0 {
            self.number(name, value);
        }
    }

    pub(super) fn boolean(&mut self, name: &str, value: bool) {
        self.name(name).push_str(if value { "true" } else { "false" });
    }

    /// Left out when false.
    pub(super) fn boolean_if_set(&mut self, name: &str, value: bool) {
        if value {
            self.boolean(name, true);
        }
    }

    pub(super) fn time(&mut self, name: &str, value: Timestamp) {
        let out = self.name(name);
        out.push('"');
        time::write(value, out);
        out.push('"');
    }

    pub(super) fn null(&mut self, name: &str) {
        self.name(name).push_str("null");
    }

    pub(super) fn object(&mut self, name: &str, fill: impl FnOnce(&mut Object<'_>)) {
        Object::write(self.name(name), fill);
    }

    pub(super) fn texts<T: AsRef<str>>(&mut self, name: &str, values: &[T]) {
        self.list(name, values, |value, out| push_text(out, value.as_ref()));
    }

    pub(super) fn list<T>(&mut self, name: &str, values: &[T], mut push: impl FnMut(&T, &mut String)) {
        let out = self.name(name);
        out.push('[');
        for (at, value) in values.iter().enumerate() {
            if at > 0 {
                out.push(',');
            }
            push(value, out);
        }
        out.push(']');
    }
}

/// Appends a JSON string.
pub(super) fn push_text(out: &mut String, text: &str) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            // Go writes these escaped, so that the text may stand inside HTML.
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            control if u32::from(control) < 0x20 => {
                out.push_str(&format!("\\u{:04x}", u32::from(control)));
            }
            other => out.push(other),
        }
    }
    out.push('"');
}

/// Appends a decimal number.
pub(super) fn push_number(out: &mut String, value: i128) {
    out.push_str(&value.to_string());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Fields {
        Fields::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn names_are_read_without_regard_to_case_and_null_is_absent() {
        let mut object = fields(r#"{"Name":"a","MAX":5,"flag":null,"gone":null}"#);
        assert_eq!(object.string("name"), Ok("a".to_owned()));
        assert_eq!(object.signed("max"), Ok(5));
        assert_eq!(object.boolean("flag"), Ok(false));
        assert_eq!(object.time("gone"), Ok(None));
        assert_eq!(object.finish(), Ok(()));
    }

    #[test]
    fn what_nobody_asked_for_is_refused_by_name() {
        let error = fields(r#"{"bogus":1}"#).finish().unwrap_err();
        assert_eq!(error.to_string(), "json: unknown field \"bogus\"");
    }

    #[test]
    fn numbers_keep_all_their_bits_and_fractions_are_refused() {
        let mut object = fields(r#"{"u":18446744073709551615,"i":-9223372036854775808,"f":1.5,"e":1e3}"#);
        assert_eq!(object.unsigned("u"), Ok(u64::MAX));
        assert_eq!(object.signed("i"), Ok(i64::MIN));
        assert!(object.signed("f").is_err());
        assert!(object.unsigned("e").is_err());
        assert!(fields(r#"{"u":-1}"#).unsigned("u").is_err());
        assert!(fields(r#"{"u":"1"}"#).unsigned("u").is_err());
    }

    #[test]
    fn nothing_is_an_empty_object_and_half_of_one_is_not() {
        for text in ["", "  ", "{}", "null", " {\n} "] {
            assert_eq!(fields(text).finish(), Ok(()), "{text:?}");
        }
        assert_eq!(Fields::parse(b"{").unwrap_err().to_string(), "unexpected EOF");
        for text in ["x", "{}x", "[]", "5", "{\"a\":}", "\u{1}"] {
            assert!(Fields::parse(text.as_bytes()).is_err(), "{text:?}");
        }
        assert!(Fields::parse(b"{\"a\":\"\xff\"}").is_err());
    }

    #[test]
    fn deep_nesting_is_an_error_and_not_a_crash() {
        let mut text = "{\"a\":".repeat(100_000);
        text.push('1');
        assert!(Fields::parse(text.as_bytes()).is_err());
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut out = String::new();
        Object::write(&mut out, |object| {
            object.text("t", "a\"\\\n\u{1}<é>");
            object.text_unless_empty("none", "");
            object.number("n", u64::MAX);
            object.number("m", -1);
            object.number_unless_zero("z", 0);
            object.boolean("b", false);
            object.boolean_if_set("c", false);
            object.texts("l", &["x", "y"]);
            object.object("o", |inner| inner.text("k", "v"));
            object.null("u");
            object.time("at", Timestamp(1));
        });
        let read: Value = serde_json::from_str(&out).unwrap();
        let expected = serde_json::json!({
            "t": "a\"\\\n\u{1}<é>", "n": u64::MAX, "m": -1, "b": false, "l": ["x", "y"], "o": {"k": "v"},
            "u": null, "at": "1970-01-01T00:00:00.000000001Z",
        });
        assert_eq!(read, expected);
        assert!(out.starts_with(r#"{"t":"a\"\\\n\u0001\u003cé\u003e","n":18446744073709551615,"m":-1,"#));
    }
}
