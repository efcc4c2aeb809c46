//! Pre-processors, validators and post-processors: request-reply with services of the users, one after the
//! other. A conversation is the request while it waits for them; it lives in memory only, and ends with the
//! node: its client asks again.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::decide::Asker;
use super::{Effect, Engine, Timer};
use crate::codes::{Code, Refusal};
use crate::intake::DecideRequest;
use crate::policy::breaker::{Breaker, BreakerState};
use crate::policy::document::{BreakerRules, Extension, OnFail, Policy, when_matches};

const TIMEOUT_MILLIS: u64 = 5_000;
const METADATA_BYTES_MAX: usize = 64 << 10;
const PAYLOAD_BYTES_MAX: usize = 1 << 20;
/// Who may wait for the same decision.
const ASKERS_MAX: usize = 64;
/// Extensions with figures.
const HEALTH_MAX: usize = 1_000;

/// The breaker of an extension: the defaults of the contract, but half-open after five seconds.
const RULES: BreakerRules = BreakerRules {
    failure_threshold: 5,
    success_threshold: 2,
    timeout_millis: 5_000,
    half_open_max_calls: 3,
    error_rate_threshold: 0.5,
    error_rate_window_millis: 60_000,
    latency_threshold_millis: 10_000,
};

/// How an extension does.
#[derive(Debug, Default)]
pub(super) struct Health {
    breaker: Breaker,
    calls: u64,
    failures: u64,
    latency_millis: u64,
    /// What was wrong with the last call that failed.
    problem: &'static str,
}

impl Health {
    pub(super) fn is_open(&self) -> bool {
        self.breaker.trouble().is_some()
    }

