//! A request for a decision, from its bytes to its reply.

use std::sync::Arc;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::extensions::Conversation;
use super::outcome::Suspicion;
use super::settings::subjects;
use super::signals::Pressure;
use super::{Engine, Message};
use crate::codes::{Code, IntakeCode, Refusal};
use crate::intake::{self, DecideRequest, ReplyContext};
use crate::mask;
use crate::policy::bucket::Bucket;
use crate::policy::document::{Policy, RateLimit};
use crate::policy::select::{Explanation, Situation, select};
use crate::replies::{self, Decision};
use crate::state::event::{DeadLetter, Decided, Event};
use crate::state::task::TaskSpec;

/// Shortest and longest time that a worker is given, unless the request says otherwise.
const DEADLINE_MILLIS: (u64, u64) = (5_000, 60_000);
/// The most that a request may ask for.
const DEADLINE_MILLIS_MAX: u64 = 24 * 3_600_000;
/// Rate limiters at a time; beyond, the oldest names start anew.
const BUCKETS_MAX: usize = 10_000;

/// Where an answer goes.
#[derive(Clone, Debug, Default)]
pub(super) struct Asker {
    /// The reply subjects: one, or the two of the contract when the request named none.
    pub(super) subjects: Vec<Vec<u8>>,
    pub(super) context: ReplyContext,
    pub(super) message_id: Option<String>,
}

impl Asker {
    pub(super) fn of(message: &Message<'_>, context: ReplyContext, message_id: Option<String>) -> Self {
        let subjects = if message.reply.is_empty() {
            [&b".reply"[..], b".response"].map(|end| [message.subject, end].concat()).to_vec()
        } else {
            vec![message.reply.to_vec()]
        };
        Self { subjects, context, message_id }
    }
}

/// What the same request is known by.
fn key_of(request: &DecideRequest) -> Option<String> {
    let tenant = &request.tenant;
    match (&request.idempotency_key, &request.request_id) {
        (Some(key), _) => Some(format!("k\0{tenant}\0{key}")),
        (None, Some(id)) => Some(format!("r\0{tenant}\0{id}\0{}", hex(&request.fingerprint))),
        (None, None) => None,
    }
}

