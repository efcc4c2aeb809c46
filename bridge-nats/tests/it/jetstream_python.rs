//! nats-py, unmodified: the same script against nats-server and against us prints the same.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::jetstream_servers::{Beamlog, nats_server, nats_url, python};

/// What a script prints when it talks to this server.
async fn printed(script: &str, url: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python").join(script);
    let mut command = Command::new(python());
    command.arg(path).arg(url).stdin(Stdio::null());
    // The script has a time limit of its own.
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{script} at {url}:\n{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

async fn check(script: &str) {
    let (nats, beamlog) = (nats_server(), Beamlog::start().await);
    let theirs = printed(script, &nats_url(&nats)).await;
    let ours = printed(script, &beamlog.url()).await;
    assert!(!theirs.is_empty(), "{script} says something");
    for (number, (ours, theirs)) in ours.lines().zip(theirs.lines()).enumerate() {
        assert_eq!(ours, theirs, "{script}, line {} of what it prints", number + 1);
    }
    assert_eq!(ours.lines().count(), theirs.lines().count(), "{script}");
}

#[tokio::test(flavor = "multi_thread")]
async fn core_messaging_looks_the_same_to_nats_py() {
    check("core.py").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_and_consumers_look_the_same_to_nats_py() {
    check("jetstream.py").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn atomic_batches_are_answered_the_same() {
    check("atomic_batch.py").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn buckets_look_the_same_to_nats_py() {
    check("buckets.py").await;
}
