//! One event into the state. The same code for what was just decided and for what is replayed.

use std::sync::Arc;

use serde_json::Map;

use super::event::{DeadLetter, Decided, Ended, Event, Usage};
use super::task::{Phase, Task, TaskSpec};
use super::{Audit, Block, Remembered, State, StoredPolicy};
use crate::ids::AssignmentId;
use crate::policy::document::Policy;
use crate::results::Status;

impl State {
    /// Folds one event in. Events that do not fit (of a task that is gone) change nothing: the log may have
    /// been written with larger bounds.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Begun { k0, k1 } => self.key = Some((*k0, *k1)),
            Event::Decided(decided) => self.decided(decided),
            Event::Dispatched { at, task, attempt, worker } => {
                let Some(task) = self.open(*task) else { return };
                let who = worker.id.clone().unwrap_or_else(|| format!("connection {}", worker.connection));
                task.phase = Phase::Assigned { at: *at, worker: worker.clone() };
                task.attempt = *attempt;
                task.deliveries += 1;
                task.first_dispatched_at.get_or_insert(*at);
                task.tell(*at, format!("given to {who}"));
                self.totals.dispatched += 1;
            }
            Event::Returned { at, task, due, attempt, why, provider } => {
                let Some(task) = self.open(*task) else { return };
                task.phase = Phase::Queued { due: *due };
                task.attempt = *attempt;
                if let Some(provider) = provider {
                    task.provider.clone_from(provider);
                    task.provider_failures = 0;
                }
                task.tell(*at, Arc::clone(why));
                self.totals.returned += 1;
            }
            Event::Failed { at, task, due, attempt, status, error_code, provider, latency_millis } => {
                let Some(task) = self.open(*task) else { return };
                let code = error_code.as_deref().unwrap_or(status.as_str());
                let (tenant, failed_provider) = (task.spec.tenant.clone(), task.provider.clone());
                let policy_id = task.spec.decision.policy_id.clone();
                let model = task.spec.model();
                task.failures += 1;
                task.provider_failures += 1;
                task.phase = Phase::Queued { due: *due };
                task.attempt = *attempt;
                task.error_code.clone_from(error_code);
                if let Some(provider) = provider {
                    task.provider.clone_from(provider);
                    task.provider_failures = 0;
                }
                task.tell(*at, format!("failed with {code}, to be tried again"));
                self.totals.failed += 1;
                self.provider_ended(
                    &tenant,
                    &failed_provider,
                    &policy_id,
                    *status,
                    *latency_millis,
                    0.0,
                    0,
                    *at,
                );
                self.model_ended(&failed_provider, model, *status, *latency_millis, 0.0, 0);
            }
            Event::Ended(ended) => self.ended(ended),
            Event::Foreign { at, id, usage } => {
                if self.foreign.insert(id.clone()) {
                    self.foreign_order.push_back(id.clone());
                    while self.foreign_order.len() > self.bounds.foreign_max {
                        if let Some(oldest) = self.foreign_order.pop_front() {
                            self.foreign.remove(&oldest);
                        }
                    }
                    self.totals.foreign += 1;
                    let (tenant, provider) = (usage.tenant.clone(), usage.provider.clone());
                    let (status, latency, cost) = (usage.status, usage.latency_millis, usage.cost);
                    self.metered(usage.clone());
                    self.provider_ended(&tenant, &provider, "default", status, latency, cost, 0, *at);
                }
            }
            Event::UsageStored { up_to } => {
                self.usage_stored = self.usage_stored.max(*up_to);
                self.usage = self.usage.split_off(&up_to.saturating_add(1));
            }
            Event::Buried(letter) => self.bury((**letter).clone()),
            Event::Replayed { at, letter: number, task, by } => {
                self.note(*at, by, "dlq.replay", &number.to_string());
                if let Some(letter) = self.dead.get_mut(number) {
                    letter.replayed_at = Some(*at);
                    self.totals.replayed += 1;
                }
                if let Some(spec) = task {
                    self.begin(*at, spec.clone());
                }
            }
            Event::Purged { at, letters, by } => {
                for number in letters {
                    self.unbury(*number);
                }
                self.note(*at, by, "dlq.purge", &letters.len().to_string());
            }
            Event::Noted { at, by, action, object } => self.note(*at, by, action, object),
            Event::PolicyPut { at, tenant, id, document, by } => {
                let key = (tenant.clone(), id.clone());
                let version = self.policies.get(&key).map_or(1, |stored| stored.version + 1);
                let parsed = Policy::parse(document).ok().map(Arc::new);
                let stored = StoredPolicy { document: document.clone(), version, changed_at: *at, parsed };
                self.policies.insert(key, stored);
                self.note(*at, by, "policy.put", &format!("{tenant}/{id}"));
            }
            Event::PolicyDeleted { at, tenant, id, by } => {
                self.policies.remove(&(tenant.clone(), id.clone()));
                self.note(*at, by, "policy.delete", &format!("{tenant}/{id}"));
            }
            Event::TenantPut { at, tenant, rules, by } => {
                self.tenants.insert(tenant.clone(), (**rules).clone());
                self.note(*at, by, "tenant.put", tenant);
            }
            Event::TenantDeleted { at, tenant, by } => {
                self.tenants.remove(tenant);
                self.note(*at, by, "tenant.delete", tenant);
            }
            Event::ExtensionPut { at, id, record, by } => {
                self.extensions.insert(id.clone(), record.clone());
                self.note(*at, by, "extension.put", id);
            }
            Event::ExtensionDeleted { at, id, by } => {
                self.extensions.remove(id);
                self.note(*at, by, "extension.delete", id);
            }
            Event::Blocked { at, tenant, until, why } => {
                self.blocks.retain(|_, block| block.until > *at);
                self.blocks.insert(tenant.clone(), Block { until: *until, why: why.clone() });
                self.note(*at, "abuse detection", "tenant.block", tenant);
            }
            Event::Unblocked { at, tenant, by } => {
                self.blocks.remove(tenant);
                self.note(*at, by, "tenant.unblock", tenant);
            }
        }
    }

    fn open(&mut self, number: u64) -> Option<&mut Task> {
        self.tasks.get_mut(&number).filter(|task| task.is_open())
    }

    fn note(&mut self, at: u64, by: &str, action: &str, object: &str) {
        self.audit.push_back(Audit { at, by: by.into(), action: action.into(), object: object.into() });
        while self.audit.len() > self.bounds.audit_max {
            self.audit.pop_front();
        }
    }

    fn decided(&mut self, decided: &Decided) {
        self.totals.decisions += 1;
        let quota = self.rules(&decided.tenant).map(|rules| rules.quota).unwrap_or_default();
        let used = self.consumption.entry(decided.tenant.clone()).or_default();
        used.enter(&quota, decided.at);
        used.requests += 1;
        if let Some((session, until)) = &decided.sticky {
            self.keep_session(&decided.tenant, session, &decided.decision.provider, *until);
        }
        if let Some((policy, _)) = self.policy(&decided.tenant, &decided.decision.policy_id)
            && let Some(rules) = &policy.breaker
        {
            let key = (decided.tenant.clone(), decided.decision.provider.clone());
            if let Some(breaker) = self.breakers.get_mut(&key) {
                breaker.called(rules, decided.at);
            }
        }
        let task = decided.task.as_ref().map(|spec| self.begin(decided.at, spec.clone()));
        if let Some(key) = &decided.key {
            let remembered = Remembered {
                at: decided.at,
                expires: decided.expires,
                fingerprint: decided.fingerprint.clone(),
                tenant: decided.tenant.clone(),
                request_id: decided.request_id.clone(),
                message_id: decided.message_id.clone(),
                trace_id: decided.trace_id.clone(),
                decision: decided.decision.clone(),
                task,
            };
            self.remember(key, remembered);
        }
    }

    fn remember(&mut self, key: &str, remembered: Remembered) {
        let now = remembered.at;
        for id in [&remembered.message_id, &remembered.request_id].into_iter().flatten() {
            self.lookups.insert((id.clone(), remembered.tenant.clone()), key.to_owned());
        }
        self.decision_order.push_back((remembered.at, key.to_owned()));
        self.decisions.insert(key.to_owned(), remembered);
        while let Some((at, oldest)) = self.decision_order.front() {
            let known = self.decisions.get(oldest);
            // A key that was written again is in the order twice; the later place counts.
            let is_current = known.is_some_and(|known| known.at == *at);
            let is_over = known.is_some_and(|known| known.expires <= now);
            if is_current && !is_over && self.decisions.len() <= self.bounds.decisions_max {
                break;
            }
            if let Some((_, oldest)) = self.decision_order.pop_front()
                && is_current
                && let Some(forgotten) = self.decisions.remove(&oldest)
            {
                for id in [forgotten.message_id, forgotten.request_id].into_iter().flatten() {
                    let lookup = (id, forgotten.tenant.clone());
                    if self.lookups.get(&lookup) == Some(&oldest) {
                        self.lookups.remove(&lookup);
                    }
                }
            }
        }
    }

    fn keep_session(&mut self, tenant: &str, session: &str, provider: &str, until: u64) {
        let key = (tenant.to_owned(), session.to_owned());
        if self.sessions.insert(key.clone(), (provider.to_owned(), until)).is_none() {
            self.session_order.push_back((until, key));
        }
        while self.sessions.len() > self.bounds.sessions_max {
            let Some((_, oldest)) = self.session_order.pop_front() else { break };
            self.sessions.remove(&oldest);
        }
    }

    /// A new task; its number.
    fn begin(&mut self, at: u64, spec: TaskSpec) -> u64 {
        let number = self.next_task;
        self.next_task += 1;
        self.totals.tasks += 1;
        let used = self.consumption.entry(spec.tenant.clone()).or_default();
        used.open_jobs += 1;
        used.reserved_cost = bounded(used.reserved_cost + spec.decision.expected_cost);
        if let Some(request) = &spec.request_id {
            self.by_request.insert((spec.tenant.clone(), request.clone()), number);
        }
        self.open_bytes += spec.weight();
        self.tasks.insert(number, Task::new(number, at, spec));
        number
    }

    fn ended(&mut self, ended: &Ended) {
        let key = self.id_key();
        let Some(task) = self.open(ended.task) else { return };
        let queued = task.first_dispatched_at.unwrap_or(ended.at).saturating_sub(task.created_at);
        task.phase = Phase::Ended { at: ended.at, status: ended.status };
        task.attempt = ended.attempt;
        task.latency_millis = ended.latency_millis;
        task.cost = ended.cost;
        task.tokens = ended.tokens;
        task.error_code.clone_from(&ended.error_code);
        task.worker.clone_from(&ended.worker);
        let why = ended.error_code.as_deref().map(|code| format!(" with {code}")).unwrap_or_default();
        task.tell(ended.at, format!("ended: {}{why}", ended.status.as_str()));
        let spec = task.spec.clone();
        // What is left is its story: payloads of thousands of finished tasks would fill the memory.
        task.spec.payload = None;
        task.spec.context = Map::new();
        let provider = task.provider.clone();
        self.open_bytes = self.open_bytes.saturating_sub(spec.weight());
        let job_type = ended.job_type.clone().unwrap_or_else(|| spec.job_type.clone());

        let quota = self.rules(&spec.tenant).map(|rules| rules.quota).unwrap_or_default();
        let used = self.consumption.entry(spec.tenant.clone()).or_default();
        used.enter(&quota, ended.at);
        used.open_jobs = used.open_jobs.saturating_sub(1);
        used.reserved_cost = bounded(used.reserved_cost - spec.decision.expected_cost).max(0.0);
        used.cost = bounded(used.cost + ended.cost);
        used.tokens = used.tokens.saturating_add(ended.tokens);
        match ended.status {
            Status::Success => self.totals.succeeded += 1,
            Status::Cancelled => self.totals.cancelled += 1,
            Status::Error | Status::Timeout => self.totals.ended_badly += 1,
        }
        self.totals.run_millis = self.totals.run_millis.saturating_add(ended.latency_millis);
        self.totals.queued_millis = self.totals.queued_millis.saturating_add(queued);
        self.totals.cost = bounded(self.totals.cost + ended.cost);
        self.metered(Usage {
            tenant: spec.tenant.clone(),
            provider: provider.clone(),
            event_type: job_type,
            latency_millis: ended.latency_millis,
            cost: ended.cost,
            tokens: ended.tokens,
            status: ended.status,
            trace_id: spec.trace_id.clone(),
            at: ended.at,
            // The first id is the assignment's, whichever attempt was the one that counted.
            assignment_id: AssignmentId { number: ended.task, attempt: 0 }.encode(key),
            request_id: spec.request_id.clone(),
            run_id: spec.run_id.clone(),
        });
        let policy_id = spec.decision.policy_id.clone();
        self.provider_ended(
            &spec.tenant,
            &provider,
            &policy_id,
            ended.status,
            ended.latency_millis,
            ended.cost,
            queued,
            ended.at,
        );
        let model = spec.model();
        self.model_ended(&provider, model, ended.status, ended.latency_millis, ended.cost, queued);
        if let Some(reason) = &ended.buried {
            let code = ended.error_code.clone().unwrap_or_else(|| ended.status.as_str().to_owned());
            self.bury(DeadLetter {
                at: ended.at,
                subject: spec.subject.to_string(),
                reason: reason.clone(),
                code,
                tenant: Some(spec.tenant.clone()),
                trace_id: spec.trace_id.clone(),
                request_id: spec.request_id.clone(),
                task: Some(spec),
                ..DeadLetter::default()
            });
        }
        self.finished.push_back(ended.task);
        while self.finished.len() > self.bounds.finished_max {
            if let Some(oldest) = self.finished.pop_front()
                && let Some(task) = self.tasks.remove(&oldest)
                && let Some(request) = task.spec.request_id
            {
                let lookup = (task.spec.tenant, request);
                if self.by_request.get(&lookup) == Some(&oldest) {
                    self.by_request.remove(&lookup);
                }
            }
        }
    }

    fn metered(&mut self, usage: Usage) {
        self.usage.insert(self.next_usage, usage);
        self.next_usage += 1;
        self.totals.usage += 1;
    }

    #[expect(clippy::too_many_arguments, reason = "the facts of one call")]
    fn provider_ended(
        &mut self,
        tenant: &str,
        provider: &str,
        policy_id: &str,
        status: Status,
        latency_millis: u64,
        cost: f64,
        queued_millis: u64,
        at: u64,
    ) {
        if status == Status::Cancelled {
            return;
        }
        let key = (tenant.to_owned(), provider.to_owned());
        let is_known = self.providers.contains_key(&key);
        if !is_known && self.providers.len() >= self.bounds.providers_max {
            return;
        }
        let failed = status != Status::Success;
        self.providers.entry(key.clone()).or_default().ended(!failed, latency_millis, cost, queued_millis);
        let rules = self.policy(tenant, policy_id).and_then(|(policy, _)| policy.breaker);
        if let Some(rules) = rules {
            self.breakers.entry(key).or_default().ended(&rules, failed, latency_millis, at);
        }
    }

    fn model_ended(
        &mut self,
        provider: &str,
        model: Option<String>,
        status: Status,
        latency_millis: u64,
        cost: f64,
        queued_millis: u64,
    ) {
        let Some(model) = model.filter(|_| status != Status::Cancelled) else { return };
        let key = (provider.to_owned(), model);
        if self.models.len() >= self.bounds.providers_max && !self.models.contains_key(&key) {
            return;
        }
        let succeeded = status == Status::Success;
        self.models.entry(key).or_default().ended(succeeded, latency_millis, cost, queued_millis);
    }

    fn bury(&mut self, mut letter: DeadLetter) {
        letter.number = self.next_letter;
        self.next_letter += 1;
        self.totals.buried += 1;
        self.dead_bytes += letter.weight();
        if letter.task.is_none() {
            self.refused.insert(letter.number);
        }
        self.dead.insert(letter.number, letter);
        while self.dead.len() > self.bounds.dead_max || self.dead_bytes > self.bounds.dead_bytes_max {
            // What was refused at the door goes first: anybody can send more of it, and no job is lost with it.
            let oldest = self.refused.first().or_else(|| self.dead.keys().next()).copied();
            let Some(oldest) = oldest else { break };
            self.unbury(oldest);
        }
    }

    fn unbury(&mut self, number: u64) {
        self.refused.remove(&number);
        if let Some(letter) = self.dead.remove(&number) {
            self.dead_bytes = self.dead_bytes.saturating_sub(letter.weight());
        }
    }
}

/// JSON has no infinity: a sum stays a number.
pub(super) fn bounded(sum: f64) -> f64 {
    if sum.is_nan() { 0.0 } else { sum.clamp(f64::MIN, f64::MAX) }
}
