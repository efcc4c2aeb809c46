//! What workers say: results, acks, heartbeats, dead letters.

use beamlog_tasks::ids::{AssignmentId, IdKey};
use beamlog_tasks::{mask, results};

pub const WORDS: &[&[u8]] = &[
    b"\"assignment_id\":\"a\"",
    b"\"status\":\"success\"",
    b"\"status\":\"error\"",
    b"\"kind\":\"exec_result\",\"data\":{",
    b"\"kind\":\"heartbeat\"",
    b"\"load\":0.5",
    b"\"latency_ms\":-1",
    b"\"cost\":1e308",
    b"a@b.example",
    b"\x1a\x07success",
    b"\x39",
];

pub fn run(input: &[u8]) {
    if let Ok(result) = results::exec_result(b"", input) {
        assert!(result.assignment_id.is_some() || result.request_id.is_some());
        assert!(result.cost.is_finite() && result.cost >= 0.0);
        let is_over = matches!(result.status, results::Status::Success | results::Status::Cancelled);
        let is_retryable = results::is_retryable(result.status, result.error_code.as_deref());
        assert!(!(is_over && is_retryable));
    }
    if let Ok(beat) = results::heartbeat(input) {
        assert!((0.0..=1.0).contains(&beat.load) && !beat.worker_id.is_empty());
    }
    if let Ok(ack) = results::exec_ack(b"", input) {
        assert!(!ack.assignment_id.is_empty());
    }
    // A refusal is an answer too; what is asserted is that there is one.
    drop(results::worker_dead_letter(input));
    if let Ok(text) = std::str::from_utf8(input) {
        assert!(AssignmentId::decode(text, IdKey(3, 4)).is_none(), "nobody guesses 64 bits");
        if let Some(masked) = mask::mask_text(text) {
            assert_ne!(masked, text);
        }
    }
    if let Ok(mut value) = serde_json::from_slice::<serde_json::Value>(input) {
        mask::mask(&mut value);
        let once = value.clone();
        mask::mask(&mut value);
        assert_eq!(value, once, "masking twice is masking once");
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = [
        r#"{"version":"v1","kind":"exec_result","data":{"version":"1.0","assignment_id":"a","request_id":"r","status":"success","provider_id":"w","job_type":"echo","output":{"usage":{"total_tokens":5}},"latency_ms":1,"cost":0.0,"tenant_id":"t"}}"#,
        r#"{"assignment_id":"a","status":"error","provider_id":"openai","job":{"type":"chat"},"latency_ms":1,"cost":0.5,"error_code":"3001","tenant_id":"t"}"#,
        r#"{"version":"1","assignment_id":"a","status":"timeout","job":"{\"type\":\"chat\"}","latency_ms":"17"}"#,
        r#"{"version":"v1","kind":"heartbeat","data":{"worker_id":"w","timestamp":"2026-01-01T00:00:00Z","status":"busy","load":0.25}}"#,
        r#"{"assignment_id":"a","status":"accepted","tenant_id":"t"}"#,
        r#"{"version":"v1","kind":"dead_letter","data":{"reason":"PARSE_ERROR","payload_ref":"x","ts":"y"}}"#,
        r#"{"password":"x","mail":"ann@host.example, token=abc"}"#,
        "",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec();
    let job = beamlog_tasks::proto::Writer::default().text(1, "chat").map_entry(2, "k", "v").finish();
    let result = beamlog_tasks::proto::Writer::default()
        .text(1, "a")
        .text(3, "success")
        .bytes(5, &job)
        .int64(6, 42)
        .double(7, 0.125)
        .text(9, "t")
        .finish();
    seeds.push(result);
    seeds
}
