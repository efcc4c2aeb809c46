//! SIGKILL at random moments, over and over, with many publishes in flight and consumers that wait for
//! the confirmation of each ack.
//!
//! Oracle: what a client read, written down outside of the server (`beamlog_bench::ledger`). Every acked
//! message is there once, at its sequence, in its publisher's order, with its bytes; an unacked one is
//! there once at most, although it is sent again after the restart; no consumer delivers again what it
//! confirmed. In some cycles sled and the side files are deleted before the restart, which must change
//! nothing; in some the kill comes while the node is still starting.
//!
//! 30 cycles; `BEAMLOG_TEST_KILL_CYCLES=500` for a longer run.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, SystemTime};

use beamlog_bench::client::Connection;
use beamlog_bench::contender::{Contender, Programs, Server};
use beamlog_bench::jetstream::{consumer_info, stream_info};
use beamlog_bench::ledger::{Ledger, Load, Shape, audit, drain, load};
use serde_json::{Value, json};

/// 8 publishers with 16 in flight each over 3 streams.
const SHAPE: Shape = Shape { streams: 3, publishers: 8, message_bytes: 160 };
const LOAD: Load =
    Load { in_flight: 16, consume: true, duration: Duration::from_secs(60), messages_max: u64::MAX };
/// Every so many cycles everything is read again; else what came since the last cycle.
const FULL_AUDIT_EVERY: u32 = 20;
const DELETE_DERIVED_EVERY: u32 = 5;
const KILL_STARTING_EVERY: u64 = 6;

#[test]
fn what_clients_were_promised_survives_sigkill() {
    let cycles: u32 = std::env::var("BEAMLOG_TEST_KILL_CYCLES").map_or(30, |cycles| cycles.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let programs = Programs {
        beamlog: PathBuf::from(env!("CARGO_BIN_EXE_beamlog")),
        nats_server: PathBuf::new(),
        environment: small_segments(),
    };
    let ledger = Ledger::open(&folder.path().join("ledger"), SHAPE).unwrap();
    let mut random = Random::new();
    let mut audited = vec![1; SHAPE.streams as usize];
    let (mut killed_starting, mut deleted, mut unknown) = (0, 0, 0);

    for cycle in 1..=cycles {
        if cycle > 1 && random.below(KILL_STARTING_EVERY) == 0 {
            let moment = Duration::from_micros(random.below(40_000));
            Server::start_and_kill(&programs, Contender::Beamlog, &data, moment).unwrap();
            killed_starting += 1;
        }
        let mut server = Server::start(&programs, Contender::Beamlog, &data).unwrap();
        let everything = cycle % FULL_AUDIT_EVERY == 0;
        unknown += check(&server, &ledger, &mut audited, everything, cycle);
        if cycle % DELETE_DERIVED_EVERY == 0 {
            let before = state(&server);
            server.kill();
            assert!(delete_derived(&data) > 0, "there are derived files to delete in {}", data.display());
            server = Server::start(&programs, Contender::Beamlog, &data).unwrap();
            assert_eq!(state(&server), before, "cycle {cycle}: without sled and side files");
            check(&server, &ledger, &mut audited, everything, cycle);
            deleted += 1;
        }

        let address = server.address();
        let moment = Duration::from_millis(20 + random.below(350));
        thread::scope(|scope| {
            scope.spawn(move || {
                thread::sleep(moment);
                server.kill();
            });
            load(address, &ledger, LOAD, &AtomicBool::new(false)).unwrap();
        });
    }

    let server = Server::start(&programs, Contender::Beamlog, &data).unwrap();
    unknown += check(&server, &ledger, &mut audited, true, cycles);
    assert!(drain(server.address(), &ledger, Duration::from_secs(60)).unwrap(), "all is consumed at last");
    check(&server, &ledger, &mut audited, true, cycles);
    let (acked, confirmed) = (ledger.acked(), ledger.confirmed());
    assert!(acked > u64::from(cycles) * 100, "{acked} acks in {cycles} cycles are no load");
    assert_eq!(ledger.undelivered(), 0, "every acked message was consumed");
    println!(
        "{cycles} cycles of SIGKILL (and {killed_starting} while starting, {deleted} with derived files deleted): \
         {acked} publish acks, {unknown} unknown outcomes found stored, {confirmed} confirmed consumer acks; \
         0 lost, duplicated or out of order; failure rate per cycle below {:.2} % (95 %)",
        300.0 / f64::from(cycles)
    );
}

/// Audits and gives how many messages were there without an ack.
fn check(server: &Server, ledger: &Ledger, audited: &mut [u64], everything: bool, cycle: u32) -> u64 {
    let mut connection = server.connect().unwrap();
    let from = |stream: u32| if everything { 1 } else { audited[stream as usize] };
    let verdict = audit(&mut connection, ledger, &from).unwrap();
    assert!(verdict.is_clean(), "cycle {cycle}: {verdict:#?}");
    for (stream, audited) in audited.iter_mut().enumerate() {
        if let Ok(info) = stream_info(&mut connection, &format!("LEDGER{stream}")) {
            // What was in flight may be judged twice: its acks come with the next cycle.
            *audited = info["state"]["last_seq"].as_u64().unwrap().saturating_sub(500).max(1);
        }
    }
    verdict.unknown
}

/// What the node says of its streams and consumers, without the times of asking.
fn state(server: &Server) -> Vec<Value> {
    let mut connection: Connection = server.connect().unwrap();
    let mut all = Vec::new();
    for stream in 0..SHAPE.streams {
        let name = format!("LEDGER{stream}");
        let info = stream_info(&mut connection, &name).unwrap();
        let consumer = consumer_info(&mut connection, &name, "ledger").unwrap();
        all.push(json!([info["config"], info["created"], info["state"]]));
        all.push(json!([
            consumer["config"],
            consumer["created"],
            consumer["delivered"]["stream_seq"],
            consumer["delivered"]["consumer_seq"],
            consumer["ack_floor"]["stream_seq"],
            consumer["ack_floor"]["consumer_seq"],
            consumer["num_ack_pending"],
            consumer["num_redelivered"],
            consumer["num_pending"],
        ]));
    }
    all
}

/// Removes every `state` folder and every `.idx` file below a folder; gives how many there were.
fn delete_derived(folder: &Path) -> u32 {
    let mut deleted = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().unwrap() == "state" {
            fs::remove_dir_all(&path).unwrap();
            deleted += 1;
        } else if path.is_dir() {
            deleted += delete_derived(&path);
        } else if path.extension().is_some_and(|extension| extension == "idx") {
            fs::remove_file(&path).unwrap();
            deleted += 1;
        }
    }
    deleted
}

/// Xorshift, begun with the time: the moments are meant to differ from run to run.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos();
        Self(u64::try_from(nanos & u128::from(u64::MAX)).unwrap() | 1)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// Small enough that a run seals, compacts and indexes many segments.
fn small_segments() -> Vec<(String, String)> {
    vec![("BEAMLOG_SEGMENT_BYTES".into(), "16MiB".into())]
}
