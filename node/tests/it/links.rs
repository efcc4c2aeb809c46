//! Links of a running node: commands, admin pages, and what survives a restart.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::admin::NatsServer;
use crate::running::{Node, beamlog, check_cannot_start, outcome, write};

/// An address where nobody listens.
const NOBODY: &str = "nats://127.0.0.1:9";

/// A `link` command against this node.
fn link(node: &Node, arguments: &[&str]) -> std::process::Command {
    let mut command = beamlog();
    command.env("BEAMLOG_ADMIN", &node.admin).arg("link").args(arguments);
    command
}

fn run(node: &Node, arguments: &[&str]) -> Result<String, String> {
    outcome(&link(node, arguments).output().unwrap())
}

fn json(node: &Node, arguments: &[&str]) -> Value {
    serde_json::from_str(&run(node, &[arguments, &["-o", "json"]].concat()).unwrap()).unwrap()
}

/// Looks again until the link is so.
fn until(node: &Node, name: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    let begun = Instant::now();
    loop {
        let status = json(node, &["status", name]);
        if is_so(&status) {
            return status;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{status:#}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A request as a program might make it: status and body.
fn request(node: &Node, method: &str, path: &str, headers: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(&node.admin).unwrap();
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[test]
fn a_link_is_added_seen_paused_and_removed() {
    let (node, nats) = (Node::start(), NatsServer::start());
    let url = nats.url.as_str();
    let said = run(&node, &["add", "core", "--url", url, "--export", "subject=out.>,to=site7.>"]).unwrap();
    assert_eq!(said, "added link core\n");
    let status = until(&node, "core", |status| status["state"] == "connected");
    assert_eq!(status["source"], "added");
    assert_eq!(status["config"]["export"][0]["to"], "site7.>");
    let again = run(&node, &["add", "core", "--url", url, "--export", "subject=x"]).unwrap_err();
    assert!(again.contains("there is a link named core"), "{again}");
    run(&node, &["add", "core", "--replace", "--url", url, "--export", "subject=out.>"]).unwrap();
    until(&node, "core", |status| status["state"] == "connected");
    // It carries.
    let mut listener = beamlog();
    listener.env("BEAMLOG_URL", url).args(["sub", "out.>", "--count", "1", "-o", "json"]);
    let mut listener = listener.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let begun = Instant::now();
    while listener.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < Duration::from_secs(60));
        node.run(&["pub", "out.x", "hello"]).unwrap();
    }
    let mut heard = String::new();
    listener.stdout.take().unwrap().read_to_string(&mut heard).unwrap();
    assert!(heard.contains("hello"), "{heard}");
    let (_, metrics) = node.get("/metrics");
    assert!(metrics.contains("beamlog_nats_link_state{link=\"core\"} 4"), "{metrics}");
    assert!(metrics.contains("beamlog_nats_link_carried_messages_total{link=\"core\"}"), "{metrics}");
    assert!(run(&node, &["ls"]).unwrap().contains("core"));
    assert!(run(&node, &["status"]).unwrap().contains("export subject out.>"));
    run(&node, &["pause", "core"]).unwrap();
    until(&node, "core", |status| status["state"] == "paused");
    run(&node, &["resync", "core"]).unwrap();
    run(&node, &["resume", "core"]).unwrap();
    until(&node, "core", |status| status["state"] == "connected");
    run(&node, &["rm", "core"]).unwrap();
    for command in ["rm", "pause", "resume", "resync", "status", "diff"] {
        let error = run(&node, &[command, "core"]).unwrap_err();
        assert!(error.contains("there is no link named core"), "{error}");
    }
    assert_eq!(json(&node, &["ls"]), Value::Array(Vec::new()));
}

#[test]
fn a_wrong_link_is_refused_with_every_rule_named() {
    let node = Node::start();
    let arguments =
        ["add", "core", "--url", "http://x", "--import", "subject=a.*,to=b.$2", "--export", "stream=a.b"];
    let output = link(&node, &arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8(output.stderr).unwrap();
    for word in ["http://x", "import 1 { subject = \"a.*\", to = \"b.$2\" }", "export 1 { stream = \"a.b\" }"]
    {
        assert!(error.contains(word), "{word} is not in {error}");
    }
    for (rule, word) in [("subject", "key=value"), ("subject=a,subject=b", "twice"), ("colour=red", "colour")]
    {
        let output = link(&node, &["add", "core", "--url", NOBODY, "--import", rule]).output().unwrap();
        check_cannot_start(&output, &[word]);
    }
    // Beside another link.
    run(&node, &["add", "one", "--url", NOBODY, "--export", "subject=a.>"]).unwrap();
    let output = link(&node, &["add", "two", "--url", NOBODY, "--import", "subject=a.b"]).output().unwrap();
    check_cannot_start(&output, &["link \"two\"", "link \"one\"", "loop"]);
    assert_eq!(json(&node, &["ls"]).as_array().unwrap().len(), 1);
}

#[test]
fn a_cluster_that_is_away_keeps_no_node_from_starting_or_serving() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("node.toml");
    write(
        &file,
        &format!("[[link]]\nname = \"far\"\nurls = [\"{NOBODY}\"]\nimport = [ {{ stream = \"ORDERS\" }} ]\n"),
    );
    let node = Node::start_with(folder, &["--config", file.to_str().unwrap()]);
    let status = until(&node, "far", |status| status["state"] == "degraded");
    assert_eq!(status["source"], "file");
    assert!(status["cause"].as_str().unwrap().contains("127.0.0.1:9"), "{status:#}");
    let health = node.get_json("/healthz?details=1");
    assert_eq!(health["status"], "ok");
    assert!(health["degraded"][0].as_str().unwrap().contains("link far is degraded"), "{health:#}");
    assert_eq!(health["details"]["links"][0]["name"], "far");
    assert_eq!(node.get_json("/readyz")["status"], "ok");
    node.run(&["stream", "add", "S", "--subjects", "s.>"]).unwrap();
    node.run(&["pub", "s.a", "x", "--ack"]).unwrap();
    // A link of the file is changed there.
    let error = run(&node, &["rm", "far"]).unwrap_err();
    assert!(error.contains("configuration file"), "{error}");
    let error = run(&node, &["add", "far", "--url", NOBODY, "--export", "subject=a"]).unwrap_err();
    assert!(error.contains("configuration file"), "{error}");
    let said = node.log().lines().filter(|line| line.contains("cannot connect")).count();
    assert_eq!(said, 1, "{}", node.log());
    let begun = Instant::now();
    assert_eq!(node.stop().0, Some(0));
    assert!(begun.elapsed() < Duration::from_secs(30));
}

#[test]
fn links_and_pauses_survive_a_restart() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("node.toml");
    write(
        &file,
        &format!("[[link]]\nname = \"far\"\nurls = [\"{NOBODY}\"]\nexport = [ {{ subject = \"a.>\" }} ]\n"),
    );
    let flags = ["--config", file.to_str().unwrap()];
    let node = Node::start_with(folder, &flags);
    run(&node, &["add", "near", "--url", NOBODY, "--export", "bucket=b", "--paused"]).unwrap();
    run(&node, &["add", "other", "--url", NOBODY, "--export", "subject=b.>"]).unwrap();
    run(&node, &["pause", "far"]).unwrap();
    let kept = node.data().join("links.toml");
    assert_eq!(fs::metadata(&kept).unwrap().mode() & 0o777, 0o600);
    let (code, folder) = node.stop();
    assert_eq!(code, Some(0));
    let node = Node::start_with(folder, &flags);
    let states: Vec<(String, String)> = (json(&node, &["ls"]).as_array().unwrap().iter())
        .map(|link| {
            let text = |key: &str| link[key].as_str().unwrap().to_owned();
            let state = text("state");
            (text("name"), if state == "connecting" { "degraded".to_owned() } else { state })
        })
        .collect();
    let expected = [("far", "paused"), ("near", "paused"), ("other", "degraded")];
    assert_eq!(states, expected.map(|(name, state)| (name.to_owned(), state.to_owned())));
    // The file takes a name and a subject that were added before.
    let (_, folder) = node.stop();
    let links = ["far", "near"].map(|name| {
        format!(
            "[[link]]\nname = \"{name}\"\nurls = [\"{NOBODY}\"]\nexport = [ {{ subject = \"{name}.>\" }} ]\n"
        )
    });
    let clash =
        format!("[[link]]\nname = \"new\"\nurls = [\"{NOBODY}\"]\nexport = [ {{ subject = \"b.x\" }} ]\n");
    write(&file, &(links.concat() + &clash));
    let node = Node::start_with(folder, &flags);
    let listed = json(&node, &["ls"]);
    let refused: Vec<&str> = (listed.as_array().unwrap().iter())
        .filter(|link| link["state"] == "refused")
        .map(|link| link["name"].as_str().unwrap())
        .collect();
    assert_eq!(refused, ["near", "other"], "{listed:#}");
    let health = node.get_json("/healthz").to_string();
    assert!(health.contains("link other is not started") && health.contains("b.x"), "{health}");
    // Taking it away is the cure.
    run(&node, &["rm", "near"]).unwrap();
    run(&node, &["rm", "other"]).unwrap();
    assert_eq!(json(&node, &["ls"]).as_array().unwrap().len(), 3);
}

#[test]
fn only_who_may_publish_here_changes_links() {
    let folder = TempDir::new().unwrap();
    let token = folder.path().join("token");
    fs::write(&token, "geheim").unwrap();
    let node = Node::start_with(folder, &["--auth-token-file", token.to_str().unwrap()]);
    let add = ["add", "core", "--url", NOBODY, "--export", "subject=a"];
    let error = run(&node, &add).unwrap_err();
    assert!(error.contains("--token"), "{error}");
    assert!(run(&node, &[&add[..], &["--token", "wrong"]].concat()).is_err());
    run(&node, &[&add[..], &["--token", "geheim"]].concat()).unwrap();
    assert_eq!(json(&node, &["ls"]).as_array().unwrap().len(), 1);
    // A form of a web page.
    let json_type = "Content-Type: application/json\r\n";
    for (method, path, headers, status) in [
        ("POST", "/links/core/pause", "", 415),
        ("POST", "/links/core/pause", "Content-Type: text/plain\r\nAuthorization: Bearer geheim\r\n", 415),
        ("POST", "/links/core/pause", json_type, 401),
        ("DELETE", "/links/core", json_type, 401),
        ("PUT", "/links/core", json_type, 401),
    ] {
        let (got, body) = request(&node, method, path, headers, "{}");
        assert_eq!(got, status, "{method} {path} {headers}: {body}");
    }
    let headers = format!("{json_type}Authorization: Bearer geheim\r\n");
    for (path, body, word) in [
        ("/links/x", "no", "not a link in JSON"),
        ("/links/x", "[]", "not a link in JSON"),
        ("/links/x", "{\"name\":\"y\"}", "the body says"),
        ("/links/x", "{\"urls\":null}", "not a link in JSON"),
        ("/links/a%20b", "{\"urls\":[\"nats://h\"],\"export\":[{\"subject\":\"a\"}]}", "64 letters"),
    ] {
        let (status, answer) = request(&node, "PUT", path, &headers, body);
        assert_eq!(status, 400, "{body}: {answer}");
        assert!(answer.contains(word), "{body}: {answer}");
    }
    let (status, _) = request(&node, "POST", "/links/core/explode", &headers, "");
    assert_eq!(status, 400);
}

#[test]
fn no_secret_is_shown() {
    let folder = TempDir::new().unwrap();
    let (password, token) = (folder.path().join("password"), folder.path().join("token"));
    fs::write(&password, "geheim-one").unwrap();
    fs::write(&token, "geheim-two").unwrap();
    let nats = NatsServer::start();
    let file = folder.path().join("node.toml");
    write(
        &file,
        &format!(
            "[[link]]\nname = \"far\"\nurls = [\"{}\"]\nuser = \"joe\"\npassword_file = {password:?}\n\
             export = [ {{ subject = \"a.>\" }} ]\n",
            nats.url
        ),
    );
    let shown = beamlog().args(["config", "show", "-o", "json", "--config"]).arg(&file).output().unwrap();
    let shown = outcome(&shown).unwrap();
    assert!(shown.contains("password_file") && !shown.contains("geheim"), "{shown}");
    let node = Node::start_with(folder, &["--config", file.to_str().unwrap(), "--log-level", "debug"]);
    run(
        &node,
        &[
            "add",
            "near",
            "--url",
            &nats.url,
            "--export",
            "subject=b",
            "--token-file",
            token.to_str().unwrap(),
        ],
    )
    .unwrap();
    until(&node, "near", |status| status["state"] == "connected");
    until(&node, "far", |status| status["state"] == "connected");
    let pages =
        ["/links", "/links/near", "/metrics", "/healthz?details=1", "/varz"].map(|path| node.get(path).1);
    let kept = fs::read_to_string(node.data().join("links.toml")).unwrap();
    for text in pages.iter().chain([&kept, &node.log()]) {
        assert!(!text.contains("geheim"), "{text}");
    }
}

#[test]
fn a_damaged_file_of_links_stops_the_start() {
    let node = Node::start();
    run(&node, &["add", "core", "--url", NOBODY, "--export", "subject=a"]).unwrap();
    let kept = node.data().join("links.toml");
    let (_, folder) = node.stop();
    fs::write(&kept, "version = 1\n[[link]]\nname = 7\n").unwrap();
    let output = beamlog()
        .args(["serve", "--listen", "127.0.0.1:0", "--admin", "off", "--data-dir"])
        .arg(folder.path().join("data"))
        .output()
        .unwrap();
    check_cannot_start(&output, &["links.toml", "name"]);
}
