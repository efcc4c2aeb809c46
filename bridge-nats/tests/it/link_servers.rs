//! Links to the oldest server that they are meant for, and to servers that do not let them do everything.

use async_nats::jetstream;
use async_nats::jetstream::stream::{Config, RetentionPolicy};
use beamlog_nats::link::rules::{Direction, LinkConfig};
use beamlog_nats::link::status::LinkState;

use crate::link_core::{listen, next, say};
use crate::link_kv;
use crate::link_streams::{check_each_once, count, make, publish, stream};
use crate::link_world::{NO_JETSTREAM, Site, Upstream, link, old_nats_binary, requests, subject, until};

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_server_is_as_good() {
    let mut upstream = Upstream::of(old_nats_binary(), "");
    let there = upstream.client().await;
    assert!(there.server_info().version.starts_with("2.9."), "{}", there.server_info().version);
    let far = jetstream::new(there.clone());
    make(&far, "DOWN", &["down.>"]).await;
    make(&far, "UP", &["up.>"]).await;
    let work = Config {
        name: "WORK".into(),
        subjects: vec!["work.>".into()],
        retention: RetentionPolicy::WorkQueue,
        ..Config::default()
    };
    far.create_stream(work).await.unwrap();
    publish(&far, "down", 0..500).await;
    let site = Site::start().await;
    let here = site.client().await;
    let near = jetstream::new(here.clone());
    make(&near, "LOCAL", &["up.>"]).await;
    // The link makes it there.
    let settings = link_kv::make(&here, "settings").await;
    settings.put("mode", "auto".into()).await.unwrap();
    let config = LinkConfig {
        import: vec![stream("DOWN"), stream("WORK"), subject("cmd.>", None), link_kv::bucket("settings")],
        export: vec![stream("LOCAL"), subject("alerts.>", None), link_kv::bucket("settings")],
        requests: vec![requests("rpc.>", Direction::Out, None), requests("site.>", Direction::In, None)],
        ..link("core", &upstream)
    };
    site.link(config).await;

    let mut commands = listen(&here, "cmd.>").await;
    let mut alerts = listen(&there, "alerts.>").await;
    say(&there, "cmd.go", "go").await;
    say(&here, "alerts.hot", "hot").await;
    assert_eq!(&next(&mut commands).await.payload[..], b"go");
    assert_eq!(&next(&mut alerts).await.payload[..], b"hot");
    for (server, client, name) in [(&there, &here, "rpc.count"), (&here, &there, "site.count")] {
        let mut service = listen(server, name).await;
        let answering = async {
            let request = next(&mut service).await;
            server.publish(request.reply.unwrap(), "7".into()).await.unwrap();
        };
        let (answer, ()) = tokio::join!(client.request(name, "".into()), answering);
        assert_eq!(&answer.unwrap().payload[..], b"7");
    }

    publish(&near, "up", 0..500).await;
    publish(&far, "work", 0..500).await;
    upstream.kill();
    publish(&near, "up", 500..1000).await;
    upstream.begin();
    site.connected("core").await;
    let there = upstream.client().await;
    let far = jetstream::new(there.clone());
    publish(&far, "down", 500..1000).await;
    check_each_once(&there, "UP", 1000).await;
    check_each_once(&here, "DOWN", 1000).await;
    check_each_once(&here, "WORK", 500).await;
    until("the work is done there", async || count(&there, "WORK").await == 0).await;
    let copied = link_kv::open(&there, "settings").await;
    until("it is there", async || copied.get("mode").await.unwrap().as_deref() == Some(b"auto")).await;
    settings.put("level", "3".into()).await.unwrap();
    copied.delete("mode").await.unwrap();
    until("both buckets are the same", async || {
        copied.get("level").await.unwrap().as_deref() == Some(b"3")
            && settings.get("mode").await.unwrap().is_none()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_jetstream_there_the_other_rules_go_on() {
    let mut upstream = Upstream::start();
    let far = jetstream::new(upstream.client().await);
    make(&far, "DOWN", &["down.>"]).await;
    make(&far, "UP", &["up.>"]).await;
    let site = Site::start().await;
    let here = site.client().await;
    let near = jetstream::new(here.clone());
    make(&near, "LOCAL", &["up.>"]).await;
    let config = LinkConfig {
        import: vec![stream("DOWN"), subject("cmd.>", None)],
        export: vec![stream("LOCAL")],
        ..link("core", &upstream)
    };
    site.link(config).await;
    upstream.kill();
    upstream.configure(NO_JETSTREAM);
    upstream.begin();
    publish(&near, "up", 0..300).await;
    until("stream rules say why, and the other one works", async || {
        let rules = site.status("core").rules;
        let degraded = |rule: usize, stream: &str| matches!(&rules[rule].state, LinkState::Degraded { cause } if cause.contains(stream));
        degraded(0, "DOWN") && rules[1].state == LinkState::Connected && degraded(2, "stream")
    })
    .await;
    let mut heard = listen(&here, "cmd.>").await;
    let there = upstream.client().await;
    say(&there, "cmd.go", "go").await;
    assert_eq!(&next(&mut heard).await.payload[..], b"go");

    upstream.kill();
    upstream.configure("");
    upstream.begin();
    let there = upstream.client().await;
    publish(&jetstream::new(there.clone()), "down", 0..300).await;
    check_each_once(&there, "UP", 300).await;
    check_each_once(&here, "DOWN", 300).await;
    site.connected("core").await;
}

fn allowed(denied: &str) -> String {
    format!(
        "authorization {{\nusers: [\n {{ user: root, password: secret }}\n\
         {{ user: edge, password: secret, permissions: {{ publish: {{ deny: [ {denied} ] }} }} }} ]\n}}"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn what_streams_are_denied_there_is_the_cause_and_its_return_the_cure() {
    let mut upstream = Upstream::with_configuration(&allowed("\"nothing\""));
    let root = async_nats::ConnectOptions::with_user_and_password("root".into(), "secret".into());
    let there = root.connect(upstream.url()).await.unwrap();
    let far = jetstream::new(there.clone());
    make(&far, "DOWN", &["down.>"]).await;
    make(&far, "UP", &["up.>"]).await;
    let site = Site::start().await;
    let here = site.client().await;
    let near = jetstream::new(here.clone());
    make(&near, "LOCAL", &["up.>"]).await;
    let config = LinkConfig {
        urls: vec![upstream.url().replace("nats://", "nats://edge:secret@")],
        import: vec![stream("DOWN")],
        export: vec![stream("LOCAL")],
        ..link("core", &upstream)
    };
    site.link(config).await;
    publish(&far, "down", 0..100).await;
    publish(&near, "up", 0..100).await;
    check_each_once(&there, "UP", 100).await;
    check_each_once(&here, "DOWN", 100).await;

    upstream.reload(&allowed("\"$JS.API.>\", \"up.>\""));
    publish(&near, "up", 100..300).await;
    until("both say why", async || {
        let denied = |state: &LinkState| {
            matches!(state, LinkState::Degraded { cause } if cause.to_lowercase().contains("permissions violation"))
        };
        site.status("core").rules.iter().all(|rule| denied(&rule.state))
    })
    .await;
    publish(&far, "down", 100..300).await;
    upstream.reload(&allowed("\"nothing\""));
    check_each_once(&there, "UP", 300).await;
    check_each_once(&here, "DOWN", 300).await;
    site.connected("core").await;
}
