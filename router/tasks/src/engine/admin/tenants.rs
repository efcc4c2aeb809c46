//! Tenants and extensions: their rules and records.

use serde_json::{Map, Value, json};

use super::{Answer, bad, missing, text};
use crate::engine::Engine;
use crate::state::event::{Event, ExtensionRecord};
use crate::state::tenant::TenantRules;

const TENANTS_MAX: usize = 10_000;
const EXTENSIONS_MAX: usize = 1_000;

impl Engine {
    pub(super) fn put_tenant(&mut self, now: u64, body: &Map<String, Value>, by: String) -> Answer {
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

    pub(super) fn get_tenant(&self, now: u64, body: &Map<String, Value>) -> Answer {
        let tenant = text(body, "tenant_id")?;
        let block = self.state.blocks.get(tenant).filter(|block| block.until > now);
        Ok(json!({"ok": true, "tenant_id": tenant, "rules": self.state.rules(tenant),
            "consumption": self.state.consumption.get(tenant), "blocked": block}))
    }

    pub(super) fn delete_tenant(&mut self, now: u64, body: &Map<String, Value>, by: String) -> Answer {
        let tenant = text(body, "tenant_id")?.to_owned();
        if !self.state.tenants.contains_key(&tenant) {
            return Err(bad("NOT_FOUND", "the tenant has no rules of its own"));
        }
        self.record(Event::TenantDeleted { at: now, tenant, by });
        Ok(json!({"ok": true}))
    }

    pub(super) fn unblock_tenant(&mut self, now: u64, body: &Map<String, Value>, by: String) -> Answer {
        let tenant = text(body, "tenant_id")?.to_owned();
        self.record(Event::Unblocked { at: now, tenant, by });
        Ok(json!({"ok": true}))
    }

    pub(super) fn put_extension(&mut self, now: u64, body: &Map<String, Value>, by: String) -> Answer {
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

    pub(super) fn delete_extension(&mut self, now: u64, body: &Map<String, Value>, by: String) -> Answer {
        let id = text(body, "id")?.to_owned();
        if !self.state.extensions.contains_key(&id) {
            return Err(bad("NOT_FOUND", "there is no such extension"));
        }
        self.record(Event::ExtensionDeleted { at: now, id, by });
        Ok(json!({"ok": true}))
    }
}
