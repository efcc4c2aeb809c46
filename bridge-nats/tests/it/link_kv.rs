//! Links: buckets, one way and both ways, against real servers.

use std::collections::BTreeMap;

use async_nats::jetstream::kv::{Config, Operation, Store};
use async_nats::{Client, jetstream};
use beamlog_nats::link::rules::{BucketConflict, LinkConfig, RuleConfig};
use beamlog_nats::link::status::LinkState;
use futures_util::StreamExt;

use crate::link_world::{Site, Upstream, link, until};

pub(crate) fn bucket(name: &str) -> RuleConfig {
    RuleConfig { bucket: Some(name.to_owned()), ..RuleConfig::default() }
}

fn owned(name: &str, by: BucketConflict) -> RuleConfig {
    RuleConfig { conflict: Some(by), ..bucket(name) }
}

pub(crate) async fn make(client: &Client, name: &str) -> Store {
    let config = Config { bucket: name.to_owned(), history: 5, ..Config::default() };
    jetstream::new(client.clone()).create_key_value(config).await.unwrap()
}

pub(crate) async fn open(client: &Client, name: &str) -> Store {
    let mut found = None;
    until(&format!("there is a bucket {name}"), async || {
        found = jetstream::new(client.clone()).get_key_value(name).await.ok();
        found.is_some()
    })
    .await;
    found.unwrap()
}

/// What a reader of the bucket sees: every key with its last value, or how it was removed.
async fn contents(store: &Store) -> BTreeMap<String, String> {
    let mut seen = BTreeMap::new();
    if store.stream.get_info().await.unwrap().state.messages == 0 {
        return seen;
    }
    let mut entries = store.watch_with_history(">").await.unwrap();
    while let Some(entry) = entries.next().await {
        let entry = entry.unwrap();
        let text = match entry.operation {
            Operation::Put => String::from_utf8(entry.value.to_vec()).unwrap(),
            Operation::Delete => "(deleted)".to_owned(),
            Operation::Purge => "(purged)".to_owned(),
        };
        seen.insert(entry.key, text);
        if entry.delta == 0 {
            break;
        }
    }
    seen
}

async fn last_sequence(store: &Store) -> u64 {
    store.stream.get_info().await.unwrap().state.last_sequence
}

async fn same(stores: &[&Store], expected: &[(&str, &str)]) {
    let expected: BTreeMap<String, String> =
        expected.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    for (at, store) in stores.iter().enumerate() {
        let mut seen = BTreeMap::new();
        let begun = std::time::Instant::now();
        while seen != expected {
            assert!(begun.elapsed() < crate::link_world::PATIENCE, "bucket {at}: {seen:?}, not {expected:?}");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            seen = contents(store).await;
        }
    }
}

#[tokio::test]
async fn a_bucket_is_imported_with_deletes_and_purges() {
    let (mut upstream, site) = (Upstream::start(), Site::start().await);
    let there = make(&upstream.client().await, "settings").await;
    there.put("lamp.kitchen", "on".into()).await.unwrap();
    there.put("lamp.hall", "on".into()).await.unwrap();
    there.put("lamp.hall", "off".into()).await.unwrap();
    there.put("gone", "x".into()).await.unwrap();
    there.delete("gone").await.unwrap();
    let config = LinkConfig { import: vec![bucket("settings")], ..link("core", &upstream) };
    site.link(config.clone()).await;
    let here = open(&site.client().await, "settings").await;
    same(&[&here], &[("lamp.kitchen", "on"), ("lamp.hall", "off"), ("gone", "(deleted)")]).await;
    assert_eq!(here.status().await.unwrap().history(), 5);
    there.put("lamp.kitchen", "dim".into()).await.unwrap();
    there.purge("lamp.hall").await.unwrap();
    there.put("new", "1".into()).await.unwrap();
    let expected = [("lamp.kitchen", "dim"), ("lamp.hall", "(purged)"), ("gone", "(deleted)"), ("new", "1")];
    same(&[&here], &expected).await;
    let written = last_sequence(&here).await;
    // Neither restart brings anything twice.
    upstream.kill();
    until("the link is degraded", async || matches!(site.status("core").state, LinkState::Degraded { .. }))
        .await;
    upstream.begin();
    site.connected("core").await;
    let site = Site::open(site.stop().await).await;
    let here = open(&site.client().await, "settings").await;
    let there = open(&upstream.client().await, "settings").await;
    site.link(config).await;
    there.put("last", "2".into()).await.unwrap();
    let expected: Vec<_> = expected.into_iter().chain([("last", "2")]).collect();
    same(&[&here, &there], &expected).await;
    assert_eq!(last_sequence(&here).await, written + 1);
}

