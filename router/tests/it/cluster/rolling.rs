//! Segments end on each node by itself, and the state survives it.

use std::time::Duration;

use beamlog_log::sim_disk::Crash;
use beamlog_log::{Index, Sequence};
use beamlog_router::api::request::{Published, Purge, Request};

use super::Cluster;
use super::leading::{get, with_stream};

fn fill(cluster: &mut Cluster, from: u64, to: u64) {
    for n in from..=to {
        let id = format!("id-{n}");
        let mut ticket = cluster.begin("s.a", Some(&id), &format!("{n}-{}", "x".repeat(2000)));
        cluster.settle();
        assert_eq!(ticket.take().unwrap().result, Ok(Published::Stored(Sequence(n))));
    }
}

fn segments(cluster: &Cluster, at: usize) -> usize {
    let files = cluster.disk(at).files();
    files.keys().filter(|path| path.extension().is_some_and(|extension| extension == "seg")).count()
}

#[test]
fn followers_roll_though_the_next_entry_always_comes_before_the_commit() {
    let mut cluster = with_stream(3);
    cluster.late_commits = true;
    fill(&mut cluster, 1, 120);
    for at in 0..3 {
        assert!(segments(&cluster, at) > 2, "node {at} has {} segments", segments(&cluster, at));
    }
    cluster.late_commits = false;
    cluster.settle();
    // One that rolled leads, and knows ids from before the segment began.
    cluster.elect(1);
    cluster.settle();
    let mut again = cluster.begin("s.a", Some("id-1"), &format!("1-{}", "x".repeat(2000)));
    cluster.settle();
    assert_eq!(again.take().unwrap().result, Ok(Published::Duplicate(Sequence(1))));
    for n in 1..=120 {
        assert!(get(&mut cluster, n).unwrap().starts_with(&format!("{n}-")));
    }
}

#[test]
fn a_segment_grows_when_no_commit_comes() {
    let mut cluster = with_stream(3);
    // Node 2 gets entries and never hears that they are committed.
    cluster.withhold_commits(2, true);
    fill(&mut cluster, 1, 80);
    assert_eq!(segments(&cluster, 2), 1);
    // Longer than an append has patience: it is stored all the same.
    for _ in 0..80 {
        cluster.pass(Duration::from_millis(25));
    }
    assert_eq!(cluster.state(2).last, cluster.state(0).last);
    cluster.withhold_commits(2, false);
    cluster.settle();
    assert_eq!(cluster.state(2).applied, cluster.state(0).applied);
    fill(&mut cluster, 81, 82);
    assert_eq!(segments(&cluster, 2), 2);
}

/// Its append waits for the next segment, for which there is no space, however long: it does not look without a pause.
#[test]
fn a_follower_that_waits_for_space_rests() {
    let mut cluster = with_stream(3);
    cluster.withhold_commits(2, true);
    fill(&mut cluster, 1, 80);
    cluster.disk(2).limit_space(1);
    // Now the segment may end, but there is no place for the next.
    let last = cluster.nodes[2].durable;
    cluster.replica(2).committed(Index(last), Box::new(|applied| assert!(applied.is_ok())));
    for _ in 0..8 {
        cluster.pass(Duration::from_millis(25));
    }
    assert_eq!(cluster.nodes[2].durable, last);
    cluster.disk(2).heal();
    for _ in 0..80 {
        cluster.pass(Duration::from_millis(25));
    }
    assert_eq!(cluster.state(2).last, cluster.state(0).last);
}

#[test]
fn membership_and_state_survive_the_segment_they_came_with() {
    let mut cluster = with_stream(3);
    cluster.change_membership(b"three members");
    cluster.settle();
    fill(&mut cluster, 1, 120);
    for at in 0..3 {
        cluster.crash(at, Crash::LoseUnsynced);
    }
    for at in 0..3 {
        cluster.start(at);
        let (id, bytes) = cluster.state(at).replication.unwrap();
        assert_eq!((id.index.0, &bytes[..]), (3, &b"three members"[..]));
        assert!(cluster.state(at).applied.index.0 > 3);
    }
    cluster.elect(2);
    cluster.settle();
    assert!(get(&mut cluster, 120).unwrap().starts_with("120-"));
}

#[test]
fn a_follower_gives_back_the_space_of_what_died() {
    let mut cluster = with_stream(3);
    fill(&mut cluster, 1, 150);
    let before: Vec<usize> = (0..3).map(|at| segments(&cluster, at)).collect();
    cluster.request(Request::PurgeStream { stream: "S".into(), purge: Purge::default() }).unwrap();
    fill(&mut cluster, 151, 220);
    for _ in 0..40 {
        cluster.pass(Duration::from_millis(500));
    }
    for at in 0..3 {
        assert!(segments(&cluster, at) < before[at], "node {at}: {} of {before:?}", segments(&cluster, at));
    }
}

#[test]
fn what_a_deposed_leader_removed_lives_on() {
    let mut cluster = with_stream(3);
    fill(&mut cluster, 1, 60);
    cluster.hears(0, false);
    let purge = Request::PurgeStream { stream: "S".into(), purge: Purge::default() };
    let mut purged = cluster.ask(0, purge);
    cluster.settle();
    assert!(purged.is_waiting());
    cluster.elect(1);
    cluster.settle();
    cluster.hears(0, true);
    cluster.settle();
    fill(&mut cluster, 61, 120);
    for _ in 0..40 {
        cluster.pass(Duration::from_millis(500));
    }
    cluster.elect(0);
    cluster.settle();
    for n in 1..=120 {
        assert!(get(&mut cluster, n).unwrap().starts_with(&format!("{n}-")), "{n}");
    }
}
