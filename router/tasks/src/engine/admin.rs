//! `beamline.router.v1.admin.*`: looking at tasks, dead letters, policies, tenants and extensions, and
//! changing them. Every change is an event, and so in the audit.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::decide::Asker;
use super::extensions::Conversation;
use super::{Engine, Message, Timer};
use crate::ids::AssignmentId;
use crate::intake::{DecideRequest, ReplyContext};
use crate::mask;
use crate::policy::complexity::complexity;
use crate::policy::document::Policy;
use crate::policy::select::Explanation;
use crate::results::Status;
use crate::state::event::{DeadLetter, Event, ExtensionRecord};
use crate::state::task::{Phase, Task, TaskSpec};
use crate::state::tenant::TenantRules;

/// Rows of one page.
const PAGE_MAX: usize = 1_000;
const PAGE: usize = 100;
const POLICIES_MAX: usize = 10_000;
const TENANTS_MAX: usize = 10_000;
const EXTENSIONS_MAX: usize = 1_000;

/// A refusal of an administrative request.
struct Bad {
    code: &'static str,
    message: String,
}

fn bad(code: &'static str, message: impl Into<String>) -> Bad {
    Bad { code, message: message.into() }
}

fn missing(key: &str) -> Bad {
    bad("INVALID_ARGUMENT", format!("{key} is required"))
}

type Answer = Result<Value, Bad>;

fn text<'v>(body: &'v Map<String, Value>, key: &str) -> Result<&'v str, Bad> {
    body.get(key)
        .and_then(Value::as_str)
        .filter(|text| !text.is_empty() && text.len() <= 256)
        .ok_or_else(|| missing(key))
}

fn page(body: &Map<String, Value>) -> (usize, usize) {
    let number = |key: &str| body.get(key).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
    (number("offset").unwrap_or(0), number("limit").unwrap_or(PAGE).clamp(1, PAGE_MAX))
}

impl Engine {
    pub(super) fn admin(&mut self, now: u64, name: &[u8], message: &Message<'_>) {
        let body = match serde_json::from_slice(message.payload) {
            Ok(Value::Object(body)) => body,
            Err(_) if message.payload.is_empty() => Map::new(),
            Ok(_) | Err(_) => {
                let refused = bad("INVALID_ARGUMENT", "the request is not a JSON object");
                return self.answer_admin(message, Err(refused));
            }
        };
        let by = body
            .get("by")
            .and_then(Value::as_str)
            .map_or_else(|| format!("connection {}", message.origin), |by| by.chars().take(128).collect());
        let answer = match name {
            b"get_extension_health" => Ok(self.extension_health(now)),
            b"get_circuit_breaker_states" => Ok(self.breaker_states(now)),
            b"dry_run_pipeline" => return self.dry_run(now, &body, message),
            b"get_pipeline_complexity" => self.pipeline_complexity(&body),
            b"upsert_policy" => self.put_policy(now, &body, by),
            b"get_policy" => self.get_policy(&body),
            b"list_policies" => Ok(self.list_policies(&body)),
            b"delete_policy" => self.delete_policy(now, &body, by),
            b"upsert_tenant" => self.put_tenant(now, &body, by),
            b"get_tenant" => self.get_tenant(now, &body),
            b"list_tenants" => Ok(json!({"ok": true, "tenants": self.state.tenants})),
            b"delete_tenant" => self.delete_tenant(now, &body, by),
            b"unblock_tenant" => self.unblock_tenant(now, &body, by),
            b"upsert_extension" => self.put_extension(now, &body, by),
            b"list_extensions" => Ok(json!({"ok": true, "extensions": self.state.extensions})),
            b"delete_extension" => self.delete_extension(now, &body, by),
            b"list_tasks" => self.list_tasks(&body),
            b"get_task" => self.get_task(&body),
            b"cancel_task" => self.cancel_task(now, &body),
            b"retry_task" => self.retry_task(now, &body),
            b"list_dlq" => Ok(self.list_dlq(&body)),
            b"get_dlq" => self.get_dlq(&body),
            b"replay_dlq" => self.replay_dlq(now, &body),
            b"purge_dlq" => self.purge_dlq(now, &body),
            b"list_workers" => Ok(self.list_workers()),
            b"get_audit" => Ok(json!({"ok": true, "audit": self.state.audit})),
            b"get_checkpoint_status" | b"cp_status" => Ok(self.status(now)),
            _ => Err(bad("NOT_FOUND", "there is no such administrative request")),
        };
        self.answer_admin(message, answer);
    }

