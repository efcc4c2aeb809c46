//! Nodes that are too far behind, or whose log ends in doubt.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use beamlog_log::{SimDisk, sim_disk::Crash};
use beamlog_net::cluster::{Change, Standing};

use crate::world::{Node, World, until};

/// The segments of each node that runs, the oldest first.
fn segments(world: &World) -> Vec<Vec<PathBuf>> {
    let is_segment = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "seg");
    let of = |node: &Node| node.disk.files().into_keys().filter(is_segment).collect();
    world.nodes.iter().filter(|node| node.live.is_some()).map(of).collect()
}

/// Publishes until every segment that there was is left behind, and removed by every node that runs: who has no more
/// than was there before cannot go on by entries. What is still stored.
async fn long_history(world: &World) -> BTreeMap<u64, String> {
    let mut stored = BTreeMap::new();
    let before = segments(world);
    for n in 0..300 {
        let payload = format!("{n:0>2000}");
        stored.insert(world.publish(&payload).await, payload);
    }
    while stored.len() > 10 {
        stored.pop_first();
    }
    until("the segments from before are gone", || {
        let now = segments(world);
        now.iter().zip(&before).all(|(now, before)| !now.iter().any(|one| before.contains(one))).then_some(())
    })
    .await;
    stored
}

async fn leads_and_has(world: &World, at: usize, stored: &BTreeMap<u64, String>) {
    let leader = world.leader().await;
    world.cluster(leader).change(Change::Transfer { to: Some(world.id(at)) }).await.unwrap();
    assert_eq!(world.leader_among(&[at]).await, at);
    for (sequence, payload) in stored {
        assert_eq!(world.read(at, *sequence).await.as_ref(), Some(payload));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_behind_the_history_gets_the_files() {
    let mut world = World::new(2).await;
    world.leader().await;
    world.add(1).await.unwrap();
    world.make_short_stream(10).await;
    let stored = long_history(&world).await;
    world.nodes.push(Node { disk: SimDisk::new(), live: None });
    world.start(2, false).await;
    world.add(2).await.unwrap();
    world.settled().await;
    assert!(world.copied(2), "entries alone were enough");
    leads_and_has(&world, 2, &stored).await;
    // The copy is a log like any other.
    world.kill(2, Crash::LoseUnsynced).await;
    world.start(2, false).await;
    world.publish("after").await;
    world.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_was_long_away_gets_the_files_over_bad_wires() {
    let mut world = World::formed_with_short_stream(3, 10).await;
    let leader = world.leader().await;
    let away = (leader + 1) % 3;
    world.kill(away, Crash::LoseUnsynced).await;
    let stored = long_history(&world).await;
    world.wires.worsen(100, Duration::from_millis(20));
    world.start(away, false).await;
    until("it has caught up", || {
        let last = world.cluster(leader).status().last;
        (world.cluster(away).status().last == last).then_some(())
    })
    .await;
    world.wires.heal();
    world.settled().await;
    assert!(world.copied(away), "entries alone were enough");
    leads_and_has(&world, away, &stored).await;
}

/// Flips a bit of what was written last to the newest segment.
fn hurt_the_end(disk: &SimDisk) {
    let is_segment = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "seg");
    let (path, bytes) = disk.files().into_iter().rfind(|(path, _)| is_segment(path)).unwrap();
    let last = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    disk.flip_bit(&path, last as u64 * 8).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_ends_in_doubt_is_settled_by_peers() {
    let mut world = World::formed(3).await;
    for round in 0..3 {
        let leader = world.leader().await;
        let hurt = (leader + 1) % 3;
        world.settled().await;
        let sequence = world.publish(&format!("round {round}")).await;
        world.settled().await;
        world.kill(hurt, Crash::LoseUnsynced).await;
        hurt_the_end(&world.nodes[hurt].disk);
        world.start(hurt, false).await;
        world.standing(hurt, |standing| *standing == Standing::Follower).await;
        world.settled().await;
        let stored = BTreeMap::from([(sequence, format!("round {round}"))]);
        leads_and_has(&world, hurt, &stored).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_ends_in_doubt_waits_for_enough_peers() {
    let mut world = World::formed(3).await;
    world.publish("one").await;
    world.settled().await;
    let leader = world.leader().await;
    let (hurt, other) = ((leader + 1) % 3, (leader + 2) % 3);
    world.kill(hurt, Crash::LoseUnsynced).await;
    world.kill(other, Crash::LoseUnsynced).await;
    world.kill(leader, Crash::LoseUnsynced).await;
    hurt_the_end(&world.nodes[hurt].disk);
    // Alone it cannot know what it had: it does not take part, so it does not elect anybody either.
    let mut waits = Box::pin(world.begin(hurt, false));
    assert!(tokio::time::timeout(Duration::from_secs(2), &mut waits).await.is_err());
    let (led, heard) = (world.begin(leader, false).await, world.begin(other, false).await);
    let settled = waits.await;
    for (at, live) in [(leader, led), (other, heard), (hurt, settled)] {
        world.nodes[at].live = Some(live);
    }
    world.settled().await;
    let leader = world.leader().await;
    assert_eq!(world.read(leader, 1).await.as_deref(), Some("one"));
}
