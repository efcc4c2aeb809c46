//! The shipped worker, as it was seen on the wire: a plain subscription without a queue group; after every
//! job a pause, then a new SUB, then the UNSUB of the old one, and whatever is still buffered on the old one is
//! thrown away; ids that it has had before are skipped in silence; heartbeats on the same connection; no acks.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::wire::{Connect, Wire, publish};

const ASSIGN: &str = "caf.exec.assign.v1";

/// What all workers of a test did.
#[derive(Default)]
pub(crate) struct Book {
    /// Executions by request.
    pub(crate) executed: Mutex<BTreeMap<String, u32>>,
    /// Assignments that were buffered on a subscription that had ended.
    pub(crate) dropped: AtomicU64,
    /// Ids that came twice to the same process.
    pub(crate) skipped: AtomicU64,
}

/// How a worker is.
#[derive(Clone, Copy)]
pub(crate) struct Habits {
    /// The pause before it subscribes again: a second in the real one.
    pub(crate) pause: Duration,
    pub(crate) heartbeat: Duration,
    /// How long a job takes.
    pub(crate) work: Duration,
}

pub(crate) struct Worker {
    address: Arc<Mutex<String>>,
    killed: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    pub(crate) fn start(id: String, address: Arc<Mutex<String>>, habits: Habits, book: Arc<Book>) -> Self {
        let killed = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&killed);
        let shared = Arc::clone(&address);
        let thread = thread::spawn(move || {
            // Forgotten only when the process ends.
            let mut had = BTreeSet::new();
            while !stop.load(Ordering::SeqCst) {
                let address = shared.lock().unwrap().clone();
                match Wire::open(&address, &Connect::Rust) {
                    Ok(wire) => serve(&id, wire, habits, &book, &stop, &mut had),
                    // The node is starting again.
                    Err(_) => thread::sleep(Duration::from_millis(20)),
                }
            }
        });
        Self { address, killed, thread: Some(thread) }
    }

    /// SIGKILL: whatever it was at is lost, and its memory.
    pub(crate) fn kill(mut self) -> Arc<Mutex<String>> {
        self.killed.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        Arc::clone(&self.address)
    }
}

fn serve(
    id: &str,
    mut wire: Wire,
    habits: Habits,
    book: &Book,
    stop: &AtomicBool,
    had: &mut BTreeSet<String>,
) {
    let mut sid = 1;
    let Ok(writer) = wire.writer() else { return };
    let writer = Arc::new(Mutex::new(writer));
    let say = |text: &str| writer.lock().unwrap().write_all(text.as_bytes());
    let mut beat_at = Instant::now();
    let mut beat = |now: Instant| {
        if now < beat_at {
            return Ok(());
        }
        beat_at = now + habits.heartbeat;
        let body = json!({"version": "v1", "kind": "heartbeat", "data": {"worker_id": id,
            "timestamp": "2026-01-01T00:00:00Z", "status": "idle", "load": 0.125}});
        say(&publish("caf.status.heartbeat.v1", "", &body.to_string()))
    };
    if say(&format!("SUB {ASSIGN}  {sid}\r\n")).is_err() {
        return;
    }
    loop {
        if stop.load(Ordering::SeqCst) {
            wire.vanish();
            return;
        }
        if beat(Instant::now()).is_err() {
            return;
        }
        let message = match wire.next_within(Duration::from_millis(10)) {
            Ok(Some(message)) => message,
            Ok(None) => continue,
            Err(_) => return,
        };
        if message.sid != sid.to_string() {
            book.dropped.fetch_add(1, Ordering::SeqCst);
            continue;
        }
        let assignment: Value = serde_json::from_slice(&message.payload).unwrap();
        // What the real one requires.
        for field in ["version", "assignment_id", "request_id", "tenant_id"] {
            assert!(assignment[field].is_string(), "{field} of {assignment}");
        }
        assert!(assignment["job"]["type"].is_string() && assignment["job"].get("payload").is_some());
        let assignment_id = assignment["assignment_id"].as_str().unwrap().to_owned();
        if !had.insert(assignment_id.clone()) {
            book.skipped.fetch_add(1, Ordering::SeqCst);
            continue;
        }
        thread::sleep(habits.work);
        if stop.load(Ordering::SeqCst) {
            wire.vanish();
            return;
        }
        let request = assignment["request_id"].as_str().unwrap().to_owned();
        *book.executed.lock().unwrap().entry(request.clone()).or_default() += 1;
        let result = json!({"version": "v1", "kind": "exec_result", "data": {"version": "1.0",
            "assignment_id": assignment_id, "request_id": request, "status": "success", "provider_id": id,
            "job_type": assignment["job"]["type"], "output": assignment["job"]["payload"], "latency_ms": 1,
            "cost": 0.0, "tenant_id": assignment["tenant_id"], "trace_id": assignment["trace_id"]}});
        if say(&publish("caf.exec.result.v1", "", &result.to_string())).is_err() {
            return;
        }
        thread::sleep(habits.pause);
        let (old, new) = (sid, sid + 1);
        if say(&format!("SUB {ASSIGN} {new}\r\nUNSUB {old}\r\n")).is_err() {
            return;
        }
        sid = new;
    }
}