fn over_quota(quota: &str) -> Refusal {
    Refusal::new(Code::QuotaExceeded, format!("the quota of {quota} is used up"))
        .with_details(json!({"quota": quota}))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 of a payload that is kept nowhere.
pub(super) fn payload_hash(payload: &[u8]) -> String {
    hex(&Sha256::digest(payload))
}

impl Engine {
    pub(super) fn decide(&mut self, now: u64, message: &Message<'_>) {
        self.counters.requests += 1;
        let request = match intake::decide(message.headers, message.payload, self.settings.intake) {
            Ok(request) => request,
            Err(refused) => {
                let (refusal, context) = *refused;
                self.counters.refused_invalid += 1;
                let asker = Asker::of(message, context, None);
                self.refuse_intake(now, message, &asker, &refusal);
                return;
            }
        };
        let context = ReplyContext {
            encoding: request.encoding,
            request_id: request.request_id.clone(),
            trace_id: request.correlation.trace_id.clone(),
            tenant: Some(request.tenant.clone()),
        };
        let asker = Asker::of(message, context, request.message_id.clone());
        if let Err(refusal) = self.check_tenant(now, &request.tenant, message.subject) {
            self.counters.refused_tenant += 1;
            if refusal.intake.is_some() {
                self.refuse_intake(now, message, &asker, &refusal);
            } else {
                self.answer_refusal(&asker, &refusal);
            }
            return;
        }
        let key = key_of(&request);
        if let Some(key) = &key {
            if let Some(known) = self.state.remembered(key, now) {
                if known.fingerprint == hex(&request.fingerprint) {
                    self.counters.idempotent_hits += 1;
                    let decision = known.decision.clone();
                    self.answer_decision(&asker, &decision);
                } else {
                    self.counters.refused_invalid += 1;
                    let refusal = Refusal::intake(
                        IntakeCode::IdempotencyViolation,
                        "the idempotency_key was used for another request",
                    );
                    self.answer_refusal(&asker, &refusal);
                }
                return;
            }
            if let Some(conversation) = self.conversations.values_mut().find(|other| other.has_key(key)) {
                // The same request is being decided: both get its answer.
                conversation.also(asker);
                return;
            }
            self.counters.idempotent_misses += 1;
        }
        if let Err(refusal) = self.check_stored() {
            self.counters.refused_unstored += 1;
            self.answer_refusal(&asker, &refusal);
            return;
        }
        match self.admit(now, &request) {
            Err(refusal) if refusal.intake.is_some() => self.refuse_intake(now, message, &asker, &refusal),
            Err(refusal) => {
                if refusal.code == Code::RateLimitExceeded {
                    self.suspect(now, Some(&request.tenant), Suspicion::Burst);
                }
                self.answer_refusal(&asker, &refusal);
            }
            Ok((policy, version)) if policy.extensions() == 0 => {
                self.choose(now, request, key, &policy, version, &[asker], None);
            }
            Ok((policy, version)) => {
                if self.conversations.len() >= self.settings.conversations_max {
                    self.counters.refused_overload += 1;
                    let refusal =
                        Refusal::new(Code::ServiceOverloaded, "too many requests wait for extensions");
                    self.answer_refusal(&asker, &refusal);
                    return;
                }
                self.converse(now, Conversation::new(request, key, policy, version, asker));
            }
        }
    }

    /// Whether the log takes what would be decided.
    fn check_stored(&self) -> Result<(), Refusal> {
        match &self.unstored {
            None => Ok(()),
            Some(cause) => {
                Err(Refusal::new(Code::Internal, format!("the decision could not be stored: {cause}")))
            }
        }
    }

    /// Tenant, limits, quota, policy: whether the request may be decided, and by which policy.
    fn admit(&mut self, now: u64, request: &DecideRequest) -> Result<(Arc<Policy>, u64), Refusal> {
        if self.pressure(now) == Pressure::Active {
            self.counters.refused_overload += 1;
            let seconds = self.settings.overload.retry_after_seconds;
            return Err(Refusal::new(Code::ServiceOverloaded, "the router is overloaded")
                .with_details(json!({"retry_after_seconds": seconds})));
        }
        let rules = self.state.rules(&request.tenant).cloned().unwrap_or_default();
        if let Some(limit) = rules.rate_limit {
            self.take_token(now, &request.tenant, "", limit.into())?;
        }
        let Some((policy, version)) = self.find_policy(&request.tenant, &request.policy_id) else {
            self.counters.refused_policy += 1;
            return Err(Refusal::new(Code::PolicyNotFound, "the tenant has no such policy"));
        };
        if let Some(limit) = policy.rate_limit {
            self.take_token(now, &request.tenant, &request.policy_id, limit)?;
        }
        if let Some(problem) = policy.pipeline_problem() {
            self.counters.refused_policy += 1;
            return Err(Refusal::new(Code::DecisionFailed, format!("the policy is not usable: {problem}")));
        }
        let used = self.state.consumption.get(&request.tenant).cloned().unwrap_or_default();
        if let Some(quota) = used.exceeded(&rules.quota, now, 0.0, request.push_assignment) {
            self.counters.refused_quota += 1;
            return Err(over_quota(quota));
        }
        if request.push_assignment {
            self.admit_task(now, request, &rules)?;
        }
        Ok((policy, version))
    }

    fn admit_task(
        &mut self,
        now: u64,
        request: &DecideRequest,
        rules: &crate::state::tenant::TenantRules,
    ) -> Result<(), Refusal> {
        if rules.push_denied {
            self.counters.refused_tenant += 1;
            return Err(Refusal::intake(IntakeCode::TenantForbidden, "the tenant may not push assignments"));
        }
        if let Some(subject) = &request.assignment_subject
            && !rules.assignment_subjects.is_empty()
            && !rules
                .assignment_subjects
                .iter()
                .any(|filter| beamlog_router::subject::matches(filter.as_bytes(), subject.as_bytes()))
        {
            self.counters.refused_tenant += 1;
            return Err(Refusal::intake(
                IntakeCode::TenantForbidden,
                "the tenant may not use this assignment_subject",
            ));
        }
        let bytes = request.payload.as_deref().map_or(0, str::len);
        while self.state.open_count() >= self.settings.open_tasks_max
            || self.state.payload_bytes() + bytes > self.settings.payload_bytes_max
        {
            if !self.shed(now) {
                self.counters.refused_overload += 1;
                return Err(Refusal::new(Code::ServiceOverloaded, "too many assignments wait for workers"));
            }
        }
        let subject: Arc<str> = self.subject_of(request);
        if !self.watch(&subject) {
            self.counters.refused_overload += 1;
            return Err(Refusal::new(Code::ServiceOverloaded, "too many assignment subjects are in use"));
        }
        Ok(())
    }

    fn subject_of(&self, request: &DecideRequest) -> Arc<str> {
        match &request.assignment_subject {
            Some(subject) => subject.as_str().into(),
            None => Arc::clone(&self.settings.assignment_subject),
        }
    }

    fn take_token(&mut self, now: u64, tenant: &str, policy: &str, limit: RateLimit) -> Result<(), Refusal> {
        if self.buckets.len() >= BUCKETS_MAX {
            self.buckets.pop_first();
        }
        let bucket = self
            .buckets
            .entry((tenant.to_owned(), policy.to_owned()))
            .or_insert_with(|| Bucket::full(limit, now));
        bucket.take(limit, now).map_err(|millis| {
            self.counters.refused_rate += 1;
            Refusal::new(Code::RateLimitExceeded, "too many requests")
                .with_details(json!({"retry_after_ms": millis, "limit": limit.requests_per_second}))
        })
    }

    /// A policy of the tenant, of everybody, or the built-in one.
    pub(super) fn find_policy(&self, tenant: &str, id: &str) -> Option<(Arc<Policy>, u64)> {
        self.state.policy(tenant, id).or_else(|| (id == "default").then(|| (Arc::clone(&self.built_in), 0)))
    }

    /// Makes a decision without recording it: for the request itself, and for a dry run.
    pub(super) fn pick(
        &mut self,
        now: u64,
        request: &DecideRequest,
        policy: &Policy,
        version: u64,
        explanation: Option<&mut Explanation>,
    ) -> Option<(Decision, Option<(String, u64)>)> {
        let session = policy.sticky.as_ref().and_then(|sticky| {
            let value = request.context.get(&sticky.session_key)?;
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            (!text.is_empty() && text.len() <= 256).then_some((text, sticky.ttl_millis))
        });
        let kept =
            session.as_ref().and_then(|(session, _)| self.state.session(&request.tenant, session, now));
        let (state, tenant) = (&self.state, &request.tenant);
        let admits = |provider: &str| match &policy.breaker {
            None => true,
            Some(rules) => state
                .breakers
                .get(&(tenant.clone(), provider.to_owned()))
                .is_none_or(|breaker| breaker.admits(rules, now)),
        };
        let situation = Situation { context: &request.context, sticky: kept, admits: &admits };
        let choice = select(policy, &situation, &mut self.random, explanation)?;
        let figures = self.state.providers.get(&(request.tenant.clone(), choice.provider.clone()));
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an average of milliseconds"
        )]
        let (latency, cost) =
            figures.map_or((0, 0.0), |figures| (figures.latency_millis.round() as u64, figures.cost));
        let mut decision = Decision {
            provider: choice.provider.clone(),
            reason: choice.reason.as_str().to_owned(),
            priority: choice.reason.priority(),
            expected_latency_millis: latency,
            expected_cost: cost,
            policy_id: request.policy_id.clone(),
            policy_version: version,
            sticky_key: session.as_ref().map(|(session, _)| session.clone()),
            ..Decision::default()
        };
        if let Some(backoff) = choice.backoff_millis {
            decision.metadata.insert("backoff_ms".to_owned(), backoff.into());
        }
        let sticky = session.map(|(session, ttl)| (session, now + ttl));
        Some((decision, sticky))
    }

    /// Decides, records, answers, and begins the task if one was asked for.
    #[expect(clippy::too_many_arguments, reason = "the facts of one decision")]
    pub(super) fn choose(
        &mut self,
        now: u64,
        request: DecideRequest,
        key: Option<String>,
        policy: &Policy,
        version: u64,
        askers: &[Asker],
        metadata: Option<serde_json::Map<String, Value>>,
    ) {
        if let Err(refusal) = self.check_stored() {
            self.counters.refused_unstored += 1;
            for asker in askers {
                self.answer_refusal(asker, &refusal);
            }
            return;
        }
        let Some((mut decision, sticky)) = self.pick(now, &request, policy, version, None) else {
            self.counters.refused_other += 1;
            let refusal =
                Refusal::new(Code::DecisionFailed, "no_provider_available: no provider can take it");
            for asker in askers {
                self.answer_refusal(asker, &refusal);
            }
            return;
        };
        if let Err(refusal) = self.check_cost(now, &request, &decision) {
            self.counters.refused_quota += 1;
            for asker in askers {
                self.answer_refusal(asker, &refusal);
            }
            return;
        }
        if sticky.is_some() {
            if decision.reason == "sticky" {
                self.counters.sticky_hits += 1;
            } else {
                self.counters.sticky_misses += 1;
            }
        }
        if let Some(metadata) = metadata {
            decision.metadata.extend(metadata);
        }
        let rules = self.state.rules(&request.tenant);
        let ttl = rules
            .and_then(|rules| rules.idempotency_ttl_seconds)
            .map_or(self.settings.idempotency_ttl_millis, |seconds| seconds.saturating_mul(1_000));
        let spec = request.push_assignment.then(|| self.task_spec(now, &request, &decision));
        let number = self.state.next_task;
        let expires_at = spec.as_ref().and_then(|spec| spec.expires_at);
        let has_task = spec.is_some();
        let event = Decided {
            at: now,
            tenant: request.tenant,
            key,
            request_id: request.request_id,
            message_id: request.message_id,
            trace_id: request.correlation.trace_id,
            traceparent: if has_task { None } else { request.traceparent },
            fingerprint: hex(&request.fingerprint),
            expires: now.saturating_add(ttl),
            decision: decision.clone(),
            sticky,
            task: spec,
        };
        self.record(Event::Decided(Box::new(event)));
        for asker in askers {
            self.answer_decision(asker, &decision);
        }
        if has_task {
            if let Some(at) = expires_at {
                self.timers.insert((at, super::Timer::Expiry(number)));
            }
            self.due(now, number);
        }
    }

    /// Whether the quota has room for what the job will cost: that is reserved until its result says what it did.
    fn check_cost(&self, now: u64, request: &DecideRequest, decision: &Decision) -> Result<(), Refusal> {
        let quota = self.state.rules(&request.tenant).map(|rules| rules.quota).unwrap_or_default();
        let used = self.state.consumption.get(&request.tenant);
        match used.and_then(|used| used.exceeded(&quota, now, decision.expected_cost, false)) {
            Some(quota) if request.push_assignment => Err(over_quota(quota)),
            Some(_) | None => Ok(()),
        }
    }

    fn task_spec(&self, now: u64, request: &DecideRequest, decision: &Decision) -> TaskSpec {
        let option = |key: &str| request.options.get(key).and_then(Value::as_u64);
        let usual =
            decision.expected_latency_millis.saturating_mul(5).clamp(DEADLINE_MILLIS.0, DEADLINE_MILLIS.1);
        let retry = request.options.get("retry");
        let attempts = retry.and_then(|retry| retry.get("max_attempts")).and_then(Value::as_u64);
        let expiry = option("expires_ms").or_else(|| option("ttl_ms"));
        TaskSpec {
            tenant: request.tenant.clone(),
            request_id: request.request_id.clone(),
            trace_id: request.correlation.trace_id.clone(),
            traceparent: request.traceparent.clone(),
            run_id: request.correlation.run_id.clone(),
            flow_id: request.correlation.flow_id.clone(),
            step_id: request.correlation.step_id.clone(),
            subject: self.subject_of(request),
            job_type: request.job_type.clone(),
            payload: request.payload.clone(),
            payload_ref: request.payload_ref.clone(),
            options: request.options.clone(),
            context: request.context.clone(),
            decision: decision.clone(),
            priority: option("priority")
                .and_then(|n| u8::try_from(n.min(100)).ok())
                .unwrap_or(decision.priority),
            ack_wait_millis: option("deadline_ms")
                .map_or(usual, |asked| asked.clamp(100, DEADLINE_MILLIS_MAX)),
            attempts_max: attempts
                .and_then(|n| u32::try_from(n.clamp(1, 100)).ok())
                .unwrap_or(self.settings.attempts_max),
            expires_at: expiry.map(|after| now.saturating_add(after.max(1))),
            replay_of: None,
        }
    }

    pub(super) fn answer_decision(&mut self, asker: &Asker, decision: &Decision) {
        let payload = replies::decided(&asker.context, asker.message_id.as_deref(), decision);
        self.answer(asker, &payload);
    }

    pub(super) fn answer_refusal(&mut self, asker: &Asker, refusal: &Refusal) {
        let payload = replies::refused(&asker.context, refusal);
        self.answer(asker, &payload);
    }

    fn answer(&mut self, asker: &Asker, payload: &[u8]) {
        for subject in &asker.subjects {
            self.publish(subject.clone(), Vec::new(), payload.to_vec());
        }
    }

    /// Refuses a message at the door: an error reply, a dead letter where the contract wants one, and one
    /// more reason to block its tenant.
    pub(super) fn refuse_intake(
        &mut self,
        now: u64,
        message: &Message<'_>,
        asker: &Asker,
        refusal: &Refusal,
    ) {
        self.answer_refusal(asker, refusal);
        let of = match refusal.intake {
            Some(IntakeCode::TenantForbidden) => Suspicion::Denied,
            Some(_) | None => Suspicion::Invalid,
        };
        self.suspect(now, asker.context.tenant.as_deref(), of);
        let Some(code) = refusal.intake.filter(|code| code.is_dead_letter()) else { return };
        self.bury(
            now,
            message,
            "VALIDATION_FAILED",
            code.as_str(),
            code.severity(),
            &asker.context,
            &refusal.message,
        );
    }

    /// Keeps a dead letter of a message, without its payload, and tells those who listen for it.
    #[expect(clippy::too_many_arguments, reason = "the fields of a dead letter")]
    pub(super) fn bury(
        &mut self,
        now: u64,
        message: &Message<'_>,
        reason: &str,
        code: &str,
        severity: &str,
        context: &ReplyContext,
        text: &str,
    ) {
        let subject = String::from_utf8_lossy(message.subject).into_owned();
        let text = mask::mask_text(text).unwrap_or_else(|| text.to_owned());
        let masked = |id: &Option<String>| {
            id.as_deref().map(|id| mask::mask_text(id).unwrap_or_else(|| id.to_owned()))
        };
        let hash = payload_hash(message.payload);
        let record = json!({
            "original_subject": subject,
            "original_payload_hash": hash,
            "validation_error": {"code": code, "message": text, "severity": severity},
            "context": {
                "tenant_id": masked(&context.tenant),
                "request_id": masked(&context.request_id),
                "trace_id": masked(&context.trace_id),
            },
            "received_at": now,
            "reason": reason,
        });
        // While the log takes nothing it is told, and not kept.
        if self.unstored.is_none() {
            self.record(Event::Buried(Box::new(DeadLetter {
                at: now,
                subject: subject.clone(),
                reason: reason.to_owned(),
                code: code.to_owned(),
                payload_hash: Some(hash),
                tenant: masked(&context.tenant),
                trace_id: masked(&context.trace_id),
                request_id: masked(&context.request_id),
                message: text,
                ..DeadLetter::default()
            })));
        }
        self.publish(format!("{subject}.dlq"), Vec::new(), record.to_string().into_bytes());
    }

    /// `{"message_id": …}`: the decision about a message.
    pub(super) fn get_decision(&mut self, now: u64, message: &Message<'_>) {
        let body: Value = serde_json::from_slice(message.payload).unwrap_or_default();
        let text = |key: &str| body.get(key).and_then(Value::as_str).map(str::to_owned);
        let id = text("message_id").or_else(|| text("request_id"));
        let context =
            ReplyContext { request_id: id.clone(), tenant: text("tenant_id"), ..ReplyContext::default() };
        let Some(id) = id else {
            let refusal = Refusal::intake(IntakeCode::SchemaValidationFailed, "message_id is required");
            self.reply(message, replies::refused(&context, &refusal));
            return;
        };
        // The gateway names no tenant; an id that two tenants have belongs to neither then.
        let mut found = self
            .state
            .lookups
            .range((id.clone(), String::new())..)
            .take_while(|((other, _), _)| *other == id)
            .filter(|((_, tenant), _)| context.tenant.as_ref().is_none_or(|asked| asked == tenant))
            .filter_map(|(_, key)| self.state.remembered(key, now));
        let payload = match (found.next(), found.next()) {
            (Some(known), None) => {
                let context = ReplyContext { trace_id: known.trace_id.clone(), ..context };
                replies::decided(&context, Some(&id), &known.decision)
            }
            (Some(_), Some(_)) => {
                let text = "several tenants have a message with this id: name the tenant_id";
                replies::refused(&context, &Refusal::new(Code::InvalidRequest, text))
            }
            (None, _) => {
                replies::refused(&context, &Refusal::new(Code::NotFound, "no decision with this id"))
            }
        };
        self.reply(message, payload);
    }

    /// How loaded the router is now.
    pub(super) fn pressure(&mut self, now: u64) -> Pressure {
        let queued = self.ready_count();
        let in_flight = self.conversations.len();
        let latency = self.signals.p95_micros(now);
        let pressure = Pressure::of(&self.settings.overload, queued, latency, in_flight);
        self.counters.latency_p95_micros = latency;
        self.counters.backpressure = match pressure {
            Pressure::Inactive => 0,
            Pressure::Warning => 1,
            Pressure::Active => 2,
        };
        pressure
    }

    /// Looks at the load again. Not only when a request asks: gateways that were told of an overload send none until
    /// they are told that it is over.
    pub fn look_at_pressure(&mut self, now: u64) {
        self.pressure(now);
    }

    pub(super) fn tell_backpressure(&mut self, now: u64, message: &Message<'_>) {
        let pressure = self.pressure(now);
        let queued = self.ready_count();
        let retry = if pressure == Pressure::Active { self.settings.overload.retry_after_seconds } else { 0 };
        let body = json!({
            "status": pressure.as_str(),
            "subject": subjects::DECIDE,
            "pending_messages": queued,
            "latency_p95": self.signals.p95_micros(now) / 1_000,
            "inflight_messages": self.conversations.len(),
            "retry_after_seconds": retry,
        });
        self.reply(message, body.to_string().into_bytes());
    }
}
