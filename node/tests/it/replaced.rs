//! A member that is replaced under its name while another member hears of nothing, as real processes.

use serde_json::Value;
use tempfile::TempDir;

use crate::site::{Site, patiently};

const NAMES: &[&str] = &["n1", "n2", "n3", "n4", "n5"];

fn member<'page>(page: &'page Value, name: &str) -> Option<&'page Value> {
    page["members"].as_array().unwrap().iter().find(|member| member["name"] == name)
}

/// The one that heard of nothing knows the name with the id that is gone, and so refuses the new one. It would learn of the
/// change from a leader; here the new one is the leader.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_took_a_name_over_is_let_in_by_who_was_away() {
    let mut site = Site::new(NAMES);
    site.start_all().await;
    let before = member(&site.healthy().await, "n4").unwrap()["id"].clone();

    patiently("n5 has met n4", async || (member(&site.page(4), "n4")?["connected"] == true).then_some(()))
        .await;
    site.node(4).signal("-STOP");
    // What was sent to it before is not what it hears of later.
    patiently("n5 is missed", async || {
        (0..4).all(|at| member(&site.page(at), "n5").unwrap()["connected"] == false).then_some(())
    })
    .await;
    drop(site.kill(3));
    let admin = site.node(0).admin.clone();
    patiently("n4 is taken out", async || {
        site.node(0).run(&["cluster", "remove", "n4", "--admin", &admin]).ok()
    })
    .await;
    site.start(3, TempDir::new().unwrap());
    patiently("the new n4 votes", async || {
        let page = site.page(0);
        let new = member(&page, "n4")?;
        (new["role"] == "voter" && new["id"] != before).then_some(())
    })
    .await;
    patiently("the new n4 leads", async || {
        drop(site.node(0).run(&["cluster", "transfer", "n4", "--admin", &admin]));
        (site.page(0)["leader"] == "n4" && site.page(3)["leader"] == "n4").then_some(())
    })
    .await;

    site.node(4).signal("-CONT");
    patiently("n5 follows the new n4", async || {
        let page = site.page(4);
        (page["leader"] == "n4" && member(&page, "n4")?["id"] != before).then_some(())
    })
    .await;
    // The same is true of who was cut off while it led.
    site.healthy().await;
    assert!(site.node(4).log().contains("other nodes know of other members"));
}
