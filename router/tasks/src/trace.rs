//! Spans of what tasks did, made of events once they are durable: what a trace shows has happened, over restarts
//! and changes of the leader too. Pure; ids are made of the log's key, so that every node makes the same.
//!
//! ```text
//! (the caller's span)
//! └─ beamline.decide      the decision
//!    └─ beamline.task     from the decision to the one result
//!       ├─ beamline.queue from when it was ready to when a worker got it, each time
//!       ├─ beamline.run   from when a worker got it to its result, or to when it was taken back
//!       └─ beamline.usage metered
//! ```

use std::collections::BTreeMap;

use crate::ids::{IdKey, keyed};
use crate::intake::fields::trace_of_parent;
use crate::mask::mask_text;
use crate::results::Status;
use crate::state::State;
use crate::state::event::{Decided, Ended, Event};
use crate::state::task::{Phase, Task, TaskSpec};

/// Text of one attribute.
const TEXT_MAX: usize = 256;

/// Something that took its time.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Span {
    pub trace: [u8; 16],
    pub id: [u8; 8],
    pub parent: Option<[u8; 8]>,
    pub name: &'static str,
    pub start_millis: u64,
    pub end_millis: u64,
    /// Without secrets and addresses.
    pub attributes: Vec<(&'static str, String)>,
    /// Why it ended badly.
    pub error: Option<String>,
}

/// Which span of a task.
#[derive(Clone, Copy)]
enum Part {
    Decide,
    Task,
    /// The wait before a delivery, by the deliveries before it.
    Queue(u32),
    Run(u32),
    Usage,
}

/// Where a request belongs: its trace, and the caller's span.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Place {
    pub trace: [u8; 16],
    pub caller: Option<[u8; 8]>,
}

impl Place {
    /// From the W3C header, else from a trace id that is one, else made of what the request is known by.
    #[must_use]
    pub fn of(key: IdKey, traceparent: Option<&str>, trace_id: Option<&str>, known_by: &str) -> Self {
        if let Some(parent) = traceparent
            && let Some(trace) = trace_of_parent(parent).and_then(hex::<16>)
        {
            let span = parent.trim().split('-').nth(2).and_then(hex::<8>);
            return Self { trace, caller: span };
        }
        let plain: Option<String> = trace_id.map(|id| id.chars().filter(|c| *c != '-').collect());
        if let Some(trace) = plain.and_then(|plain| hex::<16>(&plain)).filter(|trace| *trace != [0; 16]) {
            return Self { trace, caller: None };
        }
        let half = |salt: &str| keyed(key, format!("{salt}\0{known_by}").as_bytes()).to_be_bytes();
        let (mut trace, low) = ([0; 16], half("trace low"));
        trace[..8].copy_from_slice(&half("trace"));
        trace[8..].copy_from_slice(&low);
        Self { trace, caller: None }
    }

    fn of_task(key: IdKey, number: u64, spec: &TaskSpec) -> Self {
        Self::of(key, spec.traceparent.as_deref(), spec.trace_id.as_deref(), &format!("task {number}"))
    }
}

fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != N * 2 || !text.is_ascii() {
        return None;
    }
    let mut bytes = [0; N];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(at * 2..at * 2 + 2)?, 16).ok()?;
    }
    Some(bytes)
}

fn span_id(key: IdKey, task: u64, part: Part) -> [u8; 8] {
    let (name, count) = match part {
        Part::Decide => ("decide", 0),
        Part::Task => ("task", 0),
        Part::Queue(count) => ("queue", count),
        Part::Run(count) => ("run", count),
        Part::Usage => ("usage", 0),
    };
    keyed(key, format!("span {name} {task} {count}").as_bytes()).max(1).to_be_bytes()
}

/// The W3C context that a delivery of a task carries: its run is the worker's parent.
#[must_use]
pub fn traceparent(key: IdKey, task: &Task) -> String {
    let trace = Place::of_task(key, task.number, &task.spec).trace;
    let text = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("00-{}-{}-01", text(&trace), text(&span_id(key, task.number, Part::Run(task.deliveries))))
}

