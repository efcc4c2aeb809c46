//! Events of tasks, as they lie in their stream. A stream can be written by others: whatever is in it, the
//! fold holds its bounds and does not stop.

use beamlog_tasks::state::event::{self, Event};
use beamlog_tasks::state::{Bounds, State};

pub const WORDS: &[&[u8]] = &[
    b"{\"e\":\"begun\",\"k0\":1,\"k1\":2}\n",
    b"{\"e\":\"usage_stored\",\"up_to\":3}\n",
    b"{\"e\":\"purged\",\"at\":1,\"letters\":[1]}\n",
    b"\"task\":",
    b"\"at\":",
    b"null",
    b"18446744073709551615",
];

pub fn run(input: &[u8]) {
    let Ok(events) = event::decode(input) else { return };
    let bounds = Bounds {
        decisions_max: 4,
        finished_max: 3,
        dead_max: 3,
        dead_bytes_max: 4_096,
        sessions_max: 3,
        foreign_max: 3,
        providers_max: 3,
        audit_max: 3,
    };
    let mut state = State::new(bounds);
    for event in &events {
        state.apply(event);
        assert!(state.decisions.len() <= 4 && state.dead.len() <= 3 && state.audit.len() <= 3);
    }
    if let Ok(raw) = state.to_bytes() {
        let again = State::from_bytes(&raw, bounds).expect("a snapshot is read back");
        assert_eq!(again.totals.usage, state.totals.usage);
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let lines = [
        r#"{"e":"begun","k0":1,"k1":2}"#,
        r#"{"e":"decided","at":5,"tenant":"t","key":"k","request_id":"r","fingerprint":"f","expires":99,"decision":{"provider":"a","reason":"weighted","priority":50,"expected_latency_millis":1,"expected_cost":0.5,"policy_id":"default","policy_version":0},"sticky":["s",9],"task":{"tenant":"t","request_id":"r","subject":"jobs","job_type":"chat","payload":"{}","decision":{"provider":"a","reason":"weighted","priority":50,"expected_latency_millis":1,"expected_cost":0.5,"policy_id":"default","policy_version":0},"priority":50,"ack_wait_millis":5000,"attempts_max":2}}"#,
        r#"{"e":"dispatched","at":6,"task":1,"attempt":0,"worker":{"connection":4,"id":"w"}}"#,
        r#"{"e":"returned","at":7,"task":1,"due":8,"attempt":1,"why":"no word in time"}"#,
        r#"{"e":"ended","at":9,"task":1,"attempt":1,"status":"error","latency_millis":5,"cost":0.25,"buried":"PROCESSING_ERROR"}"#,
        r#"{"e":"usage_stored","up_to":1}"#,
        r#"{"e":"policy_put","at":1,"tenant":"t","id":"p","document":{"version":"1.0"},"by":"x"}"#,
    ];
    let encoded = event::encode(&[Event::Unblocked { at: 1, tenant: "t".into(), by: "x".into() }]);
    let whole = lines.join("\n").into_bytes();
    let mut seeds: Vec<Vec<u8>> = lines.iter().map(|line| line.as_bytes().to_vec()).collect();
    seeds.extend(encoded.ok());
    seeds.push(whole);
    seeds.push(Vec::new());
    seeds
}
