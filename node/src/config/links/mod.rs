//! `[[link]]`: reading, checking, resolving, and the links that were added while the node ran.

mod check;
mod error;
mod keys;
mod secrets;
mod stored;
mod table;

pub use check::check;
pub use error::{LinkError, LinkProblem, Place};
pub use keys::{LINK_KEYS, LinkKey, REQUEST_KEYS, RULE_KEYS};
pub use stored::{StoredError, StoredLinks};
pub use table::{LinkTable, RequestTable, RuleTable, StartName};

use beamlog_nats::link::rules::LinkConfig;

use crate::config::sources::Environment;

/// The variables of the process, for secrets that links name. Never shown.
#[derive(Clone, Default)]
pub struct Variables(Environment);

impl std::fmt::Debug for Variables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Variables(hidden)")
    }
}

impl Variables {
    #[must_use]
    pub fn new(environment: Environment) -> Self {
        Self(environment)
    }
}

/// What a link that passed [`check`] runs with.
///
/// # Errors
/// Credentials that are incomplete, contradict each other, or cannot be read now; what the runtime refuses.
pub fn resolve(link: &LinkTable, variables: &Variables) -> Result<LinkConfig, Vec<LinkError>> {
    let config = secrets::resolve(link, &variables.0)?;
    match config.check() {
        Ok(_) => Ok(config),
        Err(errors) => Err(errors
            .into_iter()
            .map(|error| LinkError {
                link: link.name.clone(),
                place: Place::Link,
                problem: LinkProblem::Refused { rule: error.rule, problem: error.problem },
            })
            .collect()),
    }
}

/// Nanoseconds since 1970.
fn start_time(text: &str) -> Option<u64> {
    beamlog_nats::rfc3339_nanos(text)
}
