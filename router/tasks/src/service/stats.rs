//! Figures of tasks, as an exporter reads them.

use crate::engine::degraded::Degraded;
use crate::engine::{Counters, Engine};
use crate::state::Totals;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct TasksStats {
    pub counters: Counters,
    pub totals: Totals,
    pub queued: u64,
    pub assigned: u64,
    pub dead_letters: u64,
    pub decisions: u64,
    pub policies: u64,
    pub workers: u64,
    pub usage_waiting: u64,
    pub payload_bytes: u64,
    pub breakers_open: u64,
    /// Requests that found no room.
    pub refused_full: u64,
    /// What workers said and waits for the log; and what found no room there.
    pub held: u64,
    pub held_dropped: u64,
    pub extensions_open: u64,
    /// What does not work as it should.
    pub degraded: Vec<Degraded>,
    /// Why nothing is decided now, if so.
    pub failed: Option<String>,
}

impl TasksStats {
    pub(super) fn of(engine: &Engine, failed: Option<String>) -> Self {
        let state = engine.state();
        let phases = engine.phases();
        let count = |name: &str| phases.get(name).copied().unwrap_or(0);
        Self {
            counters: *engine.counters(),
            totals: state.totals,
            queued: count("queued"),
            assigned: count("assigned"),
            dead_letters: state.dead.len() as u64,
            decisions: state.decisions.len() as u64,
            policies: state.policies.len() as u64,
            workers: engine.workers().len() as u64,
            usage_waiting: state.usage.len() as u64,
            payload_bytes: state.payload_bytes() as u64,
            breakers_open: state.breakers.values().filter(|breaker| breaker.is_open()).count() as u64,
            refused_full: 0,
            held: 0,
            held_dropped: 0,
            extensions_open: engine.extensions_open() as u64,
            degraded: Vec::new(),
            failed,
        }
    }
}
