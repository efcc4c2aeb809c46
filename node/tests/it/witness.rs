//! Two nodes that keep messages and a witness, as real processes: any one of them may be lost, two may not.

use std::path::PathBuf;
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::stream::Config;
use serde_json::Value;
use tempfile::TempDir;

use crate::running::{beamlog, check_cannot_start};
use crate::site::{Site, patiently};

const NAMES: &[&str] = &["n1", "n2", "w"];

async fn publish(context: &Context, text: &str) -> u64 {
    patiently("a publish is acked", async || {
        context.publish("s.a", text.to_owned().into()).await.ok()?.await.ok().map(|ack| ack.sequence)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn any_one_of_three_may_be_lost_and_two_may_not() {
    let mut site = Site::new(NAMES);
    site.start_all().await;
    let page = site.healthy().await;
    let roles: Vec<(&str, &str)> = page["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|member| (member["name"].as_str().unwrap(), member["role"].as_str().unwrap()))
        .collect();
    for expected in [("n1", "voter"), ("n2", "voter"), ("w", "witness")] {
        assert!(roles.contains(&expected), "{roles:?}");
    }
    let shown = site.node(2).run(&["cluster", "status", "--admin", &site.node(2).admin]).unwrap();
    assert!(shown.contains("witness"), "{shown}");

    let config =
        Config { name: "S".into(), subjects: vec!["s.>".into()], num_replicas: 2, ..Config::default() };
    let context = site.client(0).await;
    patiently("a stream is made", async || context.create_stream(config.clone()).await.ok()).await;
    let mut acked = Vec::new();
    for lost in [2, 0, 1] {
        let stays = usize::from(lost == 0);
        for n in 0..10 {
            let text = format!("before {lost} {n}");
            acked.push((publish(&site.client(stays).await, &text).await, text));
        }
        let folder = site.kill(lost);
        let context = site.client(stays).await;
        for n in 0..10 {
            let text = format!("without {lost} {n}");
            acked.push((publish(&context, &text).await, text));
        }
        assert_eq!(site.page(stays)["members"].as_array().unwrap().len(), NAMES.len());
        site.start(lost, folder);
        site.healthy().await;
    }

    // Two at once: what is left knows, and acks nothing.
    let folders = [site.kill(2), site.kill(1)];
    patiently("one alone knows it", async || {
        let page = site.page(0);
        (page["quorum"] == false || page["leader"].is_null()).then_some(())
    })
    .await;
    let context = site.client(0).await;
    let alone = async { context.publish("s.a", "alone".into()).await?.await };
    assert!(!matches!(tokio::time::timeout(Duration::from_secs(5), alone).await, Ok(Ok(_))));
    let [witness, second] = folders;
    site.start(2, witness);
    site.start(1, second);
    site.healthy().await;
    for at in [0, 1] {
        let context = site.client(at).await;
        let stream = patiently("the stream", async || context.get_stream("S").await.ok()).await;
        for (sequence, text) in &acked {
            let message = stream.get_raw_message(*sequence).await.unwrap();
            assert_eq!(message.payload, text.as_bytes());
        }
    }
    let kept: u64 = std::fs::read_dir(site.node(2).data().join("shard-0000"))
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    assert!(kept < 64 << 10, "the witness keeps {kept} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_lost_its_store_is_taken_out_and_comes_back_under_its_name() {
    let mut site = Site::new(NAMES);
    site.start_all().await;
    // A node, and then the witness, which is told the whole history of who was a member.
    for lost in [1, 2] {
        let id = |page: &Value| {
            let members = page["members"].as_array().unwrap();
            members.iter().find(|member| member["name"] == NAMES[lost]).unwrap()["id"].clone()
        };
        let before = id(&site.healthy().await);
        drop(site.kill(lost));
        // The others stay: they have seen the name with the id that is gone.
        let admin = site.node(0).admin.clone();
        patiently("it is taken out", async || {
            site.node(0).run(&["cluster", "remove", NAMES[lost], "--admin", &admin]).ok()
        })
        .await;
        site.start(lost, TempDir::new().unwrap());
        assert_ne!(before, id(&site.healthy().await));
    }
}

#[test]
fn a_witness_needs_its_certificate_and_a_cluster_to_join() {
    let site = Site::new(NAMES);
    let data = TempDir::new().unwrap();
    let serve = |arguments: &[&str], certificates: PathBuf| {
        let mut command = beamlog();
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--admin", "off", "--data-dir"])
            .arg(data.path().join("d"));
        command.args(["--cluster-listen", "127.0.0.1:0", "--cluster-certificates"]).arg(certificates);
        command.args(arguments).output().unwrap()
    };
    check_cannot_start(&serve(&["--witness"], site.certificates(2)), &["witness", "cluster_join"]);
    let join = ["--witness", "--cluster-join", "127.0.0.1:1"];
    check_cannot_start(&serve(&join, site.certificates(0)), &["a node", "cert node --witness"]);
    check_cannot_start(&serve(&[], site.certificates(2)), &["a witness", "--witness"]);
    let hub = ["--witness", "--cluster-join", "127.0.0.1:1", "--edge-listen", "127.0.0.1:0"];
    check_cannot_start(&serve(&hub, site.certificates(2)), &["edge_listen", "witness"]);
}
