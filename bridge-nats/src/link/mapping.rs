//! Subject mappings of rules: whether one can be carried out, and the filter of what it yields.

use beamlog_router::stream::SubjectMapping;
use beamlog_router::subject;
use bytes::Bytes;

/// Whether every subject that `from` matches becomes a legal one by `to`.
///
/// # Errors
/// What is wrong, in words.
pub fn check(from: &str, to: &str) -> Result<(), String> {
    let mapping = SubjectMapping { source: from.to_owned(), destination: to.to_owned() };
    mapping.check().map_err(|error| error.to_string())?;
    let image = image(to);
    subject::check_filter(image.as_bytes()).map_err(|_illegal| "what it yields is not a subject".to_owned())
}

/// A filter that matches all that a destination can yield.
#[must_use]
pub fn image(to: &str) -> String {
    let token = |token: &str| {
        let is_wildcard =
            token.starts_with('$') && token.len() > 1 && token[1..].bytes().all(|b| b.is_ascii_digit());
        if is_wildcard || token.starts_with("{{") { "*".to_owned() } else { token.to_owned() }
    };
    to.split('.').map(token).collect::<Vec<_>>().join(".")
}

/// The subject on the other side; the same without a mapping. `None`: the mapping has nothing for it.
pub(crate) fn apply(mapping: Option<&SubjectMapping>, subject: &[u8]) -> Option<Bytes> {
    match mapping {
        None => Some(Bytes::copy_from_slice(subject)),
        Some(mapping) => mapping.apply(subject).map(Bytes::from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_matches_whatever_the_mapping_yields() {
        assert_eq!(image("a.$1.{{wildcard(2)}}.>"), "a.*.*.>");
        assert_eq!(image("a.b"), "a.b");
    }

    #[test]
    fn what_cannot_be_mapped_says_why() {
        assert_eq!(check("a.*", "b.$1"), Ok(()));
        assert!(check("a.*", "b.$2").unwrap_err().contains("out of range"));
        assert!(check("a.>", "b").is_err());
        assert!(check("a", "b c").is_err());
    }
}
