//! One run of a link after another, while the one before still has messages in hand: pauses, a leader that
//! comes and goes, and cursors that are begun anew.

use async_nats::jetstream;
use beamlog_nats::link::rules::LinkConfig;
use beamlog_nats::link::status::LinkState;

use crate::link_streams::{
    check_each_once, count, exporting, importing, make, of_every_retention, publish, stream,
};
use crate::link_world::{Site, Upstream, link, until};

/// The run before waits for acks that do not come; what is stored meanwhile is the next run's.
#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_is_resumed_at_once_takes_nothing_from_itself() {
    let upstream = Upstream::start();
    let there = upstream.client().await;
    make(&jetstream::new(there.clone()), "UP", &["up.>"]).await;
    let site = Site::start().await;
    let near = jetstream::new(site.client().await);
    make(&near, "LOCAL", &["up.>"]).await;
    site.link(exporting("core", &upstream, stream("LOCAL"))).await;
    publish(&near, "up", 0..100).await;
    check_each_once(&there, "UP", 100).await;
    upstream.signal("-STOP");
    publish(&near, "up", 100..200).await;
    until("they are on their way", async || site.figures("core", 0).lag_messages >= 100).await;
    for round in 0..3 {
        site.links.pause("core").unwrap();
        assert_eq!(site.status("core").state, LinkState::Paused);
        site.links.resume("core").unwrap();
        publish(&near, "up", 200 + round * 100..300 + round * 100).await;
    }
    upstream.signal("-CONT");
    publish(&near, "up", 500..600).await;
    check_each_once(&there, "UP", 600).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_stands_by_while_another_node_runs_it() {
    let upstream = Upstream::start();
    let there = jetstream::new(upstream.client().await);
    make(&there, "DOWN", &["down.>"]).await;
    let site = Site::start().await;
    site.link(importing("core", &upstream, stream("DOWN"))).await;
    site.links.lead(false);
    assert_eq!(site.status("core").state, LinkState::Standby);
    assert_eq!(site.status("core").rules[0].state, LinkState::Standby);
    publish(&there, "down", 0..200).await;
    site.links.pause("core").unwrap();
    site.links.lead(true);
    assert_eq!(site.status("core").state, LinkState::Paused);
    site.links.lead(false);
    site.links.resume("core").unwrap();
    assert_eq!(site.status("core").state, LinkState::Standby);
    let here = site.client().await;
    assert_eq!(count(&here, "DOWN").await, 0, "nothing came while it stood by");
    site.links.lead(true);
    check_each_once(&here, "DOWN", 200).await;
}

/// What was delivered and not stored is neither deleted with a consumer nor passed over.
#[tokio::test(flavor = "multi_thread")]
async fn streams_of_every_retention_can_be_read_again_from_the_watermark() {
    let upstream = Upstream::start();
    let there = jetstream::new(upstream.client().await);
    let kinds = of_every_retention(&there).await;
    let site = Site::start().await;
    let import = kinds.map(stream).to_vec();
    site.link(LinkConfig { import, ..link("core", &upstream) }).await;
    let here = site.client().await;
    for round in 0..4 {
        for name in kinds {
            publish(&there, name, round * 250..round * 250 + 125).await;
        }
        site.links.resync("core").unwrap();
        for name in kinds {
            publish(&there, name, round * 250 + 125..(round + 1) * 250).await;
        }
    }
    for name in kinds {
        check_each_once(&here, name, 1000).await;
    }
    site.connected("core").await;
}
