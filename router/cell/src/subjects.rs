//! Names of the contract: services, verbs, schemas, and the subjects and queue groups made of them.

/// What every subject of a cell begins with.
pub const PREFIX: &str = "cbs.";
/// The queue group of a subject that is no cell's.
const NO_SERVICE: &str = "default";

/// `^[a-z][a-z0-9_]*$`: a service or a verb.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_lowercase())
        && bytes.all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

/// `^[a-z][a-z0-9_]+/v\d+/[A-Za-z][A-Za-z0-9_]*$`: the name of a schema, as `demo/v1/Name`.
#[must_use]
pub fn is_schema(text: &str) -> bool {
    let mut parts = text.split('/');
    let (Some(family), Some(version), Some(name), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    let digits = version.strip_prefix('v').unwrap_or_default();
    let mut letters = name.bytes();
    is_name(family)
        && family.len() >= 2
        && !digits.is_empty()
        && digits.bytes().all(|byte| byte.is_ascii_digit())
        && letters.next().is_some_and(|first| first.is_ascii_alphabetic())
        && letters.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Where requests of a service and verb go.
#[must_use]
pub fn request(service: &str, verb: &str) -> String {
    format!("{PREFIX}{service}.{verb}")
}

/// `cbs.{service}.{verb}`, exactly three tokens.
#[must_use]
pub fn is_request(subject: &str) -> bool {
    let Some((service, verb)) = subject.strip_prefix(PREFIX).and_then(|rest| rest.split_once('.')) else {
        return false;
    };
    is_name(service) && is_name(verb)
}

/// The queue group of a subject: its service, so that of all processes that serve it one gets each request.
#[must_use]
pub fn queue_group(subject: &str) -> &str {
    match subject.strip_prefix(PREFIX) {
        Some(rest) => rest.split('.').next().unwrap_or(NO_SERVICE),
        None => NO_SERVICE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_schemas_and_groups_are_those_of_the_contract() {
        for (text, is) in [
            ("greeter", true),
            ("g2_x", true),
            ("", false),
            ("2g", false),
            ("Greeter", false),
            ("a.b", false),
            ("_a", false),
        ] {
            assert_eq!(is_name(text), is, "{text:?}");
        }
        for (text, is) in [
            ("demo/v1/Name", true),
            ("d2/v10/n_1", true),
            ("d/v1/Name", false),
            ("demo/1/Name", false),
            ("demo/v/Name", false),
            ("demo/v1/1", false),
            ("demo/v1", false),
            ("demo/v1/Name/x", false),
            ("demo/vx/Name", false),
        ] {
            assert_eq!(is_schema(text), is, "{text:?}");
        }
        for (subject, group) in [
            ("cbs.greeter.say_hello", "greeter"),
            ("cbs.prompt_name.read", "prompt_name"),
            ("cbs.service", "service"),
            ("invalid.subject", "default"),
        ] {
            assert_eq!(queue_group(subject), group);
        }
        assert!(is_request("cbs.greeter.say_hello"));
        for subject in ["cbs.greeter", "cbs.greeter.say.hello", "cbs.*.x", "cbs.greeter.", "x.greeter.say"] {
            assert!(!is_request(subject), "{subject}");
        }
    }
}
