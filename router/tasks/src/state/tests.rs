//! The fold: the same events give the same state, in one go or over a snapshot; bounds hold.

use serde_json::json;

use super::event::{self, DeadLetter, Decided, Ended, Event};
use super::task::TaskSpec;
use super::*;
use crate::random::Random;
use crate::results::Status;

fn decided(n: u64, has_task: bool) -> Event {
    let decision =
        Decision { provider: format!("p{}", n % 3), policy_id: "default".into(), ..Decision::default() };
    let task = has_task.then(|| TaskSpec {
        tenant: "t".into(),
        request_id: Some(format!("r{n}")),
        subject: "jobs".into(),
        payload: Some("{\"n\": 1.10}".into()),
        decision: decision.clone(),
        attempts_max: 2,
        ..TaskSpec::default()
    });
    Event::Decided(Box::new(Decided {
        at: n,
        tenant: "t".into(),
        key: Some(format!("k{n}")),
        request_id: Some(format!("r{n}")),
        fingerprint: "f".into(),
        expires: n + 1_000,
        decision,
        sticky: (n.is_multiple_of(2)).then(|| (format!("s{n}"), n + 50)),
        task,
        ..Decided::default()
    }))
}

fn some_events(random: &mut Random) -> Vec<Event> {
    let mut events = vec![Event::Begun { k0: 1, k1: u64::MAX }];
    for n in 1..400 {
        events.push(decided(n, n.is_multiple_of(2)));
        let task = random.below(220);
        events.push(match random.below(5) {
            0 => Event::Dispatched { at: n, task, attempt: 0, worker: Default::default() },
            1 => Event::Returned { at: n, task, due: n, attempt: 1, why: "x".into(), provider: None },
            2 | 3 => Event::Ended(Box::new(Ended {
                at: n,
                task,
                status: [Status::Success, Status::Error][usize::from(n % 3 == 0)],
                cost: 0.1,
                latency_millis: random.below(500),
                buried: (n % 3 == 0).then(|| "PROCESSING_ERROR".into()),
                ..Ended::default()
            })),
            _ => Event::UsageStored { up_to: random.below(100) },
        });
    }
    let document = json!({"version": "1.0", "providers": [{"name": "a", "weight": 1}]});
    events.push(Event::PolicyPut { at: 9, tenant: "t".into(), id: "p".into(), document, by: "x".into() });
    events
}

#[test]
fn a_snapshot_in_the_middle_changes_nothing() {
    let mut random = Random::seeded(3);
    let events = some_events(&mut random);
    let mut whole = State::new(Bounds::default());
    events.iter().for_each(|event| whole.apply(event));
    for cut in [0, 1, 57, 200, events.len()] {
        let mut first = State::new(Bounds::default());
        events[..cut].iter().for_each(|event| first.apply(event));
        let mut second = State::from_bytes(&first.to_bytes().unwrap(), Bounds::default()).unwrap();
        let written = event::encode(&events[cut..]).unwrap();
        event::decode(&written).unwrap().iter().for_each(|event| second.apply(event));
        assert_eq!(second, whole, "cut at {cut}");
    }
    assert!(whole.totals.usage > 50 && !whole.dead.is_empty());
    assert_eq!(whole.policy("t", "p").unwrap().1, 1);
}

#[test]
fn every_bound_holds() {
    let bounds = Bounds {
        decisions_max: 10,
        finished_max: 5,
        dead_max: 4,
        dead_bytes_max: 1 << 20,
        sessions_max: 6,
        foreign_max: 3,
        providers_max: 2,
        audit_max: 2,
    };
    let mut state = State::new(bounds);
    let mut random = Random::seeded(4);
    for event in some_events(&mut random) {
        state.apply(&event);
        assert!(state.decisions.len() <= 10 && state.lookups.len() <= 20, "decisions");
        assert!(state.finished.len() <= 5 && state.dead.len() <= 4 && state.sessions.len() <= 6);
        assert!(state.providers.len() <= 2 && state.audit.len() <= 2);
    }
    for n in 0..10 {
        state.apply(&Event::Foreign { at: n, id: format!("f{n}"), usage: Default::default() });
    }
    assert!(!state.has_foreign("f6") && state.has_foreign("f7"));
    let tight = Bounds { dead_bytes_max: 2_000, ..bounds };
    let mut state = State::new(tight);
    some_events(&mut random).iter().for_each(|event| state.apply(event));
    assert!(state.dead_bytes <= 2_000);
}

#[test]
fn a_second_result_changes_nothing() {
    let mut state = State::new(Bounds::default());
    state.apply(&decided(2, true));
    let end = Event::Ended(Box::new(Ended { at: 5, task: 1, status: Status::Success, ..Ended::default() }));
    state.apply(&end);
    let after = state.clone();
    state.apply(&end);
    assert_eq!(state, after);
    assert_eq!((state.totals.usage, state.consumption["t"].open_jobs), (1, 0));
    assert_eq!(state.tasks[&1].spec.payload, None, "a finished task keeps its story, not its payload");
}

#[test]
fn a_decision_is_forgotten_in_its_time() {
    let mut state = State::new(Bounds::default());
    state.apply(&decided(1, false));
    assert!(state.remembered("k1", 1_000).is_some());
    assert!(state.remembered("k1", 1_001).is_none());
    state.apply(&decided(1_001, false));
    assert_eq!(state.decisions.len(), 1, "and its place is given back");
}

#[test]
fn quotas_reserve_and_settle() {
    use super::tenant::Quota;
    let quota = Quota { requests: Some(2), cost: Some(1.0), concurrent_jobs: Some(1), ..Quota::default() };
    let mut used = Consumption { requests: 1, ..Consumption::default() };
    assert_eq!(used.exceeded(&quota, 0, 0.5, true), None);
    assert_eq!(used.exceeded(&quota, 0, 1.5, true), Some("cost"));
    used.open_jobs = 1;
    assert_eq!(used.exceeded(&quota, 0, 0.0, true), Some("concurrent_jobs"));
    assert_eq!(used.exceeded(&quota, 0, 0.0, false), None, "only jobs are counted as jobs");
    used.requests = 2;
    assert_eq!(used.exceeded(&quota, 0, 0.0, false), Some("requests"));
    let next_window = quota.window_millis();
    assert_eq!(used.exceeded(&quota, next_window, 0.0, false), None);
    used.reserved_cost = 1.0;
    assert_eq!(used.exceeded(&quota, next_window, 0.0, false), Some("cost"), "what is reserved stays so");
}

#[test]
fn what_anybody_can_send_does_not_drive_out_dead_letters_of_jobs() {
    let mut state = State::new(Bounds { dead_max: 10, ..Bounds::default() });
    let letter = |with_job: bool| {
        let task = with_job.then(TaskSpec::default);
        Event::Buried(Box::new(DeadLetter { task, ..DeadLetter::default() }))
    };
    (0..5).for_each(|_| state.apply(&letter(true)));
    (0..1_000).for_each(|_| state.apply(&letter(false)));
    let jobs = |state: &State| state.dead.values().filter(|letter| letter.task.is_some()).count();
    assert_eq!((jobs(&state), state.dead.len()), (5, 10));
    let mut state = State::from_bytes(&state.to_bytes().unwrap(), state.bounds).unwrap();
    (0..1_000).for_each(|_| state.apply(&letter(false)));
    assert_eq!((jobs(&state), state.dead.len()), (5, 10));
    (0..20).for_each(|_| state.apply(&letter(true)));
    assert_eq!((jobs(&state), state.dead.len()), (10, 10), "then the oldest goes");
    assert_eq!(*state.dead.keys().next().unwrap(), 2_016);
}