    fn answer_admin(&mut self, message: &Message<'_>, answer: Answer) {
        let body = answer.unwrap_or_else(
            |Bad { code, message }| json!({"ok": false, "error": {"code": code, "message": message}}),
        );
        self.reply(message, body.to_string().into_bytes());
    }

    fn breaker_states(&self, now: u64) -> Value {
        let states: Map<String, Value> = self
            .state
            .breakers
            .iter()
            .map(|((tenant, provider), breaker)| {
                let rules = self
                    .find_policy(tenant, "default")
                    .and_then(|(policy, _)| policy.breaker)
                    .unwrap_or_default();
                let view = json!({"tenant_id": tenant, "provider_id": provider,
                    "state": breaker.state(&rules, now).as_str(), "failures": breaker.consecutive_failures(),
                    "opened_times": breaker.opened_times()});
                (format!("{tenant}:{provider}"), view)
            })
            .collect();
        json!({"states": states})
    }

    fn pipeline_complexity(&self, body: &Map<String, Value>) -> Answer {
        let (tenant, id) = (text(body, "tenant_id")?, text(body, "policy_id")?);
        let (policy, _) = self
            .find_policy(tenant, id)
            .ok_or_else(|| bad("POLICY_NOT_FOUND", "the tenant has no such policy"))?;
        Ok(complexity(&policy))
    }

    /// Decides without recording: the extensions are really asked, and every step is explained.
    fn dry_run(&mut self, now: u64, body: &Map<String, Value>, message: &Message<'_>) {
        let prepared = (|| {
            let (tenant, id) = (text(body, "tenant_id")?, text(body, "policy_id")?);
            let payload = body.get("payload").ok_or_else(|| missing("payload"))?;
            let found = self.find_policy(tenant, id);
            let (policy, version) =
                found.ok_or_else(|| bad("POLICY_NOT_FOUND", "the tenant has no such policy"))?;
            if let Some(problem) = policy.pipeline_problem() {
                return Err(bad("PIPELINE_ERROR", problem));
            }
            let context = match body.get("context") {
                Some(Value::Object(context)) => context.clone(),
                Some(_) | None => Map::new(),
            };
            let request = DecideRequest {
                encoding: Default::default(),
                request_id: None,
                message_id: None,
                tenant: tenant.to_owned(),
                correlation: Default::default(),
                traceparent: None,
                idempotency_key: None,
                policy_id: id.to_owned(),
                job_type: "dry_run".to_owned(),
                payload: Some(payload.to_string().into()),
                payload_ref: None,
                context,
                options: Map::new(),
                push_assignment: false,
                assignment_subject: None,
                fingerprint: [0; 16],
            };
            Ok((request, policy, version))
        })();
        match prepared {
            Err(refused) => self.answer_admin(message, Err(refused)),
            Ok((request, policy, version)) => {
                let asker = Asker::of(message, ReplyContext::default(), None);
                self.converse(now, Conversation::new(request, None, policy, version, asker).dry_run());
            }
        }
    }

    /// What a dry run answers once its extensions did.
    pub(super) fn dry_result(
        &mut self,
        now: u64,
        request: &DecideRequest,
        policy: &Policy,
        version: u64,
        executed: &[Value],
    ) -> Value {
        let mut explanation = Explanation::default();
        let picked = self.pick(now, request, policy, version, Some(&mut explanation));
        let payload: Value =
            request.payload.as_deref().and_then(|raw| serde_json::from_str(raw).ok()).unwrap_or_default();
        match picked {
            Some((decision, _)) => json!({"ok": true, "result": {
                "decision": decision.to_json(), "executed_extensions": executed, "final_payload": payload,
                "explanation": explanation.steps,
            }}),
            None => {
                json!({"ok": false, "error": {"code": "INTERNAL_ERROR", "message": "no_provider_available",
                "details": {"executed_extensions": executed, "explanation": explanation.steps}}})
            }
        }
    }

