//! `beamline.router.v1.admin.*`: looking at tasks, dead letters, policies, tenants and extensions, and
//! changing them. Every change is an event, and so in the audit.

mod dead_letters;
mod policies;
mod tasks;
mod tenants;

use serde_json::{Map, Value, json};

use super::{Engine, Message};

/// Rows of one page.
const PAGE_MAX: usize = 1_000;
const PAGE: usize = 100;

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