/// Makes spans of events, in the order of the log.
#[derive(Debug, Default)]
pub struct Tracer {
    /// Open tasks: since when they wait, or since when a worker has them.
    since: BTreeMap<u64, u64>,
}

impl Tracer {
    /// Over the tasks that are open already.
    #[must_use]
    pub fn new(state: &State) -> Self {
        let since = state.open_tasks().map(|task| {
            let at = match &task.phase {
                Phase::Queued { due } => *due,
                Phase::Assigned { at, .. } | Phase::Ended { at, .. } => *at,
            };
            (task.number, at)
        });
        Self { since: since.collect() }
    }

    /// What events that are durable say, `state` being what they led to. `next_task` is the number of the first
    /// task that they began.
    pub fn see(&mut self, events: &[Event], state: &State, next_task: u64, spans: &mut Vec<Span>) {
        let key = state.id_key();
        let mut next_task = next_task;
        let mut deliveries: BTreeMap<u64, u32> = BTreeMap::new();
        for event in events {
            // How often the task had been given out when all of these events were through, less those to come.
            let later = |task: u64| {
                let all = state.tasks.get(&task).map_or(0, |task| task.deliveries);
                let here = events
                    .iter()
                    .filter(|event| matches!(event, Event::Dispatched { task: other, .. } if *other == task))
                    .count();
                all.saturating_sub(u32::try_from(here).unwrap_or(u32::MAX))
            };
            let mut count = |task: u64, more: u32| {
                let count = deliveries.entry(task).or_insert_with(|| later(task));
                *count += more;
                *count
            };
            match event {
                Event::Decided(decided) => {
                    let number = decided.task.is_some().then(|| {
                        next_task += 1;
                        next_task - 1
                    });
                    spans.push(decide(key, decided, number));
                    if let Some(number) = number {
                        self.since.insert(number, decided.at);
                    }
                }
                Event::Dispatched { at, task, worker, .. } => {
                    let Some(found) = state.tasks.get(task) else { continue };
                    let before = count(*task, 1) - 1;
                    let start = self.since.insert(*task, *at).unwrap_or(*at);
                    let mut span = part(key, found, Part::Queue(before), "beamline.queue", start, *at);
                    if let Some(id) = &worker.id {
                        span.attributes.push(("worker_id", text(id)));
                    }
                    spans.push(span);
                }
                Event::Returned { at, task, due, why, .. } => {
                    self.run(key, state, *task, count(*task, 0), *at, *due, Some(why), spans);
                }
                Event::Failed { at, task, due, error_code, .. } => {
                    let why = error_code.as_deref().unwrap_or("error");
                    self.run(key, state, *task, count(*task, 0), *at, *due, Some(why), spans);
                }
                Event::Ended(ended) => self.ended(key, state, ended, count(ended.task, 0), spans),
                Event::Begun { .. }
                | Event::Foreign { .. }
                | Event::UsageStored { .. }
                | Event::Buried(_)
                | Event::Purged { .. }
                | Event::Noted { .. }
                | Event::PolicyPut { .. }
                | Event::PolicyDeleted { .. }
                | Event::TenantPut { .. }
                | Event::TenantDeleted { .. }
                | Event::Blocked { .. }
                | Event::Unblocked { .. }
                | Event::ExtensionPut { .. }
                | Event::ExtensionDeleted { .. } => {}
                Event::Replayed { at, task, .. } => {
                    if task.is_some() {
                        self.since.insert(next_task, *at);
                        next_task += 1;
                    }
                }
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the facts of one span")]
    fn run(
        &mut self,
        key: IdKey,
        state: &State,
        task: u64,
        deliveries: u32,
        at: u64,
        due: u64,
        error: Option<&str>,
        spans: &mut Vec<Span>,
    ) {
        let Some(found) = state.tasks.get(&task) else { return };
        let start = self.since.insert(task, due).unwrap_or(at);
        let mut span = part(key, found, Part::Run(deliveries), "beamline.run", start, at);
        span.error = error.map(text);
        spans.push(span);
    }

    fn ended(&mut self, key: IdKey, state: &State, ended: &Ended, deliveries: u32, spans: &mut Vec<Span>) {
        let Some(start) = self.since.remove(&ended.task) else { return };
        let Some(task) = state.tasks.get(&ended.task) else { return };
        let failed = !matches!(ended.status, Status::Success);
        let error = failed.then(|| text(ended.error_code.as_deref().unwrap_or(ended.status.as_str())));
        if deliveries > 0 {
            let mut span = part(key, task, Part::Run(deliveries), "beamline.run", start, ended.at);
            span.error.clone_from(&error);
            spans.push(span);
        }
        let place = Place::of_task(key, task.number, &task.spec);
        spans.push(Span {
            trace: place.trace,
            id: span_id(key, task.number, Part::Task),
            parent: Some(span_id(key, task.number, Part::Decide)),
            name: "beamline.task",
            start_millis: task.created_at,
            end_millis: ended.at,
            attributes: vec![
                ("tenant_id", text(&task.spec.tenant)),
                ("provider_id", text(&task.provider)),
                ("job_type", text(&task.spec.job_type)),
                ("request_id", text(task.spec.request_id.as_deref().unwrap_or_default())),
                ("status", ended.status.as_str().to_owned()),
                ("deliveries", deliveries.to_string()),
            ],
            error,
        });
        let mut usage = part(key, task, Part::Usage, "beamline.usage", ended.at, ended.at);
        usage.attributes.push(("cost", ended.cost.to_string()));
        usage.attributes.push(("latency_ms", ended.latency_millis.to_string()));
        spans.push(usage);
    }
}

fn decide(key: IdKey, decided: &Decided, task: Option<u64>) -> Span {
    let (place, id) = match (task, &decided.task) {
        (Some(number), Some(spec)) => (Place::of_task(key, number, spec), span_id(key, number, Part::Decide)),
        _ => {
            let known_by = decided.key.as_deref().unwrap_or(&decided.fingerprint);
            let (parent, trace) = (decided.traceparent.as_deref(), decided.trace_id.as_deref());
            let id = keyed(key, format!("span decide {known_by} {}", decided.at).as_bytes()).max(1);
            (Place::of(key, parent, trace, known_by), id.to_be_bytes())
        }
    };
    Span {
        trace: place.trace,
        id,
        parent: place.caller,
        name: "beamline.decide",
        start_millis: decided.at,
        end_millis: decided.at,
        attributes: vec![
            ("tenant_id", text(&decided.tenant)),
            ("request_id", text(decided.request_id.as_deref().unwrap_or_default())),
            ("policy_id", text(&decided.decision.policy_id)),
            ("provider_id", text(&decided.decision.provider)),
            ("reason", decided.decision.reason.clone()),
        ],
        error: None,
    }
}

/// A child of a task's span.
fn part(key: IdKey, task: &Task, part: Part, name: &'static str, start: u64, end: u64) -> Span {
    Span {
        trace: Place::of_task(key, task.number, &task.spec).trace,
        id: span_id(key, task.number, part),
        parent: Some(span_id(key, task.number, Part::Task)),
        name,
        // A retry may be due later than it was taken back for another reason.
        start_millis: start.min(end),
        end_millis: end,
        attributes: Vec::new(),
        error: None,
    }
}

fn text(raw: &str) -> String {
    let masked = mask_text(raw);
    masked.as_deref().unwrap_or(raw).chars().take(TEXT_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replies::Decision;
    use crate::state::Bounds;
    use crate::state::task::WorkerRef;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_request_is_where_its_caller_says() {
        let key = IdKey(1, 2);
        let place = Place::of(key, Some(PARENT), Some("ignored"), "k");
        assert_eq!(place.trace[..2], [0x4b, 0xf9]);
        assert_eq!(place.caller, Some([0, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 2, 0xb7]));
        let by_uuid = Place::of(key, None, Some("3f2504e0-4f89-41d3-9a0c-0305e82c3301"), "k");
        assert_eq!((by_uuid.trace[0], by_uuid.caller), (0x3f, None));
        let made = Place::of(key, Some("broken"), Some("tr-123"), "k");
        assert_eq!(made, Place::of(key, None, None, "k"));
        assert_ne!(made.trace, Place::of(key, None, None, "other").trace);
    }

    /// Name, parent's name or "caller", start, end, error.
    type Row = (&'static str, String, u64, u64, Option<String>);

    fn tree(spans: &[Span]) -> Vec<Row> {
        let name = |id: [u8; 8]| {
            let named = spans.iter().find(|span| span.id == id);
            named.map_or("caller".to_owned(), |span| span.name.to_owned())
        };
        let row = |span: &Span| {
            let parent = span.parent.map_or("none".to_owned(), name);
            (span.name, parent, span.start_millis, span.end_millis, span.error.clone())
        };
        spans.iter().map(row).collect()
    }

    #[test]
    fn the_story_of_a_task_is_one_tree_also_over_a_restart() {
        let mut state = State::new(Bounds::default());
        state.apply(&Event::Begun { k0: 1, k1: 2 });
        let mut tracer = Tracer::new(&state);
        let mut spans = Vec::new();
        let mut see = |tracer: &mut Tracer, state: &mut State, events: &[Event]| {
            let next = state.next_task;
            events.iter().for_each(|event| state.apply(event));
            tracer.see(events, state, next, &mut spans);
        };
        let spec = TaskSpec {
            tenant: "acme".into(),
            request_id: Some("ann@example.org".into()),
            traceparent: Some(PARENT.into()),
            subject: "jobs".into(),
            ..TaskSpec::default()
        };
        let decided = Decided {
            at: 10,
            tenant: "acme".into(),
            fingerprint: "f".into(),
            expires: 99,
            decision: Decision { provider: "p".into(), ..Decision::default() },
            task: Some(spec),
            ..Decided::default()
        };
        let dispatched = |at| Event::Dispatched { at, task: 1, attempt: 0, worker: WorkerRef::default() };
        let first = [Event::Decided(Box::new(decided)), dispatched(12)];
        see(&mut tracer, &mut state, &first);
        let returned = Event::Returned {
            at: 20,
            task: 1,
            due: 25,
            attempt: 1,
            why: "no word in time".into(),
            provider: None,
        };
        see(&mut tracer, &mut state, &[returned]);
        // Another node goes on from the log.
        let mut tracer = Tracer::new(&state);
        see(&mut tracer, &mut state, &[dispatched(30)]);
        let ended = Ended { at: 40, task: 1, status: Status::Success, ..Ended::default() };
        see(&mut tracer, &mut state, &[Event::Ended(Box::new(ended))]);
        let row = |name, parent: &str, start, end, error: Option<&str>| {
            (name, parent.to_owned(), start, end, error.map(str::to_owned))
        };
        let task = "beamline.task";
        assert_eq!(
            tree(&spans),
            [
                row("beamline.decide", "caller", 10, 10, None),
                row("beamline.queue", task, 10, 12, None),
                row("beamline.run", task, 12, 20, Some("no word in time")),
                row("beamline.queue", task, 25, 30, None),
                row("beamline.run", task, 30, 40, None),
                row(task, "beamline.decide", 10, 40, None),
                row("beamline.usage", task, 40, 40, None),
            ]
        );
        let ids: std::collections::BTreeSet<_> = spans.iter().map(|span| span.id).collect();
        assert_eq!(ids.len(), spans.len(), "every span has an id of its own");
        assert!(spans.iter().all(|span| span.trace == spans[0].trace));
        assert!(!format!("{spans:?}").contains("ann@"), "{spans:?}");
    }
}
