//! Crashes, damage, and stores that change their kind.

use std::path::Path;
use std::sync::Arc;

use beamlog_log::sim_disk::{Crash, SimDisk};
use beamlog_router::api::error::ApiError;
use beamlog_router::api::request::Request;
use beamlog_router::embed::PlainWire;
use beamlog_router::{Health, OpenError, Router, RouterOptions};

use super::Cluster;
use super::leading::{get, with_stream};
use crate::world::s;

#[test]
fn all_nodes_lose_their_power_and_nothing_acked_is_lost() {
    for (seed, crash) in Crash::sample(7).into_iter().enumerate() {
        let mut cluster = with_stream(3);
        for n in 1..=10 {
            cluster.publish("s.a", &n.to_string()).result.unwrap();
        }
        let unknown = cluster.begin("s.a", None, "under way");
        cluster.step(0);
        cluster.hear();
        for at in 0..3 {
            cluster.crash(at, crash);
        }
        drop(unknown);
        for at in 0..3 {
            cluster.start(at);
        }
        let leader = (0..3).rfind(|at| cluster.electable(*at)).unwrap();
        cluster.elect(leader);
        cluster.settle();
        for n in 1..=10 {
            assert_eq!(get(&mut cluster, n).unwrap(), n.to_string(), "{seed}: {crash:?}");
        }
    }
}

#[test]
fn a_follower_that_was_away_catches_up() {
    let mut cluster = with_stream(3);
    cluster.crash(2, Crash::LoseUnsynced);
    for n in 1..=30 {
        cluster.publish("s.a", &n.to_string()).result.unwrap();
    }
    cluster.start(2);
    cluster.settle();
    assert_eq!(cluster.state(2).applied, cluster.state(0).applied);
    cluster.elect(2);
    cluster.settle();
    assert_eq!(get(&mut cluster, 30).unwrap(), "30");
}

#[test]
fn a_vote_is_there_after_a_crash() {
    let mut cluster = Cluster::led(1);
    assert_eq!(cluster.replica(0).vote(), None);
    cluster.replica(0).save_vote(b"term 7 for 3".to_vec(), Box::new(|saved| saved.unwrap()));
    cluster.step(0);
    assert_eq!(cluster.replica(0).vote().as_deref(), Some(&b"term 7 for 3"[..]));
    cluster.crash(0, Crash::LoseUnsynced);
    cluster.start(0);
    assert_eq!(cluster.replica(0).vote().as_deref(), Some(&b"term 7 for 3"[..]));
}

#[test]
fn a_store_that_stood_alone_becomes_the_first_member() {
    let mut cluster = Cluster::new(1);
    cluster.crash(0, Crash::KeepUnsynced);
    cluster.replace_disk(0, SimDisk::new());
    let disk = cluster.disk(0).clone();
    let open = |disk: &SimDisk| {
        let options = RouterOptions::for_simulation();
        Router::open(Path::new("/data"), Arc::new(disk.clone()), &options, Arc::new(PlainWire))
    };
    let alone = open(&disk).unwrap();
    alone.request(Request::CreateStream(Box::new(s()))).unwrap().wait().unwrap();
    for n in 1..=40 {
        alone.publish("s.a", "", format!("{n}-{}", "x".repeat(3000))).unwrap().wait().result.unwrap();
    }
    alone.close().unwrap();
    cluster.start(0);
    cluster.elect(0);
    cluster.change_membership(b"one");
    cluster.settle();
    for n in 1..=40 {
        assert!(get(&mut cluster, n).unwrap().starts_with(&format!("{n}-")));
    }
    cluster.publish("s.a", "41").result.unwrap();
    cluster.close(0);
    // From here on it is a member's, and alone it would go its own way.
    assert!(matches!(open(&disk), Err(OpenError::Member)));
    cluster.start(0);
    cluster.elect(0);
    cluster.settle();
    assert_eq!(get(&mut cluster, 41).unwrap(), "41");
}

#[test]
fn a_leader_that_reads_damage_reports_it_and_serves_what_it_can() {
    let mut cluster = with_stream(3);
    for n in 1..=40 {
        let payload = format!("{n}-{}", "x".repeat(3000));
        cluster.publish("s.a", &payload).result.unwrap();
    }
    let sealed =
        cluster.disk(0).files().into_keys().find(|path| path.extension().is_some_and(|e| e == "seg"));
    cluster.disk(0).flip_bit(&sealed.unwrap(), 6000 * 8).unwrap();
    let damaged = (1..=40).filter(|n| matches!(get(&mut cluster, *n), Err(ApiError::Unreadable(_)))).count();
    assert_eq!(damaged, 1);
    assert!(cluster.damage(0).is_some());
    assert!(matches!(cluster.router(0).health(), Health::Damaged { .. }));
    assert!(cluster.state(0).damaged.is_some());
    // Another one leads then; this one does not again.
    cluster.elect(1);
    cluster.settle();
    for n in 1..=40 {
        get(&mut cluster, n).unwrap();
    }
}

#[test]
fn a_sync_that_fails_ends_a_leadership_without_an_ack() {
    let mut cluster = with_stream(3);
    cluster.publish("s.a", "1").result.unwrap();
    cluster.disk(0).power_off_at(1);
    let mut ticket = cluster.begin("s.a", None, "2");
    cluster.fails(0);
    cluster.settle();
    assert!(ticket.take().unwrap().result.is_err());
    assert!(matches!(cluster.router(0).health(), Health::LogFailed { .. }));
    cluster.hears(0, false);
    cluster.elect(1);
    cluster.settle();
    assert_eq!(get(&mut cluster, 1).unwrap(), "1");
}
