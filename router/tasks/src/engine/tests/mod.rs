//! The engine as its clients see it: messages in, messages out.

mod decisions;
mod degraded;
mod extensions;
mod jobs;
mod policies;
mod tenants;

use serde_json::{Value, json};

use super::pool::Member;
use super::settings::subjects::{ASSIGN, DECIDE, GET_DECISION, HEARTBEATS, RESULT};
use super::*;
use crate::state::event;
use crate::state::{Bounds, State};

struct Scene {
    engine: Engine,
    now: u64,
    log: Vec<Event>,
    published: Vec<(String, Value)>,
    offered: Vec<(u64, Value)>,
    asked: Vec<(u64, String, Value)>,
    members: Vec<Member>,
    /// Jobs on their way into a stream: task and id.
    kept: Vec<(u64, String)>,
    captured: bool,
}

impl Scene {
    fn new() -> Self {
        Self::with(Settings::default())
    }

    fn with(settings: Settings) -> Self {
        let engine = Engine::new(State::new(Bounds::default()), settings, 7, 1_000);
        let mut scene = Self {
            engine,
            now: 1_000,
            log: Vec::new(),
            published: Vec::new(),
            offered: Vec::new(),
            asked: Vec::new(),
            members: Vec::new(),
            kept: Vec::new(),
            captured: false,
        };
        scene.collect();
        scene
    }

    /// Another node over the same log.
    fn restart(mut self) -> Self {
        let written = event::encode(&self.log).unwrap();
        let mut state = State::new(Bounds::default());
        event::decode(&written).unwrap().iter().for_each(|event| state.apply(event));
        assert_eq!(&state, self.engine.state(), "live and replayed state are the same fold");
        self.engine = Engine::new(state, self.engine.settings.clone(), 8, self.now);
        self.members.clear();
        self.collect();
        self
    }

    fn collect(&mut self) {
        let (events, effects) = self.engine.take();
        self.log.extend(events);
        for effect in effects {
            match effect {
                Effect::Publish { subject, payload, .. } => {
                    let body = serde_json::from_slice(&payload).unwrap_or_default();
                    self.published.push((String::from_utf8(subject.to_vec()).unwrap(), body));
                }
                Effect::Ask { token, subject, payload } => {
                    self.asked.push((token, subject, serde_json::from_slice(&payload).unwrap()));
                }
                Effect::Offer { entry, payload, .. } => {
                    self.offered.push((entry, serde_json::from_slice(&payload).unwrap()));
                }
                Effect::Keep { task, payload, .. } => {
                    let body: Value = serde_json::from_slice(&payload).unwrap();
                    self.kept.push((task, body["assignment_id"].as_str().unwrap().to_owned()));
                }
                Effect::Watch { .. } => {}
            }
        }
    }

    fn send(&mut self, subject: &str, origin: u64, body: &Value) {
        let payload = body.to_string();
        let message = Message {
            subject: subject.as_bytes(),
            reply: b"inbox",
            headers: b"",
            payload: payload.as_bytes(),
            origin,
        };
        self.engine.handle(self.now, Input::Message(message));
        self.collect();
    }

    fn request(&mut self, subject: &str, body: Value) -> Value {
        self.published.clear();
        self.send(subject, 1, &body);
        self.replied()
    }

    fn replied(&self) -> Value {
        let replies: Vec<&Value> =
            self.published.iter().filter(|(to, _)| to == "inbox").map(|(_, body)| body).collect();
        assert_eq!(replies.len(), 1, "{:?}", self.published);
        replies[0].clone()
    }

    fn admin(&mut self, name: &str, body: Value) -> Value {
        self.request(&format!("beamline.router.v1.admin.{name}"), body)
    }

    fn push(&mut self, id: &str) -> Value {
        self.request(DECIDE, job(id, json!({})))
    }

    fn push_with(&mut self, id: &str, options: Value) -> Value {
        self.request(DECIDE, job(id, options))
    }

    fn worker(&mut self, entry: u64) {
        self.members.push(Member { entry, connection: entry, in_group: false });
        self.tell();
    }

    fn worker_leaves(&mut self, entry: u64) {
        self.members.retain(|member| member.entry != entry);
        self.tell();
    }

    fn tell(&mut self) {
        let (members, captured) = (self.members.clone(), self.captured);
        self.engine.handle(self.now, Input::Members { subject: ASSIGN.into(), members, captured });
        self.collect();
    }

    fn wait(&mut self, millis: u64) {
        let until = self.now + millis;
        while let Some(at) = self.engine.next_deadline().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            self.engine.handle(self.now, Input::Tick);
            self.collect();
        }
        self.now = until;
        self.engine.handle(self.now, Input::Tick);
        self.collect();
    }

    fn finish(&mut self, assignment: &Value, status: &str) {
        let result = result_of(assignment, status);
        self.send(RESULT, 9, &result);
    }

    fn usage(&self) -> Vec<Value> {
        self.engine
            .usage_between(0, u64::MAX, 1_000)
            .iter()
            .map(|(_, body)| serde_json::from_slice(body).unwrap())
            .collect()
    }
}

fn job(id: &str, options: Value) -> Value {
    json!({"version": "1", "tenant_id": "acme", "request_id": id, "trace_id": "tr", "push_assignment": true,
        "task": {"type": "echo", "payload": {"hello": "world"}}, "options": options})
}

fn result_of(assignment: &Value, status: &str) -> Value {
    json!({"version": "v1", "kind": "exec_result", "data": {"version": "1.0",
        "assignment_id": assignment["assignment_id"], "request_id": assignment["request_id"], "status": status,
        "provider_id": "worker-1", "job_type": "echo", "latency_ms": 40, "cost": 0.5, "tenant_id": "acme"}})
}

fn code(reply: &Value) -> &str {
    reply["error"]["code"].as_str().unwrap_or("none")
}
