//! The state of tasks: a fold over events, and nothing else. No clock, no randomness; time is in the events.
//!
//! Every table is bounded; what a bound throws out is the oldest.

pub mod apply;
pub mod event;
mod pairs;
mod shared_text;
pub mod task;
pub mod tenant;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ids::IdKey;
use crate::policy::breaker::Breaker;
use crate::policy::document::Policy;
use crate::replies::Decision;
use event::{DeadLetter, ExtensionRecord, Usage};
use task::Task;
use tenant::{Consumption, TenantRules, Tenants};

/// Bounds of the tables. The same on every node that folds the same log.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Bounds {
    /// Decisions that are remembered for the same request. Default 200,000.
    pub decisions_max: usize,
    /// Tasks that have ended and can still be looked up. Default 20,000.
    pub finished_max: usize,
    /// Dead letters. Default 10,000.
    pub dead_max: usize,
    /// Bytes of their payloads. Default 64 MiB.
    pub dead_bytes_max: usize,
    /// Sessions that keep their provider. Default 200,000.
    pub sessions_max: usize,
    /// Ids of results that were not assigned here. Default 100,000.
    pub foreign_max: usize,
    /// Tenant and provider pairs with figures. Default 10,000.
    pub providers_max: usize,
    /// Administrative changes. Default 1,000.
    pub audit_max: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            decisions_max: 200_000,
            finished_max: 20_000,
            dead_max: 10_000,
            dead_bytes_max: 64 << 20,
            sessions_max: 200_000,
            foreign_max: 100_000,
            providers_max: 10_000,
            audit_max: 1_000,
        }
    }
}

/// A decision that is remembered.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Remembered {
    pub at: u64,
    pub expires: u64,
    pub fingerprint: String,
    pub tenant: String,
    pub request_id: Option<String>,
    pub message_id: Option<String>,
    pub trace_id: Option<String>,
    pub decision: Decision,
    /// Its task, if it has one.
    pub task: Option<u64>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct StoredPolicy {
    pub document: Value,
    /// Counts the changes of this policy, from 1.
    pub version: u64,
    pub changed_at: u64,
    /// Read from the document.
    #[serde(skip)]
    pub parsed: Option<Arc<Policy>>,
}

/// What a provider did, as far as results say.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Figures {
    pub calls: u64,
    pub failures: u64,
    /// Exponential averages of successes: one part in eight is the newest.
    pub latency_millis: f64,
    pub cost: f64,
    pub queued_millis: f64,
    /// Of all calls together.
    #[serde(default)]
    pub cost_total: f64,
}

