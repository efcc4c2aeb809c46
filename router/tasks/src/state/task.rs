//! A task: one job that was asked for, from its decision to its one result.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::raw_json;
use crate::replies::Decision;
use crate::results::Status;

/// Lines of a task's story that are kept.
const STORY_MAX: usize = 32;
const MODEL_BYTES_MAX: usize = 128;

/// What was asked for; never changes.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct TaskSpec {
    pub tenant: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_id: Option<String>,
    #[serde(with = "super::shared_text")]
    pub subject: Arc<str>,
    pub job_type: String,
    /// JSON text exactly as it came.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "super::shared_text::option")]
    pub payload: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload_ref: Option<String>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub options: Map<String, Value>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub context: Map<String, Value>,
    pub decision: Decision,
    /// Higher first.
    pub priority: u8,
    /// How long a worker may take.
    pub ack_wait_millis: u64,
    /// How many executions may fail.
    pub attempts_max: u32,
    /// When it is of no use any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<u64>,
    /// The dead letter it was replayed from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay_of: Option<u64>,
}

impl TaskSpec {
    /// The model that the job asks for, where its context or its payload names one.
    #[must_use]
    pub fn model(&self) -> Option<String> {
        let named = self.context.get("model").and_then(Value::as_str).map(str::to_owned);
        let model = named.or_else(|| {
            let raw = raw_json::member(self.payload.as_deref()?, "model")?;
            serde_json::from_str::<String>(raw).ok()
        })?;
        (!model.is_empty() && model.len() <= MODEL_BYTES_MAX).then_some(model)
    }

    /// About how many bytes it holds.
    #[must_use]
    pub fn weight(&self) -> usize {
        512 + self.payload.as_deref().map_or(0, str::len)
    }
}

/// Who has an assignment.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct WorkerRef {
    pub connection: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "p", rename_all = "snake_case")]
pub enum Phase {
    /// Waits for a worker, from `due` on.
    Queued { due: u64 },
    /// A worker has it.
    Assigned { at: u64, worker: WorkerRef },
    /// It has its one result.
    Ended { at: u64, status: Status },
}

impl Phase {
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Queued { .. } => "queued",
            Self::Assigned { .. } => "assigned",
            Self::Ended { status, .. } => status.as_str(),
        }
    }
}

/// One line of the story.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Step {
    pub at: u64,
    #[serde(with = "super::shared_text")]
    pub what: Arc<str>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Task {
    pub number: u64,
    pub spec: TaskSpec,
    pub provider: String,
    pub phase: Phase,
    pub created_at: u64,
    /// Which id a worker is given; a new one whenever it must not be taken for the old.
    pub attempt: u16,
    /// How often it was given out.
    pub deliveries: u32,
    /// Executions that failed, and of these those of the present provider.
    pub failures: u32,
    pub provider_failures: u32,
    pub first_dispatched_at: Option<u64>,
    pub latency_millis: u64,
    pub cost: f64,
    #[serde(default)]
    pub tokens: u64,
    pub error_code: Option<String>,
    pub worker: Option<String>,
    story: VecDeque<Step>,
}

impl Task {
    #[must_use]
    pub fn new(number: u64, at: u64, spec: TaskSpec) -> Self {
        let mut task = Self {
            number,
            provider: spec.decision.provider.clone(),
            spec,
            phase: Phase::Queued { due: at },
            created_at: at,
            attempt: 0,
            deliveries: 0,
            failures: 0,
            provider_failures: 0,
            first_dispatched_at: None,
            latency_millis: 0,
            cost: 0.0,
            tokens: 0,
            error_code: None,
            worker: None,
            story: VecDeque::new(),
        };
        let what = format!("decided: {} ({})", task.provider, task.spec.decision.reason);
        task.tell(at, what);
        task
    }

    pub(super) fn tell(&mut self, at: u64, what: impl Into<Arc<str>>) {
        if self.story.len() >= STORY_MAX {
            // The beginning and the newest lines say the most.
            self.story.remove(STORY_MAX / 2);
        }
        self.story.push_back(Step { at, what: what.into() });
    }

    pub fn story(&self) -> impl Iterator<Item = &Step> {
        self.story.iter()
    }

    #[must_use]
    pub fn is_open(&self) -> bool {
        !matches!(self.phase, Phase::Ended { .. })
    }
}