#[tokio::test]
async fn both_ways_the_last_writer_wins_and_nothing_goes_round() {
    let (upstream, site) = (Upstream::start(), Site::start().await);
    let there = make(&upstream.client().await, "state").await;
    let here = make(&site.client().await, "state").await;
    here.put("both", "here first".into()).await.unwrap();
    there.put("both", "there last".into()).await.unwrap();
    there.put("other", "there first".into()).await.unwrap();
    here.put("other", "here last".into()).await.unwrap();
    here.put("ours", "1".into()).await.unwrap();
    there.put("theirs", "2".into()).await.unwrap();
    let config = LinkConfig {
        import: vec![bucket("state")],
        export: vec![bucket("state")],
        ..link("core", &upstream)
    };
    site.link(config).await;
    let expected = [("both", "there last"), ("other", "here last"), ("ours", "1"), ("theirs", "2")];
    same(&[&here, &there], &expected).await;
    let before = (last_sequence(&here).await, last_sequence(&there).await);
    for number in 0..50 {
        let (writer, key) = if number % 2 == 0 { (&here, "even") } else { (&there, "odd") };
        writer.put(key, number.to_string().into()).await.unwrap();
    }
    here.delete("ours").await.unwrap();
    there.purge("theirs").await.unwrap();
    let expected = [
        ("both", "there last"),
        ("other", "here last"),
        ("ours", "(deleted)"),
        ("theirs", "(purged)"),
        ("even", "48"),
        ("odd", "49"),
    ];
    same(&[&here, &there], &expected).await;
    // Each write is in each bucket once.
    let after = (last_sequence(&here).await, last_sequence(&there).await);
    assert_eq!((after.0 - before.0, after.1 - before.1), (52, 52));
    site.links.resync("core").unwrap();
    here.put("end", "x".into()).await.unwrap();
    until("the end is there", async || there.get("end").await.unwrap().is_some()).await;
    assert_eq!((last_sequence(&here).await, last_sequence(&there).await), (after.0 + 1, after.1 + 1));
}

#[tokio::test]
async fn writers_of_one_key_on_both_sides_come_to_agree() {
    let (upstream, site) = (Upstream::start(), Site::start().await);
    let there = make(&upstream.client().await, "state").await;
    let here = make(&site.client().await, "state").await;
    let config = LinkConfig {
        import: vec![bucket("state")],
        export: vec![bucket("state")],
        ..link("core", &upstream)
    };
    site.link(config).await;
    let write = async |store: &Store, name: &str| {
        for number in 0..100 {
            for key in ["a", "b", "c"] {
                store.put(key, format!("{name} {number}").into()).await.unwrap();
            }
        }
    };
    tokio::join!(write(&here, "here"), write(&there, "there"));
    until("both sides are the same", async || {
        let (ours, theirs) = (contents(&here).await, contents(&there).await);
        ours == theirs && ours.len() == 3 && ours.values().all(|value| value.ends_with(" 99"))
    })
    .await;
    let diff = site.links.diff("core").await.unwrap();
    assert!(diff.iter().all(|rule| rule.missing == Some(0)), "{diff:?}");
}

#[tokio::test]
async fn one_side_may_own_the_keys() {
    let (upstream, site) = (Upstream::start(), Site::start().await);
    let there = make(&upstream.client().await, "owned").await;
    let kept = make(&upstream.client().await, "kept").await;
    let (here, kept_here) =
        (make(&site.client().await, "owned").await, make(&site.client().await, "kept").await);
    there.put("a", "there".into()).await.unwrap();
    here.put("a", "here, later".into()).await.unwrap();
    kept_here.put("a", "here".into()).await.unwrap();
    kept.put("a", "there, later".into()).await.unwrap();
    kept.put("b", "there".into()).await.unwrap();
    // One way without a word about conflicts: the side it comes from owns.
    let import = vec![bucket("owned"), owned("kept", BucketConflict::Here)];
    site.link(LinkConfig { import, ..link("core", &upstream) }).await;
    same(&[&here], &[("a", "there")]).await;
    same(&[&kept_here], &[("a", "here"), ("b", "there")]).await;
    kept.put("b", "there again".into()).await.unwrap();
    same(&[&kept_here], &[("a", "here"), ("b", "there again")]).await;
}