impl Figures {
    #[expect(clippy::cast_precision_loss, reason = "milliseconds")]
    fn ended(&mut self, succeeded: bool, latency_millis: u64, cost: f64, queued_millis: u64) {
        let average = |old: f64, new: f64, first: bool| {
            apply::bounded(if first { new } else { old + (new - old) / 8.0 })
        };
        self.calls += 1;
        self.cost_total = apply::bounded(self.cost_total + cost);
        if !succeeded {
            self.failures += 1;
            return;
        }
        let first = self.calls - self.failures == 1;
        self.latency_millis = average(self.latency_millis, latency_millis as f64, first);
        self.cost = average(self.cost, cost, first);
        self.queued_millis = average(self.queued_millis, queued_millis as f64, first);
    }
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Audit {
    pub at: u64,
    pub by: String,
    pub action: String,
    pub object: String,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Block {
    pub until: u64,
    pub why: String,
}

/// Counters over all that was ever folded.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Totals {
    pub decisions: u64,
    pub tasks: u64,
    pub dispatched: u64,
    pub returned: u64,
    pub failed: u64,
    pub succeeded: u64,
    pub ended_badly: u64,
    pub cancelled: u64,
    pub foreign: u64,
    pub buried: u64,
    pub replayed: u64,
    pub usage: u64,
    pub run_millis: u64,
    pub queued_millis: u64,
    pub cost: f64,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct State {
    pub key: Option<(u64, u64)>,
    pub next_task: u64,
    pub next_letter: u64,
    pub next_usage: u64,
    pub decisions: BTreeMap<String, Remembered>,
    decision_order: VecDeque<(u64, String)>,
    /// Message or request id, with its tenant, to its decision's key.
    #[serde(with = "pairs")]
    pub lookups: BTreeMap<(String, String), String>,
    #[serde(with = "pairs")]
    pub tasks: BTreeMap<u64, Task>,
    /// Those that have ended, oldest first.
    finished: VecDeque<u64>,
    /// The newest of each tenant and request id, open or not.
    #[serde(with = "pairs")]
    pub by_request: BTreeMap<(String, String), u64>,
    #[serde(with = "pairs")]
    pub dead: BTreeMap<u64, DeadLetter>,
    #[serde(with = "pairs")]
    pub providers: BTreeMap<(String, String), Figures>,
    /// The same by provider and model, of jobs that name one.
    #[serde(default, with = "pairs")]
    pub models: BTreeMap<(String, String), Figures>,
    #[serde(with = "pairs")]
    pub breakers: BTreeMap<(String, String), Breaker>,
    #[serde(with = "pairs")]
    sessions: BTreeMap<(String, String), (String, u64)>,
    session_order: VecDeque<(u64, (String, String))>,
    /// Usage that is not in its stream yet.
    #[serde(with = "pairs")]
    pub usage: BTreeMap<u64, Usage>,
    pub usage_stored: u64,
    foreign: BTreeSet<String>,
    foreign_order: VecDeque<String>,
    #[serde(with = "pairs")]
    pub policies: BTreeMap<(String, String), StoredPolicy>,
    pub tenants: Tenants,
    pub consumption: BTreeMap<String, Consumption>,
    pub blocks: BTreeMap<String, Block>,
    pub extensions: BTreeMap<String, ExtensionRecord>,
    pub audit: VecDeque<Audit>,
    pub totals: Totals,
    open_bytes: usize,
    dead_bytes: usize,
    /// Dead letters without a task.
    #[serde(skip)]
    refused: BTreeSet<u64>,
    #[serde(skip)]
    pub bounds: Bounds,
}

impl State {
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self { next_task: 1, next_letter: 1, next_usage: 1, bounds, ..Self::default() }
    }

    #[must_use]
    pub fn id_key(&self) -> IdKey {
        let (k0, k1) = self.key.unwrap_or_default();
        IdKey(k0, k1)
    }

    /// What an equal request was answered, while it is remembered.
    #[must_use]
    pub fn remembered(&self, key: &str, now: u64) -> Option<&Remembered> {
        self.decisions.get(key).filter(|decision| decision.expires > now)
    }

    /// The provider of a session, while it keeps one.
    #[must_use]
    pub fn session(&self, tenant: &str, session: &str, now: u64) -> Option<&str> {
        let (provider, until) = self.sessions.get(&(tenant.to_owned(), session.to_owned()))?;
        (*until > now).then_some(provider.as_str())
    }

    /// The rules of a tenant: its own, or those of everybody, or none.
    #[must_use]
    pub fn rules(&self, tenant: &str) -> Option<&TenantRules> {
        self.tenants.get(tenant).or_else(|| self.tenants.get("*"))
    }

    /// A policy of a tenant, or what everybody has, and its version.
    #[must_use]
    pub fn policy(&self, tenant: &str, id: &str) -> Option<(Arc<Policy>, u64)> {
        ["*", tenant].iter().rev().find_map(|owner| {
            let stored = self.policies.get(&((*owner).to_owned(), id.to_owned()))?;
            Some((Arc::clone(stored.parsed.as_ref()?), stored.version))
        })
    }

    #[must_use]
    pub fn has_foreign(&self, id: &str) -> bool {
        self.foreign.contains(id)
    }

    /// Tasks that have no result yet.
    pub fn open_tasks(&self) -> impl Iterator<Item = &Task> {
        self.tasks.values().filter(|task| task.is_open())
    }

    #[must_use]
    pub fn open_count(&self) -> usize {
        self.tasks.len() - self.finished.len()
    }

    /// Bytes of payloads that open tasks and dead letters hold.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        self.open_bytes + self.dead_bytes
    }

    /// A snapshot to begin from.
    ///
    /// # Errors
    /// A number in it is not finite: a bug of ours.
    pub fn to_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }

    /// The same text, bit by bit.
    ///
    /// # Errors
    /// The writer's, or as [`State::to_bytes`].
    pub fn write_to(&self, writer: impl std::io::Write) -> Result<(), serde_json::Error> {
        serde_json::to_writer(writer, self)
    }

    /// # Errors
    /// It was not written by [`State::to_bytes`], or by a newer version.
    pub fn from_bytes(raw: &[u8], bounds: Bounds) -> Result<Self, serde_json::Error> {
        let mut state: Self = serde_json::from_slice(raw)?;
        state.bounds = bounds;
        state.refused =
            state.dead.values().filter(|letter| letter.task.is_none()).map(|letter| letter.number).collect();
        for stored in state.policies.values_mut() {
            stored.parsed = Policy::parse(&stored.document).ok().map(Arc::new);
        }
        Ok(state)
    }
}

#[cfg(test)]
mod tests;
