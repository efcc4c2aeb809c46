//! Dead letters: shown, sent again, removed.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::{Answer, Bad, PAGE_MAX, bad, missing, page, text};
use crate::engine::Engine;
use crate::mask;
use crate::state::event::{DeadLetter, Event};
use crate::state::task::TaskSpec;

impl Engine {
    pub(super) fn list_dlq(&self, body: &Map<String, Value>) -> Value {
        let (offset, limit) = page(body);
        let tenant = text(body, "tenant_id").ok();
        let reason = text(body, "reason").ok();
        let matches = |letter: &&DeadLetter| {
            tenant.is_none_or(|tenant| letter.tenant.as_deref() == Some(tenant))
                && reason.is_none_or(|reason| letter.reason == reason)
        };
        let all: Vec<&DeadLetter> = self.state.dead.values().rev().filter(matches).collect();
        let rows: Vec<Value> = all.iter().skip(offset).take(limit).map(|letter| letter_row(letter)).collect();
        json!({"ok": true, "dead_letters": rows, "total": all.len()})
    }

    pub(super) fn letter(&self, body: &Map<String, Value>) -> Result<&DeadLetter, Bad> {
        let number = body.get("dead_letter").or_else(|| body.get("id"));
        let number = number.and_then(|id| id.as_u64().or_else(|| id.as_str()?.parse().ok()));
        let number = number.ok_or_else(|| missing("dead_letter"))?;
        self.state.dead.get(&number).ok_or_else(|| bad("NOT_FOUND", "there is no such dead letter"))
    }

    pub(super) fn get_dlq(&self, body: &Map<String, Value>) -> Answer {
        let letter = self.letter(body)?;
        let mut shown = letter_row(letter);
        shown["message"] = letter.message.as_str().into();
        shown["payload_hash"] = json!(letter.payload_hash);
        if let Some(spec) = &letter.task {
            let mut payload: Value =
                spec.payload.as_deref().and_then(|raw| serde_json::from_str(raw).ok()).unwrap_or_default();
            mask::mask(&mut payload);
            shown["job"] =
                json!({"type": spec.job_type, "payload": payload, "payload_ref": spec.payload_ref});
        }
        Ok(json!({"ok": true, "dead_letter": shown}))
    }

    /// Begins the task of a dead letter anew, as a new task.
    pub(super) fn replay_dlq(&mut self, now: u64, body: &Map<String, Value>, by: &str) -> Answer {
        let numbers: Vec<u64> = if body.get("all") == Some(&Value::Bool(true)) {
            let reason = text(body, "reason").ok();
            self.state
                .dead
                .values()
                .filter(|letter| letter.task.is_some() && letter.replayed_at.is_none())
                .filter(|letter| reason.is_none_or(|reason| letter.reason == reason))
                .map(|letter| letter.number)
                .take(PAGE_MAX)
                .collect()
        } else {
            vec![self.letter(body)?.number]
        };
        let mut tasks = Vec::new();
        for number in numbers {
            let Some(letter) = self.state.dead.get(&number) else { continue };
            let Some(spec) = &letter.task else {
                return Err(bad(
                    "FAILED_PRECONDITION",
                    "only its hash was kept: there is nothing to send again",
                ));
            };
            if letter.replayed_at.is_some() && body.get("again") != Some(&Value::Bool(true)) {
                return Err(bad(
                    "FAILED_PRECONDITION",
                    "it was replayed already; `again` replays it once more",
                ));
            }
            let spec = TaskSpec { replay_of: Some(number), expires_at: None, ..spec.clone() };
            let subject = Arc::clone(&spec.subject);
            let task = self.state.next_task;
            self.record(Event::Replayed { at: now, letter: number, task: Some(spec), by: by.to_owned() });
            self.watch(&subject);
            self.due(now, task);
            tasks.push(task);
        }
        Ok(json!({"ok": true, "tasks": tasks}))
    }

    pub(super) fn purge_dlq(&mut self, now: u64, body: &Map<String, Value>, by: String) -> Answer {
        let letters: Vec<u64> = if body.get("all") == Some(&Value::Bool(true)) {
            let reason = text(body, "reason").ok();
            let wanted = |letter: &&DeadLetter| reason.is_none_or(|reason| letter.reason == reason);
            self.state.dead.values().filter(wanted).map(|letter| letter.number).collect()
        } else {
            vec![self.letter(body)?.number]
        };
        let count = letters.len();
        if count > 0 {
            self.record(Event::Purged { at: now, letters, by });
        }
        Ok(json!({"ok": true, "purged": count}))
    }
}

fn letter_row(letter: &DeadLetter) -> Value {
    json!({
        "dead_letter": letter.number,
        "at": letter.at,
        "subject": letter.subject,
        "reason": letter.reason,
        "code": letter.code,
        "tenant_id": letter.tenant,
        "request_id": letter.request_id,
        "trace_id": letter.trace_id,
        "can_be_replayed": letter.task.is_some(),
        "replayed_at": letter.replayed_at,
    })
}
