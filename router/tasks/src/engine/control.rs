//! `beamline.router.control.v1.*` (contract section 1.11): twelve commands, of which one does something
//! today and the others say so.

use serde_json::{Map, Value, json};

use super::{Engine, Message};
use crate::codes::Code;

/// The commands, and what each requires besides the common fields.
const COMMANDS: [(&str, &[&str]); 12] = [
    ("project.open", &["project_root"]),
    ("project.close", &["project_id"]),
    ("index.start", &["project_id"]),
    ("index.status", &["index_id"]),
    ("index.cancel", &["index_id"]),
    ("task.submit", &["job"]),
    ("task.status", &["task_id"]),
    ("task.cancel", &["task_id"]),
    ("chat.start", &["project_id"]),
    ("chat.send", &["session_id", "message"]),
    ("chat.cancel", &["session_id"]),
    ("events.subscribe", &[]),
];
const COMMON: [&str; 4] = ["tenant_id", "request_id", "trace_id", "idempotency_key"];

impl Engine {
    pub(super) fn control(&mut self, _now: u64, command: &[u8], message: &Message<'_>) {
        let body: Map<String, Value> = match serde_json::from_slice(message.payload) {
            Ok(Value::Object(body)) => body,
            Ok(_) | Err(_) => Map::new(),
        };
        let answer = self.control_answer(command, message.headers, &body);
        let context = json!({"request_id": body.get("request_id"), "trace_id": body.get("trace_id")});
        let reply = match answer {
            Ok(result) => json!({"version": "1", "ok": true, "result": result, "context": context}),
            Err((code, text)) => json!({"version": "1", "ok": false,
                "error": {"code": code.as_str(), "message": text}, "context": context}),
        };
        self.reply(message, reply.to_string().into_bytes());
    }

    /// Whether the command shows the token, if one is asked for. A header beats the body.
    fn may_control(&self, headers: &[u8], body: &Map<String, Value>) -> bool {
        let Some(token) = &self.settings.control_token else { return true };
        let header = |name: &[u8]| {
            let value = beamlog_router::headers::find_ignore_case(headers, name)?;
            std::str::from_utf8(value).ok().map(str::trim)
        };
        let bearer =
            || header(b"authorization").map(|text| text.strip_prefix("Bearer ").unwrap_or(text).trim());
        let shown = header(b"token").or_else(bearer).or_else(|| body.get("token")?.as_str());
        shown.is_some_and(|shown| token.is(shown))
    }

    fn control_answer(
        &mut self,
        command: &[u8],
        headers: &[u8],
        body: &Map<String, Value>,
    ) -> Result<Value, (Code, String)> {
        let known = COMMANDS.iter().find(|(name, _)| name.as_bytes() == command);
        let Some((name, required)) = known else {
            return Err((Code::InvalidSubject, "there is no such command".to_owned()));
        };
        if !self.may_control(headers, body) {
            return Err((Code::Unauthorized, "the token is missing or not the right one".to_owned()));
        }
        if body.get("version").and_then(Value::as_str) != Some("1") {
            return Err((Code::InvalidRequest, "version must be \"1\"".to_owned()));
        }
        let is_there = |key: &&str| match body.get(*key) {
            Some(Value::String(text)) => !text.is_empty(),
            Some(Value::Null) | None => false,
            Some(_) => true,
        };
        let has_tenant = self.settings.control_tenant.is_some();
        let wanted = COMMON.iter().filter(|key| **key != "tenant_id" || !has_tenant);
        if let Some(missing) = wanted.chain(*required).find(|key| !is_there(key)) {
            return Err((Code::InvalidRequest, format!("{missing} is required")));
        }
        if *name == "task.submit" && body.get("job").and_then(|job| job.get("type")).is_none() {
            return Err((Code::InvalidRequest, "job.type is required".to_owned()));
        }
        if *name != "events.subscribe" {
            return Err((Code::NotImplemented, format!("{name} is not implemented")));
        }
        let id = format!("{:016x}{:016x}", self.random.next_u64(), self.random.next_u64());
        let inbox = format!("beamline.router.control.v1.events.inbox.{id}");
        Ok(json!({"subscription_id": id, "inbox_subject": inbox}))
    }
}
