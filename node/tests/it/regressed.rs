//! A node that comes back over an old copy of its folder lost what it had acknowledged: it is kept out, and every
//! operator can see why.

use std::process::Command;

use async_nats::jetstream::stream::Config;
use tempfile::TempDir;

use crate::site::{Site, patiently};

const NAMES: &[&str] = &["n1", "n2", "n3"];
const ROLLED_BACK: usize = 2;

#[tokio::test(flavor = "multi_thread")]
async fn a_node_over_an_old_copy_is_refused_and_the_others_say_why() {
    let mut site = Site::new(NAMES);
    site.start_all().await;
    let context = site.client(0).await;
    let config =
        Config { name: "S".into(), subjects: vec!["s.>".into()], num_replicas: 3, ..Config::default() };
    patiently("a stream is made", async || context.create_stream(config.clone()).await.ok()).await;
    let publish = async |count: usize| {
        for _ in 0..count {
            patiently("an ack", async || context.publish("s.a", "m".into()).await.ok()?.await.ok()).await;
        }
    };
    publish(10).await;
    site.healthy().await;

    let folder = site.kill(ROLLED_BACK);
    let old = TempDir::new().unwrap();
    let copied = Command::new("cp").arg("-a").arg(folder.path().join(".")).arg(old.path()).status().unwrap();
    assert!(copied.success());
    site.start(ROLLED_BACK, folder);
    site.healthy().await;
    publish(50).await;
    // All of them have it, and so it is known of each.
    patiently("everybody has everything", async || {
        let page = site.page(0);
        let ends: Vec<_> = (0..NAMES.len()).map(|at| site.page(at)["durable"].clone()).collect();
        (page["healthy"] == true && ends.iter().all(|end| *end == ends[0])).then_some(())
    })
    .await;

    drop(site.kill(ROLLED_BACK));
    site.start(ROLLED_BACK, old);
    for at in [0, 1] {
        let said = patiently("it is said why", async || {
            let page = site.page(at);
            let problems = page["problems"].as_array().unwrap();
            problems
                .iter()
                .find_map(|said| Some(said.as_str()?.to_owned()).filter(|said| said.contains("refused")))
        })
        .await;
        assert!(said.starts_with("n3 is refused: the log of n3 ends at entry "), "{said}");
        assert!(
            said.ends_with("it lost acknowledged messages and can come back only as a new node"),
            "{said}"
        );
    }

    // As the operations page says: taken out, and let in again over an empty folder.
    drop(site.kill(ROLLED_BACK));
    let admin = site.node(0).admin.clone();
    patiently("it is taken out", async || {
        site.node(0).run(&["cluster", "remove", "n3", "--admin", &admin]).ok()
    })
    .await;
    site.start(ROLLED_BACK, TempDir::new().unwrap());
    assert_eq!(site.healthy().await["problems"], serde_json::json!([]));
    publish(1).await;
}
