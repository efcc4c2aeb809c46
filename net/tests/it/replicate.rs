//! What is acknowledged is on a quorum, whatever happens to one node.

use std::{collections::BTreeMap, time::Duration};

use beamlog_log::{Sequence, sim_disk::Crash};
use beamlog_net::{
    cluster::{Change, ChangeError, MemberRole, Standing},
    peer::PeerId,
};
use beamlog_router::{RouterOptions, api::request::Published, replica::Role};

use crate::world::{LONG, World, copy, member, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_alone_begins_a_cluster_and_serves() {
    let mut world = World::new(1).await;
    world.make_stream().await;
    assert_eq!(world.publish("one").await, 1);
    world.stop(0).await;
    world.start(0, true).await;
    assert_eq!(world.publish("two").await, 2);
    assert_eq!(world.read(0, 1).await.as_deref(), Some("one"));
    let status = world.cluster(0).status();
    assert_eq!(status.members.len(), 1);
    assert_eq!(status.members[0].member, member(0));
    world.stop(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_hold_what_was_acknowledged() {
    let mut world = World::formed(3).await;
    for n in 1..=50 {
        assert_eq!(world.publish(&format!("m{n}")).await, n);
    }
    world.settled().await;
    let leader = world.leader().await;
    let status = world.cluster(leader).status();
    assert_eq!(status.members.len(), 3);
    assert!(status.members.iter().all(|member| member.role == MemberRole::Voter && member.connected));
    assert!(status.members.iter().all(|member| member.lag == Some(0)), "{status:?}");
    for at in 0..3 {
        world.stop(at).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_tells_others_who_the_members_are() {
    let mut world = World::formed(2).await;
    world.settled().await;
    let (of_first, gone) = (world.cluster(0).status().members_by, world.id(1));
    let roll = world.cluster(1).ask_members(world.id(0)).await.unwrap();
    let mut expected = [(world.id(0), member(0)), (world.id(1), member(1))];
    expected.sort_by_key(|(id, _)| *id);
    assert_eq!((roll.by, roll.members.as_slice()), (of_first, expected.as_slice()));
    assert!(!roll.is_newer_than(of_first));

    let change = Change::Remove { id: gone };
    let leader = world.leader().await;
    world.cluster(leader).change(Change::Transfer { to: Some(world.id(0)) }).await.unwrap();
    tokio::time::timeout(LONG, world.cluster(0).change(change)).await.unwrap().unwrap();
    world.publish("committed").await;
    let newer = world.cluster(1).ask_members(world.id(0)).await.unwrap();
    assert_eq!(newer.members, [(world.id(0), member(0))]);
    assert!(newer.is_newer_than(roll.by) && !roll.is_newer_than(newer.by));
    world.stop(0).await;
    assert_eq!(world.cluster(1).ask_members(PeerId(1)).await, None);
    world.stop(1).await;
}

/// A change of voters has two steps. Who asked for it may be gone with the leader.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_members_that_a_leader_left_half_made_is_finished_by_the_next() {
    const GOES: usize = 3;
    let world = World::formed(4).await;
    world.cluster(world.leader().await).change(Change::Transfer { to: Some(world.id(0)) }).await.unwrap();
    until("n0 leads", || matches!(*world.cluster(0).role().borrow(), Role::Leader { .. }).then_some(()))
        .await;
    world.settled().await;
    // The others hear it, and it hears nobody: the first step is in their logs, and it does not make the second.
    for other in 1..4 {
        world.wires.cut(world.id(other), world.id(0));
    }
    let (cluster, goes) = (world.cluster(0).clone(), world.id(GOES));
    let asked = tokio::spawn(async move { cluster.change(Change::Remove { id: goes }).await });
    until("the others have the first step", || {
        (1..4).all(|at| world.cluster(at).status().changing).then_some(())
    })
    .await;
    world.wires.isolate(world.id(0));
    let leader = world.leader_among(&[1, 2, 3]).await;
    assert_ne!(leader, 0);
    until("the change is made", || {
        let status = world.cluster(1).status();
        (!status.changing && status.members.iter().all(|member| member.id != goes)).then_some(())
    })
    .await;
    world.wires.heal();
    world.publish("after").await;
    drop(asked.await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_is_replaced_and_nothing_acknowledged_is_lost() {
    let mut world = World::formed(3).await;
    let mut stored = BTreeMap::new();
    for round in 0..3 {
        for n in 0..20 {
            let payload = format!("{round}.{n}");
            stored.insert(world.publish(&payload).await, payload);
        }
        let leader = world.leader().await;
        world.kill(leader, Crash::LoseUnsynced).await;
        let payload = format!("{round} after");
        stored.insert(world.publish(&payload).await, payload);
        world.start(leader, false).await;
    }
    world.settled().await;
    let leader = world.leader().await;
    for (sequence, payload) in &stored {
        assert_eq!(world.read(leader, *sequence).await.as_ref(), Some(payload));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_lose_power_at_once() {
    let mut world = World::formed(3).await;
    let mut stored = BTreeMap::new();
    for n in 0..30 {
        stored.insert(world.publish(&format!("m{n}")).await, format!("m{n}"));
    }
    for at in 0..3 {
        world.kill(at, Crash::LoseUnsynced).await;
    }
    for at in 0..3 {
        world.start(at, false).await;
    }
    let leader = world.leader().await;
    for (sequence, payload) in &stored {
        assert_eq!(world.read(leader, *sequence).await.as_ref(), Some(payload));
    }
    assert_eq!(world.publish("after").await, 31);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_nothing_is_acknowledged() {
    let world = World::formed(3).await;
    world.publish("before").await;
    let leader = world.leader().await;
    world.wires.isolate(world.id(leader));
    // It may take a moment until it knows; what it takes meanwhile is not acknowledged.
    let outcome = world.publish_on(leader, "lost".into(), Duration::from_millis(300)).await;
    assert!(outcome.is_none_or(|outcome| outcome.result.is_err()));
    let mut state = world.cluster(leader).state();
    tokio::time::timeout(LONG, state.wait_for(|state| !state.quorum)).await.unwrap().unwrap();
    let others: Vec<usize> = (0..3).filter(|at| *at != leader).collect();
    let next = world.leader_among(&others).await;
    let outcome = world.publish_on(next, "kept".into(), LONG).await.unwrap();
    assert_eq!(outcome.result, Ok(Published::Stored(Sequence(2))));
    world.wires.heal();
    world.settled().await;
    let leader = world.leader().await;
    assert_eq!(world.read(leader, 2).await.as_deref(), Some("kept"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_wires_lose_and_delay_messages_but_nothing_acknowledged() {
    let world = World::formed(3).await;
    world.wires.worsen(50, Duration::from_millis(10));
    let mut stored = BTreeMap::new();
    for n in 0..40 {
        stored.insert(world.publish(&format!("m{n}")).await, format!("m{n}"));
    }
    world.wires.heal();
    world.settled().await;
    let leader = world.leader().await;
    for (sequence, payload) in &stored {
        assert_eq!(world.read(leader, *sequence).await.as_ref(), Some(payload));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wire_cut_in_one_direction_does_not_stop_the_others() {
    let world = World::formed(3).await;
    let leader = world.leader().await;
    let deaf = (leader + 1) % 3;
    world.wires.cut(world.id(leader), world.id(deaf));
    for n in 1..=10 {
        assert_eq!(world.publish(&format!("m{n}")).await, n);
    }
    world.wires.heal();
    world.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_handed_over() {
    let world = World::formed(3).await;
    let leader = world.leader().await;
    let to = (leader + 1) % 3;
    // Asked of a node that does not lead.
    let asked = (leader + 2) % 3;
    world.cluster(asked).change(Change::Transfer { to: Some(world.id(to)) }).await.unwrap();
    until("the other leads", || {
        (world.cluster(asked).status().state.leader == Some(world.id(to))).then_some(())
    })
    .await;
    assert_eq!(world.leader_among(&[to]).await, to);
    assert_eq!(world.publish("after").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_change_under_load() {
    let mut world = World::formed(3).await;
    world.nodes.push(crate::world::Node { disk: beamlog_log::SimDisk::new(), live: None });
    world.start(3, false).await;
    assert_eq!(*world.cluster(3).state().borrow(), Default::default());
    let load = async {
        let mut stored = BTreeMap::new();
        for n in 0..60 {
            stored.insert(world.publish(&format!("m{n}")).await, format!("m{n}"));
        }
        stored
    };
    let leader = world.leader().await;
    let old = (leader + 1) % 3;
    let change = Change::Replace { old: world.id(old), new: world.id(3), member: member(3) };
    let (stored, changed) = tokio::join!(load, world.cluster(leader).change(change.clone()));
    changed.unwrap();
    let again = world.cluster(leader).change(change).await;
    assert_eq!(again, Err(ChangeError::NotMember(world.id(old))));
    let gone = world.id(old);
    world.stop(old).await;
    world.settled().await;
    let leader = world.leader().await;
    let status = world.cluster(leader).status();
    assert!(status.members.iter().all(|member| member.id != gone), "{status:?}");
    for (sequence, payload) in &stored {
        assert_eq!(world.read(leader, *sequence).await.as_ref(), Some(payload));
    }
    world.standing(3, |standing| matches!(standing, Standing::Follower | Standing::Leader)).await;
}

/// What a leader that lost its quorum has put into its log can still be undone: whoever took it for made would take the
/// next node away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_is_not_committed_is_under_way() {
    let mut world = World::formed(3).await;
    world.settled().await;
    let leader = world.leader().await;
    assert!(!world.cluster(leader).status().changing);
    for at in (0..3).filter(|at| *at != leader) {
        world.kill(at, Crash::LoseUnsynced).await;
    }
    let newcomer = PeerId(7);
    let cluster = world.cluster(leader).clone();
    let asked =
        tokio::spawn(async move { cluster.change(Change::Add { id: newcomer, member: member(3) }).await });
    let status = until("the newcomer is in the log", || {
        let status = world.cluster(leader).status();
        status.members.iter().any(|member| member.id == newcomer).then_some(status)
    })
    .await;
    assert!(status.changing, "{status:?}");
    asked.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_stood_alone_becomes_the_first_member_as_it_is() {
    let mut world = World { options: RouterOptions::for_simulation(), ..World::new(0).await };
    world.nodes.push(crate::world::Node { disk: beamlog_log::SimDisk::new(), live: None });
    world.alone(0, &["one", "two", "three"]);
    world.start(0, true).await;
    assert_eq!(world.publish("four").await, 4);
    for at in 1..3 {
        world.nodes.push(crate::world::Node { disk: beamlog_log::SimDisk::new(), live: None });
        world.start(at, false).await;
        world.add(at).await.unwrap();
    }
    assert_eq!(world.publish("five").await, 5);
    world.settled().await;
    world.kill(0, Crash::LoseUnsynced).await;
    let leader = world.leader().await;
    for (sequence, payload) in (1..).zip(["one", "two", "three", "four", "five"]) {
        assert_eq!(world.read(leader, sequence).await.as_deref(), Some(payload));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lost_what_it_held_is_refused() {
    let mut world = World::formed(3).await;
    let leader = world.leader().await;
    let rolled = (leader + 1) % 3;
    world.settled().await;
    let old = copy(&world.nodes[rolled].disk);
    for n in 1..=10 {
        world.publish(&format!("m{n}")).await;
    }
    world.settled().await;
    world.stop(rolled).await;
    world.nodes[rolled].disk = old;
    world.start(rolled, false).await;
    for n in 11..=15 {
        assert_eq!(world.publish(&format!("m{n}")).await, n);
    }
    let status = world.cluster(leader).status();
    let held = status.members.iter().find(|member| member.id == world.id(rolled)).unwrap();
    assert!(held.refused.is_some(), "{held:?}");
    assert!(world.cluster(rolled).status().last.index < status.last.index);
    // It is replaced by a new node.
    let change = Change::Remove { id: world.id(rolled) };
    world.cluster(leader).change(change).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lost_what_it_held_is_refused_after_all_were_down() {
    let mut world = World::formed(3).await;
    let rolled = (world.leader().await + 1) % 3;
    world.settled().await;
    let old = copy(&world.nodes[rolled].disk);
    for n in 1..=10 {
        world.publish(&format!("m{n}")).await;
    }
    world.settled().await;
    // It goes first, and the others see it go; then they lose their power.
    let (id, held) = (world.id(rolled), world.cluster(rolled).status().durable.index);
    world.stop(rolled).await;
    let others = [(rolled + 1) % 3, (rolled + 2) % 3];
    let known = [id.0.to_le_bytes(), held.0.to_le_bytes()].concat();
    for at in others {
        until("what the one that went had held is on the disk", || {
            let files = world.nodes[at].disk.files();
            let (_, bytes) = files.iter().find(|(path, _)| path.ends_with("peers"))?;
            bytes.windows(known.len()).any(|some| some == known).then_some(())
        })
        .await;
    }
    for at in others {
        world.kill(at, Crash::LoseUnsynced).await;
    }
    world.nodes[rolled].disk = old;
    for at in 0..3 {
        world.start(at, false).await;
    }
    for n in 11..=15 {
        assert_eq!(world.publish(&format!("m{n}")).await, n);
    }
    for at in others {
        let id = world.id(rolled);
        until("it is refused", || {
            let status = world.cluster(at).status();
            status.members.iter().find(|member| member.id == id)?.refused.clone()
        })
        .await;
    }
    let end = world.cluster(others[0]).status().last.index;
    assert!(world.cluster(rolled).status().last.index < end);
}
