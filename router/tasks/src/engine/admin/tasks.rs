//! Tasks: found, shown, ended, given out again.

use serde_json::{Map, Value, json};

use super::{Answer, Bad, bad, page, text};
use crate::engine::{Engine, Timer};
use crate::ids::AssignmentId;
use crate::mask;
use crate::results::Status;
use crate::state::event::Event;
use crate::state::task::{Phase, Task};

impl Engine {
    /// A task by its number, an assignment id of it, its request id, or its run id: of several the newest.
    pub(super) fn find_task(&self, body: &Map<String, Value>) -> Result<&Task, Bad> {
        let number = body.get("task").and_then(Value::as_u64);
        let id = ["task", "id"].iter().find_map(|key| body.get(*key)?.as_str());
        let number = number.or_else(|| id?.parse().ok());
        let number = number.or_else(|| Some(AssignmentId::decode(id?, self.state.id_key())?.number));
        let by_number = number.and_then(|number| self.state.tasks.get(&number));
        let by_request = || {
            let id = id?;
            self.state.tasks.values().rev().find(|task| task.spec.request_id.as_deref() == Some(id))
        };
        let by_run = || {
            let id = id?;
            self.state.tasks.values().rev().find(|task| task.spec.run_id.as_deref() == Some(id))
        };
        by_number
            .or_else(by_request)
            .or_else(by_run)
            .ok_or_else(|| bad("NOT_FOUND", "no task with this number, assignment id, request id or run id"))
    }

    pub(super) fn list_tasks(&self, body: &Map<String, Value>) -> Answer {
        let (offset, limit) = page(body);
        let tenant = text(body, "tenant_id").ok();
        let phase = text(body, "phase").ok();
        let run = text(body, "run_id").ok();
        let matches = |task: &&Task| {
            tenant.is_none_or(|tenant| tenant == task.spec.tenant)
                && run.is_none_or(|run| task.spec.run_id.as_deref() == Some(run))
                && phase.is_none_or(|phase| match phase {
                    "open" => task.is_open(),
                    phase => phase == task.phase.as_str(),
                })
        };
        let all: Vec<&Task> = self.state.tasks.values().rev().filter(matches).collect();
        let rows: Vec<Value> = all.iter().skip(offset).take(limit).map(|task| self.row(task)).collect();
        Ok(json!({"ok": true, "tasks": rows, "total": all.len()}))
    }

    pub(super) fn row(&self, task: &Task) -> Value {
        json!({
            "task": task.number,
            "assignment_id": AssignmentId { number: task.number, attempt: 0 }.encode(self.state.id_key()),
            "request_id": task.spec.request_id,
            "tenant_id": task.spec.tenant,
            "job_type": task.spec.job_type,
            "provider_id": task.provider,
            "phase": task.phase.as_str(),
            "deliveries": task.deliveries,
            "failures": task.failures,
            "created_at": task.created_at,
            "worker": task.worker,
        })
    }

    pub(super) fn get_task(&self, body: &Map<String, Value>) -> Answer {
        let task = self.find_task(body)?;
        let mut shown = self.row(task);
        let queued = task.first_dispatched_at.map(|at| at.saturating_sub(task.created_at));
        let story: Vec<Value> =
            task.story().map(|step| json!({"at": step.at, "what": &*step.what})).collect();
        let extra = json!({
            "subject": &*task.spec.subject,
            "decision": task.spec.decision.to_json(),
            "trace_id": task.spec.trace_id,
            "run_id": task.spec.run_id,
            "queued_ms": queued,
            "run_ms": task.latency_millis,
            "cost": task.cost,
            "tokens": task.tokens,
            "error_code": task.error_code,
            "expires_at": task.spec.expires_at,
            "attempts_max": task.spec.attempts_max,
            "current_assignment_id":
                AssignmentId { number: task.number, attempt: task.attempt }.encode(self.state.id_key()),
            "story": story,
        });
        if let (Value::Object(shown), Value::Object(extra)) = (&mut shown, extra) {
            shown.extend(extra);
        }
        mask::mask(&mut shown);
        Ok(json!({"ok": true, "task": shown}))
    }

    pub(super) fn cancel_task(&mut self, now: u64, body: &Map<String, Value>, by: String) -> Answer {
        let task = self.find_task(body)?;
        if !task.is_open() {
            return Err(bad("FAILED_PRECONDITION", "the task has its result already"));
        }
        let number = task.number;
        self.note(now, by, "task.cancel", number);
        self.end_by_router(now, number, Status::Cancelled, "CANCELLED", None);
        Ok(json!({"ok": true, "task": number}))
    }

    /// Gives an open task out again, to another worker if there is one.
    pub(super) fn retry_task(&mut self, now: u64, body: &Map<String, Value>, by: String) -> Answer {
        let task = self.find_task(body)?;
        let number = task.number;
        match &task.phase {
            Phase::Ended { .. } => {
                let text = "the task has its result already; a dead letter is replayed with replay_dlq";
                Err(bad("FAILED_PRECONDITION", text))
            }
            Phase::Assigned { worker, .. } => {
                let connection = worker.connection;
                self.note(now, by, "task.retry", number);
                self.pool.missed(number, connection);
                self.take_back(now, number, "asked to be given out again");
                Ok(json!({"ok": true, "task": number}))
            }
            Phase::Queued { due } => {
                let (due, attempt) = (*due, task.attempt);
                self.note(now, by, "task.retry", number);
                self.timers.remove(&(due, Timer::Due(number)));
                self.record(Event::Returned {
                    at: now,
                    task: number,
                    due: now,
                    attempt,
                    why: "asked to be given out now".into(),
                    provider: None,
                });
                self.due(now, number);
                Ok(json!({"ok": true, "task": number}))
            }
        }
    }

    fn note(&mut self, now: u64, by: String, action: &str, task: u64) {
        self.record(Event::Noted { at: now, by, action: action.to_owned(), object: task.to_string() });
    }
}
