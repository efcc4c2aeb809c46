//! Subjects and filters: dotted names and the patterns over them.
//!
//! A [`Subject`] or [`Filter`] in hand is legal; nobody checks again. The functions on slices are for
//! the paths where the bytes were checked at the door; given illegal bytes they answer something, and
//! never panic.
//!
//! The rules are nats-server's: tokens between dots are not empty; no space, tab, form feed, CR or LF;
//! `*` and `>` are wildcards only as whole tokens (`a*` is a literal token), and `>` only as the last.

use std::fmt;

use bytes::Bytes;
use thiserror::Error;

/// Why bytes are no subject or no filter.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum InvalidSubject {
    #[error("subject is empty")]
    Empty,
    #[error("subject has an empty token")]
    EmptyToken,
    #[error("subject contains white space")]
    WhiteSpace,
    #[error("'>' is not the last token")]
    TailNotLast,
    #[error("subject has wildcards")]
    Wildcard,
}

/// The dotted name of a message: no wildcards.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Subject(Bytes);

/// A pattern over subjects: `*` stands for one token, a last `>` for one or more.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Filter(Bytes);

impl Subject {
    /// Takes bytes as a subject.
    ///
    /// # Errors
    /// What the bytes break, as nats-server judges it.
    pub fn parse(raw: impl Into<Bytes>) -> Result<Self, InvalidSubject> {
        let raw = raw.into();
        check_subject(&raw)?;
        Ok(Self(raw))
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}

impl Filter {
    /// Takes bytes as a filter.
    ///
    /// # Errors
    /// What the bytes break, as nats-server judges it.
    pub fn parse(raw: impl Into<Bytes>) -> Result<Self, InvalidSubject> {
        let raw = raw.into();
        check_filter(&raw)?;
        Ok(Self(raw))
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.0
    }

    /// Whether it names exactly one subject.
    #[must_use]
    pub fn is_literal(&self) -> bool {
        is_literal(&self.0)
    }

    #[must_use]
    pub fn matches(&self, subject: &Subject) -> bool {
        matches(&self.0, &subject.0)
    }

    /// Whether every subject this filter matches is matched by `other` too.
    #[must_use]
    pub fn is_subset_of(&self, other: &Self) -> bool {
        is_subset(&self.0, &other.0)
    }

    /// Whether some subject is matched by both.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        overlaps(&self.0, &other.0)
    }
}

impl From<Subject> for Filter {
    fn from(subject: Subject) -> Self {
        Self(subject.0)
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        String::from_utf8_lossy(&self.0).fmt(f)
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        String::from_utf8_lossy(&self.0).fmt(f)
    }
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Subject({self})")
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Filter({self})")
    }
}

/// The tokens of a subject or filter, in order.
pub fn tokens(raw: &[u8]) -> impl Iterator<Item = &[u8]> {
    raw.split(|&byte| byte == b'.')
}

/// Checks that bytes are a legal filter (`foo.*`, `foo.>`, or a plain subject).
///
/// # Errors
/// The first rule that is broken.
pub fn check_filter(raw: &[u8]) -> Result<(), InvalidSubject> {
    if raw.is_empty() {
        return Err(InvalidSubject::Empty);
    }
    let mut tail = false;
    for token in tokens(raw) {
        if token.is_empty() {
            return Err(InvalidSubject::EmptyToken);
        }
        if tail {
            return Err(InvalidSubject::TailNotLast);
        }
        if token.iter().any(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | 0x0c)) {
            return Err(InvalidSubject::WhiteSpace);
        }
        tail = token == b">";
    }
    Ok(())
}

/// Checks that bytes are a legal subject: a legal filter without wildcards.
///
/// # Errors
/// The first rule that is broken.
pub fn check_subject(raw: &[u8]) -> Result<(), InvalidSubject> {
    check_filter(raw)?;
    if is_literal(raw) { Ok(()) } else { Err(InvalidSubject::Wildcard) }
}

/// Whether no token is a wildcard.
#[must_use]
pub fn is_literal(raw: &[u8]) -> bool {
    // Nearly all subjects have neither byte, and a search for two bytes is one fast pass.
    !raw.iter().any(|&byte| byte == b'*' || byte == b'>')
        || tokens(raw).all(|token| token != b"*" && token != b">")
}

/// Whether the filter matches the subject. Both are legal.
#[must_use]
pub fn matches(filter: &[u8], subject: &[u8]) -> bool {
    let mut wanted = tokens(filter);
    let mut got = tokens(subject);
    loop {
        match (wanted.next(), got.next()) {
            (Some(b">"), Some(_)) | (None, None) => return true,
            (Some(b"*"), Some(_)) => {}
            (Some(want), Some(have)) if want == have => {}
            (Some(_), Some(_) | None) | (None, Some(_)) => return false,
        }
    }
}

/// Whether every subject that `inner` matches is matched by `outer` too.
#[must_use]
pub fn is_subset(inner: &[u8], outer: &[u8]) -> bool {
    let mut outer = tokens(outer);
    let mut inner = tokens(inner);
    loop {
        match (outer.next(), inner.next()) {
            (Some(b">"), Some(_)) | (None, None) => return true,
            // `*` takes one token and `>` may be many.
            (Some(b"*"), Some(have)) if have != b">" => {}
            (Some(want), Some(have)) if want == have => {}
            (Some(_), Some(_) | None) | (None, Some(_)) => return false,
        }
    }
}

