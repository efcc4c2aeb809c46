//! Subject mappings: a source filter, and a destination that may name what the wildcards stood for, as
//! `$1` or `{{wildcard(1)}}`; a last `>` stands for the same tail on both sides.

use crate::stream::SubjectMapping;
use crate::subject;

/// Why a mapping cannot be used.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidMapping {
    #[error("invalid mapping source")]
    Source,
    #[error("invalid mapping destination")]
    Destination,
    #[error("invalid mapping destination: wildcard index out of range")]
    WildcardOutOfRange,
}

enum Part<'a> {
    Text(&'a [u8]),
    /// What the n-th wildcard of the source stood for, from 0.
    Wildcard(usize),
    Tail,
}

fn part(token: &[u8]) -> Result<Part<'_>, InvalidMapping> {
    if token == b">" {
        return Ok(Part::Tail);
    }
    let number = if let Some(digits) = token.strip_prefix(b"$") {
        digits.iter().all(u8::is_ascii_digit).then_some(digits)
    } else if let Some(function) = token.strip_prefix(b"{{").and_then(|rest| rest.strip_suffix(b"}}")) {
        let function = function.trim_ascii();
        let argument = function
            .strip_prefix(b"wildcard(")
            .or_else(|| function.strip_prefix(b"Wildcard("))
            .and_then(|rest| rest.strip_suffix(b")"))
            .ok_or(InvalidMapping::Destination)?;
        Some(argument.trim_ascii())
    } else {
        None
    };
    match number {
        None if token == b"*" || token.is_empty() => Err(InvalidMapping::Destination),
        None => Ok(Part::Text(token)),
        Some(digits) => {
            let index: usize = std::str::from_utf8(digits)
                .ok()
                .and_then(|text| text.parse().ok())
                .ok_or(InvalidMapping::Destination)?;
            index.checked_sub(1).map(Part::Wildcard).ok_or(InvalidMapping::WildcardOutOfRange)
        }
    }
}

impl SubjectMapping {
    /// Whether the destination can be made from what the source matches.
    ///
    /// # Errors
    /// What is wrong with the source or the destination.
    pub fn check(&self) -> Result<(), InvalidMapping> {
        check(self)
    }

    /// The mapped subject; `None` when the source does not match, or [`Self::check`] refuses the mapping.
    #[must_use]
    pub fn apply(&self, subject: &[u8]) -> Option<Vec<u8>> {
        apply(self, subject)
    }
}

/// Checks a mapping; an empty source is everything.
pub(crate) fn check(mapping: &SubjectMapping) -> Result<(), InvalidMapping> {
    let source = source(mapping);
    subject::check_filter(source).map_err(|_invalid| InvalidMapping::Source)?;
    let wildcards = subject::tokens(source).filter(|token| *token == b"*").count();
    let source_has_tail = source.ends_with(b">");
    let mut destination_has_tail = false;
    if mapping.destination.is_empty() {
        return Err(InvalidMapping::Destination);
    }
    for token in subject::tokens(mapping.destination.as_bytes()) {
        if destination_has_tail {
            return Err(InvalidMapping::Destination);
        }
        match part(token)? {
            Part::Text(_) => {}
            Part::Wildcard(index) if index >= wildcards => return Err(InvalidMapping::WildcardOutOfRange),
            Part::Wildcard(_) => {}
            Part::Tail => destination_has_tail = true,
        }
    }
    if source_has_tail == destination_has_tail { Ok(()) } else { Err(InvalidMapping::Destination) }
}

fn source(mapping: &SubjectMapping) -> &[u8] {
    if mapping.source.is_empty() { b">" } else { mapping.source.as_bytes() }
}

/// The mapped subject; `None` when the source does not match. The mapping has passed [`check`].
pub(crate) fn apply(mapping: &SubjectMapping, name: &[u8]) -> Option<Vec<u8>> {
    let source = source(mapping);
    if !subject::matches(source, name) {
        return None;
    }
    let mut wildcards: Vec<&[u8]> = Vec::new();
    let mut tail: &[u8] = &[];
    let mut at = 0;
    for (filter, token) in subject::tokens(source).zip(subject::tokens(name)) {
        match filter {
            b"*" => wildcards.push(token),
            b">" => {
                tail = &name[at..];
                break;
            }
            _ => {}
        }
        at += token.len() + 1;
    }
    let mut mapped = Vec::with_capacity(name.len() + mapping.destination.len());
    for token in subject::tokens(mapping.destination.as_bytes()) {
        if !mapped.is_empty() {
            mapped.push(b'.');
        }
        match part(token).ok()? {
            Part::Text(text) => mapped.extend_from_slice(text),
            Part::Wildcard(index) => mapped.extend_from_slice(wildcards.get(index)?),
            Part::Tail => mapped.extend_from_slice(tail),
        }
    }
    Some(mapped)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(source: &str, destination: &str) -> SubjectMapping {
        SubjectMapping { source: source.into(), destination: destination.into() }
    }

    #[test]
    fn wildcards_and_tails_are_carried_over() {
        let check_one = |source, destination, subject: &str, expected: Option<&str>| {
            let mapping = mapping(source, destination);
            assert_eq!(check(&mapping), Ok(()));
            let mapped = apply(&mapping, subject.as_bytes());
            assert_eq!(mapped.as_deref(), expected.map(str::as_bytes));
        };
        check_one("orders.*.*", "by.$2.{{wildcard(1)}}", "orders.eu.7", Some("by.7.eu"));
        check_one("foo.>", "bar.>", "foo.a.b", Some("bar.a.b"));
        check_one("", "copy.>", "x.y", Some("copy.x.y"));
        check_one("foo", "bar", "foo", Some("bar"));
        check_one("foo", "bar", "other", None);
    }

    #[test]
    fn a_destination_names_only_what_the_source_has() {
        assert_eq!(check(&mapping("foo.*", "bar.$2")), Err(InvalidMapping::WildcardOutOfRange));
        assert_eq!(check(&mapping("foo.*", "bar.>")), Err(InvalidMapping::Destination));
        assert_eq!(check(&mapping("foo.>", "bar")), Err(InvalidMapping::Destination));
        assert_eq!(check(&mapping("foo..", "bar")), Err(InvalidMapping::Source));
        assert_eq!(check(&mapping("foo.*", "bar.{{partition(3)}}")), Err(InvalidMapping::Destination));
    }
}
