//! What is written: decisions of the engine, never requests to decide. State is the fold of these.
//!
//! JSON, one event a line, several in one message: a field may be added with a default, a variant may be
//! added; nothing is ever renamed.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::task::{TaskSpec, WorkerRef};
use super::tenant::TenantRules;
use crate::replies::Decision;
use crate::results::Status;

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "e", rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "one is alive at a time: made, written, forgotten")]
pub enum Event {
    /// The first of a store: the key of its assignment ids.
    Begun {
        k0: u64,
        k1: u64,
    },
    Decided(Box<Decided>),
    /// Written before the worker sees it.
    Dispatched {
        at: u64,
        task: u64,
        attempt: u16,
        worker: WorkerRef,
    },
    /// Nothing was heard, or the worker went, or it said no: to be given out again at `due`.
    Returned {
        at: u64,
        task: u64,
        due: u64,
        attempt: u16,
        #[serde(with = "super::shared_text")]
        why: Arc<str>,
        #[serde(default)]
        provider: Option<String>,
    },
    /// An attempt ended badly and the task goes on.
    Failed {
        at: u64,
        task: u64,
        due: u64,
        attempt: u16,
        status: Status,
        #[serde(default)]
        error_code: Option<String>,
        #[serde(default)]
        provider: Option<String>,
        latency_millis: u64,
    },
    /// The one result of a task.
    Ended(Box<Ended>),
    /// A result of an assignment that is not ours.
    Foreign {
        at: u64,
        id: String,
        usage: Usage,
    },
    /// Usage up to this number is in its stream.
    UsageStored {
        up_to: u64,
    },
    /// Something that was refused at the door.
    Buried(Box<DeadLetter>),
    /// A dead letter was sent again.
    Replayed {
        at: u64,
        letter: u64,
        #[serde(default)]
        task: Option<TaskSpec>,
        #[serde(default)]
        by: String,
    },
    Purged {
        at: u64,
        letters: Vec<u64>,
        #[serde(default)]
        by: String,
    },
    /// An administrator did something that other events say the rest of.
    Noted {
        at: u64,
        by: String,
        action: String,
        object: String,
    },
    PolicyPut {
        at: u64,
        tenant: String,
        id: String,
        document: Value,
        by: String,
    },
    PolicyDeleted {
        at: u64,
        tenant: String,
        id: String,
        by: String,
    },
    TenantPut {
        at: u64,
        tenant: String,
        rules: Box<TenantRules>,
        by: String,
    },
    TenantDeleted {
        at: u64,
        tenant: String,
        by: String,
    },
    ExtensionPut {
        at: u64,
        id: String,
        record: ExtensionRecord,
        by: String,
    },
    ExtensionDeleted {
        at: u64,
        id: String,
        by: String,
    },
    Blocked {
        at: u64,
        tenant: String,
        until: u64,
        why: String,
    },
    Unblocked {
        at: u64,
        tenant: String,
        by: String,
    },
}

/// A decision, and with it the task if one was asked for.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Decided {
    pub at: u64,
    pub tenant: String,
    /// What the same request is known by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// Of a request without a task: a task has its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// Hexadecimal.
    pub fingerprint: String,
    pub expires: u64,
    pub decision: Decision,
    /// Session, and until when it keeps this provider.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sticky: Option<(String, u64)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskSpec>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Ended {
    pub at: u64,
    pub task: u64,
    pub attempt: u16,
    pub status: Status,
    #[serde(default)]
    pub worker: Option<String>,
    #[serde(default)]
    pub job_type: Option<String>,
    pub latency_millis: u64,
    pub cost: f64,
    #[serde(default)]
    pub tokens: u64,
    #[serde(default)]
    pub error_code: Option<String>,
    /// Why there is a dead letter of it, if there is.
    #[serde(default)]
    pub buried: Option<String>,
}

