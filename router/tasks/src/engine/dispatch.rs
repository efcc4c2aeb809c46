//! Giving tasks to workers, and taking them back.

use std::sync::Arc;

use beamlog_router::headers::Builder;
use serde_json::{Map, Value, json};

use super::pool::Change;
use super::settings::subjects;
use super::{Effect, Engine, Timer};
use crate::ids::{AssignmentId, IdKey};
use crate::results::Status;
use crate::state::event::{Ended, Event};
use crate::state::task::{Phase, Task, WorkerRef};
use crate::trace;

/// Those who had a task and should not be the next to get it.
const HAD_MAX: usize = 16;
/// A subscriber that does not take offers is not asked again at once.
const REFUSED_MILLIS: u64 = 100;
/// Nor is a stream that is full.
const STREAM_MILLIS: u64 = 1_000;
/// The worker of a task that a stream keeps.
const A_STREAM: &str = "a stream";

impl Engine {
    /// A queued task may go out now.
    pub(super) fn due(&mut self, now: u64, number: u64) {
        let Some(task) = self.state.tasks.get(&number) else { return };
        let Phase::Queued { due } = task.phase else { return };
        if self.keeping.contains(&number) {
            return;
        }
        if due > now {
            self.timers.insert((due, Timer::Due(number)));
            return;
        }
        let subject = Arc::clone(&task.spec.subject);
        let key = (u8::MAX - task.spec.priority, number);
        self.ready.entry(Arc::clone(&subject)).or_default().insert(key);
        self.dispatch(now, &subject);
    }

    pub(super) fn dispatch_all(&mut self, now: u64) {
        let subjects: Vec<Arc<str>> = self.ready.keys().cloned().collect();
        for subject in subjects {
            self.dispatch(now, &subject);
        }
    }

    /// Gives ready tasks of a subject to whoever is free.
    pub(super) fn dispatch(&mut self, now: u64, subject: &Arc<str>) {
        if self.unstored.is_some() {
            return;
        }
        loop {
            let Some(first) = self.ready.get(subject).and_then(|ready| ready.first().copied()) else {
                return;
            };
            let number = first.1;
            let is_queued =
                self.state.tasks.get(&number).is_some_and(|task| matches!(task.phase, Phase::Queued { .. }));
            if !is_queued {
                self.unready(subject, first);
                continue;
            }
            if self.pool.is_for_stream(subject) {
                self.unready(subject, first);
                self.give_to_stream(number);
                continue;
            }
            let avoid = self.had.get(&number).cloned().unwrap_or_default();
            match self.pool.give(subject, number, &avoid, now, &self.settings) {
                Ok((entry, connection)) => {
                    self.unready(subject, first);
                    self.hand_over(now, number, entry, connection);
                }
                Err(wake) => {
                    if let Some(at) = wake {
                        self.timers.insert((at, Timer::Wake));
                    }
                    return;
                }
            }
        }
    }

    fn unready(&mut self, subject: &Arc<str>, key: (u8, u64)) {
        if let Some(ready) = self.ready.get_mut(subject) {
            ready.remove(&key);
        }
    }

    fn hand_over(&mut self, now: u64, number: u64, entry: u64, connection: u64) {
        let Some(task) = self.state.tasks.get(&number) else { return };
        let attempt = task.attempt;
        let worker = WorkerRef { connection, id: self.pool.worker_id(connection) };
        self.record(Event::Dispatched { at: now, task: number, attempt, worker });
        let had = self.had.entry(number).or_default();
        if had.len() >= HAD_MAX {
            had.remove(0);
        }
        had.push(connection);
        let Some(task) = self.state.tasks.get(&number) else { return };
        let key = self.state.id_key();
        let (headers, payload) = assignment(task, key, &AssignmentId { number, attempt }.encode(key));
        let subject = Arc::clone(&task.spec.subject);
        self.timers.insert((now + task.spec.ack_wait_millis, Timer::AckWait(number, task.deliveries)));
        self.effects.push(Effect::Offer { subject, entry, task: number, headers, payload });
    }

    /// A stream keeps it for workers that pull: delivering it again is its consumer's business. It counts as given
    /// out once it is stored there; after a crash before that it is put there again under the same id.
    fn give_to_stream(&mut self, number: u64) {
        let Some(task) = self.state.tasks.get(&number) else { return };
        self.keeping.insert(number);
        let key = self.state.id_key();
        let id = AssignmentId { number, attempt: task.attempt }.encode(key);
        let (headers, payload) = assignment(task, key, &id);
        let headers = Builder::append_to(&headers).header("Nats-Msg-Id", &id).finish();
        let subject = Arc::clone(&task.spec.subject);
        self.effects.push(Effect::Keep { subject, task: number, headers, payload });
    }

