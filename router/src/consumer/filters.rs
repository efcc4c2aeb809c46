//! The subject filters of a consumer: one, several disjoint ones, or none for everything.

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

fn tokens(subject: &[u8]) -> impl Iterator<Item = &[u8]> {
    subject.split(|byte| *byte == b'.')
}

/// No token is a wildcard.
pub(super) fn is_literal(subject: &[u8]) -> bool {
    !tokens(subject).any(|token| token == b"*" || token == b">")
}

/// No empty token, no white space, and `>` only at the end.
pub(super) fn is_valid(subject: &[u8]) -> bool {
    let mut open_end = false;
    for token in tokens(subject) {
        if open_end || token.is_empty() || token.iter().any(u8::is_ascii_whitespace) {
            return false;
        }
        open_end = token == b">";
    }
    true
}

/// Whether a filter matches a subject without wildcards.
fn matches(filter: &[u8], subject: &[u8]) -> bool {
    is_subset(subject, filter)
}

/// Whether everything that `inner` matches is matched by `outer`.
pub(super) fn is_subset(inner: &[u8], outer: &[u8]) -> bool {
    let (mut inner, mut outer) = (tokens(inner), tokens(outer));
    loop {
        match (inner.next(), outer.next()) {
            (None, None) => return true,
            (Some(_), Some(b">")) => return true,
            (Some(b">"), Some(_)) => return false,
            (Some(_), Some(b"*")) => {}
            (Some(a), Some(b)) if a == b => {}
            (Some(_) | None, Some(_) | None) => return false,
        }
    }
}

/// Whether some subject is matched by both.
pub(super) fn collide(a: &[u8], b: &[u8]) -> bool {
    let (mut a, mut b) = (tokens(a), tokens(b));
    loop {
        match (a.next(), b.next()) {
            (None, None) => return true,
            (Some(_), Some(b">")) | (Some(b">"), Some(_)) => return true,
            (Some(_), Some(b"*")) | (Some(b"*"), Some(_)) => {}
            (Some(a), Some(b)) if a == b => {}
            (Some(_) | None, Some(_) | None) => return false,
        }
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

    #[test]
    fn a_subset_matches_nothing_that_its_superset_does_not() {
        for (inner, outer, expected) in [
            ("a.b", "a.*", true),
            ("a.*", "a.b", false),
            ("a.*", "a.>", true),
            ("a.>", "a.*", false),
            ("a.>", ">", true),
            ("a", "a.>", false),
            ("a.*", "*.b", false),
            ("a", "a", true),
        ] {
            assert_eq!(is_subset(inner.as_bytes(), outer.as_bytes()), expected, "{inner} in {outer}");
        }
    }

    #[test]
    fn filters_collide_when_a_subject_is_in_both() {
        for (a, b, expected) in [
            ("a.*", "*.b", true),
            ("a.>", "a.b.c", true),
            ("a.*.c", "a.b", false),
            ("a", "b", false),
            (">", "x", true),
        ] {
            assert_eq!(collide(a.as_bytes(), b.as_bytes()), expected, "{a} and {b}");
            assert_eq!(collide(b.as_bytes(), a.as_bytes()), expected, "{b} and {a}");
        }
    }

    #[test]
    fn a_filter_with_an_empty_token_or_an_early_tail_is_no_filter() {
        for good in ["a", "a.b", "*", "a.*.c", "a.>", ">", "a*"] {
            assert!(is_valid(good.as_bytes()), "{good}");
        }
        for bad in ["", ".", "a.", ".a", "a..b", "a b", "a.>.b", "a\t"] {
            assert!(!is_valid(bad.as_bytes()), "{bad:?}");
        }
    }
}
