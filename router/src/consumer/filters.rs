//! The subject filters of a consumer: one, several disjoint ones, or none for everything.

use crate::subject::{is_literal, matches};

/// What a consumer wants of its stream.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Filters {
    /// Without wildcards: found by comparing bytes.
    literals: Vec<Box<[u8]>>,
    wildcards: Vec<Box<[u8]>>,
    everything: bool,
}

impl Filters {
    pub(super) fn new(subjects: &[String]) -> Self {
        let mut filters =
            Self { everything: subjects.is_empty() || subjects.iter().any(|s| s == ">"), ..Self::default() };
        for subject in subjects {
            let bytes = Box::from(subject.as_bytes());
            if is_literal(subject.as_bytes()) {
                filters.literals.push(bytes);
            } else {
                filters.wildcards.push(bytes);
            }
        }
        filters
    }

    /// No message is left out.
    pub(super) fn is_everything(&self) -> bool {
        self.everything
    }

    pub(super) fn matches(&self, subject: &[u8]) -> bool {
        self.everything
            || self.literals.iter().any(|literal| **literal == *subject)
            || self.wildcards.iter().any(|filter| matches(filter, subject))
    }

    pub(super) fn literals(&self) -> impl Iterator<Item = &[u8]> {
        self.literals.iter().map(|literal| &**literal)
    }

    pub(super) fn has_wildcards(&self) -> bool {
        !self.wildcards.is_empty()
    }

    /// Whether a filter with wildcards matches; for subjects that are visited anyway.
    pub(super) fn wildcard_matches(&self, subject: &[u8]) -> bool {
        self.wildcards.iter().any(|filter| matches(filter, subject))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filters(subjects: &[&str]) -> Filters {
        Filters::new(&subjects.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn without_a_filter_everything_matches() {
        assert!(filters(&[]).matches(b"a.b"));
        assert!(filters(&[]).is_everything());
        assert!(filters(&[">"]).is_everything());
    }

    #[test]
    fn a_message_matches_when_one_of_several_filters_does() {
        let several = filters(&["a.1", "b.*", "c.>"]);
        for subject in ["a.1", "b.x", "c.x", "c.x.y"] {
            assert!(several.matches(subject.as_bytes()), "{subject}");
        }
        for subject in ["a", "a.2", "a.1.1", "b", "b.x.y", "c", "d"] {
            assert!(!several.matches(subject.as_bytes()), "{subject}");
        }
    }
}
