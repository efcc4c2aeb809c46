//! A leader whose process ended is followed at once; one that lives is left alone.

use std::time::Duration;

use beamlog_log::sim_disk::Crash;
use beamlog_net::cluster::ClusterOptions;

use crate::world::{World, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_follows_a_killed_leader_does_not_wait_for_its_lease() {
    // An election by time alone would take longer than anything here is waited for.
    let election = (Duration::from_secs(600), Duration::from_secs(1200));
    let mut world = World::formed_with(3, ClusterOptions { election, ..ClusterOptions::default() }).await;
    world.publish("before").await;
    world.settled().await;
    let leader = world.leader().await;
    world.kill(leader, Crash::LoseUnsynced).await;
    let sequence = world.publish("after").await;
    let next = world.leader().await;
    assert_ne!(next, leader);
    assert_eq!(world.read(next, sequence).await.as_deref(), Some("after"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_that_takes_a_living_leader_for_dead_disturbs_nobody() {
    let world = World::formed(3).await;
    world.publish("before").await;
    let leader = world.leader().await;
    let mistaken = (leader + 1) % 3;
    let other = (leader + 2) % 3;
    let term = world.cluster(leader).state().borrow().term;
    world.wires.mistake(world.id(mistaken), world.id(leader));
    world.wires.cut(world.id(leader), world.id(mistaken));
    until("it asks to be elected", || {
        (world.wires.pre_votes(world.id(mistaken), world.id(other)) > 2).then_some(())
    })
    .await;
    world.publish("meanwhile").await;
    world.wires.heal();
    world.settled().await;
    assert_eq!(world.cluster(leader).state().borrow().term, term);
    assert_eq!(world.leader().await, leader);
}
