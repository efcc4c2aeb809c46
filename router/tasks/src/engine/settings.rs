//! What an engine is told once. Plain data with its defaults and what they are for.

use std::sync::Arc;

use crate::intake::IntakeRules;

/// Subjects of the contract (section 1.1).
pub mod subjects {
    pub const DECIDE: &str = "beamline.router.v1.decide";
    pub const GET_DECISION: &str = "beamline.router.v1.get_decision";
    pub const ADMIN: &str = "beamline.router.v1.admin.";
    pub const CONTROL: &str = "beamline.router.control.v1.";
    pub const IDE: &str = "beamline.router.ide.v1.";
    pub const BACKPRESSURE: &str = "beamline.router.v2.status.backpressure";
    pub const ASSIGN: &str = "caf.exec.assign.v1";
    pub const RESULT: &str = "caf.exec.result.v1";
    pub const USAGE: &str = "beamline.usage.v1.metered";
    pub const HEARTBEATS: [&str; 2] = ["caf.status.heartbeat.v1", "caf.worker.heartbeat.v1"];
    /// How the subjects begin on which only nodes speak: the log of tasks, and what nodes say to each other.
    pub const INTERNAL: [&str; 2] = ["$BEAMLINE.", "$TASKS."];
    pub const WORKER_DEAD_LETTERS: [&str; 2] = ["caf.deadletter.v1", "caf.exec.dlq.v1"];
}

#[derive(Clone, Debug)]
pub struct Settings {
    pub intake: IntakeRules,
    /// Where assignments go unless a request says otherwise.
    pub assignment_subject: Arc<str>,
    /// How long the same request gets the same decision, unless its tenant's rules say otherwise. Default 1 h.
    pub idempotency_ttl_millis: u64,
    /// Tasks without a result at a time; more are refused, after shedding what expires first. Default 100,000.
    pub open_tasks_max: usize,
    /// Bytes of payloads kept at a time. Default 256 MiB.
    pub payload_bytes_max: usize,
    /// How often a task is given out without a word before it is a dead letter. Default 10.
    pub deliveries_max: u32,
    /// How often an execution may fail, unless the request says otherwise. Default 2.
    pub attempts_max: u32,
    /// The wait before the first retry of an execution; doubles, up to 5 s, ± 10 %. Default 200 ms.
    pub retry_millis: u64,
    /// How long after a result a worker that has never subscribed again is waited for to do so. Default 1.5 s:
    /// the shipped worker takes one.
    pub resubscribe_millis: u64,
    /// How long after a delivery a worker's load counts as saying that it takes more. Default 3 s.
    pub quiet_millis: u64,
    /// How long a worker whose subscriptions ended may still finish what it has. Default 3 s.
    pub gone_millis: u64,
    /// How long after its last heartbeat a worker that sends them is taken for dead. Default 20 s.
    pub heartbeat_millis: u64,
    /// Jobs at a time of one subscription in a queue group. Default 8.
    pub group_jobs_max: usize,
    /// How long after a start a worker is given to deliver results of what it had before. Default 3 s.
    pub restart_millis: u64,
    /// Conversations with extensions at a time. Default 10,000.
    pub conversations_max: usize,
    /// Refused requests of one tenant in a minute after which it is blocked; 0 never. Default 600.
    pub abuse_invalid_max: u32,
    /// As above, requests that the tenant may not make. Default 600.
    pub abuse_denied_max: u32,
    /// As above, requests above a rate limit. Default 6,000.
    pub abuse_burst_max: u32,
    /// How long such a block lasts. Default 5 min.
    pub abuse_block_millis: u64,
    /// What control commands must show; none asks for nothing. Default none.
    pub control_token: Option<ControlToken>,
    /// The tenant of control commands that name none. Default none.
    pub control_tenant: Option<String>,
    /// Whether usage is published. Default yes.
    pub usage: bool,
    pub overload: Overload,
}

/// A secret: it is compared, and never shown.
#[derive(Clone)]
pub struct ControlToken(pub Arc<str>);

impl std::fmt::Debug for ControlToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ControlToken(…)")
    }
}

impl ControlToken {
    /// Compares in a time that depends on the lengths only.
    #[must_use]
    pub fn is(&self, shown: &str) -> bool {
        let (secret, shown) = (self.0.as_bytes(), shown.as_bytes());
        let differences = secret
            .iter()
            .zip(shown)
            .fold(0_u8, |differences, (a, b)| std::hint::black_box(differences | (a ^ b)));
        secret.len() == shown.len() && differences == 0
    }
}

/// Thresholds of back-pressure (contract section 1.13).
#[derive(Clone, Copy, Debug)]
pub struct Overload {
    pub queued: usize,
    pub latency_millis: u64,
    pub in_flight: usize,
    pub retry_after_seconds: u64,
}

impl Default for Overload {
    fn default() -> Self {
        Self { queued: 1_000, latency_millis: 5_000, in_flight: 500, retry_after_seconds: 30 }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            intake: IntakeRules::default(),
            assignment_subject: subjects::ASSIGN.into(),
            idempotency_ttl_millis: 3_600_000,
            open_tasks_max: 100_000,
            payload_bytes_max: 256 << 20,
            deliveries_max: 10,
            attempts_max: 2,
            retry_millis: 200,
            resubscribe_millis: 1_500,
            quiet_millis: 3_000,
            gone_millis: 3_000,
            heartbeat_millis: 20_000,
            group_jobs_max: 8,
            restart_millis: 3_000,
            conversations_max: 10_000,
            abuse_invalid_max: 600,
            abuse_denied_max: 600,
            abuse_burst_max: 6_000,
            abuse_block_millis: 300_000,
            control_token: None,
            control_tenant: None,
            usage: true,
            overload: Overload::default(),
        }
    }
}
