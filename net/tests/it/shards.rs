//! Two shards of the same nodes, over the same wires: each has its log, its members and its leader.

use std::{future::IntoFuture, path::Path, sync::Arc, time::Duration};

use beamlog_log::{ShardId, sim_disk::Crash};
use beamlog_net::cluster::{Change, Cluster, ClusterOptions, Seat, Start};
use beamlog_router::{
    Router, RouterOptions, ShardKind,
    api::request::{Published, Request},
    embed::PlainWire,
    replica::Role,
    stream::StreamConfig,
};

use crate::world::{LONG, World, member, until};

/// The second shard of a node.
struct Second {
    router: Router,
    cluster: Cluster,
}

impl Second {
    async fn open(world: &World, at: usize, first: bool) -> Self {
        let live = world.nodes[at].live.as_ref().unwrap();
        let seat = Seat::new();
        let (router, replica) = live
            .router
            .open_replicated_beside(
                1,
                Path::new("/data/shard-1"),
                Arc::new(world.nodes[at].disk.clone()),
                &RouterOptions::for_simulation(),
                Arc::new(PlainWire),
                seat.replicator(),
            )
            .unwrap();
        live.seats.add(ShardId(1), &seat);
        let cluster = Cluster::start(Start {
            seat,
            shard: ShardId(1),
            me: world.id(at),
            replica,
            transport: world.wires.of(world.id(at)),
            first: first.then(|| member(at)),
            options: ClusterOptions::default(),
        })
        .await
        .unwrap();
        Self { router, cluster }
    }

    fn leads(&self) -> bool {
        matches!(*self.cluster.role().borrow(), Role::Leader { .. })
    }

    async fn close(self) {
        self.cluster.stop().await;
        drop(self.router.close());
    }
}

/// By the handle of any of the node's shards: the sequence, when it is acknowledged in time.
async fn publish(router: &Router, subject: &str, within: Duration) -> Option<u64> {
    let ticket = router.publish(subject.to_owned(), "", "x").ok()?;
    match tokio::time::timeout(within, ticket.into_future()).await.ok()?.result {
        Ok(Published::Stored(sequence)) => Some(sequence.0),
        Ok(_) | Err(_) => None,
    }
}

async fn lead(seconds: &[Option<Second>], at: usize) {
    let leads = || seconds[at].as_ref().unwrap().leads().then_some(());
    until("the node leads the second shard", leads).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_shard_has_a_leader_and_a_quorum_of_its_own() {
    let mut world = World::formed(3).await;
    let led = world.leader().await;
    // The second shard is of the two others.
    let (one, other) = ((led + 1) % 3, (led + 2) % 3);
    let mut seconds: Vec<Option<Second>> = (0..3).map(|_| None).collect();
    seconds[one] = Some(Second::open(&world, one, true).await);
    lead(&seconds, one).await;
    seconds[other] = Some(Second::open(&world, other, false).await);
    let add = Change::Add { id: world.id(other), member: member(other) };
    seconds[one].as_ref().unwrap().cluster.change(add).await.unwrap();
    let config = StreamConfig { name: "B".into(), subjects: vec!["b.>".into()], ..StreamConfig::default() };
    let request = Request::CreateStream(Box::new(config));
    seconds[one].as_ref().unwrap().router.request(request).unwrap().into_future().await.unwrap();
    let captured = world.router(one).interest().capture_of(b"b.x").unwrap();
    assert_eq!(ShardKind::of(captured), ShardKind::Numbered(1));
    assert_eq!(publish(world.router(one), "b.x", LONG).await, Some(1), "by the first shard's handle");
    assert_eq!(world.publish("a").await, 1);

    // Asked of who does not lead it, a change comes to the leader of this shard and changes no other.
    let transfer = Change::Transfer { to: Some(world.id(other)) };
    seconds[other].as_ref().unwrap().cluster.change(transfer).await.unwrap();
    lead(&seconds, other).await;
    assert_eq!(world.leader().await, led);
    assert_eq!(publish(world.router(other), "b.x", LONG).await, Some(2));

    // A node dies: the second shard has no quorum, the first one has.
    let folded = |second: &Option<Second>, end| second.as_ref().unwrap().cluster.status().applied == end;
    let end = seconds[other].as_ref().unwrap().cluster.status().last.index;
    until("both have everything", || folded(&seconds[one], end).then_some(())).await;
    let dead = seconds[one].take().unwrap();
    world.kill(one, Crash::LoseUnsynced).await;
    dead.close().await;
    world.nodes[one].disk.crash(Crash::LoseUnsynced);
    assert_eq!(publish(world.router(other), "b.x", Duration::from_secs(2)).await, None);
    assert_eq!(world.publish("goes on").await, 2);
    until("who has no quorum serves nobody", || {
        world.router(other).interest().capture_of(b"b.x").is_none().then_some(())
    })
    .await;

    // It comes back with what it had: what was acknowledged is there, once.
    world.start(one, false).await;
    seconds[one] = Some(Second::open(&world, one, false).await);
    let leader = until("the second shard is led again", || {
        [one, other].into_iter().find(|at| seconds[*at].as_ref().unwrap().leads())
    })
    .await;
    let sequence = publish(world.router(leader), "b.x", LONG).await.unwrap();
    // The one that was not acknowledged may have been kept.
    assert!((3..=4).contains(&sequence), "{sequence}");
    for second in seconds.into_iter().flatten() {
        second.close().await;
    }
}