/// `beamline.usage.v1.metered`, numbered in the order of the log.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Usage {
    pub tenant: String,
    pub provider: String,
    pub event_type: String,
    pub latency_millis: u64,
    pub cost: f64,
    #[serde(default)]
    pub tokens: u64,
    pub status: Status,
    #[serde(default)]
    pub trace_id: Option<String>,
    pub at: u64,
    pub assignment_id: String,
    #[serde(default)]
    pub request_id: Option<String>,
    #[serde(default)]
    pub run_id: Option<String>,
}

/// Something that could not be done, kept until somebody decides about it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct DeadLetter {
    pub at: u64,
    pub subject: String,
    /// `MAXDELIVER_EXHAUSTED`, `PROCESSING_ERROR`, `VALIDATION_FAILED`, `EXPIRED`, `SHED`.
    pub reason: String,
    pub code: String,
    /// Of the payload, SHA-256 in hexadecimal.
    #[serde(default)]
    pub payload_hash: Option<String>,
    #[serde(default)]
    pub tenant: Option<String>,
    #[serde(default)]
    pub trace_id: Option<String>,
    #[serde(default)]
    pub request_id: Option<String>,
    /// Masked text.
    #[serde(default)]
    pub message: String,
    /// What can be sent again; a refused message has none.
    #[serde(default)]
    pub task: Option<TaskSpec>,
    #[serde(default)]
    pub number: u64,
    #[serde(default)]
    pub replayed_at: Option<u64>,
}

impl DeadLetter {
    /// About how many bytes it holds.
    #[must_use]
    pub fn weight(&self) -> usize {
        256 + self.message.len() + self.task.as_ref().map_or(0, TaskSpec::weight)
    }
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ExtensionRecord {
    #[serde(rename = "type")]
    pub kind: ExtensionKind,
    pub subject: String,
    #[serde(default, rename = "timeout_ms")]
    pub timeout_millis: Option<u64>,
    #[serde(default)]
    pub retry: Option<u32>,
    #[serde(default = "yes")]
    pub enabled: bool,
    #[serde(default)]
    pub config: Map<String, Value>,
    #[serde(default)]
    pub metadata: Map<String, Value>,
}

fn yes() -> bool {
    true
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ExtensionKind {
    Pre,
    Validator,
    Post,
    Provider,
}

/// Why bytes of the log are no events.
#[derive(Debug, thiserror::Error)]
#[error("line {line} of an event message")]
pub struct UnreadableEvents {
    pub line: usize,
    #[source]
    pub source: serde_json::Error,
}

impl Event {
    /// Whether a task gets the next number by it.
    #[must_use]
    pub fn begins_task(&self) -> bool {
        match self {
            Self::Decided(decided) => decided.task.is_some(),
            Self::Replayed { task, .. } => task.is_some(),
            Self::Begun { .. }
            | Self::Dispatched { .. }
            | Self::Returned { .. }
            | Self::Failed { .. }
            | Self::Ended(_)
            | Self::Foreign { .. }
            | Self::UsageStored { .. }
            | Self::Buried(_)
            | Self::Purged { .. }
            | Self::Noted { .. }
            | Self::PolicyPut { .. }
            | Self::PolicyDeleted { .. }
            | Self::TenantPut { .. }
            | Self::TenantDeleted { .. }
            | Self::Blocked { .. }
            | Self::Unblocked { .. }
            | Self::ExtensionPut { .. }
            | Self::ExtensionDeleted { .. } => false,
        }
    }
}

/// Events as one message.
///
/// # Errors
/// A number in an event is not finite: a bug of ours.
pub fn encode(events: &[Event]) -> Result<Vec<u8>, serde_json::Error> {
    let mut out = Vec::with_capacity(events.len() * 256);
    for event in events {
        serde_json::to_writer(&mut out, event)?;
        out.push(b'\n');
    }
    Ok(out)
}

/// A message as events.
///
/// # Errors
/// It was not written by [`encode`], or by a newer version.
pub fn decode(raw: &[u8]) -> Result<Vec<Event>, UnreadableEvents> {
    raw.split(|byte| *byte == b'\n')
        .enumerate()
        .filter(|(_, line)| !line.is_empty())
        .map(|(line, text)| {
            serde_json::from_slice(text).map_err(|source| UnreadableEvents { line: line + 1, source })
        })
        .collect()
}