    /// The stream stored it, or refused it.
    pub(super) fn kept(&mut self, now: u64, number: u64, stored: bool) {
        if !self.keeping.remove(&number) {
            return;
        }
        let Some(task) = self.state.tasks.get(&number) else { return };
        if !matches!(task.phase, Phase::Queued { .. }) {
            return;
        }
        if stored {
            let attempt = task.attempt;
            let worker = WorkerRef { connection: 0, id: Some(A_STREAM.to_owned()) };
            self.record(Event::Dispatched { at: now, task: number, attempt, worker });
        } else {
            self.timers.insert((now + STREAM_MILLIS, Timer::Due(number)));
        }
    }

    /// The subscription had ended, or its connection, or its buffer is full.
    pub(super) fn not_taken(&mut self, now: u64, number: u64) {
        self.counters.not_taken += 1;
        if let Some(connection) = self.holder(number) {
            self.pool.missed(number, connection);
        }
        self.give_back(now, number, now + REFUSED_MILLIS, false, "not taken");
    }

    pub(super) fn holder(&self, number: u64) -> Option<u64> {
        match &self.state.tasks.get(&number)?.phase {
            Phase::Assigned { worker, .. } => Some(worker.connection),
            Phase::Queued { .. } | Phase::Ended { .. } => None,
        }
    }

    /// Nothing was heard of a delivery in its time.
    pub(super) fn ack_wait_over(&mut self, now: u64, number: u64, delivery: u32) {
        let Some(task) = self.state.tasks.get(&number) else { return };
        if task.deliveries != delivery || !matches!(task.phase, Phase::Assigned { .. }) {
            return;
        }
        let Some(connection) = self.holder(number) else { return };
        if connection == 0
            && matches!(&task.phase, Phase::Assigned { worker, .. } if worker.id.as_deref() == Some(A_STREAM))
        {
            return;
        }
        self.counters.ack_waits_over += 1;
        self.pool.missed(number, connection);
        self.take_back(now, number, "no word in time");
    }

    /// Gives a task to somebody else, or gives up.
    pub(super) fn take_back(&mut self, now: u64, number: u64, why: &str) {
        let Some(task) = self.state.tasks.get(&number) else { return };
        if task.deliveries >= self.settings.deliveries_max || task.attempt >= AssignmentId::ATTEMPT_MAX {
            self.end_by_router(
                now,
                number,
                Status::Timeout,
                "MAXDELIVER_EXHAUSTED",
                Some("MAXDELIVER_EXHAUSTED"),
            );
            return;
        }
        self.give_back(now, number, now, true, why);
    }

    fn give_back(&mut self, now: u64, number: u64, due: u64, new_id: bool, why: &str) {
        let Some(task) = self.state.tasks.get(&number) else { return };
        if !matches!(task.phase, Phase::Assigned { .. }) {
            return;
        }
        // A worker that had the id would skip it in silence.
        let attempt = if new_id { task.attempt + 1 } else { task.attempt };
        self.record(Event::Returned { at: now, task: number, due, attempt, why: why.into(), provider: None });
        self.due(now, number);
    }

    /// Workers came, went, or said something.
    pub(super) fn changed(&mut self, now: u64, change: Change) {
        if let Some((connection, at)) = change.look_at {
            self.timers.insert((at, Timer::Look(connection)));
        }
        for task in change.lost {
            self.counters.workers_lost += 1;
            if self.unstored.is_some() {
                // Its ack wait is over when the log takes events again.
                continue;
            }
            self.take_back(now, task, "its worker went");
        }
    }

    pub(super) fn expired(&mut self, now: u64, number: u64) {
        self.end_by_router(now, number, Status::Timeout, "EXPIRED", Some("EXPIRED"));
    }

    /// Makes room: the task that expires first goes, with a dead letter. `false` when none expires.
    pub(super) fn shed(&mut self, now: u64) -> bool {
        let is_open = |task: &u64| self.state.tasks.get(task).is_some_and(Task::is_open);
        let first = self.timers.iter().find_map(|(_, timer)| {
            if let Timer::Expiry(task) = timer { Some(*task).filter(is_open) } else { None }
        });
        let Some(number) = first else { return false };
        self.counters.shed += 1;
        self.end_by_router(now, number, Status::Cancelled, "SHED", Some("SHED"));
        true
    }

