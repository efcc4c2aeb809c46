//! Two nodes that keep messages and one that only votes.

use std::{path::Path, sync::Arc, time::Duration};

use beamlog_log::{DirectoryError, Disk, ShardId, SimDisk, Timestamp, sim_disk::Crash};
use beamlog_net::{
    cluster::{
        Change, ChangeError, Cluster, ClusterOptions, Member, Seat, StartWitness, Witness, WitnessError,
    },
    peer::PeerId,
};

use crate::world::{LONG, World, until};

struct Voter {
    disk: SimDisk,
    cluster: Cluster,
}

async fn witness(world: &World, disk: &SimDisk) -> Cluster {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let open = || Witness::open(Path::new("/data"), Arc::clone(&disk), ShardId(0), Timestamp(1));
    // What was stopped before has a last task that holds the lock.
    let witness = until("its store is free", || match open() {
        Err(WitnessError::Directory(DirectoryError::Locked { .. })) => None,
        opened => Some(opened.unwrap()),
    })
    .await;
    let me = PeerId::of_store(&witness.node_id().0);
    let seat = Seat::new();
    world.wires.plug(me, seat.handler(), seat.claims());
    let transport = world.wires.of(me);
    let options = ClusterOptions::default();
    Cluster::start_witness(StartWitness { seat, me, witness, transport, options }).await.unwrap()
}

fn as_witness() -> Member {
    Member { name: "w".into(), address: "10.0.0.9:7422".into(), witness: true }
}

/// Two data nodes and a witness.
async fn with_witness() -> (World, Voter) {
    let world = World::formed(2).await;
    let disk = SimDisk::new();
    let cluster = witness(&world, &disk).await;
    let leader = world.leader().await;
    let change = Change::Add { id: cluster.me(), member: as_witness() };
    tokio::time::timeout(LONG, world.cluster(leader).change(change)).await.unwrap().unwrap();
    (world, Voter { disk, cluster })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_one_of_two_nodes_and_a_witness_may_be_lost() {
    let (mut world, mut voter) = with_witness().await;
    let mut stored = Vec::new();
    for lost in 0..2 {
        stored.push((world.publish("both").await, "both"));
        world.settled().await;
        world.kill(lost, Crash::LoseUnsynced).await;
        stored.push((world.publish("one and the witness").await, "one and the witness"));
        world.start(lost, false).await;
        world.settled().await;
    }
    // The witness goes, and comes back with what it had.
    world.wires.unplug(voter.cluster.me());
    voter.cluster.stop().await;
    drop(voter.cluster);
    stored.push((world.publish("no witness").await, "no witness"));
    voter.cluster = witness(&world, &voter.disk).await;
    world.settled().await;
    let leader = world.leader().await;
    until("the witness has all", || {
        let last = world.cluster(leader).status().last;
        (voter.cluster.status().last == last).then_some(())
    })
    .await;
    for (sequence, payload) in stored {
        assert_eq!(world.read(leader, sequence).await.as_deref(), Some(payload));
    }
    let kept: usize = voter.disk.files().values().map(Vec::len).sum();
    assert!(kept < 64 << 10, "a witness keeps {kept} bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_misses_what_the_witness_saw_is_not_elected() {
    let (mut world, voter) = with_witness().await;
    world.publish("both").await;
    world.settled().await;
    let leader = world.leader().await;
    let away = 1 - leader;
    world.kill(away, Crash::LoseUnsynced).await;
    let sequence = world.publish("only here").await;
    let last = world.cluster(leader).status().last;
    until("the witness has it", || (voter.cluster.status().last == last).then_some(())).await;
    world.kill(leader, Crash::LoseUnsynced).await;
    world.start(away, false).await;
    // It asks for votes and does not get the witness's.
    let elected = tokio::time::timeout(Duration::from_secs(4), world.leader()).await;
    assert!(elected.is_err());
    world.start(leader, false).await;
    let leader = world.leader().await;
    assert_eq!(world.read(leader, sequence).await.as_deref(), Some("only here"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_both_nodes_could_have_is_acknowledged_when_both_have_it() {
    let (world, _voter) = with_witness().await;
    for n in 0..20 {
        world.publish(&format!("m{n}")).await;
        let leader = world.leader().await;
        let status = world.cluster(leader).status();
        let other = status.members.iter().find(|member| member.id == world.id(1 - leader)).unwrap();
        assert!(other.durable >= Some(status.applied), "{status:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_witness_does_not_lead_and_is_not_opened_over_another_store() {
    let (mut world, voter) = with_witness().await;
    let leader = world.leader().await;
    let asked = world.cluster(leader).change(Change::Transfer { to: Some(voter.cluster.me()) }).await;
    assert_eq!(asked, Err(ChangeError::NoSuccessor));
    world.stop(1 - leader).await;
    let disk: Arc<dyn Disk> = Arc::new(world.nodes[1 - leader].disk.clone());
    let opened = Witness::open(Path::new("/data"), disk, ShardId(0), Timestamp(1));
    assert!(matches!(opened, Err(WitnessError::Kept(_))), "{opened:?}");
}
