//! `beamline.router.v1.admin.*`: looking at tasks, dead letters, policies, tenants and extensions, and
//! changing them. Every change is an event, and so in the audit.

mod dead_letters;
mod policies;
mod tasks;
mod tenants;

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{Engine, Message};
use crate::state::Figures;

/// Rows of one page.
const PAGE_MAX: usize = 1_000;
const PAGE: usize = 100;
/// Requests that change something.
const CHANGES: [&[u8]; 11] = [
    b"upsert_policy",
    b"delete_policy",
    b"upsert_tenant",
    b"delete_tenant",
    b"unblock_tenant",
    b"upsert_extension",
    b"delete_extension",
    b"cancel_task",
    b"retry_task",
    b"replay_dlq",
    b"purge_dlq",
];

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
        if CHANGES.contains(&name)
            && let Some(cause) = &self.unstored
        {
            let refused = bad("UNAVAILABLE", format!("the change could not be stored: {cause}"));
            return self.answer_admin(message, Err(refused));
        }
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
            b"cancel_task" => self.cancel_task(now, &body, by),
            b"retry_task" => self.retry_task(now, &body, by),
            b"list_dlq" => Ok(self.list_dlq(&body)),
            b"get_dlq" => self.get_dlq(&body),
            b"replay_dlq" => self.replay_dlq(now, &body, &by),
            b"purge_dlq" => self.purge_dlq(now, &body, by),
            b"list_workers" => Ok(self.list_workers()),
            b"get_figures" => Ok(self.figures(&body)),
            b"get_audit" => Ok(json!({"ok": true, "audit": self.state.audit})),
            b"get_checkpoint_status" | b"cp_status" => Ok(self.status(now)),
            b"get_degraded" => {
                let degraded = self.degraded(now);
                let state = if degraded.is_empty() { "serving" } else { "degraded" };
                Ok(json!({"ok": true, "state": state, "degraded": degraded}))
            }
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
                let cause = breaker.trouble().map(|(cause, _)| cause.as_str());
                let view = json!({"tenant_id": tenant, "provider_id": provider,
                    "state": breaker.shown(now).as_str(), "failures": breaker.consecutive_failures(),
                    "opened_times": breaker.opened_times(), "cause": cause});
                (format!("{tenant}:{provider}"), view)
            })
            .collect();
        json!({"states": states})
    }

    /// How providers do, by tenant and by model: from the results of tasks.
    fn figures(&self, body: &Map<String, Value>) -> Value {
        let (offset, limit) = page(body);
        let rows = |figures: &BTreeMap<(String, String), Figures>, names: [&str; 2]| -> Vec<Value> {
            let some = figures.iter().skip(offset).take(limit);
            some.map(|((first, second), figures)| figures_row(names, first, second, figures)).collect()
        };
        json!({"ok": true,
            "providers": rows(&self.state.providers, ["tenant_id", "provider_id"]),
            "models": rows(&self.state.models, ["provider_id", "model"]),
            "total": self.state.providers.len().max(self.state.models.len())})
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

#[expect(clippy::cast_precision_loss, reason = "a rate")]
fn figures_row(names: [&str; 2], first: &str, second: &str, figures: &Figures) -> Value {
    let calls = figures.calls.max(1) as f64;
    json!({
        names[0]: first,
        names[1]: second,
        "calls": figures.calls,
        "failures": figures.failures,
        "success_rate": 1.0 - figures.failures as f64 / calls,
        "latency_ms": figures.latency_millis,
        "queued_ms": figures.queued_millis,
        "cost": figures.cost,
        "cost_total": figures.cost_total,
    })
}
