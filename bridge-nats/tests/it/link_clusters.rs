//! Links to a cluster of three nats-servers whose streams have three replicas.

use std::time::Duration;

use async_nats::jetstream::stream::Config;
use async_nats::jetstream::{self, Context};
use beamlog_nats::link::rules::LinkConfig;
use beamlog_nats::link::status::LinkState;

use crate::link_streams::{check_each_once, make, stream};
use crate::link_world::{Site, UpstreamCluster, until};

async fn make_replicated(context: &Context, name: &str, subjects: &str) {
    let config =
        Config { name: name.into(), subjects: vec![subjects.into()], num_replicas: 3, ..Config::default() };
    until("the cluster makes a stream", async || context.create_stream(config.clone()).await.is_ok()).await;
}

/// Publishes `m<n>` for each of the range, in order on each of seven subjects: what is not acked is sent again
/// under its id, before what is behind it.
async fn insist(context: &Context, prefix: &str, range: std::ops::Range<u64>) {
    for n in range {
        until("a message is stored", async || {
            let mut headers = async_nats::HeaderMap::new();
            headers.insert("Nats-Msg-Id", format!("{prefix}-{n}").as_str());
            let subject = format!("{prefix}.{}", n % 7);
            match context.publish_with_headers(subject, headers, format!("m{n}").into()).await {
                Ok(ack) => ack.await.is_ok(),
                Err(_) => false,
            }
        })
        .await;
    }
}

/// The server that leads a stream, by its place among the servers.
async fn leader(context: &Context, name: &str) -> usize {
    let mut found = None;
    until("the stream has a leader", async || {
        let Ok(stream) = context.get_stream(name).await else { return false };
        let leader = stream.cached_info().cluster.as_ref().and_then(|cluster| cluster.leader.clone());
        found = leader.and_then(|name| name.strip_prefix('s')?.parse().ok());
        found.is_some()
    })
    .await;
    found.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leaders_of_streams_there_may_be_killed() {
    let mut cluster = UpstreamCluster::start();
    let there = cluster.client().await;
    let mut far = jetstream::new(there.clone());
    far.set_timeout(Duration::from_secs(2));
    make_replicated(&far, "DOWN", "down.>").await;
    make_replicated(&far, "UP", "up.>").await;
    let site = Site::start().await;
    let here = site.client().await;
    let near = jetstream::new(here.clone());
    make(&near, "LOCAL", &["up.>"]).await;
    let config = LinkConfig {
        name: "core".into(),
        urls: cluster.urls(),
        import: vec![stream("DOWN")],
        export: vec![stream("LOCAL")],
        ..LinkConfig::default()
    };
    site.link(config).await;
    let each = 400;
    for (round, name) in ["DOWN", "UP", "DOWN"].into_iter().enumerate() {
        let range = round as u64 * each..(round as u64 + 1) * each;
        let killing = async {
            let leads = leader(&far, name).await;
            cluster.servers[leads].kill();
            until("another one leads", async || leader(&far, name).await != leads).await;
            cluster.servers[leads].begin();
        };
        tokio::join!(insist(&far, "down", range.clone()), insist(&near, "up", range), killing);
    }
    check_each_once(&here, "DOWN", 3 * each).await;
    check_each_once(&there, "UP", 3 * each).await;
    until("the link is well again", async || site.status("core").state == LinkState::Connected).await;
}
