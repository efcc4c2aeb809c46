//! What does not work as it should, and only that: each with its state, its cause, and what suffers from it.
//! Everything that is not named works.

use serde::Serialize;

use super::Engine;
use super::signals::Pressure;
use crate::policy::breaker::BreakerState;

/// Rows that are listed.
const ROWS_MAX: usize = 100;

#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// The log takes no events.
    Log,
    Provider,
    Extension,
    /// Jobs wait and nobody takes them.
    Workers,
    /// More comes than is done.
    Load,
    /// Who runs tasks in a cluster.
    Leader,
}

impl Part {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Provider => "provider",
            Self::Extension => "extension",
            Self::Workers => "workers",
            Self::Load => "load",
            Self::Leader => "leader",
        }
    }
}

/// One of them.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Degraded {
    pub part: Part,
    /// Which one: `tenant/provider`, an extension's id, a subject.
    pub name: String,
    pub state: &'static str,
    pub cause: String,
    /// What does not work because of it.
    pub affects: &'static str,
    /// Milliseconds since 1970, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
}

impl std::fmt::Display for Degraded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} is {}: {} ({})", self.part.as_str(), self.name, self.state, self.cause, self.affects)
    }
}

impl Degraded {
    /// The log takes no events.
    #[must_use]
    pub fn of_log(cause: String) -> Self {
        Self {
            part: Part::Log,
            name: "BEAMLINE".to_owned(),
            state: "not_storing",
            cause,
            affects: "new decisions and changes are refused, what workers say is held, the rest is answered",
            since: None,
        }
    }

    /// A node of a cluster hears of no other that runs tasks.
    #[must_use]
    pub fn of_leader() -> Self {
        Self {
            part: Part::Leader,
            name: "of the cluster".to_owned(),
            state: "unknown",
            cause: "no node says that it runs tasks".to_owned(),
            affects: "requests are not answered here until one does",
            since: None,
        }
    }
}

impl Engine {
    /// All of them, the log first; at most a hundred.
    #[must_use]
    pub fn degraded(&mut self, now: u64) -> Vec<Degraded> {
        let mut rows = Vec::new();
        if let Some(cause) = &self.unstored {
            rows.push(Degraded::of_log(cause.clone()));
        }
        let pressure = self.pressure(now);
        if pressure != Pressure::Inactive {
            rows.push(Degraded {
                part: Part::Load,
                name: "decide".to_owned(),
                state: pressure.as_str(),
                cause: format!(
                    "{} tasks wait, {} requests are with extensions",
                    self.ready_count(),
                    self.asking()
                ),
                affects: if pressure == Pressure::Active { "requests are refused" } else { "nothing yet" },
                since: None,
            });
        }
        for (subject, ready) in self.ready.iter().filter(|(_, ready)| !ready.is_empty()) {
            if self.pool.has_members(subject) {
                continue;
            }
            let first = ready.iter().take(ROWS_MAX).filter_map(|(_, task)| self.state.tasks.get(task));
            rows.push(Degraded {
                part: Part::Workers,
                name: subject.to_string(),
                state: "absent",
                cause: format!("nobody is subscribed, and {} tasks wait", ready.len()),
                affects: "these tasks wait",
                since: first.map(|task| task.created_at).min(),
            });
        }
        let breakers = self.state.breakers.iter().filter_map(|((tenant, provider), breaker)| {
            let (cause, since) = breaker.trouble()?;
            let affects = match breaker.shown(now) {
                BreakerState::Open => "requests that would go to it go to others, or to fallbacks",
                BreakerState::HalfOpen | BreakerState::Closed => "a few requests try it, the others avoid it",
            };
            Some(Degraded {
                part: Part::Provider,
                name: format!("{tenant}/{provider}"),
                state: breaker.shown(now).as_str(),
                cause: cause.as_str().to_owned(),
                affects,
                since: Some(since),
            })
        });
        rows.extend(breakers.take(ROWS_MAX));
        let extensions = self.health.iter().filter_map(|(id, health)| {
            let (state, cause, since) = health.trouble(now)?;
            Some(Degraded {
                part: Part::Extension,
                name: id.clone(),
                state,
                cause: cause.to_owned(),
                affects: "policies that need it refuse, the others go on without it",
                since: Some(since),
            })
        });
        rows.extend(extensions.take(ROWS_MAX));
        rows.truncate(ROWS_MAX);
        rows
    }

    /// What cannot be written is not decided, until this is called with `None`; why not.
    pub fn set_unstored(&mut self, now: u64, cause: Option<String>) {
        let ends = self.unstored.is_some() && cause.is_none();
        self.unstored = cause;
        if ends {
            self.dispatch_all(now);
        }
    }

    /// Extensions whose breaker is not closed.
    #[must_use]
    pub fn extensions_open(&self) -> usize {
        self.health.values().filter(|health| health.is_open()).count()
    }

    #[must_use]
    pub fn is_unstored(&self) -> bool {
        self.unstored.is_some()
    }
}