/// Whether some subject is matched by both filters.
#[must_use]
pub fn overlaps(left: &[u8], right: &[u8]) -> bool {
    let mut left = tokens(left);
    let mut right = tokens(right);
    loop {
        match (left.next(), right.next()) {
            (Some(b">"), Some(_)) | (Some(_), Some(b">")) | (None, None) => return true,
            (Some(b"*"), Some(_)) | (Some(_), Some(b"*")) => {}
            (Some(a), Some(b)) if a == b => {}
            (Some(_), Some(_) | None) | (None, Some(_)) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(filter: &str, yes: &[&str], no: &[&str]) {
        let filter = Filter::parse(filter.as_bytes().to_vec()).unwrap();
        for (subjects, expected) in [(yes, true), (no, false)] {
            for subject in subjects {
                let subject = Subject::parse(subject.as_bytes().to_vec()).unwrap();
                assert_eq!(filter.matches(&subject), expected, "{filter} against {subject}");
            }
        }
    }

    #[test]
    fn a_literal_matches_itself_only() {
        check("orders.eu", &["orders.eu"], &["orders", "orders.eu.new", "orders.us", "Orders.eu"]);
    }

    #[test]
    fn a_star_is_exactly_one_token() {
        check("orders.*.new", &["orders.eu.new"], &["orders.new", "orders.eu.de.new", "orders.eu"]);
        check("*", &["a"], &["a.b"]);
    }

    #[test]
    fn a_tail_wildcard_needs_one_token() {
        check("orders.>", &["orders.eu", "orders.eu.new"], &["orders", "bills.eu"]);
        check(">", &["a", "a.b"], &[]);
    }

    #[test]
    fn a_wildcard_inside_a_token_is_literal() {
        check("a*.b>c", &["a*.b>c"], &["ab.bc"]);
        assert!(is_literal(b"a*.>b"));
    }

    #[test]
    fn filters_are_judged_as_nats_server_judges_them() {
        for (raw, expected) in [
            ("a", Ok(())),
            ("a.*.>", Ok(())),
            (">", Ok(())),
            ("", Err(InvalidSubject::Empty)),
            (".", Err(InvalidSubject::EmptyToken)),
            ("a..b", Err(InvalidSubject::EmptyToken)),
            ("a.", Err(InvalidSubject::EmptyToken)),
            (".a", Err(InvalidSubject::EmptyToken)),
            ("a.>.b", Err(InvalidSubject::TailNotLast)),
            ("a b", Err(InvalidSubject::WhiteSpace)),
            ("a\t", Err(InvalidSubject::WhiteSpace)),
            ("a\rb", Err(InvalidSubject::WhiteSpace)),
            ("a.\n", Err(InvalidSubject::WhiteSpace)),
        ] {
            assert_eq!(check_filter(raw.as_bytes()), expected, "{raw:?}");
        }
        assert_eq!(check_subject(b"a.*"), Err(InvalidSubject::Wildcard));
        assert_eq!(check_subject(b"a.>"), Err(InvalidSubject::Wildcard));
        assert_eq!(check_subject(b"a.b*"), Ok(()));
    }

    #[test]
    fn subset_and_overlap_agree_with_a_small_world() {
        // All filters and subjects of up to three tokens over a tiny alphabet: exhaustive, so the
        // definitions ("every subject", "some subject") can be taken literally.
        fn grow(alphabet: &[&str], longest: usize) -> Vec<String> {
            let mut all: Vec<String> = alphabet.iter().map(|token| (*token).to_owned()).collect();
            let mut last = all.clone();
            for _ in 1..longest {
                last = last
                    .iter()
                    .flat_map(|prefix| alphabet.iter().map(move |token| format!("{prefix}.{token}")))
                    .collect();
                all.extend(last.clone());
            }
            all
        }
        // One more token than the filters have, so that `>` is told from `*`, and a letter that no filter has,
        // so that a wildcard is told from the union of the literals.
        let subjects = grow(&["a", "b", "c"], 4);
        let filters: Vec<String> = grow(&["a", "b", "*", ">"], 3)
            .into_iter()
            .filter(|filter| check_filter(filter.as_bytes()).is_ok())
            .collect();
        for left in &filters {
            for right in &filters {
                let by_left = |s: &String| matches(left.as_bytes(), s.as_bytes());
                let by_right = |s: &String| matches(right.as_bytes(), s.as_bytes());
                assert_eq!(
                    is_subset(left.as_bytes(), right.as_bytes()),
                    subjects.iter().filter(|s| by_left(s)).all(by_right),
                    "{left} subset of {right}"
                );
                assert_eq!(
                    overlaps(left.as_bytes(), right.as_bytes()),
                    subjects.iter().any(|s| by_left(s) && by_right(s)),
                    "{left} overlaps {right}"
                );
            }
        }
    }
}
