//! Subjects and filters against the definition, spelled out by recursion.

use beamlog_router::subject::{self, Filter, Subject};

pub const WORDS: &[&[u8]] = &[b".", b"*", b">", b".*", b".>", b"..", b"\n", b"a", b"$JS.API.", b" ", b"\t", b"\0"];

/// Three lines: a subject and two filters.
pub fn run(data: &[u8]) {
    let mut lines = data.splitn(3, |byte| *byte == b'\n').map(<[u8]>::to_vec);
    let (subject, left, right) = (lines.next(), lines.next(), lines.next());
    let subject = subject.and_then(|raw| Subject::parse(raw).ok());
    let left = left.and_then(|raw| Filter::parse(raw).ok());
    let right = right.and_then(|raw| Filter::parse(raw).ok());

    for filter in [&left, &right].into_iter().flatten() {
        assert!(filter.is_subset_of(filter) && filter.overlaps(filter), "{filter:?}");
        if let Some(subject) = &subject {
            let expected = naive_match(&tokens(filter.as_bytes()), &tokens(subject.as_bytes()));
            assert_eq!(filter.matches(subject), expected, "{filter:?} {subject:?}");
            let as_filter = Filter::from(subject.clone());
            assert!(as_filter.is_literal());
            assert_eq!(as_filter.is_subset_of(filter), expected, "{filter:?} {subject:?}");
            assert_eq!(as_filter.overlaps(filter), expected, "{filter:?} {subject:?}");
        }
    }
    let (Some(left), Some(right)) = (left, right) else { return };
    let overlaps = naive_overlap(&tokens(left.as_bytes()), &tokens(right.as_bytes()));
    assert_eq!(left.overlaps(&right), overlaps, "{left:?} {right:?}");
    assert_eq!(right.overlaps(&left), overlaps, "{right:?} {left:?}");
    let subset = naive_subset(&tokens(left.as_bytes()), &tokens(right.as_bytes()));
    assert_eq!(left.is_subset_of(&right), subset, "{left:?} in {right:?}");
    assert!(!subset || overlaps);
    if let Some(subject) = subject {
        assert!(!subset || !left.matches(&subject) || right.matches(&subject));
        assert!(overlaps || !(left.matches(&subject) && right.matches(&subject)));
    }
}

fn tokens(raw: &[u8]) -> Vec<&[u8]> {
    let tokens: Vec<&[u8]> = raw.split(|byte| *byte == b'.').collect();
    assert!(tokens.iter().all(|token| !token.is_empty()), "an empty token was accepted");
    assert!(subject::tokens(raw).eq(tokens.iter().copied()));
    tokens
}

fn naive_match(filter: &[&[u8]], subject: &[&[u8]]) -> bool {
    match (filter, subject) {
        ([], []) => true,
        ([b">"], [_, ..]) => true,
        ([wanted, filter @ ..], [token, subject @ ..]) => {
            (*wanted == b"*" || wanted == token) && naive_match(filter, subject)
        }
        (_, _) => false,
    }
}

fn naive_overlap(left: &[&[u8]], right: &[&[u8]]) -> bool {
    match (left, right) {
        ([], []) => true,
        ([b">"], [_, ..]) | ([_, ..], [b">"]) => true,
        ([one, left @ ..], [other, right @ ..]) => {
            (*one == b"*" || *other == b"*" || one == other) && naive_overlap(left, right)
        }
        (_, _) => false,
    }
}

/// Whether every subject that `inner` matches is matched by `outer`.
fn naive_subset(inner: &[&[u8]], outer: &[&[u8]]) -> bool {
    match (inner, outer) {
        ([], []) => true,
        ([_, ..], [b">"]) => true,
        ([b">"], _) => false,
        ([one, inner @ ..], [other, outer @ ..]) => {
            (*other == b"*" || one == other) && naive_subset(inner, outer)
        }
        (_, _) => false,
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    [
        "orders.eu.new\norders.*.new\norders.>",
        "a\n*\n>",
        "a.b.c\n*.b.>\na.>",
        "a.b\na.*\n*.b",
        "$JS.API.STREAM.CREATE.x\n$JS.API.>\n$JS.*.STREAM.>",
        "a..b\n.a\na.",
        "a*.b>\na*.b>\n*a",
        "größe.語\n*.語\n>",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
