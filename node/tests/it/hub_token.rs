//! Edges that show a token, between real nodes: from making it to taking it back.

use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use crate::hub::{Site, degraded, link, status, until, until_link};
use crate::running::{Node, beamlog, check_cannot_start, outcome, write};

fn token(site: &Site) -> String {
    std::fs::read_to_string(site.path("gate7").join("token")).unwrap().trim().to_owned()
}

/// Brings the list of tokens to the hub.
fn tell_hub(site: &Site) {
    site.cert("renew hub --ca ca --trust-only");
}

fn add<'a>(site: &'a Site, url: &'a str, more: &[&'a str]) -> Vec<String> {
    let (token, roots) = (site.path("gate7").join("token"), site.path("gate7").join("roots.pem"));
    let (token, roots) = (token.to_str().unwrap().to_owned(), roots.to_str().unwrap().to_owned());
    let fixed = ["add", "hub", "--url", url, "--token-file", &token, "--tls-ca-file", &roots];
    fixed.iter().chain(more).map(|word| (*word).to_owned()).collect()
}

fn run(node: &Node, arguments: &[String]) -> Result<String, String> {
    outcome(&link(node, &arguments.iter().map(String::as_str).collect::<Vec<_>>()))
}

fn rule<'a>(status: &'a Value, name: &str) -> &'a Value {
    status["rules"].as_array().unwrap().iter().find(|rule| rule["rule"] == name).unwrap()
}

#[test]
fn an_edge_with_a_token_carries_what_is_named_until_the_token_is_taken_back() {
    let site = Site::new();
    site.cert("token gate7 --ca ca --out gate7");
    // Somebody else has one all the time; without any, a certificate is asked for.
    site.cert("token gate8 --ca ca --out gate8");
    tell_hub(&site);
    let grant = "[[edge]]\nname = \"gate7\"\nstreams = [\"ORDERS\"]\nsubjects = [\"alerts.>\"]\n";
    let hub = site.hub(TempDir::new().unwrap(), grant);
    hub.run(&["stream", "add", "ORDERS", "--subjects", "orders.>"]).unwrap();
    hub.run(&["stream", "add", "SECRET", "--subjects", "secret.>"]).unwrap();
    hub.run(&["pub", "orders.a", "one", "--ack"]).unwrap();
    let edge = Node::start();
    let url = site.hub_url();
    run(&edge, &add(&site, &url, &["--import", "stream=ORDERS", "--import", "stream=SECRET"])).unwrap();
    // The grant is that of its name, as for a certificate.
    until_link(&edge, "hub", |status| {
        rule(status, "import stream ORDERS")["transferred"] == 1
            && rule(status, "import stream SECRET")["state"] == "degraded"
    });
    let first = token(&site);
    // A second one; the first is retired once the edge has the new one.
    site.cert("token gate7 --ca ca --out gate7");
    tell_hub(&site);
    assert_ne!(token(&site), first);
    site.cert("token gate7 --ca ca --retire");
    tell_hub(&site);
    until("the old token to go", || {
        let log = hub.log();
        if log.contains("its token is not taken any more") { Ok(()) } else { Err(log) }
    });
    hub.run(&["pub", "orders.a", "two", "--ack"]).unwrap();
    until_link(&edge, "hub", |status| rule(status, "import stream ORDERS")["transferred"] == 2);
    // Taken back.
    site.cert("token gate7 --ca ca --revoke");
    tell_hub(&site);
    degraded(&edge, "hub", &["no token that is taken here"]);
    until_link(&edge, "hub", |status| status["state"] == "degraded");
    // Said once, although it comes again and again.
    let refused = || {
        let metrics = hub.get("/metrics").1;
        let line = metrics.lines().find(|line| line.starts_with("beamlog_net_edges_refused_total")).unwrap();
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    let before = refused();
    until("another refusal", || if refused() > before { Ok(()) } else { Err(hub.log()) });
    let log = hub.log();
    let of_token = |line: &&str| line.contains("refused a peer") && line.contains("no token that is taken");
    assert_eq!(log.lines().filter(of_token).count(), 1, "{log}");
    // The secret is nowhere but in its file.
    for secret in [first, token(&site)] {
        for (who, node) in [("hub", &hub), ("edge", &edge)] {
            assert!(!node.log().contains(&secret), "{who}");
            for page in ["/links", "/healthz?details=1", "/connz?auth=1", "/metrics", "/varz"] {
                assert!(!node.get(page).1.contains(&secret), "{who} {page}");
            }
        }
        assert!(!std::fs::read_to_string(site.path("hub").join("tokens")).unwrap().contains(&secret));
    }
    // A new one for the same edge, without a restart of either.
    site.cert("token gate7 --ca ca --out gate7");
    tell_hub(&site);
    hub.run(&["pub", "orders.a", "three", "--ack"]).unwrap();
    until_link(&edge, "hub", |status| rule(status, "import stream ORDERS")["transferred"] == 3);
}

#[test]
fn a_token_may_stand_in_a_variable() {
    let site = Site::new();
    site.cert("token gate7 --ca ca --out gate7");
    tell_hub(&site);
    let _hub = site.hub(TempDir::new().unwrap(), "");
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("node.toml");
    let roots = site.path("gate7").join("roots.pem");
    let table = format!(
        "[[link]]\nname = \"hub\"\nurls = [{:?}]\ntoken_env = \"GATE_TOKEN\"\ntls_ca_file = {roots:?}\n\
         export = [ {{ subject = \"alerts.>\" }} ]\n",
        site.hub_url()
    );
    write(&file, &table);
    let flags = ["--config", file.to_str().unwrap()];
    let edge = Node::start_with_env(folder, &flags, &[("GATE_TOKEN", &token(&site))]);
    until_link(&edge, "hub", |status| status["state"] == "connected");
    let shown = edge.get_json("/healthz?details=1")["details"]["certificates"].clone();
    assert_eq!(shown[0]["name"], "gate7");
    assert!(!status(&edge, "hub").to_string().contains(&token(&site)));
}

#[test]
fn a_link_by_token_that_cannot_work_is_told_when_it_is_added() {
    let site = Site::new();
    site.cert("token gate7 --ca ca --out gate7");
    let edge = Node::start();
    let url = site.hub_url();
    let (token, roots) = (site.path("gate7").join("token"), site.path("gate7").join("roots.pem"));
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let (token, roots, folder) = (text(&token), text(&roots), text(&site.path("site7")));
    let check = |flags: &[&str], words: &[&str]| {
        let all = [&["add", "hub", "--url", &url, "--export", "subject=a.>"], flags].concat();
        check_cannot_start(&link(&edge, &all), words);
    };
    check(&[], &["beamlog cert edge", "beamlog cert token"]);
    check(&["--token-file", &token], &["tls_ca_file"]);
    check(&["--tls-ca-file", &roots, "--certificates", &folder], &["tls_ca_file"]);
    check(&["--token-file", &token, "--certificates", &folder], &["certificates", "token_file"]);
    // A file of something else, whose content is not told.
    check(&["--token-file", &roots, "--tls-ca-file", &roots], &["not a token of an edge"]);
    check(&["--token-file", &token, "--tls-ca-file", &token], &["token for the hub"]);
    // Three are too many.
    site.cert("token gate7 --ca ca --out gate7");
    let mut third = beamlog();
    third.current_dir(site.path("")).args(["cert", "token", "gate7", "--ca", "ca", "--out", "gate7"]);
    let refused = outcome(&third.output().unwrap()).unwrap_err();
    assert!(refused.contains("--retire"), "{refused}");
}