    /// Ends a task without a worker's result, and says so where results are said.
    pub(super) fn end_by_router(
        &mut self,
        now: u64,
        number: u64,
        status: Status,
        code: &str,
        buried: Option<&str>,
    ) {
        let Some(task) = self.state.tasks.get(&number).filter(|task| task.is_open()) else { return };
        let id = AssignmentId { number, attempt: task.attempt }.encode(self.state.id_key());
        let result = json!({
            "version": "1",
            "assignment_id": id,
            "request_id": task.spec.request_id,
            "status": status.as_str(),
            "provider_id": task.provider,
            "job": {"type": task.spec.job_type},
            "job_type": task.spec.job_type,
            "latency_ms": 0,
            "cost": 0.0,
            "trace_id": task.spec.trace_id,
            "tenant_id": task.spec.tenant,
            "error_code": code,
        });
        if let Some(connection) = self.holder(number) {
            self.pool.settled(number, connection, now);
        }
        let letters = self.state.next_letter;
        self.record(Event::Ended(Box::new(Ended {
            at: now,
            task: number,
            attempt: self.state.tasks.get(&number).map_or(0, |task| task.attempt),
            status,
            error_code: Some(code.to_owned()),
            buried: buried.map(str::to_owned),
            ..Ended::default()
        })));
        self.had.remove(&number);
        let headers = Builder::new().header("x-beamlog-origin", "router").finish();
        self.publish(subjects::RESULT, headers, result.to_string().into_bytes());
        self.tell_of_letter(letters);
    }

    /// Publishes the dead letter that was just kept, if one was.
    pub(super) fn tell_of_letter(&mut self, number: u64) {
        let Some(letter) = self.state.dead.get(&number) else { return };
        let record = json!({
            "original_subject": letter.subject,
            "msg_id": letter.request_id,
            "reason": letter.reason.to_lowercase(),
            "error_code": letter.reason,
            "detail": letter.code,
            "timestamp": letter.at,
            "trace_id": letter.trace_id,
            "tenant_id": letter.tenant,
            "dead_letter": number,
        });
        let headers = Builder::new()
            .header("x-dlq-reason", letter.reason.to_lowercase())
            .header("x-original-msg-id", letter.request_id.as_deref().unwrap_or_default())
            .finish();
        let subject = format!("{}.dlq", letter.subject);
        self.publish(subject, headers, record.to_string().into_bytes());
    }
}

/// The superset that all workers accept (contract section 1.5), and the headers of it.
fn assignment(task: &Task, key: IdKey, id: &str) -> (Vec<u8>, Vec<u8>) {
    let spec = &task.spec;
    let mut options = Map::new();
    options.insert("priority".into(), task.spec.priority.into());
    options.insert("deadline_ms".into(), spec.ack_wait_millis.into());
    options.insert("retry".into(), json!({"max_attempts": spec.attempts_max, "backoff_ms": 200}));
    options.extend(spec.options.clone());
    let mut decision = spec.decision.to_json();
    decision["provider_id"] = task.provider.as_str().into();
    let request_id = spec.request_id.as_deref().unwrap_or(id);
    let mut body = json!({
        "version": "1",
        "assignment_id": id,
        "request_id": request_id,
        "tenant_id": spec.tenant,
        "executor": {"provider_id": task.provider, "channel": "nats"},
        "options": options,
        "correlation": {"trace_id": spec.trace_id},
        "decision": decision,
        "metadata": {"attempt": task.deliveries, "task": task.number},
    });
    for (key, value) in [
        ("trace_id", &spec.trace_id),
        ("run_id", &spec.run_id),
        ("flow_id", &spec.flow_id),
        ("step_id", &spec.step_id),
    ] {
        if let Some(value) = value {
            body[key] = value.as_str().into();
        }
    }
    // The payload is written as it came. It is always there: one worker refuses a job without it.
    let mut job = format!(
        "{{\"type\":{},\"payload\":{}",
        Value::from(spec.job_type.as_str()),
        spec.payload.as_deref().unwrap_or("null")
    );
    if let Some(reference) = &spec.payload_ref {
        job.push_str(&format!(",\"payload_ref\":{}", Value::from(reference.as_str())));
    }
    let mut text = body.to_string();
    // An object with members ends in a brace.
    text.pop();
    text.push_str(&format!(",\"job\":{job}}}}}"));
    let mut headers = Builder::new().header("tenant_id", &spec.tenant).header("version", "1");
    if let Some(trace) = &spec.trace_id {
        headers = headers.header("trace_id", trace);
    }
    headers = headers.header("traceparent", trace::traceparent(key, task));
    (headers.finish(), text.into_bytes())
}
