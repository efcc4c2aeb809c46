//! What workers say, and what follows from it.

use std::collections::BTreeMap;

use serde_json::json;

use super::{Engine, Message};
use crate::codes::{Code, IntakeCode, Refusal};
use crate::ids::AssignmentId;
use crate::intake::ReplyContext;
use crate::policy::document::{Backoff, Strategy};
use crate::policy::select::{AfterFailure, after_failure};
use crate::results::{self, ExecResult, Status};
use crate::state::event::{Ended, Event, Usage};
use crate::state::task::{Phase, Task};

/// Tenants whose refused requests are counted.
const SUSPECTS_MAX: usize = 10_000;

/// What abuse is made of.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Suspicion {
    /// Requests that are none.
    Invalid,
    /// Requests that the tenant may not make.
    Denied,
    /// Requests far above a rate limit.
    Burst,
}

impl Suspicion {
    fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "repeated_invalid",
            Self::Denied => "auth_failures",
            Self::Burst => "burst",
        }
    }
}

/// What a result is of.
enum Target {
    /// An open task, and which attempt of it.
    Open(AssignmentId),
    /// It was counted before.
    Over,
    /// Not assigned here.
    Foreign,
}

impl Engine {
    pub(super) fn result(&mut self, now: u64, message: &Message<'_>) {
        // What the router said itself.
        if message.origin == 0
            && beamlog_router::headers::find(message.headers, b"x-beamlog-origin").is_some()
        {
            return;
        }
        self.counters.results += 1;
        let result = match results::exec_result(message.headers, message.payload) {
            Ok(result) => result,
            Err(refusal) => {
                self.counters.results_invalid += 1;
                self.refuse_result(now, message, &ReplyContext::default(), &refusal);
                return;
            }
        };
        let context = ReplyContext {
            request_id: result.request_id.clone(),
            trace_id: result.trace_id.clone(),
            tenant: result.tenant.clone(),
            ..ReplyContext::default()
        };
        let target = self.target(&result);
        // The tenant first: a result that is refused was not seen, and may come again.
        if let Err(refusal) = self.check_result_tenant(&result, &target) {
            self.counters.results_tenant_rejected += 1;
            self.refuse_result(now, message, &context, &refusal);
            return;
        }
        match target {
            Target::Open(id) => self.ended(now, id, &result),
            Target::Over => {
                self.counters.results_duplicate += 1;
            }
            Target::Foreign => self.foreign(now, &result),
        }
        self.reply(message, br#"{"ok":true}"#.to_vec());
    }

    fn refuse_result(&mut self, now: u64, message: &Message<'_>, context: &ReplyContext, refusal: &Refusal) {
        let code = refusal.intake.unwrap_or(IntakeCode::InternalValidationError);
        self.bury(
            now,
            message,
            "VALIDATION_FAILED",
            code.as_str(),
            code.severity(),
            context,
            &refusal.message,
        );
        self.reply(message, crate::replies::refused(context, refusal));
    }

    fn target(&self, result: &ExecResult) -> Target {
        let ours =
            result.assignment_id.as_deref().and_then(|id| AssignmentId::decode(id, self.state.id_key()));
        if let Some(id) = ours {
            let is_open = self.state.tasks.get(&id.number).is_some_and(Task::is_open);
            return if is_open { Target::Open(id) } else { Target::Over };
        }
        let by_request = match (&result.assignment_id, &result.tenant, &result.request_id) {
            (None, Some(tenant), Some(request)) => {
                self.state.by_request.get(&(tenant.clone(), request.clone())).copied()
            }
            _ => None,
        };
        if let Some(number) = by_request
            && let Some(task) = self.state.tasks.get(&number)
        {
            let id = AssignmentId { number, attempt: task.attempt };
            return if task.is_open() { Target::Open(id) } else { Target::Over };
        }
        match self.foreign_id(result) {
            Some(id) if self.state.has_foreign(&id) => Target::Over,
            Some(_) | None => Target::Foreign,
        }
    }

    fn foreign_id(&self, result: &ExecResult) -> Option<String> {
        let tenant = result.tenant.as_deref()?;
        let id = result.assignment_id.as_deref().or(result.request_id.as_deref())?;
        Some(format!("{tenant}\0{id}"))
    }

    fn check_result_tenant(&self, result: &ExecResult, target: &Target) -> Result<(), Refusal> {
        let forbidden = |text: &str| Err(Refusal::intake(IntakeCode::TenantForbidden, text));
        let owner = match target {
            Target::Open(id) => self.state.tasks.get(&id.number).map(|task| task.spec.tenant.as_str()),
            Target::Over | Target::Foreign => None,
        };
        match (&result.tenant, owner) {
            (Some(tenant), Some(owner)) if tenant != owner => {
                forbidden("tenant_not_allowed: the assignment is another tenant's")
            }
            (None, None) if matches!(target, Target::Foreign) => {
                forbidden("tenant_missing: tenant_id is required")
            }
            (Some(tenant), _) if self.state.rules(tenant).is_some_and(|rules| rules.denied) => {
                forbidden("tenant_not_allowed: the tenant is denied")
            }
            (Some(_) | None, _) => Ok(()),
        }
    }

    fn ended(&mut self, now: u64, id: AssignmentId, result: &ExecResult) {
        let Some(task) = self.state.tasks.get(&id.number) else { return };
        let is_stale = id.attempt < task.attempt;
        let failed = matches!(result.status, Status::Error | Status::Timeout);
        if is_stale && failed {
            // Somebody else is at it now, and may do better.
            self.counters.results_duplicate += 1;
            return;
        }
        let subject = task.spec.subject.clone();
        if let Phase::Assigned { worker, .. } = &task.phase {
            let connection = worker.connection;
            self.pool.settled(id.number, connection, now);
        }
        if failed
            && task.failures + 1 < task.spec.attempts_max
            && task.attempt < AssignmentId::ATTEMPT_MAX
            && results::is_retryable(result.status, result.error_code.as_deref())
        {
            self.try_again(now, id.number, result);
        } else {
            let letters = self.state.next_letter;
            let buried = failed.then(|| "PROCESSING_ERROR".to_owned());
            self.record(Event::Ended(Box::new(Ended {
                at: now,
                task: id.number,
                attempt: id.attempt,
                status: result.status,
                worker: result.provider_id.clone(),
                job_type: result.job_type.clone(),
                latency_millis: result.latency_millis,
                cost: result.cost,
                tokens: result.tokens,
                error_code: result.error_code.clone(),
                buried,
            })));
            self.had.remove(&id.number);
            if failed {
                self.tell_of_letter(letters);
            }
        }
        self.dispatch(now, &subject);
    }

    /// The same provider again, or another, as the policy says; else the same after the usual wait.
    fn try_again(&mut self, now: u64, number: u64, result: &ExecResult) {
        let Some(task) = self.state.tasks.get(&number) else { return };
        let (tenant, provider) = (task.spec.tenant.clone(), task.provider.clone());
        let (failures, calls) = (task.failures + 1, task.provider_failures + 1);
        let attempt = task.attempt + 1;
        let status = match (&result.error_code, result.status) {
            (_, Status::Timeout) => "timeout".to_owned(),
            (Some(code), _) if code.len() == 3 && code.starts_with('5') => "5xx".to_owned(),
            (Some(code), _) => code.clone(),
            (None, status) => status.as_str().to_owned(),
        };
        let context = task.spec.context.clone();
        let policy = self.find_policy(&tenant, &task.spec.decision.policy_id);
        let usual = Backoff {
            strategy: Strategy::Exponential,
            base_millis: self.settings.retry_millis,
            max_millis: 5_000,
            jitter: true,
        };
        let follows = policy.map(|(policy, _)| {
            let state = &self.state;
            let admits = |name: &str| match &policy.breaker {
                None => true,
                Some(rules) => state
                    .breakers
                    .get(&(tenant.clone(), name.to_owned()))
                    .is_none_or(|breaker| breaker.admits(rules, now)),
            };
            after_failure(&policy, &context, &status, calls, &provider, &admits, &mut self.random)
        });
        let (wait, instead) = match follows {
            Some(AfterFailure::Again { backoff_millis }) => (backoff_millis, None),
            Some(AfterFailure::Instead { provider }) => (0, Some(provider)),
            Some(AfterFailure::NoRule) | None => (usual.delay(failures, self.random.unit()), None),
        };
        self.record(Event::Failed {
            at: now,
            task: number,
            due: now + wait,
            attempt,
            status: result.status,
            error_code: result.error_code.clone(),
            provider: instead,
            latency_millis: result.latency_millis,
        });
        self.due(now, number);
    }

    /// A result of somebody else's assignment: counted once, as the reference router does.
    fn foreign(&mut self, now: u64, result: &ExecResult) {
        let Some(id) = self.foreign_id(result) else { return };
        let usage = Usage {
            tenant: result.tenant.clone().unwrap_or_default(),
            provider: result.provider_id.clone().unwrap_or_else(|| "unknown".to_owned()),
            event_type: result.job_type.clone().unwrap_or_else(|| "unknown".to_owned()),
            latency_millis: result.latency_millis,
            cost: result.cost,
            tokens: result.tokens,
            status: result.status,
            trace_id: result.trace_id.clone(),
            at: now,
            assignment_id: result
                .assignment_id
                .clone()
                .or_else(|| result.request_id.clone())
                .unwrap_or_default(),
            request_id: result.request_id.clone(),
            run_id: result.run_id.clone(),
        };
        self.record(Event::Foreign { at: now, id, usage });
    }

    pub(super) fn ack(&mut self, now: u64, message: &Message<'_>) {
        self.counters.acks += 1;
        let ack = match results::exec_ack(message.headers, message.payload) {
            Ok(ack) => ack,
            Err(refusal) => {
                self.counters.acks_invalid += 1;
                self.refuse_result(now, message, &ReplyContext::default(), &refusal);
                return;
            }
        };
        let Some(id) = AssignmentId::decode(&ack.assignment_id, self.state.id_key()) else { return };
        let Some(task) = self.state.tasks.get(&id.number) else { return };
        let is_present = task.attempt == id.attempt
            && ack.tenant.as_ref().is_none_or(|tenant| *tenant == task.spec.tenant);
        let Phase::Assigned { worker, .. } = &task.phase else { return };
        if !ack.accepted && is_present {
            let connection = worker.connection;
            self.pool.settled(id.number, connection, now);
            self.take_back(now, id.number, "rejected by its worker");
        }
    }

    pub(super) fn heartbeat(&mut self, now: u64, message: &Message<'_>) {
        self.counters.heartbeats += 1;
        let Ok(beat) = results::heartbeat(message.payload) else { return };
        let change = self.pool.heartbeat(message.origin, &beat, now);
        self.changed(now, change);
        self.dispatch_all(now);
    }

    pub(super) fn worker_dead_letter(&mut self, now: u64, message: &Message<'_>) {
        self.counters.worker_dead_letters += 1;
        let reason = results::worker_dead_letter(message.payload).unwrap_or_else(|_| "unknown".to_owned());
        let hash = super::decide::payload_hash(message.payload);
        self.record(Event::Buried(Box::new(crate::state::event::DeadLetter {
            at: now,
            subject: String::from_utf8_lossy(message.subject).into_owned(),
            reason: "WORKER_REFUSED".to_owned(),
            code: reason,
            payload_hash: Some(hash),
            message: "a worker could not take a message".to_owned(),
            ..Default::default()
        })));
    }

    /// Whether a tenant may use a subject of the API now.
    pub(super) fn check_tenant(&self, now: u64, tenant: &str, subject: &[u8]) -> Result<(), Refusal> {
        if let Some(block) = self.state.blocks.get(tenant).filter(|block| block.until > now) {
            let seconds = (block.until - now).div_ceil(1_000);
            return Err(Refusal::new(Code::RateLimitExceeded, "the tenant is blocked for a while")
                .with_details(json!({"retry_after_seconds": seconds})));
        }
        let Some(rules) = self.state.rules(tenant) else { return Ok(()) };
        let is_denied = rules.denied
            || (!rules.api.is_empty()
                && !rules
                    .api
                    .iter()
                    .any(|filter| beamlog_router::subject::matches(filter.as_bytes(), subject)));
        if is_denied {
            return Err(Refusal::intake(
                IntakeCode::TenantForbidden,
                "tenant_not_allowed: the tenant may not do this",
            ));
        }
        Ok(())
    }

    /// A tenant did what abuse is made of. Too often in a minute, and it is blocked for a while.
    pub(super) fn suspect(&mut self, now: u64, tenant: Option<&str>, of: Suspicion) {
        let most = match of {
            Suspicion::Invalid => self.settings.abuse_invalid_max,
            Suspicion::Denied => self.settings.abuse_denied_max,
            Suspicion::Burst => self.settings.abuse_burst_max,
        };
        let (Some(tenant), true) = (tenant, most > 0 && self.unstored.is_none()) else { return };
        if self.state.blocks.get(tenant).is_some_and(|block| block.until > now) {
            return;
        }
        let key = (tenant.to_owned(), of);
        if self.suspects.len() >= SUSPECTS_MAX && !self.suspects.contains_key(&key) {
            self.suspects.pop_first();
        }
        let minute = now / 60_000;
        let (since, count) = self.suspects.entry(key.clone()).or_insert((minute, 0));
        if *since != minute {
            (*since, *count) = (minute, 0);
        }
        *count += 1;
        if *count >= most {
            self.suspects.remove(&key);
            self.counters.blocks += 1;
            let until = now + self.settings.abuse_block_millis;
            let why = of.as_str().to_owned();
            self.record(Event::Blocked { at: now, tenant: key.0, until, why });
        }
    }

    /// Usage behind `from` and before `below` that is not in its stream yet: numbers and bodies, oldest first.
    #[must_use]
    pub fn usage_between(&self, from: u64, below: u64, count_max: usize) -> Vec<(u64, Vec<u8>)> {
        if !self.settings.usage {
            return Vec::new();
        }
        let from = from.saturating_add(1);
        let due = self.state.usage.range(from..below.max(from)).take(count_max);
        due.map(|(number, usage)| (*number, usage_body(usage))).collect()
    }

    /// A decision was answered this long after it was asked for.
    pub fn answered_after(&mut self, now: u64, micros: u64) {
        self.signals.answered(now, micros);
    }

    /// Tasks by phase, for metrics.
    #[must_use]
    pub fn phases(&self) -> BTreeMap<&'static str, u64> {
        let mut phases = BTreeMap::from([("queued", 0), ("assigned", 0)]);
        for task in self.state.open_tasks() {
            *phases.entry(task.phase.as_str()).or_default() += 1;
        }
        phases
    }
}

fn usage_body(usage: &Usage) -> Vec<u8> {
    let mut body = json!({
        "version": "1",
        "tenant_id": usage.tenant,
        "provider_id": usage.provider,
        "event_type": usage.event_type,
        "latency_ms": usage.latency_millis,
        "cost": usage.cost,
        "status": usage.status.as_str(),
        "timestamp": usage.at,
        "assignment_id": usage.assignment_id,
    });
    for (key, value) in
        [("trace_id", &usage.trace_id), ("request_id", &usage.request_id), ("run_id", &usage.run_id)]
    {
        if let Some(value) = value {
            body[key] = value.as_str().into();
        }
    }
    if usage.tokens > 0 {
        body["tokens"] = usage.tokens.into();
    }
    body.to_string().into_bytes()
}