    fn put_policy(&mut self, now: u64, body: &Map<String, Value>, by: String) -> Answer {
        let (tenant, id) = (text(body, "tenant_id")?, text(body, "policy_id")?);
        let document =
            body.get("policy").or_else(|| body.get("document")).ok_or_else(|| missing("policy"))?;
        Policy::parse(document).map_err(|error| bad("INVALID_ARGUMENT", error.to_string()))?;
        let key = (tenant.to_owned(), id.to_owned());
        if let Some(stored) = self.state.policies.get(&key)
            && stored.document == *document
        {
            return Ok(json!({"ok": true, "version": stored.version, "changed": false}));
        }
        if self.state.policies.len() >= POLICIES_MAX && !self.state.policies.contains_key(&key) {
            return Err(bad("RESOURCE_EXHAUSTED", format!("there are {POLICIES_MAX} policies already")));
        }
        self.record(Event::PolicyPut {
            at: now,
            tenant: tenant.to_owned(),
            id: id.to_owned(),
            document: document.clone(),
            by,
        });
        let version = self.state.policies.get(&key).map_or(0, |stored| stored.version);
        Ok(json!({"ok": true, "version": version, "changed": true}))
    }

    /// A policy from a file; changed only when it differs.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load_policy(
        &mut self,
        now: u64,
        tenant: &str,
        id: &str,
        document: &Value,
    ) -> Result<bool, String> {
        let body = json!({"tenant_id": tenant, "policy_id": id, "policy": document});
        let Value::Object(body) = body else { return Ok(false) };
        let answer = self.put_policy(now, &body, "a file".to_owned()).map_err(|refused| refused.message)?;
        Ok(answer["changed"] == true)
    }

    fn get_policy(&self, body: &Map<String, Value>) -> Answer {
        let (tenant, id) = (text(body, "tenant_id")?, text(body, "policy_id")?);
        let stored = self.state.policies.get(&(tenant.to_owned(), id.to_owned()));
        match stored {
            Some(stored) => Ok(json!({"ok": true, "policy": stored.document, "version": stored.version,
                "changed_at": stored.changed_at})),
            None if id == "default" => Ok(json!({"ok": true, "policy": Policy::built_in().0, "version": 0})),
            None => Err(bad("POLICY_NOT_FOUND", "the tenant has no such policy")),
        }
    }

    fn list_policies(&self, body: &Map<String, Value>) -> Value {
        let wanted = text(body, "tenant_id").ok();
        let (offset, limit) = page(body);
        let rows: Vec<Value> = self
            .state
            .policies
            .iter()
            .filter(|((tenant, _), _)| wanted.is_none_or(|wanted| wanted == tenant))
            .skip(offset)
            .take(limit)
            .map(|((tenant, id), stored)| {
                json!({"tenant_id": tenant, "policy_id": id, "version": stored.version,
                    "changed_at": stored.changed_at})
            })
            .collect();
        json!({"ok": true, "policies": rows, "total": self.state.policies.len()})
    }

    fn delete_policy(&mut self, now: u64, body: &Map<String, Value>, by: String) -> Answer {
        let (tenant, id) = (text(body, "tenant_id")?.to_owned(), text(body, "policy_id")?.to_owned());
        if !self.state.policies.contains_key(&(tenant.clone(), id.clone())) {
            return Err(bad("POLICY_NOT_FOUND", "the tenant has no such policy"));
        }
        self.record(Event::PolicyDeleted { at: now, tenant, id, by });
        Ok(json!({"ok": true}))
    }

    fn put_tenant(&mut self, now: u64, body: &Map<String, Value>, by: String) -> Answer {
        let tenant = text(body, "tenant_id")?.to_owned();
        let rules = body.get("rules").cloned().ok_or_else(|| missing("rules"))?;
        let rules: TenantRules = serde_json::from_value(rules)
            .map_err(|error| bad("INVALID_ARGUMENT", format!("rules: {error}")))?;
        for filter in rules.assignment_subjects.iter().chain(&rules.api) {
            if beamlog_router::subject::check_filter(filter.as_bytes()).is_err() {
                return Err(bad("INVALID_ARGUMENT", format!("{filter:?} is no filter")));
            }
        }
        if self.state.tenants.len() >= TENANTS_MAX && !self.state.tenants.contains_key(&tenant) {
            return Err(bad("RESOURCE_EXHAUSTED", format!("there are {TENANTS_MAX} tenants already")));
        }
        self.record(Event::TenantPut { at: now, tenant, rules: Box::new(rules), by });
        Ok(json!({"ok": true}))
    }

    fn get_tenant(&self, now: u64, body: &Map<String, Value>) -> Answer {
        let tenant = text(body, "tenant_id")?;
        let block = self.state.blocks.get(tenant).filter(|block| block.until > now);
        Ok(json!({"ok": true, "tenant_id": tenant, "rules": self.state.rules(tenant),
            "consumption": self.state.consumption.get(tenant), "blocked": block}))
    }

    fn delete_tenant(&mut self, now: u64, body: &Map<String, Value>, by: String) -> Answer {
        let tenant = text(body, "tenant_id")?.to_owned();
        if !self.state.tenants.contains_key(&tenant) {
            return Err(bad("NOT_FOUND", "the tenant has no rules of its own"));
        }
        self.record(Event::TenantDeleted { at: now, tenant, by });
        Ok(json!({"ok": true}))
    }

    fn unblock_tenant(&mut self, now: u64, body: &Map<String, Value>, by: String) -> Answer {
        let tenant = text(body, "tenant_id")?.to_owned();
        self.record(Event::Unblocked { at: now, tenant, by });
        Ok(json!({"ok": true}))
    }

    fn put_extension(&mut self, now: u64, body: &Map<String, Value>, by: String) -> Answer {
        let id = text(body, "id")?.to_owned();
        let record = body.get("extension").cloned().ok_or_else(|| missing("extension"))?;
        let record: ExtensionRecord = serde_json::from_value(record)
            .map_err(|error| bad("INVALID_ARGUMENT", format!("extension: {error}")))?;
        if beamlog_router::subject::check_subject(record.subject.as_bytes()).is_err() {
            return Err(bad("INVALID_ARGUMENT", "extension.subject is no subject"));
        }
        if self.state.extensions.len() >= EXTENSIONS_MAX && !self.state.extensions.contains_key(&id) {
            return Err(bad("RESOURCE_EXHAUSTED", format!("there are {EXTENSIONS_MAX} extensions already")));
        }
        if self.state.extensions.get(&id) != Some(&record) {
            self.record(Event::ExtensionPut { at: now, id, record, by });
        }
        Ok(json!({"ok": true}))
    }

    fn delete_extension(&mut self, now: u64, body: &Map<String, Value>, by: String) -> Answer {
        let id = text(body, "id")?.to_owned();
        if !self.state.extensions.contains_key(&id) {
            return Err(bad("NOT_FOUND", "there is no such extension"));
        }
        self.record(Event::ExtensionDeleted { at: now, id, by });
        Ok(json!({"ok": true}))
    }

    /// A task by its number, an assignment id of it, or its request id.
    fn find_task(&self, body: &Map<String, Value>) -> Result<&Task, Bad> {
        let number = body.get("task").and_then(Value::as_u64);
        let id = ["task", "id"].iter().find_map(|key| body.get(*key)?.as_str());
        let number = number.or_else(|| id?.parse().ok());
        let number = number.or_else(|| Some(AssignmentId::decode(id?, self.state.id_key())?.number));
        let by_number = number.and_then(|number| self.state.tasks.get(&number));
        let by_request = || {
            let id = id?;
            self.state.tasks.values().rev().find(|task| task.spec.request_id.as_deref() == Some(id))
        };
        by_number
            .or_else(by_request)
            .ok_or_else(|| bad("NOT_FOUND", "no task with this number, assignment id or request id"))
    }

    fn list_tasks(&self, body: &Map<String, Value>) -> Answer {
        let (offset, limit) = page(body);
        let tenant = text(body, "tenant_id").ok();
        let phase = text(body, "phase").ok();
        let matches = |task: &&Task| {
            tenant.is_none_or(|tenant| tenant == task.spec.tenant)
                && phase.is_none_or(|phase| match phase {
                    "open" => task.is_open(),
                    phase => phase == task.phase.as_str(),
                })
        };
        let all: Vec<&Task> = self.state.tasks.values().rev().filter(matches).collect();
        let rows: Vec<Value> = all.iter().skip(offset).take(limit).map(|task| self.row(task)).collect();
        Ok(json!({"ok": true, "tasks": rows, "total": all.len()}))
    }

    fn row(&self, task: &Task) -> Value {
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

    fn get_task(&self, body: &Map<String, Value>) -> Answer {
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

    fn cancel_task(&mut self, now: u64, body: &Map<String, Value>) -> Answer {
        let task = self.find_task(body)?;
        if !task.is_open() {
            return Err(bad("FAILED_PRECONDITION", "the task has its result already"));
        }
        let number = task.number;
        self.end_by_router(now, number, Status::Cancelled, "CANCELLED", None);
        Ok(json!({"ok": true, "task": number}))
    }

    /// Gives an open task out again, to another worker if there is one.
    fn retry_task(&mut self, now: u64, body: &Map<String, Value>) -> Answer {
        let task = self.find_task(body)?;
        let number = task.number;
        match &task.phase {
            Phase::Ended { .. } => {
                let text = "the task has its result already; a dead letter is replayed with replay_dlq";
                Err(bad("FAILED_PRECONDITION", text))
            }
            Phase::Assigned { worker, .. } => {
                let connection = worker.connection;
                self.pool.missed(number, connection);
                self.take_back(now, number, "asked to be given out again");
                Ok(json!({"ok": true, "task": number}))
            }
            Phase::Queued { due } => {
                let (due, attempt) = (*due, task.attempt);
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

    fn list_dlq(&self, body: &Map<String, Value>) -> Value {
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

    fn letter(&self, body: &Map<String, Value>) -> Result<&DeadLetter, Bad> {
        let number = body.get("dead_letter").or_else(|| body.get("id"));
        let number = number.and_then(|id| id.as_u64().or_else(|| id.as_str()?.parse().ok()));
        let number = number.ok_or_else(|| missing("dead_letter"))?;
        self.state.dead.get(&number).ok_or_else(|| bad("NOT_FOUND", "there is no such dead letter"))
    }

    fn get_dlq(&self, body: &Map<String, Value>) -> Answer {
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
    fn replay_dlq(&mut self, now: u64, body: &Map<String, Value>) -> Answer {
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
            self.record(Event::Replayed { at: now, letter: number, task: Some(spec) });
            self.watch(&subject);
            self.due(now, task);
            tasks.push(task);
        }
        Ok(json!({"ok": true, "tasks": tasks}))
    }

    fn purge_dlq(&mut self, now: u64, body: &Map<String, Value>) -> Answer {
        let letters: Vec<u64> = if body.get("all") == Some(&Value::Bool(true)) {
            let reason = text(body, "reason").ok();
            let wanted = |letter: &&DeadLetter| reason.is_none_or(|reason| letter.reason == reason);
            self.state.dead.values().filter(wanted).map(|letter| letter.number).collect()
        } else {
            vec![self.letter(body)?.number]
        };
        let count = letters.len();
        if count > 0 {
            self.record(Event::Purged { at: now, letters });
        }
        Ok(json!({"ok": true, "purged": count}))
    }

    fn list_workers(&self) -> Value {
        let workers: Vec<Value> = self
            .pool
            .views()
            .into_iter()
            .map(|worker| {
                json!({"connection": worker.connection, "worker_id": worker.id, "status": worker.status,
                    "load": worker.load, "tasks": worker.jobs, "subscriptions": worker.subscriptions,
                    "misses": worker.misses})
            })
            .collect();
        json!({"ok": true, "workers": workers})
    }

    fn status(&mut self, now: u64) -> Value {
        let pressure = self.pressure(now);
        json!({"ok": true, "phase": "cp1", "version": "1", "backpressure": pressure.as_str(),
            "open_tasks": self.state.open_count(), "dead_letters": self.state.dead.len(),
            "policies": self.state.policies.len(), "totals": self.state.totals})
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
