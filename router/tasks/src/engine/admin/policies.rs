//! Policies: put, shown, tried without a trace.

use serde_json::{Map, Value, json};

use super::{Answer, bad, missing, page, text};
use crate::engine::decide::Asker;
use crate::engine::extensions::Conversation;
use crate::engine::{Engine, Message};
use crate::intake::{DecideRequest, ReplyContext};
use crate::policy::complexity::complexity;
use crate::policy::document::Policy;
use crate::policy::select::Explanation;
use crate::state::event::Event;

const POLICIES_MAX: usize = 10_000;

impl Engine {
    pub(super) fn pipeline_complexity(&self, body: &Map<String, Value>) -> Answer {
        let (tenant, id) = (text(body, "tenant_id")?, text(body, "policy_id")?);
        let (policy, _) = self
            .find_policy(tenant, id)
            .ok_or_else(|| bad("POLICY_NOT_FOUND", "the tenant has no such policy"))?;
        Ok(complexity(&policy))
    }

    /// Decides without recording: the extensions are really asked, and every step is explained.
    pub(super) fn dry_run(&mut self, now: u64, body: &Map<String, Value>, message: &Message<'_>) {
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
    pub(in crate::engine) fn dry_result(
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

    pub(super) fn put_policy(&mut self, now: u64, body: &Map<String, Value>, by: String) -> Answer {
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
        if let Some(cause) = &self.unstored {
            return Err(format!("the policy could not be stored: {cause}"));
        }
        let answer = self.put_policy(now, &body, "a file".to_owned()).map_err(|refused| refused.message)?;
        Ok(answer["changed"] == true)
    }

    pub(super) fn get_policy(&self, body: &Map<String, Value>) -> Answer {
        let (tenant, id) = (text(body, "tenant_id")?, text(body, "policy_id")?);
        let stored = self.state.policies.get(&(tenant.to_owned(), id.to_owned()));
        match stored {
            Some(stored) => Ok(json!({"ok": true, "policy": stored.document, "version": stored.version,
                "changed_at": stored.changed_at})),
            None if id == "default" => Ok(json!({"ok": true, "policy": Policy::built_in().0, "version": 0})),
            None => Err(bad("POLICY_NOT_FOUND", "the tenant has no such policy")),
        }
    }

    pub(super) fn list_policies(&self, body: &Map<String, Value>) -> Value {
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

    pub(super) fn delete_policy(&mut self, now: u64, body: &Map<String, Value>, by: String) -> Answer {
        let (tenant, id) = (text(body, "tenant_id")?.to_owned(), text(body, "policy_id")?.to_owned());
        if !self.state.policies.contains_key(&(tenant.clone(), id.clone())) {
            return Err(bad("POLICY_NOT_FOUND", "the tenant has no such policy"));
        }
        self.record(Event::PolicyDeleted { at: now, tenant, id, by });
        Ok(json!({"ok": true}))
    }
}