#[tokio::test]
async fn in_a_ring_of_links_a_write_lands_once_in_each_bucket() {
    let (first, second) = (Upstream::start(), Upstream::start());
    let (a, b) = (Site::start().await, Site::start().await);
    let stores = [
        make(&first.client().await, "ring").await,
        make(&second.client().await, "ring").await,
        make(&a.client().await, "ring").await,
        make(&b.client().await, "ring").await,
    ];
    for site in [&a, &b] {
        for (name, upstream) in [("first", &first), ("second", &second)] {
            let (import, export) = (vec![bucket("ring")], vec![bucket("ring")]);
            site.link(LinkConfig { import, export, ..link(name, upstream) }).await;
        }
    }
    let mut expected = Vec::new();
    for (at, store) in stores.iter().enumerate() {
        for number in 0..10 {
            let key = format!("{at}.{number}");
            store.put(key.as_str(), key.clone().into()).await.unwrap();
            expected.push((key.clone(), key));
        }
    }
    let expected: Vec<(&str, &str)> =
        expected.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    same(&stores.each_ref(), &expected).await;
    // It comes to rest: nothing is written any more by comparing everything anew.
    for (site, name) in [(&a, "first"), (&a, "second"), (&b, "first"), (&b, "second")] {
        site.links.resync(name).unwrap();
    }
    stores[0].put("end", "x".into()).await.unwrap();
    for store in &stores {
        until("the end is everywhere", async || store.get("end").await.unwrap().is_some()).await;
        assert_eq!(last_sequence(store).await, 41);
    }
}

#[tokio::test]
async fn a_cluster_that_is_killed_and_a_bucket_that_is_removed_are_caught_up_with() {
    let (mut upstream, site) = (Upstream::start(), Site::start().await);
    let here = make(&site.client().await, "state").await;
    let config = LinkConfig {
        import: vec![bucket("state")],
        export: vec![bucket("state")],
        ..link("core", &upstream)
    };
    site.link(config).await;
    let mut expected = Vec::new();
    for round in 0..3 {
        for number in 0..20 {
            let key = format!("{round}.{number}");
            here.put(key.as_str(), "x".into()).await.unwrap();
            expected.push(key);
            if number == 10 {
                upstream.kill();
            }
        }
        upstream.begin();
        let there = open(&upstream.client().await, "state").await;
        let expected: Vec<(&str, &str)> = expected.iter().map(|key| (key.as_str(), "x")).collect();
        same(&[&there], &expected).await;
        assert_eq!(last_sequence(&there).await, expected.len() as u64);
    }
    let client = upstream.client().await;
    jetstream::new(client.clone()).delete_key_value("state").await.unwrap();
    site.links.resync("core").unwrap();
    let there = open(&client, "state").await;
    let expected: Vec<(&str, &str)> = expected.iter().map(|key| (key.as_str(), "x")).collect();
    same(&[&there, &here], &expected).await;
}

#[tokio::test]
async fn a_value_that_the_other_side_does_not_take_is_told_and_the_rest_goes_on() {
    let (upstream, site) = (Upstream::with_configuration("max_payload: 2048"), Site::start().await);
    let here = make(&site.client().await, "state").await;
    site.link(LinkConfig { export: vec![bucket("state")], ..link("core", &upstream) }).await;
    here.put("big", vec![b'x'; 4096].into()).await.unwrap();
    here.put("small", "x".into()).await.unwrap();
    let there = open(&upstream.client().await, "state").await;
    same(&[&there], &[("small", "x")]).await;
    let rule = &site.status("core").rules[0];
    assert_eq!(rule.figures.parked, 1);
    assert!(rule.notes[0].contains("key big is not carried"), "{rule:?}");
    let diff = site.links.diff("core").await.unwrap();
    assert_eq!(diff[0].missing, Some(0), "{diff:?}");
    let letters = jetstream::new(site.client().await).get_stream("LINK_DEAD_LETTERS").await.unwrap();
    let letter = letters.get_raw_message(1).await.unwrap();
    assert_eq!(letter.payload.len(), 4096);
    assert_eq!(letter.headers.get("Beamlog-Dead-Subject").unwrap().as_str(), "big");
    assert!(letter.headers.get("Beamlog-Dead-Reason").unwrap().as_str().contains("larger"));
    // It is put aside once, however often both sides are compared.
    site.links.resync("core").unwrap();
    here.put("end", "x".into()).await.unwrap();
    same(&[&there], &[("small", "x"), ("end", "x")]).await;
    assert_eq!(letters.get_info().await.unwrap().state.messages, 1);
}