    /// While calls are not let through, or only to try: state, cause, since when.
    pub(super) fn trouble(&self, now: u64) -> Option<(&'static str, &'static str, u64)> {
        let (_, since) = self.breaker.trouble()?;
        Some((self.breaker.shown(now).as_str(), self.problem, since))
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Part {
    Pre,
    Validator,
    Post,
}

#[derive(Debug)]
pub(super) struct Conversation {
    request: DecideRequest,
    key: Option<String>,
    policy: Arc<Policy>,
    version: u64,
    askers: Vec<Asker>,
    /// Which extension of which part is next or being asked.
    part: Part,
    at: usize,
    tries: u32,
    asked_at: u64,
    metadata: Map<String, Value>,
    executed: Vec<Value>,
    /// A dry run: whom to answer instead of deciding.
    dry: bool,
}

impl Conversation {
    pub(super) fn new(
        request: DecideRequest,
        key: Option<String>,
        policy: Arc<Policy>,
        version: u64,
        asker: Asker,
    ) -> Self {
        Self {
            request,
            key,
            policy,
            version,
            askers: vec![asker],
            part: Part::Pre,
            at: 0,
            tries: 0,
            asked_at: 0,
            metadata: Map::new(),
            executed: Vec::new(),
            dry: false,
        }
    }

    pub(super) fn dry_run(self) -> Self {
        Self { dry: true, ..self }
    }

    pub(super) fn askers(&self) -> &[Asker] {
        &self.askers
    }

    pub(super) fn has_key(&self, key: &str) -> bool {
        !self.dry && self.key.as_deref() == Some(key)
    }

    pub(super) fn also(&mut self, asker: Asker) {
        if self.askers.len() < ASKERS_MAX {
            self.askers.push(asker);
        }
    }

    fn extension(&self) -> Option<&Extension> {
        match self.part {
            Part::Pre => self.policy.pre.get(self.at),
            Part::Validator => self.policy.validators.get(self.at),
            Part::Post => self.policy.post.get(self.at),
        }
    }

    /// Steps to the next extension; `false` after the last.
    fn step(&mut self) -> bool {
        self.at += 1;
        self.tries = 0;
        self.settle()
    }

    /// Skips parts that are over.
    fn settle(&mut self) -> bool {
        while self.extension().is_none() {
            self.at = 0;
            self.part = match self.part {
                Part::Pre => Part::Validator,
                Part::Validator => Part::Post,
                Part::Post => return false,
            };
        }
        true
    }
}

/// What became of one call.
enum Outcome<'a> {
    Answer(&'a [u8]),
    Timeout,
    Unheard,
    /// Its breaker is open.
    Shut,
    Unknown,
    Broken,
}

impl Engine {
    pub(super) fn converse(&mut self, now: u64, mut conversation: Conversation) {
        if conversation.settle() {
            self.ask(now, conversation);
        } else {
            self.conclude(now, conversation);
        }
    }

    fn ask(&mut self, now: u64, mut conversation: Conversation) {
        loop {
            let Some(extension) = conversation.extension().cloned() else {
                return self.conclude(now, conversation);
            };
            if !when_matches(&extension.when, &conversation.request.context) {
                if conversation.step() {
                    continue;
                }
                return self.conclude(now, conversation);
            }
            let record = self.state.extensions.get(&extension.id).cloned();
            let part = match conversation.part {
                Part::Pre => "pre",
                Part::Validator => "validate",
                Part::Post => "post",
            };
            let outcome = match &record {
                Some(record) if !record.enabled => Some(Outcome::Unknown),
                Some(_) | None if !self.is_open_for_calls(&extension.id, now) => Some(Outcome::Shut),
                Some(_) | None => None,
            };
            if let Some(outcome) = outcome {
                match self.failed(now, conversation, &extension, &outcome) {
                    Some(rest) => conversation = rest,
                    None => return,
                }
                continue;
            }
            let subject = record.as_ref().map_or_else(
                || format!("beamline.ext.{part}.{}.v1", extension.id),
                |record| record.subject.clone(),
            );
            let timeout = extension
                .timeout_millis
                .or_else(|| record.as_ref().and_then(|record| record.timeout_millis))
                .unwrap_or(TIMEOUT_MILLIS)
                .clamp(10, TIMEOUT_MILLIS);
            let payload = question(&conversation, &extension);
            let token = self.next_token;
            self.next_token += 1;
            self.counters.extension_calls += 1;
            conversation.asked_at = now;
            self.timers.insert((now + timeout, Timer::Extension(token)));
            self.conversations.insert(token, conversation);
            self.effects.push(Effect::Ask { token, subject, payload });
            return;
        }
    }

    fn is_open_for_calls(&mut self, id: &str, now: u64) -> bool {
        if self.health.len() >= HEALTH_MAX && !self.health.contains_key(id) {
            self.health.pop_first();
        }
        let health = self.health.entry(id.to_owned()).or_default();
        let admits = health.breaker.admits(&RULES, now);
        if admits {
            health.breaker.called(&RULES, now);
        }
        admits
    }

    pub(super) fn answered(&mut self, now: u64, token: u64, headers: &[u8], payload: &[u8]) {
        if beamlog_router::headers::status(headers) == Some(503) {
            return self.unheard(now, token);
        }
        self.heard(now, token, &Outcome::Answer(payload));
    }

    pub(super) fn unheard(&mut self, now: u64, token: u64) {
        self.heard(now, token, &Outcome::Unheard);
    }

    pub(super) fn extension_timed_out(&mut self, now: u64, token: u64) {
        self.heard(now, token, &Outcome::Timeout);
    }

    fn heard(&mut self, now: u64, token: u64, outcome: &Outcome<'_>) {
        // An answer that comes after its time is nobody's.
        let Some(mut conversation) = self.conversations.remove(&token) else { return };
        let Some(extension) = conversation.extension().cloned() else { return };
        let millis = now.saturating_sub(conversation.asked_at);
        let record = self.state.extensions.get(&extension.id);
        let retries = extension.retry.or_else(|| record.and_then(|record| record.retry)).unwrap_or(0).min(3);
        let answer = match outcome {
            Outcome::Answer(payload) => {
                serde_json::from_slice::<Value>(payload).ok().filter(Value::is_object).filter(|answer| {
                    // A service that says that it failed has failed.
                    answer.get("error").is_none_or(Value::is_null)
                })
            }
            Outcome::Timeout | Outcome::Unheard | Outcome::Shut | Outcome::Unknown | Outcome::Broken => None,
        };
        let health = self.health.entry(extension.id.clone()).or_default();
        health.calls += 1;
        health.latency_millis =
            if health.calls == 1 { millis } else { (health.latency_millis * 7 + millis) / 8 };
        health.breaker.ended(&RULES, answer.is_none(), millis, now);
        let Some(answer) = answer else {
            health.failures += 1;
            health.problem = match outcome {
                Outcome::Timeout => "did not answer in time",
                Outcome::Unheard => "has no service",
                Outcome::Answer(_) | Outcome::Shut | Outcome::Unknown | Outcome::Broken => {
                    "answered with an error"
                }
            };
            self.counters.extension_failures += 1;
            if conversation.tries < retries {
                conversation.tries += 1;
                return self.ask(now, conversation);
            }
            let is_broken = matches!(outcome, Outcome::Answer(_));
            let outcome = if is_broken { &Outcome::Broken } else { outcome };
            if let Some(rest) = self.failed(now, conversation, &extension, outcome) {
                self.ask(now, rest);
            }
            return;
        };
        conversation.executed.push(json!({"id": extension.id, "status": "ok", "latency_ms": millis}));
        if conversation.part == Part::Validator {
            if answer.get("status").and_then(Value::as_str) == Some("ok") {
                return self.go_on(now, conversation);
            }
            let reason = answer.get("reason").and_then(Value::as_str).unwrap_or("rejected").to_owned();
            let details = answer.get("details").cloned().unwrap_or_default();
            return self.rejected(now, conversation, &extension, &reason, details);
        }
        if let Some(payload) = answer.get("payload").filter(|payload| !payload.is_null()) {
            let text = payload.to_string();
            if text.len() <= PAYLOAD_BYTES_MAX && conversation.part == Part::Pre {
                conversation.request.payload = Some(text.into());
            }
        }
        if let Some(Value::Object(metadata)) = answer.get("metadata") {
            let size = serde_json::to_vec(metadata).map_or(usize::MAX, |raw| raw.len());
            if size <= METADATA_BYTES_MAX {
                if conversation.part == Part::Pre {
                    conversation.request.context.extend(metadata.clone());
                }
                conversation.metadata.extend(metadata.clone());
            }
        }
        self.go_on(now, conversation);
    }

    fn go_on(&mut self, now: u64, mut conversation: Conversation) {
        if conversation.step() {
            self.ask(now, conversation);
        } else {
            self.conclude(now, conversation);
        }
    }

    /// A call that did not work: ends the conversation, or gives it back to go on.
    fn failed(
        &mut self,
        now: u64,
        mut conversation: Conversation,
        extension: &Extension,
        outcome: &Outcome<'_>,
    ) -> Option<Conversation> {
        let is_registered = self.state.extensions.contains_key(&extension.id);
        let (code, what) = match outcome {
            Outcome::Timeout => (Code::ExtensionTimeout, "did not answer in time"),
            Outcome::Unheard if is_registered => (Code::ExtensionUnavailable, "has no service"),
            Outcome::Unheard | Outcome::Unknown => (Code::ExtensionNotFound, "is not known"),
            Outcome::Shut => (Code::ExtensionUnavailable, "failed too often and rests"),
            Outcome::Broken | Outcome::Answer(_) if conversation.part == Part::Post => {
                (Code::PostProcessorFailed, "failed")
            }
            Outcome::Broken | Outcome::Answer(_) => (Code::ExtensionError, "failed"),
        };
        conversation.executed.push(json!({"id": extension.id, "status": code.as_str()}));
        let refusal = Refusal::new(code, format!("extension {} {what}", extension.id));
        match conversation.part {
            // Silence counts as a rejection.
            Part::Validator => {
                let reason = format!("extension {} {what}", extension.id);
                match extension.on_fail {
                    OnFail::Block => self.end(now, &conversation, &refusal),
                    OnFail::Warn | OnFail::Ignore => {
                        self.rejected(now, conversation, extension, &reason, Value::Null);
                    }
                }
                None
            }
            Part::Pre | Part::Post if extension.required => {
                self.end(now, &conversation, &refusal);
                None
            }
            Part::Pre | Part::Post => {
                if conversation.step() {
                    return Some(conversation);
                }
                self.conclude(now, conversation);
                None
            }
        }
    }

    fn rejected(
        &mut self,
        now: u64,
        mut conversation: Conversation,
        extension: &Extension,
        reason: &str,
        details: Value,
    ) {
        match extension.on_fail {
            OnFail::Block => {
                let text = format!("validator {} rejected the request: {reason}", extension.id);
                let refusal = Refusal::new(Code::ValidatorBlocked, text).with_details(details);
                self.end(now, &conversation, &refusal);
            }
            OnFail::Warn => {
                let warnings = conversation.metadata.entry("warnings").or_insert_with(|| json!([]));
                if let Value::Array(warnings) = warnings {
                    warnings.push(json!({"validator": extension.id, "reason": reason}));
                }
                self.go_on(now, conversation);
            }
            OnFail::Ignore => self.go_on(now, conversation),
        }
    }

    fn end(&mut self, now: u64, conversation: &Conversation, refusal: &Refusal) {
        self.counters.refused_other += 1;
        if conversation.dry {
            self.answer_dry(now, conversation, Err(refusal));
            return;
        }
        for asker in &conversation.askers {
            self.answer_refusal(asker, refusal);
        }
    }

    fn conclude(&mut self, now: u64, conversation: Conversation) {
        if conversation.dry {
            self.answer_dry(now, &conversation, Ok(()));
            return;
        }
        let Conversation { request, key, policy, version, askers, metadata, executed, .. } = conversation;
        let mut metadata = metadata;
        metadata.insert("executed_extensions".to_owned(), Value::Array(executed));
        self.choose(now, request, key, &policy, version, &askers, Some(metadata));
    }

    fn answer_dry(&mut self, now: u64, conversation: &Conversation, outcome: Result<(), &Refusal>) {
        let Some(asker) = conversation.askers.first() else { return };
        let body = match outcome {
            Ok(()) => self.dry_result(
                now,
                &conversation.request,
                &Arc::clone(&conversation.policy),
                conversation.version,
                &conversation.executed,
            ),
            Err(refusal) => {
                json!({"ok": false, "error": {"code": "PIPELINE_ERROR", "message": refusal.message,
                "details": {"code": refusal.code.as_str(), "executed_extensions": conversation.executed}}})
            }
        };
        for subject in asker.subjects.clone() {
            self.publish(subject, Vec::new(), body.to_string().into_bytes());
        }
    }

    /// `get_extension_health`.
    pub(super) fn extension_health(&self, now: u64) -> Value {
        let mut all: BTreeMap<&String, Value> = BTreeMap::new();
        for id in self.state.extensions.keys().chain(self.health.keys()) {
            let empty = Health::default();
            let health = self.health.get(id).unwrap_or(&empty);
            #[expect(clippy::cast_precision_loss, reason = "a rate")]
            let rate =
                if health.calls == 0 { 1.0 } else { 1.0 - health.failures as f64 / health.calls as f64 };
            let status = if rate >= 0.95 {
                "healthy"
            } else if rate >= 0.80 {
                "degraded"
            } else {
                "unhealthy"
            };
            let is_open = health.breaker.state(&RULES, now) == BreakerState::Open;
            all.insert(
                id,
                json!({"status": status, "success_rate": rate, "total_requests": health.calls,
                    "failures": health.failures, "avg_latency_ms": health.latency_millis,
                    "circuit_breaker": health.breaker.state(&RULES, now).as_str(), "available": !is_open}),
            );
        }
        json!({"health": all})
    }
}

/// What an extension is asked: trace, tenant, payload, metadata.
fn question(conversation: &Conversation, extension: &Extension) -> Vec<u8> {
    let request = &conversation.request;
    let mut metadata = Map::new();
    metadata.extend(request.context.clone());
    metadata.extend(conversation.metadata.clone());
    metadata.insert("request_id".to_owned(), json!(request.request_id));
    metadata.insert("policy_id".to_owned(), request.policy_id.as_str().into());
    metadata.insert("message_type".to_owned(), request.job_type.as_str().into());
    if !extension.config.is_empty() {
        metadata.insert("config".to_owned(), Value::Object(extension.config.clone()));
    }
    let known =
        json!({"trace_id": request.correlation.trace_id, "tenant_id": request.tenant, "metadata": metadata});
    let mut text = known.to_string();
    // An object with members ends in a brace; the payload goes on as it came.
    text.pop();
    text.push_str(&format!(",\"payload\":{}}}", request.payload.as_deref().unwrap_or("null")));
    text.into_bytes()
}
